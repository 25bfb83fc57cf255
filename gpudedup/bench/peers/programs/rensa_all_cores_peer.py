"""rensa on all cores: processes make shingles and RMinHash.from_token_sets, one RMinHashDeduplicator decides.

Nine tenths of its time go into making strings of shingles in Python, so that is what the processes share out.
"""

from __future__ import annotations

import os

os.environ.setdefault("RAYON_NUM_THREADS", "1")  # the processes are the parallelism

import peer
from rensa import RMinHash, RMinHashDeduplicator

BANDS = 16  # must divide K


def sketch(place: tuple[str, int]) -> tuple[list[int], list[RMinHash]]:
    ids, texts = peer.read_group(place)
    return ids, RMinHash.from_token_sets(map(peer.shingles, texts), peer.NUM_PERM, 42)


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = RMinHashDeduplicator(peer.THRESHOLD, peer.NUM_PERM, True, BANDS, 42)
    kept: list[int] = []
    with peer.Clock(seconds, "read_sign_match"):
        for ids, sketches in peer.in_processes(sketch, peer.row_groups(files), workers):
            stays = index.add_pairs(zip(map(str, ids), sketches, strict=True))
            kept += [i for i, stay in zip(ids, stays, strict=True) if stay]
    return kept, f"full-set R-MinHash, {BANDS} bands of {peer.NUM_PERM // BANDS}, {workers} processes, estimate checked"


if __name__ == "__main__":
    peer.main(run)
