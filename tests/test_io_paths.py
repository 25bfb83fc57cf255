"""Which files paths, globs and directories mean, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpudedup.errors import InputError
from gpudedup.io import open_source
from gpudedup.io.paths import find_files


def make(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'{"text":"a"}\n')


def names(folder: Path, *inputs: str) -> list[str]:
    return [os.path.relpath(file.path, folder) for file in find_files([str(folder / given) for given in inputs])]


def test_directory_is_every_known_file_in_byte_order(tmp_path):
    make(
        tmp_path,
        "d/b.jsonl",
        "d/Z.jsonl",
        "d/a/z.ndjson",
        "d/a.jsonl",
        "d/a/b.jsonl.gz",
        "d/é.jsonl",
        "d/a-1.jsonl.zst",
    )
    make(
        tmp_path,
        "d/readme.md",
        "d/_SUCCESS",
        "d/.hidden.jsonl",
        "d/_tmp/x.jsonl",
        "d/.git/x.jsonl",
        "d/_x.jsonl",
        "d/x.json",
    )
    order = ["Z.jsonl", "a-1.jsonl.zst", "a.jsonl", "a/b.jsonl.gz", "a/z.ndjson", "b.jsonl", "é.jsonl"]
    assert names(tmp_path / "d", ".") == order
    assert names(tmp_path, "d") == [f"d/{name}" for name in order]
    assert names(tmp_path, "d/") == [f"d/{name}" for name in order]


def test_paths_as_given_globs_sorted(tmp_path):
    make(tmp_path, "b.jsonl", "a.jsonl", "c1.jsonl", "c0.jsonl", "c0.txt", "_c9.jsonl", "e/f.jsonl", "e/_g/h.jsonl")
    assert names(tmp_path, "b.jsonl", "c*", "a.jsonl") == ["b.jsonl", "c0.jsonl", "c1.jsonl", "a.jsonl"]
    assert names(tmp_path, "?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names(tmp_path, "e*") == ["e/f.jsonl"], "a glob may match directories"
    assert names(tmp_path, "**/*.jsonl") == ["a.jsonl", "b.jsonl", "c0.jsonl", "c1.jsonl", "e/f.jsonl"]
    assert names(tmp_path, "e/_g/*.jsonl") == ["e/_g/h.jsonl"], "what is named outright is not hidden"
    assert names(tmp_path, "_c*") == ["_c9.jsonl"]


def test_names_with_wildcards_in_them_are_names_first(tmp_path):
    make(tmp_path, "a[1].jsonl", "a1.jsonl")
    assert names(tmp_path, "a[1].jsonl") == ["a[1].jsonl"]


def test_shard_names_are_as_given(tmp_path, monkeypatch):
    make(tmp_path, "d/a.jsonl", "b.jsonl")
    monkeypatch.chdir(tmp_path)
    assert [file.path for file in find_files(["./d", "b.jsonl"])] == ["./d/a.jsonl", "b.jsonl"]
    assert [file.path for file in find_files(["./*.jsonl"])] == ["./b.jsonl"]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([], "no input was given"),
        (["missing.parquet"], r"no file matches '.*missing.parquet'; working directory is /"),
        (["missing/*.parquet"], r"no file matches"),
        (
            ["empty"],
            r"directory .*empty holds no file with a known suffix \(.parquet.*; .jsonl, .*, also with .gz or .zst\)",
        ),
        (["a.doc"], r"a.doc has no suffix that says its format; known are .parquet.*; .jsonl, .*.csv, .*.txt"),
        (["*.doc"], r"\*.doc matches .*a.doc but nothing with a known suffix"),
        (["a.jsonl", "a.jsonl"], r"the same file is given twice, \S*a.jsonl; name it once"),
        (["a.jsonl", "*.jsonl"], r"the same file is given twice"),
        (["a.jsonl", "link.jsonl"], r"the same file is given twice, as .*a.jsonl and as .*link.jsonl"),
        (["a.jsonl", "hard.jsonl"], r"the same file is given twice"),
        (["a.jsonl", "sub/../a.jsonl"], r"the same file is given twice"),
        (["fifo.ndjson"], r"fifo.ndjson is not a regular file"),
        (["dangling.ndjson"], r"cannot read .*dangling.ndjson: No such file"),
        (["a.jsonl/b.jsonl"], r"no file matches"),
        (["a\0b.jsonl"], r"NUL"),
        (
            ["a.jsonl", "p.parquet"],
            r"different formats .*: .*a.jsonl \(JSON Lines\) and .*p.parquet \(Parquet\); convert",
        ),
        (["~nobody/x.jsonl"], r"no file matches"),
    ],
)
def test_wrong_inputs(tmp_path, inputs, message):
    make(tmp_path, "a.jsonl", "a.doc", "p.parquet", "sub/x.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    (tmp_path / "hard.jsonl").hardlink_to(tmp_path / "a.jsonl")
    (tmp_path / "dangling.ndjson").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo.ndjson")
    with pytest.raises(InputError, match=message):
        find_files([str(tmp_path / given) for given in inputs])


def test_file_urls_are_local_paths(tmp_path):
    make(tmp_path, "a b.jsonl", "sub/c.jsonl", "sub/d#?.jsonl")
    for given, expected in [
        ("a%20b.jsonl", ["a b.jsonl"]),
        ("a b.jsonl", ["a b.jsonl"]),
        ("sub", ["sub/c.jsonl", "sub/d#?.jsonl"]),
        ("*/c*", ["sub/c.jsonl"]),
        ("sub/d%23%3F.jsonl", ["sub/d#?.jsonl"]),
    ]:
        found = find_files([f"file://{tmp_path}/{given}"])
        assert [file.path for file in found] == [str(tmp_path / name) for name in expected]
        assert all(file.remote is None for file in found)
    with pytest.raises(InputError, match="the same file is given twice"):
        find_files([f"file://{tmp_path}/sub/c.jsonl", str(tmp_path / "sub" / "c.jsonl")])
    with pytest.raises(InputError, match=r"file://elsewhere/a.jsonl cannot be used"):
        find_files(["file://elsewhere/a.jsonl"])


def test_a_path_object_holds_no_url():
    options = {"text_column": "text", "columns": ["text"], "memory_bytes": 1 << 30}
    with pytest.raises(InputError, match=r"no file matches 's3:/bucket/a.jsonl'; a Path holds no URL: give a str"):
        open_source(Path("s3://bucket/a.jsonl"), **options)


def test_link_loops_do_not_hang(tmp_path):
    make(tmp_path, "d/e/a.jsonl")
    (tmp_path / "d" / "e" / "up").symlink_to(tmp_path / "d", target_is_directory=True)
    (tmp_path / "d" / "self.jsonl").symlink_to("self.jsonl")
    with pytest.raises(InputError, match=r"self.jsonl: Too many levels"):
        find_files([str(tmp_path / "d")])
    (tmp_path / "d" / "self.jsonl").unlink()
    assert names(tmp_path / "d", ".") == ["e/a.jsonl"]
    assert names(tmp_path / "d", "**/*.jsonl") == ["e/a.jsonl"]


def test_links_to_directories_elsewhere_are_followed(tmp_path):
    make(tmp_path, "store/a.jsonl")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one").symlink_to(tmp_path / "store", target_is_directory=True)
    assert names(tmp_path, "d") == ["d/one/a.jsonl"]
    (tmp_path / "d" / "two").symlink_to(tmp_path / "store", target_is_directory=True)
    with pytest.raises(InputError, match="the same file is given twice"):
        names(tmp_path, "d")


def test_file_name_that_is_not_utf8(tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff.jsonl"
    try:
        with open(path, "wb"):
            pass
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match=r"is not UTF-8 and cannot be recorded; rename it"):
        find_files([str(tmp_path)])


def test_path_objects(tmp_path):
    make(tmp_path, "a.jsonl", "b.jsonl")
    options = {"text_column": "text", "columns": ["text"], "memory_bytes": 1 << 30}
    paths = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    assert [shard.name for shard in open_source(paths, **options).shards] == [str(path) for path in paths]
    assert [shard.name for shard in open_source(paths[0], **options).shards] == [str(paths[0])]
    assert [shard.name for shard in open_source(str(tmp_path), **options).shards] == sorted(map(str, paths))


def test_directory_without_permission(tmp_path, monkeypatch):
    """Simulated, since root may look everywhere."""
    closed = tmp_path / "closed"
    closed.mkdir()

    def refuse(path, *args, **kwargs):
        if str(path).startswith(str(closed)):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, *args, **kwargs)

    stat = os.stat
    monkeypatch.setattr(os, "stat", refuse)
    monkeypatch.setattr(os, "scandir", refuse)
    for given in (closed / "a.jsonl", closed / "*.jsonl"):
        with pytest.raises(InputError, match=r"cannot look for .*jsonl: permission denied for .*closed"):
            find_files([str(given)])
