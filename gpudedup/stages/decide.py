"""decide: similar pairs -> for every document: kept, or removed for which keeper, why, at which similarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.backends.base import I64, NO_KEEPER
from gpudedup.params import Params
from gpudedup.stages.match import Grouped
from gpudedup.stages.sign import Signed
from gpudedup.stages.verify import Verified

REASONS = ("exact", "near", "empty")
EXACT, NEAR, EMPTY = range(3)


@dataclass(frozen=True)
class Decided:
    """Of every row of the input, by position: whether it is kept; of the removed ones, in input order, why not."""

    keep: npt.NDArray[np.bool_]
    """False for removed documents and for rows that could not be read."""
    removed: I64
    """Input positions of the removals, ascending."""
    keeper: I64
    """Input position of the keeper of each removal; number of rows + position for one of an earlier run; -1 for empty
    documents."""
    reason: npt.NDArray[np.uint8]
    """Index into REASONS."""
    similarity: npt.NDArray[np.float64]
    """NaN where it was not measured."""


def decide(signed: Signed, grouped: Grouped, verified: Verified, params: Params) -> Decided:
    """Removals of representatives, then of their copies: a copy shares the fate of its representative (spec 6, 11).

    Takes 10 bytes a document beside the decision, and about 100 a removal.
    """
    rows, representatives = signed.rows, grouped.representatives
    places, part, whole = verified.decision.arrays()
    removed = np.flatnonzero(places != NO_KEEPER)
    document, keeper = representatives[removed], representatives[places[removed]]
    with np.errstate(invalid="ignore"):
        similarity = np.where(whole[removed] > 0, part[removed] / whole[removed], np.nan)
    same = (signed.content[keeper] == signed.content[document]).all(axis=1)
    similarity[same] = 1.0
    parts: list[tuple[npt.NDArray[Any], ...]] = [(document, keeper, np.where(same, EXACT, NEAR), similarity)]

    removal_of = np.full(len(signed.content), NO_KEEPER, np.uint32)
    removal_of[document] = np.arange(len(document), dtype=np.uint32)
    copies = np.flatnonzero(grouped.leader != np.arange(len(grouped.leader), dtype=np.uint32))
    copy, original = grouped.order[copies], grouped.order[grouped.leader[copies]]
    removal = removal_of[original]
    goes = removal != NO_KEEPER
    parts.append((copy[goes], *(of[removal[goes]] for of in parts[0][1:])))
    if params.across is None:  # with `across`, copies of a kept representative have the same value: they are kept
        stays = ~goes
        parts.append((copy[stays], original[stays], np.full(stays.sum(), EXACT), np.ones(stays.sum())))
    if params.drop_empty:
        empty = np.flatnonzero((signed.unit_count[:rows] == 0) & ~signed.damaged)
        parts.append((empty, np.full(len(empty), -1), np.full(len(empty), EMPTY), np.full(len(empty), np.nan)))

    document, keeper, reason, similarity = (np.concatenate(values) for values in zip(*parts, strict=True))
    own = np.flatnonzero(document < rows)  # documents of earlier runs stay
    in_order = own[np.argsort(document[own], kind="stable")]
    positions = document[in_order].astype(np.int64)
    keep = ~signed.damaged
    keep[positions] = False
    return Decided(
        keep, positions, keeper[in_order].astype(np.int64), reason[in_order].astype(np.uint8), similarity[in_order]
    )
