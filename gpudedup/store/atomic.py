"""Files that are whole or absent: written under a temporary name, flushed, and only then given their own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from gpudedup.errors import OutputError
from gpudedup.store.stopping import checkpoint

TEMPORARY = ".gpudedup-"
"""What temporary names begin with; a leading dot keeps them out of directories that are read as input."""

LOOK_SECONDS = 0.01
"""Between two looks at a directory that another process has locked."""


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong with writing ``path`` into an OutputError that says why and what to do.

    For a temporary path nothing is done, since ``atomic_file`` does it under the name that the file is to have.
    """
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if path.name.startswith(TEMPORARY):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        reason = re.sub(re.escape(TEMPORARY) + "[0-9a-f]{32}", lambda _: path.name, reason)
        raise OutputError(f"cannot write {path}: {reason}; {_way_out(error, path)}") from error


def _way_out(error: BaseException, path: Path) -> str:
    number = getattr(error, "errno", None)
    if isinstance(error, pa.ArrowException) and number is None:
        return "convert or drop the column that this file format cannot hold"
    if number in (errno.ENOSPC, errno.EDQUOT):
        return f"{_free_space(path)}: free some or choose another directory"
    if number in (errno.EACCES, errno.EPERM):
        return "you have no permission to write there: choose another directory"
    if number == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if number == errno.EROFS:
        return "it is on a read-only file system: choose another directory"
    if number == errno.EFBIG:
        return "the file would be larger than this system or its limits (ulimit -f) allow"
    return f"{_free_space(path)}; choose another directory"


def _free_space(path: Path) -> str:
    for folder in path.absolute().parents:
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(folder).free} bytes are free in {folder}"
    return "free space is unknown"


def at_once() -> None:
    """For a file that may always get its name."""


@contextlib.contextmanager
def atomic_file(path: Path, before: Callable[[], None] = at_once) -> Iterator[Path]:
    """A temporary path in the folder of ``path``; renamed to ``path`` when the block ends well, removed when it does
    not.

    The file is flushed to the device before, so that after a crash ``path`` is whole or absent; that it is not absent
    is up to ``sync_folder``, once for all files of a folder. ``before`` is called when only the name is missing, and
    what it raises keeps it away.
    Raises OutputError with path, free space and a way out for anything that the system refuses.
    """
    temporary = temporary_path(path.parent)
    try:
        with output_errors(path):
            try:
                yield temporary
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
            except OSError:
                before()  # it may say why, such as who deleted the file
                raise
            before()
            os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def temporary_path(folder: Path) -> Path:
    """A path in ``folder`` that nothing has."""
    return folder / f"{TEMPORARY}{uuid.uuid4().hex}"


class _OutputFile(io.FileIO):
    """A file whose writer may be asked to stop."""

    def write(self, data: Any) -> int:
        checkpoint()
        return super().write(data)


def open_output(path: Path) -> io.BufferedWriter:
    """A new file to write to. Raises GivenUpError from the next write after the thread was asked to stop."""
    return io.BufferedWriter(_OutputFile(path, "w"))


class HashedFile(io.RawIOBase):
    """A file to write to whose checksum is known when it is closed. Sequential writes only."""

    def __init__(self, path: Path) -> None:
        self._file = open_output(path)
        self._digest = xxhash.xxh3_128()
        self.size_bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self._digest.update(view)
        self.size_bytes += view.nbytes
        self._file.write(view)
        return view.nbytes

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def close(self) -> None:
        self._file.close()
        super().close()

    @property
    def xxh3_128(self) -> str:
        return self._digest.hexdigest()


@contextlib.contextmanager
def flushed_at_once(folder: Path) -> Iterator[None]:
    """Flush all that was written on the file system of ``folder`` in the block, files and names, when it ends well.

    For many small files: to flush each by itself takes a commit of the file system's journal, a millisecond or more,
    and this takes one. Raises OSError if anything could not be written; the system tells that (from Linux 5.8 on) by
    the handle, of what happened after it was opened.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield
        library = ctypes.CDLL(None, use_errno=True)
        if library.syncfs(handle):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the device, where the file system can and the folder may be read."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextlib.contextmanager
def locked_folder(folder: Path, *, exclusive: bool, patience_seconds: float = 0.0) -> Iterator[bool]:
    """Whether no other process has the directory locked; then none gets it before the block ends.

    The system drops the lock when a process ends. Where a file system has no locks, the answer is yes.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield _is_locked_now(handle, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, patience_seconds)
    finally:
        os.close(handle)


def _is_locked_now(handle: int, kind: int, patience_seconds: float) -> bool:
    for _ in range(1 + round(patience_seconds / LOOK_SECONDS)):
        try:
            fcntl.flock(handle, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_SECONDS if patience_seconds else 0)
        except OSError:
            return True
        else:
            return True
    return False
