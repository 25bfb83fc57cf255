"""The input files of a durable run, and the tasks that they are shared out to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gpudedup.backends.base import I64
from gpudedup.io.source import DocumentFiles, Fingerprint, Source, input_files

TASK_BYTES = 256 << 20
"""Bytes of input files that are signed, or written out, between two commits."""

TASK_FILES = 10_000


@dataclass
class Corpus:
    """Input files in input order, and the task of each. A task is files that are signed, or written, together."""

    names: list[str]
    marks: list[Fingerprint]
    shard: I64
    """[files]: the shard that each is in."""
    row: I64
    """[files]: its row, where a shard is many files of one row each; else -1."""
    task: I64
    """[files]."""

    @classmethod
    def of(cls, source: Source, known: Mapping[str, int]) -> Corpus:
        """Files in ``known`` keep their task; consecutive others share new ones."""
        names: list[str] = []
        marks: list[Fingerprint] = []
        shard: list[int] = []
        row: list[int] = []
        for number, each in enumerate(source.shards):
            for name, mark in input_files([each]):
                assert mark is not None  # a file
                names.append(name)
                marks.append(mark)
                shard.append(number)
            row += range(len(each.files)) if isinstance(each, DocumentFiles) else [-1]
        task = list(_assigned(zip(names, marks, strict=True), known))
        return cls(names, marks, *(np.array(values, np.int64) for values in (shard, row, task)))

    @property
    def tasks(self) -> list[int]:
        return [int(task) for task in np.unique(self.task)]

    @cached_property
    def _places(self) -> dict[int, I64]:
        """Of each task, the places of its files."""
        order = np.argsort(self.task, kind="stable")
        tasks, first = np.unique(self.task[order], return_index=True)
        return dict(zip(tasks.tolist(), np.split(order, first[1:]), strict=True))

    def files_of(self, task: int) -> list[int]:
        """Places of a task's files, in input order."""
        places: list[int] = self._places[task].tolist()
        return places

    def parts_of(self, task: int) -> Iterator[tuple[int, I64 | None]]:
        """(shard, its rows or None for all) that a task reads."""
        files = self._places[task]
        for shard in np.unique(self.shard[files]).tolist():
            rows = self.row[files[self.shard[files] == shard]]
            yield shard, None if rows[0] < 0 else rows

    def task_at(self, shard: int, row: int) -> int:
        """The task that reads a row."""
        first = int(np.searchsorted(self.shard, shard))
        return int(self.task[first if self.row[first] < 0 else first + row])

    def shards_of(self, task: int) -> list[int]:
        """The shards that a task's files are in."""
        own: list[int] = np.unique(self.shard[self._places[task]]).tolist()
        return own

    def task_of(self, shard: int, name: str) -> int:
        """The task that has the outputs of a file; what is of all files of a shard (""), that of the first has."""
        place = int(np.searchsorted(self.shard, shard)) if name == "" else self._place[name]
        return int(self.task[place])

    @cached_property
    def _place(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.names)}


def _assigned(files: Iterator[tuple[str, Fingerprint]], known: Mapping[str, int]) -> Iterator[int]:
    task = max(known.values(), default=-1) + 1
    task_bytes = task_files = 0
    for name, mark in files:
        if name in known:
            yield known[name]
            continue
        if task_files and (task_bytes + mark.size_bytes > TASK_BYTES or task_files == TASK_FILES):
            task += 1
            task_bytes = task_files = 0
        task_bytes += mark.size_bytes
        task_files += 1
        yield task
