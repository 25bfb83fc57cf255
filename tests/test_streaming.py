"""A stream decided batch after batch gives the answer of one batch, for every way to cut it; and so does one that was
saved and opened in between, of which the files are whole or refused.
"""

from __future__ import annotations

import decimal
import errno
import fcntl
import io
import json
import os
import random
import runpy
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pytest
import xxhash
from forged import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deduplicate import GOLDEN, golden_table, random_corpus, random_options, rows_of

import gpudedup
from gpudedup import ArtefactError, GpudedupError, InputError, LockedError, OutputError, ParameterError, _cpu
from gpudedup.store import stream_state

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


@pytest.mark.parametrize("options", [{"keep": "longest"}, {"clustering": "components"}, {"max_removed": 0.5}])
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


def test_columns_of_another_type_are_refused_before_anything_is_remembered(tmp_path: Path) -> None:
    """Also if the batch that would have settled the type was refused itself."""
    stream = gpudedup.Deduplicator(shingle="tokens:2", within="w")
    bad = pa.array([[7, None]], pa.list_(pa.int64()))
    with pytest.raises(InputError, match="null element"):
        stream.filter(pa.table({"text": bad, "w": [1]}))
    good = pa.table({"text": pa.array([[1, 2]], pa.list_(pa.int64())), "w": ["x"]})
    assert stream.filter(good).to_pylist() == [True]
    untouched = gpudedup.Deduplicator(shingle="tokens:2", within="w")
    untouched.filter(good)
    stream.save(tmp_path / "one")
    untouched.save(tmp_path / "two")
    assert bytes_of(tmp_path / "one") == bytes_of(tmp_path / "two")


