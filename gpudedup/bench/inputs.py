"""The text of cases: corpora that are made, each once, or the files of the user."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa

from gpudedup.bench.measure import python_command, run_process
from gpudedup.bench.record import Text
from gpudedup.bench.suites import Order
from gpudedup.errors import BenchmarkError, InputError, OutputError
from gpudedup.io import open_paths
from gpudedup.io.source import Source
from gpudedup.machine import default_memory_bytes, free_bytes

STORED_SHARE = 0.75
"""Bytes of a made corpus on disk over its bytes of text (measured: 0.67)."""

LEAST_SHARDS = 8
"""A made corpus is in so many files at least, since kept documents are written file by file at once."""
MOST_SHARD_BYTES = 128_000_000

ALONE_BYTES = 50_000_000
"""A smaller corpus is made by one process: another takes longer to start."""


@dataclass(frozen=True)
class Inputs:
    """Files, and what is in them."""

    name: str
    files: tuple[str, ...]
    text_column: str
    documents: int
    text_bytes: int
    folder: Path | None = None
    """Of a made corpus, with its truth.parquet."""

    @property
    def text(self) -> Text:
        return Text(name=self.name, documents=self.documents, text_bytes=self.text_bytes)


def inputs(order: Order) -> Inputs:
    """The files of the user, or the corpus that was asked for. Raises InputError."""
    return _given(order.inputs, order.text_column) if order.inputs else made(order)


def check_given(files: Sequence[str], text_column: str) -> None:
    """Raise InputError if the files of the user are not there or have no such column."""
    with _opened(files, text_column) as source:
        source.column_type(text_column)


@cache
def _given(files: tuple[str, ...], text_column: str) -> Inputs:
    documents = size = 0
    for text in texts(files, text_column):
        documents += len(text)
        size += text_bytes(text)
    if not size:
        raise InputError(f"there is no text in {', '.join(files)}, and so nothing to measure")
    return Inputs("input", files, text_column, documents, size)


def made(order: Order, *, mix: str | None = None, size: int | None = None, plain: bool = False) -> Inputs:
    """A corpus of a mix and a size (the ordered ones), in the folder of the order. Raises OutputError."""
    mix, size = mix or order.mix, size or order.text_bytes
    out = order.folder / f"{mix}-{size}{'-plain' if plain else ''}"
    if not (out / "meta.json").exists():
        order.tell(f"making {size / 1e6:,.0f} MB of {mix} text")
        _make(
            out, {"text_bytes": size, "mix_name": mix, "seed": order.seed, "plain": plain, "processes": order.workers}
        )
    meta = json.loads((out / "meta.json").read_text())
    files = tuple(sorted(str(path) for path in out.glob("part-*.parquet")))
    return Inputs(mix, files, "text", meta["documents"], meta["text_bytes"], out)


def _make(out: Path, options: dict[str, object]) -> None:
    size = int(str(options["text_bytes"]))
    needed, free = int(size * STORED_SHARE), free_bytes(out)
    way_out = "choose a smaller --size, or name a larger folder in TMPDIR"
    if needed > free:
        raise OutputError(f"a corpus takes {needed} bytes and {free} are free in {out.parent}; {way_out}")
    if size < ALONE_BYTES:
        options["processes"] = 1
    options = {**options, "out": str(out), "shard_bytes": min(MOST_SHARD_BYTES, -(-size // LEAST_SHARDS))}
    code = "import json; from gpudedup.bench.corpus import make_corpus; make_corpus(**json.load(sys.stdin))"
    done = run_process(python_command(code), given=json.dumps(options).encode())
    if done.code:
        if "OSError" in done.complaint or "ArrowException" in done.complaint:
            raise OutputError(f"cannot make a corpus in {out.parent}: {done.complaint}; {way_out}")
        raise BenchmarkError(f"the corpus could not be made: {done.complaint}")


def texts(files: Sequence[str], text_column: str) -> Iterator[pa.Array]:
    """The text of files, batch by batch, as a job reads it. Raises InputError."""
    with _opened(files, text_column) as source:
        for shard in source.shards:
            for batch in shard.read([text_column]):
                yield batch.columns.column(0)


def _opened(files: Sequence[str], text_column: str) -> closing[Source]:
    memory = default_memory_bytes()
    return closing(open_paths(files, text_column=text_column, columns=[text_column], memory_bytes=memory))


def text_bytes(text: pa.Array) -> int:
    """Bytes of the values of an array, without offsets."""
    from gpudedup.io.batches import value_bytes

    return int(value_bytes(text).sum())
