"""The directory of a run: written so that it is whole or absent, read so that nothing in it is trusted unchecked."""

from __future__ import annotations

import contextlib
import datetime
import fnmatch
import glob
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gpudedup.errors import ArtefactError, InputError, OutputError, ParameterError
from gpudedup.io.paths import common_names, would_find
from gpudedup.io.remote import Url, is_url
from gpudedup.store import manifest as manifests
from gpudedup.store import records
from gpudedup.store.atomic import (
    TEMPORARY,
    HashedFile,
    at_once,
    atomic_file,
    flushed_at_once,
    open_output,
    output_errors,
    sync_folder,
    temporary_path,
)
from gpudedup.store.manifest import Manifest, OutputEntry
from gpudedup.store.mirror import Mirror
from gpudedup.store.records import Record
from gpudedup.store.stopping import checkpoint

OUTPUTS = ("kept", "mask", "none")
MARKER = ".gpudedup-unfinished"
"""A file that is there while a run is being written; created exclusively, so that two runs cannot share a directory."""

REMOVED_SCHEMA = pa.schema(
    [
        *(("shard", pa.string()), ("row", pa.int64()), ("reason", pa.string())),
        *(("keeper_shard", pa.string()), ("keeper_row", pa.int64())),
        *(("similarity", pa.float64()), ("cluster", pa.int64())),
    ]
)
"""The columns of removals where there is no id column (docs/spec.md, section 13)."""

LOCK = "lock.json"
"""The file that `store.lock` keeps in a run directory."""

MASK_ROWS = 1 << 24
WHOLE_NAME = "data.parquet"
"""The file name for the shard "": data in memory, or the tables of all plain text files together."""


def check_output(output: str) -> None:
    """Raise ParameterError for an unknown ``output``."""
    if output not in OUTPUTS:
        raise ParameterError(f'output must be one of "kept", "mask", "none", got {output!r}')


def relative_names(paths: Sequence[str]) -> list[str]:
    """``common_names``; that of "" (data in memory) is ``WHOLE_NAME``. Raises InputError also if two tables would get
    one name.
    """
    names = common_names([path or WHOLE_NAME for path in paths])
    seen: dict[str, str] = {}
    for name, path in zip(names, paths, strict=True):
        for file_name in {name, _table_name(name)}:
            other = seen.setdefault(file_name, path)
            if other != path:
                raise InputError(f"outputs for {other} and {path} would have the same name {file_name!r}; rename one")
    return names


def _table_name(name: str) -> str:
    return name if name.endswith(".parquet") else f"{name}.parquet"


class Artefacts:
    """What is committed in a run directory, read so that nothing in it is trusted unchecked."""

    def __init__(self, path: Path, mirror: Mirror | None = None) -> None:
        """mirror: what ``path`` stands for, if the run is on an object store."""
        self.path, self.mirror = path, mirror
        self._compared: set[Path] = set()  # whose checksums were compared
        self._fetched: set[str] = set()  # stages whose records are here

    @property
    def name(self) -> str:
        """Where it is: a path or a URL."""
        return str(self.path) if self.mirror is None else self.mirror.name

    def done(self, stage: str, task: int, digest: str | None) -> Record | None:
        """The record of a task if it is done (``records.read``)."""
        self._fetch_records(stage)
        return records.read(self.path, stage, task, digest)

    def record(self, stage: str, task: int) -> Record:
        """The record of a task, whatever became of what it lists (``records.load``)."""
        self._fetch_records(stage)
        return records.load(self.path, stage, task)

    def _fetch_records(self, stage: str) -> None:
        """From a store they come all at once, when the first is asked for: who wants one mostly wants all."""
        if self.mirror is not None and stage not in self._fetched:
            self.mirror.fetch_records(stage)
            self._fetched.add(stage)

    def tasks_recorded(self, stage: str) -> list[int]:
        """The tasks of a stage that have a record, whatever it says."""
        return records.tasks_recorded(self.path, stage)

    def manifest(self) -> Manifest | None:
        """The manifest, of an unfinished run too; None if nothing was begun. Raises ArtefactError."""
        return manifests.read(self.path, unfinished=True) if holds_run(self.path) else None

    def artefact(self, entry: OutputEntry) -> Path:
        """The path of a working artefact, once its checksum was compared. Raises ArtefactError."""
        path = manifests.safe_path(self.path, entry, manifests.WORKING)
        if path not in self._compared:
            if self.mirror is not None:
                self.mirror.fetch(path)
            try:
                compare(path, entry, "its record")
            except ArtefactError as error:
                raise ArtefactError(f"{error}; {records.MAKE_ANEW}") from None
            self._compared.add(path)
        return path


