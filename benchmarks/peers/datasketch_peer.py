"""datasketch: MinHash.update_batch, MinHashLSH; query, then insert if nothing was found."""

from __future__ import annotations

import numpy as np
import peer
from datasketch import MinHash, MinHashLSH


def sketch(place: tuple[str, int]) -> tuple[list[int], list[np.ndarray]]:
    ids, texts = peer.read_group(place)
    out = []
    for text in texts:
        made = MinHash(num_perm=peer.NUM_PERM)
        made.update_batch([shingle.encode() for shingle in peer.shingles(text)])
        out.append(made.hashvalues)
    return ids, out


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = MinHashLSH(num_perm=peer.NUM_PERM, params=(peer.BANDS, peer.ROWS))
    shared = MinHash(num_perm=peer.NUM_PERM)
    kept: list[int] = []
    with peer.Clock(seconds, "read, sign and match"):
        for ids, sketches in peer.in_processes(sketch, peer.row_groups(files), workers):
            for i, values in zip(ids, sketches, strict=True):
                shared.hashvalues = values
                if not index.query(shared):
                    index.insert(i, shared, check_duplication=False)
                    kept.append(i)
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} processes, candidates taken as copies"


if __name__ == "__main__":
    peer.main(run)
