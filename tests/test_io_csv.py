"""CSV and TSV input: records as people write them, quotes, damage, types of columns, and kept records as bytes."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import gpudedup
from gpudedup.errors import InputError, MemoryLimitError, OutputError
from gpudedup.io import delimited as module
from gpudedup.io import open_paths

MEMORY = 1 << 30
SUFFIXES = [".csv", ".tsv", ".csv.gz", ".tsv.zst"]


def compress(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    return pa.compress(data, "zstd", asbytes=True) if suffix.endswith(".zst") else data


def decompress(data: bytes, suffix: str) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.decompress(data)
    return pa.CompressedInputStream(pa.BufferReader(data), "zstd").read() if suffix.endswith(".zst") else data


def write(folder, data: bytes, suffix=".csv", name="a") -> Path:
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


def table(*rows, suffix=".csv", header=("id", "text"), **options) -> bytes:
    """Rows as Python's csv module writes them."""
    file = io.StringIO(newline="")
    delimiter = "\t" if suffix.startswith(".tsv") else ","
    csv.writer(file, delimiter=delimiter, lineterminator=options.pop("end", "\n"), **options).writerows([header, *rows])
    return file.getvalue().encode()


# Records


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV", ".Tsv.GZ"])
def test_reads_and_copies(tmp_path, suffix):
    lower = suffix.lower()
    texts = ["a", "", 'x,\ty\n\r\n"z"\n', '"', "ü\n\u2028\x00"]
    rows = [
        table([number, text], suffix=lower, header=(), quoting=csv.QUOTE_ALL)[1:] for number, text in enumerate(texts)
    ]
    header = table(suffix=lower)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(compress(header + b"".join(rows), lower))
    shard = shard_of(path, columns=["id"])
    assert values(shard) == texts
    assert values(shard, "id") == [0, 1, 2, 3, 4]
    assert values(shard, wanted=np.array([0, 2])) == [texts[0], texts[2]]
    out = tmp_path / f"kept{lower}"
    for keep in ([1, 0, 1, 0, 1], [1] * 5, [0] * 5, [0, 0, 0, 0, 1]):
        size = shard.write_kept(np.array(keep, bool), out)
        assert size == out.stat().st_size
        expected = header + b"".join(row for row, choice in zip(rows, keep, strict=True) if choice)
        assert decompress(out.read_bytes(), lower) == expected
    (kept,) = shard.kept(np.arange(5) == 2)
    assert kept.to_pylist() == [{"text": texts[2], "id": 2}]


def test_line_ends_empty_lines_and_order_mark(tmp_path):
    data = b'\xef\xbb\xbf\r\n"id",text\r\n\r\n1,a\r\n\n\n"2","b\r\n\n"\r\n3,c\rd'
    shard = shard_of(write(tmp_path, data))
    assert shard.header == ["id", "text"]
    assert values(shard) == ["a", "b\r\n\n", "c\rd"]
    out = tmp_path / "kept"
    assert kept_bytes(shard, [1, 1, 1], out) == b'\xef\xbb\xbf"id",text\r\n1,a\r\n"2","b\r\n\n"\r\n3,c\rd'
    assert kept_bytes(shard, [1, 0, 0], out) == b'\xef\xbb\xbf"id",text\r\n1,a\r\n'
    quoted = shard_of(
        write(tmp_path, b'\xef\xbb\xbf"te""x\n",b\n"1",2\n', name="q"), text_column='te"x\n', columns=["b"]
    )
    assert values(quoted, 'te"x\n') == ["1"]
    assert kept_bytes(quoted, [1], out) == b'\xef\xbb\xbf"te""x\n",b\n"1",2\n'


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        (b"1,a", ["1", "a"]),
        (b",", ["", ""]),
        (b'1,a"b"', ["1", 'a"b"']),
        (b'1 "x,y', ['1 "x', "y"]),
        (b'"",""', ["", ""]),
        (b'"""",""""""', ['"', '""']),
        (b'" ""a"" ",\'b\'', [' "a" ', "'b'"]),
        (b'1, "b"', ["1", ' "b"']),
        (b"\\,\\n", ["\\", "\\n"]),
    ],
)
def test_quotes(tmp_path, record, fields):
    shard = shard_of(write(tmp_path, b"text,b\n" + record + b"\nlast,x\n"), columns=["b"])
    assert values(shard) == [fields[0], "last"]
    assert values(shard, "b") == [fields[1] or None, "x"] or shard._columns.types()[1] != pa.string()
    assert next(csv.reader([record.decode()])) == fields


