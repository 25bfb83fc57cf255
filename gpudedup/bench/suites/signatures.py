"""Signing alone: text in memory to signatures in memory, by one core of each CPU tier and by each GPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from gpudedup.backends import select_backend
from gpudedup.backends.base import SignedBatch, ToSign
from gpudedup.bench.devices import BASELINE, Device
from gpudedup.bench.inputs import Inputs, inputs, made, text_bytes, texts
from gpudedup.bench.measure import Measured, Work, measure
from gpudedup.bench.record import Record, Text
from gpudedup.bench.suites import Order, recorded
from gpudedup.errors import BenchmarkError
from gpudedup.io.batches import TARGET_BYTES
from gpudedup.params import make_params

MOST_BYTES = 128_000_000
"""Of text: more than a last-level cache."""

CLOCK = "Backend.sign: text in host memory, in the batches of a job, to signatures of 128 lanes in host memory, in turn"
CASE = "gpudedup.bench.suites.signatures:signing"


def suite(order: Order) -> Iterator[Record]:
    size = min(order.text_bytes, MOST_BYTES)
    if order.inputs:
        kinds = [inputs(order)]
    else:
        mixes = dict.fromkeys(("english", order.mix) if order.quick else ("english", "chinese", order.mix))
        kinds = [made(order) if mix == order.mix else made(order, mix=mix, size=size) for mix in mixes]
    for text in kinds:
        yield from signed("signatures", order, text, {"most_bytes": size}, CLOCK)


def signed(suite: str, order: Order, text: Inputs, options: dict[str, Any], clock: str) -> Iterator[Record]:
    """The records of one text on all devices; their signatures are those of the baseline tier, or BenchmarkError."""
    given = {"files": text.files, "text_column": text.text_column, **options}
    found: dict[Device, Measured | str] = {}
    for device in order.devices:
        order.tell(f"{suite}: {text.name}, {device}")
        found[device] = measure(
            CASE, {**given, "device": device.device}, repeat=order.repeat, environment=device.environment
        )
    checked = "contents the same in every repeat"
    others = [device for device in order.devices if device.tier != BASELINE]
    if others:
        expected = _expected(found, given, order)
        for device, one in found.items():
            if isinstance(one, Measured) and one.fingerprint != expected:
                raise BenchmarkError(
                    f"{suite}, {text.name}: signatures of {device} are not those of the CPU's {BASELINE} tier"
                )
        checked += f"; every lane, bit for bit, that of the CPU's {BASELINE} tier"
    for device, one in found.items():
        corpus = text.text
        figures: dict[str, float] = {}
        if isinstance(one, Measured):
            counts, seconds = one.figures, one.seconds.median
            corpus = Text(name=text.name, documents=int(counts["documents"]), text_bytes=int(counts["text_bytes"]))
            figures = {
                "text_megabytes_per_second": counts["text_bytes"] / seconds / 1e6,
                "million_units_per_second": counts["units"] / seconds / 1e6,
                "documents_per_second": counts["documents"] / seconds,
                "bytes_per_unit": counts["text_bytes"] / max(1, counts["units"]),
            }
        cores = {"workers": 1} if device.tier else {}
        parameters = {"num_perm": 128, "shingle": "word:5", **cores}
        about: dict[str, Any] = {"corpus": corpus, "clock": clock, "checked": checked, "parameters": parameters}
        yield recorded(suite, text.name, order, device, one, figures=figures, **about)


def _expected(found: dict[Device, Measured | str], given: dict[str, Any], order: Order) -> str:
    """The fingerprint of the baseline tier's signatures, measured or not."""
    baseline = Device("cpu", BASELINE)
    one = found.get(baseline)
    if not isinstance(one, Measured):
        order.tell(f"signing by the CPU's {BASELINE} tier, to compare")
        one = measure(CASE, {**given, "device": "cpu"}, repeat=1, warm_ups=0, environment=baseline.environment)
    if isinstance(one, str):
        raise BenchmarkError(f"no signatures to compare with: {one}")
    return one.fingerprint


def signing(files: Sequence[str], text_column: str, device: str, most_bytes: int, cut: int = 0) -> Work:
    """Signs the first bytes of text of files; ``cut``: as documents of so many bytes each. On one core of a CPU."""
    params = make_params({"device": device, **({"workers": 1} if device == "cpu" else {})})
    backend = select_backend(params)
    text = pa.chunked_array(_first(texts(files, text_column), most_bytes)).combine_chunks()
    if cut:
        text = _cut(text, cut)
    rows = max(1, TARGET_BYTES * len(text) // max(1, text.nbytes))
    batches = [text.slice(first, rows) for first in range(0, len(text), rows)]
    size = text_bytes(text)

    def signed() -> Iterator[SignedBatch]:
        return backend.sign(ToSign(batch, lanes=True) for batch in batches)

    # Every lane once, without a clock: to keep all signatures, or to hash them, takes as long as to sign short texts.
    every_lane = fingerprint(signed())

    def run() -> tuple[str, int]:
        units, digest = 0, xxhash.xxh3_128()
        for batch in signed():
            units += int(batch.unit_count.sum())
            digest.update(batch.content.data)
        return digest.hexdigest(), units

    def figures(result: tuple[str, int]) -> dict[str, float]:
        return {"documents": len(text), "text_bytes": size, "units": result[1]}

    return Work(run, lambda result: f"{every_lane} {result[0]}", figures=figures)


def fingerprint(result: Iterable[SignedBatch]) -> str:
    """Of all lanes, contents and units."""
    digest = xxhash.xxh3_128()
    for batch in result:
        for array in (batch.lanes, batch.content, batch.unit_count):
            assert array is not None
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _first(batches: Iterable[pa.Array], most_bytes: int) -> list[pa.Array]:
    """Whole batches of ``most_bytes`` in all, or up to a batch more."""
    found, size = [], 0
    for batch in batches:
        found.append(batch)
        size += text_bytes(batch)
        if size >= most_bytes:
            break
    return found


def _cut(text: pa.Array, size: int) -> pa.Array:
    """All text as documents of ``size`` bytes each, cut anywhere."""
    whole = text.cast(pa.large_binary())
    _, offsets, data = whole.buffers()
    ends = np.frombuffer(offsets, np.int64)[whole.offset : whole.offset + len(whole) + 1]
    count = int(ends[-1] - ends[0]) // size
    cuts = ends[0] + np.arange(count + 1, dtype=np.int64) * size
    return pa.Array.from_buffers(pa.large_binary(), count, [None, pa.py_buffer(cuts), data])
