"""Spec 1 in plain Python: slow, obvious, and the oracle of every other test. docs/spec.md has the same rules in words.

It shares nothing with the engine: the fold is built here from unicodedata2, opencc and the case folding rows, not from
the generated tables, and a decision is made by the definition, all pairs in all buckets. Unless said, integers are
mod 2**64.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import opencc
import unicodedata2  # type: ignore[import-not-found, unused-ignore]

assert unicodedata2.unidata_version == "16.0.0", unicodedata2.unidata_version
assert opencc.__version__ == "1.4.2", opencc.__version__

M64 = 2**64 - 1
M32 = 2**32 - 1
G = 0x9E3779B97F4A7C15
K = 0xD1342543DE82EF95

Document = str | bytes | Sequence[int] | None
Unit = str | int

# ---------------------------------------------------------------------------------------------------- 1 text


def decode(data: bytes) -> str:
    """UTF-8; each maximal subpart of an ill-formed sequence becomes one U+FFFD (Unicode 16.0, table 3-7)."""
    out, i = [], 0
    while i < len(data):
        lead = data[i]
        if lead < 0x80:
            more, low, high = 0, 0, 0
        elif 0xC2 <= lead <= 0xDF:
            more, low, high = 1, 0x80, 0xBF
        elif 0xE0 <= lead <= 0xEF:
            more, low, high = 2, 0xA0 if lead == 0xE0 else 0x80, 0x9F if lead == 0xED else 0xBF
        elif 0xF0 <= lead <= 0xF4:
            more, low, high = 3, 0x90 if lead == 0xF0 else 0x80, 0x8F if lead == 0xF4 else 0xBF
        else:
            out.append("\ufffd")
            i += 1
            continue
        value = lead if more == 0 else lead & (0x3F >> more)
        i += 1
        for k in range(more):
            if i == len(data) or not (low if k == 0 else 0x80) <= data[i] <= (high if k == 0 else 0xBF):
                out.append("\ufffd")
                break
            value = value << 6 | data[i] & 0x3F
            i += 1
        else:
            out.append(chr(value))
    return "".join(out)


def as_text(document: str | bytes) -> str:
    """A str with every lone surrogate replaced, or decoded bytes."""
    return decode(document) if isinstance(document, bytes) else re.sub("[\ud800-\udfff]", "\ufffd", document)


# ---------------------------------------------------------------------------------------------------- 2 fold

IGNORABLE = re.compile(
    r"[\u00AD\u034F\u061C\u115F\u1160\u17B4\u17B5\u180B-\u180F\u200B-\u200F\u202A-\u202E\u2060-\u206F\u3164"
    r"\uFE00-\uFE0F\uFEFF\uFFA0\uFFF0-\uFFF8\U0001BCA0-\U0001BCA3\U0001D173-\U0001D17A\U000E0000-\U000E0FFF]"
)
MARKS = re.compile(
    r"[\u0300-\u036F\u0483-\u0489\u1AB0-\u1AFF\u1DC0-\u1DFF\u20D0-\u20FF\u2DE0-\u2DFF"  # combining marks; Cyrillic
    r"\uA66F-\uA672\uA674-\uA67D\uA69E\uA69F\uFE20-\uFE2F"
    r"\u302A-\u302F\u3099\u309A"  # Han tones, kana voicing
    r"\u0591-\u05BD\u05BF\u05C1\u05C2\u05C4\u05C5\u05C7"  # Hebrew points
    r"\u0610-\u061A\u0640\u064B-\u065F\u0670\u06D6-\u06DC\u06DF-\u06E8\u06EA-\u06ED\u08D3-\u08E1\u08E3-\u08FF"  # Arabic
    r"]"
)


@functools.cache
def _casefolding() -> dict[str, str]:
    rows = Path(__file__).parent.parent / "tools" / "unicode" / "casefolding-16.0.0.txt"
    out = {}
    for line in rows.read_text(encoding="ascii").splitlines():
        if not line.startswith("#"):
            source, target = line.split(";")
            out[chr(int(source, 16))] = "".join(chr(int(c, 16)) for c in target.split())
    return out


def _casefold(text: str) -> str:
    return "".join(_casefolding().get(c, c) for c in text)


def _ascii_digit(c: str) -> str:
    return str(unicodedata2.decimal(c)) if unicodedata2.category(c) == "Nd" else c


_opencc = opencc.OpenCC("t2s")


def _simplified(c: str) -> str:
    """Follow traditional to simplified to the end of the chain; a result of several code points is not taken."""
    while True:
        target = _opencc.convert(c)
        if target == c or len(target) != 1:
            return c
        c = target


@functools.cache
def fold_char(c: str, mode: str) -> str:
    """What one code point becomes: nothing, one code point, or up to 18."""
    if mode == "none" or "\ud800" <= c <= "\udfff":
        return c
    if mode == "case":
        return IGNORABLE.sub("", _casefold(c))
    if mode != "full":
        raise ValueError(f"fold must be full, case or none, not {mode!r}")
    if c in "\u2120\u2122":  # service mark, trade mark
        return ""
    while (again := _casefold(unicodedata2.normalize("NFKD", c))) != c:
        c = again
    c = MARKS.sub("", IGNORABLE.sub("", c))
    return "".join(_simplified(_ascii_digit(d)) for d in c)


def fold(text: str, mode: str = "full") -> str:
    return "".join(fold_char(c, mode) for c in text)


# ---------------------------------------------------------------------------------------------------- 3 units

SINGLE = re.compile(
    r"[\u0E01-\u0E3A\u0E40-\u0E4E\u0E81-\u0EBD\u0EC0-\u0ECE\u0EDC-\u0EDF"  # Thai, Lao
    r"\u1000-\u103F\u104E-\u108F\u109A-\u109D\uA9E0-\uA9EF\uA9FA-\uA9FE\uAA60-\uAA7F"  # Myanmar without its digits
    r"\u1780-\u17D3\u17D7\u17DC\u17DD"  # Khmer
    r"\u2E80-\u2FDF\u3005-\u3007\u3021-\u302F\u3031-\u3035\u3038-\u303C\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAFF"  # Han
    r"\U00020000-\U0002FFFD\U00030000-\U0003FFFD"
    r"\u3041-\u309F\u30A1-\u30FA\u30FC-\u30FF\u31F0-\u31FF\uFF66-\uFF9F"  # kana
    r"\U00016FE0-\U00016FF1\U0001AFF0-\U0001B16F]"
)
RUN_LIMIT = 64


@functools.cache
def is_unit_char(c: str) -> bool:
    return (
        unicodedata2.category(c)[0] in "LMN" or "\U00020000" <= c <= "\U0002fffd" or "\U00030000" <= c <= "\U0003fffd"
    )


@functools.cache
def char_class(c: str) -> str:
    """separator | joins | single, of a folded code point."""
    if not is_unit_char(c):
        return "separator"
    return "single" if SINGLE.fullmatch(c) else "joins"


def parse_shingle(shingle: str) -> tuple[str, int]:
    kind, _, size = shingle.partition(":")
    if kind not in ("word", "char", "tokens") or not size.isdecimal() or int(size) < 1:
        raise ValueError(f"shingle must be word:n, char:n or tokens:n with n >= 1, not {shingle!r}")
    return kind, int(size)


def units(text: Document, shingle: str = "word:5", fold: str = "full") -> list[Any]:
    """The units in order: str for text, int for tokens. None has none."""
    kind, _ = parse_shingle(shingle)
    if text is None:
        return []
    if kind == "tokens":
        assert not isinstance(text, str | bytes)
        for token in text:
            if not -(2**63) <= token < 2**63:
                raise ValueError(f"token {token} is no int64")
        return list(text)
    assert isinstance(text, str | bytes)
    folded = [d for c in as_text(text) for d in fold_char(c, fold)]
    return _word_units(folded) if kind == "word" else _char_units(folded)


def _word_units(folded: Iterable[str]) -> list[str]:
    out: list[str] = []
    for cls, group in itertools.groupby(folded, char_class):
        chars = list(group)
        if cls == "single":
            out += chars
        elif cls == "joins":
            out += ["".join(chars[i : i + RUN_LIMIT]) for i in range(0, len(chars), RUN_LIMIT)]
    return out


def _char_units(folded: Iterable[str]) -> list[str]:
    out: list[str] = []
    for unit, group in itertools.groupby(folded, is_unit_char):
        out += group if unit else [" "]
    if out and out[0] == " ":
        del out[0]
    if out and out[-1] == " ":
        del out[-1]
    return out


# ---------------------------------------------------------------------------------------------------- 4, 5 hashes


def mix(z: int) -> int:
    """The finaliser of SplitMix64 (prng.di.unimi.it/splitmix64.c), without its addition."""
    z &= M64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & M64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & M64
    return z ^ z >> 31


def hash_bytes(data: bytes) -> int:
    u = mix(len(data) + G)
    for i in range(0, len(data), 8):
        u = mix((u + G & M64) ^ int.from_bytes(data[i : i + 8], "little"))
    return u


def _int64_bytes(value: int) -> bytes:
    return (value & M64).to_bytes(8, "little")


def unit_hash(unit: Unit) -> int:
    return hash_bytes(_int64_bytes(unit) if isinstance(unit, int) else unit.encode())


def shingle_list(units: Sequence[Unit], n: int) -> list[int]:
    """The 32-bit hash of each shingle, in order; fewer than n units make one shingle of all."""
    hashes = [unit_hash(u) for u in units]
    k = min(n, len(hashes))
    if k == 0:
        return []
    out = []
    for first in range(len(hashes) - k + 1):
        p = 0
        for u in hashes[first : first + k]:
            p = p * K + u & M64
        out.append(mix(p + k * G) >> 32)
    return out


def shingle_hashes(units: Sequence[Unit], n: int) -> set[int]:
    return set(shingle_list(units, n))


@functools.cache
def lanes_constants(seed: int, k: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(a, b) of k lanes: the SplitMix64 stream of the seed, two outputs a lane, their high halves, a made odd."""
    x = [mix(seed + (i + 1) * G) for i in range(2 * k)]
    return tuple(v >> 32 | 1 for v in x[0::2]), tuple(v >> 32 for v in x[1::2])


