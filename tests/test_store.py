"""Run directories: whole or absent when written, nothing trusted when read."""

# ruff: noqa: PT012  a block that fails half-way is what many of these tests are about

from __future__ import annotations

import errno
import gc
import gzip
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from forged import edit

import gpudedup
from gpudedup.display import summary_rows
from gpudedup.errors import ArtefactError, InputError, OutputError, ParameterError
from gpudedup.explain import explain
from gpudedup.io import open_source
from gpudedup.io.jsonl import JsonlShard
from gpudedup.store import manifest as manifests
from gpudedup.store.atomic import TEMPORARY, atomic_file, output_errors
from gpudedup.store.manifest import InputEntry, SkippedEntry
from gpudedup.store.run_directory import MARKER, Run, RunDirectory, relative_names
from gpudedup.store.stopping import GivenUpError, checkpoint, heed, stoppable_threads

REMOVED = pa.table({"shard": ["x"], "row": pa.array([1], pa.int64()), "similarity": [1.0]})


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def finish(run: RunDirectory, shards=(), outputs=()):
    return run.finish(
        outputs=outputs,
        spec=1,
        version="0.1",
        parameters={"threshold": 0.8, "keep": "first"},
        bands=18,
        rows=7,
        counts={"documents": 3, "kept": 2},
        seconds={"sign": 0.5},
        inputs=[InputEntry(path=shard, size_bytes=1, mtime_ns=2, rows=3) for shard in shards],
        skipped=[SkippedEntry(shard="x", first_row=None, count=0, reason="cut off")],
    )


def write_run(out: Path, output="kept", shards=("in/a.parquet", "in/sub/b.jsonl.gz")) -> Path:
    with RunDirectory.create(out, shards, output=output) as run:
        outputs = []
        for shard in reversed(shards):
            outputs.append(run.write_removed(shard, REMOVED))
            if output == "kept":
                outputs.append(run.write_kept(shard, lambda path: path.write_bytes(b"kept"), rows=2))
            elif output == "mask":
                outputs.append(run.write_mask(shard, np.array([True, False, True])))
        finish(run, shards, outputs)
    return out


# Atomic files


def test_atomic_file_is_whole_or_absent(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.name.startswith(".")
    assert path.read_text() == "new"
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert path.read_text() == "new"
    assert files(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (
            errno.ENOSPC,
            r"cannot write .*a.txt: .*No space left.*; \d+ bytes are free in /.*: free some or choose another",
        ),
        (errno.EDQUOT, r"bytes are free"),
        (errno.EACCES, r"no permission to write there: choose another directory"),
        (errno.EROFS, r"read-only file system: choose another directory"),
        (errno.EIO, r"bytes are free in .*; choose another directory"),
    ],
)
def test_system_errors_say_what_to_do(tmp_path, number, message):
    with pytest.raises(OutputError, match=message), atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise OSError(number, os.strerror(number))
    assert files(tmp_path) == []


