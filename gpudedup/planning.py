"""What a run would be like, from a seeded sample of its input: how much text, memory, disk and time. Writes nothing.

Totals are counted where the format tells them or the whole input is small; otherwise they are ratio estimates over
pieces of the input, with a spread of four standard errors.
"""

from __future__ import annotations

import os
import shutil
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

from gpudedup.engines.local import Budget, Outcome, run_stages
from gpudedup.errors import InputError
from gpudedup.io import READERS, Batch, Source
from gpudedup.io.batches import READ_ERRORS, say, value_bytes
from gpudedup.io.memory import Held, MemorySource
from gpudedup.io.parquet import BUFFER_BYTES
from gpudedup.io.paths import FORMATS, InputFile, suffix_of
from gpudedup.io.skips import UnskippableError
from gpudedup.io.source import DocumentFiles, FileShard, Fingerprint, input_files
from gpudedup.io.streams import BOM, CHUNK_BYTES, open_sink, open_stream
from gpudedup.machine import available_memory_bytes
from gpudedup.params import Params, parse_shingle
from gpudedup.stages.decide import EXACT, NEAR
from gpudedup.stages.sign import Progress, check_types, columns_needed

SAMPLE_BYTES = 32 << 20
"""Of text that is read at most, about; an input of no more than this is read whole."""

MAX_FILES = 20_000
"""Small files that are opened at most."""

PIECES = 32
"""Places that a sample is taken from."""

EXPANSION = 4
"""Decompressed bytes a compressed byte, as far as it decides whether an input is read whole."""

STANDARD_ERRORS = 4
"""Lengths are skewed, and pieces are few."""

WARM_UP_ROWS = 200

ROUGH_BYTES = SAMPLE_BYTES // 4
"""Of text in a sample, below which its rates are said to be rough."""

DOCUMENT_BYTES = 120
"""Memory that a run holds for a document beside 8 bytes a band (and 4 a lane with verify="signature")."""

LINE_BYTES = 64 << 20
"""A longer line ends the piece that it is in."""


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A total, within ``value`` - ``spread`` to ``value`` + ``spread``; spread 0 if counted, None if unknown."""

    value: int
    spread: int | None
    counted: bool


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run over an input would be like."""

    files: int
    format: str
    stored_bytes: int
    documents: Estimate
    text_bytes: Estimate
    sample: str
    """What was read, in words."""
    sample_documents: int
    sample_text_bytes: int
    sample_sharing: int
    """Documents of the sample that share a bucket with another of it."""
    sample_compared: int
    sample_exact: int
    sample_near: int
    bands: int
    rows: int
    s_curve: list[tuple[float, float]]
    memory_bytes: int
    """The ``memory`` budget."""
    held_bytes: int
    """What is held for the documents beside that."""
    available_memory_bytes: int
    output_bytes: int
    """At most, without the tables of removals."""
    output_free_bytes: int
    spill_bytes: int
    """At most."""
    spill_free_bytes: int
    seconds: dict[str, tuple[float, float]]
    """(least, most) of each stage."""
    device: str
    warnings: list[str]
    unknown: list[str]
    """What no sample can tell."""
    parameters: Params

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


@dataclass
class _Sample:
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


