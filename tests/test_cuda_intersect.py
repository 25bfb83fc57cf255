"""Intersections of shingle sets by a warp (csrc/cuda/intersect.h), in the emulator."""

from __future__ import annotations

import emulator
import numpy as np
import numpy.typing as npt
import pytest
from emulated_device import EmulatedDevice

from gpudedup.backends.cuda.device import fetched, sent

LAST = 2**32 - 1
Set = npt.NDArray[np.uint32]


def sizes_of_common(pairs: list[tuple[Set, Set]], order: emulator.Order) -> list[int]:
    """By intersect_pairs. Sets lie apart, each in an array of its own, so that a read past one is seen."""
    device = EmulatedDevice(order=order)
    stream = device.stream()
    arrays = [sent(device, values, stream) if len(values) else None for pair in pairs for values in pair]
    address = sent(device, np.array([array.address if array else 0 for array in arrays], np.uint64), stream)
    size = sent(device, np.array([len(values) for pair in pairs for values in pair], np.uint32), stream)
    left = sent(device, np.arange(0, len(arrays), 2, dtype=np.uint32), stream)
    right = sent(device, np.arange(1, len(arrays), 2, dtype=np.uint32), stream)
    common = device.alloc(len(pairs), np.uint32)
    device.launch(
        "intersect_pairs",
        -(-len(pairs) // 8),
        256,
        [left, right, np.uint32(len(pairs)), address, size, common],
        stream,
    )
    found = fetched(device, common, stream)
    device.check()
    return [int(count) for count in found]


def ascending(values: object) -> Set:
    return np.unique(np.array(values, np.uint32))


def related(chance: np.random.Generator, m: int, n: int, shared: int, among: int) -> tuple[Set, Set]:
    """Sets of about m and n values below ``among``, of which they have ``shared`` and some by chance."""
    both = chance.integers(0, among, shared)
    one, other = chance.integers(0, among, m - shared), chance.integers(0, among, n - shared)
    return ascending(np.concatenate([both, one])), ascending(np.concatenate([both, other]))


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_sets_of_any_sizes(order: emulator.Order) -> None:
    chance = np.random.default_rng(3)
    pairs = []
    for m in (1, 31, 32, 33, 64, 65, 600):
        for n in (m, m + 1, 2 * m, 20 * m):
            for among in (4 * n, 2**32):
                pairs.append(related(chance, m, n, chance.integers(0, m + 1), among))
    assert sizes_of_common(pairs, order) == [len(set(a.tolist()) & set(b.tolist())) for a, b in pairs]


@pytest.mark.parametrize("order", emulator.ORDERS)
def test_sets_at_the_edges(order: emulator.Order) -> None:
    """The greatest value, which also stands for what is past a set; none at all; and sets that lie before, after and
    in a gap of another."""
    ends = [[], [LAST], [0], [0, LAST], [LAST - 1], [LAST - 1, LAST], [*range(31), LAST], [*range(32), LAST]]
    ends += [[*range(63), LAST], [*range(64), LAST], [*range(LAST - 70, LAST)], [*range(LAST - 69, LAST + 1)]]
    sets = [ascending(values) for values in (*ends, range(1000), range(500, 1500), [5, 2**31], [0, *range(9000, 9999)])]
    pairs = [(a, b) for a in sets for b in sets]
    assert sizes_of_common(pairs, order) == [len(set(a.tolist()) & set(b.tolist())) for a, b in pairs]