def test_an_interrupt_between_the_parts_of_a_batch_ends_a_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = gpudedup.Deduplicator()
    decide, calls = stream._decide, []

    def interrupted(*arguments: Any) -> pa.BooleanArray:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decide(*arguments)

    monkeypatch.setattr(stream, "_decide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stream.filter(["a b c"] * 200_000)  # two parts
    for call in (lambda: stream.filter(["x"]), lambda: stream.save(tmp_path / "state")):
        with pytest.raises(GpudedupError, match="interrupted half-way"):
            call()
    assert not (tmp_path / "state").exists()


def test_pieces_of_ids_are_joined_only_as_far_as_their_type_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpudedup.streaming.MAX_PIECE_BYTES", 1000)
    stream = gpudedup.Deduplicator(id_column="id")
    for number in range(64):
        stream.filter(pa.table({"text": ["one text"] * 5, "id": [f"{number:05}-{row:04}" for row in range(5)]}))
    assert max(piece.nbytes for piece in stream._ids.pieces) <= 1000
    expected = [f"{number:05}-{row:04}" for number in range(64) for row in range(5)]
    assert stream.removed["id"].to_pylist() == expected[1:]


# Saved and opened


def reopened(stream: gpudedup.Deduplicator, folder: Path, **options: Any) -> gpudedup.Deduplicator:
    stream.save(folder)
    return gpudedup.Deduplicator.open(folder, **options)


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("case", STREAMED, ids=lambda c: f"{c['corpus']}-{c['parameters']}")
def test_golden_decisions_of_a_stream_that_is_reopened(case: dict[str, Any], tmp_path: Path) -> None:
    table = golden_table(case["corpus"])
    stream = gpudedup.Deduplicator(**case["parameters"])
    mask: list[bool] = []
    half = table.num_rows // 2
    for part in (table.slice(0, half), table.slice(half)):
        mask += stream.filter(part).to_pylist()
        stream = reopened(stream, tmp_path / "state")
    assert "".join("01"[keep] for keep in mask) == case["keep_mask"]
    assert rows_of(stream.removed) == [tuple(row) for row in case["removed"]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_any_reopening_equals_one_batch(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("reopened")
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
    unbroken = gpudedup.Deduplicator(id_column="id", **options)
    keep: list[bool] = []
    while len(keep) < len(texts):
        part = table.slice(len(keep), rng.choice([1, 3, 50]))
        if rng.random() < 0.3:
            stream = reopened(stream, folder / rng.choice("ab"), workers=rng.choice([1, 2]), memory="64 MB")
        keep += stream.filter(part).to_pylist()
    assert keep == whole.keep_mask.to_pylist()
    assert stream.removed.to_pylist() == whole.removed.to_pylist()
    unbroken.filter(table)
    assert stream.removed.equals(unbroken.removed)
    stream.save(folder / "stream")
    unbroken.save(folder / "unbroken")
    assert bytes_of(folder / "stream") == bytes_of(folder / "unbroken")


def test_windows_of_long_buckets_are_saved(tmp_path: Path) -> None:
    """Kept documents that the window has passed are forgotten, by the stream now and then and by its saved state; in
    the one that follows, positions go on.
    """
    rng = random.Random(9)
    base = [f"w{i}" for i in range(60)]
    texts = []
    for _ in range(900):
        words = list(base)
        for _ in range(rng.choice([1, 3, 12])):
            words[rng.randrange(60)] = f"x{rng.randrange(40)}"
        texts.append(" ".join(words))
    for window in (1, 4, 64):
        options: dict[str, Any] = {"threshold": 0.75, "bands": 32, "rows": 2, "bucket_window": window}
        whole = gpudedup.deduplicate(texts, **options)
        stream = gpudedup.Deduplicator(**options)
        keep = []
        for first in range(0, 900, 300):
            keep += stream.filter(texts[first : first + 300]).to_pylist()
            stream = reopened(stream, tmp_path / str(window))
        assert keep == whole.keep_mask.to_pylist()
        assert stream.removed.equals(whole.removed)


def test_tables_of_many_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpudedup.store.stream_state.MAX_ROWS", 50)
    monkeypatch.setattr("gpudedup.store.stream_state.SET_VALUES", 300)
    monkeypatch.setattr("gpudedup.store.stream_state.BUCKETS", 7)
    monkeypatch.setattr("gpudedup.streaming.MAX_ROWS", 50)
    rng = random.Random(3)
    texts = [f"{text} {rng.randrange(400)}" for text in random_corpus(rng, 700)]
    ids = pa.array([f"id{number}" for number in range(700)])
    table = pa.table({"text": pa.array(texts, pa.string()), "id": ids})
    options: dict[str, Any] = {"threshold": 0.4, "shingle": "word:1", "id_column": "id", "num_perm": 16}
    whole = gpudedup.deduplicate(table, **options)
    stream = gpudedup.Deduplicator(**options)
    keep = stream.filter(table.slice(0, 400)).to_pylist()
    stream = reopened(stream, tmp_path / "state")
    batches = {path.name.split("-")[0]: len([*pa.ipc.open_stream(path)]) for path in tmp_path.glob("state/*.arrows")}
    assert min(batches[kind] for kind in ("representatives", "kept", "sets", "buckets", "band0", "removals", "ids")) > 1
    keep += stream.filter(table.slice(400)).to_pylist()
    assert keep == whole.keep_mask.to_pylist()
    assert stream.removed.equals(whole.removed)


def test_sets_of_a_saved_stream_are_spilled_too(tmp_path: Path) -> None:
    tokens = np.random.default_rng(4).integers(0, 10**9, (600, 20000))
    stream = gpudedup.Deduplicator(memory="64 MB", tmp=tmp_path, shingle="tokens:5")
    stream.filter(pa.table({"text": pa.array([*tokens], pa.list_(pa.int64()))}))
    stream = reopened(stream, tmp_path / "state", memory="64 MB", tmp=tmp_path)
    assert stream._stream.set_bytes_on_disk > 0
    assert stream._stream.set_bytes_in_memory <= 32_000_000
    tokens[:50, 1000] = -1
    again = pa.table({"text": pa.array([*tokens[:50]], pa.list_(pa.int64()))})
    assert stream.filter(again).to_pylist() == [False] * 50
    with pytest.raises(OutputError, match="is not a directory"):
        gpudedup.Deduplicator.open(tmp_path / "state", tmp=tmp_path / "missing")


OTHER_PROCESS = """
import json, sys, gpudedup
stream = gpudedup.Deduplicator.open(sys.argv[1], workers=1)
stream.filter(json.load(sys.stdin))
stream.save(sys.argv[1])
"""


def test_another_process_on_another_machine_goes_on(tmp_path: Path) -> None:
    """Another secret in its tables, other instructions."""
    rng = random.Random(2)
    texts = random_corpus(rng, 300)
    options: dict[str, Any] = {"threshold": 0.5, "shingle": "word:2"}
    whole = gpudedup.deduplicate(texts, **options)
    stream = gpudedup.Deduplicator(**options)
    stream.filter(texts[:100])
    stream.save(tmp_path)
    for part, tier in ((texts[100:200], "baseline"), (texts[200:], "")):
        environment = {**os.environ, "GPUDEDUP_CPU": tier} if tier else {**os.environ}
        subprocess.run(
            [sys.executable, "-c", OTHER_PROCESS, str(tmp_path)],
            input=json.dumps(part), text=True, check=True, env=environment,
        )  # fmt: skip
    stream = gpudedup.Deduplicator.open(tmp_path)
    assert stream.documents == 300
    assert stream.removed.equals(whole.removed)


IDS = {
    "numbers with nulls": pa.array([1, None, 3], pa.int16()),
    "text": pa.array(["x", None, "z"]),
    "views": pa.array(["a longer one than twelve bytes", None, "z"], pa.string_view()),
    "bytes": pa.array([b"\xff", None, b""], pa.large_binary()),
    "ill-formed text": pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff", b"\xfe", b"\xfd"]).buffers()),
    "ill-formed views": pa.Array.from_buffers(pa.string_view(), 3, pa.array([b"\xff"] * 3, pa.binary_view()).buffers()),
    "dictionary": pa.array(["x", None, "x"]).dictionary_encode(),
    "decimals": pa.array([decimal.Decimal("1.50"), None, decimal.Decimal(2)], pa.decimal128(30, 2)),
    "times": pa.array([1, None, 3], pa.timestamp("us", "Asia/Tokyo")),
    "lists of numbers": pa.array([[1, 2], None, []], pa.list_(pa.int64())),
    "nothing": pa.nulls(3),
    "uuids": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16, None, b"1" * 16], pa.binary(16))),
}


