"""The lock of a run: one driver at a time as long as it lives, whoever else comes; nothing but time rests on it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpudedup
from gpudedup.errors import ArtefactError, GpudedupError, LockedError, OutputError
from gpudedup.store import lock, mirror
from gpudedup.store.lock import LocalLockFile, Lock, RemoteLockFile
from gpudedup.store.mirror import Mirror

PERIOD = 0.1
STALE = b'{"token":"dead","host":"gone","pid":7,"period_seconds":%g,"beat":3}' % PERIOD

DRIVER = """
import sys, time
from pathlib import Path
from gpudedup.errors import LockedError
from gpudedup.store import lock, mirror
from gpudedup.store.mirror import Mirror

place, period = sys.argv[1], float(sys.argv[2])
lock.LocalLockFile.period_seconds = lock.RemoteLockFile.period_seconds = period
lock.SETTLING_SECONDS = period / 2

def file():
    return lock.RemoteLockFile(Mirror(place, sys.argv[3])) if "://" in place else lock.LocalLockFile(Path(place))

print("ready", flush=True)
for line in sys.stdin:  # how long to drive, or "until told" and then what
    if line == "end\\n":
        break
    try:
        with lock.Lock(file(), lambda line: print("watching", flush=True)) as held:
            start = time.monotonic()
            if line == "until told\\n":
                print("driving", flush=True)
                sys.stdin.readline()
            else:
                time.sleep(float(line))
            end = time.monotonic()
            held.check()
        print("drove", start, end, flush=True)
    except LockedError as error:
        print("lost" if "was taken over by" in str(error) else "refused", str(error), flush=True)
"""


class Driver:
    """A process that takes the lock of a place when it is told to, and says what came of it."""

    def __init__(self, place: str | Path, period: float, tmp: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(place), str(period), str(tmp)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        """The next line: its first word, and the rest."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split(maxsplit=1)

    def end(self) -> list[str]:
        """What came of it."""
        while (heard := self.hear()) == ["watching"]:
            pass
        return heard


@contextmanager
def drivers(count: int, place: str | Path, tmp: Path, period: float = PERIOD) -> Iterator[list[Driver]]:
    started = [Driver(place, period, tmp) for _ in range(count)]
    try:
        assert [driver.hear() for driver in started] == [["ready"]] * count
        yield started
        for driver in started:
            driver.tell("end")
            assert driver.process.wait(30) == 0
    finally:
        for driver in started:
            driver.process.kill()
            driver.process.communicate()


@pytest.fixture(autouse=True)
def short_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalLockFile, "period_seconds", PERIOD)
    monkeypatch.setattr(RemoteLockFile, "period_seconds", PERIOD)
    monkeypatch.setattr(lock, "SETTLING_SECONDS", PERIOD / 2)


def owner(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "lock.json").read_bytes()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------- who has it


def test_it_is_there_while_it_is_held(tmp_path: Path) -> None:
    with Lock(LocalLockFile(tmp_path)) as held:
        held.check()
        first = owner(tmp_path)
        assert (first["pid"], first["period_seconds"]) == (os.getpid(), PERIOD)
        time.sleep(3 * PERIOD)
        assert owner(tmp_path)["beat"] > first["beat"]
    assert names(tmp_path) == []


def test_one_after_another_without_waiting(tmp_path: Path) -> None:
    for _ in range(20):
        with Lock(LocalLockFile(tmp_path), tell=pytest.fail):
            pass


def test_processes_race_for_the_lock_of_a_dead_one(tmp_path: Path) -> None:
    """Two never drive at once, unless the first is told that it lost; and one of them does."""
    place = tmp_path / "run"
    place.mkdir()
    with drivers(4, place, tmp_path) as racers:
        for _ in range(4):
            (place / "lock.json").write_bytes(STALE)
            for driver in racers:
                driver.tell(str(2.5 * PERIOD))
            ends = [driver.end() for driver in racers]
            assert {what for what, _ in ends} <= {"drove", "refused", "lost"}, ends
            drove = sorted(tuple(map(float, times.split())) for what, times in ends if what == "drove")
            assert drove, ends
            for before, after in pairwise(drove):
                assert before[1] < after[0], ends
            for what, why in ends:
                assert what != "refused" or "is being written by" in why
            if not any(what == "lost" for what, _ in ends):
                assert names(place) == []
            (place / "lock.json").unlink(missing_ok=True)


