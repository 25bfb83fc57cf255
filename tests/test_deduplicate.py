"""The whole job on data in memory: against the golden decisions, the reference, and what it promises."""

from __future__ import annotations

import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudedup
from gpudedup import DeviceError, InputError, OutputError, ParameterError

GOLDEN = json.loads((Path(__file__).parent / "golden" / "spec1.json").read_text(encoding="ascii"))
TYPES = {"double": pa.float64(), "bool": pa.bool_(), "int64": pa.int64(), "string": pa.string()}


def golden_table(name: str) -> pa.Table:
    corpus = GOLDEN["corpora"][name]
    if "tokens" in corpus:
        columns = {"text": pa.array(corpus["tokens"], pa.list_(pa.int64()))}
    else:
        columns = {"text": pa.array(corpus["texts"], pa.string())}
    for column, content in corpus["columns"].items():
        values = [math.nan if value == "nan" else value for value in content["values"]]
        columns[column] = pa.array(values, TYPES[content["type"]], from_pandas=False)
    return pa.table(columns)


def rows_of(removed: pa.Table) -> list[tuple[Any, ...]]:
    """(row, reason, keeper_row, similarity, cluster) of each removal."""
    names = ("row", "reason", "keeper_row", "similarity", "cluster")
    return list(zip(*(removed[name].to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("case", GOLDEN["decisions"], ids=lambda c: f"{c['corpus']}-{c['parameters']}")
def test_golden_decisions(case: dict[str, Any], workers: int) -> None:
    result = gpudedup.deduplicate(golden_table(case["corpus"]), workers=workers, **case["parameters"])
    assert rows_of(result.removed) == [tuple(row) for row in case["removed"]]
    assert "".join("01"[keep] for keep in result.keep_mask.to_pylist()) == case["keep_mask"]
    pairs = result.candidates()
    assert sorted(zip(*(column.to_pylist() for column in pairs.columns), strict=True)) == sorted(
        tuple(pair) for pair in case["candidates"]
    )
    summary = result.summary()
    assert [summary.bounded_buckets, summary.bounded_documents, summary.longest_bucket] == case["bounded"]
    assert (summary.bands, summary.rows) == (case["bands"], case["rows"])
    for threshold, removed in case["at"].items():
        for keep_sets in (False, True):
            again = gpudedup.deduplicate(golden_table(case["corpus"]), keep_sets=keep_sets, **case["parameters"])
            assert rows_of(again.at(float(threshold)).removed) == [tuple(row) for row in removed]


@pytest.mark.parametrize("case", GOLDEN["bands"], ids=lambda c: f"{c['threshold']}-{c['recall']}-{c['num_perm']}")
def test_golden_bands(case: dict[str, Any]) -> None:
    threshold, recall, num_perm = case["threshold"], case["recall"], case["num_perm"]
    if "needs_num_perm" in case:
        with pytest.raises(ParameterError, match=rf"num_perm={case['needs_num_perm']}\b"):
            gpudedup.Params(threshold=threshold, recall=recall, num_perm=num_perm)
    else:
        banding = gpudedup.Params(threshold=threshold, recall=recall, num_perm=num_perm).banding
        assert tuple(banding) == (case["bands"], case["rows"])


# ---- random corpora against the reference ----

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "中", "文", "ñandú", "X1", "說", "说"]


def random_corpus(rng: random.Random, size: int) -> list[str | None]:
    """Near-copies of a few short and long texts, some empty, null or in upper case."""
    originals = [[rng.choice(WORDS) for _ in range(rng.choice([0, 1, 3, 5, 8, 30, 60]))] for _ in range(2 + size // 4)]
    texts: list[str | None] = []
    for _ in range(size):
        words = list(rng.choice(originals))
        for _ in range(rng.choice([0, 0, 1, 2, 4])):
            if words:
                words[rng.randrange(len(words))] = rng.choice(WORDS)
        text = " ".join(words)
        texts.append(None if rng.random() < 0.03 else text.upper() if rng.random() < 0.2 else text)
    return texts


def random_options(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {
        "threshold": rng.choice([0.3, 0.5, 0.7, 0.8, 0.9, 1.0]),
        "shingle": rng.choice(["word:5", "word:2", "char:4", "word:1"]),
        "num_perm": rng.choice([16, 64, 128]),
        "seed": rng.choice([0, 7]),
        "fold": rng.choice(["full", "case", "none"]),
        "verify": rng.choice(["exact", "exact", "signature", "none"]),
        "bucket_window": rng.choice([1, 2, 8, 64]),
        "clustering": rng.choice(["keepers", "keepers", "components"]),
        "drop_empty": rng.random() < 0.3,
        "recall": rng.choice([0.5, 0.8]),
    }
    if rng.random() < 0.4:
        options |= {"bands": 4, "rows": 2}
    return options


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32))
def test_equals_reference(seed: int) -> None:
    assert_random_run_equals_reference(seed)


def assert_random_run_equals_reference(seed: int, device: str = "auto") -> None:
    rng = random.Random(seed)
    texts = random_corpus(rng, rng.choice([1, 5, 20, 60, 100]))
    options = random_options(rng)
    columns: dict[str, pa.Array] = {"text": pa.array(texts, pa.string())}
    values = within = across = None
    keep = rng.choice(["first", "first", "longest", "max:k", "min:k", "sources:k=b,a"])
    if keep.startswith("sources"):
        values = [rng.choice(["a", "b", "c", None]) for _ in texts]
        columns["k"] = pa.array(values, pa.string())
    elif ":" in keep:
        values = [rng.choice([1.5, -0.0, 0.0, math.nan, None, 3.0, math.inf]) for _ in texts]
        columns["k"] = pa.array(values, pa.float64(), from_pandas=False)
    if rng.random() < 0.3:
        within = [rng.choice([1, 2, -5, None]) for _ in texts]
        columns["w"] = pa.array(within, pa.int32())
    if rng.random() < 0.3:
        across = [rng.choice(["train", "test", None]) for _ in texts]
        columns["x"] = pa.array(across, pa.string())
    try:
        expected = reference.deduplicate(texts, keep=keep, keep_values=values, within=within, across=across, **options)
    except ValueError:  # no banding reaches the recall
        with pytest.raises(ParameterError):
            gpudedup.deduplicate(pa.table(columns), **options)
        return
    result = gpudedup.deduplicate(
        pa.table(columns),
        keep=keep,
        within="w" if within else None,
        across="x" if across else None,
        workers=rng.choice([1, 2, 5]),
        keep_sets=rng.random() < 0.3,
        device=device,
        **options,
    )
    assert_same(result, expected)
    for threshold in (0.85, 1.0):
        if threshold >= options["threshold"]:
            assert_same(result.at(threshold), expected.at(threshold))


def assert_same(result: gpudedup.Result, expected: reference.Result) -> None:
    wanted = [(r.row, r.reason, r.keeper_row, r.similarity, r.cluster) for r in expected.removed]
    assert rows_of(result.removed) == wanted
    assert result.keep_mask.to_pylist() == list(expected.keep_mask)


@pytest.mark.parametrize("window", [2, 64])
@pytest.mark.parametrize("across", [False, True])
def test_several_blocks_of_documents_equal_reference(window: int, across: bool) -> None:
    """More documents than are decided at once: what an earlier block removed is skipped in the next."""
    assert_several_blocks_equal_reference(window, across)


def assert_several_blocks_equal_reference(window: int, across: bool) -> None:
    rng = random.Random(window)
    originals = [[rng.choice(WORDS) + str(rng.randrange(9)) for _ in range(14)] for _ in range(40)]
    texts = []
    for _ in range(2600):
        words = list(originals[min(39, int(rng.expovariate(0.15)))])
        for _ in range(rng.choice([0, 1, 1, 2, 5])):
            words[rng.randrange(14)] = f"{rng.choice(WORDS)}{rng.randrange(40)}"
        texts.append(" ".join(words))
    split = [rng.choice(["train", "test"]) for _ in texts]
    options: dict[str, Any] = {"threshold": 0.5, "num_perm": 32, "bands": 16, "rows": 2, "bucket_window": window}
    expected = reference.deduplicate(texts, shingle="word:2", across=split if across else None, **options)
    table = pa.table({"text": texts, "split": split})
    result = gpudedup.deduplicate(table, shingle="word:2", across="split" if across else None, workers=2, **options)
    assert_same(result, expected)
    assert_same(result.at(0.8), expected.at(0.8))


# ---- properties ----


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_every_keeper_is_kept_and_similar_and_two_runs_agree(seed: int) -> None:
    rng = random.Random(seed)
    texts = random_corpus(rng, 60)
    first, second = (gpudedup.deduplicate(texts, threshold=0.6, workers=w) for w in (1, 4))
    assert first.removed.equals(second.removed)
    keep = first.keep_mask.to_pylist()
    for row in first.removed.to_pylist():
        assert keep[row["keeper_row"]]
        assert row["similarity"] >= 0.6
    for row in first.removed.to_pylist():
        pair = [set(reference.shingle_hashes(reference.units(texts[i] or ""), 5)) for i in (row["row"], row["cluster"])]
        assert row["similarity"] == len(pair[0] & pair[1]) / len(pair[0] | pair[1])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_with_unique_ranks_order_of_input_changes_nothing(seed: int) -> None:
    rng = random.Random(seed)
    texts = random_corpus(rng, 50)
    score = rng.sample(range(1000), 50)
    order = rng.sample(range(50), 50)
    table = pa.table({"text": texts, "score": score})
    plain = gpudedup.deduplicate(table, threshold=0.6, keep="max:score")
    mixed = gpudedup.deduplicate(table.take(order), threshold=0.6, keep="max:score")
    # Documents without units are kept in both; all others are decided by rank alone.
    assert [plain.keep_mask[i].as_py() for i in order] == mixed.keep_mask.to_pylist()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 39))
def test_a_copy_at_the_end_removes_exactly_one_more(seed: int, which: int) -> None:
    texts = random_corpus(random.Random(seed), 40)
    before = gpudedup.deduplicate(texts, threshold=0.7).keep_mask.to_pylist()
    after = gpudedup.deduplicate([*texts, texts[which]], threshold=0.7).keep_mask.to_pylist()
    has_units = bool(reference.units(texts[which] or ""))
    assert after == [*before, not has_units]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32))
