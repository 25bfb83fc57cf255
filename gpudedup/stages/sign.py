"""sign: text -> one signature, content hash and unit count per document."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup.backends.base import I32, I64, U32, U64, Backend, LaneGroups, Shingles, SignedBatch, ToSign
from gpudedup.backends.columns import held_column, is_text, is_tokens, plain_column, value_type
from gpudedup.errors import InputError, ParameterError
from gpudedup.io import abreast
from gpudedup.io.batches import TARGET_BYTES, Item, value_bytes
from gpudedup.io.source import Batch, Source
from gpudedup.machine import default_memory_bytes, release_memory
from gpudedup.params import Params, is_memory_scarce, parse_keep, parse_memory, parse_shingle

if TYPE_CHECKING:
    from gpudedup.stages.earlier import Earlier

MAX_DOCUMENTS = 2**32 - 2
"""One process names documents by 32 bits; the last two values mean something else."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, documents so far, bytes of text so far)."""


SCOPE_NULL = 1
"""The scope key of null (docs/spec.md, section 5)."""

MAX_CACHED_BYTES = 64 << 20
"""A batch with more text is one huge document: holding its hashes too would double what it needs."""


class ShingleCache:
    """Shingle hashes of the first batches, while they fit ``budget_bytes``: they spare a second read of the text."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        self._batches: list[tuple[int, int, Shingles]] = []  # (shard, its first row, hashes)

    def wants(self, text: pa.Array) -> bool:
        """Whether the hashes of this batch would be held, as far as can be told before they are made."""
        return self._budget > 0 and text.nbytes <= MAX_CACHED_BYTES

    def add(self, shard: int, row: int, shingles: Shingles) -> None:
        """Hold the hashes of consecutive rows of a shard, from ``row`` on, if there is room."""
        size = shingles.bytes_in_memory
        if size > self._budget:
            self._budget = 0
            return
        self._budget -= size
        self._batches.append((shard, row, shingles))

    def drain(self, shard_first: I64) -> Iterator[tuple[int, Shingles]]:
        """(input position of the first document, hashes) of each batch, which is forgotten."""
        while self._batches:
            shard, row, shingles = self._batches.pop(0)
            yield int(shard_first[shard]) + row, shingles


class Signatures(Protocol):
    """What match and verify read of the signatures of all documents."""

    def keys(self, band: int, scope_keys: U64 | None) -> U64:
        """uint64[documents]: the keys of one band; scope_keys uint64[documents] with ``within``."""

    @property
    def lanes(self) -> Iterable[LaneGroups]:
        """By batch, where they are held: verify="signature" compares them."""

    def lane_numbers(self, documents: U32) -> U32:
        """Where in ``lanes`` documents are. Raises InputError for more than MAX_DOCUMENTS there."""

    def forget_keys(self) -> None:
        """Called when all bands are sorted."""


@dataclass
class HeldSignatures:
    """In memory: keys of all bands, made with the scope keys, and lanes if they will be compared."""

    band_keys: list[U64] = field(default_factory=list)
    """uint64[bands, n] per batch."""
    lanes: list[LaneGroups] = field(default_factory=list)

    def keys(self, band: int, scope_keys: U64 | None) -> U64:
        parts: list[U64] = [batch[band] for batch in self.band_keys]
        return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, np.uint64), *parts])

    def lane_numbers(self, documents: U32) -> U32:
        return documents

    def forget_keys(self) -> None:
        """The buckets hold what they said."""
        self.band_keys.clear()


@dataclass
class Signed:
    """What is known of every document, by input position (from 0 over all shards)."""

    shard_first: I64
    """int64[shards + 1]: the input position of each shard's first row."""
    signatures: Signatures
    content: U64
    """uint64[documents, 2]."""
    unit_count: U64
    """uint64[documents]; 0: empty."""
    damaged: npt.NDArray[np.bool_]
    """bool[documents]: rows that could not be read (on_error="skip"); no documents."""
    columns: dict[str, pa.ChunkedArray]
    """The id, within, across, keep and guard columns."""
    text_bytes: int = 0
    cache: ShingleCache = field(default_factory=lambda: ShingleCache(0))
    earlier: Earlier | None = None
    """Documents of earlier runs; their numbers begin at ``rows``, in signatures, content and unit_count too."""

    @property
    def rows(self) -> int:
        return int(self.shard_first[-1])

    def scope_column(self, name: str) -> pa.ChunkedArray:
        """The values of a carried column by document."""
        own = self.columns[name]
        return own if self.earlier is None else self.earlier.column(name, own)