def test_no_space(tmp_path):
    """A file size limit of 100 KB stands for a full disk: the writer gets the same error from the system."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        with (
            pytest.raises(OutputError, match=r"cannot write .*kept/a.jsonl: .*larger than this system or its limits"),
            RunDirectory.create(tmp_path / "out", ["a.jsonl"]) as run,
        ):
            run.write_removed("a.jsonl", REMOVED)
            run.write_kept("a.jsonl", lambda path: path.write_bytes(bytes(1_000_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert files(tmp_path) == []


def test_missing_folder_and_file_in_the_way(tmp_path):
    with pytest.raises(OutputError, match="No such file"), atomic_file(tmp_path / "missing" / "a.txt") as temporary:
        temporary.write_text("x")
    (tmp_path / "file").write_text("x")
    for out in ("file", "file/out"):
        with pytest.raises(OutputError, match=r"file (exists and )?is not a directory.*; choose another"):
            RunDirectory.create(tmp_path / out, ["a.parquet"])


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("", "no output directory given"),
        ("bad\udcff", r"'bad\\udcff' is not UTF-8; choose"),
        ("bad\ud800", "is not UTF-8"),
        ("a\0b", r"'a\\x00b' contains a NUL"),
        ("n" * 300, "cannot write .*: .*name too long.*; choose a shorter name"),
        ("file/x/y", "file is not a directory, so file/x/y cannot be made"),
        ("file", "file is the input file itself"),
        ("./sub/../file", "is the input file itself"),
    ],
)
def test_paths_that_cannot_be(tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    with pytest.raises(OutputError, match=message) as raised:
        RunDirectory.create(out, ["file"])
    assert "\n" not in str(raised.value)
    str(raised.value).encode()
    assert files(tmp_path) == ["file"]


def test_detours_are_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(Path("new/../other"))
    assert not Path("new").exists()
    Run.open("new/../other").verify()
    Run.open("other").verify()


def test_errors_name_the_final_file(tmp_path):
    """Also where the shard's writer turns errors into OutputError under the temporary name."""

    def write(path):
        with output_errors(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with pytest.raises(OutputError) as raised, RunDirectory.create(tmp_path / "out", ["a.jsonl"]) as run:
        run.write_kept("a.jsonl", write)
    assert "cannot write" in str(raised.value)
    assert "kept/a.jsonl: " in str(raised.value)
    assert ".gpudedup-" not in str(raised.value)


def test_read_only_parent(tmp_path):
    if os.geteuid() == 0:
        parent = Path("/proc/1")  # read-only for root too
        if not parent.is_dir():
            pytest.skip("no place that root cannot write to")
    else:
        parent = tmp_path
        parent.chmod(0o500)
    with pytest.raises(OutputError, match=r"cannot write .*out: "):
        RunDirectory.create(parent / "out", ["a.parquet"])


# Writing


def test_layout_and_manifest(tmp_path):
    out = write_run(tmp_path / "deep" / "out")
    assert files(out) == [
        "kept",
        "kept/a.parquet",
        "kept/sub",
        "kept/sub/b.jsonl.gz",
        "manifest.json",
        "removed",
        "removed/a.parquet",
        "removed/sub",
        "removed/sub/b.jsonl.gz.parquet",
    ]
    manifest = msgspec.json.decode((out / "manifest.json").read_bytes())
    assert manifest["state"] == "complete"
    assert manifest["parameters"] == {"threshold": 0.8, "keep": "first"}
    assert next(iter(manifest)) == "checksum"
    assert manifest["inputs"][1] == {
        "path": "in/sub/b.jsonl.gz",
        "size_bytes": 1,
        "mtime_ns": 2,
        "rows": 3,
        "etag": None,
        "xxh3_128": "",
        "task": 0,
    }
    assert manifest["skipped"] == [
        {"shard": "x", "first_row": None, "count": 0, "reason": "cut off", "size_bytes": 0, "mtime_ns": 0}
    ]
    kinds = [(entry["kind"], entry["shard"]) for entry in manifest["outputs"]]
    assert kinds == sorted(kinds), "by kind, then in input order, though written in another"
    entry = manifest["outputs"][0]
    assert (entry["path"], entry["kind"], entry["shard"], entry["size_bytes"]) == (
        "kept/a.parquet",
        "kept",
        "in/a.parquet",
        4,
    )
    assert len(entry["xxh3_128"]) == 32


def test_mask_and_none(tmp_path):
    out = write_run(tmp_path / "mask", "mask")
    assert pq.read_table(out / "keep_mask" / "a.parquet").to_pydict() == {"keep": [True, False, True]}
    assert not (out / "kept").exists()
    assert "keep_mask" not in files(write_run(tmp_path / "none", "none"))
    with pytest.raises(ParameterError, match='output must be one of "kept", "mask", "none", got \'all\''):
        RunDirectory.create(tmp_path / "x", ["a"], output="all")


def test_an_empty_directory_is_taken_and_given_back(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(RuntimeError), RunDirectory.create(out, ["a.parquet"]) as run:
        run.write_removed("a.parquet", REMOVED)
        raise RuntimeError
    assert out.is_dir()
    assert files(out) == []
    write_run(out)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("manifest.json", r"out already holds a run; choose another directory or delete it"),
        (MARKER, r"out holds an unfinished run"),
        ("thesis.tex", r"out is not empty \(it has 'thesis.tex'\) and holds no run"),
    ],
)
def test_directory_in_use_is_refused_and_left_alone(tmp_path, content, message):
    out = tmp_path / "out"
    out.mkdir()
    (out / content).write_text("x")
    with pytest.raises(OutputError, match=message):
        RunDirectory.create(out, ["a.parquet"])
    assert files(out) == [content]


def test_two_runs_cannot_share_a_directory(tmp_path):
    with RunDirectory.create(tmp_path / "out", ["a.parquet"]) as run:
        with pytest.raises(OutputError, match="unfinished run: one that is going on"):
            RunDirectory.create(tmp_path / "out", ["b.parquet"])
        finish(run)
    assert files(tmp_path / "out") == ["manifest.json"]