def test_at_fixed_bands_a_higher_threshold_compares_as_a_run_of_its_own(seed: int) -> None:
    texts = random_corpus(random.Random(seed), 50)
    low = gpudedup.deduplicate(texts, threshold=0.5)
    bands, rows = low.summary().bands, low.summary().rows
    for threshold in (0.5, 0.75, 1.0):
        fresh = gpudedup.deduplicate(texts, threshold=threshold, bands=bands, rows=rows)
        assert low.at(threshold).removed.equals(fresh.removed)


# ---- named cases ----

PARAGRAPHS = [
    "The harbour office keeps a ledger of every boat that enters before noon.",
    "Visitors may read it on Fridays, provided they wash their hands first.",
    "In winter the clerk lights a second lamp and writes the names in blue ink.",
    "Nobody remembers who began the custom, yet every page since then is signed twice.",
]
CHINESE = "国务院办公厅关于进一步优化营商环境的通知要求各地区各部门认真贯彻落实深化改革扩大开放促进经济持续健康发展"
TRADITIONAL = "國務院辦公廳關於進一步優化營商環境的通知要求各地區各部門認真貫徹落實深化改革擴大開放促進經濟持續健康發展"
SAME = {
    "blanks, case and punctuation": ("Hello, World! one two three", "hello world ONE - two; three"),
    "traditional and simplified": (CHINESE, TRADITIONAL),
    "Chinese with blanks": (CHINESE, " ".join(CHINESE)),
    "zero-width characters": ("near copies of one text", "near\u200b cop\u00adies of\ufeff one te\u200dxt"),
    "NFC and NFD": (
        "r\u00e9sum\u00e9 caf\u00e9 na\u00efve d\u00e9j\u00e0 vu",
        "re\u0301sume\u0301 cafe\u0301 nai\u0308ve de\u0301ja\u0300 vu",
    ),
    "full width": ("ABC 123 full width text", "ＡＢＣ １２３ ｆｕｌｌ ｗｉｄｔｈ ｔｅｘｔ"),
    "kana composed and not": ("ガギグゲゴは濁音です", "カ\u3099キ\u3099ク\u3099ケ\u3099コ\u3099は濁音て\u3099す"),
    "half-width kana": ("カタカナテスト", "ｶﾀｶﾅﾃｽﾄ"),
    "Hangul composed and not": (
        "한국어 문장",
        "\u1112\u1161\u11ab\u1100\u116e\u11a8\u110b\u1165 \u1106\u116e\u11ab\u110c\u1161\u11bc",
    ),
    "digits of another script": ("1234 5678", "١٢٣٤ ५६७८"),
}