def test_who_lives_is_never_taken_over(tmp_path: Path) -> None:
    """Whatever is done to the clock and to the times of the file."""
    place = tmp_path / "run"
    place.mkdir()
    with drivers(3, place, tmp_path, period=0.4) as (first, *others):
        first.tell("until told")
        assert first.hear() == ["driving"]
        mine = owner(place)["token"]
        for _ in range(2):
            for driver in others:
                driver.tell("0")
            for seconds in (0, 2**33):
                os.utime(place / "lock.json", (seconds, seconds))
            for driver in others:
                what, why = driver.end()
                assert what == "refused", why
                assert f"is being written by {owner(place)['host']}, process {first.process.pid}" in why
        assert owner(place)["token"] == mine
        first.tell("")
        assert first.hear()[0] == "drove"
    assert names(place) == []


def test_all_stand_still_for_a_while(tmp_path: Path) -> None:
    """A machine that slept, or a job that was suspended: time has passed, and still the one who lives has it."""
    place = tmp_path / "run"
    place.mkdir()
    with drivers(2, place, tmp_path, period=0.4) as both:
        first, second = both
        first.tell("until told")
        assert first.hear() == ["driving"]
        second.tell("0")
        assert second.hear() == ["watching"]
        time.sleep(0.05)
        for driver in both:
            driver.process.send_signal(signal.SIGSTOP)
        time.sleep(4 * 0.4)
        for driver in reversed(both):  # the one who watches comes to itself first
            driver.process.send_signal(signal.SIGCONT)
            time.sleep(0.2)
        assert second.end()[0] == "refused"
        first.tell("")
        assert first.hear()[0] == "drove"


def test_who_stood_still_is_told_before_it_commits(tmp_path: Path) -> None:
    """And leaves the lock of the other alone, when it beats and when it ends."""
    place = tmp_path / "run"
    place.mkdir()
    with drivers(1, place, tmp_path) as (first,):
        first.tell("until told")
        assert first.hear() == ["driving"]
        first.process.send_signal(signal.SIGSTOP)
        said: list[str] = []
        with Lock(LocalLockFile(place), said.append) as mine:
            assert f"was driven by {owner(place)['host']}, process {first.process.pid}; watching for 0.3 s" in said[0]
            token = owner(place)["token"]
            first.process.send_signal(signal.SIGCONT)
            time.sleep(3 * PERIOD)
            first.tell("")
            what, why = first.hear()
            assert what == "lost"
            assert f"was taken over by {owner(place)['host']}, process {os.getpid()}" in why
            time.sleep(3 * PERIOD)
            assert owner(place)["token"] == token
            mine.check()
        assert names(place) == []


def test_a_run_that_lost_its_lock_commits_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"text": [f"text {number} of some words" for number in range(20)]}), tmp_path / "a.parquet")
    monkeypatch.setattr(LocalLockFile, "period_seconds", 60.0)  # no beat looks before
    out = tmp_path / "out"
    at: list[str] = []

    def taken_over(stage: str, documents: int, text_bytes: int) -> None:
        if stage == "match" and not at:
            at.extend(str(path) for path in (out / "done").rglob("*.json"))
            (out / "lock.json").write_bytes(STALE)

    with pytest.raises(LockedError, match="was taken over by gone, process 7, because"):
        gpudedup.run(tmp_path / "a.parquet", out, progress=taken_over)
    assert at == [str(out / "done" / "sign" / "000000.json")]
    assert [str(path) for path in (out / "done").rglob("*.json")] == at
    assert (out / "lock.json").read_bytes() == STALE


def test_a_lock_that_cannot_be_written_anew_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk: no beat, no harm."""

    def full(*arguments: Any) -> None:
        raise OSError(28, os.strerror(28))

    with Lock(LocalLockFile(tmp_path)) as held:
        before = owner(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            time.sleep(3 * PERIOD)
            held.check()
        assert owner(tmp_path) == before
        time.sleep(3 * PERIOD)
        assert owner(tmp_path)["beat"] > before["beat"]
    assert names(tmp_path) == []


def test_somebody_who_changes_the_lock_stands_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for it for ever."""
    monkeypatch.setattr(lock, "PATIENCE_SECONDS", 0.05)
    with lock.locked_folder(tmp_path, exclusive=True), Lock(LocalLockFile(tmp_path)) as held:
        time.sleep(3 * PERIOD)
        held.check()
        assert owner(tmp_path)["beat"] > 0
    assert names(tmp_path) == []


