"""decide: similar pairs -> for every document: kept, or removed for which keeper, why, at which similarity."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Removals of representatives, then of their copies: a copy shares the fate of its representative (spec 6, 11)."""
    places, part, whole = verified.decision.arrays()
    representatives = grouped.representatives.astype(np.int64)
    removed = places != NO_KEEPER
    with np.errstate(invalid="ignore"):
        similarity = np.where(whole > 0, part / whole.astype(np.float64), np.nan)
    keeper = (
        np.where(removed, representatives[np.where(removed, places, 0)], -1) if len(places) else np.zeros(0, np.int64)
    )
    same = np.zeros(len(places), bool)
    same[removed] = (signed.content[keeper[removed]] == signed.content[representatives[removed]]).all(axis=1)
    similarity[same & removed] = 1.0

    rows, every = signed.rows, len(signed.content)
    all_keeper = np.full(every, -1, np.int64)
    all_similarity = np.full(every, np.nan)
    all_reason = np.full(every, NEAR, np.uint8)
    all_keeper[representatives] = keeper
    all_similarity[representatives] = similarity
    all_reason[representatives[same & removed]] = EXACT

    copies = grouped.leader != np.arange(len(grouped.leader), dtype=np.uint32)
    copies &= grouped.order < rows  # those of earlier runs stay
    copy = grouped.order[copies].astype(np.int64)
    original = grouped.order[grouped.leader[copies]].astype(np.int64)
    fate = all_keeper[original]
    all_similarity[copy] = all_similarity[original]
    all_reason[copy] = all_reason[original]
    all_keeper[copy] = fate
    if params.across is None:  # with `across`, copies of a kept representative have the same value: they are kept
        of_kept = fate < 0
        all_keeper[copy[of_kept]] = original[of_kept]
        all_similarity[copy[of_kept]] = 1.0
        all_reason[copy[of_kept]] = EXACT

    all_keeper, all_similarity, all_reason = all_keeper[:rows], all_similarity[:rows], all_reason[:rows]
    keep = (all_keeper < 0) & ~signed.damaged
    if params.drop_empty:
        empty = (signed.unit_count[:rows] == 0) & ~signed.damaged
        keep &= ~empty
        all_reason[empty] = EMPTY
    positions = np.flatnonzero(~keep & ~signed.damaged)
    return Decided(keep, positions, all_keeper[positions], all_reason[positions], all_similarity[positions])
