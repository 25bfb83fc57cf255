"""Audits: clean runs of every format and mode agree, and every planted damage is found and named."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from forged import edit
from reference import deduplicate as reference_deduplicate

import gpudedup
from gpudedup import ArtefactError
from gpudedup.audit.kept import _first_difference
from gpudedup.store import manifest as manifests

DATA = Path(__file__).resolve().parent / "data"


def corpus(documents: int = 60, seed: int = 5) -> pa.Table:
    """Clusters of near- and exact copies over two sources, with empty ones, scores and NaN."""
    rng = random.Random(seed)
    texts: list[str | None] = []
    for cluster in range(documents // 5):
        words = [f"w{cluster}x{i}" for i in range(80)]
        for copy in range(5):
            changed = list(words)
            for place in rng.sample(range(80), (0, 0, 1, 1, 40)[copy]):
                changed[place] = f"new{rng.random()}"
            texts.append(" ".join(changed))
    texts[7], texts[9] = None, " . "
    count = len(texts)
    return pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "source": pa.array([("a", "b", None)[i % 3] for i in range(count)]),
            "score": pa.array([math.nan if i % 7 == 0 else float(-i) for i in range(count)]),
            "tags": pa.array([[math.nan, i] if i % 4 else None for i in range(count)]),
        }
    )


def write(table: pa.Table, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    rows = table.select(["text", "source"]).to_pylist()
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=17)
    elif name.endswith(".arrow"):
        pyarrow.feather.write_feather(table, path, chunksize=11)
    elif ".jsonl" in name:
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    elif name.endswith(".csv"):
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow(["text", "source"])
        writer.writerows([row["text"] or "", row["source"] or ""] for row in rows)
        path.write_text(out.getvalue(), encoding="utf-8")
    else:
        path.mkdir()
        for number, row in enumerate(rows):
            (path / f"{number:03}.txt").write_text(row["text"] or "", encoding="utf-8")
    return path


NAMES = ["in.parquet", "in.arrow", "in.jsonl", "in.jsonl.gz", "in.csv", "texts"]


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., gpudedup.Run]:
    def make(name: str = "in.parquet", **options: Any) -> gpudedup.Run:
        return gpudedup.run(write(corpus(), tmp_path / "in" / name), tmp_path / "out", **options)

    return make


def reseal(run: gpudedup.Run, change: Callable[[dict[str, Any]], Any] = lambda manifest: None) -> gpudedup.Run:
    """Change the manifest, with the sizes and checksums of all results as they are now, and the record of them: a run
    that was forged with care.
    """

    def forge(values: dict[str, Any]) -> None:
        for entry in values["outputs"]:
            file = run.path / entry["path"]
            if file.exists():
                entry.update(size_bytes=file.stat().st_size, xxh3_128=manifests.checksum(file))
        change(values)
        for record in (run.path / "done" / "apply").glob("*.json"):
            edit(record, lambda applied: applied.update(artefacts=values["outputs"]))

    edit(run.path / "manifest.json", forge)
    return gpudedup.Run.open(run.path)


def edit_removed(run: gpudedup.Run, change: Callable[[list[dict[str, Any]]], Any]) -> gpudedup.Run:
    (path,) = (run.path / "removed").rglob("*.parquet")
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)

    def count(manifest: dict[str, Any]) -> None:
        for entry in manifest["outputs"]:
            if entry["kind"] == "removed":
                entry["rows"] = len(rows)

    return reseal(run, count)


# Clean runs


@pytest.mark.parametrize("output", ["kept", "mask", "none"])
@pytest.mark.parametrize("name", NAMES)
def test_clean_runs_of_every_format(made: Any, name: str, output: str) -> None:
    options = {} if name == "texts" else {"keep": "sources:source=b,a"}
    run = made(name, output=output, **options)
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    found = run.audit()
    assert (found.problems, found.problem_count, found.exit_code, found.not_checked) == ([], 0, 0, [])
    counts = {check.name: check.count for check in found.checks}
    summary = run.summary()
    assert counts["removals"] == counts["ranks and contents"] == summary.removed > 20
    assert counts["similarities"] == summary.near > 5
    assert counts["output files"] == 1 + len(run.manifest.outputs)
    assert counts.get("kept rows") == (summary.kept if output == "kept" else None)
    assert counts.get("rows of the mask") == (summary.documents if output == "mask" else None)
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "signature", "num_perm": 64},
        {"clustering": "components", "threshold": 0.5},
        {"within": "source"},
        {"across": "source", "keep": "longest"},
        {"across": "source", "clustering": "components", "threshold": 0.4},
        {"keep": "max:score", "drop_empty": True, "shingle": "char:6", "fold": "case"},
        {"workers": 1, "memory": "64MB"},
    ],
)
def test_clean_runs_of_every_rule(made: Any, options: dict[str, Any]) -> None:
    run = made(**options)
    assert run.summary().removed > 10
    assert run.audit(memory="64MB").problems == []


def test_nothing_was_measured(made: Any) -> None:
    found = made(verify="none").audit()
    assert (found.exit_code, found.problems) == (0, [])
    assert any("similarities" in reason and 'verify="none"' in reason for reason in found.not_checked)
    assert "similarities" not in {check.name for check in found.checks}


def test_skipped_rows(tmp_path: Path) -> None:
    path = write(corpus(), tmp_path / "in" / "a.jsonl")
    lines = path.read_bytes().split(b"\n")
    lines[3] = b"{damaged"
    path.write_bytes(b"\n".join(lines))
    run = gpudedup.run(path, tmp_path / "out", on_error="skip", output="mask")
    assert run.summary().skipped == 1
    assert run.audit().problems == []


def test_data_in_memory_and_empty_input(tmp_path: Path) -> None:
    gpudedup.deduplicate(corpus()).save(tmp_path / "memory")
    found = gpudedup.Run.open(tmp_path / "memory").audit()
    assert (found.exit_code, found.problems) == (0, [])
    assert any("in memory" in reason for reason in found.not_checked)
    run = gpudedup.run(write(corpus().slice(0, 0), tmp_path / "in" / "none.parquet"), tmp_path / "out")
    assert run.audit().problems == []


def test_several_files(tmp_path: Path) -> None:
    table = corpus()
    for number in range(3):
        write(table.slice(20 * number, 20), tmp_path / "in" / f"{number}.parquet")
    run = gpudedup.run(tmp_path / "in", tmp_path / "out", threshold=0.6)
    assert run.audit().problems == []


# Planted damage


def files_of(run: gpudedup.Run) -> list[Path]:
    return [run.path / "manifest.json", *(run.path / e.path for e in run.manifest.outputs if e.size_bytes)]


@pytest.mark.parametrize("output", ["kept", "mask"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damaged_files(made: Any, name: str, output: str, damage: str) -> None:
    """Every file in turn; of the manifest a digit that only its own checksum covers."""
    run = made(name, output=output)
    for path in files_of(run)[:6]:
        whole = path.read_bytes()
        if path.name == "manifest.json":
            if damage != "flip":
                continue
            place = whole.index(b'"sign": ') + len(b'"sign": 0.')
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArtefactError, match=r"manifest.json is not what was written: .*delete it and give the"):
                gpudedup.Run.open(run.path)
            path.write_bytes(whole)
            continue
        elif damage == "flip":
            place = len(whole) // 2
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        elif damage == "cut":
            path.write_bytes(whole[:-1])
        else:
            path.unlink()
        found = gpudedup.Run.open(run.path).audit()
        assert found.exit_code == 4, path
        assert any(str(path) in problem and "run again" in problem for problem in found.problems), found.problems
        path.write_bytes(whole)
    assert gpudedup.Run.open(run.path).audit().problems == []


def test_surplus_file(made: Any) -> None:
    run = made()
    (run.path / "kept" / "more.parquet").write_bytes(b"")
    (problem,) = run.audit().problems
    assert "more.parquet is no file of the run" in problem


def changed(number: int, **values: Any) -> Callable[[list[dict[str, Any]]], Any]:
    return lambda rows: rows[number].update(values)


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ({}, lambda rows: rows[-1].update(keeper_row=0, cluster=0), "similarity .* is recorded, and the texts give 0"),
        ({}, lambda rows: near(rows).update(similarity=0.9), "0.9 is recorded, and the texts give"),
        ({}, lambda rows: near(rows).update(similarity=0.5), "similarity 0.5 is below the threshold"),
        ({}, lambda rows: near(rows).update(similarity=None), "it has no similarity"),
        ({}, lambda rows: near(rows).update(reason="exact", similarity=1.0), "is exact, and their contents differ"),
        ({}, lambda rows: exact(rows).update(reason="near"), "is near, and their contents are equal"),
        ({}, lambda rows: rows[1].update(keeper_row=rows[0]["row"], cluster=rows[0]["row"]), "keeper is not kept"),
        ({}, lambda rows: swap(rows[0]), "does not rank better"),
        ({}, lambda rows: empty_for_empty(rows), "removal of .*:9 for .*:7: the keeper does not rank better"),
        ({}, changed(0, row=10**6), "cannot be"),
        ({}, changed(0, row=-1), "cannot be"),
        ({}, changed(0, shard="elsewhere"), "cannot be"),
        ({}, changed(0, keeper_row=None), "cannot be"),
        ({}, changed(0, cluster=3), "cannot be"),
        ({}, changed(0, reason="because"), "cannot be"),
        ({}, lambda rows: rows.append(rows[-1]), "there twice"),
        ({}, lambda rows: rows.reverse(), "out of order"),
        ({}, lambda rows: rows.pop(), "counts .* removed, and removed/ gives"),
        ({}, lambda rows: nothing(rows[0]), "it has words"),
        ({"within": "source"}, lambda rows: other_source(rows), r"they differ in 'source' \(within\)"),
        ({"across": "source"}, lambda rows: other_source(rows), r"they have one 'source' \(across\)"),
        ({"verify": "signature"}, lambda rows: near(rows).update(similarity=120 / 128), "the texts give"),
        ({"verify": "none"}, lambda rows: near(rows).update(similarity=0.9), "but verify was none"),
    ],
)
def test_wrong_removals(made: Any, options: dict[str, Any], change: Callable[[Any], Any], message: str) -> None:
    run = edit_removed(made(output="none", **options), change)
    found = run.audit()
    assert found.exit_code == 4
    assert any(re.search(message, problem) for problem in found.problems), found.problems


def near(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["reason"] == "near")


def exact(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["reason"] == "exact")


def swap(row: dict[str, Any]) -> None:
    row.update(row=row["keeper_row"], keeper_row=row["row"], cluster=row["row"])


def empty_for_empty(rows: list[dict[str, Any]]) -> None:
    """Row 9 for row 7, which have no words and equal content hashes."""
    rows.append({**rows[0], "row": 9, "keeper_row": 7, "cluster": 7, "reason": "exact", "similarity": 1.0})
    rows.sort(key=lambda row: row["row"])


def nothing(row: dict[str, Any]) -> None:
    row.update(reason="empty", keeper_shard=None, keeper_row=None, cluster=None, similarity=None)


def other_source(rows: list[dict[str, Any]]) -> None:
    """Name keepers three and four rows on in turn: one of them is of the wrong source whatever the rule."""
    for step, row in enumerate(rows):
        row["keeper_row"] = row["cluster"] = (row["keeper_row"] + 3 + step % 2) % 60


def test_a_similarity_at_the_threshold_is_enough(tmp_path: Path) -> None:
    """Three of four words: 3/4, exactly."""
    pq.write_table(pa.table({"text": ["one two three four", "one two three"]}), tmp_path / "a.parquet")
    options = {"shingle": "word:1", "threshold": 0.75, "bands": 128, "rows": 1}
    run = gpudedup.run(tmp_path / "a.parquet", tmp_path / "out", **options)
    assert run.removed["similarity"].to_pylist() == [0.75]
    assert run.audit().problems == []


def test_rows_that_one_side_lacks() -> None:
    batch = pa.record_batch({"a": [1, 2, 3]})
    assert _first_difference(iter([batch]), iter([batch.slice(0, 1), batch.slice(1)])) is None
    assert _first_difference(iter([batch]), iter([batch.slice(0, 2)])) == "in length, from row 2 on"
    assert _first_difference(iter([]), iter([batch])) == "in length, from row 0 on"


def test_the_threshold_is_compared_in_integers(tmp_path: Path) -> None:
    """A threshold just above a recorded similarity: one millionth decides (oracle: the reference's fraction)."""
    texts = corpus()["text"].to_pylist()
    least = min(r.similarity for r in reference_deduplicate([t or "" for t in texts]).removed if r.reason == "near")
    gpudedup.deduplicate(write(corpus(), tmp_path / "in" / "in.parquet")).save(tmp_path / "out")
    run = gpudedup.Run.open(tmp_path / "out")  # without records, which tell of the threshold too
    for above, code in ((0, 0), (1, 4)):
        ppm = math.floor(least * 1_000_000) + above

        def change(manifest: dict[str, Any], ppm: int = ppm) -> None:
            manifest["parameters"].update(threshold=ppm / 1_000_000)

        found = reseal(run, change).audit()
        assert found.exit_code == code, found.problems


@pytest.mark.parametrize("name", NAMES)
def test_kept_without_a_row(made: Any, name: str, tmp_path: Path) -> None:
    run = made(name)
    path = run.kept[0]
    if name == "texts":
        other = run.kept[1].read_bytes()
        path.write_bytes(other)
    else:
        shorter = gpudedup.run(write(corpus().slice(1), tmp_path / "other" / name), tmp_path / "shorter").kept[0]
        shutil.copy(shorter, path)
    found = reseal(run).audit()
    assert found.exit_code == 4
    assert any(str(path) in problem for problem in found.problems), found.problems


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow"])
def test_one_changed_value_in_kept(made: Any, name: str) -> None:
    run = made(name)
    (path,) = run.kept
    table = pq.read_table(path) if name.endswith("parquet") else pyarrow.feather.read_table(path)
    row = 5
    scores = table["score"].to_pylist()
    scores[row] = 1e9
    table = table.set_column(2, "score", pa.array(scores))
    pq.write_table(table, path) if name.endswith("parquet") else pyarrow.feather.write_feather(table, path)
    (problem,) = reseal(run).audit().problems
    assert "without its removals: they differ in row 5" in problem


def test_kept_file_of_a_removed_text(made: Any) -> None:
    run = made("texts")

    def drop(manifest: dict[str, Any]) -> None:
        entry = next(entry for entry in manifest["outputs"] if entry["kind"] == "kept")
        manifest["outputs"].remove(entry)
        (run.path / entry["path"]).unlink()

    (problem,) = reseal(run, drop).audit().problems
    assert "is not in kept/, and was not removed" in problem


@pytest.mark.parametrize("name", ["in.jsonl", "texts"])
def test_wrong_mask(made: Any, name: str) -> None:
    run = made(name, output="mask")
    (path,) = (run.path / "keep_mask").iterdir()
    table = pq.read_table(path)
    mask = table["keep"].to_pylist()
    mask[2] = not mask[2]
    pq.write_table(table.set_column(table.num_columns - 1, "keep", pa.array(mask)), path)
    (problem,) = reseal(run).audit().problems
    assert "row 2 does not agree with removed/" in problem


@pytest.mark.parametrize("change", ["size", "text", "gone"])
def test_changed_input(made: Any, tmp_path: Path, change: str) -> None:
    run = made("in.jsonl")
    path = tmp_path / "in" / "in.jsonl"
    if change == "gone":
        path.unlink()
    elif change == "size":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(path.read_bytes().replace(b"w3x", b"v3x"))
    found = run.audit()
    assert found.exit_code == 3
    (problem,) = found.problems
    assert str(path) in problem
    assert "put it back" in problem
    assert any("the input is not what the run read" in reason for reason in found.not_checked)
    (run.path / "kept" / "in.jsonl").write_bytes(b"")
    assert run.audit().exit_code == 4, "damaged artefacts come first"


def test_an_input_that_was_only_touched(made: Any, tmp_path: Path) -> None:
    run = made("in.jsonl")
    os.utime(tmp_path / "in" / "in.jsonl", ns=(1, 1))
    found = run.audit()
    assert (found.problems, found.not_checked) == ([], [])


def change_unseen(path: Path) -> None:
    """Other text under the same size and time."""
    status = path.stat()
    path.write_bytes(path.read_bytes().replace(b"w3x", b"v3x"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_same_size_and_time_but_other_text(made: Any, tmp_path: Path) -> None:
    run = made("in.jsonl")
    path = tmp_path / "in" / "in.jsonl"
    change_unseen(path)
    found = run.audit()
    assert found.exit_code == 3
    (problem,) = found.problems
    assert f"input {path} was changed: checksum {run.manifest.inputs[0].xxh3_128} when it was read" in problem


def test_the_same_where_no_checksum_was_recorded(tmp_path: Path) -> None:
    """A run that was saved from memory."""
    path = write(corpus(), tmp_path / "in" / "in.jsonl")
    gpudedup.deduplicate(path).save(tmp_path / "out")
    run = gpudedup.Run.open(tmp_path / "out")
    assert (run.manifest.inputs[0].xxh3_128, run.audit().problems) == ("", [])
    change_unseen(path)
    found = run.audit()
    assert found.exit_code == 4
    assert any("without its removals" in problem for problem in found.problems)


def test_problems_are_bounded_and_counted(tmp_path: Path) -> None:
    run = gpudedup.run(write(corpus(200), tmp_path / "in" / "a.csv"), tmp_path / "out", output="mask")
    (path,) = (run.path / "keep_mask").iterdir()
    mask = pq.read_table(path)["keep"].to_pylist()
    pq.write_table(pa.table({"keep": [not keep for keep in mask]}), path)
    found = reseal(run).audit()
    assert (found.problem_count, len(found.problems), found.exit_code) == (200, 100, 4)


def test_spilled_sets(tmp_path: Path) -> None:
    """The sample of the README, with sets on disk: every similarity is made again."""
    run = gpudedup.run(DATA / "hertzbeat_docs.parquet", tmp_path / "out", threshold=0.6)
    found = run.audit(memory="64MB", workers=1, tmp=str(tmp_path))
    assert found.problems == []
    assert {check.name: check.count for check in found.checks}["similarities"] == run.summary().near
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
