"""JSON Lines input: lines as people write them, damage, long lines, types of columns, and kept lines as bytes."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import json
import os
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpudedup.errors import InputError, MemoryLimitError, OutputError
from gpudedup.io import jsonl as module
from gpudedup.io import open_paths
from gpudedup.io.skips import skipped_files

MEMORY = 1 << 30
SUFFIXES = [".jsonl", ".jsonl.gz", ".jsonl.zst"]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    return pa.compress(data, "zstd", asbytes=True) if suffix.endswith(".zst") else data


def decompress(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.decompress(data)
    if suffix.endswith(".zst"):
        return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read()
    return data


def write(folder, data: bytes, suffix=".jsonl", name="a") -> Path:
    path = folder / f"{name}{suffix}"
    path.write_bytes(compress(data, suffix))
    return path


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
        rows += batch.rows.tolist()
        found += batch.columns.column(0).to_pylist()
    assert rows == (list(range(len(found))) if wanted is None else wanted.tolist())
    return found


def kept_bytes(shard, keep, path):
    size = shard.write_kept(np.array(keep, dtype=bool), path)
    data = path.read_bytes()
    assert len(data) == size
    return decompress(data, shard.name)


def line(text, **others):
    return msgspec.json.encode({"text": text} | others) + b"\n"


# Lines


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".ndjson", ".NDJSON.GZ"])
def test_reads_and_copies(tmp_path, suffix):
    data = line("a") + line(None, id=7) + line("ü\n\u2028\x00")
    if suffix == ".NDJSON.GZ":
        path = tmp_path / "a.NDJSON.GZ"
        path.write_bytes(gzip.compress(data))
        assert values(shard_of(path)) == ["a", None, "ü\n\u2028\x00"]
        return
    shard = shard_of(write(tmp_path, data, suffix))
    assert values(shard) == ["a", None, "ü\n\u2028\x00"]
    assert values(shard, wanted=np.array([0, 2])) == ["a", "ü\n\u2028\x00"]
    assert kept_bytes(shard, [1, 0, 1], tmp_path / "kept") == line("a") + line("ü\n\u2028\x00")
    assert kept_bytes(shard, [1, 1, 1], tmp_path / "kept") == data
    assert kept_bytes(shard, [0, 0, 0], tmp_path / "kept") == b""
    (kept,) = shard.kept(np.array([False, False, True]))
    assert kept.to_pylist() == [{"text": "ü\n\u2028\x00"}]


def test_line_ends_blank_lines_and_order_mark(tmp_path):
    data = b'\xef\xbb\xbf{"text":"a"}\r\n\n  \t\r\n {"text" : "b" } \n\r\n{"text":"c"}'
    shard = shard_of(write(tmp_path, data))
    assert values(shard) == ["a", "b", "c"]
    assert (
        kept_bytes(shard, [1, 1, 1], tmp_path / "kept")
        == b'\xef\xbb\xbf{"text":"a"}\r\n {"text" : "b" } \n{"text":"c"}'
    )
    assert kept_bytes(shard, [0, 1, 0], tmp_path / "kept") == b'\xef\xbb\xbf {"text" : "b" } \n'
    assert kept_bytes(shard, [1, 0, 1], tmp_path / "kept") == b'\xef\xbb\xbf{"text":"a"}\r\n{"text":"c"}'


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"   ", b"\r\n"])
def test_files_without_rows(tmp_path, data):
    found = source(write(tmp_path, data), columns=["id"])
    assert values(found.shards[0]) == []
    assert found.column_type("id") == pa.null()
    assert list(found.shards[0].kept(np.zeros(0, bool))) == []
    kept_bytes(found.shards[0], [], tmp_path / "kept")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_blocks_and_entries(tmp_path, suffix, monkeypatch):
    """Lines across blocks of any size; a second read enters a plain file near the rows it wants."""
    monkeypatch.setattr(module, "TARGET_BYTES", 5_000)
    monkeypatch.setattr("gpudedup.io.batches.TARGET_BYTES", 5_000)
    texts = [f"{number} " + "é" * (number * 37 % 400) for number in range(2000)]
    data = b"".join(line(text) if number % 5 else b"\n" + line(text) for number, text in enumerate(texts))
    path = write(tmp_path, data, suffix)
    for block_bytes in (64, 1000, 1 << 18):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
        shard = shard_of(path)
        assert values(shard, wanted=np.array([1999])) == [texts[1999]]
        assert values(shard) == texts
        for wanted in ([0], [1999], [3, 4, 900, 1500, 1501, 1999], list(range(0, 2000, 3)), list(range(500, 700))):
            assert values(shard, wanted=np.array(wanted)) == [texts[row] for row in wanted]
        if suffix == ".jsonl" and block_bytes < 5000:
            assert len(shard._entries) > 50
        keep = np.arange(2000) % 3 == 1
        expected = b"".join(line(text) for text, choice in zip(texts, keep, strict=True) if choice)
        assert kept_bytes(shard, keep, tmp_path / "kept") == expected


def test_second_read_of_a_plain_file_seeks(tmp_path):
    path = write(tmp_path, line("x" * 1000) * 100_000)
    shard = shard_of(path)
    assert sum(len(batch.rows) for batch in shard.read(["text"])) == 100_000
    blocks = []
    original = shard._blocks

    def spy(*place):
        for block in original(*place):
            blocks.append(block.first_row)
            yield block

    shard._blocks = spy
    values(shard, wanted=np.array([10, 99_990]))
    assert len(blocks) < 100, "of about 400"
    with pytest.raises(InputError, match="has no row 100000"):
        values(shard, wanted=np.array([100_000]))


def test_several_members_and_frames(tmp_path):
    whole = gzip.compress(line("a") + b'{"te') + gzip.compress(b'xt":"b"}\n')
    (tmp_path / "a.jsonl.gz").write_bytes(whole)
    assert values(shard_of(tmp_path / "a.jsonl.gz")) == ["a", "b"]
    whole = compress(line("a") + b'{"te', ".zst") + compress(b'xt":"b"}\n', ".zst")
    (tmp_path / "a.jsonl.zst").write_bytes(whole)
    assert values(shard_of(tmp_path / "a.jsonl.zst")) == ["a", "b"]


def test_output_is_deterministic(tmp_path):
    for suffix in SUFFIXES:
        shard = shard_of(write(tmp_path, line("abc" * 1000) * 2000, suffix))
        keep = np.arange(2000) % 3 > 0
        shard.write_kept(keep, tmp_path / "one")
        shard.write_kept(keep, tmp_path / "two")
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


# Texts


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'"\ud800"', "\ufffd"),
        (rb'"a\udc00b"', "a\ufffdb"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\ud83d\ud83d\ude00"', "\ufffd\U0001f600"),
        (rb'"\\ud800"', r"\ud800"),
        (rb'"\\\ud800\"\\"', '\\\ufffd"\\'),
        (b'"a\xffb"', "a\ufffdb"),
        (b'"\xe4\xb8"', "\ufffd"),
        (b'"\xf0\x9f\x98z\xed\xa0\x80"', "\ufffdz\ufffd\ufffd\ufffd"),
        (b'"\xff\\ud800"', "\ufffd\ufffd"),
        (rb'"\u0000\u00e9"', "\0é"),
    ],
)
def test_ill_formed_text_is_replaced(tmp_path, raw, text):
    shard = shard_of(write(tmp_path, line("good") + b'{"text":' + raw + b',"id":1}\n' + line("good"), name="s"))
    assert values(shard) == ["good", text, "good"]


def test_ill_formed_bytes_and_surrogates_elsewhere_do_no_harm(tmp_path):
    data = b'{"text":"a","x":"\xff"}\n{"text":"b","y":"\\ud800"}\n{"text":"c","id":"\xff\\udfff"}\n'
    found = source(write(tmp_path, data), columns=["id"])
    assert values(found.shards[0]) == ["a", "b", "c"]
    assert values(found.shards[0], "id") == [None, None, "\ufffd\ufffd"]
    assert kept_bytes(found.shards[0], [1, 1, 1], tmp_path / "kept") == data


def test_escaped_and_repeated_keys(tmp_path):
    shard = shard_of(write(tmp_path, b'{"te\\u0078t":"a"}\n{"text":"b","text":"c"}\n'))
    assert values(shard) == ["a", "c"]


# Keys and types


def test_missing_text_key_says_which_exist(tmp_path):
    with pytest.raises(InputError, match=r"a.jsonl line 2: there is no key 'text'; it has: body, url"):
        source(write(tmp_path, b'\n{"body":"a","url":"b"}\n'))
    with pytest.raises(InputError, match="it has: none"):
        source(write(tmp_path, b"{}\n"))
    shard = shard_of(write(tmp_path, line("a") + b'{"body":"b"}\n{}\n' + line("c")))
    assert values(shard) == ["a", None, None, "c"], "missing later on, it is null"


def test_missing_other_key_says_which_exist(tmp_path):
    found = source(write(tmp_path, line("a", url="u") + line("b")), columns=["id"])
    with pytest.raises(InputError, match=r"no row has a key 'id'; the first row of .*a.jsonl has: text, url"):
        found.column_type("id")
    with pytest.raises(InputError, match="none of the run's columns"):
        found.column_type("url")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([1, None, -(2**63), 2**63 - 1], pa.int64()),
        ([1, 2**64 - 1], pa.uint64()),
        ([1, 2.5, None], pa.float64()),
        ([2.0], pa.float64()),
        ([2**53 + 1, 0.5], pa.float64()),
        (["a", None, ""], pa.string()),
        ([True, False, None], pa.bool_()),
        ([None, None], pa.null()),
    ],
)
def test_column_types(tmp_path, column, kind):
    data = b"".join(line("t", id=value) for value in column)
    found = source(write(tmp_path, data), write(tmp_path, line("u"), name="b"), columns=["id"])
    assert found.column_type("id") == kind
    assert found.kept_schema() == pa.schema({"text": pa.large_string(), "id": kind})
    (batch,) = found.shards[0].read(["id", "text"])
    assert batch.columns.schema == pa.schema({"id": kind, "text": pa.large_string()})
    expected = [None if value is None else float(value) for value in column] if kind == pa.float64() else column
    assert batch.columns.column(0).to_pylist() == expected
    assert next(found.shards[1].read(["id"])).columns.column(0).to_pylist() == [None]


def test_types_are_the_same_in_all_files_whatever_comes_first(tmp_path):
    one = write(tmp_path, line("a", id=1) * 1000)
    two = write(tmp_path, line("a", id=0.5), name="b")
    for paths in ((one, two), (two, one)):
        found = source(*paths, columns=["id"])
        kinds = {batch.columns.schema.field("id").type for shard in found.shards for batch in shard.read(["id"])}
        assert kinds == {pa.float64()}


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1, 2, "x"], r"'id' mixes types: an integer at .*a.jsonl line 1, a string at .*a.jsonl line 3"),
        ([True, 1], r"true or false at .* line 1, an integer at .* line 2"),
        ([2**64], r"integers from 0 to 18446744073709551616, more than 64 bits hold"),
        ([-1, 2**63], r"integers from -1 to 9223372036854775808"),
    ],
)
def test_mixed_types(tmp_path, column, message):
    data = b"".join(json.dumps({"text": "t", "id": value}).encode() + b"\n" for value in column)
    with pytest.raises(InputError, match=message):
        source(write(tmp_path, data), columns=["id"]).column_type("id")


@pytest.mark.parametrize("value", [[1], {"a": 1}])
def test_nested_value(tmp_path, value):
    path = write(tmp_path, line("a", id=1) + line("b", id=value))
    with pytest.raises(InputError, match=r"a.jsonl line 2 \(byte 20\) is damaged: Expected .*\$\.id"):
        source(path, columns=["id"]).column_type("id")


# Damage

DAMAGED = [
    b'{"text":"a"',
    b'{"text":"a"}}',
    b'{"text":"a"} {"text":"b"}',
    b'{"text":5}',
    b'{"text":["a"]}',
    b'{"text":"a\tb"}',
    b'{"text":NaN}',
    b'{"text":"a","x":nul}',
    b'["text"]',
    b'"text"',
    b"null",
    b"text",
    b"\x00\x00\x00",
    b"\xff\xfe{\x00",
    b'{"text":"\\x"}',
    b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b',"text":"a"}',
    b"{'text':'a'}",
]


@pytest.mark.parametrize("bad", DAMAGED, ids=lambda bad: repr(bad[:20]))
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_line(tmp_path, bad, suffix):
    path = write(tmp_path, line("first") + b"\n" + bad + b"\n" + line("last"), suffix)
    with pytest.raises(InputError, match=r'a.jsonl\S* line 3 \(byte 18\) is damaged: .*on_error="skip"'):
        values(shard_of(path))
    found = source(path, on_error="skip")
    shard = found.shards[0]
    (batch,) = shard.read(["text"])
    assert batch.rows.tolist() == [0, 1, 2]
    assert batch.damaged.tolist() == [1]
    assert batch.columns.column(0).to_pylist() == ["first", None, "last"]
    (again,) = shard.read(["text"], np.array([1, 2]))
    assert again.damaged.tolist() == [1]
    (skipped,) = found.skipped
    assert (skipped.shard, skipped.first_row, skipped.count) == (str(path), 1, 1)
    assert "line 3 (byte 18)" in skipped.reason
    assert kept_bytes(shard, [1, 0, 1], tmp_path / "kept") == line("first") + line("last")


def test_damaged_first_line(tmp_path):
    path = write(tmp_path, b"oops\n" + line("a"))
    with pytest.raises(InputError, match=r"line 1 \(byte 0\) is damaged"):
        source(path)
    found = source(path, on_error="skip")
    assert values(found.shards[0]) == [None, "a"]
    with pytest.raises(InputError, match="line 2: there is no key 'body'"):
        source(path, text_column="body", on_error="skip")


def test_a_damaged_column_damages_the_row_whatever_is_read(tmp_path):
    path = write(tmp_path, line("a", id=1) + line("b", id=[2]) + b'{"text":5,"id":"x"}\n' + line("c", id=3))
    found = source(path, columns=["id"], on_error="skip")
    assert found.column_type("id") == pa.int64(), "a damaged row does not count"
    for columns in (["text"], ["id"], ["id", "text"]):
        (batch,) = found.shards[0].read(columns)
        assert batch.damaged.tolist() == [1, 2]
        assert batch.columns.column(0).null_count == 2
    assert [entry.first_row for entry in found.skipped] == [1, 2]


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("kind", ["cut", "flipped", "followed"])
def test_damaged_stream(tmp_path, suffix, kind):
    rng = np.random.default_rng(5)
    texts = [rng.bytes(400).hex() for _ in range(5000)]
    data = compress(b"".join(map(line, texts)), suffix)
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        middle = len(data) // 2
        data = data[:middle] + b"\xff" * 200_000 + data[middle + 200_000 :]
    else:
        data += b"rubbish"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    message = r"line \d+ \(byte \d+ decompressed, near \d+ as stored\) cannot be read: .*rest of the file.*on_error"
    with pytest.raises(InputError, match=message):
        values(shard_of(path))
    found = source(path, on_error="skip")
    shard = found.shards[0]
    read = values(shard)
    assert read == texts[: len(read)]
    assert len(read) == 5000 if kind == "followed" else 2200 < len(read) < 2600
    (skipped,) = found.skipped
    assert (skipped.first_row, skipped.count) == (len(read), 0)
    assert values(shard, wanted=np.array([0, len(read) - 1])) == [read[0], read[-1]]
    assert kept_bytes(shard, [1] * len(read), tmp_path / f"kept{suffix}") == b"".join(map(line, read))


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("content", [b"", b"plain text", bz2.compress(b"{}")])
def test_not_compressed_that_way(tmp_path, suffix, content):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"is empty, which no|cannot be read"):
        source(path)


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("kind", ["cut", "garbage", "flipped"])
def test_rows_before_damage_are_kept(tmp_path, suffix, kind):
    """All that can be decompressed, even in the block of the damage; and the place of the damage is the real one."""
    first = b"".join(line(f"{number} " * 20) for number in range(600))
    whole = compress(first, suffix)
    if kind == "cut":
        second = compress(line("last") * 3, suffix)
        data = whole[:-4] if suffix.endswith(".gz") else whole + second[:-4]
    elif kind == "garbage":
        data = whole + b"garbage"
    else:
        second = bytearray(compress(b"".join(line(str(number)) for number in range(9000)), suffix))
        second[0] ^= 255
        data = whole + second
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    found = source(path, on_error="skip")
    (shard,) = found.shards
    assert len(values(shard)) == 600
    assert kept_bytes(shard, [1] * 600, tmp_path / f"kept{suffix}") == first
    (skipped,) = found.skipped
    assert (skipped.first_row, skipped.count) == (600, 0)
    assert f"line 601 (byte {len(first)} decompressed, near " in skipped.reason
    near = int(skipped.reason.partition(", near ")[2].split()[0])
    assert near == len(data) if kind == "cut" else len(whole) < near <= len(whole) + 4
    assert skipped_files(found.skipped) == 0


@pytest.mark.parametrize("kind", ["empty", "no gzip", "no permission"])
def test_unreadable_files_are_skipped_whole(tmp_path, monkeypatch, kind):
    good = write(tmp_path, line("a"), ".jsonl.gz", "good")
    bad = tmp_path / "bad.jsonl.gz"
    bad.write_bytes(b"" if kind == "empty" else b"plain text" if kind == "no gzip" else gzip.compress(line("b")))

    def refuse(path, *args):
        if str(path) == str(bad):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args)

    opened = pa.OSFile
    if kind == "no permission":
        monkeypatch.setattr(pa, "OSFile", refuse)
    reason = {"empty": "is empty, which no", "no gzip": "cannot be read", "no permission": "Permission denied"}[kind]
    with pytest.raises(InputError, match=rf'bad.jsonl.gz.*{reason}.*; repair or remove it, or use on_error="skip"'):
        source(good, bad)
    found = source(bad, good, on_error="skip")
    assert [shard.name for shard in found.shards] == [str(good)]
    (skipped,) = found.skipped
    assert (skipped.shard, skipped.first_row, skipped.count) == (str(bad), None, 0)
    assert reason in skipped.reason
    assert skipped_files(found.skipped) == 1
    assert source(bad, on_error="skip").shards == []


def test_cut_off_while_it_was_read_is_no_damage(tmp_path):
    path = write(tmp_path, line("a" * 100) * 200_000)
    for on_error in ("fail", "skip"):
        found = source(path, on_error=on_error)
        read = found.shards[0].read(["text"])
        next(read)
        os.truncate(path, 18_000_050)
        with pytest.raises(InputError, match=r"changed while it was being read.*run again$"):
            list(read)
        assert not found.skipped
        path.write_bytes(line("a" * 100) * 200_000)


def test_utf16_file(tmp_path):
    with pytest.raises(InputError, match="line 1"):
        source(write(tmp_path, '{"text":"a"}\n'.encode("utf-16")))


def test_changed_while_it_was_read(tmp_path):
    path = write(tmp_path, line("a"))
    shard = shard_of(path)
    path.write_bytes(line("abc"))
    for action in (lambda: values(shard), lambda: shard.write_kept(np.array([True]), tmp_path / "kept")):
        with pytest.raises(InputError, match="changed while it was being read"):
            action()


def test_random_damage_gives_typed_errors_only(tmp_path):
    rng = np.random.default_rng(11)
    seed = b"".join(line(f"é{number}" * 5, id=number, tags=["a"], more={"x": 1.5}) for number in range(50))
    outcomes = {"read": 0, "refused": 0, "skipped": 0}
    for trial in range(900):
        suffix = SUFFIXES[trial % 3]
        data = bytearray(compress(seed, suffix))
        for at in rng.integers(len(data), size=1 + trial % 4):
            data[at] = rng.integers(256)
        if trial % 7 == 0:
            data = data[: rng.integers(len(data))]
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(data)
        for on_error in ("fail", "skip"):
            try:
                found = source(path, columns=["id"], on_error=on_error)
                if not found.shards:
                    outcomes["skipped"] += 1
                    continue
                shard = found.shards[0]
                keep = []
                for batch in shard.read(["text", "id"]):
                    keep += [row not in batch.damaged for row in batch.rows]
                kept_bytes(shard, keep, tmp_path / "kept")
                outcomes["skipped" if found.skipped else "read"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


# Limits


def test_long_line_names_line_and_byte(tmp_path):
    data = line("a") + line("b" * 20_000_000) + line("c")
    for suffix in SUFFIXES:
        path = write(tmp_path, data, suffix)
        with pytest.raises(
            MemoryLimitError, match=r"line 2 \(byte 13\) is longer than 16000000 bytes.*memory=64000000"
        ):
            values(shard_of(path, memory_bytes=64_000_000))
        assert list(map(len, values(shard_of(path)))) == [1, 20_000_000, 1]
    unended = write(tmp_path, b'{"text":"' + b"x" * 20_000_000)
    with pytest.raises(MemoryLimitError, match=r"line 1 \(byte 0\)"):
        source(unended, memory_bytes=64_000_000)


TRICKY = ["plain ", "\\", '"', "\n", "é", "中", "\U0001f600", "\x00", "\ud7ff", "\u2028", "\\u0041", "a" * 100]


@pytest.mark.parametrize("ascii_only", [True, False])
def test_long_text_is_decoded_in_pieces(monkeypatch, tmp_path, ascii_only):
    """Pieces are cut between characters and escapes wherever the limit falls."""
    rng = np.random.default_rng(2)
    text = "".join(TRICKY[number] for number in rng.integers(len(TRICKY), size=20_000))
    escaped = json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode()
    for piece_bytes in (4097, 5000, 9999, 1 << 20):
        assert module._long_text(memoryview(escaped), piece_bytes) == text.encode()
    monkeypatch.setattr(module, "LONG_BYTES", 1000)
    rows = [
        {"text": "short", "id": 1},
        {"id": 2, "text": text},
        {"text": None, "id": 3, "pad": "x" * 2000},
        {"text": "end", "id": 4},
    ]
    path = write(tmp_path, b"".join(json.dumps(row, ensure_ascii=ascii_only).encode() + b"\n" for row in rows))
    for block_bytes in (512, 999):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
        shard = shard_of(path, columns=["id"])
        assert values(shard) == [row["text"] for row in rows]
        assert values(shard, "id") == [1, 2, 3, 4]
        assert values(shard, wanted=np.array([1])) == [text]


@pytest.mark.parametrize("bad", [b'{"text":5,"x":"%b"}', b'{"text":"%b"', b'{"text":"%b\t"}', b'["%b"]'])
def test_long_damaged_line(monkeypatch, tmp_path, bad):
    monkeypatch.setattr(module, "LONG_BYTES", 1000)
    monkeypatch.setattr(module, "BLOCK_BYTES", 512)
    path = write(tmp_path, line("a") + bad % (b"x" * 5000) + b"\n" + line("b"))
    with pytest.raises(InputError, match=r"line 2 \(byte 13\) is damaged"):
        values(shard_of(path))
    found = source(path, on_error="skip")
    assert values(found.shards[0]) == ["a", None, "b"]
    assert len(found.skipped) == 1


def test_all_escapes_or_no_good_place_to_cut():
    for escaped in (b"\\n" * 10_000, b"\\u4e2d" * 5000, b"\x80" * 10_000, b"\\ud83d\\ude00" * 3000):
        found = module._long_text(memoryview(escaped), 5000)
        good = module._repaired(b'"' + escaped + b'"')
        assert found.decode() == json.loads(good)


# Properties


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lines_any_mask(tmp_path, data):
    """What json.loads reads, line by line, is what we read; kept lines are the lines."""
    texts = data.draw(st.lists(st.none() | st.text(max_size=20), max_size=20))
    ends = data.draw(
        st.lists(
            st.sampled_from([b"\n", b"\r\n", b" \n", b"\n\n", b"\n \t\r\n"]), min_size=len(texts), max_size=len(texts)
        )
    )
    keep = data.draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    dump = data.draw(st.sampled_from([lambda row: json.dumps(row).encode(), msgspec.json.encode]))
    if texts and data.draw(st.booleans()):
        ends[-1] = b""
    suffix = data.draw(st.sampled_from(SUFFIXES))
    lines = [dump({"x": [1], "text": text}) for text in texts]
    path = write(tmp_path, b"".join(one + end for one, end in zip(lines, ends, strict=True)), suffix)
    original = module.BLOCK_BYTES
    module.BLOCK_BYTES = data.draw(st.sampled_from([1, 2, 7, 30, 1 << 18]))
    try:
        shard = shard_of(path)
        assert values(shard) == texts
        wanted = np.flatnonzero(keep)
        assert values(shard, wanted=wanted) == [texts[row] for row in wanted.tolist()]
        first_end = [end[: end.index(b"\n") + 1] if end else end for end in ends]
        expected = b"".join(one + end for one, end, choice in zip(lines, first_end, keep, strict=True) if choice)
        assert kept_bytes(shard, keep, tmp_path / f"kept{suffix}") == expected
    finally:
        module.BLOCK_BYTES = original


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80))
def test_any_bytes(tmp_path, data):
    path = write(tmp_path, line("a") + data)
    with contextlib.suppress(InputError):
        values(shard_of(path))
    found = source(path, on_error="skip")
    rows = len(values(found.shards[0]))
    damaged = {entry.first_row for entry in found.skipped}
    keep = [row not in damaged for row in range(rows)]
    kept_bytes(found.shards[0], keep, tmp_path / "kept.jsonl")
    assert values(shard_of(tmp_path / "kept.jsonl")) == [
        value for value, choice in zip(values(found.shards[0]), keep, strict=True) if choice
    ]


def test_writing_where_one_cannot(tmp_path):
    for suffix in SUFFIXES:
        shard = shard_of(write(tmp_path, line("a" * 100_000) * 10, suffix))
        for path, message in ((tmp_path / "missing" / "kept", "No such file"), (Path("/dev/full"), "No space left")):
            with pytest.raises(OutputError, match=message):
                shard.write_kept(np.ones(10, bool), path)


def test_mask_of_wrong_length(tmp_path):
    shard = shard_of(write(tmp_path, line("a") * 3))
    for length in (0, 2, 4):
        with pytest.raises(ValueError, match=f"keep has {length} values for the 3 rows"):
            shard.write_kept(np.ones(length, bool), tmp_path / "kept")
