"""Files named by URLs: what a URL means and what its name says; reading them from a real S3 API and by fsspec, also
when requests fail or are slow.
"""

from __future__ import annotations

import builtins
import gzip
import io
import json
import random
import re
import socket
import subprocess
import sys
import time
from functools import partial
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest
from object_store import Fault, FaultyProxy

import gpudedup
from gpudedup.errors import InputError, OutputError
from gpudedup.io import open_paths, open_source, remote
from gpudedup.io.paths import ChangedError, common_names, find_files, would_find
from gpudedup.io.remote import UnreachableError, Url, filesystem_of, is_url

REGION = "?region=us-east-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("s3://b/a", True), ("memory://a", True), ("C://a", False), ("a/b://c", False), ("/a", False), ("s3:/b/a", False)],
)
def test_what_is_a_url(text, expected):
    assert is_url(text) is expected


@pytest.mark.parametrize(
    ("url", "kind", "path"),
    [
        (f"s3://bucket/a/b.parquet{REGION}", pyarrow.fs.S3FileSystem, "bucket/a/b.parquet"),
        (f"S3://bucket{REGION}", pyarrow.fs.S3FileSystem, "bucket"),
        (f"s3://bucket/a b/%C3%BC#%23[x]+.parquet{REGION}", pyarrow.fs.S3FileSystem, "bucket/a b/ü##[x]+.parquet"),
        ("gs://anonymous@bucket/a", pyarrow.fs.GcsFileSystem, "bucket/a"),
        ("file:///tmp/a%20b", pyarrow.fs.LocalFileSystem, "/tmp/a b"),
        ("memory://folder/a b%20c#", pyarrow.fs.PyFileSystem, "/folder/a b c#"),
    ],
)
def test_filesystem_and_path_of_a_url(url, kind, path):
    filesystem, found = filesystem_of(url)
    assert type(filesystem) is kind
    assert found == path


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nosuch://a/b", r"nosuch://a/b cannot be used: .*not known"),
        ("s3:///a", r"s3:///a cannot be used: Missing bucket"),
        (f"s3://bucket/a{REGION}&colour=red", r"s3://bucket/a\?region=us-east-1 cannot be used: .*'colour'"),
        ("file://elsewhere/a", r"file://elsewhere/a cannot be used: .*hostname"),
        ("memory://a?b=c", r"memory://a: memory:// takes no options in the URL"),
        ("zip://a.jsonl::memory://b", r"is a chain of URLs"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(InputError, match=message) as caught:
        filesystem_of(url)
    assert "\n" not in str(caught.value)


def test_a_scheme_of_fsspec_without_fsspec(monkeypatch):
    load = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "fsspec":
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "fsspec", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"memory:// needs fsspec: pip install fsspec"):
        filesystem_of("memory://a")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("s3://KEYID:sec%2Fret@bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("s3://KEYID:sec/ret@bucket/a.jsonl", "s3://bucket/a.jsonl"),
        ("s3://bucket/a@b:c", "s3://bucket/a@b:c"),
        (
            "s3://bucket/a?access_key=KEYID&region=eu&secret_key=secret&session_token=token1&endpoint_override=h:1",
            "s3://bucket/a?region=eu&endpoint_override=h:1",
        ),
        ("https://user:secret@host:8/a%20b.jsonl?X-Amz-Signature=secret&sig=secret", "https://host:8/a%20b.jsonl"),
        ("hdfs://user@host:8020/a", "hdfs://host:8020/a"),
        ("abfss://container:secret@account.dfs.core.windows.net/a", "abfss://container@account.dfs.core.windows.net/a"),
        ("gs://anonymous@bucket/a", "gs://anonymous@bucket/a"),
    ],
)
def test_names_hold_no_secrets(url, name):
    parts = Url.parse(url)
    assert parts.name == name
    message = parts.redacted(f"{url} and {parts.whole}")
    assert not {"KEYID", "secret", "sec%2Fret", "sec/ret", "token1"} & set(_words(message))


def _words(text):
    for mark in ":@?&=":
        text = text.replace(mark, " ")
    return text.split()


@pytest.mark.parametrize("url", ["s3://KEYID:sec/ret@bucket/a", "s3://KEYID:sec@bucket/a?session_token=t0ken"])
def test_refusals_hold_no_secrets(url):
    with pytest.raises(InputError) as caught:
        filesystem_of(url)
    assert caught.value.__cause__ is None
    for secret in ("KEYID", "sec/", "sec@", "t0ken"):
        assert secret not in str(caught.value)


