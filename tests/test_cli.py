"""The command line: exit codes, messages, JSON, configuration, explanations, hostile text, signals."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import gpudedup
from gpudedup import cli, display, explain
from gpudedup.explain import unit_key

DATA = Path(__file__).resolve().parent / "data"
COMMAND = [sys.executable, "-c", "from gpudedup.cli import main; main()"]
HOSTILE = (
    "\x1b[31mred \x07bell \u202etfel ot thgir\u202c \x9b5n \u200bhidden \u2066iso\u2069 [bold]mark[/bold] \r over \x7f"
)
HARMFUL = "\x1b\x07\u202e\u202c\x9b\u200b\u2066\u2069\r\x7f"


def write(path: Path, texts: list[str | None], **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), **columns}), path)
    return path


def near(number: int, change: str = "") -> str:
    """A text of its own; with ``change``, a near-copy of it."""
    return f"{change} " + " ".join(f"word{number}x{i}" for i in range(200))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Rows 1 and 2 are removed for 0 (exact, near), 4 for 3 (near); 5 is empty; 6 is alone."""
    texts = [near(1), near(1).upper(), near(1, "more"), near(2, HOSTILE), near(2, "[blink]calm[/blink]"), " ", near(3)]
    return write(tmp_path / "in" / "a.parquet", texts, key=[f"k{i}" for i in range(7)], num=[6, 5, 4, 3, 2, 1, 0])


# ------------------------------------------------------------------------------------------------ run: what it gives


def test_run_removes_and_tells(command: Any, corpus: Path, tmp_path: Path) -> None:
    done = command("run", corpus, "-o", tmp_path / "out")
    assert done.err == ""
    for line in ("documents ", "kept ", "removed ", "bands x rows ", "bounded buckets ", "seconds ", "similarity 0.9"):
        assert line in done.out
    assert str(tmp_path / "out" / "kept") in done.out.replace("\n", "")
    run = gpudedup.Run.open(tmp_path / "out")
    assert [(r["row"], r["reason"], r["keeper_row"]) for r in run.removed.to_pylist()] == [
        (1, "exact", 0),
        (2, "near", 0),
        (4, "near", 3),
    ]
    (kept,) = run.kept
    assert pq.read_table(kept)["key"].to_pylist() == ["k0", "k3", "k5", "k6"]


@pytest.mark.parametrize(("output", "folder"), [("kept", "kept"), ("mask", "keep_mask"), ("none", None)])
def test_run_names_what_it_wrote(command: Any, corpus: Path, tmp_path: Path, output: str, folder: str | None) -> None:
    out = tmp_path / "out"
    shown = command("run", corpus, "-o", out, "--output", output).out
    folders = sorted(path.name for path in out.iterdir() if path.is_dir())
    working = ["decide", "done", "match", "signatures", "verify"]
    assert folders == sorted([*working, "removed", *([folder] if folder else [])])
    for name in ("kept", "keep_mask"):
        assert (f"{out / name} (1 files, " in shown) == (name == folder)
    assert f"{out / 'removed'} (" in shown


def test_run_json_is_ascii_and_whole(command: Any, corpus: Path, tmp_path: Path) -> None:
    done = command("run", corpus, "-o", tmp_path / "ünï", "--json")
    assert done.out.isascii()
    summary = json.loads(done.out)
    assert summary["run"] == str(tmp_path / "ünï")
    assert (summary["documents"], summary["kept"], summary["exact"], summary["near"], summary["empty"]) == (
        7,
        4,
        1,
        2,
        1,
    )
    assert summary["parameters"]["threshold"] == 0.8
    assert [point[0] for point in summary["s_curve"]] == [0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9]


def test_every_parameter_is_an_option(command: Any) -> None:
    text = subprocess.run(
        [*COMMAND, "run", "--help"], capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}
    ).stdout
    for name in gpudedup.Params.__struct_fields__:
        assert f"--{name.replace('_', '-')}" in text or name == "keep_sets", name


def test_options_reach_the_run(command: Any, corpus: Path, tmp_path: Path) -> None:
    options = {
        "text-column": "text", "id-column": "key", "threshold": 0.7, "recall": 0.9, "shingle": "char:9", "num-perm": 64,
        "bands": 8, "rows": 4, "seed": 9, "fold": "case", "verify": "signature", "keep": "min:num", "bucket-window": 7,
        "clustering": "components", "on-error": "skip", "device": "cpu", "workers": 3, "memory": "100MB",
        "tmp": tmp_path,
    }  # fmt: skip
    flags = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = command("run", corpus, "-o", tmp_path / "out", "--drop-empty", "--output", "mask", "--json", *flags)
    parameters = json.loads(done.out)["parameters"]
    for name, value in options.items():
        assert str(parameters[name.replace("-", "_")]) == str(value)
    assert parameters["drop_empty"] is True
    assert (tmp_path / "out" / "keep_mask").is_dir()
    assert not (tmp_path / "out" / "kept").exists()


