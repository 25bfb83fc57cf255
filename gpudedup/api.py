"""The library's front door: deduplicate() for data, run() for files, Run for what a run left."""

from __future__ import annotations

import os
import shlex
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from gpudedup.audit import Audit, audit
from gpudedup.engines.begun import changed, is_finished
from gpudedup.engines.durable import VERBS, drive
from gpudedup.engines.earlier import open_earlier
from gpudedup.engines.local import Budget, run_stages, silent
from gpudedup.engines.status import Status
from gpudedup.engines.status import status as run_status
from gpudedup.errors import ArtefactError, GpudedupError, InputError, ParameterError
from gpudedup.io import open_paths, open_source
from gpudedup.io.paths import find_files
from gpudedup.io.remote import is_url
from gpudedup.params import Params, make_params
from gpudedup.planning import Plan, make_plan
from gpudedup.result import Result
from gpudedup.stages.apply import new_run
from gpudedup.stages.sign import Progress, check_types, columns_needed
from gpudedup.store import manifest as manifests
from gpudedup.store import records
from gpudedup.store import run_directory as store
from gpudedup.store.lock import LocalLockFile, Lock, LockFile, RemoteLockFile, Tell, unheard
from gpudedup.store.manifest import Manifest
from gpudedup.store.mirror import Mirror
from gpudedup.summary import Summary


def deduplicate(data: Any, *, progress: Progress = silent, **options: Any) -> Result:
    """Find the near-copies in ``data`` and decide which documents stay.

    data: Arrow data of any library (``__arrow_c_stream__`` or ``__arrow_c_array__``: pyarrow, Polars, pandas, DuckDB,
    datasets, ...), a pyarrow Dataset or RecordBatchReader, an iterable of record batches, a list of str, or a path,
    glob, directory or URL (str or Path, or a list of Path). One-shot streams are spooled to ``tmp``; files are never
    held in memory as text.

    Two documents are similar if the Jaccard index of their sets of shingles is at least ``threshold``. Documents are
    ranked by ``keep``; one is removed if and only if it is similar to a kept candidate of better rank, its keeper.
    Candidates are documents that share a band of their MinHash signatures; a pair at the threshold becomes one with
    probability ``recall`` or more. The definition, to the bit: docs/spec.md.

    Options (gpudedup.Params): text_column="text", id_column=None, threshold=0.8, recall=0.95, shingle="word:5",
    num_perm=128, bands=None, rows=None, seed=0, fold="full", verify="exact", keep="first", within=None, across=None,
    against=(), bucket_window=64, clustering="keepers", drop_empty=False, max_removed=None, guard_column=None,
    keep_sets=False, device="auto", workers=None, memory=None, tmp=None, on_error="fail".

    against: directories of earlier runs. Their kept documents rank before all of ``data``, in the order of the runs,
    and are never removed; signatures must be alike (fold, shingle, num_perm, seed, bands, rows). A removal for one of
    them says which run in ``keeper_run``.

    Raises ParameterError, InputError, DeviceError, OutputError (no space in ``tmp``), and GuardError if more than
    ``max_removed`` of all documents, or of those of one value of ``guard_column``, would be removed; all GpudedupError.
    O(units * num_perm) time; about 8 * bands + 120 bytes of memory a document beside ``memory``, and 4 * num_perm more
    with verify="signature".
    """
    params = make_params(options)
    opened = ExitStack()
    earlier = open_earlier(params, None, opened)
    weakref.finalize(earlier, opened.close)  # at() may read their texts again
    return Result(run_stages(open_source(data, **_reading(params)), params, progress=progress, earlier=earlier))


