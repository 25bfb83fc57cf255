"""gaoya with the shingles that the other peers get, made in Python: its own analyzer cuts words at blanks only.

Tokens go to its native index, as MinHashStringIndex hands them on where an analyzer is a function; they are made once.
"""

from __future__ import annotations

import gaoya_peer
import peer
from gaoya.minhash import MinHashStringIndex


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = MinHashStringIndex(32, peer.THRESHOLD, peer.BANDS, peer.ROWS, None, peer.shingles, id_container="smallvec")
    native = index.minhash_index
    kept: list[int] = []
    for place in peer.row_groups(files):
        with peer.Clock(seconds, "read"):
            ids, texts = peer.read_group(place)
        with peer.Clock(seconds, "shingles"):
            tokens = list(map(peer.shingles, texts))
        with peer.Clock(seconds, "sign_match"):
            native.bulk_insert_tokens(ids, tokens)
            kept += gaoya_peer.first_of_kind(index, ids, native.par_bulk_query_tokens(tokens))
    return kept, f"{peer.BANDS} bands of {peer.ROWS}, shingles in one process, native threads, estimate checked"


if __name__ == "__main__":
    peer.main(run)
