"""What the scripts here share: sizes, and corpora that are made once and kept."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from gpudedup.bench import corpus, noise, words
from gpudedup.machine import worker_count

TINY = bool(os.environ.get("GPUDEDUP_BENCH_TINY"))
"""Set by tests/test_benchmarks.py: every suite runs, on next to nothing."""
ROUNDS = 1 if TINY else int(os.environ.get("GPUDEDUP_BENCH_ROUNDS", "3"))


def text_size(megabytes: float) -> int:
    """Bytes of text of a case."""
    return 300_000 if TINY else int(megabytes * 1e6)


def count(number: int) -> int:
    """Documents of a case."""
    return min(number, 60) if TINY else number


def cache_directory() -> Path:
    """Where corpora are kept between runs: GPUDEDUP_BENCH_DIR, else a folder for temporary files."""
    path = Path(os.environ.get("GPUDEDUP_BENCH_DIR") or Path(tempfile.gettempdir()) / "gpudedup-benchmarks")
    path.mkdir(parents=True, exist_ok=True)
    return path


def corpus_files(mix: str, megabytes: float) -> list[str]:
    """The Parquet files of a corpus, made if they are not there. The name tells the generator's version too."""
    modules = b"".join(Path(module.__file__).read_bytes() for module in (corpus, noise, words))
    version = hashlib.sha256(modules + words.WORDS.read_bytes()).hexdigest()[:8]
    size = text_size(megabytes)
    out = cache_directory() / f"{mix}-{size}-{version}"
    if not (out / "meta.json").exists():
        corpus.make_corpus(out, text_bytes=size, mix_name=mix)
    return sorted(str(path) for path in out.glob("part-*.parquet"))


def text_of(files: Sequence[str]) -> tuple[int, int]:
    """(documents, bytes of text) of the files of `corpus_files`."""
    meta = json.loads(Path(files[0]).with_name("meta.json").read_text())
    return meta["documents"], meta["text_bytes"]


def read_texts(files: Sequence[str]) -> pa.ChunkedArray:
    """By a thread a core: one decodes some GB of text a second."""

    def read(file: str) -> list[pa.Array]:
        return pq.read_table(file, columns=["text"], use_threads=False)["text"].chunks

    with ThreadPoolExecutor(worker_count()) as threads:
        return pa.chunked_array([chunk for chunks in threads.map(read, files) for chunk in chunks])


def load() -> float:
    """Processes that wanted a core, on average over the last minute. Other work beside the case shows here."""
    return round(os.getloadavg()[0], 2)