@pytest.mark.parametrize("name", IDS)
def test_ids_of_every_type_are_saved(name: str, tmp_path: Path) -> None:
    ids = IDS[name]
    table = pa.table({"text": ["a b c d e f"] * len(ids), "id": ids})
    stream, unbroken = (gpudedup.Deduplicator(id_column="id") for _ in range(2))
    for _ in range(2):
        unbroken.filter(table)
        stream.filter(table)
        stream = reopened(stream, tmp_path / "state")
    assert stream.removed.schema == unbroken.removed.schema
    assert stream.removed.num_rows == 5
    assert stream.removed.equals(unbroken.removed)
    other = pa.table({"text": ["x"], "id": pa.array([1.5], pa.float32())})
    with pytest.raises(ParameterError, match=r'column "id" was .* in earlier batches and is float now'):
        stream.filter(other)


class Celsius(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.int16(), "test.celsius")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> pa.ExtensionType:
        return cls()


def test_ids_of_a_type_that_is_not_known_here(tmp_path: Path) -> None:
    pa.register_extension_type(Celsius())
    stream = gpudedup.Deduplicator(id_column="id")
    ids = pa.ExtensionArray.from_storage(Celsius(), pa.array([20, 21], pa.int16()))
    stream.filter(pa.table({"text": ["a b c"] * 2, "id": ids}))
    assert reopened(stream, tmp_path).removed.equals(stream.removed)
    pa.unregister_extension_type("test.celsius")
    with pytest.raises(ArtefactError, match="which is not registered here"):
        gpudedup.Deduplicator.open(tmp_path)


def test_views_are_saved_without_what_they_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpudedup.streaming.MAX_ROWS", 10)
    ids = pa.array([f"an id that is stored out of line {number}" for number in range(1000)], pa.string_view())
    stream = gpudedup.Deduplicator(id_column="id")
    stream.filter(pa.table({"text": ["a b c"] * 1000, "id": ids}))
    assert reopened(stream, tmp_path).removed.equals(stream.removed)
    (saved,) = tmp_path.glob("ids-*")
    assert saved.stat().st_size < 150_000


@pytest.mark.parametrize("name", SCOPES)
def test_scope_values_are_saved(name: str, tmp_path: Path) -> None:
    table = pa.table({"text": ["a b c d e f"] * 3, "w": SCOPES[name]})
    stream = gpudedup.Deduplicator(within="w")
    masks = []
    for row in range(3):
        masks += stream.filter(table.slice(row, 1)).to_pylist()
        stream = reopened(stream, tmp_path / "state")
    assert masks == [True, True, False]
    with pytest.raises(ParameterError, match="in earlier batches and is int8 now"):
        stream.filter(pa.table({"text": ["x"], "w": pa.array([1], pa.int8())}))
    assert stream.filter(pa.table({"text": ["x"], "w": pa.nulls(1)})).to_pylist() == [True]


