"""From sorted band keys to the buckets that hold two documents or more, one band at a time.

csrc/cpu/equal_keys.cpp and csrc/cpu/buckets.cpp do the same on the CPU. Documents are named by rank; a *slot* is a
place of a document in a bucket of the band, bucket after bucket.
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
    first_slot: Any,
) -> None:
    """members by slot, first_slot by bucket (and the end after the last).

    slots_before, buckets_before: prefix sums of shared and heads.
    """
    slot, bucket = np.int64(slots_before[i]), np.int64(buckets_before[i + 1]) - 1
    if shared[i] == 1:
        members[slot] = order[i]
    if heads[i] == 1:
        first_slot[bucket] = slot
    if i + 1 == len(order):
        first_slot[bucket + 1] = np.int64(slots_before[i + 1])


def place_slots(slot: int, members: Any, first_slot: Any, bucket_of: Any, slots: Any) -> None:
    """bucket_of by slot, by bisection, and slots by document."""
    left, right = np.int64(0), np.int64(len(first_slot)) - 1
    while right - left > 1:
        middle = (left + right) // 2
        if np.int64(first_slot[middle]) <= slot:
            left = middle
        else:
            right = middle
    bucket_of[slot] = left
    slots[np.int64(members[slot])] = slot


def mark_bounded(slot: int, members: Any, bucket_of: Any, first_slot: Any, most: Any, bounded: Any) -> None:
    """bounded[document] = 1 for members of buckets with more than ``most`` documents."""
    bucket = np.int64(bucket_of[slot])
    if np.int64(first_slot[bucket + 1]) - np.int64(first_slot[bucket]) > np.int64(most):
        bounded[np.int64(members[slot])] = 1


def mark_shared_members(slot: int, members: Any, bucket_of: Any, first_slot: Any, fixed: Any, marks: Any) -> None:
    """marks[document] = 1 for members of buckets that hold a document from ``fixed`` on."""
    last = np.int64(first_slot[np.int64(bucket_of[slot]) + 1]) - 1  # members ascend
    if np.int64(members[last]) >= np.int64(fixed):
        marks[np.int64(members[slot])] = 1


def count_up(i: int, first: Any, target: Any) -> None:
    """target = first, first + 1, ..."""
    target[i] = np.int64(first) + i