def test_the_url_of_a_file_below_another_means_that_file():
    base = Url.parse(f"s3://bucket/data/{REGION}")
    for relative in ("a.jsonl", "b/c d.jsonl", "100%25.jsonl", "ü?#*[x]\n\x7f.jsonl", "@:+&=;.jsonl"):
        name = base.below(relative).name
        assert filesystem_of(name)[1] == f"bucket/data/{relative}"
        assert name.isprintable()


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        ([], []),
        (["/x/a.jsonl"], ["a.jsonl"]),
        (["/x/a.jsonl", "/x/y/b.jsonl"], ["a.jsonl", "y/b.jsonl"]),
        (["/x/yz/a", "/x/y/a"], ["yz/a", "y/a"]),
        ([f"s3://b/x/a%20b.jsonl{REGION}"], ["a b.jsonl"]),
        (["s3://b/x/a", "s3://b/x/y/a"], ["a", "y/a"]),
        (["s3://b/x/a", "s3://c/x/a"], ["b/x/a", "c/x/a"]),
        (["s3://b/x/a", "/x/b"], ["b/x/a", "x/b"]),
        (["s3://b/x%0A%7F%00y"], ["x%0A%7F%00y"]),
    ],
)
def test_common_names(paths, names):
    assert common_names(paths) == names


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["s3://b/../../etc/passwd", "s3://b/a"], r"s3://b/../../etc/passwd has a part '..'"),
        (["s3://b/%2E%2E/a"], r"has a part '..'"),
        (["s3://b/x%2F..%2Fa"], r"has a part '..'"),
        (["s3://../a"], r"has a part '..'"),
        (["s3://b//a"], r"has a part ''"),
        (["s3://b/x/./a"], r"has a part '.'"),
        (["s3://b/a", "s3://b/x", "gs://b/x"], r"s3://b/x and gs://b/x would have the same name 'x'"),
        (["s3://b/a", "s3://b/a/c"], r"s3://b/a/c would be in a directory that is the output for s3://b/a"),
    ],
)
def test_names_that_no_output_can_have(paths, message):
    with pytest.raises(InputError, match=message):
        common_names(paths)


def test_the_filesystem_reads_from_an_object_store(object_store):
    object_store.put({"a/b c#.jsonl": b"hello"})
    filesystem, path = filesystem_of(object_store.url("a/b c#.jsonl"))
    with filesystem.open_input_file(path) as file:
        assert file.read() == b"hello"


# ---- what is read ----

WORDS = [f"word{number}" for number in range(3000)]
COUNT = 120
REMOVED = set(range(40, COUNT, 5))
"""Rows that are copies of the row 40 before them, which is no copy of another."""


def planted_texts():
    choose = random.Random(7)
    texts = [" ".join(choose.sample(WORDS, 60)) + " é中" for _ in range(COUNT)]
    for row in sorted(REMOVED):
        texts[row] = texts[row - 40].upper() if row - 40 not in REMOVED else texts[row]
    return texts


TEXTS = planted_texts()
DROPPED = {row for row in REMOVED if row - 40 not in REMOVED}
STAYS = [row for row in range(COUNT) if row not in DROPPED]


def table(rows):
    return pa.table({"id": rows, "text": [TEXTS[row] for row in rows], "junk": [[row] * 300 for row in rows]})


def parquet_bytes(rows):
    sink = io.BytesIO()
    pq.write_table(table(rows), sink, row_group_size=20, compression="zstd", data_page_size=1000)
    return sink.getvalue()


def ipc_bytes(rows, make=pa.ipc.new_file):
    sink = io.BytesIO()
    with make(sink, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=15)
    return sink.getvalue()


def jsonl_bytes(rows):
    return b"".join(json.dumps({"id": row, "text": TEXTS[row]}).encode() + b"\n" for row in rows)


def csv_bytes(rows):
    return b"id,text\n" + b"".join(f'{row},"{TEXTS[row]}"\n'.encode() for row in rows)


FILES = {
    "a.parquet": parquet_bytes,
    "a.arrow": ipc_bytes,
    "a.arrows": partial(ipc_bytes, make=pa.ipc.new_stream),
    "a.jsonl": jsonl_bytes,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl_bytes(rows), mtime=0),
    "a.jsonl.zst": lambda rows: pa.compress(jsonl_bytes(rows), "zstd", asbytes=True),
    "a.csv": csv_bytes,
    "a.tsv.gz": lambda rows: gzip.compress(csv_bytes(rows).replace(b",", b"\t"), mtime=0),
}
OPTIONS = {"text_column": "text", "columns": ["text"], "memory_bytes": 1 << 28}


