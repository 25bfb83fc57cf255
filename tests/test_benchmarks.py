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

import gpu_report  # noqa: E402
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


def gpu_result(suite: str, cases: list[dict[str, Any]]) -> dict[str, Any]:
    names = "gpu gpu_memory_gigabytes driver cupy numba_cuda cpu cores memory_gigabytes commit kernels"
    return {
        "suite": f"gpu-{suite}",
        "date": "2026-01-01",
        "emulated": False,
        "seed": 1,
        "scale": 1.0,
        "machine": dict.fromkeys(names.split(), "planted"),
        "cases": [{**TIMED, **case} for case in cases],
    }


TIMED = {"median_seconds": 1.0, "floor_seconds": None, "share_of_floor": None}


def test_bars_of_a_gpu(tmp_path: Path) -> None:
    """One that holds, one that misses, one of too small a corpus, one of no case: planted figures, of no machine."""
    kernels = [
        {"case": f"english, 2 kB: {gpu_report.ALL}", gpu_report.RATE: 101.0},
        {"case": f"chinese, 2 kB: {gpu_report.ALL}", gpu_report.RATE: 49.0},
    ]
    job = [{"case": "Arrow in memory to mask, cuda", gpu_report.RATE: 9.0, "text_bytes": 4e9}]
    match = [{"case": f"{bar.case}", "median_seconds": 9.0, "documents": 1e8} for bar in gpu_report.BARS if bar.falling]
    for suite, cases in (("kernels", kernels), ("job", job), ("match", match)):
        path = tmp_path / f"planted-2026-01-01-gpu-{suite}.json"
        path.write_text(json.dumps(gpu_result(suite, cases)))
    model = json.loads(gpu_report.PREDICTED.read_text())
    for path, commit in zip(sorted(tmp_path.iterdir()), ("of job", "of kernels", "of match"), strict=True):
        result = json.loads(path.read_text())
        result["machine"]["commit"] = commit
        path.write_text(json.dumps(result))
    page = gpu_report.render(tmp_path, model)
    sections = dict(part.split("\n", 1) for part in page.split("### ")[1:])
    assert "commit of kernels" in sections["Kernels"]
    assert "commit of job" in sections["Whole jobs"]
    assert "commit of match" in sections["Signatures to decisions"]
    english = 1e-9 / model["seconds_per_byte"]["english, 2 kB"]["all"]
    assert f"128 lanes, english, 2 kB | 100 GB/s | 300 GB/s | 101 GB/s: holds | {english:.3g} GB/s |" in page
    assert "128 lanes, chinese, 2 kB | 50 GB/s | 150 GB/s | 49 GB/s: **misses**" in page
    assert "| 9 GB/s, but of 4e+09 text bytes only |" in page
    assert "10^8 signatures | 10 s | 2 s | 9 s: holds |" in page
    assert f"nvtext.minhash, char:24, 260 lanes | 5 times | 20 times | {gpu_report.NOT_MEASURED} |" in page
    peer = {"case": "english, 2 kB, char:24, 260 lanes: libcudf", "our_speed_over_it": 6.0, "version": "0"}
    results = {"nvtext": gpu_result("nvtext", [{**peer, "as_documented": False}])}
    assert "| 6 times: holds, of signatures that are not as documented |" in gpu_report.bars(results, model)


def test_where_a_gpu_is_worth_its_start() -> None:
    """2 s more to begin; then 1 s of the GPU does what takes 16 workers 5 s: worth it from half of the text on."""
    text = {"axis": "text", "value": 10**9, "text_bytes": 10**9, "workers": 16, "signing_gigabytes_per_second": 1.0}
    cases = [
        {"axis": "start", "device": "cpu", "median_seconds": 0.5},
        {"axis": "start", "device": "cuda", "median_seconds": 2.5},
        {**text, "device": "cpu", "median_seconds": 5.0},
        {**text, "device": "cuda", "median_seconds": 1.0},
    ]
    page = gpu_report.sweeps(gpu_result("sweep", cases))
    assert "takes 2 s more on the GPU" in page
    assert "from 500 MB on,\n31 MB for each of 16 workers" in page
    assert "| text | 1,000,000,000 | 1000 | 5000 | 5 | 1 | 1 |" in page
    slower = [{**case, "median_seconds": 9.0} if case["device"] == "cuda" else case for case in cases]
    assert "worth it nowhere" in gpu_report.sweeps(gpu_result("sweep", slower))
    sooner = [{"axis": "start", "device": "cuda", "median_seconds": 0.25}, cases[0], *cases[2:]]
    page = gpu_report.sweeps(gpu_result("sweep", sooner))
    assert "takes 0.25 s less on the GPU than on the CPU, and of the largest text the GPU is the quicker one" in page
    assert "MB on" not in page
