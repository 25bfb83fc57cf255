"""How CPU time grows with text, and how wall time falls with cores."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gpudedup.bench.devices import Device
from gpudedup.bench.inputs import Inputs, made
from gpudedup.bench.measure import Measured
from gpudedup.bench.record import Record, new_record
from gpudedup.bench.suites import Order
from gpudedup.bench.suites.end_to_end import job_record, run_jobs
from gpudedup.errors import BenchmarkError

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Sizes of text over the smallest."""

CORES_STEP = 8
"""The size at which cores are counted."""

UPPER = STEPS.index(8)
"""Where the upper part of the sizes begins: there constant costs are small, which make the whole line flatter."""

LEAST_BYTES = 15_000_000
"""Of the smallest text; below that what a job costs however small it is would hide how it grows."""

CLOCK = "gpudedup.run over files, in a process that has run it before: decode, sign, match, verify, decide, apply"


def suite(order: Order) -> Iterator[Record]:
    """Always over made corpora, whose clusters follow one law at any size."""
    device = next((one for one in order.best if one.device == "cpu"), order.best[0])
    steps = (CORES_STEP, STEPS[-1]) if order.quick else STEPS
    sizes: list[tuple[Inputs, Measured]] = []
    for step in steps:
        text = made(order, size=order.text_bytes * step // STEPS[-1], plain=True)
        order.tell(f"scaling: {step} times the text, {device}")
        work = order.folder / "scaling"
        found = run_jobs(text, work, order, device, whole=False, output="mask")
        shutil.rmtree(work, ignore_errors=True)
        yield job_record("scaling", f"text x {step}", order, device, found, text, clock=CLOCK, output="mask")
        if isinstance(found, Measured):
            sizes.append((text, found))
        if step == CORES_STEP:
            yield from _cores(order, text)
        assert text.folder is not None
        shutil.rmtree(text.folder, ignore_errors=True)
    if len(sizes) == len(steps) and not order.quick:
        yield _slope(order, sizes, device)


def _cores(order: Order, text: Inputs) -> Iterator[Record]:
    """1, 2, 4, ... and all cores over the same text, on the CPU."""
    device = next((one for one in order.best if one.device == "cpu"), None)
    if device is None:
        return
    counts = sorted({*(1 << bit for bit in range(order.workers.bit_length())), order.workers})
    decisions = set()
    for workers in [1, order.workers] if order.quick else counts:
        order.tell(f"scaling: {workers} cores")
        work = order.folder / "scaling"
        own = replace(order, workers=workers)
        found = run_jobs(text, work, own, device, whole=False, output="mask")
        shutil.rmtree(work, ignore_errors=True)
        if isinstance(found, Measured):
            decisions.add(found.fingerprint)
        if len(decisions) > 1:
            raise BenchmarkError(f"scaling: {workers} cores remove other documents than one")
        case = f"{workers} of {order.workers} cores"
        yield job_record("scaling", case, own, device, found, text, clock=CLOCK, output="mask")


def _slope(order: Order, sizes: Sequence[tuple[Inputs, Measured]], device: Device) -> Record:
    """Of log CPU time over log text: 1 is linear."""
    size = [float(text.text_bytes) for text, _ in sizes]
    cpu = [found.cpu_seconds for _, found in sizes]
    case = "slope of log CPU time over log text"
    if size[0] < LEAST_BYTES:
        least = LEAST_BYTES * STEPS[-1] // 1_000_000
        cannot = (
            f"the smallest text has {size[0] / 1e6:.1f} MB, and constant costs would hide growth; use --size {least}MB"
        )
        return new_record("scaling", case, device=str(device), seed=order.seed, cannot=cannot)
    slope, upper = (float(np.polyfit(np.log(size[first:]), np.log(cpu[first:]), 1)[0]) for first in (0, UPPER))
    return new_record(
        "scaling",
        case,
        device=str(device),
        seed=order.seed,
        clock=f"CPU seconds of {CLOCK}",
        checked="each point as its own case; the line by least squares",
        figures={"slope": slope, "upper_slope": upper, "least_text_bytes": size[0], "most_text_bytes": size[-1]},
        curves={"text_bytes": size, "cpu_seconds": cpu},
    )
