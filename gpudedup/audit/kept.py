"""Whether kept/ or keep_mask/ is the input without its removals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
import xxhash

from gpudedup.audit.documents import Documents
from gpudedup.audit.findings import RESTORE, Bools, Findings
from gpudedup.engines.local import Budget
from gpudedup.errors import ArtefactError, InputError
from gpudedup.io import open_paths
from gpudedup.io.batches import READ_ERRORS, say
from gpudedup.io.paths import FORMATS, suffix_of
from gpudedup.io.source import DocumentFiles, FileShard, RowFile, Source
from gpudedup.params import Params
from gpudedup.store.manifest import OutputEntry
from gpudedup.store.scratch import ScratchDirectory

if TYPE_CHECKING:
    from gpudedup.api import Run

COMPARED_BYTES = 1 << 20


def check_kept_rows(
    run: Run, documents: Documents, keep: Bools, source: Source | None, params: Params, whole: set[str], found: Findings
) -> None:
    """Whether kept/ or keep_mask/ is the input without removals; rows of kept/ by content if there is a ``source``."""
    kind = {"kept": "kept", "mask": "keep_mask"}.get(run.manifest.output)
    if kind is None:
        return
    entries = {entry.shard: entry for entry in run.manifest.outputs if entry.kind == kind}
    with found.check("rows of the mask" if kind == "keep_mask" else "kept rows") as done:
        if kind == "keep_mask":
            for shard, entry in entries.items():
                place = documents.names.index(shard) if shard in documents.names else None
                span = slice(None) if place is None else slice(*documents.first[place : place + 2].tolist())
                if entry.path in whole:
                    _check_mask(run, entry, keep[span], documents.names if place is None else None, found)
                    done.count += len(keep[span])
            return
        files = _input_files(source) if source is not None else [None] * len(documents.names)
        small = "" not in entries and any(entry.shard == "" for entry in run.manifest.outputs)
        for place, (name, file) in enumerate(zip(documents.names, files, strict=True)):
            part = keep[documents.first[place] : documents.first[place + 1]]
            kept = int(part.sum())
            found_entry = entries.get(name)
            if small and (found_entry is not None) != (kept > 0):
                state = "is in kept/, and was removed" if found_entry else "is not in kept/, and was not removed"
                found.artefact(f"{name} {state}; {RESTORE}")
                continue
            if found_entry is None or found_entry.path not in whole:
                continue
            if found_entry.rows is not None and found_entry.rows != kept:
                found.artefact(
                    f"{run.path / found_entry.path} has {found_entry.rows} rows, and removed/ leaves {kept} of {name}; "
                    f"{RESTORE}"
                )
                continue
            try:
                if file is not None:
                    check = _check_copy if small else _check_kept
                    check(run.path / found_entry.path, found_entry, file, part, params)
                    done.count += kept
            except ArtefactError as error:
                found.artefact(f"{error}; {RESTORE}")


def _input_files(source: Source) -> list[Any]:
    """What gives the kept rows of each input file: a shard, or a file that is one row."""
    return [file for shard in source.shards for file in (shard.files if isinstance(shard, DocumentFiles) else [shard])]


def _check_mask(run: Run, entry: OutputEntry, keep: Bools, names: Sequence[str] | None, found: Findings) -> None:
    path = run.path / entry.path
    at = 0
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != len(keep):
                found.artefact(f"{path} has {file.metadata.num_rows} rows, and the input {len(keep)}; {RESTORE}")
                return
            for batch in file.iter_batches():
                mask = pc.fill_null(batch.column("keep").cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
                start = at
                found.each(
                    mask != keep[at : at + len(mask)],
                    lambda i: f"{path}: row {start + i} does not agree with removed/; {RESTORE}",  # noqa: B023
                )
                if names is not None and batch.column("shard").to_pylist() != list(names[at : at + len(mask)]):
                    found.artefact(f"{path} names other files than the input has; {RESTORE}")
                at += len(mask)
    except READ_ERRORS as error:
        found.artefact(f"{path} cannot be read: {say(error)}; {RESTORE}")


def _check_copy(path: Path, entry: OutputEntry, file: RowFile, keep: Bools, params: Params) -> None:
    """Raise ArtefactError unless a kept file, whose checksum is right, is a copy of the input file that it names."""
    digest = xxhash.xxh3_128()
    for block in file.blocks():
        digest.update(block)
    if digest.hexdigest() != entry.xxh3_128:
        raise ArtefactError(f"{path} is no copy of {file.path}")


def _check_kept(path: Path, entry: OutputEntry, file: FileShard, keep: Bools, params: Params) -> None:
    """Raise ArtefactError unless a kept file holds the kept rows of its input file, in order, and nothing else."""
    kind, compression = FORMATS[suffix_of(file.name) or ""]
    if kind in ("parquet", "ipc"):
        row = _first_difference(file.kept(keep), _kept_batches(path, int(keep.sum()), params))
    else:
        row = _first_other_byte(file, keep, path, compression, params)
    if row is not None:
        raise ArtefactError(f"{path} is not {file.name} without its removals: they differ {row}")


def _kept_batches(path: Path, count: int, params: Params) -> Iterator[pa.RecordBatch]:
    """All rows of a kept file, read by the reader of its format. Raises ArtefactError for what is wrong with it."""
    budget = Budget.of(params)
    try:
        source = open_paths(
            [str(path)],
            text_column=params.text_column,
            columns=[],
            memory_bytes=budget.memory_bytes,
            tmp=budget.tmp,
        )
        (shard,) = source.shards
        yield from shard.kept(np.ones(count, bool))
    except (InputError, ValueError) as error:
        raise ArtefactError(f"{path}: {say(error)}") from error


def _first_difference(left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch]) -> str | None:
    """Where two streams of batches, cut in any way, first differ; None if nowhere."""
    row = 0
    one = other = None
    while True:
        one = one if one is not None and one.num_rows else next((b for b in left if b.num_rows), None)
        other = other if other is not None and other.num_rows else next((b for b in right if b.num_rows), None)
        if one is None or other is None:
            return None if one is other else f"in length, from row {row} on"
        count = min(one.num_rows, other.num_rows)
        if not _equal(one.slice(0, count), other.slice(0, count)):
            low, high = 0, count  # rows below ``low`` are equal, those below ``high`` are not
            while high - low > 1:
                middle = (low + high) // 2
                same = _equal(one.slice(low, middle - low), other.slice(low, middle - low))
                low, high = (middle, high) if same else (low, middle)
            return f"in row {row + low}"
        row += count
        one, other = one.slice(count), other.slice(count)


def _equal(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether two batches hold the same columns of the same values, NaN equal to NaN."""
    if one.schema != other.schema:
        return False
    return all(a.equals(b) or _equal_bits(a, b) for a, b in zip(one.columns, other.columns, strict=True))


