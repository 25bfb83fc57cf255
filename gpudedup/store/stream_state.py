"""The saved state of a stream: a directory of Arrow IPC streams, and stream.json, which says what they must hold.

Each table is one file of plain columns, written and read in small batches. Files are named by their content: so the
manifest names no paths, and a new state leaves the files of the one that it replaces alone.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.ipc

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U8, U32, U64
from gpudedup.errors import ArtefactError, InputError, LockedError, MemoryLimitError, OutputError
from gpudedup.io.batches import MAX_ROWS, bounded_slices, say
from gpudedup.io.ipc import MAX_FILE_ROWS, IpcShard
from gpudedup.io.paths import InputFile
from gpudedup.io.remote import is_url
from gpudedup.io.skips import SkipLog
from gpudedup.io.source import Fingerprint
from gpudedup.params import SPEC
from gpudedup.store import sealed
from gpudedup.store.atomic import (
    TEMPORARY,
    HashedFile,
    atomic_file,
    locked_folder,
    output_errors,
    sync_folder,
    temporary_path,
)
from gpudedup.store.manifest import checksum

FORMAT = 1
"""Number of the layout of saved streams."""

NAME = "stream.json"
MAX_MANIFEST_BYTES = 16 << 20
MAX_COUNT = 1 << 60

SET_VALUES = 1 << 20
"""Shingle hashes in a batch of sets, unless one document has more."""

BUCKETS = 1 << 12
"""Buckets in a batch: each has at most 2 * bucket_window + 1 entries."""

BAND_PARTS = 16
"""The keys of a large band are sorted in so many parts, so that saving takes little memory beside the band's own."""

READ_BYTES = 256 << 20
"""Memory that reading is to stay within. Batches are far smaller."""

Tables = Mapping[str, tuple[pa.Schema, Iterable[pa.RecordBatch]]]


def columns(**kinds: pa.DataType) -> pa.Schema:
    """A schema of columns without nulls."""
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])


SCHEMAS = {
    "representatives": columns(
        content_0=pa.uint64(), content_1=pa.uint64(), scope=pa.int32(), across=pa.int32(), kept=pa.bool_()
    ),
    "kept": columns(position=pa.int64()),
    "sets": columns(values=pa.large_list(pa.uint32())),
    "keepers": columns(keeper=pa.int64(), part=pa.uint64(), whole=pa.uint64(), exact=pa.bool_()),
    "buckets": columns(size=pa.uint32(), position=pa.list_(pa.uint32()), document=pa.list_(pa.uint32())),
}
"""The tables of the stream itself, as csrc/cpu/stream_state.h describes them: all representatives, the kept and the
removed ones of them, what the kept ones are compared by, the buckets.
"""

BAND = columns(key=pa.uint64(), holder=pa.uint32())
"""One table for each band: "band0", "band1", ..."""