@pytest.mark.parametrize("option", ["within", "across"])
def test_scopes(command: Any, tmp_path: Path, option: str) -> None:
    path = write(tmp_path / "a.parquet", [near(1)] * 4, part=["x", "y", "x", "y"])
    done = command("run", path, "-o", tmp_path / "out", f"--{option}", "part", "--output", "none", "--json")
    removed = gpudedup.Run.open(tmp_path / "out").removed["row"].to_pylist()
    assert removed == ([2, 3] if option == "within" else [1, 3])
    assert json.loads(done.out)["removed"] == 2


def test_examples_are_the_same_each_time_and_of_different_clusters(tmp_path: Path) -> None:
    from gpudedup.explain import example_pairs

    source = DATA / "hertzbeat_docs.parquet"
    pairs = [example_pairs(gpudedup.run(source, tmp_path / name), 3) for name in ("a", "b")]
    assert [p.asdict() for p in pairs[0]] == [p.asdict() for p in pairs[1]]
    assert len({p.cluster for p in pairs[0]}) == 3
    similarities = [p.similarity for p in pairs[0]]
    assert similarities == sorted(similarities)
    assert all(0.8 <= s < 1 for s in similarities)
    assert all(p.document.text and p.keeper and p.keeper.text for p in pairs[0])


def test_examples_are_short_texts_if_there_are_any(command: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(explain, "EXAMPLE_CHARACTERS", 5000)
    texts = []
    for number in range(5):
        long = number in (0, 2, 4)
        texts += [near(number) * (20 if long else 1), near(number) * (20 if long else 1) + " x" * (10 + number)]
    done = gpudedup.run(write(tmp_path / "a.parquet", texts), tmp_path / "a")
    assert done.summary().near == 5
    rows = {pair.document.row for pair in explain.example_pairs(done, 3)}
    assert len(rows) == 3
    assert {3, 7} <= rows  # those that are not long
    for pair in explain.example_pairs(done, 5):
        assert pair.keeper is not None
        for document in (pair.document, pair.keeper):
            assert document.text == texts[document.row][:5000]
    assert "similarity 0." in command("run", tmp_path / "a.parquet", "-o", tmp_path / "b").out


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.string_view()])
def test_a_text_is_cut_at_a_character(kind: pa.DataType) -> None:
    for text in ("é" * 20, "a👍" * 20, "👍" * 10, "abc", ""):
        value = text.encode() if kind == pa.binary() else text
        assert explain._as_text(pa.scalar(value, kind), 10) == text[:10]
        assert explain._as_text(pa.scalar(value, kind), None) == text
    assert explain._as_text(pa.scalar([1, 22, 333]), 4) == "1 22"
    assert explain._as_text(pa.scalar([1, 22, 333]), None) == "1 22 333"
    assert explain._as_text(pa.scalar(None, kind), 3) == ""


def test_readme_counts(command: Any, tmp_path: Path) -> None:
    done = command("run", DATA / "hertzbeat_docs.parquet", "-o", tmp_path / "out", "--output", "none", "--json")
    summary = json.loads(done.out)
    assert (summary["documents"], summary["kept"], summary["removed"]) == (1640, 487, 1153)


# --------------------------------------------------------------------------------------------------- configuration


