"""Data in memory or from a stream, as one shard named "": Arrow tables as they are, long streams spooled to disk
once.
"""

from __future__ import annotations

import itertools
import re
import weakref
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from gpudedup.backends.columns import is_text, is_tokens
from gpudedup.errors import InputError
from gpudedup.io.batches import READ_ERRORS, TARGET_BYTES, Rows, batch_bytes, bounded_slices, merge, say, take
from gpudedup.io.source import Batch, FileShard, Skipped
from gpudedup.io.tables import column_of
from gpudedup.store.atomic import open_output, output_errors
from gpudedup.store.scratch import ScratchDirectory
from gpudedup.store.stopping import checkpoint

HELD_SHARE = 8
"""A stream of at most 1 / HELD_SHARE of the memory stays there; a longer one goes to a file."""

ROW_GROUP_BYTES = 64 << 20
"""Decoded bytes of a row group in Parquet files made from data in memory."""

_SURROGATE = re.compile("[\ud800-\udfff]")


class Batches(Protocol):
    """Batches of one schema, found by number and read any number of times. ``first_rows``: int64[batches + 1]."""

    schema: pa.Schema
    first_rows: Rows
    size_bytes: int
    in_memory: bool

    def batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """The rows from ``first_rows[number]`` on, as one or more batches."""

    def close(self) -> None:
        """Free what is held."""


class Held:
    """A table in memory, not copied."""

    in_memory = True

    def __init__(self, table: pa.Table) -> None:
        self.schema: pa.Schema = table.schema
        self._batches = table.to_batches()
        self.first_rows = _first_rows([batch.num_rows for batch in self._batches])
        self.size_bytes = sum(map(batch_bytes, self._batches))

    def batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """Batch ``number``."""
        yield self._batches[number]

    def close(self) -> None:
        """The data is the caller's."""


