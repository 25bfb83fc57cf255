"""Audits of what a run is continued from, and of removals for documents of earlier runs: damage of every kind."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from forged import edit

import gpudedup
from gpudedup.audit import Audit
from gpudedup.store import manifest as manifests

Change = Callable[[dict[str, Any]], Any]


def corpus(documents: int, seed: int) -> pa.Table:
    """Clusters of four texts of 200 words: two copies, one near-copy, one that is alone. Every third cluster is the
    same in all corpora; two texts have no words.
    """
    rng = random.Random(seed)
    texts: list[str | None] = []
    for number in range(documents // 4):
        name = f"all{number}" if number % 3 == 0 else f"of{seed}x{number}"
        for changes in (0, 0, 1, 40):
            words = [f"{name}w{place}" for place in range(200)]
            for place in rng.sample(range(200), changes):
                words[place] = f"new{rng.getrandbits(64):x}"
            texts.append(" ".join(words))
    texts[5], texts[10] = None, " . "
    return pa.table(
        {
            "text": pa.array(texts, pa.string()),
            "id": [f"{seed}-{row}" for row in range(len(texts))],
            "source": pa.array([("a", "b", None)[row % 3] for row in range(len(texts))]),
        }
    )


def written(folder: Path, table: pa.Table, files: int = 2) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{number}.parquet" for number in range(files)]
    size = -(-len(table) // files)
    for number, path in enumerate(paths):
        pq.write_table(table.slice(number * size, size), path)
    return paths


Make = Callable[..., gpudedup.Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run of a name and a seed, over two files."""

    def run(name: str, seed: int, **options: Any) -> gpudedup.Run:
        folder = tmp_path / f"{name}-in"
        paths = sorted(folder.iterdir()) if folder.exists() else written(folder, corpus(40, seed))
        return gpudedup.run(paths, tmp_path / name, **options)

    return run


def audited(run: gpudedup.Run) -> Audit:
    return gpudedup.Run.open(run.path).audit()


def counts(found: Audit) -> dict[str, int]:
    return {check.name: check.count for check in found.checks}


def assert_clean(run: gpudedup.Run) -> Audit:
    found = audited(run)
    assert (found.problems, found.problem_count, found.not_checked, found.exit_code) == ([], 0, [], 0)
    return found


def assert_found(run: gpudedup.Run, message: str, code: int = 4) -> Audit:
    found = audited(run)
    assert found.exit_code == code, found
    assert any(re.search(message, problem) for problem in found.problems), found.problems
    return found


def working_files(run: gpudedup.Run) -> list[Path]:
    return sorted(path for kind in manifests.WORKING for path in (run.path / kind).rglob("*") if path.is_file())


def record_of(run: gpudedup.Run, stage: str) -> Path:
    (path,) = (run.path / "done" / stage).iterdir()
    return path


def reseal(run: gpudedup.Run, stage: str, change: Change = lambda record: None) -> None:
    """Change the record of the one task of a stage, with the sizes and checksums of its artefacts as they are now."""

    def forge(record: dict[str, Any]) -> None:
        for entry in record["artefacts"]:
            file = run.path / entry["path"]
            entry.update(size_bytes=file.stat().st_size, xxh3_128=manifests.checksum(file))
        change(record)

    edit(record_of(run, stage), forge)


def rewrite(path: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch]) -> None:
    """Change every batch of an IPC file."""
    with pa.ipc.open_file(pa.BufferReader(path.read_bytes())) as file:
        kinds, batches = file.schema, [file.get_batch(number) for number in range(file.num_record_batches)]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, kinds) as writer:
        for batch in batches:
            writer.write_batch(change(batch))


def put(batch: pa.RecordBatch, name: str, row: int, value: Any) -> pa.RecordBatch:
    values = batch.column(name).to_pylist()
    values[row] = value
    place = batch.schema.get_field_index(name)
    return batch.set_column(place, batch.schema.field(place), pa.array(values, batch.schema.field(place).type))


# ---- whole runs ----


