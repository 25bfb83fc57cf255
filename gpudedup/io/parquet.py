"""Parquet files as shards: bounded reading, reading again by row, and writing what is kept with nothing else
changed.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pyarrow.types as pt

from gpudedup.backends.columns import is_text
from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.io.batches import (
    MAX_ROWS,
    READ_ERRORS,
    TARGET_BYTES,
    Rows,
    batch_bytes,
    bounded_slices,
    merge,
    nulls,
    say,
    take,
    target_bytes,
    value_bytes,
)
from gpudedup.io.files import OpenFile
from gpudedup.io.pages import ChunkPages, scan_pages
from gpudedup.io.paths import InputFile, each
from gpudedup.io.skips import SkipLog, UnskippableError
from gpudedup.io.source import Batch, FileShard, Fingerprint
from gpudedup.io.tables import TableSource
from gpudedup.store.atomic import open_output, output_errors
from gpudedup.store.scratch import ScratchDirectory
from gpudedup.store.stopping import checkpoint

LIMIT_BYTES = 2 * TARGET_BYTES
"""What one decoded batch may reach at worst where values differ much in length."""

REPETITION = 4
"""From this many decoded bytes per stored byte on, a wholly dictionary-encoded column is read without decoding it."""

BUFFER_BYTES = 1 << 20
REMOTE_BUFFER_BYTES = 8 << 20  # of every column that is read, if its chunk is not fetched as a whole
EXPECT_SHARE = 16  # the chunks of a remote row group are held if they take 1 / EXPECT_SHARE of the memory or less
PAGE_SHARE = 4  # a page may take 1 / PAGE_SHARE of the memory: it is held compressed, decompressed and decoded
SPILL_SHARE = 8  # kept rows of a row group above 1 / SPILL_SHARE of the memory wait in a file until they are written

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_CODECS = {"UNCOMPRESSED": "none", "SNAPPY": "snappy", "GZIP": "gzip", "BROTLI": "brotli", "LZ4": "lz4", "ZSTD": "zstd"}


class ParquetShard(FileShard):
    """One Parquet file. Rows are numbered through all row groups."""

    def __init__(self, file: InputFile, text_column: str, memory_bytes: int, tmp: str | None, skips: SkipLog) -> None:
        """Read the footer. Raises InputError naming the file if that cannot be done, ChangedError if it was changed."""
        self.file, self._text_column, self._memory_bytes, self._tmp, self._skips = (
            file,
            text_column,
            memory_bytes,
            tmp,
            skips,
        )
        self.metadata: pq.FileMetaData | None = None
        try:
            with file.open() as handle, self._open(handle) as parquet:
                self.metadata = parquet.metadata
                self.schema: pa.Schema = parquet.schema_arrow
                self._leaves = [parquet.schema.column(leaf) for leaf in range(self.metadata.num_columns)]
                groups = [self.metadata.row_group(group).num_rows for group in range(self.metadata.num_row_groups)]
                if min(groups, default=0) < 0 or sum(groups) != self.metadata.num_rows:
                    raise ValueError(f"row groups of {groups[:10]} rows, but {self.metadata.num_rows} rows in all")
        except READ_ERRORS as error:
            file.check_unchanged()
            raise InputError(f"{file.path} is no readable Parquet file: {say(error)}") from error
        self._first_rows = np.concatenate([[0], np.cumsum(groups)]).astype(np.int64)
        self._checked: set[int] = set()
        self._damage: dict[int, str | None] = {}
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The path as given."""
        return self.file.path

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was opened."""
        return self.file.fingerprint

    @property
    def row_count(self) -> int:
        """Rows in the file, damaged ones included."""
        return int(self._first_rows[-1])

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB, or less of little memory, in row order; with ``wanted`` (ascending) those rows, from
        row groups that hold any.

        Raises InputError naming file, row group and rows for damage, or records it: then all rows of the row group are
        damaged. MemoryLimitError for a page that is too large for ``memory``.
        """
        for part in self.parts(columns, wanted):
            yield from part

    def parts(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Iterator[Batch]]:
        """A part for each row group that rows are wanted of."""
        self.file.check_unchanged()
        rows_of: dict[int, Rows | None] = {}
        for group, (first, stop) in enumerate(self._spans()):
            rows = None if wanted is None else _within(wanted, first, stop)
            if first < stop and (rows is None or len(rows)):
                rows_of[group] = rows
        left = set(rows_of)
        for group, rows in rows_of.items():
            yield self._part(group, columns, rows, left)

    def _part(self, group: int, columns: Sequence[str], rows: Rows | None, left: set[int]) -> Iterator[Batch]:
        """One of ``left``, the parts that are not read yet; the last to end looks whether the file is the same."""
        none = np.zeros(0, np.int64)
        if self._is_damaged(group):
            schema = pa.schema([self.schema.field(column) for column in columns])
            damaged = np.arange(*self._spans()[group]) if rows is None else rows
            for start in range(0, len(damaged), MAX_ROWS):
                piece = damaged[start : start + MAX_ROWS]
                yield Batch(piece, nulls(schema, len(piece)), piece)
        else:
            target = target_bytes(self._memory_bytes)
            for numbers, batch in merge(self._group(group, columns, rows, [self._text_column], target=target), target):
                yield Batch(numbers, batch, none)
        left.discard(group)
        if not left:
            self.file.check_unchanged()

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """All columns of the kept rows, in batches of about 16 MB of the file's Arrow schema."""
        self._check_keep(keep)
        self.file.check_unchanged()
        for group in range(len(self._spans())):
            for batch in self._kept_of_group(group, keep, ()):
                yield from (piece for _, piece in bounded_slices(batch))
        self.file.check_unchanged()

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Write the kept rows as Parquet: same schema, metadata, column and row order, codecs and row groups.

        Kept rows of one row group make one row group; one without any is left out. The bytes depend on the input and
        ``keep`` alone. Memory stays bounded: a large row group waits in a temporary file.
        """
        self._check_keep(keep)
        metadata = self.footer
        groups = [group for group, (first, stop) in enumerate(self._spans()) if keep[first:stop].any()]
        names = [field.name for field in self.schema]
        repeated: set[str] = set()
        for group in groups:
            if not self._is_damaged(group):
                with self._reading(group) as file:
                    repeated.update(self._repeated(file, group, names))
        encoded = sorted(repeated)
        try:
            with self.file.open() as file, self._open(file, encoded) as parquet:
                schema = parquet.schema_arrow
        except READ_ERRORS as error:
            self.file.check_unchanged()
            raise InputError(f"cannot read {self.name}: {say(error)}") from error
        options = self._writer_options()
        with output_errors(path), open_output(path) as sink:
            with pq.ParquetWriter(sink, schema, store_schema=False, **options) as writer:
                self.file.check_unchanged()
                for group in groups:
                    with self._gathered(group, keep, encoded, schema) as table:
                        if table.num_rows:
                            writer.write_table(table, row_group_size=table.num_rows)
                self.file.check_unchanged()
                # With the input's own ARROW:schema entry, so that all types are read back as they were.
                if metadata.metadata:
                    writer.add_key_value_metadata(dict(sorted(metadata.metadata.items())))
            return sink.tell()

    def _check_keep(self, keep: npt.NDArray[np.bool_]) -> None:
        if len(keep) != self.row_count:
            raise ValueError(f"keep has {len(keep)} values for the {self.row_count} rows of {self.name}")

    @property
    def footer(self) -> pq.FileMetaData:
        """What was read of the file at first."""
        assert self.metadata is not None
        return self.metadata

    def _spans(self) -> list[tuple[int, int]]:
        """First row and end of every row group."""
        ends = self._first_rows.tolist()
        return list(itertools.pairwise(ends))

    def _kept_of_group(
        self, group: int, keep: npt.NDArray[np.bool_], encoded: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        first, stop = self._spans()[group]
        rows = first + np.flatnonzero(keep[first:stop])
        if len(rows) and not self._is_damaged(group):
            for _, batch in self._group(group, None, rows, None, encoded):
                yield batch

    @contextlib.contextmanager
    def _gathered(
        self, group: int, keep: npt.NDArray[np.bool_], encoded: Sequence[str], schema: pa.Schema
    ) -> Iterator[pa.Table]:
        """The kept rows of a row group as one table, in memory or, when they are too many bytes, mapped from a file."""
        held: list[pa.RecordBatch] = []
        held_bytes = 0
        with contextlib.ExitStack() as stack:
            spill: Any = None
            for batch in self._kept_of_group(group, keep, encoded):
                checkpoint()
                if not batch.num_rows:
                    continue
                held.append(batch)
                held_bytes += batch_bytes(batch)
                if held_bytes > self._memory_bytes // SPILL_SHARE:
                    if spill is None:
                        scratch = stack.enter_context(ScratchDirectory("gpudedup-rows-", self._tmp))
                        file_name = str(scratch.path / "row-group.arrow")
                        spill = stack.enter_context(pa.ipc.new_stream(file_name, schema))
                    for waiting in held:
                        spill.write_batch(waiting)
                    held, held_bytes = [], 0
            if spill is not None:
                spill.close()
                mapped = stack.enter_context(pa.memory_map(file_name))
                held = [*pa.ipc.open_stream(mapped), *held]
            yield pa.Table.from_batches(held, schema)
            held.clear()

    def _writer_options(self) -> dict[str, Any]:
        """Options that make the output like the input: codec and dictionary per column, page index, sorting."""
        if not self.footer.num_row_groups or not self._leaves:
            return {"compression": "zstd"}
        with self._reading(0) as file:
            group = self._row_group(file, 0)
            chunks = [(column.path, group.column(leaf)) for leaf, column in enumerate(self._leaves)]
            options: dict[str, Any] = {
                "compression": {path: _CODECS.get(str(chunk.compression), "zstd") for path, chunk in chunks},
                "use_dictionary": [path for path, chunk in chunks if chunk.has_dictionary_page] or False,
                "use_compliant_nested_type": False,  # list items keep the name that they have
                "write_page_index": all(chunk.has_offset_index for _, chunk in chunks),
            }
            if group.sorting_columns:
                options["sorting_columns"] = group.sorting_columns
            return options

    def _open(self, file: OpenFile, encoded: Sequence[str] = ()) -> pq.ParquetFile:
        return pq.ParquetFile(
            file.arrow(),
            metadata=self.metadata,
            read_dictionary=list(encoded) or None,
            buffer_size=BUFFER_BYTES if self.file.remote is None else REMOTE_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )

    def _group(
        self,
        group: int,
        columns: Sequence[str] | None,
        wanted: Rows | None,
        may_repeat: Sequence[str] | None = None,
        encoded: Sequence[str] = (),
        target: int = TARGET_BYTES,
    ) -> Iterator[tuple[Rows, pa.RecordBatch]]:
        """(row numbers, rows) of one row group, about ``target`` bytes at a time; all columns if ``columns`` is None.

        ``encoded``: columns to leave dictionary-encoded; ``may_repeat``: columns to leave so if they repeat much.
        """
        first, stop = self._spans()[group]
        names = [field.name for field in self.schema] if columns is None else list(columns)
        with self._reading(group) as file:
            self._expect(file, group, names)
            if may_repeat is not None:
                encoded = self._repeated(file, group, [name for name in names if name in may_repeat])
            batch_rows = self._batch_rows(file, group, names, encoded, target)
            at = first
            with self._open(file, encoded) as parquet:
                for batch in parquet.iter_batches(
                    batch_rows, row_groups=[group], columns=None if columns is None else names, use_threads=False
                ):
                    end = at + batch.num_rows
                    numbers = np.arange(at, end) if wanted is None else _within(wanted, at, end)
                    if columns is not None:
                        batch = batch.select(names)
                    yield numbers, batch if wanted is None else take(batch, numbers - at)
                    at = end
            if at != stop:
                raise ValueError(f"{at - first} rows instead of {stop - first}")

    @contextlib.contextmanager
    def _reading(self, group: int) -> Iterator[OpenFile]:
        """The file, open. What goes wrong with decoding a row group becomes InputError, ChangedError if the file was
        changed.
        """
        try:
            with self.file.open() as file:
                yield file
        except READ_ERRORS as error:
            self.file.check_unchanged()
            raise InputError(
                f"{self._place(group)} cannot be read: {say(error)}; repair or remove the file, or use "
                'on_error="skip" to leave the row group out'
            ) from error

    def _place(self, group: int) -> str:
        first, stop = self._spans()[group]
        return f"{self.name}: row group {group} (rows {first} to {stop - 1})"

    def _is_damaged(self, group: int) -> bool:
        """Under on_error="skip": whether any column of the row group is damaged; found once, by decoding all of it.

        All of it, so that the answer is the same whatever columns are read, and that kept rows can be written.
        """
        if not self._skips.skip:
            return False
        with self._lock:
            if group not in self._damage:
                self._damage[group] = None
                try:
                    for _ in self._group(group, None, None):
                        pass
                except UnskippableError:
                    del self._damage[group]
                    raise
                except InputError as error:
                    first, stop = self._spans()[group]
                    reason = f"{self._place(group)} cannot be read: {say(error.__cause__ or error)}"
                    self._skips.add(self.name, first, stop - first, reason)
                    self._damage[group] = reason
            return self._damage[group] is not None

    def _row_group(self, file: OpenFile, group: int) -> pq.RowGroupMetaData:
        """The footer's entry of a row group, after Arrow's reader has looked at all of it.

        Asking pyarrow's metadata for a damaged column chunk aborts the process; its reader raises.
        """
        if group not in self._checked:
            with self._open(file) as parquet:
                next(parquet.reader.iter_batches(0, row_groups=[group], use_threads=False), None)
            self._checked.add(group)
        return self.footer.row_group(group)

    def _expect(self, file: OpenFile, group: int, names: Sequence[str]) -> None:
        """Have the chunks of these columns fetched together, if they may be held: they are read twice, first in leaps
        from page to page.
        """
        if self.file.remote is None:
            return
        metadata = self._row_group(file, group)
        chunks = [metadata.column(leaf) for leaf, column in enumerate(self._leaves) if _is_of(column.path, names)]
        if sum(chunk.total_compressed_size for chunk in chunks) <= self._memory_bytes // EXPECT_SHARE:
            file.expect((_start(chunk), _start(chunk) + chunk.total_compressed_size) for chunk in chunks)

    def _pages(self, file: OpenFile, group: int, leaf: int) -> ChunkPages:
        """The pages of a column chunk. Raises PageError, and MemoryLimitError for one that is too large to decode."""
        chunk = self._row_group(file, group).column(leaf)
        pages = scan_pages(file, _start(chunk), chunk.total_compressed_size, chunk.num_values)
        largest_bytes = max(pages.dictionary_bytes, int(pages.page_bytes.max(initial=0)))
        if largest_bytes > self._memory_bytes // PAGE_SHARE:
            raise MemoryLimitError(
                f"{self._place(group)}: a page of column {self._leaves[leaf].path!r} has {largest_bytes} bytes, and "
                f"memory={self._memory_bytes} allows {self._memory_bytes // PAGE_SHARE}; "
                f"use memory={PAGE_SHARE * largest_bytes} or more"
            )
        return pages

    def _repeated(self, file: OpenFile, group: int, names: Sequence[str]) -> list[str]:
        """Which of these columns store few values that many rows share, so that decoding them all would be a waste."""
        metadata = self._row_group(file, group)
        repeated = []
        for leaf, column in enumerate(self._leaves):
            chunk = metadata.column(leaf)
            if column.path not in names or column.physical_type != "BYTE_ARRAY" or not chunk.has_dictionary_page:
                continue
            if column.path not in self.schema.names or not is_text(self.schema.field(column.path).type):
                continue
            pages = self._pages(file, group, leaf)
            decoded_bytes = chunk.num_values * pages.dictionary_bytes // max(1, pages.dictionary_values)
            stored_bytes = pages.dictionary_bytes + int(pages.page_bytes.sum())
            if pages.all_dictionary and decoded_bytes > max(TARGET_BYTES, REPETITION * stored_bytes):
                repeated.append(column.path)
        return repeated

    def _batch_rows(self, file: OpenFile, group: int, names: Sequence[str], encoded: Sequence[str], target: int) -> int:
        """Rows a batch of these columns, so that it decodes to about ``target`` bytes and at worst ``LIMIT_BYTES``.

        The worst case of n rows is counted per column: n times the longest value of the dictionary, and the bytes of
        all plain pages that n rows can touch. (Within lists, values are taken to be spread evenly over the rows.)
        """
        metadata = self._row_group(file, group)
        row_count = max(1, metadata.num_rows)
        expected_bytes, per_row_bytes, largest_bytes = 0.0, 0.0, 0
        plain: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]] = []
        for leaf, column in enumerate(self._leaves):
            name = next((name for name in names if column.path == name or column.path.startswith(name + ".")), None)
            if name is None:
                continue
            pages = self._pages(file, group, leaf)
            values_per_row = int(pages.values.sum()) / row_count
            if column.physical_type != "BYTE_ARRAY":
                width = _WIDTHS.get(column.physical_type, 0) or max(1, column.length)
                per_row_bytes += width * values_per_row
                expected_bytes += width * values_per_row * row_count
                continue
            is_encoded = column.path in encoded or (
                column.path == name and pt.is_dictionary(self.schema.field(name).type)
            )
            repeats = np.where(pages.repeats > 0, 4, 0) if is_encoded else pages.repeats
            longest = int(repeats.max(initial=0))
            mean = pages.dictionary_bytes / max(1, pages.dictionary_values) if not is_encoded else 4
            expected_bytes += float(np.where(repeats > 0, pages.values * mean, pages.page_bytes).sum())
            if longest == pages.dictionary_bytes > LIMIT_BYTES // 256 and column.path == name:
                longest = self._longest_in_dictionary(file, group, name, pages)
            per_row_bytes += longest * values_per_row
            plain.append(
                (np.cumsum(pages.values) / max(1e-9, values_per_row), np.where(pages.repeats > 0, 0, pages.page_bytes))
            )
            largest_bytes = max(largest_bytes, int(pages.page_bytes.max(initial=0)))
        rows = int(min(MAX_ROWS, max(1, target * row_count // max(1, int(expected_bytes)))))
        allowed_bytes = max(LIMIT_BYTES, 2 * largest_bytes)
        while rows > 1 and rows * per_row_bytes + sum(_window_bytes(rows, *pages) for pages in plain) > allowed_bytes:
            rows //= 2
        return rows

    def _longest_in_dictionary(self, file: OpenFile, group: int, name: str, pages: ChunkPages) -> int:
        """Bytes of the longest value in a column chunk's dictionary."""
        with self._open(file, [name]) as parquet:
            batches = parquet.iter_batches(1, row_groups=[group], columns=[name], use_threads=False)
            column = next(iter(batches)).column(0)
        if pt.is_dictionary(column.type) and len(column.dictionary) == pages.dictionary_values > 0:
            return int(value_bytes(column.dictionary).max())
        return pages.dictionary_bytes


