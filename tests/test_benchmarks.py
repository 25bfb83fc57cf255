"""The suites and reports of benchmarks/ still run. Nothing here is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpudedup.backends.cuda import program
from gpudedup.bench.record import Spread, Text, new_record, write_records

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import report  # noqa: E402

CASES = {
    "growth": "near_copies",
    "import": "bench_import",
}


@pytest.mark.parametrize("suite", sorted(CASES))
def test_suites_run_on_next_to_nothing(suite: str, tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # not a worker of ours
    environment = {**own, "GPUDEDUP_BENCH_TINY": "1", "GPUDEDUP_BENCH_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"bench_{suite}.py", "-k", CASES[suite]]
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*command, f"--benchmark-json={out}"], cwd=BENCHMARKS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["benchmarks"]


def test_every_result_is_described() -> None:
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        found = json.loads(path.read_text())
        assert {"suite", "date", "machine", "cases"} <= set(found), path.name
        assert found["machine"]["commit"], path.name
        assert "/" not in path.name


def test_the_page_is_that_of_the_results() -> None:
    made = report.render(BENCHMARKS / "results", (BENCHMARKS / "notes.md").read_text())
    assert report.OUT.read_text() == made, "run python benchmarks/report.py"


def test_the_prediction_is_of_these_kernels() -> None:
    found = json.loads(report.PREDICTED.read_text())
    assert found["kernels"] == program.digest()[:12], "run python benchmarks/gpu_model.py --write, then report.py"


def test_results_of_the_bench_are_held_to_the_bars(tmp_path: Path) -> None:
    """Of each machine the last result, with all its suites."""
    own: dict[str, Any] = {"device": "cpu", "seed": 1}
    text = Text(name="mixed", documents=9, text_bytes=2_000_000_000)
    seconds = {"seconds": Spread.of([1.0]), "repeats": 1}
    cases = [
        new_record("scaling", "slope", **own, figures={"slope": 1.05}),
        new_record("memory", "mixed", **own, corpus=text, peak_bytes=900_000_000, **seconds),
    ]
    write_records(tmp_path / "a.jsonl", [new_record("match", "earlier", **{**own, "date": "2020-01-01"}, **seconds)])
    write_records(tmp_path / "b.jsonl", cases)
    page = report.render(tmp_path, "notes")
    assert "earlier" not in page
    assert "| slope of log CPU time over log text, 1x to 64x | 1.050 | <= 1.03: **misses** |" in page
    assert "| 900 MB | 1 GB: holds |" in page
    assert page.count("### scaling") == page.count("### memory") == 1
