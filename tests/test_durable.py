"""Durable runs as their user sees them: continued after any stop, extended, decided anew; always the same bytes."""

from __future__ import annotations

import csv
import datetime
import decimal
import gzip
import io
import json
import math
import os
import random
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import reference
from forged import edit
from hypothesis import given, settings
from hypothesis import strategies as st
from test_deduplicate import random_corpus, random_options, rows_of

import gpudedup
from gpudedup import ArtefactError, GuardError, InputError, OutputError, ParameterError
from gpudedup.engines import corpus as corpora
from gpudedup.engines import lineage
from gpudedup.engines.durable import DurableRun
from gpudedup.engines.signing import _Writer
from gpudedup.store import lock, signatures
from gpudedup.store.run_directory import RunDirectory
from gpudedup.store.stopping import GivenUpError

STAGES = ["sign", "match", "verify", "decide", "apply"]
FORMATS = ["parquet", "arrow", "jsonl", "jsonl.gz", "csv", "csv.gz", "txt"]
OUTPUTS = ["kept", "mask", "none"]


def words(number: int, changes: int = 0, length: int = 60) -> str:
    """A text of its own; with changes, a copy of which so many words are others."""
    made = [f"w{number}x{place}" for place in range(length)]
    for change in range(changes):
        made[change * 20 % length + change % 3] = f"other{number}y{change}"
    return " ".join(made)


def documents() -> pa.Table:
    """Exact and near-copies, close ones and far ones, over three sources, with empty texts, nulls and NaN."""
    texts: list[str | None] = []
    for number in range(9):
        texts += [words(number), words(number, 1), words(100 + number), words(number).upper(), words(number, 2)]
    texts[7], texts[12] = None, " . "
    order = list(range(len(texts)))
    random.Random(4).shuffle(order)
    return pa.table(
        {
            "text": pa.array([texts[place] for place in order], pa.string()),
            "id": pa.array([f"doc {place}" for place in order]),
            "source": pa.array([("a", "b", "c")[place % 3] for place in order]),
            "half": pa.array([("left", "right")[place % 2] for place in order]),
            "score": pa.array([math.nan if place % 7 == 0 else float(place * 37 % 11) for place in order]),
        }
    )


DOCUMENTS = documents()
COLUMNS = ["text", "id", "source", "half"]
"""What formats of text carry, too."""


def write(table: pa.Table, path: Path) -> Path:
    """One file, in the format that its suffix names; of plain text, one for each row in the folder ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = table.select([name for name in COLUMNS if name in table.schema.names]).to_pylist()
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=7)
    elif path.suffix == ".arrow":
        pyarrow.feather.write_feather(table, path, chunksize=5)
    elif path.suffix == ".txt":
        folder = path.with_suffix("")
        folder.mkdir()
        for number, row in enumerate(rows):
            (folder / f"{number:02}.txt").write_text(row["text"] or "", encoding="utf-8")
    else:
        if ".jsonl" in path.name:
            data = "".join(json.dumps(row) + "\n" for row in rows)
        else:
            out = io.StringIO()
            writer = csv.DictWriter(out, [name for name in COLUMNS if name in table.schema.names])
            writer.writeheader()
            writer.writerows({name: value or "" for name, value in row.items()} for row in rows)
            data = out.getvalue()
        path.write_bytes(gzip.compress(data.encode(), mtime=0) if path.suffix == ".gz" else data.encode())
    return path


def split(table: pa.Table, folder: Path, suffix: str, parts: int = 4) -> Path:
    """The table over ``parts`` files in a folder."""
    size = -(-table.num_rows // parts)
    for part in range(parts):
        write(table.slice(part * size, size), folder / f"{part}.{suffix}")
    return folder


def results(out: Path) -> dict[str, bytes]:
    """What a run gave to its user, but the manifest."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for kind in ("removed", "kept", "keep_mask")
        for path in (out / kind).rglob("*")
        if path.is_file()
    }


def said(out: Path, *, planned: bool = True) -> dict[str, Any]:
    """What a manifest says beside times. planned: also how work was shared out."""
    values = msgspec.to_builtins(gpudedup.Run.open(out).manifest)
    for name in ("checksum", "created", "seconds", "machine"):
        del values[name]
    if not planned:
        for name in ("digest", "results"):
            del values[name]
        for entry in values["inputs"]:
            del entry["task"]
    return values


def assert_same(out: Path, other: Path, *, planned: bool = True) -> None:
    assert results(out) == results(other)
    assert said(out, planned=planned) == said(other, planned=planned)


def counts(run: gpudedup.Run | gpudedup.Result) -> dict[str, Any]:
    values = run.summary().asdict()
    return {name: value for name, value in values.items() if name not in ("seconds", "device_reason", "parameters")}


def times(out: Path, *folders: str) -> dict[str, int]:
    """When each file below these folders of a run was written."""
    return {str(path): path.stat().st_mtime_ns for name in folders for path in (out / name).rglob("*")}


@pytest.fixture(scope="module", autouse=True)
def without_flushes() -> Iterator[None]:
    """No power fails here; tests/test_faults.py looks at what is flushed when it does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr("gpudedup.store.run_directory.flushed_at_once", lambda folder: nullcontext())
        yield


@pytest.fixture
def tiny_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is a task of sign and apply, every band one of match."""
    monkeypatch.setattr(corpora, "TASK_FILES", 1)
    monkeypatch.setattr(lineage, "TASK_KEYS", 1)


def reach(out: Path, stage: str) -> gpudedup.Status:
    """Stage by stage: `decide` by itself compares nothing."""
    return [gpudedup.advance(out, name) for name in STAGES[: STAGES.index(stage) + 1]][-1]


def stopped(source: Path, folder: Path, **options: Any) -> Iterator[tuple[str, gpudedup.Status, Path]]:
    """Copies of one run as it is after each stage but the last: (stage, status, directory)."""
    out = folder / "going on"
    for until in STAGES[:-1]:
        found = gpudedup.begin(source, out, **options) if until == "sign" else gpudedup.advance(out, until)
        yield until, found, shutil.copytree(out, folder / f"after {until}")


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("this was done already")


TEXT_READERS = ["gpudedup.engines.signing.sign_pieces", "gpudedup.engines.durable.ShingleSets"]
WORKERS = {
    "sign": ["gpudedup.engines.durable.sign_tasks", "gpudedup.engines.durable.read_columns"],
    "match": ["gpudedup.engines.durable.sort_band", "gpudedup.stages.match.ranked"],
    "verify": ["gpudedup.engines.durable.verify", "gpudedup.engines.durable.ShingleSets"],
    "decide": ["gpudedup.engines.durable.decide"],
    "apply": ["gpudedup.engines.durable.write_shard"],
}
"""What does the work of each stage."""


# ------------------------------------------------------------------------------------------------------------- again


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_finished_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", suffix), tmp_path / "out"
    first = gpudedup.run(source, out)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*")}
    monkeypatch.setattr("gpudedup.api.open_paths", refuse)
    again = gpudedup.run(source, out, workers=1, memory="100MB")
    assert again.summary() == first.summary()
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in out.rglob("*")} == before


