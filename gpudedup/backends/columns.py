"""Columns as Arrow gives them: what they hold, and their memory for native code."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup.backends.base import I32, I64, U8, U64
from gpudedup.errors import InputError


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values: a dictionary's are those of its dictionary."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_view(kind: pa.DataType) -> bool:
    """Whether values are views of text, for which Arrow has few functions."""
    return bool(pa.types.is_string_view(kind) or pa.types.is_binary_view(kind))


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type holds text or bytes: any string or binary type, or a dictionary of one."""
    kind = value_type(kind)
    return bool(
        is_view(kind)
        or pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def is_tokens(kind: pa.DataType) -> bool:
    """Whether a column of this type holds lists of integers."""
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(lists and pa.types.is_integer(kind.value_type))


def held_type(kind: pa.DataType) -> pa.DataType:
    """The type of a column over a whole corpus: int8 can number the dictionary of one file, and may not that of all."""
    if pa.types.is_dictionary(kind) and kind.index_type.bit_width < 32:
        return pa.dictionary(pa.int32(), kind.value_type, kind.ordered)
    return kind


def held_column(chunks: Iterable[pa.Array], kind: pa.DataType) -> pa.ChunkedArray:
    """A column of a whole corpus, of chunks of type ``kind``."""
    return pa.chunked_array([chunk.cast(held_type(kind)) for chunk in chunks], held_type(kind))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type that `plain` gives: no dictionary, no views."""
    kind = value_type(kind)
    if pa.types.is_string_view(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary_view(kind) else kind


def plain(array: pa.Array) -> pa.Array:
    """The same values without dictionary and views. Fixed-size binary stays."""
    if pa.types.is_dictionary(array.type):
        dictionary = array.dictionary.cast(plain_type(array.type))
        return pa.DictionaryArray.from_arrays(array.indices, dictionary).dictionary_decode()
    return array.cast(plain_type(array.type)) if is_view(array.type) else array


def plain_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`plain` of every chunk."""
    return pa.chunked_array([plain(chunk) for chunk in column.chunks], plain_type(column.type))


def stored_values(values: pa.Array) -> list[bytes] | list[int]:
    """What tells values of one type apart: their stored bytes, or fixed-width bits as a number. Without nulls."""
    values = plain(values)
    if is_text(values.type) or pa.types.is_decimal(values.type):
        stored: list[bytes] = stored_bytes(values).to_pylist()
        return stored
    words: list[int] = fixed_width_words(values).tolist()
    return words


def stored_bytes(values: pa.Array) -> pa.Array:
    """Text, binary and decimal values as binary: decimals little-endian, as Arrow stores them."""
    if pa.types.is_decimal(values.type):
        values = values.view(pa.binary(values.type.byte_width))
    return values.cast(pa.large_binary())


def take(column: pa.ChunkedArray, places: pa.Array) -> pa.ChunkedArray:
    """Values at int64 ``places``, null at null; of the column's own type (a dictionary of views: as plain text)."""
    kind = column.type
    if not is_view(value_type(kind)):
        return column.take(places)
    taken = plain_column(column).take(places)
    return taken.cast(kind) if is_view(kind) else taken


def buffers(array: pa.Array) -> tuple[U8 | I64, I32 | I64]:
    """Values (uint8 or int64) and offsets (int32 or int64, [n + 1]) of a text or token column; null is empty."""
    array = plain(array)
    if is_tokens(array.type):
        return _token_buffers(array)
    if pa.types.is_fixed_size_binary(array.type) or pa.types.is_null(array.type):
        array = array.cast(pa.large_binary())
    kind = array.type
    if array.null_count:
        array = pc.fill_null(array, b"" if "binary" in str(kind) else "")
    _, offsets, data = array.buffers()
    if len(array) == 0 or offsets is None:
        return np.zeros(0, np.uint8), np.zeros(len(array) + 1, np.int32)
    values = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    rows = slice(array.offset, array.offset + len(array) + 1)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return values, np.frombuffer(offsets, np.int64)[rows]
    return values, np.frombuffer(offsets, np.int32)[rows]


def _token_buffers(array: pa.Array) -> tuple[I64, I64]:
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.large_list(array.type.value_type))
    values = array.flatten()  # without what nulls and slices leave out
    if values.null_count:
        raise InputError("a list of tokens holds a null element; every element must be an integer")
    lengths = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
    try:
        tokens = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid as error:
        raise InputError(f"tokens must fit in 64-bit signed integers: {error}") from None
    offsets = np.zeros(len(array) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return np.ascontiguousarray(tokens, np.int64), offsets


def fixed_width_words(values: pa.Array) -> U64:
    """Fixed-width values sign- or zero-extended to 64 bits, without nulls."""
    kind = values.type
    if pa.types.is_boolean(kind):
        values = values.cast(pa.uint8())
    elif pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        values = values.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    if pa.types.is_unsigned_integer(values.type):
        return np.ascontiguousarray(values.cast(pa.uint64()).to_numpy(zero_copy_only=False), np.uint64)
    return np.ascontiguousarray(values.cast(pa.int64()).to_numpy(zero_copy_only=False)).view(np.uint64)
