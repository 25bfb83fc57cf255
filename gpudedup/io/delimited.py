"""CSV and TSV files, plain, gzip or zstd, as shards: own splitting into records, and kept records copied as bytes.

The first record is the header. Quoting is that of RFC 4180, for both: a field may stand in quotes, and then hold the
delimiter, line ends, and quotes written twice; a quote inside an unquoted field is a letter like others. A record ends
with LF or CRLF; the last one may lack it. Empty lines are no records and are not copied; a byte order mark is ignored
and kept. ``row`` counts the records after the header from 0, damaged ones too. A record is damaged if it has more or
fewer fields than the header, a quote that is not closed, or text after a closing quote.

Ill-formed UTF-8 reads as U+FFFD. Columns other than text get one type for all files, after all of their values were
seen once: int64 (uint64 where that fits and int64 does not), float64 for numbers with a point or exponent with or
without integers, bool for true and false, else string, as for 007 and for integers of more than 64 bits; an empty field
is null, and a column without values has type null. Text is never null.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.io.batches import MAX_ROWS, READ_ERRORS, TARGET_BYTES, Rows, say, target_bytes
from gpudedup.io.paths import InputFile
from gpudedup.io.skips import SkipLog
from gpudedup.io.source import Batch, FileShard, Fingerprint, Skipped
from gpudedup.io.streams import BOM, UnreadableError, blocks_with, join_parts, open_sink, open_stream, well_formed
from gpudedup.store.atomic import output_errors
from gpudedup.store.stopping import checkpoint

BLOCK_BYTES = 1 << 18
"""Bytes read at a time."""

RECORD_SHARE = 8
"""A record may take 1 / RECORD_SHARE of the memory: it is held in parts, joined, cut out, and its fields beside it."""

MAX_COLUMNS = 100_000

DELIMITERS = {"csv": b",", "tsv": b"\t"}

_INTEGER = re.compile(rb"0|-?[1-9][0-9]*")
_NUMBER = re.compile(
    rb"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|nan|NaN|NAN|-?(?:inf|Inf|INF)"
)
_BOOLEANS = {
    word: word[:1] in b"tT" for name in (b"true", b"false") for word in (name, name.upper(), name.capitalize())
}
_QUOTED = re.compile(rb'"[^"]*+(?:""[^"]*+)*+"')


class _Dialect:
    """How records and fields of a format are found."""

    def __init__(self, delimiter: bytes) -> None:
        self.delimiter = delimiter
        self._opening = delimiter + b'"'
        other = b"[^" + re.escape(delimiter) + b"\n]*+"
        field = b"(?:" + _QUOTED.pattern + other + b'|(?!")' + other + b")"
        self._record = re.compile(field + b"(?:" + re.escape(delimiter) + field + b")*+\n")
        self._field = re.compile(
            rb'(?:"([^"]*+(?:""[^"]*+)*+)"|((?!")[^'
            + re.escape(delimiter)
            + b"]*+))("
            + re.escape(delimiter)
            + rb"|\Z)"
        )

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        """The whole records at the beginning of ``data``, without their LF, and the bytes that they take."""
        at, end = 0, data.rfind(b"\n") + 1
        if b'"' not in data:
            return data[: end - 1].split(b"\n") if end else [], end
        records: list[bytes] = []
        field = line = -1
        while at < end:
            # A quote opens a field only after a delimiter or a line end; up to there, lines are records.
            if field < at:
                field = _found(data, self._opening, at)
            if line < at:
                line = _found(data, b'\n"', at)
            opening = at if data.startswith(b'"', at) else min(field, line)
            start = data.rfind(b"\n", at, min(opening + 1, end)) + 1 or at
            if start > at:
                records += data[at : start - 1].split(b"\n")
                at = start
            if at < end:
                match = self._record.match(data, at)
                if match is None:
                    break
                records.append(data[at : match.end() - 1])
                at = match.end()
        return records, at

    def fields(self, record: bytes, limit: int) -> list[bytes]:
        """The fields of a record without its line end, at most ``limit`` + 1. Raises ValueError if it is damaged."""
        if b'"' not in record or (not record.startswith(b'"') and self._opening not in record):
            return record.split(self.delimiter, limit)
        fields: list[bytes] = []
        at = 0
        while len(fields) <= limit:
            match = self._field.match(record, at)
            if match is None:
                whole = _QUOTED.match(record, at)
                problem = "is followed by other text" if whole else "is not closed"
                raise ValueError(f"the quoted text of field {len(fields) + 1} {problem}")
            quoted, plain, stop = match.groups()
            fields.append(plain if quoted is None else quoted.replace(b'""', b'"'))
            if not stop:
                break
            at = match.end()
        return fields


def _found(data: bytes, what: bytes, start: int) -> int:
    at = data.find(what, start)
    return len(data) if at < 0 else at


_DIALECTS = {name: _Dialect(delimiter) for name, delimiter in DELIMITERS.items()}


@dataclass(slots=True)
class _Block:
    """Consecutive records without their LF, empty lines among them (and the first without BOM).

    ``rows``: which of them are rows; ``header``: which is the header, or None; ``ended``: whether the last has an LF.
    """

    offset: int
    first_line: int
    first_row: int
    records: list[bytes]
    rows: list[int]
    header: int | None
    ended: bool
    bom: bool


class _Look:
    """What the values of a column were so far: each in the narrowest of integer, number, bool and string."""

    def __init__(self) -> None:
        self.integers = self.numbers = self.booleans = self.strings = False
        self.low = self.high = 0

    def add(self, values: Sequence[bytes]) -> None:
        """Take in the values of some rows; an empty one says nothing."""
        if self.strings:
            return
        for value in values:
            if _INTEGER.fullmatch(value):
                self.integers = True
                if len(value) > 20:
                    self.strings = True
                    return
                number = int(value)
                self.low, self.high = min(self.low, number), max(self.high, number)
            elif not value:
                continue
            elif value in _BOOLEANS:
                self.booleans = True
            elif len(value) <= 400 and _NUMBER.fullmatch(value):
                self.numbers = True
            else:
                self.strings = True
                return

    @property
    def type(self) -> pa.DataType:
        """The Arrow type that holds all values."""
        if self.strings or (self.booleans and (self.integers or self.numbers)):
            return pa.string()
        if self.booleans:
            return pa.bool_()
        if self.numbers:
            return pa.float64()
        if not self.integers:
            return pa.null()
        if self.low >= -(1 << 63) and self.high < 1 << 63:
            return pa.int64()
        return pa.uint64() if self.low >= 0 and self.high < 1 << 64 else pa.string()


class _Columns:
    """The columns of a run, text first, and their types; those of the others are known after a look at all values."""

    def __init__(self, text_column: str, columns: Sequence[str], skips: SkipLog) -> None:
        self.names = list(dict.fromkeys((text_column, *columns)))
        self.skips = skips
        self.shards: list[DelimitedShard] = []
        self._types: list[pa.DataType] | None = [pa.large_string()] if len(self.names) == 1 else None
        self._lock = threading.Lock()

    def types(self) -> list[pa.DataType]:
        """The types in the order of ``names``. Reads all files once, the first time, if there is more than the text."""
        with self._lock:
            if self._types is None:
                looks = [_Look() for _ in self.names[1:]]
                for shard in self.shards:
                    shard.look(looks)
                self._types = [pa.large_string(), *(look.type for look in looks)]
            return self._types


class HeaderError(InputError):
    """A first record that says no columns, so that the file cannot be read at all."""


class DelimitedShard(FileShard):
    """One CSV or TSV file."""

    def __init__(self, file: InputFile, columns: _Columns, memory_bytes: int) -> None:
        """Read the header. Raises HeaderError, and InputError if a column of the run is missing or there twice."""
        self.file, self._columns, self._skips = file, columns, columns.skips
        self._dialect = _DIALECTS[file.format]
        self._memory_bytes = memory_bytes
        self._entries: list[
            tuple[int, int, int]
        ] = []  # (byte, row, line) every TARGET_BYTES of a plain file, once read
        self.header = self._read_header()
        self.picks = [self._pick(column) for column in columns.names] if self.header else []

    @property
    def name(self) -> str:
        """The path as given."""
        return self.file.path

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was opened."""
        return self.file.fingerprint

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB of records, or less of little memory, in order; with ``wanted`` those (ascending).

        A plain file that was read before is entered near the wanted rows; a compressed one is read from its start.
        Raises InputError naming file, line and byte for a damaged record (or notes it and gives a row of nulls), and
        MemoryLimitError for a record that is too long for ``memory``.
        """
        types = self._columns.types()
        places = [self._columns.names.index(column) for column in columns]
        schema = pa.schema([pa.field(self._columns.names[place], types[place]) for place in places])
        held: list[tuple[Rows, pa.RecordBatch, list[int]]] = []
        held_bytes = held_rows = 0
        target = target_bytes(self._memory_bytes)
        self.file.check_unchanged()
        for block, numbers in self._blocks_with(wanted):
            chosen = (numbers - block.first_row).tolist()
            block_bytes = sum(len(block.records[block.rows[at]]) for at in chosen)
            values, damaged = self._values(block, chosen, places)
            block.records.clear()
            arrays = [_array(found, types[place], place == 0) for found, place in zip(values, places, strict=True)]
            del values
            if held and (held_bytes + block_bytes > target or held_rows + len(numbers) > MAX_ROWS):
                yield join_parts(held)
                held_bytes = held_rows = 0
            held.append((numbers, pa.RecordBatch.from_arrays(arrays, schema=schema), damaged))
            held_rows += len(numbers)
            held_bytes += block_bytes
            del arrays
        if held:
            yield join_parts(held)
        self.file.check_unchanged()

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """The columns of the run of the kept rows."""
        for batch in self.read(self._columns.names, np.flatnonzero(keep)):
            yield batch.columns

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Copy the header and kept records as bytes, line ends included, compressed as the input was; return the bytes
        written.

        A byte order mark is kept. gzip is written at level 6 without a time, so that equal input gives equal bytes.
        """
        self.file.check_unchanged()
        row_count = 0
        with output_errors(path), open_sink(path, self.file.compression) as write:
            for block in self._blocks():
                checkpoint()
                if block.bom:
                    write(BOM)
                stop = block.first_row + len(block.rows)
                row_count = max(row_count, stop)
                kept = keep[block.first_row : stop].tolist()
                numbers = [number for number, choice in zip(block.rows, kept, strict=False) if choice]
                if block.header is not None:
                    numbers.insert(0, block.header)
                if numbers:
                    unended = not block.ended and numbers[-1] == len(block.records) - 1
                    records = [block.records[number] for number in numbers]
                    write(b"\n".join(records) if unended else b"\n".join([*records, b""]))
        if len(keep) != row_count:
            raise ValueError(f"keep has {len(keep)} values for the {row_count} rows of {self.name}")
        self.file.check_unchanged()
        return path.stat().st_size

    def look(self, looks: Sequence[_Look]) -> None:
        """Take in the values of all columns but the text."""
        places = list(range(1, len(self._columns.names)))
        for block, numbers in self._blocks_with(None):
            values, _ = self._values(block, list(range(len(numbers))), places)
            for look, found in zip(looks, values, strict=True):
                look.add([value for value in found if value])

    def _read_header(self) -> list[str]:
        """The names of the columns; none for a file without a record."""
        for block in self._blocks():
            if block.header is None:
                continue
            record = _without_cr(block.records[block.header])
            place = f"{self.name} line {block.first_line + block.header}"
            if (b"\0" in record or record.startswith((b"\xff\xfe", b"\xfe\xff"))) and not block.bom:
                raise HeaderError(f"{place}: the header is no UTF-8 text (UTF-16, perhaps); convert it to UTF-8")
            try:
                fields = self._dialect.fields(record, MAX_COLUMNS)
            except ValueError as error:
                raise HeaderError(f"{place}: the header is damaged: {say(error)}") from error
            if len(fields) > MAX_COLUMNS:
                raise HeaderError(f"{place}: the header has more than {MAX_COLUMNS} fields")
            return [field.decode("utf-8", "replace") for field in fields]
        return []

    def _pick(self, column: str) -> int:
        count = self.header.count(column)
        if count == 1:
            return self.header.index(column)
        if count:
            raise InputError(f"{self.name}: {count} columns are named {column!r}; rename all but one")
        hint = ""
        if len(self.header) == 1:
            other = next((mark for mark in (",", "\t", ";", "|") if mark in self.header[0]), None)
            if other is not None:
                used = "a tab" if self._dialect.delimiter == b"\t" else "a comma"
                hint = f"; a {self.file.format.upper()} file separates them by {used}, this one perhaps by {other!r}"
        shown = ", ".join(self.header[:50]) + (", ..." if len(self.header) > 50 else "")
        raise InputError(f"{self.name}: there is no column {column!r}; it has: {shown}{hint}")

    def _values(self, block: _Block, chosen: list[int], places: list[int]) -> tuple[list[list[bytes]], list[int]]:
        """The values of rows of a block, a list for each column asked for, and the numbers of damaged rows.

        A damaged row has empty values.
        """
        width, damaged = len(self.header), []
        picks = [self.picks[place] for place in places]
        values: list[list[bytes]] = [[] for _ in picks]
        split = self._dialect.fields
        for at in chosen:
            record = block.records[block.rows[at]]
            if record.endswith(b"\r"):
                record = record[:-1]
            try:
                fields = split(record, width)
                if len(fields) != width:
                    count = "more" if len(fields) > width else str(len(fields))
                    raise ValueError(f"{count} fields, but the header has {width}")
                for found, pick in zip(values, picks, strict=True):
                    found.append(fields[pick])
            except ValueError as error:
                damaged.append(block.first_row + at)
                self._skips.add(
                    self.name, block.first_row + at, 1, f"{self._place(block, block.rows[at])} is damaged: {say(error)}"
                )
                for found in values:
                    found.append(b"")
        return values, damaged

    def _place(self, block: _Block, number: int) -> str:
        before = block.records[:number]
        line = block.first_line + number + sum(record.count(b"\n") for record in before)
        offset = block.offset + len(BOM) * block.bom + sum(map(len, before)) + number
        return f"{self.name} line {line} (byte {offset})"

    def _blocks_with(self, wanted: Rows | None) -> Iterator[tuple[_Block, Rows]]:
        """Blocks with the numbers of those of their rows that are wanted, all of them if ``wanted`` is None."""
        if wanted is None:
            for block in self._blocks():
                if block.rows:
                    yield block, np.arange(block.first_row, block.first_row + len(block.rows))
            return
        yield from blocks_with(self._blocks, self._entries or [(0, 0, 1)], wanted, self.name)

    def _blocks(self, offset: int = 0, row: int = 0, line: int = 1) -> Iterator[_Block]:
        """Blocks of whole records from a place that is the start of one."""
        entries = [(offset, row, line)]
        header_passed = offset > 0
        limit = self._memory_bytes // RECORD_SHARE

        def block(records: list[bytes], ended: bool) -> _Block:
            nonlocal offset, row, line, header_passed
            bom = offset == 0 and records[0].startswith(BOM)
            start, size = offset, sum(map(len, records)) + len(records) - (not ended)
            lines = len(records) + sum(record.count(b"\n") for record in records if b'"' in record)
            if bom:
                records[0] = records[0][len(BOM) :]
            rows = [number for number, record in enumerate(records) if record not in (b"", b"\r")]
            header = None
            if rows and not header_passed:
                header, header_passed = rows.pop(0), True
            elif start - entries[-1][0] >= TARGET_BYTES and header_passed:
                entries.append((start, row, line))
            made = _Block(start, line, row, records, rows, header, ended, bom)
            offset, row, line = start + size, row + len(rows), line + lines
            return made

        with open_stream(self.file, offset) as (stream, position):
            parts: list[bytes] = []
            size = enough = 0
            while True:
                try:
                    chunk = stream.read(BLOCK_BYTES)
                except READ_ERRORS as error:
                    reason = (
                        f"{self.name} line {line} (byte {offset + size} decompressed, near {position()} as stored) "
                        f"cannot be read: {say(error)}; neither can the rest of the file"
                    )
                    self.file.check_unchanged()
                    if not offset + size:
                        raise UnreadableError(reason) from error
                    self._skips.add(self.name, row, 0, reason)
                    return
                if not chunk:
                    break
                if not parts and header_passed and chunk.count(b"\n") == len(chunk):
                    offset, line = offset + len(chunk), line + len(chunk)  # empty lines must not cost an object each
                    continue
                parts.append(chunk)
                size += len(chunk)
                if size < enough and size <= limit:
                    continue
                data = b"".join(parts)
                parts.clear()
                records, used = self._split(data, offset)
                if used:
                    for first in range(0, len(records), MAX_ROWS):
                        yield block(records[first : first + MAX_ROWS], True)
                    data = data[used:]
                del records
                # A record that goes on is looked at again when half as much more is there, so that it costs no more
                # than a few times its bytes.
                enough = 0 if used else size + size // 2
                parts, size = [data] if data else [], len(data)
                del data
                if size > limit:
                    raise MemoryLimitError(
                        f"{self.name} line {line} (byte {offset}): the record that begins there is longer than "
                        f"{limit} bytes, which is what memory={self._memory_bytes} allows for one; if no quote is "
                        "missing at its end, give more memory"
                    )
            if parts:
                data = b"".join([*parts, b"\n"])
                parts.clear()
                records, used = self._split(data, offset)
                if used < len(data):
                    records.append(data[used:-1])
                del data
                for first in range(0, len(records), MAX_ROWS):
                    yield block(records[first : first + MAX_ROWS], first + MAX_ROWS < len(records))
        if entries[0][0] == 0 and self.file.compression is None:
            self._entries = entries

    def _split(self, data: bytes, offset: int) -> tuple[list[bytes], int]:
        if offset or not data.startswith(BOM + b'"'):
            return self._dialect.split(data)
        records, used = self._dialect.split(data[len(BOM) :])  # else the first quote would not begin a field
        if not used:
            return records, 0
        records[0] = BOM + records[0]
        return records, used + len(BOM)


