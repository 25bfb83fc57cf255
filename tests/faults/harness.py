"""Runs of the command line under faults: started, stopped by one, started again, and compared with a run never stopped.

A trial is well if the process ended as it should, said so in one line, left nothing behind that no run leaves, and if
the same command again ends with the bytes of an undisturbed run. The faults:

- those of shim.c, by number of operation or allocation: kill, cut, term, int, usr1, full, readonly, io, short, memory,
  clock;
- taken-over: the process stands still at an operation, another finishes the run, the first goes on;
- input-lost, input-cut, input-changed, input-longer: it stands still while that happens to an input file;
- artefact-flipped, artefact-cut, artefact-lost: it is killed, and that happens to a file of the run.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from gpudedup.bench.corpus import make_corpus

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
COMMAND = (sys.executable, str(HERE / "command.py"))

SIGNALS = {"term": signal.SIGTERM, "int": signal.SIGINT, "usr1": signal.SIGUSR1}
RESUMABLE = 85
"""The exit code of a run that a signal stopped."""

REASONS = {
    "full": os.strerror(errno.ENOSPC),
    "readonly": os.strerror(errno.EROFS),
    "io": os.strerror(errno.EIO),
    "memory": "memory",
}
"""What a message must say, without regard to case."""

TIMEOUT_SECONDS = 120.0
RESULTS = ("removed", "kept", "keep_mask")
PLAN = (
    *("format", "spec", "version", "state", "digest", "output", "parameters", "bands", "rows"),
    *("counts", "inputs", "outputs", "skipped"),
)
"""What manifests of one plan have in common; seconds, dates and hosts differ."""


# ------------------------------------------------------------------------------------------------------ what is seen


class Event(NamedTuple):
    """An operation on a file or a large allocation, as the shim counts them."""

    number: int
    name: str
    bytes: int
    path: str
    """Relative to the directory that is watched; the new one of a rename; for allocations the thread's kind."""

    @property
    def removes(self) -> bool:
        """Whether it takes something away: removes it, or moves it aside."""
        aside = self.name == "rename" and Path(self.path).name.startswith(".")
        return aside or self.name in ("unlink", "unlinkat", "rmdir")

    @property
    def folder(self) -> str:
        """The folder of the run that it is in; "" for the run's own files."""
        parts = Path(self.path).parts
        return parts[1] if len(parts) > 2 else ""

    def __str__(self) -> str:
        return f"{self.number} ({self.name} {self.path})"


@dataclass(frozen=True)
class Job:
    """What is run, on which kind of files."""

    name: str
    format: str
    options: tuple[str, ...]

    def __str__(self) -> str:
        return self.name


JOBS = {
    job.name: job
    for job in (
        Job("parquet", "parquet", ("--id-column", "id")),
        Job("jsonl", "jsonl", ("--verify", "signature", "--keep", "longest", "--output", "mask")),
    )
}


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    code: int
    out: str
    err: str
    events: list[Event]
    renames: dict[str, str]
    """The old path of each new one."""
    fault: Event | None
    """Where the fault came; None if the process ended before."""


class Started:
    """A process that goes on."""

    def __init__(self, process: subprocess.Popen[str], log: Path, place: Path) -> None:
        self.process, self.log, self.place = process, log, place

    def stands(self) -> bool:
        """Waits until the fault `stop` has come; False if the process ended before."""
        end = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < end and self.process.poll() is None:
            status = Path(f"/proc/{self.process.pid}/stat").read_text()
            if status.rpartition(")")[2].split()[0] == "T":
                return True
            time.sleep(0.005)
        return False

    def go_on(self) -> Done:
        """Ends what `stop` did, and waits for the end."""
        self.process.send_signal(signal.SIGCONT)
        return self.end()

    def end(self) -> Done:
        """Waits for the end; a process that takes too long is killed, and its exit code is 124."""
        try:
            out, err = self.process.communicate(timeout=TIMEOUT_SECONDS)
            code = self.process.returncode
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            code, out, err = 124, "", f"still there after {TIMEOUT_SECONDS} s"
        seen = read_log(self.log, self.place)
        self.log.unlink(missing_ok=True)
        return Done(code, out, err, *seen)