def test_config_is_read_and_options_win(command: Any, corpus: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('threshold = 0.9\nrecall = 0.9\nkeep = "longest"\noutput = "none"\ndrop_empty = true\n')
    done = command("run", corpus, "-o", tmp_path / "out", "--config", config, "--recall", 0.8, "--keep-empty", "--json")
    parameters = json.loads(done.out)["parameters"]
    assert (parameters["threshold"], parameters["recall"], parameters["keep"]) == (0.9, 0.8, "longest")
    assert parameters["drop_empty"] is False
    assert not (tmp_path / "out" / "kept").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("treshold = 0.9", "unknown key 'treshold'; known are text_column"),
        ("keep_sets = true", "unknown key 'keep_sets'"),
        ("threshold = ", "is not TOML"),
        ('threshold = "high"', "threshold must be float or int, got 'high'"),
        ("[threshold]\nx = 1", "threshold must be float or int"),
        ('output = "all"', 'output must be one of "kept", "mask", "none"'),
        pytest.param(f"memory = {'9' * 5000}", "is not TOML", id="long number"),
        pytest.param(f"memory = 0x{'f' * 5000}", "got a number far outside", id="long hexadecimal number"),
        pytest.param(f"memory = {'[' * 9000}", "is not TOML", id="deep"),
    ],
)
def test_bad_config(command: Any, corpus: Path, tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "c.toml"
    config.write_text(text)
    done = command("run", corpus, "-o", tmp_path / "out", "--config", config, code=2)
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_missing_config(command: Any, corpus: Path, tmp_path: Path) -> None:
    done = command("run", corpus, "-o", tmp_path / "out", "--config", tmp_path / "no.toml", code=2)
    assert "no.toml: No such file" in done.err


# ------------------------------------------------------------------------------------------------------ exit codes


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--threshold", "1.5"], "threshold must be above 0 and at most 1, got 1.5"),
        (["--threshold", "nan"], "threshold must be"),
        (["--bands", "16", "--rows", "9"], "16 * 9 = 144, but num_perm = 128"),
        (["--bands", "16"], "bands and rows are given together"),
        (["--shingle", "word"], "shingle must be"),
        (["--keep", "best"], "keep must be"),
        (["--verify", "maybe"], 'verify must be one of "exact"'),
        (["--memory", "lots"], "memory must be bytes or text"),
        (["--memory", "9" * 400 + "GB"], "memory must be bytes or text"),
        (["--memory", "9" * 19 + "TB"], "memory must be at least 64 MB and below 2^60 bytes"),
        (["--engine", "ray"], "engine must be"),
        (["--output", "all"], "output must be one of"),
        (["--on-error", "ignore"], "on_error must be one of"),
        (["--within", "text", "--across", "text"], "nothing would be compared"),
    ],
)
def test_bad_parameters_are_2(command: Any, corpus: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    done = command("run", corpus, "-o", tmp_path / "out", *flags, code=2)
    assert message in done.err
    assert done.out == ""
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "x.parquet"],
        ["run", "-o", "y"],
        ["run", "x", "-o", "y", "--threshold", "high"],
        ["walk"],
        ["--wat"],
    ],
)
def test_usage_is_2(command: Any, arguments: list[str]) -> None:
    command(*arguments, code=2)