def put(store, name, rows=range(COUNT)):
    """A corpus in one format, whatever the name of its file or files."""
    if name == "txt":
        store.put({f"c/{row:03}.txt": TEXTS[row].encode() for row in rows})
    elif name == "txt.gz":
        store.put({f"c/{row:03}.txt.gz": gzip.compress(TEXTS[row].encode()) for row in rows})
    else:
        store.put({f"c/{name}": FILES[name](list(rows))})
    return store.url("c")


def read_texts(source, wanted=None):
    texts = []
    for shard in source.shards:
        for batch in shard.read(["text"], wanted):
            texts += batch.columns.column(0).to_pylist()
    return texts


@pytest.mark.parametrize("name", [*FILES, "txt", "txt.gz"])
def test_every_format_from_an_object_store(name, object_store):
    source = open_source(put(object_store, name), **OPTIONS)
    assert read_texts(source) == TEXTS
    chosen = [0, 1, 17, 60, 118]
    assert read_texts(source, np.array(chosen)) == [TEXTS[row] for row in chosen]
    assert not source.skipped


@pytest.mark.parametrize("name", [*FILES, "txt"])
def test_runs_over_an_object_store(name, object_store, tmp_path):
    url = put(object_store, name)
    result = gpudedup.deduplicate(url, device="cpu")
    assert np.flatnonzero(result.keep_mask.to_numpy(zero_copy_only=False)).tolist() == STAYS
    run = gpudedup.run(url, tmp_path / "run", device="cpu")
    if name == "txt":
        assert run.removed["shard"].to_pylist() == [f"{url}/{row:03}.txt" for row in sorted(DROPPED)]
        assert [path.read_text() for path in run.kept] == [TEXTS[row] for row in STAYS]
        return
    assert set(run.removed["shard"].to_pylist()) == {f"{url}/{name}"}
    assert run.removed["row"].to_pylist() == sorted(DROPPED)
    (kept,) = run.kept
    assert kept == tmp_path / "run" / "kept" / name
    if name == "a.parquet":
        assert pq.read_table(kept) == table(STAYS)
    elif name.startswith("a.arrow"):
        opened = pa.ipc.open_file(kept) if name == "a.arrow" else pa.ipc.open_stream(kept)
        assert opened.read_all() == table(STAYS)
    elif name != "a.jsonl.zst":
        assert kept.read_bytes() == FILES[name](STAYS) or gzip.decompress(kept.read_bytes()) == gzip.decompress(
            FILES[name](STAYS)
        )
    (entry,) = run.manifest.inputs
    assert (entry.path, entry.size_bytes) == (f"{url}/{name}", len(FILES[name](range(COUNT))))


@pytest.mark.parametrize("name", [*FILES, "txt"])
def test_plan_of_an_object_store(name, object_store):
    found = gpudedup.plan(put(object_store, name), device="cpu")
    assert found.documents.value == COUNT
    assert found.text_bytes.value == sum(len(text.encode()) for text in TEXTS)
    assert found.sample_exact == len(DROPPED)


def test_a_stream_over_an_object_store(object_store):
    object_store.put({"a.jsonl": jsonl_bytes(range(60)), "b.parquet": parquet_bytes(range(60, COUNT))})
    stream = gpudedup.Deduplicator(device="cpu")
    masks = [stream.filter(object_store.url(name)).to_pylist() for name in ("a.jsonl", "b.parquet")]
    assert [row for row, keep in enumerate(chain(*masks)) if keep] == STAYS


# ---- which files ----

