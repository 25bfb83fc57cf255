"""Figures of quality against brute force and theory; peers run, judged, or listed with the reason why not."""

from __future__ import annotations

import itertools
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import gpudedup
from gpudedup.bench import quality
from gpudedup.bench.inputs import Inputs
from gpudedup.bench.peers import environments, run
from gpudedup.bench.peers.environments import OURS, Peer
from gpudedup.bench.quality import Judge
from gpudedup.bench.record import Record, to_line
from gpudedup.bench.suites import Device, Order
from gpudedup.bench.suites.quality import suite
from gpudedup.bench.summary import sections
from gpudedup.bench.truth import Pairs
from gpudedup.errors import BenchmarkError, OutputError, ParameterError
from gpudedup.params import Banding

# ------------------------------------------------------------------------------------------------ against brute force

DOCUMENTS = 9
EDGES = list(itertools.combinations(range(DOCUMENTS), 2))


def pairs_of(edges: set[tuple[int, int]]) -> Pairs:
    ordered = sorted(edges, key=lambda edge: (edge[1], edge[0]))
    i, j = (np.array([edge[side] for edge in ordered], np.int32) for side in (0, 1))
    return Pairs(i, j, np.full(len(i), 9, np.int32), np.full(len(i), 10, np.int32))


def greedy(edges: set[tuple[int, int]], among: set[int]) -> set[int]:
    """What spec 11 removes of some documents."""
    kept: set[int] = set()
    for document in sorted(among):
        if not any((other, document) in edges for other in kept):
            kept.add(document)
    return among - kept


@given(st.sets(st.sampled_from(EDGES)), st.sets(st.integers(0, DOCUMENTS - 1)))
@settings(max_examples=300, deadline=None)
def test_removals_are_judged_as_by_brute_force(edges: set[tuple[int, int]], removed: set[int]) -> None:
    everything = set(range(DOCUMENTS))
    exact, stay = greedy(edges, everything), everything - removed
    mask = np.isin(np.arange(DOCUMENTS), list(removed))
    judge = Judge(DOCUMENTS, pairs_of(edges))
    assert set(np.flatnonzero(judge.exact).tolist()) == exact

    both, found_alone, wanted_alone = judge.agreement(mask)
    assert (both, found_alone, wanted_alone) == (len(removed & exact), len(removed - exact), len(exact - removed))
    false = {d for d in removed if not any((min(d, s), max(d, s)) in edges for s in stay)}
    assert judge.false_removals(mask) == len(false)

    found = judge.figures(mask)
    precision = 1 - len(false) / len(removed) if removed else 1.0
    recall = 1 - len(greedy(edges, stay)) / len(exact) if exact else 1.0
    assert found["lenient_precision_share"] == pytest.approx(precision)
    assert found["lenient_recall_share"] == pytest.approx(recall)
    assert found["lenient_f1_share"] == pytest.approx(
        2 * precision * recall / (precision + recall) if precision + recall else 0
    )
    assert found["removed_count"] == len(removed)
    assert found["exact_removed_count"] == len(exact)


LABELS = st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 3)), min_size=1, max_size=12)


@given(LABELS)
@settings(max_examples=300, deadline=None)
def test_labels_are_compared_as_by_brute_force(rows: list[tuple[int, int]]) -> None:
    clusters, labels = (np.array([row[side] for row in rows]) for side in (0, 1))
    found = quality.label_figures(clusters, labels)
    known = [row for row in rows if row[1] >= 0]
    every = list(itertools.combinations(known, 2))
    ours = {n for n, (a, b) in enumerate(every) if a[0] == b[0]}
    wanted = {n for n, (a, b) in enumerate(every) if a[1] == b[1]}
    assert found["label_precision_share"] == (len(ours & wanted) / len(ours) if ours else 1)
    assert found["label_recall_share"] == (len(ours & wanted) / len(wanted) if wanted else 1)
    # the adjusted Rand index in the form of Hubert and Arabie over the table of pairs: a, b, c, d
    a, b, c = len(ours & wanted), len(ours - wanted), len(wanted - ours)
    d = len(every) - a - b - c
    below = (a + b) * (b + d) + (a + c) * (c + d)
    expected = 2 * (a * d - b * c) / below if below else 1.0
    assert found["adjusted_rand_index"] == pytest.approx(expected)


def test_known_adjusted_rand_index() -> None:
    # 15 pairs; together: 2 in both, 6 in the one, 3 in the other; chance 6 * 3 / 15
    found = quality.label_figures(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 0, 1, 1, 2, 2]))
    assert found["adjusted_rand_index"] == pytest.approx((2 - 1.2) / (4.5 - 1.2))


