"""The local engine over a run directory: every stage in tasks that are committed one by one, and not done twice.

A run that is stopped, whatever stops it, is continued by the next process with what is committed. What a task makes
follows from its inputs alone, so the end is the same to the byte.
"""

from __future__ import annotations

import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from functools import cached_property
from importlib.metadata import version
from typing import Any

import msgspec
import pyarrow as pa

from gpudedup import _cpu
from gpudedup.backends import Backend, select_backend
from gpudedup.backends.base import Band, Decision
from gpudedup.engines.begun import check_place, check_same, check_unchanged, is_same
from gpudedup.engines.corpus import Corpus
from gpudedup.engines.earlier import open_earlier
from gpudedup.engines.lineage import Lineage, bands_a_task, content_of, match_tasks
from gpudedup.engines.local import Budget, Seconds
from gpudedup.engines.signed_files import SignedFiles, load_signed
from gpudedup.engines.signing import read_columns, sign_tasks
from gpudedup.engines.space import check_space
from gpudedup.errors import ArtefactError, InputError, LockedError, ParameterError
from gpudedup.io.paths import find_files
from gpudedup.io.source import Fingerprint, Skipped, Source, input_files
from gpudedup.machine import description, release_memory
from gpudedup.params import SPEC, Params
from gpudedup.stages.apply import Removals, write_shard
from gpudedup.stages.decide import Decided, decide
from gpudedup.stages.earlier import Earlier, with_earlier
from gpudedup.stages.guard import check_guard
from gpudedup.stages.match import Grouped, Matched, group, make_buckets, sort_band
from gpudedup.stages.sign import Progress, ShingleCache, Signed, carried_columns, check_types
from gpudedup.stages.verify import ShingleSets, Verified, known_decision, matching, open_documents, verify
from gpudedup.store import manifest as manifests
from gpudedup.store import records, working
from gpudedup.store.lock import Lock
from gpudedup.store.manifest import InputEntry, Manifest, OutputEntry, SkippedEntry, working_entry
from gpudedup.store.records import Record
from gpudedup.store.run_directory import RunDirectory, compare
from gpudedup.store.signatures import ipc_writer
from gpudedup.store.stopping import results, stoppable_threads
from gpudedup.summary import Summary, summarise

VERBS = ("sign", "match", "verify", "decide", "apply")
"""The stages, in order."""


