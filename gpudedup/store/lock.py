"""The lock of a run directory: keeps two drivers from doing the same work twice.

What drivers write is committed whole, and equal plans give equal bytes, so two that drive one run the same way harm
nothing. A driver that was taken over looks here before anything gets its name or is deleted, and leaves: else it could
put files of its plan among those of another. Only one that stands still just between the look and the deed can do so;
checksums then tell, and the run is made whole by the command that is given again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Protocol

import msgspec

from gpudedup.errors import ArtefactError, GpudedupError, LockedError
from gpudedup.store import sealed
from gpudedup.store.atomic import locked_folder, output_errors, temporary_path
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

LOOKS, LOOK_SECONDS = 8, 1.0
"""As often a watched lock is looked at in a period, but not more seldom than every so many seconds."""

NO_LINKS = (errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOSYS, errno.ENOTSUP)
"""What file systems without hard links say when they are asked for one."""

LOOKS_FOR_OWN, OWN_SECONDS = 5, 0.02
"""So often, and with such pauses, a driver looks for its lock before it takes it for gone (on NFS a file that is being
replaced is not there for a moment), and tries to take it away.
"""

PATIENCE_SECONDS = 1.0
"""So long a process waits for another that is just changing the lock."""


Tell = Callable[[str], None]
"""Called with a line for the user."""


def unheard(line: str) -> None:
    """Nobody listens."""


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Who drives a run. ``beat`` counts up; clocks of other machines are never looked at."""

    token: str
    host: Annotated[str, msgspec.Meta(max_length=255)]
    pid: int
    period_seconds: float
    beat: int


def owner_of(data: bytes | None) -> Owner | None:
    """What a lock says; None if there is none, or none that can be read."""
    try:
        return None if data is None else msgspec.json.decode(data, type=Owner)
    except (ValueError, msgspec.MsgspecError):
        return None


def is_of(data: bytes | None, token: str) -> bool:
    """Whether a lock is held by the owner with this token."""
    owner = owner_of(data)
    return owner is not None and owner.token == token


class LockFile(Protocol):
    """Where the lock lies."""

    name: str
    """Of the run."""
    period_seconds: float

    def read(self) -> bytes | None:
        """None if it is not there. Raises ArtefactError for what no driver writes."""

    def create(self, data: bytes) -> bool:
        """False if it is there already."""

    def replace(self, token: str, data: bytes) -> bool:
        """Write the lock anew if its owner has this token; False if it has not."""

    def take_away(self, seen: bytes) -> None:
        """Delete the lock that has these bytes, and no other."""


class LocalLockFile:
    """In a directory. Creation is atomic, with the content."""

    period_seconds = PERIOD_SECONDS

    def __init__(self, directory: Path) -> None:
        self.name, self._path = str(directory), directory / LOCK

    def read(self) -> bytes | None:
        """Raises ArtefactError for a link, what is no file, and more than ``MAX_BYTES``."""
        try:
            return sealed.read_bytes(self._path, MAX_BYTES)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):  # of the second tells NFS when it was replaced
                return None
            raise ArtefactError(f"cannot read {self._path}: {error.strerror}") from error

    def create(self, data: bytes) -> bool:
        """Raises OutputError if the directory cannot be written."""
        with output_errors(self._path):
            temporary = temporary_path(self._path.parent)
            try:
                temporary.write_bytes(data)
                try:
                    os.link(temporary, self._path)
                except OSError as error:
                    if error.errno not in NO_LINKS:
                        raise
                    self._create_in_steps(data)
            except FileExistsError:
                return False
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()
        return True

    def _create_in_steps(self, data: bytes) -> None:
        """Created exclusively too, but its content comes a moment later."""
        with open(self._path, "xb") as file:
            try:
                file.write(data)
                file.flush()
            except BaseException:
                self._path.unlink(missing_ok=True)
                raise

    def replace(self, token: str, data: bytes) -> bool:
        """Raises OSError."""
        temporary = temporary_path(self._path.parent)  # not flushed: a crash ends the driver too
        try:
            temporary.write_bytes(data)
            with self._alone():
                if not is_of(self.read(), token):
                    return False
                os.replace(temporary, self._path)
                return True
        finally:
            temporary.unlink(missing_ok=True)

    def take_away(self, seen: bytes) -> None:
        for _ in range(LOOKS_FOR_OWN):
            with contextlib.suppress(OSError, ArtefactError), self._alone():
                if self.read() == seen:
                    self._path.unlink()
                return
            time.sleep(OWN_SECONDS)  # a disk that failed once may do it now; nobody else takes away a finished run's

    def _alone(self) -> contextlib.AbstractContextManager[bool]:
        """Nobody else takes the lock away or writes it anew, where the file system has locks, unless a process that
        stands still has it locked.
        """
        return locked_folder(self._path.parent, exclusive=True, patience_seconds=PATIENCE_SECONDS)


class RemoteLockFile:
    """On an object store, which creates nothing exclusively: of two that create it, the last to write has it."""

    period_seconds = REMOTE_PERIOD_SECONDS

    def __init__(self, mirror: Mirror) -> None:
        self.name, self._mirror = mirror.name, mirror

    def read(self) -> bytes | None:
        """Raises UnreachableError, and ArtefactError for more than ``MAX_BYTES``."""
        return self._mirror.read(LOCK, MAX_BYTES)

    def create(self, data: bytes) -> bool:
        """Waits a moment to see whether another one wrote it too."""
        if self.read() is not None:
            return False
        self._mirror.write(LOCK, data)
        time.sleep(SETTLING_SECONDS)
        return self.read() == data

    def replace(self, token: str, data: bytes) -> bool:
        """Nearly, too. Raises UnreachableError and OutputError."""
        if not is_of(self.read(), token):
            return False
        self._mirror.write(LOCK, data)
        return True

    def take_away(self, seen: bytes) -> None:
        """Nearly: between looking and deleting another may have come."""
        with contextlib.suppress(GpudedupError):
            if self.read() == seen:
                self._mirror.remove(LOCK)


class Lock:
    """Held as a context manager. Raises LockedError if another driver is alive; it watches for up to three periods.
    Raises ArtefactError for a lock that no driver writes, OutputError if none can be written.

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
        try:
            while not self._file.create(self._said):
                self._watch()
        except BaseException:
            self._file.take_away(self._said)  # a stop may come when it was just made
            raise
        self._thread = threading.Thread(target=self._beat, name="gpudedup-lock", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._release()
        except BaseException:  # a stop; no other one follows
            self._release()
            raise

    def _release(self) -> None:
        self._released.set()
        if self._thread is not None:
            self._thread.join()
        if not self._lost:
            self._file.take_away(self._said)

    def check(self) -> None:
        """Raise LockedError if another driver took the run over, also one that has ended since."""
        for _ in range(LOOKS_FOR_OWN):
            data = self._file.read()
            if data is not None:
                break
            time.sleep(OWN_SECONDS)
        if self._lost or not is_of(data, self._owner.token):
            owner = owner_of(data)
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
        step = min(LOOK_SECONDS, period / LOOKS)
        for _ in range(round(seconds / step)):  # not until a time: both may have stood still, and then this would win
            time.sleep(step)
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
                next_beat = msgspec.structs.replace(self._owner, beat=self._owner.beat + 1)
                if not self._file.replace(self._owner.token, msgspec.json.encode(next_beat)):
                    self._lost = True
                    return
                self._owner = next_beat
