"""A look at an input before it is run over: seeded pieces of it, and what they tell of the whole.

Totals are counted where the format tells them or the whole input is small; otherwise they are ratio estimates over
pieces of the input, with a spread of four standard errors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from gpudedup.errors import InputError
from gpudedup.io import READERS, Batch, Source
from gpudedup.io.batches import READ_ERRORS, say, value_bytes
from gpudedup.io.parquet import BUFFER_BYTES, ParquetShard
from gpudedup.io.paths import FORMATS, InputFile, suffix_of
from gpudedup.io.skips import UnskippableError
from gpudedup.io.source import AnyShard, DocumentFiles, FileShard, Fingerprint, input_files
from gpudedup.io.streams import BOM, CHUNK_BYTES, open_sink, open_stream
from gpudedup.params import Params
from gpudedup.stages.sign import check_types, columns_needed

MAX_FILES = 20_000
"""Small files that are opened at most."""

PIECES = 32
"""Places that a sample is taken from."""

EXPANSION = 4
"""Decompressed bytes a compressed byte, as far as it decides whether an input is read whole."""

STANDARD_ERRORS = 4
"""Lengths are skewed, and pieces are few."""

LINE_BYTES = 64 << 20
"""A longer line ends the piece that it is in."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A total, within ``value`` - ``spread`` to ``value`` + ``spread``; spread 0 if counted, None if unknown."""

    value: int
    spread: int | None
    counted: bool


@dataclass
class Sample:
    """Documents that were read, by the pieces they came in."""

    what: str
    whole: bool
    total_size: float
    """Of the input, in the unit of ``sizes``."""
    sizes: npt.NDArray[np.float64]
    documents: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    table: pa.Table
    decode_seconds: float
    write_seconds: float
    """To write all of it as kept, into memory."""
    slack: float
    """By how much the sum of ``sizes`` may be wrong."""
    places: int
    """As many parts of the input it is from, far from each other."""
    row_count: int | None
    """Documents of the input, where its format tells."""

    @property
    def document_total(self) -> Estimate:
        """How many documents the input has."""
        if self.row_count is not None and not self.whole:
            return Estimate(value=self.row_count, spread=0, counted=True)
        return self.total(self.documents)

    def total(self, of_piece: npt.NDArray[np.int64]) -> Estimate:
        """The ratio estimate X sum(y) / sum(x), with the spread of its linearised variance (Cochran, 1977, 6.4)."""
        known, sampled = int(of_piece.sum()), float(self.sizes.sum())
        if self.whole or not self.total_size:
            return Estimate(value=known, spread=0, counted=True)
        if not sampled:
            return Estimate(value=0, spread=None, counted=False)
        ratio, count = known / sampled, len(self.sizes)
        value = round(ratio * self.total_size)
        if count < 2:
            return Estimate(value=value, spread=None, counted=False)
        rest = max(0.0, 1 - sampled / self.total_size)
        variance = rest * count / (count - 1) * float(((of_piece - ratio * self.sizes) ** 2).sum()) / sampled**2
        spread = STANDARD_ERRORS * variance**0.5 * self.total_size + value * self.slack / sampled
        return Estimate(value=value, spread=round(spread), counted=False)


def take_sample(
    source: Source, shards: Sequence[AnyShard], params: Params, *, most_bytes: int, memory_bytes: int, writing: bool
) -> Sample:
    """Read about ``most_bytes`` of some shards of a source, or all of them if they are no more.

    ``writing``: write it too, into memory, to know how long that takes. Raises what a run would, as far as it shows.
    """
    files = input_files(shards)
    kind, compression = FORMATS[suffix_of(files[0][0]) or ""] if files else ("", None)
    sampler = _Sampler(source, shards, params, most_bytes, memory_bytes, writing)
    if not files or (_stored_bytes(shards) * (EXPANSION if compression else 1) <= most_bytes and kind != "parquet"):
        return sampler.whole()
    samplers = {"parquet": sampler.of_parquet, "ipc": sampler.of_ipc, "plain": sampler.of_files}
    return samplers.get(kind, sampler.of_lines)()