@pytest.mark.parametrize("name", SAME)
def test_same_content(name: str) -> None:
    result = gpudedup.deduplicate(list(SAME[name]))
    assert rows_of(result.removed) == [(1, "exact", 0, 1.0, 0)]


def test_watermark_between_paragraphs() -> None:
    article = [f"{p} {p[::-1]} {p.swapcase()} number {i}" for i, p in enumerate(PARAGRAPHS)]
    repost = "\n--- read more at example.org ---\n".join(article)
    result = gpudedup.deduplicate(["\n\n".join(article), repost], threshold=0.6)
    assert [row[1:3] for row in rows_of(result.removed)] == [("near", 0)]


def test_short_documents_are_compared_as_a_whole() -> None:
    result = gpudedup.deduplicate(["yes", "no", "yes", "yes please", "Yes.", "one two three four", "one two three"])
    assert [row[:3] for row in rows_of(result.removed)] == [(2, "exact", 0), (4, "exact", 0)]


def test_empty_documents_are_kept_and_match_nothing() -> None:
    texts = ["", None, " . ", "text", "", "\u200b"]
    assert gpudedup.deduplicate(texts).keep_mask.to_pylist() == [True] * 6
    dropped = gpudedup.deduplicate(texts, drop_empty=True)
    assert rows_of(dropped.removed) == [(i, "empty", None, None, None) for i in (0, 1, 2, 4, 5)]
    assert dropped.summary().removed_empty == 5


