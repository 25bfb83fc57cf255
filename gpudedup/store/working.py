"""The artefacts of match, verify and decide: Arrow IPC, read back with every number checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup.backends.base import I64, NO_KEEPER, U8, U32, U64, Band
from gpudedup.errors import ArtefactError
from gpudedup.store.records import MAKE_ANEW
from gpudedup.store.signatures import read_batches

ORDER = pa.schema([pa.field(name, pa.uint32(), nullable=False) for name in ("order", "leader")])
"""All documents by rank, and the place of each one's representative."""

BANDS = pa.schema([pa.field("member", pa.uint32(), nullable=False), pa.field("first", pa.bool_(), nullable=False)])
"""A record batch a band: the members of its buckets; ``first`` is true where a bucket begins."""

DECISION = pa.schema(
    [
        *(pa.field(name, pa.uint32(), nullable=False) for name in ("document", "keeper")),
        *(pa.field(name, pa.uint64(), nullable=False) for name in ("part", "whole")),
    ]
)
"""The representatives that are removed; similarity is part / whole."""

REMOVED = pa.schema(
    [
        *(pa.field(name, pa.int64(), nullable=False) for name in ("document", "keeper")),
        pa.field("reason", pa.uint8(), nullable=False),
        pa.field("similarity", pa.float64(), nullable=False),
    ]
)
"""Documents by number, as in ``stages.decide.Decided``; NaN where the similarity was not measured."""


def band_batch(band: Band) -> pa.RecordBatch:
    """A batch of BANDS."""
    first = np.zeros(len(band.members), bool)
    first[np.cumsum(band.lengths, dtype=np.int64) - band.lengths] = True
    return pa.record_batch([band.members, first], schema=BANDS)


def decision_batch(keeper: U32, part: U64, whole: U64) -> pa.RecordBatch:
    """The batch of DECISION, from values by representative."""
    removed = np.flatnonzero(keeper != NO_KEEPER)
    return pa.record_batch([removed.astype(np.uint32), keeper[removed], part[removed], whole[removed]], schema=DECISION)


def read_order(path: Path, documents: int) -> tuple[U32, U32]:
    """(order, leader). Raises ArtefactError if they cannot be of as many documents."""
    order, leader = _columns(path, ORDER)
    if (order >= documents).any() or (leader > np.arange(len(leader))).any() or (leader[leader] != leader).any():
        raise _damaged(path)
    return np.ascontiguousarray(order), np.ascontiguousarray(leader)


def read_bands(path: Path, count: int) -> list[Band]:
    """``count`` bands, whose members whoever uses them checks. Raises ArtefactError."""
    batches = read_batches(path, BANDS)
    if len(batches) != count:
        raise _damaged(path)
    bands = []
    for batch in batches:
        first = np.flatnonzero(batch.column("first").to_numpy(zero_copy_only=False))
        if batch.num_rows and (len(first) == 0 or first[0] != 0):
            raise _damaged(path)
        lengths = np.diff(np.append(first, batch.num_rows)).astype(np.uint32)
        bands.append(Band(batch.column("member").to_numpy(), lengths))
    return bands


def read_decision(path: Path, count: int) -> tuple[U32, U64, U64]:
    """(keeper, part, whole) by representative. Raises ArtefactError if they cannot be of ``count``."""
    document, keeper, part, whole = _columns(path, DECISION)
    rising = (np.diff(document.astype(np.int64)) > 0).all()
    if not rising or (document >= count).any() or (keeper >= document).any():
        raise _damaged(path)
    keepers = np.full(count, NO_KEEPER, np.uint32)
    parts, wholes = np.zeros(count, np.uint64), np.zeros(count, np.uint64)
    keepers[document], parts[document], wholes[document] = keeper, part, whole
    return keepers, parts, wholes


def read_removed(path: Path, rows: int, documents: int) -> tuple[I64, I64, U8, npt.NDArray[np.float64]]:
    """(document, keeper, reason, similarity). Raises ArtefactError if they cannot be of as many."""
    document, keeper, reason, similarity = _columns(path, REMOVED)
    fine = (document >= 0) & (document < rows) & (keeper >= -1) & (keeper < documents) & (reason < 3)
    if not fine.all() or not (np.diff(document) > 0).all():
        raise _damaged(path)
    return document, keeper, reason, similarity


def _columns(path: Path, kinds: pa.Schema) -> list[npt.NDArray]:  # type: ignore[type-arg]
    batches = read_batches(path, kinds)
    if len(batches) != 1:
        raise _damaged(path)
    return [column.to_numpy() for column in batches[0].columns]


def _damaged(path: Path) -> ArtefactError:
    return ArtefactError(f"{path} is nothing that a run writes; {MAKE_ANEW}")
