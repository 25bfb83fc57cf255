"""The sign tasks of a durable run: text in, signature files out, and read back."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.stages.sign import Piece, ShingleCache, sign_pieces
from gpudedup.store import manifest as manifests
from gpudedup.store import signatures as files
from gpudedup.store.manifest import InputEntry, SkippedEntry, working_entry
from gpudedup.store.stopping import GivenUpError, stoppable_threads

if TYPE_CHECKING:
    from gpudedup.engines.durable import DurableRun

PIECES_AHEAD = 4
"""Signed batches that may wait to be written."""


class _Writer:
    """Writes the artefacts of one sign task. Only one thread at a time uses it."""

    def __init__(self, run: DurableRun, task: int) -> None:
        self._run, self._task = run, task
        self._stack = ExitStack()
        self._name = f"signatures/{task:06}.arrow"
        run.replace("sign", task)
        self._file = self._stack.enter_context(run.directory.new_artefact(self._name))
        self._batches = self._stack.enter_context(files.ipc_writer(self._file, files.schema(run.params.num_perm)))
        self._columns: list[pa.RecordBatch] = []
        self._rows = dict.fromkeys(run.corpus.files_of(task), 0)
        self._text_bytes = 0
        self._start = time.perf_counter()

    def add(self, piece: Piece) -> None:
        """Write the signatures of a batch; hold its carried columns."""
        self._batches.write_batch(files.record_batch(piece.signed, piece.damaged))
        if self._run.carried:
            self._columns.append(piece.batch.columns.select(self._run.carried))
        corpus = self._run.corpus
        first = int(np.searchsorted(corpus.shard, piece.shard))
        if corpus.row[first] < 0:
            self._rows[first] += len(piece.batch.rows)
        else:
            for row in piece.batch.rows.tolist():
                self._rows[first + row] = 1
        self._text_bytes += piece.text_bytes

    def commit(self) -> None:
        """Close the files and record the task as done."""
        self._stack.close()
        run = self._run
        entry = working_entry(self._name, self._file.size_bytes, self._file.xxh3_128)
        inputs = [_input_entry(run, place, rows) for place, rows in self._rows.items()]
        names = {entry.path for entry in inputs}
        record = run.record(
            "sign",
            self._task,
            [entry],
            inputs=inputs,
            skipped=[
                SkippedEntry(shard=each.shard, first_row=each.first_row, count=each.count, reason=each.reason)
                for each in run.source.skipped
                if each.shard in names and each.first_row is not None
            ],
            counts={"rows": sum(self._rows.values()), "text_bytes": self._text_bytes},
            seconds=time.perf_counter() - self._start,
        )
        run.commit(record)
        if run.carried:
            write_columns(run, self._task, self._columns)

    def abandon(self) -> None:
        """Remove what was written, if it was not committed."""
        with suppress(GivenUpError), self._stack:
            raise GivenUpError


def sign_tasks(run: DurableRun, tasks: Sequence[int], cache: ShingleCache) -> None:
    """Sign the files of tasks, in one go over all of them, and commit each. Raises InputError and OutputError."""
    parts = [part for task in tasks for part in run.corpus.parts_of(task)]
    left = deque(tasks)
    writers: deque[_Writer] = deque()  # the last is of the task that is being read; others are about to be committed
    documents = text_bytes = 0
    with ExitStack() as cleanup, stoppable_threads(1, "gpudedup-sign") as submit:  # the thread ends before the clean-up
        ahead: deque[Future[None]] = deque()

        @cleanup.callback
        def abandon() -> None:
            for writer in writers:
                writer.abandon()

        def hand(job: Callable[[], None]) -> None:
            ahead.append(submit(job))
            while len(ahead) > PIECES_AHEAD:
                ahead.popleft().result()

        def commit() -> None:
            writers[0].commit()
            writers.popleft()

        def to_next() -> None:
            hand(commit)
            left.popleft()
            if left:
                writers.append(_Writer(run, left[0]))

        writers.append(_Writer(run, left[0]))
        for piece in sign_pieces(run.source, parts, run.params, run.backend, cache=cache, band_keys=False, lanes=True):
            task = run.corpus.task_at(piece.shard, int(piece.batch.rows[0]) if len(piece.batch.rows) else 0)
            while left[0] != task:  # files without rows give no batch
                to_next()
            hand(partial(writers[-1].add, piece))
            documents += len(piece.batch.rows)
            text_bytes += piece.text_bytes
            run.progress("sign", documents, text_bytes)
        while left:
            to_next()
        while ahead:
            ahead.popleft().result()


def read_columns(run: DurableRun, task: int) -> None:
    """Read the carried columns of a task that is signed already, without its text."""
    batches = [
        batch.columns
        for shard, rows in run.corpus.parts_of(task)
        for batch in run.source.shards[shard].read(run.carried, rows)
    ]
    write_columns(run, task, batches)


def write_columns(run: DurableRun, task: int, batches: Sequence[pa.RecordBatch]) -> None:
    """Commit the carried columns of a task."""
    start = time.perf_counter()
    kinds = pa.schema([pa.field(name, run.source.column_type(name)) for name in run.carried])
    table = pa.Table.from_batches([_of_types(batch, kinds) for batch in batches], kinds).unify_dictionaries()
    name = f"columns/{task:06}.arrow"
    run.replace("columns", task)
    with run.directory.new_artefact(name) as file, files.ipc_writer(file, kinds) as writer:
        writer.write_table(table)
    entry = working_entry(name, file.size_bytes, file.xxh3_128)
    counts = {"rows": table.num_rows}
    run.commit(run.record("columns", task, [entry], counts=counts, seconds=time.perf_counter() - start))


def _of_types(batch: pa.RecordBatch, kinds: pa.Schema) -> pa.RecordBatch:
    """The batch with the types that the source promises: the text column alone may come dictionary-encoded."""
    columns = [column.cast(kind.type) for column, kind in zip(batch.columns, kinds, strict=True)]
    return pa.RecordBatch.from_arrays(columns, schema=kinds)


def _input_entry(run: DurableRun, place: int, rows: int) -> InputEntry:
    """A file as it was read: checked after all of it was, so that the checksum is of the bytes that were signed."""
    name, mark = run.corpus.names[place], run.corpus.marks[place]
    checksum = manifests.checksum(Path(name)) if os.path.isfile(name) else ""
    if checksum:
        status = os.stat(name)
        if (status.st_size, status.st_mtime_ns) != (mark.size_bytes, mark.mtime_ns):
            raise InputError(f"{name} changed while it was being read; run again")
    return InputEntry(
        path=name,
        size_bytes=mark.size_bytes,
        mtime_ns=mark.mtime_ns,
        etag=mark.etag,
        rows=rows,
        xxh3_128=checksum,
        task=int(run.corpus.task[place]),
    )
