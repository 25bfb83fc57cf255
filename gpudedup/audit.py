"""Whether a finished run is still what it says: its files, its inputs, every removal, and the rows that it kept.

Similarities are made again from the text, with the code that made them: an audit finds artefacts and inputs that do not
agree, not errors of that code (the tests hold it to a reference).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as pt
import xxhash

from gpudedup import _cpu
from gpudedup.backends.base import I64, U8, U32
from gpudedup.backends.cpu import CpuBackend
from gpudedup.engines.local import Budget, silent
from gpudedup.errors import ArtefactError, InputError
from gpudedup.io import open_paths
from gpudedup.io.batches import READ_ERRORS, say
from gpudedup.io.paths import FORMATS, fingerprints_now, suffix_of
from gpudedup.io.source import DocumentFiles, FileShard, Fingerprint, RowFile, Source, first_rows
from gpudedup.machine import release_memory
from gpudedup.params import PPM, Params
from gpudedup.stages.decide import EMPTY, EXACT, NEAR, REASONS
from gpudedup.stages.match import rank
from gpudedup.stages.sign import Progress, Signed, columns_needed, scope_codes, sign
from gpudedup.stages.verify import ShingleSets
from gpudedup.store import manifest as manifests
from gpudedup.store.manifest import OutputEntry

if TYPE_CHECKING:
    from gpudedup.api import Run

PROBLEMS_LISTED = 100
"""More are counted only."""

COMPARED_BYTES = 1 << 20
PAIRS_AT_ONCE = 1 << 16

RESTORE = "restore it from a copy, or run again into another directory"
RUN_AGAIN = "the table is not what a run writes: run again into another directory"

Bools = npt.NDArray[np.bool_]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What was checked, of how many, and in how many seconds."""

    name: str
    count: int
    seconds: float


