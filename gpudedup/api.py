"""The library's front door: deduplicate() for data, run() for files, Run for what a run left."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import msgspec

from gpudedup.audit import Audit, audit
from gpudedup.engines.local import Budget, run_stages, silent
from gpudedup.errors import ArtefactError, InputError, ParameterError
from gpudedup.io import open_paths, open_source
from gpudedup.params import Params, make_params
from gpudedup.planning import Plan, make_plan
from gpudedup.result import Result, Summary
from gpudedup.stages.apply import new_run
from gpudedup.stages.sign import Progress, columns_needed
from gpudedup.store import run_directory as store


def deduplicate(data: Any, *, progress: Progress = silent, **options: Any) -> Result:
    """Find the near-copies in ``data`` and decide which documents stay.

    data: Arrow data of any library (``__arrow_c_stream__`` or ``__arrow_c_array__``: pyarrow, Polars, pandas, DuckDB,
    datasets, ...), a pyarrow Dataset or RecordBatchReader, an iterable of record batches, a list of str, or a path,
    glob or directory (str or Path, or a list of Path). One-shot streams are spooled to ``tmp``; files are never held in
    memory as text.

    Two documents are similar if the Jaccard index of their sets of shingles is at least ``threshold``. Documents are
    ranked by ``keep``; one is removed if and only if it is similar to a kept candidate of better rank, its keeper.
    Candidates are documents that share a band of their MinHash signatures; a pair at the threshold becomes one with
    probability ``recall`` or more. The definition, to the bit: docs/spec.md.

    Options (gpudedup.Params): text_column="text", id_column=None, threshold=0.8, recall=0.95, shingle="word:5",
    num_perm=128, bands=None, rows=None, seed=0, fold="full", verify="exact", keep="first", within=None, across=None,
    bucket_window=64, clustering="keepers", drop_empty=False, max_removed=None, guard_column=None,
    keep_sets=False, device="auto", workers=None, memory=None, tmp=None, on_error="fail".

    Raises ParameterError, InputError, DeviceError, OutputError (no space in ``tmp``), and GuardError if more than
    ``max_removed`` of all documents, or of those of one value of ``guard_column``, would be removed; all GpudedupError.
    O(units * num_perm) time; about 8 * bands + 120 bytes of memory a document beside ``memory``, and 4 * num_perm more
    with verify="signature".
    """
    params = make_params(options)
    return Result(run_stages(open_source(data, **_reading(params)), params, progress=progress))


def run(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    output: str = "kept",
    engine: str = "local",
    progress: Progress = silent,
    **options: Any,
) -> Run:
    """Deduplicate files into a directory: removed/, kept/ (or keep_mask/) and manifest.json.

    inputs: paths, globs and directories of Parquet, Arrow IPC, JSONL, CSV, TSV or plain text files (the last four also
    .gz, .zst), all of one format (CSV and TSV may be mixed). out: a new or empty directory; whatever ends the run
    early, nothing half-written stays in it. output: "kept" writes the input without removals, with the same relative
    file names, schema, columns and row order; "mask" a boolean column per file; "none" neither.
    Options are those of `deduplicate`.

    Raises what `deduplicate` does, GuardError before anything is written, and OutputError if ``out`` is taken or
    cannot be written.
    """
    params = _checked(engine, options)
    paths = _paths(inputs)
    if not isinstance(out, str | os.PathLike):
        raise ParameterError(f"out must be the path of a directory, got {out!r}")
    source = open_paths(paths, **_reading(params))
    with closing(source), new_run(out, source, paths, output) as directory:
        result = Result(run_stages(source, params, progress=progress))
        result.write(directory, progress)
    return Run.open(out)


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
    with closing(open_paths(paths, **_reading(params))) as source:
        return make_plan(source, params, output=output, out=None if out is None else os.fspath(out), progress=progress)


def _checked(engine: str, options: dict[str, Any]) -> Params:
    if engine != "local":
        raise ParameterError(f'engine must be "local", got {engine!r}')
    return make_params(options)


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