def test_stray_quotes_in_tab_separated_text(tmp_path):
    data = b'id\ttext\n1\t5" screen\n2\tsay "hi"\tnow\n3\tx\n'
    with pytest.raises(InputError, match=r"a.tsv line 3 \(byte 20\) is damaged: more fields, but the header has 2"):
        values(shard_of(write(tmp_path, data, ".tsv")))
    shard = shard_of(write(tmp_path, data.replace(b"\tnow", b" now"), ".tsv"))
    assert values(shard) == ['5" screen', 'say "hi" now', "x"]


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"\r\n"])
def test_files_without_records(tmp_path, data):
    found = source(write(tmp_path, data), columns=["id"])
    assert values(found.shards[0]) == []
    assert found.column_type("id") == pa.null()
    assert list(found.shards[0].kept(np.zeros(0, bool))) == []
    kept_bytes(found.shards[0], [], tmp_path / "kept")


def test_header_alone(tmp_path):
    for data in (b"id,text", b"id,text\n"):
        shard = shard_of(write(tmp_path, data), columns=["id"])
        assert values(shard) == []
        assert kept_bytes(shard, [], tmp_path / "kept") == data


def test_one_column(tmp_path):
    shard = shard_of(write(tmp_path, b'text\na\n\n""\n \nb'))
    assert values(shard) == ["a", "", " ", "b"]
    assert kept_bytes(shard, [0, 1, 1, 0], tmp_path / "kept") == b'text\n""\n \n'


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_many_blocks_and_entries(tmp_path, suffix, monkeypatch):
    """Records across blocks of any size; a second read enters a plain file near the rows it wants."""
    monkeypatch.setattr(module, "TARGET_BYTES", 5_000)
    monkeypatch.setattr("gpudedup.io.batches.TARGET_BYTES", 5_000)
    texts = [f"{number} " + 'é,\t"\n'[: number % 6] * (number * 37 % 90) for number in range(2000)]
    rows = [table([number, text], suffix=suffix, header=())[1:] for number, text in enumerate(texts)]
    data = table(suffix=suffix) + b"".join(b"\n" * (number % 5 == 0) + row for number, row in enumerate(rows))
    path = write(tmp_path, data, suffix)
    for block_bytes in (64, 1000, 1 << 18):
        monkeypatch.setattr(module, "BLOCK_BYTES", block_bytes)
        shard = shard_of(path)
        assert values(shard, wanted=np.array([1999])) == [texts[1999]]
        assert values(shard) == texts
        for wanted in ([0], [1999], [3, 4, 900, 1500, 1501, 1999], list(range(0, 2000, 3)), list(range(500, 700))):
            assert values(shard, wanted=np.array(wanted)) == [texts[row] for row in wanted]
        if "." not in suffix[1:] and block_bytes < 5000:
            assert len(shard._entries) > 20
            assert all(data[at - 1 : at] == b"\n" for at, _, _ in shard._entries[1:])
            assert all(data[:at].count(b"\n") + 1 == line for at, _, line in shard._entries)
        keep = np.arange(2000) % 3 == 1
        expected = table(suffix=suffix) + b"".join(row for row, choice in zip(rows, keep, strict=True) if choice)
        assert kept_bytes(shard, keep, tmp_path / "kept") == expected
    with pytest.raises(InputError, match="has no row 2000"):
        values(shard, wanted=np.array([2000]))


def test_ill_formed_text_is_replaced(tmp_path):
    data = b'id,text\n\xff,a\xffb\nx,"\xe4\xb8"\n\xed\xa0\x80,good\n'
    shard = shard_of(write(tmp_path, data), columns=["id"])
    assert values(shard) == ["a\ufffdb", "\ufffd", "good"]
    assert values(shard, "id") == ["\ufffd", "x", "\ufffd" * 3]
    assert kept_bytes(shard, [1, 1, 1], tmp_path / "kept") == data