class RunDirectory(Artefacts):
    """A run that is being written. Use as a context manager: unless ``finish`` was called, what was begun is removed
    again: all of it, or with ``resumable`` all but what is committed.

    Files: manifest.json; removed/NAME.parquet and, by ``output``, kept/NAME or keep_mask/NAME.parquet for every shard.
    With ``one_table`` the tables of removals and the mask are ``WHOLE_NAME``, for all.

    After a crash a run with a manifest is whole: the bytes of each file are flushed before it gets its name, and the
    names before the manifest gets its own.
    """

    def __init__(
        self,
        path: Path,
        names: dict[str, str],
        output: str,
        one_table: bool,
        resumable: bool,
        mirror: Mirror | None,
        against: Sequence[str],
    ) -> None:
        """For ``create`` only."""
        super().__init__(path, mirror)
        self.output, self._names, self._one_table = output, names, one_table
        self._resumable = resumable
        self._files: list[str] = []
        self._folders: list[Path] = []
        self._made: list[Path] = []  # the directory itself, and those above it that were missing
        self._unflushed: set[Path] = set()  # folders with new names
        self._unnamed: list[Path] = []  # folders under temporary names, with all that is in them
        self._finished = False
        self.still_ours: Callable[[], None] = at_once
        """Raises LockedError if another driver took the run over. Asked before anything gets its name or is deleted."""
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._began_before = holds_run(path)
        self.working_directory = working_directory([*names, *against])

    @classmethod
    def create(
        cls,
        out: str | os.PathLike[str],
        shards: Sequence[str],
        inputs: Sequence[str] = (),
        output: str = "kept",
        one_table: bool = False,
        resumable: bool = False,
        mirror: Mirror | None = None,
        against: Sequence[str] = (),
    ) -> RunDirectory:
        """Make the directory, or take an empty one; with ``resumable`` also one that holds such a run already.

        shards: names of all input files, or "" for data in memory; inputs: the paths, globs and directories that they
        were found by; one_table: whether they are many small files, which share their tables; against: earlier runs.
        Raises OutputError if ``out`` is not empty, where an input directory or glob would find the run, or cannot be
        made; ParameterError for an unknown ``output``; InputError if two shards would get one output name.
        """
        check_output(output)
        path = _folder_path(out)
        names = dict(zip(shards, relative_names(shards), strict=True))
        run = cls(path, names, output, one_table, resumable, mirror, against)
        for given in inputs:
            if is_url(given):
                if mirror is not None and would_find(given, mirror.name):
                    raise OutputError(
                        f"{mirror.name} is inside the input {Url.parse(given).name}, where a later run would read it "
                        "as input; choose another place"
                    )
                continue
            folder = _input_folder(given)
            if (folder is not None and _is_inside(path, folder)) or _glob_finds(given, path, run._planned()):
                raise OutputError(
                    f"{path} is inside the input {given}, where a later run would read it as input; choose a directory "
                    "elsewhere"
                )
        for shard in shards if os.path.isfile(path) else ():
            if shard and os.path.realpath(shard) == os.path.realpath(path):
                raise OutputError(f"{path} is the input file itself; choose another name")
        for above, shard in {os.path.dirname(shard): shard for shard in shards if shard and not is_url(shard)}.items():
            if _is_inside(Path(above), path):
                raise OutputError(f"input {shard} is inside {path}; choose another directory")
        with output_errors(path):
            if os.path.lexists(path) and not (resumable and holds_run(path)):
                _require_empty(path, resumable)
            for folder in path.parents:
                if os.path.lexists(folder) and not os.path.isdir(folder):
                    raise OutputError(f"{folder} is not a directory, so {path} cannot be made; choose another name")
        if resumable:
            run._make_folder(path)
            return run
        try:
            run._make_folder(path)
            with output_errors(path):
                marker = path / MARKER
                run._files.append(str(marker))  # first, so that an interrupt leaves no file that is not known
                try:
                    handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
                except OSError:
                    run._files.pop()
                    raise
                os.close(handle)
        except BaseException:
            run.remove()
            raise
        return run

    def write_removed(self, shard: str, table: pa.Table) -> OutputEntry:
        """Write the removals of a shard, or with ``one_table`` of all ("") as Parquet (zstd). Raises OutputError."""

        def write(path: Path) -> None:
            with open_output(path) as file:
                pq.write_table(table, file, compression="zstd")

        return self._write("removed", shard, table.num_rows, write)

    def write_mask(self, shard: str, keep: npt.NDArray[np.bool_], names: Sequence[str] | None = None) -> OutputEntry:
        """Write a keep mask as Parquet (zstd): ``keep``: bool, and before it ``shard``: string if the rows have
        ``names``. Raises OutputError.
        """
        fields = [pa.field("keep", pa.bool_())]
        if names is not None:
            fields.insert(0, pa.field("shard", pa.string()))
        schema = pa.schema(fields)

        def write(path: Path) -> None:
            with open_output(path) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for first in range(0, len(keep), MASK_ROWS):
                    part = slice(first, first + MASK_ROWS)
                    columns = [pa.array(keep[part])]
                    if names is not None:
                        columns.insert(0, pa.array(names[part], pa.string()))
                    writer.write_table(pa.table(columns, schema))

        return self._write("keep_mask", shard, len(keep), write)

    def write_kept(self, shard: str, write: Callable[[Path], Any], rows: int | None = None) -> OutputEntry:
        """Let ``write`` make kept/NAME at the temporary path that it is given (``Shard.write_kept``). Raises
        OutputError.
        """
        return self._write("kept", shard, rows, write)

    @contextlib.contextmanager
    def kept_files(self) -> Iterator[Callable[[str, Iterable[bytes]], OutputEntry]]:
        """A function that writes kept/NAME from the shard's name and its bytes: for many small files, from any threads.

        They are written to a folder under a temporary name, which is flushed as a whole and renamed when the block
        ends. Raises OutputError.
        """
        final, temporary = self.path / "kept", temporary_path(self.path)
        folders = {""}
        names: list[str] = []

        def write(shard: str, blocks: Iterable[bytes]) -> OutputEntry:
            name = self._names[shard]
            folder = name.rpartition("/")[0]
            digest, size_bytes = xxhash.xxh3_128(), 0
            with output_errors(final / name):
                if folder not in folders:
                    os.makedirs(temporary / folder, exist_ok=True)
                    folders.add(folder)
                with open(f"{temporary}/{name}", "xb") as file:
                    for block in blocks:
                        checkpoint()
                        file.write(block)
                        digest.update(block)
                        size_bytes += len(block)
            names.append(name)
            return OutputEntry(
                path=f"kept/{name}",
                kind="kept",
                shard=shard,
                size_bytes=size_bytes,
                xxh3_128=digest.hexdigest(),
                rows=1,
            )

        with output_errors(final):
            self._unnamed.append(temporary)
            temporary.mkdir()
            with flushed_at_once(temporary):
                yield write
            # Known before they are there, so that an interrupt leaves nothing. Below kept/ all names are flushed.
            above = {str(parent) for folder in folders for parent in PurePosixPath(folder).parents}
            self._folders.extend(final / folder for folder in sorted(folders | above))
            self._files.extend(f"{final}/{name}" for name in names)
            self._still_ours_here()
            if self._resumable and final.is_dir():  # of a driver that was stopped before its record was written
                shutil.rmtree(final)
            temporary.rename(final)
            self._unflushed.add(self.path)
            self._unnamed.remove(temporary)

    def _write(self, kind: str, shard: str, rows: int | None, write: Callable[[Path], Any]) -> OutputEntry:
        name = self._names[shard] if shard else WHOLE_NAME
        relative = f"{kind}/{name if kind == 'kept' else _table_name(name)}"
        path = self.path / relative
        self._make_folder(path.parent)
        with atomic_file(path, self._still_ours_here) as temporary:
            write(temporary)
            entry = OutputEntry(
                path=relative,
                kind=kind,
                shard=shard,
                size_bytes=temporary.stat().st_size,
                xxh3_128=manifests.checksum(temporary),
                rows=rows,
            )
            self._files.append(str(path))
        with self._lock:
            self._unflushed.add(path.parent)
        return entry

    @contextlib.contextmanager
    def new_artefact(self, name: str) -> Iterator[HashedFile]:
        """A working artefact to write, ``name`` with "/"; it is there when the block ends well. Raises OutputError."""
        path = self.path / name
        self._make_folder(path.parent)
        with atomic_file(path, self._still_ours_here) as temporary:
            with HashedFile(temporary) as file:
                yield file
            self._files.append(str(path))
        with self._lock:
            self._unflushed.add(path.parent)

    def forget(self, stage: str, task: int, digest: str) -> None:
        """Delete the record of a task if it is of another plan: what it lists is about to be replaced. Raises
        OutputError.
        """
        path = records.path_of(self.path, stage, task)
        if os.path.lexists(path) and self.done(stage, task, digest) is None:
            self.still_ours()
            with output_errors(path):
                path.unlink()
                sync_folder(path.parent)
            if self.mirror is not None:
                self.mirror.remove(path.relative_to(self.path).as_posix())

    def commit(self, record: Record) -> None:
        """Make a task's artefacts last, then its record. Raises OutputError and LockedError."""
        self.flush_names()
        if self.mirror is not None:
            self.still_ours()
            self.mirror.publish(entry.path for entry in record.artefacts)
        path = records.write(self.path, record, self.still_ours)
        if self.mirror is not None:
            self.mirror.publish([path.relative_to(self.path).as_posix()])

    def _still_ours_here(self) -> None:
        """``still_ours``, unless what is written is this process's own until it is published."""
        if self.mirror is None:
            self.still_ours()

    def flush_names(self) -> None:
        """Flush the names of all files written so far to the device."""
        with self._lock:
            folders, self._unflushed = self._unflushed, set()
        with output_errors(self.path):
            for folder in sorted(folders):
                sync_folder(folder)

    def discard(self, kinds: Iterable[str]) -> None:
        """Delete folders of the run: what is there is of an earlier decision. Raises OutputError and LockedError."""
        self.still_ours()
        for kind in kinds:
            if self.mirror is not None:
                self.mirror.delete(kind)
            folder = self.path / kind
            with output_errors(folder):
                if folder.is_symlink():
                    folder.unlink()
                elif folder.is_dir():
                    shutil.rmtree(folder)

    def drop_temporaries(self) -> None:
        """Delete what a driver that was killed left under temporary names."""
        for folder, folders, names in os.walk(self.path):
            for name in [*folders, *names]:
                if name.startswith(TEMPORARY):
                    path = os.path.join(folder, name)
                    with contextlib.suppress(OSError):
                        shutil.rmtree(path) if name in folders and not os.path.islink(path) else os.unlink(path)
            folders[:] = [name for name in folders if not name.startswith(TEMPORARY)]

    def write_manifest(self, **fields: Any) -> Manifest:
        """Write manifest.json with ``fields`` beside those that the directory knows. Raises OutputError."""
        manifest = Manifest(
            format=manifests.FORMAT,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            output=self.output,
            working_directory=self.working_directory,
            **fields,
        )
        path = self.path / manifests.NAME
        with atomic_file(path, self.still_ours) as temporary:
            self._files.append(str(path))
            temporary.write_bytes(manifests.encode(manifest))
        with output_errors(path):
            sync_folder(self.path)
        if self.mirror is not None:
            self.mirror.publish([manifests.NAME])
        return manifest

    def finish(self, *, outputs: Iterable[OutputEntry], **fields: Any) -> Manifest:
        """Write the manifest of a complete run, the last file: from now on it stays. Raises OutputError."""
        places = {shard: place for place, shard in enumerate(("", *self._names))}
        ordered = sorted(outputs, key=lambda entry: (entry.kind, places[entry.shard]))
        self.flush_names()
        if self.mirror is not None and not self._resumable:
            self.mirror.publish(entry.path for entry in ordered)
        manifest = self.write_manifest(state="complete", outputs=ordered, **fields)
        self._finished = True
        self._unmark()
        return manifest

    def _unmark(self) -> None:
        with contextlib.suppress(OSError):
            (self.path / MARKER).unlink()

    def _planned(self) -> Iterator[str]:
        """Relative paths of all files that the run may write."""
        yield manifests.NAME
        tables = [WHOLE_NAME] if self._one_table else map(_table_name, self._names.values())
        for name in tables:
            yield f"removed/{name}"
            if self.output == "mask":
                yield f"keep_mask/{name}"
        if self.output == "kept":
            yield from (f"kept/{name}" for name in self._names.values())

    def remove(self) -> None:
        """Delete every file and folder that this run made, and nothing else."""
        while self._files:  # forgotten only when gone: an interrupt may come in between, and __del__ goes on
            with contextlib.suppress(OSError):
                os.unlink(self._files[-1])
            self._files.pop()
        self._drop_unnamed()
        while self._folders:
            with contextlib.suppress(OSError):
                self._folders[-1].rmdir()
            self._folders.pop()

    def give_back(self) -> None:
        """Delete folders that this run made and that are empty: nothing came of it."""
        for folder in reversed(self._made):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _drop_unnamed(self) -> None:
        while self._unnamed:
            shutil.rmtree(self._unnamed[-1], ignore_errors=True)
            self._unnamed.pop()

    def _make_folder(self, folder: Path) -> None:
        with self._lock:
            missing = []
            inside = folder
            while self.path in inside.parents:
                if inside.is_symlink():
                    raise ArtefactError(f"{inside} is a symbolic link, which no run writes; delete it")
                inside = inside.parent
            while not os.path.isdir(folder):
                missing.append(folder)
                folder = folder.parent
                if folder == folder.parent:
                    break
            for new in reversed(missing):
                with output_errors(new):
                    self._folders.append(new)
                    try:
                        new.mkdir()
                    except OSError:
                        self._folders.pop()
                        raise
                self._unflushed.add(new.parent)
                if self.path == new or new in self.path.parents:
                    self._made.append(new)

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._finished and self._resumable and (self._began_before or records.any_done(self.path)):
            self._drop_unnamed()
        elif not self._finished:
            self.remove()
        else:
            self._unmark()  # again, for an interrupt in ``finish``

    def __del__(self) -> None:
        """Remove what an interrupt between ``create`` and the ``with`` block, or within ``remove``, left."""
        if not self._finished and not self._resumable and self._process == os.getpid():
            self.remove()


