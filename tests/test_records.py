"""Records, sealed files and the manifest with whatever content: a typed error or "not done", and nothing else."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from forged import edit, sealed

import gpudedup
from gpudedup import ArtefactError, OutputError
from gpudedup.engines import corpus
from gpudedup.store import manifest as manifests
from gpudedup.store import records

STAGE, TASK, DIGEST = "sign", 3, "0" * 32
ARTEFACT = "signatures/000003.arrow"

Values = dict[str, Any]
Change = Callable[[Values], Any]


def artefact(path: str = ARTEFACT, kind: str = "signatures", data: bytes = b"lanes") -> Values:
    digest = xxhash.xxh3_128_hexdigest(data)
    return {"path": path, "kind": kind, "shard": "", "size_bytes": len(data), "xxh3_128": digest, "rows": None}


def record(**changes: Any) -> Values:
    source = {"path": "in/a.jsonl", "size_bytes": 90, "mtime_ns": 5, "rows": 7, "etag": None, "xxh3_128": "", "task": 3}
    values = {"stage": STAGE, "task": TASK, "digest": DIGEST, "artefacts": [artefact()], "inputs": [source]}
    more = {"skipped": [], "counts": {"rows": 7, "text_bytes": 80}, "seconds": 0.5, "host": "here", "version": "1"}
    return {**values, **more, **changes}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with one task that is done."""
    folder = tmp_path / "run"
    put(folder, sealed(record()))
    (folder / "signatures").mkdir()
    (folder / ARTEFACT).write_bytes(b"lanes")
    assert read(folder) is not None
    return folder


def put(run: Path, data: bytes, stage: str = STAGE, task: int = TASK) -> Path:
    path = run / "done" / stage / f"{task:06}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(run: Path) -> records.Record | None:
    return records.read(run, STAGE, TASK, DIGEST)


def assert_not_done(run: Path, why: str) -> None:
    """It is done again; who wants to know more is told."""
    assert read(run) is None
    with pytest.raises(ArtefactError, match=why):
        records.load(run, STAGE, TASK)


# ----------------------------------------------------------------------------------------------------------- damage


def test_every_cut_is_found(run: Path) -> None:
    data = sealed(record())
    for size in range(len(data)):
        put(run, data[:size])
        assert_not_done(run, "is damaged|its checksum differs")


def test_every_flipped_byte_is_found(run: Path) -> None:
    data = sealed(record())
    generator = random.Random(3)
    for place in range(len(data)):
        flipped = bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        put(run, bytes(flipped))
        assert read(run) is None, (place, flipped)


def test_torn_between_two_versions(run: Path) -> None:
    """The front of one and the end of another of the same length, block by block."""
    old, new = sealed(record(counts={"rows": 7, "text_bytes": 81})), sealed(record())
    assert len(old) == len(new)
    for place in range(8, len(new), 8):
        torn = new[:place] + old[place:]
        put(run, torn)
        assert (read(run) is None) == (torn not in (old, new)), place


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"7",
        b'""',
        bytes(4096),
        b"\xff\xfe",
        b"[" * 1_000_000,
        b'{"checksum":' * 100_000,
        b'{"more": ' + b"[" * 1_000_000,
        b"1" * 100_000,
        b'{"seconds": 1e999999}',
        b'{"host": "\\ud800"}',
        b'{"host": "\xed\xa0\x80"}',
        b'{"checksum": "\\u0000"}',
    ],
    ids=lambda data: repr(data[:12]),
)
def test_what_is_no_record(run: Path, data: bytes) -> None:
    put(run, data)
    assert_not_done(run, "000003.json is damaged: ")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp037"])
def test_other_encodings(run: Path, encoding: str) -> None:
    put(run, sealed(record(host="hôte")).decode().encode(encoding))
    assert_not_done(run, "is damaged: ")
    latin = sealed(record(host="hote")).replace(b"hote", "hôte".encode("latin-1"))
    put(run, latin)
    assert_not_done(run, "is damaged: ")


