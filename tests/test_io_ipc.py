"""Arrow IPC input: files and streams, types of columns, damage, limits, and what is kept with nothing else changed."""

from __future__ import annotations

import datetime
import itertools
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pytest

import gpudedup
from gpudedup.errors import GpudedupError, InputError, MemoryLimitError, OutputError
from gpudedup.io import ipc as module
from gpudedup.io import messages, open_paths

MEMORY = 1 << 30
KINDS = ["file", "stream"]
TEXT_TYPES = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int8(), pa.string()),
    pa.dictionary(pa.uint32(), pa.large_binary()),
]


def write(path: Path, batches, kind="file", schema=None, **options) -> Path:
    """Batches (or dicts of columns) as IPC; custom metadata in a pair with a batch."""
    batches = [batch if isinstance(batch, pa.RecordBatch | tuple) else pa.record_batch(batch) for batch in batches]
    pairs = [batch if isinstance(batch, tuple) else (batch, None) for batch in batches]
    make = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with make(str(path), schema or pairs[0][0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch, metadata in pairs:
            writer.write_batch(batch, custom_metadata=metadata)
    return path


def read_back(path: Path, kind="file") -> list[pa.RecordBatch]:
    if kind == "stream":
        return list(pa.ipc.open_stream(path.read_bytes()))
    file = pa.ipc.open_file(path.read_bytes())
    return [file.get_batch(number) for number in range(file.num_record_batches)]


def source(*paths, columns=("text",), text_column="text", memory_bytes=MEMORY, on_error="fail"):
    return open_paths(
        [str(path) for path in paths],
        text_column=text_column,
        columns=list(columns),
        memory_bytes=memory_bytes,
        on_error=on_error,
    )


def shard_of(*paths, **options):
    return source(*paths, **options).shards[0]


def values(shard, column="text", wanted=None):
    """All values of a column, checking that rows count up."""
    rows, found = [], []
    for batch in shard.read([column], wanted):
        assert len(batch.rows) == batch.columns.num_rows
        batch.columns.validate(full=True)
        rows += batch.rows.tolist()
        found += batch.columns.column(0).to_pylist()
    assert rows == (list(range(len(found))) if wanted is None else wanted.tolist())
    return found


def texts_of(count: int, kind: pa.DataType) -> pa.Array:
    texts = [None if number % 7 == 3 else f"text {number % 11} " + "é" * (number % 40) for number in range(count)]
    binary = kind.value_type if pa.types.is_dictionary(kind) else kind
    plain = pa.array(texts, pa.string()).cast(binary)
    return plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain


# Reading and writing


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("text_type", TEXT_TYPES, ids=str)
def test_reads_and_writes(tmp_path, kind, compression, text_type):
    texts = texts_of(60, text_type)
    batches = [pa.record_batch({"id": range(at, at + 20), "text": texts.slice(at, 20)}) for at in (0, 20, 40)]
    path = write(tmp_path / "a.arrow", batches, kind, compression=compression)
    found = source(path, columns=["id"])
    (shard,) = found.shards
    assert found.column_type("text") == text_type
    assert found.kept_schema() == batches[0].schema
    assert shard.row_count == 60
    expected = texts.to_pylist()
    assert values(shard) == expected
    assert values(shard, "id") == list(range(60))
    (batch,) = shard.read(["text", "id"], np.array([1, 45])) if not pa.types.is_dictionary(text_type) else [None]
    if batch is not None:
        assert batch.columns.schema.names == ["text", "id"]
    for wanted in ([0], [59], [5, 19, 20, 21, 59], list(range(60)), []):
        assert values(shard, wanted=np.array(wanted, np.int64)) == [expected[row] for row in wanted]
    keep = np.arange(60) % 3 == 1
    keep[20:40] = False
    kept = pa.Table.from_batches(shard.kept(keep)).to_pydict()
    assert kept == {"id": np.flatnonzero(keep).tolist(), "text": [expected[row] for row in np.flatnonzero(keep)]}
    out = tmp_path / "kept.arrow"
    assert shard.write_kept(keep, out) == out.stat().st_size
    written = read_back(out, kind)
    assert [batch.num_rows for batch in written] == [7, 7]
    assert pa.Table.from_batches(written).to_pydict() == kept
    assert codec_of(out) == {compression}
    shard.write_kept(np.ones(60, bool), out)
    assert read_back(out, kind) == batches
    shard.write_kept(np.zeros(60, bool), out)
    assert read_back(out, kind) == []
    assert shard_of(out).row_count == 0


def codec_of(path: Path) -> set[str | None]:
    shard = shard_of(path)
    with shard._opened() as handle:
        return {shard._buffers(handle, message)[0] for message in shard._messages}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_nothing_else_changes(tmp_path, kind, compression):
    """Compression, file or stream, schema with metadata, metadata of batches, and columns of any type."""
    when = datetime.datetime(2020, 1, 1)
    columns = {
        "text": pa.array(["a", None, "c", "d"]),
        "tags": pa.array([["x"], [], None, ["y", "z"]], pa.list_(pa.string())),
        "more": pa.array([{"a": "é", "b": [{"c": 1}]}, None, {"a": None, "b": []}, {"a": "", "b": None}]),
        "map": pa.array([[("k", "v")], [], None, [("", None)]], pa.map_(pa.string(), pa.string())),
        "views": pa.array([["long enough for a buffer"], [], None, [None]], pa.list_(pa.string_view())),
        "listview": pa.array([["x"], [], None, ["y"]], pa.list_view(pa.string())),
        "fixed": pa.array([["x", "y"]] * 4, pa.list_(pa.string(), 2)),
        "words": pa.array([["x"], ["y"], [], ["x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "label": pa.array(["p", "q", None, "p"]).dictionary_encode(),
        "runs": pa.RunEndEncodedArray.from_arrays(pa.array([2, 4], pa.int32()), pa.array(["u", "v"])),
        "union": pa.UnionArray.from_sparse(pa.array([0, 1, 0, 1], pa.int8()), [pa.array([1] * 4), pa.array(["w"] * 4)]),
        "when": pa.array([when, None, when, when], pa.timestamp("us", "UTC")),
        "number": pa.array([1, 2, None, 4]).cast(pa.decimal128(22, 2)),
        "nothing": pa.nulls(4),
        "json": pa.array(['{"a":1}', None, "[]", "0"], pa.json_()),
        "uuid": pa.array([bytes(16)] * 4, pa.uuid()),
    }
    schema = pa.schema(
        [pa.field(name, column.type, metadata={"f": name}) for name, column in columns.items()], metadata={"s": "t"}
    )
    batch = pa.record_batch(list(columns.values()), schema=schema)
    empty = batch.slice(0, 0)
    path = write(
        tmp_path / "a.arrow", [(batch, {"x": "y"}), (empty, None), (batch, None)], kind, compression=compression
    )
    for on_error in ("fail", "skip"):
        (shard,) = source(path, on_error=on_error).shards
        assert values(shard) == ["a", None, "c", "d"] * 2
        out = tmp_path / "kept.arrow"
        shard.write_kept(np.array([1, 0, 1, 1, 0, 0, 0, 1], bool), out)
        if kind == "stream":
            reader = pa.ipc.open_stream(out.read_bytes())
            written = [reader.read_next_batch_with_custom_metadata() for _ in range(2)]
        else:
            reader = pa.ipc.open_file(out.read_bytes())
            written = [reader.get_batch_with_custom_metadata(number) for number in range(2)]
        assert reader.schema.equals(schema, check_metadata=True)
        assert [one.custom_metadata for one in written] == [{b"x": b"y"}, None]
        rows = batch.to_pylist()
        assert [one.batch.to_pylist() for one in written] == [[rows[0], rows[2], rows[3]], [rows[3]]]
        assert codec_of(out) == {compression}
        assert shard_of(out).is_file == (kind == "file")
        assert [list(kept.to_pylist()) for kept in shard.kept(np.arange(8) == 2)] == [[rows[2]]]


@pytest.mark.parametrize("suffix", [".arrow", ".feather", ".arrows", ".ipc", ".FEATHER"])
def test_files_of_others(tmp_path, suffix):
    texts = [f"a text of some length, number {number}" for number in range(1000)]
    path = tmp_path / f"a{suffix}"
    frame = pl.DataFrame({"text": texts, "n": range(1000)})
    for compression in ("uncompressed", "lz4", "zstd"):
        frame.write_ipc(path, compression=compression)
        assert values(shard_of(path)) == texts
        frame.write_ipc_stream(path, compression=compression)
        assert values(shard_of(path)) == texts
        out = tmp_path / "kept.arrow"
        shard_of(path).write_kept(np.arange(1000) % 2 == 0, out)
        assert pl.read_ipc_stream(out)["text"].to_list() == texts[::2]
    pd.DataFrame({"text": texts}).to_feather(path)
    assert values(shard_of(path)) == texts
    pyarrow.feather.write_feather(pa.table({"text": texts}), str(path))
    assert values(shard_of(path)) == texts
    path.write_bytes(b"FEA1" + bytes(100))
    with pytest.raises(InputError, match=r"it is Feather version 1; write it again as version 2"):
        source(path)


def test_old_streams_without_continuation_marks(tmp_path):
    for kind in KINDS:
        path = write(tmp_path / "a.arrow", [{"text": ["a"]}, {"text": ["b", "c"]}], kind, use_legacy_format=True)
        assert values(shard_of(path)) == ["a", "b", "c"]


def test_dictionaries_that_grow_or_are_replaced(tmp_path):
    """A stream may change its dictionaries from batch to batch; any batch is read with those before it."""
    parts = [["a", "b"], ["a", "b", "c"], ["a", "b", "c"], ["x", "y"], ["x"]]
    batches = [
        pa.record_batch(
            {"text": pa.DictionaryArray.from_arrays(pa.array([len(part) - 1, 0], pa.int8()), pa.array(part))}
        )
        for part in parts
    ]
    expected = [text for part in parts for text in (part[-1], part[0])]
    for deltas in (False, True):
        path = write(tmp_path / "a.arrows", batches, "stream", emit_dictionary_deltas=deltas)
        shard = shard_of(path)
        assert values(shard) == expected
        for row in range(10):
            assert values(shard, wanted=np.array([row])) == [expected[row]]
        out = tmp_path / "kept.arrows"
        keep = np.arange(10) % 3 > 0
        shard.write_kept(keep, out)
        assert [text for batch in read_back(out, "stream") for text in batch["text"].to_pylist()] == [
            text for text, choice in zip(expected, keep, strict=True) if choice
        ]
    path = write(tmp_path / "a.arrow", batches[:3], "file", emit_dictionary_deltas=True)
    shard = shard_of(path)
    assert values(shard, wanted=np.array([0, 5])) == ["b", "a"]
    shard.write_kept(np.ones(6, bool), tmp_path / "kept.arrow")
    assert values(shard_of(tmp_path / "kept.arrow")) == expected[:6]


def test_tokens(tmp_path):
    path = write(tmp_path / "a.arrow", [{"ids": pa.array([[1, 2, 3, 4, 5, 6], None, [1, 2, 3, 4, 5, 6]])}])
    result = gpudedup.deduplicate(path, text_column="ids", shingle="tokens:3")
    assert result.keep_mask.to_pylist() == [True, True, False]


def test_ill_formed_text_is_no_damage(tmp_path):
    """Text, dictionaries and nested strings that are not UTF-8 are passed on as they are."""
    bad = pa.array([b"a\xff", b"\xed\xa0\x80", b"ok"])
    batch = pa.record_batch(
        {
            "text": bad.view(pa.string()),
            "dict": pa.DictionaryArray.from_arrays(pa.array([0, 1, 2]), bad.view(pa.string())),
            "list": pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad.view(pa.string())),
            "map": pa.MapArray.from_arrays(
                pa.array([0, 1, 2, 3], pa.int32()), bad.view(pa.string()), bad.view(pa.string())
            ),
            "json": pa.ExtensionArray.from_storage(pa.json_(), bad.view(pa.string())),
        }
    )
    path = write(tmp_path / "a.arrow", [batch])
    for on_error in ("fail", "skip"):
        found = source(path, columns=["dict"], on_error=on_error)
        (batch,) = found.shards[0].read(["text"])
        assert batch.columns.column(0).view(pa.binary()).to_pylist() == bad.to_pylist()
        assert not len(batch.damaged)
        found.shards[0].write_kept(np.ones(3, bool), tmp_path / "kept.arrow")
        assert (tmp_path / "kept.arrow").read_bytes() == path.read_bytes()


def test_files_without_rows(tmp_path):
    schema = pa.schema({"text": pa.string()})
    for kind in KINDS:
        path = write(tmp_path / "a.arrow", [], kind, schema=schema)
        (shard,) = source(path).shards
        assert values(shard) == []
        assert list(shard.kept(np.zeros(0, bool))) == []
        shard.write_kept(np.zeros(0, bool), tmp_path / "kept.arrow")
        assert (tmp_path / "kept.arrow").read_bytes() == path.read_bytes()


def test_many_and_large_batches(tmp_path, monkeypatch):
    """Small batches are joined and large ones cut; long ones are mapped rather than copied."""
    monkeypatch.setattr("gpudedup.io.batches.TARGET_BYTES", 10_000)
    texts = [f"{number} " * 10 for number in range(5000)]
    for sizes in ([10] * 500, [5000]):
        starts = np.cumsum([0, *sizes])
        batches = [{"text": texts[low:high]} for low, high in itertools.pairwise(starts)]
        for kind in KINDS:
            path = write(tmp_path / "a.arrow", batches, kind)
            for memory in (MEMORY, 1_000_000):  # with the latter, 200 KB are mapped
                shard = shard_of(path, memory_bytes=memory)
                assert values(shard) == texts
                read = list(shard.read(["text"]))
                assert all(batch.columns.nbytes <= 40_000 for batch in read)
                assert len(read) < 100
                wanted = np.arange(0, 5000, 7)
                assert values(shard, wanted=wanted) == texts[::7]
                out = tmp_path / "kept.arrow"
                shard.write_kept(np.arange(5000) % 7 == 0, out)
                assert values(shard_of(out)) == texts[::7]
                assert len(read_back(out, kind)) == len(sizes)
    monkeypatch.setattr(module, "CUT_BYTES", 50_000)
    shard.write_kept(np.ones(5000, bool), out)
    assert 3 < len(read_back(out, "stream")) < 10
    assert values(shard_of(out)) == texts


def test_second_read_takes_the_batches_it_needs(tmp_path, monkeypatch):
    path = write(tmp_path / "a.arrows", [{"text": [str(number)] * 10} for number in range(100)], "stream")
    shard = shard_of(path)
    read = []
    original = module.IpcShard._add
    monkeypatch.setattr(module.IpcShard, "_add", lambda self, *rest: (read.append(rest[-1]), original(self, *rest))[1])
    assert values(shard, wanted=np.array([15, 995])) == ["1", "99"]
    assert read == [1, 99]


# Columns


def test_columns_that_are_missing_nested_or_differ(tmp_path):
    one = write(tmp_path / "a.arrow", [{"text": ["a"], "id": [1], "n": [{"x": 1}]}])
    with pytest.raises(InputError, match=r"a.arrow: there is no column 'body'; it has: text, id, n"):
        source(one, text_column="body")
    with pytest.raises(InputError, match=r"column 'n' is nested"):
        source(one, columns=["n"])
    with pytest.raises(InputError, match=r"text column 'id' has type int64; it must be a string or binary type"):
        source(one, text_column="id")
    two = write(tmp_path / "b.arrow", [{"text": ["a"], "id": ["1"]}], "stream")
    with pytest.raises(InputError, match=r"column 'id' has type int64 in .*a.arrow but string in .*b.arrow; convert"):
        source(one, two, columns=["id"])
    found = source(one, two)
    assert [values(shard) for shard in found.shards] == [["a"], ["a"]]
    with pytest.raises(InputError, match=r"different schemas \(.*id: int64.* and .*id: string"):
        found.kept_schema()
    schema = pa.schema([("text", pa.string()), ("x", pa.int64()), ("x", pa.string())])
    twice = write(tmp_path / "c.arrow", [pa.record_batch([["a"], [1], ["b"]], schema=schema)])
    with pytest.raises(InputError, match="2 columns are named 'x'"):
        source(twice, columns=["x"])
    (shard,) = source(twice).shards
    assert values(shard) == ["a"]
    shard.write_kept(np.array([True]), tmp_path / "kept.arrow")
    assert (tmp_path / "kept.arrow").read_bytes() == twice.read_bytes()


# Damage


def offsets_of(path: Path) -> list[messages.Message]:
    return [message for message in shard_of(path)._messages if message.kind == messages.BATCH]


def with_bad_offsets(path: Path) -> Path:
    """In the second of three batches, the last offset of the text points far behind its end."""
    data = bytearray(path.read_bytes())
    message = offsets_of(path)[1]
    start = message.offset + message.metadata_bytes
    at = data.index(struct.pack("<3i", 0, 5, 10), start)
    data[at + 8 : at + 12] = struct.pack("<i", 2_000_000_000)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_batch(tmp_path, kind):
    parts = (["first", "1text"], ["secnd", "2text"], ["third", "3text"])
    path = with_bad_offsets(write(tmp_path / "a.arrow", [{"id": [1, 2], "text": part} for part in parts], kind))
    with pytest.raises(InputError, match=r'a.arrow: record batch 1 \(rows 2 to 3\) cannot be read: .*on_error="skip"'):
        values(shard_of(path))
    with pytest.raises(InputError, match=r"record batch 1"):
        shard_of(path).write_kept(np.ones(6, bool), tmp_path / "kept.arrow")
    found = source(path, columns=["id"], on_error="skip")
    (shard,) = found.shards
    for columns in (["text"], ["id"], ["id", "text"]):
        batches = list(shard.read(columns))
        assert [batch.rows.tolist() for batch in batches] == [[0, 1], [2, 3], [4, 5]]
        assert [batch.damaged.tolist() for batch in batches] == [[], [2, 3], []]
        assert batches[1].columns.column(0).to_pylist() == [None, None]
    (one, two) = shard.read(["text"], np.array([3, 4]))
    assert (one.damaged.tolist(), two.columns.column(0).to_pylist()) == ([3], ["third"])
    (skipped,) = found.skipped
    assert (skipped.shard, skipped.first_row, skipped.count) == (str(path), 2, 2)
    keep = np.array([1, 1, 0, 0, 0, 1], bool)
    shard.write_kept(keep, tmp_path / "kept.arrow")
    assert values(shard_of(tmp_path / "kept.arrow")) == ["first", "1text", "3text"]
    assert [batch["text"].to_pylist() for batch in shard.kept(keep)] == [["first", "1text"], ["3text"]]


def test_damaged_dictionary(tmp_path):
    column = pa.array(["first", "secnd"]).dictionary_encode()
    path = write(tmp_path / "a.arrow", [{"text": column}, {"text": column}])
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack("<3i", 0, 5, 10))
    data[at + 4 : at + 8] = struct.pack("<i", 2_000_000_000)
    path.write_bytes(data)
    with pytest.raises(InputError, match="record batch 0"):
        values(shard_of(path))
    found = source(path, on_error="skip")
    assert [batch.damaged.tolist() for batch in found.shards[0].read(["text"])] == [[0, 1], [2, 3]]
    assert [entry.count for entry in found.skipped] == [2, 2]


def test_cut_off_stream(tmp_path):
    whole = write(tmp_path / "a.arrows", [{"text": [f"{number:03}"] * 10} for number in range(20)], "stream")
    data = whole.read_bytes()
    batches = offsets_of(whole)
    path = tmp_path / "b.arrows"
    for cut, rows in ((batches[7].offset + 4, 70), (batches[7].offset + 100, 70), (batches[8].offset - 1, 70)):
        path.write_bytes(data[:cut])
        with pytest.raises(
            InputError, match=r'b.arrows cannot be read from byte \d+ on: .*; repair .*on_error="skip"$'
        ):
            source(path)
        found = source(path, on_error="skip")
        assert values(found.shards[0]) == [f"{number // 10:03}" for number in range(rows)]
        assert [(entry.first_row, entry.count) for entry in found.skipped] == [(rows, 0)]
        found.shards[0].write_kept(np.ones(rows, bool), tmp_path / "kept.arrows")
    path.write_bytes(data[: batches[8].offset])
    assert len(values(shard_of(path))) == 80, "a stream may end without a mark"
    path.write_bytes(data + bytes(100))
    assert len(values(shard_of(path))) == 200
    path.write_bytes(data + data)
    with pytest.raises(InputError, match=rf"from byte {len(data)} on: {len(data)} bytes follow the end of the stream"):
        source(path)
    found = source(path, on_error="skip")
    assert len(values(found.shards[0])) == 200
    assert len(found.skipped) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty"),
        (b"ARROW1", "it does not end as an Arrow file does, and may be cut off"),
        (b"ARROW1\0\0" + bytes(100), "it does not end as an Arrow file does, and may be cut off"),
        (b"{'text': 'a'}\n" * 10, "metadata of .* bytes, where"),
        (b"PAR1" + bytes(100), "."),
        (b"\xff\xff\xff\xff", "cut off"),
        (b"\xff\xff\xff\xff\0\0\0\0", "the stream ends here"),
        (b"\xff\xff\xff\xff\x08\0\0\0" + b"\xff" * 8, "byte .* of metadata"),
    ],
)
def test_no_arrow_at_all(tmp_path, data, message):
    path, good = tmp_path / "a.arrow", write(tmp_path / "b.arrow", [{"text": ["a"]}])
    path.write_bytes(data)
    with pytest.raises(InputError, match=rf"a.arrow is no readable Arrow IPC file or stream: .*{message}"):
        source(path)
    found = source(path, good, on_error="skip")
    assert [shard.name for shard in found.shards] == [str(good)]
    assert [(entry.shard, entry.first_row) for entry in found.skipped] == [(str(path), None)]


def test_cut_off_file(tmp_path):
    path = write(tmp_path / "a.arrow", [{"text": ["a"] * 100}] * 3)
    data = path.read_bytes()
    for cut in (8, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(InputError, match="no readable Arrow IPC"):
            source(path)


def test_changed_while_it_was_read(tmp_path):
    path = write(tmp_path / "a.arrow", [{"text": ["a"]}])
    (shard,) = source(path).shards
    write(path, [{"text": ["a", "b"]}])
    for action in (lambda: values(shard), lambda: shard.write_kept(np.array([True]), tmp_path / "kept.arrow")):
        with pytest.raises(InputError, match="changed while it was being read"):
            action()
    (shard,) = source(path, on_error="skip").shards
    batches = shard.read(["text"])
    os.truncate(path, 300)
    with pytest.raises(InputError, match="changed while it was being read"):
        list(batches)


FUZZ = """
import sys
from pathlib import Path
import numpy as np
from gpudedup.errors import GpudedupError
from gpudedup.io import open_paths
path, trials = Path(sys.argv[1]), int(sys.argv[2])
whole = path.read_bytes()
rng = np.random.default_rng(7)
outcomes = {"read": 0, "refused": 0, "skipped": 0}
for trial in range(trials):
    data = bytearray(whole)
    for at in rng.integers(len(data), size=1 + trial % 3):
        data[at] = rng.choice([0, 1, 127, 128, 255, data[at] ^ (1 << rng.integers(8)), rng.integers(256)])
    if trial % 20 == 0:
        data = data[: rng.integers(len(data))]
    path.write_bytes(data)
    for on_error in ("fail", "skip"):
        try:
            source = open_paths(
                [str(path)], text_column="text", columns=["text"], memory_bytes=64_000_000, on_error=on_error
            )
            for shard in source.shards:
                keep = np.ones(0, bool)
                if shard.row_count > 10_000:
                    continue
                for batch in shard.read(["text"]):
                    batch.columns.column(0).to_pylist() if "view" not in str(batch.columns.schema) else 0
                    keep = np.append(keep, ~np.isin(batch.rows, batch.damaged))
                for batch in shard.kept(keep):
                    batch.validate()
                shard.write_kept(keep, path.with_name("kept.arrow"))
            outcomes["skipped" if source.skipped else "read"] += 1
        except GpudedupError:
            outcomes["refused"] += 1
        except UnicodeDecodeError:
            outcomes["read"] += 1
print(*outcomes.values())
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_random_damage_gives_typed_errors_only(tmp_path, kind, compression):
    """In a process of its own, since Arrow would end it if damage reached it unchecked."""
    batch = pa.record_batch(
        {
            "text": ["some text", None, "some more of it", ""],
            "view": pa.array(["a value that is long", "b", None, "c"], pa.string_view()),
            "label": pa.array(["p", "q", None, "p"]).dictionary_encode(),
            "list": pa.array([["x"], [], None, ["y", "z"]], pa.list_(pa.string())),
            "more": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}, {"a": 3, "b": None}]),
            "number": [1.5, None, 2.5, 3.5],
        }
    )
    path = write(tmp_path / "a.arrow", [batch, batch], kind, compression=compression)
    done = subprocess.run([sys.executable, "-c", FUZZ, str(path), "300"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    assert min(map(int, done.stdout.split())) > 15, done.stdout


# Limits


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_batch_that_decodes_to_too_much(tmp_path, compression):
    """20 MB of zeros in some KB are refused before they are decoded, also where they are a dictionary."""
    zeros = pa.array(["0" * 20_000_000])
    for column in (zeros, zeros.dictionary_encode()):
        path = write(tmp_path / "a.arrow", [{"text": column}], compression=compression)
        assert path.stat().st_size < 200_000
        for on_error in ("fail", "skip"):
            with pytest.raises(
                MemoryLimitError,
                match=r"record batch 0 \(rows 0 to 0\) takes 200000\d\d bytes, and memory=64000000 allows",
            ):
                values(shard_of(path, memory_bytes=64_000_000, on_error=on_error))
        assert len(values(shard_of(path))[0]) == 20_000_000


def test_length_that_is_a_lie(tmp_path):
    path = write(tmp_path / "a.arrow", [{"text": ["0" * 10_000]}], compression="zstd")
    data = path.read_bytes()
    (message,) = offsets_of(path)
    _, found = messages.buffers(data[message.offset : message.offset + message.metadata_bytes])
    at = message.offset + message.metadata_bytes + found[-1][0]
    assert data[at : at + 8] == struct.pack("<q", 10_000)
    for size, error in ((1 << 40, MemoryLimitError), (1 << 23, InputError), (-7, InputError), (9_999, InputError)):
        path.write_bytes(data[:at] + struct.pack("<q", size) + data[at + 8 :])
        with pytest.raises(error):
            values(shard_of(path))


def test_rows_of_nothing(tmp_path):
    """Billions of nulls in some bytes: read in pieces, or refused if one process cannot name them."""
    path = tmp_path / "a.arrow"
    batch = pa.record_batch({"text": pa.nulls(3_000_000)})
    schema = pa.schema({"text": pa.null()})
    write(path, [batch], schema=schema)
    with pytest.raises(InputError, match="text column 'text' has type null"):
        source(path)
    batch = pa.record_batch({"text": ["a"], "n": pa.nulls(1)})
    data = write(path, [batch], allow_64bit=True).read_bytes()
    found = data.replace(struct.pack("<q", 1), struct.pack("<q", 1 << 33))
    path.write_bytes(found)
    with pytest.raises(InputError, match=r"has \d+ rows, and no more than 4294967294 can be read|no readable"):
        source(path)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from gpudedup.io import open_paths
def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024
shard = open_paths([sys.argv[1]], text_column="text", columns=["text"], memory_bytes=200_000_000).shards[0]
before, peak = peak_bytes(), 0
for batch in shard.read(["text"]):
    peak = max(peak, peak_bytes())
shard.write_kept(np.arange(shard.row_count) % 2 == 0, Path(sys.argv[1]).with_name("kept.arrow"))
print(peak - before)
"""


def test_one_large_batch_is_mapped(tmp_path):
    path = write(tmp_path / "a.arrow", [{"text": pa.array(["word " * 200] * 400_000)}])
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) < 60e6
    assert len(read_back(tmp_path / "kept.arrow")) == 2
    assert pa.ipc.open_file(str(tmp_path / "kept.arrow")).read_all().num_rows == 200_000


# The rest


def test_writing_where_one_cannot(tmp_path):
    (shard,) = source(write(tmp_path / "a.arrow", [{"text": ["a" * 1_000_000]}])).shards
    for path, message in ((tmp_path / "missing" / "kept", "No such file"), (Path("/dev/full"), "No space left")):
        with pytest.raises(OutputError, match=message):
            shard.write_kept(np.ones(1, bool), path)


def test_mask_of_wrong_length(tmp_path):
    (shard,) = source(write(tmp_path / "a.arrow", [{"text": ["a"] * 3}])).shards
    for length in (0, 2, 4):
        with pytest.raises(ValueError, match=f"keep has {length} values for the 3 rows"):
            shard.write_kept(np.ones(length, bool), tmp_path / "kept")
        with pytest.raises(ValueError, match=f"keep has {length} values for the 3 rows"):
            list(shard.kept(np.ones(length, bool)))


def test_whole_run(tmp_path):
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words[first : first + 100]) for first in (0, 100, 0, 200, 100)]
    for kind, suffix in zip(KINDS, (".arrow", ".arrows"), strict=True):
        write(tmp_path / f"in{suffix}", [{"text": texts, "id": range(5)}], kind)
    run = gpudedup.run([str(tmp_path / "in.arrow"), str(tmp_path / "in.arrows")], tmp_path / "out", id_column="id")
    assert run.removed["id"].to_pylist() == [2, 4, 0, 1, 2, 3, 4]
    assert run.removed["keeper_id"].to_pylist() == [0, 1, 0, 1, 0, 3, 1]
    assert read_back(tmp_path / "out/kept/in.arrow") == [
        pa.record_batch({"text": [texts[0], texts[1], texts[3]], "id": [0, 1, 3]})
    ]
    assert read_back(tmp_path / "out/kept/in.arrows", "stream") == []


def test_all_errors_are_ours():
    assert issubclass(MemoryLimitError, GpudedupError)
