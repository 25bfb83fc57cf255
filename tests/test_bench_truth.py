"""The exact pairs of `gpudedup bench` are those of tests/truth.py, on real sets and made ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("unicodedata2", reason="the reference needs unicodedata2 16.0.0")
pytest.importorskip("opencc", reason="the reference needs opencc 1.4.2")

import truth as oracle

from gpudedup.bench import truth
from gpudedup.errors import InputError
from gpudedup.params import Params

DATA = Path(__file__).resolve().parent / "data"
SETS = sorted(DATA.glob("*.parquet"))


def both(texts: list[str | None], ppm: int, shingle: str = "word:5") -> tuple[truth.Pairs, oracle.Pairs]:
    halves = [pa.array(texts[: len(texts) // 2], pa.string()), pa.array(texts[len(texts) // 2 :], pa.large_string())]
    sets = truth.shingle_sets(halves, Params(shingle=shingle))
    assert len(sets) == len(texts)
    return truth.similar_pairs(sets, ppm), oracle.similar_pairs(oracle.read_corpus(texts, shingle), ppm)


def assert_equal(ours: truth.Pairs, theirs: oracle.Pairs) -> None:
    order = np.lexsort((theirs.i, theirs.j))
    for name in ("i", "j", "intersection", "union"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name)[order], err_msg=name)


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_pairs_and_decisions_of_real_sets(path: Path) -> None:
    texts = pq.read_table(path)["text"].to_pylist()
    ours, theirs = both(texts, 600_000)
    assert_equal(ours, theirs)
    for ppm in (600_000, 700_000, 800_000, 900_000, 1_000_000):
        np.testing.assert_array_equal(
            truth.exact_decision(len(texts), ours.at(ppm)), oracle.exact_decision(len(texts), theirs.at(ppm))
        )


def test_a_higher_threshold_finds_the_same_as_filtering() -> None:
    texts = pq.read_table(DATA / "licence_texts.parquet")["text"].to_pylist()
    low, _ = both(texts[:700], 500_000)
    high, theirs = both(texts[:700], 830_000)
    assert_equal(high, theirs)
    for name in ("i", "j", "intersection", "union"):
        np.testing.assert_array_equal(getattr(low.at(830_000), name), getattr(high, name))


WORDY = st.lists(st.sampled_from("abcd"), max_size=9).map(" ".join)


@given(st.lists(st.none() | WORDY, max_size=14), st.integers(1, 6), st.sampled_from([1, 300_000, 612_345, 1_000_000]))
@settings(max_examples=200, deadline=None)
def test_pairs_of_any_small_corpus(texts: list[str | None], n: int, ppm: int) -> None:
    ours, theirs = both(texts, ppm, f"word:{n}")
    assert_equal(ours, theirs)
    np.testing.assert_array_equal(truth.exact_decision(len(texts), ours), oracle.exact_decision(len(texts), theirs))


def test_a_corpus_of_copies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "MAX_PAIRS", 1000)
    alike = [f"one two three four five six seven {i}" for i in range(200)]
    for texts in (alike, ["one two three"] * 200):
        with pytest.raises(InputError, match="these 200 documents"):
            truth.similar_pairs(truth.shingle_sets([pa.array(texts)], Params()), 400_000)