def test_parameters_are_those_of_the_saved_stream(tmp_path: Path) -> None:
    stream = gpudedup.Deduplicator(
        threshold=0.6, seed=2**64 - 1, text_column="テキスト", memory="64 MB", drop_empty=True
    )
    opened = reopened(stream, tmp_path)
    assert opened._params.memory is None
    assert opened._params.seed == 2**64 - 1
    assert opened.filter(pa.table({"テキスト": ["", "a"]})).to_pylist() == [False, True]
    for options in ({"workers": 0}, {"memory": "1 MB"}, {"device": "tpu"}):
        with pytest.raises(ParameterError):
            gpudedup.Deduplicator.open(tmp_path, **options)
    with pytest.raises(TypeError, match="threshold"):
        gpudedup.Deduplicator.open(tmp_path, threshold=0.7)  # type: ignore[call-arg]


# Whole or refused


def small_stream(rows: int = 60, **options: Any) -> gpudedup.Deduplicator:
    rng = random.Random(rows)
    texts = random_corpus(rng, rows)
    stream = gpudedup.Deduplicator(
        id_column="id", within="w", threshold=0.5, num_perm=8, bands=2, rows=2, device="cpu", **options
    )
    stream.filter(pa.table({"text": pa.array(texts, pa.string()), "id": range(rows), "w": ["a", "b"] * (rows // 2)}))
    return stream


def rewrite(folder: Path, kind: str, change: Any) -> None:
    """Change a table, and let its file and the manifest fit."""
    (path,) = folder.glob(f"{kind}-*")
    sink = io.BytesIO()
    table = change(pa.ipc.open_stream(path).read_all())
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    path.unlink()
    data = sink.getvalue()
    checksum = xxhash.xxh3_128_hexdigest(data)
    (folder / f"{kind}-{checksum}.arrows").write_bytes(data)
    entry = {"rows": table.num_rows, "size_bytes": len(data), "xxh3_128": checksum}
    edit(folder / "stream.json", lambda manifest: manifest["artefacts"].update({kind: entry}))


def replaced(column: str, row: int, value: Any) -> Any:
    """A change of one value of a table, whose rows are counted from the end if they are negative."""

    def change(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[row] = value(values[row]) if callable(value) else value
        place = table.schema.get_field_index(column)
        return table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))

    return change


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    small_stream(20).save(tmp_path)
    rng = random.Random(1)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        places = range(len(data)) if path.suffix == ".json" else [0, len(data) - 1, *rng.choices(range(len(data)), k=5)]
        for place in places:
            path.write_bytes(data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :])
            with pytest.raises(ArtefactError, match=path.name):
                gpudedup.Deduplicator.open(tmp_path)
        path.write_bytes(data)
    gpudedup.Deduplicator.open(tmp_path)


def test_truncated_and_missing_files_are_found(tmp_path: Path) -> None:
    small_stream(20).save(tmp_path)
    for path in sorted(tmp_path.iterdir()):
        data = path.read_bytes()
        for size in (0, len(data) // 2, len(data) - 1):
            path.write_bytes(data[:size])
            with pytest.raises(ArtefactError, match=path.name):
                gpudedup.Deduplicator.open(tmp_path)
        path.write_bytes(data + b" ")
        with pytest.raises(ArtefactError, match=path.name):
            gpudedup.Deduplicator.open(tmp_path)
        path.unlink()
        with pytest.raises(ArtefactError, match=path.name):
            gpudedup.Deduplicator.open(tmp_path)
        path.mkdir()
        with pytest.raises(ArtefactError, match=path.name):
            gpudedup.Deduplicator.open(tmp_path)
        path.rmdir()
        os.mkfifo(path)
        with pytest.raises(ArtefactError, match=path.name):
            gpudedup.Deduplicator.open(tmp_path)
        path.unlink()
        elsewhere = tmp_path.with_name(f"{path.name}-elsewhere")
        elsewhere.write_bytes(data)
        path.symlink_to(elsewhere)
        with pytest.raises(ArtefactError, match=path.name):
            gpudedup.Deduplicator.open(tmp_path)
        path.unlink()
        path.write_bytes(data)


def test_what_is_no_saved_stream(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("missing", "file", "no\0path"):
        with pytest.raises(ArtefactError, match="holds no saved stream"):
            gpudedup.Deduplicator.open(tmp_path / path)
    with pytest.raises(ArtefactError, match="in a local directory, not at a URL"):
        gpudedup.Deduplicator.open("s3://bucket/state")
    gpudedup.run([str(write_texts(tmp_path / "texts.jsonl"))], tmp_path / "run")
    with pytest.raises(ArtefactError, match=r"holds no saved stream: it has no stream.json"):
        gpudedup.Deduplicator.open(tmp_path / "run")
    small_stream().save(tmp_path / "state")
    with pytest.raises(ArtefactError, match="holds no finished run"):
        gpudedup.Run.open(tmp_path / "state")


def write_texts(path: Path) -> Path:
    path.write_text('{"text": "a b c"}\n')
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format=2), "has format 2, and this version of gpudedup goes on from format 1"),
        (lambda m: m.update(spec=7), "has spec 7, and this version of gpudedup goes on from spec 1"),
        (lambda m: m.pop("documents"), "missing required field `documents`"),
        (lambda m: m.update(more=1), "unknown field `more`"),
        (lambda m: m.update(documents=59), "(it has 60 rows for 59 documents|not ascend within the documents)"),
        (lambda m: m.update(documents=61), "it has 60 rows for 61 documents"),
        (lambda m: m.update(documents=-1), "is damaged: Expected `int` >= 0"),
        (lambda m: m.update(documents=2**70), "is damaged"),
        (lambda m: m.update(parameters=[]), "is damaged: Expected `object`"),
        (lambda m: m["parameters"].update(threshold=2), "is damaged: threshold must be"),
        (lambda m: m["parameters"].update(keep="longest"), "is damaged: a stream keeps the first document"),
        (lambda m: m["parameters"].update(clustering="components"), "is damaged: clustering="),
        (lambda m: m["parameters"].update(unknown=1), "is damaged: unknown parameter 'unknown'"),
        (lambda m: m["parameters"].update(bands=4), "it names no table 'band2'"),
        (lambda m: m["parameters"].update(across="x"), "it names no table 'across'"),
        (lambda m: m["parameters"].update(within=None), "it has 0 rows and the columns"),
        (lambda m: m["parameters"].update(verify="none"), "a set in a stream that compares none"),
        (lambda m: m["parameters"].update(verify="signature"), "a number of lanes that is not that of the stream"),
        (lambda m: m["artefacts"].pop("sets"), "it names no table 'sets'"),
        (lambda m: m["artefacts"]["kept"].update(rows=10**9), "has [0-9]+ rows, but stream.json says 1000000000"),
        (lambda m: m["artefacts"]["kept"].update(rows=10**18), "is damaged: Expected `int` <= "),
        (lambda m: m["artefacts"]["kept"].update(size_bytes=10**18), f"bytes, but stream.json says {10**18}"),
        (lambda m: m["artefacts"]["kept"].update(xxh3_128="../../etc/passwd"), "is damaged: Expected `str` matching"),
        (lambda m: m["artefacts"]["kept"].update(xxh3_128="/etc/passwd"), "is damaged: Expected `str` matching"),
        (lambda m: m["artefacts"]["kept"].update(xxh3_128="0" * 32 + "\n"), "is damaged: Expected `str` matching"),
        (lambda m: m["artefacts"]["kept"].update(xxh3_128="0" * 32), "cannot read .*kept-0{32}.arrows"),
        (lambda m: m["artefacts"]["kept"].update(path="../x"), "unknown field `path`"),
    ],
)  # fmt: skip
def test_hostile_manifests(change: Any, message: str, tmp_path: Path) -> None:
    small_stream().save(tmp_path)
    edit(tmp_path / "stream.json", change)
    with pytest.raises(ArtefactError, match=message):
        gpudedup.Deduplicator.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"format":1}', b"[" * 100_000])
