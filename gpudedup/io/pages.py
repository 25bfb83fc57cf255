"""What the pages of a Parquet column chunk hold, from their headers alone, so that decoding can be bounded before it.

A footer gives the bytes of a chunk, but neither those of its pages nor what its dictionary decodes to: a chunk of 1 MB
can decode to 1 TB. Each page is preceded by a PageHeader in Thrift's compact protocol (parquet.thrift of
apache/parquet-format), which says its values, encoding and bytes. Reading one costs about 30 us for each page of
usually 1 MB.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from gpudedup.io.files import OpenFile

DATA_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = 0, 2, 3
PLAIN_DICTIONARY, DELTA_BYTE_ARRAY, RLE_DICTIONARY = 2, 7, 8
MAX_HEADER_BYTES = 16 << 20  # as Arrow: statistics in a header can hold whole values
MAX_DEPTH = 8


class PageError(ValueError):
    """A page header that cannot be read; ``position`` is its byte in the file."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(f"page header at byte {position} is damaged ({reason})")


@dataclass
class ChunkPages:
    """The pages of one column chunk. ``values``, ``page_bytes`` and ``repeats`` are int64[pages].

    ``repeats``: bytes that one value of the page can decode to, beyond the page's own bytes (dictionary, prefixes);
    else 0.
    """

    dictionary_values: int = 0
    dictionary_bytes: int = 0
    values: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    page_bytes: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    repeats: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    all_dictionary: bool = False


def scan_pages(file: BinaryIO | OpenFile, start: int, length: int, value_count: int) -> ChunkPages:
    """Walk the page headers of a column chunk until ``value_count`` values are found.

    start, length: the chunk's bytes in ``file``. Raises PageError.
    """
    pages = ChunkPages(all_dictionary=True)
    found: list[tuple[int, int, int]] = []
    position, end, seen = start, start + length, 0
    while seen < value_count:
        if not start <= position < end:
            raise PageError(position, f"{seen} of {value_count} values found in the chunk's {length} bytes")
        header, size = _page_header(file, position, min(end - position, MAX_HEADER_BYTES))
        kind, decoded, stored = (_integer(header, key, position) for key in (1, 2, 3))
        if decoded < 0 or stored < 0:
            raise PageError(position, f"sizes {decoded} and {stored}")
        if kind == DICTIONARY_PAGE:
            pages.dictionary_bytes = decoded
            pages.dictionary_values = _integer(header.get(7), 1, position)
        elif kind in (DATA_PAGE, DATA_PAGE_V2):
            details = header.get(5 if kind == DATA_PAGE else 8)
            values = _integer(details, 1, position)
            encoding = _integer(details, 2 if kind == DATA_PAGE else 4, position)
            if values < 0:
                raise PageError(position, f"{values} values")
            repeats = 0
            if encoding in (PLAIN_DICTIONARY, RLE_DICTIONARY):
                repeats = pages.dictionary_bytes
            else:
                pages.all_dictionary = False
                if encoding == DELTA_BYTE_ARRAY:
                    repeats = decoded
            found.append((values, decoded, repeats))
            seen += values
        position += size + stored
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    pages.values, pages.page_bytes, pages.repeats = table[:, 0], table[:, 1], table[:, 2]
    return pages


def _integer(fields: Any, key: int, position: int) -> int:
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, int) or not -(1 << 31) <= value < 1 << 31:
        raise PageError(position, f"field {key} is {value!r}")
    return value


def _page_header(file: BinaryIO | OpenFile, position: int, limit: int) -> tuple[dict[int, Any], int]:
    window = 512
    while True:
        file.seek(position)
        data = file.read(min(window, limit))
        try:
            return _struct(data, 0, 0)
        except IndexError:
            if len(data) >= limit or len(data) < window:
                raise PageError(position, "it does not end") from None
            window *= 16
        except ValueError as error:
            raise PageError(position, str(error)) from None


# Thrift compact protocol: a field is one byte (id delta << 4 | type), then its value; see thrift-compact-protocol.md.
_TRUE, _FALSE, _I8, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 12


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("an integer of more than 64 bits")


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    fields: dict[int, Any] = {}
    key = 0
    while True:
        head = data[at]
        at += 1
        if head == 0:
            return fields, at
        if head >> 4:
            key += head >> 4
        else:
            zigzag, at = _varint(data, at)
            key = (zigzag >> 1) ^ -(zigzag & 1)
        fields[key], at = _value(data, at, head & 15, depth)


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, at
    if kind == _I8:
        return data[at], at + 1
    if kind in (4, 5, 6):
        zigzag, at = _varint(data, at)
        return (zigzag >> 1) ^ -(zigzag & 1), at
    if kind == _DOUBLE:
        return None, _within(data, at + 8)
    if kind == _BINARY:
        size, at = _varint(data, at)
        return None, _within(data, at + size)
    if kind in (_LIST, _SET):
        head = data[at]
        at += 1
        count, item = head >> 4, head & 15
        if count == 15:
            count, at = _varint(data, at)
        for _ in range(count):
            if item in (_TRUE, _FALSE):
                at = _within(data, at + 1)
            else:
                _, at = _value(data, at, item, depth + 1)
        return None, at
    if kind == _STRUCT:
        return _struct(data, at, depth + 1)
    raise ValueError(f"unknown type {kind}")


def _within(data: bytes, at: int) -> int:
    if at > len(data):
        raise IndexError
    return at
