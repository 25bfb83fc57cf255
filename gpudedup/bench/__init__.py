"""`gpudedup bench`: what this machine does, measured, each result checked before it counts."""