@dataclass(frozen=True)
class Undisturbed:
    """A run without a fault: what others are compared with."""

    events: list[Event]
    renames: dict[str, str]
    names: frozenset[str]
    results: dict[str, str]
    manifest: dict[str, Any]


@dataclass
class Trial:
    """One fault, and what was wrong with how the run took it."""

    job: str
    fault: str
    at: int
    event: Event | None
    problems: list[str] = field(default_factory=list)

    @property
    def took_place(self) -> bool:
        """Whether the process lived long enough; looks at the clock are not logged."""
        return self.event is not None or self.fault == "clock"

    def __str__(self) -> str:
        where = f"at {self.event or self.at}" + ("" if self.took_place else ", which was not reached")
        again = f"python -m tests.faults --job {self.job} --fault {self.fault} --at {self.at}"
        return f"{self.job}: {self.fault} {where}: {'; '.join(self.problems) or 'well'} [{again}]"


# ------------------------------------------------------------------------------------------------ what befalls files


def lose(file: Path, generator: random.Random) -> None:
    file.unlink()


def cut(file: Path, generator: random.Random) -> None:
    os.truncate(file, generator.randrange(file.stat().st_size))


def flip(file: Path, generator: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
    file.write_bytes(data)


def lengthen(file: Path, generator: random.Random) -> None:
    with open(file, "ab") as out:
        out.write(b'{"id": 1, "text": "one more line"}\n')


Harm = Callable[[Path, random.Random], None]
INPUT_HARM: dict[str, Harm] = {"input-lost": lose, "input-cut": cut, "input-changed": flip, "input-longer": lengthen}
ARTEFACT_HARM: dict[str, Harm] = {"artefact-flipped": flip, "artefact-cut": cut, "artefact-lost": lose}


# ------------------------------------------------------------------------------------------------------- the laboratory


class Laboratory:
    """Inputs, the shim and places for runs, in a folder of its own. Trials may run in several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.realpath(folder))
        self.inputs = self.folder / "inputs"
        make_inputs(self.inputs)
        self.shim = build_shim(self.folder)
        self._numbers = itertools.count()
        self._undisturbed: dict[str, Undisturbed] = {}
        self._lock = threading.Lock()

    # ---- processes ----

    def place(self, job: Job) -> Path:
        """A new directory with the job's inputs: where it runs, and what the shim watches. All paths are relative to
        it, so that runs in different places are the same to the byte.
        """
        place = self.folder / f"place-{next(self._numbers)}"
        (place / "tmp").mkdir(parents=True)
        shutil.copytree(self.inputs / job.format, place / "inputs")  # with their times
        return place

    def start(self, job: Job, place: Path, fault: str = "none", at: int = 0) -> Started:
        """Starts the job in a place, with a fault of the shim or without."""
        return self.call(job_arguments(job), place, fault, at)

    def call(self, arguments: Sequence[str], place: Path, fault: str = "none", at: int = 0) -> Started:
        """Starts the command line with any arguments."""
        log = place.with_suffix(f".{next(self._numbers)}.log")
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "LD_PRELOAD": str(self.shim),
            "GPUDEDUP_FAULT": fault,
            "GPUDEDUP_FAULT_AT": str(at),
            "GPUDEDUP_FAULT_IN": str(place),
            "GPUDEDUP_FAULT_LOG": str(log),
        }
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=place,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )
        return Started(process, log, place)

    def undisturbed(self, job: Job) -> Undisturbed:
        with self._lock:
            if job.name not in self._undisturbed:
                place = self.place(job)
                done = self.start(job, place).end()
                if done.code:
                    raise RuntimeError(f"{job.name} fails without a fault: {done.err}")
                self._undisturbed[job.name] = Undisturbed(
                    done.events, done.renames, frozenset(names(place)), results(place), plan_of(place)
                )
                shutil.rmtree(place)
            return self._undisturbed[job.name]

    def allocations(self, job: Job) -> list[Event]:
        """The large allocations of a run without a fault, in other threads than the first: the interpreter makes its
        own in that.
        """
        place = self.place(job)
        done = self.start(job, place, "memory", 0).end()
        shutil.rmtree(place)
        return [event for event in done.events if event.path == "worker"]

    def points(self, job: Job, fault: str, count: int, seed: int) -> list[int]:
        """Numbers of ``count`` events of a job, drawn from all folders of the run in turn: some see many, some few."""
        generator = random.Random(seed)
        events = self.allocations(job) if fault == "memory" else self.undisturbed(job).events
        of_folder = defaultdict(list)
        for event in events:
            if not event.removes or fault not in ("full", "io"):
                of_folder[event.folder].append(event.number)
        queues = [generator.sample(numbers, len(numbers)) for _, numbers in sorted(of_folder.items())]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*queues))
        drawn = [number for number in turns if number is not None]
        return list(itertools.islice(itertools.cycle(drawn), count))

    # ---- trials ----

    def trial(self, job: Job, fault: str, at: int) -> Trial:
        """Runs the job with the fault, looks at how that ended, and runs it again without."""
        place = self.place(job)
        trial = Trial(job.name, fault, at, None)
        if fault == "taken-over":
            self._take_over(job, trial, place)
        elif fault in INPUT_HARM:
            self._harm_input(job, trial, place)
        else:
            if at % 2:
                (place / "run").mkdir()  # an empty directory is taken too; its name is on the device
            done = self.start(job, place, "kill" if fault in ARTEFACT_HARM else fault, at).end()
            trial.event = done.fault
            if fault in ("kill", "cut", "readonly", *ARTEFACT_HARM):
                drop_leftovers(place)
            if trial.took_place:
                trial.problems += self.how_it_ended(job, fault, done, place)
                if fault in ARTEFACT_HARM:
                    self._harm_artefact(job, trial, place)
                trial.problems += self.how_it_goes_on(job, place)
        shutil.rmtree(place)
        return trial

    def _take_over(self, job: Job, trial: Trial, place: Path) -> None:
        first = self.start(job, place, "stop", trial.at)
        if not first.stands():
            first.end()
            return
        second = self.start(job, place).end()
        if second.code:
            trial.problems.append(f"the second driver: exit code {second.code}: {second.err}")
        done = first.go_on()
        trial.event = done.fault
        if done.code not in (0, 1) or (done.code and is_one_line(done.err)):
            trial.problems.append(f"the first driver: exit code {done.code}: {done.err}")
        if not second.code:
            trial.problems += [f"after the first driver: {problem}" for problem in self.is_whole(job, place)]
        trial.problems += self.how_it_goes_on(job, place)

    def _harm_input(self, job: Job, trial: Trial, place: Path) -> None:
        """Refused by who reads it, and by the next process if the file was signed; else the run is one over what is
        there. When the file is as it was, the run goes on.
        """
        generator = random.Random(trial.at)
        files = sorted((place / "inputs").iterdir())
        file = generator.choice(files)
        process = self.start(job, place, "stop", trial.at)
        if not process.stands():
            process.end()
            return
        INPUT_HARM[trial.fault](file, generator)
        done = process.go_on()
        trial.event = done.fault
        if done.code == 0:  # it was not needed any more
            trial.problems += self.is_whole(job, place)
        elif done.code != 3 or is_one_line(done.err):
            trial.problems.append(f"exit code {done.code}: {done.err}")
        again = self.start(job, place).end()
        if again.code == 0:
            fresh = self.place(job)
            shutil.rmtree(fresh / "inputs")
            shutil.copytree(place / "inputs", fresh / "inputs")
            if self.start(job, fresh).end().code != 0 or results(fresh) != results(place):
                trial.problems.append(f"again: went on over {file.name} as it was not when it was read")
            shutil.rmtree(fresh)
            return
        if again.code not in (3, 4) or is_one_line(again.err) or file.name not in again.err:
            trial.problems.append(f"again: exit code {again.code}: {again.err}")
        shutil.copy2(self.inputs / job.format / file.name, file)
        trial.problems += self.how_it_goes_on(job, place, same_tasks=trial.fault != "input-lost")

    def _harm_artefact(self, job: Job, trial: Trial, place: Path) -> None:
        """Made again, or refused by name and made again once it is deleted."""
        generator = random.Random(trial.at)
        files = committed_files(place / "run")
        if not files:
            return
        file = generator.choice(files[generator.choice(sorted(files))])
        before = file.read_bytes()
        ARTEFACT_HARM[trial.fault](file, generator)
        done = self.start(job, place).end()
        if done.code == 0:
            return
        if file.name == "manifest.json":  # which files the run is made of stands nowhere else
            allowed, said = (1, 4), "run"
            file.write_bytes(before)
        else:
            allowed, said = (4,), file.name
            file.unlink(missing_ok=True)
        if done.code not in allowed or is_one_line(done.err) or said not in done.err:
            trial.problems.append(f"{file.name}: exit code {done.code}: {done.err}")

    def how_it_ended(self, job: Job, fault: str, done: Done, place: Path) -> list[str]:
        """What is wrong with a process after its fault, and with what it left."""
        if fault in ("kill", "cut", *ARTEFACT_HARM):
            return [] if done.code == -signal.SIGKILL else [f"exit code {done.code}, not SIGKILL: {done.err}"]
        problems = []
        allowed = {0, RESUMABLE} if fault in SIGNALS else {0, 1} if fault in REASONS else {0}
        if done.code not in allowed:
            problems.append(f"exit code {done.code}: {done.err}")
        elif done.code == 0:
            problems += self.is_whole(job, place)
        else:
            problems += is_one_line(done.err)
            if fault in REASONS and REASONS[fault].lower() not in done.err.lower():
                problems.append(f"no word of {REASONS[fault]!r}: {done.err}")
        if fault != "readonly" and (done.fault is None or not done.fault.removes):
            # else what could not be removed is there
            final = self.undisturbed(job)
            left = names(place) - final.renames.keys() - final.names
            if left:
                problems.append(f"left behind {sorted(left)[:5]}")
        return problems

    def how_it_goes_on(self, job: Job, place: Path, same_tasks: bool = True) -> list[str]:
        """What is wrong with the same command without a fault."""
        done = self.start(job, place).end()
        if done.code:
            return [f"again: exit code {done.code}: {done.err}"]
        return [f"again: {problem}" for problem in self.is_whole(job, place, same_tasks)]

    def is_whole(self, job: Job, place: Path, same_tasks: bool = True) -> list[str]:
        """How a finished run differs from an undisturbed one; with other tasks only its results are the same."""
        expected, problems = self.undisturbed(job), []
        found = results(place)
        for path in sorted(found.keys() | expected.results.keys()):
            if found.get(path) != expected.results.get(path):
                problems.append(f"{path} differs")
        if not same_tasks:
            return problems
        manifest = plan_of(place)
        for name, value in expected.manifest.items():
            if manifest.get(name) != value:
                problems.append(f"manifest: {name} is {manifest.get(name)}, not {value}")
        there = names(place)
        if there != expected.names:
            more, less = sorted(there - expected.names), sorted(expected.names - there)
            problems.append(f"files that no run leaves: {more[:5]}; files that are missing: {less[:5]}")
        return problems


def job_arguments(job: Job) -> list[str]:
    return ["run", "inputs", "-o", "run", "--tmp", "tmp", "--workers", "2", "--json", *job.options]


def default_signals() -> None:
    """A process started in the background may ignore SIGINT, and would hand that down."""
    for number in SIGNALS.values():
        signal.signal(number, signal.SIG_DFL)


def build_shim(folder: Path) -> Path:
    library = folder / "shim.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    options = ["-std=c99", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    command = [*compiler, *options, str(HERE / "shim.c"), "-o", str(library), "-ldl", "-pthread"]
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed:\n{done.stderr}")
    return library


def make_inputs(folder: Path, seed: int = 5, megabytes: float = 3) -> None:
    """parquet/ and jsonl/: the same near-copies in several files."""
    size = int(megabytes * 1e6)
    made = folder / "made"
    make_corpus(made, text_bytes=size, shard_bytes=size // 6, seed=seed, processes=1)
    for name in ("parquet", "jsonl"):
        (folder / name).mkdir()
    for file in sorted(made.glob("part-*.parquet")):
        rows: pa.Table = pq.read_table(file)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows.to_pylist())
        (folder / "jsonl" / f"{file.stem}.jsonl").write_text("".join(lines), encoding="utf-8")
        file.rename(folder / "parquet" / file.name)
    shutil.rmtree(made)


# ------------------------------------------------------------------------------------------------------------ looking


def read_log(log: Path, place: Path) -> tuple[list[Event], dict[str, str], Event | None]:
    """(events, the old path of each new one, where the fault came)."""
    events: dict[int, Event] = {}
    renames, hit = {}, None
    text = log.read_text(encoding="utf-8", errors="surrogateescape") if log.exists() else ""
    for line in text.splitlines():
        number, name, size, path = line.removeprefix("!").split(" ", 3)
        event = Event(int(number), name, int(size), path.removeprefix(f"{place}/"))
        if name == "from":
            renames[events[event.number].path] = event.path
        elif line.startswith("!"):
            hit = event
        else:
            events[event.number] = event
    return list(events.values()), renames, hit


def names(place: Path) -> set[str]:
    """All files and directories in a place but the inputs."""
    found = {str(path.relative_to(place)) for path in place.rglob("*")}
    return {name for name in found if not name.startswith("inputs")}


def results(place: Path) -> dict[str, str]:
    """Digests of the files that the run in a place is made for."""
    files = [path for folder in RESULTS for path in (place / "run" / folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(place)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def drop_leftovers(place: Path) -> None:
    """Delete what a process could not remove any more that had finished the run: its lock, and a beat of that. Nobody
    goes on with such a run; who decides it anew one day takes them away.
    """
    manifest = place / "run" / "manifest.json"
    if manifest.exists() and json.loads(manifest.read_bytes())["state"] == "complete":
        for left in [manifest.with_name("lock.json"), *manifest.parent.glob(".gpudedup-*")]:
            left.unlink(missing_ok=True)


def plan_of(place: Path) -> dict[str, Any]:
    """What the manifest says, apart from what no two runs have in common."""
    manifest = json.loads((place / "run" / "manifest.json").read_bytes())
    return {name: manifest[name] for name in PLAN}


def committed_files(run: Path) -> dict[str, list[Path]]:
    """Files of a run under their own names, by the folder that they are in; without a lock."""
    files: dict[str, list[Path]] = {}
    for path in sorted(run.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.name != "lock.json":
            files.setdefault(str(path.parent.relative_to(run)), []).append(path)
    return files


def is_one_line(err: str) -> list[str]:
    """What is wrong with what a failed command said, apart from that it watches the lock of another process."""
    lines = [line for line in err.splitlines() if " watching for " not in line]
    if len(lines) != 1 or not lines[0].startswith("gpudedup: ") or "Traceback" in err:
        return [f"not one clear line on stderr: {err!r}"]
    return []