# Columns and types


def test_missing_and_repeated_columns(tmp_path):
    path = write(tmp_path, b"id,body,body\n1,a,b\n")
    with pytest.raises(InputError, match=r"a.csv: there is no column 'text'; it has: id, body, body$"):
        source(path)
    with pytest.raises(InputError, match=r"2 columns are named 'body'"):
        source(path, text_column="body")
    with pytest.raises(InputError, match=r"no column 'dump'"):
        source(path, text_column="id", columns=["dump"], on_error="skip")
    path = write(tmp_path, b"id;text\n1;a\n")
    with pytest.raises(
        InputError, match=r"it has: id;text; a CSV file separates them by a comma, this one perhaps by ';'"
    ):
        source(path)
    path = write(tmp_path, b"id,text\n1,a\n", ".tsv")
    with pytest.raises(InputError, match=r"a TSV file separates them by a tab, this one perhaps by ','"):
        source(path)
    found = source(write(tmp_path, b"id,text\n1,a\n"), columns=["id"])
    with pytest.raises(InputError, match="none of the run's columns"):
        found.column_type("url")


@pytest.mark.parametrize(
    ("column", "kind", "expected"),
    [
        (["1", "", str(-(2**63)), str(2**63 - 1)], pa.int64(), [1, None, -(2**63), 2**63 - 1]),
        (["1", str(2**64 - 1)], pa.uint64(), [1, 2**64 - 1]),
        (["1", "2.5", ""], pa.float64(), [1.0, 2.5, None]),
        (["2.", ".5", "+1e3", "-1E-400", "1e999"], pa.float64(), [2.0, 0.5, 1000.0, -0.0, float("inf")]),
        (["inf", "-inf", "1"], pa.float64(), [float("inf"), float("-inf"), 1.0]),
        (["007", "8"], pa.string(), ["007", "8"]),
        (["-0", "1"], pa.float64(), [-0.0, 1.0]),
        ([str(2**64), "1"], pa.string(), [str(2**64), "1"]),
        (["-1", str(2**63)], pa.string(), ["-1", str(2**63)]),
        (["9" * 5000], pa.string(), ["9" * 5000]),
        (["1", "x", ""], pa.string(), ["1", "x", None]),
        (["true", "False", "", "TRUE"], pa.bool_(), [True, False, None, True]),
        (["true", "1"], pa.string(), ["true", "1"]),
        (["", ""], pa.null(), [None, None]),
        ([" 1"], pa.string(), [" 1"]),
        (["1\n"], pa.string(), ["1\n"]),
        (["٣"], pa.string(), ["٣"]),
    ],
)
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_column_types(tmp_path, column, kind, expected, quoting):
    data = table(*([value, "t"] for value in column), quoting=quoting)
    found = source(write(tmp_path, data), write(tmp_path, b"text,id\nu,\n", name="b"), columns=["id"])
    assert found.column_type("id") == kind
    assert found.column_type("text") == pa.large_string()
    assert found.kept_schema() == pa.schema({"text": pa.large_string(), "id": kind})
    (batch,) = found.shards[0].read(["id", "text"])
    assert batch.columns.schema == pa.schema({"id": kind, "text": pa.large_string()})
    assert batch.columns.column(0).to_pylist() == expected
    assert next(found.shards[1].read(["id"])).columns.column(0).to_pylist() == [None]


def test_types_are_the_same_in_all_files_whatever_comes_first(tmp_path):
    one = write(tmp_path, b"text,id\n" + b"a,1\n" * 1000)
    two = write(tmp_path, b"id\ttext\n0.5\ta\n", ".tsv", name="b")
    for paths in ((one, two), (two, one)):
        found = source(*paths, columns=["id"])
        kinds = {batch.columns.schema.field("id").type for shard in found.shards for batch in shard.read(["id"])}
        assert kinds == {pa.float64()}


# Damage