def holds_run(path: Path) -> bool:
    """Whether there is a run in a directory, finished or not."""
    return os.path.isfile(path / manifests.NAME)  # False too for a path that cannot be


def working_directory(names: Iterable[str]) -> str:
    """Where relative names begin, if there are any; "" too for a directory that the manifest cannot name."""
    if all(os.path.isabs(name) or is_url(name) for name in names if name):
        return ""
    directory = os.getcwd()
    try:
        directory.encode()
    except UnicodeEncodeError:
        return ""
    return directory


def _folder_path(out: str | os.PathLike[str]) -> Path:
    """The path of a run that is to be made. Raises OutputError for one that no directory can have."""
    text = os.fspath(out)
    if not text:
        raise OutputError("no output directory given; name one that is new or empty")
    if "\0" in text:
        raise OutputError(f"the output directory {text!r} contains a NUL character; choose another name")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise OutputError(f"the output directory {text!r} is not UTF-8; choose another name") from None
    return _resolved(Path(text))


def _resolved(path: Path) -> Path:
    """The path itself, but one that goes through a missing directory and back (``new/../out``) without that detour."""
    detour = ".." in path.parts and not os.path.lexists(path) and not os.path.isdir(path.parent)
    return Path(os.path.realpath(path)) if detour else path


