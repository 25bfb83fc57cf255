"""Deduplicator: batch after batch, with the answer that one batch of all of them would give."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from importlib.metadata import version
from typing import Any, Generic, Self, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup import _cpu
from gpudedup.backends import select_backend
from gpudedup.backends.base import I32, U64, SignedBatch, ToSign
from gpudedup.backends.columns import is_text, is_view, plain, plain_column, plain_type, stored_values
from gpudedup.engines.local import Budget
from gpudedup.errors import GpudedupError, MemoryLimitError, ParameterError
from gpudedup.io import open_source
from gpudedup.io.batches import MAX_ROWS, batch_bytes
from gpudedup.io.source import Source
from gpudedup.params import Params, make_params
from gpudedup.stages.apply import Removals
from gpudedup.stages.decide import EMPTY, EXACT, NEAR, REASONS, Decided
from gpudedup.stages.sign import check_types, columns_needed, scope_codes
from gpudedup.stages.spill import spill_errors
from gpudedup.store.stream_state import SavedStream, Tables, columns, write_state


class _ScopeNumbers:
    """Numbers for the values of a scope column that hold over all batches; equal values, equal numbers; null: -1.

    They count from 0 by first appearance, however the input is cut into batches.
    """

    def __init__(self, values: Iterable[bytes | int] = ()) -> None:
        self._numbers = {value: number for number, value in enumerate(values)}

    @property
    def values(self) -> list[bytes | int]:
        """The stored value of each number."""
        return list(self._numbers)

    def of(self, column: pa.Array, codes: I32) -> I32:
        """The numbers of a column, of which equal values have equal ``codes`` by first appearance, null -1."""
        values, first = np.unique(codes, return_index=True)
        values, first = values[values >= 0], first[values >= 0]
        numbers = np.full(len(values) + 1, -1, np.int32)  # codes count from 0 without gaps; -1 picks the last
        if len(values):
            stored = stored_values(column.take(pa.array(first)))
            numbers[:-1] = [self._numbers.setdefault(value, len(self._numbers)) for value in stored]
        return numbers[codes]


Piece = TypeVar("Piece")


MAX_PIECE_BYTES = 1 << 30
"""Pieces of more are not joined: a text column of 2 GB has no room for its offsets."""


class _Growing(Generic[Piece]):
    """A sequence that grows at its end: pieces are joined when the last two are alike in size, so few are left."""

    def __init__(self, join: Callable[[Piece, Piece], Piece]) -> None:
        self.pieces: list[Piece] = []
        self._sizes: list[int] = []
        self._join = join

    def append(self, piece: Piece, size_bytes: int) -> None:
        self.pieces.append(piece)
        self._sizes.append(size_bytes)
        while len(self._sizes) > 1 and self._sizes[-2] <= 2 * self._sizes[-1]:
            if sum(self._sizes[-2:]) > MAX_PIECE_BYTES:
                break
            last, last_size = self.pieces.pop(), self._sizes.pop()
            self.pieces[-1] = self._join(self.pieces[-1], last)
            self._sizes[-1] += last_size


def _join_arrays(left: pa.Array, right: pa.Array) -> pa.Array:
    return pa.concat_arrays([left, right])


def _without_views(ids: pa.Array) -> pa.Array:
    """As they are saved: of views, Arrow would write all text that any row of the whole piece has."""
    return plain(ids) if is_view(ids.type) else ids


def _join_decided(left: Decided, right: Decided) -> Decided:
    return Decided(*(np.concatenate(pair) for pair in zip(_fields(left), _fields(right), strict=True)))


def _fields(decided: Decided) -> tuple[npt.NDArray[Any], ...]:
    return (decided.keep, decided.removed, decided.keeper, decided.reason, decided.similarity)


NOTHING = Decided(
    np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.float64)
)


REMOVALS = columns(row=pa.int64(), keeper=pa.int64(), reason=pa.uint8(), similarity=pa.float64())
"""How removals are saved: input position, that of the keeper or -1, index into REASONS, NaN if not measured."""

OF_MACHINE = ("device", "workers", "memory", "tmp")
"""Parameters that are not saved: they change no result."""


def _even_batches(pieces: Iterable[list[Any]], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Columns in batches of one size, in whichever pieces they come."""
    waiting: list[pa.RecordBatch] = []
    count = 0
    for piece in pieces:
        batch = pa.record_batch(piece, schema)
        while batch.num_rows:
            part = batch.slice(0, MAX_ROWS - count)
            batch = batch.slice(part.num_rows)
            waiting.append(part)
            count += part.num_rows
            if count == MAX_ROWS:
                yield pa.concat_batches(waiting)
                waiting, count = [], 0
    if waiting:
        yield pa.concat_batches(waiting)


