"""Chains of runs: what earlier runs kept ranks first and stays. Against the reference, and what cannot be compared."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from forged import edit
from hypothesis import given, settings
from hypothesis import strategies as st

import gpudedup
from gpudedup import ArtefactError, InputError, ParameterError
from gpudedup.explain import example_pairs, explain

WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "中", "文", "ñandú", "X1", "說", "说"]
COLUMNS = {"id": pa.string(), "k": pa.float64(), "s": pa.string(), "w": pa.int64(), "x": pa.string()}
"""For ids, keep by value, keep by source, within and across."""

Originals = Sequence[Sequence[str]]


def some_originals(rng: random.Random, count: int = 8) -> Originals:
    return [[rng.choice(WORDS) for _ in range(rng.choice([0, 1, 3, 5, 8, 30, 60]))] for _ in range(count)]


def near_copies(rng: random.Random, originals: Originals, size: int) -> list[str | None]:
    """Changed a little, some null or in upper case."""
    texts: list[str | None] = []
    for _ in range(size):
        words = list(rng.choice(originals))
        for _ in range(rng.choice([0, 0, 1, 2, 4])):
            if words:
                words[rng.randrange(len(words))] = rng.choice(WORDS)
        text = " ".join(words)
        texts.append(None if rng.random() < 0.03 else text.upper() if rng.random() < 0.2 else text)
    return texts


@dataclass
class Crawl:
    """A corpus, how it is to be deduplicated, and what the reference says of it."""

    texts: list[str | None]
    columns: dict[str, list[Any]]
    options: dict[str, Any]
    against: list[Crawl] = field(default_factory=list)
    format: str = "parquet"
    text_column: str = "text"
    cuts: list[int] = field(default_factory=list)
    """Where its files begin, but the first."""
    files: list[Path] = field(default_factory=list)
    out: Path = Path()

    @classmethod
    def draw(cls, rng: random.Random, originals: Originals, size: int, **fields: Any) -> Crawl:
        columns = {
            "id": [rng.choice([f"id{row}", None]) for row in range(size)],
            "k": [rng.choice([1.5, -2.0, None, 3.0]) for _ in range(size)],
            "s": [rng.choice(["a", "b", "c", None]) for _ in range(size)],
            "w": [rng.choice([1, 2, -5, None]) for _ in range(size)],
            "x": [rng.choice(["train", "test", None]) for _ in range(size)],
        }
        cuts = sorted(rng.randrange(size + 1) for _ in range(rng.choice([0, 0, 1, 2])))
        return cls(near_copies(rng, originals, size), columns, cuts=cuts, **fields)

    # ---- what the reference says ----

    def _column(self, name: str | None, crawl: Crawl | None = None) -> list[Any] | None:
        return None if name is None else (crawl or self).columns[name]

    @property
    def expected(self) -> reference.Result:
        options = dict(self.options)
        keep = options.pop("keep", "first")
        within, across = options.pop("within", None), options.pop("across", None)
        options.pop("id_column", None)
        before = self.earlier

        def of_earlier(name: str | None) -> list[Any] | None:
            return None if name is None else [crawl.columns[name][row] for crawl, row in before]

        return reference.deduplicate(
            self.texts,
            keep=keep,
            keep_values=self._keep_values(keep),
            within=self._column(within),
            across=self._column(across),
            against=[crawl.texts[row] for crawl, row in before],
            against_within=of_earlier(within),
            against_across=of_earlier(across),
            **options,
        )

    def _keep_values(self, keep: str) -> list[Any] | None:
        return self.columns[keep.partition(":")[2].partition("=")[0]] if ":" in keep else None

    @property
    def earlier(self) -> list[tuple[Crawl, int]]:
        """(crawl, row) of all documents that this one is compared with, by rank."""
        return [(crawl, row) for crawl in self.against for row in crawl.kept_by_rank]

    @property
    def kept_by_rank(self) -> list[int]:
        keep = self.options.get("keep", "first")
        shingle, fold = self.options.get("shingle", "word:5"), self.options.get("fold", "full")
        counts = [len(reference.units(text, shingle, fold)) for text in self.texts]
        kept = self.expected.keep_mask
        return [row for row in reference.rank_order(keep, counts, self._keep_values(keep)) if kept[row]]

    def expected_rows(self) -> list[tuple[Any, ...]]:
        """(shard, row, id, reason, keeper_run, keeper_shard, keeper_row, keeper_id, similarity, cluster)."""
        found = []
        for r in self.expected.removed:
            run, keeper = None, (None, None, None)
            if r.keeper_row is not None:
                crawl, row = (self, r.keeper_row) if r.keeper_row >= 0 else self.earlier[-1 - r.keeper_row]
                run = None if crawl is self else str(crawl.out)
                keeper = (*crawl.place(row), crawl.id_of(row) if "id_column" in self.options else None)
            own_id = self.id_of(r.row)
            found.append((*self.place(r.row), own_id, r.reason, run, *keeper, r.similarity, r.cluster))
        return found

    def id_of(self, row: int) -> Any:
        return self.columns["id"][row] if "id_column" in self.options else None

    def place(self, row: int) -> tuple[str, int]:
        first, file = 0, 0
        for number, cut in enumerate(self.cuts, start=1):
            if row >= cut:
                first, file = cut, number
        return str(self.files[file]), row - first

    # ---- what gpudedup makes of it ----

    def table(self) -> pa.Table:
        columns = {self.text_column: pa.array(self.texts, pa.string())}
        columns |= {name: pa.array(self.columns[name], kind) for name, kind in COLUMNS.items()}
        return pa.table(columns)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        ends = [*self.cuts, len(self.texts)]
        if self.format == "text":
            self.cuts = list(range(1, len(self.texts)))
            ends = [*self.cuts, len(self.texts)]
        first = 0
        for number, last in enumerate(ends):
            rows = self.table().slice(first, last - first)
            suffix = {"parquet": ".parquet", "jsonl": ".jsonl", "text": ".txt"}[self.format]
            path = folder / f"{number:04}{suffix}"
            if self.format == "parquet":
                pq.write_table(rows, path, row_group_size=7)
            elif self.format == "jsonl":
                path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_pylist()), encoding="utf-8")
            else:
                path.write_text(rows[self.text_column][0].as_py() or "", encoding="utf-8")
            self.files.append(path)
            first = last

    def run(self, folder: Path, **more: Any) -> gpudedup.Run:
        if not self.files:
            self.write(folder / "in")
        self.out = folder / "out"
        options = {"against": [crawl.out for crawl in self.against], "text_column": self.text_column}
        return gpudedup.run(self.files, self.out, **{**options, **self.options, **more})


NAMES = ["shard", "row", "id", "reason", "keeper_run", "keeper_shard", "keeper_row", "keeper_id"]
NAMES += ["similarity", "cluster"]


def rows_of(removed: pa.Table) -> list[tuple[Any, ...]]:
    columns = [removed[name].to_pylist() if name in removed.column_names else [None] * len(removed) for name in NAMES]
    return list(zip(*columns, strict=True))


def kept_texts(run: gpudedup.Run, column: str) -> list[str | None]:
    texts: list[str | None] = []
    for path in run.kept:
        if path.suffix == ".parquet":
            texts += pq.read_table(path)[column].to_pylist()
        elif path.suffix == ".jsonl":
            texts += [json.loads(line)[column] for line in path.read_text("utf-8").splitlines()]
        else:
            texts.append(path.read_text("utf-8"))
    return texts


def assert_as_expected(run: gpudedup.Run, crawl: Crawl) -> None:
    assert rows_of(run.removed) == crawl.expected_rows()
    kept = [text for text, keep in zip(crawl.texts, crawl.expected.keep_mask, strict=True) if keep]
    if crawl.format == "text":
        kept = [text or "" for text in kept]
    if run.manifest.output == "kept":
        assert kept_texts(run, crawl.text_column) == kept
    summary = run.summary()
    assert (summary.bounded_buckets, summary.bounded_documents, summary.longest_bucket) == crawl.expected.bounded


# ---- random chains against the reference ----


def random_shared(rng: random.Random) -> dict[str, Any]:
    """What all runs of a chain must have alike."""
    shared: dict[str, Any] = {
        "shingle": rng.choice(["word:5", "word:2", "char:4", "word:1"]),
        "num_perm": rng.choice([16, 60, 64]),
        "seed": rng.choice([0, 7]),
        "fold": rng.choice(["full", "case", "none"]),
        "bands": 8,
        "rows": rng.choice([1, 2]),
    }
    return shared


def random_options(rng: random.Random, format: str) -> dict[str, Any]:
    """What each run chooses for itself."""
    options: dict[str, Any] = {
        "threshold": rng.choice([0.3, 0.5, 0.7, 0.8, 1.0]),
        "verify": rng.choice(["exact", "exact", "signature", "none"]),
        "bucket_window": rng.choice([1, 2, 8, 64]),
        "clustering": rng.choice(["keepers", "keepers", "components"]),
        "drop_empty": rng.random() < 0.3,
        "keep": rng.choice(["first", "longest"]),
    }
    if format == "text":
        return options
    options["keep"] = rng.choice(["first", "longest", "max:k", "min:k", "sources:s=b,a"])
    for name, role, chance in (("id", "id_column", 0.5), ("w", "within", 0.3), ("x", "across", 0.3)):
        if rng.random() < chance:
            options[role] = name
    return options


def random_chain(rng: random.Random, formats: Sequence[str]) -> list[Crawl]:
    """Two to four crawls; each later one is compared with some of those before, in some order."""
    shared, originals = random_shared(rng), some_originals(rng)
    chain: list[Crawl] = []
    for _ in range(rng.choice([2, 2, 3, 4])):
        format = rng.choice(formats)
        size = rng.choice([1, 6, 25, 50])
        options = {**shared, **random_options(rng, format)}
        if chain and any(crawl.format == "text" for crawl in chain):  # those have no columns to compare by
            options = {name: value for name, value in options.items() if name not in ("within", "across")}
        before = rng.sample(chain, rng.randint(1, len(chain))) if chain else []
        crawl = Crawl.draw(rng, originals, size, options=options, against=before, format=format)
        if format != "text":
            crawl.text_column = rng.choice(["text", "body"])
        chain.append(crawl)
    return chain


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_chains_of_runs_equal_the_reference(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("chain")
    for number, crawl in enumerate(random_chain(rng, ["parquet", "parquet", "jsonl", "text"])):
        output = rng.choice(["kept", "kept", "mask", "none"])
        run = crawl.run(folder / str(number), workers=rng.choice([1, 2, 5]), output=output)
        assert_as_expected(run, crawl)
        assert run.audit().problems == []
        if output == "kept" and rng.random() < 0.3:  # what it kept is all that later ones have
            shutil.rmtree(folder / str(number) / "in")
    shutil.rmtree(folder)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_data_in_memory_equals_the_reference(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    rng = random.Random(seed)
    folder = tmp_path_factory.mktemp("chain")
    *before, last = random_chain(rng, ["parquet"])
    for number, crawl in enumerate(before):
        crawl.run(folder / str(number))
    last.cuts, last.files = [], [Path("")]
    options = {**last.options, "against": [crawl.out for crawl in last.against], "text_column": last.text_column}
    options |= {"keep_sets": rng.random() < 0.5, "workers": rng.choice([1, 3])}
    result = gpudedup.deduplicate(last.table(), **options)
    expected = last.expected
    pairs = result.candidates()
    assert set(zip(pairs["better"].to_pylist(), pairs["worse"].to_pylist(), strict=True)) == expected.candidates
    thresholds = [last.options["threshold"], *(t for t in (0.75, 0.9, 1.0) if t > last.options["threshold"])]
    for threshold in thresholds:
        result = result.at(threshold)  # the sources of earlier runs stay open for as long as any result needs them
        last.options["threshold"] = threshold
        at = expected.at(threshold)
        wanted = [(r.row, r.reason, r.keeper_row, r.similarity) for r in at.removed]
        found = zip(
            *(result.removed[name].to_pylist() for name in ("row", "reason", "cluster", "similarity")), strict=True
        )
        assert list(found) == wanted
        assert result.keep_mask.to_pylist() == at.keep_mask
        clusters = {(r.cluster, r.row, r.similarity) for r in at.removed if r.cluster is not None} | {
            (r.cluster, r.cluster, None) for r in at.removed if r.cluster is not None
        }
        assert set(zip(*(column.to_pylist() for column in result.clusters().columns), strict=True)) == clusters
    shutil.rmtree(folder)


# ---- one rule at a time ----

LINE = "the harbour office keeps a ledger of every boat that enters before noon and the clerk signs each line"


def words(*changes: tuple[int, str]) -> str:
    text = LINE.split()
    for place, word in changes:
        text[place] = word
    return " ".join(text)


def write(path: Path, texts: list[str | None], **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts, **columns}), path)
    return path


Make = Callable[..., gpudedup.Run]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Runs over one file of texts, in a directory of the given name."""

    def run(name: str, texts: list[str | None], columns: dict[str, Any] | None = None, **options: Any) -> gpudedup.Run:
        path = write(tmp_path / f"{name}-in" / f"{name}.parquet", texts, **(columns or {}))
        return gpudedup.run(path, tmp_path / name, **options)

    return run