class DurableRun:
    """Drives one run directory, which is locked. Every stage is made of what is committed of the stages before."""

    def __init__(
        self,
        directory: RunDirectory,
        source: Source,
        params: Params,
        lock: Lock,
        progress: Progress,
        tasks: dict[str, int],
        earlier: Earlier,
    ) -> None:
        """tasks: the sign task of each input file that has one already, by name."""
        self.earlier = earlier
        self.directory, self.source, self.params, self.progress = directory, source, params, progress
        directory.still_ours = lock.check
        self.budget = Budget.of(params)
        self.corpus = Corpus.of(source, tasks)
        sizes = [mark.size_bytes for mark in self.corpus.marks]
        self.backend: Backend = select_backend(params, sum(sizes))
        self.carried = carried_columns(params)
        check_types(source, params)
        self._types = {name: str(source.column_type(name)) for name in self.carried}
        self.lineage = Lineage(
            self.corpus.names,
            sizes,
            self.corpus.task.tolist(),
            params,
            directory.output,
            [(entry.path, entry.digest) for entry in earlier.entries()],
            self._types,
            self._content,
        )
        before = directory.manifest()
        self._skipped_before = [] if before is None else [each for each in before.skipped if each.first_row is None]
        self._lowest_threshold = params.threshold if before is None else before.lowest_threshold
        self.seconds = Seconds()
        self._records: dict[tuple[str, int], Record] = {}
        self._own: set[tuple[str, int]] = set()  # tasks that this process did
        self._contents: dict[int, str] = {}
        self._cache = ShingleCache(self.budget.cache_bytes if params.verify == "exact" else 0)
        earlier.check_types(source, params)

    def advance(self, until: str) -> None:
        """Do what is not done yet, up to a stage. Raises GpudedupError; what was committed stays."""
        for verb in VERBS[: VERBS.index(until) + 1]:
            getattr(self, verb)()

    # ---- records ----

    def done(self, stage: str, task: int) -> Record | None:
        """The record of a task that is done."""
        known = self._records.get((stage, task))
        if known is not None:
            return known
        known = self.directory.done(stage, task, self.lineage.digest(stage, task))
        if known is not None and stage == "sign":
            files = [self.corpus.names[place] for place in self.corpus.files_of(task)]
            if sorted(entry.path for entry in known.inputs) != sorted(files):
                return None
        if known is not None:
            self._records[stage, task] = known
        return known

    def _content(self, task: int) -> str:
        if task not in self._contents:
            record = self.done("sign", task)
            if record is None:
                return ""
            self._contents[task] = content_of(record.inputs)
        return self._contents[task]

    def record(self, stage: str, task: int, artefacts: list[OutputEntry], *, seconds: float, **more: Any) -> Record:
        """A record of a task that was done by this process."""
        return Record(
            stage=stage,
            task=task,
            digest=self.lineage.digest(stage, task),
            artefacts=artefacts,
            seconds=round(seconds, 6),
            host=socket.gethostname(),
            version=version("gpudedup"),
            **more,
        )

    def commit(self, record: Record) -> None:
        """Make a task's result last. Raises LockedError if another driver took over."""
        self.directory.commit(record)
        self._records[record.stage, record.task] = record
        self._own.add((record.stage, record.task))

    # ---- the stages ----

    def sign(self) -> None:
        """Sign what is not signed, read carried columns that are not there."""
        missing = [task for task in self.corpus.tasks if self.done("sign", task) is None]
        with self.seconds.stage("sign"):
            if missing:
                sign_tasks(self, missing, self._cache)
            if self.carried:
                for task in self.corpus.tasks:
                    if self.done("columns", task) is None:
                        read_columns(self, task)
            release_memory()

    @cached_property
    def signed(self) -> Signed:
        """All signatures, memory-mapped, and the documents of earlier runs."""
        corpus = self.corpus
        stored = SignedFiles(
            artefacts=self.directory,
            params=self.params,
            names=corpus.names,
            task=corpus.task,
            shard=corpus.shard,
            shards=len(self.source.shards),
            record=self.done,
            carried=self.carried,
        )
        return with_earlier(load_signed(stored, self.backend, self._cache), self.earlier)

    def match(self) -> None:
        """Group equal contents, sort every band."""
        if self._is_matched:
            return
        with self.seconds.stage("match"):
            self.progress("match", self.signed.rows, 0)
            grouped = self.grouped
            for task in range(1, self._match_tasks + 1):
                if self.done("match", task) is None:
                    self._sort_bands(task, grouped)
            release_memory()

    @property
    def _documents(self) -> int:
        return sum(record.counts["rows"] for record in self._sign_records()) + len(self.earlier)

    @property
    def _is_matched(self) -> bool:
        return all(self.done("match", task) for task in range(self._match_tasks + 1))

    @property
    def _match_tasks(self) -> int:
        return match_tasks(self.params, self._documents)

    def _sign_records(self) -> list[Record]:
        found = [self.done("sign", task) for task in self.corpus.tasks]
        return [record for record in found if record is not None]

    @cached_property
    def grouped(self) -> Grouped:
        """Ranks and representatives: task 0 of match."""
        start = time.perf_counter()
        record = self.done("match", 0)
        if record is not None:
            known = working.read_order(self.directory.artefact(record.artefacts[0]), len(self.signed.content))
            return group(self.signed, self.params, self.backend, known)
        grouped = group(self.signed, self.params, self.backend)
        batch = pa.record_batch([grouped.order, grouped.leader], schema=working.ORDER)
        entry = self._write("match", 0, "match/order.arrow", working.ORDER, [batch])
        self.commit(self.record("match", 0, [entry], seconds=time.perf_counter() - start))
        return grouped

    def _bands_of(self, task: int) -> range:
        size = bands_a_task(self.params, self._documents)
        return range((task - 1) * size, min(task * size, self.params.banding.bands))

    def _sort_bands(self, task: int, grouped: Grouped) -> None:
        start = time.perf_counter()
        memory_bytes = self.budget.bucket_bytes
        bands = (
            sort_band(self.signed, grouped, band, self.backend, memory_bytes=memory_bytes)
            for band in self._bands_of(task)
        )
        name = f"match/bands-{task:03}.arrow"
        entry = self._write("match", task, name, working.BANDS, map(working.band_batch, bands))
        self.commit(self.record("match", task, [entry], seconds=time.perf_counter() - start))

    @cached_property
    def matched(self) -> Matched:
        """The buckets of all bands."""
        bands: list[Band] = []
        for task in range(1, self._match_tasks + 1):
            record = self.done("match", task)
            assert record is not None
            bands += working.read_bands(self.directory.artefact(record.artefacts[0]), len(self._bands_of(task)))
        budget = self.budget
        try:
            return make_buckets(self.grouped, bands, self.backend, memory_bytes=budget.bucket_bytes, tmp=budget.tmp)
        except ValueError as error:
            raise ArtefactError(f"{self.directory.path}/match does not fit the signatures: {error}") from error

    def verify(self) -> None:
        """Compare candidates, if that was not done at this threshold."""
        if self.done("verify", self.params.threshold_ppm) is None:
            self.verified  # noqa: B018

    @cached_property
    def verified(self) -> Verified:
        """The decision over representatives."""
        ppm = self.params.threshold_ppm
        record = self.done("verify", ppm)
        if record is not None:
            return Verified(self._read_decision(record), None)
        start = time.perf_counter()
        with self.seconds.stage("verify"):
            provider = ShingleSets(self.source, self.signed, self.params, self.backend)
            verified = verify(
                provider,
                self.matched,
                self.params,
                self.backend,
                memory_bytes=self.budget.set_bytes,
                tmp=self.budget.tmp,
                progress=self.progress,
                prior=self._prior(),
            )
            release_memory()
        batch = working.decision_batch(*verified.decision.arrays())
        entry = self._write("verify", ppm, f"verify/{ppm:07}.arrow", working.DECISION, [batch])
        counts = matching(self.matched, verified)
        self.commit(self.record("verify", ppm, [entry], counts=counts, seconds=time.perf_counter() - start))
        return verified

    def _prior(self) -> Verified | None:
        """What an earlier verification of the same candidates at the highest lower threshold found."""
        for ppm in sorted(self.directory.tasks_recorded("verify"), reverse=True):
            record = self.done("verify", ppm) if ppm < self.params.threshold_ppm else None
            if record is not None:
                return Verified(self._read_decision(record), None)
        return None

    def check_known(self) -> None:
        """Raise ParameterError if a decision at this threshold must read text: that is for ``verify`` to do."""
        params = self.params
        if params.verify != "exact" or self.done("verify", params.threshold_ppm) is not None:
            return
        documents = "documents that share a bucket"
        if len(self._sign_records()) == len(self.corpus.tasks) and self._is_matched:
            buckets, prior = self.matched.buckets, self._prior()
            unknown = open_documents(buckets, known_decision(prior, params), self.backend)
            if not len(unknown):
                return
            documents = f"{len(unknown)} documents"
        raise ParameterError(
            f"to decide at threshold {params.threshold:g}, the text of {documents} must be compared; do it with: "
            f"gpudedup verify {self.directory.path} --threshold {params.threshold:g}"
        )

    def _read_decision(self, record: Record) -> Decision:
        path = self.directory.artefact(record.artefacts[0])
        decision = working.read_decision(path, len(self.grouped.representatives))
        return _cpu.decision_of(*decision, record.counts.get("compared_pairs", 0))

    def decide(self) -> None:
        """Decide about every document. Raises GuardError if that removes too much."""
        with self.seconds.stage("decide"):
            check_guard(self.signed, self.decided, self.params)

    @cached_property
    def decided(self) -> Decided:
        """What becomes of every row."""
        record = self.done("decide", 0)
        if record is not None:
            path = self.directory.artefact(record.artefacts[0])
            found = working.read_removed(path, self.signed.rows, len(self.signed.content))
            keep = ~self.signed.damaged
            keep[found[0]] = False
            return Decided(keep, *found)
        start = time.perf_counter()
        decided = decide(self.signed, self.grouped, self.verified, self.params)
        columns = [decided.removed, decided.keeper, decided.reason, decided.similarity]
        batch = pa.record_batch(columns, schema=working.REMOVED)
        entry = self._write("decide", 0, "decide/removed.arrow", working.REMOVED, [batch])
        self.commit(self.record("decide", 0, [entry], seconds=time.perf_counter() - start))
        return decided

    def apply(self) -> None:
        """Write removed/ and kept/ or keep_mask/ of every shard, and finish the manifest."""
        with self.seconds.stage("apply"):
            self._clear_results()
            missing = [task for task in self.corpus.tasks if not self._is_written(task)]
            if missing:
                self._write_manifest(self.lineage.of_results)
                self.progress("apply", self.signed.rows, self.signed.text_bytes)
                self._write_shards(missing)
        self.finish()

    def _is_written(self, task: int) -> bool:
        """Whether the results of a task are there, with the checksums of their record; those on a store by size."""
        record = self.done("apply", task)
        if record is None or self.directory.mirror is not None:
            return record is not None
        try:
            for entry in record.artefacts:
                compare(self.directory.path / entry.path, entry, "its record")
        except ArtefactError:
            del self._records["apply", task]
            return False
        return True

    def _write_shards(self, tasks: Sequence[int]) -> None:
        signed, decided = self.signed, self.decided
        removals = Removals.of(self.source, signed, decided, self.params)
        start = time.perf_counter()
        with stoppable_threads(self.backend.workers, "gpudedup-apply") as submit:
            shards = dict.fromkeys(number for task in tasks for number in self.corpus.shards_of(task))
            going_on = {
                number: write_shard(self.directory, self.source, number, signed, decided, removals, submit)
                for number in shards
            }
            outputs: defaultdict[int, list[OutputEntry]] = defaultdict(list)
            for task in tasks:
                own = [(shard, future) for shard in self.corpus.shards_of(task) for future in going_on.pop(shard, [])]
                for (shard, _), entries in zip(own, results([future for _, future in own]), strict=True):
                    for entry in entries:
                        outputs[self.corpus.task_of(shard, entry.shard)].append(entry)
                self.commit(self.record("apply", task, outputs.pop(task, []), seconds=time.perf_counter() - start))
                start = time.perf_counter()

    # ---- artefacts ----

    def replace(self, stage: str, task: int) -> None:
        """Called before artefacts of a task are written: a record of others under their names goes first."""
        self.directory.forget(stage, task, self.lineage.digest(stage, task))

    def _write(
        self, stage: str, task: int, name: str, kinds: pa.Schema, batches: Iterable[pa.RecordBatch]
    ) -> OutputEntry:
        self.replace(stage, task)
        with self.directory.new_artefact(name) as file, ipc_writer(file, kinds) as writer:
            for batch in batches:
                writer.write_batch(batch)
        return working_entry(name, file.size_bytes, file.xxh3_128)

    # ---- the manifest ----

    def begin(self) -> None:
        """Write the manifest of an unfinished run, unless one of the same plan is there, or of a complete run with the
        results that this one will have. Results stay for now.
        """
        before = self.directory.manifest()
        if before is None:
            self._write_manifest("")
            return
        if before.state == "complete":
            fits = before.results == self.lineage.of_results
        else:
            sizes = (mark.size_bytes for mark in self.corpus.marks)
            fits = is_same(
                before,
                self.params,
                files=zip(self.corpus.names, self.corpus.task.tolist(), sizes, strict=True),
                output=self.directory.output,
                types=self._types,
                against=self.earlier.entries(),
            )
        if not fits:
            self._write_manifest(before.results)

    def _clear_results(self) -> None:
        """Delete results of another decision, and the records of them."""
        manifest = self.directory.manifest()
        results = "" if manifest is None else manifest.results
        if results != self.lineage.of_results:
            self._write_manifest("")
            self.directory.discard([records.folder_of("apply"), *manifests.RESULTS])

    def _write_manifest(self, results: str) -> None:
        bands, rows = self.params.banding
        files = zip(self.corpus.names, self.corpus.marks, self.corpus.task.tolist(), strict=True)
        self.directory.write_manifest(
            spec=SPEC,
            version=version("gpudedup"),
            state="unfinished",
            results=results,
            parameters=msgspec.to_builtins(self.params),
            bands=bands,
            rows=rows,
            lowest_threshold=self._lowest_threshold,
            counts={},
            seconds={},
            inputs=[
                InputEntry(
                    path=name, size_bytes=mark.size_bytes, mtime_ns=mark.mtime_ns, etag=mark.etag, rows=0, task=task
                )
                for name, mark, task in files
            ],
            outputs=[],
            skipped=self._skipped_files(),
            column_types=self._types,
            against=self.earlier.entries(),
        )

    def finish(self) -> None:
        """Write the manifest of the whole run."""
        signed = {entry.path: entry for record in self._sign_records() for entry in record.inputs}
        outputs = [
            entry
            for task in self.corpus.tasks
            if (record := self.done("apply", task)) is not None
            for entry in record.artefacts
        ]
        self.directory.finish(
            outputs=outputs,
            version=version("gpudedup"),
            digest=self.lineage.of_results,
            results=self.lineage.of_results,
            **self.summary().for_manifest(),
            against=self.earlier.entries(),
            lowest_threshold=self._lowest_threshold,
            column_types=self._types,
            inputs=[
                msgspec.structs.replace(signed[name], mtime_ns=mark.mtime_ns, etag=mark.etag)
                for name, mark in zip(self.corpus.names, self.corpus.marks, strict=True)
            ],
            skipped=self._skipped(),
            machine=description(),
        )

    def _skipped(self) -> list[SkippedEntry]:
        """What was left out: whole files, as they were opened now, and rows, as they were signed."""
        rows = [entry for record in self._sign_records() for entry in record.skipped]
        place = {name: number for number, name in enumerate(self.corpus.names)}
        return self._skipped_files() + sorted(rows, key=lambda entry: (place[entry.shard], entry.first_row or 0))

    def _skipped_files(self) -> list[SkippedEntry]:
        """Whole files, as they were opened now, or when the run was begun, if they are not named now."""
        found = {each.shard: _skipped_file(each) for each in self.source.skipped if each.first_row is None}
        read = set(self.corpus.names)
        before = {each.shard: each for each in self._skipped_before if each.shard not in read}
        return list((before | found).values())

    def summary(self) -> Summary:
        """Of what was found, whoever found it."""
        record = self.done("verify", self.params.threshold_ppm)
        assert record is not None
        return summarise(
            self.params,
            self.backend,
            self.signed,
            self.decided,
            record.counts,
            {stage: self.seconds.of.get(stage, 0.0) + self._earlier_seconds(stage) for stage in VERBS},
            len(self._skipped_files()),
        )

    def _earlier_seconds(self, stage: str) -> float:
        """What the tasks of a stage took that earlier processes did."""
        parts = (stage, "columns") if stage == "sign" else (stage,)
        return sum(record.seconds for key, record in self._records.items() if key[0] in parts and key not in self._own)


