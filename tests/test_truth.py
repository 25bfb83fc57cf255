"""The engine against exact pairs of real texts: are removals right, are they all, does the recall hold?

Sets in tests/data always; larger ones (mark `large`) from the folder that GPUDEDUP_TEST_DATA names. What is promised:

- every named removal is similar to its keeper, with the similarity of spec 9 to the last bit;
- F1 of the removed documents against the exact decision, mean of five seeds: at least 0.995 over all sets and 0.99 on
  each set of at least 200 exact removals, at every threshold;
- recall of similar pairs as candidates in unbounded buckets: at least 0.95 over all sets and on each of at least 200.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

unicodedata2 = pytest.importorskip("unicodedata2", reason="the reference needs unicodedata2 16.0.0")
pytest.importorskip("opencc", reason="the reference needs opencc 1.4.2")

import reference  # noqa: E402
import truth  # noqa: E402

import gpudedup  # noqa: E402

# One worker finds the pairs of a set once for all tests here: half of their time.
pytestmark = pytest.mark.xdist_group("truth")

DATA = Path(__file__).resolve().parent / "data"
LARGE = os.environ.get("GPUDEDUP_TEST_DATA")
THRESHOLDS = (0.6, 0.7, 0.8, 0.9)
SEEDS = range(5)
RECALL_SEEDS = range(2)
UNBOUNDED = 1 << 20  # a bucket window that no bucket here exceeds
ENOUGH = 200  # removals or pairs that make a set's own figure meaningful

SMALL_SETS = (
    "debian_handbook",
    "hertzbeat_docs",
    "licence_texts",
    "requests_versions",
    "wiki_paragraphs",
    "wiki_scripts",
    "zh_laws",
)
LARGE_SETS = (
    "code_versions_a",
    "debian_handbook",
    "en_articles_plagiarised",
    "en_reuters21578_a",
    "en_web_extractions_a",
    "kernel_docs_en",
    "licence_texts_a",
    "manpages_a",
    "synthetic_small",
    "wiki_paragraphs_a",
    "zh_en_doc_versions_a",
    "zh_laws_national",
)
LARGE_TEXT_BYTES = (
    12_000_000  # above it a set is sampled by row, by a hash; the licences, whose buckets are longest, never
)
WHOLE = ("licence_texts_a",)

large = [
    pytest.mark.large,
    pytest.mark.skipif(not LARGE, reason="GPUDEDUP_TEST_DATA does not name a folder with larger sets"),
]
EVERY_SET = [pytest.param(DATA / f"{name}.parquet", id=name) for name in SMALL_SETS] + [
    pytest.param(Path(LARGE or "") / f"{name}.parquet", id=f"large-{name}", marks=large) for name in LARGE_SETS
]
EVERY_POOL = [
    pytest.param(tuple(DATA / f"{name}.parquet" for name in SMALL_SETS), id="all"),
    pytest.param(tuple(Path(LARGE or "") / f"{name}.parquet" for name in LARGE_SETS), id="large-all", marks=large),
]


# ---------------------------------------------------------------------------------------------------- sets and truth


@dataclass
class TextSet:
    """A set with everything exact about it, made once for all tests."""

    rows: list[int]  # of the file
    texts: list[str]
    corpus: truth.Corpus
    contents: truth.I64
    pairs: truth.Pairs  # at the lowest threshold
    hashes: list[npt.NDArray[np.uint32]]
    counts: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    def jaccard(self, left: int, right: int) -> tuple[int, int]:
        """(intersection, union) of the 32-bit shingle hashes."""
        if (left, right) not in self.counts:
            a, b = self.hashes[left], self.hashes[right]
            shared = len(np.intersect1d(a, b, assume_unique=True))
            self.counts[left, right] = shared, len(a) + len(b) - shared
        return self.counts[left, right]


@functools.cache
def load(path: Path) -> TextSet:
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    rows = list(range(len(texts)))
    size = sum(len(text.encode()) for text in texts)
    if size > LARGE_TEXT_BYTES and path.stem not in WHOLE:
        limit = LARGE_TEXT_BYTES / size * 2**32
        rows = [r for r in rows if int.from_bytes(hashlib.sha256(str(r).encode()).digest()[:4], "big") < limit]
        texts = [texts[r] for r in rows]
    corpus = truth.read_corpus(texts)
    pairs = truth.similar_pairs(corpus, reference.threshold_ppm(THRESHOLDS[0]))
    return TextSet(rows, texts, corpus, corpus.contents(), pairs, truth.hash_sets(corpus))


# ---------------------------------------------------------------------------------------------------------- engines


@dataclass
class Decision:
    """A result as plain lists."""

    keep_mask: list[bool]
    removed: list[tuple[int, str, int, float, int]]  # row, reason, keeper row, similarity, cluster


def run(texts: Sequence[str], **options: Any) -> Any:
    return gpudedup.deduplicate(pa.table({"text": pa.array(texts, pa.large_string())}), text_column="text", **options)


def decide(texts: Sequence[str], **options: Any) -> Decision:
    result = run(texts, **options)
    names = ("row", "reason", "keeper_row", "similarity", "cluster")
    rows = zip(*(result.removed[name].to_pylist() for name in names), strict=True)
    return Decision(result.keep_mask.to_pylist(), list(rows))


def decide_by_reference(texts: Sequence[str], **options: Any) -> Decision:
    result = reference.deduplicate(texts, **options)
    rows: Any = [(r.row, r.reason, r.keeper_row, r.similarity, r.cluster) for r in result.removed]
    return Decision(result.keep_mask, rows)


def check_removals(text_set: TextSet, decision: Decision, threshold: float) -> set[int]:
    """Every removal names a kept text that is as similar as it says; the rows removed."""
    ppm = reference.threshold_ppm(threshold)
    removed = {row for row, *_ in decision.removed}
    assert len(removed) == len(decision.removed)
    assert [row not in removed for row in range(len(text_set.texts))] == decision.keep_mask
    assert [row for row, *_ in decision.removed] == sorted(removed)
    for row, reason, keeper, similarity, cluster in decision.removed:
        shared, union = text_set.jaccard(keeper, row)
        assert reference.similar(shared, union, ppm), (row, keeper, shared, union)
        assert similarity == shared / union, (row, keeper, similarity, shared, union)
        assert decision.keep_mask[keeper]
        assert cluster == keeper < row
        assert (reason == "exact") == (text_set.contents[keeper] == text_set.contents[row]), (row, keeper, reason)
    return removed


# ------------------------------------------------------------------------------------------------------- the promises


@dataclass
class Counts:
    """Removals over all seeds: right ones, wrong ones, missed ones; `exact` is per seed."""

    right: int = 0
    wrong: int = 0
    missed: int = 0
    exact: int = 0

    def f1(self) -> float:
        return (
            1.0
            if not self.right + self.wrong + self.missed
            else self.right / (self.right + (self.wrong + self.missed) / 2)
        )


@functools.cache
def removal_counts(path: Path, threshold: float) -> Counts:
    text_set = load(path)
    exact = truth.exact_decision(len(text_set.texts), text_set.pairs.at(reference.threshold_ppm(threshold)))
    expected = set(np.flatnonzero(exact >= 0).tolist())
    counts = Counts(exact=len(expected))
    for seed in SEEDS:
        removed = check_removals(text_set, decide(text_set.texts, threshold=threshold, seed=seed), threshold)
        counts.right += len(removed & expected)
        counts.wrong += len(removed - expected)
        counts.missed += len(expected - removed)
    return counts


@functools.cache
def candidate_counts(path: Path, threshold: float) -> tuple[int, int]:
    """(similar pairs that are candidates, similar pairs) over the seeds, of representatives, in unbounded buckets."""
    text_set = load(path)
    n = len(text_set.texts)
    pairs = text_set.pairs.at(reference.threshold_ppm(threshold))
    is_first = text_set.contents == np.arange(n)
    both = is_first[pairs.i] & is_first[pairs.j]
    similar = pairs.i[both] * n + pairs.j[both]
    found = 0
    for seed in RECALL_SEEDS:
        result = run(text_set.texts, threshold=threshold, seed=seed, verify="none", bucket_window=UNBOUNDED)
        candidates = result.candidates()
        better, worse = (candidates[name].to_numpy().astype(np.int64) for name in ("better", "worse"))
        assert (better < worse).all()
        assert is_first[better].all()
        assert is_first[worse].all()
        found += int(np.isin(similar, better * n + worse).sum())
    return found, len(similar) * len(RECALL_SEEDS)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("path", EVERY_SET)
def test_removals_are_similar_and_agree_with_the_exact_decision(path: Path, threshold: float) -> None:
    counts = removal_counts(path, threshold)
    if counts.exact >= ENOUGH:
        assert counts.f1() >= 0.99, counts


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("paths", EVERY_POOL)
def test_removals_of_all_sets_agree_with_the_exact_decision(paths: tuple[Path, ...], threshold: float) -> None:
    each = [removal_counts(path, threshold) for path in paths if path.exists()]
    pool = Counts(*(sum(getattr(c, name) for c in each) for name in ("right", "wrong", "missed", "exact")))
    print(f"threshold {threshold}: F1 {pool.f1():.4f}, {pool}")
    assert pool.f1() >= 0.995, pool


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("path", EVERY_SET)
def test_similar_pairs_become_candidates(path: Path, threshold: float) -> None:
    found, similar = candidate_counts(path, threshold)
    if similar >= ENOUGH * len(RECALL_SEEDS):
        assert found >= 0.95 * similar, (found, similar)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("paths", EVERY_POOL)
def test_similar_pairs_of_all_sets_become_candidates(paths: tuple[Path, ...], threshold: float) -> None:
    each = [candidate_counts(path, threshold) for path in paths if path.exists()]
    found, similar = (sum(column) for column in zip(*each, strict=True))
    print(f"threshold {threshold}: recall {found / similar:.4f} of {similar}")
    assert found >= 0.95 * similar, (found, similar)


# ---------------------------------------------------------------------------------- the truth itself, the reference


@pytest.mark.parametrize("name", SMALL_SETS)
def test_the_reference_keeps_the_promise_on_a_piece(name: str) -> None:
    text_set = load(DATA / f"{name}.parquet")
    pairs = text_set.pairs
    near = sorted({*pairs.i[::53].tolist(), *pairs.j[::53].tolist()})[:24]
    short = [r for r in near if len(text_set.texts[r]) < 4000][:12] + list(range(4))
    rows = sorted(set(short))
    texts = [text_set.texts[r][:4000] for r in rows]
    corpus = truth.read_corpus(texts)
    piece = TextSet(
        rows, texts, corpus, corpus.contents(), truth.similar_pairs(corpus, 600_000), truth.hash_sets(corpus)
    )
    decision = decide_by_reference(texts, threshold=0.6, seed=1)
    check_removals(piece, decision, 0.6)
    assert decide(texts, threshold=0.6, seed=1) == decision


@pytest.mark.parametrize("fold", ["full", "case", "none"])
@pytest.mark.parametrize("shingle", ["word:5", "char:5"])
def test_fast_units_are_the_references(shingle: str, fold: str) -> None:
    find = truth.unit_finder(shingle, fold)
    plane = "".join(f"a{chr(c)}b " for c in range(0x10000))
    beyond = "".join(f"a{chr(c)}b " for c in range(0x10000, 0x110000, 37))
    assert find(plane) == reference.units(plane, shingle, fold)
    assert find(beyond) == reference.units(beyond, shingle, fold)
    for name in SMALL_SETS:
        for text in random.Random(3).sample(load(DATA / f"{name}.parquet").texts, 6):
            assert find(text[:20000]) == reference.units(text[:20000], shingle, fold)
    for run_length in (63, 64, 65, 128, 130):
        text = "é" * run_length + "字" + "ﷺ" * run_length
        assert find(text) == reference.units(text, shingle, fold)


@given(st.one_of(st.text(max_size=40), st.binary(max_size=40), st.none()), st.sampled_from(["word:3", "char:2"]))
@settings(max_examples=300, deadline=None)
def test_fast_units_of_any_text_are_the_references(text: str | bytes | None, shingle: str) -> None:
    assert truth.unit_finder(shingle)(text) == reference.units(text, shingle)


WORDY = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


@given(st.lists(WORDY, max_size=12), st.integers(1, 6), st.sampled_from([1, 300_000, 500_000, 612_345, 1_000_000]))
@settings(max_examples=300, deadline=None)
def test_exact_pairs_are_those_of_brute_force(texts: list[str], n: int, ppm: int) -> None:
    found = [tuple(row) for row in np.transpose(truth.exact_pairs(texts, ppm, f"word:{n}")).tolist()]
    sets = []
    for text in texts:
        u = reference.units(text)
        sets.append({tuple(u[k : k + n]) for k in range(max(1, len(u) - n + 1))} if u else set())
    expected = []
    for i, left in enumerate(sets):
        for j in range(i + 1, len(sets)):
            shared, union = len(left & sets[j]), len(left | sets[j])
            if left and sets[j] and reference.similar(shared, union, ppm):
                expected.append((i, j, shared, union))
    assert found == expected
    corpus = truth.read_corpus(texts, f"word:{n}")
    hashes = [set(h.tolist()) for h in truth.hash_sets(corpus)]
    assert hashes == [reference.shingle_hashes(reference.units(t), n) for t in texts]
    pairs = truth.similar_pairs(corpus, ppm)
    keeper = truth.exact_decision(len(texts), pairs)
    order = list(range(len(texts)))
    by_reference = reference.choose_keepers(
        order, {(i, j) for i, j, *_ in expected}, dict(zip(order, order, strict=True))
    )
    assert {row: k for row, k in enumerate(keeper.tolist()) if k >= 0} == by_reference


# ------------------------------------------------------------------------------------- pairs that others found


CJK = ((0x3005, 0x3007), (0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
       (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F), (0x30000, 0x323AF))  # fmt: skip


class _GivenTokens(dict[int, str]):
    """The tokens that the pairs files were made with: after NFKC and lower case, runs of L, M and N; CJK apart."""

    def __missing__(self, code: int) -> str:
        c = chr(code)
        if any(first <= code <= last for first, last in CJK):
            out = f" {c} "
        else:
            out = c if unicodedata2.category(c)[0] in "LMN" else " "
        self[code] = out
        return out


@pytest.mark.parametrize(
    "path",
    [pytest.param(Path(LARGE or "") / f"{name}.parquet", id=f"large-{name}", marks=large) for name in LARGE_SETS],
)
def test_given_pairs_are_found_where_both_definitions_agree(path: Path) -> None:
    """On texts whose units under fold="case" are the given tokens, the similar pairs are the given ones, to the bit."""
    if not path.exists() or not path.with_suffix(".pairs.parquet").exists():
        pytest.skip(f"{path.name} or its pairs are not there")
    text_set = load(path)
    table, find = _GivenTokens(), truth.unit_finder("word:5", "case")
    given_tokens = [unicodedata2.normalize("NFKC", t).lower().translate(table).split() for t in text_set.texts]
    agreed = [k for k, text in enumerate(text_set.texts) if find(text) == given_tokens[k]]
    assert len(agreed) >= 0.2 * len(text_set.texts)
    i, j, intersection, union = truth.exact_pairs([text_set.texts[k] for k in agreed], 500_000, fold="case")
    ids = pq.read_table(path, columns=["id"])["id"].to_pylist()
    name = np.array([ids[text_set.rows[k]] for k in agreed])
    ours = dict(zip(zip(name[i].tolist(), name[j].tolist(), strict=True), (intersection / union).tolist(), strict=True))
    given_table = pq.read_table(path.with_suffix(".pairs.parquet"))
    a, b, jaccard = (given_table[column].to_numpy() for column in ("a", "b", "jaccard"))
    inside = np.isin(a, name) & np.isin(b, name)
    theirs = zip(zip(a[inside].tolist(), b[inside].tolist(), strict=True), jaccard[inside].tolist(), strict=True)
    assert ours == dict(theirs)
