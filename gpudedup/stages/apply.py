"""apply: decisions -> the table of removals and the input without them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from typing import Any

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

FILES_AT_ONCE = 500
"""Small files that one task copies."""


def removed_table(
    file_names: Sequence[str],
    file_first: I64,
    decided: Decided,
    ids_at: Callable[[pa.Array], pa.Array] | None,
    earlier: Earlier | None = None,
) -> pa.Table:
    """One row per removal in input order; columns as in docs/spec.md, section 13. O(removals).

    file_first int64[files + 1]: input position of the first row of each file; ids_at gives the ids at document numbers.
    """
    nothing = decided.keeper < 0
    shard, row = _place(file_first, decided.removed)
    keeper_shard, keeper_row = _place(file_first, np.where(nothing, 0, decided.keeper))
    keeper_run = np.full(len(decided.keeper), -1, np.int64)
    names = list(file_names)
    if earlier is not None:
        (places,) = np.nonzero(decided.keeper >= file_first[-1])
        documents = decided.keeper[places] - file_first[-1]
        for run, among, positions in earlier.parts(documents):
            file, keeper_row[places[among]] = _place(run.file_first, positions)
            keeper_shard[places[among]] = len(names) + file
            keeper_run[places[among]] = earlier.runs.index(run)
            names += run.files
    columns: dict[str, pa.Array] = {
        "shard": _names(file_names, shard, None),
        "row": pa.array(row, pa.int64()),
        "reason": pa.array(REASONS, pa.string()).take(pa.array(decided.reason, pa.int32())),
        "keeper_shard": _names(names, keeper_shard, nothing),
        "keeper_row": pa.array(keeper_row, pa.int64(), mask=nothing),
        "similarity": pa.array(decided.similarity, pa.float64(), mask=np.isnan(decided.similarity)),
        "cluster": pa.array(input_positions(decided.keeper, int(file_first[-1])), pa.int64(), mask=nothing),
    }
    if earlier is not None:
        columns["keeper_run"] = _names([run.name for run in earlier.runs], keeper_run, keeper_run < 0)
    if ids_at is not None:
        columns["id"] = ids_at(pa.array(decided.removed, pa.int64()))
        columns["keeper_id"] = ids_at(pa.array(decided.keeper, pa.int64(), mask=nothing))
    order = ["shard", "row", "id", "reason", "keeper_run", "keeper_shard", "keeper_row", "keeper_id", "similarity"]
    return pa.table({name: columns[name] for name in [*order, "cluster"] if name in columns})


def all_removals(source: Source, signed: Signed, decided: Decided, params: Params) -> pa.Table:
    """The removals of a whole run."""
    names = [name for name, _ in input_files(source.shards)]
    ids = None
    if params.id_column:
        ids = signed.columns[params.id_column]
        if signed.earlier is not None:
            ids = signed.earlier.ids(params.id_column, ids)
    return removed_table(
        names,
        first_rows(source.shards, signed.shard_first),
        decided,
        partial(take, ids) if ids is not None else None,
        signed.earlier,
    )


def kept_batches(source: Source, signed: Signed, decided: Decided) -> Iterator[pa.RecordBatch]:
    """The input without removals, in input order."""
    for number, shard in enumerate(source.shards):
        first, last = signed.shard_first[number : number + 2]
        yield from shard.kept(decided.keep[first:last])


def _place(file_first: I64, positions: I64) -> tuple[I64, I64]:
    """(file number, row within the file) of input positions."""
    file = np.searchsorted(file_first, positions, side="right") - 1
    return file, positions - file_first[file]


def _names(file_names: Sequence[str], shard: I64, null: npt.NDArray[np.bool_] | None) -> pa.Array:
    if not len(shard):
        return pa.array([], pa.string())
    return pa.array(file_names, pa.string()).take(pa.array(shard, pa.int64(), mask=null))


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
    directory: RunDirectory, source: Source, signed: Signed, decided: Decided, removed: pa.Table, workers: int
) -> list[OutputEntry]:
    """Write the removals of all shards, and what is kept of them or their masks. Raises OutputError and InputError."""
    with stoppable_threads(workers, "gpudedup-apply") as submit:
        parts = list(removed_parts(signed, removed, decided))
        futures = [
            future
            for number, part in enumerate(parts)
            for future in write_shard(directory, source, number, signed, decided, part, submit)
        ]
        return [entry for entries in results(futures) for entry in entries]


def removed_parts(signed: Signed, removed: pa.Table, decided: Decided) -> Iterator[pa.Table]:
    """The removals of each shard."""
    cuts = np.searchsorted(decided.removed, signed.shard_first)
    for first, last in pairwise(cuts.tolist()):
        yield removed.slice(first, last - first)


def write_shard(
    directory: RunDirectory,
    source: Source,
    number: int,
    signed: Signed,
    decided: Decided,
    removed: pa.Table,
    submit: Submit,
) -> list[Future[list[OutputEntry]]]:
    """Have the files of one shard written: its removals, and what is kept of it or its mask."""
    shard = source.shards[number]
    first, last = signed.shard_first[number : number + 2]
    keep = decided.keep[first:last]
    names = None
    futures = [submit(partial(_one, directory.write_removed, shard.name, removed))]
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
        futures.append(submit(partial(_one, directory.write_kept, shard.name, write_kept, int(keep.sum()))))
    if directory.output == "mask":
        futures.append(submit(partial(_one, directory.write_mask, shard.name, keep, names)))
    return futures


def _one(write: Callable[..., OutputEntry], *args: Any) -> list[OutputEntry]:
    return [write(*args)]


def _copy(files: Sequence[RowFile], write: Callable[[str, Iterable[bytes]], OutputEntry]) -> list[OutputEntry]:
    return [write(file.path, file.blocks()) for file in files]
