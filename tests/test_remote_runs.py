"""Run directories on an object store: the same bytes as on a disk, whatever fails on the way."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from object_store import Fault, FaultyProxy, ObjectStore, new_store, serve
from pyarrow.fs import FileSystem

import gpudedup
from gpudedup.engines import corpus, lineage
from gpudedup.errors import ArtefactError, GpudedupError, InputError, LockedError, OutputError
from gpudedup.store import lock, mirror
from gpudedup.store.run_directory import Artefacts
from gpudedup.store.stopping import GivenUpError, heed


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serve() as endpoint:
        yield endpoint


@pytest.fixture
def store(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    monkeypatch.setattr(mirror, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(lock, "SETTLING_SECONDS", 0.01)
    with new_store(server, monkeypatch) as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Four files of near-copies, a task each."""
    chosen = np.random.default_rng(3)
    words = [f"word{number}" for number in range(400)]
    folder = tmp_path / "in"
    folder.mkdir()
    texts: list[str] = []
    for number in range(4):
        for _ in range(30):
            if texts and chosen.random() < 0.5:
                copy = texts[chosen.integers(len(texts))].split()
                copy[chosen.integers(len(copy))] = "changed"
                texts.append(" ".join(copy))
            else:
                texts.append(" ".join(chosen.choice(words, 60)))
        pq.write_table(pa.table({"text": texts[-30:], "id": range(30)}), folder / f"{number}.parquet")
    return folder


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "TASK_FILES", 1)
    monkeypatch.setattr(lineage, "TASK_KEYS", 1000)


def results(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.startswith(("removed/", "kept/", "keep_mask/"))}