KEYS = [
    *(
        "a.jsonl",
        "b.jsonl.gz",
        "x/c.jsonl",
        "x/y/d.jsonl",
        "x/e f.jsonl",
        "z1/g.jsonl",
        "z2/g.jsonl",
        "z2/deep/h.jsonl",
    ),
    *("[1].jsonl", "_hidden.jsonl", ".dot.jsonl", "_tmp/i.jsonl", "x/.k/l.jsonl", "README.md", "notes.doc", "x*.jsonl"),
]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("x", ["x/c.jsonl", "x/e%20f.jsonl", "x/y/d.jsonl"]),
        ("x/", ["x/c.jsonl", "x/e%20f.jsonl", "x/y/d.jsonl"]),
        ("z", None),
        ("*.jsonl", ["%5B1%5D.jsonl", "a.jsonl", "x%2A.jsonl"]),
        ("*.jsonl*", ["%5B1%5D.jsonl", "a.jsonl", "b.jsonl.gz", "x%2A.jsonl"]),
        ("x%2A.jsonl", ["x%2A.jsonl"]),
        ("x*.jsonl", ["x%2A.jsonl"]),
        ("[1].jsonl", ["%5B1%5D.jsonl"]),
        ("[ab].jsonl*", ["a.jsonl", "b.jsonl.gz"]),
        ("z*", ["z1/g.jsonl", "z2/deep/h.jsonl", "z2/g.jsonl"]),
        ("z[!1]/*.jsonl", ["z2/g.jsonl"]),
        ("*/g.jsonl", ["z1/g.jsonl", "z2/g.jsonl"]),
        ("x/*/d.jsonl", ["x/y/d.jsonl"]),
        ("z*/deep/*", ["z2/deep/h.jsonl"]),
        (
            "**/*.jsonl",
            [
                "%5B1%5D.jsonl",
                "a.jsonl",
                "x%2A.jsonl",
                "x/c.jsonl",
                "x/e%20f.jsonl",
                "x/y/d.jsonl",
                "z1/g.jsonl",
                "z2/deep/h.jsonl",
                "z2/g.jsonl",
            ],
        ),
        ("x/**", ["x/c.jsonl", "x/e%20f.jsonl", "x/y/d.jsonl"]),
        ("**/d*", ["x/y/d.jsonl"]),
        ("**/y/**/d.jsonl", ["x/y/d.jsonl"]),
        ("_*.jsonl", ["_hidden.jsonl"]),
        ("x/e f.jsonl", ["x/e%20f.jsonl"]),
        ("*.doc", None),
        ("nothing*", None),
        ("nothing/*.jsonl", None),
        ("README.md", ["README.md"]),
    ],
)
def test_files_that_a_url_means(given, expected, object_store):
    """As for paths (test_io_paths.py), in the order of the keys."""
    object_store.put(dict.fromkeys(KEYS, b"{}\n"))
    if expected is None:
        with pytest.raises(InputError, match=r"s3://corpus/.*"):
            find_files([object_store.url(given)])
    else:
        found = find_files([object_store.url(given)])
        assert [file.path for file in found] == [object_store.url(name) for name in expected]
        again = find_files([file.path for file in found])
        assert [(file.path, file.fingerprint) for file in again] == [(file.path, file.fingerprint) for file in found]


def test_the_whole_bucket(object_store):
    object_store.put({"b.jsonl": b"", "a.jsonl": b"", "c/d.jsonl": b"", "folder/": b""})
    for url in ("s3://corpus", "s3://corpus/", "S3://corpus"):
        assert [file.path for file in find_files([url])] == [
            object_store.url(key) for key in ("a.jsonl", "b.jsonl", "c/d.jsonl")
        ]


def test_options_in_the_url(object_store, monkeypatch):
    object_store.put({"a.jsonl": jsonl_bytes([0])})
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_REGION")
    options = f"region=us-east-1&scheme=http&endpoint_override={object_store.endpoint.removeprefix('http://')}"
    for given in ("a.jsonl", "", "*.jsonl"):
        (file,) = find_files([f"{object_store.url(given)}?{options}"])
        assert file.path == f"s3://corpus/a.jsonl?{options}"  # it can be read again by its name
        assert (file.format, file.compression) == ("jsonl", None)
        assert read_texts(open_source(file.path, **OPTIONS)) == TEXTS[:1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["s3://corpus/none.jsonl"], r"there is no file s3://corpus/none.jsonl, nor any below it$"),
        (["s3://nobucket/a.jsonl"], r"there is no bucket 'nobucket' where s3://nobucket leads"),
        (["s3://nobucket/*.jsonl"], r"s3://nobucket.*NO_SUCH_BUCKET.*check the name of the bucket"),
        (["s3://nobucket"], r"there is no bucket 'nobucket'"),
        (["s3://corpus/a.jsonl", "s3://corpus/*.jsonl"], r"the same file is given twice, s3://corpus/a.jsonl"),
        (["s3://corpus/a%2Ejsonl", "s3://corpus/a.jsonl"], r"the same file is given twice, s3://corpus/a.jsonl"),
        (["s3://corpus/a.jsonl", "s3://corpus/b.csv"], r"cannot be mixed .* s3://corpus/a.jsonl \(JSON Lines\)"),
        (["s3://corpus/a.doc"], r"s3://corpus/a.doc has no suffix that says its format"),
        (["s3://corpus/docs/"], r"s3://corpus/docs/ holds no file with a known suffix"),
        (["s3://corpus/a.jsonl?colour=red"], r"cannot be used: .*'colour'"),
    ],
)
def test_urls_of_nothing(given, message, object_store):
    object_store.put({"a.jsonl": b"{}\n", "b.csv": b"text\n", "a.doc": b"", "docs/a.doc": b""})
    with pytest.raises(InputError, match=message) as caught:
        find_files(given)
    assert "\n" not in str(caught.value)