def test_a_source_is_lost_when_none_of_its_documents_stays() -> None:
    sources = np.array([0, 0, 1, 1, 2, -1])
    assert quality.sources_lost(sources, np.array([True, True, True, False, True, True])) == 2
    assert quality.sources_lost(sources, np.zeros(6, bool)) == 0


def test_unproven_removals_are_counted() -> None:
    pairs = pairs_of({(0, 2), (1, 3), (2, 3)})
    good = np.array([2, 3]), np.array([0, 1]), np.array([0.9, 0.9])
    assert quality.unproven(pairs, *good) == 0
    assert quality.unproven(pairs, good[0], good[1], np.array([0.9, 0.8])) == 1  # not its similarity
    assert quality.unproven(pairs, np.array([2, 3]), np.array([1, 1]), good[2]) == 1  # no similar pair
    assert quality.unproven(pairs, np.array([2, 3]), np.array([0, 2]), good[2]) == 1  # a keeper that goes
    assert quality.unproven(pairs_of(set()), *good) == 2


def test_recall_by_similarity_is_that_of_the_pairs_and_the_theory() -> None:
    similarity = np.array([0.501, 0.519, 0.9, 0.91, 1.0, 1.0])
    found = quality.recall_by_similarity(similarity, np.array([1, 0, 1, 1, 1, 1], bool), Banding(18, 7))
    assert found.pairs.tolist() == [2, 2, 2]
    assert found.found.tolist() == [1, 2, 2]
    curves = found.curves()
    assert curves["similarity"] == pytest.approx([0.51, 0.905, 1.0])
    assert curves["recall"] == [0.5, 1.0, 1.0]
    chance = [1 - (1 - s**7) ** 18 for s in similarity.tolist()]
    assert curves["theory"] == pytest.approx([sum(chance[k : k + 2]) / 2 for k in (0, 2, 4)])


def test_recall_follows_the_theory_on_drawn_candidates() -> None:
    rng = np.random.default_rng(3)
    similarity = rng.uniform(0.3, 1.0, 200_000)
    lanes = (rng.random((200_000, 8)) < similarity[:, None]).reshape(-1, 4, 2)  # 4 bands of 2: each lane agrees or not
    found = quality.recall_by_similarity(similarity, lanes.all(axis=2).any(axis=1), Banding(4, 2))
    spread = np.sqrt(found.theory * (1 - found.theory) / found.pairs)
    assert (np.abs(found.found / found.pairs - found.theory) <= 5 * spread + 1e-9).all()


# ------------------------------------------------------------------------------------------------------------ the suite


def order(folder: Path, **options: object) -> Order:
    settings: dict[str, object] = {"devices": (Device("cpu"),), "quick": True, "text_bytes": 300_000, "repeat": 1}
    return Order(folder=folder, **{**settings, **options})  # type: ignore[arg-type]


def test_the_suite_on_next_to_nothing(tmp_path: Path) -> None:
    (record,) = suite(order(tmp_path))
    assert record.case == "removals of mixed at t = 0.8"
    assert record.figures["false_removals_count"] == 0
    assert record.figures["precision_share"] > 0.9
    assert record.figures["exact_removed_count"] > 5
    assert 0 < record.figures["label_recall_share"] <= 1
    assert set(record.curves) == {"similarity", "recall", "theory", "pairs"}
    to_line(record)


def test_files_of_a_user_are_sets_with_their_labels_and_sources(tmp_path: Path) -> None:
    text = " ".join(f"word{k}" for k in range(60))
    body, label = [text, text + " more", "other", None], ["a", "a", "b", None]
    rows = {"body": body, "label": label, "source": ["x", "y", "y", "z"]}
    pq.write_table(pa.table(rows), tmp_path / "one.parquet")
    (tmp_path / "two.jsonl").write_text(json.dumps({"body": text}) + "\n" + json.dumps({"body": text.upper()}) + "\n")
    inputs = (str(tmp_path / "one.parquet"), str(tmp_path / "*.jsonl"))
    one, two, both = suite(order(tmp_path / "work", inputs=inputs, text_column="body"))
    assert (one.case, two.case) == ("removals of one at t = 0.8", "removals of two at t = 0.8")
    assert one.corpus is not None
    assert one.corpus.documents == 4
    assert one.figures["label_f1_share"] == 1
    assert one.figures["sources_lost_count"] == 0  # y has another document
    assert "label_f1_share" not in two.figures
    assert both.figures["f1_share"] == 1
    assert both.figures["promised_recall_share"] == 0.95