def test_damaged_manifests(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"stream.json is damaged"):
        gpudedup.Deduplicator.open(tmp_path)


NUMBERS = {"lowest": 0, "many": 2**31 - 2, "nobody": 2**31 - 1, "bucket": 2**31, "highest": 2**32 - 1}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("representatives", replaced("scope", 0, 5), "a number for within that is not from -1 to 1"),
        ("representatives", replaced("scope", 0, -2), "a number for within that is not from -1 to 1"),
        ("representatives", replaced("across", 0, 1), "a number for across that is not from 0 to 0"),
        ("representatives", lambda t: pa.concat_tables([t, t]), "two representatives of one content"),
        ("representatives", replaced("kept", 0, False), "more positions than kept representatives"),
        ("representatives", lambda t: t.slice(1), "more positions than kept representatives|an entry|a bucket|keeper"),
        ("kept", replaced("position", -1, 60), "positions that do not ascend within the documents"),
        ("kept", replaced("position", 0, -1), "positions that do not ascend within the documents"),
        ("kept", replaced("position", 1, 0), "positions that do not ascend within the documents"),
        ("kept", lambda t: t.slice(1), "a keeper that is not kept|fewer positions"),
        ("kept", lambda t: t.rename_columns(["place"]), "it has the columns place: int64, not position: int64"),
        ("kept", lambda t: t.cast(pa.schema([("position", pa.int32())])), "it has the columns position: int32"),
        ("sets", replaced("values", 0, [3, 2]), "a set that does not ascend"),
        ("sets", replaced("values", 0, [2, 2]), "a set that does not ascend"),
        ("sets", replaced("values", 0, None), "column 'values' has nulls"),
        ("sets", replaced("values", 0, [None]), "column 'values' has nulls"),
        ("sets", lambda t: t.slice(1), "fewer sets than kept representatives"),
        ("sets", lambda t: pa.concat_tables([t, t]), "more sets than kept representatives"),
        ("keepers", replaced("keeper", 0, 60), "a keeper that is not kept"),
        ("keepers", replaced("keeper", 0, -1), "a keeper that is not kept"),
        ("keepers", replaced("part", 0, 2**64 - 1), "a similarity above 1"),
        ("keepers", lambda t: t.slice(1), "fewer removals than removed representatives"),
        ("keepers", lambda t: pa.concat_tables([t, t]), "more removals than removed representatives"),
        ("buckets", replaced("size", 0, 1), "a bucket of a size that none can have"),
        ("buckets", replaced("size", 0, 2**32 - 1), "a bucket of a size that none can have"),
        ("buckets", replaced("size", -1, lambda size: size + 1), "a band that does not have every representative once"),
        ("buckets", replaced("position", 0, [0] * 99), "lists of positions and documents that differ in length"),
        ("buckets", lambda t: t.slice(1), "a bucket that is none, or that two band keys have|every representative"),
        ("buckets", lambda t: pa.concat_tables([t, t]), "a bucket that no band key has"),
        ("band0", replaced("key", 1, 0), "band keys that do not ascend"),
        ("band0", lambda t: t.slice(1), "every representative once|a bucket that no band key"),
        ("band0", lambda t: pa.concat_tables([t] * 9), "more keys than representatives"),
        ("band1", replaced("holder", 0, 2**32 - 1), "a bucket that is none"),
        ("band1", replaced("holder", 0, 2**31 - 2), "a band key of no kept document"),
        ("removals", replaced("row", -1, 60), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("row", 1, 0), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("keeper", 0, 59), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("keeper", 0, -1), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("keeper", 0, -(2**63)), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("reason", 0, 3), "a row, keeper, reason or similarity that no removal has"),
        ("removals", replaced("similarity", 0, 1.5), "a row, keeper, reason or similarity that no removal has"),
        ("types", lambda t: t.select([0]), "it has the columns value: "),
        ("types", lambda t: t.append_column("across", pa.array([], pa.int64())), "and the columns"),
        ("types", lambda t: pa.table([t.column(0)] * 2, [t.column_names[0]] * 2), "and the columns"),
        ("types", lambda t: pa.table({"ids": [1], "within": ["x"]}), "it has 1 rows"),
        ("ids", lambda t: t.slice(1), "it has 59 rows for 60 documents"),
        ("ids", lambda t: t.cast(pa.schema([("value", pa.string())])), "it has the columns value: string, not"),
        ("within", lambda t: pa.concat_tables([t, t]), "a value that is null or there twice"),
        ("within", replaced("value", 0, None), "a value that is null or there twice"),
    ],
)  # fmt: skip
def test_hostile_tables(kind: str, change: Any, message: str, tmp_path: Path) -> None:
    small_stream().save(tmp_path)
    rewrite(tmp_path, kind, change)
    with pytest.raises(ArtefactError, match=message):
        gpudedup.Deduplicator.open(tmp_path)


