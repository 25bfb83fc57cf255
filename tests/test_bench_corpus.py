"""The corpora of `gpudedup bench`: bytes of the seed alone, copies that are what they say, strangers that are none."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
import truth

from gpudedup.bench import corpus, noise, words

ROOT = Path(__file__).resolve().parent.parent
SIZE = 1_200_000


def make(out: Path, **options: object) -> Path:
    settings: dict[str, object] = {"text_bytes": SIZE, "shard_bytes": 400_000, "processes": 1}
    corpus.make_corpus(out, **{**settings, **options})  # type: ignore[arg-type]
    return out


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def texts(folder: Path) -> list[str]:
    return [text for path in sorted(folder.glob("part-*.parquet")) for text in pq.read_table(path)["text"].to_pylist()]


def made_from_others(folder: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = pq.read_table(folder / "truth.parquet").to_pylist()
    return rows


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def jaccard(mixed: Path) -> list[tuple[str, float, float]]:
    """(kind, rate, Jaccard index with the origin) of what was made from others, by the reference's units."""
    documents, found, checked = texts(mixed), [], Counter[tuple[str, float]]()
    for row in made_from_others(mixed):
        kind, pair = (row["kind"], row["rate"]), (documents[row["id"]], documents[row["origin"]])
        if checked[kind] < 3 and max(map(len, pair)) < 10_000:  # the reference is slow
            checked[kind] += 1
            a, b = map(shingles, pair)
            found.append((*kind, len(a & b) / len(a | b)))
    return found


def shingles(text: str) -> set[tuple[str, ...]]:
    units = reference.units(text)
    return {tuple(units[i : i + 5]) for i in range(max(1, len(units) - 4))}


def test_the_same_bytes_from_any_number_of_processes(mixed: Path, tmp_path: Path) -> None:
    assert contents(make(tmp_path / "two", processes=2)) == contents(mixed)