DAMAGED = [
    (b"1", "1 fields, but the header has 2"),
    (b"1,a,b", "more fields, but the header has 2"),
    (b'1,"a"b', "the quoted text of field 2 is followed by other text"),
    (b'"1"x,a', "the quoted text of field 1 is followed by other text"),
    (b'"1" ,"a"', "followed by other text"),
    (b"\x00\x00\x00", "1 fields"),
    (b"," * 100_000, "more fields"),
    (b'"",' * 100_000, "more fields"),
]


@pytest.mark.parametrize(("bad", "reason"), DAMAGED, ids=lambda value: repr(value[:20]))
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_damaged_record(tmp_path, bad, reason, suffix):
    path = write(tmp_path, b'id,text\n1,"fi\nrst"\n\n' + bad + b"\n3,last\n", suffix)
    with pytest.raises(InputError, match=rf'a.csv\S* line 5 \(byte 20\) is damaged: .*{reason}.*on_error="skip"'):
        values(shard_of(path))
    found = source(path, columns=["id"], on_error="skip")
    assert found.column_type("id") == pa.int64(), "a damaged record does not count"
    shard = found.shards[0]
    for columns in (["text"], ["id"]):
        (batch,) = shard.read(columns)
        assert batch.rows.tolist() == [0, 1, 2]
        assert batch.damaged.tolist() == [1]
    assert values(shard, "id") == [1, None, 3]
    (again,) = shard.read(["text"], np.array([1, 2]))
    assert again.damaged.tolist() == [1]
    (skipped,) = found.skipped
    assert (skipped.shard, skipped.first_row, skipped.count) == (str(path), 1, 1)
    assert "line 5 (byte 20)" in skipped.reason
    assert kept_bytes(shard, [1, 0, 1], tmp_path / "kept") == b'id,text\n1,"fi\nrst"\n3,last\n'


def test_quote_that_is_not_closed(tmp_path):
    path = write(tmp_path, b'id,text\n1,a\n2,"b\n3,c\n4,d\n')
    with pytest.raises(InputError, match=r"line 3 \(byte 12\) is damaged: the quoted text of field 2 is not closed"):
        values(shard_of(path))
    found = source(path, on_error="skip")
    (batch,) = found.shards[0].read(["text"])
    assert (batch.rows.tolist(), batch.damaged.tolist()) == ([0, 1], [1])
    assert kept_bytes(found.shards[0], [1, 0], tmp_path / "kept") == b"id,text\n1,a\n"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'id,"text\n1,a\n', "line 1: the header is damaged: the quoted text of field 2 is not closed"),
        (b'id,"text"x\n1,a\n', "line 1: the header is damaged: .*followed by other text"),
        ("id,text\n1,a\n".encode("utf-16"), "line 1: the header is no UTF-8 text .UTF-16, perhaps"),
        ("id,text\n1,a\n".encode("utf-16-be"), "line 1: the header is no UTF-8 text"),
        (b"," * 200_000, "line 1: the header has more than 100000 fields"),
    ],
)
def test_damaged_header(tmp_path, data, message):
    path, good = write(tmp_path, data), write(tmp_path, b"text\na\n", name="b")
    with pytest.raises(InputError, match=message):
        source(path, good)
    found = source(path, good, on_error="skip")
    assert [shard.name for shard in found.shards] == [str(good)]
    assert [(entry.shard, entry.first_row, entry.count) for entry in found.skipped] == [(str(path), None, 0)]


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.zst"])
@pytest.mark.parametrize("kind", ["cut", "flipped", "followed"])
def test_damaged_stream(tmp_path, suffix, kind):
    rng = np.random.default_rng(5)
    texts = [rng.bytes(400).hex() for _ in range(5000)]
    data = compress(b"text\n" + b"".join(text.encode() + b"\n" for text in texts), suffix)
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
    assert len(read) > 4000 if kind == "followed" else 100 < len(read) < 5000
    (skipped,) = found.skipped
    assert (skipped.first_row, skipped.count) == (len(read), 0)
    assert values(shard, wanted=np.array([0, len(read) - 1])) == [read[0], read[-1]]
    kept_bytes(shard, [1] * len(read), tmp_path / f"kept{suffix}")