def test_all_equal_and_none_equal() -> None:
    same = gpudedup.deduplicate(["the same five words here"] * 1000)
    assert same.summary().kept == 1
    assert set(same.removed["keeper_row"].to_pylist()) == {0}
    other = gpudedup.deduplicate([f"document number {i} of {i * i} says {i**3} things" for i in range(1000)])
    assert other.summary().removed == 0
    assert other.removed.num_rows == 0


def test_no_documents() -> None:
    for data in ([], pa.table({"text": pa.array([], pa.string())})):
        result = gpudedup.deduplicate(data)
        assert (result.summary().documents, result.removed.num_rows, len(result.keep_mask)) == (0, 0, 0)
        assert result.kept().read_all().num_rows == 0


def test_the_removed_table() -> None:
    table = pa.table({"key": ["a", "b", "c"], "text": ["one two three four five six"] * 2 + ["else"]})
    removed = gpudedup.deduplicate(table, id_column="key").removed
    assert removed.schema == pa.schema(
        [
            *(("shard", pa.string()), ("row", pa.int64()), ("id", pa.string()), ("reason", pa.string())),
            *(("keeper_shard", pa.string()), ("keeper_row", pa.int64()), ("keeper_id", pa.string())),
            *(("similarity", pa.float64()), ("cluster", pa.int64())),
        ]
    )
    assert removed.to_pylist() == [
        {
            "shard": "",
            "row": 1,
            "id": "b",
            "reason": "exact",
            "keeper_shard": "",
            "keeper_row": 0,
            "keeper_id": "a",
            "similarity": 1.0,
            "cluster": 0,
        }
    ]


def test_clusters() -> None:
    texts = ["a b c d e f", "x", "a b c d e f", "x", "lonely"]
    assert gpudedup.deduplicate(texts).clusters().to_pydict() == {
        "cluster": [0, 0, 1, 1],
        "document": [0, 2, 1, 3],
        "similarity": [None, 1.0, None, 1.0],
    }


def test_kept_is_the_input_without_removals() -> None:
    table = pa.table({"text": ["a a", "b", "a a", "c"], "n": [1, 2, 3, 4]})
    assert gpudedup.deduplicate(table).kept().read_all().to_pydict() == {"text": ["a a", "b", "c"], "n": [1, 2, 4]}


def test_text_scope_and_ids_as_views_and_categories() -> None:
    """What Polars gives: string views, and dictionaries of them."""
    polars = pytest.importorskip("polars")
    frame = polars.DataFrame({"text": ["a b c d e f"] * 3, "w": ["x", "y", "x"], "id": ["p", None, "r"]})
    frame = frame.with_columns(
        polars.col("text").cast(polars.Categorical), polars.col("w").cast(polars.Enum(["y", "x"]))
    )
    result = gpudedup.deduplicate(frame, within="w", keep="max:w", id_column="id")
    assert result.keep_mask.to_pylist() == [True, True, False]
    assert result.removed.select(["id", "keeper_id"]).to_pylist() == [{"id": "r", "keeper_id": "p"}]
    by_source = gpudedup.deduplicate(frame, keep="sources:w=y", id_column="w")
    assert by_source.removed.select(["id", "keeper_id"]).to_pylist() == [{"id": "x", "keeper_id": "y"}] * 2


