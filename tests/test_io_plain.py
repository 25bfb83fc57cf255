"""Plain text input: one document a file, many files at a time, damage, and kept files as bytes."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpudedup
from gpudedup.errors import InputError, MemoryLimitError
from gpudedup.explain import explain
from gpudedup.io import open_paths
from gpudedup.io.source import first_rows, input_files
from gpudedup.io.streams import well_formed

MEMORY = 1 << 30
SUFFIXES = [".txt", ".md", ".txt.gz", ".TXT.zst"]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    return pa.compress(data, "zstd", asbytes=True) if suffix.endswith(".zst") else data


def write(folder: Path, data: bytes, suffix=".txt", name="a") -> Path:
    path = folder / f"{name}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(compress(data, suffix))
    return path


def source(*paths, columns=("text",), memory_bytes=MEMORY, on_error="fail"):
    names = [str(path) for path in paths]
    return open_paths(names, text_column="text", columns=list(columns), memory_bytes=memory_bytes, on_error=on_error)


def text_of(found):
    (batch,) = found.shards[0].read(["text"])
    assert batch.rows.tolist() == [0]
    return batch.columns.column(0)[0].as_py()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_reads_and_copies(tmp_path, suffix):
    for number, data in enumerate([b"a\nb\r\n", b"", "\0 é".encode(), b"\xef\xbb\xbfx\xef\xbb\xbf", b"\xffa\xe4\xb8"]):
        path = write(tmp_path, data, suffix)
        found = source(path)
        (shard,) = found.shards
        expected = (data[3:] if number == 3 else data).decode("utf-8", "replace")
        assert text_of(found) == expected
        assert found.column_type("text") == pa.large_string()
        assert found.kept_schema() == pa.schema({"text": pa.large_string()})
        (batch,) = shard.read(["text"], np.array([0]))
        assert batch.columns.schema == found.kept_schema()
        assert list(shard.read(["text"], np.zeros(0, np.int64))) == []
        with pytest.raises(InputError, match="there is no file 1; the input has 1"):
            list(shard.read(["text"], np.array([1])))
        (kept,) = shard.kept(np.array([True]))
        assert kept.to_pylist() == [{"text": expected}]
        assert list(shard.kept(np.array([False]))) == []
        (file,) = shard.files
        assert file.path == str(path)
        assert b"".join(file.blocks()) == path.read_bytes()
        with pytest.raises(ValueError, match="keep has 2 values for 1 files"):
            list(shard.kept(np.ones(2, bool)))


def test_long_files_are_copied_in_blocks(tmp_path):
    path = write(tmp_path, np.random.default_rng(3).bytes(3_000_000))
    blocks = list(source(path).shards[0].files[0].blocks())
    assert max(map(len, blocks)) <= 1 << 20
    assert b"".join(blocks) == path.read_bytes()


@given(st.lists(st.sampled_from([b"a", b"\xe4", b"\xb8", b"\xad", b"\xf0\x9f", b"\x98\x80", b"\xff", b"\xed\xa0\x80"])))
def test_repair_in_pieces(parts):
    data = b"".join(parts)
    for piece_bytes in (1, 2, 3, 100):
        assert well_formed(data, piece_bytes).decode() == data.decode("utf-8", "replace")


def test_many_files_a_batch(tmp_path, monkeypatch):
    texts = [str(number) * (number % 50) for number in range(300)]
    texts[7] = "\ufffd"
    for number, text in enumerate(texts):
        write(tmp_path, text.encode() if number != 7 else b"\xff", name=f"d/{number:03}")
    found = source(tmp_path)
    (shard,) = found.shards
    names = [f"{tmp_path}/d/{number:03}.txt" for number in range(300)]
    assert [file.path for file in shard.files] == names
    assert [name for name, _ in input_files(found.shards)] == names
    assert first_rows(found.shards, np.array([0, 300])).tolist() == list(range(301))
    for target, count in ((1 << 20, 1), (1000, 10)):
        monkeypatch.setattr("gpudedup.io.batches.TARGET_BYTES", target)
        rows, read = [], []
        batches = list(shard.read(["text"]))
        for batch in batches:
            assert len(batch.rows) == batch.columns.num_rows
            assert sum(map(len, batch.columns.column(0).to_pylist())) <= target
            rows += batch.rows.tolist()
            read += batch.columns.column(0).to_pylist()
        assert len(batches) >= count
        assert (rows, read) == (list(range(300)), texts)
        some = np.array([3, 8, 299])
        again = [(batch.rows.tolist(), batch.columns.column(0).to_pylist()) for batch in shard.read(["text"], some)]
        assert [row for rows, _ in again for row in rows] == some.tolist()
        assert [text for _, read in again for text in read] == [texts[row] for row in some]


def test_beside_data_plain_text_is_no_document(tmp_path):
    write(tmp_path, b"# Read me", ".md", "d/README")
    write(tmp_path, b"notes", ".txt", "d/notes")
    assert len(source(tmp_path / "d").shards[0].files) == 2
    write(tmp_path, b'{"text":"a"}\n', ".jsonl", "d/sub/a")
    assert [shard.name for shard in source(tmp_path / "d").shards] == [str(tmp_path / "d/sub/a.jsonl")]
    assert len(source(str(tmp_path / "d/**/*")).shards) == 1
    assert len(source(str(tmp_path / "d/*.md")).shards[0].files) == 1
    with pytest.raises(
        InputError, match=r"different formats .*: .*README.md \(plain text\) and .*a.jsonl \(JSON Lines\); convert"
    ):
        source(tmp_path / "d/README.md", tmp_path / "d")


def test_no_columns(tmp_path):
    path = write(tmp_path, b"a")
    with pytest.raises(InputError, match=r"a.txt: plain text files are documents without columns, so there is no 'id'"):
        source(path, columns=["text", "id"])
    for options in ({"id_column": "id"}, {"within": "dump"}, {"across": "split"}, {"keep": "max:n"}):
        with pytest.raises(InputError, match="removals name documents by their paths"):
            gpudedup.deduplicate(path, **options)
    assert gpudedup.deduplicate(path, text_column="body", keep="longest").kept().read_all().to_pylist() == [
        {"body": "a"}
    ]


# Damage


def damaged_gzip() -> bytes:
    return gzip.compress(np.random.default_rng(1).bytes(100_000), mtime=0)[:50_000]


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        (".txt.gz", b"", "is empty, which no gzip file is"),
        (".txt.gz", b"plain", "a.txt.gz cannot be read"),
        (".txt.gz", damaged_gzip(), "a.txt.gz cannot be read"),
        (".txt.zst", b"", "is empty, which no zstd file is"),
        (".md.zst", b"plain text", "a.md.zst cannot be read"),
        (".txt", "text".encode("utf-16"), "a.txt is UTF-16 text; convert it to UTF-8"),
    ],
)
def test_damaged_file(tmp_path, suffix, data, message):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    good = write(tmp_path, b"good", name="b")
    with pytest.raises(InputError, match=message + '.*on_error="skip"'):
        list(source(path).shards[0].read(["text"]))
    found = source(path, good, on_error="skip")
    (batch,) = found.shards[0].read(["text"])
    assert (batch.rows.tolist(), batch.damaged.tolist()) == ([0, 1], [0])
    assert batch.columns.column(0).to_pylist() == [None, "good"]
    (skipped,) = found.skipped
    assert (skipped.shard, skipped.first_row, skipped.count) == (str(path), 0, 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_without_permission(tmp_path):
    path = write(tmp_path, b"a")
    path.chmod(0)
    with pytest.raises(InputError, match=r"a.txt cannot be read: .*Permission denied"):
        list(source(path).shards[0].read(["text"]))


@pytest.mark.parametrize("suffix", [".txt", ".txt.gz"])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_changed_while_it_was_read(tmp_path, suffix, on_error):
    path = write(tmp_path, b"abc", suffix)
    found = source(path, on_error=on_error)
    for content in (b"abcdefgh", b"a", b"", None):
        if content is None:
            path.unlink()
        else:
            path.write_bytes(compress(content, suffix))
        for action in (lambda: text_of(found), lambda: list(found.shards[0].files[0].blocks())):
            with pytest.raises(InputError, match="while it was being read"):
                action()


def test_random_damage_gives_typed_errors_only(tmp_path):
    rng = np.random.default_rng(2)
    seed = "text é 中 ".encode() * 50
    for trial in range(400):
        suffix = SUFFIXES[trial % 4].lower()
        data = bytearray(compress(seed, suffix))
        for at in rng.integers(len(data), size=1 + trial % 4):
            data[at] = rng.integers(256)
        path = tmp_path / f"a{suffix}"
        path.write_bytes(data[: rng.integers(1, len(data))] if trial % 7 == 0 else data)
        for on_error in ("fail", "skip"):
            try:
                (batch,) = source(path, on_error=on_error).shards[0].read(["text"])
                batch.columns.validate(full=True)
            except InputError:
                assert on_error == "fail"


# Limits


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_file_too_long_for_memory(tmp_path, suffix):
    path = write(tmp_path, b"0" * 20_000_000, suffix)
    with pytest.raises(MemoryLimitError, match=r"has more than 16000000 bytes of text, which is what memory=64000000"):
        text_of(source(path, memory_bytes=64_000_000))
    assert len(text_of(source(path))) == 20_000_000


CHILD = """
import sys
from pathlib import Path
from gpudedup.explain import explain
from gpudedup.io import open_paths
def peak_bytes():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before = peak_bytes()
for shard in open_paths([sys.argv[1]], text_column="text", columns=["text"], memory_bytes=400_000_000).shards:
    for batch in shard.read(["text"]):
        print(batch.columns.nbytes)