def test_failure_removes_what_was_made_and_nothing_else(tmp_path):
    for error in (RuntimeError, KeyboardInterrupt, OutputError):
        with (
            pytest.raises(error),
            RunDirectory.create(tmp_path / "new" / "out", ["a/b.parquet", "a/c/d.parquet"]) as run,
        ):
            run.write_removed("a/c/d.parquet", REMOVED)
            run.write_kept("a/b.parquet", lambda path: path.write_bytes(b"x"))
            raise error
        assert files(tmp_path) == []
    with pytest.raises(RuntimeError), RunDirectory.create(tmp_path / "out", ["b.parquet"]) as run:
        run.write_removed("b.parquet", REMOVED)
        (tmp_path / "out" / "removed" / "mine.txt").write_text("the user's")
        raise RuntimeError
    assert files(tmp_path) == ["out", "out/removed", "out/removed/mine.txt"]


def test_not_finishing_is_failing(tmp_path):
    with RunDirectory.create(tmp_path / "out", ["b.parquet"]) as run:
        run.write_removed("b.parquet", REMOVED)
    assert files(tmp_path) == []


def test_interrupts_at_the_edges_leave_no_marker(tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupt(*args):
        raise KeyboardInterrupt

    opened = os.open

    def open_then_interrupt(*args):
        os.close(opened(*args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "open", open_then_interrupt)
        RunDirectory.create(out, ["a.jsonl"])
    assert files(tmp_path) == []

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "__enter__", interrupt)
        with RunDirectory.create(out, ["a.jsonl"]):
            pass
    gc.collect()
    assert files(tmp_path) == []

    unmark = RunDirectory._unmark
    calls = []

    def interrupt_once(run):
        calls.append(run)
        if len(calls) == 1:
            raise KeyboardInterrupt
        unmark(run)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "_unmark", interrupt_once)
        with RunDirectory.create(out, ["a.jsonl"]) as run:
            finish(run)
    assert files(out) == ["manifest.json"]
    Run.open(out)
    (out / MARKER).write_text("")
    Run.open(out).verify()
    with pytest.raises(OutputError, match="already holds a run"):
        RunDirectory.create(out, ["a.jsonl"])


def test_names_are_compared_by_value():
    one, other = "".join(["a", ".jsonl"]), "".join(["a.", "jsonl"])
    assert relative_names([one, other]) == ["a.jsonl", "a.jsonl"]


CHILD = """
import sys, time
from pathlib import Path
from gpudedup.store.run_directory import RunDirectory
def slow(path):
    with open(path, "wb") as file:
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)
with RunDirectory.create(sys.argv[1], ["a.jsonl", "b.jsonl"]) as run:
    run.write_kept("a.jsonl", lambda path: path.write_bytes(b"x"))
    run.write_kept("b.jsonl", slow)
"""


def test_interrupt_while_writing_leaves_nothing(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "out")], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGINT)
    start = time.monotonic()
    assert child.wait(30) != 0
    assert time.monotonic() - start < 5
    child.stdout.close()
    assert files(tmp_path) == []