def _require_empty(path: Path, resumable: bool) -> None:
    if not path.is_dir():
        raise OutputError(f"{path} exists and is not a directory; choose another name")
    names = sorted(os.listdir(path))
    if resumable and manifests.NAME not in names and records.holds_signatures(path):
        return  # its manifest is lost
    if resumable:  # what a driver that was killed before it wrote the manifest can have left
        names = [name for name in names if name != LOCK and not name.startswith(TEMPORARY)]
    if manifests.NAME in names:
        raise OutputError(f"{path} already holds a run; choose another directory or delete it")
    if MARKER in names:
        raise OutputError(
            f"{path} holds an unfinished run: one that is going on, or was killed; choose another directory or "
            "delete it"
        )
    if names:
        raise OutputError(f"{path} is not empty (it has {names[0]!r}) and holds no run; choose another directory")


def _input_folder(given: str) -> Path | None:
    """The directory that an input means with all that is below it, if it means one."""
    if os.path.isdir(given):
        return Path(given)
    if glob.has_magic(given) and "**" in given:
        parts = Path(given).parts
        first = next(number for number, part in enumerate(parts) if glob.has_magic(part))
        return Path(*parts[:first])
    return None


def _glob_finds(given: str, out: Path, planned: Iterable[str]) -> bool:
    """Whether a glob matches a file that a run in ``out`` writes, or a directory above that file."""
    if not glob.has_magic(given) or "**" in given or os.path.lexists(given):
        return False
    names = Path(os.path.normpath(given)).parts
    first = next(number for number, part in enumerate(names) if glob.has_magic(part))
    base, pattern = Path(*names[:first]), names[first:]
    hidden = any(part.startswith((".", "_")) for part in pattern)
    places = [
        below.parts
        for place, start in ((os.path.realpath(out), os.path.realpath(base)), (out.absolute(), base.absolute()))
        if (below := Path(os.path.relpath(place, start))).parts[:1] != ("..",)
    ]

    def matches(below: tuple[str, ...]) -> bool:
        pairs = zip(below, pattern, strict=False)
        return all(fnmatch.fnmatchcase(name, part) and (hidden or name[0] not in "._") for name, part in pairs)

    for parts in filter(matches, places):
        if len(parts) >= len(pattern):
            return True
        for file in planned:
            whole = (*parts, *file.split("/"))
            if len(whole) >= len(pattern) and matches(whole):
                return True
    return False


