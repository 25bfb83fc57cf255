"""What a deduplication found, and its summary."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from gpudedup.engines.local import Outcome, decide_again, silent
from gpudedup.io.skips import skipped_files
from gpudedup.io.source import first_rows, input_files
from gpudedup.machine import description
from gpudedup.params import SPEC, Banding, Params
from gpudedup.stages.apply import all_removals, kept_batches, new_run, write_all
from gpudedup.stages.decide import EMPTY, EXACT, NEAR
from gpudedup.stages.guard import removed_shares
from gpudedup.stages.sign import Progress
from gpudedup.store.manifest import InputEntry, Manifest, RemovedShare, SkippedEntry
from gpudedup.store.run_directory import RunDirectory

_PLAN = ("spec", "bands", "rows", "seconds", "device", "device_reason", "removed_shares")
"""Fields of a summary that have the same name in a manifest."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """Counts, bands, seconds: what a reader needs to judge a result. Fields are plain values; `asdict` for JSON."""

    spec: int
    documents: int
    """Rows of the input that are documents: kept + removed."""
    kept: int
    removed: int
    exact: int
    near: int
    removed_empty: int
    empty: int
    """Documents without units, removed (drop_empty) or kept."""
    skipped: int
    """Rows left out because they could not be read (on_error="skip")."""
    skipped_files: int
    """Files of which no row could be read, left out beside those rows."""
    clusters: int
    text_bytes: int
    threshold: float
    bands: int
    rows: int
    s_curve: list[tuple[float, float]]
    """(similarity, chance to become a candidate pair)."""
    compared_pairs: int
    bounded_buckets: int
    bounded_documents: int
    longest_bucket: int
    device: str
    device_reason: str
    workers: int
    seconds: dict[str, float]
    removed_shares: list[RemovedShare]
    """For the values of ``guard_column`` with most documents; empty without one."""
    parameters: Params

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built

    def for_manifest(self) -> dict[str, Any]:
        """The same by the manifest's names: what is a whole number and no part of the plan is a count."""
        values = self.asdict()
        plan = {name: values[name] for name in _PLAN}
        counts = {name: value for name, value in values.items() if type(value) is int and name not in plan}
        return {**plan, "counts": counts, "parameters": values["parameters"]}

    @classmethod
    def from_manifest(cls, manifest: Manifest) -> Summary:
        """Raises msgspec.ValidationError or ParameterError if the manifest lacks something or it has a wrong type."""
        parameters = msgspec.convert(manifest.parameters, Params)
        plan = {name: msgspec.to_builtins(getattr(manifest, name)) for name in _PLAN}
        curve = Banding(manifest.bands, manifest.rows).s_curve(parameters.threshold)
        values = {**plan, **manifest.counts, "threshold": parameters.threshold, "s_curve": curve}
        return msgspec.convert({**values, "parameters": manifest.parameters}, cls)


