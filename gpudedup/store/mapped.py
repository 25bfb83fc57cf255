"""Files that are mapped into memory and read in parts, of which only those are fetched.

A system that sees a mapped file being read fetches what lies behind each place too, up to megabytes (on Linux
/sys/block/*/queue/read_ahead_kb). A band is read from two of sixteen columns in pieces of some hundred kB, so that was
the whole file again for every band: of 10^8 signatures 54 GB instead of 7, eighteen times. Therefore nothing is fetched
unasked, and what will be read is asked for shortly before.
"""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

AHEAD_BYTES = 64 << 20
"""Asked for before it is used: tens of milliseconds of a fast disk."""

_WILL_NEED = 3
"""MADV_WILLNEED, POSIX."""

_library = ctypes.CDLL(None)

Place = tuple[int, int]
"""(address, bytes)."""

Part = TypeVar("Part")


def mapped(path: Path) -> pa.Buffer:
    """The bytes of a file. Raises OSError; ValueError for an empty one."""
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pages.madvise(mmap.MADV_RANDOM)
    return pa.py_buffer(pages)


def fetch(places: Iterable[Place]) -> None:
    """Have the system read memory of mapped files, in its own time; whether it does is its own affair."""
    for address, size_bytes in places:
        first = address & -mmap.PAGESIZE
        _library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(address + size_bytes - first), _WILL_NEED)


def fetched(parts: Iterable[tuple[Part, Sequence[Place]]]) -> Iterator[Part]:
    """Parts with the places that will be read of them, each given when ``AHEAD_BYTES`` after it were asked for."""
    waiting: deque[tuple[Part, int]] = deque()
    ahead = 0
    for part, places in parts:
        fetch(places)
        size_bytes = sum(size for _, size in places)
        waiting.append((part, size_bytes))
        ahead += size_bytes
        while ahead - waiting[0][1] >= AHEAD_BYTES:
            first, size_bytes = waiting.popleft()
            ahead -= size_bytes
            yield first
    for part, _ in waiting:
        yield part
