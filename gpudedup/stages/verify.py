"""verify: candidates -> similar pairs, by the shingle sets of candidates, by signature, or taken as they are."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from gpudedup.backends.base import I64, U32, Backend, Buckets, Decision, SetStore, Shingles
from gpudedup.errors import InputError
from gpudedup.io.batches import value_bytes
from gpudedup.io.source import Shard, Source
from gpudedup.params import Params
from gpudedup.stages.earlier import Earlier
from gpudedup.stages.match import Matched
from gpudedup.stages.sign import Progress, Signed, read_ahead
from gpudedup.stages.spill import spill_errors


@dataclass
class Verified:
    """The similar pairs that decide: one per removed representative. What is left out can change nothing."""

    decision: Decision
    sets: SetStore | None


class ShingleSets:
    """Gives shingle sets of representatives: from the cache of ``sign``, else by reading their rows again."""

    def __init__(self, source: Source, signed: Signed, params: Params, backend: Backend) -> None:
        self._source, self.signed, self._params, self._backend = source, signed, params, backend

    def load(self, store: SetStore, numbers: U32, positions: U32, progress: Progress) -> None:
        """Fill ``store`` with the sets of ``numbers``, which are the documents at input ``positions``."""
        by_position = np.argsort(positions, kind="stable")
        numbers, positions = numbers[by_position], positions[by_position]
        own = int(np.searchsorted(positions, self.signed.rows))
        if self.signed.earlier is not None:
            places = positions[own:].astype(np.int64) - self.signed.rows
            self._read_earlier(store, numbers[own:], self.signed.earlier, places, progress)
        numbers, positions = numbers[:own], positions[:own]
        rest = np.ones(len(positions), bool)
        for first, shingles in self.signed.cache.drain(self.signed.shard_first):
            ends = np.array([first, first + len(shingles.offsets) - 1], positions.dtype)  # else all are converted
            low, high = np.searchsorted(positions, ends)
            self._add(store, numbers[low:high], positions[low:high] - ends[0], shingles)
            rest[low:high] = False
        column = self._params.text_column
        self._read(store, numbers[rest], positions[rest], self._source, self.signed.shard_first, column, progress)

    def _read_earlier(
        self, store: SetStore, numbers: U32, earlier: Earlier, documents: I64, progress: Progress
    ) -> None:
        """Documents of earlier runs, from where these still have their text."""
        for run, places, positions in earlier.parts(documents):
            with run.texts(positions) as (source, shard_first, there):
                by_position = np.argsort(there, kind="stable")
                of_run = numbers[places[by_position]]
                column = run.params.text_column
                self._read(store, of_run, there[by_position], source, shard_first, column, progress)

    def _read(
        self,
        store: SetStore,
        numbers: U32,
        positions: U32 | I64,
        source: Source,
        shard_first: I64,
        text_column: str,
        progress: Progress,
    ) -> None:
        """The text of ``positions``, which ascend."""
        cuts = np.searchsorted(positions, shard_first)
        done = text_bytes = 0
        for shard, first, low, high in zip(source.shards, shard_first, cuts, cuts[1:], strict=False):
            if low == high:
                continue
            wanted: I64 = positions[low:high].astype(np.int64) - first
            place = int(low)
            sizes: deque[tuple[int, int]] = deque()
            for shingles in self._backend.shingles(self._texts(shard, text_column, wanted, sizes)):
                count, size = sizes.popleft()
                rows = np.arange(count, dtype=np.uint32)
                self._add(store, numbers[place : place + count], rows, shingles)
                place += count
                done += count
                text_bytes += size
                progress("verify", done, text_bytes)
            if place != high:
                raise InputError(f"{shard.name} gave {place - int(low)} of {len(wanted)} rows when it was read again")

    def _texts(self, shard: Shard, text_column: str, wanted: I64, sizes: deque[tuple[int, int]]) -> Iterator[pa.Array]:
        """The text of rows; (documents, bytes) of each batch that was drawn goes to ``sizes``."""
        parts = shard.parts([text_column], wanted)
        for batch in read_ahead(parts, self._params, self._backend.workers):
            text = batch.columns.column(0)
            sizes.append((len(text), int(value_bytes(text).sum())))
            yield text

    def _add(self, store: SetStore, numbers: U32, rows: U32, shingles: Shingles) -> None:
        if not len(numbers):
            return
        with spill_errors("shingle sets"):
            shingles.add_to(
                store,
                np.ascontiguousarray(numbers, np.uint32),
                np.ascontiguousarray(rows, np.uint32),
                workers=self._backend.workers,
            )


def verify(
    provider: ShingleSets,
    matched: Matched,
    params: Params,
    backend: Backend,
    *,
    memory_bytes: int,
    tmp: str,
    progress: Progress,
    prior: Verified | None = None,
) -> Verified:
    """Compare candidates, better rank first, as far as it can change a removal or a keeper (docs/spec.md, 9 and 11).

    ``prior``: what a run over the same candidates at a lower threshold found; only pairs it left out are compared.
    Raises OutputError when sets, or signatures, fit neither ``memory_bytes`` nor the disk of ``tmp``.
    """
    grouped = matched.grouped
    known = known_decision(prior, params)
    sets = prior.sets if prior else None
    lanes, documents = None, grouped.representatives
    if params.verify != "none":
        shared = open_documents(matched.buckets, known, backend)
    if params.verify == "exact":
        if sets is None:
            sets = backend.set_store(len(documents), memory_bytes=memory_bytes, directory=tmp)
        missing = sets.missing(shared)
        provider.load(sets, missing, documents[missing], progress)
    elif params.verify == "signature":
        numbers = provider.signed.signatures.lane_numbers(documents[shared])
        in_order = np.argsort(numbers, kind="stable")
        with spill_errors("signatures"):
            lanes = backend.gather_lanes(
                provider.signed.signatures.lanes, numbers[in_order], memory_bytes=memory_bytes, directory=tmp
            )
        documents = np.zeros(len(documents), np.uint32)
        documents[shared[in_order]] = np.arange(len(shared), dtype=np.uint32)
    with spill_errors("what is compared"):  # buckets, sets or signatures that a GPU gives back
        decision = backend.verify(
            matched.buckets,
            threshold_ppm=params.threshold_ppm,
            sets=sets,
            lanes=lanes,
            documents=documents,
            leader=grouped.equal_content,
            prior=known,
        )
    return Verified(decision, sets if params.keep_sets else None)


def known_decision(prior: Verified | None, params: Params) -> Decision | None:
    """What a decision at a lower threshold says of this one: nothing of components, which fall apart as it rises."""
    return None if prior is None or params.clustering == "components" else prior.decision


def open_documents(buckets: Buckets, known: Decision | None, backend: Backend) -> U32:
    """Representatives that must be compared, in ascending order."""
    return buckets.shared() if known is None else backend.undecided(buckets, known)


def matching(matched: Matched, verified: Verified) -> dict[str, int]:
    """What a summary says of candidates."""
    buckets = matched.buckets
    return {
        "compared_pairs": verified.decision.compared,
        "bounded_buckets": buckets.bounded_buckets,
        "bounded_documents": buckets.bounded_documents,
        "longest_bucket": buckets.longest,
    }