class Result:
    """The decision over one input. Made by `gpudedup.deduplicate`; nothing is recomputed until asked for."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    @property
    def keep_mask(self) -> pa.BooleanArray:
        """True for every row that stays, in input order; false too for rows that could not be read."""
        return pa.array(self._outcome.decided.keep)

    def kept(self) -> pa.RecordBatchReader:
        """The input without removals, in input order: a stream of record batches with all its columns.

        Reads files again. JSONL, CSV and TSV give the columns that the run used; `gpudedup.run` copies lines and
        records byte for byte.
        """
        outcome = self._outcome
        return pa.RecordBatchReader.from_batches(
            outcome.source.kept_schema(), kept_batches(outcome.source, outcome.signed, outcome.decided)
        )

    @cached_property
    def removed(self) -> pa.Table:
        """One row per removal, in input order: what was removed, for which keeper, why (docs/spec.md, section 13)."""
        outcome = self._outcome
        return all_removals(outcome.source, outcome.signed, outcome.decided, outcome.params)

    def clusters(self) -> pa.Table:
        """One row per document that was kept for others or removed for one: ``cluster`` (the keeper's input position),
        ``document`` (input position), ``similarity`` (null for the keeper), by cluster, the keeper first."""
        decided = self._outcome.decided
        near = decided.keeper >= 0
        keepers = np.unique(decided.keeper[near])
        cluster = np.concatenate([keepers, decided.keeper[near]])
        document = np.concatenate([keepers, decided.removed[near]])
        similarity = np.concatenate([np.full(len(keepers), np.nan), decided.similarity[near]])
        order = np.lexsort((document, document != cluster, cluster))
        similarity = similarity[order]
        return pa.table(
            {
                "cluster": cluster[order],
                "document": document[order],
                "similarity": pa.array(similarity, mask=np.isnan(similarity)),
            }
        )

    def candidates(self) -> pa.Table:
        """All candidate pairs (``better``, ``worse``: input positions), compared or not. Many: for study."""
        return self._outcome.matched.candidates()

    def at(self, threshold: float) -> Result:
        """The decision at a higher threshold over this run's candidates (its bands).

        Reads text again only for pairs that this run left out, not with verify="signature" or keep_sets=True.
        Raises ParameterError below this run's threshold.
        """
        return Result(decide_again(self._outcome, threshold))

    def summary(self) -> Summary:
        """Counts, bands and S-curve, bounded buckets, device and why, seconds per stage."""
        outcome = self._outcome
        signed, decided, buckets = outcome.signed, outcome.decided, outcome.matched.buckets
        banding = outcome.params.banding
        skipped = int(signed.damaged.sum())
        return Summary(
            spec=SPEC,
            documents=signed.rows - skipped,
            kept=int(decided.keep.sum()),
            removed=len(decided.removed),
            exact=int((decided.reason == EXACT).sum()),
            near=int((decided.reason == NEAR).sum()),
            removed_empty=int((decided.reason == EMPTY).sum()),
            empty=int((signed.unit_count == 0).sum()) - skipped,
            skipped=skipped,
            skipped_files=skipped_files(outcome.source.skipped),
            clusters=len(np.unique(decided.keeper[decided.keeper >= 0])),
            text_bytes=signed.text_bytes,
            threshold=outcome.params.threshold,
            bands=banding.bands,
            rows=banding.rows,
            s_curve=banding.s_curve(outcome.params.threshold),
            compared_pairs=outcome.verified.decision.compared,
            bounded_buckets=buckets.bounded_buckets,
            bounded_documents=buckets.bounded_documents,
            longest_bucket=buckets.longest,
            device=outcome.backend.name,
            device_reason=outcome.backend.reason,
            workers=outcome.backend.workers,
            seconds={name: round(value, 6) for name, value in outcome.seconds.of.items()},
            removed_shares=removed_shares(signed, decided, outcome.params),
            parameters=outcome.params,
        )

    def write(self, directory: RunDirectory, progress: Progress = silent) -> None:
        """Fill a run directory and finish it."""
        outcome = self._outcome
        signed, shards = outcome.signed, outcome.source.shards
        with outcome.seconds.stage("apply"):
            progress("apply", signed.rows, signed.text_bytes)
            write_all(directory, outcome.source, signed, outcome.decided, self.removed, outcome.backend.workers)
        rows = np.diff(first_rows(shards, signed.shard_first)).tolist()
        directory.finish(
            version=version("gpudedup"),
            **self.summary().for_manifest(),
            inputs=[
                InputEntry(path=name, size_bytes=mark.size_bytes, mtime_ns=mark.mtime_ns, rows=count)
                for (name, mark), count in zip(input_files(shards), rows, strict=True)
                if mark is not None
            ],
            skipped=[SkippedEntry(**asdict(entry)) for entry in outcome.source.skipped],
            machine=description(),
        )

    def save(self, out: str | os.PathLike[str], *, output: str = "kept") -> None:
        """Write a run directory, as `gpudedup.run` does. Data in memory is written as one Parquet file.

        Raises OutputError if ``out`` is taken or cannot be written.
        """
        source = self._outcome.source
        names = [name for name, _ in input_files(source.shards) if name]
        with new_run(out, source, names, output) as directory:
            self.write(directory)

    def __repr__(self) -> str:
        s = self.summary()
        counts = f"{s.documents} documents, {s.kept} kept, {s.removed} removed ({s.exact} exact, {s.near} near)"
        return f"<gpudedup.Result: {counts}>"
