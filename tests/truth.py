"""Exact similar pairs of a text set in the units of spec 1, and the decision that follows from them.

Fast enough for tens of megabytes, and with no hash in it: a shingle is the number of an n-gram. The engine shares
nothing with it. tests/test_truth.py proves its units equal to the reference's.

Method: texts with equal shingle sets form one group. Shingles are ordered from rare to common. If J(A, B) >= t then
the intersection has at least ceil(t |A|) and ceil(t |B|) elements, so A and B share one of the rarest
|X| - ceil(t |X|) + 1 of each (prefix filter: Chaudhuri, Ganti, Kaushik 2006; Bayardo, Ma, Srikant 2007). An inverted
index of these prefixes gives the pairs to look at, and each is intersected in full.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import reference

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
PPM = 10**6

# ------------------------------------------------------------------------------------------------------------ units


class _Translation(dict[int, str]):
    """Code point to its folded form, single units set apart by blanks and every separator a blank; filled on demand."""

    def __init__(self, fold: str, kind: str) -> None:
        super().__init__()
        self.fold, self.kind = fold, kind

    def __missing__(self, code: int) -> str:
        char = "\ufffd" if 0xD800 <= code <= 0xDFFF else chr(code)
        folded = reference.fold_char(char, self.fold)
        out = "".join(self._spaced(c) for c in folded)
        self[code] = out
        return out

    def _spaced(self, c: str) -> str:
        cls = reference.char_class(c)
        if cls == "separator":
            return " "
        return f" {c} " if cls == "single" and self.kind == "word" else c


def _cut(word: str) -> list[str]:
    return [word[i : i + reference.RUN_LIMIT] for i in range(0, len(word), reference.RUN_LIMIT)]


@functools.cache
def unit_finder(shingle: str = "word:5", fold: str = "full") -> Callable[[str | bytes | None], list[str]]:
    """A function equal to reference.units for word and char shingles, some 50 times as fast."""
    kind, _ = reference.parse_shingle(shingle)
    table = _Translation(fold, kind)

    def find(text: str | bytes | None) -> list[str]:
        if text is None:
            return []
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")  # test_reference.py: the same as reference.decode
        words = text.translate(table).split()  # no unit character is white space
        if kind == "char":
            return list(" ".join(words))
        if max(map(len, words), default=0) > reference.RUN_LIMIT:
            return list(itertools.chain.from_iterable(map(_cut, words)))
        return words

    return find


# --------------------------------------------------------------------------------------------------------- shingles


@dataclass
class Corpus:
    """The unit numbers of n texts one after the other: text i has units[offsets[i]:offsets[i + 1]]."""

    units: I64
    offsets: I64
    vocabulary: list[str]
    n: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def contents(self) -> I64:
        """Per text the first text of equal units; -1 for an empty one."""
        first: dict[bytes, int] = {}
        out = np.full(len(self), -1, np.int64)
        for i in range(len(self)):
            key = self.units[self.offsets[i] : self.offsets[i + 1]].tobytes()
            if key:
                out[i] = first.setdefault(key, i)
        return out


def read_corpus(texts: Sequence[str | bytes | None], shingle: str = "word:5", fold: str = "full") -> Corpus:
    find = unit_finder(shingle, fold)
    number: defaultdict[str, int] = defaultdict(itertools.count().__next__)
    parts = [np.fromiter(map(number.__getitem__, find(text)), np.int64) for text in texts]
    offsets = np.zeros(len(texts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    units = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return Corpus(units, offsets, list(number), reference.parse_shingle(shingle)[1])


def _numbered(values: I64) -> I64:
    """Equal values to equal numbers below their count."""
    numbers: I64 = pa.array(values).dictionary_encode().indices.to_numpy().astype(np.int64)
    return numbers


def _spans(first: I64, length: I64) -> I64:
    """first[0], first[0] + 1, ..., first[1], ...: the indices of many spans, one after the other."""
    ends = np.cumsum(length)
    total = int(ends[-1]) if len(ends) else 0
    out: I64 = np.arange(total) + np.repeat(first - (ends - length), length)
    return out


def shingle_sets(corpus: Corpus) -> tuple[I64, I64]:
    """(shingles, offsets): per text its ascending distinct shingle numbers, the rarest of the corpus first."""
    n, unit_counts = corpus.n, np.diff(corpus.offsets)
    whole = unit_counts >= n
    counts = np.where(whole, unit_counts - n + 1, unit_counts > 0)
    starts = _spans(corpus.offsets[:-1][whole], counts[whole])
    # the number of the n-gram at each start: double a known length while it fits, then overlap
    length, gram = 1, corpus.units.copy()
    while length < n:
        step = min(length, n - length)
        moved = np.concatenate([gram[step:], np.zeros(min(step, len(gram)), np.int64)])
        size = int(gram.max(initial=0)) + 1
        assert size < 1 << 31
        gram = _numbered(gram * size + moved)
        length += step
    offsets = np.concatenate([[0], np.cumsum(counts)])
    shingles = np.empty(int(offsets[-1]), np.int64)
    shingles[_spans(offsets[:-1][whole], counts[whole])] = gram[starts]
    # a short text is one shingle of all its units, unlike every full one
    base = int(gram.max(initial=0)) + 1
    short: dict[bytes, int] = {}
    for i in np.flatnonzero(~whole & (unit_counts > 0)).tolist():
        key = corpus.units[corpus.offsets[i] : corpus.offsets[i + 1]].tobytes()
        shingles[offsets[i]] = base + short.setdefault(key, len(short))
    # distinct per text, then renumbered by document frequency
    size = base + len(short)
    owner = np.repeat(np.arange(len(corpus)), counts)
    pairs = np.unique(owner * size + shingles)
    owner, shingles = pairs // size, pairs % size
    frequency = np.bincount(shingles, minlength=size)
    rank = np.empty(size, np.int64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(size)
    ordered = np.sort(owner * size + rank[shingles])
    return ordered % size, np.searchsorted(ordered // size, np.arange(len(corpus) + 1))


def hash_sets(corpus: Corpus) -> list[npt.NDArray[np.uint32]]:
    """Per text its ascending distinct 32-bit shingle hashes by spec 5: what the engine compares."""
    unit_hashes = np.array([reference.unit_hash(unit) for unit in corpus.vocabulary] or [0], np.uint64)
    out = []
    for i in range(len(corpus)):
        u = unit_hashes[corpus.units[corpus.offsets[i] : corpus.offsets[i + 1]]]
        k = min(corpus.n, len(u))
        if k == 0:
            out.append(np.zeros(0, np.uint32))
            continue
        p = np.zeros(len(u) - k + 1, np.uint64)
        for j in range(k):
            p = p * np.uint64(reference.K) + u[j : j + len(p)]
        out.append(np.unique(_mix(p + np.uint64(k * reference.G & reference.M64)) >> np.uint64(32)).astype(np.uint32))
    return out


def _mix(z: U64) -> U64:
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


# ------------------------------------------------------------------------------------------------------------ pairs


@dataclass
class Pairs:
    """Similar pairs i < j, ordered by (i, j)."""

    i: I64
    j: I64
    intersection: I64
    union: I64

    def at(self, threshold_ppm: int) -> Pairs:
        """Those that are similar at a higher threshold too."""
        good = self.intersection * PPM >= threshold_ppm * self.union
        return Pairs(self.i[good], self.j[good], self.intersection[good], self.union[good])

    def __len__(self) -> int:
        return len(self.i)


def similar_pairs(corpus: Corpus, threshold_ppm: int) -> Pairs:
    """All pairs with Jaccard index >= threshold; empty texts are in none."""
    shingles, offsets = shingle_sets(corpus)
    grouped: dict[bytes, list[int]] = defaultdict(list)
    for i in range(len(corpus)):
        if offsets[i] < offsets[i + 1]:
            grouped[shingles[offsets[i] : offsets[i + 1]].tobytes()].append(i)
    groups = sorted(grouped.values(), key=lambda rows: offsets[rows[0] + 1] - offsets[rows[0]])
    if not groups:
        return Pairs(*(np.zeros(0, np.int64) for _ in range(4)))
    first = np.array([rows[0] for rows in groups])
    start, size = offsets[first], offsets[first + 1] - offsets[first]

    # inverted index of the prefixes, groups ascending in size within a shingle
    prefix = size - -(-size * threshold_ppm // PPM) + 1
    posting_shingle = shingles[_spans(start, prefix)]
    posting_group = np.repeat(np.arange(len(groups)), prefix)
    order = np.argsort(posting_shingle, kind="stable")
    posting_shingle, posting_group = posting_shingle[order], posting_group[order]
    universe = int(shingles.max()) + 1
    posting_first = np.searchsorted(posting_shingle, np.arange(universe + 1))

    found: list[tuple[int, I64, I64]] = []
    mark = np.zeros(universe, np.int8)
    for g in range(len(groups)):
        own = shingles[start[g] : start[g] + size[g]]
        keys = own[: prefix[g]]
        near = posting_group[_spans(posting_first[keys], posting_first[keys + 1] - posting_first[keys])]
        # ascending sizes, so a group that is large enough and before g is a span
        smallest = int(np.searchsorted(size, -(-int(size[g]) * threshold_ppm // PPM)))
        near = np.unique(near[(near < g) & (near >= smallest)])
        if not len(near):
            continue
        mark[own] = 1
        lengths = size[near]
        hits = mark[shingles[_spans(start[near], lengths)]]
        shared = np.add.reduceat(hits, np.cumsum(lengths) - lengths, dtype=np.int64)
        mark[own] = 0
        good = shared * PPM >= threshold_ppm * (size[g] + lengths - shared)
        if good.any():
            found.append((g, near[good], shared[good]))
    return _members(groups, size, found)


def _members(groups: list[list[int]], size: I64, found: list[tuple[int, I64, I64]]) -> Pairs:
    """Pairs of groups to pairs of texts, and the pairs within each group."""
    count = np.array([len(rows) for rows in groups])
    first = np.cumsum(count) - count
    member = np.array([row for rows in groups for row in rows])
    left = np.concatenate([np.full(len(h), g) for g, h, _ in found] + [np.arange(len(groups))])
    right = np.concatenate([h for _, h, _ in found] + [np.arange(len(groups))])
    shared = np.concatenate([s for _, _, s in found] + [size])
    total = count[left] * count[right]
    pair = np.repeat(np.arange(len(left)), total)
    place = _spans(np.zeros(len(left), np.int64), total)
    a = member[first[left[pair]] + place // count[right[pair]]]
    b = member[first[right[pair]] + place % count[right[pair]]]
    good = (left[pair] != right[pair]) | (a < b)
    pair, a, b = pair[good], a[good], b[good]
    i, j = np.minimum(a, b), np.maximum(a, b)
    order = np.lexsort((j, i))
    pair = pair[order]
    union = size[left[pair]] + size[right[pair]] - shared[pair]
    return Pairs(i[order], j[order], shared[pair], union)


def exact_pairs(
    texts: Sequence[str | bytes | None], threshold_ppm: int, shingle: str = "word:5", fold: str = "full"
) -> tuple[I64, I64, I64, I64]:
    """(i, j, intersection, union) of all pairs i < j with Jaccard index >= threshold_ppm / 10**6."""
    pairs = similar_pairs(read_corpus(texts, shingle, fold), threshold_ppm)
    return pairs.i, pairs.j, pairs.intersection, pairs.union


def exact_decision(n: int, pairs: Pairs) -> I64:
    """Per text its keeper in input order, or -1 if it is kept (spec 11 with every similar pair a candidate).

    Equal contents need no rule of their own: a copy has the pairs of its representative, and the pair with it.
    """
    keeper = np.full(n, -1, np.int64)
    gone = bytearray(n)
    order = np.lexsort((pairs.i, pairs.j))  # by the worse text, its betters ascending
    for better, worse in zip(pairs.i[order].tolist(), pairs.j[order].tolist(), strict=True):
        if not gone[worse] and not gone[better]:  # all pairs of `better` as the worse text came before
            gone[worse] = 1
            keeper[worse] = better
    return keeper
