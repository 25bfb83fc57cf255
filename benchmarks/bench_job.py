"""The whole job, files to run directory: start, decode, sign, match, verify, decide, apply."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
from common import ROUNDS, Child, corpus_files, load, run_job, text_bytes

MEGABYTES = 1000


@pytest.mark.parametrize("memory", [None, "768 MB"], ids=["memory default", "768 MB"])
@pytest.mark.parametrize("output", ["mask", "kept"])
@pytest.mark.parametrize("mix", ["mixed", "english"])
def bench_job(benchmark: Any, mix: str, output: str, memory: str | None) -> None:
    files = corpus_files(mix, MEGABYTES)
    run_job(files, mode="decode")  # the files are in the page cache from here on
    children: list[Child] = []

    def job() -> None:
        children.append(run_job(files, output=output, memory=memory))

    benchmark.pedantic(job, rounds=ROUNDS)
    best = min(children, key=lambda child: child.seconds)
    decode = [run_job(files, mode="decode").report["seconds"] for _ in range(ROUNDS)]
    _, size = text_bytes(files)
    benchmark.extra_info.update(
        mix=mix,
        output=output,
        memory=memory or "default",
        text_bytes=size,
        documents=best.report["documents"],
        removed=best.report["removed"],
        compared_pairs=best.report["compared_pairs"],
        device=best.report["device"],
        workers=best.report["workers"],
        megabytes_per_second=round(size / best.seconds / 1e6, 1),
        seconds=round(best.seconds, 2),
        cpu_seconds=round(best.report["cpu_seconds"], 2),
        start_seconds=round(best.seconds - best.report["seconds"], 2),
        decode_alone_seconds=round(min(decode), 2),
        stages={name: round(value, 2) for name, value in best.report["stages"].items()},
        peak_megabytes=round(statistics.median(child.peak_bytes for child in children) / 1e6),
        load=load(),
    )