def test_kill_leaves_no_half_file_under_a_final_name(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    left = [name for name in files(tmp_path / "out") if not Path(name).name.startswith(".")]
    assert left == ["kept", "kept/a.jsonl"]
    with pytest.raises(ArtefactError, match=r"holds no finished run: it has no manifest.json"):
        Run.open(tmp_path / "out")
    with pytest.raises(OutputError, match="unfinished run"):
        RunDirectory.create(tmp_path / "out", ["a.jsonl"])


# Stopping


class StopAt(threading.Event):
    """Set when it is asked for the given time, so that tests need no clock."""

    def __init__(self, time: int) -> None:
        super().__init__()
        self.left = time

    def is_set(self):
        self.left -= 1
        return self.left < 1


def in_thread(work):
    """Threads of their own, since what one heeds stays with it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


TEXTS = pa.table({"text": [f"{number} " * 200 for number in range(5000)]})


def write_table(path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(TEXTS, path, row_group_size=1000)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), TEXTS.schema) as writer:
            writer.write_table(TEXTS, max_chunksize=1000)
    elif path.name.endswith(".csv"):
        path.write_text("text\n" + "".join(f"{text}\n" for text in TEXTS["text"].to_pylist()))
    else:
        lines = "".join(f'{{"text":"{text}"}}\n' for text in TEXTS["text"].to_pylist()).encode()
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)


@pytest.mark.parametrize("kept", [1, 0.5, 0])
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl", "a.jsonl.gz", "a.csv"])
def test_writers_look_for_a_stop_between_pieces_of_work(tmp_path, name, kept):
    write_table(tmp_path / name)
    source = open_source(tmp_path / name, text_column="text", columns=["text"], memory_bytes=1 << 30)
    (shard,) = source.shards
    keep = np.arange(5000) < 5000 * kept
    for time_of_stop in range(1, 4):
        if not kept and name in ("a.parquet", "a.arrow") and time_of_stop > 1:
            continue  # nothing is read either

        def work(time_of_stop: int = time_of_stop) -> None:
            heed(StopAt(time_of_stop))
            shard.write_kept(keep, tmp_path / "kept")

        with pytest.raises(GivenUpError):
            in_thread(work)
    shard.write_kept(keep, tmp_path / "kept")  # this thread was not asked to stop


def test_data_in_memory_is_written_with_looks_for_a_stop(tmp_path):
    source = open_source(pa.concat_tables([TEXTS] * 8), text_column="text", columns=["text"], memory_bytes=1 << 30)

    def work():
        heed(StopAt(2))
        source.shards[0].write_kept(np.ones(40_000, bool), tmp_path / "kept")

    with pytest.raises(GivenUpError):
        in_thread(work)


def test_small_files_and_tables_are_written_with_looks_for_a_stop(tmp_path):
    def small():
        heed(StopAt(3))
        write_small(tmp_path / "out")

    def mask():
        heed(StopAt(1))
        write_run(tmp_path / "mask", "mask")

    def checksum():
        (tmp_path / "large").write_bytes(bytes(3 << 20))
        heed(StopAt(3))
        manifests.checksum(tmp_path / "large")

    for work in (small, mask, checksum):
        with pytest.raises(GivenUpError):
            in_thread(work)
    assert files(tmp_path) == ["large"]


def test_a_shard_that_fails_ends_the_others(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text":"{name}"}}\n')

    def write(shard, keep, path):
        if shard.name.endswith("b.jsonl"):
            raise OutputError("b cannot be written")
        for _ in range(3000):  # half a minute, if nobody stops it
            time.sleep(0.01)
            checkpoint()

    monkeypatch.setattr(JsonlShard, "write_kept", write)
    start = time.monotonic()
    with pytest.raises(OutputError, match="b cannot be written"):
        gpudedup.run(str(tmp_path / "*.jsonl"), tmp_path / "out", workers=2)
    assert time.monotonic() - start < 10
    assert gpudedup.status(tmp_path / "out").state == "unfinished"
    assert not [name for name in files(tmp_path / "out") if TEMPORARY in name or name.startswith("kept/")]
    monkeypatch.undo()
    gpudedup.run(str(tmp_path / "*.jsonl"), tmp_path / "out").verify()


def test_a_signal_while_a_thread_starts(monkeypatch):
    """The pool does not know that thread then, though it is at work."""
    working, ended = threading.Event(), threading.Event()

    def task():
        try:
            while True:
                working.set()
                time.sleep(0.2)
                checkpoint()
        finally:
            ended.set()

    start = threading.Thread.start

    def start_and_be_interrupted(thread):
        start(thread)
        assert working.wait(30)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt), stoppable_threads(1, "test") as submit:
        submit(task)
    assert ended.is_set()


def test_a_stop_reaches_threads_of_threads():
    """One that waits for threads of its own cannot look itself."""
    working, ended = threading.Event(), threading.Event()

    def inner():
        working.set()
        try:
            for _ in range(300):
                time.sleep(0.01)
                checkpoint()
        except GivenUpError:
            ended.set()
            raise

    def outer():
        with stoppable_threads(2, "inner") as submit:
            submit(inner).result()

    with stoppable_threads(1, "outer") as submit:
        submit(outer)
        assert working.wait(30)
    assert ended.is_set()


ENDLESS = """
import sys, time
from gpudedup.cli import main
from gpudedup.io.jsonl import JsonlShard
from gpudedup.store.atomic import open_output
def endless(shard, keep, path):
    with open_output(path) as file:
        print("writing", flush=True)
        while True:
            file.write(bytes(1 << 18))
            time.sleep(0.01)
JsonlShard.write_kept = endless
main()
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_stop_in_the_middle_of_a_shard(tmp_path, signum):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text":"{name}"}}\n')
    child = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "run", str(tmp_path), "-o", f"{tmp_path}-out", "--workers", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with child:
        assert child.stdout.readline() == b"writing\n"
        child.send_signal(signum)
        start = time.monotonic()
        assert child.wait(30) == 85
        assert time.monotonic() - start < 3  # about 0.1 s on an idle machine
        assert b"what is finished stays, and the same command goes on from there" in child.stderr.read()
    out = Path(f"{tmp_path}-out")
    assert not [name for name in files(out) if TEMPORARY in name or name.startswith("kept/") or name == "lock.json"]
    gpudedup.run(str(tmp_path), out).verify()
    assert [path.name for path in gpudedup.Run.open(out).kept] == ["a.jsonl", "b.jsonl", "c.jsonl"]


# Many small files

SMALL = ("in/x/1.txt", "in/x/y/2.txt", "in/3.txt")


def write_small(out: Path, fail: BaseException | None = None) -> Path:
    with RunDirectory.create(out, SMALL, one_table=True) as run:
        with run.kept_files() as write:
            outputs = []
            for name in SMALL:
                outputs.append(write(name, [name.encode(), b"", b" and more"]))
                assert not (out / "kept").exists(), "named when all of it is there"
            if fail is not None:
                raise fail
        outputs.append(run.write_removed("", REMOVED))
        finish(run, SMALL, outputs)
    return out


def test_many_small_files(tmp_path):
    out = write_small(tmp_path / "out")
    assert files(out) == [
        *("kept", "kept/3.txt", "kept/x", "kept/x/1.txt", "kept/x/y", "kept/x/y/2.txt"),
        *("manifest.json", "removed", "removed/data.parquet"),
    ]
    run = Run.open(out)
    run.verify()
    assert [path.read_bytes() for path in run.kept] == [f"{name} and more".encode() for name in SMALL]
    assert [entry.shard for entry in run.manifest.outputs] == [*SMALL, ""]
    assert run.removed.num_rows == 1


@pytest.mark.parametrize("fail", [KeyboardInterrupt(), OutputError("no"), OSError(errno.ENOSPC, "No space left")])
def test_many_small_files_or_none(tmp_path, fail):
    with pytest.raises(OutputError if isinstance(fail, OSError) else type(fail)):
        write_small(tmp_path / "out", fail)
    assert files(tmp_path) == []


def test_a_failure_after_small_files_removes_them(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RuntimeError), RunDirectory.create(out, SMALL, one_table=True) as run:
        with run.kept_files() as write:
            for name in SMALL:
                write(name, [b"x"])
        (out / "kept" / "x" / "mine.txt").write_text("the user's")
        raise RuntimeError
    assert files(out) == ["kept", "kept/x", "kept/x/mine.txt"]


def test_small_files_that_the_system_could_not_write(tmp_path, monkeypatch):
    class Library:
        @staticmethod
        def syncfs(handle):
            return -1

    monkeypatch.setattr("ctypes.CDLL", lambda *args, **options: Library)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EIO)
    with pytest.raises(OutputError, match=r"cannot write .*out/kept: .*Input/output error"):
        write_small(tmp_path / "out")
    assert files(tmp_path) == []


