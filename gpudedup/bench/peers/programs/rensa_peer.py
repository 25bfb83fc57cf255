"""rensa as its README keeps unique documents: RMinHashDeduplicator.add_pairs of tokens, in one process."""

from __future__ import annotations

import peer
from rensa import RMinHashDeduplicator


def run(files: list[str], workers: int, seconds: dict[str, float]) -> tuple[list[int], str]:
    index = RMinHashDeduplicator(threshold=peer.THRESHOLD, num_perm=peer.NUM_PERM, use_lsh=True)
    kept: list[int] = []
    with peer.Clock(seconds, "read_sign_match"):
        for place in peer.row_groups(files):
            ids, texts = peer.read_group(place)
            stays = index.add_pairs((str(i), peer.shingles(text)) for i, text in zip(ids, texts, strict=True))
            kept += [i for i, stay in zip(ids, stays, strict=True) if stay]
    return kept, "full-set R-MinHash, its own bands, one process, estimate checked"


if __name__ == "__main__":
    peer.main(run)
