"""Byte streams of files, plain, gzip or zstd, and what the readers of such files share."""

from __future__ import annotations

import codecs
import contextlib
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.io.batches import READ_ERRORS, Rows, say
from gpudedup.io.paths import InputFile
from gpudedup.io.source import Batch
from gpudedup.store.atomic import open_output

GZIP_LEVEL = 6
BOM = b"\xef\xbb\xbf"


CHUNK_BYTES = 1 << 16
"""Compressed bytes that Arrow takes from a file at a time."""

SALVAGE_BYTES = 8 << 20
"""More than Arrow decompresses at a time (1 MB): what is salvaged is bounded by it, come what may."""


class UnreadableError(InputError):
    """A file of which nothing can be read, so that on_error="skip" leaves out all of it."""


class RowBlock(Protocol):
    """Consecutive rows of a file as they are stored; ``rows`` has one item for each."""

    first_row: int
    rows: list[int]


AnyBlock = TypeVar("AnyBlock", bound=RowBlock)


@contextlib.contextmanager
def open_stream(file: InputFile, offset: int) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A stream of the file's decompressed bytes from ``offset`` on, and a function that says how far the file was
    read. Raises UnreadableError if it cannot be opened, InputError if it was changed.
    """
    try:
        if file.compression is None:
            raw: Any = file.open()
            raw.seek(offset)
            stream: Any = raw
        else:
            raw = file.open().arrow()
            stream = Decompressed(file, raw)
    except OSError as error:
        file.check_unchanged()
        reason = error.strerror or say(error)
        raise UnreadableError(f"cannot read {file.path}: {reason}") from error
    with raw:
        yield stream, raw.tell if stream is raw else stream.tell


class Decompressed:
    """The bytes of a compressed file, from a stream ``raw`` of its stored ones. All that stands before damage is given
    before the error is raised.

    Arrow's stream drops what it decompressed in the same call. So that part is read once more: its compressed bytes
    are handed over one by one, which also tells at which of them the damage is.
    """

    def __init__(self, file: InputFile, raw: Any) -> None:
        """Raises UnreadableError for an empty file."""
        if not file.fingerprint.size_bytes:
            raise UnreadableError(f"{file.path} is empty, which no {file.compression} file is; it may be cut off")
        self._file, self._raw = file, raw
        self._stream = pa.CompressedInputStream(raw, file.compression)
        self._done = 0
        self._rest = b""
        self._error: BaseException | None = None
        self._position = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes, none at the end. Raises one of READ_ERRORS for damage, InputError for a change."""
        if self._error is None:
            try:
                chunk: bytes = self._stream.read(size)
            except READ_ERRORS as error:
                self._file.check_unchanged()
                self._error, self._position = error, self._raw.tell()
                with contextlib.suppress(*READ_ERRORS):
                    self._salvage()
            else:
                self._done += len(chunk)
                return chunk
        if self._rest:
            chunk, self._rest = self._rest[:size], self._rest[size:]
            return chunk
        raise self._error

    def tell(self) -> int:
        """How far the file was read: up to the first byte that cannot be decompressed, if there is one."""
        return self._raw.tell() if self._error is None else self._position

    def _salvage(self) -> None:
        """Keep what can be decompressed after the bytes that were given already, and find the place of the error."""
        rest = bytearray()
        with self._file.open() as file:
            feed = _Feed(file, self._position - CHUNK_BYTES)
            stream = pa.CompressedInputStream(pa.PythonFile(feed, mode="r"), self._file.compression)
            passed = 0
            while passed < self._done:
                passed += len(stream.read(min(CHUNK_BYTES, self._done - passed)))
            try:
                while len(rest) < SALVAGE_BYTES and (byte := stream.read(1)):
                    rest += byte
            except READ_ERRORS as error:
                self._error, self._position = error, feed.position
        self._rest = bytes(rest)


class _Feed:
    """A file for Arrow to read, byte by byte from ``fine_from`` on."""

    closed = False

    def __init__(self, file: Any, fine_from: int) -> None:
        self._file, self._fine_from = file, fine_from
        self.position = 0

    def read(self, size: int) -> bytes:
        data: bytes = self._file.read(min(size, max(1, self._fine_from - self.position)))
        self.position += len(data)
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        pass


@contextlib.contextmanager
def open_sink(path: Path, compression: str | None) -> Iterator[Callable[[bytes], Any]]:
    """A function that writes to ``path``, compressing."""
    with open_output(path) as file:
        if compression == "gzip":
            deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
            yield lambda data: file.write(deflate.compress(data))
            file.write(deflate.flush())
        elif compression == "zstd":
            with pa.CompressedOutputStream(pa.PythonFile(file, "w"), "zstd") as compressor:
                yield compressor.write
        else:
            yield file.write


def well_formed(data: bytes | bytearray, piece_bytes: int = 1 << 20) -> bytearray:
    """UTF-8 with U+FFFD for what is ill-formed (docs/spec.md, 1), made piece by piece: a str takes 4 bytes a letter."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    view, text = memoryview(data), bytearray()
    for first in range(0, len(data), piece_bytes):
        text += decoder.decode(view[first : first + piece_bytes], final=first + piece_bytes >= len(data)).encode()
    return text


def join_parts(held: list[tuple[Rows, pa.RecordBatch, list[int]]]) -> Batch:
    """One batch of what is held, which is emptied."""
    damaged = np.array([row for part in held for row in part[2]], dtype=np.int64)
    rows = np.concatenate([part[0] for part in held])
    batches = [part[1] for part in held]
    held.clear()
    return Batch(rows, batches[0] if len(batches) == 1 else pa.concat_batches(batches), damaged)


def blocks_with(
    blocks: Callable[..., Iterator[AnyBlock]], entries: Sequence[tuple[int, int, int]], wanted: Rows, name: str
) -> Iterator[tuple[AnyBlock, Rows]]:
    """Blocks that hold any of the ``wanted`` rows (ascending), with the numbers of those.

    ``entries``: places (byte, row, line) from which ``blocks(*entry)`` can begin; those near the wanted rows are used.
    Raises InputError for a row that does not exist.
    """
    entry_rows = [row for _, row, _ in entries]
    done = 0
    while done < len(wanted):
        entry = int(np.searchsorted(entry_rows, wanted[done], side="right")) - 1
        for block in blocks(*entries[entry]):
            stop = int(np.searchsorted(wanted, block.first_row + len(block.rows)))
            if stop > done:
                numbers = wanted[done:stop]
                done = stop
                yield block, numbers
            if done == len(wanted) or int(np.searchsorted(entry_rows, wanted[done], side="right")) - 1 > entry + 1:
                break
        else:
            break
    if done < len(wanted):
        raise InputError(f"{name} has no row {wanted[done]}; it may have changed: run again")
