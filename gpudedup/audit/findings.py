"""What an audit found: checks that were made, problems, and what could not be checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]

PROBLEMS_LISTED = 100
"""More are counted only."""

RESTORE = "restore it from a copy, or run again into another directory"
RUN_AGAIN = "the table is not what a run writes: run again into another directory"


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
class Count:
    """Of what a check looked at."""

    count: int = 0


@dataclass
class Findings:
    """Collects checks and problems."""

    checks: list[Check] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    artefacts: int = 0
    inputs: int = 0

    @contextmanager
    def check(self, name: str) -> Iterator[Count]:
        """Times a check; its block counts."""
        done, start = Count(), time.perf_counter()
        yield done
        self.checks.append(Check(name=name, count=done.count, seconds=round(time.perf_counter() - start, 6)))

    def artefact(self, message: str) -> None:
        """A file of the run is damaged, or does not agree with another."""
        self.artefacts += 1
        self._list(message)

    def input(self, message: str) -> None:
        """The input was changed or cannot be read."""
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
