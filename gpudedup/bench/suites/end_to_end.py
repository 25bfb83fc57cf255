"""The whole job, files to run directory, each in a process of its own: nothing is left out of the clock."""

from __future__ import annotations

import itertools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

import gpudedup
from gpudedup.bench.devices import BASELINE, Device
from gpudedup.bench.inputs import Inputs, inputs
from gpudedup.bench.measure import Measured, Work, measure
from gpudedup.bench.record import Record
from gpudedup.bench.suites import Order, recorded
from gpudedup.errors import BenchmarkError

CLOCK = (
    "a process from its start to its end: Python, imports, files read and decoded, sign, match, verify, decide, apply, "
    "results flushed to disk"
)
AUDITED = (
    f"one repeat by gpudedup audit on the CPU's {BASELINE} tier: all signatures and removals made again from the text, "
    "and what it wrote compared with them"
)
UNPLANTED = "the same removals in every repeat"
PLANTED = (
    "no planted exact copy left, none removed for a document of another cluster; the same removals in every repeat"
)


def suite(order: Order) -> Iterator[Record]:
    text = inputs(order)
    decisions: set[str] = set()
    for device in order.best:
        for output in ("kept", "mask"):
            order.tell(f"end-to-end: {text.name}, {output}, {device}")
            work = order.folder / f"end-to-end-{output}"
            found = run_jobs(text, work, order, device, output=output)
            if isinstance(found, Measured):
                decisions.add(found.fingerprint)
                if len(decisions) > 1:
                    raise BenchmarkError(f"end-to-end, {text.name}: {device}, {output}, removes other documents")
                order.tell(f"end-to-end: checking the run on the CPU's {BASELINE} tier")
                check_run(work, text, order)
            shutil.rmtree(work, ignore_errors=True)
            case, checked = f"{text.name}, {output}", f"{AUDITED}; {checked_by(text)}, device and output"
            yield job_record("end-to-end", case, order, device, found, text, checked=checked, output=output)


def run_jobs(
    text: Inputs,
    work: Path,
    order: Order,
    device: Device,
    *,
    repeat: int | None = None,
    whole: bool = True,
    **options: Any,
) -> Measured | str:
    """Jobs, each in a process of its own or (not ``whole``) all in one that is warm; their runs stay in ``work``.

    Raises BenchmarkError if what was planted in a made corpus was not found.
    """
    work.mkdir(exist_ok=True)
    given = {"workers": order.workers, "device": device.device, "tmp": str(order.folder), **options}
    found = measure(
        "gpudedup.bench.suites.end_to_end:job",
        {"files": text.files, "work": str(work), "options": {**given, "text_column": text.text_column}},
        repeat=repeat or order.repeat,
        whole=whole,
        warm_ups=1 if not whole or device.gpu else 0,  # a GPU's kernels are compiled once and kept in a cache
        environment=device.environment,
    )
    if text.folder and isinstance(found, Measured):
        check_planted(gpudedup.Run.open(min(work.iterdir())).removed, text)
    return found


def checked_by(text: Inputs) -> str:
    """How `run_jobs` checks runs over a text, in words."""
    return PLANTED if text.folder else UNPLANTED


def job_record(
    suite: str,
    case: str,
    order: Order,
    device: Device,
    found: Measured | str,
    text: Inputs,
    *,
    clock: str = CLOCK,
    checked: str = "",
    **parameters: Any,
) -> Record:
    """The record of a whole job."""
    figures = {}
    if isinstance(found, Measured):
        figures = {
            "text_megabytes_per_second": text.text_bytes / found.seconds.median / 1e6,
            "text_megabytes_per_cpu_second": text.text_bytes / max(found.cpu_seconds, 1e-9) / 1e6,
        }
    about = {"corpus": text.text, "clock": clock, "checked": checked or checked_by(text), "figures": figures}
    return recorded(suite, case, order, device, found, parameters={"workers": order.workers, **parameters}, **about)


def job(files: Sequence[str], work: str, options: dict[str, Any]) -> Work:
    """gpudedup.run over files, into a new directory in ``work``."""

    begin = gpudedup.run  # imported now, so that CPU seconds of the job are of the job
    cpu_seconds, numbers = 0.0, itertools.count()

    def run() -> gpudedup.Run:
        nonlocal cpu_seconds
        before = time.process_time()
        done = begin(list(files), Path(work, f"run-{os.getpid()}-{next(numbers)}"), **options)
        cpu_seconds = time.process_time() - before
        return done

    def figures(done: gpudedup.Run) -> dict[str, float]:
        summary = done.summary()
        counts = {name: getattr(summary, name) for name in ("documents", "text_bytes", "removed", "exact", "near")}
        counts |= {name: getattr(summary, name) for name in ("compared_pairs", "longest_bucket", "bounded_buckets")}
        seconds = {f"{stage}_seconds": seconds for stage, seconds in summary.seconds.items()}
        return {**counts, **seconds, "job_cpu_seconds": cpu_seconds}

    return Work(run, decision_fingerprint, figures=figures)


def decision_fingerprint(done: gpudedup.Run) -> str:
    """Of the table of removals."""
    sink = pa.BufferOutputStream()
    table = done.removed.combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return xxhash.xxh3_128_hexdigest(sink.getvalue())


def check_run(work: Path, text: Inputs, order: Order) -> None:
    """Audit a run in ``work`` in another process. Raises BenchmarkError."""
    run = min(work.iterdir())
    found = measure(
        "gpudedup.bench.suites.end_to_end:audited",
        {"run": str(run), "workers": order.workers, "tmp": str(order.folder)},
        repeat=1,
        warm_ups=0,
        environment=Device("cpu", BASELINE).environment,
    )
    if isinstance(found, str):
        raise BenchmarkError(f"the run over {text.name} could not be checked: {found}")


def audited(run: str, workers: int, tmp: str) -> Work:
    """An audit that must find nothing."""

    def check(found: Any) -> None:
        if found.problem_count or found.not_checked:
            raise BenchmarkError(f"the audit of a run says: {[*found.problems, *found.not_checked][0]}")

    return Work(
        lambda: gpudedup.Run.open(run).audit(workers=workers, tmp=tmp), lambda found: str(found.problem_count), check
    )


def check_planted(removed: pa.Table, text: Inputs) -> None:
    """Removals of a made corpus against its truth. Raises BenchmarkError.

    A document is removed only for one of its own cluster, and every exact copy of an earlier document is removed.
    """
    assert text.folder is not None
    truth = pq.read_table(text.folder / "truth.parquet")
    cluster = np.arange(text.documents)
    cluster[truth["id"].to_numpy()] = truth["origin"].to_numpy()
    ids = np.cumsum([0, *(pq.read_metadata(file).num_rows for file in text.files)])
    shards = {os.path.basename(file): number for number, file in enumerate(text.files)}
    place = {}
    for side in ("", "keeper_"):
        shard = np.array([shards[os.path.basename(name)] for name in removed[f"{side}shard"].to_pylist()], np.int64)
        place[side] = ids[shard] + removed[f"{side}row"].to_numpy()
    stray = cluster[place[""]] != cluster[place["keeper_"]]
    if stray.any():
        raise BenchmarkError(f"document {place[''][stray][0]} was removed for one that it was not made from")
    exact = truth["id"].to_numpy()[np.array(truth["kind"].to_pylist(), object) == "exact"]
    if len(left := np.setdiff1d(exact, place[""])):
        raise BenchmarkError(f"document {left[0]} is an exact copy of an earlier one and was kept")
