"""What a run takes of the disk; and before anything is signed, whether that has room for what is sure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gpudedup.engines.local import Budget
from gpudedup.errors import InputError, OutputError
from gpudedup.io.source import AnyShard, DocumentFiles, Source, input_files
from gpudedup.machine import free_bytes
from gpudedup.params import Params
from gpudedup.stages.sample import take_sample
from gpudedup.store.signatures import document_bytes

if TYPE_CHECKING:
    from gpudedup.engines.durable import DurableRun

LEAST_SAMPLE_BYTES, MOST_SAMPLE_BYTES = 1 << 20, 16 << 20
"""Of lines whose number no format tells: 20 to 100 ms."""

SAMPLE_SHARE = 200
"""Between these, a sample is of this part of the input: a run takes longer by less than one percent."""

LEAST_PLACES = 8
"""A sample of fewer places says too little of the rest for a run to be refused."""

LEAST_ROW_BYTES = 2
"""A character and a line end."""

ORDER_BYTES = 8
"""In match/, of each document."""

MEMBER_BYTES = 4 + 1 / 8
"""In match/, of each member of a bucket."""

SLOT_BYTES = 20
"""In memory or ``tmp``, of each member; beside 8 of each document."""

REMOVAL_BYTES = 24 + 25
"""In verify/ and decide/."""

MOST_EXPANSION = 10
"""Decompressed bytes a compressed byte, for text."""


def check_space(run: DurableRun) -> None:
    """Raise OutputError if the signatures that are still to be made do not fit the disk of the run's directory.

    Those are certain. What else is written (matches, decisions, carried columns, what is kept) is not counted: how much
    it is depends on what is found.
    """
    missing = [task for task in run.corpus.tasks if run.done("sign", task) is None]
    if not missing:
        return
    free, each = free_bytes(run.directory.path), document_bytes(run.params.num_perm)
    documents, unknown = 0, list[AnyShard]()
    places = np.isin(run.corpus.task, missing)
    for number, files in zip(*np.unique(run.corpus.shard[places], return_counts=True), strict=True):
        shard = run.source.shards[number]
        known = int(files) if isinstance(shard, DocumentFiles) else getattr(shard, "row_count", None)
        if known is not None:
            documents += known
        elif shard.file.remote is None:  # a sample of remote files would take many requests
            unknown.append(shard)
    if unknown and (documents + most_documents(unknown)) * each > free:  # else it fits, whatever a sample says
        documents += least_documents(run.source, unknown, run.params, run.budget.memory_bytes)
    needed = int(documents * each)
    if needed > free:
        raise OutputError(
            f"{run.directory.path} needs {needed} bytes at least, for the signatures of {documents} documents "
            f"({each:g} bytes each), and {free} are free there: free some, choose a directory on another disk, or take "
            "fewer lanes (num_perm)"
        )


def working_bytes(params: Params, documents: int, *, carried_bytes: float, sharing: float, removed: float) -> int:
    """About what a run is continued from takes on disk: signatures/, columns/, match/, verify/ and decide/.

    carried_bytes: of a document's carried columns; sharing, removed: the shares of documents that share a bucket (with
    at most as many members as bands, each), and that are removed.
    """
    matched = ORDER_BYTES + sharing * params.banding.bands * MEMBER_BYTES
    each = document_bytes(params.num_perm) + carried_bytes + matched + removed * REMOVAL_BYTES
    return round(documents * each)


def spill_bytes(params: Params, budget: Budget, documents: int, *, shingles: float, sharing: float) -> int:
    """What goes to ``tmp`` beyond memory: sets or signatures, if all are compared, and buckets.

    shingles: of all documents.
    """
    compared = {"exact": 4 * shingles, "signature": 4 * params.num_perm * documents, "none": 0}[params.verify]
    buckets = documents * (8 + sharing * params.banding.bands * SLOT_BYTES)
    return max(0, round(compared) - budget.set_bytes) + max(0, round(buckets) - budget.bucket_bytes)


def most_documents(shards: Sequence[AnyShard]) -> int:
    """More than this are in no files of lines of these sizes, nearly for certain."""
    expansion = MOST_EXPANSION if any(shard.file.compression for shard in shards) else 1  # type: ignore[union-attr]
    return _stored_bytes(shards) * expansion // LEAST_ROW_BYTES


def least_documents(source: Source, shards: Sequence[AnyShard], params: Params, memory_bytes: int) -> int:
    """At least this many are, by a sample; 0 if it says too little."""
    most_bytes = min(max(LEAST_SAMPLE_BYTES, _stored_bytes(shards) // SAMPLE_SHARE), MOST_SAMPLE_BYTES)
    try:
        sample = take_sample(source, shards, params, most_bytes=most_bytes, memory_bytes=memory_bytes, writing=False)
    except InputError:  # which signing meets too, and says of the whole file
        return 0
    total = sample.document_total
    if total.spread is None or (not sample.whole and sample.places < LEAST_PLACES):
        return 0
    return max(0, total.value - total.spread)


def _stored_bytes(shards: Sequence[AnyShard]) -> int:
    return sum(mark.size_bytes for _, mark in input_files(shards) if mark is not None)
