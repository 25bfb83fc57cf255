"""match, verify by signature and decide over generated signatures in a run directory, a tenth of them in clusters."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from common import ROUNDS, Child, cache_directory, count, load, run_generated
from generated_run import STAGES

DOCUMENTS = 10_000_000
MEMORY = "2 GB"


def bench_generated_signatures(benchmark: Any) -> None:
    documents, children = count(DOCUMENTS), []
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        out = Path(work, "run")
        run_generated(out, documents, ["sign"], verify="signature")

        def forget() -> None:
            for stage in STAGES if children else ():
                shutil.rmtree(out / stage)
                shutil.rmtree(out / "done" / stage)

        def go_on() -> None:
            children.append(run_generated(out, documents, STAGES, verify="signature", memory=MEMORY))

        benchmark.pedantic(go_on, setup=forget, rounds=ROUNDS)
    best: Child = min(children, key=lambda child: child.seconds)
    stages = best.report["stages"]
    benchmark.extra_info.update(
        documents=documents,
        memory=MEMORY,
        seconds=round(best.seconds, 2),
        cpu_seconds=round(sum(stage["cpu_seconds"] for stage in stages.values()), 2),
        stages={name: round(stage["seconds"], 2) for name, stage in stages.items()},
        peak_megabytes={name: round(stage["peak_bytes"] / 1e6) for name, stage in stages.items()},
        disk_megabytes={name: round(size / 1e6, 1) for name, size in best.report["disk_bytes"].items()},
        removed=best.report["removed"],
        compared_pairs=best.report["compared_pairs"],
        longest_bucket=best.report["longest_bucket"],
        load=load(),
    )
