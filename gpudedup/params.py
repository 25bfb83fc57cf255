"""The parameters of a run: one frozen object with the same names in Python, on the command line and in TOML."""

from __future__ import annotations

import functools
import os
import re
from typing import Any, NamedTuple

import msgspec
import numpy as np

from gpudedup.errors import ParameterError

SPEC = 1
"""Number of the specification that signatures and removals follow (docs/spec.md)."""

PPM = 1_000_000
"""Thresholds are compared as integers in millionths (spec 9)."""

MAX_NUM_PERM = 4096
MAX_SHINGLE_UNITS = 256
MAX_BUCKET_WINDOW = 1 << 20

UNIT_KINDS = ("word", "char", "tokens")
FOLDS = ("none", "case", "full")
VERIFY_MODES = ("exact", "signature", "none")
CLUSTERINGS = ("keepers", "components")
ON_ERROR = ("fail", "skip")


class Shingle(NamedTuple):
    """``n`` consecutive units of kind ``unit``, written ``unit:n``."""

    unit: str
    n: int


class Keep(NamedTuple):
    """How documents are ranked: ``rule`` first, longest, max, min or sources; the last three read ``column``."""

    rule: str
    column: str | None = None
    sources: tuple[str, ...] = ()


class Banding(NamedTuple):
    """``bands`` bands of ``rows`` lanes each."""

    bands: int
    rows: int

    def probability(self, similarity: float) -> float:
        """Chance that two documents of this Jaccard similarity share a bucket: ``1 - (1 - s^rows)^bands``."""
        return float(1.0 - (1.0 - similarity**self.rows) ** self.bands)

    def s_curve(self, threshold: float) -> list[tuple[float, float]]:
        """(similarity, probability) from threshold - 0.2 to threshold + 0.1 in steps of 0.05, within (0, 1]."""
        points = [round(threshold + step / 20, 6) for step in range(-4, 3)]
        return [(s, self.probability(s)) for s in points if 0 < s <= 1]