# ------------------------------------------------------------------------------- what fits its checksum and is wrong


WRONG: dict[str, Change] = {
    "no stage": lambda values: values.pop("stage"),
    "no artefacts": lambda values: values.pop("artefacts"),
    "another stage": lambda values: values.update(stage="match"),
    "a stage that is none": lambda values: values.update(stage="../sign"),
    "another task": lambda values: values.update(task=4),
    "task below 0": lambda values: values.update(task=-3),
    "task of 100 bits": lambda values: values.update(task=2**100),
    "task is text": lambda values: values.update(task="3"),
    "task is a fraction": lambda values: values.update(task=3.5),
    "task is true": lambda values: values.update(task=True),
    "artefacts are a mapping": lambda values: values.update(artefacts={"path": ARTEFACT}),
    "artefacts are names": lambda values: values.update(artefacts=[ARTEFACT]),
    "two artefacts": lambda values: values["artefacts"].append(artefact("signatures/more.arrow")),
    "nothing made": lambda values: values.update(artefacts=[]),
    "path is a number": lambda values: values["artefacts"][0].update(path=7),
    "path is null": lambda values: values["artefacts"][0].update(path=None),
    "size below 0": lambda values: values["artefacts"][0].update(size_bytes=-1),
    "size of 2^62": lambda values: values["artefacts"][0].update(size_bytes=2**62),
    "size of 100 bits": lambda values: values["artefacts"][0].update(size_bytes=2**100),
    "size is a fraction": lambda values: values["artefacts"][0].update(size_bytes=5.5),
    "rows below 0": lambda values: values["inputs"][0].update(rows=-7),
    "rows of 2^63": lambda values: values["inputs"][0].update(rows=2**63),
    "other rows than counted": lambda values: values["inputs"][0].update(rows=8),
    "no rows counted": lambda values: values["counts"].pop("rows"),
    "rows counted below 0": lambda values: values["counts"].update(rows=-1),
    "counts are a list": lambda values: values.update(counts=[7, 80]),
    "counts are text": lambda values: values.update(counts={"rows": "7", "text_bytes": 80}),
    "counts in counts": lambda values: values.update(counts={"rows": {"rows": 7}, "text_bytes": 80}),
    "counts of a megabyte": lambda values: values["counts"].update({f"{n}": n for n in range(100_000)}),
    "skipped in a file that was not read": lambda values: values["skipped"].append(
        {"shard": "in/b.jsonl", "first_row": 1, "count": 1, "reason": "?"}
    ),
    "seconds are text": lambda values: values.update(seconds="long"),
    "host is a list": lambda values: values.update(host=["here"]),
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_values_that_no_run_writes(run: Path, change: Change) -> None:
    values = record()
    change(values)
    put(run, sealed(values))
    assert_not_done(run, r"000003\.json (is damaged|gives numbers that no run|is the record of)")


@pytest.mark.parametrize("size", [0, 4, 6, 2**53 - 1])
def test_an_artefact_of_another_size(run: Path, size: int) -> None:
    put(run, sealed(record(artefacts=[{**artefact(), "size_bytes": size}])))
    assert read(run) is None


def test_a_record_under_another_name(run: Path) -> None:
    """A record that is whole counts in its own place only."""
    data = sealed(record())
    for stage in records.STAGES:
        for task in (0, TASK, TASK + 1):
            path = put(run, data, stage, task)
            assert (records.read(run, stage, task, None) is not None) == ((stage, task) == (STAGE, TASK))
            if (stage, task) != (STAGE, TASK):
                with pytest.raises(ArtefactError, match="is the record of task 3 of sign"):
                    records.load(run, stage, task)
                path.unlink()
    assert records.read(run, STAGE, TASK, "1" * 32) is None, "of another plan"
    for name in ("3.json", "-00003.json", "+00003.json", "000003.JSON", "00000３.json", "9" * 13 + ".json", "a.json"):
        (run / "done" / STAGE / name).write_bytes(data)
    assert records.tasks_recorded(run, STAGE) == [TASK]


def test_names_that_come_twice(run: Path) -> None:
    """The last value counts, for the checks too; the checksum is of all bytes."""
    blank = sealed(record()).replace(b'"artefacts"', b'"artefacts": [{"path": "../outside"}], "artefacts"')
    put(run, resealed(blank))
    assert read(run) is None, "what is dropped has to be of the type too"
    outside = json.dumps([artefact("signatures/../../outside")]).encode()
    for first, last in ((outside, json.dumps([artefact()]).encode()), (json.dumps([artefact()]).encode(), outside)):
        data = sealed(record(artefacts="HERE")).replace(b'"HERE"', first + b', "artefacts": ' + last)
        put(run, resealed(data))
        if last == outside:
            with pytest.raises(ArtefactError, match="which is no file of a run"):
                read(run)
        else:
            found = read(run)
            assert found is not None
            assert [entry.path for entry in found.artefacts] == [ARTEFACT]
    data = sealed(record()).replace(b'{\n "checksum"', b'{\n "checksum": "none", "checksum"')
    put(run, data)
    assert read(run) is None


def resealed(data: bytes) -> bytes:
    """The same with the checksum that fits."""
    old = msgspec.json.decode(data)["checksum"].encode()
    blank = data.replace(old, b"", 1)
    return data.replace(old, xxhash.xxh3_128_hexdigest(blank).encode(), 1)


# ------------------------------------------------------------------------------------------ what leads out of the run


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("../outside/victim", "signatures"),
        ("signatures/../../outside/victim", "signatures"),
        ("signatures/../signatures/000003.arrow", "signatures"),
        ("/etc/passwd", "signatures"),
        ("//etc/passwd", ""),
        ("signatures//000003.arrow", "signatures"),
        ("signatures/./000003.arrow", "signatures"),
        ("signatures/", "signatures"),
        ("signatures", "signatures"),
        ("", ""),
        (".", "."),
        ("..", ".."),
        ("../run/signatures/000003.arrow", ".."),
        ("signatures/000003.arrow\0.txt", "signatures"),
        ("signatures/000003.arrow", "kept"),
        ("kept/000003.arrow", "signatures"),
        ("done/sign/000003.json", "done"),
        ("manifest.json", "manifest.json"),
        ("lock.json", "lock.json"),
        ("~/signatures", "~"),
        ("file:///etc/passwd", "file:"),
    ],
)
def test_artefacts_outside_of_the_run(run: Path, path: str, kind: str) -> None:
    """Even if what they name is there and has the size."""
    (run.parent / "outside").mkdir()
    (run.parent / "outside" / "victim").write_bytes(b"lanes")
    put(run, sealed(record(artefacts=[artefact(path, kind)])))
    with pytest.raises(ArtefactError, match="which is no file of a run") as error:
        read(run)
    assert "\0" not in str(error.value)