def run(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    output: str = "kept",
    engine: str = "local",
    progress: Progress = silent,
    tell: Tell = unheard,
    **options: Any,
) -> Run:
    """Deduplicate files into a directory: removed/, kept/ (or keep_mask/) and manifest.json.

    What is finished of it is committed as it goes. Called again with the same arguments after anything ended it early,
    it goes on from there, and ends with the same bytes; with more input files, it signs only those.

    inputs: paths, globs, directories and URLs of Parquet, Arrow IPC, JSONL, CSV, TSV or plain text files (the last four
    also .gz, .zst), all of one format (CSV and TSV may be mixed). out: a new or empty directory, or one that holds this
    run already. output: "kept" writes the input without removals, with the same relative file names, schema, columns
    and row order; "mask" a boolean column per file; "none" neither.
    tell: called with a line that a user should see, such as that another process held the directory. Options are those
    of `deduplicate`.

    Raises what `deduplicate` does, GuardError before results are written, OutputError if ``out`` is taken or cannot be
    written, ArtefactError if it holds a run of other parameters, of files that are gone or were changed, or is damaged,
    and LockedError while another process drives it.
    """
    params = _checked(engine, options)
    store.check_output(output)
    paths = _paths(inputs)
    if not isinstance(out, str | os.PathLike):
        raise ParameterError(f"out must be the path of a directory, got {out!r}")
    with _place(out, Budget.of(params).tmp) as place:
        if not _is_finished(paths, place[0], params, output):
            _drive(paths, place, output, params, "apply", progress, tell)
    return Run.open(out)


def begin(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    output: str = "kept",
    engine: str = "local",
    progress: Progress = silent,
    tell: Tell = unheard,
    **options: Any,
) -> Status:
    """The first stage of `run` with these arguments, `sign`, and no more; `advance` goes on. Raises what `run` does."""
    params = _checked(engine, options)
    store.check_output(output)
    with _place(out, Budget.of(params).tmp) as place:
        _drive(_paths(inputs), place, output, params, "sign", progress, tell)
    return status(out)


def advance(
    path: str | os.PathLike[str],
    stage: str,
    *,
    engine: str = "local",
    progress: Progress = silent,
    tell: Tell = unheard,
    **changes: Any,
) -> Status:
    """Continue a run up to ``stage``: "sign", "match", "verify", "decide" or "apply". What is done is not done again.

    changes: parameters of which the stages before ``stage`` do not depend, so that nothing is signed, or compared,
    again: match: keep, within, across, against, bucket_window, id_column; verify: verify, clustering, threshold;
    decide: threshold, drop_empty, guard_column, max_removed; apply: output. A threshold may rise over that of the
    bands. And for any stage: device, workers, memory, tmp. Results of an earlier decision go when ``apply`` begins to
    write others.

    Raises what `run` does; ParameterError for what cannot be changed here; and, for a decision at a threshold whose
    similarities are not all known, ParameterError that says how many documents `verify` would read.
    """
    _check_engine(engine)
    if stage not in VERBS:
        raise ParameterError(f"stage must be one of {', '.join(VERBS)}, got {stage!r}")
    with _place(path, changes.get("tmp") or tempfile.gettempdir()) as place:
        manifest = manifests.read(place[0], unfinished=True)
        if not records.any_done(place[0]) and manifest.state == "complete":
            raise ArtefactError(f"{path} was saved from memory: it has no stages; make it with gpudedup run")
        params, output = changed(manifest, stage, changes)
        if manifest.working_directory not in ("", os.getcwd()):
            raise ArtefactError(
                f"the input paths of {path} begin in {manifest.working_directory}; start this there: "
                f"cd {shlex.quote(manifest.working_directory)}"
            )
        inputs = [entry.path for entry in manifest.inputs] or [entry.shard for entry in manifest.skipped]
        _drive(inputs, place, output, params, stage, progress, tell, changing=manifest)
    return status(path)


def status(path: str | os.PathLike[str]) -> Status:
    """How far a run is. Raises ArtefactError if ``path`` holds none."""
    with _place(path, tempfile.gettempdir()) as (folder, mirror):
        return run_status(store.Artefacts(folder, mirror), _lock_file(folder, mirror))


@contextmanager
def _place(path: str | os.PathLike[str], tmp: str) -> Iterator[tuple[Path, Mirror | None]]:
    """The directory of a run; of one on an object store, the local one that stands for it, which errors do not name."""
    if not isinstance(path, str) or not is_url(path):
        yield Path(path), None
        return
    with closing(Mirror(path, tmp)) as mirror:
        try:
            yield mirror.local, mirror
        except GpudedupError as error:
            raise type(error)(str(error).replace(str(mirror.local), mirror.name)) from error


