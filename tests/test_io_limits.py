"""Hostile or merely huge input within little memory: each case in a process of its own, by its peak resident memory."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import zlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

MEMORY = 64_000_000

CHILD = """
import json, sys
import numpy as np
import pyarrow.parquet
from pathlib import Path
from gpudedup.errors import GpudedupError
from gpudedup.io import open_source
path, memory, columns, action, output = json.loads(sys.argv[1])
def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024
before = peak_bytes()
rows = 0
error = ""
try:
    source = open_source(path, text_column="text", columns=columns, memory_bytes=memory, tmp=output)
    shard = source.shards[0]
    if action == "read":
        for batch in shard.read(columns):
            rows += len(batch.rows)
            del batch
    elif action == "kept":
        for batch in shard.kept(np.ones(shard.row_count, bool)):
            rows += batch.num_rows
    else:
        rows = shard.row_count
        shard.write_kept(np.ones(rows, bool), Path(output) / "kept.parquet")
except GpudedupError as raised:
    error = f"{type(raised).__name__}: {raised}"
print(json.dumps({"rows": rows, "error": error, "peak_bytes": peak_bytes() - before}))
"""


def measure(path, columns=("text",), action="read", memory=MEMORY):
    """Rows, error and the bytes by which the peak of a fresh process grew."""
    arguments = json.dumps([str(path), memory, list(columns), action, str(path.parent)])
    done = subprocess.run([sys.executable, "-c", CHILD, arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_one_value_in_very_many_rows(tmp_path):
    """1 MB repeated 20,000 times: a file of 1 MB, 20 GB if it were decoded. Read, passed on and written encoded."""
    path = tmp_path / "a.parquet"
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 20_000, pa.int32()), pa.array(["bomb" * 250_000]))
    pq.write_table(pa.table({"text": text, "n": range(20_000)}), path, store_schema=False)
    assert pq.read_schema(path).field("text").type == pa.string()
    assert path.stat().st_size < 500_000
    found = measure(path)
    assert (found["rows"], found["error"]) == (20_000, "")
    assert found["peak_bytes"] < 100e6
    found = measure(path, action="write")
    assert (found["rows"], found["error"]) == (20_000, "")
    assert found["peak_bytes"] < 200e6


def test_one_value_in_many_rows_decoded(tmp_path):
    """Where the values must be decoded (a column that is not the text, or all columns), a few rows at a time are."""
    path = tmp_path / "a.parquet"
    long = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array(["bomb" * 250_000]))
    pq.write_table(pa.table({"text": ["a"] * 1000, "id": long}), path, store_schema=False)
    for columns, action in ((["text", "id"], "read"), (["text"], "kept")):
        found = measure(path, columns, action)
        assert (found["rows"], found["error"]) == (1000, "")
        assert found["peak_bytes"] < 150e6


def test_prefixes_that_grow(tmp_path):
    """DELTA_BYTE_ARRAY: each value repeats the one before and adds a byte: 60 KB decode to 1.8 GB."""
    path = tmp_path / "a.parquet"
    seed = "".join(chr(97 + at % 23) for at in range(20_000))
    texts = pa.array([seed[:size] for size in range(20_000)])
    options = {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}}
    pq.write_table(pa.table({"text": texts}), path, **options)
    found = measure(path)
    assert (found["rows"], found["error"]) == (20_000, "")
    assert found["peak_bytes"] < 250e6


def test_page_bomb(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a", "0" * 400_000_000]}), path, compression="zstd", use_dictionary=False)
    for action in ("read", "kept", "write"):
        found = measure(path, action=action)
        assert found["error"].startswith("MemoryLimitError: "), found
        assert "a page of column 'text' has 4000000" in found["error"]
        assert found["peak_bytes"] < 60e6


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_line_without_end(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    chunk = b"0" * 10_000_000
    if suffix == ".jsonl.gz":
        deflate = zlib.compressobj(1, zlib.DEFLATED, 31)
        path.write_bytes(
            b"".join([deflate.compress(b'{"text":"'), *(deflate.compress(chunk) for _ in range(40)), deflate.flush()])
        )
    elif suffix == ".jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            for data in (b'{"text":"', *[chunk] * 40):
                file.write(data)
    else:
        with open(path, "wb") as file:
            for data in (b'{"text":"', *[chunk] * 40):
                file.write(data)
    found = measure(path)
    assert found["error"].startswith("MemoryLimitError: ")
    assert "line 1 (byte 0) is longer than 16000000 bytes" in found["error"]
    assert found["peak_bytes"] < 60e6


def test_empty_lines_without_end(tmp_path):
    """200 MB of line feeds in 200 KB are no rows."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text":"a"}\n' + b"\n" * 200_000_000, 1))
    found = measure(path)
    assert (found["rows"], found["error"]) == (1, "")
    assert found["peak_bytes"] < 60e6


@pytest.mark.parametrize("letters", ["ascii", "emoji", "escaped"])
def test_long_line_takes_no_more_than_memory(tmp_path, letters):
    """A line just below a quarter of the memory; with one emoji a str of it would take four bytes a letter."""
    path = tmp_path / "a.jsonl"
    text = b"word " * 19_000_000
    if letters == "emoji":
        text += "\U0001f600".encode()
    if letters == "escaped":
        text = b"word\\n" * 16_000_000
    path.write_bytes(b'{"id":1,"text":"' + text + b'"}\n')
    found = measure(path, memory=400_000_000)
    assert (found["rows"], found["error"]) == (1, "")
    assert found["peak_bytes"] < 400e6


def test_rows_of_nothing(tmp_path):
    """10 million nulls: a file of some KB."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": pa.nulls(10_000_000, pa.string())}), path, row_group_size=10_000_000)
    found = measure(path)
    assert (found["rows"], found["error"]) == (10_000_000, "")
    assert found["peak_bytes"] < 60e6
