"""What the suites of bench_gpu.py share: how much of everything, clocks, and the record of a case."""

from __future__ import annotations

import json
import re
import statistics
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import cache_directory
from gpu_target import REHEARSAL, Target, description

from gpudedup.backends.cuda.backend import PIECE_BYTES
from gpudedup.backends.cuda.device import DeviceArray, HostArray, Stream, sent
from gpudedup.machine import available_memory_bytes, free_bytes, worker_count
from gpudedup.store.atomic import atomic_file

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 20261122
SETS = 3
"""Inputs in rotation."""
WARM_SECONDS = 0.0 if REHEARSAL else 0.4
"""Of work before any is timed: an idle GPU has a fraction of its clock rate."""
REHEARSED = 1e-5
"""Scale of a rehearsal."""

Case = dict[str, Any]
Seconds = list[float]


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    rounds: int
    copy_bytes: int
    pinned_bytes: int
    rate_blocks: int
    piece_bytes: int
    pieces: int
    pairs: int
    sets: int
    set_size: int
    job_bytes: int
    documents: tuple[int, ...]
    sweep_bytes: int

    @classmethod
    def of(cls, target: Target, scale: float) -> Sizes:
        folder = free_bytes(cache_directory())
        return cls.that_fit(target.device.free_bytes(), available_memory_bytes(), folder, worker_count(), scale)

    @classmethod
    def that_fit(cls, free: int, host: int, disk: int, workers: int, scale: float) -> Sizes:
        """For a GPU with ``free`` bytes in a machine with ``host`` bytes of memory and ``disk`` of a disk to spare.

        scale 1: what fills an H200, and the sizes that bars are set for; less: as much of it, but not less than it
        takes to run every line.
        """

        def scaled(full: float, least: int, most: float = 2**63) -> int:
            return max(least, int(min(full * scale, most)))

        # Signatures of 128 lanes on the device, with their buckets; on the host with keys and what made them.
        documents = scaled(10**8, 150, min(free, host) / 1100)
        return cls(
            rounds=scaled(21, 2),
            copy_bytes=scaled(1 << 30, 1 << 14, free / 32),
            pinned_bytes=scaled(1 << 28, 1 << 14, host / 64),
            rate_blocks=scaled(33792, 2),
            piece_bytes=min(PIECE_BYTES, scaled(8 * PIECE_BYTES, 12_000)),  # a smaller one would not fill a GPU
            pieces=min(16, scaled(256, 2)),
            pairs=scaled(10**7, 90),
            sets=scaled(1 << 18, 16, free / 32 / 2400),
            set_size=min(600, scaled(6e6, 70)),
            # Made by so many processes at some 60 MB a second each; held as Arrow and, as Parquet, on the disk.
            job_bytes=scaled(20e9, 300_000, min(1.25e9 * workers, host / 5, disk / 2, free / 5)),
            documents=(max(150, documents // 100), documents),
            sweep_bytes=scaled(256e6, 12_000, 25e6 * workers),
        )


@dataclass(frozen=True)
class Ceilings:
    """A second: bytes read plus written on the device; bytes up and down, from and to pinned memory; lanes, each a
    32-bit multiply-add and a minimum."""

    copy: float
    up: float
    down: float
    lanes: float


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


def one_by_one(parts: Iterable[Callable[[], Iterable[Case]]], deadline: float) -> Iterator[Case]:
    """The cases of all parts, of which none begins if the longest so far would end after the deadline. One that fails
    keeps no other out. Raises SystemExit at the end if some did."""
    failed, longest = 0, 0.0
    for part in parts:
        begin = time.perf_counter()
        if begin + longest > deadline:
            print("the rest is left out, there is not time enough", flush=True)
            break
        try:
            yield from part()
        except Exception:
            traceback.print_exc()
            failed += 1
        longest = max(longest, time.perf_counter() - begin)
    if failed:
        raise SystemExit(f"{failed} failed, as told above")


def uploaded(target: Target, values: HostArray, stream: Stream) -> DeviceArray:
    """A copy on the device, which is there: ``values`` need not stay."""
    array = sent(target.device, values, stream)
    stream.synchronize()
    return array


def random_words(count: int, seed: int) -> npt.NDArray[np.uint32]:
    return np.random.default_rng(seed).integers(0, 2**32, count, np.uint32)


def write_result(folder: Path, suite: str, scale: float, ceilings: Ceilings, cases: list[Case]) -> None:
    """All cases of a suite so far, as a whole file: whenever it ends, what was measured is there. Raises SystemExit
    rather than put figures of a rehearsal beside those of machines."""
    if REHEARSAL and folder.resolve().is_relative_to(RESULTS):
        raise SystemExit(
            "figures of a rehearsal do not belong into benchmarks/results; give another folder with --results"
        )
    machine = description()
    name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    found = {
        "suite": f"gpu-{suite}",
        "date": date.today().isoformat(),
        "emulated": REHEARSAL,
        "seed": SEED,
        "scale": scale,
        "machine": machine,
        "ceilings": asdict(ceilings),
        "cases": cases,
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / f"{name}-{found['date']}-gpu-{suite}.json") as unfinished:
        unfinished.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
