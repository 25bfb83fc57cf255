"""gpudedup with little memory, as on a machine with other work: signatures and sets on disk, text read twice."""

from __future__ import annotations

import tempfile

import gpudedup_peer
import peer

import gpudedup

MEMORY = "64 MB"


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    with tempfile.TemporaryDirectory() as work:
        found = gpudedup.run(files, f"{work}/run", output="mask", workers=workers, memory=MEMORY)
        seconds.update(found.summary().seconds)
        with peer.Clock(seconds, "ids"):
            kept = gpudedup_peer.kept_ids(files, found.keep_mask)
    how = f'a run on disk, memory="{MEMORY}"'
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} workers, {how}, every removal checked exactly"


if __name__ == "__main__":
    peer.main(run)
