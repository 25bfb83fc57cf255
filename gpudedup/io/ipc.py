"""Arrow IPC files and streams (Feather version 2 is such a file) as shards: bounded reading, reading again by row, and
writing what is kept with nothing else changed.

A file's index lists its batches; those of a stream are found by going from message to message. Either way each batch
is fed to Arrow's stream reader alone, after the dictionaries before it, so that any batch is read without the others.
Before use, all columns that are read are checked in full: Arrow believes the lengths and offsets in a file.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.types as pt

from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.io import messages
from gpudedup.io.batches import (
    MAX_ROWS,
    READ_ERRORS,
    Rows,
    batch_bytes,
    bounded_slices,
    merge,
    nulls,
    say,
    take,
    target_bytes,
)
from gpudedup.io.files import COPY_BYTES, OpenFile
from gpudedup.io.messages import BATCH, DICTIONARY, SCHEMA, EndOfStreamError, Message, MessageError
from gpudedup.io.paths import InputFile, each
from gpudedup.io.skips import SkipLog, UnskippableError
from gpudedup.io.source import Batch, FileShard, Fingerprint
from gpudedup.io.tables import TableSource
from gpudedup.store.atomic import open_output, output_errors
from gpudedup.store.stopping import checkpoint

BATCH_SHARE = 4
"""A batch may decode to 1 / BATCH_SHARE of the memory, all columns together, and its body be as long, if it is
compressed.
"""

COPY_SHARE = 8
"""A body that is not compressed is read up to 1 / COPY_SHARE of the memory, and mapped beyond, where another process
that cuts the file off while it is read ends this one. A remote one is always read, up to 1 / BATCH_SHARE.
"""

METADATA_BYTES = 4 << 10
"""What the metadata of a message hardly ever exceed."""

MESSAGES_AT_ONCE = 256  # of which the metadata of a remote file are fetched together

CUT_BYTES = 256 << 20
"""The kept rows of a body of more than this, not compressed, are written as several batches of about as much."""

MAX_FILE_ROWS = (1 << 32) - 2
"""As many documents as one process takes; a column of nulls has any number of rows in no bytes."""


class _Feed:
    """A file of what was fed to it, as ``pyarrow.PythonFile`` needs it; nothing is copied that is asked for at once."""

    closed = False

    def __init__(self) -> None:
        self._waiting: deque[memoryview] = deque()
        self._position = 0

    def add(self, data: Any) -> None:
        self._waiting.append(memoryview(data))

    def read_buffer(self, size: int) -> pa.Buffer:
        return pa.py_buffer(self._take(size))

    def read(self, size: int) -> bytes:
        return bytes(self._take(size))

    def _take(self, size: int) -> Any:
        parts = []
        while size and self._waiting:
            first = self._waiting.popleft()
            if len(first) > size:
                self._waiting.appendleft(first[size:])
                first = first[:size]
            size -= len(first)
            self._position += len(first)
            parts.append(first)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self._waiting.clear()


class IpcShard(FileShard):
    """One Arrow IPC file or stream. Rows are numbered through all batches."""

    def __init__(self, file: InputFile, memory_bytes: int, skips: SkipLog) -> None:
        """Read the schema and find the batches. Raises InputError naming the file if that cannot be done; ``problem``
        says why the rest of a stream cannot be read, or is None.
        """
        self.file, self._memory_bytes, self._skips = file, memory_bytes, skips
        self._messages: list[Message] = []
        self.is_file = False
        with self._opened() as opened:
            try:
                problem = self._index(opened)
            except READ_ERRORS as error:
                raise InputError(f"{file.path} is no readable Arrow IPC file or stream: {say(error)}") from error
        self._places = [place for place, message in enumerate(self._messages) if message.kind == BATCH]
        counts = [self._messages[place].rows for place in self._places]
        if sum(counts) > MAX_FILE_ROWS:
            raise InputError(f"{file.path} has {sum(counts)} rows, and no more than {MAX_FILE_ROWS} can be read")
        self._first_rows = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        self.problem = problem and f"{self.name} cannot be read from byte {problem[0]} on: {problem[1]}"
        self._damage: dict[int, bool] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The path as given."""
        return self.file.path

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was opened."""
        return self.file.fingerprint

    @property
    def row_count(self) -> int:
        """Rows in the file, damaged ones included."""
        return int(self._first_rows[-1])

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB, or less of little memory, in row order; with ``wanted`` (ascending) those rows, from
        record batches that hold any.

        Raises InputError naming file, batch and rows for damage, or records it: then all rows of the record batch are
        damaged. MemoryLimitError for one that is too large for ``memory``.
        """
        schema = pa.schema([self.schema.field(column) for column in columns])
        none = np.zeros(0, np.int64)
        self.file.check_unchanged()
        for is_damaged, group in itertools.groupby(self._with_rows(wanted), self._is_damaged):
            if not is_damaged:
                for rows, batch in merge(self._rows(group, columns, wanted), target_bytes(self._memory_bytes)):
                    yield Batch(rows, batch, none)
                continue
            for number in group:
                first, stop = self._span(number)
                damaged = np.arange(first, stop) if wanted is None else _within(wanted, first, stop)
                for start in range(0, len(damaged), MAX_ROWS):
                    piece = damaged[start : start + MAX_ROWS]
                    yield Batch(piece, nulls(schema, len(piece)), piece)
        self.file.check_unchanged()

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """All columns of the kept rows, in batches of about 16 MB."""
        self._check_keep(keep)
        self.file.check_unchanged()
        wanted = np.flatnonzero(keep)
        good = (number for number in self._with_rows(wanted) if not self._is_damaged(number))
        for _, batch in self._rows(good, None, wanted):
            yield batch
        self.file.check_unchanged()

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Write the kept rows as Arrow IPC: file or stream as the input, with its schema, metadata and compression.

        Kept rows of one record batch make one; a batch without any is left out. The bytes depend on the input and
        ``keep`` alone.
        """
        self._check_keep(keep)
        self.file.check_unchanged()
        numbers = [number for number in self._with_rows(np.flatnonzero(keep)) if not self._is_damaged(number)]
        with self._opened() as file, self._reading(0):
            compression = self._buffers(file, self._messages[self._places[0]])[0] if self._places else None
        options = pa.ipc.IpcWriteOptions(
            compression=compression, use_threads=False, allow_64bit=True, emit_dictionary_deltas=True
        )
        make = pa.ipc.new_file if self.is_file else pa.ipc.new_stream
        with output_errors(path), open_output(path) as sink:
            with make(sink, self.schema, options=options) as writer:
                for number, batch, metadata in self._batches(numbers, None):
                    first, stop = self._span(number)
                    for offset, piece in self._to_write(number, batch):
                        checkpoint()
                        low = first + offset
                        rows = np.flatnonzero(keep[low : min(low + piece.num_rows, stop)])
                        if len(rows):
                            writer.write_batch(take(piece, rows), custom_metadata=metadata)
                self.file.check_unchanged()
            return sink.tell()

    def _check_keep(self, keep: npt.NDArray[np.bool_]) -> None:
        if len(keep) != self.row_count:
            raise ValueError(f"keep has {len(keep)} values for the {self.row_count} rows of {self.name}")

    def _span(self, number: int) -> tuple[int, int]:
        """First row of a record batch, and that after its last."""
        return int(self._first_rows[number]), int(self._first_rows[number + 1])

    def _with_rows(self, wanted: Rows | None) -> Iterator[int]:
        """Numbers of the record batches that hold any of the wanted rows, or any at all."""
        held = np.diff(self._first_rows if wanted is None else np.searchsorted(wanted, self._first_rows))
        return iter(np.flatnonzero(held).tolist())

    def _to_write(self, number: int, batch: pa.RecordBatch) -> Iterator[tuple[int, pa.RecordBatch]]:
        """(first row, slice) of the batches that a batch is written as."""
        start = size = 0
        if self._messages[self._places[number]].body_bytes > CUT_BYTES:
            for first, piece in _pieces(batch, CUT_BYTES):
                piece_bytes = batch_bytes(piece)
                if first > start and size + piece_bytes > CUT_BYTES:
                    yield start, batch.slice(start, first - start)
                    start, size = first, 0
                size += piece_bytes
        yield start, batch.slice(start)

    @contextmanager
    def _opened(self) -> Iterator[OpenFile]:
        try:
            file = self.file.open()
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {say(error)}") from error
        with file:
            yield file

    def _index(self, file: OpenFile) -> tuple[int, str] | None:
        """Find the schema and all messages. Returns the byte and reason where a stream is damaged, if it is."""
        size = self.file.fingerprint.size_bytes
        start = file.pread(8, 0)
        if start.startswith(b"FEA1"):
            raise MessageError("it is Feather version 1; write it again as version 2")
        if not start:
            raise MessageError("it is empty")
        self.is_file = start.startswith(messages.MAGIC)
        if self.is_file:
            footer = messages.read_footer(file, size)
            self._set_schema(footer.schema)
            for kind, offsets in ((DICTIONARY, footer.dictionaries), (BATCH, footer.batches)):
                for place, offset in enumerate(offsets):
                    if place % MESSAGES_AT_ONCE == 0:
                        ahead = offsets[place : place + MESSAGES_AT_ONCE]
                        file.expect((start, start + METADATA_BYTES) for start in ahead)
                    if not 0 < offset < size:
                        raise MessageError(f"a message at byte {offset} of {size}")
                    message = messages.read_message(file, offset, size)
                    if message.kind != kind:
                        raise MessageError(f"a message of type {message.kind} at byte {offset}, not {kind}")
                    self._messages.append(message)
            return None
        first = messages.read_message(file, 0, size)
        if first.kind != SCHEMA:
            raise MessageError("it does not begin with a schema")
        at = first.metadata_bytes + first.body_bytes
        self._limit(at, "the schema")
        self._set_schema(file.pread(at, 0))
        while True:
            try:
                message = messages.read_message(file, at, size)
                if message.kind == SCHEMA:
                    raise MessageError("a second schema")
            except EndOfStreamError as end:
                if file.pread(1 << 16, end.position).strip(b"\0"):
                    return end.position, f"{size - end.position} bytes follow the end of the stream"
                return None
            except MessageError as error:
                return at, say(error)
            self._messages.append(message)
            at += message.metadata_bytes + message.body_bytes

    def _set_schema(self, message: bytes) -> None:
        self._schema_message = message
        self.schema: pa.Schema = self._reader(self._feed()).schema
        self._checks = [_as_bytes(getattr(field.type, "storage_type", field.type)) for field in self.schema]

    def _feed(self) -> _Feed:
        """A feed that holds the schema."""
        feed = _Feed()
        feed.add(self._schema_message)
        return feed

    def _reader(self, feed: _Feed, columns: Sequence[str] | None = None) -> pa.ipc.RecordBatchStreamReader:
        options = pa.ipc.IpcReadOptions(use_threads=False)
        if columns is not None:
            options.included_fields = self._indices(columns)
        return pa.ipc.open_stream(pa.PythonFile(feed, mode="r"), options=options)

    def _indices(self, columns: Sequence[str]) -> list[int]:
        return sorted(self.schema.get_field_index(column) for column in columns)

    def _buffers(self, file: OpenFile, message: Message) -> tuple[str | None, list[tuple[int, int]]]:
        return messages.buffers(file.pread(message.metadata_bytes, message.offset))

    def _batches(
        self, numbers: Iterable[int], columns: Sequence[str] | None
    ) -> Iterator[tuple[int, pa.RecordBatch, pa.KeyValueMetadata | None]]:
        """(number, record batch, its own metadata) of record batches (ascending), with the columns asked for, checked.

        Raises InputError for one that cannot be decoded, and MemoryLimitError.
        """
        with self._opened() as file:
            feed = self._feed()
            reader: Any = None
            at = 0
            checks = self._checks
            if columns is not None:
                checks = [checks[place] for place in self._indices(columns)]
            for number in numbers:
                place = self._places[number]
                with self._reading(number):
                    if reader is None:
                        reader = self._reader(feed, columns)
                    for before in range(at, place + 1):
                        if before == place or self._messages[before].kind == DICTIONARY:
                            self._add(feed, file, self._messages[before], number)
                    at = place + 1
                    batch, metadata = reader.read_next_batch_with_custom_metadata()
                    if batch.num_rows != self._messages[place].rows:
                        raise ValueError(f"{batch.num_rows} rows instead of {self._messages[place].rows}")
                    for column, check in zip(batch.columns, checks, strict=True):
                        _check(column, check)
                    if columns is not None:
                        batch = batch.select(columns)
                yield number, batch, metadata
                del batch

    def _add(self, feed: _Feed, file: OpenFile, message: Message, number: int) -> None:
        """Feed a message, whose decoded size is known to be bounded."""
        metadata = file.buffer(message.metadata_bytes, message.offset)
        codec, found = messages.buffers(metadata.to_pybytes())
        feed.add(metadata)
        if not message.body_bytes:
            return
        copied = min(self._memory_bytes // COPY_SHARE, COPY_BYTES)
        offset = message.offset + message.metadata_bytes
        if codec is None and message.body_bytes > copied and self.file.remote is None:
            with pa.memory_map(self.name) as mapped:
                mapped.seek(offset)
                body = mapped.read_buffer(message.body_bytes)
        else:
            self._limit(message.body_bytes, self._what(number))
            body = file.buffer(message.body_bytes, offset)
        if len(memoryview(body)) != message.body_bytes:
            raise MessageError("it was cut off")
        if codec is not None:
            self._limit(messages.decoded_bytes(found, memoryview(body)), self._what(number))
        feed.add(body)

    def _limit(self, size: int, what: str) -> None:
        if size > self._memory_bytes // BATCH_SHARE:
            raise MemoryLimitError(
                f"{self.name}: {what} takes {size} bytes, and memory={self._memory_bytes} allows "
                f"{self._memory_bytes // BATCH_SHARE}; use memory={BATCH_SHARE * size} or write smaller batches"
            )

    def _what(self, number: int) -> str:
        first, stop = self._span(number)
        return f"record batch {number} (rows {first} to {stop - 1})"

    @contextmanager
    def _reading(self, number: int) -> Iterator[None]:
        """Turn what goes wrong with decoding a record batch into InputError."""
        try:
            yield
        except READ_ERRORS as error:
            self.file.check_unchanged()
            raise InputError(
                f"{self.name}: {self._what(number)} cannot be read: {say(error)}; repair or remove the file, or use "
                'on_error="skip" to leave the record batch out'
            ) from error

    def _is_damaged(self, number: int) -> bool:
        """Under on_error="skip": whether any column of a record batch, or a dictionary before it, is damaged.

        Found once, by decoding all of it, so that the answer is the same whatever columns are read.
        """
        if not self._skips.skip:
            return False
        with self._lock:
            if number not in self._damage:
                self._damage[number] = False
                try:
                    for _ in self._batches([number], None):
                        pass
                except UnskippableError:
                    del self._damage[number]
                    raise
                except InputError as error:
                    self.file.check_unchanged()
                    first, stop = self._span(number)
                    reason = f"{self.name}: {self._what(number)} cannot be read: {say(error.__cause__ or error)}"
                    self._skips.add(self.name, first, stop - first, reason)
                    self._damage[number] = True
            return self._damage[number]

    def _rows(
        self, numbers: Iterable[int], columns: Sequence[str] | None, wanted: Rows | None
    ) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """(row numbers, rows), in pieces of at most about 16 MB, or less of little memory."""
        target = target_bytes(self._memory_bytes)
        for number, batch, _ in self._batches(numbers, columns):
            first, stop = self._span(number)
            if wanted is None and batch_bytes(batch) <= target and batch.num_rows <= MAX_ROWS:
                yield np.arange(first, stop), batch
                continue
            for offset, piece in _pieces(batch, target):
                rows = np.arange(first + offset, first + offset + piece.num_rows)
                if wanted is not None:
                    rows = _within(wanted, int(rows[0]), int(rows[-1]) + 1)
                    piece = take(piece, rows - (first + offset)) if len(rows) else piece.slice(0, 0)
                if len(rows):
                    yield rows, piece
            del batch


def _check(column: pa.Array, as_bytes: pa.DataType | None) -> None:
    """Raise unless all lengths and offsets of a column are within its buffers; ill-formed UTF-8 may stay."""
    column.validate()
    if as_bytes is not None:
        storage = column.storage if isinstance(column, pa.ExtensionArray) else column
        with suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):
            column = storage.view(as_bytes)
    column.validate(full=True)


def _pieces(batch: pa.RecordBatch, target_bytes: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, slice) of bounded slices; a column of nulls may have billions of rows."""
    for start in range(0, batch.num_rows, MAX_ROWS):
        for first, piece in bounded_slices(batch.slice(start, MAX_ROWS), target_bytes):
            yield start + first, piece


