"""Two results, case by case: faster, slower, or within what repeats differ by; and whether quality is the same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gpudedup.bench.record import Record

F1 = "f1_share"

NOISE = 0.1
"""A difference that no repeats show to be real: clocks, caches and neighbours change from process to process. Of one
build on a quiet virtual machine, minutes apart: up to 15 % between medians of three repeats that differ by 3 %."""

BUSY = 1.5
"""Processes a core, on average, from which on a machine had other work: cases want one a core at most."""


@dataclass(frozen=True)
class Comparison:
    """Of a case that was timed the ratio of seconds, now over before, below 1 is faster; of others that of F1."""

    suite: str
    case: str
    """With the program, if that is a peer."""
    device: str
    ratio: float
    least: float
    most: float
    """Bounds: the best of one over the worst of the other."""
    differs: tuple[str, ...]
    """What of the circumstances is not the same, in words."""

    repeats: int
    """Of the result that has fewer; 0 if F1 is compared."""
    cpu_ratio: float | None = None
    """That of CPU seconds, which other work on the machine changes less."""
    busy: bool = False
    """The machine had other work, now or then."""

    @property
    def verdict(self) -> str:
        if not self.repeats:
            return "same F1" if self.ratio == 1 else "better F1" if self.ratio > 1 else "worse F1"
        if self.busy:
            return "the machine was busy"
        if self.repeats < 2:
            return "one repeat tells nothing"
        if self.most < 1 - NOISE:
            return "faster"
        if self.least > 1 + NOISE:
            return "slower"
        return "within noise"


def compare(now: Iterable[Record], before: Iterable[Record]) -> tuple[list[Comparison], list[str]]:
    """Cases that both have, in the order of ``now``, and what was left out, in words.

    Of cases with other text or parameters nothing is said. Of a case that is there twice the last counts.
    """
    earlier = {record.key: record for record in before if _can_be_compared(record)}
    found, left_out = [], []
    for record in now:
        if not _can_be_compared(record):
            continue
        name, old = f"{record.suite}, {_name(record)}, {record.device}", earlier.pop(record.key, None)
        if old is None or (old.seconds is None) != (record.seconds is None):
            left_out.append(f"{name}: not measured before")
        elif (record.corpus, record.parameters, record.seed) != (old.corpus, old.parameters, old.seed):
            left_out.append(f"{name}: other text, parameters or seed than before")
        else:
            found.append(_comparison(record, old))
    gone = Counter(old.suite for old in earlier.values())
    left_out += [f"{suite}: {count} cases of before were not measured now" for suite, count in gone.items()]
    return found, left_out


def _can_be_compared(record: Record) -> bool:
    return record.seconds is not None or F1 in record.figures


def _name(record: Record) -> str:
    return record.case if record.program == "gpudedup" else f"{record.program}: {record.case}"


def _comparison(record: Record, old: Record) -> Comparison:
    differs = [
        name
        for name, same in (
            ("machine", _machine(record) == _machine(old)),
            ("Python or libraries", _software(record) == _software(old)),
            ("what is inside the clock", record.clock == old.clock),
        )
        if not same
    ]
    about: dict[str, Any] = {"suite": record.suite, "case": _name(record), "device": record.device}
    about["differs"] = tuple(differs)
    if record.seconds is None or old.seconds is None:
        ratio = record.figures[F1] / old.figures[F1] if old.figures[F1] else 1.0 + record.figures[F1]
        return Comparison(**about, ratio=ratio, least=ratio, most=ratio, repeats=0)
    now, before = record.seconds, old.seconds
    tiny = 1e-9  # a clock may have seen no time pass
    return Comparison(
        **about,
        ratio=max(now.median, tiny) / max(before.median, tiny),
        least=max(now.least, tiny) / max(before.most, tiny),
        most=max(now.most, tiny) / max(before.least, tiny),
        repeats=min(record.repeats, old.repeats),
        cpu_ratio=record.cpu_seconds / old.cpu_seconds if record.cpu_seconds and old.cpu_seconds else None,
        busy=any((one.load or 0) > BUSY * one.host.cores for one in (record, old)),
    )


def _machine(record: Record) -> tuple[Any, ...]:
    host = record.host
    return host.system, host.cpu, host.cores, round(host.memory_bytes / 1e9), host.gpus


def _software(record: Record) -> tuple[str, str, str]:
    return record.host.python, record.host.pyarrow, record.host.numpy
