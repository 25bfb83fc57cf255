"""`gpudedup bench`: its clock, its records, its corpora and its suites. No speed is judged here."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from gpudedup.bench.measure import Finished, Work, measure, run_process
from gpudedup.bench.record import FORMAT, Record, Spread, Text, new_record, read_records, to_line, write_records
from gpudedup.errors import BenchmarkError, DeviceError, InputError, OutputError

HERE = Path(__file__).resolve().parent

# -------------------------------------------------------------------------------------------------------------- records


def record(**fields: Any) -> Record:
    own: dict[str, Any] = {"suite": "signatures", "case": "english", "device": "cpu (avx2)", "seed": 1}
    return new_record(**{**own, "figures": {"text_megabytes_per_second": 12.5}, **fields})


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    full = record(
        seconds=Spread.of([3.0, 1.0, 2.5]),
        cpu_seconds=2.0,
        peak_bytes=1 << 30,
        corpus=Text(name="mixed", documents=10, text_bytes=1000),
        parameters={"threshold": 0.8, "output": "mask", "workers": None},
        curves={"similarity": [0.5, 0.6], "recall": [0.1, 0.9]},
        repeats=3,
        clock="the call",
        checked="against the oracle \u202e",
    )
    none = record(case="japanese", figures={}, cannot="no GPU")
    write_records(tmp_path / "results.jsonl", [full, none])
    assert read_records(tmp_path / "results.jsonl") == [full, none]
    text = (tmp_path / "results.jsonl").read_text()
    assert text.isascii()
    assert text.count("\n") == 2
    assert json.loads(text.splitlines()[0])["format"] == FORMAT
    assert full.seconds == Spread(median=2.5, least=1.0, most=3.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"figures": {"a": math.nan}}, "finite"),
        ({"curves": {"x": [math.inf]}}, "finite"),
        ({"curves": {"x": [1.0], "y": []}}, "equal length"),
        ({"figures": {}}, "neither figures nor a reason"),
        ({"load": math.nan}, "finite"),
    ],
)
def test_a_record_holds_nothing_senseless(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(**fields)


def changed(**fields: Any) -> bytes:
    return json.dumps({**record().asdict(), **fields}).encode()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"\x00\xff" * 50, "line 1, is no result"),
        (b"PAR1 and so on", "line 1, is no result"),
        (b"[" * 100_000, "line 1, is no result"),
        (b'{"format": 1}', "line 1, is no result"),
        (b'{"format": 1, "suite": 5}', "line 1, is no result"),
        (changed(suite=None), "line 1, is no result"),
        (changed(more=1), "line 1, is no result"),
        (changed(figures={"a": "12"}), "line 1, is no result"),
        (changed(figures={"a": 10}, seconds={"median": 1, "least": 2, "most": 3}), "line 1, is no result"),
        (changed() + b"\n{", "line 2, is no result"),
        (changed(figures={"a": 1}).replace(b'"a": 1', b'"a": 1e999'), "line 1, is no result"),
        (changed(figures={"a": 1}).replace(b'"a": 1', b'"a": NaN'), "line 1, is no result"),
        (changed(format=FORMAT + 1, more={"new": []}), "use another gpudedup"),
    ],
    ids=itertools.count(),  # records have the time in them, and all workers must know a test by the same name
)
def test_what_is_no_result_is_one_line(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(data)
    with pytest.raises(InputError, match=message) as raised:
        read_records(file)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000


def test_results_that_are_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_records(path)


def test_results_on_a_full_disk() -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_records(Path("/proc/results.jsonl"), [record()])


def test_a_line_carries_no_control_character() -> None:
    line = to_line(record(cannot="\x1b[2J\x7f\u2028", figures={}))
    assert line.isprintable()


# ------------------------------------------------------------------------------------------------------------ processes

MEGABYTES = 200


def python(code: str, **options: Any) -> Finished:
    return run_process([sys.executable, "-c", code], **options)


def test_a_process_is_measured_with_its_children() -> None:
    """One child of 200 MB that burns 0.4 s of a core, beside 200 MB of its own."""
    hold = f"held = b'x' * {MEGABYTES}000000"
    child = f"import time; {hold}\nwhile time.process_time() < 0.4: pass"
    code = f"import subprocess, sys; {hold}; subprocess.run([sys.executable, '-c', {child!r}]); print('done')"
    done = python(code)
    assert (done.code, done.output, done.errors) == (0, b"done\n", "")
    assert 0.4 < done.cpu_seconds < 5
    assert done.seconds >= 0.4
    assert 2 * MEGABYTES * 1e6 < done.peak_bytes() < 2 * MEGABYTES * 1e6 + 150e6


def test_what_forks_share_is_counted_once() -> None:
    hold = f"held = b'x' * {MEGABYTES}000000"
    done = python(f"import os, time; {hold}; children = [os.fork() for _ in range(1)]; time.sleep(0.6)")
    assert MEGABYTES * 1e6 < done.peak_bytes() < MEGABYTES * 1e6 + 150e6


def test_memory_is_that_of_the_time_asked_about() -> None:
    code = (
        "import time; print(time.monotonic()); time.sleep(0.3); print(time.monotonic());"
        f"held = b'x' * {MEGABYTES}000000; time.sleep(0.3); print(time.monotonic())"
    )
    done = python(code)
    first, second, third = map(float, done.output.split())
    assert done.peak_bytes(first, second) < 100e6
    assert done.peak_bytes(second, third) > MEGABYTES * 1e6


def test_input_environment_and_errors_of_a_process() -> None:
    code = "import os, sys; print(sys.stdin.read() + os.environ['OWN']); sys.exit('it went\\nwrong')"
    done = python(code, given=b"given", environment={"OWN": "1"})
    assert (done.code, done.output, done.complaint) == (1, b"given1\n", "wrong")
    assert python("import os; os.abort()").complaint == "it was ended by SIGABRT"
    assert "memory" in python("import os; os.kill(os.getpid(), 9)").complaint


def test_no_child_outlives_a_process_or_its_time(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    orphan = (
        f"import subprocess, sys; p = subprocess.Popen(['sleep', '60']); open({str(note)!r}, 'w').write(str(p.pid))"
    )
    assert python(orphan).code == 0
    assert gone(int(note.read_text()))
    done = python(orphan + "; import time; time.sleep(60)", timeout=1)
    assert done.timed_out
    assert done.code == -signal.SIGKILL
    assert done.seconds < 20
    assert gone(int(note.read_text()))
    assert "stopped after" in done.complaint


def test_an_interrupted_call_leaves_no_process() -> None:
    """As Ctrl-C does: a handler raises in the main thread while it waits."""

    class Interrupted(BaseException):
        pass

    def interrupt(number: int, frame: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGUSR2, interrupt)
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGUSR2))
    try:
        timer.start()
        with pytest.raises(Interrupted):
            run_process(["sleep", "61.25"])
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR2, before)
    running = subprocess.run(["ps", "-A", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "sleep 61.25" not in running


def gone(pid: int) -> bool:
    """Whether a process has ended, or does within a second."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.01)
    return False


