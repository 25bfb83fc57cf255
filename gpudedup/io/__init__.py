"""Reading corpora: ``open_source`` for any data, ``open_paths`` for paths."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from gpudedup.errors import InputError
from gpudedup.io.batches import READ_ERRORS, abreast, say
from gpudedup.io.delimited import DelimitedSource
from gpudedup.io.ipc import IpcSource
from gpudedup.io.jsonl import JsonlSource
from gpudedup.io.memory import Batches, Held, MemorySource, documents, hold_or_spool, item_batches, reader_batches
from gpudedup.io.parquet import ParquetSource
from gpudedup.io.paths import InputFile, find_files
from gpudedup.io.plain import PlainSource
from gpudedup.io.source import Batch, Fingerprint, Shard, Skipped, Source

__all__ = ["Batch", "Fingerprint", "Shard", "Skipped", "Source", "abreast", "open_paths", "open_source"]

READERS: dict[str, Callable[..., Source]] = {
    "jsonl": JsonlSource,
    "csv": DelimitedSource,
    "tsv": DelimitedSource,
    "plain": PlainSource,
    "ipc": IpcSource,
}
"""What reads each format of ``paths.FORMATS`` but Parquet, which may need room on disk."""

ACCEPTED = (
    "a path, glob, directory or URL, a list of pathlib.Path, a list of str, an Arrow table or batch, anything with the "
    "Arrow PyCapsule interface (Polars, pandas, DuckDB, datasets), a RecordBatchReader, a Dataset, or an iterable of "
    "batches"
)


def open_source(
    data: Any,
    *,
    text_column: str,
    columns: Sequence[str],
    memory_bytes: int,
    tmp: str | None = None,
    on_error: str = "fail",
) -> Source:
    """An ordered corpus from anything that holds documents.

    data: see ``ACCEPTED``; a str is a path, a list of str is documents in a column named ``text_column``. Tables are
    not copied. What can be read only once is kept in memory up to an eighth of ``memory_bytes``, else in a file in
    ``tmp``. columns: all columns that the run reads, with or without the text. Raises InputError for everything that is
    wrong with the data, OutputError if it cannot be spooled.
    """
    if isinstance(data, str | os.PathLike):
        data = [Path(data)] if isinstance(data, os.PathLike) else [data]
        paths = [os.fspath(path) for path in data]
    elif isinstance(data, list | tuple) and data and all(isinstance(item, os.PathLike) for item in data):
        paths = [os.fspath(path) for path in data]
    else:
        batches = _in_memory(data, text_column, columns, memory_bytes, tmp)
        return MemorySource(batches, text_column=text_column, columns=columns)
    return open_paths(
        paths, text_column=text_column, columns=columns, memory_bytes=memory_bytes, tmp=tmp, on_error=on_error
    )


def open_paths(
    paths: Sequence[str],
    *,
    text_column: str,
    columns: Sequence[str],
    memory_bytes: int,
    tmp: str | None = None,
    on_error: str = "fail",
) -> Source:
    """An ordered corpus from files, globs, directories and URLs (``find_files``); the other parameters as for
    ``open_source``.
    """
    files: list[InputFile] = find_files(paths)
    if files[0].format == "parquet":
        return ParquetSource(
            files, text_column=text_column, columns=columns, memory_bytes=memory_bytes, tmp=tmp, on_error=on_error
        )
    reader = READERS[files[0].format]
    return reader(files, text_column=text_column, columns=columns, memory_bytes=memory_bytes, on_error=on_error)


def _in_memory(data: Any, text_column: str, columns: Sequence[str], memory_bytes: int, tmp: str | None) -> Batches:
    if isinstance(data, pa.Table):
        return Held(data)
    if isinstance(data, pa.RecordBatch):
        return Held(pa.Table.from_batches([data]))
    if isinstance(data, pa.Array | pa.ChunkedArray):
        raise InputError(f"a {data.type} array is no table; give pa.table({{{text_column!r}: ...}}) or a list of str")
    datasets = sys.modules.get("pyarrow.dataset")  # slow to import, and imported already if this is one of its objects
    if datasets is not None and isinstance(data, datasets.Dataset):
        data = data.scanner(batch_readahead=1, fragment_readahead=1).to_reader()
    if isinstance(data, pa.RecordBatchReader):
        return hold_or_spool(reader_batches(data), data.schema, memory_bytes, tmp)
    if isinstance(data, list | tuple) and not any(_is_arrow(item) for item in data):
        return Held(documents(data, text_column))
    if (
        not _is_arrow(data)
        and isinstance(data, Iterable)
        and not isinstance(data, dict | bytes | bytearray | memoryview)
    ):
        schema, batches = item_batches(data)
        if schema is None:
            empty = {text_column: pa.array([], pa.large_string())} | {
                column: pa.nulls(0) for column in columns if column != text_column
            }
            return Held(pa.table(empty))
        if isinstance(data, list | tuple):
            return Held(pa.Table.from_batches(batches, schema))
        return hold_or_spool(batches, schema, memory_bytes, tmp)
    if not _is_arrow(data):
        raise InputError(f"cannot read data of type {type(data).__name__}; give {ACCEPTED}")
    try:
        if type(data).__module__.partition(".")[0] in ("polars", "pandas") and type(data).__name__ == "DataFrame":
            return Held(pa.table(data))  # in memory already, and shared as far as the library can
        if hasattr(data, "__arrow_c_stream__"):
            reader = pa.RecordBatchReader.from_stream(data)
            return hold_or_spool(reader_batches(reader), reader.schema, memory_bytes, tmp)
        return Held(pa.Table.from_batches([pa.record_batch(data)]))
    except READ_ERRORS as error:
        raise InputError(
            f"data of type {type(data).__name__} cannot be read as a table: {say(error)}; give {ACCEPTED}"
        ) from error


def _is_arrow(data: object) -> bool:
    return hasattr(data, "__arrow_c_stream__") or hasattr(data, "__arrow_c_array__")