def _lock_file(folder: Path, mirror: Mirror | None) -> LockFile:
    return LocalLockFile(folder) if mirror is None else RemoteLockFile(mirror)


def _is_finished(paths: list[str], folder: Path, params: Params, output: str) -> bool:
    """Whether there is a complete run of these arguments."""
    if not store.holds_run(folder):
        return False
    manifest = manifests.read(folder, unfinished=True)
    return manifest.output == output and is_finished(folder, manifest, find_files(paths), params)


def _drive(
    paths: list[str],
    place: tuple[Path, Mirror | None],
    output: str,
    params: Params,
    until: str,
    progress: Progress,
    tell: Tell,
    changing: Manifest | None = None,
) -> None:
    folder, mirror = place
    source = open_paths(paths, **_reading(params))
    with closing(source):
        check_types(source, params)
        directory = new_run(folder, source, paths, output, params.against, resumable=True, mirror=mirror)
        try:
            with Lock(_lock_file(folder, mirror), tell) as lock, directory:
                if mirror is not None:
                    mirror.check_current()
                drive(directory, source, params, lock, progress, until, changing=changing)
        finally:
            directory.give_back()


def plan(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    *,
    output: str = "kept",
    engine: str = "local",
    progress: Progress = silent,
    **options: Any,
) -> Plan:
    """What `run` with these arguments would be like, from a sample of the input: text, memory, disk, time.

    Reads some tens of MB at most, beside what opening the input takes, and writes nothing. ``out`` (whose free space is
    looked at) need not be given. The sample is drawn by ``seed``. Raises what `run` does, as far as it shows there.
    """
    params = _checked(engine, options)
    store.check_output(output)
    paths = _paths(inputs)
    params = msgspec.structs.replace(params, against=())  # earlier runs take little beside the rest
    with closing(open_paths(paths, **_reading(params))) as source:
        return make_plan(source, params, output=output, out=None if out is None else os.fspath(out), progress=progress)


def _checked(engine: str, options: dict[str, Any]) -> Params:
    _check_engine(engine)
    return make_params(options)


def _check_engine(engine: str) -> None:
    if engine != "local":
        raise ParameterError(f'engine must be "local", got {engine!r}')


class Run(store.Run):
    """A finished run directory: ``removed``, ``kept`` (or ``keep_mask``), ``manifest``, ``summary()``."""

    def summary(self) -> Summary:
        """The summary that the run ended with. Raises ArtefactError if the manifest holds none that can be read."""
        try:
            return Summary.from_manifest(self.manifest)
        except (msgspec.ValidationError, ParameterError, ArithmeticError, ValueError) as error:
            raise ArtefactError(f"{self.path}: the summary in the manifest is damaged: {error}") from error

    def audit(
        self,
        *,
        workers: int | None = None,
        memory: int | str | None = None,
        tmp: str | None = None,
        progress: Progress = silent,
    ) -> Audit:
        """Check files, inputs, every removal and the kept rows (`gpudedup.audit.audit`). Changes nothing."""
        return audit(self, workers=workers, memory=memory, tmp=tmp, progress=progress)


def _paths(inputs: Any) -> list[str]:
    """The paths of ``run``'s inputs. Raises ParameterError for anything else, InputError for none."""
    given = [inputs] if isinstance(inputs, str | os.PathLike) else inputs
    if not isinstance(given, list | tuple) or not all(isinstance(path, str | os.PathLike) for path in given):
        raise ParameterError(
            f"inputs must be a path or a list of paths, got {type(inputs).__name__}; data in memory is for "
            "deduplicate(data).save(out)"
        )
    paths = [os.fspath(path) for path in given]
    if not paths or not all(isinstance(path, str) for path in paths):
        raise InputError("no input was given; name at least one file, glob or directory by str or Path")
    return paths


def _reading(params: Params) -> dict[str, Any]:
    """What ``open_source`` and ``open_paths`` want to know."""
    budget = Budget.of(params)
    return {
        "text_column": params.text_column,
        "columns": columns_needed(params),
        "memory_bytes": budget.memory_bytes,
        "tmp": budget.tmp,
        "on_error": params.on_error,
    }
