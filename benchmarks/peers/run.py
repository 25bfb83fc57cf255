"""gpudedup and its peers on the same text: speed, and quality beside it.

    python benchmarks/peers/run.py --install DIR --corpus DIR --out results.json

--install  where each peer gets a virtual environment of its own (made and filled by pip if it is not there)
--corpus   a folder made by benchmarks/corpus.py; slow peers get only its first shards, up to --slow-mb of text
--out      results; report.py makes the table of docs/performance.md from those in benchmarks/results/

Every peer runs in a process of its own, with all cores, from Parquet files to the ids that stay; start-up counts.
Quality is of what a peer removes from a small corpus of the same mix, against all exact pairs (tests/truth.py, word
5-shingles of spec 1, J >= 0.8): see Judge.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent / "tests")]

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from corpus import make_corpus  # noqa: E402
from run import machine  # noqa: E402

PEERS = {  # name: (package, program)
    "gpudedup": (None, "gpudedup_peer.py"),
    "rensa": ("rensa", "rensa_peer.py"),
    "gaoya": ("gaoya", "gaoya_peer.py"),
    "fastsketchlsh": ("fastsketchlsh", "fastsketchlsh_peer.py"),
    "datasketch": ("datasketch", "datasketch_peer.py"),
    "text-dedup": ("text-dedup", "text_dedup_peer.py"),
}
SLOW = ("datasketch", "text-dedup")


def install(name: str, folder: Path) -> str:
    """The Python that has the peer; raises CalledProcessError if pip cannot install it."""
    package, _ = PEERS[name]
    if package is None:
        return sys.executable
    python = folder / name / "bin" / "python"
    if not python.exists():
        venv.create(folder / name, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "pyarrow", package], check=True)
    return str(python)


def peer_version(name: str, python: str) -> str:
    package = PEERS[name][0] or name
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def run_peer(name: str, python: str, files: list[str], timeout: float) -> dict[str, Any]:
    """seconds, cpu_seconds, stages and kept ids; or an error in words."""
    with tempfile.TemporaryDirectory() as work:
        order, out = Path(work, "order.json"), Path(work, "kept.parquet")
        workers = len(os.sched_getaffinity(0))
        order.write_text(json.dumps({"files": files, "out": str(out), "workers": workers}))
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            done = subprocess.run(
                [python, str(HERE / PEERS[name][1]), str(order)], capture_output=True, text=True, timeout=timeout
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {timeout:.0f} s"}
        seconds, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            return {"error": (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1][:300]}
        kept = pq.read_table(out)["id"].to_numpy()
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        report = json.loads(done.stdout.strip().splitlines()[-1])
        return {"seconds": round(seconds, 2), "cpu_seconds": round(cpu, 2), "kept": kept, **report}


def text_of(files: list[str]) -> tuple[list[int], int]:
    """(ids, bytes of text)."""
    ids: list[int] = []
    size = 0
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(columns=["id", "text"]):
            ids += batch["id"].to_pylist()
            size += batch["text"].nbytes - 4 * len(batch)
    return ids, size


class Judge:
    """The exact similar pairs of a small corpus, and what they say of any choice of documents that stay.

    precision: of what was removed, the share with J >= t to a document that stays. recall: 1 - what an exact decision
    over the documents that stay would still remove / what it removes of all. Neither asks which of two copies stays:
    text-dedup keeps any of them.
    """

    def __init__(self, files: list[str]) -> None:
        import truth

        texts = [text for file in files for text in pq.read_table(file)["text"].to_pylist()]
        self.count = len(texts)
        self.pairs = truth.similar_pairs(truth.read_corpus(texts), 800_000)
        self.exact = self._removals(self.pairs.i, self.pairs.j)

    def _removals(self, i: Any, j: Any) -> int:
        import truth

        nothing = np.zeros(len(i), np.int64)
        return int((truth.exact_decision(self.count, truth.Pairs(i, j, nothing, nothing)) >= 0).sum())

    def quality(self, kept: Any) -> dict[str, float]:
        stays = np.zeros(self.count, bool)
        stays[kept] = True
        i, j = self.pairs.i, self.pairs.j
        proven = np.zeros(self.count, bool)
        proven[i[stays[j]]] = True
        proven[j[stays[i]]] = True
        removed = self.count - int(stays.sum())
        precision = int((proven & ~stays).sum()) / max(1, removed)
        both = stays[i] & stays[j]
        recall = 1 - self._removals(i[both], j[both]) / max(1, self.exact)
        f1 = 2 * precision * recall / max(1e-12, precision + recall)
        return {"precision": round(precision, 4), "recall": round(recall, 4), "f1": round(f1, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Run gpudedup and its peers on one corpus.")
    parser.add_argument("--install", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--peers", nargs="*", choices=sorted(PEERS), default=list(PEERS))
    parser.add_argument("--slow-mb", type=float, default=100, help="text that slow peers get, in 10^6 bytes")
    parser.add_argument("--quality-mb", type=float, default=6)
    parser.add_argument("--timeout", type=float, default=1800, help="seconds a run")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each; the fastest counts")
    given = parser.parse_args()
    meta = json.loads((given.corpus / "meta.json").read_text())
    files = sorted(str(path.resolve()) for path in given.corpus.glob("part-*.parquet"))
    given.install.mkdir(parents=True, exist_ok=True)
    cases = []
    with tempfile.TemporaryDirectory() as small:
        make_corpus(small, text_bytes=int(given.quality_mb * 1e6), mix_name=meta["mix"], seed=77, jaccard_sample=0)
        small_files = sorted(str(path) for path in Path(small).glob("part-*.parquet"))
        judge = Judge(small_files)  # ids number the documents
        for name in given.peers:
            case: dict[str, Any] = {"case": name, "mix": meta["mix"], "load": round(os.getloadavg()[0], 2)}
            cases.append(case)
            try:
                python = install(name, given.install)
            except subprocess.CalledProcessError as error:
                case["error"] = f"cannot be installed: {error}"
                continue
            case["version"] = peer_version(name, python)
            judged = run_peer(name, python, small_files, given.timeout)
            if "error" in judged:
                case["error"] = judged["error"]
                continue
            case.update(judge.quality(judged["kept"]))
            own = _first(files, given.slow_mb * 1e6) if name in SLOW else files
            ids, size = text_of(own)
            runs = [run_peer(name, python, own, given.timeout) for _ in range(given.rounds)]
            good = [run for run in runs if "error" not in run]
            if not good:
                case.update(text_bytes=size, error=runs[0]["error"])
                continue
            best = min(good, key=lambda run: run["seconds"])
            case.update(
                documents=len(ids),
                text_bytes=size,
                removed=len(ids) - len(best.pop("kept")),
                megabytes_per_second=round(size / best["seconds"] / 1e6, 2),
                **best,
            )
            print(json.dumps(case, ensure_ascii=False), flush=True)
    found = {
        "suite": "peers",
        "date": date.today().isoformat(),
        "machine": machine(),
        "corpus": {name: meta[name] for name in ("mix", "seed", "documents", "text_bytes_planned")},
        "quality_documents": judge.count,
        "exact_removals": judge.exact,
        "cases": cases,
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _first(files: list[str], size: float) -> list[str]:
    """The first files with about ``size`` bytes of text, one at least."""
    out: list[str] = []
    for file in files:
        if out and text_of([*out, file])[1] > 1.5 * size:
            break
        out.append(file)
    return out


if __name__ == "__main__":
    main()
