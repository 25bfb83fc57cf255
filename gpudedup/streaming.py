"""Deduplicator: batch after batch, with the answer that one batch of all of them would give."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends import select_backend
from gpudedup.backends.base import I32, U64, SignedBatch, ToSign
from gpudedup.backends.columns import plain_column, stored_values, take, value_type
from gpudedup.engines.local import Budget
from gpudedup.errors import GpudedupError, MemoryLimitError, ParameterError
from gpudedup.io import open_source
from gpudedup.params import make_params
from gpudedup.stages.apply import removed_table
from gpudedup.stages.decide import EMPTY, EXACT, NEAR, Decided
from gpudedup.stages.sign import check_types, columns_needed, scope_codes
from gpudedup.stages.spill import spill_errors


class _ScopeNumbers:
    """Numbers for the values of a scope column that hold over all batches; equal values, equal numbers; null: -1."""

    def __init__(self) -> None:
        self._numbers: dict[bytes | int, int] = {}
        self._type: pa.DataType | None = None

    def codes(self, name: str, column: pa.ChunkedArray, codes: I32) -> I32:
        kind = value_type(column.type)
        if self._type is not None and kind != self._type and not pa.types.is_null(kind):
            raise ParameterError(f'column "{name}" was {self._type} in earlier batches and is {kind} now; cast it')
        if not pa.types.is_null(kind):
            self._type = kind
        values, first = np.unique(codes, return_index=True)
        values, first = values[values >= 0], first[values >= 0]
        numbers = np.full(len(values) + 1, -1, np.int32)  # codes count from 0 without gaps; -1 picks the last
        if len(values):
            stored = stored_values(pa.concat_arrays(column.chunks).take(pa.array(first)))
            numbers[:-1] = [self._numbers.setdefault(value, len(self._numbers)) for value in stored]
        return numbers[codes]


Piece = TypeVar("Piece")


class _Growing(Generic[Piece]):
    """A sequence that grows at its end: pieces are joined when the last two are alike in size, so few are left."""

    def __init__(self, join: Callable[[Piece, Piece], Piece]) -> None:
        self.pieces: list[Piece] = []
        self._sizes: list[int] = []
        self._join = join

    def append(self, piece: Piece, size: int) -> None:
        self.pieces.append(piece)
        self._sizes.append(size)
        while len(self._sizes) > 1 and 2 * self._sizes[-1] >= self._sizes[-2]:
            last, last_size = self.pieces.pop(), self._sizes.pop()
            self.pieces[-1] = self._join(self.pieces[-1], last)
            self._sizes[-1] += last_size


def _join_arrays(left: pa.Array, right: pa.Array) -> pa.Array:
    return pa.concat_arrays([left, right])


def _join_decided(left: Decided, right: Decided) -> Decided:
    return Decided(*(np.concatenate(pair) for pair in zip(_fields(left), _fields(right), strict=True)))


def _fields(decided: Decided) -> tuple[npt.NDArray[Any], ...]:
    return (decided.keep, decided.removed, decided.keeper, decided.reason, decided.similarity)


NOTHING = Decided(
    np.zeros(0, bool), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros(0, np.float64)
)


class Deduplicator:
    """Removes near-copies from a stream: each document is compared with those before it.

    Parameters are those of `gpudedup.deduplicate`; ``keep`` is "first" (the earlier document stays), clustering
    "keepers". Cutting the stream into other batches gives the same removals, and so does one batch of everything.

    Memory grows with the distinct band keys, by at most 400 bytes a document at 18 bands, and by more only where many
    kept documents share keys (as with ``across``); shingle sets of kept
    documents take half of ``memory``, then unlinked files in ``tmp``. Threads that share one take turns.
    """

    def __init__(self, **options: Any) -> None:
        self._params = params = make_params(options)
        if params.keep != "first":
            raise ParameterError(f'a stream keeps the first document; keep="{params.keep}" needs all of them at once')
        if params.clustering != "keepers":
            raise ParameterError(f'clustering="{params.clustering}" needs all documents at once; use deduplicate()')
        if params.against:
            raise ParameterError("a stream has no earlier runs; use deduplicate(against=...) or run(against=...)")
        if params.max_removed is not None or params.guard_column is not None:
            raise ParameterError("max_removed and guard_column need all documents at once; use deduplicate() or run()")
        self._backend = select_backend(params)
        budget = Budget.of(params)
        self._memory_bytes, self._tmp = budget.memory_bytes, budget.tmp
        self._stream = self._backend.stream(memory_bytes=budget.set_bytes, directory=budget.tmp)
        self._scopes: dict[str, _ScopeNumbers] = {}
        self._documents = 0
        self._removed = _Growing[Decided](_join_decided)  # ``keep`` stays empty in it
        self._ids = _Growing[pa.Array](_join_arrays)
        self._id_type: pa.DataType | None = None
        self._broken = False
        self._turn = threading.Lock()

    @property
    def documents(self) -> int:
        """Rows seen so far."""
        return self._documents

    @property
    def removed(self) -> pa.Table:
        """All removals so far, in input order: columns as in `Result.removed`; rows count from 0 over all batches."""
        with self._turn:
            decided = reduce(_join_decided, self._removed.pieces, NOTHING)
            ids = pa.chunked_array(self._ids.pieces, self._id_type or pa.null())
            first = np.array([0, self._documents], np.int64)
        return removed_table([""], first, decided, partial(take, ids) if self._params.id_column is not None else None)

    def filter(self, batch: Any) -> pa.BooleanArray:
        """True for the rows of ``batch`` that stay. ``batch``: Arrow data or a list of str, as for `deduplicate`.

        Raises InputError for unusable input, before anything is remembered of it.
        """
        with self._turn:
            return self._filter_all(batch)

    def _filter_all(self, batch: Any) -> pa.BooleanArray:
        if self._broken:
            raise GpudedupError("an earlier batch was interrupted half-way; make a new Deduplicator and start over")
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
            if params.id_column is not None:
                self._check_id_type(params.id_column, source.column_type(params.id_column))
            parts = [part.columns for shard in source.shards for part in shard.read(names)]
            signed = [self._sign(part) for part in parts]  # all of them, before anything is remembered
            masks = [self._decide(*each) for each in zip(parts, signed, strict=True)]
        finally:
            source.close()
        return pa.concat_arrays(masks) if masks else pa.array([], pa.bool_())

    def _sign(self, batch: pa.RecordBatch) -> tuple[SignedBatch, I32 | None, U64 | None, I32 | None]:
        params = self._params
        text = ToSign(batch.column(params.text_column), lanes=True, shingles=params.verify == "exact")
        (signed,) = self._backend.sign([text])
        within, keys = self._scope(params.within, batch)
        across, _ = self._scope(params.across, batch)
        return signed, within, keys, across

    def _decide(
        self, batch: pa.RecordBatch, parts: tuple[SignedBatch, I32 | None, U64 | None, I32 | None]
    ) -> pa.BooleanArray:
        params = self._params
        signed, within, keys, across = parts
        shingles = signed.shingles
        assert signed.lanes is not None
        self._broken = True
        try:
            with spill_errors("shingle sets"):
                keeper, part, whole, exact = self._stream.decide(
                    lanes=signed.lanes,
                    content=signed.content,
                    unit_count=signed.unit_count,
                    scope_keys=keys,
                    scopes=within,
                    across=across,
                    hashes=shingles.hashes if shingles else None,
                    offsets=shingles.offsets if shingles else None,
                    num_perm=params.num_perm,
                )
        except ValueError as error:  # numbers to name documents by are used up
            raise MemoryLimitError(str(error)) from error
        self._broken = False
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
            self._ids.append(batch.column(params.id_column), batch.num_rows)
        if not keep.all():
            rows = np.flatnonzero(~keep)
            decided = Decided(keep[:0], rows + first, keeper[rows], reason[rows], similarity[rows])
            self._removed.append(decided, len(rows))
        return pa.array(keep)

    def _check_id_type(self, name: str, kind: pa.DataType) -> None:
        if self._id_type is not None and kind != self._id_type:
            raise ParameterError(f'column "{name}" was {self._id_type} in earlier batches and is {kind} now; cast it')
        self._id_type = kind

    def _scope(self, name: str | None, batch: pa.RecordBatch) -> tuple[I32 | None, U64 | None]:
        if name is None:
            return None, None
        column = plain_column(pa.chunked_array([batch.column(name)]))
        codes, keys = scope_codes(column, self._backend)
        return self._scopes.setdefault(name, _ScopeNumbers()).codes(name, column, codes), keys