def fates(removed: pa.Table) -> list[tuple[Any, ...]]:
    """(row, reason, name of the keeper's run, keeper row, cluster)."""
    return [
        (row, reason, run and Path(run).name, keeper, cluster)
        for _, row, _, reason, run, _, keeper, _, _, cluster in rows_of(removed)
    ]


def test_months(make: Make) -> None:
    """January; February against it; March against both: each text stays where it came first."""
    january = make("january", [words(), "nothing like it"])
    february = make("february", [words((0, "a")), "one that is new in february"], against=january.path)
    assert fates(february.removed) == [(0, "near", "january", 0, -1)]
    march = make(
        "march",
        ["One that is new in February!", words((0, "a")), "only in march"],
        against=[january.path, str(february.path)],
    )
    assert fates(march.removed) == [(0, "exact", "february", 1, -3), (1, "near", "january", 0, -1)]
    assert march.removed.column_names == [*NAMES[:2], *NAMES[3:7], *NAMES[8:]], "without an id column no ids"
    assert [(each.path, each.documents) for each in march.manifest.against] == [
        (str(january.path), 2),
        (str(february.path), 1),
    ]
    alone = make("alone", ["x", "X"])
    assert "keeper_run" not in alone.removed.column_names
    assert alone.manifest.against == []


