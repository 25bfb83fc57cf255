"""The tables of removals: read, and held against one another, the counts, the decision and earlier runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpudedup.audit.documents import Documents
from gpudedup.audit.files import Working
from gpudedup.audit.findings import RESTORE, RUN_AGAIN, Bools, Findings
from gpudedup.backends.base import I64, U8
from gpudedup.errors import ArtefactError
from gpudedup.io.batches import READ_ERRORS, say
from gpudedup.params import PPM, Params
from gpudedup.stages.decide import EMPTY, EXACT, NEAR, REASONS
from gpudedup.store import manifest as manifests
from gpudedup.store.manifest import OutputEntry
from gpudedup.store.records import MAKE_ANEW
from gpudedup.store.working import read_removed

if TYPE_CHECKING:
    from gpudedup.api import Run


@dataclass(frozen=True)
class Removals:
    """All removals of a run in input order; documents by number (`Documents`), ``keeper`` -1 and ``similarity`` NaN
    where the table has null.
    """

    position: I64
    keeper: I64
    reason: U8
    similarity: npt.NDArray[np.float64]

    def only(self, wanted: Bools) -> Removals:
        """Some of them."""
        return Removals(self.position[wanted], self.keeper[wanted], self.reason[wanted], self.similarity[wanted])

    def about(self, documents: Documents, what: str, advice: str = RUN_AGAIN) -> Callable[[int], str]:
        """A message about the removal at a place."""

        def message(place: int) -> str:
            keeper = int(self.keeper[place])
            for_keeper = f" for {documents.name(keeper)}" if keeper >= 0 else ""
            return f"removal of {documents.name(int(self.position[place]))}{for_keeper}: {what}; {advice}"

        return message


def read_removals(run: Run, documents: Documents, whole: set[str], found: Findings) -> Removals | None:
    """All tables of removals, None if any cannot be read. Rows with impossible values are left out."""
    parts: list[Removals] = []
    complete = True
    places = pa.array(documents.names, pa.string())
    for entry in run.manifest.outputs:
        if entry.kind != "removed":
            continue
        if entry.path not in whole:
            complete = False
            continue
        try:
            with pq.ParquetFile(run.path / entry.path) as file:
                count = 0
                for batch in file.iter_batches():
                    parts.append(_removals_of(batch, count, entry, documents, places, run, found))
                    count += batch.num_rows
            if count != entry.rows:
                found.artefact(f"{run.path / entry.path} has {count} rows, not {entry.rows}; {RESTORE}")
        except READ_ERRORS as error:
            found.artefact(f"{run.path / entry.path} cannot be read: {say(error)}; {RESTORE}")
            complete = False
    if not complete:
        return None
    position, keeper, reason, similarity = (
        np.concatenate([np.zeros(0, kind), *(getattr(part, name) for part in parts)])
        for name, kind in (("position", np.int64), ("keeper", np.int64), ("reason", np.uint8), ("similarity", float))
    )
    return Removals(position, keeper, reason.astype(np.uint8), similarity)


def _removals_of(
    batch: pa.RecordBatch,
    first: int,
    entry: OutputEntry,
    documents: Documents,
    places: pa.Array,
    run: Run,
    found: Findings,
) -> Removals:
    counts = np.diff(documents.first)

    def positions(shard: str, row: str) -> tuple[I64, Bools]:
        """Input positions, -1 for null; whether each names a row that exists, or null in both."""
        file = pc.fill_null(pc.index_in(batch.column(shard).cast(pa.string()), places), -1).to_numpy()
        number = _numbers(batch.column(row))
        exists = (file >= 0) & (number >= 0) & (number < counts[np.maximum(file, 0)])
        null = (batch.column(shard).is_null().to_numpy(False)) & (batch.column(row).is_null().to_numpy(False))
        return np.where(exists, documents.first[np.maximum(file, 0)] + number, -1), exists | null

    position, fine = positions("shard", "row")
    fine &= position >= 0
    if entry.shard:
        fine &= pc.fill_null(pc.equal(batch.column("shard"), entry.shard), False).to_numpy(False)
    keeper, exists = positions("keeper_shard", "keeper_row")
    cluster = _numbers(batch.column("cluster"))
    exists &= cluster == keeper
    if documents.earlier or "keeper_run" in batch.schema.names:
        of_earlier = batch.column("keeper_run").is_valid().to_numpy(False)
        keeper[of_earlier] = documents.rows - 1 - cluster[of_earlier]
        exists[of_earlier] = _kept_by_earlier(batch.filter(pa.array(of_earlier)), keeper[of_earlier], documents)
    reason = pc.fill_null(pc.index_in(batch.column("reason"), pa.array(REASONS)), len(REASONS)).to_numpy()
    similarity = batch.column("similarity").cast(pa.float64()).to_numpy(zero_copy_only=False)
    fine &= exists & (reason < len(REASONS)) & ((keeper < 0) == (reason == EMPTY)) & (keeper != position)
    fine &= ~((reason == EXACT) & (similarity != 1.0)) & ~((reason == EMPTY) & ~np.isnan(similarity))
    path = run.path / entry.path
    found.each(
        ~fine,
        lambda i: f"{path}: row {first + i} cannot be: {batch.slice(i, 1).to_pylist()[0]}; {RUN_AGAIN}",
    )
    return Removals(position[fine], keeper[fine], reason[fine].astype(np.uint8), similarity[fine])


def _numbers(column: pa.Array) -> I64:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), -1).to_numpy(zero_copy_only=False))


def _kept_by_earlier(batch: pa.RecordBatch, numbers: I64, documents: Documents) -> Bools:
    """Whether each keeper of an earlier run is the document that this kept at that place, as far as it is there."""
    names = pa.array([kept.name for kept in documents.earlier], pa.string())
    named = pc.fill_null(pc.index_in(batch.column("keeper_run").cast(pa.string()), names), -1).to_numpy()
    fine: Bools = (numbers >= documents.rows) & (numbers < documents.earlier_first[-1]) & (named >= 0)
    fine &= batch.column("cluster").is_valid().to_numpy(False)
    fine[fine] = documents.run_of(numbers[fine]) == named[fine]
    row = _numbers(batch.column("keeper_row"))
    for place, kept in enumerate(documents.earlier):
        here = np.flatnonzero(fine & (named == place))
        if kept.run is None or not len(here):
            continue
        position = kept.run.kept[numbers[here] - documents.earlier_first[place]]
        file = np.searchsorted(kept.run.file_first, position, side="right") - 1
        shard = pa.array(kept.run.files, pa.string()).take(pa.array(file))
        same = pc.fill_null(pc.equal(batch.column("keeper_shard").take(pa.array(here)), shard), False)
        fine[here] = same.to_numpy(False) & (row[here] == position - kept.run.file_first[file])
    return fine


def check_removals(run: Run, documents: Documents, removals: Removals, params: Params, found: Findings) -> Bools:
    """Check the removals with one another and with the counts; return which rows are kept."""
    position, keeper, reason, similarity = removals.position, removals.keeper, removals.reason, removals.similarity

    def about(what: str) -> Callable[[int], str]:
        return removals.about(documents, what)

    keep = ~documents.damaged
    found.each(~keep[position], about("its row could not be read, so it is no document"))
    found.each(np.append(False, np.diff(position) <= 0), about("it is there twice, or out of order"))
    keep[position] = False
    named = keeper >= 0
    own = np.flatnonzero(named & (keeper < documents.rows))
    found.each(~keep[keeper[own]], lambda i: about("the keeper is not kept itself")(own[i]))
    near = reason == NEAR
    if params.verify != "none" and params.clustering == "keepers":
        found.each(near & np.isnan(similarity), about("it has no similarity"))
        below = np.rint(similarity * PPM) < params.threshold_ppm - 1  # to the digit when the texts are compared
        found.each(near & below, lambda i: about(f"similarity {similarity[i]} is below the threshold")(i))
    if params.verify == "none":
        found.each(near & ~np.isnan(similarity), about("it has a similarity, but verify was none"))
    if not params.drop_empty:
        found.each(reason == EMPTY, about("empty documents were to stay"))
    counted = {
        "documents": int((~documents.damaged).sum()),
        "kept": int(keep.sum()),
        "removed": len(position),
        "removed_for_earlier": int((keeper >= documents.rows).sum()),
        "exact": int((reason == EXACT).sum()),
        "near": int(near.sum()),
        "removed_empty": int((reason == EMPTY).sum()),
        "skipped": int(documents.damaged.sum()),
        "clusters": len(np.unique(keeper[named])),
    }
    for name, count in counted.items():
        if run.manifest.counts[name] != count:
            found.artefact(
                f"{run.path / manifests.NAME} counts {run.manifest.counts[name]} {name}, and removed/ gives {count}; "
                f"{RESTORE}"
            )
    return keep


def check_decision(working: Working, documents: Documents, removals: Removals, found: Findings) -> None:
    """Whether the decision that removed/ was written from says the same."""
    (entry,) = working.records["decide", 0].artefacts
    path, every = working.artefacts.path / entry.path, int(documents.earlier_first[-1])
    try:
        position, keeper, reason, similarity = read_removed(working.artefacts.artefact(entry), documents.rows, every)
    except ArtefactError as error:
        found.artefact(f"{error}")
        return
    if not np.array_equal(position, removals.position):
        found.artefact(
            f"{path} removes {len(position)} documents, and removed/ {len(removals.position)}, or others; {MAKE_ANEW}"
        )
        return
    same = (keeper == removals.keeper) & (reason == removals.reason)
    same &= (similarity == removals.similarity) | (np.isnan(similarity) & np.isnan(removals.similarity))
    found.each(~same, removals.about(documents, f"{path} says otherwise", MAKE_ANEW))