@dataclass(frozen=True)
class Piece:
    """A signed batch of one shard."""

    shard: int
    batch: Batch
    signed: SignedBatch
    text_bytes: int

    @property
    def damaged(self) -> npt.NDArray[np.bool_]:
        """bool[rows]: those that could not be read."""
        bad = np.zeros(len(self.batch.rows), bool)
        bad[np.searchsorted(self.batch.rows, self.batch.damaged)] = True
        return bad


def columns_needed(params: Params) -> list[str]:
    """The columns that a run reads, text first, each once."""
    return list(dict.fromkeys([params.text_column, *carried_columns(params)]))


def check_types(source: Source, params: Params) -> None:
    """Raise InputError or ParameterError if a column is missing or of a type that it cannot be used with."""
    kind = source.column_type(params.text_column)
    value = value_type(kind)
    tokens = parse_shingle(params.shingle).unit == "tokens"
    if tokens and not is_tokens(value):
        raise InputError(f'column "{params.text_column}" is {kind}; shingle="{params.shingle}" needs lists of integers')
    if not tokens and not (is_text(value) or pa.types.is_null(value)):
        raise InputError(
            f'column "{params.text_column}" is {kind}; text must be a string or binary column'
            + ('; for token ids use shingle="tokens:5"' if is_tokens(value) else "")
        )
    for role in ("within", "across", "guard_column"):
        name = getattr(params, role)
        if name is not None:
            check_scope_type(role, name, source.column_type(name))
    if params.id_column is not None:
        source.column_type(params.id_column)
    rule, column, _ = parse_keep(params.keep)
    if column is not None:
        check_keep_type(rule, column, source.column_type(column))


def check_scope_type(role: str, name: str, kind: pa.DataType) -> None:
    value = value_type(kind)
    fixed = pa.types.is_integer(value) or pa.types.is_boolean(value) or pa.types.is_decimal(value)
    time = pa.types.is_temporal(value) and not pa.types.is_interval(value)
    if not (is_text(value) or fixed or time or pa.types.is_null(value)):
        raise ParameterError(
            f'{role}="{name}" is {kind}; it must be a string, binary, integer, decimal, boolean or time column, '
            "whose values are equal or not"
        )


def check_keep_type(rule: str, name: str, kind: pa.DataType) -> None:
    value = value_type(kind)
    text = is_text(value)
    number = pa.types.is_integer(value) or pa.types.is_floating(value) or pa.types.is_decimal(value)
    other = pa.types.is_boolean(value) or (pa.types.is_temporal(value) and not pa.types.is_interval(value))
    if rule == "sources" and not (text or pa.types.is_integer(value) or pa.types.is_null(value)):
        raise ParameterError(f'keep="sources:{name}=..." needs a string or integer column, but "{name}" is {kind}')
    if not (text or number or other or pa.types.is_null(value)):
        raise ParameterError(f'keep="{rule}:{name}" cannot order values of type {kind}')


def sign(source: Source, params: Params, backend: Backend, *, cache_bytes: int, progress: Progress) -> Signed:
    """Read every document once. Text is held a batch at a time; what stays is about 8 * bands + 24 bytes a document,
    with verify="signature" 4 * num_perm more.

    Raises InputError for unreadable input, missing or ill-typed columns, and more than 4,294,967,294 documents.
    """
    check_types(source, params)
    cache = ShingleCache(cache_bytes if params.verify == "exact" else 0)
    lanes = params.verify == "signature"
    whole = whole_shards(source)
    pieces = sign_pieces(source, whole, params, backend, cache=cache, band_keys=True, lanes=lanes)
    return gather(source, pieces, params, cache=cache, hold_lanes=lanes, progress=progress)


def whole_shards(source: Source) -> list[tuple[int, I64 | None]]:
    """What ``sign_pieces`` reads for a whole corpus."""
    return [(number, None) for number in range(len(source.shards))]


def gather(
    source: Source,
    pieces: Iterable[Piece],
    params: Params,
    *,
    cache: ShingleCache,
    hold_lanes: bool,
    progress: Progress,
) -> Signed:
    """What the pieces of all shards, in input order, say of every document. Raises InputError for too many."""
    carried = carried_columns(params)
    held = HeldSignatures()
    content, unit_count, damaged = [], [], []
    columns: dict[str, list[pa.Array]] = {name: [] for name in carried}
    shard_rows = np.zeros(len(source.shards), np.int64)
    text_bytes = 0
    for piece in pieces:
        signed = piece.signed
        if signed.band_keys is not None:
            held.band_keys.append(signed.band_keys)
        if hold_lanes:
            assert signed.lanes is not None
            held.lanes.append([signed.lanes])
        content.append(signed.content)
        unit_count.append(signed.unit_count)
        damaged.append(piece.damaged)
        for name in carried:
            columns[name].append(piece.batch.columns.column(name))
        shard_rows[piece.shard] += len(piece.batch.rows)
        text_bytes += piece.text_bytes
        progress("sign", check_count(int(shard_rows.sum())), text_bytes)
    return Signed(
        shard_first=np.concatenate(([0], np.cumsum(shard_rows))).astype(np.int64),
        signatures=held,
        content=np.concatenate(content) if content else np.zeros((0, 2), np.uint64),
        unit_count=np.concatenate(unit_count) if unit_count else np.zeros(0, np.uint64),
        damaged=np.concatenate(damaged) if damaged else np.zeros(0, bool),
        columns={name: held_column(chunks, source.column_type(name)) for name, chunks in columns.items()},
        text_bytes=text_bytes,
        cache=cache,
    )