def test_what_an_earlier_run_removed_is_not_compared_with(make: Make) -> None:
    """A chain of three: the middle one was removed for the first, so the third has no keeper."""
    first, middle, last = words(), words((3, "x"), (9, "y")), words((3, "x"), (9, "y"), (15, "z"))
    options = {"shingle": "word:1", "threshold": 0.75}
    assert fates(make("whole", [middle, last], **options).removed) == [(1, "near", None, 0, 0)]
    earlier = make("earlier", [first, middle], **options)
    assert fates(earlier.removed) == [(1, "near", None, 0, 0)]
    assert len(make("later", [last], against=earlier.path, **options).removed) == 0


@pytest.mark.parametrize(
    ("keep", "columns", "keeper"),
    [
        ("first", {}, 0),
        ("longest", {}, 1),
        ("max:score", {"score": [1.0, 2.0, 3.0]}, 2),
        ("min:score", {"score": [2.0, 1.0, None]}, 1),
        ("sources:site=b,a", {"site": ["x", "a", "b"]}, 2),
    ],
)
def test_the_rank_of_the_earlier_run_decides_between_its_documents(
    make: Make, keep: str, columns: dict[str, Any], keeper: int
) -> None:
    """Three kept texts, each similar enough to the new one at a lower threshold than they were compared at."""
    texts = [words((2, "a")), words((8, "b")) + " today", words((14, "c"))]
    shared = {"shingle": "word:1", "bands": 64, "rows": 1}
    earlier = make("earlier", texts, columns, keep=keep, threshold=0.99, **shared)
    assert earlier.summary().kept == 3
    later = make("later", [words()], threshold=0.5, against=earlier.path, keep="first", **shared)
    place = {0: [0, 1, 2], 1: [1, 0, 2], 2: [2, 0, 1]}[keeper].index(keeper)
    assert fates(later.removed) == [(0, "near", "earlier", keeper, -1 - place)]