def test_every_task_is_checked(make: Make) -> None:
    run = make("run", 1, id_column="id", keep="longest", within="source")
    found = assert_clean(run)
    records = list((run.path / "done").rglob("*.json"))
    assert len(records) == 7, "sign, columns, ranks, bands, verify, decide, apply"
    assert counts(found)["working artefacts"] == len(records) + len(working_files(run)) + len(run.manifest.outputs)
    assert counts(found)["signatures"] == run.summary().documents == 40


def test_runs_that_were_continued_and_decided_anew(make: Make, tmp_path: Path) -> None:
    """What an earlier decision left behind is no damage."""
    run = make("run", 1, threshold=0.6)
    for stage, change in (
        ("verify", {"threshold": 0.8}),
        ("verify", {"threshold": 0.9}),
        ("match", {"keep": "longest", "id_column": "id"}),
        ("match", {"within": "source"}),
        ("decide", {"drop_empty": True}),
        ("verify", {"verify": "signature"}),
        ("apply", {"output": "mask"}),
    ):
        gpudedup.advance(run.path, stage, **change)
        gpudedup.advance(run.path, "apply")
        assert_clean(run)
    more = written(tmp_path / "more", corpus(20, 3), files=1)
    options = {"threshold": 0.9, "keep": "longest", "id_column": "id", "within": "source", "drop_empty": True}
    options |= {"verify": "signature", "output": "mask", "bands": run.manifest.bands, "rows": run.manifest.rows}
    run = gpudedup.run([*sorted((tmp_path / "run-in").iterdir()), *more], run.path, **options)
    assert counts(assert_clean(run))["signatures"] == 60


def test_skipped_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one two three"}\n{broken\n{"text": "One, two, three!"}\n')
    run = gpudedup.run(path, tmp_path / "out", on_error="skip")
    assert counts(assert_clean(run))["signatures"] == 3
    reseal(run, "sign", lambda record: record.update(skipped=[]))
    assert_found(run, r"differ in row 1 of .*a\.jsonl: SkippedEntry.* and None")


# ---- damage ----


STAGES = ["sign", "columns", "match", "verify", "decide", "apply"]


@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_every_working_file_and_record(make: Make, damage: str) -> None:
    """Each is found and named, and the way out that is told leads there: the same bytes as before."""
    run = make("run", 1, id_column="id")
    paths = [*working_files(run), *sorted((run.path / "done").rglob("*.json"))]
    assert {path.relative_to(run.path).parts[0] for path in paths} == {*manifests.WORKING, "done"}
    whole = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    for path in paths:
        data = whole[path]
        if damage == "flip":
            path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
        elif damage == "cut":
            path.write_bytes(data[:-1])
        else:
            path.unlink()
        assert_found(run, re.escape(str(path)) + ".*(delete it, and gpudedup apply RUN makes it anew|is missing)")
        path.unlink(missing_ok=True)
        gpudedup.advance(run.path, "apply")
        assert_clean(run)
        for other in working_files(run):
            assert other.read_bytes() == whole[other]
        for file, bytes_then in whole.items():  # records differ in seconds
            file.write_bytes(bytes_then)


@pytest.mark.parametrize(
    ("column", "value"), [("lanes_016", [7] * 8), ("content", b"x" * 16), ("units", 9), ("damaged", True)]
)
def test_signatures_that_are_not_of_the_text(make: Make, column: str, value: Any) -> None:
    run = make("run", 1)
    path = run.path / "signatures" / "000000.arrow"
    rewrite(path, lambda batch: put(batch, column, 3, value))
    reseal(run, "sign")
    found = assert_found(run, rf"{path} has another signature for .*/0\.parquet:3 than its text gives")
    # The second file is another batch, or begins another task's rows: one row a batch is wrong.
    assert found.problem_count == sum(" has another signature " in problem for problem in found.problems)