def test_small_files_are_flushed_before_they_are_named_and_names_before_the_manifest(tmp_path):
    """The order of system calls, seen from outside."""
    trace = tmp_path / "trace"
    if shutil.which("strace") is None:
        pytest.skip("no strace")
    code = "import sys, pathlib; from test_store import write_small; write_small(pathlib.Path(sys.argv[1]))"
    command = ["strace", "-f", "-o", str(trace), "-e", "trace=syncfs,fsync,rename", sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([*command, str(tmp_path / "out")], env=environment, check=True, capture_output=True)
    calls = [line for line in trace.read_text().splitlines() if "sync" in line or "rename" in line]
    place = {
        what: next(number for number, line in enumerate(calls) if what in line)
        for what in ("syncfs", 'out/kept")', 'out/manifest.json")')
    }
    assert place["syncfs"] < place['out/kept")'] < place['out/manifest.json")']
    between = calls[place['out/kept")'] : place['out/manifest.json")']]
    assert sum("fsync" in line for line in between) >= 3, "the run's folder, that of the table, the manifest"


# What was skipped


MAIN = "from gpudedup.cli import main; main()"


def test_whole_files_that_were_skipped_are_counted(tmp_path):
    """Beside the rows: a truncated stream has lost rows, too many to count, but not all of them."""
    for name in ("a", "b"):
        pq.write_table(pa.table({"text": [name, "x"]}), tmp_path / f"{name}.parquet")
    for name in ("c", "d"):
        (tmp_path / f"{name}.parquet").write_bytes(b"no parquet")
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "run", str(tmp_path), "-o", f"{tmp_path}-out", "--on-error", "skip", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert (found["documents"], found["skipped"], found["skipped_files"]) == (4, 0, 2)
    run = gpudedup.Run.open(f"{tmp_path}-out")
    assert run.manifest.counts["skipped_files"] == run.summary().skipped_files == 2
    assert ("skipped", "0 rows that could not be read, and 2 whole files") in summary_rows(run.summary())
    lines = "".join(f'{{"text":"{number}"}}\n' for number in range(50_000)).encode()
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines)[:-1000])
    summary = gpudedup.deduplicate(tmp_path / "cut.jsonl.gz", on_error="skip").summary()
    assert summary.documents > 0
    assert summary.skipped_files == 0