def test_the_order_of_runs_is_a_rank(make: Make) -> None:
    a, b = make("a", [words()]), make("b", [words()])
    assert fates(make("ab", [words()], against=[a.path, b.path]).removed) == [(0, "exact", "a", 0, -1)]
    assert fates(make("ba", [words()], against=[b.path, a.path]).removed) == [(0, "exact", "b", 0, -1)]


def test_ids_of_earlier_runs(make: Make) -> None:
    named = make("named", [words()], {"doc": ["jan-1"]}, id_column="doc")
    nameless = make("nameless", ["a text about something else"])
    texts = [words(), "A TEXT about something else", "new", "new"]
    ids = {"id": pa.array(["mar-1", "mar-2", None, "mar-4"], pa.large_string())}
    found = make("found", texts, ids, id_column="id", against=[named.path, nameless.path]).removed
    assert found["id"].to_pylist() == ["mar-1", "mar-2", "mar-4"]
    assert found["keeper_id"].to_pylist() == ["jan-1", None, None]
    numbers = {"id": [1, 2, 3, 4]}
    with pytest.raises(ParameterError, match=r'column "id" is int64, and was string in the earlier run .*named'):
        make("refused", texts, numbers, id_column="id", against=[named.path])
    assert gpudedup.status(nameless.path).state == "complete"