def test_unreadable_input_is_3(command: Any, corpus: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(corpus.read_bytes()[:-9])
    empty = tmp_path / "nothing"
    empty.mkdir()
    cases = [
        ([tmp_path / "none.parquet"], "none.parquet"),
        ([tmp_path / "*.json"], "no file matches"),
        ([empty], "holds no file with a known suffix"),
        ([cut], "cut.parquet"),
        ([corpus, "--text-column", "body"], "text, key, num"),
        ([corpus, "--text-column", "num"], "it must be a string or binary"),
        ([corpus, "--id-column", "nr"], "'nr'"),
        ([corpus, corpus], "given twice"),
    ]
    for arguments, message in cases:
        done = command("run", *arguments, "-o", tmp_path / "out", code=3)
        assert message in done.err
        assert done.out == ""
        assert len(done.err.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_skipped_rows_are_listed(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": near(1)}) + '\n{"text": "cut\n' + json.dumps({"text": near(2)}) + "\n")
    done = command("run", path, "-o", tmp_path / "out", code=3)
    assert "a.jsonl" in done.err
    done = command("run", path, "-o", tmp_path / "out", "--on-error", "skip")
    assert done.err.startswith("gpudedup: skipped: ")
    assert "a.jsonl" in done.err
    assert "1 rows that could not be read" in done.out
    done = command("explain", tmp_path / "out", "1")
    assert "skipped" in done.out


def test_output_that_is_taken_is_1(command: Any, corpus: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("precious")
    file = tmp_path / "file"
    file.write_text("precious")
    for out in (taken, file, corpus.parent):
        done = command("run", corpus.parent, "-o", out, code=1)
        assert len(done.err.splitlines()) == 1
    assert (taken / "mine.txt").read_text() == file.read_text() == "precious"
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    assert [path.name for path in corpus.parent.iterdir()] == ["a.parquet"]


def test_damaged_artefacts_are_4(command: Any, corpus: Path, tmp_path: Path) -> None:
    command("explain", tmp_path / "nothing", "1", code=4)
    command("explain", corpus.parent, "1", code=4)
    command("run", corpus, "-o", tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-20])
    done = command("explain", tmp_path / "out", "1", code=4)
    assert "manifest.json" in done.err
    manifest.write_bytes(whole)
    (table,) = (tmp_path / "out" / "removed").iterdir()
    table.write_bytes(table.read_bytes()[:-5])
    command("explain", tmp_path / "out", "1", code=4)


def test_device_that_is_not_there_is_5(command: Any, corpus: Path, tmp_path: Path, monkeypatch: Any) -> None:
    done = command("run", corpus, "-o", tmp_path / "out", "--device", "cuda:99", code=5)
    assert 'device="cuda:99" is not available: ' in done.err
    monkeypatch.setenv("GPUDEDUP_CPU", "sse9")
    done = command("info", code=5)
    assert "GPUDEDUP_CPU=sse9" in done.err
    assert not (tmp_path / "out").exists()


def test_a_message_shows_hostile_names_harmlessly(command: Any, tmp_path: Path) -> None:
    done = command("run", tmp_path / "\x1b[2Jgone\u202e.parquet", "-o", tmp_path / "out", code=3)
    assert "<U+001B>[2Jgone<U+202E>" in done.err or "\\x1b[2Jgone\\u202e" in done.err
    assert not any(character in done.err for character in HARMFUL)


# --------------------------------------------------------------------------------------------------- info, version


def test_version(command: Any) -> None:
    assert command("--version").out == f"gpudedup {gpudedup.__version__} (spec 1)\n"


def test_info(command: Any) -> None:
    facts = json.loads(command("info", "--json", "--threshold", 0.7).out)
    assert (facts["bands"], facts["rows"], facts["spec"]) == (25, 5, 1)
    assert "baseline" in facts["cpu_tiers"]
    assert facts["device"].startswith("cpu (")
    assert facts["workers"] >= 1
    shown = command("info", "--bands", 10, "--rows", 12).out
    assert "10 x 12 of 128 lanes" in shown
    command("info", "--threshold", 0.01, "--num-perm", 4, code=2)


# ---------------------------------------------------------------------------------------------------------- explain


@pytest.fixture
def run(corpus: Path, tmp_path: Path) -> Path:
    gpudedup.run(corpus, tmp_path / "out", id_column="key", output="none")
    return tmp_path / "out"


@pytest.mark.parametrize("name", ["2", "row=2", "k2", "id=k2", "SHARD:2"])
def test_explain_finds_a_document_by_row_and_id(command: Any, run: Path, corpus: Path, name: str) -> None:
    explanation = json.loads(command("explain", run, name.replace("SHARD", str(corpus)), "--json").out)
    own = {"shard": str(corpus), "run": None}
    assert explanation["document"] == {**own, "row": 2, "id": "k2", "text": near(1, "more")}
    assert (explanation["status"], explanation["reason"]) == ("removed", "near")
    assert explanation["keeper"] == {**own, "row": 0, "id": "k0", "text": near(1)}
    assert explanation["similarity"] == pytest.approx(196 / 197)
    assert explanation["cluster"] == 0


def test_explain_in_words(command: Any, run: Path) -> None:
    shown = command("explain", run, "2").out
    assert "[-more -]" in shown
    assert "threshold 0.8" in shown
    shown = command("explain", run, "1").out
    assert (
        "the same words in the same order" in shown.replace("\n            ", "").replace("  ", " ")
        or "same words" in shown
    )
    shown = command("explain", run, "k0").out
    assert "kept" in shown
    assert "2 were" in shown
    assert "k1" in shown
    assert "k2" in shown
    assert "no other was" in " ".join(command("explain", run, "k6").out.split())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("7", "its rows are 0 to 6"),
        ("k9", "'k9' names no document"),
        ("b.parquet:1", "names no document"),
        ("row=k1", "names no"),
    ],
)
def test_explain_what_is_not_there(command: Any, run: Path, name: str, message: str) -> None:
    assert message in command("explain", run, name, code=2).err


def test_explain_ambiguous_names(command: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [near(1), near(1, "x"), near(2), near(2, "x")], key=[3, 2, 1, 1])
    gpudedup.run(path, tmp_path / "out", id_column="key", output="none")
    assert "row=3 or id=3" in command("explain", tmp_path / "out", "3", code=2).err
    assert json.loads(command("explain", tmp_path / "out", "row=3", "--json").out)["document"]["row"] == 3
    assert json.loads(command("explain", tmp_path / "out", "id=3", "--json").out)["document"]["row"] == 0
    assert "several documents" in command("explain", tmp_path / "out", "id=1", code=2).err


def test_explain_needs_the_shard_where_there_are_several(command: Any, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.parquet", [near(1), near(2)]) for name in "ab"]
    gpudedup.run(paths, tmp_path / "out", output="none")
    assert "2 shards" in command("explain", tmp_path / "out", "1", code=2).err
    explanation = json.loads(command("explain", tmp_path / "out", f"{paths[1]}:1", "--json").out)
    assert (explanation["keeper"]["shard"], explanation["keeper"]["row"]) == (str(paths[0]), 1)


def test_explain_without_the_input(command: Any, run: Path, corpus: Path) -> None:
    data = bytearray(corpus.read_bytes())
    data[10] ^= 1
    corpus.write_bytes(data)
    shown = " ".join(command("explain", run, "2").out.split())
    assert "was changed after the run" in shown
    assert "removed" in shown
    corpus.unlink()
    explanation = json.loads(command("explain", run, "2", "--json").out)
    assert explanation["document"]["text"] is None
    assert "texts are missing" in explanation["note"]
    assert explanation["keeper"]["row"] == 0


def test_explain_jsonl_and_tokens(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in (near(1), near(2), near(1, "x"))))
    gpudedup.run(path, tmp_path / "out")
    assert json.loads(command("explain", tmp_path / "out", "2", "--json").out)["keeper"]["text"] == near(1)
    tokens = tmp_path / "t.parquet"
    pq.write_table(pa.table({"text": [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6]]}), tokens)
    gpudedup.run(tokens, tmp_path / "tokens", shingle="tokens:5")
    assert json.loads(command("explain", tmp_path / "tokens", "1", "--json").out)["document"]["text"] == "1 2 3 4 5 6"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"verify": "signature"}, "equal lanes"),
        ({"verify": "none"}, "share a bucket"),
        ({"clustering": "components"}, "chain"),
    ],
)
def test_explain_names_the_rule(command: Any, corpus: Path, tmp_path: Path, options: Any, words: str) -> None:
    gpudedup.run(corpus, tmp_path / "out", output="none", **options)
    assert words in " ".join(command("explain", tmp_path / "out", "2").out.split())