def test_changed_while_it_was_read(tmp_path):
    path = write(tmp_path, b"text\na\n")
    shard = shard_of(path)
    path.write_bytes(b"text\nabc\n")
    for action in (lambda: values(shard), lambda: shard.write_kept(np.array([True]), tmp_path / "kept")):
        with pytest.raises(InputError, match="changed while it was being read"):
            action()


def test_random_damage_gives_typed_errors_only(tmp_path):
    rng = np.random.default_rng(11)
    seed = table(*([number, 'é,"\n'[: number % 5] * 5 + str(number)] for number in range(50)))
    outcomes = {"read": 0, "refused": 0, "skipped": 0}
    for trial in range(900):
        suffix = [".csv", ".csv.gz", ".csv.zst"][trial % 3]
        data = bytearray(compress(seed, suffix))
        for at in rng.integers(len(data), size=1 + trial % 4):
            data[at] = rng.choice([rng.integers(256), *b'",\n'])
        if trial % 7 == 0:
            data = data[: rng.integers(len(data))]
        path = tmp_path / f"fuzzed{suffix}"
        path.write_bytes(data)
        for on_error in ("fail", "skip"):
            try:
                found = source(path, columns=["id"], on_error=on_error)
                for shard in found.shards:
                    keep = []
                    for batch in shard.read(["text", "id"]):
                        keep += [row not in batch.damaged for row in batch.rows]
                    kept_bytes(shard, keep, tmp_path / "kept")
                outcomes["skipped" if found.skipped else "read"] += 1
            except InputError:
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


# Limits


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zst"])
def test_long_record_names_line_and_byte(tmp_path, suffix):
    for data in (b"text\na\n" + b"b" * 20_000_000 + b"\nc\n", b'text\na\n"' + b"b\n" * 10_000_000):
        path = write(tmp_path, data, suffix)
        with pytest.raises(
            MemoryLimitError,
            match=r"line 3 \(byte 7\): the record .* is longer than 8000000 bytes.*memory=64000000.*quote",
        ):
            values(shard_of(path, memory_bytes=64_000_000))
    path = write(tmp_path, b"text\na\n" + b'"' + b"b\n," * 7_000_000 + b'"\nc\n', suffix)
    assert list(map(len, values(shard_of(path)))) == [1, 21_000_000, 1]


CHILD = """
import sys
from pathlib import Path
from gpudedup.errors import MemoryLimitError
from gpudedup.io import open_paths
def peak_bytes():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
before, rows = peak_bytes(), 0
try:
    shard = open_paths([sys.argv[1]], text_column="text", columns=["text"], memory_bytes=int(sys.argv[2])).shards[0]
    for batch in shard.read(["text"]):
        rows += len(batch.rows)
        del batch
except MemoryLimitError:
    rows = -1
print(rows, peak_bytes() - before)
"""