def test_fewer_signatures_than_rows(make: Make) -> None:
    run = make("run", 1)
    rewrite(run.path / "signatures" / "000000.arrow", lambda batch: batch.slice(1))
    reseal(run, "sign")
    assert_found(run, r"sign task 0 has \d+ rows, not 40")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda batch: put(batch, "similarity", 1, 0.875), r"removal of .*: .*decide/removed\.arrow says otherwise"),
        (lambda batch: put(batch, "reason", 0, 1), r"removal of .*: .*decide/removed\.arrow says otherwise"),
        (lambda batch: put(batch, "keeper", 0, 9), r"removal of .*: .*decide/removed\.arrow says otherwise"),
        (lambda batch: batch.slice(1), r"removed\.arrow removes \d+ documents, and removed/ \d+"),
        (lambda batch: put(batch, "document", 0, 10**6), r"removed\.arrow is nothing that a run writes"),
    ],
)
def test_a_decision_that_is_not_what_was_applied(
    make: Make, change: Callable[[pa.RecordBatch], pa.RecordBatch], message: str
) -> None:
    run = make("run", 1)
    rewrite(run.path / "decide" / "removed.arrow", change)
    reseal(run, "decide")
    assert_found(run, message)


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        *((stage, lambda record: record.update(digest="0" * 32), "is of digest 0{32}") for stage in STAGES),
        ("sign", lambda record: record.update(task=7), "is the record of task 7 of sign"),
        ("sign", lambda record: record.update(artefacts=[]), "gives numbers that no run writes"),
        (
            "decide",
            lambda record: record["artefacts"].append(record["artefacts"][0]),
            "gives numbers that no run writes",
        ),
        ("sign", lambda record: record["counts"].update(rows=41), "gives numbers that no run writes"),
        ("sign", lambda record: record["counts"].update(text_bytes=5), r"differ in text_bytes: \d+ and 5;"),
        ("verify", lambda record: record["counts"].update(compared_pairs=5), r"differ in compared_pairs: \d+ and 5;"),
        ("sign", lambda record: record["inputs"][0].update(xxh3_128="5"), r"differ in .*0\.parquet: InputEntry"),
        ("apply", lambda record: record["artefacts"].pop(), r"differ in removed/1\.parquet: OutputEntry.* and None"),
        ("decide", lambda record: record["artefacts"][0].update(path="decide/../../x"), "which is no file of a run"),
        ("decide", lambda record: record["artefacts"][0].update(path="decide/nothing"), "nothing is missing"),
        ("apply", lambda record: record["artefacts"][0].update(path="/etc/passwd"), "which is no file of a run"),
    ],
)
def test_records_that_were_forged(make: Make, stage: str, change: Change, message: str) -> None:
    run = make("run", 1, id_column="id", output="none")
    if stage == "match":
        edit(run.path / "done" / "match" / "000001.json", change)
    else:
        edit(record_of(run, stage), change)
    assert_found(run, message)


def test_the_digest_of_the_manifest(make: Make) -> None:
    run = make("run", 1)
    edit(run.path / "manifest.json", lambda manifest: manifest["parameters"].update(bucket_window=7))
    assert_found(run, r"manifest\.json has digest \w{32}, and its parameters and inputs give \w{32}")


def test_links_are_not_followed(make: Make, tmp_path: Path) -> None:
    run = make("run", 1)
    for path in (run.path / "signatures" / "000000.arrow", record_of(run, "decide"), run.path / "done" / "verify"):
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
        assert_found(run, f"{path} is a symbolic link")
        path.unlink()
        (tmp_path / "elsewhere").rename(path)
    assert_clean(run)


# ---- earlier runs ----


OPTIONS: list[dict[str, Any]] = [
    {},
    {"within": "source", "id_column": "id", "keep": "longest"},
    {"across": "source", "clustering": "components"},
    {"verify": "signature"},
    {"verify": "none"},
    {"drop_empty": True, "output": "mask"},
]


@pytest.fixture
def months(make: Make) -> Callable[..., gpudedup.Run]:
    """March against January and February, which is against January; each has copies of what was before."""

    def march(**options: Any) -> gpudedup.Run:
        january = make("january", 1, keep="longest")
        february = make("february", 2, against=january.path)
        return make("march", 3, against=[january.path, february.path], **options)

    return march


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_keepers_of_earlier_runs_are_checked(months: Make, options: dict[str, Any]) -> None:
    run = months(**options)
    for_earlier = run.removed.filter(run.removed["keeper_run"].is_valid())
    assert len(for_earlier) >= 4
    assert "within" in options or set(for_earlier["reason"].to_pylist()) == {"exact", "near"}
    if options.get("verify") == "none":
        assert audited(run).not_checked == ['similarities: none were measured (verify="none")']
        return
    found = assert_clean(run)
    assert counts(found)["earlier runs"] == 2
    assert counts(found)["ranks and contents"] == len(run.removed)
    measured = pc.and_(pc.equal(run.removed["reason"], "near"), run.removed["similarity"].is_valid())
    assert counts(found)["similarities"] == pc.sum(measured).as_py()