def _without_cr(record: bytes) -> bytes:
    return record[:-1] if record.endswith(b"\r") else record


def _array(values: list[bytes], kind: pa.DataType, is_text: bool) -> pa.Array:
    """The values as an Arrow array of the column's type."""
    if is_text:
        try:
            return pa.array(values, pa.large_binary()).cast(pa.large_string())
        except pa.ArrowInvalid:
            return pa.array([well_formed(value) for value in values], pa.large_binary()).cast(pa.large_string())
    convert: Any = {
        pa.int64(): int,
        pa.uint64(): int,
        pa.float64(): float,
        pa.bool_(): _BOOLEANS.__getitem__,
        pa.string(): lambda value: value.decode("utf-8", "replace"),
        pa.null(): lambda value: None,
    }[kind]
    return pa.array([convert(value) if value else None for value in values], kind)


class DelimitedSource:
    """CSV or TSV files as an ordered corpus."""

    def __init__(
        self, files: Sequence[InputFile], *, text_column: str, columns: Sequence[str], memory_bytes: int, on_error: str
    ) -> None:
        """Read the header of every file. Raises InputError for a damaged one (or skips the file), and for a missing or
        repeated column.
        """
        self._skips = SkipLog(on_error == "skip")
        self._columns = _Columns(text_column, columns, self._skips)
        self.shards: list[DelimitedShard] = []
        for file in files:
            self._skips.register(file.path)
            try:
                self.shards.append(DelimitedShard(file, self._columns, memory_bytes))
            except (HeaderError, UnreadableError) as error:
                self._skips.add(file.path, None, 0, str(error))
        self._columns.shards = self.shards

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out so far under on_error="skip"."""
        return self._skips.entries

    def column_type(self, column: str) -> pa.DataType:
        """large_string for the text; for the other columns of the run what all their values fit (reads all files
        once).
        """
        if column not in self._columns.names:
            raise InputError(f"column {column!r} is none of the run's columns: {', '.join(self._columns.names)}")
        return self._columns.types()[self._columns.names.index(column)]

    def kept_schema(self) -> pa.Schema:
        """The columns of the run, text first."""
        return pa.schema(list(zip(self._columns.names, self._columns.types(), strict=True)))

    def close(self) -> None:
        """Nothing is held open between reads."""