@pytest.mark.parametrize("name", ["x" * 300, "/".join(["d"] * 5000), "..x/y", "\u202e\x1b[31m", "a\\..\\b", "c:"])
def test_names_that_are_only_odd(run: Path, name: str) -> None:
    """Not there: not done."""
    put(run, sealed(record(artefacts=[artefact(f"signatures/{name}")])))
    assert read(run) is None


@pytest.mark.parametrize("place", ["done", "done/sign", "done/sign/000003.json", "signatures", ARTEFACT])
@pytest.mark.parametrize("relative", [False, True])
def test_links(run: Path, place: str, relative: bool) -> None:
    path, outside = run / place, run.parent / "outside"
    path.rename(outside)
    path.symlink_to(os.path.relpath(outside, path.parent) if relative else outside)
    with pytest.raises(ArtefactError, match="is a symbolic link, which no run writes"):
        read(run)


@pytest.mark.parametrize("place", ["done", "done/sign", "done/sign/000003.json", "signatures", ARTEFACT])
def test_links_to_themselves(run: Path, place: str) -> None:
    path = run / place
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(ArtefactError, match="is a symbolic link"):
        read(run)


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_a_record_that_is_no_file(run: Path, kind: str) -> None:
    """No process waits for what nobody writes, and none keeps it open."""
    path = run / "done" / STAGE / f"{TASK:06}.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.path.relpath(path))
    before = len(os.listdir("/proc/self/fd")) if sys.platform == "linux" else 0
    for _ in range(3):
        with pytest.raises(ArtefactError, match="cannot read"):
            read(run)
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("place", ["done", "done/sign", "signatures"])
def test_files_for_folders(run: Path, place: str) -> None:
    shutil.rmtree(run / place)
    (run / place).write_bytes(b"a file")
    if place == "signatures":
        assert read(run) is None
    else:
        with pytest.raises(ArtefactError, match=r"cannot read .*: Not a directory"):
            read(run)
    assert records.tasks_recorded(run, "sign") == ([TASK] if place == "signatures" else [])