def on_disk(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def on_store(store: ObjectStore, prefix: str) -> dict[str, bytes]:
    """Without the empty objects that pyarrow leaves for folders."""
    names = [key for key in store.keys if key.startswith(prefix) and not key.endswith("/")]
    return {key.removeprefix(prefix): store.get(key) for key in names}


@pytest.mark.parametrize("output", ["kept", "mask", "none"])
def test_a_remote_run_has_the_bytes_of_a_local_one(
    store: ObjectStore, files: Path, tmp_path: Path, output: str
) -> None:
    gpudedup.run(files, tmp_path / "local", output=output, id_column="id")
    run = gpudedup.run(files, store.url("runs/a"), output=output, id_column="id")
    local, remote = on_disk(tmp_path / "local"), on_store(store, "runs/a/")
    assert results(remote) == results(local) != {}
    assert set(remote) == set(local)
    assert run.name == store.url("runs/a")
    assert run.removed.equals(gpudedup.Run.open(tmp_path / "local").removed)
    assert run.audit(tmp=str(tmp_path)).problems == []
    if output == "kept":
        kept = gpudedup.deduplicate(run.kept[0], threshold=1.0)
        assert kept.summary().documents == pq.read_table(tmp_path / "local" / "kept" / "0.parquet").num_rows


def test_nothing_stays_on_the_disk(store: ObjectStore, files: Path, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    gpudedup.run(files, store.url("a"), tmp=tmp_path / "tmp")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_goes_on_where_another_process_stopped(
    store: ObjectStore, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpudedup.run(files, tmp_path / "local")
    expected = results(on_disk(tmp_path / "local"))
    with FaultyProxy(store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        for done in (0, 5, 10):
            proxy.faults = [Fault(403, method="PUT", path="/done/", after=done)]
            with pytest.raises(OutputError, match=r"cannot write done/.*what is committed stays") as error:
                gpudedup.run(files, store.url("a"))
            assert str(tmp_path) not in str(error.value)
            assert store.url("a") in str(error.value)
            assert "gpudedup-run-" not in str(error.value)
            records = [key for key in store.keys if key.startswith("a/done/")]
            proxy.faults, before = [], len(proxy.requests)
            gpudedup.run(files, store.url("a"))
            assert results(on_store(store, "a/")) == expected
            written = {path for method, path, _ in proxy.requests[before:] if method == "PUT"}
            assert not {path for path in written if any(record in path for record in records)}, "done twice"
            for key in store.keys:
                store.delete(key)


def test_passing_failures_are_tried_again(
    store: ObjectStore, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpudedup.run(files, tmp_path / "local")
    with FaultyProxy(store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.faults = [
            Fault(503, method="PUT", path="signatures", times=2),
            Fault("reset", method="PUT", path="kept", times=2, after=1),
            Fault(500, method="PUT", path="done", times=1, after=5),
            Fault(0.5, method="PUT", path="match", times=2),
        ]
        gpudedup.run(files, store.url("a"))
    assert results(on_store(store, "a/")) == results(on_disk(tmp_path / "local"))


def test_a_finished_run_is_left_alone(store: ObjectStore, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpudedup.run(files, store.url("a"))
    with FaultyProxy(store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        gpudedup.run(files, store.url("a"))
        assert not [path for method, path, _ in proxy.requests if method in ("PUT", "DELETE")]
        fetched = [path for method, path, _ in proxy.requests if method == "GET" and "signatures" in path]
        assert not [path for path in fetched if path.endswith(".arrow")]


def objects(requests: list[tuple[str, str, str]]) -> list[str]:
    """Names in the run of what was asked for, listings as ""."""
    return [path.partition("?")[0].partition("/corpus/a/")[2] for _, path, _ in requests]


def test_records_come_when_they_are_asked_for(store: ObjectStore, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To open a run takes as many requests with 4 tasks as with 12, and a record is got once, with others."""
    taken = []
    with FaultyProxy(store.endpoint) as proxy:
        for count in (4, 12):
            for number in range(4, count):
                pq.write_table(
                    pa.table({"text": [f"one more text {number}"], "id": [0]}), files / f"{number:02}.parquet"
                )
            gpudedup.run(files, store.url("a"), id_column="id")
            with monkeypatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
                proxy.requests.clear()
                run = gpudedup.Run.open(store.url("a"))
                assert run.summary().documents == 120 + count - 4
                assert {name for name in objects(proxy.requests) if name} == {"manifest.json"}
                taken.append(len(proxy.requests))
                assert run.removed.num_rows > 10
                tables = {name for name in objects(proxy.requests) if name} - {"manifest.json"}
                assert tables == {
                    entry.path for entry in run.manifest.outputs if entry.kind == "removed" and entry.rows
                }
                assert len(proxy.requests) <= taken[-1] + 2 * count
                proxy.requests.clear()
                proxy.most_at_once = 0
                found = gpudedup.status(store.url("a"))
                assert all(stage.is_done for stage in found.stages)
                asked = [
                    name
                    for (method, *_), name in zip(proxy.requests, objects(proxy.requests), strict=True)
                    if method == "GET"
                ]
                records = [name for name in asked if name.startswith("done/")]
                there = [key.removeprefix("a/") for key in store.keys if "/done/" in key and key.endswith(".json")]
                assert sorted(records) == sorted(there)
                assert len(records) >= 2 * count
                assert 1 < proxy.most_at_once <= mirror.AT_ONCE
    assert taken[0] == taken[1] <= 4


def test_records_that_are_too_long_stay_where_they_are(
    store: ObjectStore, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpudedup.run(files, store.url("a"))
    name = "done/decide/000000.json"
    store.put({f"a/{name}": store.get(f"a/{name}") + b" " * 20_000})
    monkeypatch.setattr("gpudedup.store.records.MAX_BYTES", 20_000)
    with FaultyProxy(store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert [stage.name for stage in gpudedup.status(store.url("a")).stages if not stage.is_done] == ["decide"]
        assert name not in objects(proxy.requests)


@pytest.mark.parametrize("change", ["longer", "shorter", "gone"])
def test_what_another_process_does_meanwhile(store: ObjectStore, files: Path, tmp_path: Path, change: str) -> None:
    """A file has the size that it had in the listing, or whoever asks for it is told."""
    gpudedup.run(files, store.url("a"))
    data = store.get("a/done/match/000000.json")
    with closing(mirror.Mirror(store.url("a"), str(tmp_path))) as there:
        if change == "gone":
            store.delete("a/done/match/000000.json")
        else:
            store.put({"a/done/match/000000.json": data[:-1] if change == "shorter" else data + b"\n"})
        artefacts = Artefacts(there.local, there)
        assert artefacts.done("decide", 0, None) is not None
        for _ in range(2):
            with pytest.raises(
                ArtefactError, match=r"match/000000.json is (gone|not of \d+ bytes any more); another process"
            ):
                artefacts.done("match", 0, None)
        assert not list(there.local.rglob(".gpudedup-*"))


def test_an_earlier_run_that_cannot_be_reached(
    store: ObjectStore, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the same nor another: nobody knows, and that is said."""
    first, second = sorted(files.iterdir())[:2], sorted(files.iterdir())[2:]
    gpudedup.run(first, store.url("a"))
    gpudedup.run(second, tmp_path / "b", against=store.url("a"))
    before = on_disk(tmp_path / "b")
    with FaultyProxy(store.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        proxy.faults = [Fault(403)]
        with pytest.raises(InputError, match=f"cannot list {store.url('a')}: .*check that the store can be reached"):
            gpudedup.run(second, tmp_path / "b", against=store.url("a"))
        proxy.faults = []
        gpudedup.run(second, tmp_path / "b", against=store.url("a"))
        assert on_disk(tmp_path / "b") == before
        store.delete("a/manifest.json")
        with pytest.raises(ArtefactError, match="holds no finished run"):
            gpudedup.run(second, tmp_path / "b", against=store.url("a"))


def test_decided_anew_and_extended(store: ObjectStore, files: Path, tmp_path: Path) -> None:
    url = store.url("a")
    gpudedup.run(files, url)
    gpudedup.advance(url, "match", keep="longest")
    assert gpudedup.status(url).state == "unfinished"
    gpudedup.advance(url, "apply")
    gpudedup.run(files, tmp_path / "local", keep="longest")
    assert results(on_store(store, "a/")) == results(on_disk(tmp_path / "local"))
    pq.write_table(pa.table({"text": ["one more text of its own"] * 2, "id": [0, 1]}), files / "7.parquet")
    before = {key: store.get(key) for key in store.keys if key.startswith("a/done/sign/")}
    gpudedup.run(files, url, keep="longest")
    gpudedup.run(files, tmp_path / "more", keep="longest")
    assert results(on_store(store, "a/")) == results(on_disk(tmp_path / "more"))
    assert before.items() <= {key: store.get(key) for key in store.keys}.items()


def test_against_a_remote_run(store: ObjectStore, files: Path, tmp_path: Path) -> None:
    first, second = sorted(files.iterdir())[:2], sorted(files.iterdir())[2:]
    gpudedup.run(first, store.url("a"))
    gpudedup.run(first, tmp_path / "a")
    remote = gpudedup.run(second, store.url("b"), against=store.url("a")).removed
    local = gpudedup.run(second, tmp_path / "b", against=tmp_path / "a").removed
    assert remote.drop(["keeper_run"]).equals(local.drop(["keeper_run"]))
    assert set(remote["keeper_run"].to_pylist()) == {store.url("a"), None}


def test_damage_is_found(store: ObjectStore, files: Path) -> None:
    """In one file of each folder."""
    gpudedup.run(files, store.url("a"))
    folders = {key.rpartition("/")[0]: key for key in store.keys if key[-1] != "/" and "/done/" not in key}
    assert len(folders) == 7
    for key in folders.values():
        data = bytearray(store.get(key))
        whole = bytes(data)
        data[len(data) // 2] ^= 1
        store.put({key: bytes(data)})
        if key == "a/manifest.json":
            with pytest.raises(ArtefactError, match=r"manifest\.json"):
                gpudedup.Run.open(store.url("a"))
        else:
            assert gpudedup.Run.open(store.url("a")).audit().problems, key
        store.put({key: whole})


def test_the_lock_of_a_living_driver(store: ObjectStore, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock.RemoteLockFile, "period_seconds", 0.1)
    with closing(mirror.Mirror(store.url("a"), gettempdir())) as there:
        with lock.Lock(lock.RemoteLockFile(there)), pytest.raises(LockedError, match="is being written by"):
            gpudedup.run(files, store.url("a"))
        there.write("lock.json", b'{"token":"x","host":"gone","pid":1,"period_seconds":0.1,"beat":3}')
        said: list[str] = []
        gpudedup.run(files, store.url("a"), tell=said.append)
        assert len(said) == 1
        assert "gone, process 1; watching for 0.3 s" in said[0]
    assert "a/lock.json" not in store.keys


def test_names_that_lead_elsewhere(store: ObjectStore, files: Path) -> None:
    gpudedup.run(files, store.url("a"))
    store.put({"a/kept/../../../outside": b"x"})
    with pytest.raises(ArtefactError, match=re.escape("which no run writes")):
        gpudedup.Run.open(store.url("a"))


def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch, store: ObjectStore, files: Path) -> None:
    for url in ("s3://nobucket/run", store.url("")):
        with pytest.raises(GpudedupError) as error:
            gpudedup.run(files, url) if "nobucket" in url else gpudedup.Run.open(url)
        assert "\n" not in str(error.value)
        assert "test-secret" not in str(error.value)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_stopped_and_continued(store: ObjectStore, files: Path, tmp_path: Path, signum: int) -> None:
    driver = "from gpudedup.engines import corpus; corpus.TASK_FILES = 1; from gpudedup.cli import main; main()"
    command = [sys.executable, "-c", driver, "run", str(files), "-o", store.url("a"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ}, text=True)
    while not any("/done/sign/" in key for key in store.keys) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signum)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, "Traceback" in err) in ((85, False), (0, False)), err
    assert subprocess.run(command, capture_output=True, env={**os.environ}, check=False).returncode == 0
    gpudedup.run(files, tmp_path / "local")
    assert results(on_store(store, "a/")) == results(on_disk(tmp_path / "local"))


class StoppingFilesystem:
    """Lets another one write; sets an event when it is given the third block of a file."""

    def __init__(self, other: FileSystem, stop: threading.Event) -> None:
        self._other, self._stop = other, stop
        self.blocks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)

    @contextmanager
    def open_output_stream(self, path: str) -> Iterator[StoppingFilesystem]:
        with self._other.open_output_stream(path) as self._file:
            yield self

    def write(self, block: bytes) -> None:
        self.blocks += 1
        if self.blocks == 3:
            self._stop.set()
        self._file.write(block)


@pytest.mark.parametrize(("name", "blocks"), [("signatures/000000.arrow", 3), ("manifest.json", 50)])
def test_a_stop_in_the_middle_of_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, blocks: int
) -> None:
    """What no record names may be there in part, but not the manifest, in the place of the one before."""
    monkeypatch.setattr(mirror, "BLOCK_BYTES", 100)
    stop, data = threading.Event(), os.urandom(5000)
    with closing(mirror.Mirror("memory://stop-test/run", str(tmp_path))) as there:
        there._filesystem = stopping = StoppingFilesystem(there._filesystem, stop)  # type: ignore[assignment]
        (there.local / name).parent.mkdir(exist_ok=True)
        (there.local / name).write_bytes(data)

        def publish() -> None:
            heed(stop)
            with suppress(GivenUpError):
                there.publish([name])

        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
        assert stop.is_set()
        assert stopping.blocks == blocks
        assert there.read(name, 5000) == data[: 100 * blocks]
        there.remove(name)