def test_only_what_was_seen_is_taken_away(tmp_path: Path) -> None:
    """Another taker may have been faster, and the owner may beat again."""
    file = LocalLockFile(tmp_path)
    assert file.create(b"of another taker")
    file.take_away(STALE)
    assert not file.replace("dead", STALE)
    assert file.read() == b"of another taker"
    file.take_away(b"of another taker")
    assert file.read() is None
    assert names(tmp_path) == []


# ------------------------------------------------------------------------------------------------- what it may be


GARBAGE = [
    b"",
    b"{",
    b"null",
    b"[]",
    b"\xff\xfe",
    bytes(1000),
    b"[" * 60_000,
    b"{}",
    STALE.replace(b'"beat":3', b'"beats":3'),  # of another version
    STALE.replace(b"gone", b"g" * 60_000),
    *(STALE.replace(b"0.1", period) for period in (b"0", b"-1", b"1e300", b"1e999", b'"x"', b"null")),
]


@pytest.mark.parametrize("data", GARBAGE, ids=lambda data: repr(data[-14:]))
def test_a_lock_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """It is watched as long as one of this version, and then taken over."""
    monkeypatch.setattr(LocalLockFile, "period_seconds", 0.04)
    (tmp_path / "lock.json").write_bytes(data)
    said: list[str] = []
    start = time.monotonic()
    with Lock(LocalLockFile(tmp_path), said.append) as held:
        assert time.monotonic() - start >= 3 * 0.04
        held.check()
    assert len(said) == 1
    assert len(said[0]) < 500
    assert "watching for 0.12 s whether it lives" in said[0]
    assert names(tmp_path) == []


def test_more_fields_than_this_version_knows(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(STALE.replace(b'"beat"', b'"more":[1],"beat"'))
    said: list[str] = []
    with Lock(LocalLockFile(tmp_path), said.append):
        assert "driven by gone, process 7" in said[0]


def test_a_lock_of_somebody_unknown_that_beats(tmp_path: Path) -> None:
    (tmp_path / "lock.json").write_bytes(b"a beat: 1")

    def beat() -> None:
        time.sleep(PERIOD)
        (tmp_path / "lock.json").write_bytes(b"a beat: 2")

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(LockedError, match="is being written by an unknown process"), Lock(LocalLockFile(tmp_path)):
        pass
    thread.join()
    assert (tmp_path / "lock.json").read_bytes() == b"a beat: 2"


@pytest.mark.parametrize("kind", ["link", "link to nothing", "folder", "pipe", "large"])
def test_a_lock_that_no_driver_writes(tmp_path: Path, kind: str) -> None:
    """It is refused at once, and stays, and so does what it leads to."""
    place, outside = tmp_path / "run", tmp_path / "outside"
    place.mkdir()
    outside.write_bytes(STALE)
    path = place / "lock.json"
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "link to nothing":
        path.symlink_to(tmp_path / "nothing")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(STALE)
        os.truncate(path, 1 << 40)
    before = path.lstat()
    with pytest.raises(ArtefactError, match=r"lock\.json"), Lock(LocalLockFile(place)):
        pass
    assert path.lstat().st_ino == before.st_ino
    assert names(tmp_path) == ["outside", "run"]
    assert names(place) == ["lock.json"]
    assert outside.read_bytes() == STALE


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    place = tmp_path
    if os.geteuid() == 0:
        place = Path("/proc/1")  # read-only for root too
        if not place.is_dir():
            pytest.skip("no place that root cannot write to")
    else:
        place.chmod(0o500)
    with pytest.raises(OutputError, match=r"cannot write .*lock\.json: "), Lock(LocalLockFile(place)):
        pass
    with pytest.raises(OutputError, match="cannot write"), Lock(LocalLockFile(tmp_path / "missing")):
        pass


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: Any) -> None:
        raise PermissionError(1, os.strerror(1))

    monkeypatch.setattr(os, "link", without)
    with Lock(LocalLockFile(tmp_path)) as held:
        held.check()
        with pytest.raises(LockedError), Lock(LocalLockFile(tmp_path)):
            pass
    assert names(tmp_path) == []


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may get a byte."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        yield resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize("links", [True, False])
def test_a_full_disk_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Else whoever starts next would watch it. Without links, the disk is full when the lock itself is written."""
    with ExitStack() as full:

        def link(*arguments: Any) -> None:
            full.enter_context(full_disk())
            raise PermissionError(1, os.strerror(1))

        if links:
            full.enter_context(full_disk())
        else:
            monkeypatch.setattr(os, "link", link)
        with pytest.raises(OutputError, match=r"cannot write .*lock\.json: .*File too large"):
            LocalLockFile(tmp_path).create(STALE)
    assert names(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_link_that_fails_for_another_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def failing(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", failing)
    with pytest.raises(OutputError, match=os.strerror(number)):
        LocalLockFile(tmp_path).create(STALE)
    assert names(tmp_path) == []


# -------------------------------------------------------------------------------------------------------- on a store


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Mirror]:
    """A run in fsspec's memory."""
    import fsspec

    with closing(Mirror("memory://lock-test/run", str(tmp_path))) as there:
        yield there
    fsspec.filesystem("memory").store.clear()


