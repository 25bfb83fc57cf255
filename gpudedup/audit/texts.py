"""What takes the text: signatures made again, ranks, scopes and contents, and the similarity of every removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from gpudedup import _cpu
from gpudedup.audit.documents import Documents
from gpudedup.audit.files import Working
from gpudedup.audit.findings import Bools, Findings
from gpudedup.audit.removals import Removals
from gpudedup.backends.base import SignedBatch
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.lanes import gather_lanes
from gpudedup.engines.local import Budget
from gpudedup.engines.signed_files import SignedFiles, stored_batches
from gpudedup.errors import ArtefactError, GpudedupError
from gpudedup.io.source import Source, first_rows
from gpudedup.params import PPM, Params
from gpudedup.stages.decide import EMPTY, EXACT, NEAR
from gpudedup.stages.earlier import Earlier, EarlierRun, with_earlier
from gpudedup.stages.match import rank
from gpudedup.stages.sign import (
    Piece,
    Progress,
    ShingleCache,
    Signed,
    gather,
    scope_codes,
    sign_pieces,
    whole_shards,
)
from gpudedup.stages.spill import spill_errors
from gpudedup.stages.verify import ShingleSets
from gpudedup.store.records import MAKE_ANEW
from gpudedup.store.signatures import SignatureFile, content_of

if TYPE_CHECKING:
    from gpudedup.api import Run

PAIRS_AT_ONCE = 1 << 16


def check_texts(
    run: Run,
    source: Source,
    documents: Documents,
    removals: Removals,
    params: Params,
    working: Working | None,
    found: Findings,
    progress: Progress,
) -> bool:
    """Check signatures and removals by the text of the input; whether that has the rows that were read.

    Raises InputError if it cannot be read.
    """
    budget = Budget.of(params)
    stored = None if working is None else _stored(run, params, working)
    lanes = stored is not None or params.verify == "signature"
    # Band keys are not needed, and lanes only where there are others to compare them with.
    signing = msgspec.structs.replace(params, num_perm=params.num_perm if lanes else 1, bands=1, rows=1)
    backend = CpuBackend(signing, "audit")
    cache = ShingleCache(budget.cache_bytes if params.verify == "exact" else 0)
    with found.check("signatures") as done:
        pieces = sign_pieces(source, whole_shards(source), signing, backend, cache=cache, band_keys=False, lanes=lanes)
        if stored is not None:
            comparison = _Comparison(stored, documents, found)
            pieces = comparison.of(pieces)
        hold_lanes = params.verify == "signature"
        signed = gather(source, pieces, params, cache=cache, hold_lanes=hold_lanes, progress=progress)
        done.count = signed.rows if stored is None else comparison.position
    if not np.array_equal(first_rows(source.shards, signed.shard_first), documents.first):
        found.input(f"the input has other rows than the run read, {signed.rows} in all; put it back, or run again")
        return False
    if not np.array_equal(signed.damaged, documents.damaged):
        found.input("other rows of the input are damaged than when it was read; put it back, or run again")
        return False
    documents, removals = _within_reach(source, documents, removals, params, found)
    signed = with_earlier(signed, Earlier([kept.run for kept in documents.earlier if kept.run is not None]))
    with found.check("ranks and contents") as done:
        done.count = len(removals.position)
        _check_relations(documents, removals, signed, params, backend, found)
    if params.verify == "none":
        found.not_checked.append('similarities: none were measured (verify="none")')
        return True
    measured = np.flatnonzero((removals.reason == NEAR) & ~np.isnan(removals.similarity))
    with found.check("similarities") as done:
        done.count = len(measured)
        if params.verify == "exact":
            provider = ShingleSets(source, signed, params, backend)
            parts = _shared_shingles(removals, measured, provider, budget, backend, progress)
        else:
            parts = _equal_lanes(removals, measured, signed, params, budget)
        _check_similarities(documents, removals, measured, parts, params, found)
    return True


def _stored(run: Run, params: Params, working: Working) -> SignedFiles | None:
    """The signatures of the run, if all of them are whole."""
    inputs = run.manifest.inputs
    tasks = [entry.task for entry in inputs]
    if not working.all_of("sign", tasks):
        return None
    return SignedFiles(
        artefacts=working.artefacts,
        params=params,
        names=[entry.path for entry in inputs],
        task=np.array(tasks, np.int64),
        shard=np.arange(len(inputs)),
        shards=len(inputs),
        record=lambda stage, task: working.records.get((stage, task)),
        carried=[],
    )


class _Comparison:
    """Holds signatures as they are made again against the stored ones."""

    def __init__(self, stored: SignedFiles, documents: Documents, found: Findings) -> None:
        self._batches, self._documents, self._found = stored_batches(stored), documents, found
        self._rest: tuple[SignatureFile, pa.RecordBatch] | None = None
        self.position = 0
        """How many rows were compared."""

    def of(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        """The same pieces; a problem for every row that has another signature among the stored ones."""
        for piece in pieces:
            at, damaged = 0, piece.damaged
            while at < len(damaged) and (part := self._next(len(damaged) - at)) is not None:
                signatures, batch = part
                until = at + batch.num_rows
                self._compare(signatures, batch, piece.signed, damaged[at:until], at)
                self.position, at = self.position + batch.num_rows, until
            yield piece

    def _next(self, most: int) -> tuple[SignatureFile, pa.RecordBatch] | None:
        """As many stored rows, or fewer; None at the end, or behind damage."""
        try:
            while self._rest is None or self._rest[1].num_rows == 0:
                self._rest = next(self._batches)
        except StopIteration:
            return None
        except ArtefactError as error:
            self._found.artefact(str(error))
            return None
        signatures, batch = self._rest
        self._rest = signatures, batch.slice(most)
        return signatures, batch.slice(0, most)

    def _compare(
        self, signatures: SignatureFile, batch: pa.RecordBatch, again: SignedBatch, damaged: Bools, at: int
    ) -> None:
        here = slice(at, at + batch.num_rows)
        assert again.lanes is not None
        wrong = (content_of(batch) != again.content[here]).any(axis=1)
        wrong |= batch.column("units").to_numpy() != again.unit_count[here]
        wrong |= batch.column("damaged").to_numpy(zero_copy_only=False) != damaged
        lanes, first = again.lanes[here], 0
        for group in signatures.lanes(batch):
            wrong |= (group != lanes[:, first : first + group.shape[1]]).any(axis=1)
            first += group.shape[1]
        self._found.each(
            wrong,
            lambda i: (
                f"{signatures.path} has another signature for {self._documents.name(self.position + i)} than its text "
                f"gives; {MAKE_ANEW}"
            ),
        )


def _within_reach(
    source: Source, documents: Documents, removals: Removals, params: Params, found: Findings
) -> tuple[Documents, Removals]:
    """Without earlier runs whose texts and columns cannot be read, and what was removed for their documents."""
    places = []
    for place, kept in enumerate(documents.earlier):
        try:
            if kept.run is not None and _is_readable(kept.run, source, params):
                places.append(place)
        except GpudedupError as error:
            found.not_checked.append(f"contents and similarities of documents of the earlier run {kept.name}: {error}")
    fewer = replace(documents, earlier=[documents.earlier[place] for place in places])
    shift = np.zeros(len(documents.earlier) + 1, np.int64)  # by run; the last is of the input
    shift[places] = fewer.earlier_first[:-1] - documents.earlier_first[places]
    run_of = documents.run_of(removals.keeper)
    wanted = (run_of < 0) | np.isin(run_of, places)
    some = removals.only(wanted)
    return fewer, replace(some, keeper=some.keeper + shift[run_of[wanted]])


def _is_readable(earlier: EarlierRun, source: Source, params: Params) -> bool:
    """True. Raises GpudedupError if what an earlier run's documents are compared by cannot be read."""
    Earlier([earlier]).check_types(source, params)
    if params.verify == "exact":
        with earlier.texts(np.zeros(0, np.int64)):
            pass
    return True


