"""sign: the very call that the job makes, one worker, text larger than the last-level cache, in the job's batches."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from common import HERE, ROUNDS, corpus_files, count, load, read_texts, text_size

from gpudedup.backends.base import ToSign
from gpudedup.backends.cpu import CpuBackend, cpu_tier
from gpudedup.bench.noise import noise
from gpudedup.io.batches import TARGET_BYTES
from gpudedup.params import make_params

sys.path.append(str(HERE.parent / "tests"))

import reference

MEGABYTES = 160
KINDS = ("english", "chinese law", "mixed", "70-byte")


def texts_of(kind: str) -> pa.Array:
    if kind == "chinese law":  # real texts, repeated: each copy lies at another place
        laws = pq.read_table(HERE.parent / "tests" / "data" / "zh_laws.parquet", columns=["text"])[
            "text"
        ].combine_chunks()
        return pa.concat_arrays([laws] * max(1, text_size(MEGABYTES) // laws.nbytes)).cast(pa.large_string())
    if kind == "70-byte":
        text = b"".join(value.as_buffer() for value in read_texts(corpus_files("english", MEGABYTES)) if value.is_valid)
        number = min(len(text) // 70, text_size(MEGABYTES) // 70)
        ends = np.arange(number + 1, dtype=np.int64) * 70
        raw = [None, pa.py_buffer(ends), pa.py_buffer(text)]
        return pa.Array.from_buffers(pa.large_binary(), number, raw)
    return read_texts(corpus_files(kind, MEGABYTES)).combine_chunks().cast(pa.large_string())


@pytest.fixture(scope="module", params=KINDS)
def text(request: pytest.FixtureRequest) -> tuple[str, pa.Array, list[pa.Array]]:
    kind: str = request.param
    array = texts_of(kind)
    rows = max(1, TARGET_BYTES * len(array) // max(1, array.nbytes))
    return kind, array, [array.slice(first, rows) for first in range(0, len(array), rows)]


@pytest.mark.parametrize("keep", [False, True], ids=["lanes", "lanes and hashes"])
def bench_sign(benchmark: Any, text: tuple[str, pa.Array, list[pa.Array]], keep: bool) -> None:
    kind, array, batches = text
    backend = CpuBackend(make_params({"workers": 1}), "asked for")
    sample = [array[int(i)].as_py() for i in noise(1, count(6)) % np.uint64(len(array))]
    sample = [item[:3000] for item in sample]  # the reference is slow; its own tests hold it to long texts
    (made,) = backend.sign([ToSign(pa.array(sample, array.type), lanes=True, shingles=keep)])
    np.testing.assert_array_equal(made.lanes, np.array(reference.signatures(sample), np.uint32))
    units = documents = 0
    rounds: list[tuple[float, float]] = []

    def sign() -> None:
        nonlocal units, documents
        units = documents = 0
        began, cpu = time.perf_counter(), time.process_time()
        for signed in backend.sign(ToSign(batch, lanes=True, shingles=keep) for batch in batches):
            units += int(signed.unit_count.sum())
            documents += len(signed.unit_count)
        rounds.append((time.perf_counter() - began, time.process_time() - cpu))

    benchmark.pedantic(sign, warmup_rounds=1, rounds=ROUNDS)
    size = sum(batch.nbytes for batch in batches) - 8 * (len(array) + len(batches))
    seconds, cpu_seconds = min(rounds)
    benchmark.extra_info.update(
        text=kind,
        keep_shingles=keep,
        tier=cpu_tier(),
        workers=1,
        documents=documents,
        text_bytes=size,
        bytes_per_unit=round(size / max(1, units), 2),
        megabytes_per_second=round(size / seconds / 1e6, 1),
        megabytes_per_cpu_second=round(size / max(cpu_seconds, 1e-9) / 1e6, 1),
        million_units_per_second=round(units / seconds / 1e6, 2),
        documents_per_second=round(documents / seconds),
        load=load(),
    )


assert Path(reference.__file__).parent.name == "tests"
