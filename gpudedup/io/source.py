"""What the stages know of a corpus: an ordered list of shards, each read in batches and read again by row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Batch:
    """Some rows of one shard, ascending. ``rows`` int64[n] are row numbers within the shard, from 0.

    ``columns`` holds the columns that were asked for, in the order they were asked for, each of the source's column
    type; the text column alone may be dictionary-encoded instead, where its values repeat so much that decoding them
    would cost more than the file. ``damaged`` lists the rows among ``rows`` that could not be read (only with
    on_error="skip"); their values are null and they are no documents.
    """

    rows: npt.NDArray[np.int64]
    columns: pa.RecordBatch
    damaged: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Skipped:
    """``count`` rows from ``first_row`` on (or, with ``first_row`` None, a whole shard) left out under
    on_error="skip", and why. ``count`` is 0 where nobody can know it: an unreadable shard, a truncated stream.
    """

    shard: str
    first_row: int | None
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What shows that a file was changed: its bytes, the time of its last change, and the tag of its content, which
    some object stores give.
    """

    size_bytes: int
    mtime_ns: int
    etag: str | None = None

    def __str__(self) -> str:
        tag = "" if self.etag is None else f" and etag {self.etag}"
        return f"{self.size_bytes} bytes with mtime_ns {self.mtime_ns}{tag}"


class Shard(Protocol):
    """A part of a corpus. Every method may be called again and from another thread."""

    @property
    def name(self) -> str:
        """The path as given; "" for data in memory and for many files."""

    def read(self, columns: Sequence[str], wanted: npt.NDArray[np.int64] | None = None) -> Iterator[Batch]:
        """Batches of bounded bytes in row order; with ``wanted`` (ascending row numbers) exactly those rows.

        Raises InputError naming file and row (or byte) for anything unreadable, or records it as skipped.
        """

    def parts(self, columns: Sequence[str], wanted: npt.NDArray[np.int64] | None = None) -> Iterator[Iterator[Batch]]:
        """The batches of ``read``, cut where threads may read side by side."""
        yield self.read(columns, wanted)

    def kept(self, keep: npt.NDArray[np.bool_]) -> Iterator[pa.RecordBatch]:
        """All columns of the rows whose ``keep`` is true, in row order (JSONL, CSV and TSV: the columns of the run)."""


class FileShard(Shard, Protocol):
    """One input file, or a table in memory."""

    @property
    def fingerprint(self) -> Fingerprint | None:
        """Size and time of the file when it was opened; None for data in memory."""

    def write_kept(self, keep: npt.NDArray[np.bool_], path: Path) -> int:
        """Write the rows whose ``keep`` is true to ``path`` in the shard's own format; return the bytes written.

        ``keep`` has one value per row, false for damaged ones. Equal input and ``keep`` give equal bytes.
        Raises OutputError if ``path`` cannot be written; what is there of it then is the caller's to remove.
        Looks for a stop (``store.stopping``) between pieces of work.
        """


class RowFile(Protocol):
    """A file that is one row."""

    @property
    def path(self) -> str:
        """The path as given."""

    @property
    def fingerprint(self) -> Fingerprint:
        """Size and time of the file when it was found."""

    def blocks(self) -> Iterator[bytes]:
        """The bytes of the file as they are stored. Raises InputError if it cannot be read or was changed."""


class DocumentFiles(Shard):
    """Many files of one row each, read together: row i is file i. A user names such a row by the file, and row 0.

    A base class, not a protocol: which shards are such ones is asked for every shard, and a protocol's answer takes 30
    microseconds.
    """

    files: Sequence[RowFile]
    """By row."""


AnyShard = FileShard | DocumentFiles


def input_files(shards: Sequence[AnyShard]) -> list[tuple[str, Fingerprint | None]]:
    """(path, fingerprint) of every input file, in input order; ("", None) for data in memory."""
    found: list[tuple[str, Fingerprint | None]] = []
    for shard in shards:
        if isinstance(shard, DocumentFiles):
            found.extend((file.path, file.fingerprint) for file in shard.files)
        else:
            found.append((shard.name, shard.fingerprint))
    return found


def first_rows(shards: Sequence[AnyShard], shard_first: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The input position of the first row of every input file: int64[files + 1], from that of every shard."""
    parts = [
        np.arange(first, stop) if isinstance(shard, DocumentFiles) else shard_first[number : number + 1]
        for number, (shard, first, stop) in enumerate(zip(shards, shard_first, shard_first[1:], strict=False))
    ]
    return np.concatenate([*parts, shard_first[-1:]])


class Source(Protocol):
    """An ordered corpus. Input order is the order of ``shards``, then of rows."""

    @property
    def shards(self) -> Sequence[AnyShard]:
        """The shards that can be read; a file skipped as a whole is not among them."""

    @property
    def skipped(self) -> Sequence[Skipped]:
        """What was left out so far under on_error="skip", by shard and row."""

    def column_type(self, column: str) -> pa.DataType:
        """The column's type in all shards. Raises InputError (which columns exist) or if shards differ."""

    def kept_schema(self) -> pa.Schema:
        """Schema of the batches of ``Shard.kept``. Raises InputError if the shards' schemas differ."""

    def close(self) -> None:
        """Delete what was spooled."""
