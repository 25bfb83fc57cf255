"""What the suites share: sizes, corpora made once, child processes whose memory is watched, and what is recorded."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gpudedup.bench import corpus, noise, words

HERE = Path(__file__).resolve().parent
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


def corpus_files(mix: str, megabytes: float, *, plain: bool = False, seed: int = 1) -> list[str]:
    """The Parquet files of a corpus, made if they are not there. The name tells the generator's version too."""
    source = (
        b"".join(Path(module.__file__).read_bytes() for module in (corpus, noise, words)) + words.WORDS.read_bytes()
    )
    size = text_size(megabytes)
    name = f"{mix}-{size}-{'plain-' if plain else ''}{seed}-{hashlib.sha256(source).hexdigest()[:8]}"
    out = cache_directory() / name
    if not (out / "meta.json").exists():
        corpus.make_corpus(out, text_bytes=size, mix_name=mix, seed=seed, plain=plain)
    return sorted(str(path) for path in out.glob("part-*.parquet"))


def text_bytes(files: Sequence[str]) -> tuple[int, int]:
    """(documents, bytes of text) of Parquet files."""
    documents = size = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["text"]):
            documents += batch.num_rows
            size += batch.nbytes - 4 * (batch.num_rows + 1)  # without offsets
    return documents, size


def read_texts(files: Sequence[str]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for file in files for chunk in pq.read_table(file, columns=["text"])["text"].chunks])


@dataclass(frozen=True)
class Child:
    """What a child process printed as JSON, and what was seen from outside."""

    report: dict[str, Any]
    seconds: float
    peak_bytes: int
    """The largest RssAnon + RssShmem seen, every 2 ms."""


def run_child(arguments: Sequence[str], environment: dict[str, str] | None = None) -> Child:
    """Runs ``python arguments``; its last line is JSON. Raises RuntimeError with its errors if it fails."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **(environment or {})},
        )
        with watched(process.pid) as peak:
            out, _ = process.communicate()
        if process.returncode:
            errors.seek(0)
            raise RuntimeError(f"{arguments[0]} failed: {errors.read().decode(errors='replace')[-3000:]}")
    return Child(json.loads(out.splitlines()[-1]), time.perf_counter() - begin, peak[0])


@contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """The largest RssAnon + RssShmem of a process while the block goes on, every 2 ms: a list of one number."""
    seen, stop = [0], threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, seen, stop), daemon=True)
    watcher.start()
    try:
        yield seen
    finally:
        stop.set()
        watcher.join()


def _watch(pid: int, seen: list[int], stop: threading.Event) -> None:
    while not stop.wait(0.002):
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            return
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        kilobytes = [int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem") if name in fields]
        seen[0] = max(seen[0], sum(kilobytes) * 1024)


def run_job(files: Sequence[str], *, mode: str = "run", **options: Any) -> Child:
    """benchmarks/job.py over the files, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        order = Path(work, "order.json")
        order.write_text(json.dumps({"mode": mode, "files": list(files), "out": f"{work}/run", "options": options}))
        return run_child([str(HERE / "job.py"), str(order)])


def run_generated(out: Path, documents: int, stages: Sequence[str], **options: Any) -> Child:
    """benchmarks/generated_run.py: some stages of a run in ``out``, in a process of their own."""
    with tempfile.TemporaryDirectory(dir=cache_directory()) as work:
        order = Path(work, "order.json")
        order.write_text(
            json.dumps({"out": str(out), "documents": documents, "stages": list(stages), "options": options})
        )
        return run_child([str(HERE / "generated_run.py"), str(order)])


def load() -> float:
    """Processes that wanted a core, on average over the last minute. Other work beside the case shows here."""
    return round(os.getloadavg()[0], 2)