class Spool:
    """A file of Arrow IPC streams, one for about every 16 MB, compressed with lz4 and mapped when read.

    Each has its own schema and dictionaries, since those of a stream may change from batch to batch.
    """

    in_memory = False

    def __init__(self, schema: pa.Schema, tmp: str | None) -> None:
        self.schema = schema
        self._scratch = ScratchDirectory("gpudedup-spool-", tmp)
        # Also without close(): when nobody holds the spool any more, and when the interpreter ends.
        weakref.finalize(self, self._scratch.close)
        self._path = self._scratch.path / "spool.arrow"
        self._ends = [0]
        self._row_counts: list[int] = []

    def fill(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Write all batches. Raises OutputError, and InputError from ``batches``; then nothing is left on disk."""
        try:
            with output_errors(self._path), open(self._path, "wb") as file:
                waiting: list[pa.RecordBatch] = []
                waiting_bytes = 0
                for _, batch in merge((np.zeros(batch.num_rows, np.int64), batch) for batch in batches):
                    waiting.append(batch)
                    waiting_bytes += batch_bytes(batch)
                    if waiting_bytes >= TARGET_BYTES:
                        self._write(file, waiting)
                        waiting, waiting_bytes = [], 0
                if waiting:
                    self._write(file, waiting)
        except BaseException:
            self.close()
            raise
        self.first_rows, self.size_bytes = _first_rows(self._row_counts), self._ends[-1]

    def _write(self, file: BinaryIO, batches: Sequence[pa.RecordBatch]) -> None:
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_stream(pa.PythonFile(file, "w"), self.schema, options=options) as writer:
            for batch in batches:
                writer.write_batch(batch)
        self._ends.append(file.tell())
        self._row_counts.append(sum(batch.num_rows for batch in batches))

    def batches(self, number: int) -> Iterator[pa.RecordBatch]:
        """The batches of IPC stream ``number``."""
        first, stop = self._ends[number : number + 2]
        with pa.memory_map(str(self._path)) as mapped:
            mapped.seek(first)
            yield from pa.ipc.open_stream(mapped.read_buffer(stop - first))

    def close(self) -> None:
        """Delete the file."""
        self._scratch.close()


class MemoryShard(FileShard):
    """One table, in memory or spooled."""

    name = ""
    fingerprint = None

    def __init__(self, data: Batches) -> None:
        self._data = data

    @property
    def size_bytes(self) -> int:
        """As the table is held, or as it is spooled."""
        return self._data.size_bytes

    @property
    def row_count(self) -> int:
        """Rows in all."""
        return int(self._data.first_rows[-1])

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB of the columns asked for, copied only where rows are picked."""
        none = np.zeros(0, np.int64)
        for rows, batch in merge(self._rows(list(columns), wanted)):
            yield Batch(rows, batch, none)

    def _rows(self, columns: list[str] | None, wanted: Rows | None) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        ends = self._data.first_rows.tolist()
        for number, (first, stop) in enumerate(itertools.pairwise(ends)):
            if wanted is not None and np.searchsorted(wanted, first) == np.searchsorted(wanted, stop):
                continue
            at = first
            for batch in self._data.batches(number):
                end = at + batch.num_rows
                rows = np.arange(at, end)
                if columns is not None:
                    batch = batch.select(columns)
                if wanted is not None:
                    rows = wanted[slice(*np.searchsorted(wanted, [at, end]).tolist())]
                    # Cut before picking, so that no picked column passes the 2 GB of 32-bit offsets.
                    for offset, piece in bounded_slices(batch):
                        low, high = np.searchsorted(rows, [at + offset, at + offset + piece.num_rows]).tolist()
                        if low < high:
                            yield rows[low:high], take(piece, rows[low:high] - (at + offset))
                else:
                    yield rows, batch
                at = end

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """All columns of the kept rows."""
        self._check_keep(keep)
        wanted = None if keep.all() else np.flatnonzero(keep)
        for _, batch in self._rows(None, wanted):
            yield batch

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Write the kept rows as Parquet (zstd) with the table's schema; return the bytes written."""
        self._check_keep(keep)
        schema = self._data.schema
        with output_errors(path), open_output(path) as sink:
            with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
                waiting: list[pa.RecordBatch] = []
                waiting_bytes = 0
                for _, batch in merge(self._rows(None, np.flatnonzero(keep))):
                    checkpoint()
                    waiting.append(batch)
                    waiting_bytes += batch_bytes(batch)
                    if waiting_bytes >= ROW_GROUP_BYTES:
                        writer.write_table(pa.Table.from_batches(waiting, schema))
                        waiting, waiting_bytes = [], 0
                if waiting:
                    writer.write_table(pa.Table.from_batches(waiting, schema))
            return sink.tell()

    def _check_keep(self, keep: npt.NDArray[np.bool_]) -> None:
        if len(keep) != self.row_count:
            raise ValueError(f"keep has {len(keep)} values for {self.row_count} rows")


class MemorySource:
    """One table as a corpus of one shard."""

    def __init__(self, data: Batches, *, text_column: str, columns: Sequence[str]) -> None:
        """Raises InputError for a column that is missing, nested or named twice, and for text that is no string
        type.
        """
        self._data = data
        self.shards = [MemoryShard(data)]
        try:
            for column in (text_column, *columns):
                self.column_type(column)
            kind = self.column_type(text_column)
            if not (is_text(kind) or is_tokens(kind)):
                raise InputError(f"text column {text_column!r} has type {kind}; it must be a string or binary type")
        except InputError:
            self.close()
            raise

    @property
    def skipped(self) -> list[Skipped]:
        """Nothing: data in memory has no damage that could be skipped."""
        return []

    def column_type(self, column: str) -> pa.DataType:
        """The column's type. Raises InputError that says which columns exist."""
        return column_of(self._data.schema, column, "the data given")

    def kept_schema(self) -> pa.Schema:
        """The table's schema."""
        return self._data.schema

    def close(self) -> None:
        """Delete what was spooled."""
        self._data.close()


def documents(texts: Sequence[str | bytes | None], text_column: str) -> pa.Table:
    """A table of one column from a list of documents; a lone surrogate in a str becomes U+FFFD (ill-formed, spec 1).

    The column is large_string, or large_binary if any document is bytes. Raises InputError for any other item.
    """
    for number, text in enumerate(texts):
        if text is not None and not isinstance(text, str | bytes):
            raise InputError(
                f"item {number} of the list is {_name(text)}; a list must hold documents (str, bytes or None), "
                "pathlib.Path objects, or Arrow batches"
            )
    kind = pa.large_binary() if any(isinstance(text, bytes) for text in texts) else pa.large_string()
    chunks: list[pa.Array] = []
    first = 0
    while first < len(texts):
        stop, size = first, 0
        while stop < len(texts) and size < TARGET_BYTES:
            size += len(texts[stop] or "") + 8
            stop += 1
        piece = [_SURROGATE.sub("\ufffd", text) if isinstance(text, str) else text for text in texts[first:stop]]
        if kind == pa.large_binary():
            piece = [text.encode() if isinstance(text, str) else text for text in piece]
        chunks.append(pa.array(piece, kind))
        first = stop
    return pa.table({text_column: pa.chunked_array(chunks, kind)})


def hold_or_spool(batches: Iterator[pa.RecordBatch], schema: pa.Schema, memory_bytes: int, tmp: str | None) -> Batches:
    """A stream that can be read once, as batches that can be read again: in memory if it is small, else in a file."""
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        held.append(batch)
        held_bytes += batch_bytes(batch)
        if held_bytes > memory_bytes // HELD_SHARE:
            spool = Spool(schema, tmp)

            def rest() -> Iterator[pa.RecordBatch]:
                held.reverse()
                while held:
                    yield held.pop()
                yield from batches

            spool.fill(rest())
            return spool
    return Held(pa.Table.from_batches(held, schema))


def reader_batches(reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    """The batches of a reader; what goes wrong in it is an InputError that says after how many rows."""
    row = 0
    while True:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return
        except READ_ERRORS as error:
            raise InputError(f"the stream of batches failed after row {row}: {say(error)}") from error
        row += batch.num_rows
        yield batch


def item_batches(items: Iterable[object]) -> tuple[pa.Schema | None, Iterator[pa.RecordBatch]]:
    """The schema of the first item of an iterable (None if it is empty), and the batches of all items.

    Raises InputError for an item that is no Arrow table or batch, or has another schema than the first.
    """
    iterator = iter(items)
    first = next(iterator, None)
    if first is None:
        return None, iter(())
    table = _as_table(first, 0)
    schema = table.schema

    def batches() -> Iterator[pa.RecordBatch]:
        yield from table.to_batches()
        for number, item in enumerate(iterator, start=1):
            other = _as_table(item, number)
            if other.schema != schema:
                raise InputError(
                    f"batch {number} has the schema {_flat(other.schema)}, but the first has {_flat(schema)}"
                )
            yield from other.to_batches()

    return schema, batches()


def _as_table(item: object, number: int) -> pa.Table:
    if isinstance(item, pa.Table):
        return item
    if isinstance(item, pa.RecordBatch):
        return pa.Table.from_batches([item])
    if not isinstance(item, pa.Array | pa.ChunkedArray) and (
        hasattr(item, "__arrow_c_stream__") or hasattr(item, "__arrow_c_array__")
    ):
        try:
            return pa.table(item)
        except READ_ERRORS as error:
            raise InputError(f"item {number} of the data given is no table: {say(error)}") from error
    raise InputError(
        f"item {number} of the data given is {_name(item)}; an iterable must give Arrow batches or tables "
        "(for documents, give a list of str)"
    )


def _flat(schema: pa.Schema) -> str:
    return "(" + ", ".join(f"{field.name}: {field.type}" for field in schema) + ")"


def _name(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _first_rows(row_counts: Sequence[int]) -> Rows:
    return np.concatenate([[0], np.cumsum(row_counts, dtype=np.int64)]).astype(np.int64)
