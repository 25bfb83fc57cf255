"""Runs suites and writes benchmarks/results/MACHINE-DATE-SUITE.json.

    python benchmarks/run.py [growth] [import]      both without a name

All else is measured by `gpudedup bench`. Figures of a busy machine are marked by `load`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from gpudedup.bench.record import commit
from gpudedup.machine import description

HERE = Path(__file__).resolve().parent
SUITES = ("growth", "import")


def machine() -> dict[str, Any]:
    """The machine and the software, without names or paths."""
    found = description()
    return {
        "cpu": found.cpu,
        "cores": found.cores,
        "memory_gigabytes": round(found.memory_bytes / 1e9),
        "python": found.python,
        "pyarrow": found.pyarrow,
        "numpy": found.numpy,
        "gpudedup": version("gpudedup"),
        "commit": commit() or "unknown",
    }


def result_path(folder: Path, suite: str) -> Path:
    found = description()
    name = re.sub(r"[^a-z0-9]+", "-", f"{found.cpu} {found.cores} cores".lower()).strip("-")
    return folder / f"{name}-{date.today().isoformat()}-{suite}.json"


def run_suite(suite: str) -> list[dict[str, Any]]:
    """The cases of one pytest-benchmark run, each with its times and extra_info."""
    with tempfile.TemporaryDirectory() as work:
        out = Path(work, "out.json")
        command = [sys.executable, "-m", "pytest", "-q", str(HERE / f"bench_{suite}.py"), f"--benchmark-json={out}"]
        code = subprocess.run(command, cwd=HERE).returncode
        if not out.exists() or not out.stat().st_size:
            sys.exit(code or 1)
        benchmarks = json.loads(out.read_text())["benchmarks"]
    return [
        {
            "case": case["name"],
            "rounds": case["stats"]["rounds"],
            "min_seconds": round(case["stats"]["min"], 4),
            "median_seconds": round(case["stats"]["median"], 4),
            **case["extra_info"],
        }
        for case in benchmarks
    ]


def write_result(path: Path, suite: str, cases: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"suite": suite, "date": date.today().isoformat(), "machine": machine(), "cases": cases}
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Run benchmark suites and record their figures.")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(SUITES)}; all by default")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    given = parser.parse_args()
    unknown = set(given.suites) - set(SUITES)
    if unknown:
        parser.error(f"no suite {sorted(unknown)[0]!r}; there are {', '.join(SUITES)}")
    for suite in given.suites or SUITES:
        write_result(result_path(given.results, suite), suite, run_suite(suite))


if __name__ == "__main__":
    main()
