"""From sorted band keys to the buckets that hold two documents or more, one band at a time.

csrc/cpu/buckets.cpp (`sort_bands`) does the same on the CPU. Documents are named by rank; a *slot* is a place of a
document in a bucket of the band, bucket after bucket.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NO_SLOT = 0xFFFFFFFF
"""In ``slots``: the document shares no bucket of the band."""


def gather_keys(i: int, keys: Any, documents: Any, out: Any) -> None:
    """The key of the i-th document by rank."""
    out[i] = keys[np.int64(documents[i])]


def mark_shared(i: int, keys: Any, order: Any, shared: Any, heads: Any) -> None:
    """Whether the i-th in sorted order has the key of a neighbour, and whether a bucket of two or more begins there."""
    key = keys[np.int64(order[i])]
    as_before = i > 0 and keys[np.int64(order[i - 1])] == key
    as_after = i + 1 < len(order) and keys[np.int64(order[i + 1])] == key
    shared[i] = 1 if as_before or as_after else 0
    heads[i] = 1 if as_after and not as_before else 0


def place_members(
    i: int,
    order: Any,
    shared: Any,
    heads: Any,
    slots_before: Any,
    buckets_before: Any,
    members: Any,
    bucket_of: Any,
    first_slot: Any,
    slots: Any,
) -> None:
    """members and bucket_of by slot, first_slot by bucket (and the end after the last), slots by document.

    slots_before, buckets_before: prefix sums of shared and heads.
    """
    slot, bucket = np.int64(slots_before[i]), np.int64(buckets_before[i + 1]) - 1
    if shared[i] == 1:
        members[slot] = order[i]
        bucket_of[slot] = bucket
        slots[np.int64(order[i])] = slot
    if heads[i] == 1:
        first_slot[bucket] = slot
    if i + 1 == len(order):
        first_slot[bucket + 1] = np.int64(slots_before[i + 1])


def mark_bounded(slot: int, members: Any, bucket_of: Any, first_slot: Any, most: Any, bounded: Any) -> None:
    """bounded[document] = 1 for members of buckets with more than ``most`` documents."""
    bucket = np.int64(bucket_of[slot])
    if np.int64(first_slot[bucket + 1]) - np.int64(first_slot[bucket]) > np.int64(most):
        bounded[np.int64(members[slot])] = 1


def mark_members(slot: int, members: Any, marks: Any) -> None:
    """marks[document] = 1 for every member of a bucket."""
    marks[np.int64(members[slot])] = 1


def copy_values(i: int, source: Any, target: Any) -> None:
    """target = source."""
    target[i] = source[i]


def count_up(i: int, first: Any, target: Any) -> None:
    """target = first, first + 1, ..."""
    target[i] = np.int64(first) + i
