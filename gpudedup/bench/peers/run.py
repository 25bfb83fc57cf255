"""gpudedup and its peers at the same job: speed, and quality beside it.

The job: from Parquet files to the ids of the documents that stay, at t = 0.8 over word 5-shingles with K = 128, on all
cores. Every run is a process of its own, from its start to its end. Quality is of what a peer removes from a small
corpus of the same kind, against the exact decision (`truth`, `quality`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from gpudedup.bench.inputs import Inputs
from gpudedup.bench.measure import run_process
from gpudedup.bench.peers.environments import OURS, PEERS, Peer, installed_version, no_gpu, python_of
from gpudedup.bench.peers.programs.peer import shingles
from gpudedup.bench.quality import Judge, Mask
from gpudedup.bench.record import Record, Spread, new_record
from gpudedup.bench.suites import Order
from gpudedup.bench.truth import Pairs, ShingleSets, exact_decision, shingle_sets, similar_pairs
from gpudedup.params import PPM, Params

THRESHOLD = 0.8
_PPM = round(THRESHOLD * PPM)
TIMEOUT = 1800.0
"""Seconds that a peer gets for one run."""
SLOW_BYTES = 100_000_000
"""Text that slow peers get, at most."""
QUALITY_BYTES = 20_000_000
QUICK_BYTES = 1_000_000
"""Of both, text that all are judged on."""
RATIO_BYTES = 100_000_000
"""Below so much text the start of a process is much of a run, and no program is called faster than another."""


# ----------------------------------------------------------------------------------------------------------- one run


@dataclass(frozen=True)
class Done:
    """One run of a peer."""

    removed: Mask
    """Of each document."""
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    stages: dict[str, float]
    settings: str


def run_peer(peer: Peer, python: Path, corpus: Inputs, folder: Path, workers: int, timeout: float) -> Done | str:
    """One run of the job; or why it was not done. Files of the run are left in ``folder``."""
    out, order = folder / "kept.parquet", folder / "order.json"
    out.unlink(missing_ok=True)
    order.write_text(json.dumps({"files": corpus.files, "out": str(out), "workers": workers}))
    own = str(Path(__file__).resolve().parents[3]) if peer in OURS else ""
    process = run_process(
        [str(python), str(peer.program), str(order)],
        environment={"PYTHONPATH": own, "TMPDIR": str(folder), "HF_HOME": str(folder / "hub")},
        timeout=timeout,
    )
    if process.timed_out:
        return f"not done after {timeout:.0f} s"
    if process.code:
        return process.complaint
    try:
        kept = pq.read_table(out, columns=["id"])["id"].to_numpy()
        answer = json.loads(process.output.splitlines()[-1])
        stages = {str(name): float(value) for name, value in answer["stages"].items()}
        settings = str(answer["settings"])
    except (OSError, pa.ArrowException, ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return f"its answer cannot be read: {error}"
    try:
        removed = _removed(kept, corpus.documents)
    except ValueError as error:
        return f"its answer is wrong: {error}"
    return Done(
        removed=removed,
        seconds=process.seconds,
        cpu_seconds=process.cpu_seconds,
        peak_bytes=process.peak_bytes(),
        stages=stages,
        settings=settings,
    )


def _removed(kept: npt.NDArray[np.int64], documents: int) -> Mask:
    """The mask of the documents that are not among ``kept``. Raises ValueError for ids of no document, or twice."""
    if len(kept) and not 0 <= int(kept.min()) <= int(kept.max()) < documents:
        raise ValueError(f"it keeps ids from {kept.min()} to {kept.max()} of {documents} documents")
    removed = np.ones(documents, bool)
    removed[kept] = False
    if documents - int(removed.sum()) != len(kept):
        raise ValueError(f"it keeps {len(kept)} ids, of which some are twice")
    return removed


# ---------------------------------------------------------------------------------------------------------- the table


@dataclass(frozen=True)
class Corpora:
    """Of one kind: what peers are timed on, what slow ones are timed on instead, and what all are judged on.

    Parquet files with the columns id (0, 1, ... over all files) and text.
    """

    whole: Inputs
    part: Inputs
    small: Inputs


def records(order: Order, corpora: Corpora) -> Iterator[Record]:
    """gpudedup, then every peer of ``order.peers``: measured and judged, or why not. None without text."""
    assert order.peers is not None
    if not corpora.small.documents:
        return
    folder = order.folder / "peers"
    folder.mkdir(exist_ok=True)
    order.tell(f"exact pairs of {corpora.small.documents} documents")
    judge = Judge(corpora.small.documents, _exact_pairs(corpora.small))
    yield _without_fault(corpora.small, judge, order)
    found: dict[Peer, Record] = {}
    for one in (*OURS, *PEERS):
        found[one] = _record(one, order, order.peers, corpora, judge, folder)
        yield found[one]
    yield from _against_best(found, order)


def _texts(corpus: Inputs) -> Iterator[pa.Array]:
    return (batch["text"] for file in corpus.files for batch in pq.ParquetFile(file).iter_batches(columns=["text"]))


def _exact_pairs(corpus: Inputs) -> Pairs:
    return similar_pairs(shingle_sets(_texts(corpus), Params(threshold=THRESHOLD)), _PPM)


def _without_fault(corpus: Inputs, judge: Judge, order: Order) -> Record:
    """What an exact decision over the shingles that peers get would reach: truth folds more than lower case."""
    order.tell(f"the exact decision over the peers' shingles of {corpus.documents} documents")
    sets = [
        np.unique(np.array([xxhash.xxh32_intdigest(one.encode()) for one in shingles(text)], np.uint32))
        for batch in _texts(corpus)
        for text in batch.to_pylist()
    ]
    offsets = np.cumsum([0, *map(len, sets)])
    pairs = similar_pairs(ShingleSets(np.concatenate([np.zeros(0, np.uint32), *sets]), offsets), _PPM)
    return new_record(
        "peers",
        corpus.name,
        program="no program: the exact decision over the shingles that peers get",
        version="",
        device="cpu",
        seed=order.seed,
        corpus=corpus.text,
        checked=_judged(corpus),
        figures=judge.figures(exact_decision(corpus.documents, pairs) >= 0),
    )


def _judged(corpus: Inputs) -> str:
    return (
        f"precision, recall and F1 are of {corpus.documents} documents of the same kind, by their exact pairs, and do "
        "not ask which of two copies stays"
    )


def _record(peer: Peer, order: Order, peers: Path, corpora: Corpora, judge: Judge, folder: Path) -> Record:
    given, small = corpora.part if peer.slow else corpora.whole, corpora.small
    case = given.name
    python = Path(sys.executable) if peer in OURS else python_of(peers, peer)
    version = installed_version(python, peer.package)
    fields = {"program": peer.name, "version": version or "not installed", "device": "cpu", "seed": order.seed}
    if peer.gpu:
        fields["device"] = "cuda"
    timeout = TIMEOUT / 10 if order.quick else TIMEOUT

    def cannot(why: str) -> Record:
        return new_record("peers", case, **fields, corpus=given.text, cannot=why)

    without = no_gpu() if peer.gpu else None
    if without:
        return cannot(without)
    if version is None:
        return cannot(f"not installed: gpudedup bench peers --install {peers.name} {peer.folder}")
    order.tell(f"{peer.name} {version} on {small.documents} documents")
    judged = run_peer(peer, python, small, folder, order.workers, timeout)
    if isinstance(judged, str):
        return cannot(judged)
    runs: list[Done] = []
    for _ in range(1 if peer.slow else order.repeat):
        order.tell(f"{peer.name} {version} on {given.documents} documents")
        one = run_peer(peer, python, given, folder, order.workers, timeout)
        if isinstance(one, str):
            return cannot(one)
        runs.append(one)
    spread, cpu = Spread.of([run.seconds for run in runs]), median(run.cpu_seconds for run in runs)
    stages = {f"{name}_seconds": median(run.stages.get(name, 0.0) for run in runs) for name in runs[0].stages}
    return new_record(
        "peers",
        case,
        **fields,
        corpus=given.text,
        parameters={
            "threshold": THRESHOLD,
            "shingle": "word:5",
            "num_perm": 128,
            "workers": order.workers,
            "how": runs[0].settings,
        },
        clock="a process from start to end: Parquet files to the ids that stay",
        checked=f"ids are of the corpus, none twice; {_judged(small)}",
        repeats=len(runs),
        seconds=spread,
        cpu_seconds=cpu,
        peak_bytes=max(run.peak_bytes for run in runs),
        figures={
            "text_megabytes_per_second": given.text_bytes / 1e6 / spread.median,
            "text_megabytes_per_cpu_second": given.text_bytes / 1e6 / max(cpu, 1e-3),
            **judge.figures(judged.removed),
            **stages,
        },
    )


def _against_best(found: Mapping[Peer, Record], order: Order) -> Iterator[Record]:
    """How many times gpudedup's speed is that of the fastest peer and of rensa, and its memory, where it is given
    little, that of the leanest: of peers that did the whole corpus too."""
    ours, lean = (found[peer] for peer in OURS)
    done = {
        peer: one
        for peer, one in found.items()
        if one.cannot is None and one.corpus == ours.corpus and peer not in OURS and not peer.gpu
    }
    if ours.cannot is not None or not done or ours.corpus is None or ours.corpus.text_bytes < RATIO_BYTES:
        return
    figures: dict[str, float] = {}
    parameters: dict[str, str] = {}

    def speed(name: str, over: Mapping[Peer, Record]) -> None:
        if over:
            rate = {one.program: one.figures["text_megabytes_per_second"] for one in over.values()}
            parameters[name] = max(rate, key=lambda program: rate[program])
            own = ours.figures["text_megabytes_per_second"]
            figures[f"speed_over_{name}_ratio"] = own / rate[parameters[name]]

    speed("fastest", done)
    speed("fastest_of_same_shingles", {peer: one for peer, one in done.items() if not peer.own_words})
    speed("rensa", {peer: one for peer, one in done.items() if peer.name == "rensa"})
    peaks = {one.program: one.peak_bytes for one in done.values() if one.peak_bytes}
    if peaks and lean.peak_bytes:
        parameters["leanest"] = min(peaks, key=lambda program: peaks[program])
        figures["memory_over_leanest_ratio"] = lean.peak_bytes / peaks[parameters["leanest"]]
    yield new_record(
        "peers",
        f"{ours.case}: gpudedup over the best of them",
        device="cpu",
        seed=order.seed,
        corpus=ours.corpus,
        parameters=parameters,
        checked="from the records of this run",
        figures=figures,
    )
