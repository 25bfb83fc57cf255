"""Signatures of chosen documents, read in one pass from where those of all documents lie."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.backends.base import U32, LaneGroups


def chosen_rows(lanes: Iterable[LaneGroups], numbers: U32) -> Iterator[tuple[LaneGroups, U32]]:
    """Each batch with its rows among ``numbers``, which ascend; without batches that have none."""
    first = low = 0
    for groups in lanes:
        end = first + len(groups[0])
        high = low + int(np.searchsorted(numbers[low:], np.uint32(end)))  # a plain int would have all numbers widened
        if high > low:
            yield groups, numbers[low:high] - np.uint32(first)
        first, low = end, high


def gather_lanes(lanes: Iterable[LaneGroups], numbers: U32, num_perm: int, *, memory_bytes: int, tmp: str) -> U32:
    """uint32[n, num_perm]: the signatures of ``numbers``, which ascend; in memory if they fit, else in ``tmp``.

    What is compared lies all over the input, and in a run directory each signature in as many places as groups of
    lanes: one by one, two signatures would be two dozen reads of a disk. Raises OSError without room.
    """
    found = lanes_room(len(numbers), num_perm, memory_bytes=memory_bytes, tmp=tmp)
    done = 0
    for groups, rows in chosen_rows(lanes, numbers):
        places = rows.astype(np.intp)
        np.concatenate([np.take(group, places, axis=0) for group in groups], axis=1, out=found[done : done + len(rows)])
        done += len(rows)
    return found


def lanes_room(count: int, num_perm: int, *, memory_bytes: int, tmp: str) -> npt.NDArray[Any]:
    """Zeros, uint32[max(1, count), num_perm]: in memory if they fit, else mapped from a file without a name in ``tmp``.

    Raises OSError if that has no room: it is taken first, since a full disk would end the process later.
    """
    shape = max(1, count), num_perm
    size_bytes = 4 * math.prod(shape)
    if size_bytes <= memory_bytes:
        return np.zeros(shape, np.uint32)
    with tempfile.TemporaryFile(prefix="gpudedup-", dir=tmp) as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
        return np.memmap(file, np.uint32, shape=shape)
