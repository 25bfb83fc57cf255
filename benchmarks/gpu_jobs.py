"""Whole jobs, from Arrow in memory and from Parquet, and jobs over generated signatures: on the GPU and on the CPU."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import cache_directory, corpus_files, read_texts, text_of
from gpu_measure import SEED, Case, Ceilings, Seconds, Sizes, case, on_host, one_by_one
from gpu_target import Target, Timed

import gpudedup
from gpudedup import _cpu
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import sign as signing
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.bench.noise import fraction, noise
from gpudedup.io import open_paths
from gpudedup.machine import default_memory_bytes, worker_count
from gpudedup.params import Params
from gpudedup.stages.decide import decide
from gpudedup.stages.match import match
from gpudedup.stages.sign import HeldSignatures, Signed, read_ahead
from gpudedup.stages.verify import ShingleSets, verify

# ------------------------------------------------------------------------------------------------------------- job

Mask = npt.NDArray[np.bool_]
Job = Callable[[str], tuple[Mask, float, gpudedup.Summary]]
"""A device to the mask of what stays, seconds, and the summary."""


def job_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    """Whole jobs with verify="exact"; what stays must be what stays on the CPU."""
    files = corpus_files("mixed", sizes.job_bytes / 1e6)
    documents, size = text_of(files)
    arrow = pa.table({"text": read_texts(files)})  # from here on the files are in the page cache
    about = {
        "text_bytes": size,
        "documents": documents,
        "files_in_memory": cache_directory().is_relative_to("/dev/shm"),
    }
    wanted, seconds, summary = from_arrow(arrow, "cpu")
    about["removed"] = int(documents - wanted.sum())
    yield job_case("Arrow in memory to mask, cpu", [seconds], None, summary, about)

    def on_gpu(name: str, floor: float, work: Job, most: int, **alone: float) -> Iterator[Case]:
        runs: list[tuple[float, gpudedup.Summary]] = []
        while not runs or (len(runs) < most and time.perf_counter() + runs[-1][0] < deadline):
            kept, seconds, summary = work("cuda")
            assert np.array_equal(kept, wanted), f"{name}: the GPU keeps {kept.sum()} rows, the CPU {wanted.sum()}"
            runs.append((seconds, summary))
        times = [seconds for seconds, _ in runs]
        shares = {key.replace("_seconds", "_share"): value / statistics.median(times) for key, value in alone.items()}
        yield job_case(
            f"{name}, cuda", times, floor, min(runs, key=lambda run: run[0])[1], {**about, **alone, **shares}
        )

    up, alone = size / ceilings.up, dict[str, float]()

    def readers() -> Iterator[Case]:
        alone["reading"] = min(on_host(2, lambda _: read_alone(files)))
        yield alone_case("readers", alone["reading"], size)

    def to_mask() -> Iterator[Case]:
        floor, twice = max(alone["reading"], up), 2 * alone["reading"]  # the bar is set for a share of two readings
        yield from on_gpu("Parquet to mask", floor, partial(from_parquet, files, "mask"), 2, two_readings_seconds=twice)

    def writers() -> Iterator[Case]:
        [alone["writing"]] = on_host(1, lambda _: write_alone(arrow, wanted, len(files)))
        yield alone_case("writers", alone["writing"], size)

    def to_kept() -> Iterator[Case]:
        floor, work = max(up, *alone.values()), partial(from_parquet, files, "kept")
        yield from on_gpu("Parquet to kept", floor, work, 1, writing_seconds=alone["writing"])

    def on_cpu() -> Iterator[Case]:
        kept, seconds, summary = from_parquet(files, "mask", "cpu")
        assert np.array_equal(kept, wanted), "the CPU keeps other rows of Parquet than of Arrow"
        yield job_case("Parquet to mask, cpu", [seconds], None, summary, about)

    of_arrow = partial(from_arrow, arrow)
    parts = [
        partial(on_gpu, "Arrow in memory to mask, first, with loops to compile", up, of_arrow, 1),
        partial(on_gpu, "Arrow in memory to mask", up, of_arrow, 3),
        *(readers, to_mask, writers, to_kept, on_cpu),
    ]
    yield from one_by_one(parts, deadline)


def alone_case(who: str, seconds: float, size: int) -> Case:
    return case(f"{who} alone", [seconds], text_bytes=size, gigabytes_of_text_per_second=size / seconds / 1e9)


def job_case(
    name: str, seconds: Seconds, floor: float | None, summary: gpudedup.Summary, about: dict[str, Any]
) -> Case:
    rate = about["text_bytes"] / statistics.median(seconds)
    stages = {stage: round(value, 4) for stage, value in summary.seconds.items()}
    print(f"  {stages}", flush=True)
    more = {**about, "gigabytes_of_text_per_second": rate / 1e9, "stages": stages}
    more["compared_pairs"] = summary.compared_pairs
    return case(name, seconds, floor=floor, **more, device=summary.device, workers=summary.workers)


def from_arrow(table: pa.Table, device: str) -> tuple[Mask, float, gpudedup.Summary]:
    begin = time.perf_counter()
    result = gpudedup.deduplicate(table, device=device)
    mask = result.keep_mask
    seconds = time.perf_counter() - begin
    return mask.to_numpy(zero_copy_only=False), seconds, result.summary()


def from_parquet(files: list[str], output: str, device: str) -> tuple[Mask, float, gpudedup.Summary]:
    """output: "mask", or "kept" for the rows that stay; the table of removals is written with either."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        begin = time.perf_counter()
        run = gpudedup.run(files, Path(work, "run"), output=output, device=device)
        seconds = time.perf_counter() - begin
        first = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in files)])
        mask = np.ones(first[-1], bool)
        shard = pc.index_in(run.removed["shard"], pa.array(files)).to_numpy()
        mask[first[shard] + run.removed["row"].to_numpy()] = False
        return mask, seconds, run.summary()