# Where inputs are


def test_relative_inputs_are_found_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Run.open(write_run(Path("out"))).manifest.working_directory == str(tmp_path)
    absolute = (str(tmp_path / "in/a.parquet"),)
    assert Run.open(write_run(Path("two"), shards=absolute)).manifest.working_directory == ""
    assert Run.open(write_run(Path("three"), shards=("",))).manifest.working_directory == ""
    edit(Path("out/manifest.json"), lambda manifest: manifest.pop("working_directory"))
    assert Run.open("out").manifest.working_directory == ""


def test_explain_from_another_directory(tmp_path, monkeypatch):
    for name in ("here/in", "there"):
        (tmp_path / name).mkdir(parents=True)
    text = " ".join(f"w{number}" for number in range(20))
    for number in range(2):
        (tmp_path / f"here/in/{number}.jsonl").write_text(f'{{"text":"{text}"}}\n')
    monkeypatch.chdir(tmp_path / "here")
    gpudedup.run("in", "../out")
    monkeypatch.chdir(tmp_path / "there")
    found = explain(gpudedup.Run.open("../out"), "in/1.jsonl:0")
    assert (found.status, found.document.text, found.keeper.text, found.note) == ("removed", text, text, None)
    (tmp_path / "here/in").rename(tmp_path / "there/in")
    assert explain(gpudedup.Run.open("../out"), "in/1.jsonl:0").document.text == text, "moved with the run"
    (tmp_path / "there/in").rename(tmp_path / "gone")
    assert f"{tmp_path}/here/in/" in explain(gpudedup.Run.open("../out"), "in/1.jsonl:0").note, "where it was"


# Names


def test_names_are_relative_to_the_deepest_common_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert relative_names([]) == []
    assert relative_names(["/data/a.parquet"]) == ["a.parquet"]
    assert relative_names(["/data/x/a.parquet", "/data/y/a.parquet"]) == ["x/a.parquet", "y/a.parquet"]
    assert relative_names(["/data/a.parquet", "/data/a/b/c.parquet"]) == ["a.parquet", "a/b/c.parquet"]
    assert relative_names(["/a.parquet", "/b/c.parquet"]) == ["a.parquet", "b/c.parquet"]
    assert relative_names(["../a.parquet", "./b.parquet"]) == ["a.parquet", f"{tmp_path.name}/b.parquet"]
    assert relative_names(["x/../../../../../../../../../etc/a.parquet", "/etc/b.parquet"])[1] == "b.parquet"
    assert relative_names([""]) == ["data.parquet"]


@pytest.mark.parametrize(
    "shards", [["a/x.jsonl", "a/./x.jsonl"], ["a/x.jsonl", "a/b/../x.jsonl"], ["x.jsonl", "x.jsonl.parquet"]]
)
def test_colliding_names(tmp_path, shards):
    with pytest.raises(InputError, match=r"outputs for .* and .* would have the same name '.*x.jsonl.*'; rename one"):
        RunDirectory.create(tmp_path / "out", shards)
    assert files(tmp_path) == []


def test_names_cannot_leave_the_directory(tmp_path):
    """Whatever shards are called, every file is below out/."""
    shards = ["/etc/../x/a.parquet", "../../b.parquet", "..\\c.parquet", "d/..parquet", "e /~/f.parquet"]
    out = write_run(tmp_path / "out", shards=tuple(shards))
    assert len(Run.open(out).kept) == len(shards)
    assert all(path.resolve().is_relative_to(out.resolve()) for path in Run.open(out).kept)