def _check_relations(
    documents: Documents, removals: Removals, signed: Signed, params: Params, backend: CpuBackend, found: Findings
) -> None:
    """Rank, scope and content of every removal and its keeper."""
    empty = removals.reason == EMPTY
    found.each(
        empty & (signed.unit_count[removals.position] > 0),
        removals.about(documents, "it has words, and is no empty one"),
    )
    pairs = removals.only(~empty)
    document, keeper = pairs.position, pairs.keeper

    def about(what: str) -> Callable[[int], str]:
        return pairs.about(documents, what)

    worst = 2**32 - 1
    place = np.full(len(signed.content), worst, np.uint32)
    order = rank(signed, params)
    place[order] = np.arange(len(order), dtype=np.uint32)
    own = keeper < signed.rows
    found.each(own & (place[keeper] >= place[document]), about(f"the keeper does not rank better (keep={params.keep})"))
    wordless = (signed.unit_count[keeper] == 0) | (signed.unit_count[document] == 0)
    found.each(~own & wordless, about("one of them has no words"))
    if params.within is not None:
        codes, _ = scope_codes(signed.scope_column(params.within), backend)
        found.each(codes[keeper] != codes[document], about(f"they differ in {params.within!r} (within)"))
    if params.across is not None and params.clustering == "keepers":
        codes, _ = scope_codes(signed.scope_column(params.across), backend)
        found.each(codes[keeper] == codes[document], about(f"they have one {params.across!r} (across)"))
    equal = (signed.content[keeper] == signed.content[document]).all(axis=1)
    exact = pairs.reason == EXACT
    found.each(exact & ~equal, about("the reason is exact, and their contents differ"))
    found.each(~exact & equal, about("the reason is near, and their contents are equal"))