def signature(shingle_set: Iterable[int], num_perm: int, seed: int) -> list[int]:
    hashes = list(shingle_set)
    return [
        min((a * h + b & M32 for h in hashes), default=M32)
        for a, b in zip(*lanes_constants(seed, num_perm), strict=True)
    ]


def signatures(
    texts: Iterable[Document], *, num_perm: int = 128, seed: int = 0, shingle: str = "word:5", fold: str = "full"
) -> list[list[int]]:
    _, n = parse_shingle(shingle)
    return [signature(shingle_hashes(units(text, shingle, fold), n), num_perm, seed) for text in texts]


def content(units: Sequence[Unit]) -> tuple[int, int]:
    """128 bits that are equal when the sequences of units are."""
    c0 = c1 = 0
    for i, unit in enumerate(units):
        u = unit_hash(unit)
        c0 += mix(u + (i + 1) * G)
        c1 += mix(u * K + (i + 1) * G)
    return c0 & M64, c1 & M64


def scope_key(value: str | bytes | bool | int | None) -> int:
    """The scope of a `within` value; without `within` it is 0."""
    if value is None:
        return 1
    if isinstance(value, float):
        raise TypeError("a floating-point column cannot be a scope")
    if isinstance(value, int):
        return hash_bytes(_int64_bytes(value))
    return hash_bytes(value.encode() if isinstance(value, str) else value)