# ---------------------------------------------------------------------------------------------------------------- cases


def sleeping(fault: str = "", folder: str = "") -> Work:
    """A case of 50 ms, with the fault that is asked for."""
    runs = 0

    def run() -> int:
        nonlocal runs
        runs += 1
        print("noise of a library")
        time.sleep(0.5 if runs == 1 else 0.05)  # warming up takes long
        if fault == "device":
            raise DeviceError("no such device")
        if fault == "memory":
            raise MemoryError
        if fault == "input":
            raise InputError("no such file")
        if fault == "bug":
            raise ZeroDivisionError("of ours")
        if fault == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return runs if fault == "unstable" else 7

    def check(result: int) -> None:
        if fault == "wrong":
            raise BenchmarkError(f"{result} is not 8")

    return Work(run, str, check, lambda result: {"result_count": result, "run_count": runs})


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(HERE), prepend=os.pathsep)
    return "test_bench:sleeping"


def test_warm_up_is_outside_the_clock(case: str) -> None:
    found = measure(case, {}, repeat=3)
    assert not isinstance(found, str)
    assert found.repeats == 3
    assert 0.05 <= found.seconds.least <= found.seconds.median <= found.seconds.most
    assert found.seconds.median < 0.4
    assert found.figures == {"result_count": 7, "run_count": 3}  # runs 2, 3, 4
    assert found.cpu_seconds < 0.05
    assert 0 < found.peak_bytes < 1e9


def test_a_whole_process_counts_from_its_start(case: str) -> None:
    found = measure(case, {}, repeat=2, whole=True)
    assert not isinstance(found, str)
    assert found.repeats == 2
    assert found.seconds.least > 0.5  # each is a first run
    assert found.figures["run_count"] == 1
    assert measure(case, {"fault": "unstable"}, repeat=1, whole=True, warm_ups=1).repeats == 1  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fault", "reason"), [("device", "no such device"), ("memory", "memory"), ("killed", "SIGKILL")]
)
def test_a_case_that_cannot_run_here_says_why(case: str, fault: str, reason: str) -> None:
    found = measure(case, {"fault": fault}, repeat=1)
    assert isinstance(found, str)
    assert reason in found


@pytest.mark.parametrize(
    ("fault", "kind", "message"),
    [
        ("wrong", BenchmarkError, "7 is not 8"),
        ("unstable", BenchmarkError, "another result"),
        ("bug", BenchmarkError, "ZeroDivisionError: of ours"),
        ("input", InputError, "no such file"),
    ],
)
def test_a_wrong_result_is_no_figure(case: str, fault: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        measure(case, {"fault": fault}, repeat=2)