class _Reader:
    """Collects what is read, without rows that cannot be."""

    def __init__(self, schema: pa.Schema, writing: bool) -> None:
        self._schema, self._writing = schema, writing
        self.batches: list[pa.RecordBatch] = []
        self.documents: list[int] = []
        self.text_bytes: list[int] = []
        self.sizes: list[float] = []
        self._seconds: list[float] = []
        self.write_seconds = 0.0

    @property
    def seconds(self) -> float:
        """To read everything at the rate of the median piece: what is done once in a process does not count."""
        text_bytes, seconds = np.array(self.text_bytes, float), np.array(self._seconds)
        if len(seconds) != len(text_bytes) or not text_bytes.all():
            return float(seconds.sum())
        return float(np.median(seconds / text_bytes) * text_bytes.sum()) if len(seconds) else 0.0

    def piece(self, size: float, batches: Iterator[Batch], drop: int = 0) -> list[bool]:
        """Read a piece of the input; ``drop``: rows at its beginning that are no part of it. Returns which rows are
        documents.
        """
        count = text_bytes = 0
        read: list[bool] = []
        for batch in self._timed(batches):
            columns = batch.columns
            fine = ~np.isin(batch.rows, batch.damaged)
            read += fine.tolist()
            wanted = np.flatnonzero(fine & (batch.rows >= drop) if drop else fine)
            if len(wanted) < columns.num_rows:
                columns = columns.take(pa.array(wanted))
            self.batches.append(columns)
            count += len(wanted)
            text_bytes += int(value_bytes(columns.column(0)).sum())
        self.sizes.append(size)
        self.documents.append(count)
        self.text_bytes.append(text_bytes)
        return read

    def shard(self, size: float, shard: FileShard, columns: Sequence[str], drop: int = 0) -> None:
        """Read a shard that is a piece of the input, and write it into memory, if that is timed."""
        keep = np.array(self.piece(size, shard.read(columns), drop), bool)
        if not self._writing:
            return
        with _memory_file() as path:
            start = time.perf_counter()
            shard.write_kept(keep, Path(path))
            self.write_seconds += time.perf_counter() - start

    def rows(self, sizes: npt.NDArray[np.float64], batches: Iterator[Batch]) -> None:
        """Read rows that are a piece each, of ``sizes`` by row."""
        for batch in self._timed(batches):
            self.batches.append(batch.columns)
            self.sizes += sizes[batch.rows].tolist()
            self.documents += (~np.isin(batch.rows, batch.damaged)).astype(int).tolist()
            self.text_bytes += value_bytes(batch.columns.column(0)).tolist()

    def _timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        self._seconds.append(0.0)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self._seconds[-1] += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def sample(
        self,
        what: str,
        *,
        whole: bool,
        total_size: float,
        slack: float = 0.0,
        places: int | None = None,
        row_count: int | None = None,
    ) -> Sample:
        batches = [
            pa.RecordBatch.from_arrays(_plain_columns(b, self._schema), schema=self._schema) for b in self.batches
        ]
        return Sample(
            what,
            whole,
            total_size,
            np.array(self.sizes, np.float64),
            np.array(self.documents, np.int64),
            np.array(self.text_bytes, np.int64),
            pa.Table.from_batches(batches, self._schema),
            self.seconds,
            self.write_seconds,
            slack,
            len(self.sizes) if places is None else places,
            row_count,
        )


def _plain_columns(batch: pa.RecordBatch, schema: pa.Schema) -> list[pa.Array]:
    """Columns of the source's types: the text may come dictionary-encoded."""
    return [
        column if column.type == kind else column.cast(kind)
        for column, kind in zip(batch.columns, schema.types, strict=True)
    ]


