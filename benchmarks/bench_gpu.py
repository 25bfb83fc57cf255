"""What a GPU does, beside what it could: python benchmarks/bench_gpu.py SUITE... [--quick] [--results FOLDER]

ceilings   copies on the device and over the bus, and lanes computed a second: what the other suites are held against
kernels    signing, kernel by kernel, with text on the device; from host memory to host memory; intersections of pairs
job        whole jobs, from Arrow in memory and from Parquet, and the same on the CPU
match      match, verify by signature and decide, of generated signatures

A case is timed only after its result, or a sample of it, was that of the CPU backend. Times are of device events
for work on the device, of the clock for what ends on the host; inputs rotate, so that no run finds its own in a cache.
A floor is the least that the work can take: bytes that must move over the measured rate of copies, or instructions over
their measured rate, whichever is more. Each suite writes FOLDER/GPU-DATE-gpu-SUITE.json.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from common import cache_directory, corpus_files, read_texts, text_bytes
from gpu_target import REHEARSAL, Target, Timed, description, open_target, rehearse

import gpudedup
from gpudedup import _cpu
from gpudedup.backends.base import SignedBatch, ToSign
from gpudedup.backends.columns import buffers
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import program
from gpudedup.backends.cuda import sign as signing
from gpudedup.backends.cuda.backend import PIECE_BYTES, CudaBackend
from gpudedup.backends.cuda.device import DeviceArray, HostArray, Stream
from gpudedup.backends.cuda.sign import Request, Signer
from gpudedup.bench.corpus import join
from gpudedup.bench.inputs import texts as decoded
from gpudedup.bench.noise import fraction, noise
from gpudedup.bench.words import load_pool
from gpudedup.machine import available_memory_bytes, worker_count
from gpudedup.params import Params
from gpudedup.stages.decide import decide
from gpudedup.stages.match import match
from gpudedup.stages.sign import HeldSignatures, Signed
from gpudedup.stages.verify import ShingleSets, verify

RESULTS = Path(__file__).resolve().parent / "results"
PREDICTED = Path(__file__).resolve().parent / "gpu_model.json"
"""What gpu_model.py reckoned."""
SEED = 20261122
SETS = 3
"""Inputs in rotation."""
WARM_SECONDS = 0.0 if REHEARSAL else 0.4
"""Of work before any is timed: an idle GPU has a fraction of its clock rate."""

Case = dict[str, Any]
Seconds = list[float]


@dataclass(frozen=True)
class Sizes:
    """How much of everything: what fills a GPU, a tenth of it (--quick), or next to nothing (in a rehearsal)."""

    rounds: int
    copy_bytes: int
    pinned_bytes: int
    rate_blocks: int
    piece_bytes: int
    pieces: int
    pairs: int
    sets: int
    set_size: int
    megabytes: float
    documents: tuple[int, ...]

    @classmethod
    def of(cls, target: Target, quick: bool) -> Sizes:
        if REHEARSAL:
            return cls(2, 1 << 16, 1 << 15, 2, 12_000, 2, 40, 16, 70, 0.1, (150,))
        return cls.that_fit(target.device.free_bytes(), available_memory_bytes(), worker_count(), quick)

    @classmethod
    def that_fit(cls, free: int, host: int, workers: int, quick: bool) -> Sizes:
        """For a GPU with ``free`` bytes in a machine with ``host`` bytes to spare."""
        copy, pinned, sets = min(1 << 30, free // 32), min(1 << 28, host // 64), min(1 << 18, free // 8 // 2400)
        megabytes = min(4000, 250 * workers, host / 20 / 1e6, free / 10 / 1e6)
        # Signatures of 128 lanes on the device, with their buckets; on the host with keys and what made them.
        most = min(free, host) // 1100
        documents = tuple(number for number in (10**7, 10**8) if number <= most) or (most,)
        if quick:
            return cls(
                5, copy // 4, pinned, 8448, PIECE_BYTES, 6, 10**6, sets // 4, 600, megabytes / 8, (min(10**6, most),)
            )
        return cls(21, copy, pinned, 33792, PIECE_BYTES, 16, 10**7, sets, 600, megabytes, documents)


@dataclass(frozen=True)
class Ceilings:
    """A second: bytes read plus written on the device; bytes up and down, from and to pinned memory; lanes, each a
    32-bit multiply-add and a minimum."""

    copy: float
    up: float
    down: float
    lanes: float


# ------------------------------------------------------------------------------------------------------- measuring


def case(name: str, seconds: Seconds, *, floor: float | None = None, **more: Any) -> Case:
    """A case as it is recorded; says it too. ``floor`` in seconds."""
    median = statistics.median(seconds)
    found: Case = {
        "case": name,
        "rounds": len(seconds),
        "min_seconds": min(seconds),
        "median_seconds": median,
        "max_seconds": max(seconds),
        "floor_seconds": floor,
        "share_of_floor": None if floor is None else floor / median,
        **more,
    }
    against = "" if floor is None else f"; floor {floor * 1e3:.3f} ms, {floor / median:.0%} of it reached"
    extra = ", ".join(f"{key} {value:.4g}" for key, value in more.items() if isinstance(value, float))
    print(
        f"{name}: {median * 1e3:.3f} ms ({min(seconds) * 1e3:.3f} to {max(seconds) * 1e3:.3f}){against}"
        + (f"; {extra}" if extra else ""),
        flush=True,
    )
    return found


def on_device(target: Target, stream: Stream, rounds: int, work: Callable[[int], None]) -> Seconds:
    """Seconds of work(1), work(2), ... by events, once the device has worked for a while."""
    begin = time.perf_counter()
    while True:
        work(0)
        stream.synchronize()
        if time.perf_counter() - begin >= WARM_SECONDS:
            break
    marks = []
    for number in range(1, rounds + 1):
        begin = target.mark(stream)
        work(number)
        marks.append((begin, target.mark(stream)))
    stream.synchronize()
    return [target.seconds(begin, end) for begin, end in marks]


def on_host(rounds: int, work: Callable[[int], object]) -> Seconds:
    """Seconds of work(0), work(1), ... by the clock."""
    found = []
    for number in range(rounds):
        begin = time.perf_counter()
        work(number)
        found.append(time.perf_counter() - begin)
    return found


def sent(target: Target, values: HostArray, stream: Stream) -> DeviceArray:
    array: DeviceArray = target.device.alloc(len(values), values.dtype)
    target.device.upload(values, array, stream)
    stream.synchronize()
    return array


def fetched(target: Target, array: DeviceArray, stream: Stream) -> HostArray:
    host = np.empty(array.size, array.dtype)
    target.device.download(array, host, stream)
    stream.synchronize()
    return host


def random_words(count: int, seed: int) -> npt.NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


# -------------------------------------------------------------------------------------------------------- ceilings

RATE_LANES, RATE_STEPS, RATE_THREADS = 16, 1024, 256
RATE = f"""
#include "core/minhash.h"
#include "cuda/device.h"
using namespace gpudedup;
// best[t] = the minimum over {RATE_LANES} lanes of thread t, each over all of h[0 .. {RATE_STEPS}): the loop of
// sign_lanes with as little beside it as can be.
extern "C" __global__ void __launch_bounds__({RATE_THREADS})
    lane_rate(const uint32_t* h, const uint32_t* a, const uint32_t* b, uint32_t* best) {{
  const uint32_t thread = blockIdx.x * {RATE_THREADS} + threadIdx.x;
  uint32_t own_a[{RATE_LANES}], own_b[{RATE_LANES}], least[{RATE_LANES}];
#pragma unroll
  for (uint32_t k = 0; k < {RATE_LANES}; ++k) {{
    own_a[k] = a[threadIdx.x * {RATE_LANES} + k];
    own_b[k] = b[threadIdx.x * {RATE_LANES} + k] + thread;
    least[k] = EMPTY_LANE;
  }}
#pragma unroll 2
  for (uint32_t i = 0; i < {RATE_STEPS}; i += 2) {{
    const uint32_t value = h[i], after = h[i + 1];
#pragma unroll
    for (uint32_t k = 0; k < {RATE_LANES}; ++k) {{
      const uint32_t first = lane(value, own_a[k], own_b[k]), second = lane(after, own_a[k], own_b[k]);
      const uint32_t least_of_both = first < second ? first : second;  // GPUs since Hopper take a minimum of three
      least[k] = least_of_both < least[k] ? least_of_both : least[k];
    }}
  }}
  uint32_t all = EMPTY_LANE;
#pragma unroll
  for (uint32_t k = 0; k < {RATE_LANES}; ++k) all = least[k] < all ? least[k] : all;
  best[thread] = all;
}}
"""


def copies(target: Target, sizes: Sizes, cases: list[Case]) -> float:
    stream, words = target.device.stream(), sizes.copy_bytes // 4
    pairs = []
    for number in range(SETS):
        source = sent(target, random_words(words, SEED + number), stream)
        pairs.append((source, target.device.alloc(words, np.uint32)))
    seconds = on_device(target, stream, sizes.rounds, lambda i: target.copy(*pairs[i % SETS], stream))
    for source, copy in pairs[: sizes.rounds]:
        np.testing.assert_array_equal(fetched(target, source, stream), fetched(target, copy, stream))
    rate = 2 * sizes.copy_bytes / statistics.median(seconds)
    cases.append(case("copy on the device", seconds, bytes_moved=2 * sizes.copy_bytes, gigabytes_per_second=rate / 1e9))
    return rate


def pinned(target: Target, sizes: Sizes, cases: list[Case]) -> tuple[float, float]:
    device, words = target.device, sizes.pinned_bytes // 4
    up, down = device.stream(), device.stream()
    sources = [device.alloc_host(words, np.uint32) for _ in range(SETS)]
    results = [device.alloc_host(words, np.uint32) for _ in range(SETS)]
    there = [device.alloc(words, np.uint32) for _ in range(SETS)]
    for number, source in enumerate(sources):
        source[:] = random_words(words, SEED + number)
    rates = []
    for name, stream, work in (
        ("pinned copy up", up, lambda i: device.upload(sources[i % SETS], there[i % SETS], up)),
        ("pinned copy down", down, lambda i: device.download(there[i % SETS], results[i % SETS], down)),
    ):
        seconds = on_device(target, stream, max(SETS, sizes.rounds), work)
        rates.append(sizes.pinned_bytes / statistics.median(seconds))
        cases.append(case(name, seconds, bytes_moved=sizes.pinned_bytes, gigabytes_per_second=rates[-1] / 1e9))
    for source, result in zip(sources, results, strict=True):
        np.testing.assert_array_equal(source, result)

    def both(i: int) -> None:
        device.upload(sources[i % SETS], there[i % SETS], up)
        device.download(there[(i + 1) % SETS], results[(i + 1) % SETS], down)
        up.synchronize()
        down.synchronize()

    seconds = on_host(sizes.rounds, both)
    rate = 2 * sizes.pinned_bytes / statistics.median(seconds)
    name = "pinned copies both ways at once"
    cases.append(case(name, seconds, bytes_moved=2 * sizes.pinned_bytes, gigabytes_per_second=rate / 1e9))
    return rates[0], rates[1]


def lane_rate(target: Target, sizes: Sizes, cases: list[Case]) -> float:
    device, stream = target.device, target.device.stream()
    threads = sizes.rate_blocks * RATE_THREADS
    h = [random_words(RATE_STEPS, SEED + number) for number in range(SETS)]
    a, b = random_words(RATE_THREADS * RATE_LANES, 1) | np.uint32(1), random_words(RATE_THREADS * RATE_LANES, 2)
    on_it = [sent(target, values, stream) for values in h]
    constants = [sent(target, values, stream) for values in (a, b)]
    best = device.alloc(threads, np.uint32)

    def work(i: int) -> None:
        target.run(RATE, "lane_rate", sizes.rate_blocks, RATE_THREADS, [on_it[i % SETS], *constants, best], stream)

    seconds = on_device(target, stream, sizes.rounds, work)
    found = fetched(target, best, stream)
    for thread in (0, 1, RATE_THREADS, threads - 1):  # by the definition, in numpy
        own = slice(thread % RATE_THREADS * RATE_LANES, (thread % RATE_THREADS + 1) * RATE_LANES)
        values = a[own] * h[sizes.rounds % SETS][:, None] + (b[own] + np.uint32(thread))
        assert found[thread] == values.min(), f"lane_rate is wrong in thread {thread}"
    lanes = threads * RATE_LANES * RATE_STEPS
    rate = lanes / statistics.median(seconds)
    cases.append(case("lanes: multiply-add and minimum", seconds, lanes=lanes, lanes_per_second=rate))
    return rate


def measure_ceilings(target: Target, sizes: Sizes) -> tuple[Ceilings, list[Case]]:
    cases: list[Case] = []
    copy = copies(target, sizes, cases)
    up, down = pinned(target, sizes, cases)
    return Ceilings(copy, up, down, lane_rate(target, sizes, cases)), cases


# --------------------------------------------------------------------------------------------------------- kernels

TEXTS = {"english, 2 kB": ("english", 2000), "chinese, 2 kB": ("chinese", 2000), "english, 70 bytes": ("english", 70)}


@cache
def texts(kind: str, size: int, seed: int) -> pa.Array:
    """Documents of about ``size`` bytes of text in all; words of real texts, drawn at random."""
    mix, document_bytes = TEXTS[kind]
    pool = load_pool(mix)
    mean = float(pool.mean_bytes[0])
    words = pool.draw(0, noise(seed, max(1, int(size / mean))))
    if document_bytes < 1000:  # cut anywhere
        joined = join(pool.pieces, words, np.array([len(words)]))
        data, count = joined.buffers()[2], max(1, int(size // mean * mean) // document_bytes)
        count = min(count, joined.buffers()[2].size // document_bytes)
        ends = pa.py_buffer(np.arange(count + 1, dtype=np.int64) * document_bytes)
        return pa.Array.from_buffers(pa.large_binary(), count, [None, ends, data])
    each = max(1, int(document_bytes / mean))
    lengths = np.full(max(1, len(words) // each), each)
    return join(pool.pieces, words[: lengths.sum()], lengths).cast(pa.large_binary())


def check_signed(params: Params, text: pa.Array, signed: SignedBatch, seed: int) -> None:
    """A sample of the documents against the CPU backend, bit for bit."""
    rows = np.unique(np.append(noise(seed, 300) % np.uint64(len(text)), [0, len(text) - 1])).astype(np.int64)
    wanted = ToSign(text.take(pa.array(rows)), band_keys=True, lanes=True, shingles=signed.shingles is not None)
    [own] = CpuBackend(params, "as asked").sign([wanted])
    np.testing.assert_array_equal(signed.content[rows], own.content)
    np.testing.assert_array_equal(signed.unit_count[rows], own.unit_count)
    assert own.band_keys is not None
    if signed.band_keys is not None:
        np.testing.assert_array_equal(signed.band_keys[:, rows], own.band_keys)
    if signed.lanes is not None:
        assert own.lanes is not None
        np.testing.assert_array_equal(signed.lanes[rows], own.lanes)
    if signed.shingles is not None:
        assert own.shingles is not None
        first, last = signed.shingles.offsets[rows], signed.shingles.offsets[rows + 1]
        parts = [signed.shingles.hashes[a:b] for a, b in zip(first, last, strict=True)]
        np.testing.assert_array_equal(np.concatenate(parts), own.shingles.hashes)


def bytes_of_kernels(text: int, documents: int, units: int, folded: int, params: Params) -> dict[str, int]:
    """Bytes that each kernel must read and write at least, from the sizes of its arrays. The tables of folds and the
    places of blocks stay in caches. In the order of a piece."""
    lanes, bands = 4 * params.num_perm * documents, 8 * params.banding.bands * documents
    spans, starts = text // 2, text // 8  # a span of 16 bytes for 32 of text; a bit a byte
    return {
        "fill": starts + 16 * documents + lanes,
        "mark_documents": 4 * documents + starts,
        "measure_words": text + starts + spans,
        "join_words": 2 * spans // signing.READ_THREADS,
        "find_words": text + starts + spans + folded + 4 * units,
        "first_words": 56 * documents,  # also a span, and the stretch of text where a document starts
        "hash_units": folded + 8 * units + 20 * documents,
        "sign_lanes": 4 * units + 4 * documents + lanes,
        "band_keys": lanes + 8 * documents + bands,
        "count_shingles": 8 * documents,
        "scan": 12 * documents,
        "pack_shingles": 8 * units + 12 * documents,
    }


@cache
def reckoned() -> dict[str, dict[str, Any]]:
    """What gpu_model.py reckoned for these kernels on an H200; nothing for others."""
    known: dict[str, Any] = json.loads(PREDICTED.read_text())
    return known if known.pop("kernels") == program.digest()[:12] else {}


def predicted(kind: str) -> dict[str, float]:
    """Seconds a byte of text by kernel."""
    return reckoned().get("seconds_per_byte", {}).get(kind, {})


def sign_kernels(target: Target, sizes: Sizes, ceilings: Ceilings, kind: str, keep: bool) -> list[Case]:
    """Of one piece at a time, with its text on the device: kernel by kernel, and from the first to the last."""
    params, timed = Params(), Timed(target)
    document_bytes = 48 + 8 * params.banding.bands + 4 * params.num_perm  # beside its text, as a piece counts them
    size = min(1.0, TEXTS[kind][1] / document_bytes) * 0.95 * sizes.piece_bytes
    inputs = [texts(kind, int(size), SEED + number) for number in range(SETS)]
    signer = Signer(timed, params, piece_bytes=sizes.piece_bytes)  # type: ignore[arg-type]
    stream = target.device.stream()
    of: dict[str, Seconds] = {}
    floors: dict[str, list[float]] = {}
    bytes_in = 0.0
    warm = time.perf_counter() + WARM_SECONDS
    number = -SETS  # each input once before any counts
    while number < sizes.rounds:
        text = inputs[number % SETS]
        values, offsets = buffers(text)
        [signed] = signer.sign([Request(values, offsets, lanes=True, shingles=keep)])
        found = timed.take()
        if number < 0:
            check_signed(params, text, signed, number)
            number += time.perf_counter() > warm or number < -1
            continue
        number += 1
        assert timed.needed is not None
        units, folded = (int(value) for value in fetched(target, timed.needed[:2], stream))
        assert units == signed.unit_count.sum(), "more than one piece"
        text_size = int(offsets[-1] - offsets[0])
        bytes_in += text_size / sizes.rounds
        moved = bytes_of_kernels(text_size, len(text), units, folded, params)
        floor = {name: moved[name] / ceilings.copy for name in moved if name in found}
        floor["sign_lanes"] = max(floor["sign_lanes"], units * params.num_perm / ceilings.lanes)
        floor["all"] = sum(floor.values())
        for name in found:
            if name in ("upload", "download"):  # timed by the ceilings
                continue
            of.setdefault(name, []).append(found[name])
            floors.setdefault(name, []).append(floor[name])
    label = kind + (", hashes kept" if keep else "")
    about = {"documents": len(inputs[0]), "text_bytes": round(bytes_in)}
    cases = []
    for name, seconds in of.items():
        rate = {"gigabytes_of_text_per_second": bytes_in / statistics.median(seconds) / 1e9}
        if name in predicted(kind):
            rate["predicted_seconds"] = predicted(kind)[name] * bytes_in
        title = f"{label}: " + ("text on the device to signatures there" if name == "all" else name)
        cases.append(case(title, seconds, floor=statistics.median(floors[name]), **about, **rate))
    return cases


def sign_stream(target: Target, sizes: Sizes, ceilings: Ceilings, lanes: bool) -> Case:
    """Text in pinned host memory -> signatures in host memory, pieces after pieces."""
    params, kind = Params(), "english, 2 kB"
    device = target.device
    requests, inputs = [], []
    for number in range(SETS):
        inputs.append(texts(kind, int(0.95 * sizes.piece_bytes), SEED + number))
        values, offsets = buffers(inputs[-1])
        own = device.alloc_host(len(values), np.uint8)
        own[:] = values
        requests.append(Request(own, offsets, band_keys=not lanes, lanes=lanes))
    signer = Signer(device, params, piece_bytes=sizes.piece_bytes, workers=worker_count())
    for number, signed in enumerate(signer.sign(requests)):
        check_signed(params, inputs[number], signed, number)
    order = [number % SETS for number in range(sizes.pieces)]
    size = sum(int(requests[number].offsets[-1]) for number in order)

    def work(_: int) -> None:
        for _signed in signer.sign(requests[number] for number in order):
            pass

    seconds = on_host(max(2, sizes.rounds // 2), work)
    name = f"{kind}: pinned host memory to {'lanes' if lanes else 'band keys'} in host memory"
    rate = size / statistics.median(seconds)
    share = rate / ceilings.up
    more = {"text_bytes": size, "gigabytes_of_text_per_second": rate / 1e9, "share_of_pinned_copy": share}
    return case(name, seconds, floor=size / ceilings.up, **more)


def intersections(target: Target, sizes: Sizes, ceilings: Ceilings) -> Case:
    """Pairs of sets of equal size, half of whose values are common in one of two pairs."""
    device, stream = target.device, target.device.stream()
    count, size = sizes.sets, sizes.set_size
    stratum = np.uint32(2**32 // size)  # a value from each: ascending and distinct without sorting
    base = np.arange(size, dtype=np.uint32) * stratum
    sets = random_words(count * size, SEED).reshape(count, size) % stratum + base
    for_twins = np.arange(0, count - 1, 2)
    sets[for_twins + 1, ::2] = sets[for_twins, ::2]
    values = sent(target, sets.reshape(-1), stream)
    address = sent(target, np.uint64(values.address) + np.arange(count, dtype=np.uint64) * np.uint64(4 * size), stream)
    lengths = sent(target, np.full(count, size, np.uint32), stream)
    lefts, rights = [], []
    for number in range(SETS):
        left = random_words(sizes.pairs, SEED + 2 * number) % np.uint32(count)
        other = random_words(sizes.pairs, SEED + 2 * number + 1)
        twin = np.minimum(left ^ np.uint32(1), np.uint32(count - 1))
        lefts.append(left)
        rights.append(np.where(other % 2 == 0, twin, other % np.uint32(count)).astype(np.uint32))
    on_it = [(sent(target, a, stream), sent(target, b, stream)) for a, b in zip(lefts, rights, strict=True)]
    common = device.alloc(sizes.pairs, np.uint32)

    def work(i: int) -> None:
        args = [*on_it[i % SETS], np.uint32(sizes.pairs), address, lengths, common]
        device.launch("intersect_pairs", -(-sizes.pairs // 8), 256, args, stream)

    work(0)
    found = fetched(target, common, stream)
    for pair in (noise(SEED, min(2000, sizes.pairs)) % np.uint64(sizes.pairs)).astype(np.int64):
        assert found[pair] == _cpu.intersect(sets[lefts[0][pair]], sets[rights[0][pair]], 0), f"pair {pair}"
    seconds = on_device(target, stream, sizes.rounds, work)
    moved = sizes.pairs * (8 * size + 12)
    name = f"intersections of {sizes.pairs:.0e} pairs of {size}-value sets"
    more = {"pairs": sizes.pairs, "set_size": size, "pairs_per_second": sizes.pairs / statistics.median(seconds)}
    pair = reckoned().get("seconds_per_comparison", {}).get("intersect_pairs")
    if pair is not None and size == 600:  # that of gpu_model.py
        more["predicted_seconds"] = pair * sizes.pairs
    return case(name, seconds, floor=moved / ceilings.copy, **more)


def kernels_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    for kind, keep in (*((kind, False) for kind in TEXTS), ("english, 2 kB", True)):
        yield from sign_kernels(target, sizes, ceilings, kind, keep)
        if time.perf_counter() > deadline:
            print("the rest is left out, there is not time enough", flush=True)
            return
    for lanes in (False, True):
        yield sign_stream(target, sizes, ceilings, lanes)
    yield intersections(target, sizes, ceilings)


# ------------------------------------------------------------------------------------------------------------- job


def job_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    """Whole jobs, also on the CPU; both must remove the same."""
    files = corpus_files("mixed", sizes.megabytes)
    documents, size = text_bytes(files)
    arrow = pa.table({"text": read_texts(files).combine_chunks()})

    def decode(_: int) -> None:
        for _text in decoded(files, "text"):
            pass

    decode(0)  # the files are in the page cache from here on
    decoding = min(on_host(2, decode))
    for name, floor, work in (
        ("Arrow in memory to mask", size / ceilings.up, lambda device: from_arrow(arrow, device)),
        ("Parquet to mask", max(decoding, size / ceilings.up), lambda device: from_parquet(files, device)),
    ):
        removed, seconds, summary = work("cpu")
        about = {"text_bytes": size, "documents": documents, "removed": removed.num_rows}
        yield job_case(f"{name}, cpu", [seconds], None, summary, about)
        runs: list[tuple[pa.Table, float, gpudedup.Summary]] = []
        while len(runs) < 2 or (len(runs) < 4 and time.perf_counter() + runs[-1][1] < deadline):
            runs.append(work("cuda"))
            found = runs[-1][0]
            assert found.equals(removed), f"{name}: the GPU removed {found.num_rows} rows, the CPU {removed.num_rows}"
        best = min(runs[1:], key=lambda run: run[1])
        about |= {"first_seconds": runs[0][1], "decode_alone_seconds": decoding}
        yield job_case(f"{name}, cuda", [run[1] for run in runs[1:]], floor, best[2], about)


def job_case(
    name: str, seconds: Seconds, floor: float | None, summary: gpudedup.Summary, about: dict[str, Any]
) -> Case:
    rate = about["text_bytes"] / statistics.median(seconds)
    stages = {stage: round(value, 4) for stage, value in summary.seconds.items()}
    print(f"  {stages}", flush=True)
    more = {**about, "megabytes_per_second": rate / 1e6, "stages": stages, "compared_pairs": summary.compared_pairs}
    return case(name, seconds, floor=floor, **more, device=summary.device, workers=summary.workers)


def from_arrow(table: pa.Table, device: str) -> tuple[pa.Table, float, gpudedup.Summary]:
    begin = time.perf_counter()
    result = gpudedup.deduplicate(table, device=device)
    mask = result.keep_mask
    seconds = time.perf_counter() - begin
    assert len(mask) == table.num_rows
    return result.removed, seconds, result.summary()


def from_parquet(files: list[str], device: str) -> tuple[pa.Table, float, gpudedup.Summary]:
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        begin = time.perf_counter()
        run = gpudedup.run(files, Path(work, "run"), output="mask", device=device)
        seconds = time.perf_counter() - begin
        return run.removed, seconds, run.summary()


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
    keys = _cpu.band_keys(lanes, bands=bands, rows=rows, scope_keys=None, workers=worker_count())
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
    matched = match(signed, params, backend, memory_bytes=1 << 30, tmp=str(cache_directory()))
    after_match = time.perf_counter()
    provider: Any = ShingleSets(None, signed, params, backend)  # type: ignore[arg-type]
    verified = verify(
        provider, matched, params, backend, memory_bytes=1 << 30, tmp=str(cache_directory()), progress=lambda *_: None
    )
    after_verify = time.perf_counter()
    found = decide(signed, matched.grouped, verified, params)
    end = time.perf_counter()
    return found, {"match": after_match - begin, "verify": after_verify - after_match, "decide": end - after_verify}


def same(left: Any, right: Any) -> None:
    for name in ("keep", "removed", "keeper", "reason", "similarity"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), name)


def match_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    """Each number of documents against the CPU, but for the last of several: it takes the CPU too long."""
    params, took = Params(verify="signature"), 0.0
    for number, count in enumerate(sizes.documents):
        if number and time.perf_counter() + 12 * took > deadline:
            print(f"{count:.0e} documents: left out, there is not time enough", flush=True)
            break
        begin = time.perf_counter()
        signed = generated(count, params)
        generating = time.perf_counter() - begin
        label = f"match, verify by signature and decide {count:.0e} documents"
        wanted = None
        if number == 0:
            wanted, stages = decided(signed, params, CpuBackend(params, "as asked"))
            about = {"documents": count, "removed": len(wanted.removed), "stages": stages}
            yield case(f"{label}, cpu", [sum(stages.values())], **about)
        times = []
        for _ in range(3 if number == 0 else 1):
            found, stages = decided(signed, params, CudaBackend(params, target.device, "as asked"))
            times.append(sum(stages.values()))
            if wanted is not None:
                same(found, wanted)
        up = count * (8 * params.banding.bands + 4 * params.num_perm)
        about = {"documents": count, "removed": len(found.removed), "stages": stages}
        seconds = times[1:] or times  # the first compiled the loops
        rate = count / statistics.median(seconds)
        floor = up / ceilings.up
        if number == 0:
            timed = Timed(target)
            decided(signed, params, CudaBackend(params, timed, "as asked"))  # type: ignore[arg-type]
            parts = sorted(timed.take().items(), key=lambda item: -item[1])
            about["device_seconds"] = {name: part for name, part in parts if name != "all"}
        yield case(f"{label}, cuda", seconds, floor=floor, **about, documents_per_second=rate)
        took = generating + max(seconds)
        del signed, found, wanted


# ---------------------------------------------------------------------------------------------------------- record


def write_result(folder: Path, suite: str, quick: bool, ceilings: Ceilings, cases: list[Case]) -> None:
    """Raises SystemExit rather than put figures of a rehearsal beside those of machines."""
    if REHEARSAL and folder.resolve().is_relative_to(RESULTS):
        sys.exit("figures of a rehearsal do not belong into benchmarks/results; give another folder with --results")
    machine = description()
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    found = {
        "suite": f"gpu-{suite}",
        "date": date.today().isoformat(),
        "emulated": REHEARSAL,
        "seed": SEED,
        "quick": quick,
        "machine": machine,
        "ceilings": asdict(ceilings),
        "cases": cases,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{found['date']}-gpu-{suite}.json"
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


Suite = Callable[[Target, Sizes, Ceilings, float], Iterator[Case]]
SUITES: dict[str, Suite] = {"kernels": kernels_suite, "job": job_suite, "match": match_suite}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a GPU and record the figures.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help="ceilings, kernels, job, match; all by default")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=600, help="start no long case that would end after this")
    given = parser.parse_args()
    deadline = time.perf_counter() + given.seconds
    names = ("ceilings", *SUITES)
    unknown = set(given.suites) - set(names)
    if unknown:
        parser.error(f"no suite {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    if REHEARSAL:
        rehearse()
    target = open_target()
    sizes = Sizes.of(target, given.quick)
    ceilings, measured = measure_ceilings(target, sizes)
    for name in given.suites or names:
        cases: list[Case] = []
        for found in SUITES[name](target, sizes, ceilings, deadline) if name in SUITES else measured:
            cases.append(found)
            write_result(given.results, name, given.quick, ceilings, cases)  # each time: a suite may be ended early


if __name__ == "__main__":
    main()
