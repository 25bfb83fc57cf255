"""Files named by URLs: what a URL means, and what its name says."""

from __future__ import annotations

import builtins
import sys

import pyarrow.fs
import pytest

from gpudedup.errors import InputError
from gpudedup.io.paths import common_names
from gpudedup.io.remote import Url, filesystem_of, is_url

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
