"""Files with a schema of their own as an ordered corpus: what Parquet and Arrow IPC share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import pyarrow as pa
import pyarrow.types as pt

from gpudedup.backends.columns import is_text, is_tokens
from gpudedup.errors import InputError
from gpudedup.io.skips import SkipLog
from gpudedup.io.source import FileShard, Skipped


class TableShard(FileShard, Protocol):
    """A file with a schema."""

    schema: pa.Schema


class TableSource:
    """Files whose columns have one type each, the same in all of them. ``shards`` and ``_skips`` are set by
    subclasses.
    """

    shards: Sequence[TableShard]
    _skips: SkipLog

    def _check_columns(self, text_column: str, columns: Sequence[str]) -> None:
        """Raise InputError for a column that is missing, nested, named twice, or of different types, and for text of no
        string type.
        """
        for column in dict.fromkeys((text_column, *columns)):
            self.column_type(column)
        for shard in self.shards:
            kind = shard.schema.field(text_column).type
            if not (is_text(kind) or is_tokens(kind)):
                raise InputError(
                    f"{shard.name}: text column {text_column!r} has type {kind}; it must be a string or binary type"
                )

    @property
    def skipped(self) -> list[Skipped]:
        """What was left out so far under on_error="skip"."""
        return self._skips.entries

    def column_type(self, column: str) -> pa.DataType:
        """The column's type, the same in all files. Raises InputError otherwise; null if there is no file left."""
        types = [(shard, column_of(shard.schema, column, shard.name)) for shard in self.shards]
        for shard, kind in types:
            if kind != types[0][1]:
                raise InputError(
                    f"column {column!r} has type {types[0][1]} in {types[0][0].name} but {kind} in {shard.name}; "
                    "convert one of them"
                )
        return types[0][1] if types else pa.null()

    def kept_schema(self) -> pa.Schema:
        """The files' common schema (of the first file, where only metadata differs). Raises InputError if they
        differ.
        """
        if not self.shards:
            return pa.schema([])
        first = self.shards[0]
        for shard in self.shards:
            if shard.schema != first.schema:
                differing = next((a, b) for a, b in _pairs(first.schema, shard.schema) if a != b)
                raise InputError(
                    f"{first.name} and {shard.name} have different schemas ({differing[0]} and {differing[1]}), so "
                    "their rows do not fit in one table; save() and run() write each file with its own schema"
                )
        return first.schema

    def close(self) -> None:
        """Nothing is held open between reads."""


def _pairs(left: pa.Schema, right: pa.Schema) -> Iterator[tuple[str, str]]:
    for number in range(max(len(left), len(right))):
        one, other = (str(s.field(number)) if number < len(s) else "no column" for s in (left, right))
        yield one, other


def column_of(schema: pa.Schema, column: str, place: str) -> pa.DataType:
    """The type of a top-level column that is not nested. Raises InputError that says what exists."""
    found = schema.get_all_field_indices(column)
    if len(found) == 1:
        kind = schema.field(found[0]).type
        if pt.is_nested(kind) and not is_tokens(kind):
            raise InputError(
                f"{place}: column {column!r} is nested ({kind}); copy the values you need to a column of their own"
            )
        return kind
    if found:
        raise InputError(f"{place}: {len(found)} columns are named {column!r}; rename all but one")
    hint = ""
    parent = column.partition(".")[0]
    if "." in column and parent in schema.names:
        hint = f" (inside column {parent!r} it would be nested, which is not supported; copy it to the top level)"
    columns = ", ".join(schema.names) or "none"
    raise InputError(f"{place}: there is no column {column!r}{hint}; it has: {columns}")