@pytest.mark.parametrize("lost", ["removed/2.jsonl.parquet", "kept/1.jsonl", "kept", "removed"])
@pytest.mark.usefixtures("tiny_tasks")
def test_results_that_are_gone_are_written_again(tmp_path: Path, lost: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.run(source, out)
    shutil.copytree(out, tmp_path / "whole")
    shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).unlink()
    gpudedup.run(source, out).verify()
    assert_same(out, tmp_path / "whole")


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_stopped_after_each_stage(tmp_path: Path, suffix: str, output: str) -> None:
    """And what data in memory gives, saved, has the same bytes."""
    source, never = split(DOCUMENTS, tmp_path / "in", suffix), tmp_path / "never"
    fresh = gpudedup.run(source, never, output=output)
    assert fresh.summary().removed > 15
    for until, found, out in stopped(source, tmp_path, output=output):
        reached = STAGES.index(until) + 1
        assert [stage.is_done for stage in found.stages] == [place < reached for place in range(5)]
        assert found.state == "unfinished"
        assert results(out) == {}
        gpudedup.run(source, out, output=output)
        assert_same(out, never)
    result = gpudedup.deduplicate(source)
    result.save(tmp_path / "memory", output=output)
    assert results(tmp_path / "memory") == results(never)
    assert counts(result) == counts(fresh)


@pytest.mark.parametrize("verify", ["exact", "signature", "none"])
@pytest.mark.usefixtures("tiny_tasks")
def test_stopped_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str) -> None:
    """By an error that nobody expects, from match on; then once more some commits later, and so on to the end."""
    source, never = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "never"
    options: dict[str, Any] = {"verify": verify, "id_column": "id", "within": "half", "keep": "max:score"}
    gpudedup.run(source, never, **options)
    commit = RunDirectory.commit
    left = 0

    def stop(directory: RunDirectory, record: Any) -> None:
        nonlocal left
        commit(directory, record)
        left -= record.stage not in ("sign", "columns")
        if left == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "commit", stop)
    commits = len(list((never / "done").rglob("*.json")))
    assert commits > 20
    for step in (1, 4):
        out, stops = tmp_path / f"by {step}", 0
        while True:
            left = step
            try:
                gpudedup.run(source, out, **options)
                break
            except KeyboardInterrupt:
                stops += 1
            assert not (out / "lock.json").exists()
            assert stops <= commits
        assert stops > 2
        assert_same(out, never)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.usefixtures("tiny_tasks")
def test_many_tasks_give_what_one_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    source = split(DOCUMENTS, tmp_path / "in", suffix)
    options = {} if suffix == "txt" else {"within": "half"}
    run = gpudedup.run(source, tmp_path / "many", **options)
    assert len(list((tmp_path / "many" / "done" / "sign").iterdir())) == len(run.manifest.inputs)
    assert len(list((tmp_path / "many" / "done" / "match").iterdir())) == 1 + run.manifest.bands
    monkeypatch.undo()
    whole = gpudedup.run(source, tmp_path / "one", **options)
    assert len(list((tmp_path / "one" / "done" / "sign").iterdir())) == 1
    assert_same(tmp_path / "many", tmp_path / "one", planned=False)
    assert counts(run) == counts(whole)


def test_tasks_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = split(DOCUMENTS, tmp_path / "in", "jsonl", parts=6)
    size = max(path.stat().st_size for path in source.iterdir())
    monkeypatch.setattr(corpora, "TASK_BYTES", 2 * size)
    run = gpudedup.run(source, tmp_path / "out")
    assert [entry.task for entry in run.manifest.inputs] == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("done", range(1, 6))
def test_what_is_committed_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, done: int) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    fresh = gpudedup.run(source, tmp_path / "fresh", id_column="id", within="half", keep="max:score")
    gpudedup.begin(source, out, id_column="id", within="half", keep="max:score")
    reach(out, STAGES[done - 1])
    before = times(out, "done", "signatures", "columns")
    for stage in STAGES[:done]:
        for name in WORKERS[stage]:
            monkeypatch.setattr(name, refuse)
    run = gpudedup.run(source, out, id_column="id", within="half", keep="max:score")
    assert_same(out, tmp_path / "fresh")
    assert counts(run) == counts(fresh)
    assert before.items() <= times(out, "done", "signatures", "columns").items()


@pytest.mark.usefixtures("tiny_tasks")
def test_stopped_while_a_task_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that commits it is waited for; else half of it is believed."""
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    committing, given_up, committed = threading.Event(), threading.Event(), threading.Event()
    commit, writer = _Writer.commit, signatures.ipc_writer
    opened_before: list[Any] = []

    def slow_commit(task: _Writer) -> None:
        committing.set()
        given_up.wait(1)
        commit(task)
        committed.set()

    @contextmanager
    def slow_writer(*arguments: Any) -> Iterator[Any]:
        with writer(*arguments) as opened:
            first = not opened_before
            opened_before.append(opened)
            try:
                yield opened
            except GivenUpError:
                if first:
                    given_up.set()
                    committed.wait(1)
                raise

    def stop(stage: str, documents: int, text_bytes: int) -> None:
        if documents > 12:
            assert committing.wait(30)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_Writer, "commit", slow_commit)
        patch.setattr(signatures, "ipc_writer", slow_writer)
        with pytest.raises(KeyboardInterrupt):
            gpudedup.run(source, out, progress=stop)
    gpudedup.run(source, out)
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh")


@pytest.mark.usefixtures("tiny_tasks")
def test_what_is_signed_is_let_go_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks there are, few are held in memory."""
    tasks, size = 40, 100_000
    for task in range(tasks):
        row = {"text": [words(task)], "id": ["x" * size]}
        write(pa.table(row), tmp_path / "in" / f"{task:02}.parquet")
    held: list[int] = []
    commit = RunDirectory.commit

    def watched(directory: RunDirectory, record: Any) -> None:
        commit(directory, record)
        held.append(pa.total_allocated_bytes())

    monkeypatch.setattr(RunDirectory, "commit", watched)
    before = pa.total_allocated_bytes()
    gpudedup.begin(tmp_path / "in", tmp_path / "out", id_column="id")
    assert len(held) == 2 * tasks
    assert max(held) - before < tasks // 2 * size


