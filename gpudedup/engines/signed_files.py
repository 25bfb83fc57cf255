"""What sign tasks left of a run, read back in input order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa

from gpudedup.backends import Backend
from gpudedup.backends.base import I64, U32, U64, LaneGroups
from gpudedup.errors import ArtefactError, InputError
from gpudedup.params import Params
from gpudedup.stages.sign import ShingleCache, Signed, check_count
from gpudedup.store import signatures as files
from gpudedup.store.mapped import fetch, fetched
from gpudedup.store.records import MAKE_ANEW, Record
from gpudedup.store.run_directory import Artefacts


@dataclass(frozen=True)
class SignedFiles:
    """Where the signatures of a run are."""

    artefacts: Artefacts
    params: Params
    names: Sequence[str]
    """The input files, in input order."""
    task: I64
    """[files]: the sign task of each."""
    shard: I64
    """[files]: the shard that each is in, or its own place."""
    shards: int
    record: Callable[[str, int], Record | None]
    """The record of a task that is done."""
    carried: Sequence[str]


BATCHES_AT_ONCE = 256
"""Whose keys are made by one call: a million documents or two."""


class StoredSignatures:
    """Signatures in files, memory-mapped: what match and verify read of them."""

    def __init__(self, backend: Backend, lanes: list[LaneGroups], params: Params) -> None:
        self._backend, self._lanes, self._params = backend, lanes, params

    @property
    def lanes(self) -> Iterator[LaneGroups]:
        """uint32[n, width] per column of lanes, batch by batch."""
        return fetched((groups, [files.place_of(group) for group in groups]) for groups in self._lanes)

    def keys(self, band: int, scope_keys: U64 | None) -> U64:
        """uint64[documents]: the keys of one band."""
        rows = self._params.banding.rows
        read = slice(band * rows // files.GROUP, ((band + 1) * rows - 1) // files.GROUP + 1)
        batches = fetched((groups, [files.place_of(group) for group in groups[read]]) for groups in self._lanes)
        keys: list[U64] = []
        first = 0
        while part := list(islice(batches, BATCHES_AT_ONCE)):
            last = first + sum(len(groups[0]) for groups in part)
            keys.append(self._backend.band_keys(part, band, None if scope_keys is None else scope_keys[first:last]))
            first = last
        return np.concatenate(keys) if keys else np.zeros(0, np.uint64)

    def lane_numbers(self, documents: U32) -> U32:
        """The same: there are lanes of every document."""
        return documents

    def forget_keys(self) -> None:
        """None are held."""


def stored_batches(stored: SignedFiles) -> Iterator[tuple[files.SignatureFile, pa.RecordBatch]]:
    """The signatures of all rows in input order, batch by batch, memory-mapped. Raises as ``load_signed``."""
    for signatures, _, first, last in _Opened(stored).spans():
        for batch in signatures.parts(first, last):
            fetch(map(files.place_of, signatures.lanes(batch)))
            yield signatures, batch


def load_signed(stored: SignedFiles, backend: Backend, cache: ShingleCache) -> Signed:
    """All that was signed, in input order. Raises ArtefactError for files that are damaged or do not fit together."""
    opened = _Opened(stored)
    batches: list[pa.RecordBatch] = []
    lanes: list[LaneGroups] = []
    tables: list[pa.Table] = []
    for signatures, table, first, last in opened.spans():
        for batch in signatures.parts(first, last):
            batches.append(batch)
            lanes.append(signatures.lanes(batch))
        if table is not None:
            tables.append(table.slice(first, last - first))
    shard_rows = np.zeros(stored.shards, np.int64)
    np.add.at(shard_rows, stored.shard, [opened.place_of(name)[2] for name in stored.names])
    check_count(int(shard_rows.sum()))
    content = [files.content_of(batch) for batch in batches]
    return Signed(
        shard_first=np.concatenate(([0], np.cumsum(shard_rows))).astype(np.int64),
        signatures=StoredSignatures(backend, lanes, stored.params),
        content=np.concatenate(content) if content else np.zeros((0, 2), np.uint64),
        unit_count=files.concatenated(batches, "units").astype(np.uint64, copy=False),
        damaged=files.concatenated(batches, "damaged").astype(bool, copy=False),
        columns=_columns(stored, tables),
        text_bytes=opened.text_bytes,
        cache=cache,
    )


class _Opened:
    """The files of all sign tasks, and where in them the rows of each input file are."""

    def __init__(self, stored: SignedFiles) -> None:
        self._stored = stored
        self._files: dict[int, tuple[files.SignatureFile, pa.Table | None]] = {}
        self._where: dict[str, tuple[int, int, int]] = {}  # file -> (task, first row there, rows)
        self.text_bytes = 0
        for task in np.unique(stored.task).tolist():
            record = _done(stored, "sign", task)
            self._files[task] = _open_task(stored, task, record)
            first = 0
            for entry in record.inputs:
                self._where[entry.path] = task, first, entry.rows
                first += entry.rows
            rows = self._files[task][0].rows
            if first != rows:
                raise ArtefactError(f"{stored.artefacts.path}: sign task {task} has {rows} rows, not {first}")
            self.text_bytes += record.counts.get("text_bytes", 0)

    def place_of(self, name: str) -> tuple[int, int, int]:
        """(task, first row there, rows) of an input file."""
        if name not in self._where:
            raise ArtefactError(f"{self._stored.artefacts.path}: no record of a sign task names {name}")
        return self._where[name]

    def spans(self) -> Iterator[tuple[files.SignatureFile, pa.Table | None, int, int]]:
        """(signatures, columns, first row, last row) of consecutive rows, over all rows in input order."""
        for task, first, last in _spans(self.place_of(name) for name in self._stored.names):
            yield *self._files[task], first, last


def _columns(stored: SignedFiles, tables: Sequence[pa.Table]) -> dict[str, pa.ChunkedArray]:
    columns = {}
    for name in stored.carried:
        kinds = {table.schema.field(name).type for table in tables}
        if len(kinds) > 1:
            raise ArtefactError(f"{stored.artefacts.path}: column {name!r} has types {', '.join(map(str, kinds))}")
        chunks = [chunk for table in tables for chunk in table[name].chunks]
        columns[name] = pa.chunked_array(chunks, type=kinds.pop() if kinds else pa.null())
    return columns


def _done(stored: SignedFiles, stage: str, task: int) -> Record:
    record = stored.record(stage, task)
    if record is None:
        raise ArtefactError(f"{stored.artefacts.path}: task {task} of {stage} is not done, or damaged; run it again")
    return record


def _open_task(stored: SignedFiles, task: int, record: Record) -> tuple[files.SignatureFile, pa.Table | None]:
    signatures = files.SignatureFile(stored.artefacts.artefact(record.artefacts[0]), stored.params.num_perm)
    if not stored.carried:
        return signatures, None
    path = stored.artefacts.artefact(_done(stored, "columns", task).artefacts[0])
    table = files.read_table(path)
    if table.schema.names != list(stored.carried):
        raise ArtefactError(f"{path} has columns {table.schema.names}, not {stored.carried}; {MAKE_ANEW}")
    if table.num_rows != signatures.rows:
        raise InputError(
            f"task {task}: {signatures.rows} rows were signed, and {table.num_rows} have columns; the input was changed"
        )
    return signatures, table


def _spans(places: Iterable[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
    """(task, first row, last row) of consecutive rows, from (task, first row, rows) of files."""
    task = first = last = -1
    for of_file, start, rows in places:
        if (of_file, start) != (task, last):
            if task >= 0:
                yield task, first, last
            task, first, last = of_file, start, start
        last += rows
    if task >= 0:
        yield task, first, last
