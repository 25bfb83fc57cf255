"""A run directory on an object store: a local directory stands for it while a process works on it.

Object stores have no rename, but a task counts only when its record is there, and that is uploaded last; so whatever
ends an upload early is as if it had not begun. Files that are only on the store are placeholders here, records too:
sparse, of the size that the listing of the run says, without their bytes until those are asked for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from gpudedup.errors import ArtefactError, LockedError, OutputError
from gpudedup.io.batches import say
from gpudedup.io.remote import UnreachableError, Url, filesystem_of
from gpudedup.store import manifest as manifests
from gpudedup.store import records
from gpudedup.store.atomic import temporary_path
from gpudedup.store.scratch import ScratchDirectory
from gpudedup.store.stopping import checkpoint, results, stoppable_threads

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

BLOCK_BYTES = 8 << 20
AT_ONCE = 8
"""Files that are moved at the same time: what takes time is mostly waiting."""

ATTEMPTS = 4
FIRST_PAUSE_SECONDS = 0.2

Value = TypeVar("Value")


class Mirror:
    """url: where the run is; tmp: where its local directory is made. Close it, and that is deleted.

    What is read raises UnreachableError where the store cannot be reached, what is written OutputError. Raises
    InputError for a URL that no filesystem can be found for, OutputError if ``tmp`` cannot be written.
    """

    def __init__(self, url: str, tmp: str) -> None:
        self.name = Url.parse(url).name.rstrip("/")
        self._filesystem: FileSystem
        self._filesystem, root = filesystem_of(url)
        self._root = root.rstrip("/")
        self._scratch = ScratchDirectory("gpudedup-run-", tmp)
        self.local = self._scratch.path
        self._absent: set[str] = set()
        try:
            self._pull()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Delete the local directory."""
        self._scratch.close()

    def fetch(self, path: Path) -> None:
        """Get the bytes of a file that is a placeholder. Raises ArtefactError if they are gone."""
        name = path.relative_to(self.local).as_posix()
        if name in self._absent:
            self._download(name)

    def fetch_records(self, stage: str) -> None:
        """Get the records of all tasks of a stage, several at a time. Raises ArtefactError if one is gone."""
        folder = f"{records.folder_of(stage)}/"
        names = sorted(name for name in self._absent if name.startswith(folder))
        self._each(self._download, [name for name in names if self._size(name) <= records.MAX_BYTES])

    def publish(self, names: Iterable[str]) -> None:
        """Upload files; results become placeholders, as nothing here reads them again. Raises OutputError."""

        def one(name: str) -> None:
            self._upload(name)
            self._absent.discard(name)
            if name.partition("/")[0] in manifests.RESULTS:
                size = self._size(name)
                (self.local / name).unlink()
                self._hold_place(name, size)

        self._each(one, list(names))

    def delete(self, folder: str) -> None:
        """Delete all files below a folder of the run."""
        from pyarrow.fs import FileSelector, FileType

        def work() -> None:
            selector = FileSelector(f"{self._root}/{folder}", recursive=True, allow_not_found=True)
            for info in self._filesystem.get_file_info(selector):
                if info.type == FileType.File:
                    self._filesystem.delete_file(info.path)

        self._write(work, f"delete {folder} of")
        self._absent = {name for name in self._absent if not name.startswith(f"{folder}/")}

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """The bytes that a small file has on the store now; None if it is not there. Raises ArtefactError for more than
        ``limit_bytes``.
        """

        def work() -> bytes | None:
            try:
                with self._filesystem.open_input_stream(f"{self._root}/{name}") as file:
                    return bytes(file.read(limit_bytes + 1))
            except FileNotFoundError:
                return None

        data = self._read(work, f"read {name} of")
        if data is not None and len(data) > limit_bytes:
            raise ArtefactError(f"{self.name}/{name} has more than the {limit_bytes} bytes that it can have; delete it")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a small file, as a whole. Raises OutputError."""

        def work() -> None:
            self._make_folder(name)
            with self._filesystem.open_output_stream(f"{self._root}/{name}") as file:
                file.write(data)

        self._write(work, f"write {name} of")

    def remove(self, name: str) -> None:
        """Delete a file. Raises OutputError."""
        self._write(lambda: self._filesystem.delete_file(f"{self._root}/{name}"), f"delete {name} of")
        self._absent.discard(name)

    def check_current(self) -> None:
        """Raise LockedError if another process went on with the run since it was pulled."""
        path = self.local / manifests.NAME
        if self.read(manifests.NAME, manifests.MAX_BYTES) != (path.read_bytes() if path.exists() else None):
            raise LockedError(f"{self.name} was changed by another process in the meantime; start this again")

    def _pull(self) -> None:
        """The manifest as it is; placeholders for the rest."""
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self._root, recursive=True, allow_not_found=True)
        for info in self._read(lambda: self._filesystem.get_file_info(selector), "list"):
            if info.type != FileType.File:
                continue
            name = info.path.removeprefix(self._root).lstrip("/")
            parts = name.split("/")
            if not {"", ".", ".."}.isdisjoint(parts) or "\0" in name:
                raise ArtefactError(f"{self.name} holds {name!r}, which no run writes; delete it")
            try:
                self._hold_place(name, info.size)
            except OSError as error:  # a name that is a file and a folder, or too long, or of a size that cannot be
                raise ArtefactError(f"{self.name} holds {name!r}, which no run writes: {error.strerror}") from error
        if manifests.NAME in self._absent and self._size(manifests.NAME) <= manifests.MAX_BYTES:
            self._download(manifests.NAME)

    def _size(self, name: str) -> int:
        return (self.local / name).lstat().st_size

    def _hold_place(self, name: str, size_bytes: int) -> None:
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.truncate(size_bytes)
        self._absent.add(name)

    def _download(self, name: str) -> None:
        """Put the bytes of a file in the place of its placeholder, no more of them than that has."""
        path, size_bytes = self.local / name, self._size(name)
        part = temporary_path(path.parent)

        def work() -> None:
            with self._filesystem.open_input_stream(f"{self._root}/{name}") as origin, open(part, "wb") as file:
                while file.tell() <= size_bytes and (block := origin.read(BLOCK_BYTES)):
                    checkpoint()
                    file.write(block)
            if part.stat().st_size != size_bytes:
                raise ArtefactError(
                    f"{self.name}/{name} is not of {size_bytes} bytes any more; another process writes it: start again"
                )

        try:
            self._read(work, f"read {name} of")
            os.replace(part, path)
        except FileNotFoundError as error:
            raise ArtefactError(f"{self.name}/{name} is gone; another process deleted it: start again") from error
        finally:
            part.unlink(missing_ok=True)
        self._absent.discard(name)

    def _upload(self, name: str) -> None:
        def work() -> None:
            self._make_folder(name)
            with (
                open(self.local / name, "rb") as origin,
                self._filesystem.open_output_stream(f"{self._root}/{name}") as file,
            ):
                while block := origin.read(BLOCK_BYTES):
                    file.write(block)
                    if name != manifests.NAME:  # what is given up is there in part, which a manifest must not be
                        checkpoint()

        self._write(work, f"write {name} of")

    def _make_folder(self, name: str) -> None:
        """Object stores have no folders; other filesystems want them."""
        if self._filesystem.type_name not in ("s3", "gcs", "abfs"):
            self._filesystem.create_dir(f"{self._root}/{name}".rpartition("/")[0], recursive=True)

    def _each(self, work: Callable[[str], None], names: Sequence[str]) -> None:
        with stoppable_threads(min(AT_ONCE, max(1, len(names))), "gpudedup-mirror") as submit:
            results([submit(partial(work, name)) for name in names])

    def _read(self, work: Callable[[], Value], what: str) -> Value:
        """What ``work`` gives. Raises UnreachableError, and FileNotFoundError as it is."""
        try:
            return _insistently(work)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise UnreachableError(
                f"cannot {what} {self.name}: {say(error)}; check that the store can be reached and that you may read "
                "there, and start again"
            ) from error

    def _write(self, work: Callable[[], Value], what: str) -> Value:
        """What ``work`` gives. Raises OutputError."""
        try:
            return _insistently(work)
        except (OSError, pa.ArrowException) as error:
            raise OutputError(
                f"cannot {what} {self.name}: {say(error)}; check that the store can be reached and that you may write "
                "there, and start again: what is committed stays"
            ) from error


def _insistently(work: Callable[[], Value]) -> Value:
    """What ``work`` gives; networks fail in passing, so it is tried again a few times."""
    pause = FIRST_PAUSE_SECONDS
    for attempt in range(1, ATTEMPTS + 1):
        checkpoint()
        try:
            return work()
        except (OSError, pa.ArrowException) as error:
            if attempt == ATTEMPTS or isinstance(error, FileNotFoundError | PermissionError):
                raise
        time.sleep(pause)
        pause *= 4
    raise AssertionError("the last attempt returns or raises")