def band_key(band: int, scope: int, lanes: Iterable[int]) -> int:
    k = mix(band + G)
    for w in (scope, *lanes):
        k = mix((k + G & M64) ^ w)
    return k


def band_keys(lanes: Sequence[int], bands: int, rows: int, scope: int = 0) -> list[int]:
    return [band_key(band, scope, lanes[band * rows : (band + 1) * rows]) for band in range(bands)]


# ---------------------------------------------------------------------------------------------------- 7, 8, 9 pairs


def choose_bands(threshold: float, recall: float, num_perm: int) -> tuple[int, int]:
    """(bands, rows) of the most rows that still promise the recall at the threshold."""
    for r in range(num_perm, 0, -1):
        b = num_perm // r
        if 1 - (1 - threshold**r) ** b >= recall:
            return b, r
    enough = next(k for k in itertools.count(num_perm + 1) if 1 - (1 - threshold) ** k >= recall)
    raise ValueError(f"recall {recall} at threshold {threshold} needs num_perm {enough}, not {num_perm}")


def window_pairs(length: int, window: int) -> Iterator[tuple[int, int]]:
    """Candidate positions p < q of a bucket: with the first `window`, and with the `window` just before."""
    for q in range(length):
        for p in range(q):
            if p < window or q - p <= window:
                yield p, q


