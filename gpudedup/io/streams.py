"""Byte streams of files, plain, gzip or zstd, and what the readers of such files share."""

from __future__ import annotations

import codecs
import contextlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.io.batches import Rows, say
from gpudedup.io.paths import InputFile
from gpudedup.io.source import Batch

GZIP_LEVEL = 6
BOM = b"\xef\xbb\xbf"


class RowBlock(Protocol):
    """Consecutive rows of a file as they are stored; ``rows`` has one item for each."""

    first_row: int
    rows: list[int]


AnyBlock = TypeVar("AnyBlock", bound=RowBlock)


@contextlib.contextmanager
def open_stream(file: InputFile, offset: int) -> Iterator[tuple[Any, Callable[[], int]]]:
    """A stream of the file's decompressed bytes from ``offset`` on, and a function that says how far the file was
    read. Raises InputError if it cannot be opened.
    """
    try:
        if file.compression is None:
            raw: Any = io.FileIO(file.path)
            raw.seek(offset)
            stream: Any = raw
        else:
            if not file.fingerprint.size_bytes:
                raise InputError(f"{file.path} is empty, which no {file.compression} file is; it may be cut off")
            raw = pa.OSFile(file.path)
            stream = pa.CompressedInputStream(raw, file.compression)
    except OSError as error:
        raise InputError(f"cannot read {file.path}: {say(error)}") from error
    with raw:
        yield stream, raw.tell


@contextlib.contextmanager
def open_sink(path: Path, compression: str | None) -> Iterator[Callable[[bytes], Any]]:
    """A function that writes to ``path``, compressing."""
    with open(path, "wb") as file:
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
