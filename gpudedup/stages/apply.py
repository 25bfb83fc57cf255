"""apply: decisions -> the table of removals and the input without them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends.base import I64
from gpudedup.backends.columns import take
from gpudedup.io.source import DocumentFiles, RowFile, Source, first_rows, input_files
from gpudedup.params import Params
from gpudedup.stages.decide import REASONS, Decided
from gpudedup.stages.sign import Signed
from gpudedup.store.run_directory import RunDirectory
from gpudedup.store.stopping import checkpoint, heed

FILES_AT_ONCE = 500
"""Small files that one task copies."""

Task = Callable[[], Any]


def removed_table(
    file_names: Sequence[str], file_first: I64, decided: Decided, ids_at: Callable[[pa.Array], pa.Array] | None
) -> pa.Table:
    """One row per removal in input order; columns as in docs/spec.md, section 13. O(removals).

    file_first int64[files + 1]: input position of the first row of each file; ids_at gives the ids at input positions.
    """
    nothing = decided.keeper < 0
    shard, row = _place(file_first, decided.removed)
    keeper_shard, keeper_row = _place(file_first, np.where(nothing, 0, decided.keeper))
    columns: dict[str, pa.Array] = {
        "shard": _names(file_names, shard, None),
        "row": pa.array(row, pa.int64()),
        "reason": pa.array(REASONS, pa.string()).take(pa.array(decided.reason, pa.int32())),
        "keeper_shard": _names(file_names, keeper_shard, nothing),
        "keeper_row": pa.array(keeper_row, pa.int64(), mask=nothing),
        "similarity": pa.array(decided.similarity, pa.float64(), mask=np.isnan(decided.similarity)),
        "cluster": pa.array(decided.keeper, pa.int64(), mask=nothing),
    }
    if ids_at is not None:
        columns["id"] = ids_at(pa.array(decided.removed, pa.int64()))
        columns["keeper_id"] = ids_at(columns["cluster"])
    order = ["shard", "row", "id", "reason", "keeper_shard", "keeper_row", "keeper_id", "similarity", "cluster"]
    return pa.table({name: columns[name] for name in order if name in columns})


def all_removals(source: Source, signed: Signed, decided: Decided, params: Params) -> pa.Table:
    """The removals of a whole run."""
    names = [name for name, _ in input_files(source.shards)]
    ids = signed.columns[params.id_column] if params.id_column else None
    return removed_table(
        names,
        first_rows(source.shards, signed.shard_first),
        decided,
        partial(take, ids) if ids is not None else None,
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


def new_run(out: str | os.PathLike[str], source: Source, inputs: Sequence[str], output: str) -> RunDirectory:
    """``RunDirectory.create`` for a source, found by ``inputs``."""
    names = [name for name, _ in input_files(source.shards)]
    one_table = any(isinstance(shard, DocumentFiles) for shard in source.shards)
    return RunDirectory.create(out, names, inputs, output, one_table)


@contextmanager
def _threads(count: int) -> Iterator[Callable[[Iterable[Task]], None]]:
    """A function that performs tasks, ``count`` at a time, and raises what the first one to fail raised.

    Then, or when the block is left for another reason, tasks that are going on end at their next checkpoint, and none
    is going on any more when this ends.
    """
    stop = threading.Event()
    pool = ThreadPoolExecutor(count, thread_name_prefix="gpudedup-apply", initializer=heed, initargs=(stop,))
    changed = threading.Condition()
    going_on: set[Task] = set()

    def watched(task: Task) -> None:
        with changed:
            checkpoint()
            going_on.add(task)
        try:
            task()
        finally:
            with changed:
                going_on.remove(task)
                changed.notify_all()

    def perform(tasks: Iterable[Task]) -> None:
        jobs = [pool.submit(watched, task) for task in tasks]
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        for job in jobs:
            if job in done:
                job.result()

    try:
        yield perform
    finally:
        with changed:  # the pool does not know a thread that it was starting when a signal came in between
            stop.set()
            changed.wait_for(lambda: not going_on)
        pool.shutdown(cancel_futures=True)


def write_all(
    directory: RunDirectory, source: Source, signed: Signed, decided: Decided, removed: pa.Table, workers: int
) -> None:
    """Write the removals of all shards, and what is kept of them or their masks. Raises OutputError and InputError."""
    cuts = np.searchsorted(decided.removed, signed.shard_first)
    tasks: list[Task] = []
    with _threads(workers) as perform:
        for number, shard in enumerate(source.shards):
            first, last = signed.shard_first[number : number + 2]
            keep = decided.keep[first:last]
            part = removed.slice(cuts[number], cuts[number + 1] - cuts[number])
            tasks.append(partial(directory.write_removed, shard.name, part))
            if isinstance(shard, DocumentFiles):
                names = [file.path for file in shard.files]
                if directory.output == "kept":
                    with directory.kept_files() as write:
                        kept = [shard.files[row] for row in np.flatnonzero(keep).tolist()]
                        pieces = (kept[at : at + FILES_AT_ONCE] for at in range(0, len(kept), FILES_AT_ONCE))
                        perform(partial(_copy, piece, write) for piece in pieces)
            else:
                names = None
                if directory.output == "kept":
                    write_kept = partial(shard.write_kept, keep)
                    tasks.append(partial(directory.write_kept, shard.name, write_kept, int(keep.sum())))
            if directory.output == "mask":
                tasks.append(partial(directory.write_mask, shard.name, keep, names))
        perform(tasks)


def _copy(files: Sequence[RowFile], write: Callable[[str, Iterable[bytes]], None]) -> None:
    for file in files:
        write(file.path, file.blocks())
