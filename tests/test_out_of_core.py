"""match, verify and decide over more than memory holds: generated signatures in a run directory, decided as by the
reference, whatever the memory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
import reference

import gpudedup
from gpudedup.bench.generated import STAGES, Block, Generated, go_on, opened, sign
from gpudedup.bench.measure import measure
from gpudedup.engines.local import Budget
from gpudedup.params import make_params

# One worker signs once for all tests here.
pytestmark = pytest.mark.xdist_group("out_of_core")

DOCUMENTS = 200_000
LARGE = 20_000_000
WINDOW = 64
THRESHOLD, RECALL, LANES = 0.8, 0.95, 128

Removals = dict[int, tuple[int, float]]
"""Removed row: (keeper, similarity)."""


@pytest.fixture(scope="module")
def made() -> list[Block]:
    generated = Generated(DOCUMENTS)
    return [generated.block(number) for number in range(generated.blocks)]


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("signed") / "run"
    with opened(out, DOCUMENTS, make_params({"verify": "signature"})) as run:
        sign(run, Generated(DOCUMENTS))
    return out


def decide_by_reference(rows: Sequence[int], lanes: np.ndarray, unit_counts: Sequence[int], keep: str) -> Removals:
    """Of documents with distinct contents; ``rows`` ascend, lanes[i] and unit_counts[i] are those of rows[i]."""
    order = reference.rank_order(keep, unit_counts, None)
    rank = {place: number for number, place in enumerate(order)}
    bands, width = reference.choose_bands(THRESHOLD, RECALL, LANES)
    pairs = set()
    by_rank = lanes[order]
    factors = np.random.default_rng(1).integers(0, 1 << 64, width, np.uint64)  # other lanes, other sums, but for luck
    for band in range(bands):
        key = by_rank[:, band * width : (band + 1) * width].astype(np.uint64) @ factors
        members = np.argsort(key, kind="stable")
        for group in np.split(members, np.flatnonzero(np.diff(key[members])) + 1):
            if len(group) > 1:
                found = group.tolist()
                pairs |= {(found[p], found[q]) for p, q in reference.window_pairs(len(found), WINDOW)}
    candidates = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    equal = np.concatenate(
        [
            (by_rank[part[:, 0]] == by_rank[part[:, 1]]).sum(axis=1)
            for part in np.array_split(candidates, 1 + len(candidates) // 10_000)
        ]
    )
    ppm = reference.threshold_ppm(THRESHOLD)
    similarity = {
        (order[better], order[worse]): same / LANES
        for (better, worse), same in zip(candidates.tolist(), equal.tolist(), strict=True)
        if reference.similar(same, LANES, ppm)
    }
    keepers = reference.choose_keepers(order, similarity.keys(), rank)
    return {rows[place]: (rows[keeper], similarity[keeper, place]) for place, keeper in keepers.items()}


def removals_of(out: Path) -> Removals:
    with pa.ipc.open_file(str(out / "decide" / "removed.arrow")) as file:
        table = file.read_all()
    columns = (table[name].to_pylist() for name in ("document", "keeper", "similarity"))
    return {row: (keeper, similarity) for row, keeper, similarity in zip(*columns, strict=True)}


def continued(signed: Path, out: Path, memory_bytes: int, tmp: Path, **options: str) -> Path:
    """A run with the signatures of another, decided in ``memory_bytes``: less than a user may give."""
    shutil.copytree(signed, out, copy_function=os.link)
    with opened(out, DOCUMENTS, make_params({"verify": "signature", **options})) as run:
        run.budget = Budget(memory_bytes, str(tmp))
        go_on(run, STAGES)
    return out


@pytest.fixture(scope="module", params=["first", "longest"])
def decided(request: pytest.FixtureRequest, made: list[Block]) -> tuple[str, Removals]:
    lanes, unit_counts = (np.concatenate([getattr(block, name) for block in made]) for name in ("lanes", "unit_count"))
    expected = decide_by_reference(range(DOCUMENTS), lanes, unit_counts.tolist(), request.param)
    assert len(expected) > 3000
    return request.param, expected


def test_any_memory_gives_the_decision_of_the_reference(
    signed: Path, decided: tuple[str, Removals], tmp_path: Path
) -> None:
    keep, expected = decided
    runs = [continued(signed, tmp_path / f"{size}", size, tmp_path, keep=keep) for size in (1 << 20, 1 << 30)]
    for out in runs:
        assert removals_of(out) == expected
    for folder in STAGES:
        little, much = ({path.name: path.read_bytes() for path in (out / folder).iterdir()} for out in runs)
        assert little == much, folder


def test_what_memory_does_not_hold_goes_to_tmp(signed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no such folder, only a run that needs none ends well."""
    nowhere = tmp_path / "nowhere"
    with pytest.raises(gpudedup.OutputError, match="no room for buckets"):
        continued(signed, tmp_path / "little", 1 << 20, nowhere)
    continued(signed, tmp_path / "much", 1 << 30, nowhere)
    monkeypatch.setattr(Budget, "set_bytes", 1 << 20)
    with pytest.raises(gpudedup.OutputError, match="no room for signatures"):
        continued(signed, tmp_path / "sets", 1 << 30, nowhere)


@pytest.mark.parametrize("texts", [[], ["", ""], ["one two three", "four five six"], ["one two three"] * 2])
def test_nothing_to_compare(tmp_path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), tmp_path / "a.parquet")
    run = gpudedup.run(tmp_path / "a.parquet", tmp_path / "out", verify="signature", output="none")
    assert run.removed["row"].to_pylist() == ([1] if texts == ["one two three"] * 2 else [])


@pytest.mark.skipif(
    os.environ.get("GPUDEDUP_TEST_LARGE") != "1",
    reason="GPUDEDUP_TEST_LARGE=1 runs it: 12 GB of disk in the folder of temporary files, and some minutes",
)
def test_twenty_million_documents_within_four_gigabytes(tmp_path: Path) -> None:
    """Clusters share no buckets, so the decision over all members of some is that of the run about them."""
    out = tmp_path / "run"
    try:
        given = {"out": str(out), "documents": LARGE, "seed": 1}
        options = {"verify": "signature"}
        measure("gpudedup.bench.suites.match:signed_run", {**given, "options": options}, repeat=1, warm_ups=0)
        found = measure(
            "gpudedup.bench.suites.match:decided",
            {**given, "options": {**options, "device": "cpu", "memory": "2 GB"}},
            repeat=1,
            warm_ups=0,
        )
        print(found)
        assert not isinstance(found, str)
        assert found.peak_bytes < 4e9
        removals = removals_of(out)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    generated = Generated(LARGE)
    random = np.random.default_rng(1)
    small = np.flatnonzero(generated.sizes <= 1000)
    few = np.unique(np.concatenate([random.choice(small, 2000), small[np.argsort(generated.sizes[small])[-5:]]]))
    rows, lanes = [], []
    in_cluster = np.zeros(LARGE, bool)
    for number in range(generated.blocks):
        block = generated.block(number)
        chosen = np.flatnonzero(np.isin(block.cluster, few))
        rows += (block.first + chosen).tolist()
        lanes.append(block.lanes[chosen])
        in_cluster[block.first : block.first + len(block.cluster)] = block.cluster >= 0
    expected = decide_by_reference(rows, np.concatenate(lanes), [1] * len(rows), "first")
    assert len(expected) > 1000
    assert {row: removals[row] for row in rows if row in removals} == expected
    assert in_cluster[list(removals)].all()
