"""Disk: what a run takes is predicted, and one that cannot have it is refused before it signs; no other is."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from test_plan import NAMES, texts, write

import gpudedup
from gpudedup import OutputError
from gpudedup.engines import space
from gpudedup.io import open_paths
from gpudedup.params import make_params
from gpudedup.stages.sample import take_sample

DOCUMENT_BYTES = 4 * 128 + 24 + 1 / 8
"""Lanes, content hash, number of units, and whether it could be read."""
COUNTED = ("a.parquet", "a.arrow", "texts")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes that a disk has, until a test writes another number here."""
    given = [0]
    monkeypatch.setattr(space, "free_bytes", lambda path: given[0])
    return given


def size_of(folder: Path, *names: str) -> int:
    return sum(path.stat().st_size for name in names for path in (folder / name).rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_fit_is_refused_before_it_begins(tmp_path: Path, free: list[int], name: str) -> None:
    path, out = write(tmp_path / name, texts(60, 1)), tmp_path / "out"
    needed = int(60 * DOCUMENT_BYTES)
    free[0] = needed - 1
    with pytest.raises(OutputError, match=rf"needs {needed} bytes at least.* 60 documents .*{needed - 1} are free"):
        gpudedup.run(path, out)
    assert not out.exists()
    free[0] = needed
    assert gpudedup.run(path, out, output="none").summary().documents == 60


@pytest.mark.parametrize("name", NAMES)
def test_an_input_that_surely_fits_is_not_looked_at(
    tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(space, "take_sample", lambda *_, **__: pytest.fail("it was"))
    path = write(tmp_path / name, texts(20, 1))
    free[0] = int(path.stat().st_size * 10 / 2 * DOCUMENT_BYTES) + 1
    gpudedup.run(path, tmp_path / "out", output="none")


def test_what_is_committed_needs_no_more_room(tmp_path: Path, free: list[int]) -> None:
    paths = [write(tmp_path / f"{number}.parquet", texts(100, number)) for number in (1, 2)]
    free[0] = int(100 * DOCUMENT_BYTES)
    gpudedup.begin(paths[0], tmp_path / "out")
    with pytest.raises(OutputError, match="the signatures of 200 documents"):
        gpudedup.begin(paths, tmp_path / "other")
    gpudedup.begin(paths, tmp_path / "out")
    free[0] = 0
    assert gpudedup.run(paths, tmp_path / "out").summary().documents == 200


@pytest.mark.parametrize("name", [name for name in NAMES if name not in COUNTED])
def test_a_sample_never_finds_more_than_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Of ten files of 300 documents a tenth is looked at. How far compressed files were read is known roughly."""
    paths = [write(tmp_path / f"{number}{name}", texts(300, number)) for number in range(10)]
    monkeypatch.setattr(space, "LEAST_SAMPLE_BYTES", sum(path.stat().st_size for path in paths) // 10)
    for seed in range(10):
        found = least_documents(paths, seed)
        assert (0 if name.endswith(("gz", "zst")) else 1000) <= found <= 3000, (seed, found)


def least_documents(paths: list[Path], seed: int = 0) -> int:
    names = [str(path) for path in paths]
    source = open_paths(names, text_column="text", columns=["text"], memory_bytes=1 << 30)
    return space.least_documents(source, source.shards, make_params({"seed": seed}), 1 << 30)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv"])
def test_the_beginning_of_a_file_refuses_nothing(
    tmp_path: Path, free: list[int], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Short documents first: by its beginning, the file would have many more."""
    rng = random.Random(1)
    documents = [f"short {i}" for i in range(3000)] + [rng.randbytes(100_000).hex() for _ in range(20)]
    path = write(tmp_path / name, documents)
    monkeypatch.setattr(space, "LEAST_SAMPLE_BYTES", 1 << 16)
    source = open_paths([str(path)], text_column="text", columns=["text"], memory_bytes=1 << 30)
    options = {"most_bytes": 1 << 16, "memory_bytes": 1 << 30, "writing": False}
    seen = take_sample(source, source.shards, make_params({}), **options).document_total  # type: ignore[arg-type]
    assert seen.value > 10 * len(documents)
    free[0] = int(len(documents) * DOCUMENT_BYTES)
    assert gpudedup.run(path, tmp_path / "out", output="none").summary().documents == len(documents)


def test_damage_is_told_by_signing(tmp_path: Path, free: list[int]) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n{broken\n')
    with pytest.raises(gpudedup.InputError, match="line 2") as error:
        gpudedup.run(path, tmp_path / "out")
    assert "sample" not in str(error.value)


def test_looking_costs_little(tmp_path: Path, free: list[int]) -> None:
    """20 MB of lines: some ms of reading 1 MB."""
    documents = texts(15_000, 3)
    path = write(tmp_path / "a.jsonl", documents)
    assert path.stat().st_size > 15 * space.LEAST_SAMPLE_BYTES
    least_documents([path])
    start = time.process_time()
    least_documents([path])
    assert time.process_time() - start < 0.2  # it takes 0.02


# Plans


@pytest.mark.parametrize(
    ("options", "spilled"),
    [({}, 0), ({"verify": "signature", "id_column": "source"}, 0), ({"within": "source", "keep": "max:source"}, 0)],
)
def test_plans_predict_what_runs_write(tmp_path: Path, options: dict[str, str], spilled: int) -> None:
    """Within 5 %: of 8000 documents, a tenth of them copies."""
    path, out = write(tmp_path / "a.parquet", texts(8000, 4)), tmp_path / "out"
    plan = gpudedup.plan(path, out, output="mask", **options)  # type: ignore[arg-type]
    gpudedup.run(path, out, output="mask", **options)  # type: ignore[arg-type]
    written = size_of(out, "signatures", "columns", "match", "verify", "decide")
    assert abs(plan.working_bytes / written - 1) < 0.05
    assert plan.spill_bytes == spilled


def test_plans_tell_what_goes_to_tmp() -> None:
    """By its arithmetic, of 10^6 documents of 300 shingles with a tenth sharing a bucket, in 18 bands."""
    from gpudedup.engines.local import Budget

    budget = Budget(64_000_000, "")
    buckets = 8_000_000 + 100_000 * 18 * 20 - 8_000_000
    for verify, compared in (("exact", 4 * 300_000_000), ("signature", 512_000_000), ("none", 0)):
        params = make_params({"verify": verify})
        found = space.spill_bytes(params, budget, 1_000_000, shingles=300e6, sharing=0.1)
        assert found == max(0, compared - 32_000_000) + buckets


def test_a_plan_warns_of_a_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", texts(200, 5))
    plan = gpudedup.plan(path, output="none")
    for free_bytes, warned in ((plan.working_bytes, False), (plan.working_bytes - 1, True)):
        monkeypatch.setattr("gpudedup.planning.free_bytes", lambda path, free=free_bytes: free)
        (*warnings,) = gpudedup.plan(path, output="none").warnings
        assert bool(warnings) == warned
        assert not warned or f"about {plan.working_bytes} bytes to continue from" in warnings[0]
