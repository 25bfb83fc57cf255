"""What the GPU could do (ceilings), and what the kernels of signing and comparing do, kernel by kernel."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from common import cache_directory
from gpu_measure import (
    SEED,
    SETS,
    WARM_SECONDS,
    Case,
    Ceilings,
    Seconds,
    Sizes,
    case,
    on_device,
    on_host,
    one_by_one,
    random_words,
    uploaded,
)
from gpu_target import Target, Timed

from gpudedup import _cpu
from gpudedup.backends.base import Backend, Decision, SignedBatch, ToSign
from gpudedup.backends.columns import buffers
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import program
from gpudedup.backends.cuda import sign as signing
from gpudedup.backends.cuda.backend import LEFT_PART, CudaBackend
from gpudedup.backends.cuda.device import Stream, fetched
from gpudedup.backends.cuda.sign import Request, Signer
from gpudedup.bench.corpus import join
from gpudedup.bench.measure import run_process
from gpudedup.bench.noise import noise
from gpudedup.bench.peers.environments import PROGRAMS
from gpudedup.bench.words import load_pool
from gpudedup.machine import worker_count
from gpudedup.params import Params, parse_shingle

PREDICTED = Path(__file__).resolve().parent / "gpu_model.json"
"""What gpu_model.py reckoned."""

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


def some_words(count: int, seed: int) -> npt.NDArray[np.uint32]:
    """To be copied: 64 MB of random words, again and again."""
    return np.resize(random_words(min(count, 1 << 24), seed), count)


def copies(target: Target, sizes: Sizes, cases: list[Case]) -> float:
    stream, words = target.device.stream(), sizes.copy_bytes // 4
    pairs = []
    for number in range(SETS):
        source = uploaded(target, some_words(words, SEED + number), stream)
        pairs.append((source, target.device.alloc(words, np.uint32)))
    seconds = on_device(target, stream, sizes.rounds, lambda i: target.device.copy(*pairs[i % SETS], stream))
    for source, copy in pairs[: sizes.rounds]:
        np.testing.assert_array_equal(fetched(target.device, source, stream), fetched(target.device, copy, stream))
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
        source[:] = some_words(words, SEED + number)
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
    on_it = [uploaded(target, values, stream) for values in h]
    constants = [uploaded(target, values, stream) for values in (a, b)]
    best = device.alloc(threads, np.uint32)

    def work(i: int) -> None:
        target.run(RATE, "lane_rate", sizes.rate_blocks, RATE_THREADS, [on_it[i % SETS], *constants, best], stream)

    seconds = on_device(target, stream, sizes.rounds, work)
    found = fetched(target.device, best, stream)
    for thread in (0, 1, RATE_THREADS, threads - 1):  # by the definition, in numpy
        own = slice(thread % RATE_THREADS * RATE_LANES, (thread % RATE_THREADS + 1) * RATE_LANES)
        values = a[own] * h[sizes.rounds % SETS][:, None] + (b[own] + np.uint32(thread))
        assert found[thread] == values.min(), f"lane_rate is wrong in thread {thread}"
    lanes = threads * RATE_LANES * RATE_STEPS
    rate = lanes / statistics.median(seconds)
    cases.append(case("lanes: multiply-add and minimum", seconds, lanes=lanes, lanes_per_second=rate))
    return rate


def occupied(target: Target, sizes: Sizes) -> Callable[[Stream], None]:
    """What gives a stream some milliseconds of work: half of that of `lane_rate`."""
    stream = target.device.stream()
    h = uploaded(target, random_words(RATE_STEPS, 0), stream)
    a = uploaded(target, random_words(RATE_THREADS * RATE_LANES, 1), stream)
    blocks = max(1, sizes.rate_blocks // 2)
    best = target.device.alloc(blocks * RATE_THREADS, np.uint32)
    return lambda stream: target.run(RATE, "lane_rate", blocks, RATE_THREADS, [h, a, a, best], stream)


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


def piece_text(sizes: Sizes, kind: str, params: Params, number: int) -> pa.Array:
    """Text number ``number`` of those that just fit a piece."""
    each = signing.document_bytes(params)
    return texts(kind, int(min(1.0, TEXTS[kind][1] / each) * 0.95 * sizes.piece_bytes), SEED + number)


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
    kind = f"{parse_shingle(params.shingle).unit}s"
    return {
        "fill": starts + 16 * documents + lanes,
        "mark_documents": 4 * documents + starts,
        f"measure_{kind}": text + starts + spans,
        f"join_{kind}": 2 * spans // signing.READ_THREADS,
        f"find_{kind}": text + starts + spans + folded + 4 * units,
        f"first_{kind}": 56 * documents,  # also a span, and the stretch of text where a document starts
        "hash_units": folded + 8 * units + 20 * documents,
        "sign_lanes": 4 * units + 4 * documents + lanes,
        "band_keys": lanes + 8 * documents + bands,
        "count_shingles": 8 * documents,
        "scan": 12 * documents,
        "pack_shingles": 8 * units + 12 * documents,
        "copy": 8 * units,  # of hashes that are kept, after the last kernel
    }


@cache
def reckoned() -> dict[str, dict[str, Any]]:
    """What gpu_model.py reckoned for these kernels on an H200; nothing for others."""
    known: dict[str, Any] = json.loads(PREDICTED.read_text())
    return known if known.pop("kernels") == program.digest()[:12] else {}


def predicted(label: str) -> dict[str, float]:
    """Seconds a byte of text by kernel."""
    return reckoned().get("seconds_per_byte", {}).get(label, {})


def sign_kernels(
    target: Target, sizes: Sizes, ceilings: Ceilings, kind: str, *, keep: bool = False, params: Params | None = None
) -> list[Case]:
    """Of one piece at a time, with its text on the device: kernel by kernel, and from the first to the last.

    The device is kept busy until all of a piece is queued, so that no kernel waits for its launch; what queueing takes
    stands beside, as ``queueing_seconds``. Where it is more than the kernels take, a piece of this size does not fill
    the device. keep: shingle hashes stay on the device, as verify="exact" asks for.
    """
    chosen, timed = params or Params(), Timed(target, occupied(target, sizes))
    inputs = [piece_text(sizes, kind, chosen, number) for number in range(SETS)]
    left = target.device.memory_bytes // LEFT_PART if keep else None
    signer = Signer(timed, chosen, piece_bytes=sizes.piece_bytes, left_bytes=left)  # type: ignore[arg-type]
    stream = target.device.stream()
    of: dict[str, Seconds] = {}
    queued: dict[str, Seconds] = {}
    floors: dict[str, list[float]] = {}
    label = kind if params is None else f"{kind}, {chosen.shingle}, {chosen.num_perm} lanes"
    known = predicted(label)
    reckoned_all: list[float] = []
    bytes_in = 0.0
    warm = time.perf_counter() + WARM_SECONDS
    number = -SETS  # each input once before any counts
    while number < sizes.rounds:
        text = inputs[number % SETS]
        values, offsets = buffers(text)
        [signed] = signer.sign([Request(values, offsets, lanes=True, shingles=keep)])
        found = timed.take()
        if number < 0:
            check_signed(chosen, text, signed, number)
            number += time.perf_counter() > warm or number < -1
            continue
        number += 1
        assert timed.needed is not None
        units, folded = (int(value) for value in fetched(target.device, timed.needed[:2], stream))
        assert units == signed.unit_count.sum(), "more than one piece"
        text_size = int(offsets[-1] - offsets[0])
        bytes_in += text_size / sizes.rounds
        moved = bytes_of_kernels(text_size, len(text), units, folded, chosen)
        floor = {name: moved[name] / ceilings.copy for name in found if name in moved}
        floor["sign_lanes"] = max(floor["sign_lanes"], units * chosen.num_perm / ceilings.lanes)
        within = [name for name in floor if name != "copy"]
        floor["all"] = sum(floor[name] for name in within)
        reckoned_all.append(sum(known[name] * text_size if name in known else floor[name] for name in within))
        for name in found:
            if name in ("upload", "download"):  # timed by the ceilings
                continue
            of.setdefault(name, []).append(found[name])
            queued.setdefault(name, []).append(timed.queued[name])
            floors.setdefault(name, []).append(floor[name])
    label += ", hashes kept" if keep else ""
    about = {"documents": len(inputs[0]), "text_bytes": round(bytes_in)}
    cases = []
    for name, seconds in of.items():
        median = statistics.median(seconds)
        more = {
            "gigabytes_of_text_per_second": bytes_in / median / 1e9,
            "documents_per_second": len(inputs[0]) / median,
            "queueing_seconds": statistics.median(queued[name]),
        }
        if known and name == "all":  # what the model does not have takes its floor
            more["predicted_seconds"] = statistics.median(reckoned_all)
        elif name in known:
            more["predicted_seconds"] = known[name] * bytes_in
        title = f"{label}: " + ("text on the device to signatures there" if name == "all" else name)
        cases.append(case(title, seconds, floor=statistics.median(floors[name]), **about, **more))
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
    values = uploaded(target, sets.reshape(-1), stream)
    address = uploaded(
        target, np.uint64(values.address) + np.arange(count, dtype=np.uint64) * np.uint64(4 * size), stream
    )
    lengths = uploaded(target, np.full(count, size, np.uint32), stream)
    lefts, rights = [], []
    for number in range(SETS):
        left = random_words(sizes.pairs, SEED + 2 * number) % np.uint32(count)
        other = random_words(sizes.pairs, SEED + 2 * number + 1)
        twin = np.minimum(left ^ np.uint32(1), np.uint32(count - 1))
        lefts.append(left)
        rights.append(np.where(other % 2 == 0, twin, other % np.uint32(count)).astype(np.uint32))
    on_it = [(uploaded(target, a, stream), uploaded(target, b, stream)) for a, b in zip(lefts, rights, strict=True)]
    common = device.alloc(sizes.pairs, np.uint32)

    def work(i: int) -> None:
        args = [*on_it[i % SETS], np.uint32(sizes.pairs), address, lengths, common]
        device.launch("intersect_pairs", -(-sizes.pairs // 8), 256, args, stream)

    work(0)
    found = fetched(target.device, common, stream)
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


def walked(sizes: Sizes, backend: Backend, sets: npt.NDArray[np.uint32]) -> Callable[[int], Decision]:
    """What compares every candidate of documents in buckets at random, of which none are alike: verify="exact", as the
    stage asks its backend for it, with sets and buckets in place."""
    params, (count, size) = Params(), sets.shape
    bands = params.banding.bands
    together = max(2, round(1 + 2 * sizes.pairs / (bands * count)))  # in a bucket
    documents = np.arange(count, dtype=np.uint32)
    directory, memory = str(cache_directory()), 4 << 30
    sorted_bands = []
    for band in range(bands):
        keys = np.random.default_rng([SEED, band]).permutation(count).astype(np.uint64) // np.uint64(together)
        sorted_bands.append(backend.band(keys, documents, memory_bytes=memory))
    buckets = backend.buckets(sorted_bands, count, None, None, memory_bytes=memory, directory=directory)
    store = backend.set_store(count, memory_bytes=memory, directory=directory)
    ends = np.arange(count + 1, dtype=np.int64) * size
    store.add(documents, documents, sets.reshape(-1), ends, workers=backend.workers)
    given = {"threshold_ppm": params.threshold_ppm, "documents": documents, "leader": None, "prior": None}
    return lambda _: backend.verify(buckets, sets=store, lanes=None, **given)  # type: ignore[arg-type]


def verify_exact(target: Target, sizes: Sizes, ceilings: Ceilings) -> Iterator[Case]:
    """Some 10^7 pairs of sets, by the clock: with the rounds of verify and what the host does between them."""
    count, size = sizes.sets, sizes.set_size
    stratum = np.uint32(2**32 // size)
    sets = random_words(count * size, SEED).reshape(count, size) % stratum + np.arange(size, dtype=np.uint32) * stratum
    label = f"verify exact, sets of {size} values"
    on_cpu = walked(sizes, CpuBackend(Params(), "as asked"), sets)
    begin = time.perf_counter()
    wanted = on_cpu(0)
    seconds = time.perf_counter() - begin
    pairs = wanted.compared
    yield case(f"{label}, cpu", [seconds], pairs=pairs, pairs_per_second=pairs / seconds, workers=worker_count())
    del on_cpu
    work = walked(sizes, CudaBackend(Params(), target.device, "as asked"), sets)
    found = work(0)
    assert found.compared == pairs, f"the GPU compared {found.compared} pairs, the CPU {pairs}"
    for ours, theirs in zip(found.arrays(), wanted.arrays(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    times = on_host(max(2, sizes.rounds // 4), work)
    more = {"pairs": pairs, "set_size": size, "pairs_per_second": pairs / statistics.median(times)}
    known: dict[str, float] = {}
    if size == 600:  # that of gpu_model.py
        known = {name: each * pairs for name, each in reckoned().get("seconds_per_comparison", {}).items()}
        known |= {name: each * sets.size for name, each in reckoned().get("seconds_per_hash", {}).items()}
    if "advance_sets" in known:
        more["predicted_seconds"] = known["advance_sets"]
    yield case(f"{label}, cuda", times, floor=pairs * (8 * size + 4) / ceilings.copy, **more)
    del work
    timed = Timed(target, occupied(target, sizes))
    work = walked(sizes, CudaBackend(Params(), timed, "as asked"), sets)  # type: ignore[arg-type]
    for part in ("making sets and buckets", "comparing"):
        if part == "comparing":
            work(0)
        for name, took in timed.take().items():
            if name not in ("upload", "download", "all"):
                more = {"predicted_seconds": known[name]} if name in known else {}
                yield case(f"{label}, {part}: {name}", [took], **more, queueing_seconds=timed.queued[name])


def kernels_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    parts: list[Callable[[], Iterable[Case]]] = [
        *(partial(sign_kernels, target, sizes, ceilings, kind) for kind in TEXTS),
        *(lambda lanes=lanes: [sign_stream(target, sizes, ceilings, lanes)] for lanes in (True, False)),
        partial(verify_exact, target, sizes, ceilings),
        lambda: [intersections(target, sizes, ceilings)],
        partial(sign_kernels, target, sizes, ceilings, "english, 2 kB", keep=True),
    ]
    yield from one_by_one(parts, deadline)


# -------------------------------------------------------------------------------------------------------- a peer

NVTEXT = os.environ.get("GPUDEDUP_NVTEXT")
"""A folder with pylibcudf and what it needs, as pip --target makes it."""
CHARACTERS, LANES = 24, 260


def beside(folder: Path) -> dict[str, str]:
    """What a process needs to use the packages in a folder. Its libraries are found also where a package ``nvidia`` of
    this Python hides that of the folder."""
    libraries = sorted({str(file.parent) for file in folder.rglob("*.so*")})
    more = {"PYTHONPATH": [str(folder)], "LD_LIBRARY_PATH": libraries}
    return {name: os.pathsep.join([*first, os.environ.get(name, "")]).strip(":") for name, first in more.items()}


def nvtext_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    """Signatures of 260 lanes of runs of 24 characters, text and signatures on the device: ours, which fold the text,
    hash contents and make band keys too, then libcudf's, of the same text, in a process of its own."""
    kind, params = "english, 2 kB", Params(shingle=f"char:{CHARACTERS}", num_perm=LANES)
    ours = sign_kernels(target, sizes, ceilings, kind, params=params)
    yield from ours
    name = f"{kind}, char:{CHARACTERS}, {LANES} lanes: libcudf nvtext.minhash"
    if not NVTEXT:
        print(f"{name}: not measured, for libcudf was not brought along: GPUDEDUP_NVTEXT names no folder", flush=True)
        return
    text = piece_text(sizes, kind, params, 0)
    with tempfile.TemporaryDirectory(dir=cache_directory()) as folder:
        file, order = Path(folder, "text.parquet"), Path(folder, "order.json")
        pq.write_table(pa.table({"text": text.cast(pa.string())}), file)
        asked = {"file": str(file), "width": CHARACTERS, "lanes": LANES, "rounds": max(2, sizes.rounds // 2)}
        order.write_text(json.dumps(asked))
        done = run_process(
            [sys.executable, str(PROGRAMS / "nvtext_minhash.py"), str(order)],
            environment=beside(Path(NVTEXT)),
            timeout=max(20.0, deadline - time.perf_counter()),
        )
    if done.code:
        raise SystemExit(f"{name}: {done.complaint}")
    answer = json.loads(done.output.splitlines()[-1])
    rate = pc.sum(pc.binary_length(text)).as_py() / statistics.median(answer["seconds"])
    [mine] = [each["gigabytes_of_text_per_second"] * 1e9 for each in ours if each["case"].endswith("signatures there")]
    more = {"gigabytes_of_text_per_second": rate / 1e9, "our_speed_over_it": mine / rate}
    yield case(name, answer["seconds"], **more, version=answer["version"], as_documented=answer["as_documented"])
