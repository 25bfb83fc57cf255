"""guard: how much of the corpus, and of each value of a column, a decision removes; and whether that is too much."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gpudedup.backends.base import I64
from gpudedup.backends.columns import plain_column
from gpudedup.errors import GuardError
from gpudedup.params import PPM, Params
from gpudedup.stages.decide import Decided
from gpudedup.stages.sign import Signed
from gpudedup.store.manifest import RemovedShare

SHARES_LISTED = 20
"""Values of the guard column in a summary, those with most documents."""

WORST_LISTED = 5
VALUE_CHARACTERS = 60


def removed_shares(signed: Signed, decided: Decided, params: Params) -> list[RemovedShare]:
    """What is removed of each value of ``guard_column``, for the ``SHARES_LISTED`` with most documents; else none."""
    if params.guard_column is None:
        return []
    values, documents, removed = _by_value(signed.columns[params.guard_column], signed, decided)
    largest = np.argsort(-documents, kind="stable")[:SHARES_LISTED]
    return [_share(values, place, documents, removed) for place in largest.tolist()]


def check_guard(signed: Signed, decided: Decided, params: Params) -> None:
    """Raise GuardError if more than ``max_removed`` of all documents, or of those of one value, would be removed."""
    if params.max_removed is None:
        return
    limit_ppm = round(params.max_removed * PPM)
    count, lost = signed.rows - int(signed.damaged.sum()), len(decided.removed)
    too_much = [f"of all {count} documents {lost} ({lost / count:.1%})"] if lost * PPM > limit_ppm * count else []
    way_out = "raise max_removed, use a higher threshold, or limit what is compared (within)"
    if params.guard_column is not None:
        values, documents, removed = _by_value(signed.columns[params.guard_column], signed, decided)
        over = np.flatnonzero(removed * PPM > limit_ppm * documents)
        worst = over[np.lexsort((-documents[over], -(removed[over] / documents[over])))]
        for place in worst[:WORST_LISTED].tolist():
            share = _share(values, place, documents, removed)
            too_much.append(
                f"of {params.guard_column}={share.value!r} {share.removed} of {share.documents} ({share.share:.1%})"
            )
        if len(worst) > WORST_LISTED:
            too_much.append(f"and more than that of {len(worst) - WORST_LISTED} other values")
        if len(over) and params.within != params.guard_column:
            way_out = f'raise max_removed, use a higher threshold, or compare only within="{params.guard_column}"'
    if too_much:
        raise GuardError(
            f"more than max_removed={params.max_removed:g} would be removed: {', '.join(too_much)}; results "
            f"are not written; {way_out}"
        )


def _by_value(column: pa.ChunkedArray, signed: Signed, decided: Decided) -> tuple[pa.Array, I64, I64]:
    """The values of a column that documents have, null among them; documents and removals of each."""
    column = plain_column(column)
    if pa.types.is_null(column.type):
        column = column.cast(pa.string())
    chunks = pc.dictionary_encode(column).unify_dictionaries().chunks  # which null as a value would forbid
    values = chunks[0].dictionary if chunks else pa.array([], column.type)
    null = len(values)
    indices = [pc.fill_null(chunk.indices.cast(pa.int64()), null).to_numpy(zero_copy_only=False) for chunk in chunks]
    codes = np.concatenate([np.zeros(0, np.int64), *indices])
    documents = np.bincount(codes[~signed.damaged], minlength=null + 1)
    removed = np.bincount(codes[decided.removed], minlength=null + 1)
    there = np.flatnonzero(documents)
    named = pa.array(there, mask=there == null)
    return values.take(named), documents[there], removed[there]


def _share(values: pa.Array, place: int, documents: I64, removed: I64) -> RemovedShare:
    value, count, lost = values[place].as_py(), int(documents[place]), int(removed[place])
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    text = None if value is None else str(value)[:VALUE_CHARACTERS]
    return RemovedShare(value=text, documents=count, removed=lost, share=lost / count)
