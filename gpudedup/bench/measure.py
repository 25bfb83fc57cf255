"""A case in a process of its own: wall seconds, CPU seconds, peak memory, medians and spread.

A case is a function that gives a `Work`, named as "module:function". The process imports it, gets the work ready, runs
it once to warm up, checks that result, and then runs it under the clock; every result must have the fingerprint of the
one that was checked. Memory is watched from outside.
"""

from __future__ import annotations

import bisect
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any, BinaryIO

from gpudedup import errors
from gpudedup.bench.record import Spread
from gpudedup.errors import BenchmarkError, DeviceError, GpudedupError

WATCH_SECONDS = 0.005
"""Between two looks at the memory of a process: each takes some 50 microseconds of a core."""

FAMILY_LOOKS = 10
"""Looks between two searches for its children. With children a look goes through all their pages, and is as much
rarer."""

# ------------------------------------------------------------------------------------------------------------ processes


@dataclass(frozen=True)
class Finished:
    """A process that has ended, and what was seen of it."""

    code: int
    """Its exit code; minus the signal that ended it."""
    output: bytes
    errors: str
    seconds: float
    cpu_seconds: float
    """Of the process and of its children that it waited for."""
    timed_out: bool
    times: list[float]
    """time.monotonic() of each look at its memory."""
    memory: list[int]
    """Anonymous and shared memory of the process and its descendants at those times; what several have is one."""

    def peak_bytes(self, began: float = 0.0, ended: float = float("inf")) -> int:
        """The largest memory seen between two times."""
        seen = self.memory[bisect.bisect_left(self.times, began) : bisect.bisect_right(self.times, ended)]
        return max(seen, default=max(self.memory, default=0))

    @property
    def complaint(self) -> str:
        """Why it failed: the last line that it said, or the signal that ended it."""
        if self.timed_out:
            return f"it was stopped after {self.seconds:.0f} s"
        if self.code < 0:
            why = "; probably memory ran out" if self.code == -signal.SIGKILL else ""
            return f"it was ended by {signal.Signals(-self.code).name}{why}"
        lines = self.errors.strip().splitlines()
        return lines[-1][:500] if lines else f"it ended with exit code {self.code}"


def run_process(
    command: Sequence[str],
    *,
    given: bytes = b"",
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Finished:
    """Run a command to its end. ``given`` is its standard input, ``environment`` comes on top of this one's.

    It leads a process group, which is killed when it has ended, is out of time (seconds), or this call is interrupted:
    none of its children outlives it.
    """
    with _in_memory() as source, _in_memory() as output, _in_memory() as complaints:
        source.write(given)
        source.seek(0)
        own = {**os.environ, **(environment or {})}
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdin=source, stdout=output, stderr=complaints, env=own, start_new_session=True
        )
        watch = _Watch(process.pid, began + timeout if timeout else None)
        try:
            watch.start()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its group stays its own until it is reaped
            seconds = time.monotonic() - began
        finally:
            watch.stop()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        for file in (output, complaints):
            file.seek(0)
        return Finished(
            code=process.returncode,
            output=output.read(),
            errors=complaints.read().decode(errors="replace"),
            seconds=seconds,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            timed_out=watch.timed_out,
            times=watch.times,
            memory=watch.memory,
        )


def _in_memory() -> BinaryIO:
    """A file that needs no room on a disk, so that a process can say that a disk is full."""
    return os.fdopen(os.memfd_create("gpudedup-bench"), "w+b")


def python_command(code: str) -> list[str]:
    """A command that runs ``code`` with the gpudedup of this process, whatever else is installed."""
    root = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, sys.argv[1]); {code}", root]


