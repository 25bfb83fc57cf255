"""One program a peer, run by path in the peer's environment: nothing of gpudedup is imported there."""