def entries(change: Any) -> Any:
    """A change of the positions and documents of the bucket with most of them."""

    def changed(table: pa.Table) -> pa.Table:
        lengths = [len(positions) for positions in table["position"].to_pylist()]
        row = lengths.index(max(lengths))
        assert lengths[row] > 2
        position, document = change(table["position"][row].as_py(), table["document"][row].as_py())
        return replaced("document", row, document)(replaced("position", row, position)(table))

    return changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (entries(lambda p, d: ([p[1], p[0], *p[2:]], d)), "entries that do not ascend"),
        (entries(lambda p, d: (p, [d[0], d[0], *d[2:]])), "entries that do not ascend"),
        (entries(lambda p, d: (p, [*d[:-1], 2**31 - 2])), "an entry that is no kept document"),
        (entries(lambda p, d: ([*p[:-1], 2**32 - 1], d)), "an entry at a position that can be no candidate's"),
        (entries(lambda p, d: (p[1:], d)), "lists of positions and documents that differ in length"),
    ],
)
def test_hostile_buckets(change: Any, message: str, tmp_path: Path) -> None:
    small_stream(200, shingle="word:2").save(tmp_path)
    rewrite(tmp_path, "buckets", change)
    with pytest.raises(ArtefactError, match=message):
        gpudedup.Deduplicator.open(tmp_path)