@functools.cache
def choose_banding(threshold: float, recall: float, num_perm: int) -> Banding:
    """The largest ``rows`` for which ``bands = num_perm // rows`` reach ``recall`` at ``threshold`` (spec 8).

    Raises ParameterError, naming the num_perm that would do, when even one row does not reach it.
    """
    for rows in range(num_perm, 0, -1):
        banding = Banding(num_perm // rows, rows)
        if banding.probability(threshold) >= recall:
            return banding
    needed = num_perm
    while needed < MAX_NUM_PERM and Banding(needed, 1).probability(threshold) < recall:
        needed += 1
    way_out = f"use num_perm={needed} or more" if needed < MAX_NUM_PERM else "lower recall or raise threshold"
    raise ParameterError(f"num_perm={num_perm} cannot reach recall {recall} at threshold {threshold}; {way_out}")


def parse_shingle(text: str) -> Shingle:
    """``word:5`` -> Shingle("word", 5). Raises ParameterError."""
    match = re.fullmatch(r"([a-z]+):([0-9]{1,4})", text)
    if match and match[1] in UNIT_KINDS and 1 <= int(match[2]) <= MAX_SHINGLE_UNITS:
        return Shingle(match[1], int(match[2]))
    raise ParameterError(
        f'shingle must be "word:n", "char:n" or "tokens:n" with n from 1 to {MAX_SHINGLE_UNITS}, got {text!r}'
    )


def parse_keep(text: str) -> Keep:
    """``max:score`` -> Keep("max", "score"); ``sources:from=a,b`` -> Keep("sources", "from", ("a", "b"))."""
    if text in ("first", "longest"):
        return Keep(text)
    rule, colon, rest = text.partition(":")
    if colon and rest and rule in ("max", "min"):
        return Keep(rule, rest)
    column, equals, names = rest.partition("=")
    if rule == "sources" and column and equals and names:
        sources = tuple(names.split(","))
        if "" in sources or len(set(sources)) < len(sources):
            raise ParameterError(f"keep={text!r} names a source twice or an empty one; list each once")
        return Keep(rule, column, sources)
    raise ParameterError(f'keep must be "first", "longest", "max:COL", "min:COL" or "sources:COL=a,b,c", got {text!r}')


def parse_bytes(name: str, value: int | str, least: int) -> int:
    """The bytes of a parameter, from an int or from text such as ``768 MB`` or ``2GiB``; ``least`` is in whole MB.

    Raises ParameterError.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    else:
        match = re.fullmatch(r"\s*([0-9]{1,19}(?:\.[0-9]{1,19})?)\s*([KMGT]?)(i?)B?\s*", str(value), re.IGNORECASE)
        if not match:
            given = repr(value) if len(str(value)) <= 60 else f"{str(value)[:60]!r} and more"
            raise ParameterError(f'{name} must be bytes or text such as "768 MB" or "4 GiB", got {given}')
        base = 1024 if match[3] else 1000
        size = int(float(match[1]) * base ** " KMGT".index(match[2].upper() or " "))
    if not least <= size < 2**60:
        got = f"{size} bytes" if abs(size) < 2**100 else "a number far outside"
        raise ParameterError(f"{name} must be at least {least // 10**6} MB and below 2^60 bytes, got {got}")
    return size


SCARCE_BYTES = 512_000_000
"""Of ``memory``. What allocators keep for later is then much of what a run takes: 100 MB and more."""


def is_memory_scarce(params: Params) -> bool:
    """Whether so little memory is given that time is to be spent on sparing it."""
    return params.memory is not None and parse_memory(params.memory) < SCARCE_BYTES


def parse_memory(value: int | str) -> int:
    """The bytes of the parameter ``memory``. Raises ParameterError."""
    return parse_bytes("memory", value, 64_000_000)


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What decides a result, whether one is wanted at all (``max_removed``), and how it is computed (the last four).

    Raises ParameterError on construction if a value, or a combination of values, cannot be used.
    """

    text_column: str = "text"
    id_column: str | None = None
    threshold: float = 0.8
    recall: float = 0.95
    shingle: str = "word:5"
    num_perm: int = 128
    bands: int | None = None
    rows: int | None = None
    seed: int = 0
    fold: str = "full"
    verify: str = "exact"
    keep: str = "first"
    within: str | None = None
    across: str | None = None
    against: tuple[str, ...] = ()
    bucket_window: int = 64
    clustering: str = "keepers"
    drop_empty: bool = False
    max_removed: float | None = None
    guard_column: str | None = None
    keep_sets: bool = False
    on_error: str = "fail"
    device: str = "auto"
    workers: int | None = None
    memory: int | str | None = None
    tmp: str | None = None

    def __post_init__(self) -> None:
        for name, kinds in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
                expected = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise ParameterError(f"{name} must be {expected}, got {value!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                quoted = ", ".join(f'"{choice}"' for choice in choices)
                raise ParameterError(f"{name} must be one of {quoted}, got {getattr(self, name)!r}")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise ParameterError(f"{name} must be from {low} to {high}, got {value}")
        if not 0 < self.threshold <= 1:
            raise ParameterError(f"threshold must be above 0 and at most 1, got {self.threshold}")
        if self.threshold_ppm == 0:
            raise ParameterError(f"threshold {self.threshold} rounds to 0 millionths; use at least 0.000001")
        if not 0 < self.recall < 1:
            raise ParameterError(f"recall must be above 0 and below 1, got {self.recall}")
        if self.max_removed is not None and not 0 <= self.max_removed <= 1:
            raise ParameterError(f"max_removed must be a share from 0 to 1, got {self.max_removed}")
        if not all(isinstance(path, str) and path for path in self.against):
            raise ParameterError(f"against must be directories of earlier runs, got {self.against!r}")
        if len(set(self.against)) < len(self.against):
            raise ParameterError(f"against names a run twice: {', '.join(self.against)}")
        parse_keep(self.keep)
        shingle = parse_shingle(self.shingle)
        if shingle.unit == "tokens" and self.fold != "full":
            raise ParameterError(f'fold={self.fold!r} has no meaning with shingle="{self.shingle}"; leave it out')
        if not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise ParameterError(f'device must be "auto", "cpu", "cuda" or "cuda:N", got {self.device!r}')
        if self.within is not None and self.within == self.across:
            raise ParameterError(
                f"within and across name the same column {self.within!r}, so nothing would be compared"
            )
        if self.memory is not None:
            parse_memory(self.memory)
        self.banding  # noqa: B018  raises if the bands do not fit

    @property
    def threshold_ppm(self) -> int:
        """The threshold in millionths, ties to even; the only form in which it is compared."""
        return round(self.threshold * PPM)

    @property
    def banding(self) -> Banding:
        """The bands in use: as given, or chosen from threshold and recall."""
        if (self.bands is None) != (self.rows is None):
            raise ParameterError(f"bands and rows are given together, got bands={self.bands}, rows={self.rows}")
        if self.bands is None or self.rows is None:
            return choose_banding(self.threshold, self.recall, self.num_perm)
        if self.bands * self.rows > self.num_perm:
            raise ParameterError(
                f"bands * rows must be at most num_perm: {self.bands} * {self.rows} = {self.bands * self.rows}, "
                f"but num_perm = {self.num_perm}"
            )
        return Banding(self.bands, self.rows)

    def with_threshold(self, threshold: float, lowest: float | None = None) -> Params:
        """These parameters at another threshold over the same bands (spec 9: ``at``), which were chosen for ``lowest``,
        or for this one.
        """
        lowest = self.threshold if lowest is None else lowest
        if not isinstance(threshold, float | int):
            raise ParameterError(f"another threshold is a number from {lowest} to 1, got {threshold!r}")
        if threshold < lowest:
            raise ParameterError(
                f"threshold {threshold} is below {lowest}, which the bands of this run were chosen for; run again with "
                f"threshold={threshold}"
            )
        bands, rows = self.banding
        return msgspec.structs.replace(self, threshold=threshold, bands=bands, rows=rows)


_TYPES: dict[str, tuple[type, ...]] = {
    "text_column": (str,), "id_column": (str, type(None)), "threshold": (float, int), "recall": (float, int),
    "shingle": (str,), "num_perm": (int,), "bands": (int, type(None)), "rows": (int, type(None)), "seed": (int,),
    "fold": (str,), "verify": (str,), "keep": (str,), "within": (str, type(None)), "across": (str, type(None)),
    "against": (tuple, list),
    "bucket_window": (int,), "clustering": (str,), "drop_empty": (bool,),
    "max_removed": (float, int, type(None)), "guard_column": (str, type(None)), "keep_sets": (bool,),
    "on_error": (str,), "device": (str,),
    "workers": (int, type(None)), "memory": (int, str, type(None)), "tmp": (str, type(None)),
}  # fmt: skip
_CHOICES: dict[str, tuple[str, ...]] = {
    "fold": FOLDS,
    "verify": VERIFY_MODES,
    "clustering": CLUSTERINGS,
    "on_error": ON_ERROR,
}
_RANGES: dict[str, tuple[int, int]] = {
    "num_perm": (1, MAX_NUM_PERM),
    "bands": (1, MAX_NUM_PERM),
    "rows": (1, MAX_NUM_PERM),
    "seed": (0, 2**64 - 1),
    "bucket_window": (1, MAX_BUCKET_WINDOW),
    "workers": (1, 1024),
}


def make_params(options: dict[str, Any]) -> Params:
    """Params from keyword options; an unknown name is a ParameterError that lists the known ones."""
    unknown = sorted(set(options) - set(Params.__struct_fields__))
    if unknown:
        known = ", ".join(Params.__struct_fields__)
        raise ParameterError(f"unknown parameter {unknown[0]!r}; known are {known}")
    values = {name: _plain_value(value) for name, value in options.items()}
    if "against" in values:
        given = values["against"]
        runs = [given] if isinstance(given, str) else given
        if not isinstance(runs, list | tuple):
            raise ParameterError(f"against must be the directory of an earlier run, or a list of them, got {given!r}")
        values["against"] = tuple(_plain_value(path) for path in runs)
    return Params(**values)


def _plain_value(value: Any) -> Any:
    """Python's own number for one of numpy, the text of a path."""
    if isinstance(value, np.generic):
        return value.item()
    return os.fspath(value) if isinstance(value, os.PathLike) else value