def _is_inside(path: Path, folder: Path) -> bool:
    """Whether ``path`` is ``folder`` or below it, links followed."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def compare(path: Path, entry: OutputEntry, by: str, content: bool = True) -> None:
    """Compare size and (with ``content``) checksum of a file with what ``by`` says. Raises ArtefactError."""
    try:
        if not path.is_file():
            raise ArtefactError(f"{path} is missing, though {by} lists it")
        size = path.stat().st_size
        if size != entry.size_bytes:
            raise ArtefactError(f"{path} has {size} bytes, but {by} says {entry.size_bytes}")
        found = manifests.checksum(path) if content else entry.xxh3_128
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    if found != entry.xxh3_128:
        raise ArtefactError(f"{path} has checksum {found}, but {by} says {entry.xxh3_128}")


class Run:
    """A finished run, read. Sizes and checksums are compared with the manifest before anything is used."""

    def __init__(self, path: Path, manifest: Manifest, mirror: Mirror | None = None) -> None:
        self.path, self.manifest, self.mirror = path, manifest, mirror
        if mirror is not None:
            weakref.finalize(self, mirror.close)

    @property
    def name(self) -> str:
        """Where it is: a path or a URL."""
        return str(self.path) if self.mirror is None else self.mirror.name

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Read the manifest of a run, by its path or URL. Raises ArtefactError if it holds no finished run or the
        manifest is damaged.
        """
        mirror = Mirror(path, tempfile.gettempdir()) if isinstance(path, str) and is_url(path) else None
        folder = _resolved(Path(path)) if mirror is None else mirror.local
        return cls(folder, manifests.read(folder), mirror)

    @property
    def removed(self) -> pa.Table:
        """All removals, in input order. Raises ArtefactError for a file that is missing or differs from the
        manifest.
        """
        return self.joined(self.removed_tables())

    def removed_tables(self) -> Iterator[pa.Table]:
        """``removed`` by shard, each read when it is asked for; none but the first that has no rows."""
        for number, entry in enumerate(self._entries("removed")):
            if entry.rows or number == 0:
                yield self._table(entry)

    def joined(self, tables: Iterable[pa.Table]) -> pa.Table:
        """Tables of ``removed`` as one. Raises ArtefactError if their columns differ."""
        parts = list(tables)
        try:
            return pa.concat_tables(parts) if parts else REMOVED_SCHEMA.empty_table()
        except pa.ArrowException as error:
            raise ArtefactError(f"{self.path}: the tables in removed/ differ: {error}") from error

    @property
    def kept(self) -> list[Path] | list[str]:
        """The files of kept/, in input order, with sizes compared (``verify`` compares their bytes): paths, or URLs on
        an object store.
        """
        self._require("kept")
        paths = [self.compared(entry, content=False) for entry in self._entries("kept")]
        if self.mirror is None:
            return paths
        return [f"{self.mirror.name}/{path.relative_to(self.path).as_posix()}" for path in paths]

    @property
    def keep_mask(self) -> pa.ChunkedArray:
        """One boolean per input row, in input order."""
        self._require("mask")
        chunks: list[pa.Array] = []
        for entry in self._entries("keep_mask"):
            table = self._table(entry)
            if table.schema.names not in (["keep"], ["shard", "keep"]) or table.schema.types[-1] != pa.bool_():
                raise ArtefactError(
                    f"{self.path / entry.path} has columns {table.schema.names}, not one boolean 'keep'"
                )
            chunks.extend(table["keep"].chunks)
        return pa.chunked_array(chunks, pa.bool_())

    def verify(self, kind: str | None = None) -> None:
        """Compare size and checksum of every file, or of those of one kind, with the manifest. Raises ArtefactError
        with both values.
        """
        for entry in self.manifest.outputs if kind is None else self._entries(kind):
            self.compared(entry)

    def input_path(self, given: str) -> str:
        """Where an input file, or an earlier run, is now, by its path or URL as it was given."""
        if is_url(given):
            return given
        path = os.path.join(self.manifest.working_directory, given)
        # The run and its input may both have been moved, and still lie the same way to where this is asked.
        return given if os.path.lexists(given) and not os.path.lexists(path) else path

    def _require(self, output: str) -> None:
        if self.manifest.output != output:
            raise ArtefactError(f'{self.path} was written with output="{self.manifest.output}", not "{output}"')

    def _entries(self, kind: str) -> Iterator[OutputEntry]:
        return (entry for entry in self.manifest.outputs if entry.kind == kind)

    def compared(self, entry: OutputEntry, content: bool = True) -> Path:
        """The path of an output, its size and (with ``content``) checksum compared. Raises ArtefactError."""
        path = manifests.safe_path(self.path, entry, manifests.RESULTS)
        if self.mirror is not None and content:
            self.mirror.fetch(path)
        compare(path, entry, manifests.NAME, content=content)
        return path

    def _table(self, entry: OutputEntry) -> pa.Table:
        path = self.compared(entry)
        try:
            with pq.ParquetFile(path) as file:
                if file.metadata.num_rows != entry.rows:
                    raise ArtefactError(
                        f"{path} has {file.metadata.num_rows} rows, but {manifests.NAME} says {entry.rows}"
                    )
                return file.read()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ArtefactError(f"{path} cannot be read: {error}") from error