def test_entries_that_the_window_has_passed_are_refused(tmp_path: Path) -> None:
    """They are never saved, and would let a bucket hold more than 2 * window + 1 entries."""
    texts = [f"a b c d e f g h i j k l {number} {number}" for number in range(40)]
    stream = gpudedup.Deduplicator(threshold=0.95, num_perm=1, bands=1, rows=1, bucket_window=2)
    stream.filter(texts)
    stream.save(tmp_path)
    (path,) = tmp_path.glob("buckets-*")
    table = pa.ipc.open_stream(path).read_all()
    assert max(map(len, table["position"].to_pylist())) <= 4
    assert max(table["size"].to_pylist()) > 10
    rewrite(tmp_path, "buckets", entries(lambda p, d: ([0, 1, 5, 6], [0, 1, 2, 3])))
    with pytest.raises(ArtefactError, match="an entry at a position that can be no candidate's"):
        gpudedup.Deduplicator.open(tmp_path)


def test_damage_that_fits_its_checksums() -> None:
    """Seeded; a longer run: tests/fuzz/fuzz_stream_state.py."""
    fuzz = runpy.run_path(str(Path(__file__).parent / "fuzz" / "fuzz_stream_state.py"))["fuzz"]
    outcomes = fuzz(100, seed=1)
    assert min(outcomes.values()) > 10


def test_a_stream_is_of_no_use_until_its_builder_has_finished() -> None:
    options: dict[str, Any] = {
        "bands": 1, "rows": 1, "num_perm": 1, "window": 1, "threshold_ppm": 1, "verify": "none", "across": False,
        "memory_bytes": 0, "directory": "/",
    }  # fmt: skip
    stream = _cpu.Stream(**options)
    builder = _cpu.StreamBuilder(stream, documents=1, compared=0)
    for call in (
        lambda: stream.rows,
        lambda: stream.kept(0, 0),
        lambda: _cpu.StreamBuilder(stream, documents=0, compared=0),
    ):
        with pytest.raises(ValueError, match=r"being filled|only a new stream"):
            call()
    with pytest.raises(ValueError, match="being filled"):
        stream.decide(
            lanes=np.zeros((1, 1), np.uint32), content=np.zeros((1, 2), np.uint64),
            unit_count=np.ones(1, np.uint64), num_perm=1,
        )  # fmt: skip
    builder.finish()
    assert stream.documents == 1
    with pytest.raises(ValueError, match="the stream is finished"):
        builder.kept(np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="only a new stream"):
        _cpu.StreamBuilder(stream, documents=1, compared=0)


# Old or new


