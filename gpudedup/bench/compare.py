"""Two results, case by case: faster, slower, or within what repeats differ by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gpudedup.bench.record import Record, Spread

NOISE = 0.03
"""A difference that no repeats show to be real: clocks, page cache and placement change from process to process."""


@dataclass(frozen=True)
class Comparison:
    """The ratio of seconds, now over before; below 1 is faster."""

    suite: str
    case: str
    device: str
    ratio: float
    least: float
    most: float
    """Bounds: the best of one over the worst of the other."""
    differs: tuple[str, ...]
    """What of the circumstances is not the same, in words."""

    repeats: int
    """Of the result that has fewer."""

    @property
    def verdict(self) -> str:
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
    earlier = {record.key: record for record in before}
    found, left_out = [], []
    for record in now:
        name, old = f"{record.suite}, {record.case}, {record.device}", earlier.pop(record.key, None)
        if record.seconds is None:
            continue
        if old is None or old.seconds is None:
            left_out.append(f"{name}: not measured before")
        elif (record.corpus, record.parameters, record.seed) != (old.corpus, old.parameters, old.seed):
            left_out.append(f"{name}: other text, parameters or seed than before")
        else:
            found.append(_comparison(record, record.seconds, old, old.seconds))
    gone = Counter(old.suite for old in earlier.values() if old.seconds)
    left_out += [f"{suite}: {count} cases of before were not measured now" for suite, count in gone.items()]
    return found, left_out


def _comparison(record: Record, now: Spread, old: Record, before: Spread) -> Comparison:
    tiny = 1e-9  # a clock may have seen no time pass
    differs = [
        name
        for name, same in (
            ("machine", record.host.cpu == old.host.cpu and record.host.cores == old.host.cores),
            ("Python or libraries", _software(record) == _software(old)),
            ("what is inside the clock", record.clock == old.clock),
        )
        if not same
    ]
    return Comparison(
        suite=record.suite,
        case=record.case,
        device=record.device,
        ratio=now.median / max(before.median, tiny),
        least=now.least / max(before.most, tiny),
        most=now.most / max(before.least, tiny),
        differs=tuple(differs),
        repeats=min(record.repeats, old.repeats),
    )


def _software(record: Record) -> tuple[str, str, str]:
    return record.host.python, record.host.pyarrow, record.host.numpy