def test_train_against_eval(make: Make) -> None:
    """What is in a set for evaluation goes from the training set, and nothing else for it."""
    questions = make("eval", ["what is the ledger of the harbour for", "who signs each line of it"], output="none")
    train = make("train", ["Who signs each line of it?", words(), words()], against=questions.path)
    assert fates(train.removed) == [(0, "exact", "eval", 1, -2), (2, "exact", None, 1, 1)]


@pytest.mark.parametrize("role", ["within", "across"])
def test_a_column_that_the_earlier_run_did_not_carry(make: Make, role: str) -> None:
    """It is read from the input of the earlier run; binary and string values are compared by bytes."""
    columns = {"lang": ["en", "fr", None]}
    shared = {"shingle": "word:1", "bands": 18, "rows": 7}
    earlier = make("earlier", [words(), words((3, "x")), words((9, "y"))], columns, threshold=0.9, **shared)
    values = {"lang": pa.array([b"fr", b"\xff", None], pa.binary())}
    options = {**shared, "threshold": 0.5, role: "lang"}
    later = make("later", [words(), words(), words()], values, against=earlier.path, **options)
    keepers = {"within": [(0, 1), (2, 2)], "across": [(0, 0), (1, 0), (2, 0)]}[role]
    assert [(row, keeper) for row, _, run, keeper, _ in fates(later.removed) if run] == keepers


def test_a_scope_of_another_type(make: Make) -> None:
    earlier = make("earlier", [words()], {"year": [2024]})
    with pytest.raises(ParameterError, match=r'column "year" is string, and was int64 in the earlier run .*earlier'):
        make("later", [words()], {"year": ["2024"]}, within="year", against=earlier.path)
    with pytest.raises(InputError, match="month"):
        make("other", [words()], {"month": [1]}, within="month", against=earlier.path)
    nulls = make("nulls", [words()], {"year": [None]}, within="year", against=earlier.path)
    assert len(nulls.removed) == 0


# ---- where the texts are ----


def similar_to_kept(make: Make, earlier: gpudedup.Run, **options: Any) -> list[tuple[Any, ...]]:
    later = make("later", [words((18, "x")), "new"], against=earlier.path, **options)
    return fates(later.removed)


EARLIER = ["removed soon", "Removed, soon", words(), "last"]
FOUND = [(0, "near", "earlier", 2, -2)]


@pytest.mark.parametrize("change", ["gone", "changed", "touched", "cut"])
@pytest.mark.parametrize("output", ["kept", "mask", "none"])
def test_the_input_of_the_earlier_run_afterwards(make: Make, tmp_path: Path, output: str, change: str) -> None:
    earlier = make("earlier", EARLIER, output=output)
    (path,) = (tmp_path / "earlier-in").iterdir()
    if change == "gone":
        path.unlink()
    elif change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        write(path, [*EARLIER[:2], "something else altogether", "last"])
    if output == "kept" or change == "touched":
        assert similar_to_kept(make, earlier) == FOUND
        return
    with pytest.raises(
        InputError, match=r"the text of the earlier run .*earlier is gone.*verify=\"signature\""
    ) as raised:
        similar_to_kept(make, earlier)
    assert raised.value.exit_code == 3
    shutil.rmtree(tmp_path / "later")
    assert similar_to_kept(make, earlier, verify="signature") == FOUND


def test_damaged_kept_texts_are_not_compared_with(make: Make, tmp_path: Path) -> None:
    earlier = make("earlier", EARLIER)
    shutil.rmtree(tmp_path / "earlier-in")
    (path,) = (earlier.path / "kept").iterdir()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ArtefactError, match=r"has checksum .* but manifest.json says"):
        similar_to_kept(make, earlier)


# ---- what cannot be compared with ----


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ({"fold": "case"}, {}, "fold=case, this one full"),
        ({"shingle": "word:3"}, {}, "shingle=word:3, this one word:5"),
        ({"num_perm": 64, "bands": 8, "rows": 4}, {"bands": 8, "rows": 4}, "num_perm=64, this one 128"),
        ({"seed": 7}, {}, "seed=7, this one 0"),
        ({"threshold": 0.7}, {}, "bands=25, this one 18"),
        ({"bands": 18, "rows": 5}, {}, "rows=5, this one 7"),
    ],
)
def test_runs_that_were_signed_in_another_way(
    make: Make, tmp_path: Path, then: dict[str, Any], now: dict[str, Any], said: str
) -> None:
    earlier = make("earlier", [words()], **then)
    with pytest.raises(ArtefactError, match=f"the earlier run .*earlier has {said}; they cannot be compared") as raised:
        make("later", [words()], against=earlier.path, **now)
    assert raised.value.exit_code == 4
    assert not (tmp_path / "later").exists(), "nothing was begun"
    with pytest.raises(ArtefactError, match=said):
        gpudedup.deduplicate([words()], against=[earlier.path], **now)


