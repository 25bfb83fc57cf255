"""Plain text files, as they are or in gzip or zstd: each is one row, a document without other columns.

All of a file is text, without the byte order mark; ill-formed UTF-8 reads as U+FFFD. A file that is kept is copied as
bytes, and one that is removed is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.io.batches import MAX_ROWS, READ_ERRORS, Rows, say, target_bytes
from gpudedup.io.paths import InputFile, each
from gpudedup.io.skips import SkipLog, UnskippableError
from gpudedup.io.source import Batch, DocumentFiles, Fingerprint, Skipped
from gpudedup.io.streams import BOM, Decompressed, open_stream, well_formed

BLOCK_BYTES = 1 << 20
"""Bytes decompressed or copied at a time."""

FILE_SHARE = 4
"""A file may take 1 / FILE_SHARE of the memory, decompressed: it is held as a whole, and twice if it is ill-formed."""

UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


class PlainFile:
    """One file, one document."""

    __slots__ = ("file",)

    def __init__(self, file: InputFile) -> None:
        self.file = file

    @property
    def path(self) -> str:
        """The path as given."""
        return self.file.path

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was found."""
        return self.file.fingerprint

    def blocks(self) -> Iterator[bytes]:
        """The bytes as they are stored, at most 1 MB at a time.

        Raises InputError, at the end at the latest, if they cannot be read or are not those that were there at first.
        """
        try:
            with self.file.open() as origin:
                while block := origin.read(BLOCK_BYTES):
                    yield block
        except OSError as error:
            self.file.check_unchanged()
            raise InputError(f"cannot read {self.path}: {say(error)}") from error
        self.file.check_unchanged()


class PlainShard(DocumentFiles):
    """All files, read together."""

    name = ""

    def __init__(self, files: Sequence[InputFile], text_column: str, memory_bytes: int, skips: SkipLog) -> None:
        self.files: list[PlainFile] = [PlainFile(file) for file in files]
        self._text_column, self._memory_bytes, self._skips = text_column, memory_bytes, skips

    def read(self, columns: Sequence[str], wanted: Rows | None = None) -> Iterator[Batch]:
        """Batches of about 16 MB, or less of little memory, in order of the files; with ``wanted`` those (ascending).

        Raises InputError naming a file that cannot be read (or notes it and gives null), and MemoryLimitError for one
        that is too large for ``memory``.
        """
        if wanted is not None and len(wanted) and wanted[-1] >= len(self.files):
            raise InputError(f"there is no file {wanted[-1]}; the input has {len(self.files)}")
        rows = np.arange(len(self.files)) if wanted is None else wanted
        texts: list[bytes | bytearray | None] = []
        size_bytes = first = 0
        target = target_bytes(self._memory_bytes)
        files = [self.files[row].file for row in rows]
        for place, (file, contents) in enumerate(each(files, InputFile.contents, by_size=True)):
            text = self._text(file, contents)
            length = len(text) if text is not None else 0
            if texts and (size_bytes + length > target or len(texts) == MAX_ROWS):
                yield self._batch(rows[first:place], texts, columns)
                texts, size_bytes, first = [], 0, place
            texts.append(text)
            size_bytes += length
            del text
        if texts:
            yield self._batch(rows[first:], texts, columns)

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """The kept texts, in batches of about 16 MB."""
        if len(keep) != len(self.files):
            raise ValueError(f"keep has {len(keep)} values for {len(self.files)} files")
        for batch in self.read([self._text_column], np.flatnonzero(keep)):
            yield batch.columns

    def _batch(self, rows: Rows, texts: list[bytes | bytearray | None], columns: Sequence[str]) -> Batch:
        column = _text_array(texts)
        batch = pa.RecordBatch.from_arrays([column] * len(columns), names=list(columns))
        return Batch(rows, batch, rows[[text is None for text in texts]])

    def _text(self, file: InputFile, contents: Callable[[], bytes]) -> bytes | bytearray | None:
        """The bytes of a file's text, ill-formed ones too; None if it is damaged and skipped."""
        try:
            self._check_length(file, file.fingerprint.size_bytes)
            data = contents() if file.compression is None else self._decompressed(file, contents)
        except UnskippableError:
            raise
        except (InputError, *READ_ERRORS) as error:
            file.check_unchanged()
            self._skips.add(file.path, 0, 1, f"{file.path} cannot be read: {say(error)}")
            return None
        if data.startswith(UTF16_MARKS):
            self._skips.add(file.path, 0, 1, f"{file.path} is UTF-16 text; convert it to UTF-8")
            return None
        return data[len(BOM) :] if data.startswith(BOM) else data

    def _decompressed(self, file: InputFile, contents: Callable[[], bytes]) -> bytearray:
        if file.remote is not None:
            return self._read_all(file, Decompressed(file, pa.BufferReader(contents())))
        file.check_unchanged()
        with open_stream(file, 0) as (stream, _):
            data = self._read_all(file, stream)
        file.check_unchanged()
        return data

    def _read_all(self, file: InputFile, stream: Any) -> bytearray:
        data = bytearray()
        while chunk := stream.read(BLOCK_BYTES):
            data += chunk
            self._check_length(file, len(data))
        return data

    def _check_length(self, file: InputFile, length: int) -> None:
        limit = self._memory_bytes // FILE_SHARE
        if length > limit:
            raise MemoryLimitError(
                f"{file.path} has more than {limit} bytes of text, which is what memory={self._memory_bytes} allows "
                "for one file; give more memory or leave it out"
            )


class PlainSource:
    """Plain text files as an ordered corpus: one shard of all of them."""

    def __init__(
        self, files: Sequence[InputFile], *, text_column: str, columns: Sequence[str], memory_bytes: int, on_error: str
    ) -> None:
        """No file is opened yet. Raises InputError if a run needs any column but the text."""
        self._skips = SkipLog(on_error == "skip")
        self._text_column = text_column
        for file in files:
            self._skips.register(file.path)
        self.shards = [PlainShard(files, text_column, memory_bytes, self._skips)]
        for column in columns:
            self.column_type(column)

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out so far under on_error="skip"."""
        return self._skips.entries

    def column_type(self, column: str) -> pa.DataType:
        """large_string for the text. Raises InputError for any other column."""
        if column != self._text_column:
            raise InputError(
                f"{self.shards[0].files[0].path}: plain text files are documents without columns, so there is no "
                f"{column!r}; removals name documents by their paths"
            )
        return pa.large_string()

    def kept_schema(self) -> pa.Schema:
        """The text alone."""
        return pa.schema([pa.field(self._text_column, pa.large_string())])

    def close(self) -> None:
        """Nothing is held open between reads."""


def _text_array(texts: list[bytes | bytearray | None]) -> pa.Array:
    """The texts as a large_string array; a single one is shared, not copied."""
    if len(texts) == 1 and texts[0] is not None:
        offsets = pa.py_buffer(np.array([0, len(texts[0])], np.int64))
        array = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(texts[0])])
    else:
        array = pa.array(texts, pa.large_binary())
    try:
        return array.cast(pa.large_string())
    except pa.ArrowInvalid:
        repaired = [None if text is None else well_formed(text) for text in texts]
        return pa.array(repaired, pa.large_binary()).cast(pa.large_string())
