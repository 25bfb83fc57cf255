"""gpudedup with little memory, as on a machine that has other work: the text is read twice, sets go to disk."""

from __future__ import annotations

import functools

import gpudedup_peer
import peer

if __name__ == "__main__":
    peer.main(functools.partial(gpudedup_peer.run, memory="64 MB"))