def _skipped_file(skipped: Skipped) -> SkippedEntry:
    """With what shows whether the file is repaired."""
    mark = Fingerprint(0, 0)
    with suppress(InputError):
        mark = find_files([skipped.shard])[0].fingerprint
    return SkippedEntry(**asdict(skipped), size_bytes=mark.size_bytes, mtime_ns=mark.mtime_ns)


def drive(
    directory: RunDirectory,
    source: Source,
    params: Params,
    lock: Lock,
    progress: Progress,
    until: str,
    *,
    changing: Manifest | None = None,
) -> None:
    """Go on with a run, or begin it, up to a stage. Raises GpudedupError; what was committed stays.

    changing: the manifest that ``params`` were made from, if they may differ from those the run was begun with.
    """
    directory.drop_temporaries()
    before = directory.manifest()
    if changing is not None and before != changing:
        raise LockedError(f"{directory.name} was changed by another process in the meantime; start this again")
    if before is not None and changing is None:
        check_same(before, params, [name for name, _ in input_files(source.shards)], directory)
    if before is not None:
        check_place(before, directory)
    tasks = {entry.path: entry.task for entry in before.inputs} if before is not None else {}
    with ExitStack() as opened:
        earlier = open_earlier(params, directory.name, opened)
        _drive(DurableRun(directory, source, params, lock, progress, tasks, earlier), until)


def _drive(run: DurableRun, until: str) -> None:
    check_unchanged(run.corpus, run.directory)
    if until == "decide":
        run.check_known()
    check_space(run)
    run.begin()
    run.advance(until)
