"""gpudedup in the same harness: gpudedup.run with a mask, then the ids that it keeps."""

from __future__ import annotations

import tempfile

import peer
import pyarrow as pa
import pyarrow.parquet as pq

import gpudedup


def run(files: list[str], workers: int, seconds: dict[str, float], **options: str) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as work:
        found = gpudedup.run(files, f"{work}/run", output="mask", workers=workers, **options)
        seconds.update(found.summary().seconds)
        with peer.Clock(seconds, "ids"):
            ids = pa.chunked_array(
                [chunk for file in files for chunk in pq.read_table(file, columns=["id"])["id"].chunks]
            )
            kept = ids.filter(found.keep_mask)
    how = "".join(f', {name}="{value}"' for name, value in options.items())
    return kept.to_pylist(), f"{peer.BANDS} bands of {peer.ROWS}, {workers} workers{how}, every removal checked exactly"


if __name__ == "__main__":
    peer.main(run)
