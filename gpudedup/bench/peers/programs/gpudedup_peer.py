"""gpudedup in the same harness: gpudedup.deduplicate, which leaves nothing on disk, as peers do, then the ids."""

from __future__ import annotations

from pathlib import Path

import peer
import pyarrow as pa
import pyarrow.parquet as pq

import gpudedup


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    found = gpudedup.deduplicate([Path(file) for file in files], workers=workers)
    seconds.update(found.summary().seconds)
    with peer.Clock(seconds, "ids"):
        kept = kept_ids(files, found.keep_mask)
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} workers, every removal checked exactly"


def kept_ids(files: list[str], mask: pa.BooleanArray | pa.ChunkedArray) -> list[int]:
    """The ids of the documents that stay, from the files."""
    ids = [chunk for file in files for chunk in pq.read_table(file, columns=["id"])["id"].chunks]
    return pa.chunked_array(ids).filter(mask).to_pylist()


if __name__ == "__main__":
    peer.main(run)
