"""What the messages of an Arrow IPC file or stream hold, from their metadata alone, so that reading can be planned and
bounded before anything is decoded.

pyarrow says neither how a file is compressed, nor how many rows a batch has and what it decodes to, before it is
decoded; a batch of 1 MB can decode to 1 TB. The metadata are flatbuffers (Message.fbs, Schema.fbs, File.fbs of
apache/arrow), of which few fields are needed. Nothing in them is trusted: every position is checked against the bytes
that are there. Reading one costs about 20 us.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from gpudedup.io.files import OpenFile

SCHEMA, DICTIONARY, BATCH = 1, 2, 3
CODECS = {0: "lz4", 1: "zstd"}
MAGIC = b"ARROW1"
CONTINUATION = 0xFFFFFFFF


class MessageError(ValueError):
    """Metadata that are cut off or contradict themselves."""


class EndOfStreamError(MessageError):
    """The end of a stream is reached: by its mark, or because nothing follows. ``position``: the byte after it."""

    def __init__(self, position: int) -> None:
        super().__init__("the stream ends here")
        self.position = position


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a file. ``offset`` is its first byte, ``metadata_bytes`` include its length prefix and padding.

    ``rows``: of a record batch; 0 for others.
    """

    kind: int
    offset: int
    metadata_bytes: int
    body_bytes: int
    rows: int


class _Table:
    """A flatbuffer table at a byte of ``data``. Raises MessageError for a position outside of it."""

    def __init__(self, data: bytes, position: int) -> None:
        self._data, self.position = data, position
        vtable = position - self._read("<i", position)
        self._slots = self._read("<H", vtable) // 2 - 2
        self._vtable = vtable

    @classmethod
    def root(cls, data: bytes) -> _Table:
        """The table that a flatbuffer begins with."""
        if len(data) < 4:
            raise MessageError(f"{len(data)} bytes of metadata")
        return cls(data, struct.unpack_from("<I", data)[0])

    def number(self, slot: int, layout: str, default: int = 0) -> int:
        """A number of a ``struct`` layout."""
        at = self._field(slot)
        return default if at is None else self._read(layout, at)

    def table(self, slot: int) -> _Table | None:
        """A table."""
        at = self._field(slot)
        return None if at is None else _Table(self._data, at + self._read("<I", at))

    def structs(self, slot: int, layout: str) -> list[tuple[int, ...]]:
        """A vector of structs."""
        at = self._field(slot)
        if at is None:
            return []
        at += self._read("<I", at)
        count = self._read("<I", at)
        size = struct.calcsize(layout)
        if at + 4 + count * size > len(self._data):
            raise MessageError(f"a vector of {count} items in {len(self._data)} bytes")
        return list(struct.iter_unpack(layout, self._data[at + 4 : at + 4 + count * size]))

    def _field(self, slot: int) -> int | None:
        if slot >= self._slots:
            return None
        offset = self._read("<H", self._vtable + 4 + 2 * slot)
        return self.position + offset if offset else None

    def _read(self, layout: str, at: int) -> int:
        if at < 0 or at + struct.calcsize(layout) > len(self._data):
            raise MessageError(f"byte {at} of {len(self._data)} bytes of metadata")
        value: int = struct.unpack_from(layout, self._data, at)[0]
        return value