def test_runs_of_another_spec(make: Make) -> None:
    earlier = make("earlier", [words()])
    edit(earlier.path / "manifest.json", lambda manifest: manifest.update(spec=2))
    with pytest.raises(ArtefactError, match="spec=2, this one 1"):
        make("later", [words()], against=earlier.path)


def test_runs_that_are_no_finished_runs(make: Make, tmp_path: Path) -> None:
    path = write(tmp_path / "in" / "a.parquet", [words()])
    gpudedup.begin(path, tmp_path / "unfinished")
    with pytest.raises(ArtefactError, match="in state 'unfinished', not \"complete\"; finish the run"):
        gpudedup.deduplicate([words()], against=tmp_path / "unfinished")
    gpudedup.deduplicate([words()]).save(tmp_path / "saved")
    with pytest.raises(ArtefactError, match=r"saved holds no signatures .* it was saved from memory"):
        gpudedup.deduplicate([words()], against=tmp_path / "saved")
    for name in ("nowhere", "in"):
        with pytest.raises(ArtefactError, match=f"{name} holds no finished run"):
            gpudedup.deduplicate([words()], against=tmp_path / name)


@pytest.mark.parametrize("folder", ["signatures", "columns", "decide", "done/sign", "done/columns", "done/decide"])
@pytest.mark.parametrize("damage", ["flip", "cut", "missing"])
def test_damaged_earlier_runs(make: Make, folder: str, damage: str) -> None:
    earlier = make("earlier", [words(), words()], {"id": ["x", "y"]}, id_column="id")
    (path,) = (earlier.path / folder).iterdir()
    whole = path.read_bytes()
    if damage == "flip":
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    else:
        path.unlink()
    with pytest.raises(ArtefactError, match=str(earlier.path)) as raised:
        make("later", [words()], against=earlier.path)
    assert raised.value.exit_code == 4


