"""Random numbers that depend on a key alone, so that anything can be made by itself, in any order, by any process."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gpudedup.backends.base import U64

F64 = npt.NDArray[np.float64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(z: U64) -> U64:
    """The finalizer of SplitMix64: a permutation of the 64-bit numbers."""
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def noise(key: int, count: int) -> U64:
    """The first ``count`` numbers of SplitMix64 from ``key`` on."""
    return mix(np.uint64(key & (1 << 64) - 1) + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)


def stream(keys: U64, places: U64) -> U64:
    """Of each key, its number at that place, counted from 0."""
    return mix(keys + places * _GOLDEN)


def fraction(bits: U64) -> F64:
    """Uniform in [0, 1)."""
    out: F64 = (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return out
