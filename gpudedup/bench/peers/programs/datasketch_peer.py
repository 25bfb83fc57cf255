"""datasketch: MinHash.bulk with xxHash, as its documentation advises to take a fast hash; MinHashLSH, query, insert."""

from __future__ import annotations

import numpy as np
import peer
from datasketch import MinHash, MinHashLSH
from xxhash import xxh32_intdigest


def sketch(place: tuple[str, int]) -> tuple[list[int], list[np.ndarray]]:
    ids, texts = peer.read_group(place)
    sets = ([shingle.encode() for shingle in peer.shingles(text)] for text in texts)
    made = MinHash.bulk(sets, num_perm=peer.NUM_PERM, hashfunc=xxh32_intdigest)
    return ids, [one.hashvalues for one in made]


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = MinHashLSH(num_perm=peer.NUM_PERM, params=(peer.BANDS, peer.ROWS))
    shared = MinHash(num_perm=peer.NUM_PERM)
    kept: list[int] = []
    with peer.Clock(seconds, "read_sign_match"):
        for ids, sketches in peer.in_processes(sketch, peer.row_groups(files), workers):
            for i, values in zip(ids, sketches, strict=True):
                shared.hashvalues = values
                if not index.query(shared):
                    index.insert(i, shared, check_duplication=False)
                    kept.append(i)
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, {workers} processes, candidates taken as copies"


if __name__ == "__main__":
    peer.main(run)
