"""All similar pairs of a corpus, and the decision that follows from them: what approximate search is held to.

Sets are of the shingle hashes of docs/spec.md, section 5, as the CPU backend makes them; nothing else of the engine is
used. Texts of equal sets form one group. Shingles are ordered from rare to common. If J(A, B) >= t, the intersection
has at least ceil(t |A|) and ceil(t |B|) elements, so A and B share one of the rarest |X| - ceil(t |X|) + 1 of each
(prefix filter: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007). An inverted index of these prefixes gives
the pairs to look at, and each is intersected in full. A shingle of one group alone is in no intersection.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends.base import I32, I64, U32
from gpudedup.backends.cpu import CpuBackend
from gpudedup.errors import InputError
from gpudedup.params import PPM, Params

MAX_PAIRS = 50_000_000
"""More similar pairs are refused: they take 16 bytes each, and copies of one text make the square of their number."""
MAX_VISITS = 400_000_000_000
"""Shingles looked at in intersections, at most: some tens of minutes."""


@dataclass(frozen=True, slots=True)
class ShingleSets:
    """Document i has the ascending distinct shingle hashes ``hashes[offsets[i] : offsets[i + 1]]``."""

    hashes: U32
    offsets: I64

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def of(self, document: int) -> U32:
        return self.hashes[self.offsets[document] : self.offsets[document + 1]]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Similar pairs of documents i < j, by (j, i): ``intersection`` and ``union`` of their shingle sets."""

    i: I32
    j: I32
    intersection: I32
    union: I32

    def at(self, threshold_ppm: int) -> Pairs:
        """Those that are similar at a higher threshold too (spec 9)."""
        return self.where(self.intersection.astype(np.int64) * PPM >= self.union.astype(np.int64) * threshold_ppm)

    def where(self, chosen: npt.NDArray[np.bool_]) -> Pairs:
        return Pairs(self.i[chosen], self.j[chosen], self.intersection[chosen], self.union[chosen])

    def similarity(self) -> npt.NDArray[np.float64]:
        return self.intersection / self.union

    def __len__(self) -> int:
        return len(self.i)


def shingle_sets(texts: Iterable[pa.Array], params: Params) -> ShingleSets:
    """The sets of all documents of ``texts`` (string or binary arrays). 8 bytes a unit while it works."""
    parts, counts, first = [], [], 0
    for made in CpuBackend(params, "exact truth").shingles(texts):
        owner = np.repeat(np.arange(len(made.offsets) - 1, dtype=np.uint64), np.diff(made.offsets))
        keys = owner << np.uint64(32) | made.hashes
        keys.sort()
        keys = keys[_first_of_run(keys)]
        parts.append(keys.astype(np.uint32))
        counts.append(np.bincount((keys >> np.uint64(32)).astype(np.int64), minlength=len(made.offsets) - 1))
        first += len(made.offsets) - 1
    offsets = np.zeros(first + 1, np.int64)
    if parts:
        np.cumsum(np.concatenate(counts), out=offsets[1:])
    return ShingleSets(np.concatenate(parts) if parts else np.zeros(0, np.uint32), offsets)


