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
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import emulator
import numpy as np
import pytest
from fake_cupy import FakeCupy

import gpudedup
from gpudedup.backends.cuda import program
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.backends.cuda.device import DeviceArray

# One worker rehearses once for all tests here.
pytestmark = pytest.mark.xdist_group("gpu_check")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STAGES = [
    *("environment", "build", "probe", "ceilings", "kernels", "tests", "match", "job", "nvtext"),
    *("sanitizer memcheck", "sweep", "sanitizer racecheck", "sanitizer initcheck", "sanitizer synccheck"),
    *("profile", "bars"),
]
SUITES = ("ceilings", "kernels", "job", "match", "nvtext", "sweep")
CASES = {
    "ceilings": ["copy on the device", "pinned copy up", "pinned copy down", "pinned copies both ways", "lanes"],
    "kernels": [
        *(f"{kind}: {kernel}" for kind in ("english, 2 kB", "chinese, 2 kB", "english, 70 bytes")
          for kernel in ("measure_words", "find_words", "hash_units", "sign_lanes", "band_keys", "text on the device")),
        *("english, 2 kB, hashes kept: pack_shingles", "english, 2 kB: pinned host memory to band keys"),
        *("english, 2 kB: pinned host memory to lanes", "intersections of", "verify exact, sets of 70 values, cpu"),
        "verify exact, sets of 70 values, cuda",
    ],
    "job": [
        *(f"Arrow in memory to mask, {device}" for device in ("cpu", "first, with loops to compile, cuda", "cuda")),
        *("readers alone", "Parquet to mask, cuda", "writers alone", "Parquet to kept, cuda", "Parquet to mask, cpu"),
    ],
    "match": ["match, verify by signature and decide"],
    "nvtext": [
        *(f"english, 2 kB, char:24, 260 lanes: {kernel}" for kernel in ("find_chars", "sign_lanes", "text on the")),
        "english, 2 kB, char:24, 260 lanes: libcudf nvtext.minhash",
    ],
    "sweep": [
        *(f"first job of a process, {device}" for device in ("cpu", "cuda")),
        *(f"{point}, {device}" for point in ("text 100", "document 20", "language mixed", "lanes 1024", "copies 0.9",
          "batch 67108864") for device in ("cpu", "cuda")),
    ],
}  # fmt: skip
NCU_CSV = """==PROF== Connected
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","measure_words(const unsigned char *)","GPU Speed Of Light Throughput","Duration","us","12.5"
"0","measure_words(const unsigned char *)","GPU Speed Of Light Throughput","Memory Throughput","%","40"
"""

# What pylibcudf and rmm are asked for. Its lanes are not those of the definition, and that must show.
LIBCUDF = {
    "pylibcudf/_version.py": '__version__ = "of a test"',
    "pylibcudf/__init__.py": """
class Column:
    @staticmethod
    def from_arrow(values, *, stream):
        return values
""",
    "pylibcudf/nvtext/__init__.py": "",
    "pylibcudf/nvtext/minhash.py": """
import pyarrow as pa
class Lanes:
    def __init__(self, rows): self.rows = rows
    def to_arrow(self, *, stream): return pa.array(self.rows, pa.list_(pa.uint32()))
def minhash(texts, seed, a, b, width, *, stream):
    assert (width, len(a), a.type, len(b)) == (24, 260, pa.uint32(), 260) and texts.type == pa.string()
    return Lanes([[seed] * 260] * len(texts))
""",
    "rmm/__init__.py": "def reinitialize(*, pool_allocator): assert pool_allocator",
    "rmm/pylibrmm/__init__.py": "",
    "rmm/pylibrmm/stream.py": """
class Stream:
    def synchronize(self): pass
DEFAULT_STREAM = Stream()
""",
}


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
    libcudf = tmp_path_factory.mktemp("libcudf")
    for name, body in LIBCUDF.items():
        path = libcudf / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(body)
    csv = folder / "figures.csv"
    csv.write_text(NCU_CSV)
    stand_in(folder, "ncu", f'while [ "$1" != --log-file ]; do shift; done; cp "{csv}" "$2"')
    out = tmp_path_factory.mktemp("out")
    before, tree = listing(RESULTS), set(ROOT.iterdir())
    done = check(folder, "--rehearse", out, GPUDEDUP_NVTEXT=str(libcudf))
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
        assert {"date", "seed", "scale"} <= result.keys()
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
            whole = [case for case in result["cases"] if "alone" not in case["case"]]
            assert all(case["removed"] > 0 and case["stages"] for case in whole)