def threshold_ppm(threshold: float) -> int:
    """The threshold in millionths, ties to even."""
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    ppm = round(threshold * 1e6)
    if ppm == 0:
        raise ValueError(f"threshold {threshold} is 0 in millionths")
    return ppm


def similar(numerator: int, denominator: int, ppm: int) -> bool:
    return numerator * 10**6 >= ppm * denominator


# ---------------------------------------------------------------------------------------------------- 10 rank


def rank_order(keep: str, unit_counts: Sequence[int], keep_values: Sequence[Any] | None) -> list[int]:
    """Rows from the best rank to the worst."""
    rows = range(len(unit_counts))
    if keep == "first":
        return list(rows)
    if keep == "longest":
        return sorted(rows, key=lambda row: -unit_counts[row])
    kind, _, rest = keep.partition(":")
    if keep_values is None:
        raise ValueError(f"keep {keep!r} needs keep_values")
    values: list[Any] = [v.encode() if isinstance(v, str) else v for v in keep_values]
    if kind == "sources":
        sources = [s.encode() for s in rest.partition("=")[2].split(",")]
        place = [sources.index(v) if v in sources else len(sources) for v in map(_source_bytes, values)]
        return sorted(rows, key=lambda row: place[row])
    if kind not in ("max", "min"):
        raise ValueError(f"keep must be first, longest, max:COL, min:COL or sources:COL=a,b,c, not {keep!r}")
    null = [row for row in rows if values[row] is None]
    nan = [row for row in rows if isinstance(values[row], float) and math.isnan(values[row])]
    apart = {*null, *nan}
    # reverse=True keeps the input order of equal elements
    ordered = sorted((row for row in rows if row not in apart), key=lambda row: values[row], reverse=kind == "max")
    return ordered + nan + null