class Deduplicator:
    """Removes near-copies from a stream: each document is compared with those before it.

    Parameters are those of `gpudedup.deduplicate`; ``keep`` is "first" (the earlier document stays), clustering
    "keepers". Cutting the stream into other batches gives the same removals, and so does one batch of everything.

    ``save`` writes all that is remembered to a directory, and ``Deduplicator.open`` goes on from there as if nothing
    had happened, on any machine.

    Memory grows with the distinct band keys, by at most 400 bytes a document at 18 bands, and by more only where many
    kept documents share keys (as with ``across``); shingle sets of kept
    documents take half of ``memory``, then unlinked files in ``tmp``. Threads that share one take turns.
    """

    def __init__(self, **options: Any) -> None:
        self._start(make_params(options))

    def _start(self, params: Params) -> None:
        if params.keep != "first":
            raise ParameterError(f'a stream keeps the first document; keep="{params.keep}" needs all of them at once')
        if params.clustering != "keepers":
            raise ParameterError(f'clustering="{params.clustering}" needs all documents at once; use deduplicate()')
        if params.against:
            raise ParameterError("a stream has no earlier runs; use deduplicate(against=...) or run(against=...)")
        if params.max_removed is not None or params.guard_column is not None:
            raise ParameterError("max_removed and guard_column need all documents at once; use deduplicate() or run()")
        self._params = params
        self._backend = select_backend(params)
        budget = Budget.of(params)
        self._memory_bytes, self._tmp = budget.memory_bytes, budget.tmp
        stream = self._backend.stream(memory_bytes=budget.set_bytes, directory=budget.tmp)
        assert isinstance(stream, _cpu.Stream)  # with every backend
        self._stream = stream
        roles = {"ids": params.id_column, "within": params.within, "across": params.across}
        self._roles = {role: name for role, name in roles.items() if name is not None}
        self._types: dict[str, pa.DataType] = {}  # by role, as far as they were seen
        self._scopes = {role: _ScopeNumbers() for role in self._roles if role != "ids"}
        self._documents = 0
        self._removed = _Growing[Decided](_join_decided)  # ``keep`` stays empty in it
        self._ids = _Growing[pa.Array](_join_arrays)
        self._broken = False
        self._turn = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        workers: int | None = None,
        memory: int | str | None = None,
        tmp: str | os.PathLike[str] | None = None,
    ) -> Self:
        """The saved stream in a directory, with the parameters that it was made with; those given here are anew.

        Raises ArtefactError for a directory that holds none, is damaged, or was written by a version of gpudedup with
        another format or specification; LockedError while it is being saved; OutputError where ``tmp`` has no room.
        """
        here = {"device": device, "workers": workers, "memory": memory, "tmp": tmp}
        make_params(here)
        with SavedStream.opened(path) as saved:
            dedup = cls.__new__(cls)
            try:
                dedup._start(make_params({**saved.manifest.parameters, **here}))
            except ParameterError as error:
                raise saved.damaged("", str(error)) from error
            dedup._restore(saved)
        return dedup

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is remembered to a directory that is new, empty, or holds a saved stream, which is replaced.

        After a crash the directory holds the old state or the new one. Equal streams are saved as equal bytes. Raises
        OutputError, and LockedError while another process has the directory.
        """
        with self._turn:
            self._require_whole()
            banding = self._params.banding
            parameters = msgspec.structs.asdict(self._params) | {"bands": banding.bands, "rows": banding.rows}
            write_state(
                path,
                self._stream,
                self._tables(),
                version=version("gpudedup"),
                parameters={name: value for name, value in parameters.items() if name not in OF_MACHINE},
            )

    @property
    def documents(self) -> int:
        """Rows seen so far."""
        return self._documents

    @property
    def removed(self) -> pa.Table:
        """All removals so far, in input order: columns as in `Result.removed`; rows count from 0 over all batches."""
        with self._turn:
            decided = reduce(_join_decided, self._removed.pieces, NOTHING)
            ids = pa.chunked_array(self._ids.pieces, self._types.get("ids", pa.null()))
            first = np.array([0, self._documents], np.int64)
        return Removals([""], first, decided, ids if "ids" in self._roles else None).whole()

    def filter(self, batch: Any) -> pa.BooleanArray:
        """True for the rows of ``batch`` that stay. ``batch``: Arrow data or a list of str, as for `deduplicate`.

        Raises InputError for unusable input, before anything is remembered of it.
        """
        with self._turn:
            return self._filter_all(batch)

    def _require_whole(self) -> None:
        if self._broken:
            raise GpudedupError("an earlier batch was interrupted half-way; make a new Deduplicator and start over")

    def _filter_all(self, batch: Any) -> pa.BooleanArray:
        self._require_whole()
        params = self._params
        names = columns_needed(params)
        source = open_source(
            batch,
            text_column=params.text_column,
            columns=names,
            memory_bytes=self._memory_bytes,
            tmp=self._tmp,
            on_error=params.on_error,
        )
        try:
            check_types(source, params)
            types = self._types_with(source)
            parts = [part.columns for shard in source.shards for part in shard.read(names)]
            signed = [self._sign(part) for part in parts]  # all of them, before anything is remembered
            self._broken = True
            self._types = types
            masks = [self._decide(*each) for each in zip(parts, signed, strict=True)]
            self._broken = False
        finally:
            source.close()
        return pa.concat_arrays(masks) if masks else pa.array([], pa.bool_())

    def _types_with(self, source: Source) -> dict[str, pa.DataType]:
        """The types of id, within and across columns after a batch. Raises ParameterError where one is another now."""
        types = dict(self._types)
        for role, name in self._roles.items():
            kind = source.column_type(name)
            if role != "ids":
                kind = plain_type(kind)
                if pa.types.is_null(kind):
                    continue
            known = types.setdefault(role, kind)
            if kind != known:
                raise ParameterError(f'column "{name}" was {known} in earlier batches and is {kind} now; cast it')
        return types

    def _sign(self, batch: pa.RecordBatch) -> tuple[SignedBatch, dict[str, tuple[I32, U64]]]:
        """Signatures, and codes and keys of the scopes."""
        params = self._params
        text = ToSign(batch.column(params.text_column), lanes=True, shingles=params.verify == "exact")
        (signed,) = self._backend.sign([text])
        return signed, {role: scope_codes(self._scope_column(role, batch), self._backend) for role in self._scopes}

    def _scope_column(self, role: str, batch: pa.RecordBatch) -> pa.ChunkedArray:
        return plain_column(pa.chunked_array([batch.column(self._roles[role])]))

    def _decide(self, batch: pa.RecordBatch, parts: tuple[SignedBatch, dict[str, tuple[I32, U64]]]) -> pa.BooleanArray:
        params = self._params
        signed, scopes = parts
        shingles = signed.shingles
        assert signed.lanes is not None
        numbers = {
            role: self._scopes[role].of(self._scope_column(role, batch).chunk(0), codes)
            for role, (codes, _) in scopes.items()
        }
        try:
            with spill_errors("shingle sets"):
                keeper, part, whole, exact = self._stream.decide(
                    lanes=signed.lanes,
                    content=signed.content,
                    unit_count=signed.unit_count,
                    scope_keys=scopes["within"][1] if "within" in scopes else None,
                    scopes=numbers.get("within"),
                    across=numbers.get("across"),
                    hashes=shingles.hashes if shingles else None,
                    offsets=shingles.offsets if shingles else None,
                    num_perm=params.num_perm,
                )
        except ValueError as error:  # numbers to name documents by are used up
            raise MemoryLimitError(str(error)) from error
        first = self._documents
        self._documents += batch.num_rows
        with np.errstate(invalid="ignore"):
            similarity = np.where(whole > 0, part / whole.astype(np.float64), np.nan)
        reason = np.where(exact == 1, EXACT, NEAR).astype(np.uint8)
        keep = keeper < 0
        if params.drop_empty:
            empty = signed.unit_count == 0
            keep &= ~empty
            reason[empty] = EMPTY
        if params.id_column is not None and batch.num_rows:
            self._append_ids(batch.column(params.id_column))
        if not keep.all():
            rows = np.flatnonzero(~keep)
            self._append_removals(rows + first, keeper[rows], reason[rows], similarity[rows])
        return pa.array(keep)

    def _append_ids(self, ids: pa.Array) -> None:
        self._ids.append(ids, batch_bytes(pa.record_batch([ids], ["id"])))

    def _append_removals(self, *fields: npt.NDArray[Any]) -> None:
        self._removed.append(Decided(NOTHING.keep, *fields), sum(field.nbytes for field in fields))

    def _tables(self) -> Tables:
        """What is saved beside the stream itself."""
        removals = ([*_fields(decided)[1:]] for decided in self._removed.pieces)
        tables = {
            "types": (pa.schema(list(self._types.items())), iter(())),
            "removals": (REMOVALS, _even_batches(removals, REMOVALS)),
        }
        for role, numbers in self._scopes.items():
            schema = self._value_schema(role)
            tables[role] = schema, _even_batches([[pa.array(numbers.values, schema.types[0])]], schema)
        if "ids" in self._roles:
            schema = self._value_schema("ids")
            cuts = ((piece, first) for piece in self._ids.pieces for first in range(0, len(piece), MAX_ROWS))
            ids = ([_without_views(piece.slice(first, MAX_ROWS))] for piece, first in cuts)
            tables["ids"] = schema, _even_batches(ids, schema)
        return tables

    def _value_schema(self, role: str) -> pa.Schema:
        """Of the table of ids, or of the stored values of a scope."""
        kind = self._types.get(role, pa.null())
        if role == "ids":
            kind = plain_type(kind) if is_view(kind) else kind
        else:
            kind = pa.large_binary() if is_text(kind) or pa.types.is_decimal(kind) else pa.uint64()
        return pa.schema([("value", kind)])

    def _restore(self, saved: SavedStream) -> None:
        """Remember what a saved stream does. Raises ArtefactError."""
        with spill_errors("shingle sets"):
            saved.load(self._stream)
        self._documents = saved.manifest.documents
        types = saved.schema("types")
        if saved.rows("types") or not set(types.names) <= set(self._roles) or len(set(types.names)) < len(types):
            raise saved.damaged("types", f"it has {saved.rows('types')} rows and the columns {types.names}")
        self._types = dict(zip(types.names, types.types, strict=True))
        for role in self._scopes:
            values = [value for batch in saved.read(role, self._value_schema(role)) for value in batch[0].to_pylist()]
            self._scopes[role] = _ScopeNumbers(values)
            if len(self._scopes[role].values) < len(values) or None in values:
                raise saved.damaged(role, "a value that is null or there twice")
        if "ids" in self._roles:
            if saved.rows("ids") != self._documents:
                raise saved.damaged("ids", f"it has {saved.rows('ids')} rows for {self._documents} documents")
            kind = self._types.get("ids", pa.null())
            for batch in saved.read("ids", self._value_schema("ids")):
                self._append_ids(batch.column(0).cast(kind) if is_view(kind) else batch.column(0))
        last = -1
        for batch in saved.read("removals", REMOVALS):
            row, keeper, reason, similarity = (column.to_numpy() for column in batch.columns)
            ascending = (row > np.concatenate(([last], row[:-1]))) & (row < self._documents)
            named = (keeper >= -1) & (keeper < row) & ((keeper < 0) == (reason == EMPTY)) & (reason < len(REASONS))
            if not (ascending & named & ~((similarity < 0) | (similarity > 1))).all():
                raise saved.damaged("removals", "a row, keeper, reason or similarity that no removal has")
            last = int(row[-1])
            self._append_removals(row, keeper, reason, similarity)