class Audit(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit found. ``exit_code``: 0 all agrees; 4 artefacts are damaged or disagree; 3 only inputs changed."""

    run: str
    exit_code: int
    checks: list[Check]
    not_checked: list[str]
    """What could not be checked, each with the reason."""
    problems: list[str]
    """The first ``PROBLEMS_LISTED``, each with what to do."""
    problem_count: int

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


@dataclass
class _Count:
    count: int = 0


@dataclass
class _Findings:
    """Collects checks and problems."""

    checks: list[Check] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    artefacts: int = 0
    inputs: int = 0

    @contextmanager
    def check(self, name: str) -> Iterator[_Count]:
        done, start = _Count(), time.perf_counter()
        yield done
        self.checks.append(Check(name=name, count=done.count, seconds=round(time.perf_counter() - start, 6)))

    def artefact(self, message: str) -> None:
        self.artefacts += 1
        self._list(message)

    def input(self, message: str) -> None:
        self.inputs += 1
        self._list(message)

    def each(self, wrong: Bools, message: Callable[[int], str]) -> None:
        """An artefact's problem for every place where ``wrong`` is true."""
        places = np.flatnonzero(wrong)
        for place in places[:PROBLEMS_LISTED].tolist():
            self._list(message(place))
        self.artefacts += len(places)

    def _list(self, message: str) -> None:
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append(message)


@dataclass
class _Rows:
    """The rows of the input by position, as the manifest counts them, and which of them could not be read."""

    names: list[str]
    first: I64
    """int64[files + 1]."""
    damaged: Bools

    @classmethod
    def of(cls, run: Run) -> _Rows:
        manifest = run.manifest
        names = [entry.path for entry in manifest.inputs]
        counts = [entry.rows for entry in manifest.inputs]
        if not names:
            names, counts = [""], [manifest.counts["documents"] + manifest.counts["skipped"]]
        first = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
        damaged = np.zeros(int(first[-1]), bool)
        places = {name: place for place, name in enumerate(names)}
        for skipped in manifest.skipped:
            if skipped.first_row is not None and skipped.shard in places:
                start = first[places[skipped.shard]] + skipped.first_row
                damaged[start : start + skipped.count] = True
        return cls(names, first, damaged)

    def name(self, position: int) -> str:
        file = int(np.searchsorted(self.first, position, side="right")) - 1
        return f"{self.names[file]}:{position - self.first[file]}"


@dataclass
class _Removals:
    """All removals of a run by input position; ``keeper`` -1 and ``similarity`` NaN where the table has null."""

    position: I64
    keeper: I64
    reason: U8
    similarity: npt.NDArray[np.float64]


def audit(
    run: Run,
    *,
    workers: int | None = None,
    memory: int | str | None = None,
    tmp: str | None = None,
    progress: Progress = silent,
) -> Audit:
    """Check a finished run against its manifest, its input and itself. Changes nothing.

    Every output file: size and checksum. Every input file: size and time. Every removal: the keeper is kept and ranks
    better, is of the same ``within`` and another ``across`` value, content is equal where the reason says so, and the
    similarity made again from both texts is the recorded one and reaches the threshold. kept/ or keep_mask/: the rows
    of the input without removals, by content.

    Reads the input about three times: to sign it, for the shingle sets of removals and keepers (in ``memory``, then in
    ``tmp``), and beside kept/. Memory: as the run, without band keys. Raises ArtefactError where the manifest cannot be
    believed at all, MemoryLimitError and OutputError (no room in ``tmp``).
    """
    try:
        recorded = run.summary().parameters
        rows = _Rows.of(run)
        params = msgspec.structs.replace(
            recorded, id_column=None, guard_column=None, device="cpu", workers=workers, memory=memory, tmp=tmp
        )
    except (KeyError, MemoryError, ValueError, OverflowError) as error:
        raise ArtefactError(f"{run.path}: the numbers in the manifest are damaged: {say(error)}; {RESTORE}") from error
    found = _Findings()
    with found.check("output files") as done:
        whole = _check_files(run, rows, found, done)
    with found.check("input files") as done:
        unchanged = _check_inputs(run, found, done)
    with found.check("removals") as done:
        removals = _read_removals(run, rows, whole, found)
        if removals is not None:
            done.count = len(removals.position)
            keep = _check_removals(run, rows, removals, recorded, found)
    if removals is None:
        found.not_checked.append("removals and kept rows: not every table in removed/ can be read")
    elif not run.manifest.inputs:
        found.not_checked.append("ranks, contents, similarities and kept rows: the input was data in memory")
        _check_outputs(run, rows, keep, None, params, whole, found)
    elif not unchanged:
        found.not_checked.append("ranks, contents, similarities and kept rows: the input is not what the run read")
        _check_outputs(run, rows, keep, None, params, whole, found)
    else:
        _check_against_input(run, rows, removals, keep, params, whole, found, progress)
    return Audit(
        run=str(run.path),
        exit_code=ArtefactError.exit_code if found.artefacts else InputError.exit_code if found.inputs else 0,
        checks=found.checks,
        not_checked=found.not_checked,
        problems=found.problems,
        problem_count=found.artefacts + found.inputs,
    )


def _check_files(run: Run, rows: _Rows, found: _Findings, done: _Count) -> set[str]:
    """Paths of the outputs that are as the manifest says; problems for others, missing and surplus ones."""
    manifest = run.manifest
    done.count = 1
    whole = set()
    for entry in manifest.outputs:
        done.count += 1
        try:
            run.compared(entry)
            whole.add(entry.path)
        except ArtefactError as error:
            found.artefact(f"{error}; {RESTORE}")
    listed = {entry.path for entry in manifest.outputs}
    for kind in manifests.RESULTS:
        for folder, _, names in os.walk(run.path / kind):
            for name in names:
                path = Path(folder, name)
                if path.relative_to(run.path).as_posix() not in listed:
                    found.artefact(f"{path} is no file of the run: move it elsewhere")
    shards = {kind: {entry.shard for entry in manifest.outputs if entry.kind == kind} for kind in manifests.RESULTS}
    expected = {"removed", *({"kept": ["kept"], "mask": ["keep_mask"]}.get(manifest.output, []))}
    for kind in sorted(expected):
        missing = set(rows.names) - shards[kind]
        if missing and "" not in shards["removed"]:
            shown = ", ".join(sorted(missing)[:3])
            found.artefact(f"{manifests.NAME} lists no file of {kind}/ for {len(missing)} inputs ({shown}); {RESTORE}")
    return whole


def _check_inputs(run: Run, found: _Findings, done: _Count) -> bool:
    """Whether every input file has the size, time and tag that it had when it was read."""
    before = found.inputs
    paths = [run.input_path(entry.path) for entry in run.manifest.inputs]
    for entry, path, look in zip(run.manifest.inputs, paths, fingerprints_now(paths), strict=True):
        done.count += 1
        try:
            now = look()
        except InputError as error:
            found.input(f"input {error}; put it back, or run again without it")
            continue
        then = Fingerprint(entry.size_bytes, entry.mtime_ns, entry.etag)
        if now != then:
            found.input(f"input {path} was changed: {then} when it was read, {now} now; put it back, or run again")
    return found.inputs == before


def _read_removals(run: Run, rows: _Rows, whole: set[str], found: _Findings) -> _Removals | None:
    """All tables of removals by position, None if any cannot be read. Rows with impossible values are left out."""
    parts: list[_Removals] = []
    complete = True
    places = pa.array(rows.names, pa.string())
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
                    parts.append(_removals_of(batch, count, entry, rows, places, run, found))
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
    return _Removals(position, keeper, reason.astype(np.uint8), similarity)


def _removals_of(
    batch: pa.RecordBatch, first: int, entry: OutputEntry, rows: _Rows, places: pa.Array, run: Run, found: _Findings
) -> _Removals:
    counts = np.diff(rows.first)

    def positions(shard: str, row: str) -> tuple[I64, Bools]:
        """Input positions, -1 for null; whether each names a row that exists, or null in both."""
        file = pc.fill_null(pc.index_in(batch.column(shard).cast(pa.string()), places), -1).to_numpy()
        number = _numbers(batch.column(row))
        exists = (file >= 0) & (number >= 0) & (number < counts[np.maximum(file, 0)])
        null = (batch.column(shard).is_null().to_numpy(False)) & (batch.column(row).is_null().to_numpy(False))
        return np.where(exists, rows.first[np.maximum(file, 0)] + number, -1), exists | null

    position, fine = positions("shard", "row")
    fine &= position >= 0
    if entry.shard:
        fine &= pc.fill_null(pc.equal(batch.column("shard"), entry.shard), False).to_numpy(False)
    keeper, exists = positions("keeper_shard", "keeper_row")
    reason = pc.fill_null(pc.index_in(batch.column("reason"), pa.array(REASONS)), len(REASONS)).to_numpy()
    similarity = batch.column("similarity").cast(pa.float64()).to_numpy(zero_copy_only=False)
    fine &= exists & (reason < len(REASONS)) & ((keeper < 0) == (reason == EMPTY)) & (keeper != position)
    fine &= _numbers(batch.column("cluster")) == keeper
    fine &= ~((reason == EXACT) & (similarity != 1.0)) & ~((reason == EMPTY) & ~np.isnan(similarity))
    path = run.path / entry.path
    found.each(
        ~fine,
        lambda i: f"{path}: row {first + i} cannot be: {batch.slice(i, 1).to_pylist()[0]}; {RUN_AGAIN}",
    )
    return _Removals(position[fine], keeper[fine], reason[fine].astype(np.uint8), similarity[fine])


def _numbers(column: pa.Array) -> I64:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), -1).to_numpy(zero_copy_only=False))