def test_a_remote_lock(memory: Mirror) -> None:
    with Lock(RemoteLockFile(memory)) as held:
        first = memory.read("lock.json", lock.MAX_BYTES)
        time.sleep(3 * PERIOD)
        held.check()
        assert memory.read("lock.json", lock.MAX_BYTES) != first
        with (
            pytest.raises(LockedError, match="memory://lock-test/run is being written by"),
            Lock(RemoteLockFile(memory)),
        ):
            pass
    assert memory.read("lock.json", lock.MAX_BYTES) is None


@pytest.mark.parametrize("data", [STALE, *GARBAGE[:5]], ids=lambda data: repr(data[-14:]))
def test_a_remote_lock_of_a_dead_one(memory: Mirror, data: bytes) -> None:
    memory.write("lock.json", data)
    said: list[str] = []
    with Lock(RemoteLockFile(memory), said.append) as held:
        assert "watching for 0.3 s" in said[0]
        held.check()
    assert memory.read("lock.json", lock.MAX_BYTES) is None


def test_a_remote_lock_that_no_driver_writes(memory: Mirror) -> None:
    memory.write("lock.json", bytes(lock.MAX_BYTES + 1))
    with (
        pytest.raises(ArtefactError, match=r"run/lock\.json has more than the 65536 bytes"),
        Lock(RemoteLockFile(memory)),
    ):
        pass


def test_a_remote_lock_that_was_taken_over(memory: Mirror) -> None:
    with Lock(RemoteLockFile(memory)) as held:
        memory.write("lock.json", STALE)
        with pytest.raises(LockedError, match="was taken over by gone, process 7"):
            held.check()
        time.sleep(3 * PERIOD)
    assert memory.read("lock.json", lock.MAX_BYTES) == STALE


def test_a_store_that_fails_for_a_while(memory: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    """No beat, no harm; who asks is told."""

    def fail(*arguments: Any) -> Any:
        raise OSError("no answer")

    with Lock(RemoteLockFile(memory)) as held:
        with monkeypatch.context() as patch:
            patch.setattr(mirror, "_insistently", fail)
            time.sleep(3 * PERIOD)
            with pytest.raises(GpudedupError):
                held.check()
        time.sleep(2 * PERIOD)
        held.check()
    assert memory.read("lock.json", lock.MAX_BYTES) is None


def test_processes_race_for_a_remote_lock(object_store: Any, tmp_path: Path) -> None:
    """On an object store the last to write has it: the others see that when they look again."""
    url = object_store.url("run")
    with drivers(2, url, tmp_path, period=0.5) as racers:
        for stale in (True, False):
            if stale:
                object_store.put({"run/lock.json": STALE})
            for driver in racers:
                driver.tell("0.7")
            ends = [driver.end() for driver in racers]
            assert {what for what, _ in ends} <= {"drove", "refused", "lost"}, ends
            drove = sorted(tuple(map(float, times.split())) for what, times in ends if what == "drove")
            assert drove, ends
            for before, after in pairwise(drove):
                assert before[1] < after[0], ends
    assert "run/lock.json" not in object_store.keys
