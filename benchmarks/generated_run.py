"""A run over generated signatures: python generated_run.py ORDER.json. Prints one line of JSON.

Its signature files and records are those that sign tasks would leave; match, verify and decide go on from there.
ORDER.json: {"out": DIRECTORY, "documents": N, "stages": ["sign", "match", ...], "options": {...}}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from common import watched

from gpudedup.backends.base import SignedBatch
from gpudedup.bench.generated import BLOCK, Block, Generated
from gpudedup.engines.corpus import TASK_BYTES
from gpudedup.engines.durable import DurableRun
from gpudedup.engines.local import silent
from gpudedup.io.source import Fingerprint, Skipped
from gpudedup.params import Params, make_params
from gpudedup.stages.apply import new_run
from gpudedup.stages.earlier import Earlier
from gpudedup.store import signatures as files
from gpudedup.store.lock import LocalLockFile, Lock
from gpudedup.store.manifest import InputEntry, working_entry

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


def go_on(run: DurableRun, stages: Sequence[str]) -> dict[str, dict[str, float]]:
    """Wall and CPU seconds, and the largest RssAnon + RssShmem, of each stage; ``load`` reads the signatures."""
    found = {}
    for stage in ("load", *stages):
        with watched(os.getpid()) as peak:
            start, cpu = time.perf_counter(), time.process_time()
            if stage == "load":
                run.signed  # noqa: B018
            else:
                getattr(run, stage)()
            found[stage] = {
                "seconds": time.perf_counter() - start,
                "cpu_seconds": time.process_time() - cpu,
                "peak_bytes": peak[0],
            }
    return found


def main() -> None:
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    params, out = make_params(order["options"]), Path(order["out"])
    with ExitStack() as stack:
        run = stack.enter_context(opened(out, order["documents"], params))
        if "sign" in order["stages"]:
            sign(run, Generated(order["documents"], num_perm=params.num_perm))
        wanted = [stage for stage in STAGES if stage in order["stages"]]
        found: dict[str, Any] = {"stages": go_on(run, wanted) if wanted else {}}
        if "decide" in wanted:
            found["removed"] = len(run.decided.removed)
            found |= run.done("verify", params.threshold_ppm).counts  # type: ignore[union-attr]
    found["disk_bytes"] = {
        folder.name: sum(path.stat().st_size for path in folder.iterdir())
        for folder in sorted(out.iterdir())
        if folder.is_dir() and folder.name != "done"
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