def _check_removals(run: Run, rows: _Rows, removals: _Removals, params: Params, found: _Findings) -> Bools:
    """Check the removals with one another and with the counts; return which rows are kept."""
    position, keeper, reason, similarity = removals.position, removals.keeper, removals.reason, removals.similarity

    def about(what: str) -> Callable[[int], str]:
        return lambda i: f"removal of {rows.name(position[i])} for {rows.name(keeper[i])}: {what}; {RUN_AGAIN}"

    def alone(what: str) -> Callable[[int], str]:
        return lambda i: f"removal of {rows.name(position[i])}: {what}; {RUN_AGAIN}"

    keep = ~rows.damaged
    found.each(~keep[position], alone("its row could not be read, so it is no document"))
    found.each(np.append(False, np.diff(position) <= 0), alone("it is there twice, or out of order"))
    keep[position] = False
    named = keeper >= 0
    found.each(named & ~keep[keeper], about("the keeper is not kept itself"))
    near = reason == NEAR
    if params.verify != "none" and params.clustering == "keepers":
        found.each(near & np.isnan(similarity), about("it has no similarity"))
        below = np.rint(similarity * PPM) < params.threshold_ppm - 1  # to the digit when the texts are compared
        found.each(near & below, lambda i: about(f"similarity {similarity[i]} is below the threshold")(i))
    if params.verify == "none":
        found.each(near & ~np.isnan(similarity), about("it has a similarity, but verify was none"))
    if not params.drop_empty:
        found.each(reason == EMPTY, alone("empty documents were to stay"))
    counted = {
        "documents": int((~rows.damaged).sum()),
        "kept": int(keep.sum()),
        "removed": len(position),
        "exact": int((reason == EXACT).sum()),
        "near": int(near.sum()),
        "removed_empty": int((reason == EMPTY).sum()),
        "skipped": int(rows.damaged.sum()),
        "clusters": len(np.unique(keeper[named])),
    }
    for name, count in counted.items():
        if run.manifest.counts[name] != count:
            found.artefact(
                f"{run.path / manifests.NAME} counts {run.manifest.counts[name]} {name}, and removed/ gives {count}; "
                f"{RESTORE}"
            )
    return keep