def test_the_same_bytes_whatever_python_hashes(tmp_path: Path) -> None:
    made = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [sys.executable, "-m", "gpudedup.bench.corpus", str(out), "--gb", "0.0003", "--processes", "1"]
        subprocess.run(command, env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
        made.append(contents(out))
    assert made[0] == made[1]


def test_another_seed_is_another_corpus(mixed: Path, tmp_path: Path) -> None:
    other = make(tmp_path / "other", seed=2)
    assert not set(texts(other)) & set(texts(mixed))


def test_ids_number_the_documents(mixed: Path) -> None:
    ids = [i for path in sorted(mixed.glob("part-*.parquet")) for i in pq.read_table(path)["id"].to_pylist()]
    meta = json.loads((mixed / "meta.json").read_text())
    assert ids == list(range(meta["documents"]))
    assert meta["shards"] >= 3
    assert meta["copies"] == sum(meta["kinds"].values()) == len(made_from_others(mixed))
    assert SIZE * 0.7 < sum(len(text.encode()) for text in texts(mixed)) < SIZE * 1.4


def test_every_kind_is_made_from_an_earlier_document(mixed: Path) -> None:
    documents, rows = texts(mixed), made_from_others(mixed)
    assert {row["kind"] for row in rows} == set(corpus.KINDS)
    for row in rows:
        assert row["origin"] < row["id"]
        if row["kind"] == "exact":
            assert documents[row["id"]] == documents[row["origin"]]


def test_kinds_do_what_they_say(jaccard: list[tuple[str, float, float]]) -> None:
    def of(kind: str, least: float = 0, most: float = 1) -> list[float]:
        return [similarity for name, rate, similarity in jaccard if name == kind and least <= rate <= most]

    assert min(of("exact")) == 1
    assert min(of("format")) > 0.6  # all equal but where a blank parts what a separator had not
    assert np.median(of("format")) == 1
    assert max(of("embed")) < 0.95
    assert np.median(of("edit", most=0.011)) > 0.9
    assert np.median(of("edit", least=0.1)) < 0.6
    assert 0.15 < min(of("template")) < max(of("template")) < 0.9
    # A gap takes at most 5 shingles of its side with it.
    assert np.median(of("template", most=0.04)) > (1 - 5 * 0.03) / (1 + 5 * 0.03) - 0.1
    assert np.median(of("template", least=0.1)) < 0.6


def test_a_form_has_its_gaps_at_the_same_places(mixed: Path) -> None:
    """Any two documents of a template share what is no gap of theirs, and what is in the gaps is not alike."""
    rows = [row for row in made_from_others(mixed) if row["kind"] == "template"]
    (origin, _), *_ = Counter(row["origin"] for row in rows).most_common(1)
    documents = texts(mixed)
    filled = [documents[row["id"]].split() for row in rows if row["origin"] == origin]
    assert len(filled) >= 2
    form = documents[origin].split()
    gaps = [{place for place, (a, b) in enumerate(zip(one, form, strict=False)) if a != b} for one in filled]
    if all(len(one) == len(form) for one in filled):  # a language with blanks
        shared = len(gaps[0] & gaps[1]) / max(1, min(len(gaps[0]), len(gaps[1])))
        assert shared > 0.9
    assert len({" ".join(one) for one in filled}) == len(filled)


@pytest.mark.parametrize("mix", sorted(words.MIXES))
def test_strangers_are_no_copies(mix: str, tmp_path: Path) -> None:
    out = make(tmp_path / mix, mix_name=mix)
    planted = {row["id"] for row in made_from_others(out)}
    originals = [text for number, text in enumerate(texts(out)) if number not in planted]
    assert len(originals) > 100
    assert len(truth.similar_pairs(truth.read_corpus(originals), 100_000)) == 0  # none at J >= 0.1


@pytest.mark.parametrize(("mix", "least", "most"), [("english", 6.2, 7.0), ("chinese", 3.1, 3.6)])
def test_units_are_as_long_as_in_real_text(mix: str, least: float, most: float, tmp_path: Path) -> None:
    """English of the web takes about 6.5 bytes a unit, Chinese 3.3."""
    sample = texts(make(tmp_path, mix_name=mix, text_bytes=300_000, plain=True))[:40]
    size = sum(len(text.encode()) for text in sample)
    assert least < size / sum(len(reference.units(text)) for text in sample) < most


def test_words_are_as_frequent_as_in_real_text() -> None:
    pool = words.load_pool("english")
    drawn = pool.draw(0, noise.noise(5, 200_000))
    table = pq.read_table(words.WORDS).to_pylist()
    counts = {row["word"]: row["count"] for row in table if row["language"] == "en"}
    share = Counter(text.rstrip() for text in pool.pieces.take(pa.array(drawn)).to_pylist())
    total = sum(counts.values()) * (1 + words.INVENTED_SHARE)
    for word in sorted(counts, key=lambda word: -counts[word])[:20]:
        expected = counts[word] / total
        assert abs(share[word] / len(drawn) - expected) < 5 * (expected / len(drawn)) ** 0.5, word


def test_lengths_and_clusters(tmp_path: Path) -> None:
    """Of the plan of 2 GB: log-normal lengths of median 2 kB, sigma 1; sizes by a power law; documents of megabytes."""
    order = corpus.Order(str(tmp_path), 2_000_000_000, "english", 1, 128_000_000, plain=False)
    plan = corpus.make_plan(order, words.load_pool("english"))
    small = plan.length[(plan.size == 1) & (plan.length > 300) & (plan.length < 64_000)]
    assert 1900 < np.median(small) < 2300  # what is cut off at 300 lies below
    assert 0.85 < np.log(small).std() < 1.05
    large = plan.length[plan.length > 64_000]
    assert 15 <= len(large) <= 20
    assert large.min() >= 1_000_000
    assert large.max() <= 10_000_000
    power = plan.size[plan.size < 1000]
    zeta = sum(k**-2.7 for k in range(1, 100_000))
    for k in range(1, 5):
        expected = k**-2.7 / zeta
        assert abs((power == k).mean() - expected) < 5 * (expected / len(power)) ** 0.5
    assert (plan.size == 10_000).sum() == plan.documents // 100_000
    assert (plan.size == 1000).sum() >= plan.documents // 40_000 - 1


def test_scripts_are_converted(tmp_path: Path) -> None:
    """A whole repost of a Chinese text is in the other script, and the same text to the fold."""
    pool = words.load_pool("chinese")
    writer = corpus.Writer(corpus.Order(str(tmp_path), SIZE, "chinese", 1, SIZE, True), pool, None)  # type: ignore[arg-type]
    text = "".join(chr(code) for code in sorted(pool.traditional))
    changed = writer.change_text("repost", text, 1.0, pool.languages.index("zh"), 3)[: len(text)]
    assert sum(a != b for a, b in zip(text, changed, strict=True)) > 0.9 * len(text)
    assert reference.units(changed)[:50] == reference.units(text)[:50]


def test_joining_pieces_keeps_their_bytes() -> None:
    pieces = pa.array(["a ", "bc ", "", "déf"], pa.large_string())
    joined = corpus.join(pieces, np.array([3, 0, 1, 2], np.int32), np.array([2, 0, 2]))
    assert joined.to_pylist() == ["défa ", "", "bc "]


# ---------------------------------------------------------------------------------------------------------------- words


@pytest.fixture(scope="module")
def make_words() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_words", ROOT / "tools" / "make_words.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_words_are_those_of_the_texts(make_words: ModuleType) -> None:
    assert pq.read_table(words.WORDS).equals(make_words.make_words(), check_metadata=True), "run tools/make_words.py"


def test_the_words_are_a_bag() -> None:
    """Small, by language, most frequent first, each once: no order of a text is left."""
    assert words.WORDS.stat().st_size < 600_000
    rows = [(row["language"], -row["count"], row["word"]) for row in pq.read_table(words.WORDS).to_pylist()]
    assert rows == sorted(rows)
    assert len({(language, word) for language, _, word in rows}) == len(rows)
    assert not [word for _, _, word in rows if word.split() != [word]]
