"""A run that was begun, beside what is asked of it now: whether it is the same, what may change, and what refuses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gpudedup.engines.corpus import Corpus
from gpudedup.engines.earlier import keeps_the_same
from gpudedup.engines.lineage import Lineage, recorded_params
from gpudedup.errors import ArtefactError, ParameterError
from gpudedup.io.paths import InputFile
from gpudedup.params import SPEC, Params, make_params
from gpudedup.store import manifest as manifests
from gpudedup.store import records
from gpudedup.store.manifest import AgainstEntry, Manifest
from gpudedup.store.run_directory import RunDirectory, check_output

CHANGEABLE: dict[str, tuple[str, ...]] = {
    "sign": (),
    "match": ("keep", "within", "across", "against", "bucket_window", "id_column"),
    "verify": ("verify", "clustering", "threshold"),
    "decide": ("threshold", "drop_empty", "max_removed", "guard_column"),
    "apply": ("output",),
}
"""The parameters that each verb may change in a run: nothing is signed again."""

RUNTIME = ("device", "workers", "memory", "tmp")
"""Parameters of this process alone."""

UNDECIDING = ("max_removed", "guard_column", "keep_sets", "device", "workers", "memory", "tmp")
"""Parameters that no removal follows from."""


def is_same(
    before: Manifest,
    params: Params,
    *,
    files: Iterable[tuple[str, int, int]],
    output: str,
    types: Mapping[str, str],
    against: Sequence[AgainstEntry],
) -> bool:
    """Whether a manifest is of these files (name, task, bytes), parameters, output, column types and earlier runs."""
    then = recorded_params(before)
    names = [name for name in Params.__struct_fields__ if name not in RUNTIME]
    return (
        [(entry.path, entry.task, entry.size_bytes) for entry in before.inputs] == list(files)
        and all(getattr(then, name) == getattr(params, name) for name in names)
        and before.output == output
        and before.column_types == types
        and before.against == against
    )


def is_finished(path: Path, manifest: Manifest, files: Sequence[InputFile], params: Params) -> bool:
    """Whether a complete run is of these files, parameters and earlier runs, and its results have their sizes."""
    if manifest.state != "complete" or different_parameters(manifest, params):
        return False
    then = recorded_params(manifest)
    if (then.max_removed, then.guard_column) != (params.max_removed, params.guard_column):
        return False  # whether the decision is accepted is asked again
    if manifest.spec != SPEC or manifest.digest != Lineage.of(manifest, then).of_results:
        return False
    skipped = {(entry.shard, entry.size_bytes, entry.mtime_ns) for entry in manifest.skipped if entry.first_row is None}
    every = [(file.path, file.fingerprint) for file in files]
    marks = [(name, mark) for name, mark in every if (name, mark.size_bytes, mark.mtime_ns) not in skipped]
    now = [(name, mark.size_bytes, mark.mtime_ns, mark.etag) for name, mark in marks]
    if now != [(entry.path, entry.size_bytes, entry.mtime_ns, entry.etag) for entry in manifest.inputs]:
        return False
    if not all(keeps_the_same(entry) for entry in manifest.against):
        return False
    sizes = {entry.path: entry.size_bytes for entry in manifest.outputs}
    try:
        return all(os.lstat(f"{path}/{name}").st_size == size for name, size in sizes.items())
    except OSError:
        return False


def check_same(before: Manifest, params: Params, names: Sequence[str], where: RunDirectory) -> None:
    """Raise ArtefactError, with both values, if a run that was begun cannot go on with these parameters and files."""
    changes = different_parameters(before, params)
    if before.output != where.output:
        changes.append(("output", before.output, where.output))
    if changes:
        said = ", ".join(f"{name}={old!r}, not {new!r}" for name, old, new in changes[:3])
        raise ArtefactError(f"{where.path} was begun with {said}; {_way_to_change([name for name, *_ in changes])}")
    gone = sorted({entry.path for entry in before.inputs} - set(names))
    if gone:
        raise ArtefactError(
            f"{where.path} was made from {len(before.inputs)} files, of which {len(gone)} are not among the inputs "
            f"now, such as {gone[0]}; name them too, or use another directory"
        )


def check_place(before: Manifest, where: RunDirectory) -> None:
    """Raise ArtefactError for another spec, and if relative paths, of inputs and earlier runs, begin elsewhere."""
    if before.spec != SPEC:
        raise ArtefactError(
            f"{where.path} follows spec {before.spec}, this version of gpudedup spec {SPEC}; use another directory"
        )
    if "" not in (before.working_directory, where.working_directory) and (
        before.working_directory != where.working_directory
    ):
        raise ArtefactError(
            f"{where.path} was begun in {before.working_directory}, where its paths begin, not in "
            f"{where.working_directory}; start it there, or use another directory"
        )


def check_unchanged(corpus: Corpus, directory: RunDirectory) -> None:
    """Raise ArtefactError, with both values, if a file is not what was signed. Of one with another time but the same
    bytes the new time is recorded, so that its bytes are compared once.
    """
    place = {name: number for number, name in enumerate(corpus.names)}
    for task in directory.tasks_recorded("sign"):
        record = directory.done("sign", task, None)
        if record is None:
            continue
        now = list(record.inputs)
        for number, entry in enumerate(record.inputs):
            mark = corpus.marks[place[entry.path]] if entry.path in place else None
            if mark is None:
                continue
            if not manifests.is_unchanged(entry, mark, entry.path):
                raise ArtefactError(
                    f"{entry.path} is not what {directory.path} was made from: {entry.size_bytes} bytes with mtime_ns "
                    f"{entry.mtime_ns} then, {mark.size_bytes} with {mark.mtime_ns} now; put it back, use another "
                    f"directory, or delete {records.path_of(directory.path, 'sign', task)} to have it signed again"
                )
            if entry.xxh3_128:
                now[number] = msgspec.structs.replace(entry, mtime_ns=mark.mtime_ns, etag=mark.etag)
        if now != record.inputs and directory.mirror is None:  # from a store what it lists would have to come first
            directory.commit(msgspec.structs.replace(record, inputs=now))


def changed(manifest: Manifest, stage: str, changes: dict[str, Any]) -> tuple[Params, str]:
    """The parameters and the output of a run with changes that ``stage`` can make. Raises ParameterError."""
    params, output = recorded_params(manifest), manifest.output
    allowed = [*CHANGEABLE[stage], *RUNTIME]
    for name in changes:
        if name not in allowed:
            raise ParameterError(
                f"{stage} cannot change {name}; it can change {', '.join(allowed)}; other parameters take another run"
            )
    output = changes.pop("output", output)
    check_output(output)
    threshold = changes.pop("threshold", None)
    if threshold is not None and threshold != params.threshold:
        params = params.with_threshold(threshold, manifest.lowest_threshold)
    runtime = dict.fromkeys(("workers", "memory", "tmp"))
    return make_params({**msgspec.to_builtins(params), **runtime, "device": "auto", **changes}), output


def different_parameters(before: Manifest, params: Params) -> list[tuple[str, Any, Any]]:
    """(name, then, now) of parameters that decide a result and differ."""
    then = recorded_params(before)
    names = [name for name in Params.__struct_fields__ if name not in UNDECIDING]
    pairs = [(name, getattr(then, name), getattr(params, name)) for name in names]
    changes = [(name, was, now) for name, was, now in pairs if was != now]
    if {name for name, *_ in changes} <= {"bands", "rows"} and (before.bands, before.rows) == params.banding:
        return []
    return changes


def _way_to_change(names: Sequence[str]) -> str:
    for verb, parameters in CHANGEABLE.items():
        if set(names) <= set(parameters):
            options = " ".join(f"--{name.replace('_', '-')} ..." for name in names)
            return f"use another directory, or decide this run anew: gpudedup {verb} RUN {options}"
    return "use another directory"