def make_plan(source: Source, params: Params, *, output: str, out: str | None, progress: Progress) -> Plan:
    """Sample an opened source and run the stages over the sample. Raises what a run would, as far as it shows there."""
    files = input_files(source.shards)
    names = [name for name, _ in files]
    stored_bytes = sum(mark.size_bytes for _, mark in files if mark is not None)
    kind, compression = FORMATS[suffix_of(names[0]) or ""] if names else ("", None)
    columns = columns_needed(params)
    sampler = {"parquet": _of_parquet, "ipc": _of_ipc, "plain": _of_files}.get(kind, _of_lines)
    if not names or (stored_bytes * (EXPANSION if compression else 1) <= SAMPLE_BYTES and kind != "parquet"):
        sampler = _whole
    _touch_memory()
    sample = sampler(source, params, columns)
    budget = Budget.of(params)
    unguarded = msgspec.structs.replace(params, max_removed=None, guard_column=None)
    data = MemorySource(Held(sample.table), text_column=params.text_column, columns=[])
    first = MemorySource(Held(sample.table.slice(0, WARM_UP_ROWS)), text_column=params.text_column, columns=[])
    run_stages(first, unguarded)  # what is done once in a process, so that it does not count for every document
    outcome = run_stages(data, unguarded, progress=progress)
    documents = sample.total(sample.documents)
    if not sample.whole and kind in ("parquet", "ipc", "plain"):
        counted = len(names) if kind == "plain" else round(sample.total_size)
        documents = Estimate(value=counted, spread=0, counted=True)
    text_bytes = sample.total(sample.text_bytes)
    sampled_bytes = int(sample.text_bytes.sum())
    scale = text_bytes.value / sampled_bytes if sampled_bytes else 0.0
    shingles = _shingles(outcome, params) * scale
    banding = params.banding
    lanes_bytes = 4 * params.num_perm if params.verify == "signature" else 0
    held_bytes = documents.value * (8 * banding.bands + DOCUMENT_BYTES + lanes_bytes)
    spill_bytes = max(0, round(4 * shingles) - budget.set_bytes) if params.verify == "exact" else 0
    output_bytes = {"kept": stored_bytes, "mask": documents.value // 8 + 1024 * len(names)}.get(output, 0)
    output_free_bytes, spill_free_bytes = _free(out or "."), _free(budget.tmp)
    available = available_memory_bytes()
    warnings = []
    if held_bytes + budget.memory_bytes > available:
        warnings.append(
            f"{held_bytes} bytes for documents and memory={budget.memory_bytes} are more than the {available} that are "
            "free; lower memory, use a larger machine, or split the input"
        )
    if output_bytes > output_free_bytes:
        warnings.append(
            f"up to {output_bytes} bytes of output, and {output_free_bytes} are free in {out or '.'}; use "
            'output="mask" or another directory'
        )
    if spill_bytes > spill_free_bytes:
        warnings.append(
            f"up to {spill_bytes} bytes of shingle sets, and {spill_free_bytes} are free in {budget.tmp}; give more "
            'memory, another tmp, or verify="signature"'
        )
    at_once = min(outcome.backend.workers, len(names)) if output == "kept" else 0
    seconds = _seconds(sample, outcome, params, budget, scale, shingles, at_once)
    decided = outcome.decided
    return Plan(
        files=len(names),
        format=kind,
        stored_bytes=stored_bytes,
        documents=documents,
        text_bytes=text_bytes,
        sample=sample.what,
        sample_documents=int(sample.documents.sum()),
        sample_text_bytes=sampled_bytes,
        sample_sharing=len(outcome.matched.buckets.shared()),
        sample_compared=outcome.verified.decision.compared,
        sample_exact=int((decided.reason == EXACT).sum()),
        sample_near=int((decided.reason == NEAR).sum()),
        bands=banding.bands,
        rows=banding.rows,
        s_curve=banding.s_curve(params.threshold),
        memory_bytes=budget.memory_bytes,
        held_bytes=held_bytes,
        available_memory_bytes=available,
        output_bytes=output_bytes,
        output_free_bytes=output_free_bytes,
        spill_bytes=spill_bytes,
        spill_free_bytes=spill_free_bytes,
        seconds=seconds,
        device=outcome.backend.name,
        warnings=warnings,
        unknown=_unknown(sample),
        parameters=params,
    )


def _shingles(outcome: Outcome, params: Params) -> int:
    """Shingles of the sample, repeats counted: at least the sizes of its sets."""
    units = outcome.signed.unit_count.astype(np.int64)
    n = parse_shingle(params.shingle).n
    return int(np.where(units > 0, np.maximum(units - n + 1, 1), 0).sum())


def _seconds(
    sample: _Sample,
    outcome: Outcome,
    params: Params,
    budget: Budget,
    scale: float,
    shingles: float,
    at_once: int,
) -> dict[str, tuple[float, float]]:
    """Seconds of each stage by the rates of the sample: (least, most). ``at_once``: files written at a time."""
    workers, of = outcome.backend.workers, outcome.seconds.of
    decode = sample.decode_seconds * scale
    sign = max(decode, of["sign"] * scale + decode / workers)  # one thread decodes while all sign
    verify = least = of["verify"] * scale
    if params.verify == "exact" and shingles:
        uncached = max(0.0, 1 - budget.cache_bytes / (4 * shingles))
        verify = least + sign * uncached  # at most all documents share a bucket, and are read again
    apply = sample.write_seconds * scale / at_once if at_once else 0.0
    stages = {
        "sign": (sign, sign),
        "match": (of["match"] * scale, of["match"] * scale),
        "verify": (least, verify),
        "apply": (apply, apply),
    }
    return {name: (round(low, 3), round(high, 3)) for name, (low, high) in stages.items()}


def _unknown(sample: _Sample) -> list[str]:
    found = []
    if not sample.whole:
        found += [
            "copies of which only one is in the sample: of the whole input a larger share is removed, and more is "
            "compared",
            "bytes of removed/: about 20 for each removal",
            "the speed of the disk: what is written was measured into memory",
        ]
    if sample.text_bytes.sum() < ROUGH_BYTES:
        found.append("seconds: the sample is too small to measure rates well")
    return found


def _free(path: str) -> int:
    folder = Path(path).absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _touch_memory() -> None:
    """Let Arrow's pool hold memory for a sample, as it does after the first batches of a run.

    New memory costs more than decoding into it: 8 pieces of Parquet took 245 ms with page faults, 80 ms without.
    """
    held = [pa.allocate_buffer(1 << 20) for _ in range(3 * SAMPLE_BYTES >> 20)]
    for buffer in held:
        np.frombuffer(buffer, np.uint8).fill(1)


# Samples


class _Reader:
    """Collects what is read, without rows that cannot be."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
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
        """Read a shard that is a piece of the input, and write it into memory."""
        keep = np.array(self.piece(size, shard.read(columns), drop), bool)
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

    def sample(self, what: str, *, whole: bool, total_size: float, slack: float = 0.0) -> _Sample:
        batches = [
            pa.RecordBatch.from_arrays(_plain_columns(b, self._schema), schema=self._schema) for b in self.batches
        ]
        return _Sample(
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
        )


def _plain_columns(batch: pa.RecordBatch, schema: pa.Schema) -> list[pa.Array]:
    """Columns of the source's types: the text may come dictionary-encoded."""
    return [
        column if column.type == kind else column.cast(kind)
        for column, kind in zip(batch.columns, schema.types, strict=True)
    ]


def _reader(source: Source, params: Params, columns: Sequence[str]) -> _Reader:
    check_types(source, params)
    kinds = [source.column_type(column) for column in columns]
    if pa.types.is_null(kinds[0]):  # no file is left
        kinds[0] = pa.large_string()
    return _Reader(pa.schema(list(zip(columns, kinds, strict=True))))


def _whole(source: Source, params: Params, columns: Sequence[str]) -> _Sample:
    reader = _reader(source, params, columns)
    for shard in source.shards:
        if isinstance(shard, DocumentFiles):
            reader.piece(1.0, shard.read(columns))
            reader.write_seconds += reader.seconds  # copied as they are read
        else:
            reader.shard(1.0, shard, columns)
    return reader.sample("all of the input", whole=True, total_size=float(len(reader.sizes)))


def _places(total: int, seed: int) -> list[int]:
    """``PIECES`` numbers below ``total``, one in each of as many equal parts."""
    random = np.random.default_rng(seed)
    return sorted({int((part + random.random()) * total / PIECES) for part in range(PIECES)})


def _of_parquet(source: Source, params: Params, columns: Sequence[str]) -> _Sample:
    """The first rows of row groups, drawn by their rows."""
    reader = _reader(source, params, columns)
    groups: list[tuple[InputFile, int, int, int]] = []  # (file, row group, rows, decoded bytes of all columns)
    for shard in source.shards:
        with _parquet(shard.file) as parquet:  # type: ignore[union-attr]
            for number in range(parquet.metadata.num_row_groups):
                group = parquet.metadata.row_group(number)
                groups.append((shard.file, number, group.num_rows, group.total_byte_size))  # type: ignore[union-attr]
    row_count = sum(rows for _, _, rows, _ in groups)
    if sum(size for *_, size in groups) <= SAMPLE_BYTES:
        return _whole(source, params, columns)
    ends = np.cumsum([rows for _, _, rows, _ in groups])
    chosen = sorted({int(np.searchsorted(ends, place, side="right")) for place in _places(row_count, params.seed)})
    for place in chosen:
        file, number, rows, size = groups[place]
        count = min(rows, max(1, SAMPLE_BYTES // len(chosen) * rows // max(1, size)))
        try:
            reader.piece(count, _first_rows(file, number, count, columns))
        except UnskippableError:
            raise
        except InputError:
            if params.on_error == "fail":
                raise
    start = time.perf_counter()
    for batch in reader.batches:
        pq.write_table(pa.Table.from_batches([batch]), pa.BufferOutputStream(), compression="zstd")
    reader.write_seconds = reader.seconds + time.perf_counter() - start
    what = f"the first rows of {len(chosen)} of {len(groups)} row groups"
    return reader.sample(what, whole=False, total_size=row_count)


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


def _of_ipc(source: Source, params: Params, columns: Sequence[str]) -> _Sample:
    """Runs of rows."""
    reader = _reader(source, params, columns)
    counts = [int(getattr(shard, "row_count")) for shard in source.shards]  # noqa: B009  of IpcShard
    ends = np.cumsum(counts)
    stored_bytes = sum(mark.size_bytes for _, mark in input_files(source.shards) if mark is not None)
    run = max(1, int(SAMPLE_BYTES / PIECES * ends[-1] / stored_bytes))
    stop = 0
    for place in _places(int(ends[-1]), params.seed):
        shard = int(np.searchsorted(ends, place, side="right"))
        first = max(place, stop)
        stop = min(place + run, int(ends[shard]))
        if first < stop:
            before = int(ends[shard]) - counts[shard]
            reader.piece(stop - first, source.shards[shard].read(columns, np.arange(first - before, stop - before)))
    start = time.perf_counter()
    for batch in reader.batches:
        with pa.ipc.new_stream(pa.BufferOutputStream(), batch.schema) as writer:
            writer.write_batch(batch)
    reader.write_seconds = reader.seconds + time.perf_counter() - start
    what = f"{len(reader.sizes)} runs of {run} rows"
    return reader.sample(what, whole=False, total_size=float(ends[-1]))


def _of_files(source: Source, params: Params, columns: Sequence[str]) -> _Sample:
    """Files drawn without regard to their sizes, one document each."""
    reader = _reader(source, params, columns)
    (shard,) = source.shards
    assert isinstance(shard, DocumentFiles)
    sizes = np.array([file.fingerprint.size_bytes for file in shard.files], np.float64)
    order = np.random.default_rng(params.seed).permutation(len(sizes))
    count = int(np.searchsorted(np.cumsum(sizes[order]), SAMPLE_BYTES))
    chosen = np.sort(order[: min(max(2, count), MAX_FILES)])
    reader.rows(sizes, shard.read(columns, chosen))
    reader.write_seconds = reader.seconds  # copied as they are read
    what = f"{len(chosen)} of {len(sizes)} files"
    return reader.sample(what, whole=len(chosen) == len(sizes), total_size=float(sizes.sum()))


@dataclass
class _Lines:
    """Whole lines or records of a file, with what must stand before them to be read alone."""

    file: InputFile
    guide: bytes
    data: bytes
    size: float
    """Bytes as stored."""


def _of_lines(source: Source, params: Params, columns: Sequence[str]) -> _Sample:
    """Ranges of bytes of JSON Lines; beginnings of CSV, TSV and compressed files, which cannot be entered midway.

    The reader of the format reads them from files in memory, after a line that says what the first line of a file
    does: the first row, or the header.
    """
    files = [shard.file for shard in source.shards]  # type: ignore[union-attr]
    ends = np.cumsum([file.fingerprint.size_bytes for file in files])
    total = int(ends[-1])
    from_start = files[0].format != "jsonl" or any(file.compression for file in files)
    places = _places(total, params.seed)
    pieces: list[_Lines] = []
    slack = 0.0
    if from_start:
        chosen = sorted({int(np.searchsorted(ends, place, side="right")) for place in places})
        for number in chosen:
            found, more = _beginning(files[number], SAMPLE_BYTES // len(chosen))
            pieces += found
            slack += more
        what = f"the beginnings of {len(chosen)} of {len(files)} files, which say nothing of what follows"
    else:
        last, stop = -1, 0
        for place in places:
            number = int(np.searchsorted(ends, place, side="right"))
            offset = place - int(ends[number]) + files[number].fingerprint.size_bytes
            found, stop = _range(files[number], max(offset, stop) if number == last else offset)
            pieces += found
            last = number
        what = f"{len(pieces)} ranges of bytes"
    with ExitStack() as stack:
        inputs = []
        for lines in pieces:
            path = stack.enter_context(_memory_file(lines.guide + lines.data))
            status = os.stat(path)
            mark = Fingerprint(status.st_size, status.st_mtime_ns)
            inputs.append(InputFile(path, lines.file.format, None, mark))
        try:
            held = READERS[files[0].format](
                inputs,
                text_column=params.text_column,
                columns=columns,
                memory_bytes=Budget.of(params).memory_bytes,
                on_error=params.on_error,
            )
            reader = _reader(held, params, columns)
            drop = 1 if files[0].format == "jsonl" else 0
            for lines, shard in zip(pieces, held.shards, strict=True):
                assert not isinstance(shard, DocumentFiles)
                reader.shard(lines.size, shard, columns, drop)
                with _memory_file() as path, open_sink(Path(path), lines.file.compression) as write:
                    start = time.perf_counter()
                    write(lines.data)
                    reader.write_seconds += time.perf_counter() - start if lines.file.compression else 0.0
        except InputError as error:
            raise InputError(_about(str(error), inputs, pieces)) from error
    return reader.sample(what, whole=False, total_size=total, slack=slack)


def _about(message: str, inputs: Sequence[InputFile], pieces: Sequence[_Lines]) -> str:
    """A message about files in memory, made one about the files that they are of."""
    for held, lines in zip(reversed(inputs), reversed(pieces), strict=True):
        message = message.replace(held.path, f"{lines.file.path} (a sample)")
    return message


def _range(file: InputFile, offset: int) -> tuple[list[_Lines], int]:
    """The lines that begin in a range of a JSON Lines file, and where they end."""
    with open_stream(file, 0) as (stream, _):
        guide = b"\n"
        while guide.isspace():
            guide = _line(stream)
    with open_stream(file, max(0, offset - 1)) as (stream, position):
        if offset:  # from the byte before, so that a line that begins just here is not lost
            _line(stream)
        data: bytes = stream.read(SAMPLE_BYTES // PIECES)
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