@pytest.mark.parametrize("call", ["os.fsync", "os.replace", "write", "sync_folder"])
def test_a_failure_at_any_step_leaves_the_old_state(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No space at the n-th call, for every n until none fails: then, and only then, it is the new one."""
    old, new = small_stream(20), small_stream(40)
    new.save(tmp_path / "new")
    after = (tmp_path / "new" / "stream.json").read_bytes()
    left = 0

    def failing(function: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments)

        return wrapped

    if call == "write":
        monkeypatch.setattr("gpudedup.store.atomic._OutputFile.write", failing(io.FileIO.write))
    elif call == "sync_folder":
        monkeypatch.setattr(stream_state, "sync_folder", failing(stream_state.sync_folder))
    else:
        monkeypatch.setattr(call, failing(getattr(os, call.removeprefix("os."))))
    for folder, before in ((tmp_path / "over", old), (tmp_path / "fresh", None)):
        for step in range(1, 200):
            if before is not None:
                left = 0
                before.save(folder)
                whole = bytes_of(folder)
            elif folder.exists():
                shutil.rmtree(folder)
            left = step
            try:
                new.save(folder)
                break
            except OutputError as error:
                if "No space left" not in str(error):
                    raise
            if (folder / "stream.json").exists() and (folder / "stream.json").read_bytes() == after:
                assert call in ("os.fsync", "sync_folder")  # it has its name; whether for good is not known
                assert gpudedup.Deduplicator.open(folder).documents == 40
            elif before is None:
                assert not folder.exists()
            else:
                assert bytes_of(folder) == whole
        assert step > 1
        assert gpudedup.Deduplicator.open(folder).removed.equals(new.removed)


def test_a_state_is_on_disk_before_it_counts_and_the_old_one_until_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes before their names, names before the manifest's, that before the old files go."""
    small_stream(20).save(tmp_path)
    old = {str(path) for path in tmp_path.glob("*.arrows")}
    events: list[tuple[str, str]] = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def spy_fsync(handle: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def spy_replace(source: Path, target: Path) -> None:
        assert events[-1] == ("flush", str(source))
        events.append(("name", str(target)))
        replace(source, target)

    def spy_unlink(path: Path) -> None:
        events.append(("remove", str(path)))
        unlink(path)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(os, "replace", spy_replace)
    monkeypatch.setattr(os, "unlink", spy_unlink)
    small_stream(40).save(tmp_path)
    named = [path for what, path in events if what == "name"]
    counts = events.index(("name", str(tmp_path / "stream.json")))
    assert named[-1] == str(tmp_path / "stream.json")
    assert {str(path) for path in tmp_path.iterdir()} == set(named)
    assert events[counts - 2] == events[counts + 1] == ("flush", str(tmp_path))
    assert {path for what, path in events[counts + 2 :] if what == "remove"} == old - set(named)
    assert not [path for what, path in events[:counts] if what == "remove"]


SAVER = """
import sys, gpudedup
one, two = (gpudedup.Deduplicator.open(path) for path in sys.argv[1:3])
print("ready", flush=True)
while True:
    one.save(sys.argv[3])
    two.save(sys.argv[3])
"""


def test_kill_leaves_the_old_state_or_the_new_one(tmp_path: Path) -> None:
    rng = random.Random(5)
    small_stream(20).save(tmp_path / "one")
    small_stream(40).save(tmp_path / "two")
    states = [bytes_of(tmp_path / "one"), bytes_of(tmp_path / "two")]
    small_stream(20).save(tmp_path / "state")
    found = set()
    for _ in range(4):
        paths = [str(tmp_path / name) for name in ("one", "two", "state")]
        child = subprocess.Popen([sys.executable, "-c", SAVER, *paths], stdout=subprocess.PIPE)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.1)
        child.kill()
        child.wait()
        child.stdout.close()
        stream = gpudedup.Deduplicator.open(tmp_path / "state")
        found.add(stream.documents)
        stream.save(tmp_path / "state")  # which takes away what the other left
        assert bytes_of(tmp_path / "state") in states
    assert found <= {20, 40}


def test_where_a_stream_is_saved(tmp_path: Path) -> None:
    stream = small_stream(20)
    (tmp_path / "file").write_text("x")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "data.parquet").write_text("x")
    for path, message in (
        (tmp_path / "file", "exists and is not a directory"),
        (tmp_path / "full", r"is not empty \(it has 'data.parquet'\) and holds no saved stream"),
        (tmp_path / "file" / "state", "Not a directory"),
        (f"{tmp_path}/a\0b", "contains a NUL character"),
        ("s3://bucket/state", "in a local directory, not at a URL"),
    ):
        with pytest.raises(OutputError, match=message):
            stream.save(path)
    assert (tmp_path / "full" / "data.parquet").read_text() == "x"
    stream.save(tmp_path / "new" / "state")
    (tmp_path / "new" / "state" / "notes.txt").write_text("x")
    small_stream(40).save(tmp_path / "new" / "state")
    assert (tmp_path / "new" / "state" / "notes.txt").read_text() == "x"
    assert len([*(tmp_path / "new" / "state").glob("kept-*")]) == 1
    assert gpudedup.Deduplicator.open(tmp_path / "new" / "state").documents == 40
    stream.save(tmp_path / "new" / "state")
    assert gpudedup.Deduplicator.open(tmp_path / "new" / "state").documents == 20


def test_what_an_attempt_left_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / f".gpudedup-{'0' * 32}").write_text("half")
    (tmp_path / f"kept-{'0' * 32}.arrows").write_text("whole, but never named")
    small_stream(20).save(tmp_path)
    small_stream(20).save(tmp_path / "other")
    (tmp_path / "other").rename(tmp_path.with_name("other"))
    assert bytes_of(tmp_path) == bytes_of(tmp_path.with_name("other"))


def test_a_stream_that_another_process_reads_or_writes_is_left_alone(tmp_path: Path) -> None:
    stream = small_stream(20)
    stream.save(tmp_path)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    gpudedup.Deduplicator.open(tmp_path)
    with pytest.raises(LockedError, match="another process reads or writes"):
        stream.save(tmp_path)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(LockedError, match="another process writes"):
        gpudedup.Deduplicator.open(tmp_path)
    os.close(handle)
    stream.save(tmp_path)
    gpudedup.Deduplicator.open(tmp_path)
