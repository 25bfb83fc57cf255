"""Signatures without text: as many documents as wanted, a tenth of them in clusters, each block made by itself.

A document outside clusters has independent uniform lanes. In a cluster, whose J is drawn from U(0.6, 1), each lane of a
document is that of the cluster with probability J and else its own, so two documents share a lane with probability J^2.
Cluster sizes are 1 + Zipf(2.2), at most 100,000; their documents lie all over the input. Contents are distinct.

A block of documents is a function of (seed, its number), so blocks can be made in any order by any process. Memory:
about 20 bytes a cluster for the plan, a hundred MB for a block of 65,536 documents of 128 lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from gpudedup.bench.noise import F64, I64, U64, fraction, mix, noise

BLOCK = 1 << 16
"""Documents of a block."""
ZIPF = 2.2
LARGEST = 100_000
LEAST_SHARED = 0.6

U32 = np.ndarray[tuple[int, ...], np.dtype[np.uint32]]


@dataclass(frozen=True)
class Block:
    """Some consecutive documents."""

    first: int
    lanes: U32
    """[n, num_perm]"""
    content: U64
    """[n, 2], distinct over all documents."""
    unit_count: U64
    """[n], log-normal around 350."""
    cluster: I64
    """[n], -1: in none."""


class Generated:
    """``documents`` of ``num_perm`` lanes; ``share`` of them are in clusters."""

    def __init__(self, documents: int, *, num_perm: int = 128, seed: int = 1, share: float = 0.1) -> None:
        self.documents, self.num_perm, self.seed = documents, num_perm, seed
        self.blocks = -(-documents // BLOCK)
        self.ends = np.cumsum(_sizes(int(documents * share), np.random.default_rng([seed, 0])))
        """Of each cluster, the end of its places; document d has the place ``d * step % documents``."""
        self._step = _coprime(documents)
        self._keys = noise(seed, 4)

    @property
    def sizes(self) -> I64:
        return np.diff(self.ends, prepend=0)

    def shared(self, clusters: I64) -> F64:
        """J of each cluster."""
        return LEAST_SHARED + (1 - LEAST_SHARED) * fraction(mix(clusters.astype(np.uint64) ^ self._keys[0]))

    def block(self, number: int) -> Block:
        """The documents from ``number * BLOCK`` on, BLOCK of them or what is left. O(n * num_perm)."""
        first = number * BLOCK
        last = min(first + BLOCK, self.documents)
        if not 0 <= first < last:
            raise IndexError(f"block {number} of {self.blocks}")
        generator = np.random.default_rng([self.seed, 1, number])
        shape = (last - first, self.num_perm)
        lanes = generator.integers(0, 1 << 32, shape, dtype=np.uint32)
        unit_count = np.exp(generator.normal(math.log(350), 1.0, last - first)).astype(np.uint64) + np.uint64(1)
        documents = np.arange(first, last, dtype=np.uint64)
        place = (documents * np.uint64(self._step) % np.uint64(self.documents)).astype(np.int64)
        cluster = np.searchsorted(self.ends, place, side="right")
        cluster[cluster == len(self.ends)] = -1
        members = np.flatnonzero(cluster >= 0)
        own = cluster[members].astype(np.uint64)[:, None]
        of_cluster = mix(own * np.uint64(self.num_perm) + np.arange(self.num_perm, dtype=np.uint64) ^ self._keys[1])
        same = generator.random((len(members), self.num_perm)) < self.shared(cluster[members])[:, None]
        lanes[members] = np.where(same, (of_cluster >> np.uint64(32)).astype(np.uint32), lanes[members])
        content = np.stack([mix(documents ^ self._keys[2]), mix(documents ^ self._keys[3])], axis=1)
        return Block(first, lanes, content, unit_count, cluster)


def _sizes(documents: int, generator: np.random.Generator) -> I64:
    """Sizes of clusters, 2 at least, that add up to ``documents`` or one less."""
    parts: list[I64] = []
    total = 0
    while total < documents:
        more = 1 + np.minimum(generator.zipf(ZIPF, 1 << 16), LARGEST - 1)
        parts.append(more)
        total += int(more.sum())
    sizes = np.concatenate([np.zeros(0, np.int64), *parts])
    ends = np.cumsum(sizes)
    whole = int(np.searchsorted(ends, documents, side="right"))
    left = documents - (int(ends[whole - 1]) if whole else 0)
    return np.append(sizes[:whole], left) if left > 1 else sizes[:whole]


def _coprime(number: int) -> int:
    """A step that visits all of 0 to number - 1, with neighbours far apart. number < 2^32."""
    if not 0 < number < 1 << 32:
        raise ValueError(f"documents must be 1 to 2^32 - 1, got {number}")
    step = max(1, round(number * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, number) > 1:
        step += 1
    return step
