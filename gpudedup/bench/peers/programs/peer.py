"""What every peer's program shares: reading, shingles, processes and the one kind of output. Needs pyarrow alone.

A peer is ``python NAME_peer.py ORDER.json`` in a venv of its own. It reads the Parquet files of the order, removes
near-copies at t = 0.8 over word 5-shingles with K = 128, keeping the first of each kind, and writes the ids that stay.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

SHINGLE = 5
THRESHOLD = 0.8
NUM_PERM = 128
BANDS, ROWS = 18, 7
"""What gpudedup takes for t = 0.8, recall 0.95; a peer that wants bands to divide K gets 16 bands of 8."""

# A word, or one character of a script written without blanks: what a user of a peer would write for mixed text.
SINGLES = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_UNIT = re.compile(rf"[{SINGLES}]|[^\W_{SINGLES}]+")

Made = TypeVar("Made")


def units(text: str) -> list[str]:
    return _UNIT.findall(text.lower())


def shingles(text: str) -> list[str]:
    words = units(text)
    if len(words) < SHINGLE:
        return [" ".join(words)] if words else []
    return list(map(" ".join, zip(*(words[k:] for k in range(SHINGLE)), strict=False)))


def row_groups(files: Iterable[str]) -> list[tuple[str, int]]:
    return [(file, group) for file in files for group in range(pq.ParquetFile(file).num_row_groups)]


def read_group(place: tuple[str, int]) -> tuple[list[int], list[str]]:
    table = pq.ParquetFile(place[0]).read_row_group(place[1], columns=["id", "text"], use_threads=False)
    return table["id"].to_pylist(), table["text"].to_pylist()


def in_processes(
    work: Callable[[tuple[str, int]], Made], places: list[tuple[str, int]], workers: int
) -> Iterator[Made]:
    """work(row group), in order, on all cores: for peers whose shingles are made in Python."""
    if min(workers, len(places)) < 2:
        yield from map(work, places)
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap(work, places)


def greedy(candidates: Iterable[Iterable[int]], first: int, gone: bytearray) -> None:
    """Removes each document that has an earlier candidate which was kept; ``first``: number of the first one."""
    for number, others in enumerate(candidates, first):
        for other in others:
            if other < number and not gone[other]:
                gone[number] = 1
                break


def main(run: Callable[[list[str], int, dict[str, float]], tuple[list[int], str]]) -> None:
    """run(files, workers, seconds) -> (ids that stay, settings in words)."""
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    seconds: dict[str, float] = {}
    kept, settings = run(order["files"], order["workers"], seconds)
    with Clock(seconds, "write"):
        pq.write_table(pa.table({"id": pa.array(kept, pa.int64())}), order["out"])
    print(json.dumps({"settings": settings, "stages": {name: round(value, 3) for name, value in seconds.items()}}))


class Clock:
    """Adds the wall time of a block to seconds[name]."""

    def __init__(self, seconds: dict[str, float], name: str) -> None:
        self.seconds, self.name = seconds, name

    def __enter__(self) -> None:
        self.begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds[self.name] = self.seconds.get(self.name, 0.0) + time.perf_counter() - self.begin