@pytest.mark.usefixtures("tiny_tasks")
def test_an_error_while_several_tasks_wait_to_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stays under a temporary name."""
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    replace, commit = DurableRun.replace, _Writer.commit
    begun, committed, failed = threading.Semaphore(0), [], threading.Event()

    def counted(run: DurableRun, stage: str, task: int) -> None:
        replace(run, stage, task)
        begun.release()

    def failing(task: _Writer) -> None:
        for _ in range(3 if not committed else not failed.is_set()):
            assert begun.acquire(timeout=30)
        if committed:
            failed.set()
            raise RuntimeError("nobody expects this")
        commit(task)
        committed.append(task)

    monkeypatch.setattr(DurableRun, "replace", counted)
    monkeypatch.setattr(_Writer, "commit", failing)
    with pytest.raises(RuntimeError, match=r"nobody expects this"):
        gpudedup.begin(source, out)
    assert not [path for path in out.rglob("*") if ".gpudedup-" in path.name]
    assert gpudedup.status(out).stages[0].done == 1


def test_seconds_of_an_earlier_process_count(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    for stage in STAGES[:-1]:
        gpudedup.begin(source, out) if stage == "sign" else reach(out, stage)
    run = gpudedup.run(source, out)
    assert list(run.summary().seconds) == STAGES
    assert all(seconds > 0 for seconds in run.summary().seconds.values())


def test_nothing_committed_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"text": ')
    with pytest.raises(InputError, match=r"in.jsonl"):
        gpudedup.run(tmp_path / "in.jsonl", tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"in.jsonl"):
        gpudedup.run(tmp_path / "in.jsonl", tmp_path / "empty")
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.usefixtures("tiny_tasks")
def test_a_broken_file_loses_only_itself(tmp_path: Path) -> None:
    """The files before it stay signed; repaired, it is signed too."""
    for number in range(30):  # the first is signed when the last is read
        write(DOCUMENTS.slice(number, 3), tmp_path / "in" / f"{number:02}.jsonl")
    source, out = tmp_path / "in", tmp_path / "out"
    whole = (source / "29.jsonl").read_bytes()
    (source / "29.jsonl").write_bytes(whole[:-9])
    with pytest.raises(InputError, match=r"29.jsonl"):
        gpudedup.run(source, out)
    assert 0 < gpudedup.status(out).stages[0].done < 30
    before = times(out, "done/sign")
    (source / "29.jsonl").write_bytes(whole)
    gpudedup.run(source, out)
    assert before.items() <= times(out, "done/sign").items()
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh", planned=False)


def test_temporaries_of_a_killed_driver_go(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.begin(source, out)
    (out / "signatures" / ".gpudedup-0123").write_bytes(b"half")
    (out / ".gpudedup-4567").mkdir()
    (out / ".gpudedup-4567" / "0.txt").write_bytes(b"half")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_bytes(b"the user's")
    (out / ".gpudedup-89ab").symlink_to(tmp_path / "mine")
    gpudedup.run(source, out)
    assert not [path for path in out.rglob("*") if ".gpudedup-" in path.name]
    assert (tmp_path / "mine" / "precious").read_bytes() == b"the user's"


# ------------------------------------------------------------------------------------------------------------ columns


AS_GIVEN: dict[str, Any] = {"id_column": None, "keep": "first", "within": None, "across": None}


def day(number: int) -> datetime.datetime:
    return datetime.datetime(2024, 1, 1 + number % 28, tzinfo=datetime.UTC)


def of_type(kind: pa.DataType) -> pa.Array:
    """A column for DOCUMENTS of few values, some of them null."""
    numbers = [None if place % 6 == 0 else place * 5 % 4 for place in range(DOCUMENTS.num_rows)]
    if pa.types.is_dictionary(kind):
        return of_type(kind.value_type).dictionary_encode().cast(kind)
    if pa.types.is_null(kind):
        return pa.nulls(len(numbers))
    if pa.types.is_boolean(kind):
        return pa.array([number if number is None else number % 2 == 0 for number in numbers])
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return pa.array([number if number is None else day(number) for number in numbers], pa.timestamp("us")).cast(
            kind
        )
    if pa.types.is_decimal(kind):
        return pa.array([number if number is None else decimal.Decimal(number) / 8 for number in numbers], kind)
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return pa.array(numbers, pa.int64()).cast(kind)
    texts = pa.array([number if number is None else f"v{number}" for number in numbers], pa.string())
    return texts.cast(pa.binary()).cast(kind) if kind == pa.binary(2) else texts.cast(kind)


TYPES = [
    *(pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.binary(2)),
    *(pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int32(), pa.large_string())),
    *(pa.int8(), pa.uint64(), pa.bool_(), pa.null(), pa.date32()),
    *(pa.timestamp("us", "UTC"), pa.timestamp("s"), pa.decimal128(9, 3)),
]


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.usefixtures("tiny_tasks")
def test_carried_columns_of_every_type(tmp_path: Path, kind: pa.DataType, suffix: str) -> None:
    """As id, within, across and rank; carried from the start, and read later without the text."""
    if suffix == "arrow" and kind == pa.string_view():
        pytest.skip("pyarrow writes no string_view to Feather")
    table = DOCUMENTS.select(["text", "half"]).append_column("value", of_type(kind))
    source = split(table, tmp_path / "in", suffix, parts=3)
    gpudedup.begin(source, tmp_path / "later")
    for roles in (
        {"id_column": "value", "keep": "max:value"},
        {"within": "value", "keep": "min:value"},
        {"across": "value", "within": "half"},
    ):
        name = next(iter(roles))
        fresh = gpudedup.run(source, tmp_path / name, **roles)
        result = gpudedup.deduplicate(source, **roles)
        result.save(tmp_path / f"{name} in memory")
        assert results(tmp_path / name) == results(tmp_path / f"{name} in memory")
        assert counts(fresh) == counts(result)
        gpudedup.begin(source, tmp_path / f"{name} stopped", **roles)
        assert counts(gpudedup.run(source, tmp_path / f"{name} stopped", **roles)) == counts(fresh)
        assert_same(tmp_path / f"{name} stopped", tmp_path / name)
        gpudedup.advance(tmp_path / "later", "match", **{**AS_GIVEN, **roles})
        gpudedup.advance(tmp_path / "later", "apply")
        assert results(tmp_path / "later") == results(tmp_path / name)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_guard_columns_of_every_type(tmp_path: Path, kind: pa.DataType, parts: int) -> None:
    table = DOCUMENTS.select(["text"]).append_column("value", of_type(kind))
    source, out = split(table, tmp_path / "in", "parquet", parts=parts), tmp_path / "out"
    run = gpudedup.run(source, out, guard_column="value")
    assert sum(share.documents for share in run.summary().removed_shares) == DOCUMENTS.num_rows
    assert counts(run) == counts(gpudedup.deduplicate(source, guard_column="value"))


# ---------------------------------------------------------------------------------------------------- damaged, empty


def damage(source: Path, suffix: str) -> None:
    """Some rows of the second file, and the whole of the last but one, cannot be read."""
    rows, whole = source / f"1.{suffix}", source / f"2.{suffix}"
    if suffix == "jsonl":
        lines = rows.read_bytes().split(b"\n")
        lines[3], lines[8] = b"{", b'{"text": 5, "half": "left"}'
        rows.write_bytes(b"\n".join(lines))
        whole.write_bytes(b"\xff\xfe[\0]\0")
    elif suffix == "jsonl.gz":
        rows.write_bytes(rows.read_bytes()[:-30])
        whole.write_bytes(b"no gzip")
    elif suffix == "csv":
        rows.write_bytes(rows.read_bytes().replace(b"left\r\n", b'left,"\x00"more,fields\r\n', 1))
        whole.write_bytes(b"\xff\xfet\0e\0x\0t\0")
    elif suffix == "txt":
        (source / "1" / "03.txt").write_bytes(b"\xff\xfet\0e\0x\0t\0")
        (source / "2" / "05.txt").write_bytes(b"\xfe\xff\0t")
    else:
        data = rows.read_bytes()
        rows.write_bytes(data[:40] + bytes(60) + data[100:])
        whole.write_bytes(b"no table")


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("suffix", [name for name in FORMATS if name != "csv.gz"])
def test_what_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, tiny: bool) -> None:
    if tiny:
        monkeypatch.setattr(corpora, "TASK_FILES", 1)
    source = split(DOCUMENTS, tmp_path / "in", suffix)
    damage(source, suffix)
    with pytest.raises(InputError):
        gpudedup.run(source, tmp_path / "failed")
    options: dict[str, Any] = {"on_error": "skip"} | ({} if suffix == "txt" else {"within": "half"})
    fresh = gpudedup.run(source, tmp_path / "fresh", **options)
    assert fresh.manifest.skipped
    result = gpudedup.deduplicate(source, **options)
    result.save(tmp_path / "memory")
    assert results(tmp_path / "memory") == results(tmp_path / "fresh")
    assert counts(result) == counts(fresh)
    for until in STAGES[:-1]:
        gpudedup.begin(source, tmp_path / until, **options)
        reach(tmp_path / until, until)
        assert counts(gpudedup.run(source, tmp_path / until, **options)) == counts(fresh)
        assert_same(tmp_path / until, tmp_path / "fresh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpudedup.api.open_paths", refuse)
        gpudedup.run(source, tmp_path / "fresh", **options)


def test_only_damaged_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        (tmp_path / "in" / f"{name}.parquet").write_bytes(b"no parquet")
    for _ in range(2):
        summary = gpudedup.run(tmp_path / "in", tmp_path / "out", on_error="skip").summary()
        assert (summary.documents, summary.skipped_files) == (0, 2)
        assert results(tmp_path / "out") == {}
    assert all(stage.is_done for stage in gpudedup.status(tmp_path / "out").stages)
    gpudedup.advance(tmp_path / "out", "apply", output="mask")
    gpudedup.Run.open(tmp_path / "out").verify()


FEW = {
    "no rows": [[], []],
    "files without rows between others": [[], ["one two three"], [], [], ["one two three", "four"], []],
    "empty texts": [["", " ", None], [" . "]],
    "one document": [["only this one"]],
    "no duplicates": [[words(1), words(2)], [words(3)]],
    "all equal": [["the very same words in all of them"] * 4] * 3,
}


@pytest.mark.parametrize("tiny", [False, True])
@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", FEW)
def test_few_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, suffix: str, tiny: bool) -> None:
    if tiny:
        monkeypatch.setattr(corpora, "TASK_FILES", 1)
        monkeypatch.setattr(lineage, "TASK_KEYS", 1)
    if suffix == "txt" and not any(FEW[name]):
        pytest.skip("a folder without files is no input")
    source = tmp_path / "in"
    for number, texts in enumerate(FEW[name]):
        table = pa.table({"text": pa.array(texts, pa.string()), "half": pa.array(["left"] * len(texts), pa.string())})
        write(table, source / f"{number}.{suffix}")
    options = {} if suffix == "txt" else {"within": "half"}
    texts = [text for texts in FEW[name] for text in texts]
    oracle = reference.deduplicate(texts, drop_empty=True)
    for output in OUTPUTS:
        fresh = gpudedup.run(source, tmp_path / output, output=output, drop_empty=True, **options)
        assert fresh.summary().removed == len(oracle.removed)
        assert fresh.summary().kept == sum(oracle.keep_mask)
    # Every output with every format, with every number of documents, and in both numbers of tasks.
    output = OUTPUTS[(list(FEW).index(name) + FORMATS.index(suffix) + tiny) % 3]
    for _, _, out in stopped(source, tmp_path, output=output, drop_empty=True, **options):
        gpudedup.run(source, out, output=output, drop_empty=True, **options)
        assert_same(out, tmp_path / output)
    gpudedup.deduplicate(source, drop_empty=True, **options).save(tmp_path / "memory", output=output)
    assert results(tmp_path / "memory") == results(tmp_path / output)


# ---------------------------------------------------------------------------------------------------- another input


ADDED = {"before": [2, 3], "between": [0, 3], "after": [0, 1], "on all sides": [1], "every other": [1, 3]}
"""Which of four files are there at first."""


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("place", ADDED)
def test_added_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, suffix: str) -> None:
    whole = split(DOCUMENTS, tmp_path / "whole", suffix)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    files = sorted(whole.iterdir())
    for number in ADDED[place]:
        shutil.move(files[number], source)
    gpudedup.run(source, out, keep="longest")
    before = times(out, "done/sign", "signatures")
    for number in {0, 1, 2, 3} - set(ADDED[place]):
        shutil.move(files[number], source)
    read = []
    pieces = gpudedup.engines.signing.sign_pieces

    def watched(corpus: Any, parts: Sequence[Any], *arguments: Any, **options: Any) -> Iterator[Any]:
        for piece in pieces(corpus, parts, *arguments, **options):
            read.append(len(piece.batch.rows))
            yield piece

    with monkeypatch.context() as patch:
        patch.setattr("gpudedup.engines.signing.sign_pieces", watched)
        run = gpudedup.run(source, out, keep="longest")
    old = sum(min(12, DOCUMENTS.num_rows - 12 * number) for number in ADDED[place])
    assert sum(read) == DOCUMENTS.num_rows - old
    assert before.items() <= times(out, "done/sign", "signatures").items()
    fresh = gpudedup.run(source, tmp_path / "fresh", keep="longest")
    assert_same(out, tmp_path / "fresh", planned=False)
    assert counts(run) == counts(fresh)


def test_added_texts_between_others(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in (1, 3):
        (source / f"{number}.txt").write_text(words(number))
    gpudedup.run(source, tmp_path / "out")
    for number in (0, 2, 4):
        (source / f"{number}.txt").write_text(words(number // 2, 1))
    gpudedup.run(source, tmp_path / "out")
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh", planned=False)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.usefixtures("tiny_tasks")
def test_files_added_to_an_unfinished_run(tmp_path: Path, stage: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    for name in ("0", "2"):
        (source / f"{name}.parquet").rename(tmp_path / f"{name}.parquet")
    gpudedup.begin(source, out, within="half")
    reach(out, stage)
    (tmp_path / "2.parquet").rename(source / "2.parquet")
    gpudedup.begin(source, out, within="half")
    (tmp_path / "0.parquet").rename(source / "0.parquet")
    run = gpudedup.run(source, out, within="half")
    assert counts(run) == counts(gpudedup.run(source, tmp_path / "fresh", within="half"))
    assert_same(out, tmp_path / "fresh", planned=False)


def test_an_added_file_moves_results(tmp_path: Path) -> None:
    """What all inputs have in common names the files of results."""
    write(DOCUMENTS.slice(0, 20), tmp_path / "in" / "a" / "0.jsonl")
    gpudedup.run(tmp_path / "in", tmp_path / "out")
    assert list(results(tmp_path / "out")) == ["removed/0.jsonl.parquet", "kept/0.jsonl"]
    write(DOCUMENTS.slice(20), tmp_path / "in" / "b" / "1.jsonl")
    gpudedup.run(tmp_path / "in", tmp_path / "out")
    gpudedup.run(tmp_path / "in", tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh", planned=False)
    assert "kept/a/0.jsonl" in results(tmp_path / "out")


def test_another_order_of_the_same_files(tmp_path: Path) -> None:
    source = sorted(split(DOCUMENTS, tmp_path / "in", "jsonl").iterdir())
    gpudedup.run(source, tmp_path / "out")
    gpudedup.run(source[::-1], tmp_path / "out")
    gpudedup.run(source[::-1], tmp_path / "fresh")
    assert_same(tmp_path / "out", tmp_path / "fresh")


@pytest.mark.parametrize("stage", STAGES)
def test_removed_files_are_named(tmp_path: Path, stage: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.begin(source, out)
    reach(out, stage)
    (source / "1.jsonl").rename(tmp_path / "1.jsonl")
    with pytest.raises(ArtefactError, match=r"was made from 4 files, of which 1 are not among .* such as .*1.jsonl"):
        gpudedup.run(source, out)
    with pytest.raises(InputError, match=r"1.jsonl"):
        gpudedup.advance(out, "apply")
    (tmp_path / "1.jsonl").rename(source / "1.jsonl")
    gpudedup.run(source, out).verify()


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("stage", STAGES)
def test_changed_files_are_refused(tmp_path: Path, stage: str, suffix: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", suffix), tmp_path / "out"
    gpudedup.begin(source, out)
    reach(out, stage)
    path = source / "1" / "04.txt" if suffix == "txt" else source / f"1.{suffix}"
    shutil.copy2(path, tmp_path / "before")
    then = path.stat()
    changes = [path.read_bytes().replace(b"x5 ", b"x5 and ")]
    if suffix in ("jsonl", "csv", "txt"):
        changes.append(path.read_bytes().replace(b"x5 ", b"y5 "))
    else:
        write(DOCUMENTS.slice(1, 12), path)
        changes = [path.read_bytes()]
    for data in changes:
        path.write_bytes(data)
        os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
        expected = (
            rf"{path.name} is not what .*out was made from: {then.st_size} bytes with mtime_ns {then.st_mtime_ns} "
            rf"then, {len(data)} with {then.st_mtime_ns + 1} now; put it back, use another directory, or delete"
        )
        for again in (lambda: gpudedup.run(source, out), lambda: gpudedup.advance(out, "apply")):
            with pytest.raises(ArtefactError, match=expected):
                again()
    shutil.copy2(tmp_path / "before", path)
    gpudedup.run(source, out).verify()


@pytest.mark.usefixtures("tiny_tasks")
def test_a_changed_file_is_signed_again_when_told_so(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.run(source, out)
    write(DOCUMENTS.slice(3, 9), source / "2.jsonl")
    with pytest.raises(ArtefactError) as error:
        gpudedup.run(source, out)
    named = re.search(r"or delete (\S+) to have it signed again", str(error.value))
    assert named is not None
    Path(named[1]).unlink()
    before = times(out, "done/sign")
    gpudedup.run(source, out)
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh")
    assert before.items() <= times(out, "done/sign").items()


@pytest.mark.parametrize("stage", STAGES)
def test_another_time_alone_is_no_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.begin(source, out)
    reach(out, stage)
    for path in source.iterdir():
        os.utime(path, ns=(7, 7))
    monkeypatch.setattr("gpudedup.engines.durable.sign_tasks", refuse)
    gpudedup.run(source, out).verify()
    monkeypatch.undo()
    gpudedup.run(source, tmp_path / "fresh")
    assert results(out) == results(tmp_path / "fresh")


def test_a_file_that_changes_while_it_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    pieces = gpudedup.engines.signing.sign_pieces

    def changing(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from pieces(*arguments, **options)
        write(DOCUMENTS.slice(3, 9), source / "2.jsonl")

    with monkeypatch.context() as patch:
        patch.setattr("gpudedup.engines.signing.sign_pieces", changing)
        with pytest.raises(InputError, match=r"2.jsonl changed while it was being read"):
            gpudedup.run(source, out)
    gpudedup.run(source, out)
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh", planned=False)


@pytest.mark.parametrize("change", ["removed", "a folder"])
def test_a_file_that_is_gone_once_it_is_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    """Without its checksum nobody could tell another file from it."""
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    pieces = gpudedup.engines.signing.sign_pieces

    def removing(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from pieces(*arguments, **options)
        (source / "2.jsonl").rename(tmp_path / "away")
        if change == "a folder":
            (source / "2.jsonl").mkdir()

    said = {"removed": "was removed while it was being read", "a folder": "cannot be read any more: Is a directory"}
    with monkeypatch.context() as patch:
        patch.setattr("gpudedup.engines.signing.sign_pieces", removing)
        with pytest.raises(InputError, match=rf"2.jsonl {said[change]}"):
            gpudedup.run(source, out)
    assert not list(out.rglob("done/sign/*"))


def test_a_skipped_file_that_was_repaired_is_an_added_one(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    whole = (source / "2.parquet").read_bytes()
    (source / "2.parquet").write_bytes(b"no parquet")
    assert gpudedup.run(source, out, on_error="skip").summary().skipped_files == 1
    (source / "2.parquet").write_bytes(whole)
    assert gpudedup.run(source, out, on_error="skip").summary().skipped_files == 0


# ------------------------------------------------------------------------------------------------ another parameter


@pytest.mark.parametrize(
    ("changes", "way_out"),
    [
        ({"text_column": "id"}, "use another directory$"),
        ({"shingle": "word:3"}, "use another directory$"),
        ({"fold": "case"}, "use another directory$"),
        ({"num_perm": 64, "bands": 8, "rows": 8}, "use another directory$"),
        ({"seed": 1}, "use another directory$"),
        ({"on_error": "skip"}, "use another directory$"),
        ({"recall": 0.9}, "use another directory$"),
        ({"bands": 16, "rows": 8}, "use another directory$"),
        ({"keep": "longest"}, "gpudedup match RUN --keep ...$"),
        ({"within": "half"}, "gpudedup match RUN --within ...$"),
        ({"across": "half"}, "gpudedup match RUN --across ...$"),
        ({"bucket_window": 32}, "gpudedup match RUN --bucket-window ...$"),
        ({"id_column": "id"}, "gpudedup match RUN --id-column ...$"),
        ({"keep": "longest", "within": "half"}, "gpudedup match RUN --keep ... --within ...$"),
        ({"verify": "none"}, "gpudedup verify RUN --verify ...$"),
        ({"clustering": "components"}, "gpudedup verify RUN --clustering ...$"),
        ({"threshold": 0.9}, "gpudedup verify RUN --threshold ...$"),
        ({"threshold": 0.9, "keep": "longest"}, "use another directory"),
        ({"drop_empty": True}, "gpudedup decide RUN --drop-empty ...$"),
        ({"output": "mask"}, "gpudedup apply RUN --output ...$"),
        ({"keep": "longest", "verify": "none"}, "use another directory"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stage", ["sign", "apply"])
def test_other_parameters_are_refused(tmp_path: Path, stage: str, changes: dict[str, Any], way_out: str) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    gpudedup.begin(source, out)
    reach(out, stage)
    before = times(out, ".")
    with pytest.raises(ArtefactError, match=way_out) as error:
        gpudedup.run(source, out, **changes)
    then = msgspec.to_builtins(gpudedup.Params()) | {"output": "kept"}
    for name, value in changes.items():
        assert f"{name}={then[name]!r}, not {value!r}" in str(error.value)
    assert error.value.exit_code == 4
    assert {path: time for path, time in times(out, ".").items() if Path(path) != out} == {
        path: time for path, time in before.items() if Path(path) != out
    }
    gpudedup.run(source, out).verify()


def test_parameters_that_decide_nothing_may_change(tmp_path: Path) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    gpudedup.begin(source, out)
    (tmp_path / "tmp").mkdir()
    for options in ({"workers": 1}, {"memory": "100MB"}, {"tmp": str(tmp_path / "tmp")}, {"device": "cpu"}):
        gpudedup.begin(source, out, **options)
    run = gpudedup.run(source, out, bands=18, rows=7, workers=2, max_removed=0.9)
    assert results(out) == results(gpudedup.run(source, tmp_path / "fresh").path)
    assert run.summary().bands == 18


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("sign", {"keep": "longest"}),
        ("match", {"threshold": 0.9}),
        ("match", {"shingle": "word:3"}),
        ("verify", {"within": "half"}),
        ("decide", {"verify": "none"}),
        ("apply", {"threshold": 0.9}),
        ("apply", {"nonsense": 1}),
    ],
)
def test_stages_change_their_own_parameters_only(tmp_path: Path, stage: str, changes: dict[str, Any]) -> None:
    out = gpudedup.run(write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out").path
    with pytest.raises(ParameterError, match=f"{stage} cannot change {next(iter(changes))}; it can change .*workers"):
        gpudedup.advance(out, stage, **changes)
    gpudedup.Run.open(out).verify()


def test_stages_that_are_none(tmp_path: Path) -> None:
    out = gpudedup.run(write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out").path
    with pytest.raises(ParameterError, match="stage must be one of sign, match, verify, decide, apply, got 'run'"):
        gpudedup.advance(out, "run")
    for call in (lambda path: gpudedup.advance(path, "apply"), gpudedup.status):
        for path in (tmp_path / "in", tmp_path / "missing", tmp_path / "in" / "a.parquet"):
            with pytest.raises(ArtefactError, match=r"holds no run|cannot read"):
                call(path)


def test_another_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    gpudedup.begin(source, out)
    monkeypatch.setattr("gpudedup.engines.begun.SPEC", 2)
    monkeypatch.setattr("gpudedup.engines.lineage.SPEC", 2)
    with pytest.raises(ArtefactError, match="follows spec 1, this version of gpudedup spec 2; use another directory"):
        gpudedup.run(source, out)


@pytest.mark.parametrize("again", ["run", "advance"])
def test_another_spec_of_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    gpudedup.run(source, out)
    edit(out / "manifest.json", lambda manifest: manifest.update(spec=2))
    with pytest.raises(ArtefactError, match="spec 2, this version of gpudedup spec 1"):
        gpudedup.run(source, out) if again == "run" else gpudedup.advance(out, "apply")


def test_relative_inputs_begin_in_one_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split(DOCUMENTS, tmp_path / "here" / "in", "jsonl")
    shutil.copytree(tmp_path / "here", tmp_path / "there dir")
    monkeypatch.chdir(tmp_path / "here")
    gpudedup.begin("in", "../out")
    monkeypatch.chdir(tmp_path / "there dir")
    with pytest.raises(ArtefactError, match=rf"was begun in {tmp_path}/here, .* not in {tmp_path}/there dir; start it"):
        gpudedup.run("in", "../out")
    with pytest.raises(ArtefactError, match=rf"begin in {tmp_path}/here; start this there: cd {tmp_path}/here"):
        gpudedup.advance("../out", "apply")
    monkeypatch.chdir(tmp_path / "here")
    gpudedup.run("in", "../out")
    absolute = gpudedup.run(tmp_path / "here" / "in", tmp_path / "absolute")
    monkeypatch.chdir(tmp_path / "there dir")
    gpudedup.run(tmp_path / "here" / "in", tmp_path / "absolute")
    gpudedup.advance(tmp_path / "absolute", "apply", output="mask")
    assert absolute.removed.drop(["shard", "keeper_shard"]) == gpudedup.Run.open(tmp_path / "out").removed.drop(
        ["shard", "keeper_shard"]
    )


# ----------------------------------------------------------------------------------------------------- decided anew


def test_another_threshold(tmp_path: Path) -> None:
    """Up, further up, down again, to the lowest: each time the bytes of a fresh run with the bands given."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    bands = {"bands": 25, "rows": 5}
    begun = results(gpudedup.run(source, out, threshold=0.7).path)
    removed = []
    for threshold in (0.8, 0.95, 1.0, 0.85, 0.7):
        gpudedup.advance(out, "verify", threshold=threshold)
        gpudedup.advance(out, "apply")
        fresh = gpudedup.run(source, tmp_path / f"{threshold}", threshold=threshold, **bands)
        assert results(out) == results(fresh.path)
        removed.append(gpudedup.Run.open(out).summary().removed)
        assert {**counts(fresh), "compared_pairs": 0} == {**counts(gpudedup.Run.open(out)), "compared_pairs": 0}
    assert removed[:3] == sorted(removed[:3], reverse=True)
    assert len(set(removed)) > 2
    assert results(gpudedup.run(source, out, threshold=0.7).path) == begun
    for threshold in (0.69, 0.5):
        with pytest.raises(ParameterError, match=rf"threshold {threshold} is below 0.7, which the bands"):
            gpudedup.advance(out, "verify", threshold=threshold)
    with pytest.raises(ParameterError):
        gpudedup.advance(out, "verify", threshold=1.01)


