"""apply: decisions -> the table of removals and the input without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends.base import I64
from gpudedup.backends.columns import take
from gpudedup.io.source import Shard, Source
from gpudedup.params import Params
from gpudedup.stages.decide import REASONS, Decided
from gpudedup.stages.sign import Signed
from gpudedup.store.run_directory import RunDirectory


def removed_table(
    shard_names: list[str], shard_first: I64, decided: Decided, ids_at: Callable[[pa.Array], pa.Array] | None
) -> pa.Table:
    """One row per removal in input order; columns as in docs/spec.md, section 13. O(removals).

    shard_first int64[shards + 1]: input position of each shard's first row; ids_at gives the ids at input positions.
    """
    nothing = decided.keeper < 0
    shard, row = _place(shard_first, decided.removed)
    keeper_shard, keeper_row = _place(shard_first, np.where(nothing, 0, decided.keeper))
    columns: dict[str, pa.Array] = {
        "shard": _names(shard_names, shard, None),
        "row": pa.array(row, pa.int64()),
        "reason": pa.array(REASONS, pa.string()).take(pa.array(decided.reason, pa.int32())),
        "keeper_shard": _names(shard_names, keeper_shard, nothing),
        "keeper_row": pa.array(keeper_row, pa.int64(), mask=nothing),
        "similarity": pa.array(decided.similarity, pa.float64(), mask=np.isnan(decided.similarity)),
        "cluster": pa.array(decided.keeper, pa.int64(), mask=nothing),
    }
    if ids_at is not None:
        columns["id"] = ids_at(pa.array(decided.removed, pa.int64()))
        columns["keeper_id"] = ids_at(columns["cluster"])
    order = ["shard", "row", "id", "reason", "keeper_shard", "keeper_row", "keeper_id", "similarity", "cluster"]
    return pa.table({name: columns[name] for name in order if name in columns})


def all_removals(signed: Signed, decided: Decided, params: Params) -> pa.Table:
    """The removals of a whole run."""
    ids = signed.columns[params.id_column] if params.id_column else None
    return removed_table(
        signed.shard_names, signed.shard_first, decided, partial(take, ids) if ids is not None else None
    )


def kept_batches(source: Source, signed: Signed, decided: Decided) -> Iterator[pa.RecordBatch]:
    """The input without removals, in input order."""
    for number, shard in enumerate(source.shards):
        first, last = signed.shard_first[number : number + 2]
        yield from shard.kept(decided.keep[first:last])


def _place(shard_first: I64, positions: I64) -> tuple[I64, I64]:
    """(shard number, row within the shard) of input positions."""
    shard = np.searchsorted(shard_first, positions, side="right") - 1
    return shard, positions - shard_first[shard]


def _names(shard_names: list[str], shard: I64, null: npt.NDArray[np.bool_] | None) -> pa.Array:
    if not len(shard):
        return pa.array([], pa.string())
    return pa.array(shard_names, pa.string()).take(pa.array(shard, pa.int64(), mask=null))


def write_shard(directory: RunDirectory, shard: Shard, removed: pa.Table, keep: npt.NDArray[np.bool_]) -> None:
    """Write one shard's removals, and what is kept of it or its mask. Raises OutputError and InputError."""
    directory.write_removed(shard.name, removed)
    if directory.output == "kept":
        if shard.absent_when_removed and not keep.any():
            return
        directory.write_kept(shard.name, lambda path: shard.write_kept(keep, path), rows=int(keep.sum()))
    elif directory.output == "mask":
        directory.write_mask(shard.name, keep)


def write_all(
    directory: RunDirectory, source: Source, signed: Signed, decided: Decided, removed: pa.Table, workers: int
) -> None:
    """Write all shards, several at a time; one that fails ends the others after the shards that they are at."""
    cuts = np.searchsorted(decided.removed, signed.shard_first)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="gpudedup-apply")
    try:
        jobs = []
        for number, shard in enumerate(source.shards):
            first, last = signed.shard_first[number : number + 2]
            part = removed.slice(cuts[number], cuts[number + 1] - cuts[number])
            jobs.append(pool.submit(write_shard, directory, shard, part, decided.keep[first:last]))
        for job in jobs:
            job.result()
    finally:
        pool.shutdown(cancel_futures=True)
