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
from typing import Protocol

import msgspec

from gpudedup.errors import LockedError, OutputError
from gpudedup.store.atomic import output_errors, temporary_path
from gpudedup.store.mirror import Mirror
from gpudedup.store.run_directory import LOCK

MAX_BYTES = 1 << 16

PERIOD_SECONDS = 2.0
"""Between two beats."""

REMOTE_PERIOD_SECONDS = 10.0
SETTLING_SECONDS = 1.0

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


def owner_of(data: bytes | None) -> Owner | None:
    """What a lock says; None if there is none, or none that can be read."""
    try:
        return None if data is None else msgspec.json.decode(data, type=Owner)
    except (ValueError, msgspec.MsgspecError):
        return None


class LockFile(Protocol):
    """Where the lock lies."""

    name: str
    """Of the run."""
    period_seconds: float

    def read(self) -> bytes | None: ...
    def create(self, data: bytes) -> bool:
        """False if it is there already."""

    def replace(self, data: bytes) -> None: ...
    def take_away(self, seen: bytes) -> None:
        """Delete the lock that has these bytes, and no other."""


class LocalLockFile:
    """In a directory. Creation is atomic, with the content."""

    period_seconds = PERIOD_SECONDS

    def __init__(self, directory: Path) -> None:
        self.name, self._path = str(directory), directory / LOCK

    def read(self) -> bytes | None:
        """At most ``MAX_BYTES``; a link is read as no lock."""
        try:
            with open(os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
                return file.read(MAX_BYTES)
        except OSError:
            return None

    def create(self, data: bytes) -> bool:
        """Raises OutputError if the directory cannot be written."""
        with output_errors(self._path):
            temporary = temporary_path(self._path.parent)
            try:
                temporary.write_bytes(data)
                os.link(temporary, self._path)
            except FileExistsError:
                return False
            except OSError:  # no links on this file system: exclusive creation, whose content comes a moment later
                try:
                    with open(self._path, "xb") as file:
                        file.write(data)
                except FileExistsError:
                    return False
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return True

    def replace(self, data: bytes) -> None:
        """Raises OSError."""
        temporary = temporary_path(self._path.parent)  # not flushed: a crash ends the driver too
        try:
            temporary.write_bytes(data)
            os.replace(temporary, self._path)
        finally:
            temporary.unlink(missing_ok=True)

    def take_away(self, seen: bytes) -> None:
        """If another taker was faster and made its own, that is put back."""
        aside = temporary_path(self._path.parent)
        with contextlib.suppress(OSError):
            os.replace(self._path, aside)
            if aside.read_bytes() != seen:
                os.link(aside, self._path)
            aside.unlink()


class RemoteLockFile:
    """On an object store, which creates nothing exclusively: of two that create it, the last to write has it."""

    period_seconds = REMOTE_PERIOD_SECONDS

    def __init__(self, mirror: Mirror) -> None:
        self.name, self._mirror = mirror.name, mirror

    def read(self) -> bytes | None:
        """Raises OutputError where the store cannot be reached."""
        return self._mirror.read(LOCK)

    def create(self, data: bytes) -> bool:
        """Waits a moment to see whether another one wrote it too."""
        if self.read() is not None:
            return False
        self._mirror.write(LOCK, data)
        time.sleep(SETTLING_SECONDS)
        return self.read() == data

    def replace(self, data: bytes) -> None:
        """Raises OutputError."""
        self._mirror.write(LOCK, data)

    def take_away(self, seen: bytes) -> None:
        """Nearly: between looking and deleting another may have come."""
        with contextlib.suppress(OutputError):
            if self.read() == seen:
                self._mirror.remove(LOCK)


class Lock:
    """Held as a context manager. Raises LockedError if another driver is alive; it watches for up to three periods.

    tell: called with a line when it begins to watch another driver's lock.
    """

    def __init__(self, file: LockFile, tell: Tell = unheard) -> None:
        self._file, self._tell = file, tell
        self._owner = Owner(
            token=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            period_seconds=file.period_seconds,
            beat=0,
        )
        self._released = threading.Event()
        self._lost = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Lock:
        while not self._file.create(self._said):
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
        if not self._lost:
            self._file.take_away(self._said)

    def check(self) -> None:
        """Raise LockedError if another driver took the run over."""
        owner = owner_of(self._file.read())
        if self._lost or (owner is not None and owner.token != self._owner.token):
            who = f"{owner.host}, process {owner.pid}" if owner else "another driver"
            raise LockedError(
                f"{self._file.name} was taken over by {who}, because this process stood still for too long; what it "
                "finished counts, and the other one goes on"
            )

    @property
    def _said(self) -> bytes:
        return msgspec.json.encode(self._owner)

    def _watch(self) -> None:
        """Return when the lock there may be broken, and was. Raises LockedError when its owner moves."""
        seen = self._file.read()
        if seen is None:
            return
        owner = owner_of(seen)
        period = self._file.period_seconds
        if owner is not None and 0 < owner.period_seconds <= MAX_PERIOD_SECONDS:
            period = owner.period_seconds
        who = f"{owner.host}, process {owner.pid}" if owner else "an unknown process"
        seconds = PERIODS_WATCHED * period
        self._tell(f"{self._file.name} was driven by {who}; watching for {seconds:g} s whether it lives")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(min(0.2, period / 4))
            now = self._file.read()
            if now is None:
                return
            if now != seen:
                raise LockedError(
                    f"{self._file.name} is being written by {who}; wait for it, or stop it and start this again"
                )
        self._file.take_away(seen)

    def _beat(self) -> None:
        while not self._released.wait(self._file.period_seconds):
            with contextlib.suppress(Exception):  # a full disk or no network: no beat, no harm
                owner = owner_of(self._file.read())
                if owner is None or owner.token != self._owner.token:
                    self._lost = True
                    return
                next_beat = msgspec.structs.replace(self._owner, beat=self._owner.beat + 1)
                self._file.replace(msgspec.json.encode(next_beat))
                self._owner = next_beat