def test_libcudf_is_measured_beside_ours(rehearsal: Rehearsal) -> None:
    out, *_ = rehearsal
    [path] = out.glob("*-gpu-nvtext.json")
    *ours, peer = json.loads(path.read_text())["cases"]
    assert peer["version"] == "of a test"
    assert peer["as_documented"] is False
    [mine] = [case for case in ours if case["case"].endswith("signatures there")]
    rate = "gigabytes_of_text_per_second"
    assert mine["predicted_seconds"] > 0
    assert peer["our_speed_over_it"] == pytest.approx(mine[rate] / peer[rate])


def test_lanes_of_libcudf_are_checked_by_their_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """By published values of MurmurHash3_x86_32, and lanes that are plain to see."""
    monkeypatch.syspath_prepend(ROOT / "gpudedup" / "bench" / "peers" / "programs")
    import nvtext_minhash

    known = {(b"", 0): 0, (b"", 1): 0x514E28B7, (b"hello", 0): 0x248BFA47, (b"hello, world", 0): 0x149BBB7F}
    assert {given: nvtext_minhash.murmur3(*given) for given in known} == known
    hashes = [nvtext_minhash.murmur3(run, nvtext_minhash.SEED) for run in (b"ab", b"bc")]
    assert nvtext_minhash.defined("abc", 2, [1, 0], [0, 7]) == [min(hashes), 7]