def _check_against_input(
    run: Run,
    rows: _Rows,
    removals: _Removals,
    keep: Bools,
    params: Params,
    whole: set[str],
    found: _Findings,
    progress: Progress,
) -> None:
    budget = Budget.of(params)
    # Band keys are not needed, and lanes only where they were compared.
    lanes = params.num_perm if params.verify == "signature" else 1
    params = msgspec.structs.replace(params, num_perm=lanes, bands=1, rows=1)
    backend = CpuBackend(params, "audit")
    try:
        source = open_paths(
            [run.input_path(name) for name in rows.names],
            text_column=params.text_column,
            columns=columns_needed(params),
            memory_bytes=budget.memory_bytes,
            tmp=budget.tmp,
            on_error=params.on_error,
        )
    except InputError as error:
        found.input(f"{error}")
        return
    try:
        with found.check("ranks and contents") as done:
            signed = sign(source, params, backend, cache_bytes=budget.cache_bytes, progress=progress)
            signed.signatures.forget_keys()
            if not np.array_equal(first_rows(source.shards, signed.shard_first), rows.first):
                found.input(
                    f"the input has other rows than the run read, {signed.rows} in all; put it back, or run again"
                )
                return
            if not np.array_equal(signed.damaged, rows.damaged):
                found.input("other rows of the input are damaged than when it was read; put it back, or run again")
                return
            done.count = len(removals.position)
            _check_relations(rows, removals, signed, params, backend, found)
        measured = np.flatnonzero((removals.reason == NEAR) & ~np.isnan(removals.similarity))
        if params.verify == "none":
            found.not_checked.append('similarities: none were measured (verify="none")')
        else:
            with found.check("similarities") as done:
                done.count = len(measured)
                if params.verify == "exact":
                    provider = ShingleSets(source, signed, params, backend)
                    parts = _shared_shingles(removals, measured, provider, budget, backend, progress)
                else:
                    parts = _equal_lanes(removals, measured, signed)
                _compare(rows, removals, measured, parts, params, found)
        del signed
        release_memory()
        _check_outputs(run, rows, keep, source, params, whole, found)
    except InputError as error:
        found.input(str(error))
    finally:
        source.close()


