"""One job in a process of its own: python job.py ORDER.json. Prints one line of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    begin = time.perf_counter()
    order: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    import gpudedup

    run = gpudedup.run  # what it needs is imported at its first use
    imported = time.perf_counter() - begin
    began, cpu = time.perf_counter(), time.process_time()
    found: dict[str, Any] = {}
    if order["mode"] == "decode":
        found = decode(order["files"])
    elif order["mode"] == "run":
        summary = run(order["files"], order["out"], **order["options"]).summary()
        found = {
            "stages": summary.seconds,
            "documents": summary.documents,
            "text_bytes": summary.text_bytes,
            "removed": summary.removed,
            "exact": summary.exact,
            "compared_pairs": summary.compared_pairs,
            "longest_bucket": summary.longest_bucket,
            "device": summary.device,
            "workers": summary.workers,
        }
    elif order["mode"] == "stream":
        found = stream(**order["options"])
    else:
        assert order["mode"] == "start"
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    print(json.dumps({"import_seconds": imported, "seconds": seconds, "cpu_seconds": cpu, **found}))


def decode(files: list[str]) -> dict[str, Any]:
    """Reads as the job's sign stage does, and does nothing with it."""
    from gpudedup.io import open_paths
    from gpudedup.machine import default_memory_bytes

    source = open_paths(files, text_column="text", columns=["text"], memory_bytes=default_memory_bytes())
    size = documents = 0
    for shard in source.shards:
        for batch in shard.read(["text"]):
            documents += len(batch.rows)
            size += batch.columns.column(0).nbytes
    source.close()
    return {"documents": documents, "text_bytes": size, "cores": os.cpu_count()}


BATCH, WORDS, LETTERS = 2000, 100, 5


def stream(documents: int, **options: Any) -> dict[str, Any]:
    """Filters documents of 100 random words, no two of them similar."""
    import numpy as np
    import pyarrow as pa

    import gpudedup

    filtering, random = gpudedup.Deduplicator(**options), np.random.default_rng(1)
    size = WORDS * (LETTERS + 1)
    offsets = pa.py_buffer(np.arange(BATCH + 1, dtype=np.int32) * size)
    for first in range(0, documents, BATCH):
        letters = random.integers(ord("a"), ord("z") + 1, (BATCH, size), np.uint8)
        letters[:, LETTERS :: LETTERS + 1] = ord(" ")
        rows = min(BATCH, documents - first)
        text = pa.Array.from_buffers(pa.string(), rows, [None, offsets, pa.py_buffer(letters)])
        assert filtering.filter(pa.table({"text": text})).true_count == rows
    return {"documents": filtering.documents}


if __name__ == "__main__":
    main()