@pytest.mark.parametrize("suffix", [".csv", ".csv.zst"])
@pytest.mark.parametrize(
    ("memory", "data", "rows"),
    [
        (400_000_000, b'text,b\n"' + b"a,\n" * 15_000_000 + b'",1\nc,2\n' + b"d,3\n" * 5_000_000, 5_000_002),
        (400_000_000, b"text,b\n" + b"\xff\xf0\x9f\x98\x80" * 9_000_000 + b",1\nc,2\n", 2),
        (64_000_000, b'text,b\na,1\n"b' + b"c,2\n" * 50_000_000, -1),
        (64_000_000, b"text,b\n" + b"," * 200_000_000, -1),
        (64_000_000, b"text,b\na,1\n" + b"\n" * 200_000_000, 1),
    ],
    ids=["long", "ill-formed", "unclosed", "commas", "empty"],
)
def test_peak_memory(tmp_path, suffix, memory, data, rows):
    """In a process of its own, by its peak resident memory; what there is besides is Arrow's pool."""
    path = write(tmp_path, data, suffix)
    arguments = [sys.executable, "-c", CHILD, str(path), str(memory)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found, peak = map(int, done.stdout.split())
    assert found == rows
    assert peak < memory


# Properties

CELLS = st.text(st.sampled_from('a b1.,\t"\n\ré0'), max_size=12)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_the_csv_module_writes(tmp_path, data):
    """Whatever it writes, we read the same; kept records are the records."""
    width = data.draw(st.integers(1, 3))
    rows = data.draw(st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12))
    suffix = data.draw(st.sampled_from(SUFFIXES))
    returns = any("\r" in cell for row in rows for cell in row)  # without quotes, the last would end the record
    options = {
        "suffix": suffix,
        "quoting": csv.QUOTE_ALL if returns else data.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC])),
        "end": data.draw(st.sampled_from(["\n", "\r\n"])),
    }
    header = ["text", "b", "c"][:width]
    begin = table(header=header, **options)
    records = [table(header=row, **options) for row in rows]
    whole = begin + b"".join(records)
    if rows and data.draw(st.booleans()):
        records[-1] = records[-1][: -len(options["end"])]
        whole = begin + b"".join(records)
    keep = data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows)))
    path = write(tmp_path, whole, suffix)
    original = module.BLOCK_BYTES
    module.BLOCK_BYTES = data.draw(st.sampled_from([1, 2, 7, 30, 1 << 18]))
    try:
        shard = shard_of(path)
        texts = [row[0] for row in rows]
        assert values(shard) == texts
        wanted = np.flatnonzero(keep)
        assert values(shard, wanted=wanted) == [texts[row] for row in wanted.tolist()]
        expected = begin + b"".join(one for one, choice in zip(records, keep, strict=True) if choice)
        assert kept_bytes(shard, keep, tmp_path / f"kept{suffix}") == expected
    finally:
        module.BLOCK_BYTES = original


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([b",", b'"', b"\n", b"\r\n", b"a", b"\xff", b'""', b"1"]), max_size=40).map(b"".join))
def test_any_bytes(tmp_path, data):
    """Damage or not, what is kept reads as it did; splitting does not depend on where blocks end."""
    path = write(tmp_path, b"text,id\na,b\n" + data)
    with contextlib.suppress(InputError):
        values(shard_of(path))
    found = source(path, on_error="skip")
    whole = values(found.shards[0])
    damaged = {entry.first_row for entry in found.skipped}
    original = module.BLOCK_BYTES
    module.BLOCK_BYTES = 3
    try:
        again = source(path, on_error="skip")
        assert values(again.shards[0]) == whole
        assert again.skipped == found.skipped
    finally:
        module.BLOCK_BYTES = original
    keep = [row not in damaged for row in range(len(whole))]
    kept_bytes(found.shards[0], keep, tmp_path / "kept.csv")
    assert values(shard_of(tmp_path / "kept.csv")) == [v for v, choice in zip(whole, keep, strict=True) if choice]


def test_writing_where_one_cannot(tmp_path):
    for suffix in SUFFIXES:
        shard = shard_of(write(tmp_path, b"text\n" + (b"a" * 100_000 + b"\n") * 10, suffix))
        for path, message in ((tmp_path / "missing" / "kept", "No such file"), (Path("/dev/full"), "No space left")):
            with pytest.raises(OutputError, match=message):
                shard.write_kept(np.ones(10, bool), path)


def test_mask_of_wrong_length(tmp_path):
    shard = shard_of(write(tmp_path, b"text\na\nb\nc\n"))
    for length in (0, 2, 4):
        with pytest.raises(ValueError, match=f"keep has {length} values for the 3 rows"):
            shard.write_kept(np.ones(length, bool), tmp_path / "kept")


def test_whole_run(tmp_path):
    words = [f"w{number}" for number in range(400)]
    texts = [" ".join(words[first : first + 100]) for first in (0, 100, 0, 200, 100)]
    path = write(tmp_path, table(*([f"00{number}", text] for number, text in enumerate(texts))))
    result = gpudedup.deduplicate(path, id_column="id")
    assert result.removed["id"].to_pylist() == ["002", "004"]
    assert result.removed["keeper_id"].to_pylist() == ["000", "001"]
    gpudedup.run(str(path), tmp_path / "out")
    expected = table(*([f"00{number}", texts[number]] for number in (0, 1, 3)))
    assert (tmp_path / "out" / "kept" / "a.csv").read_bytes() == expected