def read_message(file: OpenFile, offset: int, end: int) -> Message:
    """The message at a byte of an open file, of which the messages end at ``end``.

    Raises EndOfStreamError at the end, MessageError for metadata that are damaged or cut off, and OSError.
    """
    prefix = file.pread(min(8, end - offset), offset)
    if not prefix:
        raise EndOfStreamError(offset)
    if len(prefix) < 4:
        raise MessageError(f"{len(prefix)} bytes where a message should begin")
    words = struct.unpack(f"<{len(prefix) // 4}I", prefix[: len(prefix) // 4 * 4])
    prefix_bytes = 8 if words[0] == CONTINUATION else 4  # 4 before Arrow 0.15
    if words[0] == CONTINUATION and len(words) == 1:
        raise MessageError("the length of the metadata is cut off")
    length = words[prefix_bytes // 4 - 1]
    if not length:
        raise EndOfStreamError(offset + prefix_bytes)
    if length > end - offset - prefix_bytes:
        raise MessageError(f"metadata of {length} bytes, where {end - offset - prefix_bytes} are left")
    data = file.pread(length, offset + prefix_bytes)
    if len(data) != length:
        raise MessageError(f"{len(data)} of {length} bytes of metadata")
    message = _Table.root(data)
    kind, body_bytes = message.number(1, "<B"), message.number(3, "<q")
    if not 0 <= body_bytes <= end - offset - prefix_bytes - length:
        raise MessageError(f"a body of {body_bytes} bytes, where {end - offset - prefix_bytes - length} are left")
    rows = 0
    if kind == BATCH:
        header = message.table(2)
        rows = header.number(0, "<q") if header is not None else -1
        if rows < 0:
            raise MessageError(f"a record batch of {rows} rows")
    elif kind not in (SCHEMA, DICTIONARY):
        raise MessageError(f"a message of the unknown type {kind}")
    return Message(kind, offset, prefix_bytes + length, body_bytes, rows)


@dataclass(frozen=True, slots=True)
class Footer:
    """What the end of an IPC file says. ``schema``: as a message that a stream can begin with, dictionary ids included.

    ``dictionaries``, ``batches``: offsets of those messages.
    """

    schema: bytes
    dictionaries: list[int]
    batches: list[int]


def read_footer(file: OpenFile, size: int) -> Footer:
    """The footer of an open IPC file of ``size`` bytes. Raises MessageError and OSError."""
    tail = file.pread(10, max(0, size - 10))
    if len(tail) < 10 or tail[4:] != MAGIC:
        raise MessageError("it does not end as an Arrow file does, and may be cut off")
    length = struct.unpack_from("<i", tail)[0]
    if not 0 < length <= size - 10 - 8:
        raise MessageError(f"a footer of {length} bytes in a file of {size}")
    data = file.pread(length, size - 10 - length)
    footer = _Table.root(data)
    schema = footer.table(1)
    if schema is None:
        raise MessageError("a footer without a schema")
    dictionaries, batches = ([block[0] for block in footer.structs(slot, "<qi4xq")] for slot in (2, 3))
    return Footer(_schema_message(data, schema.position, footer.number(0, "<h")), dictionaries, batches)


def _schema_message(footer: bytes, position: int, version: int) -> bytes:
    """A message of the schema at a position in a footer: its table is followed by the footer, into which it points.

    Files begin with such a message too, but readers do not look at it, and Polars writes it without its prefix.
    """
    table = 16  # after the offset of the table, and its vtable, which has the places of four fields in it
    start = 40
    data = struct.pack("<I6H", table, 12, 20, 16, 18, 4, 8)
    data += struct.pack("<iIqhB5x", table - 4, start + position - (table + 4), 0, version, SCHEMA)
    data += footer + bytes(-len(footer) % 8)
    return struct.pack("<II", CONTINUATION, len(data)) + data


def buffers(metadata: bytes) -> tuple[str | None, list[tuple[int, int]]]:
    """How the buffers of a record batch or dictionary are compressed, and (offset, length) of each in its body.

    metadata: all of them, with the prefix. Raises MessageError.
    """
    start = 8 if metadata[:4] == b"\xff\xff\xff\xff" else 4
    message = _Table.root(metadata[start:])
    header = message.table(2)
    if header is not None and message.number(1, "<B") == DICTIONARY:
        header = header.table(1)
    if header is None:
        raise MessageError("a message without a header")
    compression = header.table(3)
    found = [(offset, length) for offset, length in header.structs(2, "<qq")]
    variadic = [count for (count,) in header.structs(4, "<q")]  # Arrow 21 makes room for as many, and ends the process
    if min(variadic, default=0) < 0 or sum(variadic) > len(found):
        raise MessageError(f"{len(found)} buffers, of which views have {variadic[:10]}")
    if compression is None:
        return None, found
    codec = compression.number(0, "<b")
    if codec not in CODECS:
        raise MessageError(f"a body with the unknown compression {codec}")
    return CODECS[codec], found


def decoded_bytes(found: list[tuple[int, int]], body: memoryview) -> int:
    """Bytes that compressed buffers say that they decode to; Arrow refuses those that decode to anything else."""
    total = 0
    for offset, length in found:
        if offset >= 0 and length >= 8 and offset + length <= len(body):
            size = struct.unpack_from("<q", body, offset)[0]
            total += max(size, 0) if size != -1 else length - 8
    return total
