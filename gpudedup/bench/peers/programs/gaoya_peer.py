"""gaoya: MinHashStringIndex with its own analyzer in Rust; par_bulk_insert_docs, par_bulk_query, remove.

A row group is inserted, queried once, and what has an earlier copy is taken out, so the index holds what is kept and
no text is hashed more than twice. With everything left in it a query gives the whole cluster, which costs the square of
its size: that way a corpus of 1 GB with three clusters of 10,000 was not done in 300 s. Querying first and inserting
only what is new took longer, as did smaller batches; of the containers, smallvec is the fastest.
"""

from __future__ import annotations

from collections.abc import Iterable

import peer
from gaoya.minhash import MinHashStringIndex


def first_of_kind(index: MinHashStringIndex, ids: list[int], found: Iterable[Iterable[int]]) -> list[int]:
    """Of these documents those without an earlier copy that stays; the others are taken out of the index."""
    gone: set[int] = set()
    for i, hits in zip(ids, found, strict=True):
        if any(other < i and other not in gone for other in hits):
            gone.add(i)
    for i in gone:
        index.remove(i)
    return [i for i in ids if i not in gone]


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = MinHashStringIndex(32, peer.THRESHOLD, peer.BANDS, peer.ROWS, None, "word", True, (5, 5), "smallvec")
    kept: list[int] = []
    for place in peer.row_groups(files):
        with peer.Clock(seconds, "read"):
            ids, texts = peer.read_group(place)
        with peer.Clock(seconds, "sign_match"):
            index.par_bulk_insert_docs(ids, texts)
            kept += first_of_kind(index, ids, index.par_bulk_query(texts))
    return kept, f"words cut at blanks only, {peer.BANDS} bands of {peer.ROWS}, native threads, estimate checked"


if __name__ == "__main__":
    peer.main(run)