def test_explain_an_empty_document(command: Any, corpus: Path, tmp_path: Path) -> None:
    gpudedup.run(corpus, tmp_path / "out", output="none", drop_empty=True)
    assert "no words" in command("explain", tmp_path / "out", "5").out


# ------------------------------------------------------------------------------------------------------ hostile text


@pytest.mark.parametrize("arguments", [["explain", "OUT", "4"], ["explain", "OUT", "3"], ["run", "IN", "-o", "NEW"]])
def test_hostile_text_reaches_no_terminal(command: Any, corpus: Path, tmp_path: Path, arguments: list[str]) -> None:
    gpudedup.run(corpus, tmp_path / "out", output="none")
    places = {"OUT": str(tmp_path / "out"), "IN": str(corpus), "NEW": str(tmp_path / "new")}
    for flags in ([], ["--json"]):
        if flags and arguments[0] == "run":
            places["NEW"] = str(tmp_path / "newer")
        shown = command(*[places.get(a, a) for a in arguments], *flags).out
        assert not any(character in shown for character in HARMFUL)
        if not flags:
            assert "<U+0007>" in shown
            assert "[bold]" in shown  # no markup is interpreted


def test_visible() -> None:
    assert display.visible("a\tb\r\nc") == "a b\nc"
    assert display.visible(HOSTILE + "\ud800\u2028\ufeff") == (
        "<U+001B>[31mred <U+0007>bell <U+202E>tfel ot thgir<U+202C> <U+009B>5n <U+200B>hidden <U+2066>iso<U+2069> "
        "[bold]mark[/bold] <U+000D> over <U+007F><U+D800><U+2028><U+FEFF>"
    )
    plain = "Grüße, 中文, العربية, e\u0301, 👍"
    assert display.visible(plain) == plain


def test_word_diff_loses_nothing() -> None:
    left = "one two three\n\nfour five 中文字 six\n" + "same line\n" * 50
    right = "one too three\n\nfour 中文子 six seven\n" + "same line\n" * 49
    changes = display.word_diff(left, right, unit_key(gpudedup.Params()))
    assert "".join(change.removed for change in changes) == left
    assert "".join(change.keeper for change in changes) == right
    assert any(change.removed.strip() == "two" and change.keeper.strip() == "too" for change in changes)
    assert any(change.removed == "字 " and change.keeper == "子 " for change in changes)


