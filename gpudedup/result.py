"""What a deduplication found, and its summary."""

from __future__ import annotations

import os
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from gpudedup.engines.local import Outcome, decide_again, silent
from gpudedup.io.skips import skipped_files
from gpudedup.io.source import first_rows, input_files
from gpudedup.machine import description
from gpudedup.stages.apply import Removals, kept_batches, new_run, write_all
from gpudedup.stages.earlier import input_positions
from gpudedup.stages.sign import Progress
from gpudedup.stages.verify import matching
from gpudedup.store.manifest import InputEntry, SkippedEntry
from gpudedup.store.run_directory import RunDirectory
from gpudedup.summary import Summary, summarise


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
        return Removals.of(outcome.source, outcome.signed, outcome.decided, outcome.params).whole()

    def clusters(self) -> pa.Table:
        """One row per document that was kept for others or removed for one: ``cluster`` (the keeper's input position),
        ``document`` (input position), ``similarity`` (null for the keeper), by cluster, the keeper first. Documents of
        earlier runs have negative positions (docs/spec.md, section 11)."""
        decided = self._outcome.decided
        near = decided.keeper >= 0
        keeper = input_positions(decided.keeper[near], self._outcome.signed.rows)
        keepers = np.unique(keeper)
        cluster = np.concatenate([keepers, keeper])
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
        """All candidate pairs (``better``, ``worse``: positions as in `clusters`), compared or not. Many: for study."""
        better, worse = self._outcome.matched.candidates()
        rows = self._outcome.signed.rows
        return pa.table({"better": input_positions(better, rows), "worse": input_positions(worse, rows)})

    def at(self, threshold: float) -> Result:
        """The decision at a higher threshold over this run's candidates (its bands).

        Reads text again only for pairs that this run left out, not with verify="signature" or keep_sets=True.
        Raises ParameterError below this run's threshold.
        """
        return Result(decide_again(self._outcome, threshold))

    def summary(self) -> Summary:
        """Counts, bands and S-curve, bounded buckets, device and why, seconds per stage."""
        outcome = self._outcome
        return summarise(
            outcome.params,
            outcome.backend,
            outcome.signed,
            outcome.decided,
            matching(outcome.matched, outcome.verified),
            outcome.seconds.of,
            skipped_files(outcome.source.skipped),
        )

    def write(self, directory: RunDirectory, progress: Progress = silent) -> None:
        """Fill a run directory and finish it."""
        outcome = self._outcome
        signed, shards = outcome.signed, outcome.source.shards
        with outcome.seconds.stage("apply"):
            progress("apply", signed.rows, signed.text_bytes)
            outputs = write_all(
                directory, outcome.source, signed, outcome.decided, outcome.params, outcome.backend.workers
            )
        rows = np.diff(first_rows(shards, signed.shard_first)).tolist()
        directory.finish(
            outputs=outputs,
            version=version("gpudedup"),
            **self.summary().for_manifest(),
            lowest_threshold=outcome.params.threshold,
            against=signed.earlier.entries() if signed.earlier is not None else [],
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
        with new_run(out, source, names, output, self._outcome.params.against) as directory:
            self.write(directory)

    def __repr__(self) -> str:
        s = self.summary()
        counts = f"{s.documents} documents, {s.kept} kept, {s.removed} removed ({s.exact} exact, {s.near} near)"
        return f"<gpudedup.Result: {counts}>"
