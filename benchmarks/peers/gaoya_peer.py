"""gaoya: MinHashStringIndex with its own analyzer in Rust; par_bulk_insert_docs, par_bulk_query."""

from __future__ import annotations

import peer
from gaoya.minhash import MinHashStringIndex

QUERY = 2000  # documents a call, so that the lists of a large cluster are not all held


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = MinHashStringIndex(32, peer.THRESHOLD, peer.BANDS, peer.ROWS, None, "word", True, (5, 5), "vec")
    ids: list[int] = []
    texts: list[str] = []
    for place in peer.row_groups(files):
        with peer.Clock(seconds, "read"):
            own_ids, own = peer.read_group(place)
        with peer.Clock(seconds, "sign"):
            index.par_bulk_insert_docs(list(range(len(ids), len(ids) + len(own))), own)
        ids += own_ids
        texts += own
    gone = bytearray(len(ids))
    with peer.Clock(seconds, "match"):
        for first in range(0, len(texts), QUERY):
            peer.greedy(index.par_bulk_query(texts[first : first + QUERY]), first, gone)
    kept = [i for i, removed in zip(ids, gone, strict=True) if not removed]
    return kept, f"words cut at blanks only, {peer.BANDS} bands of {peer.ROWS}, native threads, estimate checked"


if __name__ == "__main__":
    peer.main(run)
