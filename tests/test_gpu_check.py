"""tools/gpu_check.sh, rehearsed: every stage runs, figures say that they are none of a GPU, and failures count.

The tools of NVIDIA are stood in for by scripts of the same names, which note how they were called.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import emulator
import pytest
from fake_cupy import FakeCupy

from gpudedup.backends.cuda import program
from gpudedup.backends.cuda.device import DeviceArray

# One worker rehearses once for all tests here.
pytestmark = pytest.mark.xdist_group("gpu_check")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STAGES = [
    *("environment", "build", "probe", "tests"),
    *(f"sanitizer {tool}" for tool in ("memcheck", "racecheck", "initcheck", "synccheck")),
    *("ceilings", "kernels", "end to end", "match", "profile (ncu)"),
]
SUITES = ("ceilings", "kernels", "job", "match")
CASES = {
    "ceilings": ["copy on the device", "pinned copy up", "pinned copy down", "pinned copies both ways", "lanes"],
    "kernels": [
        *(f"{kind}: {kernel}" for kind in ("english, 2 kB", "chinese, 2 kB", "english, 70 bytes")
          for kernel in ("measure_words", "find_words", "hash_units", "sign_lanes", "band_keys", "text on the device")),
        *("english, 2 kB, hashes kept: pack_shingles", "english, 2 kB: pinned host memory to band keys"),
        *("english, 2 kB: pinned host memory to lanes", "intersections of"),
    ],
    "job": [f"{way} to mask, {device}" for way in ("Arrow in memory", "Parquet") for device in ("cpu", "cuda")],
    "match": ["match, verify by signature and decide"],
}  # fmt: skip
NCU_CSV = """==PROF== Connected
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","measure_words(const unsigned char *)","GPU Speed Of Light Throughput","Duration","us","12.5"
"0","measure_words(const unsigned char *)","GPU Speed Of Light Throughput","Memory Throughput","%","40"
"""


def stand_in(folder: Path, name: str, body: str, shell: str = "sh") -> None:
    """A script of this name that notes its arguments in calls.txt and goes on with ``body``."""
    path = folder / name
    path.write_text(f'#!/usr/bin/env {shell}\necho "{name} $*" >>"{folder}/calls.txt"\n{body}\n')
    path.chmod(0o755)


def check(bin_folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    hidden = ("GPUDEDUP_", "PYTEST_", "PYTHONPATH", "LD_PRELOAD")
    own = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    python = Path(sys.executable).parent  # python3 is the one that runs this
    path = f"{bin_folder}:{python}:{os.environ['PATH']}"
    command = ["bash", str(ROOT / "tools" / "gpu_check.sh"), *map(str, arguments)]
    return subprocess.run(
        command, env={**own, "PATH": path, **environment}, capture_output=True, text=True, timeout=600
    )


def rows_of_table(text: str) -> dict[str, tuple[int, str]]:
    """(status, verdict) by stage, from the table at the end."""
    rows = re.findall(r"^(\S.*?) +rc (\d+) +\d+ s of \d+ +(.*)$", text, re.M)
    return {name: (int(status), verdict) for name, status, verdict in rows}


def listing(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str], Path]:
    folder = tmp_path_factory.mktemp("tools")
    stand_in(folder, "nvidia-smi", "echo a GPU that is none")
    # memcheck runs what it is given; racecheck finds something; initcheck is refused; synccheck is content.
    stand_in(
        folder,
        "compute-sanitizer",
        """case "$2" in
        memcheck) while [ "$1" != python3 ]; do shift; done; exec "$@" ;;
        racecheck) echo "========= Error: Potential RAW hazard"; exit 9 ;;
        initcheck) echo "========= Error: Device not supported"; exit 1 ;;
        esac""",
    )
    csv = folder / "figures.csv"
    csv.write_text(NCU_CSV)
    stand_in(folder, "ncu", f'while [ "$1" != --log-file ]; do shift; done; cp "{csv}" "$2"')
    out = tmp_path_factory.mktemp("out")
    before, tree = listing(RESULTS), set(ROOT.iterdir())
    done = check(folder, "--rehearse", out)
    assert listing(RESULTS) == before
    assert set(ROOT.iterdir()) == tree
    return out, done, folder


Rehearsal = tuple[Path, subprocess.CompletedProcess[str], Path]


def test_every_stage_runs_and_failures_count(rehearsal: Rehearsal) -> None:
    _, done, _ = rehearsal
    rows = rows_of_table(done.stdout)
    assert list(rows) == STAGES
    failed = [name for name, (status, _) in rows.items() if status not in (0, 77)]
    assert failed == ["sanitizer racecheck"], done.stdout + done.stderr
    assert rows["sanitizer initcheck"] == (77, "not possible here")
    assert done.returncode == 1
    assert "Potential RAW hazard" in done.stdout
    assert "no figure above is one of a GPU" in done.stdout


def test_what_tools_are_asked(rehearsal: Rehearsal) -> None:
    *_, folder = rehearsal
    calls = (folder / "calls.txt").read_text()
    for tool in ("memcheck", "racecheck", "initcheck", "synccheck"):
        assert f"compute-sanitizer --tool {tool} --error-exitcode 9" in calls
    assert "ncu --clock-control none" in calls


def test_figures_are_complete_and_marked(rehearsal: Rehearsal) -> None:
    out, done, _ = rehearsal
    assert "measure_words; Duration 12.5 us; Memory Throughput 40 %" in done.stdout
    found = {json.loads(path.read_text())["suite"]: path for path in out.glob("*.json")}
    assert sorted(found) == sorted(f"gpu-{suite}" for suite in SUITES)
    for suite in SUITES:
        path = found[f"gpu-{suite}"]
        assert path.name.startswith("emulated-")
        result = json.loads(path.read_text())
        assert result["emulated"] is True
        assert result["machine"]["gpu"] == "emulated"
        machine = {"gpu_memory_gigabytes", "driver", "cuda", "cupy", "nvrtc", "numba_cuda", "commit", "cpu", "cores"}
        assert machine <= result["machine"].keys()
        assert {"date", "seed", "quick"} <= result.keys()
        assert set(result["ceilings"]) == {"copy", "up", "down", "lanes"}
        assert min(result["ceilings"].values()) > 0
        names = [case["case"] for case in result["cases"]]
        for start in CASES[suite]:
            assert any(name.startswith(start) for name in names), start
        for case in result["cases"]:
            assert 0 < case["min_seconds"] <= case["median_seconds"] <= case["max_seconds"]
            assert case["rounds"] > 0
            if case["floor_seconds"] is not None:
                assert case["share_of_floor"] == pytest.approx(case["floor_seconds"] / case["median_seconds"])
        if suite in ("job", "match"):
            assert all(case["removed"] > 0 and case["stages"] for case in result["cases"])


def test_what_is_left(rehearsal: Rehearsal) -> None:
    out, *_ = rehearsal
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(path.is_file() and path.stat().st_size < 16 << 20 for path in files)
    log = (out / "log.txt").read_text()
    assert all(f"==== {stage} (" in log for stage in STAGES)


@pytest.mark.parametrize("planted", ["-m pip", "info", "-m pytest", "bench_gpu.py kernels"])
def test_a_failure_ends_nothing(planted: str, tmp_path: Path) -> None:
    """Without a GPU and with a python3 that does nothing but fail at one stage."""
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    planting, build = f'*"{planted}"*) echo planted; exit 3 ;;', '*gpudedup._cpu*) echo "$PYTHONPATH" ;;'
    stand_in(tools, "python3", f'case "$*" in {planting} {build} esac')
    stand_in(tools, "nvidia-smi", "")
    done = check(tools, out)
    rows = rows_of_table(done.stdout)
    assert list(rows) == STAGES
    failed = [name for name, (status, _) in rows.items() if status not in (0, 77)]
    stage = {"-m pip": "build", "info": "probe", "-m pytest": "tests", "bench_gpu.py kernels": "kernels"}[planted]
    assert failed == [stage], done.stdout
    assert rows[stage] == (3, "FAILED")
    assert done.returncode == 1
    assert "bench_gpu.py match" in (tools / "calls.txt").read_text()
    limits = [int(limit) for limit in re.findall(r" s of (\d+)", done.stdout)]
    assert len(limits) == len(STAGES)
    assert sum(limits) < 580, "ten minutes in all, with what ending a stage takes"


@pytest.mark.parametrize(("said", "status"), [("9 passed in 1.0s", 0), ("9 passed, 1 skipped in 1.0s", 1)])
def test_a_skipped_test_is_a_failure(said: str, status: int, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    tests, build = f'*"-m gpu"*) echo "{said}" ;;', '*gpudedup._cpu*) echo "$PYTHONPATH" ;;'
    stand_in(tools, "python3", f'case "$*" in {tests} {build} esac')
    stand_in(tools, "nvidia-smi", "")
    done = check(tools, tmp_path / "out")
    assert rows_of_table(done.stdout)["tests"][0] == status
    assert done.returncode == status


def test_a_stage_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    """The build is given a minute; here by a `timeout` that gives a second."""
    tools = tmp_path / "tools"
    tools.mkdir()
    timeout = shutil.which("timeout")
    stand_in(tools, "timeout", f'after=$1; shift 2; exec {timeout} "$after" 1 "$@"', "bash")  # passes functions on
    job, build = '*"bench_gpu.py job"*) sleep 30 ;;', '*gpudedup._cpu*) echo "$PYTHONPATH" ;;'
    stand_in(tools, "python3", f'case "$*" in {job} {build} esac')
    stand_in(tools, "nvidia-smi", "")
    rows = rows_of_table(check(tools, tmp_path / "out").stdout)
    assert rows["end to end"] == (124, "FAILED: took too long")
    assert rows["match"][0] == 0


class EmulatingCupy(FakeCupy):
    """A stand-in for CuPy whose kernels run on the emulator, and whose events have times."""

    def __init__(self) -> None:
        super().__init__()
        self.cuda.runtime.memcpyDeviceToDevice = 3
        ticks = itertools.count()
        self.cuda.Event.record = lambda event, stream: setattr(event, "time", next(ticks))
        self.cuda.get_elapsed_time = lambda begin, end: float(end.time - begin.time)  # milliseconds

    def RawModule(self, *, code: str, options: tuple[str, ...] = ()) -> Any:  # noqa: N802
        built = emulator.kernels() if code == program.translation_unit() else emulator.build(code)

        def get_function(name: str) -> Any:
            parameters = built.signatures[name].parameters

            def kernel(grid: tuple[int], block: tuple[int], args: tuple[Any, ...]) -> None:
                self.calls.append(("launchKernel", name))
                values = [
                    DeviceArray(int(arg), each.dtype, 0, None) if each.pointer else arg
                    for each, arg in zip(parameters, args, strict=True)
                ]
                built.launch(name, grid[0], block[0], values)

            return kernel

        return types.SimpleNamespace(get_function=get_function)


def test_measuring_through_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a rehearsal leaves out: the way of marks, copies and kernels through CuPy, as far as a stand-in can tell."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench_gpu
    import gpu_target

    fake = EmulatingCupy().install(monkeypatch)
    monkeypatch.setattr(bench_gpu, "WARM_SECONDS", 0)
    assert not gpu_target.REHEARSAL
    target = gpu_target.open_target()
    assert isinstance(target, gpu_target.Gpu)
    sizes = bench_gpu.Sizes(2, 1 << 14, 1 << 14, 2, 12_000, 2, 40, 16, 70, 0.1, (150,))
    ceilings, cases = bench_gpu.measure_ceilings(target, sizes)
    assert [case["median_seconds"] for case in cases if "both" not in case["case"]] == [0.001] * 4
    assert ceilings.copy == 2 * sizes.copy_bytes / 0.001
    assert ceilings.lanes == 2 * 256 * 16 * 1024 / 0.001
    found = list(bench_gpu.kernels_suite(target, sizes, ceilings, math.inf))
    launched = {call[1] for call in fake.calls if call[0] == "launchKernel"}
    assert {"lane_rate", "measure_words", "hash_units", "sign_lanes", "pack_shingles", "intersect_pairs"} <= launched
    measured = {case["case"].split(": ")[-1] for case in found}
    assert launched - {"lane_rate", "intersect_pairs"} <= measured, "every kernel of signing has a figure"


@pytest.mark.parametrize("free", [6, 22, 79, 139])
@pytest.mark.parametrize("quick", [False, True])
def test_sizes_fit(free: int, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In GiB of the GPU; the machine has twice as much. Bytes that each suite has on the device at a time."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import bench_gpu

    sizes = bench_gpu.Sizes.that_fit(free << 30, 2 * free << 30, 16, quick)
    copies = bench_gpu.SETS * (2 * sizes.copy_bytes + sizes.pinned_bytes)
    pairs = sizes.sets * (4 * sizes.set_size + 12) + sizes.pairs * (8 * bench_gpu.SETS + 4)
    documents = max(sizes.documents) * (4 * 128 + 18 * 16 + 100)  # lanes; slots, members and what a block takes
    assert max(copies, pairs, documents) < (free << 30) * 0.9
    assert max(sizes.documents) * (4 * 128 + 2 * 8 * 18 + 100) < 2 * (free << 30)
    assert sizes.documents[-1] >= (10**6 if quick else 10**8 if free > 110 else 5 * 10**6)


def test_no_figures_of_a_rehearsal_among_results(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py"), "ceilings", "--results", str(RESULTS)]
    own = {**os.environ, "GPUDEDUP_REHEARSE": "1", "NUMBA_DISABLE_JIT": "1"}
    before = listing(RESULTS)
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode != 0
    assert "do not belong into benchmarks/results" in done.stderr
    assert listing(RESULTS) == before
