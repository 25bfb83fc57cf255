"""Who is who in an audit: the rows of the input, and the documents of earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gpudedup.audit.findings import Bools, Count, Findings
from gpudedup.backends.base import I64
from gpudedup.engines.earlier import open_run
from gpudedup.engines.lineage import kept_digest, recorded_params
from gpudedup.errors import GpudedupError
from gpudedup.params import Params
from gpudedup.stages.earlier import EarlierRun

if TYPE_CHECKING:
    from gpudedup.api import Run


@dataclass(frozen=True)
class Kept:
    """What an earlier run kept: as many documents, and the run, if it is there and still keeps them."""

    name: str
    documents: int
    run: EarlierRun | None


@dataclass(frozen=True)
class Documents:
    """The rows of the input by position, as the manifest counts them; behind them what each earlier run kept, by rank.
    The number of a document is its place in all of that.
    """

    names: list[str]
    first: I64
    """int64[files + 1]."""
    damaged: Bools
    """bool[rows]: those that could not be read."""
    earlier: Sequence[Kept]

    @classmethod
    def of(cls, run: Run) -> Documents:
        """Those of the input. Raises KeyError, ValueError, OverflowError or MemoryError for numbers that cannot be."""
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
        return cls(names, first, damaged, ())

    @property
    def rows(self) -> int:
        """Those of the input."""
        return int(self.first[-1])

    @cached_property
    def earlier_first(self) -> I64:
        """int64[earlier runs + 1]: the number of the first document of each."""
        return self.rows + np.cumsum([0, *(kept.documents for kept in self.earlier)]).astype(np.int64)

    def run_of(self, numbers: I64) -> I64:
        """The place among ``earlier`` of the run that each document is of; -1 for the input."""
        return np.searchsorted(self.earlier_first, numbers, side="right").astype(np.int64) - 1

    def name(self, number: int) -> str:
        """What a reader calls a document."""
        place = int(self.run_of(np.array([number]))[0])
        if place < 0:
            return _named(self.names, self.first, number)
        kept, among = self.earlier[place], number - int(self.earlier_first[place])
        if kept.run is None:
            return f"document {among} of the earlier run {kept.name}"
        where = _named(kept.run.files, kept.run.file_first, int(kept.run.kept[among]))
        return f"{where} of the earlier run {kept.name}"


def _named(files: Sequence[str], first: I64, position: int) -> str:
    file = int(np.searchsorted(first, position, side="right")) - 1
    return f"{files[file]}:{position - first[file]}"


def open_earlier(run: Run, params: Params, found: Findings, done: Count, opened: ExitStack) -> list[Kept]:
    """The earlier runs that a run was compared with, as far as they are there. A problem for each that is another."""
    runs = []
    for entry in run.manifest.against:
        done.count += 1
        earlier = None
        try:
            place = run.input_path(entry.path)
            manifest = type(run).open(place).manifest
            digest = kept_digest(manifest, recorded_params(manifest))
            if digest != entry.digest:
                found.artefact(
                    f"the earlier run {entry.path} was decided or made anew after this one was compared with it: its "
                    f"digest was {entry.digest}, and is {digest}; run this one again, which decides it anew"
                )
                raise GpudedupError("it is another now")
            earlier = open_run(entry.path, place, params, opened)
            if len(earlier.kept) != entry.documents:
                earlier = None
                raise GpudedupError(f"it kept other than {entry.documents} documents")
        except GpudedupError as error:
            found.not_checked.append(f"removals for documents of the earlier run {entry.path}: {error}")
        runs.append(Kept(entry.path, entry.documents, earlier))
    return runs
