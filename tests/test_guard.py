"""Guards: a run that would remove too much stops before results are written; shares by value, by the reference."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reference import deduplicate as reference_deduplicate

import gpudedup
from gpudedup import ArtefactError, GuardError, InputError, OutputError, ParameterError
from gpudedup.display import summary_rows


def table(sources: dict[str | None, tuple[int, int]]) -> pa.Table:
    """For each source so many documents of its own, and so many copies of the first of all."""
    texts, names = [], []
    for source, (own, copies) in sources.items():
        texts += [" ".join(f"{source}{i}w{j}" for j in range(20)) for i in range(own)]
        texts += ["the one text that is copied again and again"] * copies
        names += [source] * (own + copies)
    return pa.table({"text": texts, "source": pa.array(names, pa.string())})


MIXED = table({"clean": (50, 1), "half": (10, 10), "bad": (1, 9), None: (4, 6)})
"""In order: 0, 10, 9 and 6 are removed, of 51, 20, 10 and 10; in all 25 of 91."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    pq.write_table(MIXED, tmp_path / "in" / "a.parquet")
    return tmp_path / "in" / "a.parquet"


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"max_removed": 25 / 91 + 1e-6}, False),
        ({"max_removed": 25 / 91 - 1e-6}, True),
        ({"max_removed": 0}, True),
        ({"max_removed": 1}, False),
        ({"max_removed": 1, "guard_column": "source"}, False),
        ({"max_removed": 0.9, "guard_column": "source"}, False),
        ({"max_removed": 0.899999, "guard_column": "source"}, True),
        ({"guard_column": "source"}, False),
    ],
)
def test_the_share_decides(corpus: Path, tmp_path: Path, options: dict[str, Any], stops: bool) -> None:
    out = tmp_path / "made" / "out"
    if not stops:
        assert gpudedup.run(corpus, out, **options).summary().removed == 25
        assert gpudedup.Run.open(out).audit().problems == []
        return
    with pytest.raises(GuardError) as error:
        gpudedup.run(corpus, out, **options)
    assert error.value.exit_code == 1
    assert not [name for name in ("removed", "kept") if (out / name).exists()]
    with pytest.raises(ArtefactError, match="is in state 'unfinished'"):
        gpudedup.Run.open(out)
    done = {stage.name: stage.is_done for stage in gpudedup.status(out).stages}
    assert done == {"sign": True, "match": True, "verify": True, "decide": True, "apply": False}
    with pytest.raises(GuardError):
        gpudedup.deduplicate(MIXED, **options)