def _shared_shingles(
    removals: Removals,
    measured: npt.NDArray[np.intp],
    provider: ShingleSets,
    budget: Budget,
    backend: CpuBackend,
    progress: Progress,
) -> Iterator[tuple[int, int, int]]:
    """(removal, intersection, union) of the sets of shingles; one pass over the rows that are needed."""
    documents = np.unique(np.concatenate([removals.position[measured], removals.keeper[measured]])).astype(np.uint32)
    store = backend.set_store(len(documents), memory_bytes=budget.set_bytes, directory=budget.tmp)
    provider.load(store, np.arange(len(documents), dtype=np.uint32), documents, progress)
    by_keeper = measured[np.argsort(removals.keeper[measured], kind="stable")]
    left = np.searchsorted(documents, removals.position[by_keeper])
    right = np.searchsorted(documents, removals.keeper[by_keeper])
    for number, one, other in zip(by_keeper.tolist(), left.tolist(), right.tolist(), strict=True):
        first, second = store.get(one), store.get(other)
        shared = _cpu.intersect(first, second, 0)
        yield number, shared, len(first) + len(second) - shared


def _equal_lanes(
    removals: Removals, measured: npt.NDArray[np.intp], signed: Signed, params: Params, budget: Budget
) -> Iterator[tuple[int, int, int]]:
    """(removal, equal lanes, lanes)."""
    documents = np.unique(np.concatenate([removals.position[measured], removals.keeper[measured]])).astype(np.uint32)
    numbers = signed.signatures.lane_numbers(documents)
    in_order = np.argsort(numbers, kind="stable")
    with spill_errors("signatures"):
        lanes = gather_lanes(
            signed.signatures.lanes, numbers[in_order], params.num_perm, memory_bytes=budget.set_bytes, tmp=budget.tmp
        )
    place = np.empty(len(documents), np.int64)
    place[in_order] = np.arange(len(documents))
    for start in range(0, len(measured), PAIRS_AT_ONCE):
        some = measured[start : start + PAIRS_AT_ONCE]
        left = place[np.searchsorted(documents, removals.position[some])]
        right = place[np.searchsorted(documents, removals.keeper[some])]
        equal = (lanes[left] == lanes[right]).sum(axis=1)
        for number, count in zip(some.tolist(), equal.tolist(), strict=True):
            yield number, count, params.num_perm


def _check_similarities(
    documents: Documents,
    removals: Removals,
    measured: npt.NDArray[np.intp],
    parts: Iterator[tuple[int, int, int]],
    params: Params,
    found: Findings,
) -> None:
    """Whether each similarity is the recorded one, and reaches the threshold (docs/spec.md, section 9: in integers)."""
    part, whole = np.zeros(len(removals.position), np.int64), np.ones(len(removals.position), np.int64)
    for number, shared, union in parts:
        part[number], whole[number] = shared, union
    again = part / whole
    about = np.zeros(len(part), bool)
    about[measured] = True

    def recorded(i: int) -> str:
        what = (
            f"similarity {removals.similarity[i]} is recorded, and the texts give {part[i]} of {whole[i]}, {again[i]}"
        )
        return removals.about(documents, what)(i)

    def too_small(i: int) -> str:
        what = f"{part[i]} of {whole[i]} does not reach threshold {params.threshold}"
        return removals.about(documents, what)(i)

    found.each(about & (again != removals.similarity), recorded)
    if params.clustering == "keepers":
        found.each(about & (part * PPM < params.threshold_ppm * whole), too_small)