def read_ahead(parts: Iterator[Iterator[Item]], params: Params, workers: int) -> Iterator[Item]:
    """The batches of all parts in order, read by threads; each has two in memory, all together an eighth of it at most.
    Where memory is scarce it is one thread, and what it has freed goes back to the system after each batch."""
    if is_memory_scarce(params):
        return abreast(parts, 1, 1, after=release_memory)
    return abreast(parts, _reader_threads(params.memory, workers), 1)


@functools.cache  # a second read asks for every shard, and what is free is read from the system
def _reader_threads(memory: int | str | None, workers: int) -> int:
    memory_bytes = default_memory_bytes() if memory is None else parse_memory(memory)
    # A core decodes 1 GB of text a second, and signs 0.6: of three workers' time one is the readers'.
    return max(1, min(workers, 2 + workers // 4, memory_bytes // (8 * 2 * TARGET_BYTES)))


def sign_pieces(
    source: Source,
    parts: Iterable[tuple[int, I64 | None]],
    params: Params,
    backend: Backend,
    *,
    cache: ShingleCache,
    band_keys: bool,
    lanes: bool,
) -> Iterator[Piece]:
    """Sign (shard, its rows or None for all) one after another, in batches of bounded bytes; the device is fed ahead.

    Shingle hashes go to ``cache`` as long as it takes them. Raises InputError.
    """
    names = columns_needed(params)
    drawn: deque[tuple[int, Batch]] = deque()  # batches that the backend has drawn and not given yet

    def of_shard(shard: int, batches: Iterator[Batch]) -> Iterator[tuple[int, Batch]]:
        for batch in batches:
            yield shard, batch

    def to_sign() -> Iterator[ToSign]:
        batches = (of_shard(shard, part) for shard, rows in parts for part in source.shards[shard].parts(names, rows))
        for shard, batch in read_ahead(batches, params, backend.workers):
            text = batch.columns.column(0)
            drawn.append((shard, batch))
            scope_keys = None
            if band_keys and params.within is not None:
                within = batch.columns.column(names.index(params.within))
                _, scope_keys = scope_codes(pa.chunked_array([within]), backend)
            yield ToSign(text, scope_keys, band_keys=band_keys, lanes=lanes, shingles=cache.wants(text))

    for signed in backend.sign(to_sign()):
        shard, batch = drawn.popleft()
        rows = batch.rows
        if signed.shingles is not None and len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            cache.add(shard, int(rows[0]), signed.shingles)
        yield Piece(shard, batch, signed, int(value_bytes(batch.columns.column(0)).sum()))


def check_count(documents: int) -> int:
    """The number itself. Raises InputError if one process cannot name as many documents."""
    if documents > MAX_DOCUMENTS:
        raise InputError(f"the input has more than {MAX_DOCUMENTS} documents; split it over several runs")
    return documents


def carried_columns(params: Params) -> list[str]:
    """The columns whose values are held, each once, by name: id, within, across, keep and guard."""
    keep = parse_keep(params.keep).column
    named = [params.id_column, params.within, params.across, keep, params.guard_column]
    return sorted({name for name in named if name is not None})


def scope_codes(column: pa.ChunkedArray, backend: Backend) -> tuple[I32, U64]:
    """(code, key) per document: equal codes for equal values, -1 for null; the 64-bit scope keys of the values."""
    column = plain_column(column)
    if pa.types.is_null(column.type):
        return np.full(len(column), -1, np.int32), np.full(len(column), SCOPE_NULL, np.uint64)
    chunks = pc.dictionary_encode(column).unify_dictionaries().chunks
    encoded = pa.concat_arrays(chunks) if chunks else pa.array([], column.type).dictionary_encode()
    codes = pc.fill_null(encoded.indices.cast(pa.int32()), -1).to_numpy(zero_copy_only=False)
    # Code -1 picks the last key: that of null.
    keys = np.concatenate((backend.hash_values(encoded.dictionary), np.array([SCOPE_NULL], np.uint64)))
    return np.ascontiguousarray(codes, np.int32), np.ascontiguousarray(keys[codes], np.uint64)
