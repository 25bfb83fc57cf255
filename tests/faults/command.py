"""The command line with small tasks and a lock that beats fast: a run of a few MB then has all that a long one has."""

from gpudedup.cli import main
from gpudedup.engines import corpus, lineage
from gpudedup.store import lock

corpus.TASK_BYTES = 600_000
lineage.TASK_KEYS = 4_000
lock.LocalLockFile.period_seconds = 0.2

if __name__ == "__main__":
    main()