@dataclass
class _Sampler:
    """How to sample each format. For the parameters see ``take_sample``."""

    source: Source
    shards: Sequence[AnyShard]
    params: Params
    most_bytes: int
    memory_bytes: int
    writing: bool

    def whole(self) -> Sample:
        reader = self._reader(self.source)
        for shard in self.shards:
            if isinstance(shard, DocumentFiles):
                reader.piece(1.0, shard.read(self.columns))
                reader.write_seconds += reader.seconds  # copied as they are read
            else:
                reader.shard(1.0, shard, self.columns)
        return reader.sample("all of the input", whole=True, total_size=float(len(reader.sizes)))

    def of_parquet(self) -> Sample:
        """The first rows of row groups, drawn by their rows."""
        reader = self._reader(self.source)
        groups: list[tuple[InputFile, int, int, int]] = []  # (file, row group, rows, decoded bytes of all columns)
        for shard in self.shards:
            assert isinstance(shard, ParquetShard)
            for number in range(shard.footer.num_row_groups):
                group = shard.footer.row_group(number)
                groups.append((shard.file, number, group.num_rows, group.total_byte_size))
        row_count = sum(rows for _, _, rows, _ in groups)
        if sum(size for *_, size in groups) <= self.most_bytes:
            return self.whole()
        ends = np.cumsum([rows for _, _, rows, _ in groups])
        chosen = sorted({int(np.searchsorted(ends, place, side="right")) for place in self._places(row_count)})
        for place in chosen:
            file, number, rows, size = groups[place]
            count = min(rows, max(1, self.most_bytes // len(chosen) * rows // max(1, size)))
            try:
                reader.piece(count, _first_rows(file, number, count, self.columns))
            except UnskippableError:
                raise
            except InputError:
                if self.params.on_error == "fail":
                    raise
        start = time.perf_counter()
        for batch in reader.batches if self.writing else ():
            pq.write_table(pa.Table.from_batches([batch]), pa.BufferOutputStream(), compression="zstd")
        reader.write_seconds = reader.seconds + time.perf_counter() - start
        what = f"the first rows of {len(chosen)} of {len(groups)} row groups"
        return reader.sample(what, whole=False, total_size=row_count, row_count=row_count)

    def of_ipc(self) -> Sample:
        """Runs of rows."""
        reader = self._reader(self.source)
        counts = [int(getattr(shard, "row_count")) for shard in self.shards]  # noqa: B009  of IpcShard
        ends = np.cumsum(counts)
        row_count = int(ends[-1])
        if not row_count:
            return self.whole()
        run = max(1, int(self.most_bytes / PIECES * row_count / _stored_bytes(self.shards)))
        stop = 0
        for place in self._places(row_count):
            shard = int(np.searchsorted(ends, place, side="right"))
            first = max(place, stop)
            stop = min(place + run, int(ends[shard]))
            if first < stop:
                before = int(ends[shard]) - counts[shard]
                rows = np.arange(first - before, stop - before)
                reader.piece(stop - first, self.shards[shard].read(self.columns, rows))
        start = time.perf_counter()
        for batch in reader.batches if self.writing else ():
            with pa.ipc.new_stream(pa.BufferOutputStream(), batch.schema) as writer:
                writer.write_batch(batch)
        reader.write_seconds = reader.seconds + time.perf_counter() - start
        what = f"{len(reader.sizes)} runs of {run} rows"
        return reader.sample(what, whole=False, total_size=float(row_count), row_count=row_count)

    def of_files(self) -> Sample:
        """Files drawn without regard to their sizes, one document each."""
        reader = self._reader(self.source)
        (shard,) = self.shards
        assert isinstance(shard, DocumentFiles)
        sizes = np.array([file.fingerprint.size_bytes for file in shard.files], np.float64)
        order = np.random.default_rng(self.params.seed).permutation(len(sizes))
        count = int(np.searchsorted(np.cumsum(sizes[order]), self.most_bytes))
        chosen = np.sort(order[: min(max(2, count), MAX_FILES)])
        reader.rows(sizes, shard.read(self.columns, chosen))
        reader.write_seconds = reader.seconds  # copied as they are read
        what = f"{len(chosen)} of {len(sizes)} files"
        whole = len(chosen) == len(sizes)
        return reader.sample(what, whole=whole, total_size=float(sizes.sum()), row_count=len(sizes))

    def of_lines(self) -> Sample:
        """Ranges of bytes of JSON Lines; beginnings of CSV, TSV and compressed files, which cannot be entered midway.

        The reader of the format reads them from files in memory, after a line that says what the first line of a file
        does: the first row, or the header.
        """
        files = [shard.file for shard in self.shards]  # type: ignore[union-attr]
        ends = np.cumsum([file.fingerprint.size_bytes for file in files])
        total = int(ends[-1])
        from_start = files[0].format != "jsonl" or any(file.compression for file in files)
        places = self._places(total)
        pieces: list[_Lines] = []
        slack = 0.0
        if from_start:
            chosen = sorted({int(np.searchsorted(ends, place, side="right")) for place in places})
            for number in chosen:
                found, more = _beginning(files[number], self.most_bytes // len(chosen))
                pieces += found
                slack += more
            apart = len(chosen)
            what = f"the beginnings of {len(chosen)} of {len(files)} files, which say nothing of what follows"
        else:
            last, stop = -1, 0
            for place in places:
                number = int(np.searchsorted(ends, place, side="right"))
                offset = place - int(ends[number]) + files[number].fingerprint.size_bytes
                offset = max(offset, stop) if number == last else offset
                found, stop = _range(files[number], offset, self.most_bytes // PIECES)
                pieces += found
                last = number
            apart = len(pieces)
            what = f"{len(pieces)} ranges of bytes"
        reader = self._read_lines(files[0].format, pieces)
        return reader.sample(what, whole=False, total_size=total, slack=slack, places=apart)

    def _read_lines(self, kind: str, pieces: Sequence[_Lines]) -> _Reader:
        with ExitStack() as stack:
            inputs = []
            for lines in pieces:
                path = stack.enter_context(_memory_file(lines.guide + lines.data))
                status = os.stat(path)
                mark = Fingerprint(status.st_size, status.st_mtime_ns)
                inputs.append(InputFile(path, lines.file.format, None, mark))
            try:
                held = READERS[kind](
                    inputs,
                    text_column=self.params.text_column,
                    columns=self.columns,
                    memory_bytes=self.memory_bytes,
                    on_error=self.params.on_error,
                )
                reader = self._reader(held)
                for lines, shard in zip(pieces, held.shards, strict=True):
                    assert not isinstance(shard, DocumentFiles)
                    reader.shard(lines.size, shard, self.columns, drop=1 if kind == "jsonl" else 0)
                    if self.writing and lines.file.compression:
                        with _memory_file() as path, open_sink(Path(path), lines.file.compression) as write:
                            start = time.perf_counter()
                            write(lines.data)
                            reader.write_seconds += time.perf_counter() - start
            except InputError as error:
                raise InputError(_about(str(error), inputs, pieces)) from error
        return reader

    @property
    def columns(self) -> list[str]:
        return columns_needed(self.params)

    def _reader(self, source: Source) -> _Reader:
        check_types(source, self.params)
        kinds = [source.column_type(column) for column in self.columns]
        if pa.types.is_null(kinds[0]):  # no file is left
            kinds[0] = pa.large_string()
        return _Reader(pa.schema(list(zip(self.columns, kinds, strict=True))), self.writing)

    def _places(self, total: int) -> list[int]:
        """``PIECES`` numbers below ``total``, one in each of as many equal parts."""
        random = np.random.default_rng(self.params.seed)
        return sorted({int((part + random.random()) * total / PIECES) for part in range(PIECES)})


def _stored_bytes(shards: Sequence[AnyShard]) -> int:
    return sum(mark.size_bytes for _, mark in input_files(shards) if mark is not None)


def _first_rows(file: InputFile, group: int, count: int, columns: Sequence[str]) -> Iterator[Batch]:
    with _parquet(file) as parquet:
        batches = parquet.iter_batches(count, row_groups=[group], columns=list(columns), use_threads=False)
        batch = next(batches).select(list(columns))
    yield Batch(np.arange(batch.num_rows), batch, np.zeros(0, np.int64))


@contextmanager
def _parquet(file: InputFile) -> Iterator[pq.ParquetFile]:
    try:
        # Without buffers of that size, or with all of a row group fetched before, more than the first rows is read.
        with (
            file.open() as opened,
            pq.ParquetFile(opened.arrow(), buffer_size=BUFFER_BYTES, pre_buffer=False) as parquet,
        ):
            yield parquet
    except READ_ERRORS as error:
        raise InputError(f"{file.path} cannot be read: {say(error)}") from error


@dataclass
class _Lines:
    """Whole lines or records of a file, with what must stand before them to be read alone."""

    file: InputFile
    guide: bytes
    data: bytes
    size: float
    """Bytes as stored."""


def _about(message: str, inputs: Sequence[InputFile], pieces: Sequence[_Lines]) -> str:
    """A message about files in memory, made one about the files that they are of."""
    for held, lines in zip(reversed(inputs), reversed(pieces), strict=True):
        message = message.replace(held.path, f"{lines.file.path} (a sample)")
    return message


def _range(file: InputFile, offset: int, size: int) -> tuple[list[_Lines], int]:
    """The lines that begin in a range of a JSON Lines file, and where they end."""
    with open_stream(file, 0) as (stream, _):
        guide = b"\n"
        while guide.isspace():
            guide = _line(stream)
    with open_stream(file, max(0, offset - 1)) as (stream, position):
        if offset:  # from the byte before, so that a line that begins just here is not lost
            _line(stream)
        data: bytes = stream.read(size)
        data += _line(stream)
        stop = position()
    return [_Lines(file, guide.removeprefix(BOM), data, len(data))] if data.strip() else [], stop


def _line(stream: Any) -> bytes:
    """The bytes up to the next line end, or to the end of the file."""
    parts = []
    size = 0
    while size < LINE_BYTES:
        part = stream.read(1 << 14)
        end = part.find(b"\n")
        if end >= 0:
            stream.seek(end + 1 - len(part), os.SEEK_CUR)
            part = part[: end + 1]
        parts.append(part)
        size += len(part)
        if end >= 0 or not part:
            break
    return b"".join(parts)


def _beginning(file: InputFile, most_bytes: int) -> tuple[list[_Lines], float]:
    """Pieces of whole records from the beginning of a file, and by how much their stored bytes may be wrong.

    Of a compressed file only their sum is known, as far as it was read ahead.
    """
    cut = _even_quotes if file.format != "jsonl" else _line_end
    cuts: list[bytes] = []
    guide, data, done, ended = b"", b"", 0, False
    with open_stream(file, 0) as (stream, position):
        while done < most_bytes and not ended:
            try:
                chunk = stream.read(max(1 << 16, most_bytes // PIECES))
            except READ_ERRORS as error:
                raise InputError(f"{file.path} cannot be read: {say(error)}") from error
            data += chunk
            done += len(chunk)
            ended = not chunk
            if not guide:
                data = data.removeprefix(BOM).lstrip(b"\r\n")
                end = cut(data, False)
                guide, data = data[:end], data if file.format == "jsonl" else data[end:]
            end = len(data) if ended else cut(data, True)
            if guide and end:
                cuts.append(data[:end])
                data = data[end:]
        ahead = CHUNK_BYTES / 2 if file.compression and not ended else 0.0
        stored = file.fingerprint.size_bytes if ended else max(1.0, position() - ahead)
    return [_Lines(file, guide, piece, len(piece) / done * stored) for piece in cuts], ahead


def _line_end(data: bytes, last: bool) -> int:
    """The length of ``data`` up to its first or last line end; 0 if there is none."""
    return (data.rfind(b"\n") if last else data.find(b"\n")) + 1


def _even_quotes(data: bytes, last: bool) -> int:
    """The same for line ends that no quotes are open at."""
    end = _line_end(data, last)
    odd = data.count(b'"', 0, end) % 2
    while end and odd:
        other = (data.rfind(b"\n", 0, end - 1) if last else data.find(b"\n", end)) + 1
        odd ^= data.count(b'"', min(end, other), max(end, other)) % 2
        end = other
    return end


@contextmanager
def _memory_file(data: bytes = b"") -> Iterator[str]:
    """The path of a file that is in memory alone, as long as the block goes on."""
    handle = os.memfd_create("gpudedup-plan")
    try:
        with open(handle, "wb", closefd=False) as file:
            file.write(data)
        yield f"/proc/self/fd/{handle}"
    finally:
        os.close(handle)
