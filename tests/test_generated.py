"""Generated signatures are what they say: distributions by theory, blocks by their number alone."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from gpudedup.bench.generated import BLOCK, LARGEST, ZIPF, Block, Generated

DOCUMENTS = 3 * BLOCK + 1234
LANES = 16


@pytest.fixture(scope="module")
def made() -> tuple[Generated, list[Block]]:
    generated = Generated(DOCUMENTS, num_perm=LANES, seed=3)
    return generated, [generated.block(number) for number in range(generated.blocks)]


def joined(blocks: list[Block], name: str) -> np.ndarray:
    return np.concatenate([getattr(block, name) for block in blocks])


def test_blocks_are_of_the_seed_and_their_number(made: tuple[Generated, list[Block]]) -> None:
    again, other = Generated(DOCUMENTS, num_perm=LANES, seed=3), Generated(DOCUMENTS, num_perm=LANES, seed=4)
    for number in (3, 1):
        for name in ("lanes", "content", "unit_count", "cluster"):
            assert np.array_equal(getattr(again.block(number), name), getattr(made[1][number], name))
            assert not np.array_equal(getattr(other.block(number), name), getattr(made[1][number], name))
    assert [block.first for block in made[1]] == [0, BLOCK, 2 * BLOCK, 3 * BLOCK]
    assert [len(block.lanes) for block in made[1]] == [BLOCK, BLOCK, BLOCK, 1234]
    with pytest.raises(IndexError):
        again.block(4)


def test_lanes_are_uniform_and_independent(made: tuple[Generated, list[Block]]) -> None:
    """Of documents outside clusters, and of one of each cluster: mean, variance, correlation of lanes; and bits."""
    lanes, cluster = joined(made[1], "lanes"), joined(made[1], "cluster")
    strangers = lanes[cluster < 0]
    _, firsts = np.unique(cluster, return_index=True)
    for rows in (strangers, lanes[firsts[1:]]):
        some = rows.astype(np.float64) / 2**32
        n = len(some)
        # The mean of n uniforms has the standard deviation 1 / sqrt(12 n), their variance one of 1 / sqrt(180 n).
        assert np.abs(some.mean(axis=0) - 1 / 2).max() < 5 / math.sqrt(12 * n)
        assert np.abs(some.var(axis=0) - 1 / 12).max() < 5 / math.sqrt(180 * n)
        correlation = np.corrcoef(some, rowvar=False) - np.eye(LANES)
        assert np.abs(correlation).max() < 5 / math.sqrt(n)
    assert (strangers[:-1] == strangers[1:]).sum() < 10  # 2^-32 a lane
    ones = np.unpackbits(strangers.view(np.uint8), axis=1).mean()
    assert abs(ones - 1 / 2) < 5 / 2 / math.sqrt(strangers.size * 32)


def test_cluster_sizes_are_zipf(made: tuple[Generated, list[Block]]) -> None:
    generated, blocks = made
    cluster = joined(blocks, "cluster")
    numbers, sizes = np.unique(cluster[cluster >= 0], return_counts=True)
    assert np.array_equal(numbers, np.arange(len(generated.sizes)))
    assert np.array_equal(sizes, generated.sizes)
    assert DOCUMENTS // 10 - 1 <= sizes.sum() <= DOCUMENTS // 10
    assert sizes.min() == 2
    assert sizes.max() <= LARGEST
    zeta = sum(k**-ZIPF for k in range(1, 1_000_000))
    for k in range(1, 6):
        share = k**-ZIPF / zeta
        assert abs((sizes == k + 1).mean() - share) < 5 * math.sqrt(share * (1 - share) / len(sizes))


def test_clusters_lie_all_over_the_input(made: tuple[Generated, list[Block]]) -> None:
    cluster = joined(made[1], "cluster")
    per_part = [(part >= 0).mean() for part in np.array_split(cluster, 50)]
    assert max(per_part) - min(per_part) < 0.01
    largest = np.flatnonzero(cluster == np.argmax(made[0].sizes))
    assert np.median(np.diff(largest)) > 10


def test_members_share_lanes_by_the_cluster_s_chance(made: tuple[Generated, list[Block]]) -> None:
    """Two members share a lane with chance J^2: the mean over pairs, cluster by cluster; J itself is uniform."""
    generated, blocks = made
    lanes, cluster = joined(blocks, "lanes"), joined(blocks, "cluster")
    order = np.argsort(cluster, kind="stable")[(cluster < 0).sum() :]
    firsts = np.concatenate([[0], np.cumsum(generated.sizes)[:-1]])
    left, right = lanes[order[firsts]], lanes[order[firsts + 1]]
    equal = (left == right).mean(axis=1)
    shared = generated.shared(np.arange(len(firsts)))
    # Binomial(LANES, J^2) / LANES: at most 1 / 4 / LANES of variance each.
    assert abs((equal - shared**2).mean()) < 5 / math.sqrt(4 * LANES * len(firsts))
    assert np.corrcoef(equal, shared**2)[0, 1] > 0.5
    assert shared.min() >= 0.6
    assert shared.max() < 1
    assert abs(shared.mean() - 0.8) < 5 * 0.4 / math.sqrt(12 * len(firsts))


def test_contents_are_distinct_and_units_plausible(made: tuple[Generated, list[Block]]) -> None:
    content, units = joined(made[1], "content"), joined(made[1], "unit_count")
    assert len(np.unique(content[:, 0])) == len(np.unique(content[:, 1])) == DOCUMENTS
    assert units.min() >= 1
    # The median of a log-normal, sigma 1: its estimate is off by sqrt(pi / 2 / n) in the logarithm.
    assert abs(math.log(np.median(units) / 350)) < 5 * math.sqrt(math.pi / 2 / DOCUMENTS) + 1 / 350


@pytest.mark.parametrize("documents", [1, 9, 10, 25, 1000, BLOCK, BLOCK + 1])
def test_small_numbers(documents: int) -> None:
    generated = Generated(documents, num_perm=1, seed=1)
    cluster = joined([generated.block(number) for number in range(generated.blocks)], "cluster")
    assert len(cluster) == documents
    assert documents // 10 - 1 <= (cluster >= 0).sum() <= documents // 10
    assert np.array_equal(np.unique(cluster[cluster >= 0], return_counts=True)[1], generated.sizes)


def test_memory_of_a_hundred_million() -> None:
    """The plan of 10^8 documents and one of its blocks."""
    tracemalloc.start()
    generated = Generated(100_000_000)
    block = generated.block(1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(block.lanes) == BLOCK
    assert peak < 300e6
