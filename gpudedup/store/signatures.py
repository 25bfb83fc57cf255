"""Signatures and carried columns as Arrow IPC files: written as they come, read back memory-mapped.

A signature file has the columns lanes_000, lanes_008, ...: fixed_size_list<uint32>[8] of 8 lanes each, the last as
long as what is left, so that a band reads its own columns only; content: fixed_size_binary[16]; units: uint64; damaged:
bool.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc

from gpudedup.backends.base import U32, U64, SignedBatch
from gpudedup.errors import ArtefactError
from gpudedup.io.batches import batch_bytes
from gpudedup.store.atomic import HashedFile
from gpudedup.store.mapped import Place, fetch, mapped

GROUP = 8
"""Lanes in a column."""

BATCH_BYTES = 4 << 20
"""Smaller batches are joined up to this: each takes some kB in a file, and tens of kB of memory when it is read."""


FACTS = ["content", "units", "damaged"]
"""The columns beside the lanes."""


def schema(num_perm: int) -> pa.Schema:
    """The columns of a signature file."""
    lanes = [
        pa.field(f"lanes_{first:03}", pa.list_(pa.field("lane", pa.uint32(), nullable=False), width), nullable=False)
        for first, width in _groups(num_perm)
    ]
    return pa.schema(
        [
            *lanes,
            pa.field("content", pa.binary(16), nullable=False),
            pa.field("units", pa.uint64(), nullable=False),
            pa.field("damaged", pa.bool_(), nullable=False),
        ]
    )


def document_bytes(num_perm: int) -> float:
    """What a document takes in a signature file, beside some kB a batch (``BATCH_BYTES``)."""
    return 4 * num_perm + 16 + 8 + 1 / 8


def _groups(num_perm: int) -> list[tuple[int, int]]:
    """(first lane, lanes) of each column."""
    return [(first, min(GROUP, num_perm - first)) for first in range(0, num_perm, GROUP)]


def record_batch(signed: SignedBatch, damaged: npt.NDArray[np.bool_]) -> pa.RecordBatch:
    """The rows of a signature file for a signed batch, whose lanes uint32[n, num_perm] are there."""
    assert signed.lanes is not None
    count, num_perm = signed.lanes.shape
    kinds = schema(num_perm)
    arrays: list[pa.Array] = []
    for field, (first, width) in zip(kinds, _groups(num_perm), strict=False):
        lanes = pa.array(np.ascontiguousarray(signed.lanes[:, first : first + width]).reshape(-1))
        arrays.append(pa.FixedSizeListArray.from_arrays(lanes, type=field.type))
    content = pa.py_buffer(np.ascontiguousarray(signed.content, "<u8"))
    arrays.append(pa.Array.from_buffers(pa.binary(16), count, [None, content]))
    arrays += [pa.array(signed.unit_count, pa.uint64()), pa.array(damaged)]
    return pa.RecordBatch.from_arrays(arrays, schema=kinds)


@contextmanager
def ipc_writer(file: HashedFile, kinds: pa.Schema) -> Iterator[pa.ipc.RecordBatchFileWriter]:
    """Writes record batches to an IPC file."""
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_file(pa.PythonFile(file, mode="w"), kinds, options=options) as writer:
        yield writer


class RowWriter:
    """Writes rows to an IPC file, in batches of its own."""

    def __init__(self, writer: pa.ipc.RecordBatchFileWriter, kinds: pa.Schema) -> None:
        self._writer, self._kinds = writer, kinds
        self._written: list[pa.RecordBatch] = []  # none of the rows of the last batch, for its dictionaries
        self._waiting: list[pa.RecordBatch] = []
        self._waiting_bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Raises OSError, and ArrowException for dictionaries that have too many values together for their indices."""
        self._waiting.append(batch)
        self._waiting_bytes += batch_bytes(batch)
        if self._waiting_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what waits. A file has one dictionary a column: what is new is appended to it."""
        table = pa.Table.from_batches([*self._written, *self._waiting], self._kinds)
        self._waiting, self._waiting_bytes = [], 0
        for batch in table.unify_dictionaries().combine_chunks().to_batches():
            self._writer.write_batch(batch)
            if self._writer.stats.num_dictionary_batches:
                self._written = [batch.slice(0, 0)]


@contextmanager
def row_writer(file: HashedFile, kinds: pa.Schema) -> Iterator[RowWriter]:
    """Writes rows to an IPC file; all are there when the block ends well."""
    with ipc_writer(file, kinds) as writer:
        rows = RowWriter(writer, kinds)
        yield rows
        rows.flush()


def read_batches(path: Path, kinds: pa.Schema | None = None, *, in_parts: bool = False) -> list[pa.RecordBatch]:
    """The batches of an IPC file of a run, memory-mapped; with ``in_parts`` what is used of them must be fetched.
    Raises ArtefactError, for other columns too.
    """
    try:
        with pa.BufferReader(mapped(path)) if in_parts else pa.memory_map(str(path)) as source:
            file = pa.ipc.open_file(source)
            if kinds is not None and not file.schema.equals(kinds):
                raise ArtefactError(f"{path} has other columns than a run writes: {file.schema.names}")
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
            _check_mapped(path, pa.Table.from_batches(batches, file.schema))
            for batch in batches:
                batch.validate(full=True)
                if kinds is not None and any(column.null_count for column in batch.columns):
                    raise ArtefactError(f"{path} has nulls, which no run writes")
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    return batches


def read_table(path: Path) -> pa.Table:
    """An IPC file of a run as a table, memory-mapped. Raises ArtefactError."""
    try:
        with pa.memory_map(str(path)) as mapped:
            table = pa.ipc.open_file(mapped).read_all()
            _check_mapped(path, table)
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    return table


def _check_mapped(path: Path, table: pa.Table) -> None:
    """Raise ArtefactError for what takes more than the file has: a run writes nothing compressed."""
    if table.get_total_buffer_size() > 2 * path.stat().st_size:
        raise ArtefactError(f"{path} holds more than its size, which no run writes; delete it and start again")


class SignatureFile:
    """The signatures of one task, memory-mapped; rows in the order in which the task read them."""

    def __init__(self, path: Path, num_perm: int) -> None:
        self.path = path
        self._batches = read_batches(path, schema(num_perm), in_parts=True)
        fetch(places_of(column for batch in self._batches for column in batch.select(FACTS).columns))  # all are read
        self._width = len(_groups(num_perm))
        self._ends = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @property
    def rows(self) -> int:
        return int(self._ends[-1])

    def parts(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """The batches that rows first to last - 1 lie in, cut to them."""
        for batch, start, stop in zip(self._batches, self._ends, self._ends[1:], strict=False):
            low, high = max(first, int(start)), min(last, int(stop))
            if low < high:
                yield batch.slice(low - int(start), high - low)

    def lanes(self, batch: pa.RecordBatch) -> list[U32]:
        """uint32[n, width] per column of lanes of one of ``parts``, without a copy."""
        return [
            np.asarray(column.flatten().to_numpy()).reshape(batch.num_rows, -1)
            for column in batch.columns[: self._width]
        ]


def place_of(array: npt.NDArray[Any]) -> Place:
    """Where the values of a contiguous array are."""
    return array.__array_interface__["data"][0], array.nbytes


def places_of(columns: Iterable[pa.Array]) -> list[Place]:
    """Where the buffers of columns are: of a slice all that it is a slice of."""
    return [(each.address, each.size) for column in columns for each in column.buffers() if each is not None]


def content_of(batch: pa.RecordBatch) -> U64:
    """uint64[n, 2]."""
    column = batch.column("content")
    words = np.frombuffer(column.buffers()[1], "<u8")
    return words.reshape(-1, 2)[column.offset : column.offset + len(column)]


def concatenated(batches: Sequence[pa.RecordBatch], name: str) -> npt.NDArray[Any]:
    """A column of numbers or booleans of many batches."""
    parts = [batch.column(name).to_numpy(zero_copy_only=False) for batch in batches]
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)