def _source_bytes(value: Any) -> bytes | None:
    """A value as it is written in a sources list: text and binary as they are, integers in decimal."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value).encode()
    raise TypeError(f"sources takes text, binary or integers, not {value!r}")


# ---------------------------------------------------------------------------------------------------- 6, 11 decision


@dataclass(frozen=True)
class Removal:
    """keeper_row and cluster: a row, or -1 - p for position p of ``against``."""

    row: int
    reason: str  # exact | near | empty
    keeper_row: int | None
    similarity: float | None
    cluster: int | None


@dataclass
class Result:
    """Decisions at one threshold. candidates: (better row, worse row) of representatives; as in ``Removal``."""

    removed: list[Removal]
    keep_mask: list[bool]
    candidates: set[tuple[int, int]]
    bounded: tuple[int, int, int]  # bounded buckets, distinct documents in them, longest bucket of all
    bands: int
    rows: int
    threshold: float
    _at: Callable[[float], tuple[list[Removal], list[bool]]] = field(repr=False)

    def at(self, threshold: float) -> Result:
        """The decision at a higher threshold over the same candidates."""
        if threshold < self.threshold:
            raise ValueError(f"threshold {threshold} is below that of the run, {self.threshold}")
        removed, keep_mask = self._at(threshold)
        return Result(removed, keep_mask, self.candidates, self.bounded, self.bands, self.rows, threshold, self._at)


def deduplicate(
    texts: Sequence[Document],
    *,
    threshold: float = 0.8,
    recall: float = 0.95,
    shingle: str = "word:5",
    num_perm: int = 128,
    bands: int | None = None,
    rows: int | None = None,
    seed: int = 0,
    fold: str = "full",
    verify: str = "exact",
    keep: str = "first",
    keep_values: Sequence[Any] | None = None,
    within: Sequence[Any] | None = None,
    across: Sequence[Any] | None = None,
    bucket_window: int = 64,
    clustering: str = "keepers",
    drop_empty: bool = False,
    against: Sequence[Document] = (),
    against_within: Sequence[Any] | None = None,
    against_across: Sequence[Any] | None = None,
) -> Result:
    """``against``: the kept documents of earlier runs, by run and then by their rank there."""
    if verify not in ("exact", "signature", "none"):
        raise ValueError(f"verify must be exact, signature or none, not {verify!r}")
    if clustering not in ("keepers", "components"):
        raise ValueError(f"clustering must be keepers or components, not {clustering!r}")
    threshold_ppm(threshold)
    if bands is None or rows is None:
        if bands is not None or rows is not None:
            raise ValueError("bands and rows are given together")
        bands, rows = choose_bands(threshold, recall, num_perm)
    if bands < 1 or rows < 1 or bands * rows > num_perm:
        raise ValueError(f"bands * rows must be at most num_perm: {bands} * {rows}, num_perm = {num_perm}")

    _, n = parse_shingle(shingle)
    documents = range(len(texts))
    earlier = [-1 - position for position in range(len(against))]  # they are named so wherever a row is named
    rows_of_all = [*earlier, *documents]
    unit_lists = {row: units(text, shingle, fold) for row, text in zip(rows_of_all, [*against, *texts], strict=True)}
    sets = {row: shingle_hashes(u, n) for row, u in unit_lists.items()}
    lanes = {row: signature(s, num_perm, seed) for row, s in sets.items()}

    def scope_values(earlier_values: Sequence[Any] | None, values: Sequence[Any] | None) -> dict[int, Any]:
        first = earlier_values if earlier_values is not None else [None] * len(against)
        last = values if values is not None else [None] * len(texts)
        for value in [*first, *last]:
            scope_key(value)  # refuses floats
        return dict(zip(rows_of_all, [*first, *last], strict=True))

    within_of = scope_values(against_within, within)
    across_of = scope_values(against_across, across)
    order = [*earlier, *rank_order(keep, [len(unit_lists[row]) for row in documents], keep_values)]
    rank = {row: position for position, row in enumerate(order)}

    # 6: the best-ranked document of each content, within and across value represents the others
    contents = {row: content(u) for row, u in unit_lists.items()}
    representative_of: dict[int, int] = {}
    first_seen: dict[Any, int] = {}
    for row in order:
        if unit_lists[row]:
            representative_of[row] = first_seen.setdefault((contents[row], within_of[row], across_of[row]), row)
    representatives = [row for row in order if representative_of.get(row) == row]

    # 7: buckets, in rank order
    buckets: dict[int, list[int]] = defaultdict(list)
    for row in representatives:
        scope = 0 if within is None else scope_key(within_of[row])
        for key in band_keys(lanes[row], bands, rows, scope):
            buckets[key].append(row)
    candidates = set()
    for bucket in buckets.values():
        for p, q in window_pairs(len(bucket), bucket_window):
            if across is None or across_of[bucket[p]] != across_of[bucket[q]]:
                candidates.add((bucket[p], bucket[q]))
    long = [bucket for bucket in buckets.values() if len(bucket) > 2 * bucket_window + 1]
    bounded = (len(long), len(set().union(*long)), max(map(len, buckets.values()), default=0))

    # 6: under across, equal contents are candidates whatever the buckets
    def equal_content(better: int, worse: int) -> bool:
        return contents[better] == contents[worse]

    if across is not None:
        of_content = defaultdict(list)
        for row in representatives:
            of_content[contents[row], within_of[row]].append(row)
        for same in of_content.values():
            candidates.update(itertools.combinations(same, 2))

    # 12: documents of earlier runs are not compared with each other
    candidates = {(better, worse) for better, worse in candidates if worse not in earlier}

    # 9: similarity
    def fraction(better: int, worse: int) -> tuple[int, int]:
        if equal_content(better, worse):
            return 1, 1
        if verify == "signature":
            return sum(x == y for x, y in zip(lanes[better], lanes[worse], strict=True)), num_perm
        return len(sets[better] & sets[worse]), len(sets[better] | sets[worse])

    def similarity_of(better: int, worse: int) -> float | None:
        if verify == "none" and not equal_content(better, worse):
            return None
        numerator, denominator = fraction(better, worse)
        return numerator / denominator

    # 11: decision
    def decide(t: float) -> tuple[list[Removal], list[bool]]:
        ppm = threshold_ppm(t)
        pairs = {pair for pair in candidates if verify == "none" or similar(*fraction(*pair), ppm)}
        choose = choose_keepers if clustering == "keepers" else choose_components
        chosen = choose(representatives, pairs, rank)
        keeper_of = {row: keeper for row, keeper in chosen.items() if row not in earlier}  # 12: those stay
        removed = []
        for row in documents:
            if not unit_lists[row]:
                if drop_empty:
                    removed.append(Removal(row, "empty", None, None, None))
                continue
            representative = representative_of[row]
            if representative in keeper_of:
                keeper = keeper_of[representative]
                known = (keeper, representative) in candidates
                similarity = similarity_of(keeper, representative) if known else None
            elif row != representative and across is None:
                keeper, similarity = representative, 1.0
            else:
                continue
            reason = "exact" if contents[keeper] == contents[row] else "near"
            removed.append(Removal(row, reason, keeper, similarity, keeper))
        gone = {removal.row for removal in removed}
        return removed, [row not in gone for row in documents]

    removed, keep_mask = decide(threshold)
    return Result(removed, keep_mask, candidates, bounded, bands, rows, threshold, decide)


def choose_keepers(
    representatives: Sequence[int], pairs: AbstractSet[tuple[int, int]], rank: dict[int, int]
) -> dict[int, int]:
    """Removed row to its keeper: by rank, a row goes iff a kept better row is similar; the best such is the keeper."""
    better_of = defaultdict(list)
    for better, worse in pairs:
        better_of[worse].append(better)
    keeper_of: dict[int, int] = {}
    for row in representatives:
        kept = [better for better in better_of[row] if better not in keeper_of]
        if kept:
            keeper_of[row] = min(kept, key=rank.__getitem__)
    return keeper_of


def choose_components(
    representatives: Sequence[int], pairs: AbstractSet[tuple[int, int]], rank: dict[int, int]
) -> dict[int, int]:
    """Removed row to its keeper: the best rank of all that similar pairs connect."""
    neighbours = defaultdict(list)
    for better, worse in pairs:
        neighbours[better].append(worse)
        neighbours[worse].append(better)
    keeper_of: dict[int, int] = {}
    seen: set[int] = set()
    for row in representatives:  # by rank, so the first of a component is its best
        if row in seen:
            continue
        seen.add(row)
        stack = [row]
        while stack:
            for other in neighbours[stack.pop()]:
                if other not in seen:
                    seen.add(other)
                    keeper_of[other] = row
                    stack.append(other)
    return keeper_of
