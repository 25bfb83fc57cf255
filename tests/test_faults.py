"""Durable runs under faults: a seeded sample of `python -m tests.faults`, and what takes more than one fault."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import harness
from faults.harness import JOBS, ROOT, Job, Laboratory

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which(os.environ.get("CC", "cc")) is None,
    reason="the shim needs Linux and a C compiler",
)

SEED = 5
PARQUET, JSONL = JOBS["parquet"], JOBS["jsonl"]
SAMPLE = {
    **dict.fromkeys(("cut", "int", "usr1", "readonly", "memory", "short", "clock", "taken-over"), 1),
    **dict.fromkeys(("input-lost", "input-changed", "artefact-cut", "artefact-lost"), 1),
    "kill": 12,
    "term": 2,
    "full": 4,
    "io": 4,
    "artefact-flipped": 2,
}
"""How many trials of each fault."""


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Laboratory:
    return Laboratory(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def finished(laboratory: Laboratory) -> Path:
    """A place with a finished run."""
    place = laboratory.place(PARQUET)
    done = laboratory.start(PARQUET, place).end()
    assert done.code == 0, done.err
    return place


@pytest.mark.parametrize("job", JOBS.values(), ids=str)
def test_the_shim_sees_every_byte(laboratory: Laboratory, job: Job) -> None:
    """The sizes of all files add up from the writes that were counted, through all renames."""
    place = laboratory.place(job)
    done = laboratory.start(job, place).end()
    assert done.code == 0, done.err
    assert sorted(event.number for event in done.events) == list(range(1, len(done.events) + 1))
    for file in (path for path in (place / "run").rglob("*") if path.is_file()):
        path = str(file.relative_to(place))
        seen = {path}
        while done.renames.get(path, path) not in seen:
            path = done.renames[path]
            seen.add(path)
        written = sum(event.bytes for event in done.events if event.name == "write" and event.path == path)
        assert written == file.stat().st_size, file


@pytest.mark.parametrize(("fault", "number"), [(fault, n) for fault, count in SAMPLE.items() for n in range(count)])
def test_one_fault(laboratory: Laboratory, fault: str, number: int) -> None:
    job = (PARQUET, JSONL)[number % 2]
    at = 1 if fault in ("short", "clock") else laboratory.points(job, fault, SAMPLE[fault], SEED)[number]
    trial = laboratory.trial(job, fault, at)
    assert not trial.problems, str(trial)


@pytest.mark.parametrize("job", JOBS.values(), ids=str)
def test_a_finished_run_is_on_the_device(laboratory: Laboratory, job: Job) -> None:
    """Power that fails when the process has ended takes nothing away."""
    trial = laboratory.trial(job, "cut", 1_000_001)
    assert not trial.took_place, trial


def test_killed_again_and_again(laboratory: Laboratory) -> None:
    """Every process is killed at some operation; what one has finished the next does not do again."""
    generator, place = random.Random(SEED), laboratory.place(PARQUET)
    for _ in range(100):
        done = laboratory.start(PARQUET, place, "kill", generator.randrange(60, 250)).end()
        if done.fault is None:
            break
        assert done.code == -signal.SIGKILL
    assert done.code == 0, done.err
    assert laboratory.is_whole(PARQUET, place) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_while_it_computes(laboratory: Laboratory, number: signal.Signals) -> None:
    """From outside, at no operation on a file."""
    generator = random.Random(SEED)
    for _ in range(2):
        place = laboratory.place(PARQUET)
        process = laboratory.start(PARQUET, place)
        try:
            process.process.wait(generator.uniform(0.3, 0.8))
        except subprocess.TimeoutExpired:
            process.process.send_signal(number)
        done = process.end()
        if done.code == -signal.SIGKILL or not done.events:  # nothing was begun
            assert done.code in (0, -number, 128 + number, harness.RESUMABLE), done
        elif done.code:
            assert done.code == harness.RESUMABLE, done
            assert harness.is_one_line(done.err) == []
        assert laboratory.how_it_goes_on(PARQUET, place) == []


def test_two_drivers_at_once(laboratory: Laboratory) -> None:
    """Both end well, or one is refused."""
    place = laboratory.place(JSONL)
    pair = [laboratory.start(JSONL, place) for _ in range(2)]
    ends = [each.end() for each in pair]
    assert 0 in [done.code for done in ends], ends
    for done in ends:
        assert done.code == 0 or (done.code == 1 and harness.is_one_line(done.err) == []), done
    assert laboratory.how_it_goes_on(JSONL, place) == []


def test_audit_finds_what_is_damaged(laboratory: Laboratory, finished: Path) -> None:
    """In every kind of file of a finished run."""
    generator, missed = random.Random(SEED), []
    for kind, files in harness.committed_files(finished / "run").items():
        place = laboratory.folder / "audited"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(finished, place)
        file = place / generator.choice(files).relative_to(finished)
        generator.choice((harness.flip, harness.cut, harness.lose))(file, generator)
        done = laboratory.call(["audit", "run"], place).end()
        if done.code != 4 or file.name not in done.out + done.err:
            missed.append((kind, done.code, done.err))
    assert missed == []


@pytest.mark.parametrize("job", JOBS.values(), ids=str)
def test_hostile_run_directories(laboratory: Laboratory, job: Job) -> None:
    """Some of those that tests/faults/hostile.py makes, in a process of their own."""
    place = laboratory.place(job)
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.hostile", place, job.name, "--seed", "4", "--count", "25"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 0, (failed, done.stdout[-500:], done.stderr[-5000:])
