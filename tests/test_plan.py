"""Plans: counted totals are exact, estimated ones within their spread, nothing is written, errors are those of run."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest

import gpudedup
from gpudedup import InputError, ParameterError
from gpudedup import plan as make_plan
from gpudedup.planning import Estimate

DATA = Path(__file__).resolve().parent / "data"
SAMPLE_BYTES = 1 << 20
NAMES = ["a.parquet", "a.arrow", "a.jsonl", "a.jsonl.gz", "a.csv", "a.tsv.zst", "texts"]


def texts(count: int, seed: int) -> list[str]:
    """Lengths over two orders of magnitude, some with line ends, quotes and delimiters; a tenth are copies."""
    rng = random.Random(seed)
    found: list[str] = []
    for _ in range(count):
        if found and rng.random() < 0.1:
            found.append(rng.choice(found))
            continue
        size = int(10 * 100 ** rng.random())
        joint = rng.choice([" ", " ", ", ", '\n"x", ', "\n\n", " é中 "])
        found.append(joint.join(f"w{rng.randrange(10**6)}" for _ in range(size)))
    return found


def write(path: Path, documents: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name
    table = pa.table({"text": documents, "source": [f"s{i % 7}" for i in range(len(documents))]})
    if name.endswith(".parquet"):
        pq.write_table(table, path, row_group_size=100)
    elif name.endswith(".arrow"):
        pyarrow.feather.write_feather(table, path, chunksize=64)
    elif ".jsonl" in name:
        data = "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()
        path.write_bytes(gzip.compress(data, 1) if name.endswith("gz") else data)
    elif name.endswith((".csv", ".tsv.zst")):
        out = io.StringIO()
        writer = csv.writer(out, delimiter="\t" if "tsv" in name else ",")
        writer.writerow(table.column_names)
        writer.writerows(row.values() for row in table.to_pylist())
        data = out.getvalue().encode()
        path.write_bytes(pa.compress(data, "zstd", asbytes=True) if name.endswith("zst") else data)
    else:
        path.mkdir()
        for number, text in enumerate(documents):
            (path / f"{number:05}.txt").write_text(text, encoding="utf-8")
    return path


def size_of(documents: list[str]) -> int:
    return sum(len(text.encode()) for text in documents)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def holds(estimate: Estimate, truth: int) -> bool:
    return estimate.spread is not None and abs(estimate.value - truth) <= estimate.spread


# Counted


@pytest.mark.parametrize("path", sorted(DATA.glob("*.parquet")), ids=lambda path: path.stem)
def test_small_sets_are_counted(path: Path, tmp_path: Path) -> None:
    plan = make_plan(path, threshold=0.7)
    done = gpudedup.run(path, tmp_path / "out", threshold=0.7, output="none").summary()
    assert plan.documents == Estimate(value=done.documents, spread=0, counted=True)
    assert plan.text_bytes == Estimate(value=done.text_bytes, spread=0, counted=True)
    assert (plan.sample_exact, plan.sample_near, plan.sample_compared) == (done.exact, done.near, done.compared_pairs)
    assert (plan.bands, plan.rows, plan.s_curve) == (done.bands, done.rows, done.s_curve)
    assert (plan.files, plan.format, plan.stored_bytes) == (1, "parquet", path.stat().st_size)
    assert [reason for reason in plan.unknown if not reason.startswith("seconds")] == []
    assert plan.held_bytes == done.documents * 80


@pytest.mark.parametrize("name", NAMES)
def test_small_inputs_of_every_format_are_counted(tmp_path: Path, name: str) -> None:
    documents = texts(200, 1)
    plan = make_plan(write(tmp_path / name, documents))
    assert plan.documents == Estimate(value=200, spread=0, counted=True)
    assert plan.text_bytes == Estimate(value=size_of(documents), spread=0, counted=True)
    assert plan.sample == "all of the input"


# Estimated


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    folder = tmp_path_factory.mktemp("large")
    documents = texts(4000, 2)
    for name in NAMES:
        write(folder / name, documents)
    return folder, documents


@pytest.fixture
def small_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpudedup.planning.SAMPLE_BYTES", SAMPLE_BYTES)


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("name", NAMES)
def test_totals_are_within_their_spread(large: tuple[Path, list[str]], name: str) -> None:
    folder, documents = large
    for seed in range(5):
        plan = make_plan(folder / name, seed=seed, output="none")
        assert holds(plan.documents, len(documents)), (seed, plan.documents)
        assert holds(plan.text_bytes, size_of(documents)), (seed, plan.text_bytes, size_of(documents))
        assert plan.documents.counted == (name in ("a.parquet", "a.arrow", "texts"))
        if name == "texts":
            assert plan.text_bytes.spread == 0, "files are as long as their text"
        else:
            assert not plan.text_bytes.counted
            assert 0 < (plan.text_bytes.spread or 0) < size_of(documents), "a spread that says something"
        assert 100 < plan.sample_documents < len(documents) / 2
        assert plan.sample_text_bytes < 2 * SAMPLE_BYTES
        assert plan.unknown


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("name", NAMES)
def test_one_seed_gives_one_plan(large: tuple[Path, list[str]], name: str) -> None:
    plans = [make_plan(large[0] / name, seed=seed) for seed in (3, 3)]
    fields = ("documents", "text_bytes", "sample", "sample_documents", "sample_exact", "sample_near", "spill_bytes")
    assert [getattr(plans[0], field) for field in fields] == [getattr(plans[1], field) for field in fields]


@pytest.mark.usefixtures("small_samples")
def test_ranges_do_not_overlap(tmp_path: Path) -> None:
    """Documents without copies, in a file a little larger than the sample: none may come twice."""
    documents = [" ".join(f"w{i}x{j}" for j in range(1 + i % 50)) for i in range(5000)]
    path = write(tmp_path / "a.jsonl", documents)
    assert SAMPLE_BYTES < path.stat().st_size < 1.5 * SAMPLE_BYTES
    for seed in range(5):
        plan = make_plan(path, seed=seed)
        assert (plan.sample_exact, plan.sample_near) == (0, 0)
        assert holds(plan.documents, 5000)


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize("name", [name for name in NAMES if name != "texts"])
def test_many_files(tmp_path: Path, name: str) -> None:
    documents = texts(3000, 4)
    for number in range(10):
        write(tmp_path / "in" / f"{number}{name}", documents[300 * number : 300 * (number + 1)])
    plan = make_plan(tmp_path / "in", keep="max:source", guard_column="source", max_removed=0)
    assert plan.files == 10
    assert holds(plan.documents, 3000), plan.documents
    assert holds(plan.text_bytes, size_of(documents)), (plan.text_bytes, size_of(documents))


def read_bytes() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError


@pytest.mark.usefixtures("small_samples")
@pytest.mark.parametrize(("name", "times"), [("a.jsonl", 8), ("a.csv", 7), ("a.arrow", 4), ("texts", 3)])
def test_little_is_read(large: tuple[Path, list[str]], name: str, times: int) -> None:
    """The sample, and of lines that again two or three times from memory."""
    make_plan(large[0] / name)
    before = read_bytes()
    plan = make_plan(large[0] / name)
    assert read_bytes() - before < times * SAMPLE_BYTES < plan.stored_bytes


# Nothing is written


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_written(
    large: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sampled: bool
) -> None:
    if sampled:
        monkeypatch.setattr("gpudedup.planning.SAMPLE_BYTES", SAMPLE_BYTES)
    (tmp_path / "tmp").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    before = listing(tmp_path), listing(large[0])
    plan = make_plan(large[0] / name, tmp_path / "new" / "out", tmp=str(tmp_path / "tmp"))
    assert (listing(tmp_path), listing(large[0])) == before
    assert plan.output_free_bytes > 0
    assert plan.output_bytes == plan.stored_bytes


# Edges


@pytest.mark.parametrize("name", NAMES[:-1])
def test_empty_input(tmp_path: Path, name: str) -> None:
    if name.startswith(("a.parquet", "a.arrow")):
        empty = pa.table({"text": pa.array([], pa.string()), "source": pa.array([], pa.string())})
        writer = pq.write_table if name.endswith("parquet") else pyarrow.feather.write_feather
        writer(empty, tmp_path / name)
    else:
        write(tmp_path / name, [])
    plan = make_plan(tmp_path / name)
    nothing = Estimate(value=0, spread=0, counted=True)
    assert (plan.documents, plan.text_bytes, plan.sample_exact) == (nothing, nothing, 0)


def test_no_file_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError):
        make_plan(tmp_path / "a.parquet")
    plan = make_plan(tmp_path / "a.parquet", on_error="skip")
    assert (plan.files, plan.documents.value) == (0, 0)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "options", [{"text_column": "body"}, {"within": "nowhere"}, {"keep": "min:nowhere"}, {"guard_column": "nowhere"}]
)
def test_missing_columns_are_the_errors_of_run(
    large: tuple[Path, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: dict[str, Any],
    sampled: bool,
) -> None:
    if name == "texts" and "text_column" in options:
        pytest.skip("plain text has any text column")
    if sampled:
        monkeypatch.setattr("gpudedup.planning.SAMPLE_BYTES", SAMPLE_BYTES)
    with pytest.raises(InputError) as of_run:
        gpudedup.run(large[0] / name, tmp_path / "out", **options)
    with pytest.raises(InputError) as of_plan:
        make_plan(large[0] / name, **options)
    assert str(of_plan.value).replace(" (a sample)", "") == str(of_run.value)


def test_wrong_parameters(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", ["one", "two"])
    for options, error in (
        ({"threshold": 2}, ParameterError),
        ({"output": "some"}, ParameterError),
        ({"engine": "cloud"}, ParameterError),
        ({"shingle": "tokens:5"}, InputError),
    ):
        with pytest.raises(error):
            make_plan(path, **options)
    with pytest.raises(InputError):
        make_plan(tmp_path / "gone.jsonl")


def test_warnings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", texts(50, 3))
    assert make_plan(path).warnings == []
    monkeypatch.setattr("gpudedup.planning.free_bytes", lambda path: 10)
    monkeypatch.setattr("gpudedup.planning.available_memory_bytes", lambda: 10)
    warnings = make_plan(path).warnings
    assert len(warnings) == 2
    assert "lower memory" in warnings[0]
    assert 'output="mask"' in warnings[1]


@pytest.mark.usefixtures("small_samples")
def test_a_damaged_line_in_a_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", texts(1500, 5))
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join(b"{" if i % 5 == 4 else line for i, line in enumerate(lines)))
    with pytest.raises(InputError, match=r"a\.jsonl \(a sample\) line"):
        make_plan(path)
    plan = make_plan(path, on_error="skip")
    assert holds(plan.documents, 1200), plan.documents