class _Watch(threading.Thread):
    """Looks at the memory of a process and its descendants, and kills their group when the time is up."""

    def __init__(self, pid: int, deadline: float | None) -> None:
        super().__init__(daemon=True)
        self.times: list[float] = []
        self.memory: list[int] = []
        self.timed_out = False
        self._pid, self._deadline, self._ended = pid, deadline, threading.Event()

    def run(self) -> None:
        family, looks = [self._pid], 0
        while not self._ended.wait(WATCH_SECONDS if len(family) == 1 else FAMILY_LOOKS * WATCH_SECONDS):
            if looks % FAMILY_LOOKS == 0 or len(family) > 1:
                family = _descendants(self._pid)
            looks += 1
            self.memory.append(_resident_bytes(family[0]) if len(family) == 1 else sum(map(_own_bytes, family)))
            self.times.append(time.monotonic())
            if self._deadline is not None and self.times[-1] > self._deadline:
                self.timed_out = True
                with suppress(ProcessLookupError):
                    os.killpg(self._pid, signal.SIGKILL)
                return

    def stop(self) -> None:
        self._ended.set()
        if self.ident is not None:
            self.join()


def _descendants(pid: int) -> list[int]:
    """A process and all below it, as far as they are still there."""
    family = [pid]
    for member in family:
        with suppress(OSError):
            for task in Path(f"/proc/{member}/task").iterdir():
                family += [int(child) for child in (task / "children").read_bytes().split()]
    return family


def _resident_bytes(pid: int) -> int:
    """RssAnon + RssShmem of a process; 0 once it is gone."""
    return _counted(f"/proc/{pid}/status", b"\nRssAnon:", b"\nRssShmem:")


def _own_bytes(pid: int) -> int:
    """The same, of each page the part that falls to this one of the processes that have it: a process and its forks
    share what none has written since."""
    return _counted(f"/proc/{pid}/smaps_rollup", b"\nPss_Anon:", b"\nPss_Shmem:") or _resident_bytes(pid)


def _counted(path: str, *names: bytes) -> int:
    """The sum of entries of a file of /proc, in bytes; 0 without the file."""
    try:
        with open(path, "rb", buffering=0) as file:
            said = file.read(1 << 14)
    except OSError:
        return 0
    places = [(said.find(name), name) for name in names]
    return 1024 * sum(int(said[at + len(name) :].split(None, 1)[0]) for at, name in places if at >= 0)


# ---------------------------------------------------------------------------------------------------------------- cases


def no_check(result: Any) -> None:
    """For a result whose fingerprint says all."""


def no_preparation() -> None:
    """For work that leaves nothing behind."""


@dataclass(frozen=True)
class Work:
    """A case that is ready to be timed."""

    run: Callable[[], Any]
    """What is inside the clock."""
    fingerprint: Callable[[Any], str]
    """Of a result; the same for every repeat."""
    check: Callable[[Any], None] = no_check
    """Raises BenchmarkError if a result is wrong. The first is checked."""
    figures: Callable[[Any], dict[str, float]] = field(default=lambda result: {})
    """Counts and seconds of stages of each repeat."""
    prepare: Callable[[], None] = no_preparation
    """Before each run, outside the clock."""


@dataclass(frozen=True)
class Measured:
    """The repeats of a case."""

    repeats: int
    seconds: Spread
    cpu_seconds: float
    """Median."""
    peak_bytes: int
    """While the clock ran."""
    figures: dict[str, float]
    """Medians."""
    fingerprint: str


