"""Intersections of shingle sets are those of Python's sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpudedup import _cpu

NARROW = st.sets(st.integers(0, 150), max_size=120)
WIDE = st.sets(st.integers(0, 2**32 - 1), max_size=60)


def array(values: set[int]) -> np.ndarray:
    return np.array(sorted(values), np.uint32)


@given(NARROW, NARROW, st.integers(0, 130))
def test_narrow_sets(left: set[int], right: set[int], needed: int) -> None:
    common = len(left & right)
    assert _cpu.intersect(array(left), array(right), needed) == (common if common >= needed else 0)


@given(WIDE, WIDE, WIDE)
def test_wide_sets(left: set[int], right: set[int], both: set[int]) -> None:
    assert _cpu.intersect(array(left | both), array(right | both), 0) == len((left | both) & (right | both))


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 1000])
def test_borders_of_blocks(size: int) -> None:
    rng = np.random.default_rng(size)
    universe = rng.permutation(np.arange(2**20, dtype=np.uint32))[: 3 * size]
    for shared in {0, 1 if size else 0, size // 2, size}:
        left = np.sort(universe[:size])
        right = np.sort(np.concatenate([universe[:shared], universe[size : 2 * size - shared]]))
        assert _cpu.intersect(left, right, 0) == shared
        assert _cpu.intersect(left, right, shared) == shared
        assert _cpu.intersect(left, right, shared + 1) == 0
        assert _cpu.intersect(right, left, 0) == shared


def test_the_largest_values() -> None:
    edge = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1], np.uint32)
    assert _cpu.intersect(edge, edge, 0) == 6
    assert _cpu.intersect(edge, edge[1::2].copy(), 0) == 3
