"""The library's front door: deduplicate() for data, run() for files, Run for what a run left."""

from __future__ import annotations

from typing import Any

from gpudedup.engines.local import Budget, run_stages, silent
from gpudedup.io import open_source
from gpudedup.params import Params, make_params
from gpudedup.result import Result
from gpudedup.stages.sign import Progress, columns_needed


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
    bucket_window=64, clustering="keepers", drop_empty=False, keep_sets=False, device="auto", workers=None,
    memory=None, tmp=None, on_error="fail".

    Raises ParameterError, InputError, DeviceError, OutputError (no space in ``tmp``), all GpudedupError.
    O(units * num_perm) time; about 4 * num_perm + 60 bytes of memory a document beside ``memory``.
    """
    params = make_params(options)
    return Result(run_stages(_open(data, params), params, progress=progress))


def _open(data: Any, params: Params) -> Any:
    budget = Budget.of(params)
    return open_source(
        data,
        text_column=params.text_column,
        columns=columns_needed(params),
        memory_bytes=budget.memory_bytes,
        tmp=budget.tmp,
        on_error=params.on_error,
    )