def test_local_and_remote_files_in_one_run(object_store, tmp_path):
    object_store.put({"c/a.jsonl": jsonl_bytes(range(60))})
    (tmp_path / "b.jsonl").write_bytes(jsonl_bytes(range(60, COUNT)))
    source = open_paths([object_store.url("c"), str(tmp_path / "b.jsonl")], **OPTIONS)
    assert read_texts(source) == TEXTS


HOSTILE = [
    "../up.jsonl",
    "x/../up.jsonl",
    "x//y.jsonl",
    "./a.jsonl",
    "a\x1b[2J.jsonl",
    "/lead.jsonl",
    "d.jsonl/e.jsonl",
    "d.jsonl",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_stay_in_the_output(key, object_store, tmp_path):
    """They are left out as hidden, read and written below the run, or refused in a line that names the URL."""
    object_store.put({"data/good.jsonl": jsonl_bytes([0]), f"data/{key}": jsonl_bytes([1])})
    message = ""
    names = []
    try:
        source = open_source(object_store.url("data"), **OPTIONS)
        assert set(read_texts(source)) == set(TEXTS[:1] if key[0] == "." or "/.." in key else TEXTS[:2])
        names = common_names([shard.name for shard in source.shards])
    except InputError as error:
        message = str(error)
    assert bool(message) == ("//" in key or key[0] == "/")
    assert message.isprintable()
    assert not message or "s3://corpus/data/" in message
    for name in names:
        path = tmp_path / "kept" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        assert name.isprintable()
        assert path.resolve().is_relative_to(tmp_path / "kept")


# ---- few requests ----


@pytest.fixture
def quick(monkeypatch):
    """No long pauses before what failed is tried again, and no hidden tries."""
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))
    monkeypatch.setattr(remote, "S3_ATTEMPTS", 1)


@pytest.fixture
def proxy(object_store, monkeypatch):
    with FaultyProxy(object_store.endpoint) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.endpoint)
        yield between


def fetched_bytes(proxy):
    """Bytes of objects that were asked for."""
    ranges = [wanted.removeprefix("bytes=").split("-") for _, _, wanted in proxy.requests if wanted]
    return sum(int(stop) - int(start) + 1 for start, stop in ranges)


def test_only_the_columns_of_the_run_are_fetched(object_store, proxy):
    noise = [random.Random(row).randbytes(20_000) for row in range(COUNT)]
    sink = io.BytesIO()
    pq.write_table(pa.table({"a": noise, "text": TEXTS, "b": noise}), sink, row_group_size=30)
    object_store.put({"a.parquet": sink.getvalue()})
    assert read_texts(open_source(object_store.url("a.parquet"), **OPTIONS)) == TEXTS
    assert len(sink.getvalue()) > 4_000_000
    assert fetched_bytes(proxy) < 600_000
    assert len(proxy.requests) < 20


def test_chosen_rows_are_read_by_row_group(object_store, proxy):
    put(object_store, "a.parquet")
    source = open_source(object_store.url("c"), **OPTIONS)
    proxy.requests.clear()
    assert read_texts(source, np.array([45, 47, 50])) == [TEXTS[45], TEXTS[47], TEXTS[50]]
    assert len(proxy.requests) <= 5  # twice whether it changed, its size, the chunk


def test_chosen_rows_of_lines_are_read_near_them(object_store, proxy):
    rows = 3000
    lines = b"".join(json.dumps({"text": f"{row} " + "x" * 20_000}).encode() + b"\n" for row in range(rows))
    object_store.put({"a.jsonl": lines})
    source = open_source(object_store.url("a.jsonl"), **OPTIONS)
    (shard,) = source.shards
    assert sum(len(batch.rows) for batch in shard.read(["text"])) == rows
    proxy.requests.clear()
    (text,) = read_texts(source, np.array([rows - 10]))
    assert text.startswith(f"{rows - 10} ")
    assert fetched_bytes(proxy) < len(lines) / 2
    assert len(proxy.requests) < 30