print(peak_bytes() - before)
"""


@pytest.mark.parametrize("end", [b"", b"\xff", b"\xf0\x9f\x98\x80\xff"])
@pytest.mark.parametrize("suffix", [".txt", ".txt.zst"])
def test_long_file_takes_no_more_than_memory(tmp_path, end, suffix):
    path = write(tmp_path, b"word " * 19_000_000 + end, suffix)
    done = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    size, peak = map(int, done.stdout.split())
    assert 95_000_000 < size < 95_000_100
    assert peak < 400e6


@pytest.mark.parametrize("output", ["kept", "mask", "none"])
def test_whole_run(tmp_path, output):
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words[first : first + 100]) for first in (0, 100, 0, 200, 100)]
    for number, text in enumerate(texts):
        write(tmp_path, text.encode(), name=f"in/{number % 2}/{number}")
    run = gpudedup.run(str(tmp_path / "in"), tmp_path / "out", output=output)
    removed = dict(zip(run.removed["shard"].to_pylist(), run.removed["keeper_shard"].to_pylist(), strict=True))
    assert removed == {
        f"{tmp_path}/in/0/2.txt": f"{tmp_path}/in/0/0.txt",
        f"{tmp_path}/in/1/1.txt": f"{tmp_path}/in/0/4.txt",
    }
    assert run.removed["row"].to_pylist() == [0, 0]
    run.verify()
    written = [(entry.path, entry.shard, entry.rows) for entry in run.manifest.outputs]
    assert ("removed/data.parquet", "", 2) in written
    inputs = [f"{tmp_path}/in/{number % 2}/{number}.txt" for number in (0, 2, 4, 1, 3)]
    assert [(entry.path, entry.rows) for entry in run.manifest.inputs] == [(path, 1) for path in inputs]
    if output == "kept":
        found = {str(path.relative_to(tmp_path / "out/kept")): path.read_text() for path in run.kept}
        assert found == {"0/0.txt": texts[0], "0/4.txt": texts[4], "1/3.txt": texts[3]}
        assert [shard for path, shard, _ in written if path.startswith("kept")] == [inputs[at] for at in (0, 2, 4)]
        for folder, names in (("kept", ["0", "0.txt", "1", "3.txt", "4.txt"]), ("removed", ["data.parquet"])):
            assert sorted(path.name for path in (tmp_path / "out" / folder).rglob("*")) == names
    if output == "mask":
        assert run.keep_mask.to_pylist() == [True, False, True, False, True]
        table = pq.read_table(tmp_path / "out/keep_mask/data.parquet")
        assert table.to_pydict() == {"shard": inputs, "keep": run.keep_mask.to_pylist()}
    explained = explain(run, f"{inputs[1]}:0")
    assert (explained.status, explained.document.text) == ("removed", texts[2])
    assert explained.keeper.text == texts[0]
    assert [removal.document.shard for removal in explain(run, f"{inputs[2]}:0").removed_for_it] == [inputs[3]]


def test_skipping_in_a_whole_run(tmp_path):
    """The damaged file stands between others, so that places after it would show a shift."""
    for number, data in enumerate([b"one two three", b"no gzip", b"one two three", b"four five six"]):
        (tmp_path / f"{number}.txt{'.gz' if number == 1 else ''}").write_bytes(data)
    result = gpudedup.deduplicate(tmp_path, on_error="skip")
    assert result.keep_mask.to_pylist() == [True, False, False, True]
    assert result.removed["shard"].to_pylist() == [f"{tmp_path}/2.txt"]
    assert (result.summary().skipped, result.summary().skipped_files) == (1, 0)
    result.save(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out/kept").iterdir()) == ["0.txt", "3.txt"]


def test_a_change_before_copying_leaves_nothing(tmp_path):
    for number in range(3):
        write(tmp_path / "in", b"text %d" % number, name=str(number))
    result = gpudedup.deduplicate(tmp_path / "in")
    write(tmp_path / "in", b"longer than before", name="1")
    with pytest.raises(InputError, match=r"1.txt changed while it was being read"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