def test_output_inside_input(tmp_path):
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (tmp_path / "link").symlink_to(data, target_is_directory=True)
    inside = [data / "out", data / "sub" / "deep" / "out", tmp_path / "link" / "out", data / ".." / "data" / "out"]
    for given in (str(data), f"{data}/", f"{data}/**/*.parquet", str(tmp_path / "link")):
        for out in inside:
            with pytest.raises(OutputError, match=r"is inside the input .*choose a directory elsewhere"):
                RunDirectory.create(out, [str(data / "a.parquet")], [given])
    assert files(data) == ["sub"]
    RunDirectory.create(data / "out", [str(data / "a.parquet")], [str(data / "*.parquet")]).remove()
    for glob in ("*", "o?t", "*/kept", "*/kept/*.parquet", "../da*/*/*/*", "s*/*/out/**"):
        given = str(data / glob)
        out = data / "sub" / "deep" / "out" if "**" in glob else data / "out"
        with pytest.raises(OutputError, match=r"is inside the input .*choose a directory elsewhere"):
            RunDirectory.create(out, [str(data / "a.parquet")], [given])
    for glob in ("*/*.parquet", "*.jsonl", "sub/*", "*/kept/*.jsonl", "*/*/*/*"):
        RunDirectory.create(data / "out", [str(data / "a.parquet")], [str(data / glob)]).remove()
    RunDirectory.create(data / "_out", [str(data / "a.parquet")], [str(data / "*")]).remove()
    RunDirectory.create(tmp_path / "data2", [str(data / "a.parquet")], [str(data)]).remove()


def test_input_inside_output(tmp_path):
    with pytest.raises(OutputError, match=r"input .*a.parquet is inside"):
        RunDirectory.create(tmp_path, [str(tmp_path / "a.parquet")])


# Reading


def test_reading_back(tmp_path):
    run = Run.open(write_run(tmp_path / "out"))
    assert run.removed.num_rows == 2
    assert run.removed.schema == REMOVED.schema
    assert [path.read_bytes() for path in run.kept] == [b"kept", b"kept"]
    assert run.manifest.counts == {"documents": 3, "kept": 2}
    run.verify()
    with pytest.raises(ArtefactError, match='was written with output="kept", not "mask"'):
        run.keep_mask  # noqa: B018
    mask = Run.open(write_run(tmp_path / "mask", "mask"))
    assert mask.keep_mask.to_pylist() == [True, False, True] * 2
    with pytest.raises(ArtefactError, match='output="mask", not "kept"'):
        mask.kept  # noqa: B018


def test_changed_files_are_found(tmp_path):
    out = write_run(tmp_path / "out")
    run = Run.open(out)
    table = (out / "removed" / "a.parquet").read_bytes()
    (out / "removed" / "a.parquet").write_bytes(table[:-1])
    with pytest.raises(
        ArtefactError, match=rf"removed/a.parquet has {len(table) - 1} bytes, but manifest.json says {len(table)}"
    ):
        run.removed  # noqa: B018
    (out / "removed" / "a.parquet").write_bytes(table[:50] + bytes([table[50] ^ 1]) + table[51:])
    with pytest.raises(ArtefactError, match=r"has checksum [0-9a-f]{32}, but manifest.json says [0-9a-f]{32}"):
        run.removed  # noqa: B018
    (out / "removed" / "a.parquet").unlink()
    with pytest.raises(ArtefactError, match=r"removed/a.parquet is missing, though manifest.json lists it"):
        run.removed  # noqa: B018
    (out / "removed" / "a.parquet").mkdir()
    with pytest.raises(ArtefactError, match="is missing"):
        run.removed  # noqa: B018
    (out / "kept" / "a.parquet").write_bytes(b"kepT")
    assert len(run.kept) == 2, "sizes only"
    with pytest.raises(ArtefactError, match=r"has checksum|is missing"):
        run.verify()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'{"format":1}', b"[" * 100_000])
def test_damaged_manifest(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ArtefactError, match=r"manifest.json is damaged: "):
        Run.open(tmp_path)


def test_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtefactError, match=r"holds no finished run: it has no manifest.json"):
            Run.open(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtefactError, match=r"cannot read .*file/manifest.json"):
        Run.open(tmp_path / "file")
    (tmp_path / "manifest.json").symlink_to("/etc/passwd")
    with pytest.raises(ArtefactError, match="is a symbolic link"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("../secret.parquet", "removed"),
        ("removed/../../secret.parquet", "removed"),
        ("/etc/passwd", "removed"),
        ("removed//etc/passwd", "removed"),
        ("./removed/a.parquet", "removed"),
        ("removed", "removed"),
        ("removed/", "removed"),
        ("", "removed"),
        ("kept/a.parquet", "removed"),
        ("removed/a\0.parquet", "removed"),
        ("manifest.json", "manifest.json"),
        ("signatures/a.arrow", "signatures"),
    ],
)
def test_hostile_paths(tmp_path, path, kind):
    out = write_run(tmp_path / "out")
    edit(out / manifests.NAME, lambda manifest: manifest["outputs"][0].update(path=path, kind=kind))
    with pytest.raises(ArtefactError, match="which is no file of a run"):
        Run.open(out)


