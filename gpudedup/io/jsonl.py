"""JSON Lines files, plain, gzip or zstd, as shards: own splitting into lines, and kept lines copied as bytes.

A line ends with LF (a CR before it is blank space to JSON); the last one may lack it. A byte order mark at the start of
a file is ignored and kept. Lines of nothing but blank space are no rows and are not copied. ``row`` counts the others
from 0, damaged ones too. A key that a line lacks is null there; but each file's first row must have the text key, and
any other column must occur in some row. Ill-formed UTF-8 and lone surrogates in an otherwise good line read as U+FFFD.

Columns other than text get one type for all files, after all of their values were seen once: int64 (uint64 where that
fits and int64 does not), float64 for floats with or without integers, string, bool; null for a column without values.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.io.batches import MAX_ROWS, READ_ERRORS, TARGET_BYTES, Rows, say, target_bytes
from gpudedup.io.paths import InputFile
from gpudedup.io.skips import SkipLog
from gpudedup.io.source import Batch, FileShard, Fingerprint, Skipped
from gpudedup.io.streams import BOM, UnreadableError, blocks_with, join_parts, open_sink, open_stream
from gpudedup.store.atomic import output_errors
from gpudedup.store.stopping import checkpoint

BLOCK_BYTES = 1 << 18
"""Bytes read at a time. Documents of 7 KB: 256 KB decode at 480 MB/s, 1 MB at 385, 4 MB at 425; it is a matter of
caches.
"""

LONG_BYTES = 4 << 20  # above BLOCK_BYTES, so that such a line is alone in its block
"""Lines from this length on are decoded in pieces, so that their text is never held as a str (up to 4 bytes a
letter).
"""

LINE_SHARE = 4
"""A line may take 1 / LINE_SHARE of the memory: it is held in parts, then joined, then beside its decoded text."""

_ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
_ESCAPE_START = re.compile(rb"(?<!\\)(?<!\\u[dD][89abAB][0-9a-fA-F][0-9a-fA-F])\\")
"""A backslash that begins an escape, as one after anything but a backslash does, other than the second of a pair."""

_ANY = int | float | str | bool | msgspec.UnsetType | None
_PYTHON_TYPES: dict[pa.DataType, Any] = {
    pa.large_string(): str | None,
    pa.int64(): int | None,
    pa.uint64(): int | None,
    pa.float64(): float | None,
    pa.string(): str | None,
    pa.bool_(): bool | None,
    pa.null(): None,
}
_BAD_JSON = (ValueError, msgspec.MsgspecError)  # before msgspec 0.20 these are no ValueErrors
_BAD_LINE = (*_BAD_JSON, RecursionError)

Decode = Callable[[bytes], Any]


@dataclass(slots=True)
class _Block:
    """Consecutive lines without their LF (and the first without BOM). ``rows``: which of them are rows.

    ``ended``: whether the last line had an LF.
    """

    offset: int
    first_line: int
    first_row: int
    lines: list[bytes]
    rows: list[int]
    ended: bool
    bom: bool


@dataclass
class _Look:
    """What the values of a column were so far: kinds with the place of the first of each, and the range of integers."""

    kinds: dict[type, str] = field(default_factory=dict)
    low: int = 0
    high: int = 0
    present: bool = False

    def add(self, values: list[Any], place: Callable[[int], str]) -> None:
        """Take in values of some rows (UNSET where the key is missing); ``place(i)`` says where value i stands."""
        kinds = set(map(type, values))
        self.present = self.present or kinds != {msgspec.UnsetType}
        new = kinds - {type(None), msgspec.UnsetType} - set(self.kinds)
        firsts = [(next(number for number, value in enumerate(values) if type(value) is kind), kind) for kind in new]
        for number, kind in sorted(firsts, key=itemgetter(0)):
            self.kinds[kind] = place(number)
        if int in kinds:
            integers = [value for value in values if type(value) is int]
            self.low, self.high = min(self.low, *integers), max(self.high, *integers)

    def type_of(self, column: str) -> pa.DataType:
        """The Arrow type that holds all values. Raises InputError for a mixture that none holds."""
        kinds = set(self.kinds)
        if not kinds:
            return pa.null()
        if kinds == {int}:
            if self.low >= -(1 << 63) and self.high < 1 << 63:
                return pa.int64()
            if self.low >= 0 and self.high < 1 << 64:
                return pa.uint64()
            raise InputError(
                f"column {column!r} has integers from {self.low} to {self.high}, more than 64 bits hold; "
                "write them as strings"
            )
        if kinds <= {int, float}:
            return pa.float64()
        if len(kinds) == 1:
            return pa.string() if str in kinds else pa.bool_()
        names = {int: "an integer", float: "a number", str: "a string", bool: "true or false"}
        places = ", ".join(f"{names[kind]} at {place}" for kind, place in self.kinds.items())
        raise InputError(f"column {column!r} mixes types: {places}; write all its values in one type")


class _Columns:
    """The columns of a run, text first, and their types; those of the others are known after a look at all values."""

    def __init__(self, text_column: str, columns: Sequence[str], skips: SkipLog) -> None:
        self.names = list(dict.fromkeys((text_column, *columns)))
        self.skips = skips
        self.shards: list[JsonlShard] = []
        self._types: list[pa.DataType] | None = [pa.large_string()] if len(self.names) == 1 else None
        self._lock = threading.Lock()

    def types(self) -> list[pa.DataType]:
        """The types in the order of ``names``. Reads all files once, the first time, if there is more than the text."""
        with self._lock:
            if self._types is None:
                looks = [_Look() for _ in self.names[1:]]
                for shard in self.shards:
                    shard.look(looks)
                types = [pa.large_string()]
                for column, look in zip(self.names[1:], looks, strict=True):
                    if not look.present and any(shard.first_keys for shard in self.shards):
                        shard = next(shard for shard in self.shards if shard.first_keys)
                        raise InputError(
                            f"no row has a key {column!r}; the first row of {shard.name} has: "
                            f"{', '.join(shard.first_keys)}"
                        )
                    types.append(look.type_of(column))
                self._types = types
            return self._types

    def record(self, kinds: Sequence[Any], default: Any = None) -> Any:
        """A struct type with fields ``f0 ...`` for ``names``; a missing key gives ``default``."""
        fields = [(f"f{number}", kind, default) for number, kind in enumerate(kinds)]
        names = {f"f{number}": name for number, name in enumerate(self.names)}
        return msgspec.defstruct("Record", fields, rename=names, gc=False)


class JsonlShard(FileShard):
    """One JSON Lines file."""

    def __init__(self, file: InputFile, columns: _Columns, memory_bytes: int) -> None:
        """Look at the first row. Raises UnreadableError if nothing can be read, and InputError if the row lacks the
        text key, saying which keys it has.
        """
        self.file, self._columns, self._skips = file, columns, columns.skips
        self._memory_bytes = memory_bytes
        self._entries: list[
            tuple[int, int, int]
        ] = []  # (byte, row, line) every TARGET_BYTES of a plain file, once read
        self.first_keys: list[str] = []
        decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
        for block in self._blocks():
            for at, number in enumerate(block.rows):
                keys = self._decode(decode, block, at, number)
                if keys is None:
                    continue
                self.first_keys = list(keys)
                if columns.names[0] not in keys:
                    raise InputError(
                        f"{self.name} line {block.first_line + number}: there is no key {columns.names[0]!r}; "
                        f"it has: {', '.join(keys) or 'none'}"
                    )
                return

    @property
    def name(self) -> str:
        """The path as given."""
        return self.file.path

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was opened."""
        return self.file.fingerprint

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB of lines, or less of little memory, in order; with ``wanted`` (ascending) those rows.

        A plain file that was read before is entered near the wanted rows; a compressed one is read from its start.
        Raises InputError naming file, line and byte for a line of which any column of the run is damaged (or records it
        and gives a row of nulls), and MemoryLimitError for a line that is too long for ``memory``.
        """
        types = self._columns.types()
        picks = [self._columns.names.index(column) for column in columns]
        schema = pa.schema([pa.field(self._columns.names[pick], types[pick]) for pick in picks])
        kinds = [_PYTHON_TYPES[kind] for kind in types]
        record = self._columns.record(kinds)
        decode = msgspec.json.Decoder(record).decode
        long_decode = msgspec.json.Decoder(self._columns.record([msgspec.Raw, *kinds[1:]], msgspec.Raw(b"null"))).decode
        blank = record()
        held: list[tuple[Rows, pa.RecordBatch, list[int]]] = []
        held_bytes = held_rows = 0
        target = target_bytes(self._memory_bytes)
        self.file.check_unchanged()
        for block, numbers in self._blocks_with(wanted):
            damaged: list[int] = []
            long_text: bytearray | None = None
            chosen = (numbers - block.first_row).tolist()
            lines = [block.lines[block.rows[at]] for at in chosen]
            block_bytes = sum(map(len, lines))
            try:
                if block_bytes >= LONG_BYTES:
                    raise ValueError
                records = [decode(line) for line in lines]
            except _BAD_LINE:
                records = []
                for at in chosen:
                    if len(block.lines[block.rows[at]]) >= LONG_BYTES:  # then it is alone in its block
                        one = self._decode(lambda line: _long_record(long_decode, line), block, at, block.rows[at])
                        one, long_text = one or (None, None)
                    else:
                        one = self._decode(decode, block, at, block.rows[at])
                    if one is None:
                        damaged.append(block.first_row + at)
                    records.append(one or blank)
            del lines
            block.lines.clear()
            arrays = [_array(list(map(attrgetter(f"f{pick}"), records)), types[pick]) for pick in picks]
            if long_text is not None and 0 in picks:
                arrays[picks.index(0)] = _single(long_text)
            if held and (held_bytes + block_bytes > target or held_rows + len(numbers) > MAX_ROWS):
                yield join_parts(held)
                held_bytes = held_rows = 0
            held.append((numbers, pa.RecordBatch.from_arrays(arrays, schema=schema), damaged))
            held_bytes += block_bytes
            held_rows += len(numbers)
            del records, arrays, long_text
        if held:
            yield join_parts(held)
        self.file.check_unchanged()

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """The columns of the run of the kept rows."""
        for batch in self.read(self._columns.names, np.flatnonzero(keep)):
            yield batch.columns

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Copy the bytes of kept lines, line ends included, compressed as the input was; return the bytes written.

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
                lines = [block.lines[number] for number, choice in zip(block.rows, kept, strict=False) if choice]
                if lines:
                    unended = not block.ended and lines[-1] is block.lines[-1]
                    write(b"\n".join(lines) if unended else b"\n".join([*lines, b""]))
        if len(keep) != row_count:
            raise ValueError(f"keep has {len(keep)} values for the {row_count} rows of {self.name}")
        self.file.check_unchanged()
        return path.stat().st_size

    def look(self, looks: Sequence[_Look]) -> None:
        """Take in the values of all columns but the text."""
        # Failing, a damaged text is found when it is read; skipping, its line must not count, so it is decoded here.
        text: Any = str | None | msgspec.UnsetType if self._skips.skip else msgspec.Raw | msgspec.UnsetType
        record = self._columns.record([text, *[_ANY for _ in looks]], msgspec.UNSET)
        decode, blank = msgspec.json.Decoder(record).decode, record()
        for block in self._blocks():
            try:
                records = [decode(block.lines[number]) for number in block.rows]
            except _BAD_LINE:
                records = [self._decode(decode, block, at, number) or blank for at, number in enumerate(block.rows)]

            def place(at: int, block: _Block = block) -> str:
                return f"{self.name} line {block.first_line + block.rows[at]}"

            for number, look in enumerate(looks, start=1):
                look.add(list(map(attrgetter(f"f{number}"), records)), place)

    def _decode(self, decode: Decode, block: _Block, at: int, number: int) -> Any:
        """Decode line ``number`` of a block, its row ``at``, repaired if need be; None if it is damaged and skipped."""
        line = block.lines[number]
        try:
            try:
                return decode(line)
            except msgspec.ValidationError:
                raise
            except _BAD_JSON:
                repaired = _repaired(line) if len(line) < LONG_BYTES else line
                if repaired == line:
                    raise
                return decode(repaired)
        except _BAD_LINE as error:
            offset = block.offset + len(BOM) * block.bom + sum(map(len, block.lines[:number])) + number
            if self.file.remote is None or not self._skips.skip:  # not a request for every damaged line
                self.file.check_unchanged()  # a line that was cut off while it was read is not damaged
            place = f"{self.name} line {block.first_line + number} (byte {offset})"
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else say(error)
            self._skips.add(self.name, block.first_row + at, 1, f"{place} is damaged: {reason}")
            return None

    def _blocks_with(self, wanted: Rows | None) -> Iterator[tuple[_Block, Rows]]:
        """Blocks with the numbers of those of their rows that are wanted, all of them if ``wanted`` is None."""
        if wanted is None:
            for block in self._blocks():
                if block.rows:
                    yield block, np.arange(block.first_row, block.first_row + len(block.rows))
            return
        yield from blocks_with(self._blocks, self._entries or [(0, 0, 1)], wanted, self.name)

    def _blocks(self, offset: int = 0, row: int = 0, line: int = 1) -> Iterator[_Block]:
        """Blocks of whole lines from a place that is the start of a line. A long line comes alone."""
        entries = [(offset, row, line)]
        parts: list[bytes] = []
        parts_bytes = 0

        def block(lines: list[bytes], ended: bool) -> _Block:
            nonlocal offset, row, line
            bom = offset == 0 and lines[0].startswith(BOM)
            start, size = offset, sum(map(len, lines)) + len(lines) - (not ended)
            if bom:
                lines[0] = lines[0][len(BOM) :]
            rows = [number for number, text in enumerate(lines) if text and not text.isspace()]
            made = _Block(start, line, row, lines, rows, ended, bom)
            if start - entries[-1][0] >= TARGET_BYTES:
                entries.append((start, row, line))
            offset, row, line = start + size, row + len(rows), line + len(lines)
            return made

        with open_stream(self.file, offset) as (stream, position):
            while True:
                try:
                    chunk = stream.read(BLOCK_BYTES)
                except READ_ERRORS as error:
                    reason = (
                        f"{self.name} line {line} (byte {offset + parts_bytes} decompressed, near {position()} "
                        f"as stored) cannot be read: {say(error)}; neither can the rest of the file"
                    )
                    self.file.check_unchanged()
                    if not offset + parts_bytes:
                        raise UnreadableError(reason) from error
                    self._skips.add(self.name, row, 0, reason)
                    return
                if not chunk:
                    break
                start = 0
                end = chunk.rfind(b"\n")
                if parts:
                    head = chunk.find(b"\n")
                    parts.append(chunk if head < 0 else chunk[:head])
                    parts_bytes += len(parts[-1])
                    self._check_length(parts_bytes, line, offset)
                    if head < 0:
                        continue
                    first = b"".join(parts)
                    parts, parts_bytes, start = [], 0, head + 1
                    if len(first) >= LONG_BYTES:
                        lines = [first]
                        del first
                        yield block(lines, True)
                        lines = []
                    else:
                        lines = [first]
                else:
                    lines = []
                if not lines and chunk[start:end].isspace():  # a file of line feeds must not cost an object for each
                    offset, line = offset + end + 1 - start, line + chunk.count(b"\n", start, end + 1)
                elif start <= end:
                    lines += chunk[start:end].split(b"\n")
                if lines:
                    yield block(lines, True)
                if end + 1 < len(chunk):
                    parts, parts_bytes = [chunk[end + 1 :]], len(chunk) - end - 1
                    self._check_length(parts_bytes, line, offset)
            if parts:
                lines = [b"".join(parts)]
                parts = []
                yield block(lines, False)
        if entries[0][0] == 0 and self.file.compression is None:
            self._entries = entries

    def _check_length(self, length: int, line: int, offset: int) -> None:
        if length > self._memory_bytes // LINE_SHARE:
            raise MemoryLimitError(
                f"{self.name} line {line} (byte {offset}) is longer than {self._memory_bytes // LINE_SHARE} bytes, "
                f"which is what memory={self._memory_bytes} allows for one line; give more memory or remove the line"
            )


def _repaired(data: bytes) -> bytes:
    """JSON text with U+FFFD for every ill-formed UTF-8 sequence and every escaped surrogate that has no partner."""
    data = data.decode("utf-8", "replace").encode()
    return _ESCAPE.sub(lambda match: b"\\ufffd" if match[1] else match[0], data)


def _long_record(decode: Decode, line: bytes) -> tuple[Any, bytearray | None]:
    """The record of a long line without its text, and its text as UTF-8 (None for null), never held as a str."""
    record = decode(line)
    raw = memoryview(record.f0)
    text = None
    if raw[0] == ord('"'):
        text = _long_text(raw[1:-1])
    elif raw.tobytes() != b"null":
        raise ValueError("Expected `str | null` as the text")
    record.f0 = None
    return record, text


def _long_text(escaped: memoryview, piece_bytes: int = 1 << 20) -> bytearray:
    """The inside of a JSON string, unescaped, as UTF-8; piece by piece."""
    decode = msgspec.json.Decoder(str).decode
    text = bytearray()
    at = 0
    while at < len(escaped):
        stop = at + piece_bytes
        if stop < len(escaped):
            stop = _place_to_cut(escaped, stop)
        piece = b'"' + escaped[at:stop].tobytes() + b'"'
        try:
            value = decode(piece)
        except _BAD_JSON:
            value = decode(_repaired(piece))
        text += value.encode()
        at = stop
    return text


def _place_to_cut(escaped: memoryview, stop: int) -> int:
    """A place at most 4 KB before ``stop`` where neither an escape nor a UTF-8 sequence goes on; else the end."""
    window = escaped[stop - 4096 : stop + 1].tobytes()
    for back in range(4000):
        at = 4096 - back
        if window[at] & 0xC0 != 0x80 and b"\\" not in window[at - 12 : at]:  # the longest is a pair of surrogates
            return stop - back
    starts = [match.start() for match in _ESCAPE_START.finditer(window)]
    return stop - 4096 + starts[-1] if starts and starts[-1] else len(escaped)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """The values as an Arrow array."""
    return pa.array(values, kind)


def _single(text: bytearray) -> pa.Array:
    """A large_string array of one value that shares the bytes."""
    offsets = pa.py_buffer(np.array([0, len(text)], dtype=np.int64))
    return pa.LargeStringArray.from_buffers(1, offsets, pa.py_buffer(text))


class JsonlSource:
    """JSON Lines files as an ordered corpus."""

    def __init__(
        self, files: Sequence[InputFile], *, text_column: str, columns: Sequence[str], memory_bytes: int, on_error: str
    ) -> None:
        """Look at the first row of every file. Raises InputError if a file has no text key there, or cannot be read
        (or skips it).
        """
        self._skips = SkipLog(on_error == "skip")
        self._columns = _Columns(text_column, columns, self._skips)
        self.shards: list[JsonlShard] = []
        for file in files:
            self._skips.register(file.path)
            try:
                self.shards.append(JsonlShard(file, self._columns, memory_bytes))
            except UnreadableError as error:
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
