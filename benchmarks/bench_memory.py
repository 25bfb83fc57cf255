"""Memory: the largest RssAnon + RssShmem of a job's process, by size of text and for one huge document, and that
of a Deduplicator by documents.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from common import TINY, Child, cache_directory, corpus_files, load, run_job, text_size

from gpudedup.bench.noise import noise
from gpudedup.bench.words import load_pool

MEMORY = "768 MB"
SIZES = (1000, 4000)

STREAM_MEMORY = "64 MB"
STREAMED = (200, 800) if TINY else (300_000, 1_200_000)
"""Documents; the sets of the fewest, 384 bytes each, already take more than half of ``STREAM_MEMORY``."""


def bench_memory_of_sizes(benchmark: Any) -> None:
    """At 1 and 4 GB of text under memory="768 MB"."""
    found: dict[int, Child] = {}

    def jobs() -> None:
        for megabytes in SIZES:
            found[megabytes] = run_job(corpus_files("mixed", megabytes), output="mask", memory=MEMORY)

    benchmark.pedantic(jobs, rounds=1)
    small, large = (found[size] for size in SIZES)
    more = large.report["documents"] - small.report["documents"]
    benchmark.extra_info.update(
        memory=MEMORY,
        peak_megabytes={size: round(child.peak_bytes / 1e6) for size, child in found.items()},
        documents={size: child.report["documents"] for size, child in found.items()},
        seconds={size: round(child.seconds, 2) for size, child in found.items()},
        bytes_per_document=round((large.peak_bytes - small.peak_bytes) / more) if more else None,
        load=load(),
    )


def bench_memory_of_huge_document(benchmark: Any) -> None:
    """One document of 1 GB beside a few small ones."""
    pool, size = load_pool("english"), text_size(1000)
    children: list[Child] = []
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        file = str(Path(work, "huge.parquet"))
        parts, made = [], 0
        while made < size:
            words = pool.draw(0, noise(made, 4_000_000))
            parts.append(b"".join(value.as_buffer() for value in [_joined(pool.pieces.take(pa.array(words)))]))
            made += len(parts[-1])
        text = b"".join(parts)[:size]
        table = pa.table({"text": pa.array([b"a small one", text, b"another"], pa.binary()).cast(pa.string())})
        pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
        del parts, text, table
        benchmark.pedantic(lambda: children.append(run_job([file], output="mask")), rounds=1)
    benchmark.extra_info.update(
        text_bytes=size,
        peak_megabytes=round(children[0].peak_bytes / 1e6),
        peak_over_text=round(children[0].peak_bytes / size, 2),
        seconds=round(children[0].seconds, 2),
        load=load(),
    )


def bench_memory_of_stream(benchmark: Any) -> None:
    """A Deduplicator of 18 bands after 0.3 and 1.2 million documents that it kept, whose shingle sets are on disk."""
    found: dict[int, Child] = {}

    def jobs() -> None:
        for number in STREAMED:
            found[number] = run_job([], mode="stream", documents=number, bands=18, rows=7, memory=STREAM_MEMORY)

    benchmark.pedantic(jobs, rounds=1)
    small, large = (found[number] for number in STREAMED)
    more = large.report["documents"] - small.report["documents"]
    benchmark.extra_info.update(
        memory=STREAM_MEMORY,
        stream_peak_megabytes={number: round(child.peak_bytes / 1e6) for number, child in found.items()},
        seconds={number: round(child.seconds, 2) for number, child in found.items()},
        bytes_per_document=round((large.peak_bytes - small.peak_bytes) / more),
        load=load(),
    )


def _joined(pieces: pa.Array) -> pa.Scalar:
    """All pieces as one binary value, without a copy."""
    offsets = np.frombuffer(pieces.buffers()[1], np.int64)
    ends = np.array([0, offsets[len(pieces)]], np.int64)
    return pa.Array.from_buffers(pa.large_binary(), 1, [None, pa.py_buffer(ends.tobytes()), pieces.buffers()[2]])[0]