def test_hostile_links(tmp_path):
    out = write_run(tmp_path / "out")
    (tmp_path / "secret").write_bytes((out / "kept" / "a.parquet").read_bytes())
    (out / "kept" / "a.parquet").unlink()
    (out / "kept" / "a.parquet").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtefactError, match=r"kept/a.parquet is a symbolic link, which no run writes"):
        Run.open(out)
    out = write_run(tmp_path / "two")
    (out / "removed").rename(tmp_path / "elsewhere")
    (out / "removed").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match=r"two/removed is a symbolic link"):
        Run.open(out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda manifest: manifest.update(format=1), "has format 1, this version of gpudedup reads format 2"),
        (lambda manifest: manifest.update(format=3), "has format 3, this version of gpudedup reads format 2"),
        (lambda manifest: manifest.update(state="running"), "is in state 'running', not \"complete\""),
        (lambda manifest: manifest.update(outputs={}), "is damaged: Expected `array`"),
        (lambda manifest: manifest["outputs"][0].update(size_bytes="1"), "is damaged: Expected `int`"),
        (lambda manifest: manifest["outputs"][0].update(size_bytes=-1), "gives 'kept/a.parquet' -1 bytes"),
        (lambda manifest: manifest["outputs"][0].update(rows=-5), "and -5 rows"),
        (lambda manifest: manifest["inputs"][0].update(size_bytes=-1), "gives 'in/a.parquet' -1 bytes"),
        (lambda manifest: manifest["inputs"][0].update(task=-1), "gives 'in/a.parquet'"),
        (lambda manifest: manifest.pop("inputs"), "missing required field `inputs`"),
    ],
)
def test_wrong_manifests(tmp_path, change, message):
    out = write_run(tmp_path / "out")
    edit(out / manifests.NAME, change)
    with pytest.raises(ArtefactError, match=message):
        Run.open(out)


def test_wrong_counts_and_contents(tmp_path):
    out = write_run(tmp_path / "out")
    first = [entry.path for entry in Run.open(out).manifest.outputs].index("removed/a.parquet")
    edit(out / manifests.NAME, lambda manifest: manifest["outputs"][first].update(rows=10**15))
    with pytest.raises(ArtefactError, match=f"has 1 rows, but manifest.json says {10**15}"):
        Run.open(out).removed  # noqa: B018
    path = out / "removed" / "a.parquet"
    path.write_bytes(b"no parquet")

    def fit(manifest):
        manifest["outputs"][first].update(rows=1, size_bytes=10, xxh3_128=manifests.checksum(path))

    edit(out / manifests.NAME, fit)
    with pytest.raises(ArtefactError, match=r"removed/a.parquet cannot be read"):
        Run.open(out).removed  # noqa: B018
    out = write_run(tmp_path / "mask", "mask")
    path = out / "keep_mask" / "a.parquet"
    pq.write_table(pa.table({"keep": [1, 0, 1]}), path)
    entry = next(n for n, entry in enumerate(Run.open(out).manifest.outputs) if entry.path == "keep_mask/a.parquet")
    values = {"size_bytes": path.stat().st_size, "xxh3_128": manifests.checksum(path)}
    edit(out / manifests.NAME, lambda manifest: manifest["outputs"][entry].update(values))
    with pytest.raises(ArtefactError, match="not one boolean 'keep'"):
        Run.open(out).keep_mask  # noqa: B018


def test_large_mask(tmp_path, monkeypatch):
    monkeypatch.setattr("gpudedup.store.run_directory.MASK_ROWS", 1000)
    keep = np.random.default_rng(1).random(4500) < 0.5
    with RunDirectory.create(tmp_path / "out", [""], output="mask") as run:
        finish(run, outputs=[run.write_mask("", keep)])
    assert (tmp_path / "out" / "keep_mask" / "data.parquet").is_file()
    assert Run.open(tmp_path / "out").keep_mask.to_pylist() == keep.tolist()
