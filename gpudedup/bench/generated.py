"""Signatures without text: as many documents as wanted, a tenth of them in clusters, each block made by itself.
And runs over them, whose signature files and records are those that sign tasks would leave.

A document outside clusters has independent uniform lanes. In a cluster, whose J is drawn from U(0.6, 1), each lane of a
document is that of the cluster with probability J and else its own, so two documents share a lane with probability J^2.
Cluster sizes are 1 + Zipf(2.2), at most 100,000; their documents lie all over the input. Contents are distinct.

A block of documents is a function of (seed, its number), so blocks can be made in any order by any process. Memory:
about 20 bytes a cluster for the plan, a hundred MB for a block of 65,536 documents of 128 lanes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gpudedup.backends.base import I64, U32, U64, SignedBatch
from gpudedup.bench.noise import F64, fraction, mix, noise
from gpudedup.engines.corpus import TASK_BYTES
from gpudedup.engines.durable import DurableRun
from gpudedup.engines.local import silent
from gpudedup.io.source import Fingerprint, Skipped
from gpudedup.params import Params
from gpudedup.stages.apply import new_run
from gpudedup.stages.earlier import Earlier
from gpudedup.store import signatures as files
from gpudedup.store.lock import LocalLockFile, Lock
from gpudedup.store.manifest import InputEntry, working_entry

BLOCK = 1 << 16
"""Documents of a block."""
ZIPF = 2.2
LARGEST = 100_000
LEAST_SHARED = 0.6


@dataclass(frozen=True)
class Block:
    """Some consecutive documents."""

    first: int
    lanes: U32
    """[n, num_perm]"""
    content: U64
    """[n, 2], distinct over all documents."""
    unit_count: U64
    """[n], log-normal around 350."""
    cluster: I64
    """[n], -1: in none."""


class Generated:
    """``documents`` of ``num_perm`` lanes; ``share`` of them are in clusters."""

    def __init__(self, documents: int, *, num_perm: int = 128, seed: int = 1, share: float = 0.1) -> None:
        self.documents, self.num_perm, self.seed = documents, num_perm, seed
        self.blocks = -(-documents // BLOCK)
        self.ends = np.cumsum(_sizes(int(documents * share), np.random.default_rng([seed, 0])))
        """Of each cluster, the end of its places; document d has the place ``d * step % documents``."""
        self._step = _coprime(documents)
        self._keys = noise(seed, 4)

    @property
    def sizes(self) -> I64:
        return np.diff(self.ends, prepend=0)

    def shared(self, clusters: I64) -> F64:
        """J of each cluster."""
        return LEAST_SHARED + (1 - LEAST_SHARED) * fraction(mix(clusters.astype(np.uint64) ^ self._keys[0]))

    def block(self, number: int) -> Block:
        """The documents from ``number * BLOCK`` on, BLOCK of them or what is left. O(n * num_perm)."""
        first = number * BLOCK
        last = min(first + BLOCK, self.documents)
        if not 0 <= first < last:
            raise IndexError(f"block {number} of {self.blocks}")
        generator = np.random.default_rng([self.seed, 1, number])
        shape = (last - first, self.num_perm)
        lanes = generator.integers(0, 1 << 32, shape, dtype=np.uint32)
        unit_count = np.exp(generator.normal(math.log(350), 1.0, last - first)).astype(np.uint64) + np.uint64(1)
        documents = np.arange(first, last, dtype=np.uint64)
        place = (documents * np.uint64(self._step) % np.uint64(self.documents)).astype(np.int64)
        cluster = np.searchsorted(self.ends, place, side="right")
        cluster[cluster == len(self.ends)] = -1
        members = np.flatnonzero(cluster >= 0)
        own = cluster[members].astype(np.uint64)[:, None]
        of_cluster = mix(own * np.uint64(self.num_perm) + np.arange(self.num_perm, dtype=np.uint64) ^ self._keys[1])
        same = generator.random((len(members), self.num_perm)) < self.shared(cluster[members])[:, None]
        lanes[members] = np.where(same, (of_cluster >> np.uint64(32)).astype(np.uint32), lanes[members])
        content = np.stack([mix(documents ^ self._keys[2]), mix(documents ^ self._keys[3])], axis=1)
        return Block(first, lanes, content, unit_count, cluster)


def _sizes(documents: int, generator: np.random.Generator) -> I64:
    """Sizes of clusters, 2 at least, that add up to ``documents`` or one less."""
    parts: list[I64] = []
    total = 0
    while total < documents:
        more = 1 + np.minimum(generator.zipf(ZIPF, 1 << 16), LARGEST - 1)
        parts.append(more)
        total += int(more.sum())
    sizes = np.concatenate([np.zeros(0, np.int64), *parts])
    ends = np.cumsum(sizes)
    whole = int(np.searchsorted(ends, documents, side="right"))
    left = documents - (int(ends[whole - 1]) if whole else 0)
    return np.append(sizes[:whole], left) if left > 1 else sizes[:whole]


def _coprime(number: int) -> int:
    """A step that visits all of 0 to number - 1, with neighbours far apart. number < 2^32."""
    if not 0 < number < 1 << 32:
        raise ValueError(f"documents must be 1 to 2^32 - 1, got {number}")
    step = max(1, round(number * (math.sqrt(5) - 1) / 2))
    while math.gcd(step, number) > 1:
        step += 1
    return step


# ----------------------------------------------------------------------------------------------------------------- runs

TASK_DOCUMENTS = 4 * BLOCK
"""About as many of 1 kB are in the files of a task."""
BATCH_DOCUMENTS = 1 << 13
"""The same of a batch of text."""
STAGES = ("match", "verify", "decide")


@dataclass(frozen=True)
class GeneratedShard:
    """A file that there never was: its documents are signed already."""

    name: str
    fingerprint = Fingerprint(TASK_BYTES, 0)

    def read(self, columns: Sequence[str], wanted: Any = None) -> Iterator[Any]:
        raise NotImplementedError("generated documents have no text")

    kept = write_kept = read


class GeneratedSource:
    """The shards of ``documents`` generated documents."""

    skipped: Sequence[Skipped] = ()

    def __init__(self, documents: int) -> None:
        count = -(-documents // TASK_DOCUMENTS)
        self.shards = [GeneratedShard(f"generated/{number:06}.parquet") for number in range(count)]

    def column_type(self, column: str) -> pa.DataType:
        return pa.string()

    def kept_schema(self) -> pa.Schema:
        return pa.schema([("text", pa.string())])

    def close(self) -> None:
        """Nothing was spooled."""


@contextmanager
def opened(out: Path, documents: int, params: Params) -> Iterator[DurableRun]:
    """The run in a directory, begun if it is not there. Its tasks are those that are signed, or will be."""
    source: Any = GeneratedSource(documents)
    with (
        new_run(out, source, [], "none", (), resumable=True) as directory,
        Lock(LocalLockFile(directory.path)) as lock,
    ):
        run = DurableRun(directory, source, params, lock, silent, {}, Earlier([]))
        run.begin()
        yield run


def sign(run: DurableRun, generated: Generated) -> None:
    """Write signature files and commit their tasks."""
    blocks = (batch for number in range(generated.blocks) for batch in _batches(generated.block(number)))
    left = generated.documents
    for task in run.corpus.tasks:
        if run.done("sign", task) is not None:
            raise FileExistsError(f"{run.directory.path} is signed already")
        start, rows, name = time.perf_counter(), min(left, TASK_DOCUMENTS), f"signatures/{task:06}.arrow"
        with run.directory.new_artefact(name) as file, files.ipc_writer(file, files.schema(generated.num_perm)) as out:
            written = 0
            while written < rows:
                batch = next(blocks)
                out.write_batch(files.record_batch(batch, np.zeros(len(batch.unit_count), bool)))
                written += len(batch.unit_count)
        left -= rows
        (place,) = run.corpus.files_of(task)
        mark = run.corpus.marks[place]
        entry = InputEntry(
            path=run.corpus.names[place], size_bytes=mark.size_bytes, mtime_ns=mark.mtime_ns, rows=rows, task=task
        )
        artefact = working_entry(name, file.size_bytes, file.xxh3_128)
        counts = {"rows": rows, "text_bytes": 0}
        run.commit(
            run.record("sign", task, [artefact], inputs=[entry], counts=counts, seconds=time.perf_counter() - start)
        )


def _batches(block: Block) -> Iterator[SignedBatch]:
    for first in range(0, len(block.lanes), BATCH_DOCUMENTS):
        part = slice(first, first + BATCH_DOCUMENTS)
        yield SignedBatch(block.content[part], block.unit_count[part], None, block.lanes[part], None)


def go_on(run: DurableRun, stages: Sequence[str]) -> dict[str, float]:
    """Wall seconds of each stage; ``load`` reads the signatures."""
    found = {}
    for stage in ("load", *stages):
        start = time.perf_counter()
        if stage == "load":
            run.signed  # noqa: B018
        else:
            getattr(run, stage)()
        found[stage] = time.perf_counter() - start
    return found
