"""Signature files, and those of carried columns: what is in them, and how much room that takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pytest
import reference

import gpudedup
from gpudedup import OutputError
from gpudedup.engines import corpus as corpora
from gpudedup.store import signatures
from gpudedup.store.atomic import HashedFile
from gpudedup.store.signatures import SignatureFile, content_of, row_writer

DOCUMENTS = 300
TEXTS = [f"w{number} " + " ".join(f"u{number % 7}v{place}" for place in range(8)) for number in range(DOCUMENTS)]


def small_files(folder: Path) -> Path:
    """One document a file."""
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:04}.jsonl").write_text(json.dumps({"text": text, "id": f"d{number}"}) + "\n")
    return folder


@pytest.mark.parametrize("batch_bytes", [1, 50_000, 4 << 20])
def test_small_files_have_the_signatures_of_the_specification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    """However they are joined to batches."""
    monkeypatch.setattr(signatures, "BATCH_BYTES", batch_bytes)
    gpudedup.begin(small_files(tmp_path / "in"), tmp_path / "out", num_perm=30, bands=5, rows=6, id_column="id")
    file = SignatureFile(tmp_path / "out/signatures/000000.arrow", 30)
    parts = list(file.parts(0, file.rows))
    assert len(parts) == {1: DOCUMENTS, 50_000: 1 + DOCUMENTS // (1 + 50_000 // 144), 4 << 20: 1}[batch_bytes]
    lanes = np.concatenate([np.concatenate(file.lanes(part), axis=1) for part in parts])
    assert lanes.tolist() == reference.signatures(TEXTS, num_perm=30)
    content = np.concatenate([content_of(part) for part in parts])
    assert content.tolist() == [list(reference.content(reference.units(text))) for text in TEXTS]
    columns = signatures.read_table(tmp_path / "out/columns/000000.arrow")
    assert columns["id"].to_pylist() == [f"d{number}" for number in range(DOCUMENTS)]


def test_small_files_take_what_a_plan_says(tmp_path: Path) -> None:
    gpudedup.begin(small_files(tmp_path / "in"), tmp_path / "out")
    size = (tmp_path / "out/signatures/000000.arrow").stat().st_size
    assert 0 <= size - DOCUMENTS * signatures.document_bytes(128) < 10_000


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_BYTES", 100_000)
    kinds = pa.schema([pa.field("value", pa.int64())])
    with HashedFile(tmp_path / "rows.arrow") as file, row_writer(file, kinds) as writer:
        for count in (1, 10_000, 3, 50_000, 12_499, 1, 12_500, 7):
            before = pa.total_allocated_bytes()
            writer.write(pa.record_batch([np.full(count, count)], kinds))
            assert pa.total_allocated_bytes() - before < 100_000
    assert [batch.num_rows for batch in signatures.read_batches(tmp_path / "rows.arrow", kinds)]


# ------------------------------------------------------------------------------------------------------- dictionaries


def encoded(part: int, index: pa.DataType, *, long: int = 1) -> pa.Array:
    """A dictionary of its own, one value of which is in that of every part."""
    values = pa.array(["in all", *(f"{part} {number} " * long for number in range(9))])
    return pa.DictionaryArray.from_arrays(pa.array([3, 0, 1, 0, 9, None, 3], index), values)


@pytest.mark.parametrize("batch_bytes", [1, 4 << 20])
@pytest.mark.parametrize("tasks", ["one", "many"])
def test_dictionaries_of_many_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int, tasks: str
) -> None:
    """Results are those of data in memory, which keeps the dictionaries apart."""
    monkeypatch.setattr(signatures, "BATCH_BYTES", batch_bytes)
    if tasks == "many":
        monkeypatch.setattr(corpora, "TASK_FILES", 1)
    for part in range(6):
        value = encoded(part, pa.int8(), long=60)
        table = pa.table({"text": [TEXTS[part % 2]] * 3 + TEXTS[part * 4 : part * 4 + 4], "value": value})
        (tmp_path / "in").mkdir(exist_ok=True)
        pyarrow.feather.write_feather(table, tmp_path / f"in/{part}.arrow", compression="uncompressed")
    for options in ({"id_column": "value"}, {"within": "value"}):
        run = gpudedup.run(tmp_path / "in", tmp_path / next(iter(options)), **options)
        result = gpudedup.deduplicate(tmp_path / "in", **options)
        assert run.removed.to_pylist() == result.removed.to_pylist()
        assert run.summary().removed == result.summary().removed >= 5


def test_dictionaries_within_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "BATCH_BYTES", 1)
    parts = [encoded(part, pa.int32()) for part in range(4)]
    batches = [
        pa.record_batch({"list": pa.ListArray.from_arrays(pa.array([0, 2, 2, 7], pa.int32()), part), "flat": part[:3]})
        for part in parts
    ]
    with HashedFile(tmp_path / "a.arrow") as file, row_writer(file, batches[0].schema) as writer:
        for batch in batches:
            writer.write(batch)
    assert signatures.read_table(tmp_path / "a.arrow").to_pylist() == pa.Table.from_batches(batches).to_pylist()


@pytest.mark.parametrize("index", [pa.int8(), pa.uint8(), pa.int16()], ids=str)
@pytest.mark.parametrize("role", ["id_column", "within"])
def test_dictionaries_of_narrow_indices(tmp_path: Path, role: str, index: pa.DataType) -> None:
    """Eight bits number the values of each file, and not those of all: 400 in one task."""
    (tmp_path / "in").mkdir()
    for part in range(4):
        values = pa.array([f"{part} {number}" for number in range(100)])
        value = pa.DictionaryArray.from_arrays(pa.array(range(100), index), values)
        table = pa.table({"text": TEXTS[:100], "value": value})
        pyarrow.feather.write_feather(table, tmp_path / f"in/{part}.arrow")
    run = gpudedup.run(tmp_path / "in", tmp_path / "out", **{role: "value"})
    result = gpudedup.deduplicate(tmp_path / "in", **{role: "value"})
    assert run.removed.to_pylist() == result.removed.to_pylist()
    assert (run.summary().removed > 0) == (role == "id_column")
    if role == "id_column":
        assert set(run.removed["id"].to_pylist()) <= {f"{part} {number}" for part in range(4) for number in range(100)}


# ---------------------------------------------------------------------------------------------------------- full disks


def test_a_disk_that_is_full_while_documents_are_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a task; the little that is written when it is given up finds room."""
    write, failed = HashedFile.write, []

    def full(file: HashedFile, data: Any) -> int:
        if file.size_bytes > 20_000 and not failed:
            failed.append(file)
            raise OSError(28, "No space left on device")
        return write(file, data)

    monkeypatch.setattr(signatures, "BATCH_BYTES", 10_000)
    with monkeypatch.context() as patch:
        patch.setattr(HashedFile, "write", full)
        with pytest.raises(OutputError, match=r"signatures/000000.arrow: .*No space left on device; .* bytes are free"):
            gpudedup.run(small_files(tmp_path / "in"), tmp_path / "out")
    assert gpudedup.run(tmp_path / "in", tmp_path / "out").summary().documents == DOCUMENTS