def _is_of(path: str, names: Sequence[str]) -> bool:
    """Whether a leaf belongs to one of these columns."""
    return any(path == name or path.startswith(name + ".") for name in names)


def _start(chunk: pq.ColumnChunkMetaData) -> int:
    """The first byte of a column chunk in its file."""
    start = int(chunk.data_page_offset)
    first = chunk.dictionary_page_offset if chunk.has_dictionary_page else None
    return first if first and 0 < first < start else start


def _window_bytes(rows: int, row_ends: npt.NDArray[np.float64], page_bytes: npt.NDArray[np.int64]) -> int:
    """The most bytes of pages that ``rows`` consecutive rows can touch; ``row_ends``: rows up to the end of each
    page.
    """
    if not len(page_bytes):
        return 0
    last_rows = row_ends - 1 + rows - 1  # of a window that begins with the last row of a page
    stops = np.minimum(np.searchsorted(row_ends, last_rows, side="right") + 1, len(page_bytes))
    sums = np.concatenate([[0], np.cumsum(page_bytes)])
    return int((sums[stops] - sums[:-1]).max())


def _within(rows: Rows, first: int, stop: int) -> Rows:
    """Those of ascending ``rows`` that are in [first, stop)."""
    low, high = np.searchsorted(rows, [first, stop])
    return rows[low:high]


class ParquetSource(TableSource):
    """Parquet files as an ordered corpus."""

    def __init__(
        self,
        files: Sequence[InputFile],
        *,
        text_column: str,
        columns: Sequence[str],
        memory_bytes: int,
        tmp: str | None,
        on_error: str,
    ) -> None:
        """Read all footers and compare the columns that the run reads.

        Raises InputError for an unreadable footer (or skips the file), and for a column that is missing, nested, named
        twice, or of another type than in the first file.
        """
        skips = self._skips = SkipLog(on_error == "skip")
        self.shards: list[ParquetShard] = []
        for file, shard in each(files, lambda file: ParquetShard(file, text_column, memory_bytes, tmp, skips)):
            skips.register(file.path)
            try:
                self.shards.append(shard())
            except UnskippableError:
                raise
            except InputError as error:
                skips.add(file.path, None, 0, str(error))
        self._check_columns(text_column, columns)