class Artefact(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The file of a table."""

    rows: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_ROWS)]
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    xxh3_128: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]

    def name(self, kind: str) -> str:
        """The file's name."""
        return f"{kind}-{self.xxh3_128}.arrows"


_NAMES = re.compile(r"[a-z]+[0-9]*-[0-9a-f]{32}\.arrows")


class _Header(msgspec.Struct, frozen=True):
    """What the manifest of any format says."""

    format: int
    spec: int


class StreamManifest(sealed.Sealed, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All that a saved stream says about itself. Equal streams have equal manifests."""

    format: int
    spec: int
    version: str
    """Of gpudedup."""
    parameters: dict[str, Any]
    documents: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    """Rows of the input so far."""
    compared: Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]
    """Pairs."""
    artefacts: dict[str, Artefact]
    """By table."""


def write_state(
    out: str | os.PathLike[str], stream: _cpu.Stream, tables: Tables, *, version: str, parameters: dict[str, Any]
) -> None:
    """Save a stream, with ``tables`` beside its own, to a directory that is new, empty or holds a saved stream.

    That one is replaced once all of the new one is on disk, by the renaming of one file. Raises OutputError, and
    LockedError while another process has the directory.
    """
    if is_url(os.fspath(out)):
        raise OutputError("a stream is saved in a local directory, not at a URL; copy the directory there then")
    folder = Path(out)
    if "\0" in str(folder):
        raise OutputError(f"the directory {str(folder)!r} contains a NUL character; choose another name")
    made = not os.path.lexists(folder)
    if not made and not folder.is_dir():
        raise OutputError(f"{folder} exists and is not a directory; choose another name")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with locked_folder(folder, exclusive=True) as free, _NewState(folder, made) as new:
            if not free:
                raise LockedError(f"another process reads or writes the saved stream in {folder}; wait for it to end")
            _require_state_or_nothing(folder)
            for kind, (schema, batches) in {**_stream_tables(stream), **tables}.items():
                new.add(kind, schema, batches)
            manifest = StreamManifest(
                format=FORMAT,
                spec=SPEC,
                version=version,
                parameters=parameters,
                documents=stream.documents,
                compared=stream.compared,
                artefacts=new.artefacts,
            )
            new.commit(sealed.seal(manifest))


def _require_state_or_nothing(folder: Path) -> None:
    names = sorted(os.listdir(folder))
    foreign = [name for name in names if not (_NAMES.fullmatch(name) or name.startswith(TEMPORARY))]
    if foreign and NAME not in names:
        raise OutputError(
            f"{folder} is not empty (it has {foreign[0]!r}) and holds no saved stream; choose another directory"
        )


class _NewState:
    """The files of a state that is being written. Use as a context manager: without ``commit`` they are removed."""

    def __init__(self, folder: Path, made: bool) -> None:
        """made: whether the directory is new, so that it goes with the files."""
        self.artefacts: dict[str, Artefact] = {}
        self._folder, self._made = folder, made
        self._files: list[Path] = []
        self._manifest = b""

    def add(self, kind: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """Write a table."""
        temporary = temporary_path(self._folder)
        self._files.append(temporary)
        rows = 0
        with output_errors(self._folder / kind):
            options = pa.ipc.IpcWriteOptions(use_threads=False)
            with HashedFile(temporary) as file, pa.ipc.new_stream(file, schema, options=options) as writer:
                for batch in batches:
                    rows += batch.num_rows
                    for _, piece in bounded_slices(batch):
                        writer.write_batch(piece)
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            if rows > MAX_FILE_ROWS:
                raise OutputError(f"the table {kind!r} has {rows} rows, and no more than {MAX_FILE_ROWS} can be saved")
            artefact = Artefact(rows=rows, size_bytes=file.size_bytes, xxh3_128=file.xxh3_128)
            path = self._folder / artefact.name(kind)
            if not os.path.lexists(path):  # else the state that is there may have the very same table
                self._files.append(path)
            os.replace(temporary, path)
        self.artefacts[kind] = artefact

    def commit(self, manifest: bytes) -> None:
        """Let the new state take the place of the old one, of which the files are removed, as those of any attempt."""
        sync_folder(self._folder)
        self._manifest = manifest
        with atomic_file(self._folder / NAME) as temporary:
            temporary.write_bytes(manifest)
        sync_folder(self._folder)
        if self._made:
            sync_folder(self._folder.absolute().parent)
        named = {artefact.name(kind) for kind, artefact in self.artefacts.items()}
        for name in os.listdir(self._folder):
            if name.startswith(TEMPORARY) or (_NAMES.fullmatch(name) and name not in named):
                with contextlib.suppress(OSError):
                    os.unlink(self._folder / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with contextlib.suppress(OSError):
            if self._manifest and (self._folder / NAME).read_bytes() == self._manifest:
                return  # committed, whatever came after
        for path in self._files:
            with contextlib.suppress(OSError):
                path.unlink()
        if self._made:
            with contextlib.suppress(OSError):
                self._folder.rmdir()


def _stream_tables(stream: _cpu.Stream) -> dict[str, tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The tables of the stream itself."""
    rows = stream.rows

    def pieces(kind: str, size: int, columns: Callable[[int, int], Iterable[Any]]) -> Iterator[pa.RecordBatch]:
        for first in range(0, rows[kind], size):
            yield _batch(SCHEMAS[kind], *columns(first, min(first + size, rows[kind])))

    def sets() -> Iterator[pa.RecordBatch]:
        first = 0
        while len(offsets := (found := stream.sets(first, SET_VALUES))[1]) > 1:
            yield _batch(SCHEMAS["sets"], pa.LargeListArray.from_arrays(offsets, found[0]))
            first += len(offsets) - 1

    def buckets(first: int, last: int) -> Iterable[Any]:
        size, entries, *columns = stream.buckets(first, last)
        offsets = pa.array(np.concatenate(([0], np.cumsum(entries, dtype=np.int64))), pa.int32())
        return size, *(pa.ListArray.from_arrays(offsets, column) for column in columns)

    def band(number: int, keys: int) -> Iterator[pa.RecordBatch]:
        parts = min(BAND_PARTS, 1 + keys // MAX_ROWS)
        for part in range(parts):
            yield _batch(BAND, *stream.band(number, part, parts))

    tables = {
        "representatives": pieces("representatives", MAX_ROWS, stream.representatives),
        "kept": pieces("kept", MAX_ROWS, lambda first, last: [stream.kept(first, last)]),
        "sets": sets(),
        "keepers": pieces("keepers", MAX_ROWS, stream.keepers),
        "buckets": pieces("buckets", BUCKETS, buckets),
    }
    bands = {f"band{number}": (BAND, band(number, keys)) for number, keys in enumerate(rows["bands"])}
    return {kind: (SCHEMAS[kind], batches) for kind, batches in tables.items()} | bands


def _batch(schema: pa.Schema, *columns: Any) -> pa.RecordBatch:
    """A batch of arrays, of numpy or Arrow; bool comes as uint8."""
    arrays = [
        pa.array(column.view(bool) if field.type == pa.bool_() else column)
        for field, column in zip(schema, columns, strict=True)
    ]
    return pa.record_batch(arrays, schema)


class SavedStream:
    """A saved stream, read. The size and checksum of a file are compared before it is used, and everything in it that
    something relies on is checked; whatever is not as a stream writes it is an ArtefactError.
    """

    def __init__(self, folder: Path, manifest: StreamManifest) -> None:
        """For ``opened`` only."""
        self.folder, self.manifest = folder, manifest
        self._shards: dict[str, IpcShard] = {}

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: str | os.PathLike[str]) -> Iterator[Self]:
        """The saved stream in a directory, which is not replaced before the block ends.

        Raises LockedError while another process is replacing it.
        """
        if is_url(os.fspath(path)):
            raise ArtefactError("a saved stream is opened in a local directory, not at a URL; copy it to one before")
        folder = Path(path)
        with contextlib.ExitStack() as stack:
            try:
                free = stack.enter_context(locked_folder(folder, exclusive=False))
            except (OSError, ValueError) as error:
                raise ArtefactError(f"{str(folder)!r} holds no saved stream: {say(error)}") from error
            if not free:
                raise LockedError(f"another process writes the saved stream in {folder}; wait for it to end")
            yield cls(folder, _read_manifest(folder / NAME))

    def damaged(self, kind: str, what: str) -> ArtefactError:
        """What to raise where a table, or the manifest (""), holds something that no stream writes."""
        path = self.folder / (self.manifest.artefacts[kind].name(kind) if kind else NAME)
        return ArtefactError(f"{path} is damaged: {what}")

    def rows(self, kind: str) -> int:
        """The number of rows of a table."""
        return self._artefact(kind).rows

    def schema(self, kind: str) -> pa.Schema:
        """The schema of a table, types as they are registered here."""
        schema = self._shard(kind).schema
        with self._blamed(kind):
            for name, field in zip(schema.names, schema, strict=True):  # a name that is not UTF-8 raises here
                extension = (field.metadata or {}).get(b"ARROW:extension:name")
                if extension is not None:
                    raise ArtefactError(
                        f"{self.folder}: {name} has the extension type {extension.decode()!r}, which is not "
                        "registered here; import what registers it"
                    )
        return schema

    def read(self, kind: str, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """A table in small batches."""
        shard = self._shard(kind)
        with self._blamed(kind):
            if not shard.schema.equals(schema):
                raise ValueError(f"it has the columns {_flat(shard.schema)}, not {_flat(schema)}")
            for batch in shard.read(schema.names):
                for field, column in zip(schema, batch.columns.columns, strict=True):
                    values = column.flatten() if pa.types.is_nested(field.type) else column
                    if not field.nullable and column.null_count + values.null_count:
                        raise ValueError(f"column {field.name!r} has nulls")
                yield batch.columns

    def load(self, stream: _cpu.Stream) -> None:
        """Make an empty stream the saved one. Raises OSError where its sets find no room."""
        builder = _cpu.StreamBuilder(stream, documents=self.manifest.documents, compared=self.manifest.compared)

        def fill(kind: str, schema: pa.Schema, take: Callable[..., None]) -> None:
            for batch in self.read(kind, schema):
                with self._blamed(kind):
                    take(*(_values(column) for column in batch.columns))

        def representatives(first: U64, second: U64, within: I32, across: I32, kept: U8) -> None:
            for name, numbers in (("within", within), ("across", across)):
                low, end = (-1, self.rows(name)) if name in self.manifest.artefacts else (0, 1)
                if len(numbers) and not low <= numbers.min() <= numbers.max() < end:
                    raise ValueError(f"a number for {name} that is not from {low} to {end - 1}")
            builder.representatives(first, second, within, across, kept)

        def sets(values: pa.LargeListArray) -> None:
            builder.sets(_values(values.flatten()), _bounds(values))

        def buckets(size: U32, position: pa.ListArray, document: pa.ListArray) -> None:
            entries = np.diff(_bounds(position))
            if not np.array_equal(entries, np.diff(_bounds(document))):
                raise ValueError("lists of positions and documents that differ in length")
            builder.buckets(size, entries.astype(np.uint32), _values(position.flatten()), _values(document.flatten()))

        fill("representatives", SCHEMAS["representatives"], representatives)
        fill("kept", SCHEMAS["kept"], builder.kept)
        fill("sets", SCHEMAS["sets"], sets)
        fill("keepers", SCHEMAS["keepers"], builder.keepers)
        fill("buckets", SCHEMAS["buckets"], buckets)
        for number in range(stream.bands):
            kind = f"band{number}"
            keys = self._shard(kind).row_count
            with self._blamed(kind):
                builder.reserve(number, keys)
            fill(kind, BAND, partial(builder.band, number))
        with self._blamed(""):
            builder.finish()

    @contextlib.contextmanager
    def _blamed(self, kind: str) -> Iterator[None]:
        """Turn what goes wrong with reading a table, or what a check of its values finds, into ``damaged``."""
        try:
            yield
        except (InputError, MemoryLimitError, ValueError, LookupError, pa.ArrowException) as error:
            raise self.damaged(kind, say(error.__cause__ or error)) from error

    def _artefact(self, kind: str) -> Artefact:
        if kind not in self.manifest.artefacts:
            raise self.damaged("", f"it names no table {kind!r}")
        return self.manifest.artefacts[kind]

    def _shard(self, kind: str) -> IpcShard:
        """The file of a table, compared with the manifest."""
        if kind in self._shards:
            return self._shards[kind]
        artefact = self._artefact(kind)
        path = self.folder / artefact.name(kind)
        try:
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode):
                raise self.damaged(kind, "it is no regular file")
            if status.st_size != artefact.size_bytes:
                raise self.damaged(kind, f"it has {status.st_size} bytes, but {NAME} says {artefact.size_bytes}")
            found = checksum(path)
        except OSError as error:
            raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
        if found != artefact.xxh3_128:
            raise self.damaged(kind, f"it has checksum {found}, but {NAME} says {artefact.xxh3_128}")
        fingerprint = Fingerprint(status.st_size, status.st_mtime_ns)
        with self._blamed(kind):
            shard = IpcShard(InputFile(str(path), "ipc", None, fingerprint), READ_BYTES, SkipLog(False))
        if shard.problem is not None:
            raise self.damaged(kind, shard.problem)
        if shard.row_count != artefact.rows:
            raise self.damaged(kind, f"it has {shard.row_count} rows, but {NAME} says {artefact.rows}")
        self._shards[kind] = shard
        return shard


def _read_manifest(path: Path) -> StreamManifest:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_MANIFEST_BYTES:
            raise ArtefactError(f"{path} is no regular file of at most {MAX_MANIFEST_BYTES} bytes")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(f"{path.parent} holds no saved stream: it has no {NAME}") from None
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    try:
        header = msgspec.json.decode(data, type=_Header)
        for what, found, known in (("format", header.format, FORMAT), ("spec", header.spec, SPEC)):
            if found != known:
                raise ArtefactError(
                    f"{path} has {what} {found}, and this version of gpudedup goes on from {what} {known}; use the "
                    "version that wrote it, or start over"
                )
        manifest = msgspec.json.decode(data, type=StreamManifest)
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ArtefactError(f"{path} is damaged: {error}") from error
    if not sealed.is_whole(data, manifest.checksum):
        raise ArtefactError(f"{path} is damaged: it does not have the checksum {manifest.checksum!r} that it names")
    return manifest


def _values(column: pa.Array) -> Any:
    """A column as the native code takes it: numpy, bool as uint8; lists as they are."""
    if pa.types.is_nested(column.type):
        return column
    values = column.to_numpy(zero_copy_only=False)
    return values.view(np.uint8) if values.dtype == bool else values


def _bounds(lists: pa.Array) -> I64:
    """Where each list begins in ``lists.flatten()``, and the end: int64[n + 1]."""
    bounds: I64 = lists.offsets.to_numpy().astype(np.int64)
    bounds -= bounds[0]
    return bounds


def _flat(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name}: {field.type}" for field in schema) or "none"
