"""apply: decisions -> the table of removals and the input without them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends.base import I64
from gpudedup.backends.columns import take
from gpudedup.io.source import DocumentFiles, RowFile, Source, first_rows, input_files
from gpudedup.params import Params
from gpudedup.stages.decide import REASONS, Decided
from gpudedup.stages.earlier import Earlier, input_positions
from gpudedup.stages.sign import Signed
from gpudedup.store.manifest import OutputEntry
from gpudedup.store.mirror import Mirror
from gpudedup.store.run_directory import RunDirectory
from gpudedup.store.stopping import Submit, results, stoppable_threads

REMOVALS_AT_ONCE = 1 << 22
"""Rows of a table: a column of strings holds 2 GB in one piece."""

FILES_AT_ONCE = 500
"""Small files that one task copies."""


class Removals:
    """The table of removals, made range by range: one of all of them may not fit memory.

    file_first int64[files + 1]: input position of the first row of each file; ids: by document number, those of earlier
    runs behind the rows.
    """

    def __init__(
        self,
        file_names: Sequence[str],
        file_first: I64,
        decided: Decided,
        ids: pa.ChunkedArray | None,
        earlier: Earlier | None = None,
    ) -> None:
        self._first, self._decided, self._ids, self._earlier = file_first, decided, ids, earlier
        runs = [] if earlier is None else earlier.runs
        self._names = pa.array([*file_names, *(name for run in runs for name in run.files)], pa.large_string())
        self._run_files = np.cumsum([len(file_names), *(len(run.files) for run in runs)])

    @classmethod
    def of(cls, source: Source, signed: Signed, decided: Decided, params: Params) -> Removals:
        """Those of a whole run."""
        ids = None
        if params.id_column:
            ids = signed.columns[params.id_column]
            if signed.earlier is not None:
                ids = signed.earlier.ids(params.id_column, ids)
        names = [name for name, _ in input_files(source.shards)]
        return cls(names, first_rows(source.shards, signed.shard_first), decided, ids, signed.earlier)

    def whole(self) -> pa.Table:
        """All of them."""
        count = len(self._decided.removed)
        return pa.concat_tables(
            [self.table(low, min(low + REMOVALS_AT_ONCE, count)) for low in range(0, max(1, count), REMOVALS_AT_ONCE)]
        )

    def of_shard(self, first: int, last: int) -> pa.Table:
        """Those of the rows at input positions first to last - 1."""
        return self.table(*np.searchsorted(self._decided.removed, [first, last]).tolist())

    def table(self, low: int, high: int) -> pa.Table:
        """Removals low to high - 1, a row each, in input order; columns as in docs/spec.md, section 13."""
        decided = self._decided
        removed, keeper, similarity = decided.removed[low:high], decided.keeper[low:high], decided.similarity[low:high]
        nothing = keeper < 0
        shard, row = _place(self._first, removed)
        keeper_shard, keeper_row = _place(self._first, np.where(nothing, 0, keeper))
        keeper_run = np.full(len(keeper), -1, np.int64)
        if self._earlier is not None:
            (places,) = np.nonzero(keeper >= self._first[-1])
            documents = keeper[places] - self._first[-1]
            for run, among, positions in self._earlier.parts(documents):
                number = self._earlier.runs.index(run)
                file, keeper_row[places[among]] = _place(run.file_first, positions)
                keeper_shard[places[among]] = self._run_files[number] + file
                keeper_run[places[among]] = number
        columns: dict[str, pa.Array] = {
            "shard": _taken(self._names, shard, None),
            "row": pa.array(row, pa.int64()),
            "reason": pa.array(REASONS, pa.string()).take(pa.array(decided.reason[low:high], pa.int32())),
            "keeper_shard": _taken(self._names, keeper_shard, nothing),
            "keeper_row": pa.array(keeper_row, pa.int64(), mask=nothing),
            "similarity": pa.array(similarity, pa.float64(), mask=np.isnan(similarity)),
            "cluster": pa.array(input_positions(keeper, int(self._first[-1])), pa.int64(), mask=nothing),
        }
        if self._earlier is not None:
            runs = pa.array([run.name for run in self._earlier.runs], pa.large_string())
            columns["keeper_run"] = _taken(runs, keeper_run, keeper_run < 0)
        if self._ids is not None:
            columns["id"] = take(self._ids, pa.array(removed, pa.int64()))
            columns["keeper_id"] = take(self._ids, pa.array(keeper, pa.int64(), mask=nothing))
        order = ["shard", "row", "id", "reason", "keeper_run", "keeper_shard", "keeper_row", "keeper_id", "similarity"]
        return pa.table({name: columns[name] for name in [*order, "cluster"] if name in columns})


def kept_batches(source: Source, signed: Signed, decided: Decided) -> Iterator[pa.RecordBatch]:
    """The input without removals, in input order."""
    for number, shard in enumerate(source.shards):
        first, last = signed.shard_first[number : number + 2]
        yield from shard.kept(decided.keep[first:last])


def _place(file_first: I64, positions: I64) -> tuple[I64, I64]:
    """(file number, row within the file) of input positions."""
    file = np.searchsorted(file_first, positions, side="right") - 1
    return file, positions - file_first[file]


def _taken(names: pa.Array, places: I64, null: npt.NDArray[np.bool_] | None) -> pa.Array:
    if not len(places):
        return pa.array([], pa.string())
    return names.take(pa.array(places, pa.int64(), mask=null)).cast(pa.string())


def new_run(
    out: str | os.PathLike[str],
    source: Source,
    inputs: Sequence[str],
    output: str,
    against: Sequence[str],
    *,
    resumable: bool = False,
    mirror: Mirror | None = None,
) -> RunDirectory:
    """``RunDirectory.create`` for a source, found by ``inputs``, that is compared with earlier runs."""
    names = [name for name, _ in input_files(source.shards)]
    one_table = any(isinstance(shard, DocumentFiles) for shard in source.shards)
    return RunDirectory.create(out, names, inputs, output, one_table, resumable, mirror, against)


def write_all(
    directory: RunDirectory, source: Source, signed: Signed, decided: Decided, params: Params, workers: int
) -> list[OutputEntry]:
    """Write the removals of all shards, and what is kept of them or their masks. Raises OutputError and InputError."""
    removals = Removals.of(source, signed, decided, params)
    with stoppable_threads(workers, "gpudedup-apply") as submit:
        futures = [
            future
            for number in range(len(source.shards))
            for future in write_shard(directory, source, number, signed, decided, removals, submit)
        ]
        return [entry for entries in results(futures) for entry in entries]


def write_shard(
    directory: RunDirectory,
    source: Source,
    number: int,
    signed: Signed,
    decided: Decided,
    removals: Removals,
    submit: Submit,
) -> list[Future[list[OutputEntry]]]:
    """Have the files of one shard written: its removals, and what is kept of it or its mask."""
    shard = source.shards[number]
    first, last = signed.shard_first[number : number + 2].tolist()
    keep = decided.keep[first:last]
    names = None
    futures = [submit(lambda: [directory.write_removed(shard.name, removals.of_shard(first, last))])]
    if isinstance(shard, DocumentFiles):
        names = [file.path for file in shard.files]
        if directory.output == "kept":
            with directory.kept_files() as write:
                kept = [shard.files[row] for row in np.flatnonzero(keep).tolist()]
                pieces = (kept[at : at + FILES_AT_ONCE] for at in range(0, len(kept), FILES_AT_ONCE))
                copies = [submit(partial(_copy, piece, write)) for piece in pieces]
                results(copies)
            futures += copies
    elif directory.output == "kept":
        write_kept = partial(shard.write_kept, keep)
        futures.append(submit(lambda: [directory.write_kept(shard.name, write_kept, int(keep.sum()))]))
    if directory.output == "mask":
        futures.append(submit(lambda: [directory.write_mask(shard.name, keep, names)]))
    return futures


def _copy(files: Sequence[RowFile], write: Callable[[str, Iterable[bytes]], OutputEntry]) -> list[OutputEntry]:
    return [write(file.path, file.blocks()) for file in files]