@pytest.mark.parametrize("verify", ["signature", "none"])
def test_another_threshold_without_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verify: str) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.run(source, out, threshold=0.7, verify=verify)
    fresh = gpudedup.run(source, tmp_path / "fresh", threshold=0.9, verify=verify, bands=25, rows=5)
    for name in TEXT_READERS[:1]:
        monkeypatch.setattr(name, refuse)
    monkeypatch.setattr("gpudedup.stages.verify.ShingleSets.fill", refuse, raising=False)
    gpudedup.advance(out, "decide", threshold=0.9)
    gpudedup.advance(out, "apply")
    assert results(out) == results(fresh.path)


def test_decide_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But says how many documents would have to be read; the candidates whose keeper is too far now."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.run(source, out, threshold=0.7)
    before = gpudedup.status(out)
    with pytest.raises(
        ParameterError, match=r"text of \d+ documents must be compared; do it with: gpudedup verify"
    ) as e:
        gpudedup.advance(out, "decide", threshold=0.95)
    assert f"gpudedup verify {out} --threshold 0.95" in str(e.value)
    assert gpudedup.status(out) == before, "nothing was begun"
    gpudedup.Run.open(out).verify()
    gpudedup.advance(out, "verify", threshold=0.95)
    fresh = gpudedup.run(source, tmp_path / "fresh", threshold=0.95, bands=25, rows=5)
    for name in TEXT_READERS:
        monkeypatch.setattr(name, refuse)
    gpudedup.advance(out, "decide", threshold=0.7)
    gpudedup.advance(out, "decide", threshold=0.95)
    gpudedup.advance(out, "apply")
    assert results(out) == results(fresh.path)


