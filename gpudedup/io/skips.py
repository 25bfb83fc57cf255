"""The record of what on_error="skip" left out."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from gpudedup.errors import InputError
from gpudedup.io.source import Skipped


class UnskippableError(InputError):
    """A file that cannot be read now, though nothing says that it is damaged: on_error="skip" must not leave it out."""


def skipped_files(skipped: Iterable[Skipped]) -> int:
    """How many files were left out as a whole."""
    return len({entry.shard for entry in skipped if entry.first_row is None})


class SkipLog:
    """Collects Skipped entries from any thread, each place once however often it is read; or raises instead.

    ``skip`` False (on_error="fail"): ``add`` raises InputError with the reason.
    """

    def __init__(self, skip: bool) -> None:
        self.skip = skip
        self._order: dict[str, int] = {}
        self._found: dict[tuple[int, int], Skipped] = {}
        self._lock = threading.Lock()

    def register(self, shard: str) -> None:
        """Make a shard known, in input order."""
        self._order[shard] = len(self._order)

    def add(self, shard: str, first_row: int | None, count: int, reason: str) -> None:
        """Record a place that cannot be read. Raises InputError unless skipping."""
        if not self.skip:
            raise InputError(f'{reason}; repair or remove it, or use on_error="skip"')
        key = (self._order[shard], -1 if first_row is None else first_row)
        with self._lock:
            self._found.setdefault(key, Skipped(shard, first_row, count, reason))

    @property
    def entries(self) -> list[Skipped]:
        """What was left out so far, by shard and row."""
        with self._lock:
            return [self._found[key] for key in sorted(self._found)]
