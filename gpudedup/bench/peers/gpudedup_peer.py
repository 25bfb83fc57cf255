"""gpudedup in the same harness: gpudedup.run with a mask, then the ids that it keeps."""

from __future__ import annotations

import tempfile

import peer
import pyarrow.parquet as pq

import gpudedup


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as work:
        found = gpudedup.run(files, f"{work}/run", output="mask", workers=workers)
        seconds.update(found.summary().seconds)
        with peer.Clock(seconds, "ids"):
            ids = [i for file in files for i in pq.read_table(file, columns=["id"])["id"].to_pylist()]
            removed = found.removed
            first = dict.fromkeys(files, 0)
            total = 0
            for file in files:
                first[file] = total
                total += pq.read_metadata(file).num_rows
            gone = bytearray(total)
            for shard, row in zip(removed["shard"].to_pylist(), removed["row"].to_pylist(), strict=True):
                gone[first[shard] + row] = 1
            kept = [i for i, is_gone in zip(ids, gone, strict=True) if not is_gone]
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} workers, every removal checked exactly"


if __name__ == "__main__":
    peer.main(run)