def test_decide_where_nothing_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All copies are exact, or so close that the verified similarities allow the higher threshold."""
    texts = [words(number, length=200) for number in range(4)]
    close = [text.replace("x50 ", "y ") for text in texts]
    table = pa.table({"text": [*texts, *texts, *close]})
    source, out = write(table, tmp_path / "in" / "a.jsonl"), tmp_path / "out"
    similarity = reference.deduplicate(texts[:1] + close[:1], threshold=0.5).removed[0].similarity
    assert 0.9 < similarity < 1
    gpudedup.run(source, out, threshold=0.7)
    fresh = gpudedup.run(source, tmp_path / "fresh", threshold=0.9, bands=25, rows=5)
    for name in TEXT_READERS[:1]:
        monkeypatch.setattr(name, refuse)
    gpudedup.advance(out, "decide", threshold=0.9)
    gpudedup.advance(out, "apply")
    assert results(out) == results(fresh.path)
    assert fresh.summary().removed == 8


REDECIDED: list[tuple[str, dict[str, Any]]] = [
    ("match", {"keep": "longest"}),
    ("match", {"keep": "max:score"}),
    ("match", {"keep": "sources:source=c,a", "within": "half"}),
    ("match", {"within": None, "across": "half"}),
    ("match", {"across": None, "keep": "first"}),
    ("match", {"bucket_window": 1}),
    ("match", {"bucket_window": 64, "id_column": "id"}),
    ("verify", {"verify": "signature"}),
    ("verify", {"clustering": "components"}),
    ("match", {"within": "source"}),
    ("verify", {"verify": "none"}),
    ("verify", {"verify": "exact", "clustering": "keepers"}),
    ("decide", {"drop_empty": True}),
    ("apply", {"output": "mask"}),
    ("apply", {"output": "none"}),
    ("decide", {"drop_empty": False, "guard_column": "source"}),
    ("apply", {"output": "kept"}),
    ("match", {"id_column": None, "within": None}),
]
"""One change after another."""


@pytest.mark.parametrize("each", [False, True], ids=["at the end", "each time"])
@pytest.mark.usefixtures("tiny_tasks")
def test_decided_anew_is_as_begun_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, each: bool) -> None:
    """Whether the results of the decision before were written or not."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    options: dict[str, Any] = {}
    gpudedup.run(source, out)
    signed = times(out, "done/sign", "signatures")
    for number, (stage, changes) in enumerate(REDECIDED):
        options |= changes
        with monkeypatch.context() as patch:
            patch.setattr("gpudedup.engines.durable.sign_tasks", refuse)
            gpudedup.advance(out, stage, **changes)
            if each:
                gpudedup.advance(out, "apply")
        if each:
            fresh = gpudedup.run(source, tmp_path / f"{number}", **options)
            assert results(out) == results(fresh.path), (stage, changes)
            assert counts(gpudedup.Run.open(out)) == counts(fresh)
            assert said(out)["parameters"] == said(fresh.path)["parameters"]
    run = gpudedup.run(source, out, **options)
    assert counts(run) == counts(gpudedup.run(source, tmp_path / "fresh", **options))
    assert results(out) == results(tmp_path / "fresh")
    assert times(out, "done/sign", "signatures") == signed


