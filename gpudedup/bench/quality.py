"""How good a deduplication is: figures from the exact pairs of `truth`, from labels, and from sources."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gpudedup.backends.base import I64
from gpudedup.bench.noise import F64
from gpudedup.bench.truth import Pairs, exact_decision
from gpudedup.params import Banding

Mask = npt.NDArray[np.bool_]

BIN = 0.02
"""Width of the bins of similarity."""


class Agreement(NamedTuple):
    """Of two sets of things, the found and the wanted: how many are in both, found alone, wanted alone."""

    both: int
    found_alone: int
    wanted_alone: int

    @property
    def precision(self) -> float:
        """both / found; 1 if nothing was found."""
        return _share(self.both, self.both + self.found_alone)

    @property
    def recall(self) -> float:
        """both / wanted; 1 if nothing was wanted."""
        return _share(self.both, self.both + self.wanted_alone)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 if nothing was found and nothing wanted."""
        return _share(2 * self.both, 2 * self.both + self.found_alone + self.wanted_alone)

    def figures(self, prefix: str = "") -> dict[str, float]:
        return {
            f"{prefix}precision_share": self.precision,
            f"{prefix}recall_share": self.recall,
            f"{prefix}f1_share": self.f1,
        }


def pooled(each: list[Agreement]) -> Agreement:
    """The counts of several, added up."""
    return Agreement(*(sum(counts) for counts in zip(*each, strict=True))) if each else Agreement(0, 0, 0)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


# ------------------------------------------------------------------------------------------------------------ removals


class Judge:
    """The exact decision over documents 0 to count - 1 by their similar pairs, and what it says of other removals."""

    def __init__(self, count: int, pairs: Pairs) -> None:
        self.pairs = pairs
        self.exact: Mask = exact_decision(count, pairs) >= 0
        """True where the exact decision removes."""

    def agreement(self, removed: Mask) -> Agreement:
        """Documents removed, against those that the exact decision removes."""
        both = int((removed & self.exact).sum())
        return Agreement(both, int(removed.sum()) - both, int(self.exact.sum()) - both)

    def false_removals(self, removed: Mask) -> int:
        """Removed documents without any similar one that stays."""
        i, j = self.pairs.i, self.pairs.j
        covered = np.zeros(len(removed), bool)
        covered[i[~removed[j]]] = True
        covered[j[~removed[i]]] = True
        return int((removed & ~covered).sum())

    def lenient(self, removed: Mask) -> dict[str, float]:
        """Shares that do not ask which of two copies stays.

        precision: removed documents with a similar one that stays / removed. recall: 1 - what an exact decision over
        the documents that stay would remove / what it removes of all.
        """
        stay = self.pairs.where(~removed[self.pairs.i] & ~removed[self.pairs.j])
        left = int((exact_decision(len(removed), stay) >= 0).sum())
        precision = 1 - _share(self.false_removals(removed), int(removed.sum())) if removed.any() else 1.0
        recall = 1 - _share(left, int(self.exact.sum())) if self.exact.any() else 1.0
        f1 = _share(2 * precision * recall, precision + recall) if precision + recall else 0.0
        return {"lenient_precision_share": precision, "lenient_recall_share": recall, "lenient_f1_share": f1}

    def figures(self, removed: Mask) -> dict[str, float]:
        return {
            **self.agreement(removed).figures(),
            **self.lenient(removed),
            "removed_count": float(removed.sum()),
            "exact_removed_count": float(self.exact.sum()),
            "false_removals_count": float(self.false_removals(removed)),
        }


def unproven(pairs: Pairs, removed: I64, keeper: I64, similarity: F64) -> int:
    """How many removals are of no similar pair, or do not have the exact similarity, or name a keeper that was removed.

    O(pairs + removals log pairs).
    """
    keys = pairs.j.astype(np.int64) << 32 | pairs.i  # ascending
    wanted = np.maximum(removed, keeper) << 32 | np.minimum(removed, keeper)
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    if not len(keys):
        return len(removed)
    good = (keys[place] == wanted) & (pairs.similarity()[place] == similarity) & ~np.isin(keeper, removed)
    return int((~good).sum())


# ---------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True, slots=True)
class Recall:
    """Of similar pairs, those that became candidates, by similarity."""

    similarity: F64
    """Of each bin, the mean."""
    pairs: I64
    found: I64
    theory: F64
    """Mean chance of a pair of the bin, ``1 - (1 - s^rows)^bands``."""

    def curves(self) -> dict[str, list[float]]:
        return {
            "similarity": self.similarity.tolist(),
            "recall": (self.found / self.pairs).tolist(),
            "theory": self.theory.tolist(),
            "pairs": self.pairs.astype(float).tolist(),
        }


def is_candidate(pairs: Pairs, better: I64, worse: I64) -> Mask:
    """For each pair whether it is among the candidates (better < worse)."""
    found: Mask = np.isin(pairs.j.astype(np.int64) << 32 | pairs.i, worse << 32 | better)
    return found


def recall_by_similarity(similarity: F64, found: Mask, banding: Banding) -> Recall:
    """Bins of BIN in (0, 1], of which those without pairs are left out; 1.0 is in the last."""
    chance = 1.0 - (1.0 - similarity**banding.rows) ** banding.bands
    place = np.minimum((similarity / BIN).astype(np.int64), round(1 / BIN) - 1)
    used, number, pairs = np.unique(place, return_inverse=True, return_counts=True)

    def sums(values: npt.NDArray[np.generic]) -> F64:
        return np.asarray(np.bincount(number, weights=values, minlength=len(used)), np.float64)

    return Recall(sums(similarity) / pairs, pairs, sums(found).astype(np.int64), sums(chance) / pairs)


# ----------------------------------------------------------------------------------------------------- labels, sources


def sources_lost(sources: I64, removed: Mask) -> int:
    """Values of ``sources`` (per document, >= 0; -1: none) of which no document stays."""
    known = sources >= 0
    return len(np.unique(sources[known])) - len(np.unique(sources[known & ~removed]))


def label_figures(clusters: I64, labels: I64) -> dict[str, float]:
    """Clusters found, against labels (per document, >= 0; -1: none, and then the document is left out).

    Precision, recall and F1 are of pairs of documents of one cluster against pairs of one label; the adjusted Rand
    index is (both - chance) / ((found + wanted) / 2 - chance), chance = found * wanted / all pairs (Hubert, Arabie
    1985), and 1 if there is nothing to tell apart.
    """
    known = labels >= 0
    clusters, labels = clusters[known], labels[known]
    _, own = np.unique(clusters, return_inverse=True)
    _, wanted_of = np.unique(labels, return_inverse=True)
    both = _pairs_within(own.astype(np.int64) * (int(wanted_of.max(initial=0)) + 1) + wanted_of)
    found, wanted = _pairs_within(own), _pairs_within(wanted_of)
    whole = len(own) * (len(own) - 1) // 2
    chance = _share(found * wanted, whole)
    mean = (found + wanted) / 2
    agreement = Agreement(both, found - both, wanted - both)
    index = (both - chance) / (mean - chance) if mean != chance else 1.0
    return {**agreement.figures("label_"), "adjusted_rand_index": index}


def _pairs_within(values: npt.NDArray[np.int64]) -> int:
    """Pairs of equal values."""
    _, counts = np.unique(values, return_counts=True)
    return int((counts * (counts - 1) // 2).sum())
