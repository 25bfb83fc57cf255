"""Records of finished tasks: done/STAGE/TASK.json, written after all that the task made.

A task is done if its record can be read, is of the plan that is asked for, and everything that it lists has the size
that it says. Tasks that are done again give the same bytes, so a record that is lost costs time only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from gpudedup.errors import ArtefactError, OutputError
from gpudedup.store import manifest as manifests
from gpudedup.store import sealed
from gpudedup.store.atomic import at_once, atomic_file, output_errors, sync_folder
from gpudedup.store.manifest import InputEntry, OutputEntry, SkippedEntry

STAGES = ("sign", "columns", "match", "verify", "decide", "apply")
FOLDER = "done"
MAX_BYTES = 1 << 26
"""Of a record: room for 10,000 files with names of 2,000 bytes."""

MAKE_ANEW = "delete it, and gpudedup apply RUN makes it anew"
"""The way out of damage to what a task made, and to its record."""


class Record(sealed.Sealed, frozen=True, kw_only=True):
    """What one task read and made."""

    stage: str
    task: int
    digest: str
    """Of all that its result follows from (``digest``)."""
    artefacts: list[OutputEntry]
    inputs: list[InputEntry] = msgspec.field(default_factory=list)
    skipped: list[SkippedEntry] = msgspec.field(default_factory=list)
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    seconds: float
    host: str
    version: str
    """Of gpudedup."""


def digest(**values: Any) -> str:
    """XXH3, 128 bits, of plain values under their names."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode(values, order="sorted"))


def folder_of(stage: str) -> str:
    """Where the records of a stage are, relative to the run."""
    return f"{FOLDER}/{stage}"


def path_of(directory: Path, stage: str, task: int) -> Path:
    return directory / folder_of(stage) / f"{task:06}.json"


def any_done(directory: Path) -> bool:
    """Whether a run holds the record of any task."""
    return (directory / FOLDER).is_dir()


def holds_signatures(directory: Path) -> bool:
    """Whether a directory is that of a run, by a record of signing that can be believed."""
    for task in tasks_recorded(directory, "sign")[:1]:
        with suppress(ArtefactError):
            return bool(load(directory, "sign", task).inputs)
    return False


def write(directory: Path, record: Record, before: Callable[[], None] = at_once) -> Path:
    """Commit a task, whose files are flushed and have their names: the path of the record. Raises OutputError, and what
    ``before`` raises just before.
    """
    path = path_of(directory, record.stage, record.task)
    data = sealed.seal(record)
    if len(data) > MAX_BYTES:
        raise OutputError(
            f"the record of task {record.task} of {record.stage} would have {len(data)} bytes, more than {MAX_BYTES}: "
            f"it names {len(record.inputs)} input files and {len(record.skipped)} places that were skipped; make "
            "several runs of the input, or repair it"
        )
    with output_errors(path):
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            sync_folder(path.parent.parent)
            sync_folder(directory)
    with atomic_file(path, before) as temporary:
        temporary.write_bytes(data)
    with output_errors(path):
        sync_folder(path.parent)
    return path


def tasks_recorded(directory: Path, stage: str) -> list[int]:
    """The tasks of a stage that have a record, whatever it says."""
    folder = directory / FOLDER / stage
    if not folder.is_dir():
        return []
    stems = (name.removesuffix(".json") for name in os.listdir(folder) if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if re.fullmatch("[0-9]{6,12}", stem))


def load(directory: Path, stage: str, task: int) -> Record:
    """The record of a task, whatever became of what it lists. Raises ArtefactError if it is missing or damaged."""
    path = path_of(directory, stage, task)
    _refuse_links(path)
    try:
        data = sealed.read_bytes(path, MAX_BYTES)
    except FileNotFoundError:
        raise ArtefactError(f"{path} is missing") from None
    except OSError as error:
        raise ArtefactError(f"cannot read {path}: {error.strerror}") from error
    record = sealed.decode(data, Record, path)
    if not sealed.is_whole(data, record.checksum):
        raise ArtefactError(f"{path} is not what was written: its checksum differs")
    if (record.stage, record.task) != (stage, task):
        raise ArtefactError(f"{path} is the record of task {record.task} of {record.stage}")
    if not _is_possible(record):
        raise ArtefactError(f"{path} gives numbers that no run writes")
    return record


def _refuse_links(path: Path) -> None:
    for place in (path.parent.parent, path.parent, path):
        if place.is_symlink():
            raise ArtefactError(f"{place} is a symbolic link, which no run writes")


def read(directory: Path, stage: str, task: int, wanted: str | None) -> Record | None:
    """The record of a task if it is done under the plan with digest ``wanted`` (None: under any); else None.

    Raises ArtefactError for a record that leads out of the directory, which no run writes, or that may not be read.
    """
    _refuse_links(path_of(directory, stage, task))
    try:
        record = load(directory, stage, task)
    except ArtefactError as error:
        if isinstance(error.__cause__, OSError):
            raise
        return None
    if wanted not in (None, record.digest):
        return None
    kinds = (*manifests.RESULTS, *manifests.WORKING)
    for entry in record.artefacts:
        artefact = manifests.safe_path(directory, entry, kinds)
        try:
            if os.lstat(artefact).st_size != entry.size_bytes:
                return None
        except OSError:
            return None
    return record


COUNTS = {
    "sign": ("rows", "text_bytes"),
    "columns": ("rows",),
    "verify": ("compared_pairs", "bounded_buckets", "bounded_documents", "longest_bucket"),
}
"""What a record of each stage counts."""


def _is_possible(record: Record) -> bool:
    """Whether a run can have written it."""
    rows = [entry.rows for entry in record.inputs]
    sizes = [entry.size_bytes for entry in record.artefacts] + [entry.size_bytes for entry in record.inputs]
    return (
        (record.stage == "apply" or len(record.artefacts) == 1)
        and manifests.can_be(*(record.counts.get(name, -1) for name in COUNTS.get(record.stage, ())))
        and manifests.can_be(*rows, *sizes)
        and (record.stage != "sign" or sum(rows) == record.counts["rows"])
        and {entry.shard for entry in record.skipped} <= {entry.path for entry in record.inputs}
    )