def similar_pairs(sets: ShingleSets, threshold_ppm: int) -> Pairs:
    """All pairs with Jaccard index >= threshold; documents without shingles are in none.

    Raises InputError if there are more than MAX_PAIRS, or if it would take more than MAX_VISITS to find them.
    """
    groups = _groups(sets)
    first = np.array([rows[0] for rows in groups], np.int64)
    size = np.diff(sets.offsets)[first]
    shingles, offsets = _by_rarity(sets, first)
    prefixes = _Prefixes(shingles, offsets, size, threshold_ppm)
    least = np.searchsorted(size, -(-size * threshold_ppm // PPM))  # ascending sizes: no smaller group can be similar
    mark = np.zeros(int(shingles.max(initial=-1)) + 1, np.int8)
    found: list[tuple[int, I64, I64]] = []
    visits = pairs = 0
    for g in np.flatnonzero(prefixes.length > 0).tolist():
        near = prefixes.sharing(g, int(least[g]))
        if not len(near):
            continue
        own = shingles[offsets[g] : offsets[g + 1]]
        lengths = offsets[near + 1] - offsets[near]
        visits += int(lengths.sum())
        mark[own] = 1
        hits = mark.take(shingles.take(_spans(offsets[near], lengths)))
        shared = np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
        mark[own] = 0
        good = shared * PPM >= threshold_ppm * (size[g] + size[near] - shared)
        if good.any():
            found.append((g, near[good], shared[good]))
            pairs += len(found[-1][1])
        if visits > MAX_VISITS or pairs > MAX_PAIRS:
            raise _too_many(len(sets))
    return _members(groups, size, found, len(sets))


def exact_decision(count: int, pairs: Pairs) -> I64:
    """Per document its keeper in input order, or -1 if it is kept: spec 11 with every similar pair a candidate.

    Equal contents need no rule of their own: a copy has the pairs of its representative, and the pair with it.
    """
    keeper = np.full(count, -1, np.int64)
    kept = np.ones(count, bool)
    bounds = np.append(np.flatnonzero(_first_of_run(pairs.j)), len(pairs))
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        better = pairs.i[begin:end]  # ascending, and all decided: their own pairs came before
        stays = kept[better]
        best = int(stays.argmax())
        if stays[best]:
            worse = pairs.j[begin]
            kept[worse], keeper[worse] = False, better[best]
    return keeper


class _Prefixes:
    """The inverted index of the rarest shingles of each group."""

    def __init__(self, shingles: I64, offsets: I64, size: I64, threshold_ppm: int) -> None:
        whole = size - -(-size * threshold_ppm // PPM) + 1
        alone = size - np.diff(offsets)  # shingles of no other group are the rarest
        self.length = np.maximum(whole - alone, 0)
        self._shingles, self._start = shingles, offsets[:-1]
        keys = shingles[_spans(self._start, self.length)] << 32 | np.repeat(np.arange(len(size)), self.length)
        keys.sort()
        self._groups = keys & 0xFFFFFFFF
        self._first = np.zeros(int(shingles.max(initial=-1)) + 2, np.int64)
        np.cumsum(np.bincount(keys >> 32, minlength=len(self._first) - 1), out=self._first[1:])

    def sharing(self, group: int, least: int) -> I64:
        """The groups from ``least`` to before ``group`` that have a shingle of their prefix in common with its own."""
        own = self._shingles[self._start[group] : self._start[group] + self.length[group]]
        begin = self._first[own]
        near = self._groups[_spans(begin, self._first[own + 1] - begin)]
        return np.unique(near[(near < group) & (near >= least)])


def _groups(sets: ShingleSets) -> list[list[int]]:
    """The documents of each set that is not empty, by the size of the set."""
    rows: defaultdict[bytes, list[int]] = defaultdict(list)
    for i in np.flatnonzero(np.diff(sets.offsets)).tolist():
        rows[sets.of(i).tobytes()].append(i)
    return [rows[key] for key in sorted(rows, key=len)]


def _by_rarity(sets: ShingleSets, documents: I64) -> tuple[I64, I64]:
    """(shingles, offsets): per document, the shingles that another of them has too: numbers, the rarest first."""
    lengths = np.diff(sets.offsets)[documents]
    keys = sets.hashes[_spans(sets.offsets[documents], lengths)].astype(np.uint64) << np.uint64(32)
    keys |= np.repeat(np.arange(len(documents), dtype=np.uint64), lengths)
    keys.sort()
    starts = np.flatnonzero(_first_of_run(keys >> np.uint64(32)))
    frequency = np.diff(np.append(starts, len(keys)))
    number = np.empty(len(frequency), np.uint64)
    number[np.argsort(frequency, kind="stable")] = np.arange(len(frequency), dtype=np.uint64)
    alone = int((frequency == 1).sum())  # these have the lowest numbers
    number, owner = np.repeat(number, frequency), keys & np.uint64(0xFFFFFFFF)
    shared = number >= alone
    keys = owner[shared] << np.uint64(32) | number[shared] - np.uint64(alone)
    keys.sort()
    offsets = np.searchsorted(keys, np.arange(len(documents) + 1, dtype=np.uint64) << np.uint64(32))
    return (keys & np.uint64(0xFFFFFFFF)).astype(np.int64), offsets.astype(np.int64)


def _members(groups: list[list[int]], size: I64, found: list[tuple[int, I64, I64]], documents: int) -> Pairs:
    """Pairs of groups to pairs of documents, and the pairs within each group."""
    count = np.array([len(rows) for rows in groups], np.int64)
    several = np.flatnonzero(count > 1)
    left = np.concatenate([np.full(len(near), g) for g, near, _ in found] + [several])
    right = np.concatenate([near for _, near, _ in found] + [several])
    shared = np.concatenate([shared for *_, shared in found] + [size[several]])
    total = count[left] * count[right]
    if total.sum() > 2 * MAX_PAIRS:
        raise _too_many(documents)
    member, first = np.array([row for rows in groups for row in rows], np.int32), np.cumsum(count) - count
    pair = np.repeat(np.arange(len(left), dtype=np.int32), total)
    place = _spans(np.zeros(len(left), np.int64), total)
    a = member[first[left[pair]] + place // count[right[pair]]]
    b = member[first[right[pair]] + place % count[right[pair]]]
    good = (left != right)[pair] | (a < b)
    pair, a, b = pair[good], a[good], b[good]
    order = np.argsort(np.maximum(a, b).astype(np.int64) << 32 | np.minimum(a, b))
    pair, a, b = pair[order], a[order], b[order]
    union = size[left] + size[right] - shared
    return Pairs(np.minimum(a, b), np.maximum(a, b), shared[pair].astype(np.int32), union[pair].astype(np.int32))


def _too_many(documents: int) -> InputError:
    return InputError(
        f"the exact truth of these {documents} documents takes more than {MAX_PAIRS} similar pairs or {MAX_VISITS} "
        "shingles to look at: they are copies or templates of each other; take a smaller part of them"
    )


def _first_of_run(values: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """True where a value differs from the one before."""
    out = np.ones(len(values), bool)
    np.not_equal(values[1:], values[:-1], out=out[1:])
    return out


def _spans(first: I64, length: I64) -> I64:
    """first[0], first[0] + 1, ..., first[1], ...: the indices of many spans, one after the other."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    out: I64 = np.arange(total) + np.repeat(first - (ends - length), length)
    return out