def test_word_diff_of_long_texts_is_quick() -> None:
    left = "word " * 400_000
    right = " ".join(f"w{i}" for i in range(200_000))
    start = time.monotonic()
    shown = display.diff_text(display.word_diff(left, right))
    assert time.monotonic() - start < 5
    assert len(shown) < 10_000


def limited(call: Callable[[], Any], most: int = 50_000_000) -> Any:
    """What ``call`` returns; Python may allocate at most ``most`` bytes meanwhile."""
    tracemalloc.start()
    try:
        answer = call()
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
    return answer


@pytest.mark.parametrize("fold", ["full", "none"])
def test_the_first_difference_of_long_texts(fold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found across windows, in bounded memory, up to a bound; the words before it may differ in what does not count."""
    monkeypatch.setattr(display, "SEARCHED_CHARACTERS", 1 << 20)
    key = unit_key(gpudedup.Params(fold=fold))
    text = " ".join(f"word{i}" for i in range(600_000))
    for word in (0, 500, 30_000, 90_000):
        at = text.index(f"word{word} ")
        start = text[:at].replace(" ", " - ", 1)
        right, expected = start + "other" + text[at:], (at, len(start))
        assert display.first_difference(text, right, key) == expected
    at = text.index("word200000")
    assert limited(lambda: display.first_difference(text, text[:at] + "other" + text[at:], key)) == (0, 0)
    at = text.index("word50000")
    assert display.first_difference(text, text[:at], key) == (at, at)
    assert display.first_difference("x" * 1_000_000, "x" * 1_000_000 + "y", key)[0] <= 1_000_000


def test_the_diff_of_long_texts_is_cut_and_says_so(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "SEARCHED_CHARACTERS", 1 << 20)
    key = unit_key(gpudedup.Params())
    for blank in (" ", "\n"):
        text = blank.join(f"word{i}" for i in range(120_000))
        at = text.index("word70000")
        changes, cut = display.bounded_diff(text, text[:at] + "other " + text[at:], key)
        assert cut is not None
        assert f"from the first difference on (at character {at:,})" in cut
        different = [change.keeper for change in changes if not change.equal]
        assert different == ["other "] if blank == "\n" else different[0].startswith("other word70000 ")
        assert max(len(change.removed) for change in changes) <= display.DIFF_CHARACTERS
    assert display.bounded_diff("one two", "one too", key)[1] is None
    same = "word " * 500_000
    changes, cut = limited(lambda: display.bounded_diff(same, same + "end", key))
    assert "their first 1,048,576 characters show no difference" in cut
    assert all(change.equal for change in changes)
    assert "from the beginning" in display.bounded_diff(same, "start " + same, key)[1]
    path = write(tmp_path / "a.parquet", [text, text.replace("word70000", "other")])
    gpudedup.run(path, tmp_path / "out", output="none")
    shown = command("explain", tmp_path / "out", 1).out
    assert "the texts are long: compared are 262,144 characters or 5,000 lines of either" in shown
    assert "[-other" in shown


def test_differences_are_those_that_the_run_saw() -> None:
    full, none = unit_key(gpudedup.Params()), unit_key(gpudedup.Params(fold="none"))
    assert display.first_difference("The Cat, sat here", "the cat sat there", full) == (13, 12)
    assert display.first_difference("same words", "SAME, words!", full) == (0, 0)
    assert display.first_difference("the words", "the WORDS", none) == (4, 4)
    assert display.first_difference("same words", "same words more", full) == (10, 11)
    equal = [("這個軟體", "这个软体"), ("caf\u00e9s", "cafe\u0301s"), ("a\u00adb c", "ab\u200b  C")]
    for left, right in equal:
        assert all(change.equal for change in display.word_diff(left, right, full))
        assert not all(change.equal for change in display.word_diff(left, right, none)) or "\u00ad" in left


# ------------------------------------------------------------------------------- terminals, pipes, locales, signals


def spawn(*arguments: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "gbk", "utf-8"])
def test_any_locale(corpus: Path, tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "中文.parquet", ["漢字" * 30 + "é", "汉字" * 30 + "é 👍 還有更多"])
    done = spawn("run", path, "-o", tmp_path / "出", PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert b"documents" in done.stdout
    done = spawn("explain", tmp_path / "出", "1", PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("columns", ["20", "40", "71", "300"])
def test_any_width(corpus: Path, tmp_path: Path, columns: str) -> None:
    done = spawn("run", corpus, "-o", tmp_path / "out", COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    assert max(len(line) for line in done.stdout.decode().splitlines()) <= int(columns)


def test_piped_output_has_no_colour_and_a_terminal_has(corpus: Path, tmp_path: Path) -> None:
    assert b"\x1b[" not in spawn("run", corpus, "-o", tmp_path / "a").stdout
    for number, (extra, colour) in enumerate([({}, True), ({"NO_COLOR": "1"}, False)]):
        shown = on_terminal("run", corpus, "-o", tmp_path / f"t{number}", TERM="xterm-256color", **extra)
        assert (b"\x1b[31m" in shown or b";31m" in shown) == colour
        assert b"documents" in shown


def on_terminal(*arguments: object, **environment: str) -> bytes:
    """What a pseudo-terminal receives."""
    main, other = os.openpty()
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments)], stdout=other, stderr=other, stdin=other, env={**os.environ, **environment}
    )
    os.close(other)
    shown = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.close(main)
    assert process.wait(timeout=30) == 0
    return shown


def test_broken_pipe_is_quiet(corpus: Path, tmp_path: Path) -> None:
    gpudedup.run(corpus, tmp_path / "out", output="none")
    read, write_end = os.pipe()
    os.close(read)
    process = subprocess.run(
        [*COMMAND, "explain", str(tmp_path / "out"), "2"], stdout=write_end, stderr=subprocess.PIPE, timeout=60
    )
    os.close(write_end)
    assert process.returncode == 1
    assert process.stderr == b""


def test_full_disk_under_stdout_is_told(corpus: Path, tmp_path: Path) -> None:
    gpudedup.run(corpus, tmp_path / "out", output="none")
    with open("/dev/full", "wb") as full:
        process = subprocess.run([*COMMAND, "explain", str(tmp_path / "out"), "2"], stdout=full, stderr=subprocess.PIPE)
    assert process.returncode == 1
    assert process.stderr.startswith(b"gpudedup: [Errno 28]")
    assert b"Traceback" not in process.stderr


@pytest.fixture(scope="module")
def long_input(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [" ".join(f"{word:x}" for word in range(i, i + 20_000)) for i in range(0, 4_000_000, 20_000)]
    return write(tmp_path_factory.mktemp("long") / "a.parquet", texts)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_a_run(long_input: Path, tmp_path: Path, number: int) -> None:
    """Nothing of it was finished, so nothing is left."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    out = tmp_path / "out"
    slow = ["--num-perm", "4096", "--bands", "1", "--rows", "4096", "--workers", "1", "--tmp", str(scratch)]
    seconds = []
    while not seconds or (seconds[-1] >= 2 and len(seconds) < 3):  # a busy machine may be late once
        process = subprocess.Popen(
            [*COMMAND, "run", str(long_input), "-o", str(out), *slow],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "GPUDEDUP_CPU": "baseline"},
        )
        deadline = time.monotonic() + 30
        while not out.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.5)
        assert process.poll() is None, "the run was over before it could be stopped"
        process.send_signal(number)
        start = time.monotonic()
        _, err = process.communicate(timeout=30)
        seconds.append(time.monotonic() - start)
        assert process.returncode == 85
        way_on = "what is finished stays, and the same command goes on from there"
        assert err.decode() == f"gpudedup: stopped by {signal.Signals(number).name}; {way_on}\n"
        assert not out.exists()
        assert list(scratch.iterdir()) == []
    assert min(seconds) < 2