# ------------------------------------------------------------------------------------------------------------ memory


LIMIT_BYTES = 400 << 20
"""Beside what the process has when it has imported everything."""

LOAD = """
import resource, sys
from pathlib import Path
from gpudedup.errors import ArtefactError
from gpudedup.store import manifest, records
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + int(sys.argv[1]),) * 2)
for run in map(Path, sys.argv[2:]):
    try:
        records.load(run, "sign", 3)
    except ArtefactError as error:
        print(error)
"""


def large(front: str, entry: bytes, end: str, size: int = records.MAX_BYTES) -> bytes:
    """As many entries as a record may be long, between two pieces of JSON."""
    count = (size - len(front.encode()) - len(end)) // len(entry)
    return front.encode() + entry * count + end.encode()


def counting(more: bytes = b"") -> bytes:
    """A record that counts as many names as its size allows."""
    names = b",".join(b'"%x":0' % number for number in range(records.MAX_BYTES // 11))
    return sealed(record(counts="HERE")).replace(b'"HERE"', b"{" + names + b"}" + more)


LARGE: dict[str, Callable[[], bytes]] = {
    "lists": lambda: large('{"inputs": [', b"[],", "[]]}"),
    "lists nobody asks for": lambda: large('{"more": [', b"[],", "[]]}"),
    "names": counting,
    "names that are dropped": lambda: counting(b', "counts": {}'),
    "a text that needs four bytes a letter": lambda: large('{"host": "\U0001f642', b"x", '"}'),
    "skipped places": lambda: large(
        '{"skipped": [', b'{"shard":"","first_row":0,"count":0,"reason":""},', '{"shard":1}]}'
    ),
    "artefacts": lambda: large(
        '{"artefacts": [',
        b'{"path":"a","kind":"b","shard":"c","size_bytes":1000,"xxh3_128":"d","rows":2000},',
        '{"path":1}]}',
    ),
    "a number": lambda: b"1" * (records.MAX_BYTES - 1),
    "brackets": lambda: b"[" * (records.MAX_BYTES - 1),
}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_memory_is_bounded(tmp_path: Path) -> None:
    runs = [tmp_path / f"{number}" for number in range(len(LARGE) + 1)]
    for run, make in zip(runs, LARGE.values(), strict=False):
        put(run, make())
    sparse = put(runs[-1], b"")
    os.truncate(sparse, 1 << 30)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(LIMIT_BYTES), *map(str, runs)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = done.stdout.splitlines()
    assert len(said) == len(runs)
    for name, line in zip(LARGE, said, strict=False):
        assert re.search(r"000003\.json is (damaged: |not what was written)", line), (name, line)
    assert said[-1].endswith(f"has {1 << 30} bytes, more than the {records.MAX_BYTES} that it can have")


def test_a_record_that_would_be_too_long(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused by who writes it: who reads it would do the task again, for ever."""
    found = read(run)
    assert found is not None
    monkeypatch.setattr(records, "MAX_BYTES", 400)
    with pytest.raises(
        OutputError, match=r"record of task 3 of sign would have [0-9]+ bytes, more than 400: it names 1"
    ):
        records.write(run, found)


# ---------------------------------------------------------------------------------------------------------- manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with inputs, and a finished run over them in two tasks."""
    place = tmp_path_factory.mktemp("finished")
    (place / "in").mkdir()
    for number in range(2):
        texts = [f"text {row} of {number} with a few more words" for row in range(4)] * 2
        pq.write_table(pa.table({"text": texts, "id": range(8)}), place / "in" / f"{number}.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "TASK_FILES", 1)
        gpudedup.run(place / "in", place / "run", within="id")
    return place


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run whose inputs are where they were."""
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def test_damage_to_the_manifest_is_found(copy: Path) -> None:
    path = copy / manifests.NAME
    data = path.read_bytes()
    generator = random.Random(7)
    for place in [*range(100), *generator.sample(range(100, len(data)), 300)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << generator.randrange(8)
        for damaged in (bytes(flipped), data[:place]):
            path.write_bytes(damaged)
            with pytest.raises(ArtefactError, match=r"manifest\.json"):
                manifests.read(copy, unfinished=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values["inputs"][0].update(task=2**64),
        lambda values: values["inputs"][0].update(rows=2**63),
        lambda values: values["inputs"][0].update(size_bytes=10**30),
        lambda values: values["outputs"][0].update(rows=2**62),
        lambda values: values.update(inputs={}),
        lambda values: values.update(parameters=[]),
        lambda values: values.update(parameters={"more": [[]] * 400_000}),
        lambda values: values.update(counts={"rows": "many"}),
        lambda values: values.update(seconds={"sign": []}),
        lambda values: values.update(against=[{"path": "x", "digest": "", "documents": -1}]),
    ],
)
def test_manifests_that_no_run_writes(copy: Path, change: Change) -> None:
    edit(copy / manifests.NAME, change)
    with pytest.raises(ArtefactError, match=r"manifest\.json (is damaged: |gives )"):
        gpudedup.Run.open(copy)
    with pytest.raises(ArtefactError, match=r"manifest\.json (is damaged: |gives )"):
        gpudedup.status(copy)


def test_a_manifest_that_is_too_long(copy: Path) -> None:
    os.truncate(copy / manifests.NAME, manifests.MAX_BYTES + 1)
    with pytest.raises(ArtefactError, match="more than the 1073741824 that it can have"):
        gpudedup.Run.open(copy)


# --------------------------------------------------------------------------------------------------- the whole of it


def results(run: Path) -> dict[str, bytes]:
    files = [path for kind in manifests.RESULTS for path in (run / kind).rglob("*") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


@pytest.mark.parametrize("stage", records.STAGES)
def test_records_that_are_lost_cost_time_only(finished: Path, copy: Path, stage: str) -> None:
    """Whatever stands in the records of a stage, the same command ends with the same bytes."""
    for number, path in enumerate(sorted((copy / "done" / stage).iterdir())):
        path.write_bytes((b"", b"[" * 100_000, path.read_bytes()[:-9])[number % 3])
    edit(copy / manifests.NAME, lambda values: values.update(state="unfinished"))
    gpudedup.run(finished / "in", copy, within="id").verify()
    assert results(copy) == results(finished / "run")
    assert gpudedup.status(copy).state == "complete"


@pytest.mark.parametrize("folder", ["done", *manifests.WORKING, *manifests.RESULTS[:2]])
def test_nothing_is_done_through_a_link(finished: Path, copy: Path, folder: str) -> None:
    """Nothing outside is read as a result, written or deleted, whatever stage comes upon the link."""
    outside = copy.parent / "outside"
    (copy / folder).rename(outside)
    (copy / folder).symlink_to(outside)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in outside.rglob("*")}
    for stage, changes in (("apply", {"output": "mask"}), ("decide", {"drop_empty": True}), ("sign", {})):
        try:
            gpudedup.advance(copy, stage, **changes)
        except ArtefactError as error:
            assert "is a symbolic link, which no run writes" in str(error)  # noqa: PT017
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in outside.rglob("*")} == before