def _check_relations(
    rows: _Rows, removals: _Removals, signed: Signed, params: Params, backend: CpuBackend, found: _Findings
) -> None:
    """Rank, scope and content of every removal and its keeper."""
    empty = removals.reason == EMPTY
    found.each(
        empty & (signed.unit_count[removals.position] > 0),
        lambda i: f"removal of {rows.name(removals.position[i])} as empty: it has words; {RUN_AGAIN}",
    )
    pairs = np.flatnonzero(~empty)
    document, keeper = removals.position[pairs], removals.keeper[pairs]

    def about(what: str) -> Callable[[int], str]:
        return lambda i: f"removal of {rows.name(document[i])} for {rows.name(keeper[i])}: {what}; {RUN_AGAIN}"

    place = np.full(signed.rows, 2**32 - 1, np.uint32)
    order = rank(signed, params)
    place[order] = np.arange(len(order), dtype=np.uint32)
    found.each(place[keeper] >= place[document], about(f"the keeper does not rank better (keep={params.keep})"))
    if params.within is not None:
        codes, _ = scope_codes(signed.columns[params.within], backend)
        found.each(codes[keeper] != codes[document], about(f"they differ in {params.within!r} (within)"))
    if params.across is not None and params.clustering == "keepers":
        codes, _ = scope_codes(signed.columns[params.across], backend)
        found.each(codes[keeper] == codes[document], about(f"they have one {params.across!r} (across)"))
    equal = (signed.content[keeper] == signed.content[document]).all(axis=1)
    exact = removals.reason[pairs] == EXACT
    found.each(exact & ~equal, about("the reason is exact, and their contents differ"))
    found.each(~exact & equal, about("the reason is near, and their contents are equal"))


