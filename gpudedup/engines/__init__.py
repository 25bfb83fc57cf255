"""What drives the stages over a corpus: `local` is one process with native threads."""