def test_a_wrong_removal_stops_the_suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpudedup.bench.suites import quality as own

    real = own._run

    def wrong(*arguments: object, **options: object) -> object:
        result = real(*arguments, **options)  # type: ignore[arg-type]
        if "verify" not in options:
            table = result.removed
            result.__dict__["removed"] = table.set_column(
                table.schema.get_field_index("similarity"), "similarity", pa.array([0.5] * len(table))
            )
        return result

    monkeypatch.setattr(own, "_run", wrong)
    with pytest.raises(BenchmarkError, match="are not what they say"):
        list(suite(order(tmp_path)))


LARGE = os.environ.get("GPUDEDUP_TEST_DATA")


@pytest.mark.large
@pytest.mark.skipif(not LARGE, reason="GPUDEDUP_TEST_DATA does not name a folder with larger sets")
@pytest.mark.parametrize("options", [{"threshold": 0.5, "shingle": "word:3"}, {}], ids=["published", "default"])
def test_planted_copies_of_a_published_experiment_are_found(options: dict[str, Any]) -> None:
    """McCormick, MinHash Tutorial with Python Code (2015), on the 2,500 articles of his repository: 20 planted copies,
    found by word 3-shingles with J > 0.5."""
    path = Path(LARGE or "") / "en_articles_plagiarised.parquet"
    if not path.exists():
        pytest.skip(f"{path.name} is not there")
    articles = pq.read_table(path)
    removed = gpudedup.deduplicate(articles, **options).removed
    clusters = np.arange(len(articles))
    clusters[removed["row"].to_numpy()] = removed["keeper_row"].to_numpy()
    _, labels = np.unique(articles["cluster"].to_pylist(), return_inverse=True)
    assert len(removed) == 20
    assert quality.label_figures(clusters, labels)["adjusted_rand_index"] == 1


# ----------------------------------------------------------------------------------------------------------- the peers