def edit_removed(run: gpudedup.Run, wanted: Callable[[dict[str, Any]], bool], **values: Any) -> None:
    """Change the first removal that is wanted; forge the record and the manifest with it."""
    for path in sorted((run.path / "removed").iterdir()):
        table = pq.read_table(path)
        rows = table.to_pylist()
        chosen = next((row for row in rows if wanted(row)), None)
        if chosen is not None:
            break
    else:
        raise AssertionError("no such removal")
    chosen.update(values)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)
    reseal(run, "apply")
    applied = msgspec.json.decode(record_of(run, "apply").read_bytes())["artefacts"]
    edit(run.path / "manifest.json", lambda manifest: manifest.update(outputs=applied))


def near(row: dict[str, Any]) -> bool:
    return row["keeper_run"] is not None and row["reason"] == "near"


def exact(row: dict[str, Any]) -> bool:
    return row["keeper_run"] is not None and row["reason"] == "exact"


@pytest.mark.parametrize(
    ("row", "values", "message"),
    [
        (
            near,
            {"similarity": 0.99},
            r"for .*january-in/.* of the earlier run .*: similarity 0.99 is recorded, and the",
        ),
        (near, {"similarity": 0.5}, "similarity 0.5 is below the threshold"),
        (near, {"reason": "exact", "similarity": 1.0}, "the reason is exact, and their contents differ"),
        (exact, {"reason": "near"}, "the reason is near, and their contents are equal"),
        (near, {"cluster": -2}, "cannot be"),
        (near, {"cluster": -(10**9)}, "cannot be"),
        (near, {"cluster": 3}, "cannot be"),
        (near, {"cluster": None}, "cannot be"),
        (near, {"keeper_row": 10**6}, "cannot be"),
        (near, {"keeper_row": None}, "cannot be"),
        (near, {"keeper_shard": "elsewhere"}, "cannot be"),
        (near, {"keeper_run": "elsewhere"}, "cannot be"),
        (near, {"keeper_run": None}, "cannot be"),
    ],
)
def test_wrong_removals_for_earlier_documents(
    months: Make, row: Callable[[dict[str, Any]], bool], values: dict[str, Any], message: str
) -> None:
    run = months()
    edit_removed(run, row, **values)
    assert_found(run, message)


def test_a_keeper_that_its_run_removed(months: Make, tmp_path: Path) -> None:
    """Every place that January removed, named as a keeper."""
    run = months()
    removed = gpudedup.Run.open(tmp_path / "january").removed.to_pylist()[0]
    edit_removed(run, near, keeper_shard=removed["shard"], keeper_row=removed["row"])
    assert_found(run, "cannot be")


def kept_rows(run: gpudedup.Run) -> list[int]:
    """Input positions of what a run over two files kept, by rank (keep="first")."""
    return [int(name.split("-")[1]) for path in run.kept for name in pq.read_table(path)["id"].to_pylist()]


