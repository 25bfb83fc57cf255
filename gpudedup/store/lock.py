"""The lock of a run directory: keeps two drivers from doing the same work twice.

No result rests on it. What drivers write is committed whole, and equal input gives equal bytes, so a driver that goes
on after its lock was taken over does harm to nothing but time.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import msgspec

from gpudedup.errors import LockedError
from gpudedup.store.atomic import atomic_file, output_errors

NAME = "lock.json"
MAX_BYTES = 1 << 16

PERIOD_SECONDS = 2.0
"""Between two beats."""

PERIODS_WATCHED = 3
"""A lock whose beat does not change for as many of its own periods is nobody's any more."""

MAX_PERIOD_SECONDS = 600.0


Tell = Callable[[str], None]
"""Called with a line for the user."""


def unheard(line: str) -> None:
    """Nobody listens."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who drives a run. ``beat`` counts up; clocks of other machines are never looked at."""

    token: str
    host: str
    pid: int
    period_seconds: float
    beat: int


def owner_of(directory: Path) -> Owner | None:
    """What the lock of a run says; None if there is none, or none that can be read."""
    path = directory / NAME
    try:
        if path.is_symlink() or path.stat().st_size > MAX_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Owner)
    except (OSError, ValueError, msgspec.MsgspecError):
        return None


class Lock:
    """Held as a context manager. Raises LockedError if another driver is alive; it watches for up to three periods.

    tell: called with a line when it begins to watch another driver's lock.
    """

    def __init__(self, directory: Path, tell: Tell = unheard) -> None:
        self._path, self._directory, self._tell = directory / NAME, directory, tell
        self._owner = Owner(
            token=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), period_seconds=PERIOD_SECONDS, beat=0
        )
        self._released = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lock:
        while not self._create():
            self._watch()
        self._thread = threading.Thread(target=self._beat, name="gpudedup-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost and self._is_mine():
            with contextlib.suppress(OSError):
                self._path.unlink()

    def check(self) -> None:
        """Raise LockedError if another driver took the run over."""
        if self._lost:
            owner = owner_of(self._directory)
            who = f"{owner.host}, process {owner.pid}" if owner else "another driver"
            raise LockedError(
                f"{self._directory} was taken over by {who}, because this process stood still for too long; what it "
                "finished counts, and the other one goes on"
            )

    def _create(self) -> bool:
        """Whether the lock file was made; atomically, with its content."""
        with output_errors(self._path):
            temporary = self._path.with_name(f".gpudedup-lock-{self._owner.token}")
            try:
                temporary.write_bytes(msgspec.json.encode(self._owner))
                os.link(temporary, self._path)
            except FileExistsError:
                return False
            except OSError:  # no links on this file system: exclusive creation, whose content comes a moment later
                try:
                    with open(self._path, "xb") as file:
                        file.write(msgspec.json.encode(self._owner))
                except FileExistsError:
                    return False
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return True

    def _watch(self) -> None:
        """Return when the lock there may be broken, and was. Raises LockedError when its owner moves."""
        seen = self._content()
        if seen is None:
            return
        owner = owner_of(self._directory)
        period = PERIOD_SECONDS
        if owner is not None and 0 < owner.period_seconds <= MAX_PERIOD_SECONDS:
            period = owner.period_seconds
        who = f"{owner.host}, process {owner.pid}" if owner else "an unknown process"
        self._tell(
            f"{self._directory} was driven by {who}; watching for {PERIODS_WATCHED * period:g} s whether it lives"
        )
        end = time.monotonic() + PERIODS_WATCHED * period
        while time.monotonic() < end:
            time.sleep(min(0.2, period / 4))
            now = self._content()
            if now is None:
                return
            if now != seen:
                raise LockedError(
                    f"{self._directory} is being written by {who}; wait for it, or stop it and start this again"
                )
        # Away with what was watched and nothing else: another taker may have been faster.
        broken = self._path.with_name(f".gpudedup-lock-{self._owner.token}-broken")
        with contextlib.suppress(OSError):
            os.replace(self._path, broken)
            if broken.read_bytes() != seen:
                os.link(broken, self._path)
            broken.unlink()

    def _content(self) -> bytes | None:
        try:
            with open(self._path, "rb") as file:
                return file.read(MAX_BYTES)
        except FileNotFoundError:
            return None

    def _is_mine(self) -> bool:
        owner = owner_of(self._directory)
        return owner is not None and owner.token == self._owner.token

    def _beat(self) -> None:
        while not self._released.wait(PERIOD_SECONDS):
            if not self._is_mine():
                self._lost = True
                return
            self._owner = msgspec.structs.replace(self._owner, beat=self._owner.beat + 1)
            with contextlib.suppress(Exception), atomic_file(self._path) as temporary:  # a full disk: no beat, no harm
                temporary.write_bytes(msgspec.json.encode(self._owner))
