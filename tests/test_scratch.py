"""Local directories of processes: deleted at the end, or by the next process if theirs was killed; nothing else is."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from gpudedup.errors import OutputError
from gpudedup.store.mirror import Mirror
from gpudedup.store.scratch import ScratchDirectory

PREFIX = "gpudedup-run-"

PROCESS = """
import sys
from gpudedup.store.mirror import Mirror
there = Mirror("memory://scratch-test/run", sys.argv[1])
(there.local / "signatures").mkdir()
(there.local / "signatures" / "000000.arrow").write_bytes(b"many bytes")
print(there.local, flush=True)
sys.stdin.read()
"""


@contextmanager
def process(tmp: Path) -> Iterator[Path]:
    """The directory of another process, which is killed when the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", PROCESS, str(tmp)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        try:
            yield Path(other.stdout.readline().strip())
        finally:
            other.kill()


def test_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    with process(tmp_path) as killed, process(tmp_path) as lives:
        with closing(Mirror("memory://scratch-test/run", str(tmp_path))) as own:
            assert set(tmp_path.iterdir()) == {killed, lives, own.local}
        assert set(tmp_path.iterdir()) == {killed, lives}
        assert (killed / "signatures" / "000000.arrow").read_bytes() == b"many bytes"
    assert set(tmp_path.iterdir()) == {killed, lives}
    with closing(Mirror("memory://scratch-test/run", str(tmp_path))) as own:
        assert set(tmp_path.iterdir()) == {own.local}
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left(tmp_path: Path) -> Path:
    """What a killed process left."""
    with process(tmp_path) as killed:
        pass
    return killed


def made(tmp_path: Path) -> None:
    with closing(ScratchDirectory(PREFIX, str(tmp_path))):
        pass


def test_what_is_not_of_this_name_stays(tmp_path: Path, left: Path) -> None:
    names = [left.name + "0", left.name[:-1], left.name.replace(PREFIX, "gpudedup-"), f"{PREFIX}0123abcd", "mine"]
    other_machine = f"{PREFIX}another-{left.name[-32:]}"
    for name in [*names, other_machine]:
        (tmp_path / name).mkdir()
    made(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*names, other_machine}


@pytest.mark.parametrize("kind", ["link", "broken link", "file", "link within"])
def test_nothing_is_deleted_through_a_link(tmp_path: Path, left: Path, kind: str) -> None:
    precious = tmp_path / "mine" / "precious"
    precious.parent.mkdir()
    precious.write_bytes(b"the user's")
    if kind == "link within":
        (left / "mine").symlink_to(precious.parent)
    else:
        left.rename(tmp_path / "away")
    if kind == "link":
        left.symlink_to(precious.parent)
    elif kind == "broken link":
        left.symlink_to(tmp_path / "nothing")
    elif kind == "file":
        left.write_bytes(b"no directory")
    made(tmp_path)
    assert os.path.lexists(left) == (kind != "link within")
    assert precious.read_bytes() == b"the user's"


def test_what_another_user_left_stays(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    made(tmp_path)
    assert left.exists()


def test_without_locks_nothing_is_deleted(tmp_path: Path, left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*arguments: Any) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", without)
    made(tmp_path)
    assert list(tmp_path.iterdir()) == [left]


def test_many_at_once(tmp_path: Path) -> None:
    """None is taken for one that was left, at any time."""

    def work(number: int) -> None:
        for _ in range(40):
            with closing(ScratchDirectory(PREFIX, str(tmp_path))) as own:
                (own.path / "file").write_bytes(b"x")
                assert (own.path / "file").read_bytes() == b"x"

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert list(tmp_path.iterdir()) == []


def test_closed_twice(tmp_path: Path) -> None:
    scratch = ScratchDirectory(PREFIX, str(tmp_path))
    scratch.close()
    with open(os.devnull, "rb") as other:  # likely under the number that the directory had
        scratch.close()
        os.fstat(other.fileno())


def test_where_none_can_be_made(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot write .*missing: .*No such file"):
        ScratchDirectory(PREFIX, str(tmp_path / "missing"))
