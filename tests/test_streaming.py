"""A stream decided batch after batch gives the answer of one batch, for every way to cut it."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deduplicate import GOLDEN, golden_table, random_corpus, random_options, rows_of

import gpudedup
from gpudedup import InputError, ParameterError

STREAMED = [
    case
    for case in GOLDEN["decisions"]
    if case["parameters"].get("keep", "first") == "first" and case["parameters"].get("clustering") != "components"
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("case", STREAMED, ids=lambda c: f"{c['corpus']}-{c['parameters']}")
def test_golden_decisions(case: dict[str, Any], size: int) -> None:
    table = golden_table(case["corpus"])
    stream = gpudedup.Deduplicator(**case["parameters"])
    masks = [stream.filter(table.slice(i, size)).to_pylist() for i in range(0, table.num_rows, size)]
    assert "".join("01"[keep] for mask in masks for keep in mask) == case["keep_mask"]
    assert rows_of(stream.removed) == [tuple(row) for row in case["removed"]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_any_cut_equals_one_batch(seed: int) -> None:
    rng = random.Random(seed)
    texts = random_corpus(rng, rng.choice([5, 40, 100]))
    options = {**random_options(rng), "clustering": "keepers"}
    columns: dict[str, pa.Array] = {"text": pa.array(texts, pa.string()), "id": pa.array(range(len(texts)))}
    if rng.random() < 0.4:
        columns["w"] = pa.array([rng.choice(["a", "b", None]) for _ in texts], pa.string())
        options["within"] = "w"
    if rng.random() < 0.4:
        columns["x"] = pa.array([rng.choice([1, 2, None]) for _ in texts], pa.int64())
        options["across"] = "x"
    table = pa.table(columns)
    try:
        whole = gpudedup.deduplicate(table, id_column="id", **options)
    except ParameterError:
        return
    stream = gpudedup.Deduplicator(id_column="id", **options)
    keep: list[bool] = []
    while len(keep) < len(texts):
        keep += stream.filter(table.slice(len(keep), rng.choice([1, 3, 50]))).to_pylist()
    assert keep == whole.keep_mask.to_pylist()
    assert stream.removed.to_pylist() == whole.removed.to_pylist()


def test_windows_of_long_buckets() -> None:
    """More near-copies than the window holds, kept and removed ones mixed: positions count them all."""
    rng = random.Random(8)
    base = [f"w{i}" for i in range(60)]
    texts = []
    for _ in range(1200):
        words = list(base)
        for _ in range(rng.choice([1, 3, 12])):
            words[rng.randrange(60)] = f"x{rng.randrange(40)}"
        texts.append(" ".join(words))
    for window in (1, 2, 4, 8, 64):
        options: dict[str, Any] = {"threshold": 0.75, "bands": 32, "rows": 2, "bucket_window": window}
        whole = gpudedup.deduplicate(texts, **options)
        stream = gpudedup.Deduplicator(**options)
        keep = [k for i in range(0, 1200, 111) for k in stream.filter(texts[i : i + 111]).to_pylist()]
        assert keep == whole.keep_mask.to_pylist()
        assert stream.removed.equals(whole.removed)


def test_sets_that_fit_no_memory_are_spilled(tmp_path: Path) -> None:
    rng = random.Random(4)
    texts = [" ".join(f"w{rng.randrange(10**6)}" for _ in range(20000)) for _ in range(600)]
    texts += [text.replace("w1", "v1", 5) for text in texts[:50]]
    stream = gpudedup.Deduplicator(memory="64 MB", tmp=str(tmp_path), threshold=0.7)
    keep = [k for i in range(0, len(texts), 100) for k in stream.filter(texts[i : i + 100]).to_pylist()]
    assert keep == [True] * 600 + [False] * 50
    assert stream._stream.set_bytes_on_disk > 0
    assert stream._stream.set_bytes_in_memory <= 32_000_000


@pytest.mark.parametrize("options", [{"keep": "longest"}, {"clustering": "components"}])
def test_what_needs_all_documents_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError, match="at once"):
        gpudedup.Deduplicator(**options)


def test_bad_batches_are_refused_before_anything_is_remembered() -> None:
    stream = gpudedup.Deduplicator(within="w")
    stream.filter(pa.table({"text": ["a b c"], "w": ["x"]}))
    for bad in ({"text": ["a b c"]}, {"text": [1], "w": ["x"]}):
        with pytest.raises(InputError):
            stream.filter(pa.table(bad))
    with pytest.raises(ParameterError, match="earlier batches"):
        stream.filter(pa.table({"text": ["a b c"], "w": [1]}))
    assert stream.documents == 1
    assert stream.filter(pa.table({"text": ["A b c!", "A b c"], "w": ["x", "y"]})).to_pylist() == [False, True]
    assert (
        stream.filter(pa.table({"text": pa.array([], pa.string()), "w": pa.array([], pa.string())})).to_pylist() == []
    )


def test_ids_of_another_type_are_refused_before_anything_is_remembered() -> None:
    stream = gpudedup.Deduplicator(id_column="id")
    stream.filter(pa.table({"text": ["a b c d e"], "id": ["x"]}))
    with pytest.raises(ParameterError, match="earlier batches"):
        stream.filter(pa.table({"text": ["a b c d e"], "id": [1]}))
    assert stream.filter(pa.table({"text": ["a b c d e"], "id": ["y"]})).to_pylist() == [False]
    assert stream.removed.select(["row", "id", "keeper_id"]).to_pylist() == [{"row": 1, "id": "y", "keeper_id": "x"}]


def test_threads_take_turns() -> None:
    stream = gpudedup.Deduplicator()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: stream.filter([f"document {i % 50} is here again"]), range(1000)))
    assert stream.documents == 1000
    assert stream.removed.num_rows == 950


def test_many_small_batches_cost_little_memory() -> None:
    stream = gpudedup.Deduplicator()
    for _ in range(3000):
        stream.filter(["the same text every time"])
    assert stream.removed["row"].to_pylist() == list(range(1, 3000))
    assert len(stream._removed.pieces) < 20


SCOPES = {
    "dates in milliseconds": pa.array([0, 1000, 0], pa.int64()).view(pa.date64()),
    "nanoseconds": pa.array([1, 2, 1], pa.int64()).view(pa.time64("ns")),
    "the hour that comes twice": pa.array([1699162200, 1699165800, 1699162200], pa.int64()).view(
        pa.timestamp("s", "America/New_York")
    ),
    "far times": pa.array([2**62, 2**62 - 1, 2**62], pa.int64()).view(pa.timestamp("s")),
    "decimals": pa.array(["1.50", "-2.25", "1.50"]).cast(pa.decimal128(30, 2)),
    "ill-formed text": pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff", b"\xfe", b"\xff"]).buffers()),
    "booleans": pa.array([True, False, True]),
    "views": pa.array(["x", "y", "x"], pa.string_view()),
}


@pytest.mark.parametrize("name", SCOPES)
def test_scope_values_are_told_apart_by_their_stored_bits(name: str) -> None:
    table = pa.table({"text": ["a b c d e f"] * 3, "w": SCOPES[name]})
    assert gpudedup.deduplicate(table, within="w").keep_mask.to_pylist() == [True, True, False]
    stream = gpudedup.Deduplicator(within="w")
    assert [stream.filter(table.slice(i, 1)).to_pylist() for i in range(3)] == [[True], [True], [False]]
    whole = gpudedup.Deduplicator(within="w")
    assert whole.filter(table).to_pylist() == [True, True, False]


def test_a_batch_that_fails_late_leaves_nothing_behind() -> None:
    good = pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.int64()))
    bad = pa.array([[7, None]], pa.list_(pa.int64()))
    stream = gpudedup.Deduplicator(shingle="tokens:2")
    with pytest.raises(InputError, match="null element"):
        stream.filter(pa.table({"text": pa.chunked_array([good, bad])}))
    assert stream.documents == 0
    assert stream.filter(pa.table({"text": good})).to_pylist() == [True, True]


def test_earlier_runs_need_all_documents() -> None:
    with pytest.raises(ParameterError, match="against"):
        gpudedup.Deduplicator(against=["run"])
