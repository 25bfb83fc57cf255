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

from gpudedup.backends.columns import held_type
from gpudedup.errors import InputError, OutputError
from gpudedup.io.remote import is_url
from gpudedup.io.source import Fingerprint
from gpudedup.stages.sign import Piece, ShingleCache, sign_pieces
from gpudedup.store import manifest as manifests
from gpudedup.store import signatures as files
from gpudedup.store.atomic import output_errors
from gpudedup.store.manifest import InputEntry, OutputEntry, SkippedEntry, working_entry
from gpudedup.store.stopping import GivenUpError, stoppable_threads

if TYPE_CHECKING:
    from gpudedup.engines.durable import DurableRun

PIECES_AHEAD = 4
"""Signed batches that may wait to be written."""


class _Artefact:
    """A file of one task, while it is written; whole when ``opened`` is closed. Raises OutputError."""

    def __init__(self, run: DurableRun, stage: str, task: int, name: str, kinds: pa.Schema, opened: ExitStack) -> None:
        self._name, self._path = name, run.directory.path / name
        self.rows = 0
        run.replace(stage, task)
        self._file = opened.enter_context(run.directory.new_artefact(name))
        self._writer = opened.enter_context(files.row_writer(self._file, kinds))

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        with output_errors(self._path):
            self._writer.write(batch)

    def entry(self) -> OutputEntry:
        """Of what was written, once it is whole."""
        return working_entry(self._name, self._file.size_bytes, self._file.xxh3_128)


class _Columns:
    """The carried columns of one task, while they are written."""

    def __init__(self, run: DurableRun, task: int, opened: ExitStack) -> None:
        self._run, self._task = run, task
        self._start = time.perf_counter()
        self._kinds = pa.schema([pa.field(name, held_type(run.source.column_type(name))) for name in run.carried])
        self._artefact = _Artefact(run, "columns", task, f"columns/{task:06}.arrow", self._kinds, opened)

    def add(self, batch: pa.RecordBatch) -> None:
        """Write those of a batch that has them. The text column may come dictionary-encoded without its type saying
        so.
        """
        columns = [batch.column(kind.name).cast(kind.type) for kind in self._kinds]
        self._artefact.add(pa.RecordBatch.from_arrays(columns, schema=self._kinds))

    def commit(self) -> None:
        """Record the file, which is whole."""
        entry, counts = self._artefact.entry(), {"rows": self._artefact.rows}
        seconds = time.perf_counter() - self._start
        self._run.commit(self._run.record("columns", self._task, [entry], counts=counts, seconds=seconds))


class _Writer:
    """Writes the artefacts of one sign task. Only one thread at a time uses it."""

    def __init__(self, run: DurableRun, task: int) -> None:
        self._run, self._task = run, task
        self._rows = dict.fromkeys(run.corpus.files_of(task), 0)
        self._text_bytes = 0
        self._start = time.perf_counter()
        self._opened = ExitStack()

    def open(self) -> None:
        """Begin the files. What was begun when this is interrupted, ``abandon`` removes."""
        run, task = self._run, self._task
        kinds = files.schema(run.params.num_perm)
        self._signatures = _Artefact(run, "sign", task, f"signatures/{task:06}.arrow", kinds, self._opened)
        self._columns = _Columns(run, task, self._opened) if run.carried else None

    def add(self, piece: Piece) -> None:
        """Write the signatures of a batch, and its carried columns."""
        self._signatures.add(files.record_batch(piece.signed, piece.damaged))
        if self._columns is not None:
            self._columns.add(piece.batch.columns)
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
        self._opened.close()
        run = self._run
        inputs = [_input_entry(run, place, rows) for place, rows in self._rows.items()]
        names = {entry.path for entry in inputs}
        record = run.record(
            "sign",
            self._task,
            [self._signatures.entry()],
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
        if self._columns is not None:
            self._columns.commit()

    def abandon(self) -> None:
        """Remove what was written, if it was not committed. That it could not be ended is told by what went wrong."""
        with suppress(GivenUpError, OutputError), self._opened:
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
                begin()

        def begin() -> None:
            writers.append(_Writer(run, left[0]))
            writers[-1].open()

        begin()
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
    with ExitStack() as opened:
        columns = _Columns(run, task, opened)
        for shard, rows in run.corpus.parts_of(task):
            for batch in run.source.shards[shard].read(run.carried, rows):
                columns.add(batch.columns)
    columns.commit()


def _input_entry(run: DurableRun, place: int, rows: int) -> InputEntry:
    """A file as it was read: checked after all of it was, so that the checksum is of the bytes that were signed."""
    name, mark = run.corpus.names[place], run.corpus.marks[place]
    return InputEntry(
        path=name,
        size_bytes=mark.size_bytes,
        mtime_ns=mark.mtime_ns,
        etag=mark.etag,
        rows=rows,
        xxh3_128="" if is_url(name) else _checksum(name, mark),
        task=int(run.corpus.task[place]),
    )


def _checksum(name: str, mark: Fingerprint) -> str:
    try:
        checksum, status = manifests.checksum(Path(name)), os.stat(name)
    except FileNotFoundError:
        raise InputError(f"{name} was removed while it was being read; put it back, and run again") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read any more: {error.strerror}; run again") from error
    if (status.st_size, status.st_mtime_ns) != (mark.size_bytes, mark.mtime_ns):
        raise InputError(f"{name} changed while it was being read; run again")
    return checksum