def test_every_bar_has_a_row(rehearsal: Rehearsal, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a figure where a rehearsal is large enough for the case that the bar names; and none is called measured."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_report

    out, done, _ = rehearsal
    model = json.loads(gpu_report.PREDICTED.read_text())
    rows = dict(re.findall(r"^\| (.*?) \| .* \| (.*?) \| [^|]* \|$", gpu_report.render(out, model), re.M))
    named = {bar.what: rows[bar.what] for bar in gpu_report.BARS}
    small = {bar.what for bar in gpu_report.BARS if "10^8" in bar.what or "600" in bar.what}
    assert {what for what, figure in named.items() if figure == gpu_report.NOT_MEASURED} == small
    assert all(figure.endswith(", rehearsed") for what, figure in named.items() if what not in small)
    assert all(what in done.stdout for what in named)
    assert "no figures of a GPU" in gpu_report.render(out, model)
    assert "signatures of libcudf of a test **are not** as it documents them" in gpu_report.render(out, model)


def test_what_is_left(rehearsal: Rehearsal) -> None:
    out, *_ = rehearsal
    files = list(out.iterdir())
    assert len(files) <= 8
    assert all(path.is_file() and path.stat().st_size < 16 << 20 for path in files)
    log = (out / "log.txt").read_text()
    assert all(f"\n==== {stage}\n" in log for stage in STAGES)


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
    assert rows["job"] == (124, "FAILED: took too long")
    assert rows["sweep"][0] == 0


def test_corpora_do_not_outlive_a_failure(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    job = """*"bench_gpu.py job"*) mkdir -p "$GPUDEDUP_BENCH_DIR"; echo text >"$GPUDEDUP_BENCH_DIR/corpus"; exit 3 ;;"""
    left = """*"bench_gpu.py sweep"*) [ ! -e "$GPUDEDUP_BENCH_DIR/corpus" ] || exit 4 ;;"""
    stand_in(tools, "python3", f'case "$*" in {job} {left} *gpudedup._cpu*) echo "$PYTHONPATH" ;; esac')
    stand_in(tools, "nvidia-smi", "")
    rows = rows_of_table(check(tools, tmp_path / "out", "job", "sweep").stdout)
    assert rows["job"] == (3, "FAILED")
    assert rows["sweep"] == (0, "passed")


def test_the_time_of_all_is_bounded(tmp_path: Path) -> None:
    """Nine seconds for all: kernels take what is left of them, and what was recorded by then stays."""
    tools, out = tmp_path / "tools", tmp_path / "out"
    tools.mkdir()
    job, build = (
        f'*"bench_gpu.py kernels"*) echo "{{}}" >"{out}/figures.json"; sleep 60 ;;',
        '*gpudedup._cpu*) echo "$PYTHONPATH" ;;',
    )
    stand_in(tools, "python3", f'case "$*" in {job} {build} esac')
    stand_in(tools, "nvidia-smi", "")
    begin = time.monotonic()
    done = check(tools, out, GPUDEDUP_CHECK_SECONDS="9")
    assert time.monotonic() - begin < 20
    rows = rows_of_table(done.stdout)
    assert rows["probe"] == (0, "passed")
    assert {rows[name] for name in STAGES[STAGES.index("kernels") :]} == {(77, "no time left")}
    assert (out / "figures.json").exists()
    assert done.returncode == 0


def test_chosen_stages_run_alone(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    stand_in(tools, "python3", 'case "$*" in *gpudedup._cpu*) echo "$PYTHONPATH" ;; esac')
    stand_in(tools, "nvidia-smi", "")
    done = check(tools, tmp_path / "out", "kernels", "sanitizer m")
    assert list(rows_of_table(done.stdout)) == ["environment", "build", "kernels", "sanitizer memcheck"]


class EmulatingCupy(FakeCupy):
    """A stand-in for CuPy whose kernels run on the emulator, and whose events have times."""

    def __init__(self) -> None:
        super().__init__()
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
    import gpu_kernels
    import gpu_measure
    import gpu_target

    fake = EmulatingCupy().install(monkeypatch)
    for module in (gpu_kernels, gpu_measure):
        monkeypatch.setattr(module, "WARM_SECONDS", 0)
    assert not gpu_target.REHEARSAL
    target = gpu_target.open_target()
    assert isinstance(target, gpu_target.Gpu)
    sizes = gpu_measure.Sizes.that_fit(1 << 30, 1 << 30, 1 << 30, 2, gpu_measure.REHEARSED)
    ceilings, cases = gpu_kernels.measure_ceilings(target, sizes)
    assert [case["median_seconds"] for case in cases if "both" not in case["case"]] == [0.001] * 4
    assert ceilings.copy == 2 * sizes.copy_bytes / 0.001
    assert ceilings.lanes == 2 * 256 * 16 * 1024 / 0.001
    parts = gpu_kernels.kernels_suite(target, sizes, ceilings, math.inf)
    found = list(
        itertools.takewhile(lambda case: "verify exact" not in case["case"], parts)
    )  # its sorts are no stand-in's
    found += gpu_kernels.sign_kernels(target, sizes, ceilings, "english, 2 kB", keep=True)
    found.append(gpu_kernels.intersections(target, sizes, ceilings))
    launched = {call[1] for call in fake.calls if call[0] == "launchKernel"}
    assert {"lane_rate", "measure_words", "hash_units", "sign_lanes", "pack_shingles", "intersect_pairs"} <= launched
    measured = {case["case"].split(": ")[-1] for case in found}
    assert launched - {"lane_rate", "intersect_pairs"} <= measured, "every kernel of signing has a figure"


def test_kernels_are_queued_behind_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the spans of kernels are theirs and not those of launches: once before the first kernel of each take."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_target

    target = gpu_target.Rehearsal()
    occupied: list[Any] = []
    timed = gpu_target.Timed(target, occupied.append)
    stream = target.device.stream()
    counts = target.device.alloc(8, np.uint32)
    begins = target.device.alloc(9, np.uint32)
    for _ in range(2):
        timed.fill(begins, 0, stream)
        for _ in range(3):
            timed.launch("count_shingles", 1, 32, [begins, np.uint32(8), np.uint32(5), counts], stream)
        found = timed.take()
        assert found.keys() == timed.queued.keys() == {"fill", "count_shingles", "all"}
        assert 0 < timed.queued["all"] == timed.queued["count_shingles"]
    assert occupied == [stream] * 2


def rehearsed_sizes(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Any]:
    """A target, sizes and ceilings."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_measure
    import gpu_target

    sizes = gpu_measure.Sizes.that_fit(1 << 30, 1 << 30, 1 << 30, 2, gpu_measure.REHEARSED)
    return gpu_target.Rehearsal(), sizes, gpu_measure.Ceilings(1e9, 1e9, 1e9, 1e9)


@pytest.mark.parametrize("fault", ["keys", "mask", None])
def test_a_wrong_job_is_no_case_of_the_sweep(fault: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys of documents that are swapped, or another row kept."""
    target, *_ = rehearsed_sizes(monkeypatch)
    import gpu_sweep

    signed, deduplicate = gpu_sweep.signed, gpudedup.deduplicate

    def planted_keys(backend: Any, parts: Any) -> Iterator[Any]:
        for each in signed(backend, parts):
            swapped = fault == "keys" and isinstance(backend, CudaBackend)
            yield replace(each, band_keys=each.band_keys[:, ::-1]) if swapped else each

    def planted_mask(table: Any, *, device: str, **more: Any) -> Any:
        swapped = fault == "mask" and device == "cuda"
        return deduplicate(table.take(list(range(len(table)))[::-1]) if swapped else table, device="cpu", **more)

    monkeypatch.setattr(gpu_sweep, "signed", planted_keys)
    monkeypatch.setattr(gpu_sweep, "gpudedup", types.SimpleNamespace(deduplicate=planted_mask))
    cases = gpu_sweep.measured(target, "text", 20_000, gpu_sweep.Point(20_000, document_bytes=200))
    if fault is None:
        assert [case["device"] for case in cases] == ["cpu", "cuda"]
    else:
        with pytest.raises(AssertionError, match={"keys": "other band keys", "mask": "other rows"}[fault]):
            next(cases)


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_wrong_decision_is_no_case_of_match(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    target, sizes, ceilings = rehearsed_sizes(monkeypatch)
    import gpu_jobs

    decided = gpu_jobs.decided

    def planted(signed: Any, params: Any, backend: Any) -> Any:
        found, stages = decided(signed, params, backend)
        if signed.rows == sizes.documents[wrong] and isinstance(backend, CudaBackend):
            found = replace(found, reason=found.reason + 1)
        return found, stages

    monkeypatch.setattr(gpu_jobs, "decided", planted)
    cases = gpu_jobs.match_suite(target, sizes, ceilings, math.inf)
    assert [next(cases)["documents"] for _ in range(2 * wrong)] == [sizes.documents[0]] * 2 * wrong
    with pytest.raises(AssertionError, match="reason"):
        next(cases)
    monkeypatch.setattr(gpu_jobs, "decided", decided)
    cases = gpu_jobs.match_suite(target, sizes, ceilings, math.inf)
    for count, (slower, found) in zip(sizes.documents, zip(cases, cases, strict=True), strict=True):
        assert slower["documents"] == found["documents"] == count
        assert 18 * 8 * count < found["floor_seconds"] * ceilings.up < (18 * 8 + 4 * 128) * count


def test_a_part_that_fails_keeps_no_other_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_measure

    def failing() -> Iterator[dict[str, Any]]:
        yield {"case": "before"}
        raise AssertionError("planted")

    cases = gpu_measure.one_by_one([failing, lambda: [{"case": "after"}]], math.inf)
    assert [next(cases)["case"], next(cases)["case"]] == ["before", "after"]
    with pytest.raises(SystemExit, match="1 failed"):
        next(cases)
    assert "AssertionError: planted" in capsys.readouterr().err
    assert list(gpu_measure.one_by_one([failing], 0.0)) == []


@pytest.mark.parametrize("free", [6, 22, 79, 139])
@pytest.mark.parametrize("scale", [1.0, 0.125])
def test_sizes_fit(free: int, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In GiB of the GPU; the machine has as much. Bytes that each suite has on the device, and in memory, at a time."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_measure

    room = free << 30
    sizes = gpu_measure.Sizes.that_fit(room, room, 64 << 30, 16, scale)
    copies = gpu_measure.SETS * (2 * sizes.copy_bytes + sizes.pinned_bytes)
    pairs = sizes.sets * (4 * sizes.set_size + 12) + sizes.pairs * (8 * gpu_measure.SETS + 4)
    making_sets = sizes.sets * sizes.set_size * (8 + 4 + 8 + 4 + 4)  # keys, distinct, before, places, values
    documents = max(sizes.documents) * (4 * 128 + 18 * 16 + 100)  # lanes; slots, members and what a block takes
    assert max(copies, pairs, making_sets, documents) < room * 0.9
    assert max(sizes.documents) * (4 * 128 + 2 * 8 * 18 + 100) < 2 * room
    assert sizes.job_bytes < room / 4  # of text: with its hashes
    assert sizes.job_bytes * (0.67 + 0.6) < 64 << 30  # Parquet, and what is kept of it
    if free > 110 and scale == 1:
        assert sizes.documents == (10**6, 10**8)
        assert sizes.job_bytes == 20 * 10**9
        assert sizes.pairs == 10**7


def test_no_figures_of_a_rehearsal_among_results(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "bench_gpu.py"), "ceilings", "--results", str(RESULTS)]
    own = {**os.environ, "GPUDEDUP_REHEARSE": "1", "NUMBA_DISABLE_JIT": "1"}
    before = listing(RESULTS)
    done = subprocess.run(command, env=own, capture_output=True, text=True)
    assert done.returncode != 0
    assert "do not belong into benchmarks/results" in done.stderr
    assert listing(RESULTS) == before