def test_results_stay_until_new_ones_are_written(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.run(source, out)
    before = results(out)
    gpudedup.advance(out, "match", within="half")
    reach(out, "decide")
    assert results(out) == before
    assert gpudedup.status(out).state == "unfinished"
    with pytest.raises(ArtefactError, match="unfinished"):
        gpudedup.Run.open(out)
    gpudedup.advance(out, "apply")
    assert results(out) != before


def test_stale_results_go(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "txt"), tmp_path / "out"
    gpudedup.run(source, out)
    (out / "kept" / "more.txt").write_text("a stranger")
    gpudedup.advance(out, "apply", output="mask")
    assert sorted(results(out)) == ["keep_mask/data.parquet", "removed/data.parquet"]
    gpudedup.advance(out, "apply", output="none")
    assert sorted(results(out)) == ["removed/data.parquet"]
    gpudedup.advance(out, "apply", output="kept")
    assert results(out) == results(gpudedup.run(source, tmp_path / "fresh").path)


@pytest.mark.parametrize("stage", ["discard", "write_removed", "write_mask", "commit", "finish"])
def test_stopped_between_two_decisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    """Wherever it is stopped while results are replaced, it ends with those of the new decision and no others."""
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.run(source, out)
    for after in (False, True):
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(out, tmp_path / "copy")
        real = getattr(RunDirectory, stage)

        def stop(*arguments: Any, after: bool = after, real: Any = real, **options: Any) -> None:
            if after:
                real(*arguments, **options)
            raise KeyboardInterrupt

        gpudedup.advance(tmp_path / "copy", "decide", drop_empty=True)
        with monkeypatch.context() as patch:
            patch.setattr(RunDirectory, stage, stop)
            with pytest.raises(KeyboardInterrupt):
                gpudedup.advance(tmp_path / "copy", "apply", output="mask")
        gpudedup.advance(tmp_path / "copy", "apply", output="mask")
        fresh = tmp_path / f"fresh {after}"
        gpudedup.run(source, fresh, drop_empty=True, output="mask")
        assert_same(tmp_path / "copy", fresh)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_has_nothing_to_do(tmp_path: Path, stage: str) -> None:
    out = gpudedup.run(write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out").path
    assert gpudedup.advance(out, stage).state == "complete"


def test_a_guard_is_remembered(tmp_path: Path) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    with pytest.raises(GuardError, match=r"max_removed=0\.1"):
        gpudedup.run(source, out, max_removed=0.1)
    gpudedup.advance(out, "decide", max_removed=0.9, guard_column="half")
    gpudedup.advance(out, "apply")
    assert len(gpudedup.Run.open(out).summary().removed_shares) == 2


def test_a_guard_for_a_finished_run(tmp_path: Path) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    gpudedup.run(source, out)
    assert gpudedup.run(source, out, guard_column="half").summary().removed_shares
    with pytest.raises(GuardError):
        gpudedup.run(source, out, max_removed=0.1)


# ------------------------------------------------------------------------------------------------- names and places


def test_names_that_look_like_globs(tmp_path: Path) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    for name in ("a[0-9]", "a1", "*", "b?", "with space"):
        write(DOCUMENTS.slice(len(name), 7), source / f"{name}.jsonl")
    gpudedup.begin(source, out)
    gpudedup.advance(out, "apply")
    gpudedup.run(source, tmp_path / "fresh")
    assert_same(out, tmp_path / "fresh")


def test_a_directory_of_something_else(tmp_path: Path) -> None:
    source = write(DOCUMENTS, tmp_path / "in" / "a.parquet")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("x")
    with pytest.raises(OutputError, match=r"is not empty \(it has 'thesis.tex'\) and holds no run"):
        gpudedup.run(source, tmp_path / "out")
    gpudedup.deduplicate(source).save(tmp_path / "saved")
    with pytest.raises(OutputError, match="already holds a run"):
        gpudedup.deduplicate(source).save(tmp_path / "saved")


def test_a_driver_that_was_killed_before_the_manifest(tmp_path: Path) -> None:
    source, out = write(DOCUMENTS, tmp_path / "in" / "a.parquet"), tmp_path / "out"
    out.mkdir()
    (out / ".gpudedup-0123").write_bytes(b"half")
    gpudedup.run(source, out).verify()
    assert not (out / ".gpudedup-0123").exists()


def test_status_tells_how_far_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "TASK_FILES", 1)
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    found = gpudedup.begin(source, out, within="half")
    assert (found.run, found.state, found.files, found.rows) == (str(out), "unfinished", 4, DOCUMENTS.num_rows)
    assert [(stage.name, stage.done, stage.tasks) for stage in found.stages] == [
        ("sign", 8, 8),
        ("match", 0, 2),
        ("verify", 0, 1),
        ("decide", 0, 1),
        ("apply", 0, 4),
    ]
    assert found.owner is None
    signatures = sum(path.stat().st_size for name in ("signatures", "columns") for path in (out / name).iterdir())
    assert found.stages[0].artefact_bytes == signatures
    (out / "done" / "sign" / "000002.json").unlink()
    assert [(stage.done, stage.tasks) for stage in gpudedup.status(out).stages[:2]] == [
        (6, 8),  # what its columns follow from is not known either
        (0, None),
    ]
    gpudedup.run(source, out, within="half")
    found = gpudedup.status(out)
    assert found.state == "complete"
    assert all(stage.is_done for stage in found.stages)
    assert msgspec.json.decode(msgspec.json.encode(found.asdict())) == found.asdict()


# --------------------------------------------------------------------------------------------------------- the oracle


@settings(max_examples=40)
@given(st.integers(0, 2**32))
def test_equals_the_reference(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Random corpora, parameters, tasks and stops; then at a higher threshold, in another scope."""
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("run")
    texts = random_corpus(rng, rng.choice([1, 5, 20, 60]))
    within = [rng.choice([1, 2, None]) for _ in texts]
    across = [rng.choice(["train", "test", None]) for _ in texts]
    table = pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "w": pa.array(within, pa.int32()),
            "x": pa.array(across, pa.string()),
        }
    )
    options = random_options(rng)
    cuts = sorted(rng.randrange(len(texts) + 1) for _ in range(rng.randrange(4)))
    for number, (first, last) in enumerate(zip([0, *cuts], [*cuts, len(texts)], strict=True)):
        write_parquet = folder / "in" / f"{number}.parquet"
        write_parquet.parent.mkdir(exist_ok=True)
        pq.write_table(table.slice(first, last - first), write_parquet, row_group_size=rng.choice([1, 4, 100]))
    scope: dict[str, Any] = rng.choice([{}, {"within": "w"}, {"across": "x"}, {"within": "w", "across": "x"}])

    def expected(scope: dict[str, Any]) -> reference.Result:
        values = {"within": within if "within" in scope else None, "across": across if "across" in scope else None}
        return reference.deduplicate(texts, **options, **values)

    def found() -> list[tuple[Any, ...]]:
        run = gpudedup.Run.open(folder / "out")
        first = {entry.path: 0 for entry in run.manifest.inputs}
        rows = 0
        for entry in run.manifest.inputs:
            first[entry.path], rows = rows, rows + entry.rows
        removed = run.removed
        for column, shard in (("row", "shard"), ("keeper_row", "keeper_shard")):
            places = [
                None if row is None else first[name] + row
                for name, row in zip(removed[shard].to_pylist(), removed[column].to_pylist(), strict=True)
            ]
            removed = removed.set_column(removed.schema.get_field_index(column), column, pa.array(places, pa.int64()))
        return rows_of(removed)

    def as_rows(removed: list[reference.Removal]) -> list[tuple[Any, ...]]:
        return [(one.row, one.reason, one.keeper_row, one.similarity, one.cluster) for one in removed]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "TASK_FILES", rng.choice([1, 2, 100]))
        patch.setattr(lineage, "TASK_KEYS", rng.choice([1, 100, 10**6]))
        gpudedup.begin(folder / "in", folder / "out", **options, **scope)
        reach(folder / "out", rng.choice(STAGES))
        gpudedup.run(folder / "in", folder / "out", **options, **scope)
        oracle = expected(scope)
        assert found() == as_rows(oracle.removed)
        higher = rng.choice([threshold for threshold in (0.5, 0.75, 0.9, 1.0) if threshold >= options["threshold"]])
        gpudedup.advance(folder / "out", "verify", threshold=higher)
        gpudedup.advance(folder / "out", "apply")
        assert found() == as_rows(oracle.at(higher).removed)
        gpudedup.advance(folder / "out", "verify", threshold=options["threshold"])
        scope = rng.choice([{}, {"within": "w"}, {"across": "x"}])
        gpudedup.advance(folder / "out", "match", **{"within": None, "across": None, **scope})
        gpudedup.advance(folder / "out", "apply")
        oracle = expected(scope)
        assert found() == as_rows(oracle.removed)
    shutil.rmtree(folder)


# ---------------------------------------------------------------------------------------------------- command line


def test_stages_as_commands(command: Any, tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    shown = command("sign", source, "-o", out, "--threshold", "0.7", "--output", "mask").out
    assert "unfinished" in shown
    for stage in STAGES[1:]:
        shown = command(stage, out).out
        found = json.loads(command("status", out, "--json").out)
        assert found == gpudedup.status(out).asdict()
        assert [one["name"] for one in found["stages"] if one["done"] == one["tasks"]] == STAGES[
            : STAGES.index(stage) + 1
        ]
    assert "complete" in shown
    fresh = json.loads(
        command("run", source, "-o", tmp_path / "fresh", "--threshold", "0.7", "--output", "mask", "--json").out
    )
    again = json.loads(command("run", source, "-o", out, "--threshold", "0.7", "--output", "mask", "--json").out)
    for values in (fresh, again):
        del values["run"], values["seconds"]
    assert fresh == again
    assert_same(out, tmp_path / "fresh")


def test_decided_anew_by_commands(command: Any, tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    command("run", source, "-o", out, "--threshold", "0.7")
    done = command("run", source, "-o", out, "--threshold", "0.9", code=4)
    assert "threshold=0.7, not 0.9" in done.err
    assert "decide this run anew: gpudedup verify RUN --threshold" in done.err
    done = command("run", source, "-o", out, "--threshold", "0.7", "--keep", "longest", code=4)
    assert "keep='first', not 'longest'; use another directory, or decide this run anew: gpudedup match RUN" in done.err
    assert "must be compared; do it with: gpudedup verify" in command("decide", out, "--threshold", "0.95", code=2).err
    assert "below 0.7" in command("verify", out, "--threshold", "0.6", code=2).err
    command("verify", out, "--threshold", "0.95")
    command("match", out, "--keep", "longest", "--within", "half", "--id-column", "id")
    command("apply", out, "--output", "none")
    options = {"threshold": 0.95, "bands": 25, "rows": 5, "keep": "longest", "within": "half", "id_column": "id"}
    assert results(out) == results(gpudedup.run(source, tmp_path / "fresh", output="none", **options).path)


def test_an_empty_option_takes_a_parameter_back(command: Any, tmp_path: Path) -> None:
    """Of the run, or of a configuration file."""
    old = split(DOCUMENTS[:40], tmp_path / "old", "parquet")
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    command("run", old, "-o", tmp_path / "earlier")
    config = tmp_path / "c.toml"
    config.write_text(f'within = "half"\nagainst = ["{tmp_path / "earlier"}"]\nid_column = "id"\n')
    command("run", source, "-o", out, "--config", config)
    shutil.rmtree(tmp_path / "earlier")
    assert "earlier" in command("apply", out, code=4).err
    command("match", out, "--within", "", "--against", "")
    command("apply", out)
    assert results(out) == results(gpudedup.run(source, tmp_path / "fresh", id_column="id").path)
    command("run", source, "-o", tmp_path / "also", "--config", config, "--within", "", "--against", "")
    assert results(out) == results(tmp_path / "also")


def test_commands_that_cannot_be(command: Any, tmp_path: Path) -> None:
    source = split(DOCUMENTS, tmp_path / "in", "parquet")
    assert "holds no run" in command("status", tmp_path / "out", code=4).err
    assert "holds no run" in command("match", tmp_path / "out", code=4).err
    assert "name it with --out" in command("sign", source / "0.parquet", source / "1.parquet", code=2).err
    for single in (source, source / "0.parquet", tmp_path / "missing"):
        said = command("sign", single, code=2).err
        assert f"{single} holds no run, and no directory for a new run was given; name it with --out" in said
    assert 'engine must be "local"' in command("sign", source, "-o", tmp_path / "out", "--engine", "ray", code=2).err
    command("sign", source, "-o", tmp_path / "out")
    assert "sign cannot change threshold" in command("sign", tmp_path / "out", "--threshold", "0.9", code=2).err
    command("match", tmp_path / "out", "--threshold", "0.9", code=2)
    command("match", tmp_path / "out")
    (source / "2.parquet").unlink()
    assert "2.parquet" in command("run", source, "-o", tmp_path / "out", code=4).err


def test_sign_continues_a_run(command: Any, tmp_path: Path) -> None:
    command("sign", split(DOCUMENTS, tmp_path / "in", "parquet"), "-o", tmp_path / "out")
    command("sign", tmp_path / "out")
    assert 'engine must be "local"' in command("sign", tmp_path / "out", "--engine", "ray", code=2).err


def test_sign_takes_the_engine_that_run_takes(command: Any, tmp_path: Path) -> None:
    command("sign", split(DOCUMENTS, tmp_path / "in", "parquet"), "-o", tmp_path / "out", "--engine", "local")
    command("sign", tmp_path / "out", "--engine", "local")
    (tmp_path / "c.toml").write_text('engine = "local"\n')
    command("sign", tmp_path / "out", "--config", tmp_path / "c.toml")


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Leave a lock as a driver does that was killed; nobody waits long for it here."""
    monkeypatch.setattr(lock.LocalLockFile, "period_seconds", 0.05)

    def leave(out: Path) -> None:
        owner = lock.Owner(token="dead", host="elsewhere", pid=7, period_seconds=0.05, beat=3)
        (out / "lock.json").write_bytes(msgspec.json.encode(owner))

    return leave


def test_the_lock_of_a_killed_driver(command: Any, tmp_path: Path, killed: Callable[[Path], None]) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    command("sign", source, "-o", out)
    killed(out)
    assert "elsewhere" in command("status", out).out
    done = command("run", source, "-o", out)
    assert "was driven by elsewhere, process 7; watching for 0.15 s whether it lives" in done.err
    assert not (out / "lock.json").exists()