def _shared_shingles(
    removals: _Removals,
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


def _equal_lanes(removals: _Removals, measured: npt.NDArray[np.intp], signed: Signed) -> Iterator[tuple[int, int, int]]:
    """(removal, equal lanes, lanes)."""
    batches = [groups[0] for groups in signed.signatures.lanes]
    ends = np.cumsum([0, *map(len, batches)])

    def lanes_of(positions: I64) -> U32:
        batch = np.searchsorted(ends, positions, side="right") - 1
        out = np.empty((len(positions), batches[0].shape[1]), np.uint32)
        for number in np.unique(batch).tolist():
            here = batch == number
            out[here] = batches[number][positions[here] - ends[number]]
        return out

    for start in range(0, len(measured), PAIRS_AT_ONCE):
        some = measured[start : start + PAIRS_AT_ONCE]
        equal = lanes_of(removals.position[some]) == lanes_of(removals.keeper[some])
        for number, count in zip(some.tolist(), equal.sum(axis=1).tolist(), strict=True):
            yield number, count, equal.shape[1]


def _compare(
    rows: _Rows,
    removals: _Removals,
    measured: npt.NDArray[np.intp],
    parts: Iterator[tuple[int, int, int]],
    params: Params,
    found: _Findings,
) -> None:
    """Whether each similarity is the recorded one, and reaches the threshold (docs/spec.md, section 9: in integers)."""
    part, whole = np.zeros(len(removals.position), np.int64), np.ones(len(removals.position), np.int64)
    for number, shared, union in parts:
        part[number], whole[number] = shared, union
    again = part / whole
    about = np.zeros(len(part), bool)
    about[measured] = True
    found.each(
        about & (again != removals.similarity),
        lambda i: (
            f"removal of {rows.name(removals.position[i])} for {rows.name(removals.keeper[i])}: similarity "
            f"{removals.similarity[i]} is recorded, and the texts give {part[i]} of {whole[i]}, {again[i]}; {RUN_AGAIN}"
        ),
    )
    if params.clustering == "keepers":
        found.each(
            about & (part * PPM < params.threshold_ppm * whole),
            lambda i: (
                f"removal of {rows.name(removals.position[i])} for {rows.name(removals.keeper[i])}: {part[i]} of "
                f"{whole[i]} does not reach threshold {params.threshold}; {RUN_AGAIN}"
            ),
        )


def _check_outputs(
    run: Run, rows: _Rows, keep: Bools, source: Source | None, params: Params, whole: set[str], found: _Findings
) -> None:
    """Whether kept/ or keep_mask/ is the input without removals; rows of kept/ by content if there is a ``source``."""
    kind = {"kept": "kept", "mask": "keep_mask"}.get(run.manifest.output)
    if kind is None:
        return
    entries = {entry.shard: entry for entry in run.manifest.outputs if entry.kind == kind}
    with found.check("rows of the mask" if kind == "keep_mask" else "kept rows") as done:
        if kind == "keep_mask":
            for shard, entry in entries.items():
                place = rows.names.index(shard) if shard in rows.names else None
                span = slice(None) if place is None else slice(*rows.first[place : place + 2].tolist())
                if entry.path in whole:
                    _check_mask(run, entry, keep[span], rows.names if place is None else None, found)
                    done.count += len(keep[span])
            return
        files = _input_files(source) if source is not None else [None] * len(rows.names)
        small = "" not in entries and any(entry.shard == "" for entry in run.manifest.outputs)
        for place, (name, file) in enumerate(zip(rows.names, files, strict=True)):
            part = keep[rows.first[place] : rows.first[place + 1]]
            kept = int(part.sum())
            found_entry = entries.get(name)
            if small and (found_entry is not None) != (kept > 0):
                state = "is in kept/, and was removed" if found_entry else "is not in kept/, and was not removed"
                found.artefact(f"{name} {state}; {RESTORE}")
                continue
            if found_entry is None or found_entry.path not in whole:
                continue
            if found_entry.rows is not None and found_entry.rows != kept:
                found.artefact(
                    f"{run.path / found_entry.path} has {found_entry.rows} rows, and removed/ leaves {kept} of {name}; "
                    f"{RESTORE}"
                )
                continue
            try:
                if file is not None:
                    check = _check_copy if small else _check_kept
                    check(run.path / found_entry.path, found_entry, file, part, params)
                    done.count += kept
            except ArtefactError as error:
                found.artefact(f"{error}; {RESTORE}")


def _input_files(source: Source) -> list[Any]:
    """What gives the kept rows of each input file: a shard, or a file that is one row."""
    return [file for shard in source.shards for file in (shard.files if isinstance(shard, DocumentFiles) else [shard])]


def _check_mask(run: Run, entry: OutputEntry, keep: Bools, names: Sequence[str] | None, found: _Findings) -> None:
    path = run.path / entry.path
    at = 0
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != len(keep):
                found.artefact(f"{path} has {file.metadata.num_rows} rows, and the input {len(keep)}; {RESTORE}")
                return
            for batch in file.iter_batches():
                mask = pc.fill_null(batch.column("keep").cast(pa.bool_()), False).to_numpy(zero_copy_only=False)
                start = at
                found.each(
                    mask != keep[at : at + len(mask)],
                    lambda i: f"{path}: row {start + i} does not agree with removed/; {RESTORE}",  # noqa: B023
                )
                if names is not None and batch.column("shard").to_pylist() != list(names[at : at + len(mask)]):
                    found.artefact(f"{path} names other files than the input has; {RESTORE}")
                at += len(mask)
    except READ_ERRORS as error:
        found.artefact(f"{path} cannot be read: {say(error)}; {RESTORE}")


def _check_copy(path: Path, entry: OutputEntry, file: RowFile, keep: Bools, params: Params) -> None:
    """Raise ArtefactError unless a kept file, whose checksum is right, is a copy of the input file that it names."""
    digest = xxhash.xxh3_128()
    for block in file.blocks():
        digest.update(block)
    if digest.hexdigest() != entry.xxh3_128:
        raise ArtefactError(f"{path} is no copy of {file.path}")


def _check_kept(path: Path, entry: OutputEntry, file: FileShard, keep: Bools, params: Params) -> None:
    """Raise ArtefactError unless a kept file holds the kept rows of its input file, in order, and nothing else."""
    kind, compression = FORMATS[suffix_of(file.name) or ""]
    if kind in ("parquet", "ipc"):
        row = _first_difference(file.kept(keep), _kept_batches(path, int(keep.sum()), params))
    else:
        row = _first_other_byte(file, keep, path, compression, params)
    if row is not None:
        raise ArtefactError(f"{path} is not {file.name} without its removals: they differ {row}")


def _kept_batches(path: Path, count: int, params: Params) -> Iterator[pa.RecordBatch]:
    """All rows of a kept file, read by the reader of its format. Raises ArtefactError for what is wrong with it."""
    budget = Budget.of(params)
    try:
        source = open_paths(
            [str(path)],
            text_column=params.text_column,
            columns=[],
            memory_bytes=budget.memory_bytes,
            tmp=budget.tmp,
        )
        (shard,) = source.shards
        yield from shard.kept(np.ones(count, bool))
    except (InputError, ValueError) as error:
        raise ArtefactError(f"{path}: {say(error)}") from error


def _first_difference(left: Iterator[pa.RecordBatch], right: Iterator[pa.RecordBatch]) -> str | None:
    """Where two streams of batches, cut in any way, first differ; None if nowhere."""
    row = 0
    one = other = None
    while True:
        one = one if one is not None and one.num_rows else next((b for b in left if b.num_rows), None)
        other = other if other is not None and other.num_rows else next((b for b in right if b.num_rows), None)
        if one is None or other is None:
            return None if one is other else f"in length, from row {row} on"
        count = min(one.num_rows, other.num_rows)
        if not _equal(one.slice(0, count), other.slice(0, count)):
            low, high = 0, count  # rows below ``low`` are equal, those below ``high`` are not
            while high - low > 1:
                middle = (low + high) // 2
                same = _equal(one.slice(low, middle - low), other.slice(low, middle - low))
                low, high = (middle, high) if same else (low, middle)
            return f"in row {row + low}"
        row += count
        one, other = one.slice(count), other.slice(count)


def _equal(one: pa.RecordBatch, other: pa.RecordBatch) -> bool:
    """Whether two batches hold the same columns of the same values, NaN equal to NaN."""
    if one.schema != other.schema:
        return False
    return all(a.equals(b) or _equal_bits(a, b) for a, b in zip(one.columns, other.columns, strict=True))


def _equal_bits(one: pa.Array, other: pa.Array) -> bool:
    """For columns that may hold NaN, which Arrow takes for unequal to itself."""
    if pt.is_floating(one.type):
        bits = {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[one.type.bit_width]
        return bool(one.view(bits).equals(other.view(bits)))
    return pt.is_nested(one.type) and repr(one.to_pylist()) == repr(other.to_pylist())


def _first_other_byte(shard: FileShard, keep: Bools, path: Path, compression: str | None, params: Params) -> str | None:
    """Where a kept file of lines first differs from what its shard writes, decompressed; None if nowhere."""
    with tempfile.TemporaryDirectory(prefix="gpudedup-", dir=Budget.of(params).tmp) as folder:
        again = Path(folder) / path.name
        shard.write_kept(keep, again)
        try:
            with (
                pa.input_stream(str(again), compression=compression) as left,
                pa.input_stream(str(path), compression=compression) as right,
            ):
                at = 0
                while True:
                    one, other = left.read(COMPARED_BYTES), right.read(COMPARED_BYTES)
                    if one != other:
                        return f"near byte {at} of the decompressed text" if compression else f"after byte {at}"
                    if not one:
                        return None
                    at += len(one)
        except READ_ERRORS as error:
            raise ArtefactError(f"{path} cannot be read: {say(error)}") from error