def test_a_large_file_is_fetched_by_several_requests_at_a_time(object_store, proxy):
    line = json.dumps({"text": "x" * 1_000_000}).encode() + b"\n"
    object_store.put({"a.jsonl": line * 40})
    source = open_source(object_store.url("a.jsonl"), **OPTIONS)
    proxy.faults = [Fault(0.05)]
    assert len(read_texts(source)) == 40
    assert 2 <= proxy.most_at_once <= 8  # four for each time that it is opened: first for its first row


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "txt"])
def test_many_files_are_asked_for_at_a_time(name, object_store, proxy):
    for number in range(20):
        data = TEXTS[number].encode() if name == "txt" else FILES[name]([number])
        object_store.put({f"c/{number:02}.{name.partition('.')[2] or name}": data})
    proxy.faults = [Fault(0.05, method=method, path="/c/") for method in ("GET", "HEAD")]
    source = open_source(object_store.url("c"), **OPTIONS)
    if name == "txt":
        assert read_texts(source) == TEXTS[:20]
    assert 8 <= proxy.most_at_once <= 16


def test_many_urls_are_looked_up_at_a_time(object_store, proxy):
    names = [object_store.url(f"c/{number:02}.jsonl") for number in range(40)]
    object_store.put({f"c/{number:02}.jsonl": b"{}\n" for number in range(40)})
    proxy.faults = [Fault(0.05, method="HEAD")]
    assert [file.path for file in find_files(names)] == names
    assert 8 <= proxy.most_at_once <= 16
    names[7] = object_store.url("none.jsonl")
    with pytest.raises(InputError, match=r"there is no file s3://corpus/none.jsonl"):
        find_files(names)


# ---- a storage that fails ----

ONCE = ["a.parquet", "a.arrow", "a.jsonl.gz", "txt"]


@pytest.mark.parametrize("what", [500, 503, 429, "reset", "cut"])
@pytest.mark.parametrize("name", ONCE)
def test_failures_that_pass_change_nothing(name, what, object_store, proxy, quick):
    url = put(object_store, name)
    first = [Fault(what, method=method, times=1) for method in ("GET", "HEAD")]
    proxy.faults = [*first, *(Fault(what, method=method, path="/c/", after=1, times=1) for method in ("GET", "HEAD"))]
    source = open_source(url, **OPTIONS, on_error="skip")
    assert read_texts(source) == TEXTS
    assert not source.skipped
    assert all(fault.times == 0 for fault in proxy.faults)


@pytest.mark.parametrize(
    ("name", "what"),
    [*((name, "cut") for name in [*FILES, "txt"]), ("a.parquet", 503), ("a.parquet", 403), ("a.jsonl", "reset")],
)
def test_failures_that_last_end_the_run(name, what, object_store, proxy, quick):
    """Under on_error="skip" too: the file is not damaged."""
    url = put(object_store, name)
    source = open_source(url, **OPTIONS, on_error="skip")
    proxy.faults = [Fault(what, path="/c/")]
    start = time.monotonic()
    with pytest.raises(UnreachableError, match=rf"^cannot read {url}/.*; check ") as caught:
        read_texts(source)
    assert time.monotonic() - start < 60
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3
    assert not source.skipped
    with pytest.raises(UnreachableError):
        open_source(url, **OPTIONS, on_error="skip").shards[0].read(["text"]).__next__()


def test_a_listing_that_fails(object_store, proxy, quick):
    put(object_store, "a.jsonl")
    proxy.faults = [Fault(503, times=3)]
    assert [file.path for file in find_files([object_store.url("c")])] == [object_store.url("c/a.jsonl")]
    for what, advice in ((503, "check the address and the network"), (403, "check the credentials")):
        proxy.faults = [Fault(what)]
        with pytest.raises(UnreachableError, match=f"cannot read s3://corpus/c.*{advice}"):
            find_files([object_store.url("c")])


