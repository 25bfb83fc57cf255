"""Clusters made to be quadratic: CPU time over that of a base. Growth with text is the suite scaling of the bench."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from common import ROUNDS, cache_directory, count, load

from gpudedup.bench.measure import measure
from gpudedup.bench.noise import mix, noise
from gpudedup.bench.words import Pool, load_pool


def cpu_seconds(files: list[str], rounds: int) -> tuple[float, dict[str, float]]:
    """Median CPU seconds of the job without start-up, and its counts."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        arguments = {"files": files, "work": work, "options": {"output": "mask", "tmp": work}}
        found = measure("gpudedup.bench.suites.end_to_end:job", arguments, repeat=rounds, whole=True)
    assert not isinstance(found, str), found
    return found.figures["job_cpu_seconds"], found.figures


def unrelated(pool: Pool, number: int, words: int) -> pa.Array:
    return texts(pool, pool.draw(0, noise(11, number * words)).reshape(number, words))


def near_copies(pool: Pool, number: int, words: int) -> pa.Array:
    """One text, 1 % of its words replaced: any two have J of about 0.8 to 0.9."""
    base = pool.draw(0, noise(12, words))
    bits = noise(13, number * words).reshape(number, words)
    return texts(pool, np.where(bits % np.uint64(100) == 0, pool.draw(0, mix(bits)), base))


def common_head(pool: Pool, number: int, head: int, tail: int) -> pa.Array:
    """Texts that share ``head`` words and then differ: J = (head - 4) / (head - 4 + 2 tail) between any two."""
    shared = np.broadcast_to(pool.draw(0, noise(14, head)), (number, head))
    own = pool.draw(0, noise(15, number * tail)).reshape(number, tail)
    return texts(pool, np.concatenate([shared, own], axis=1))


def texts(pool: Pool, words: Any) -> pa.Array:
    taken = pool.pieces.take(pa.array(np.ascontiguousarray(words).ravel()))
    ends = np.frombuffer(taken.buffers()[1], np.int64)[: taken.offset + len(taken) + 1 : words.shape[1]]
    return pa.Array.from_buffers(
        pa.large_string(), len(words), [None, pa.py_buffer(ends.tobytes()), taken.buffers()[2]]
    )


def cost(make: Callable[[], pa.Array], rounds: int) -> tuple[float, dict[str, float]]:
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        file = str(Path(work, "part-0.parquet"))
        pq.write_table(pa.table({"text": make()}), file, compression="zstd", use_dictionary=False)
        seconds, report = cpu_seconds([file], rounds)
    return seconds, {name: report[name] for name in ("removed", "compared_pairs", "longest_bucket", "documents")}


@pytest.fixture(scope="module")
def pool() -> Pool:
    return load_pool("english")


def bench_cluster_of_near_copies(benchmark: Any, pool: Pool) -> None:
    """10^4 near-copies of one document over 10^4 unrelated ones."""
    _compare(benchmark, lambda: near_copies(pool, count(10_000), 300), lambda: unrelated(pool, count(10_000), 300))


def bench_just_below_threshold(benchmark: Any, pool: Pool) -> None:
    """10^4 documents, any two at J = 0.75, at t = 0.8: each has candidates and none is similar."""
    _compare(benchmark, lambda: common_head(pool, count(10_000), 250, 41), lambda: unrelated(pool, count(10_000), 291))


def bench_bucket_of_a_million(benchmark: Any, pool: Pool) -> None:
    """A bucket of 10^6 documents over one of 10^5: 10 is linear. J = 0.93, so four of five documents share a bucket."""
    hard, base = count(1_300_000), count(130_000)
    _compare(benchmark, lambda: common_head(pool, hard, 60, 2), lambda: common_head(pool, base, 60, 2), rounds=1)


def bench_bucket_of_a_million_below_threshold(benchmark: Any, pool: Pool) -> None:
    """10^6 over 10^5 documents, any two at J = 0.67: bounded buckets, and windows, not removals, bound the work."""
    hard, base = count(1_000_000), count(100_000)
    _compare(benchmark, lambda: common_head(pool, hard, 24, 5), lambda: common_head(pool, base, 24, 5), rounds=1)


def _compare(benchmark: Any, hard: Callable[[], pa.Array], base: Callable[[], pa.Array], rounds: int = ROUNDS) -> None:
    found: list[tuple[float, dict[str, float]]] = []
    benchmark.pedantic(lambda: found.extend([cost(hard, rounds), cost(base, rounds)]), rounds=1)
    (seconds, report), (base_seconds, base_report) = found
    benchmark.extra_info.update(
        cpu_seconds=round(seconds, 3),
        base_cpu_seconds=round(base_seconds, 3),
        cpu_ratio=round(seconds / base_seconds, 2),
        hard=report,
        base=base_report,
        load=load(),
    )