def test_the_message_names_the_worst_first(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(GuardError) as error:
        gpudedup.run(corpus, tmp_path / "out", max_removed=0.2, guard_column="source")
    message = str(error.value)
    parts = [
        "of all 91 documents 25 (27.5%)",
        "'bad' 9 of 10 (90.0%)",
        "None 6 of 10 (60.0%)",
        "'half' 10 of 20 (50.0%)",
    ]
    assert [message.index(part) for part in parts] == sorted(message.index(part) for part in parts)
    assert "clean" not in message
    for way_out in (
        "max_removed=0.2",
        "raise max_removed",
        'within="source"',
        "higher threshold",
        "results are not written",
    ):
        assert way_out in message


def test_the_message_is_bounded() -> None:
    many = table({"first": (0, 1)} | {f"source {i} " + "x" * 500: (0, 2) for i in range(30)})
    with pytest.raises(GuardError, match="and more than that of 25 other values") as error:
        gpudedup.deduplicate(many, max_removed=0.99, guard_column="source")
    assert len(str(error.value)) < 1500


def test_a_stopped_run_goes_on_with_another_guard(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And reads no text for it."""
    fresh = gpudedup.run(corpus, tmp_path / "fresh")
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(GuardError):
            gpudedup.run(corpus, out, max_removed=0.1)
    with pytest.raises(GuardError, match="of source='bad' 9 of 10"):
        gpudedup.advance(out, "decide", max_removed=0.5, guard_column="source")

    def read(*args: Any, **options: Any) -> Any:
        raise AssertionError("text was read again")

    monkeypatch.setattr("gpudedup.engines.signing.sign_pieces", read)
    monkeypatch.setattr("gpudedup.engines.durable.ShingleSets", read)
    gpudedup.run(corpus, out, max_removed=0.9, guard_column="source")
    assert gpudedup.Run.open(out).removed.equals(fresh.removed)
    assert [path.read_bytes() for path in gpudedup.Run.open(out).kept] == [path.read_bytes() for path in fresh.kept]


def test_a_saved_result_is_whole_or_absent(corpus: Path, tmp_path: Path) -> None:
    """Nothing of it could be continued, since its data is gone with the process."""
    out = tmp_path / "out"
    out.mkdir()
    result = gpudedup.deduplicate(MIXED)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpudedup.store.manifest.encode", lambda manifest: (_ for _ in ()).throw(full))
        with pytest.raises(OutputError, match=r"manifest.json: .*No space left"):
            result.save(out)
    assert list(out.iterdir()) == []
    result.save(out)


@pytest.mark.parametrize("drop_empty", [False, True])
def test_shares_are_those_of_the_reference(tmp_path: Path, drop_empty: bool) -> None:
    texts = [*MIXED["text"].to_pylist(), "", " . ", None]
    values = [*MIXED["source"].to_pylist(), "bad", "other", None]
    expected = reference_deduplicate([text or "" for text in texts], drop_empty=drop_empty)
    documents, removed = Counter(values), Counter(values[removal.row] for removal in expected.removed)
    pq.write_table(pa.table({"text": texts, "source": values}), tmp_path / "a.parquet")
    run = gpudedup.run(tmp_path / "a.parquet", tmp_path / "out", guard_column="source", drop_empty=drop_empty)
    shares = run.summary().removed_shares
    assert {one.value: (one.documents, one.removed) for one in shares} == {
        value: (count, removed[value]) for value, count in documents.items()
    }
    assert [one.documents for one in shares] == sorted(documents.values(), reverse=True)
    assert all(one.share == one.removed / one.documents for one in shares)
    shown = dict(summary_rows(run.summary()))["  by source"]
    assert shown.splitlines()[0] == "clean: 0 of 51 (0.0%)"
    assert len(shown.splitlines()) == 5


def test_only_the_largest_values_are_listed() -> None:
    many = pa.table({"text": [f"text {i}" for i in range(465)], "n": [i for i in range(30) for _ in range(i + 1)]})
    shares = gpudedup.deduplicate(many, guard_column="n").summary().removed_shares
    assert [one.value for one in shares] == [str(i) for i in range(29, 9, -1)]


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(91),
        MIXED["source"].combine_chunks().dictionary_encode(),
        MIXED["source"].cast(pa.string_view()),
        MIXED["source"].cast(pa.large_binary()),
        pa.array([i % 2 == 0 for i in range(91)]),
    ],
    ids=lambda column: str(column.type),
)
def test_types_of_the_guard_column(column: Any) -> None:
    result = gpudedup.deduplicate(pa.table({"text": MIXED["text"], "source": column}), guard_column="source")
    shares = result.summary().removed_shares
    assert (sum(one.documents for one in shares), sum(one.removed for one in shares)) == (91, 25)


def test_nothing_to_guard(tmp_path: Path) -> None:
    result = gpudedup.deduplicate(MIXED.slice(0, 0), max_removed=0, guard_column="source")
    assert result.summary().removed_shares == []
    assert gpudedup.deduplicate([], max_removed=0).summary().removed_shares == []


def test_rows_that_cannot_be_read_are_no_documents(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"text number {i}", "source": "a"}) for i in range(4)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, "{", lines[0]]))
    run = gpudedup.run(tmp_path / "a.jsonl", tmp_path / "out", on_error="skip", guard_column="source", max_removed=0.2)
    (share,) = run.summary().removed_shares
    assert (share.value, share.documents, share.removed, share.share) == ("a", 5, 1, 0.2)


def test_what_cannot_be_used() -> None:
    for options, error in (
        ({"max_removed": 1.5}, ParameterError),
        ({"max_removed": -0.1}, ParameterError),
        ({"max_removed": "half"}, ParameterError),
        ({"guard_column": "nowhere"}, InputError),
    ):
        with pytest.raises(error):
            gpudedup.deduplicate(MIXED, **options)
    with pytest.raises(ParameterError, match='guard_column="score" is double'):
        gpudedup.deduplicate(MIXED.append_column("score", pa.array([0.5] * 91)), guard_column="score")
    for options in ({"max_removed": 0.5}, {"guard_column": "source"}):
        with pytest.raises(ParameterError, match="all documents at once"):
            gpudedup.Deduplicator(**options)
