"""One thing varied at a time: the same jobs on the GPU and on the CPU, and what a process takes to begin.

Where the GPU is worth it follows from three figures: what its start costs more than the CPU's, and what a worker of the
CPU and the GPU get through in a second.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gpu_measure import SEED, Case, Ceilings, Sizes, case, on_host, one_by_one
from gpu_target import REHEARSAL, Target

import gpudedup
from gpudedup.backends import Backend
from gpudedup.backends.base import SignedBatch, ToSign
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.bench.corpus import join
from gpudedup.bench.inputs import text_bytes
from gpudedup.bench.measure import run_process
from gpudedup.bench.noise import fraction, noise
from gpudedup.bench.words import load_pool
from gpudedup.machine import worker_count
from gpudedup.params import Params

CHANGED = 0.01
"""Of the words of a copy: some 0.9 of the 5-shingles of two documents are common then."""

START = """
import sys, time
sys.path[:0] = {paths!r}
import pyarrow as pa
import gpudedup
if {rehearsal!r}:
    import gpu_target
    gpu_target.rehearse()
table = pa.table({{"text": ["a b c d e f", "a b c d e f", "g h i j k l"]}})
begin = time.perf_counter()
gpudedup.deduplicate(table, device={device!r}).keep_mask
print(time.perf_counter() - begin)
"""


@dataclass(frozen=True)
class Point:
    """A job: text of about ``text_bytes`` in documents of ``document_bytes``, a share of which are copies, signed in
    batches of ``batch_bytes`` with ``num_perm`` lanes."""

    text_bytes: int
    mix: str = "english"
    document_bytes: int = 2000
    copies: float = 0.3
    num_perm: int = 128
    batch_bytes: int = 16 << 20


AXES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "text": ("text_bytes", (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 4.0)),  # of the size that the others have
    "document": ("document_bytes", (20, 70, 200, 2000, 20_000, 1_000_000, 100_000_000)),
    "language": ("mix", ("english", "chinese", "mixed")),
    "lanes": ("num_perm", (64, 128, 256, 512, 1024)),
    "copies": ("copies", (0.0, 0.1, 0.3, 0.6, 0.9)),
    "batch": ("batch_bytes", (1 << 18, 1 << 20, 1 << 22, 1 << 24, 1 << 26)),
}
"""What is varied: the field of a `Point`, and its values."""


def points(sizes: Sizes) -> Iterator[tuple[str, Any, Point]]:
    """(axis, value, point), axis after axis; where there is next to no time, only the ends of each."""
    size = sizes.sweep_bytes
    for axis, (field, values) in AXES.items():
        for value in values if sizes.rounds > 2 else values[:: len(values) - 1]:
            given = max(100, int(value * size)) if axis == "text" else value
            point = replace(Point(size), **{field: given})
            if point.document_bytes <= point.text_bytes or axis == "text":
                yield axis, given, point


@lru_cache(2)
def made(mix: str, document_bytes: int, copies: float, size: int) -> pa.Array:
    """Text: words at random; a copy is one of the originals with one word in a hundred drawn anew."""
    pool = load_pool(mix)
    share = np.cumsum(pool.share) / pool.share.sum()
    mean = float(pool.mean_bytes @ pool.share) / pool.share.sum()
    words = max(1, round(document_bytes / mean))  # of a document
    count = max(1, round(size / (words * mean)))
    originals = max(1, round(count * (1 - copies)))
    order = np.argsort(noise(SEED, count), kind="stable")
    drawn = np.empty((count, words), np.int32)
    step = max(1, (1 << 20) // words)  # documents that a thread takes at a time

    def draw(first: int) -> None:
        own = drawn[first : first + step]
        language = np.searchsorted(share[:-1], fraction(noise(SEED - first, len(own))), side="right")
        bits = noise(SEED + first, own.size).reshape(own.shape)
        for number in range(len(share)):
            of_it = np.flatnonzero(language == number)
            own[of_it] = pool.draw(number, bits[of_it])

    def copy(first: int) -> None:
        own = drawn[first : first + step]
        origin = (noise(SEED - first, len(own)) % np.uint64(originals)).astype(np.int64)
        fresh = fraction(noise(-SEED - first, own.size)).reshape(own.shape) < CHANGED
        own[...] = np.where(fresh, own, drawn[origin])

    def text(first: int) -> pa.Array:
        own = drawn[order[first : first + step]]
        return join(pool.pieces, own.reshape(-1), np.full(len(own), words))

    with ThreadPoolExecutor(worker_count()) as threads:
        list(threads.map(draw, range(0, count, step)))
        list(threads.map(copy, range(originals, count, step)))
        return pa.concat_arrays(list(threads.map(text, range(0, count, step))))


def batches(text: pa.Array, batch_bytes: int) -> list[pa.Array]:
    """As equal as can be."""
    number = min(len(text), -(-text_bytes(text) // batch_bytes))
    ends = np.linspace(0, len(text), number + 1).astype(int).tolist()
    return [text[first:last] for first, last in itertools.pairwise(ends)]


def signed(backend: Backend, parts: list[pa.Array]) -> Iterator[SignedBatch]:
    """The batches with their band keys."""
    return backend.sign(ToSign(part, band_keys=True) for part in parts)


def measured(target: Target, axis: str, value: Any, point: Point) -> Iterator[Case]:
    """A job from Arrow to the mask on the CPU and on the GPU, warm, and signing alone in batches of the point's size.

    Both must give equal keys and equal masks, else neither is a case.
    """
    params = Params(num_perm=point.num_perm)
    text = made(point.mix, point.document_bytes, point.copies, point.text_bytes)
    table, parts = pa.table({"text": text}), batches(text, point.batch_bytes)
    size = text_bytes(text)
    answers, cases = [], []
    for device, backend in (
        ("cpu", CpuBackend(params, "as asked")),
        ("cuda", CudaBackend(params, target.device, "as asked")),
    ):
        keys = [each.band_keys for each in signed(backend, parts)]
        signing = statistics.median(on_host(2, lambda _, backend=backend: deque(signed(backend, parts), maxlen=0)))
        results: list[Any] = []
        seconds = on_host(
            2 if device == "cpu" else 3,
            lambda _, device=device, results=results: results.append(
                gpudedup.deduplicate(table, device=device, num_perm=point.num_perm)
            ),
        )
        mask = results[-1].keep_mask
        answers.append((keys, mask))
        about = {
            "axis": axis,
            "value": value,
            "device": device,
            "text_bytes": size,
            "documents": len(text),
            "removed": mask.false_count,
            "gigabytes_of_text_per_second": size / statistics.median(seconds[1:]) / 1e9,
            "signing_gigabytes_per_second": size / signing / 1e9,
            "stages": {stage: round(took, 4) for stage, took in results[-1].summary().seconds.items()},
            "workers": worker_count(),
        }
        cases.append((f"{axis} {value}, {device}", seconds[1:], about))
    (own_keys, own_mask), (gpu_keys, gpu_mask) = answers
    equal = all(np.array_equal(*pair) for pair in zip(own_keys, gpu_keys, strict=True))
    assert equal, f"{axis} {value}: the GPU makes other band keys than the CPU"
    assert own_mask.equals(gpu_mask), f"{axis} {value}: the GPU keeps other rows than the CPU"
    for name, seconds, about in cases:
        yield case(name, seconds, **about)


def starts(device: str) -> Case:
    """The first job of a process, of three lines of text. The first process fills caches on disk and does not count."""
    here = Path(__file__).resolve().parent
    code = START.format(paths=[str(here)], device=device, rehearsal=REHEARSAL)
    seconds = []
    for _ in range(1 if REHEARSAL else 4):
        done = run_process([sys.executable, "-c", code], timeout=60)
        if done.code:
            raise RuntimeError(f"a first job on {device}: {done.complaint}")
        seconds.append(float(json.loads(done.output)))
    return case(f"first job of a process, {device}", seconds[1:] or seconds, axis="start", device=device)


def sweep_suite(target: Target, sizes: Sizes, ceilings: Ceilings, deadline: float) -> Iterator[Case]:
    parts: list[Callable[[], Iterable[Case]]] = [lambda: map(starts, ("cpu", "cuda"))]
    parts += [partial(measured, target, *point) for point in points(sizes)]
    yield from one_by_one(parts, deadline)