WAITING = """
import time
import gpudedup.api
from gpudedup.cli import main
def wait(*arguments, **options):
    print("waiting", flush=True)
    time.sleep(60)
gpudedup.api.make_plan = wait
main()
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGUSR1, 138), (signal.SIGTERM, 143)])
def test_a_signal_ends_what_cannot_be_continued(corpus: Path, number: int, code: int) -> None:
    command = [sys.executable, "-c", WAITING, "plan", str(corpus)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    assert process.returncode == code
    assert err.decode() == f"gpudedup: stopped by {signal.Signals(number).name}; what was unfinished has been removed\n"


def test_explain_by_an_id_that_is_no_text(command: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [near(1), near(1)], "id": [b"\xfe", b"\xff"]}), tmp_path / "a.parquet")
    command("run", tmp_path / "a.parquet", "-o", tmp_path / "run", "--id-column", "id")
    assert "removed" in command("explain", tmp_path / "run", os.fsdecode(b"\xff")).out
    command("explain", tmp_path / "run", os.fsdecode(b"\xfd"), code=2)


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_stop_a_run(corpus: Path, tmp_path: Path, closed: str) -> None:
    code = f'exec {sys.executable} -c \'from gpudedup.cli import main; main()\' run "$0" -o "$1" {closed}'
    assert subprocess.run(["bash", "-c", code, corpus, tmp_path / "run"], check=False).returncode == 0
    assert gpudedup.Run.open(tmp_path / "run").summary().removed > 0


def test_the_command_that_run_shows_can_be_typed(command: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "x;touch PWNED;#.parquet", [near(1), near(1, "changed")])
    shown = command("run", source, "-o", tmp_path / "out 1", "--threshold", "0.5").out
    line = next(line for line in shown.splitlines() if "ask why" in line)
    words = shlex.split(line.partition("ask why")[2])
    assert words[:2] == ["gpudedup", "explain"]
    assert words[2:] == [str(tmp_path / "out 1"), f"{source}:1"]


# ------------------------------------------------------------------------------------------------------------- audit


def test_audit_agrees(command: Any, corpus: Path, tmp_path: Path) -> None:
    command("run", corpus, "-o", tmp_path / "out")
    done = command("audit", tmp_path / "out")
    for line in ("output files ", "input files ", "removals ", "ranks and contents ", "similarities ", "kept rows "):
        assert line in done.out
    assert "everything that was checked agrees" in done.out
    found = json.loads(command("audit", tmp_path / "out", "--json", "--memory", "100MB").out)
    assert (found["problem_count"], found["problems"], found["exit_code"]) == (0, [], 0)
    assert {check["name"]: check["count"] for check in found["checks"]}["removals"] == 3


def test_audit_finds_damage(command: Any, corpus: Path, tmp_path: Path) -> None:
    command("run", corpus, "-o", tmp_path / "out")
    data = bytearray(corpus.read_bytes())
    data[10] ^= 1
    corpus.write_bytes(data)
    done = command("audit", tmp_path / "out", code=3)
    assert f"problem: input {corpus} was changed" in done.out
    assert "not checked: " in done.out
    (tmp_path / "out" / "removed" / "a.parquet").unlink()
    done = command("audit", tmp_path / "out", code=4)
    assert "a.parquet is missing, though manifest.json lists it; restore it" in done.out
    assert "2 problems" in done.out
    assert json.loads(command("audit", tmp_path / "out", "--json", code=4).out)["problem_count"] == 2
    (tmp_path / "out" / "manifest.json").unlink()
    assert "holds no finished run" in command("audit", tmp_path / "out", code=4).err


# ------------------------------------------------------------------------------------------------------------ guards


def test_guards_stop_a_run(command: Any, corpus: Path, tmp_path: Path) -> None:
    done = command("run", corpus, "-o", tmp_path / "out", "--max-removed", 0.4, code=1)
    assert "max_removed=0.4 would be removed: of all 7 documents 3 (42.9%)" in done.err
    assert not (tmp_path / "out" / "removed").exists()
    done = command("decide", tmp_path / "out", "--max-removed", 0.4, code=1)
    assert "max_removed=0.4 would be removed" in done.err
    done = command("run", corpus, "-o", tmp_path / "out", "--max-removed", 1, "--guard-column", "num", "--json")
    shares = json.loads(done.out)["removed_shares"]
    assert sum(share["removed"] for share in shares) == 3
    assert shares[0] == {"value": "6", "documents": 1, "removed": 0, "share": 0.0}


# -------------------------------------------------------------------------------------------------------------- plan


def test_plan_tells_and_writes_nothing(command: Any, corpus: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command("plan", corpus, "-o", tmp_path / "out", "--threshold", 0.7, "--within", "key")
    for line in ("documents ", "7, counted", "bands x rows ", "25 x 5", "memory ", "output ", "seconds ", "sample "):
        assert line in done.out
    found = json.loads(command("plan", corpus, "--json").out)
    assert (found["documents"], found["sample_exact"], found["sample_near"]) == (
        {"value": 7, "spread": 0, "counted": True},
        1,
        2,
    )
    assert "no column 'nowhere'" in command("plan", corpus, "--across", "nowhere", code=3).err
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_takes_the_options_of_run(tmp_path: Path) -> None:
    """But --out, all of run's options, with the same texts."""
    from typer.main import get_command

    run, plan = (get_command(cli.app).commands[name] for name in ("run", "plan"))  # type: ignore[attr-defined]
    described = [
        {option.name: (option.opts, getattr(option, "help", "")) for option in one.params} for one in (run, plan)
    ]
    for options in described:
        options.pop("out")
    assert described[0] == described[1]