def read_alone(files: Sequence[str]) -> None:
    """The text of all files, read and decoded as the sign stage has it done, and dropped."""
    memory = default_memory_bytes()
    with closing(open_paths(files, text_column="text", columns=["text"], memory_bytes=memory)) as source:
        parts = (part for shard in source.shards for part in shard.parts(["text"]))
        for _ in read_ahead(parts, Params(), worker_count()):
            pass


def write_alone(table: pa.Table, kept: Mask, files: int) -> None:
    """The kept rows of a table in memory to as many Parquet files, by a thread a core."""
    ends = np.linspace(0, table.num_rows, files + 1).astype(int).tolist()
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work, ThreadPoolExecutor(worker_count()) as threads:

        def write(number: int) -> None:
            first, last = ends[number : number + 2]
            rows = table.slice(first, last - first).filter(pa.array(kept[first:last]))
            pq.write_table(rows, Path(work, f"{number}.parquet"), compression="zstd", use_dictionary=False)

        list(threads.map(write, range(files)))


# ----------------------------------------------------------------------------------------------------------- match


def generated(count: int, params: Params) -> Signed:
    """Signatures without texts: three of ten are copies of an earlier document with up to 40 % of the lanes changed."""
    places = np.arange(count, dtype=np.uint32)
    origin, changed = places.copy(), np.zeros(count, np.uint32)
    lanes = np.empty((count, params.num_perm), np.uint32)
    a, b = signing.lane_constants(SEED, params.num_perm)
    column = np.arange(params.num_perm, dtype=np.uint32) * np.uint32(45)

    def fill(first: int) -> None:
        own = places[first : first + (1 << 16)]
        bits = noise(SEED + first, 3 * len(own)).reshape(3, -1)
        copy = (fraction(bits[0]) < 0.3) & (own > 0)
        back = (bits[1] % np.minimum(np.maximum(own, 1), 10**6).astype(np.uint64)).astype(np.uint32) + np.uint32(1)
        origin[own[copy]] -= np.minimum(back, own)[copy]
        changed[own] = np.where(copy, bits[2] % np.uint64(params.num_perm * 2 // 5 + 1), params.num_perm)
        far = (column + own[:, None] * np.uint32(7)) % np.uint32(params.num_perm) < changed[own][:, None]
        lanes[own] = np.where(far, own[:, None], origin[own][:, None]) * a + b  # a lane maps documents one to one

    with ThreadPoolExecutor(worker_count()) as threads:
        list(threads.map(fill, range(0, count, 1 << 16)))
    bands, rows = params.banding
    every = _cpu.Lanes([[lanes]], params.num_perm)
    keys = np.stack([every.band_keys(band, rows=rows, workers=worker_count()) for band in range(bands)])
    return Signed(
        shard_first=np.array([0, count]),
        signatures=HeldSignatures([keys], [[lanes]]),
        content=noise(SEED, 2 * count).reshape(count, 2),
        unit_count=np.full(count, 100, np.uint64),
        damaged=np.zeros(count, bool),
        columns={},
    )


def decided(signed: Signed, params: Params, backend: Any) -> tuple[Any, dict[str, float]]:
    """The decision, and seconds by stage."""
    begin = time.perf_counter()
    memory = default_memory_bytes()
    matched = match(signed, params, backend, memory_bytes=memory, tmp=str(cache_directory()))
    after_match = time.perf_counter()
    provider: Any = ShingleSets(None, signed, params, backend)  # type: ignore[arg-type]
    verified = verify(
        provider, matched, params, backend, memory_bytes=memory, tmp=str(cache_directory()), progress=lambda *_: None
    )
    after_verify = time.perf_counter()
    found = decide(signed, matched.grouped, verified, params)
    end = time.perf_counter()
    return found, {"match": after_match - begin, "verify": after_verify - after_match, "decide": end - after_verify}


def same(left: Any, right: Any) -> None:
    for name in ("keep", "removed", "keeper", "reason", "similarity"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), name)


def check_decided(signed: Signed, params: Params, found: Any) -> None:
    """What can be told without another backend: keepers stay, and a sample of removals is as alike as it is said to be,
    by the lanes."""
    np.testing.assert_array_equal(np.flatnonzero(~found.keep), found.removed)
    assert found.keep[found.keeper].all(), "a keeper is removed"
    [[lanes]] = signed.signatures.lanes
    sample = np.unique(noise(SEED, 20_000) % np.uint64(len(found.removed))).astype(np.int64)
    alike = (lanes[found.removed[sample]] == lanes[found.keeper[sample]]).mean(1)
    np.testing.assert_allclose(alike, found.similarity[sample])
    assert alike.min() >= params.threshold, f"a removal of similarity {alike.min()}"


def match_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    """A hundredth of the documents, then all of them; each on the CPU too, all of them if there is time. What differs
    there is no case."""
    params, took, on_cpu = Params(verify="signature"), 0.0, 0.0

    def with_cpu(signed: Signed, label: str) -> tuple[Any, Case]:
        found, stages = decided(signed, params, CpuBackend(params, "as asked"))
        about = {"documents": signed.rows, "removed": len(found.removed), "stages": stages}
        return found, case(f"{label}, cpu", [sum(stages.values())], **about, workers=worker_count())

    for number, count in enumerate(sizes.documents):
        ratio = count / sizes.documents[0]
        if number and time.perf_counter() + took * ratio > deadline:
            print(f"{count:.0e} documents: left out, there is not time enough", flush=True)
            return
        begin = time.perf_counter()
        signed = generated(count, params)
        generating = time.perf_counter() - begin
        label = f"match, verify by signature and decide {count:.0e} documents"
        wanted = slower = None
        if number == 0:
            wanted, slower = with_cpu(signed, label)
            on_cpu = slower["median_seconds"]
        times: Seconds = []
        for _ in range(1 if number else 3):
            found, stages = decided(signed, params, CudaBackend(params, target.device, "as asked"))
            times.append(sum(stages.values()))
            if wanted is not None:
                same(found, wanted)
        check_decided(signed, params, found)
        about = {"documents": count, "removed": len(found.removed), "stages": stages}
        seconds = times[1:] or times  # the first compiled the loops
        compared = len(np.union1d(found.removed, found.keeper))  # at least these are: no contents are equal
        up = 8 * params.banding.bands * count + 4 * params.num_perm * compared
        about["documents_per_second"] = count / statistics.median(seconds)
        if number == 0:
            timed = Timed(target)
            same(decided(signed, params, CudaBackend(params, timed, "as asked"))[0], wanted)  # type: ignore[arg-type]
            parts = sorted(timed.take().items(), key=lambda item: -item[1])
            about["device_seconds"] = {name: part for name, part in parts if name != "all"}
        took = generating + max(seconds)
        if number and time.perf_counter() + 2 * on_cpu * ratio < deadline:
            wanted, slower = with_cpu(signed, label)
            same(found, wanted)
        if slower is not None:
            yield slower
        yield case(f"{label}, cuda", seconds, floor=up / ceilings.up, **about)
        del signed, found, wanted
