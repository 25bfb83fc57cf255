"""What a run would be like, from a seeded sample of its input: how much text, memory, disk and time. Writes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from gpudedup.engines.local import Budget, Outcome, run_stages
from gpudedup.engines.space import spill_bytes, working_bytes
from gpudedup.io import Source
from gpudedup.io.memory import Held, MemorySource
from gpudedup.io.paths import FORMATS, suffix_of
from gpudedup.io.remote import is_url
from gpudedup.io.source import input_files
from gpudedup.machine import available_memory_bytes, free_bytes
from gpudedup.params import Params, parse_shingle
from gpudedup.stages.decide import EXACT, NEAR
from gpudedup.stages.sample import Estimate, Sample, take_sample
from gpudedup.stages.sign import Progress

SAMPLE_BYTES = 32 << 20
"""Of text that is read at most, about; an input of no more than this is read whole."""

WARM_UP_ROWS = 200

ROUGH_BYTES = SAMPLE_BYTES // 4
"""Of text in a sample, below which its rates are said to be rough."""

DOCUMENT_BYTES = 80
"""Memory that a run holds for a document: content hash and units 25, ranks and representatives 12, the decision, its
copy and who is compared 40 (measured, 2 to 8 million documents: 67 to 78)."""

SCOPE_BYTES = 20
"""The same for each of ``within`` and ``across`` (measured: 16 to 25)."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run over an input would be like."""

    files: int
    format: str
    stored_bytes: int
    documents: Estimate
    text_bytes: Estimate
    sample: str
    """What was read, in words."""
    sample_documents: int
    sample_text_bytes: int
    sample_sharing: int
    """Documents of the sample that share a bucket with another of it."""
    sample_compared: int
    sample_exact: int
    sample_near: int
    bands: int
    rows: int
    s_curve: list[tuple[float, float]]
    memory_bytes: int
    """The ``memory`` budget."""
    held_bytes: int
    """What is held for the documents beside that."""
    available_memory_bytes: int
    working_bytes: int
    """About what the run is continued from takes on disk: signatures, columns, matches, decisions."""
    output_bytes: int
    """At most, without the tables of removals."""
    output_free_bytes: int
    spill_bytes: int
    """At most."""
    spill_free_bytes: int
    seconds: dict[str, tuple[float, float]]
    """(least, most) of each stage."""
    device: str
    warnings: list[str]
    unknown: list[str]
    """What no sample can tell."""
    parameters: Params

    def asdict(self) -> dict[str, Any]:
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def make_plan(source: Source, params: Params, *, output: str, out: str | None, progress: Progress) -> Plan:
    """Sample an opened source and run the stages over the sample. Raises what a run would, as far as it shows there."""
    files = input_files(source.shards)
    names = [name for name, _ in files]
    stored_bytes = sum(mark.size_bytes for _, mark in files if mark is not None)
    budget = Budget.of(params)
    _touch_memory()
    sample = take_sample(
        source, source.shards, params, most_bytes=SAMPLE_BYTES, memory_bytes=budget.memory_bytes, writing=True
    )
    unguarded = msgspec.structs.replace(params, max_removed=None, guard_column=None)
    data = MemorySource(Held(sample.table), text_column=params.text_column, columns=[])
    first = MemorySource(Held(sample.table.slice(0, WARM_UP_ROWS)), text_column=params.text_column, columns=[])
    # What is done once in a process, so that it does not count for every document.
    run_stages(first, unguarded, input_bytes=stored_bytes)
    outcome = run_stages(data, unguarded, progress=progress, input_bytes=stored_bytes)
    documents = sample.document_total
    text_bytes = sample.total(sample.text_bytes)
    sampled_bytes = int(sample.text_bytes.sum())
    scale = text_bytes.value / sampled_bytes if sampled_bytes else 0.0
    shingles = _shingles(outcome, params) * scale
    banding = params.banding
    scopes = (params.within is not None) + (params.across is not None)
    held_bytes = documents.value * (DOCUMENT_BYTES + SCOPE_BYTES * scopes)
    sampled, decided = max(1, outcome.signed.rows), outcome.decided
    sharing = len(outcome.matched.buckets.shared())
    working = working_bytes(
        params,
        documents.value,
        carried_bytes=sum(column.nbytes for column in outcome.signed.columns.values()) / sampled,
        sharing=sharing / sampled,
        removed=len(decided.removed) / sampled,
    )
    spill = spill_bytes(params, budget, documents.value, shingles=shingles, sharing=sharing / sampled)
    output_bytes = {"kept": stored_bytes, "mask": documents.value // 8 + 1024 * len(names)}.get(output, 0)
    place = budget.tmp if out is not None and is_url(out) else out or "."
    output_free_bytes, spill_free_bytes = free_bytes(Path(place)), free_bytes(Path(budget.tmp))
    available = available_memory_bytes()
    warnings = []
    if held_bytes + budget.memory_bytes > available:
        warnings.append(
            f"{held_bytes} bytes for documents and memory={budget.memory_bytes} are more than the {available} that are "
            "free; lower memory, use a larger machine, or split the input"
        )
    if working + output_bytes > output_free_bytes:
        less = 'output="mask" or ' if output == "kept" else ""
        warnings.append(
            f"about {working} bytes to continue from and up to {output_bytes} of output, and {output_free_bytes} are "
            f"free in {place}; use {less}another directory"
        )
    if spill > spill_free_bytes:
        less = (
            'give more memory, another tmp, or verify="signature"' if params.verify == "exact" else "give more memory"
        )
        warnings.append(
            f"up to {spill} bytes of what is compared, and {spill_free_bytes} are free in {budget.tmp}; {less}"
        )
    at_once = min(outcome.backend.workers, len(names)) if output == "kept" else 0
    seconds = _seconds(sample, outcome, params, budget, scale, shingles, at_once)
    return Plan(
        files=len(names),
        format=FORMATS[suffix_of(names[0]) or ""][0] if names else "",
        stored_bytes=stored_bytes,
        documents=documents,
        text_bytes=text_bytes,
        sample=sample.what,
        sample_documents=int(sample.documents.sum()),
        sample_text_bytes=sampled_bytes,
        sample_sharing=sharing,
        sample_compared=outcome.verified.decision.compared,
        sample_exact=int((decided.reason == EXACT).sum()),
        sample_near=int((decided.reason == NEAR).sum()),
        bands=banding.bands,
        rows=banding.rows,
        s_curve=banding.s_curve(params.threshold),
        memory_bytes=budget.memory_bytes,
        held_bytes=held_bytes,
        available_memory_bytes=available,
        working_bytes=working,
        output_bytes=output_bytes,
        output_free_bytes=output_free_bytes,
        spill_bytes=spill,
        spill_free_bytes=spill_free_bytes,
        seconds=seconds,
        device=outcome.backend.name,
        warnings=warnings,
        unknown=_unknown(sample),
        parameters=params,
    )


def _shingles(outcome: Outcome, params: Params) -> int:
    """Shingles of the sample, repeats counted: at least the sizes of its sets."""
    units = outcome.signed.unit_count.astype(np.int64)
    n = parse_shingle(params.shingle).n
    return int(np.where(units > 0, np.maximum(units - n + 1, 1), 0).sum())


def _seconds(
    sample: Sample,
    outcome: Outcome,
    params: Params,
    budget: Budget,
    scale: float,
    shingles: float,
    at_once: int,
) -> dict[str, tuple[float, float]]:
    """Seconds of each stage by the rates of the sample: (least, most). ``at_once``: files written at a time."""
    workers, of = outcome.backend.workers, outcome.seconds.of
    decode = sample.decode_seconds * scale
    sign = max(decode, of["sign"] * scale + decode / workers)  # one thread decodes while all sign
    verify = least = of["verify"] * scale
    if params.verify == "exact" and shingles:
        uncached = max(0.0, 1 - budget.cache_bytes / (4 * shingles))
        verify = least + sign * uncached  # at most all documents share a bucket, and are read again
    apply = sample.write_seconds * scale / at_once if at_once else 0.0
    stages = {
        "sign": (sign, sign),
        "match": (of["match"] * scale, of["match"] * scale),
        "verify": (least, verify),
        "apply": (apply, apply),
    }
    return {name: (round(low, 3), round(high, 3)) for name, (low, high) in stages.items()}


def _unknown(sample: Sample) -> list[str]:
    found = []
    if not sample.whole:
        found += [
            "copies of which only one is in the sample: of the whole input a larger share is removed, and more is "
            "compared",
            "bytes of removed/: about 20 for each removal",
            "the speed of the disk: what is written was measured into memory",
        ]
    if sample.text_bytes.sum() < ROUGH_BYTES:
        found.append("seconds: the sample is too small to measure rates well")
    return found


def _touch_memory() -> None:
    """Let Arrow's pool hold memory for a sample, as it does after the first batches of a run.

    New memory costs more than decoding into it: 8 pieces of Parquet took 245 ms with page faults, 80 ms without.
    """
    held = [pa.allocate_buffer(1 << 20) for _ in range(3 * SAMPLE_BYTES >> 20)]
    for buffer in held:
        np.frombuffer(buffer, np.uint8).fill(1)
