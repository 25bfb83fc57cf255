"""fastsketchlsh: FastSimilaritySketch.batch, LSH.query, LSH.insert; candidates are checked by their sketches.

The index holds only what is kept, as in gaoya_peer.py. Its one-call insert_and_query_duplicates flags all members of a
cluster, the first one too, so it cannot say which stay.
"""

from __future__ import annotations

import numpy as np
import peer
from FastSketchLSH import LSH, FastSimilaritySketch

BANDS = 16  # must divide K
BATCH = 4000


def sketch(place: tuple[str, int]) -> tuple[list[int], np.ndarray]:
    ids, texts = peer.read_group(place)
    made = FastSimilaritySketch(size=peer.NUM_PERM, seed=42).batch(list(map(peer.shingles, texts)), num_threads=1)
    return ids, np.asarray(made)


def similar(index: LSH, rows: np.ndarray, indexed: np.ndarray) -> list[list[int]]:
    """For each row the indexed rows that share a band and at least t of its values."""
    flat, bounds = index.query(rows, format="csr")
    owner = np.repeat(np.arange(len(rows)), np.diff(bounds.astype(np.int64)))
    good = (indexed[flat] == rows[owner]).mean(axis=1) >= peer.THRESHOLD
    out: list[list[int]] = [[] for _ in rows]
    for row, other in zip(owner[good].tolist(), flat[good].tolist(), strict=True):
        out[row].append(other)
    return out


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = LSH(num_perm=peer.NUM_PERM, num_bands=BANDS, num_threads=workers)
    indexed, kept = np.zeros((1 << 16, peer.NUM_PERM), np.uint64), []
    with peer.Clock(seconds, "read_sign_match"):
        for all_ids, all_rows in peer.in_processes(sketch, peer.row_groups(files), workers):
            for first in range(0, len(all_ids), BATCH):
                rows = all_rows[first : first + BATCH]
                hits = similar(index, rows, indexed) if kept else [[] for _ in rows]
                new = np.array([n for n, found in enumerate(hits) if not found], np.int64)
                if not len(new):
                    continue
                rows = np.ascontiguousarray(rows[new])
                own = LSH(num_perm=peer.NUM_PERM, num_bands=BANDS, num_threads=workers)
                own.insert(rows)
                gone = bytearray(len(rows))
                peer.greedy(similar(own, rows, rows), 0, gone)
                stay = np.flatnonzero(np.frombuffer(gone, np.uint8) == 0)
                index.insert(np.ascontiguousarray(rows[stay]))
                while len(kept) + len(stay) > len(indexed):
                    indexed = np.concatenate([indexed, np.zeros_like(indexed)])
                indexed[len(kept) : len(kept) + len(stay)] = rows[stay]
                kept += [all_ids[first + n] for n in new[stay].tolist()]
    return kept, f"{BANDS} bands of {peer.NUM_PERM // BANDS}, {workers} processes, estimate checked"


if __name__ == "__main__":
    peer.main(run)