def _within(rows: Rows, first: int, stop: int) -> Rows:
    """Those of ascending ``rows`` that are in [first, stop)."""
    low, high = np.searchsorted(rows, [first, stop])
    return rows[low:high]


def _as_bytes(kind: pa.DataType) -> pa.DataType | None:
    """The type with binary in the place of every string, to check everything but UTF-8; None if it has no strings."""
    leaves = ((pt.is_string, pa.binary), (pt.is_large_string, pa.large_binary), (pt.is_string_view, pa.binary_view))
    for is_kind, make in leaves:
        if is_kind(kind):
            return make()
    if pt.is_dictionary(kind):
        value = _as_bytes(kind.value_type)
        return None if value is None else pa.dictionary(kind.index_type, value, kind.ordered)
    if pt.is_struct(kind):
        inner = [_as_bytes(field.type) for field in kind]
        if not any(found is not None for found in inner):
            return None
        return pa.struct([field.with_type(found or field.type) for field, found in zip(kind, inner, strict=True)])
    lists = ((pt.is_list, pa.list_), (pt.is_large_list, pa.large_list), (pt.is_list_view, pa.list_view))
    for is_kind, make in (*lists, (pt.is_large_list_view, pa.large_list_view)):
        if is_kind(kind):
            value = _as_bytes(kind.value_type)
            return None if value is None else make(kind.value_field.with_type(value))
    if pt.is_fixed_size_list(kind):
        value = _as_bytes(kind.value_type)
        sized = value is not None and kind.list_size > 0  # pyarrow makes no type of lists without values
        return pa.list_(kind.value_field.with_type(value), kind.list_size) if sized else None
    if pt.is_map(kind):
        key, item = _as_bytes(kind.key_type), _as_bytes(kind.item_type)
        if key is None and item is None:
            return None
        fields = kind.key_field.with_type(key or kind.key_type), kind.item_field.with_type(item or kind.item_type)
        return pa.map_(*fields, kind.keys_sorted)
    return None


class IpcSource(TableSource):
    """Arrow IPC files and streams as an ordered corpus."""

    def __init__(
        self, files: Sequence[InputFile], *, text_column: str, columns: Sequence[str], memory_bytes: int, on_error: str
    ) -> None:
        """Read all schemas and compare the columns that the run reads.

        Raises InputError for an unreadable file (or skips it), and for a column that is missing, nested, named twice,
        or of another type than in the first file.
        """
        self._skips = SkipLog(on_error == "skip")
        self.shards: list[IpcShard] = []
        for file, open_shard in each(files, lambda file: IpcShard(file, memory_bytes, self._skips)):
            self._skips.register(file.path)
            try:
                shard = open_shard()
            except UnskippableError:
                raise
            except InputError as error:
                self._skips.add(file.path, None, 0, str(error))
                continue
            if shard.problem is not None:
                self._skips.add(shard.name, shard.row_count, 0, shard.problem)
            self.shards.append(shard)
        self._check_columns(text_column, columns)
