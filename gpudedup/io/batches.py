"""Cutting, joining and picking rows of Arrow batches, and reading ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from gpudedup.backends.columns import is_text

TARGET_BYTES = 16 << 20
"""Bytes of values a batch aims at where there is memory: large enough to hide the cost per batch."""

TARGET_SHARE = 16
"""A batch that is read aims at 1 / TARGET_SHARE of the memory at most: several are decoded, picked and joined."""

MAX_ROWS = 1 << 17
"""Rows a batch has at most, so that rows without bytes (nulls, run lengths) are bounded too."""

READ_ERRORS = (
    pa.ArrowException,
    OSError,
    ValueError,
    TypeError,
    LookupError,
    OverflowError,
    MemoryError,
    RecursionError,
)
"""Everything that pyarrow raises on damaged input."""

Rows = npt.NDArray[np.int64]
Item = TypeVar("Item")


def target_bytes(memory_bytes: int) -> int:
    """Bytes of values that a batch which is read aims at."""
    return min(TARGET_BYTES, memory_bytes // TARGET_SHARE)


def say(error: BaseException) -> str:
    """The message of an error on one line, or its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def value_bytes(column: pa.Array) -> Rows:
    """Bytes of every value as it would be decoded: int64[n], 0 for null; dictionary values count in full.

    Nested types count their average, since no value of theirs is cut.
    """
    kind = column.type
    if pt.is_dictionary(kind):
        sizes = np.append(value_bytes(column.dictionary), 0)
        numbers: Rows = column.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        return sizes[numbers]
    if pt.is_string_view(kind) or pt.is_binary_view(kind):
        sizes = _views(column, column.buffers()[1])[:, 0].astype(np.int64)
        return np.where(column.is_valid().to_numpy(zero_copy_only=False), sizes, 0)
    if is_text(kind):
        return np.asarray(pc.binary_length(column).cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False))
    return np.full(len(column), -(-_array_bytes(column) // max(1, len(column))), dtype=np.int64)


def _views(column: pa.Array, buffer: pa.Buffer) -> npt.NDArray[np.int32]:
    """int32[n, 4]: the views of a string_view or binary_view column, length first. The buffer may be longer."""
    return np.frombuffer(buffer, np.int32, 4 * (column.offset + len(column))).reshape(-1, 4)[column.offset :]


def batch_bytes(batch: pa.RecordBatch) -> int:
    """Bytes of a batch's rows as they are held: what other rows of shared buffers take does not count."""
    return sum(_array_bytes(column) for column in batch.columns)


def _array_bytes(column: pa.Array) -> int:
    if pt.is_string_view(column.type) or pt.is_binary_view(
        column.type
    ):  # Arrow counts all of the shared buffers, or none
        return 16 * len(column) + int(value_bytes(column).sum())
    try:
        return int(column.nbytes)
    except pa.ArrowException:  # views within lists, before Arrow 22
        return int(column.get_total_buffer_size())


def bounded_slices(batch: pa.RecordBatch, target: int = TARGET_BYTES) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(first row, slice) of consecutive slices of at most ``target`` decoded bytes or one row; no copies."""
    dictionaries = any(pt.is_dictionary(column.type) for column in batch.columns)
    if batch.num_rows <= MAX_ROWS and not dictionaries and batch_bytes(batch) <= target:
        if batch.num_rows:
            yield 0, batch
        return
    ends = np.cumsum(sum((value_bytes(column) for column in batch.columns), np.zeros(batch.num_rows, np.int64)))
    first, before = 0, 0
    while first < batch.num_rows:
        stop = int(np.searchsorted(ends, before + target, side="right"))
        stop = min(max(stop, first + 1), first + MAX_ROWS, batch.num_rows)
        yield first, batch.slice(first, stop - first)
        first, before = stop, int(ends[stop - 1])


def take(batch: pa.RecordBatch, rows: Rows) -> pa.RecordBatch:
    """The rows of a batch, in the order given, of any column type; the batch itself if all are asked for."""
    if len(rows) == batch.num_rows and np.array_equal(rows, np.arange(len(rows))):
        return batch
    return pa.RecordBatch.from_arrays([_take_array(column, rows) for column in batch.columns], schema=batch.schema)


def _take_array(column: pa.Array, rows: Rows) -> pa.Array:
    if (pt.is_string_view(column.type) or pt.is_binary_view(column.type)) and len(column):
        _, views, *data = column.buffers()  # Arrow has no take for views: pick the 16-byte views, share the text
        picked = _views(column, views)[rows]
        validity = column.is_valid().take(pa.array(rows)).buffers()[1] if column.null_count else None
        return pa.Array.from_buffers(column.type, len(rows), [validity, pa.py_buffer(picked), *data])
    try:
        return column.take(pa.array(rows))
    except pa.ArrowNotImplementedError:  # lists of views and the like
        if not len(rows):
            return column.slice(0, 0)
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = np.split(rows, edges)
        return pa.concat_arrays([column.slice(int(run[0]), len(run)) for run in runs])


def merge(
    parts: Iterable[tuple[Rows, pa.RecordBatch]], target: int = TARGET_BYTES
) -> Iterator[tuple[Rows, pa.RecordBatch]]:
    """Join small consecutive parts and cut large ones, so that each has about ``target`` bytes."""
    waiting: list[tuple[Rows, pa.RecordBatch]] = []
    size_bytes = row_count = 0
    for rows, batch in parts:
        dictionaries = any(pt.is_dictionary(column.type) for column in batch.columns)
        if dictionaries or batch_bytes(batch) > target or batch.num_rows > MAX_ROWS:
            if waiting:
                yield _join(waiting)
                waiting, size_bytes, row_count = [], 0, 0
            for first, piece in bounded_slices(batch, target):
                yield rows[first : first + piece.num_rows], piece
            continue
        if waiting and (size_bytes + batch_bytes(batch) > target or row_count + batch.num_rows > MAX_ROWS):
            yield _join(waiting)
            waiting, size_bytes, row_count = [], 0, 0
        if batch.num_rows:
            waiting.append((rows, batch))
            size_bytes += batch_bytes(batch)
            row_count += batch.num_rows
    if waiting:
        yield _join(waiting)


def _join(parts: list[tuple[Rows, pa.RecordBatch]]) -> tuple[Rows, pa.RecordBatch]:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([rows for rows, _ in parts]), pa.concat_batches([batch for _, batch in parts])


def nulls(schema: pa.Schema, count: int) -> pa.RecordBatch:
    """``count`` rows of nulls."""
    return pa.RecordBatch.from_arrays([pa.nulls(count, field.type) for field in schema], schema=schema)


_Ready = queue.Queue[tuple[bool, Any]]
"""Of a part: (False, item) for each, then (True, what it was ended by)."""


def abreast(
    parts: Iterator[Iterator[Item]], threads: int, depth: int, after: Callable[[], None] | None = None
) -> Iterator[Item]:
    """The items of all parts, part after part, made by background threads: each makes a part, is at most ``depth``
    items of it ahead, and calls ``after`` after each item.

    An exception of a maker, or of ``parts``, is raised here, after the items before it. Closing the iterator (or
    leaving the loop and dropping it) stops the threads and closes what they make; they end after the item that they
    are making.
    """
    begun: queue.SimpleQueue[_Ready | None] = queue.SimpleQueue()  # of the parts, in order; None after the last
    turn, stopped = threading.Lock(), threading.Event()
    ended = False

    def begin() -> tuple[Iterator[Item], _Ready] | None:
        """The next part, while there is one."""
        nonlocal ended
        with turn:
            if ended or stopped.is_set():
                return None
            ready: _Ready = queue.Queue(maxsize=depth)
            try:
                part = next(parts, None)
            except BaseException as error:  # raised again where the items are used
                part = None
                ready.put((True, error))
                begun.put(ready)
            ended = part is None
            begun.put(None if part is None else ready)
            return None if part is None else (part, ready)

    def put(ready: _Ready, last: bool, item: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put((last, item), timeout=0.05)
                return
            except queue.Full:
                continue

    def make(part: Iterator[Item], ready: _Ready) -> None:
        failure: BaseException | None = None
        try:
            for item in part:
                put(ready, False, item)
                if stopped.is_set():
                    break
                del item  # else it would be held until the next one is made
                if after is not None:
                    after()
        except BaseException as error:  # raised again where the items are used
            failure = error
        finally:
            _close(part)
        put(ready, True, failure)

    def work() -> None:
        while (given := begin()) is not None:
            make(*given)

    crew = [threading.Thread(target=work, name="gpudedup-prefetch", daemon=True) for _ in range(threads)]
    for thread in crew:
        thread.start()
    try:
        while (ready := begun.get()) is not None:
            last, item = ready.get()
            while not last:
                yield item
                last, item = ready.get()
            if item is not None:
                raise item
    finally:
        stopped.set()
        for thread in crew:
            thread.join()
        _close(parts)


def _close(items: Iterator[Any]) -> None:
    """End a generator where it stands."""
    close = getattr(items, "close", None)
    if close is not None:
        close()
