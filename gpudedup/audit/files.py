"""The files of a run: what it wrote, what it works from, and what it read, with sizes, checksums and digests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gpudedup.audit.documents import Documents
from gpudedup.audit.findings import RESTORE, Count, Findings
from gpudedup.engines.lineage import Lineage, match_tasks
from gpudedup.errors import ArtefactError, InputError
from gpudedup.io.paths import fingerprints_now
from gpudedup.io.source import Fingerprint
from gpudedup.params import Params
from gpudedup.stages.sign import carried_columns
from gpudedup.store import manifest as manifests
from gpudedup.store import records
from gpudedup.store.manifest import InputEntry, OutputEntry, SkippedEntry
from gpudedup.store.records import MAKE_ANEW, Record
from gpudedup.store.run_directory import Artefacts
from gpudedup.store.stopping import results, stoppable_threads

if TYPE_CHECKING:
    from gpudedup.api import Run

Item = TypeVar("Item")


def _each(check: Callable[[Item], str | None], items: Sequence[Item], workers: int) -> list[str | None]:
    """What ``check`` says of every item, in their order; files are read by several threads."""
    with stoppable_threads(workers, "gpudedup-audit") as submit:
        return results([submit(partial(check, item)) for item in items])


def check_outputs(run: Run, documents: Documents, workers: int, found: Findings, done: Count) -> set[str]:
    """Paths of the outputs that are as the manifest says; problems for others, missing and surplus ones."""
    manifest = run.manifest
    done.count = 1 + len(manifest.outputs)

    def compared(entry: OutputEntry) -> str | None:
        try:
            run.compared(entry)
        except ArtefactError as error:
            return f"{error}; {RESTORE}"
        return None

    whole = set()
    for entry, problem in zip(manifest.outputs, _each(compared, manifest.outputs, workers), strict=True):
        if problem is None:
            whole.add(entry.path)
        else:
            found.artefact(problem)
    listed = {entry.path for entry in manifest.outputs}
    for kind in manifests.RESULTS:
        for folder, _, names in os.walk(run.path / kind):
            for name in names:
                path = Path(folder, name)
                if path.relative_to(run.path).as_posix() not in listed:
                    found.artefact(f"{path} is no file of the run: move it elsewhere")
    shards = {kind: {entry.shard for entry in manifest.outputs if entry.kind == kind} for kind in manifests.RESULTS}
    expected = {"removed", *({"kept": ["kept"], "mask": ["keep_mask"]}.get(manifest.output, []))}
    for kind in sorted(expected):
        missing = set(documents.names) - shards[kind]
        if missing and "" not in shards["removed"]:
            shown = ", ".join(sorted(missing)[:3])
            found.artefact(f"{manifests.NAME} lists no file of {kind}/ for {len(missing)} inputs ({shown}); {RESTORE}")
    return whole


def check_inputs(run: Run, workers: int, found: Findings, done: Count) -> bool:
    """Whether every input file has the bytes that were read, or, where those were not recorded, their size and time."""
    entries = run.manifest.inputs
    paths = [run.input_path(entry.path) for entry in entries]

    def changed(item: tuple[InputEntry, str, Callable[[], Fingerprint]]) -> str | None:
        entry, path, look = item
        then = Fingerprint(entry.size_bytes, entry.mtime_ns, entry.etag)
        try:
            now = look()
            if entry.xxh3_128 and now.size_bytes == entry.size_bytes:
                checksum = manifests.checksum(Path(path))
                was, is_now = f"checksum {entry.xxh3_128}", f"checksum {checksum}"
            else:
                was, is_now = str(then), str(now)
        except InputError as error:
            return f"input {error}; put it back, or run again without it"
        except OSError as error:
            return f"input {path} cannot be read: {error.strerror}; put it back, or run again without it"
        if was == is_now:
            return None
        return f"input {path} was changed: {was} when it was read, {is_now} now; put it back, or run again"

    done.count = len(entries)
    looks = list(zip(entries, paths, fingerprints_now(paths), strict=True))
    problems = [problem for problem in _each(changed, looks, workers) if problem is not None]
    for problem in problems:
        found.input(problem)
    return not problems


@dataclass(frozen=True)
class Working:
    """What a run was continued from, as far as it is whole."""

    artefacts: Artefacts
    records: dict[tuple[str, int], Record]
    """Of (stage, task), where the record and all that it lists is as it should be."""

    def all_of(self, stage: str, tasks: Sequence[int]) -> bool:
        """Whether tasks of a stage are whole."""
        return all((stage, task) in self.records for task in tasks)


def check_working(run: Run, params: Params, workers: int, found: Findings, done: Count) -> Working | None:
    """The tasks of a run, their records and working artefacts; None for a run that was saved from memory."""
    manifest = run.manifest
    if not manifest.digest:
        return None
    lineage, artefacts = Lineage.of(manifest, params), Artefacts(run.path, run.mirror)
    if manifest.digest != lineage.of_results:
        found.artefact(
            f"{run.path / manifests.NAME} has digest {manifest.digest}, and its parameters and inputs give "
            f"{lineage.of_results}; {RESTORE}"
        )
    needed = _tasks(run, params)
    more = [(stage, task) for stage in records.STAGES for task in artefacts.tasks_recorded(stage)]
    read: list[Record] = []
    for stage, task in dict.fromkeys([*needed, *more]):
        wanted = lineage.digest(stage, task)
        path = records.path_of(run.path, stage, task)
        try:
            record = artefacts.record(stage, task)
            if record.digest == wanted:
                read.append(record)
            elif (stage, task) in needed:  # else it is of an earlier decision, and nothing uses it
                raise ArtefactError(f"{path} is of digest {record.digest}, and the run of {wanted}")
        except ArtefactError as error:
            found.artefact(f"{error}; {MAKE_ANEW}")
    entries = [(record, entry) for record in read for entry in record.artefacts]
    done.count = len(read) + len(entries)

    def compared(item: tuple[Record, OutputEntry]) -> str | None:
        record, entry = item
        try:
            if record.stage == "apply":  # compared with the manifest, which lists it too
                manifests.safe_path(run.path, entry, manifests.RESULTS)
            else:
                artefacts.artefact(entry)
        except ArtefactError as error:
            return str(error)
        return None

    whole = {(record.stage, record.task): record for record in read}
    for (record, _), problem in zip(entries, _each(compared, entries, workers), strict=True):
        if problem is not None:
            found.artefact(problem)
            whole.pop((record.stage, record.task), None)
    working = Working(artefacts, whole)
    _check_manifest(run, params, working, found)
    return working


def _tasks(run: Run, params: Params) -> list[tuple[str, int]]:
    """(stage, task) of all tasks of a finished run."""
    manifest = run.manifest
    of_files = sorted({entry.task for entry in manifest.inputs})
    rows = sum(entry.rows for entry in manifest.inputs) + sum(entry.documents for entry in manifest.against)
    return [
        *(("sign", task) for task in of_files),
        *(("columns", task) for task in of_files if carried_columns(params)),
        *(("match", task) for task in range(1 + match_tasks(params, rows))),
        ("verify", params.threshold_ppm),
        ("decide", 0),
        *(("apply", task) for task in of_files),
    ]


def _check_manifest(run: Run, params: Params, working: Working, found: Findings) -> None:
    """Whether the records give what the manifest says of inputs, outputs and counts."""
    manifest = run.manifest
    tasks = sorted({entry.task for entry in manifest.inputs})
    says: list[tuple[str, object, object]] = []  # (of what, the manifest, the records)
    if working.all_of("sign", tasks):
        signed = [working.records["sign", task] for task in tasks]
        says += _differences(_read(manifest.inputs), _read(entry for record in signed for entry in record.inputs))
        skipped = [entry for record in signed for entry in record.skipped]
        says += _differences(_skipped_rows(manifest.skipped), _skipped_rows(skipped))
        text_bytes = sum(record.counts.get("text_bytes", 0) for record in signed)
        says.append(("text_bytes", manifest.counts.get("text_bytes"), text_bytes))
    if working.all_of("apply", tasks):
        written = {entry.path: entry for task in tasks for entry in working.records["apply", task].artefacts}
        says += _differences({entry.path: entry for entry in manifest.outputs}, written)
    verified = working.records.get(("verify", params.threshold_ppm))
    if verified is not None:
        says += [(name, manifest.counts.get(name), count) for name, count in verified.counts.items()]
    for what, of_manifest, of_records in says:
        if of_manifest != of_records:
            found.artefact(
                f"{run.path / manifests.NAME} and the records in {records.FOLDER}/ differ in {what}: {of_manifest} and "
                f"{of_records}; {RESTORE}"
            )


def _differences(left: Mapping[str, object], right: Mapping[str, object]) -> Iterator[tuple[str, object, object]]:
    """(name, value in one, value in the other) of all names."""
    return ((name, left.get(name), right.get(name)) for name in sorted({*left, *right}))


def _read(entries: Iterable[InputEntry]) -> dict[str, object]:
    """Input files by path, without marks that may change though the bytes do not."""
    return {entry.path: msgspec.structs.replace(entry, mtime_ns=0, etag=None) for entry in entries}


def _skipped_rows(entries: Sequence[SkippedEntry]) -> dict[str, object]:
    return {f"row {entry.first_row} of {entry.shard}": entry for entry in entries if entry.first_row is not None}