PROGRAM = """
import peer
{before}
def run(files, workers, seconds):
    with peer.Clock(seconds, "all"):
        ids = [i for place in peer.row_groups(files) for i in peer.read_group(place)[0]]
    {then}
    return ids, "as told"
peer.main(run)
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs that stand for peers, beside the real peer.py, and an environment that has them."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "peer.py").write_text((environments.PROGRAMS / "peer.py").read_text())
    monkeypatch.setattr(Peer, "program", property(lambda peer: folder / f"{peer.module}.py"))
    _environment(tmp_path / "peers" / "numpy")
    return folder


def _environment(folder: Path) -> None:
    """One that has what the tests have."""
    python = folder / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)


def corpus(folder: Path) -> Inputs:
    folder.mkdir()
    text = " ".join(f"word{k}" for k in range(60))
    parts = [(0, [text, text + " more", "other text"]), (3, ["that is all there is"])]
    files = tuple(str(folder / f"part-{number:05}.parquet") for number in range(len(parts)))
    for file, (first, texts) in zip(files, parts, strict=True):
        pq.write_table(pa.table({"id": list(range(first, first + len(texts))), "text": texts}), file)
    return Inputs("tiny", files, "text", 4, sum(len(text) for _, texts in parts for text in texts))


def table(tmp_path: Path, *peers: Peer, least: int = 0, **options: object) -> dict[str, Record]:
    """Records by case and program. least: bytes of text from which on programs are compared."""
    given = corpus(tmp_path / "corpus")
    part = Inputs("tiny", given.files[:1], "text", 3, given.text_bytes - len("that is all there is"))
    own = order(tmp_path, peers=tmp_path / "peers", **options)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patched:
        patched.setattr(run, "PEERS", peers)
        patched.setattr(run, "OURS", (peer("first", "all"), peer("lean", "all")))
        patched.setattr(run, "RATIO_BYTES", least)
        return {f"{one.case}/{one.program}": one for one in run.records(own, run.Corpora(given, part, given))}


def peer(name: str, module: str, **options: object) -> Peer:
    return Peer(name, "numpy", module, environment="numpy", **options)  # type: ignore[arg-type]


def test_every_peer_is_in_the_table_with_figures_or_a_reason(programs: Path, tmp_path: Path) -> None:
    (programs / "all.py").write_text(PROGRAM.format(before="", then=""))
    (programs / "good.py").write_text(PROGRAM.format(before="", then="ids.remove(1)"))
    (programs / "fails.py").write_text(PROGRAM.format(before="", then="raise MemoryError('no room for the index')"))
    (programs / "dies.py").write_text(PROGRAM.format(before="import os", then="os.kill(os.getpid(), 9)"))
    (programs / "silent.py").write_text("print('no JSON')")
    names = ("good", "fails", "dies", "silent")
    absent = Peer("absent", "no-such-package-here", "good")
    found = table(tmp_path, *(peer(name, name) for name in names), absent, peer("cuda", "good", gpu=True))
    of = {name: found[f"tiny/{name}"] for name in ("first", *names, "absent", "cuda")}

    good = of["good"]
    assert good.cannot is None
    assert good.version == np.__version__
    assert good.figures["f1_share"] == 1
    assert good.figures["removed_count"] == 1
    assert good.figures["text_megabytes_per_second"] > 0
    assert good.seconds is not None
    assert good.peak_bytes
    assert good.parameters["how"] == "as told"
    assert of["first"].figures["f1_share"] == 0  # it removes nothing
    assert "no room for the index" in (of["fails"].cannot or "")
    assert "SIGKILL" in (of["dies"].cannot or "")
    assert "cannot be read" in (of["silent"].cannot or "")
    assert "gpudedup bench peers --install" in (of["absent"].cannot or "")
    if environments.no_gpu():
        assert "needs an NVIDIA GPU" in (of["cuda"].cannot or "")
    best = found["tiny: gpudedup over the best of them/gpudedup"]
    assert best.parameters["fastest"] == "good"
    assert best.figures["speed_over_fastest_ratio"] == pytest.approx(
        of["first"].figures["text_megabytes_per_second"] / good.figures["text_megabytes_per_second"]
    )
    for record in found.values():
        to_line(record)

    (shown,) = sections(list(found.values()))
    assert [row[0].split()[0] for row in shown.table.rows] == ["no", "first", "lean", *names, "absent", "cuda"]
    said = "\n".join(shown.notes)
    assert "speed over fastest (good)" in said
    assert "good: as told" in said
    assert "not measured: dies, tiny" in said


def test_a_peer_that_takes_too_long_is_stopped(programs: Path, tmp_path: Path) -> None:
    (programs / "hangs.py").write_text(PROGRAM.format(before="import time", then="time.sleep(60)"))
    python = environments.python_of(tmp_path / "peers", peer("hangs", "hangs"))
    answer = run.run_peer(peer("hangs", "hangs"), python, corpus(tmp_path / "corpus"), tmp_path, 1, 1.0)
    assert answer == "not done after 1 s"


@pytest.mark.parametrize("then", ["ids[0] = 7", "ids.append(0)", "ids[0] = -1"])
def test_ids_that_are_none_are_an_error(then: str, programs: Path, tmp_path: Path) -> None:
    (programs / "odd.py").write_text(PROGRAM.format(before="", then=then))
    python = environments.python_of(tmp_path / "peers", peer("odd", "odd"))
    answer = run.run_peer(peer("odd", "odd"), python, corpus(tmp_path / "corpus"), tmp_path, 1, 60.0)
    assert isinstance(answer, str)
    assert answer.startswith("its answer is wrong: it keeps")


def test_what_peers_could_reach_is_said(programs: Path, tmp_path: Path) -> None:
    """Their shingles fold case alone: of a text in the other script they see no copy."""
    (programs / "all.py").write_text(PROGRAM.format(before="", then=""))
    text = "這份軟體手冊說明如何安裝與設定監控系統"
    file = tmp_path / "scripts.parquet"
    simplified = "这份软体手册说明如何安装与设定监控系统"
    pq.write_table(pa.table({"id": [0, 1, 2], "text": [text, simplified, text + "。"]}), file)
    given = Inputs("scripts", (str(file),), "text", 3, 3 * len(text))
    pairs = run._exact_pairs(given)
    record = run._without_fault(given, Judge(3, pairs), order(tmp_path))
    assert record.figures["exact_removed_count"] == 2
    assert record.figures["removed_count"] == 1
    assert record.figures["lenient_recall_share"] == 0.5


def test_install_spares_what_is_no_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rensa").mkdir()
    (tmp_path / "rensa" / "mine.py").write_text("work")
    made = []
    monkeypatch.setattr(environments.venv, "create", lambda folder, **options: made.append(folder))
    answers = {one.name: answer for one, answer in environments.install(tmp_path, ["rensa"])}
    assert "is there and no environment" in answers["rensa"]
    assert made == []
    assert (tmp_path / "rensa" / "mine.py").read_text() == "work"


def test_gpudedup_does_the_job_of_the_peers(tmp_path: Path) -> None:
    given = corpus(tmp_path / "corpus")
    for ours in OURS:
        done = run.run_peer(ours, Path(sys.executable), given, tmp_path, 1, 60.0)
        assert not isinstance(done, str), done
        assert done.removed.tolist() == [False, True, False, False]
        assert done.peak_bytes > 1_000_000


def test_corpora_of_peers_from_files_of_a_user(tmp_path: Path) -> None:
    from gpudedup.bench.suites.quality import _corpora

    rows = [{"body": "one two three"}, {"body": None}, {"body": "  "}, {"body": "four five"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpora = _corpora(order(tmp_path, inputs=(str(tmp_path / "a.jsonl"),), text_column="body"))
    assert corpora.whole.documents == 2  # some peers skip what has no text
    assert corpora.whole.text_bytes == len("one two threefour five")
    found = pq.read_table(corpora.whole.files[0])
    assert found["id"].to_pylist() == [0, 1]
    assert found["text"].to_pylist() == ["one two three", "four five"]


def test_slow_peers_and_small_memory_stand_apart(programs: Path, tmp_path: Path) -> None:
    (programs / "all.py").write_text(PROGRAM.format(before="", then=""))
    slow, own, same = peer("slow", "all", slow=True), peer("own", "all", own_words=True), peer("same", "all")
    found = table(tmp_path, slow, own, same)
    whole, part = (found[f"tiny/{name}"].corpus for name in ("own", "slow"))
    assert whole is not None
    assert part is not None
    assert (whole.documents, part.documents) == (4, 3)
    best = found["tiny: gpudedup over the best of them/gpudedup"]
    assert best.parameters["fastest_of_same_shingles"] == "same"
    assert "slow" not in best.parameters.values()
    lean, peaks = found["tiny/lean"].peak_bytes, [found[f"tiny/{n}"].peak_bytes for n in ("same", "own")]
    assert best.figures["memory_over_leanest_ratio"] == pytest.approx((lean or 0) / min(peak or 0 for peak in peaks))
    (shown,) = sections(list(found.values()))
    assert "MB" in shown.table.names


def test_no_program_is_called_faster_over_little_text(programs: Path, tmp_path: Path) -> None:
    (programs / "all.py").write_text(PROGRAM.format(before="", then=""))
    assert not any("over the best" in name for name in table(tmp_path, peer("other", "all"), least=1000))


# ------------------------------------------------------------------------------------------------------ environments


def test_an_environment_that_pip_cannot_fill_is_said_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = (Peer("bad", "no-such-package-here", "rensa_peer"), peer("good", "rensa_peer"))
    monkeypatch.setattr(environments, "PEERS", peers)
    monkeypatch.setattr(environments.venv, "create", lambda folder, **_: _environment(Path(folder)))
    tried: list[tuple[str, ...]] = []

    def pip(python: Path, packages: tuple[str, ...]) -> None:
        tried.append(packages)
        raise BenchmarkError("ERROR: No matching distribution found")

    monkeypatch.setattr(environments, "_pip", pip)
    found = {one.name: answer for one, answer in environments.install(tmp_path / "peers")}
    assert found == {
        "bad": "cannot be installed: ERROR: No matching distribution found",
        "good": np.__version__,  # it is there already
    }
    assert tried == [("pyarrow", "no-such-package-here")]
    assert [one.name for one in environments.chosen(["good"])] == ["good"]
    with pytest.raises(ParameterError, match="no peer 'other'"):
        environments.chosen(["other"])
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        list(environments.install(tmp_path / "file" / "below"))


def test_the_command_says_every_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import typer

    from gpudedup.bench.peers.command import peers

    one = Peer("rensa", "rensa", "rensa_peer")
    monkeypatch.setattr(environments, "install", lambda *_: iter([(one, "0.5.0"), (one, "cannot be installed: why")]))
    app = typer.Typer()
    app.command()(peers)
    done = CliRunner().invoke(app, ["--install", str(tmp_path)])
    assert done.exit_code == 1
    assert "rensa: 0.5.0" in done.output
    assert "rensa: cannot be installed: why" in done.output


def test_programs_of_peers_are_there_and_compile() -> None:
    for one in (*OURS, *environments.PEERS):
        compile(one.program.read_text(), str(one.program), "exec")
