"""The local engine: one process, all stages in order, native threads inside each."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from gpudedup.backends import Backend, select_backend
from gpudedup.errors import OutputError
from gpudedup.io.memory import MemoryShard
from gpudedup.io.source import Source, input_files
from gpudedup.machine import default_memory_bytes, release_memory
from gpudedup.params import Params, parse_memory
from gpudedup.stages.decide import Decided, decide
from gpudedup.stages.earlier import Earlier, with_earlier
from gpudedup.stages.guard import check_guard
from gpudedup.stages.match import Matched, match
from gpudedup.stages.sign import Progress, Signed, sign
from gpudedup.stages.verify import ShingleSets, Verified, verify


@dataclass
class Seconds:
    """Wall seconds of each stage, in the order they ran."""

    of: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.of[name] = self.of.get(name, 0.0) + time.perf_counter() - start


@dataclass
class Budget:
    """How ``memory`` is shared out: a quarter for shingle hashes kept from the first read, half for shingle sets of
    candidates, an eighth for buckets; readers and the stages' own arrays take the rest."""

    memory_bytes: int
    tmp: str

    @classmethod
    def of(cls, params: Params) -> Budget:
        memory = parse_memory(params.memory) if params.memory is not None else default_memory_bytes()
        return cls(memory, scratch_directory(params))

    @property
    def cache_bytes(self) -> int:
        return self.memory_bytes // 4

    @property
    def bucket_bytes(self) -> int:
        return self.memory_bytes // 8

    @property
    def set_bytes(self) -> int:
        return self.memory_bytes // 2


@dataclass
class Outcome:
    """What a run found, with what is needed to decide it again at a higher threshold."""

    source: Source
    params: Params
    backend: Backend
    signed: Signed
    matched: Matched
    verified: Verified
    decided: Decided
    seconds: Seconds


def scratch_directory(params: Params) -> str:
    """Where spill files go: ``tmp``, else the system's. Raises OutputError if it is no directory."""
    directory = params.tmp or tempfile.gettempdir()
    if not os.path.isdir(directory):
        raise OutputError(f'tmp="{directory}" is not a directory; create it or name another')
    return directory


def stored_bytes(source: Source) -> int:
    """Of its files, and of tables in memory."""
    files = sum(mark.size_bytes for _, mark in input_files(source.shards) if mark is not None)
    return files + sum(shard.size_bytes for shard in source.shards if isinstance(shard, MemoryShard))


def silent(stage: str, documents: int, text_bytes: int) -> None:
    """Progress that nobody watches."""


def run_stages(
    source: Source,
    params: Params,
    *,
    progress: Progress = silent,
    earlier: Earlier | None = None,
    input_bytes: int | None = None,
) -> Outcome:
    """sign, match, verify and decide over a whole corpus. Raises GuardError if that removes too much.

    input_bytes: those of the corpus that ``source`` is a sample of, to choose the device for.
    """
    if input_bytes is None:
        input_bytes = stored_bytes(source)
    budget, backend, seconds = Budget.of(params), select_backend(params, input_bytes), Seconds()
    if earlier is not None:
        earlier.check_types(source, params)
    with seconds.stage("sign"):
        signed = sign(source, params, backend, cache_bytes=budget.cache_bytes, progress=progress)
        if earlier is not None:
            signed = with_earlier(signed, earlier)
        release_memory()  # what decoding left: 150 to 200 MB
    with seconds.stage("match"):
        progress("match", signed.rows, 0)
        matched = match(signed, params, backend, memory_bytes=budget.bucket_bytes, tmp=budget.tmp)
        signed.signatures.forget_keys()
        release_memory()
    with seconds.stage("verify"):
        provider = ShingleSets(source, signed, params, backend)
        verified = verify(
            provider, matched, params, backend, memory_bytes=budget.set_bytes, tmp=budget.tmp, progress=progress
        )
        release_memory()
    with seconds.stage("decide"):
        decided = decide(signed, matched.grouped, verified, params)
        check_guard(signed, decided, params)
    return Outcome(source, params, backend, signed, matched, verified, decided, seconds)


def decide_again(outcome: Outcome, threshold: float) -> Outcome:
    """The decision at a higher threshold over the same candidates (docs/spec.md, section 9)."""
    params, seconds = outcome.params.with_threshold(threshold), Seconds()
    budget = Budget.of(params)
    with seconds.stage("verify"):
        provider = ShingleSets(outcome.source, outcome.signed, params, outcome.backend)
        verified = verify(
            provider,
            outcome.matched,
            params,
            outcome.backend,
            memory_bytes=budget.set_bytes,
            tmp=budget.tmp,
            progress=silent,
            prior=outcome.verified,
        )
    with seconds.stage("decide"):
        decided = decide(outcome.signed, outcome.matched.grouped, verified, params)
    return Outcome(outcome.source, params, outcome.backend, outcome.signed, outcome.matched, verified, decided, seconds)
