"""fastsketchlsh: FastSimilaritySketch.batch, LSH.insert, LSH.query; candidates checked by their sketches."""

from __future__ import annotations

import numpy as np
import peer
from FastSketchLSH import LSH, FastSimilaritySketch

BANDS = 16  # must divide K
QUERY = 2000  # rows a call, so that the lists of a large cluster are not all held


def sketch(place: tuple[str, int]) -> tuple[list[int], np.ndarray]:
    ids, texts = peer.read_group(place)
    made = FastSimilaritySketch(size=peer.NUM_PERM, seed=42).batch(list(map(peer.shingles, texts)), num_threads=1)
    return ids, np.asarray(made)


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    ids: list[int] = []
    parts: list[np.ndarray] = []
    with peer.Clock(seconds, "read and sign"):
        for own, matrix in peer.in_processes(sketch, peer.row_groups(files), workers):
            ids += own
            parts.append(matrix)
    gone = bytearray(len(ids))
    with peer.Clock(seconds, "match"):
        sketches = np.concatenate(parts)
        index = LSH(num_perm=peer.NUM_PERM, num_bands=BANDS, num_threads=workers)
        index.insert(sketches)
        for first in range(0, len(ids), QUERY):
            flat, bounds = index.query(sketches[first : first + QUERY], format="csr")
            for number, (begin, end) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True), first):
                for other in flat[begin:end].tolist() if end - begin > 1 else ():
                    # its own index does not compare sketches, so a candidate is no copy yet
                    same = other < number and not gone[other] and (sketches[other] == sketches[number]).mean()
                    if same >= peer.THRESHOLD:
                        gone[number] = 1
                        break
    kept = [i for i, removed in zip(ids, gone, strict=True) if not removed]
    return kept, f"{BANDS} bands of {peer.NUM_PERM // BANDS}, {workers} processes, estimate checked"


if __name__ == "__main__":
    peer.main(run)