@pytest.mark.parametrize("library", ["polars", "pandas", "duckdb", "reader", "batches", "dataset", "array"])
def test_data_of_other_libraries(library: str, tmp_path: Path) -> None:
    texts = ["one two three", "four", None, "One, two, three!", "five"]
    table = pa.table({"text": texts, "n": range(5)})
    if library == "polars":
        data: Any = pytest.importorskip("polars").DataFrame({"text": texts, "n": range(5)})
    elif library == "pandas":
        data = pytest.importorskip("pandas").DataFrame({"text": texts, "n": range(5)})
    elif library == "duckdb":
        data = pytest.importorskip("duckdb").from_arrow(table)
    elif library == "reader":
        data = table.to_reader(max_chunksize=2)
    elif library == "batches":
        data = iter(table.to_batches(max_chunksize=2))
    elif library == "dataset":
        import pyarrow.dataset as ds
        import pyarrow.parquet as pq

        pq.write_table(table, tmp_path / "part.parquet")
        data = ds.dataset(tmp_path)
    else:
        data = table.to_batches()[0]
    result = gpudedup.deduplicate(data)
    assert result.keep_mask.to_pylist() == [True, True, True, False, True]
    assert result.kept().read_all()["n"].to_pylist() == [0, 1, 2, 4]


def test_chunks_and_offsets_change_nothing() -> None:
    texts = random_corpus(random.Random(3), 80)
    table = pa.table({"text": pa.array(texts, pa.string())})
    whole = gpudedup.deduplicate(table, threshold=0.6)
    chunked = pa.chunked_array([pa.array(["?", *texts[:30]]).slice(1), pa.array([], pa.string()), pa.array(texts[30:])])
    assert gpudedup.deduplicate(pa.table({"text": chunked}), threshold=0.6).removed.equals(whole.removed)


# ---- memory, spill, second read ----


def test_a_small_memory_gives_the_same_removals(tmp_path: Path) -> None:
    """Sets that fit no memory go to a file; hashes that fit no cache are made again from the text."""
    rng = random.Random(5)
    words = [f"w{i}" for i in range(4000)]
    originals = [[rng.choice(words) for _ in range(3000)] for _ in range(150)]
    texts = []
    for i in range(1500):
        document = list(originals[i % 150])
        for _ in range(rng.choice([0, 5, 40])):
            document[rng.randrange(3000)] = rng.choice(words)
        texts.append(" ".join(document))
    table = pa.table({"text": texts})
    roomy = gpudedup.deduplicate(table, threshold=0.7)
    tight = gpudedup.deduplicate(table, threshold=0.7, memory="64 MB", tmp=str(tmp_path), keep_sets=True)
    assert tight.removed.equals(roomy.removed)
    assert tight.removed.num_rows > 1000
    assert not list(tmp_path.iterdir())  # spill files have no name
    sets = tight._outcome.verified.sets
    assert sets is not None
    assert sets.bytes_in_memory <= 32_000_000


def test_no_room_for_sets(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not a directory"):
        gpudedup.deduplicate(["a"], tmp=str(tmp_path / "missing"))


def test_spooled_streams_are_deleted(tmp_path: Path) -> None:
    """A one-shot stream that fits no memory lies in ``tmp`` while its result lives, not after, nor after an error."""
    rng = random.Random(1)
    texts = [" ".join(str(rng.randrange(10**6)) for _ in range(2000)) for _ in range(900)]

    def reader() -> pa.RecordBatchReader:
        return pa.table({"text": texts}).to_reader(max_chunksize=100)

    result = gpudedup.deduplicate(reader(), memory="64 MB", tmp=str(tmp_path))
    assert list(tmp_path.iterdir())
    assert result.kept().read_all().num_rows == 900
    del result
    gc.collect()
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError):
        gpudedup.deduplicate(reader(), memory="64 MB", tmp=str(tmp_path), within="nope")
    gc.collect()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [pa.float16(), pa.decimal32(5, 1), pa.decimal64(9, 1), pa.decimal128(20, 1)], ids=str)
