"""Peak memory: of jobs by size of text, of one huge document, and of a stream by documents."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import gpudedup
from gpudedup.bench.corpus import join
from gpudedup.bench.devices import Device
from gpudedup.bench.inputs import Inputs, inputs, made
from gpudedup.bench.measure import Measured, Work, measure
from gpudedup.bench.noise import noise
from gpudedup.bench.record import Record
from gpudedup.bench.suites import Order, recorded
from gpudedup.bench.suites.end_to_end import job_record, run_jobs
from gpudedup.bench.words import load_pool
from gpudedup.errors import BenchmarkError

MEMORY = "768 MB"
STREAM_MEMORY = "64 MB"
STREAM_DOCUMENT_BYTES = 3000
"""A streamed document for so many bytes of ordered text: enough of them that their shingle sets go to disk."""
LARGE_BYTES, LARGE_STREAM = 100_000_000, 100_000
"""Text and documents beside which the 70 MB of a process without work are little."""
BATCH, WORDS, LETTERS = 2000, 100, 5

CLOCK_OF_STREAM = "Deduplicator.filter over documents of 100 random words in batches of 2,000"


def suite(order: Order) -> Iterator[Record]:
    device = next((one for one in order.best if one.device == "cpu"), order.best[0])
    sizes = [inputs(order)] if order.inputs else [made(order, size=order.text_bytes // 4), made(order)]
    work = order.folder / "memory"
    for text in sizes:
        order.tell(f"memory: {text.text_bytes / 1e6:,.0f} MB of text, {device}")
        found = run_jobs(text, work, order, device, repeat=1, output="mask", memory=MEMORY)
        shutil.rmtree(work, ignore_errors=True)
        case = f"{text.name}, {text.text_bytes / 1e6:,.0f} MB"
        yield job_record("memory", case, order, device, found, text, output="mask", memory=MEMORY)
    size = order.text_bytes // 4
    order.tell(f"memory: one document of {size / 1e6:,.0f} MB")
    work.mkdir()
    file = work / "huge.parquet"
    huge = measure("gpudedup.bench.suites.memory:huge_file", {"file": str(file), "size": size}, repeat=1, warm_ups=0)
    text = Inputs("one huge document", (str(file),), "text", 3, size)
    found = huge if isinstance(huge, str) else run_jobs(text, work / "runs", order, device, repeat=1, output="mask")
    shutil.rmtree(work, ignore_errors=True)
    record = job_record("memory", "one huge document", order, device, found, text, output="mask")
    if isinstance(found, Measured) and size >= LARGE_BYTES:
        record.figures["peak_over_text"] = found.peak_bytes / size
    yield record
    yield from _streams(order, device)


def _streams(order: Order, device: Device) -> Iterator[Record]:
    """What a Deduplicator takes for each document more, of those that it kept."""
    most = max(4 * BATCH, order.text_bytes // STREAM_DOCUMENT_BYTES)
    peaks = []
    for documents in (most // 4, most):
        order.tell(f"memory: a stream of {documents:,} documents")
        options = {"documents": documents, "bands": 18, "rows": 7, "memory": STREAM_MEMORY, "tmp": str(order.folder)}
        found = measure(
            "gpudedup.bench.suites.memory:stream", options, repeat=1, warm_ups=0, environment=device.environment
        )
        figures = {}
        if isinstance(found, Measured):
            peaks.append(found.peak_bytes)
            figures = {"documents_per_second": documents / found.seconds.median}
            if len(peaks) == 2 and most >= LARGE_STREAM:
                figures["bytes_per_document"] = (peaks[1] - peaks[0]) / (most - most // 4)
        parameters = {name: value for name, value in options.items() if name != "tmp"}
        about = {"clock": CLOCK_OF_STREAM, "checked": "every document kept, as no two are alike", "figures": figures}
        yield recorded("memory", f"stream of {documents:,}", order, device, found, parameters=parameters, **about)


def huge_file(file: str, size: int) -> Work:
    """Writes one document of ``size`` bytes, all but the last word, between two small ones."""

    def run() -> str:
        pool = load_pool("english")
        parts, made = [], 0
        while made < size:
            words = pool.draw(0, noise(made, min(4_000_000, size)))
            parts.append(join(pool.pieces, words, np.array([len(words)]))[0].as_buffer())
            made += parts[-1].size
        text = b"".join(parts)[:size]
        table = pa.table({"text": pa.array([b"a small one", text, b"another"], pa.binary()).cast(pa.string())})
        pq.write_table(table, file, compression="zstd", use_dictionary=False, write_statistics=False)
        return "written"

    return Work(run, str)


def stream(documents: int, **options: Any) -> Work:
    """Filters documents of random words, no two of them similar."""

    def run() -> int:
        filtering, random = gpudedup.Deduplicator(**options), np.random.default_rng(1)
        size = WORDS * (LETTERS + 1)
        offsets = pa.py_buffer(np.arange(BATCH + 1, dtype=np.int32) * size)
        kept = 0
        for first in range(0, documents, BATCH):
            letters = random.integers(ord("a"), ord("z") + 1, (BATCH, size), np.uint8)
            letters[:, LETTERS :: LETTERS + 1] = ord(" ")
            rows = min(BATCH, documents - first)
            text = pa.Array.from_buffers(pa.string(), rows, [None, offsets, pa.py_buffer(letters)])
            kept += filtering.filter(pa.table({"text": text})).true_count
        return kept

    def check(kept: int) -> None:
        if kept != documents:
            raise BenchmarkError(f"a stream kept {kept} of {documents} documents, no two of which are alike")

    return Work(run, str, check)
