"""From buckets to the candidates of a block of documents, by the window rule (docs/spec.md, section 7).

csrc/cpu/buckets.h (`Buckets::candidates_between`) does the same on the CPU. Bands lie one after another: band b has the
slots from base[b] on, the buckets from bucket_base[b] on, and ``slots`` has a row of ``count`` documents for it.
A pair is worse << 32 | better, so that sorting puts the candidates of each document together, best first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpudedup.kernels.buckets import NO_SLOT

NO_PAIR = 0xFFFFFFFFFFFFFFFF
REMOVED = 2
"""In ``state``, as in csrc/cuda/decide.cu."""


def count_window(
    i: int,
    low: Any,
    block: Any,
    count: Any,
    window: Any,
    base: Any,
    bucket_base: Any,
    bucket_of: Any,
    first_slot: Any,
    slots: Any,
    sizes: Any,
) -> None:
    """sizes[i] = candidates of document low + i % block in its bucket of band i // block."""
    band = i // np.int64(block)
    document = np.int64(low) + i - band * np.int64(block)
    slot = np.int64(slots[band * np.int64(count) + document])
    if slot == NO_SLOT:
        sizes[i] = 0
        return
    bucket = np.int64(bucket_of[np.int64(base[band]) + slot])
    position = slot - np.int64(first_slot[np.int64(bucket_base[band]) + bucket])
    sizes[i] = position if position <= 2 * np.int64(window) else 2 * np.int64(window)


def list_window(
    i: int,
    low: Any,
    block: Any,
    count: Any,
    window: Any,
    base: Any,
    bucket_base: Any,
    members: Any,
    bucket_of: Any,
    first_slot: Any,
    slots: Any,
    scopes: Any,
    across: Any,
    state: Any,
    before: Any,
    pairs: Any,
) -> None:
    """Those candidates, from place before[i] on; NO_PAIR instead of one that is removed or not to be compared.

    scopes, across: of each document, or of length 1 where there is no such column.
    """
    first, end = np.int64(before[i]), np.int64(before[i + 1])
    if first == end:
        return
    band = i // np.int64(block)
    document = np.int64(low) + i - band * np.int64(block)
    slot = np.int64(slots[band * np.int64(count) + document])
    bucket = np.int64(bucket_of[np.int64(base[band]) + slot])
    start = np.int64(first_slot[np.int64(bucket_base[band]) + bucket])
    position = slot - start
    for k in range(end - first):
        place = np.int64(k)
        if position > 2 * np.int64(window) and k >= np.int64(window):
            place = position - 2 * np.int64(window) + k
        better = np.int64(members[np.int64(base[band]) + start + place])
        wanted = state[better] != REMOVED
        if len(scopes) > 1 and scopes[better] != scopes[document]:
            wanted = False
        if len(across) > 1 and across[better] == across[document]:
            wanted = False
        if wanted:
            pairs[first + k] = np.uint64(document) << np.uint64(32) | np.uint64(better)
        else:
            pairs[first + k] = np.uint64(NO_PAIR)


def mark_first(i: int, pairs: Any, firsts: Any) -> None:
    """firsts[i] = 1 where a pair comes for the first time; pairs are sorted, those to leave out at the end."""
    pair = pairs[i]
    firsts[i] = 1 if pair != np.uint64(NO_PAIR) and (i == 0 or pairs[i - 1] != pair) else 0


def place_better(i: int, pairs: Any, firsts: Any, before: Any, better: Any) -> None:
    """The better document of each pair that comes for the first time; before: prefix sums of firsts."""
    if firsts[i] == 1:
        better[np.int64(before[i])] = pairs[i] & np.uint64(0xFFFFFFFF)


def find_begins(i: int, low: Any, pairs: Any, before: Any, begins: Any) -> None:
    """begins[i] = where the candidates of document low + i begin, by bisection; for one past the last, the end."""
    wanted = np.uint64(np.int64(low) + i) << np.uint64(32)
    left, right = np.int64(0), np.int64(len(pairs))
    while left < right:
        middle = (left + right) // 2
        if pairs[middle] < wanted:
            left = middle + 1
        else:
            right = middle
    begins[i] = before[left]


def place_waiting(i: int, active: Any, waits: Any, before: Any, waiting: Any) -> None:
    """The documents that wait for another, packed; before: prefix sums of waits."""
    if waits[i] == 1:
        waiting[np.int64(before[i])] = active[i]