def test_keep_by_numbers_that_arrow_does_not_sort(kind: pa.DataType) -> None:
    values = pa.array([1.5, 3.5, None, 2.5]).cast(pa.float32())
    scores = values.cast(kind) if pa.types.is_floating(kind) else values.cast(pa.decimal128(20, 1)).cast(kind)
    table = pa.table({"text": ["a b c d e f"] * 4, "k": scores})
    assert gpudedup.deduplicate(table, keep="max:k").keep_mask.to_pylist() == [False, True, False, False]
    assert gpudedup.deduplicate(table, keep="min:k").keep_mask.to_pylist() == [True, False, False, False]


def test_text_bytes_are_bytes_of_text() -> None:
    assert gpudedup.deduplicate(["a"] * 1000).summary().text_bytes == 1000


# ---- parameters ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0}, "above 0"),
        ({"threshold": 1.01}, "at most 1"),
        ({"threshold": float("nan")}, "above 0"),
        ({"threshold": 1e-9}, "rounds to 0"),
        ({"threshold": "0.8"}, "must be float"),
        ({"recall": 1.0}, "below 1"),
        ({"shingle": "word"}, "word:n"),
        ({"shingle": "word:0"}, "word:n"),
        ({"shingle": "words:5"}, "word:n"),
        ({"num_perm": 0}, "from 1"),
        ({"num_perm": True}, "must be int"),
        ({"bands": 4}, "given together"),
        ({"bands": 16, "rows": 9}, "16 \\* 9 = 144"),
        ({"seed": -1}, "from 0"),
        ({"seed": 2**64}, "from 0"),
        ({"fold": "lower"}, '"full"'),
        ({"verify": "yes"}, '"exact"'),
        ({"keep": "last"}, '"first"'),
        ({"keep": "max:"}, '"max:COL"'),
        ({"keep": "sources:a"}, "sources:COL"),
        ({"keep": "sources:a=x,x"}, "twice"),
        ({"bucket_window": 0}, "from 1"),
        ({"clustering": "union"}, '"keepers"'),
        ({"device": "gpu"}, '"cpu"'),
        ({"workers": 0}, "from 1"),
        ({"memory": "lots"}, "768 MB"),
        ({"memory": "1 MB"}, "at least"),
        ({"memory": 2**70}, "below 2\\^60"),
        ({"within": "a", "across": "a"}, "same column"),
        ({"treshold": 0.8}, "unknown parameter 'treshold'"),
        ({"on_error": "ignore"}, '"skip"'),
    ],
    ids=str,
)
def test_bad_parameters(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        gpudedup.deduplicate(["text"], **options)


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUDEDUP_DISABLE_GPU", "1")
    for device in ("cuda", "cuda:3"):
        with pytest.raises(DeviceError, match=f'{device}" is not available: GPUDEDUP_DISABLE_GPU=1 .* device="cpu"'):
            gpudedup.deduplicate(["text"], device=device)
    summary = gpudedup.deduplicate(["text"], device="auto").summary()
    assert summary.device.startswith("cpu (")
    assert summary.device_reason.startswith("GPUDEDUP_DISABLE_GPU=1 ")


def test_numbers_of_numpy_are_numbers() -> None:
    summary = gpudedup.deduplicate(["text"], threshold=np.float32(0.75), num_perm=np.int64(64)).summary()
    assert (summary.threshold, summary.parameters.num_perm) == (0.75, 64)


def test_at_below_the_threshold() -> None:
    for threshold in (0.5, "x", None):
        with pytest.raises(ParameterError, match=r"threshold .* 0\.8"):
            gpudedup.deduplicate(["text"]).at(threshold)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("table", "options", "error", "message"),
    [
        ({"body": ["a"]}, {}, InputError, "body"),
        ({"text": [1]}, {}, InputError, "int64"),
        ({"text": [[1]]}, {}, InputError, "tokens:5"),
        ({"text": ["a"]}, {"shingle": "tokens:2"}, InputError, "lists of integers"),
        ({"text": [[1, None]]}, {"shingle": "tokens:2"}, InputError, "null element"),
        ({"text": ["a"], "w": [0.5]}, {"within": "w"}, ParameterError, "double"),
        ({"text": ["a"], "w": [{"x": 1}]}, {"keep": "max:w"}, InputError, "nested"),
        ({"text": ["a"], "w": [0.5]}, {"keep": "sources:w=a"}, ParameterError, "double"),
        ({"text": ["a"]}, {"id_column": "id"}, InputError, "id"),
    ],
    ids=str,
)
def test_bad_columns(table: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        gpudedup.deduplicate(pa.table(table), **options)


@pytest.mark.parametrize("data", [None, 5, {"text": ["a"]}, b"text", [1, 2], object()], ids=lambda d: type(d).__name__)
def test_data_that_is_no_corpus(data: Any) -> None:
    with pytest.raises(InputError):
        gpudedup.deduplicate(data)


@pytest.mark.parametrize(
    "inputs",
    [None, 5, b"a.jsonl", {"a.jsonl": 1}, ["a.jsonl", None], pa.table({"text": ["a"]})],
    ids=lambda i: type(i).__name__,
)
def test_run_of_what_is_no_path(inputs: Any, tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="path"):
        gpudedup.run(inputs, tmp_path / "out")
    with pytest.raises(ParameterError, match="directory"):
        gpudedup.run("a.jsonl", inputs)


# ---- growth, interruption, forks ----


def test_near_copies_cost_one_comparison_each() -> None:
    rng = random.Random(1)
    base = [f"w{rng.randrange(5000)}" for _ in range(300)]
    texts = []
    for i in range(3000):
        words = list(base)
        words[rng.randrange(300)] = f"n{i}"
        texts.append(" ".join(words))
    summary = gpudedup.deduplicate(texts, threshold=0.8).summary()
    assert summary.kept == 1
    assert summary.compared_pairs <= 1.1 * len(texts)


def test_a_long_bucket_is_bounded_and_said_so() -> None:
    """3,000 texts that share a template and are not similar: at most 2W candidates a document and band."""
    rng = random.Random(2)
    template = [f"t{i}" for i in range(150)]
    texts = [" ".join(template + [f"x{rng.randrange(10**9)}" for _ in range(90)]) for _ in range(3000)]
    summary = gpudedup.deduplicate(texts, threshold=0.8, bands=42, rows=3, bucket_window=4).summary()
    assert summary.bounded_buckets > 0
    assert summary.longest_bucket > 9
    assert summary.compared_pairs <= 3000 * 8 * 42


SLOW_JOB = """
    import gpudedup, pyarrow as pa
    words = [f"w{i}" for i in range(1000)]
    text = " ".join(words * 200)
    print("ready", flush=True)
    try:
        while True:
            gpudedup.deduplicate(pa.array([text] * 60).to_pylist(), num_perm=4096, seed=3, workers=%d)
    except KeyboardInterrupt:
        print("stopped", flush=True)
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_is_answered_within_a_second(workers: int) -> None:
    job = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SLOW_JOB % workers)], stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    assert job.stdout.readline() == "ready\n"
    time.sleep(1.5)
    start = time.monotonic()
    job.send_signal(signal.SIGINT)
    assert job.communicate(timeout=20)[0] == "stopped\n"
    assert time.monotonic() - start < 1.5  # a second to answer, and the interpreter's own end


def test_use_after_fork() -> None:
    """Threads live for one call only, so a child may go on where its parent was."""
    texts = ["one two three four five"] * 2 + ["something else entirely"]
    expected = gpudedup.deduplicate(texts).removed
    child = os.fork()
    if child == 0:
        os._exit(0 if gpudedup.deduplicate(texts).removed.equals(expected) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_an_unknown_tier_is_an_error() -> None:
    code = "import gpudedup; gpudedup.deduplicate(['a'])"
    job = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "GPUDEDUP_CPU": "sse9"}, capture_output=True, text=True
    )
    assert "GPUDEDUP_CPU=sse9 is not a CPU tier of this machine" in job.stderr


def test_native_entry_points_refuse_bad_arrays() -> None:
    from gpudedup import _cpu

    signer = _cpu.Signer(unit="word", n=5, fold="full", num_perm=4, seed=0)
    text = np.frombuffer(b"some text", np.uint8)
    for offsets in ([0, 10], [5, 2], [-1, 3], []):
        with pytest.raises(ValueError):
            signer.sign(text, np.array(offsets, np.int64), keep_hashes=False, workers=1)
    with pytest.raises((ValueError, TypeError)):
        signer.sign(text, np.array([0.0, 3.0]), keep_hashes=False, workers=1)  # type: ignore[arg-type]
