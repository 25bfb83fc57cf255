"""The corpus generator is deterministic and its truth is true; suites and runners still run. Nothing here is timed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import corpus  # noqa: E402
import pool  # noqa: E402
import report  # noqa: E402

SIZE = 1_200_000


def make(out: Path, **options: object) -> Path:
    settings: dict[str, object] = {"text_bytes": SIZE, "shard_bytes": 400_000, "processes": 1, "jaccard_sample": 0}
    corpus.make_corpus(out, **{**settings, **options})  # type: ignore[arg-type]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts(folder: Path) -> list[str]:
    return [text for path in sorted(folder.glob("part-*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("mixed"), jaccard_sample=10**9)


def test_the_same_bytes_from_any_number_of_processes(mixed: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "two", processes=2, jaccard_sample=10**9)) == contents(mixed)


def test_another_seed_is_another_corpus(mixed: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=2)
    assert not set(texts(other)) & set(texts(mixed))


def test_ids_number_the_documents(mixed: Path) -> None:
    ids = [i for path in sorted(mixed.glob("part-*.parquet")) for i in pq.read_table(path)["id"].to_pylist()]
    meta = json.loads((mixed / "meta.json").read_text())
    assert ids == list(range(meta["documents"]))
    assert meta["shards"] >= 3
    assert SIZE * 0.7 < sum(len(text.encode()) for text in texts(mixed)) < SIZE * 1.4


def test_truth_is_the_reference_s(mixed: Path) -> None:
    documents = texts(mixed)
    truth = pq.read_table(mixed / "truth.parquet").to_pylist()
    assert {row["kind"] for row in truth} == set(corpus.KINDS)
    checked: Counter[str] = Counter()
    for row in truth:
        assert row["origin"] < row["id"]
        if row["kind"] == "exact":
            assert documents[row["id"]] == documents[row["origin"]]
        if checked[row["kind"]] < 2:  # the reference is slow
            a, b = (set(_shingles(documents[row[name]])) for name in ("id", "origin"))
            assert row["jaccard"] == len(a & b) / len(a | b)
            checked[row["kind"]] += 1


def _shingles(text: str) -> list[tuple[str, ...]]:
    units = reference.units(text)
    return [tuple(units[i : i + 5]) for i in range(max(1, len(units) - 4))] if units else []


def test_kinds_do_what_they_say(mixed: Path) -> None:
    rows = pq.read_table(mixed / "truth.parquet").to_pylist()
    of = {kind: [row["jaccard"] for row in rows if row["kind"] == kind] for kind in corpus.KINDS}
    assert min(of["exact"]) == 1
    assert min(of["format"]) > 0.6  # all equal but where a blank parts what a separator had not
    assert np.median(of["format"]) == 1
    assert max(of["embed"]) < 0.95
    light = [row["jaccard"] for row in rows if row["kind"] == "edit" and row["rate"] < 0.011]
    heavy = [row["jaccard"] for row in rows if row["kind"] == "edit" and row["rate"] > 0.1]
    assert np.median(light) > 0.9
    assert np.median(heavy) < 0.6


@pytest.mark.parametrize("mix", sorted(pool.MIXES))
def test_strangers_are_no_copies(mix: str, tmp_path: Path) -> None:
    out = make(tmp_path / mix, mix_name=mix)
    import truth

    planted = {row["id"] for row in pq.read_table(out / "truth.parquet").to_pylist()}
    originals = [text for number, text in enumerate(texts(out)) if number not in planted]
    assert len(originals) > 100
    assert len(truth.similar_pairs(truth.read_corpus(originals), 100_000)) == 0  # none at J >= 0.1


CASES = {
    "sign": "english",
    "job": "mixed and mask and 768",
    "match": "generated",
    "growth": "near_copies",
    "memory": "huge or stream",
    "import": "bench_import",
}


@pytest.mark.parametrize("suite", sorted(CASES))
def test_suites_run_on_next_to_nothing(suite: str, tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}  # not a worker of ours
    environment = {**own, "GPUDEDUP_BENCH_TINY": "1", "GPUDEDUP_BENCH_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", f"bench_{suite}.py", "-k", CASES[suite]]
    out = tmp_path / "out.json"
    done = subprocess.run(
        [*command, f"--benchmark-json={out}"], cwd=BENCHMARKS, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(out.read_text())["benchmarks"]


def test_every_result_is_described() -> None:
    for path in sorted((BENCHMARKS / "results").glob("*.json")):
        found = json.loads(path.read_text())
        assert {"suite", "date", "machine", "cases"} <= set(found), path.name
        assert found["machine"]["commit"], path.name
        assert "/" not in path.name


def test_the_page_is_that_of_the_results() -> None:
    made = report.render(BENCHMARKS / "results", (BENCHMARKS / "notes.md").read_text())
    assert report.OUT.read_text() == made, "run python benchmarks/report.py"


def test_joining_pieces_keeps_their_bytes() -> None:
    pieces = pa.array(["a ", "bc ", "", "déf"], pa.large_string())
    joined = corpus._join(pieces, np.array([3, 0, 1, 2], np.int32), np.array([2, 0, 2]))
    assert joined.to_pylist() == ["défa ", "", "bc "]