def measure(
    case: str,
    arguments: Mapping[str, Any],
    *,
    repeat: int,
    whole: bool = False,
    warm_ups: int | None = None,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
) -> Measured | str:
    """Time ``case`` ("module:function") of ``arguments`` (of JSON's types) ``repeat`` times.

    In one process, after ``warm_ups`` (1); or, with ``whole``, each repeat in a process of its own, from its start to
    its end, after so many processes (0) that are not counted. The answer is a str if it cannot run here: there is no
    such device, or not enough memory. Raises BenchmarkError if a result is wrong, and what the case raised.
    """
    before = (0 if whole else 1) if warm_ups is None else warm_ups
    times = (0, 1) if whole else (before, repeat)
    finished: list[tuple[Finished, dict[str, Any]]] = []
    for _ in range(before + repeat if whole else 1):
        one = _run_case(case, arguments, *times, environment, timeout)
        if isinstance(one, str):
            return one
        finished.append(one)
    processes, answers = [process for process, _ in finished], [found for _, found in finished]
    fingerprints = {found["fingerprint"] for found in answers}
    if len(fingerprints) > 1:
        raise BenchmarkError(f"{case} gave different results in different repeats")
    if whole:
        processes = processes[before:]
        seconds, cpu = [one.seconds for one in processes], [one.cpu_seconds for one in processes]
        peak = max(one.peak_bytes() for one in processes)
    else:
        spans = answers[0]["times"]
        seconds, cpu = [ended - began for began, ended, _ in spans], [used for _, _, used in spans]
        peak = max(processes[0].peak_bytes(began, ended) for began, ended, _ in spans)
    return Measured(
        repeats=len(seconds),
        seconds=Spread.of(seconds),
        cpu_seconds=median(cpu),
        peak_bytes=peak,
        figures=_medians([answer["figures"] for answer in answers[before if whole else 0 :]]),
        fingerprint=fingerprints.pop(),
    )


def _medians(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: median(one[name] for one in found) for name in found[0]}


def _run_case(
    case: str,
    arguments: Mapping[str, Any],
    warm_ups: int,
    repeat: int,
    environment: Mapping[str, str] | None,
    timeout: float | None,
) -> tuple[Finished, dict[str, Any]] | str:
    order = {"case": case, "arguments": arguments, "warm_ups": warm_ups, "repeat": repeat}
    process = run_process(
        python_command("from gpudedup.bench.measure import answer; answer()"),
        given=json.dumps(order).encode(),
        environment=environment,
        timeout=timeout,
    )
    if process.code:
        if process.timed_out or process.code == -signal.SIGKILL:
            return process.complaint
        raise BenchmarkError(f"the process of {case} failed: {process.complaint}")
    found: dict[str, Any] = json.loads(process.output.splitlines()[-1])
    if "error" not in found:
        return process, found
    kind = getattr(errors, found["error"], None)
    if found["error"] == "MemoryError" or (isinstance(kind, type) and issubclass(kind, DeviceError)):
        return str(found["message"])
    if isinstance(kind, type) and issubclass(kind, GpudedupError):
        raise kind(found["message"])
    raise BenchmarkError(f"{case} failed: {found['error']}: {found['message']}")


def answer() -> None:
    """What the process of a case does: an order comes in, one line of JSON goes out."""
    order = json.loads(sys.stdin.read())
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    try:
        found = _timed(order)
    except MemoryError:
        found = {"error": "MemoryError", "message": "not enough memory"}
    except Exception as error:
        found = {"error": type(error).__name__, "message": " ".join(str(error).split())}
    out.write(json.dumps(found) + "\n")
    out.close()


def _timed(order: Mapping[str, Any]) -> dict[str, Any]:
    module, _, function = order["case"].partition(":")
    work: Work = getattr(import_module(module), function)(**order["arguments"])
    figures, times, expected = [], [], None
    for number in range(order["warm_ups"] + order["repeat"]):
        work.prepare()
        began, cpu = time.monotonic(), _cpu_seconds()
        result = work.run()
        ended, cpu = time.monotonic(), _cpu_seconds() - cpu
        if number == 0:
            work.check(result)
            expected = work.fingerprint(result)
        elif work.fingerprint(result) != expected:
            raise BenchmarkError(f"{order['case']}: repeat {number} gave another result than the first")
        if number >= order["warm_ups"]:
            times.append((began, ended, cpu))
            figures.append(work.figures(result))
        del result  # its memory is not that of the next
    return {"times": times, "figures": _medians(figures), "fingerprint": expected}


def _cpu_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime
