"""A run that was begun, and what becomes of it: another driver's, its results, its manifest, its inputs."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_durable import DOCUMENTS, assert_same, results, said, split, words

import gpudedup
from gpudedup import ArtefactError, GuardError, LockedError, OutputError, ParameterError
from gpudedup.engines import corpus as corpora
from gpudedup.engines.corpus import Corpus
from gpudedup.engines.lineage import Lineage, recorded_params
from gpudedup.io.source import Fingerprint
from gpudedup.store import lock, records, run_directory
from gpudedup.store import manifest as manifests

# ----------------------------------------------------------------------------------------------------- another driver


@pytest.mark.parametrize("kind", ["txt", "parquet"])
@pytest.mark.parametrize("threshold", [0.8, 0.9])
def test_a_driver_that_was_taken_over_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, threshold: float
) -> None:
    """It stood still before the first result got its name; another one took over, finished and left."""
    monkeypatch.setattr(lock.LocalLockFile, "period_seconds", 0.05)
    source, out, stood = split(DOCUMENTS, tmp_path / "in", kind), tmp_path / "out", False
    finished: dict[str, bytes] = {}

    def take_over() -> None:
        nonlocal stood, finished
        if stood:
            return
        stood = True
        (out / "lock.json").unlink()  # as who watched it for three periods does
        gpudedup.run(source, out) if threshold == 0.8 else gpudedup.advance(out, "verify", threshold=threshold)
        gpudedup.advance(out, "apply")
        finished = results(out)

    real, flushed = run_directory.atomic_file, run_directory.flushed_at_once

    @contextmanager
    def slow(path: Path, *given: Any) -> Any:
        with real(path, *given) as temporary:
            yield temporary
            if "kept" in path.parts:
                take_over()

    @contextmanager
    def slow_flush(folder: Path) -> Any:
        with flushed(folder):
            yield
        take_over()

    monkeypatch.setattr(run_directory, "atomic_file", slow)
    monkeypatch.setattr(run_directory, "flushed_at_once", slow_flush)
    with pytest.raises(LockedError, match="taken over by another driver"):
        gpudedup.run(source, out, workers=1)
    assert stood
    assert finished
    assert results(out) == finished
    assert gpudedup.Run.open(out).audit().exit_code == 0


# ------------------------------------------------------------------------------------------------------------ results


def test_a_refused_guard_leaves_a_finished_run(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    before = said(gpudedup.run(source, out).path)
    with pytest.raises(GuardError):
        gpudedup.run(source, out, max_removed=0.01)
    assert said(out) == before
    with pytest.raises(GuardError):
        gpudedup.advance(out, "decide", max_removed=0.01)
    assert said(out) == before
    assert gpudedup.run(source, out, max_removed=0.99).manifest.parameters["max_removed"] == 0.99


@pytest.mark.parametrize("clustering", ["keepers", "components"])
def test_decide_reads_no_text_and_says_so(tmp_path: Path, clustering: str) -> None:
    texts = [words(number, changes) for number in range(9) for changes in range(2)]
    source, out = split(pa.table({"text": texts}), tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.run(source, out, threshold=0.6, clustering=clustering)
    stages: list[str] = []
    # The documents of a component, which may fall apart, were not all compared.
    refused = pytest.raises(
        ParameterError, match=r"the text of [0-9]+ documents must be compared; do it with: gpudedup"
    )
    with refused if clustering == "components" else nullcontext():
        gpudedup.advance(out, "decide", threshold=0.65, progress=lambda stage, *counts: stages.append(stage))
    assert "verify" not in stages


def test_seconds_are_those_of_all_processes(tmp_path: Path) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "jsonl"), tmp_path / "out"
    gpudedup.begin(source, out)
    gpudedup.advance(out, "verify")
    gpudedup.advance(out, "decide")
    earlier = {stage: records.load(out, stage, task).seconds for stage, task in [("sign", 0), ("decide", 0)]}
    assert min(earlier.values()) > 0
    found = gpudedup.run(source, out).summary().seconds
    assert all(found[stage] >= seconds for stage, seconds in earlier.items())


# -------------------------------------------------------------------------------------------------------- the manifest


@pytest.mark.parametrize("damage", ["flipped", "gone"])
@pytest.mark.parametrize("stage", ["sign", "apply"])
def test_a_lost_manifest_costs_no_signatures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, stage: str
) -> None:
    monkeypatch.setattr(corpora, "TASK_BYTES", 1)
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.begin(source, out)
    if stage == "apply":
        gpudedup.run(source, out)
    path = out / "manifest.json"
    if damage == "flipped":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(ArtefactError, match="delete it and give the command that began the run again"):
            gpudedup.run(source, out)
    path.unlink()
    signed = {file.name: file.stat().st_mtime_ns for file in (out / "signatures").iterdir()}
    assert len(signed) == 4
    gpudedup.run(source, out)
    assert {file.name: file.stat().st_mtime_ns for file in (out / "signatures").iterdir()} == signed
    assert_same(out, gpudedup.run(source, tmp_path / "fresh").path)


@pytest.mark.parametrize("content", ["", "{}", '{"stage":"sign"}'])
def test_a_folder_that_is_no_run_is_not_taken(tmp_path: Path, content: str) -> None:
    """One of the user's own, that has a folder named as that of records."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    (out / "done" / "sign").mkdir(parents=True)
    (out / "done" / "sign" / "000000.json").write_text(content)
    with pytest.raises(OutputError, match=r"is not empty .* and holds no run"):
        gpudedup.run(source, out)


def test_a_manifest_that_could_not_be_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused before anything is signed."""
    source, out = split(DOCUMENTS, tmp_path / "in", "txt"), tmp_path / "out"
    monkeypatch.setattr(manifests, "MAX_UNFINISHED_BYTES", 2000)
    with pytest.raises(OutputError, match=r"a manifest of 45 input files would have [0-9]+ bytes, more than 2000"):
        gpudedup.run(source, out)
    assert not out.exists()


# -------------------------------------------------------------------------------------------------------------- inputs


def test_bytes_of_a_touched_file_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.begin(source, out)
    for file in source.iterdir():
        os.utime(file, (1, 1))
    compared: list[Path] = []
    real = manifests.checksum

    def counted(path: Path) -> str:
        if source in Path(path).parents:
            compared.append(Path(path))
        return real(path)

    monkeypatch.setattr(manifests, "checksum", counted)
    for stage in ("match", "verify", "decide"):
        gpudedup.advance(out, stage)
    assert sorted(path.name for path in compared) == [f"{part}.parquet" for part in range(4)]


def test_signed_again_a_run_is_not_complete(tmp_path: Path) -> None:
    """A changed file, whose record was deleted as the message says."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    gpudedup.run(source, out)
    split(DOCUMENTS.slice(5), tmp_path / "in", "parquet")
    with pytest.raises(ArtefactError, match=r"or delete .*done/sign/000000.json to have it signed again"):
        gpudedup.advance(out, "apply")
    (out / "done" / "sign" / "000000.json").unlink()
    gpudedup.advance(out, "sign")
    assert gpudedup.status(out).state == "unfinished"
    assert_same(gpudedup.run(source, out).path, gpudedup.run(source, tmp_path / "fresh").path)


def test_each_task_records_its_own_text_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many of them are one shard, and no record may have to name them all."""
    monkeypatch.setattr(corpora, "TASK_FILES", 10)
    source, out = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for number in range(45):
        (source / f"{number:02}.txt").write_text(words(number))
    run = gpudedup.run(source, out)
    kept = [sum(entry.kind == "kept" for entry in records.load(out, "apply", task).artefacts) for task in range(5)]
    assert kept == [10, 10, 10, 10, 5]
    (out / "done" / "apply" / "000003.json").unlink()
    (out / "kept" / "31.txt").unlink()
    (out / "manifest.json").unlink()
    before = said(run.path) if (out / "manifest.json").exists() else None
    assert before is None
    assert_same(gpudedup.run(source, out).path, gpudedup.run(source, tmp_path / "fresh").path)


# ---------------------------------------------------------------------------------------------------------------- work


def test_work_grows_with_tasks_not_with_their_square(tmp_path: Path) -> None:
    """What is asked of 2,000 tasks of 50,000 files, by counts: no digest and no list is made twice."""
    source, out = split(DOCUMENTS, tmp_path / "in", "parquet"), tmp_path / "out"
    manifest = gpudedup.run(source, out).manifest
    asked = 0

    def content(task: int) -> str:
        nonlocal asked
        asked += 1
        return f"content {task}"

    files, tasks = 50_000, np.arange(50_000) // 25
    names = [f"file {number}" for number in range(files)]
    params = recorded_params(manifest)
    of = Lineage(names, [1] * files, tasks.tolist(), params, "kept", [], {}, content)
    assert len({of.digest("apply", task) for task in range(2000)}) == 1
    assert asked == 2000
    marks = [Fingerprint(1, 1)] * files
    corpus = Corpus(names, marks, np.arange(files), np.full(files, -1), tasks)
    start = time.process_time()
    assert [corpus.shards_of(task)[0] for task in corpus.tasks] == list(range(0, files, 25))
    assert [corpus.files_of(task)[-1] for task in corpus.tasks] == list(range(24, files, 25))
    assert time.process_time() - start < 5  # 0.05 s; with a look at all files for each task 20 s