def test_no_server(object_store, quick, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(UnreachableError, match=r"cannot read s3://corpus/a.jsonl: .*check the address"):
            find_files([object_store.url("a.jsonl")])


def test_a_bucket_whose_region_nobody_says(monkeypatch):
    """As pyarrow says it where no server is named."""

    class Unknowing:
        @staticmethod
        def from_uri(uri):
            raise OSError("When resolving region for bucket 'corpus': AWS Error\nNETWORK_CONNECTION")

    monkeypatch.setattr(pyarrow.fs, "FileSystem", Unknowing)
    with pytest.raises(
        InputError, match=r"^cannot find the region of s3://corpus/a.jsonl: .*\?region=.* or AWS_REGION.*$"
    ):
        find_files(["s3://corpus/a.jsonl"])


def test_slow_answers_are_waited_for(object_store, proxy):
    """4 seconds without a byte is more than pyarrow waits for by itself."""
    put(object_store, "a.jsonl")
    proxy.faults = [Fault(4.0, path="/c/", times=1)]
    assert read_texts(open_source(object_store.url("c"), **OPTIONS)) == TEXTS
    assert sum(method == "GET" and "/c/" in path for method, path, _ in proxy.requests) == 2  # none was given up


@pytest.mark.parametrize("name", [*FILES, "txt"])
@pytest.mark.parametrize("what", ["removed", "changed"])
def test_files_that_change_between_two_reads(name, what, object_store):
    url = put(object_store, name)
    source = open_source(url, **OPTIONS, on_error="skip")
    assert read_texts(source) == TEXTS
    key = object_store.keys[0]
    if what == "removed":
        object_store.delete(key)
    else:
        object_store.put({key: object_store.get(key) + b" "})
    with pytest.raises(ChangedError, match=rf"^s3://corpus/{re.escape(key)} .*run again$"):
        read_texts(source, np.array([0, 3]))
    with pytest.raises(ChangedError, match=rf"^s3://corpus/{re.escape(key)} .*run again$"):
        list(source.shards[0].kept(np.ones(COUNT, bool)))
    assert not source.skipped


def test_damage_is_still_skipped(object_store):
    good, bad = parquet_bytes(range(60)), bytearray(parquet_bytes(range(60, COUNT)))
    bad[200:260] = bytes(60)
    object_store.put({"c/a.parquet": good, "c/b.parquet": bytes(bad), "c/c.parquet": b"PAR1nothing"})
    source = open_source(object_store.url("c"), **OPTIONS, on_error="skip")
    texts = read_texts(source)
    assert texts[:60] == TEXTS[:60]
    assert texts[60:80] == [None] * 20
    assert texts[80:] == TEXTS[80:]
    assert [entry.shard for entry in source.skipped] == [
        object_store.url("c/b.parquet"),
        object_store.url("c/c.parquet"),
    ]


# ---- secrets ----


def test_secrets_are_nowhere(object_store, tmp_path, monkeypatch):
    put(object_store, "a.jsonl")
    put(object_store, "a.csv")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    secrets = ("KEYID999", "se%2Fcret999", "se/cret999")
    outputs = []
    for place, given in enumerate(
        ["c/a.jsonl", "c/*.csv", "c/none.jsonl", "c/", "c/a.jsonl?session_token=se%2Fcret999"]
    ):
        url = f"s3://{secrets[0]}:{secrets[1]}@corpus/{given}"
        command = [
            sys.executable,
            "-c",
            "from gpudedup.cli import main; main()",
            "run",
            url,
            "-o",
            str(tmp_path / str(place)),
            "--device",
            "cpu",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == (0 if place < 2 else 3), done.stderr
        outputs.append((done.stdout + done.stderr).encode())
    outputs += [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    outputs += [pq.read_table(path)["shard"].to_string().encode() for path in tmp_path.rglob("removed/*.parquet")]
    assert len(outputs) > 10
    for output in outputs:
        assert not any(secret.encode() in output for secret in secrets)
    assert f"{object_store.url('c/a.jsonl')}".encode() in outputs[-1] + outputs[-2]


# ---- fsspec ----


@pytest.fixture
def memory_files():
    fsspec = pytest.importorskip("fsspec")
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("name", [*FILES, "txt"])
def test_every_format_by_fsspec(name, memory_files):
    class Store:
        def put(self, files):
            for key, data in files.items():
                memory_files.pipe_file(f"/{key}", data)

        def url(self, key):
            return f"memory://{key}"

    url = put(Store(), name)
    for given in (url, f"{url}/*"):
        source = open_source(given, **OPTIONS)
        assert read_texts(source) == TEXTS
        assert read_texts(source, np.array([3, 77])) == [TEXTS[3], TEXTS[77]]


def test_odd_names_by_fsspec(memory_files):
    for key in ("d/a b#?.jsonl", "d/ü%41.jsonl", "d/_x.jsonl"):
        memory_files.pipe_file(f"/{key}", jsonl_bytes([0]))
    found = find_files(["memory://d"])
    assert [file.path for file in found] == ["memory://d/a%20b%23%3F.jsonl", "memory://d/ü%2541.jsonl"]
    for file in found:
        assert read_texts(open_source(file.path, **OPTIONS)) == TEXTS[:1]
    with pytest.raises(InputError, match=r"there is no file memory://d/none.jsonl"):
        find_files(["memory://d/none.jsonl"])


def test_failures_and_tags_by_fsspec(memory_files, quick, monkeypatch):
    """Errors of any type; a file of the same size and time whose tag differs is another one."""
    memory_files.pipe_file("/a.jsonl", jsonl_bytes(range(3)))
    state = {"failures": 2, "tag": "one"}
    info, cat = type(memory_files).info, type(memory_files)._open

    def failing(method):
        def wrapped(self, path, *args, **kwargs):
            if state["failures"] > 0:
                state["failures"] -= 1
                raise RuntimeError("the gateway is tired")
            return method(self, path, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(
        type(memory_files), "info", failing(lambda *args, **kwargs: info(*args, **kwargs) | {"ETag": state["tag"]})
    )
    monkeypatch.setattr(type(memory_files), "_open", failing(cat))
    source = open_source("memory://a.jsonl", **OPTIONS, on_error="skip")
    assert source.shards[0].fingerprint.etag == "one"
    state["failures"] = 3
    assert read_texts(source) == TEXTS[:3]
    state["failures"] = 1000
    with pytest.raises(
        UnreachableError, match=r"cannot read memory://a.jsonl: the gateway is tired; check the address"
    ):
        read_texts(source)
    state |= {"failures": 0, "tag": "two"}
    with pytest.raises(ChangedError, match=r"memory://a.jsonl changed .* etag one .* etag two now"):
        read_texts(source)
    assert not source.skipped


def test_nothing_of_it_is_imported_before_a_url_is_used(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(jsonl_bytes(range(3)))
    script = (
        "import sys, gpudedup; gpudedup.deduplicate(sys.argv[1], device='cpu'); "
        "print([name for name in ('fsspec', 'boto3') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.jsonl")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# ---- runs ----


def test_a_run_of_remote_files_is_audited_and_goes_on(object_store, tmp_path):
    """Names of outputs hold no options; a changed and a removed input are found."""
    object_store.put({"d/a.jsonl": jsonl_bytes(range(60)), "d/x/b.jsonl": jsonl_bytes(range(60, COUNT))})
    url = object_store.url("d") + REGION
    run = gpudedup.run(url, tmp_path / "run", device="cpu")
    names = ("a.jsonl", "x/b.jsonl")
    assert [path.relative_to(run.path / "kept").as_posix() for path in run.kept] == list(names)
    assert b"".join(path.read_bytes() for path in run.kept) == jsonl_bytes(STAYS)
    assert gpudedup.run(url, tmp_path / "run", device="cpu").manifest == run.manifest
    assert not run.audit().problems
    object_store.put({"d/a.jsonl": b"{}\n"})
    object_store.delete("d/x/b.jsonl")
    changed, removed = sorted(run.audit().problems)
    assert changed.startswith(f"input s3://corpus/d/a.jsonl{REGION} was changed: ")
    assert removed.startswith(f"input s3://corpus/d/x/b.jsonl{REGION} is gone; put it back")


def test_a_key_and_a_prefix_of_one_name(object_store, tmp_path):
    object_store.put({"d/a.jsonl": jsonl_bytes([0]), "d/a.jsonl/b.jsonl": jsonl_bytes([1])})
    with pytest.raises(InputError, match=r"a.jsonl/b.jsonl would be in a directory that is the output for"):
        gpudedup.run(object_store.url("d"), tmp_path / "run", device="cpu")


@pytest.mark.parametrize(
    ("given", "out", "is_inside"),
    [
        ("s3://corpus/d", "s3://corpus/d/run", True),
        ("s3://corpus/d/?region=x", "s3://corpus/d/run", True),
        ("s3://corpus", "s3://corpus/run", True),
        ("s3://corpus/d", "s3://corpus/d2", False),
        ("s3://corpus/d", "s3://other/d/run", False),
        ("s3://corpus/d", "gs://corpus/d/run", False),
        ("s3://corpus/d/*.jsonl", "s3://corpus/d/run", False),
        ("s3://corpus/d/*", "s3://corpus/d/run", True),
        ("s3://corpus/d/**/*.jsonl", "s3://corpus/d/x/run", True),
        ("s3://corpus/d/x/a.jsonl", "s3://corpus/d/run", False),
        ("s3://corpus/d/*/kept/*", "s3://corpus/d/run", True),
    ],
)
def test_whether_a_later_run_would_read_this_one(given, out, is_inside):
    assert would_find(given, out) is is_inside


def test_a_run_inside_its_input(object_store):
    url = put(object_store, "a.jsonl")
    with pytest.raises(OutputError, match=r"s3://corpus/c/run is inside the input s3://corpus/c,"):
        gpudedup.run(url, f"{url}/run", device="cpu")
