"""match: signatures -> rank, groups of equal content, and buckets of candidates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup.backends.base import I32, I64, U32, U64, Backend, Band, Buckets
from gpudedup.backends.columns import plain_column
from gpudedup.params import Params, parse_keep
from gpudedup.stages.sign import Signed, scope_codes
from gpudedup.stages.spill import spill_errors


@dataclass
class Grouped:
    """Who may be compared. A *representative* is the best-ranked document of its content (and scope).

    A document is its input position; those of earlier runs follow, from ``Signed.rows`` on, and rank first.
    """

    order: U32
    """All documents with units, by rank."""
    leader: U32
    """[len(order)]: the place in ``order`` of each one's representative."""
    representatives: U32
    """By rank: what the buckets hold."""
    fixed: int
    """As many of them, the first, are of earlier runs: they stay and are not compared with each other."""
    equal_content: U32 | None
    """With ``across``: the place in ``representatives`` of the best-ranked of the same content; else None."""
    scope_keys: U64 | None
    """By document, with ``within``."""
    within: I32 | None
    """Numbers for the values of ``within`` and ``across``, by representative."""
    across: I32 | None


@dataclass
class Matched:
    """Who is compared with whom."""

    grouped: Grouped
    buckets: Buckets

    def candidates(self) -> tuple[I64, I64]:
        """(better, worse): all candidate pairs of documents, each pair once."""
        representatives, equal_content = self.grouped.representatives, self.grouped.equal_content
        better, worse = self.buckets.candidates(0, len(representatives))
        pairs = np.stack([better, worse], axis=1)
        if equal_content is not None:
            pairs = np.concatenate([pairs, _pairs_of_equal(equal_content)])
            pairs = np.unique(pairs[pairs[:, 1] >= self.grouped.fixed], axis=0)
        positions = representatives.astype(np.int64)
        return positions[pairs[:, 0]], positions[pairs[:, 1]]


def match(signed: Signed, params: Params, backend: Backend, *, memory_bytes: int, tmp: str) -> Matched:
    """Rank documents, take one of each content, and sort them into buckets band by band.

    Sorting, and then the buckets, take up to ``memory_bytes``; what buckets take beyond it lies in ``tmp``. Raises
    OutputError if that has no room.
    """
    grouped = group(signed, params, backend)
    bands = [
        sort_band(signed, grouped, band, backend, memory_bytes=memory_bytes) for band in range(params.banding.bands)
    ]
    return make_buckets(grouped, bands, backend, memory_bytes=memory_bytes, tmp=tmp)


def group(signed: Signed, params: Params, backend: Backend, known: tuple[U32, U32] | None = None) -> Grouped:
    """Rank documents and find those of equal content. known: (order, leader) as an earlier call found them."""
    within = across = scope_keys = None
    if params.within is not None:
        within, scope_keys = scope_codes(signed.scope_column(params.within), backend)
    if params.across is not None:
        across, _ = scope_codes(signed.scope_column(params.across), backend)
    if known is None:
        earlier = np.flatnonzero(signed.unit_count[signed.rows :] > 0) + signed.rows
        order = np.concatenate([earlier.astype(np.uint32), rank(signed, params)])
        leader = backend.group_content(order, signed.content, within, across)
    else:
        order, leader = known
    places = np.flatnonzero(leader == np.arange(len(order), dtype=np.uint32))
    representatives = np.ascontiguousarray(order[places])
    equal_content = None
    if across is not None:
        equal_content = backend.group_content(representatives, signed.content, within, None)
    return Grouped(
        order=order,
        leader=leader,
        representatives=representatives,
        fixed=int(np.count_nonzero(representatives >= signed.rows)),
        equal_content=equal_content,
        scope_keys=scope_keys,
        within=_taken(within, representatives),
        across=_taken(across, representatives),
    )


def sort_band(signed: Signed, grouped: Grouped, band: int, backend: Backend, *, memory_bytes: int) -> Band:
    """The buckets of one band."""
    keys = signed.signatures.keys(band, grouped.scope_keys)
    return backend.band(keys, grouped.representatives, memory_bytes=memory_bytes)


def make_buckets(grouped: Grouped, bands: Sequence[Band], backend: Backend, *, memory_bytes: int, tmp: str) -> Matched:
    """The buckets of all bands. Raises OutputError if ``tmp`` has no room, ValueError for bands of other documents."""
    with spill_errors("buckets"):
        buckets = backend.buckets(
            bands,
            len(grouped.representatives),
            grouped.within,
            grouped.across,
            fixed=grouped.fixed,
            memory_bytes=memory_bytes,
            directory=tmp,
        )
    return Matched(grouped, buckets)


def rank(signed: Signed, params: Params) -> U32:
    """Input positions of all documents with units, best first (docs/spec.md, section 10)."""
    return ranked(signed, params, signed.unit_count[: signed.rows] > 0)


def ranked(signed: Signed, params: Params, wanted: npt.NDArray[np.bool_]) -> U32:
    """Input positions of the documents that are ``wanted``, best first."""
    rule, column, sources = parse_keep(params.keep)
    unit_count = signed.unit_count[: signed.rows]
    candidates = np.flatnonzero(wanted).astype(np.uint32)
    if rule == "first":
        return candidates
    if rule == "longest":
        counts = unit_count[candidates]
        return candidates[np.argsort(~counts, kind="stable")]
    assert column is not None
    values = plain_column(signed.columns[column].slice(0, signed.rows))
    if rule == "sources":
        order = _source_places(values, sources)
        return candidates[np.argsort(order[candidates], kind="stable")]
    if pa.types.is_null(values.type):
        return candidates
    direction = "descending" if rule == "max" else "ascending"
    if pa.types.is_float16(values.type):  # Arrow sorts neither these nor small decimals
        values = values.cast(pa.float32())
    elif pa.types.is_decimal(values.type) and values.type.bit_width < 128:
        values = values.cast(pa.decimal128(values.type.precision, values.type.scale))
    # Stable, with NaN after all numbers and null after NaN in both directions: nulls go to the end by default.
    best_first = pc.sort_indices(values, sort_keys=[("", direction)]).to_numpy()
    return np.ascontiguousarray(best_first[wanted[best_first]], np.uint32)


def _source_places(values: pa.ChunkedArray, sources: tuple[str, ...]) -> I32:
    """The place of each value in the list; all others and null after them."""
    if pa.types.is_null(values.type):
        return np.zeros(len(values), np.int32)
    names = pa.array(sources, pa.string())
    if pa.types.is_integer(values.type):
        values = values.cast(pa.string())
    places = pc.index_in(values.cast(pa.large_binary()), value_set=names.cast(pa.large_binary()))
    filled = pc.fill_null(places, len(sources)).to_numpy()
    return np.ascontiguousarray(filled, np.int32)


def _taken(values: I32 | None, documents: U32) -> I32 | None:
    return None if values is None else np.ascontiguousarray(values[documents])


def _pairs_of_equal(leader: U32) -> U32:
    groups: dict[int, list[int]] = {}
    pairs = []
    for place, first in enumerate(leader.tolist()):
        earlier = groups.setdefault(first, [])
        pairs += [(other, place) for other in earlier]
        earlier.append(place)
    return np.array(pairs, np.uint32).reshape(-1, 2)
