"""Start-up: what `import gpudedup` adds to pyarrow, and `gpudedup --version`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Any

from common import TINY, load

REPEATS = 2 if TINY else 15
BEFORE = "import time; a = time.perf_counter(); import pyarrow, pyarrow.parquet; b = time.perf_counter(); "
AFTER = "import gpudedup; print(b - a, time.perf_counter() - b)"


def bench_import(benchmark: Any) -> None:
    found: list[tuple[float, float]] = []

    def start() -> None:
        out = subprocess.run([sys.executable, "-c", BEFORE + AFTER], check=True, capture_output=True, text=True).stdout
        base, added = out.split()
        found.append((float(base), float(added)))

    benchmark.pedantic(start, warmup_rounds=1, rounds=REPEATS)
    benchmark.extra_info.update(
        pyarrow_seconds=round(statistics.median(base for base, _ in found), 3),
        added_seconds=round(statistics.median(added for _, added in found), 3),
        added_seconds_least=round(min(added for _, added in found), 3),
        load=load(),
    )


def bench_version(benchmark: Any) -> None:
    seconds: list[float] = []

    def version() -> None:
        began = time.perf_counter()
        command = [sys.executable, "-c", "from gpudedup.cli import main; main()", "--version"]
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - began)

    benchmark.pedantic(version, warmup_rounds=1, rounds=REPEATS)
    benchmark.extra_info.update(seconds=round(statistics.median(seconds), 3), least=round(min(seconds), 3), load=load())