def test_this_run_itself_and_a_run_named_twice(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make("own", [words()])
    make("other", [words()])
    for name in ("own", tmp_path / "own", "own/../own"):
        with pytest.raises(ParameterError, match="this run itself"):
            gpudedup.advance("own", "match", against=[name])
    (tmp_path / "link").symlink_to(tmp_path / "other")
    for names in (["other", "other"], ["other", "./other"], ["other", tmp_path / "link"]):
        with pytest.raises(ParameterError, match="names a run twice"):
            gpudedup.deduplicate([words()], against=names)
    with pytest.raises(ParameterError, match="against must be"):
        gpudedup.deduplicate([words()], against=[3])


# ---- a run that goes on, or is decided anew ----


def artefacts(path: Path) -> dict[str, bytes]:
    """The bytes of all results and working artefacts."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in path.rglob("*")
        if file.is_file() and file.relative_to(path).parts[0] not in ("manifest.json", "done")
    }


def month(seed: int, name: str, **options: Any) -> Crawl:
    rng = random.Random(seed)
    crawl = Crawl.draw(rng, some_originals(random.Random(3)), 60, options={**options, "shingle": "word:2"})
    crawl.options |= {"bands": 16, "rows": 2, "num_perm": 32, "id_column": "id"}
    return crawl


@pytest.fixture
def months(tmp_path: Path) -> list[Crawl]:
    """Two crawls that were run, the second against the first."""
    first, second = month(1, "first", keep="longest", threshold=0.9), month(2, "second", threshold=0.8)
    second.against = [first]
    for number, crawl in enumerate((first, second)):
        assert_as_expected(crawl.run(tmp_path / str(number)), crawl)
    return [first, second]


STAGES = ("sign", "match", "verify", "decide", "apply")


@pytest.mark.parametrize("stage", STAGES[:-1])
def test_a_run_that_is_continued_after_any_stage(months: list[Crawl], tmp_path: Path, stage: str) -> None:
    """The same bytes as of a run that was not stopped."""
    crawl = month(5, "third", within="w", threshold=0.5)
    crawl.against = months
    whole = crawl.run(tmp_path / "whole")
    assert_as_expected(whole, crawl)
    out = tmp_path / "parts"
    options = {**crawl.options, "against": [str(each.out) for each in months]}
    gpudedup.begin(crawl.files, out, **options)
    for each in STAGES[1 : STAGES.index(stage) + 1]:
        gpudedup.advance(out, each)
    gpudedup.run(crawl.files, out, **options)
    assert artefacts(out) == artefacts(whole.path)


def test_decided_anew(months: list[Crawl], tmp_path: Path) -> None:
    """Another threshold, keep and scope, and against more or fewer runs: nothing is signed again."""
    crawl = month(6, "third", threshold=0.4)
    crawl.against = [months[0]]
    run = crawl.run(tmp_path / "third")
    signatures = (run.path / "signatures" / "000000.arrow").stat().st_mtime_ns
    for change in ({"keep": "max:k"}, {"within": "w"}, {"keep": "longest", "within": None, "across": "x"}):
        crawl.options |= change
        gpudedup.advance(run.path, "match", **change)
        gpudedup.advance(run.path, "apply")
        assert_as_expected(gpudedup.Run.open(run.path), crawl)
    for against in ([months[1]], months, []):
        crawl.against = against
        gpudedup.advance(run.path, "match", against=[str(each.out) for each in against])
        gpudedup.advance(run.path, "apply")
        assert_as_expected(gpudedup.Run.open(run.path), crawl)
    crawl.against = months
    gpudedup.advance(run.path, "match", against=[each.out for each in months])
    for threshold in (0.6, 0.9):
        crawl.options["threshold"] = threshold
        gpudedup.advance(run.path, "verify", threshold=threshold)
        gpudedup.advance(run.path, "apply")
        expected = month(6, "third", **{**crawl.options, "threshold": 0.4})
        expected.against, expected.files, expected.out = months, crawl.files, crawl.out
        at = expected.expected.at(threshold)
        found = gpudedup.Run.open(run.path).removed
        wanted = [(r.row, r.reason, r.similarity, r.cluster) for r in at.removed]
        assert [(row[1], row[3], *row[8:]) for row in rows_of(found)] == wanted
    assert (run.path / "signatures" / "000000.arrow").stat().st_mtime_ns == signatures


@pytest.mark.parametrize("change", ["decided anew", "made anew of other texts", "named by other ids"])
def test_an_earlier_run_that_is_another_now(months: list[Crawl], tmp_path: Path, change: str) -> None:
    """What followed from the old one is not used: neither of a finished run, nor of one that was stopped on the way."""
    first, _ = months
    later = [month(7, "finished", threshold=0.4), month(7, "stopped", threshold=0.4)]
    for crawl in later:
        crawl.against = [first]
        crawl.write(tmp_path / "in" / str(id(crawl)))
    finished, stopped = later
    finished.run(tmp_path / "finished")
    options = {**stopped.options, "against": [first.out], "threshold": 0.4}
    gpudedup.begin(stopped.files, tmp_path / "stopped" / "out", **options)
    gpudedup.advance(tmp_path / "stopped" / "out", "verify")
    if change == "decided anew":
        first.options["threshold"] = 1.0
        gpudedup.advance(first.out, "verify", threshold=1.0)
        gpudedup.advance(first.out, "apply")
    elif change == "named by other ids":
        first.columns["id"] = first.columns["s"]
        gpudedup.advance(first.out, "match", id_column="s")
        gpudedup.advance(first.out, "apply")
    else:
        first.texts = [text and text.replace("alpha", "gamma").replace("beta", "zeta") for text in first.texts]
        shutil.rmtree(first.out)
        shutil.rmtree(first.files[0].parent)
        first.files = []
        first.run(first.out.parent)
    for crawl, name in zip(later, ("finished", "stopped"), strict=True):
        run = crawl.run(tmp_path / name)
        assert_as_expected(run, crawl)
        fresh = crawl.run(tmp_path / f"{name} again")
        assert artefacts(run.path) == artefacts(fresh.path)


# ---- explained ----


@pytest.mark.parametrize("format", ["parquet", "jsonl", "text"])
@pytest.mark.parametrize("input_gone", [False, True])
def test_explain_a_keeper_of_an_earlier_run(tmp_path: Path, format: str, input_gone: bool) -> None:
    """Its text comes from the earlier run: from its input, or, that gone, from what it kept behind its removals."""
    earlier = Crawl(["gone", "Gone!", "", words(), "last"], {}, {"drop_empty": True}, format=format)
    later = Crawl([words((18, "x")), "other", "LAST"], {}, {}, against=[earlier], format=format)
    for crawl in (earlier, later):
        crawl.columns = {name: [None] * len(crawl.texts) for name in COLUMNS}
        crawl.columns["id"] = [f"doc-{row}" for row in range(len(crawl.texts))]
        crawl.options |= {} if format == "text" else {"id_column": "id"}
    earlier.run(tmp_path / "earlier")
    run = later.run(tmp_path / "later")
    if input_gone:
        shutil.rmtree(tmp_path / "earlier" / "in")
    shard, row = later.place(0)
    found = explain(run, f"{shard}:{row}")
    assert (found.status, found.reason, found.note) == ("removed", "near", None)
    assert found.document.text == later.texts[0]
    assert found.keeper is not None
    keeper_shard, keeper_row = earlier.place(3)
    named = (found.keeper.run, found.keeper.shard, found.keeper.row, found.keeper.id, found.keeper.text)
    assert named == (str(earlier.out), keeper_shard, keeper_row, earlier.id_of(3), words())
    assert "of an earlier run, whose documents rank first" in found.rule
    exact = explain(run, "{}:{}".format(*later.place(2)))
    assert (exact.reason, exact.keeper and exact.keeper.text) == ("exact", "last")
    (example,) = example_pairs(run, 3)
    assert (example.document, example.keeper) == (found.document, found.keeper)
    if not input_gone:
        kept = explain(gpudedup.Run.open(earlier.out), f"{keeper_shard}:{keeper_row}")
        assert (kept.status, kept.removed_for_it, kept.document.run) == ("kept", [], None)


@pytest.mark.parametrize("verb", ["run", "explain"])
def test_keepers_of_earlier_runs_on_the_command_line(make: Make, tmp_path: Path, verb: str) -> None:
    earlier = make("earlier", [words()], {"id": ["jan-1"]}, id_column="id")
    path = write(tmp_path / "in" / "a.parquet", ["new", words((18, "page"))], id=["feb-1", "feb-2"])
    options = ["-o", f"{tmp_path}/out", "--against", str(earlier.path), "--id-column", "id"]
    said = command("run", str(path), *options)
    if verb == "explain":
        said = command("explain", f"{tmp_path}/out", "feb-2")
        assert "[-page-]{+line+}" in said
    assert f"earlier.parquet:0 (id jan-1) of the earlier run {earlier.path}" in said


def command(*arguments: str) -> str:
    """What the command prints, without line breaks."""
    code = "from gpudedup.cli import main; main()"
    environment = {**os.environ, "COLUMNS": "300"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())


def test_explain_what_an_earlier_run_no_longer_has(make: Make, tmp_path: Path) -> None:
    earlier = make("earlier", ["two of", "Two of", words()])
    later = make("later", [words((18, "x"))], against=earlier.path)
    gpudedup.advance(earlier.path, "decide", drop_empty=True)
    gpudedup.advance(earlier.path, "apply")
    found = explain(later, 0)
    assert found.note is not None
    assert "was decided or made anew since" in found.note
    shutil.rmtree(earlier.path)
    found = explain(later, 0)
    assert found.note is not None
    assert "holds no finished run" in found.note
    assert found.keeper is not None
    assert (found.document.text, found.keeper.text) == (words((18, "x")), None)


def test_ids_mean_documents_of_the_run_itself(make: Make) -> None:
    """The place of a keeper in an earlier run may exist here too, for another document."""
    earlier = make("earlier", [words()], {"id": ["january"]}, id_column="id")
    texts = ["of its own", "OF its own", words(), "more"]
    ids = {"id": ["a", "b", "c", "d"]}
    later = make("later", texts, ids, id_column="id", against=earlier.path)
    with pytest.raises(ParameterError, match="names no document"):
        explain(later, "january")
    found = explain(later, "a")
    assert [each.document.id for each in found.removed_for_it] == ["b"]
    assert (found.document.row, found.document.id) == (0, "a")


def test_relative_paths_of_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin where the run was made, wherever it is asked about."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "january.parquet", [words()])
    write(tmp_path / "february.parquet", [words((18, "x"))])
    gpudedup.run("january.parquet", "january")
    february = gpudedup.run(tmp_path / "february.parquet", "february", against="january")
    assert february.removed["keeper_run"].to_pylist() == ["january"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = explain(gpudedup.Run.open(tmp_path / "february"), 0)
    assert found.keeper is not None
    assert (found.keeper.run, found.keeper.text) == ("january", words())
    with pytest.raises(ArtefactError, match=f"begin in {tmp_path}"):
        gpudedup.advance(tmp_path / "february", "apply")