def _equal_bits(one: pa.Array, other: pa.Array) -> bool:
    """For columns that may hold NaN, which Arrow takes for unequal to itself."""
    if pt.is_floating(one.type):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[one.type.bit_width]
        return bool(one.view(bits).equals(other.view(bits)))
    return pt.is_nested(one.type) and repr(one.to_pylist()) == repr(other.to_pylist())


def _first_other_byte(shard: FileShard, keep: Bools, path: Path, compression: str | None, params: Params) -> str | None:
    """Where a kept file of lines first differs from what its shard writes, decompressed; None if nowhere."""
    with ScratchDirectory("gpudedup-audit-", Budget.of(params).tmp) as scratch:
        again = scratch.path / path.name
        shard.write_kept(keep, again)
        try:
            with (
                pa.input_stream(str(again), compression=compression) as left,
                pa.input_stream(str(path), compression=compression) as right,
            ):
                at = 0
                while True:
                    one, other = left.read(COMPARED_BYTES), right.read(COMPARED_BYTES)
                    if one != other:
                        return f"near byte {at} of the decompressed text" if compression else f"after byte {at}"
                    if not one:
                        return None
                    at += len(one)
        except READ_ERRORS as error:
            raise ArtefactError(f"{path} cannot be read: {say(error)}") from error