def keeper_at(run: gpudedup.Run, place: int) -> dict[str, Any]:
    """How a removal names what a run kept at a place."""
    row = kept_rows(run)[place]
    shard = run.manifest.inputs[row // 20].path
    return {"keeper_run": str(run.path), "keeper_shard": shard, "keeper_row": row % 20, "cluster": -1 - place}


@pytest.mark.parametrize(
    ("role", "message"), [("within", r"they differ in 'source' \(within\)"), ("across", r"they have one 'source'")]
)
def test_a_keeper_of_another_scope(make: Make, role: str, message: str) -> None:
    """Another document that the same run kept: the place is right, the scope and the text are not."""
    earlier = make("earlier", 1)
    run = make("later", 3, against=earlier.path, **{role: "source"})
    source = corpus(40, 3)["source"].to_pylist()
    chosen = next(row for row in run.removed.to_pylist() if near(row) or exact(row))
    of_chosen = source[(20 if chosen["shard"].endswith("1.parquet") else 0) + chosen["row"]]
    of_kept = [corpus(40, 1)["source"][row].as_py() for row in kept_rows(earlier)]
    wrong = next(place for place, value in enumerate(of_kept) if (value == of_chosen) == (role == "across"))
    edit_removed(run, lambda row: row["row"] == chosen["row"], **keeper_at(earlier, wrong))
    assert_found(run, message)


def test_an_empty_keeper(make: Make) -> None:
    """Two documents without words have equal contents, and yet neither is a copy."""
    earlier = make("earlier", 1)
    run = make("later", 3, against=earlier.path)
    texts = corpus(40, 3)["text"].to_pylist()
    place = kept_rows(earlier).index(10)
    chosen = next(row for row in run.removed.to_pylist() if row["row"] == 9 or row["row"] > 10)
    assert (texts[5], texts[10]) == (None, " . ")
    values = {"row": 10, "reason": "exact", "similarity": 1.0, **keeper_at(earlier, place)}
    edit_removed(run, lambda row: row["row"] == chosen["row"], **values)
    assert_found(run, "one of them has no words")


def test_an_earlier_run_that_is_gone(months: Make, tmp_path: Path) -> None:
    """Everything else is checked."""
    run = months()
    shutil.rmtree(tmp_path / "january")
    found = audited(run)
    assert (found.exit_code, found.problems) == (0, [])
    (reason,) = found.not_checked
    assert "removals for documents of the earlier run" in reason
    assert "january holds no finished run" in reason
    for_january = pc.equal(run.removed["keeper_run"], str(tmp_path / "january"))
    assert counts(found)["ranks and contents"] == len(run.removed) - pc.sum(for_january).as_py()
    edit_removed(run, near, cluster=-(10**9))
    assert_found(run, "cannot be")


@pytest.mark.parametrize("output", ["kept", "mask"])
def test_an_earlier_input_that_is_gone(make: Make, tmp_path: Path, output: str) -> None:
    earlier = make("earlier", 1, output=output)
    run = make("later", 3, against=earlier.path)
    shutil.rmtree(tmp_path / "earlier-in")
    if output == "kept":
        assert_clean(run)
        return
    found = audited(run)
    assert (found.exit_code, found.problems) == (0, [])
    (reason,) = found.not_checked
    assert "contents and similarities of documents of the earlier run" in reason
    assert "is gone: its input was changed or removed" in reason


def test_an_earlier_run_that_was_decided_anew(months: Make, tmp_path: Path) -> None:
    run = months()
    gpudedup.advance(tmp_path / "january", "verify", threshold=0.95)
    gpudedup.advance(tmp_path / "january", "apply")
    found = assert_found(run, "earlier run .*january was decided or made anew after this one was compared with it")
    assert any("it is another now" in reason for reason in found.not_checked)
    january, february = (str(tmp_path / name) for name in ("january", "february"))
    for name, against in (("february", [january]), ("march", [january, february])):  # as the message says
        run = gpudedup.run(sorted((tmp_path / f"{name}-in").iterdir()), tmp_path / name, against=against)
        assert_clean(run)


def test_a_damaged_earlier_run(months: Make, tmp_path: Path) -> None:
    """Its own audit tells of that: here it cannot be compared with."""
    run = months()
    path = tmp_path / "january" / "signatures" / "000000.arrow"
    path.write_bytes(path.read_bytes()[:-1])
    found = audited(run)
    assert found.exit_code == 0
    assert any("january" in reason for reason in found.not_checked)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry.update(digest="0" * 32), "its digest was 0{32}, and is"),
        (lambda entry: entry.update(documents=3), "manifest.json has digest|cannot be"),
        (lambda entry: entry.update(path="elsewhere"), "cannot be"),
    ],
)
def test_what_the_manifest_says_of_earlier_runs(months: Make, change: Change, message: str) -> None:
    run = months()
    edit(run.path / "manifest.json", lambda manifest: change(manifest["against"][0]))
    assert_found(run, message)


def test_an_audit_from_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("first"), corpus(40, 1))
    written(Path("second"), corpus(40, 2))
    gpudedup.run("first", "january")
    gpudedup.run("second", "february", against="january")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_clean(gpudedup.Run.open(tmp_path / "february"))
