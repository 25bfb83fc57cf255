"""What a GPU does, beside what it could: python benchmarks/bench_gpu.py SUITE... [--scale S] [--results FOLDER]

ceilings   copies on the device and over the bus, and lanes computed a second: what the other suites are held against
kernels    signing, kernel by kernel, with text on the device; from host memory to host memory; comparisons of sets
job        whole jobs, from Arrow in memory and from Parquet, and the same on the CPU
match      match, verify by signature and decide, of generated signatures
nvtext     runs of 24 characters, 260 lanes, beside libcudf's nvtext.minhash, if GPUDEDUP_NVTEXT names a folder with it
sweep      one thing varied at a time, on the GPU and on the CPU: sizes of inputs, documents and batches, languages, ...

A case is recorded only after its result, or a sample of it, was that of the CPU backend. Two exceptions: the most
signatures of match, where there is no time for that, after a sample of removals was checked by lanes; and libcudf, with
whether what it gives is as documented. Times are of device events for work on the device, of the clock for what ends on
the host. Inputs rotate, so that no run finds a piece of long documents in a cache; three of short ones fit into one.
A floor is the least that the work can take: bytes that must move over the measured rate of copies, or instructions over
their measured rate, whichever is more. Each suite writes FOLDER/GPU-DATE-gpu-SUITE.json, anew after each case;
report.py makes tables of them. --scale S does S times the full work, which is what bars are set for.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gpu_jobs import job_suite, match_suite
from gpu_kernels import kernels_suite, measure_ceilings, nvtext_suite
from gpu_measure import REHEARSED, RESULTS, Case, Ceilings, Sizes, write_result
from gpu_sweep import sweep_suite
from gpu_target import REHEARSAL, Target, open_target, rehearse

Suite = Callable[[Target, Sizes, Ceilings, float], Iterator[Case]]
SUITES: dict[str, Suite] = {
    "kernels": kernels_suite,
    "job": job_suite,
    "match": match_suite,
    "nvtext": nvtext_suite,
    "sweep": sweep_suite,
}


def main() -> None:
    names = ("ceilings", *SUITES)
    parser = argparse.ArgumentParser(description="Measure a GPU and record the figures.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"{', '.join(names)}; all by default")
    parser.add_argument("--scale", type=float, default=REHEARSED if REHEARSAL else 1.0, help="of the work; 1: all")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=600, help="start no long case that would end after this")
    given = parser.parse_args()
    deadline = time.perf_counter() + given.seconds
    unknown = set(given.suites) - set(names)
    if unknown:
        parser.error(f"no suite {sorted(unknown)[0]!r}; there are {', '.join(names)}")
    if REHEARSAL:
        rehearse()
    target = open_target()
    sizes = Sizes.of(target, given.scale)
    ceilings, measured = measure_ceilings(target, sizes)
    for name in given.suites or names:
        cases: list[Case] = []
        for found in SUITES[name](target, sizes, ceilings, deadline) if name in SUITES else measured:
            cases.append(found)
            write_result(given.results, name, given.scale, ceilings, cases)


if __name__ == "__main__":
    main()
