"""gpudedup finds near-copies in text corpora, removes them, and proves each removal."""
