"""From signatures to decisions: match, verify by signature and decide, over signatures that never had a text."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import xxhash

from gpudedup.backends.base import I64
from gpudedup.bench.generated import STAGES, Generated, go_on, opened, sign
from gpudedup.bench.measure import Measured, Work, measure
from gpudedup.bench.record import Record
from gpudedup.bench.suites import Order, recorded
from gpudedup.errors import BenchmarkError
from gpudedup.params import PPM, Params, make_params

DOCUMENT_BYTES = 1000
"""A document of so many bytes of ordered text has a signature here."""

CHECKED_CLUSTERS = 300
LARGEST_CHECKED = 100
"""Documents of a cluster that is decided again: its buckets are not bounded, so all its pairs are candidates."""

MEMORY = "2 GB"
CLOCK = "a signed run directory to its decision on disk: signatures read, match, verify by signature, decide"
CHECKED = (
    f"no document outside planted clusters removed; the decision over {CHECKED_CLUSTERS} clusters made again from "
    "their lanes by the definition; the same in every repeat"
)


def suite(order: Order) -> Iterator[Record]:
    documents = max(1000, order.text_bytes // DOCUMENT_BYTES)
    out = order.folder / "generated"
    order.tell(f"match: making {documents:,} signatures")
    options: dict[str, Any] = {"verify": "signature", "workers": order.workers}
    made = measure(
        "gpudedup.bench.suites.match:signed_run",
        {"out": str(out), "documents": documents, "seed": order.seed, "options": options},
        repeat=1,
        warm_ups=0,
    )
    for device in order.best:
        order.tell(f"match: {documents:,} documents, {device}")
        given = {"documents": documents, "seed": order.seed}
        found = made if isinstance(made, str) else measure(
            "gpudedup.bench.suites.match:decided",
            {"out": str(out), **given, "options": {**options, "memory": MEMORY, "device": device.device}},
            repeat=order.repeat,
            environment=device.environment,
        )  # fmt: skip
        figures = {}
        if isinstance(found, Measured):
            figures = {"million_documents_per_second": documents / found.seconds.median / 1e6}
        about = {
            "clock": CLOCK,
            "checked": CHECKED,
            "parameters": {**options, "memory": MEMORY, "documents": documents},
        }
        yield recorded("match", f"{documents:,} signatures", order, device, found, figures=figures, **about)
    shutil.rmtree(out, ignore_errors=True)


def signed_run(out: str, documents: int, seed: int, options: dict[str, Any]) -> Work:
    """Makes the signature files of a run directory."""
    params = make_params(options)

    def run() -> str:
        with opened(Path(out), documents, params) as made:
            sign(made, Generated(documents, num_perm=params.num_perm, seed=seed))
        return "signed"

    return Work(run, str)


def decided(out: str, documents: int, seed: int, options: dict[str, Any]) -> Work:
    """Goes on from signatures to the decision; each time from the signatures on."""
    params, folder = make_params(options), Path(out)
    counts: dict[str, float] = {}

    def forget() -> None:
        for stage in STAGES:
            shutil.rmtree(folder / stage, ignore_errors=True)
            shutil.rmtree(folder / "done" / stage, ignore_errors=True)

    def run() -> dict[str, float]:
        with opened(folder, documents, params) as run:
            seconds = go_on(run, STAGES)
            record = run.done("verify", params.threshold_ppm)
            assert record is not None
            names = ("compared_pairs", "longest_bucket", "bounded_buckets")
            counts.update({name: record.counts[name] for name in names if name in record.counts})
            counts["removed"] = len(run.decided.removed)
        return {f"{stage}_seconds": value for stage, value in seconds.items()}

    def fingerprint(result: dict[str, float]) -> str:
        return xxhash.xxh3_128_hexdigest((folder / "decide" / "removed.arrow").read_bytes())

    def check(result: dict[str, float]) -> None:
        check_decision(folder, Generated(documents, num_perm=params.num_perm, seed=seed), params)

    return Work(run, fingerprint, check, lambda seconds: {**seconds, **counts}, forget)


def check_decision(folder: Path, generated: Generated, params: Params) -> None:
    """Hold a decision to one made by its definition. Raises BenchmarkError.

    No document outside clusters may be removed, none for one of another cluster; of some clusters each removal, its
    keeper and its similarity are made again from the lanes.
    """
    with pa.memory_map(str(folder / "decide" / "removed.arrow")) as file:
        table = pa.ipc.open_file(file).read_all()
    document, keeper, similarity = (table[name].to_numpy() for name in ("document", "keeper", "similarity"))
    cluster = np.empty(generated.documents, np.int64)
    small = np.flatnonzero(generated.sizes <= LARGEST_CHECKED)
    chosen = small[np.unique(np.linspace(0, len(small) - 1, min(len(small), CHECKED_CLUSTERS)).astype(np.int64))]
    lanes: dict[int, np.ndarray] = {}
    for number in range(generated.blocks):
        block = generated.block(number)
        cluster[block.first : block.first + len(block.cluster)] = block.cluster
        for place in np.flatnonzero(np.isin(block.cluster, chosen)).tolist():
            lanes[block.first + place] = block.lanes[place].copy()
    if (cluster[document] < 0).any() or (cluster[document] != cluster[keeper]).any():
        wrong = document[(cluster[document] < 0) | (cluster[document] != cluster[keeper])][0]
        raise BenchmarkError(f"match: document {wrong} was removed, and is like no other")
    members: dict[int, list[int]] = {}
    for number in sorted(lanes):
        members.setdefault(int(cluster[number]), []).append(number)
    expected = {}
    for own in members.values():
        expected.update(_decision(own, np.array([lanes[number] for number in own]), params))
    found = {
        removed: (kept, share)
        for removed, kept, share in zip(document.tolist(), keeper.tolist(), similarity.tolist(), strict=True)
        if removed in lanes
    }
    if found != expected:
        wrong = min(set(found.items()) ^ set(expected.items()))[0]
        raise BenchmarkError(
            f"match: document {wrong}: {found.get(wrong)}, and by the definition {expected.get(wrong)}"
        )


def _decision(numbers: Sequence[int], lanes: np.ndarray, params: Params) -> dict[int, tuple[int, float]]:
    """Removed: (keeper, similarity), of documents of distinct contents in input order, no bucket of them bounded."""
    bands, rows = params.banding
    equal = lanes[:, None, :] == lanes[None, :, :]
    banded = equal[:, :, : bands * rows].reshape(len(lanes), len(lanes), bands, rows)
    candidate = banded.all(axis=3).any(axis=2)
    same: I64 = equal.sum(axis=2)
    similar = candidate & (same * PPM >= params.threshold_ppm * params.num_perm)
    kept: list[int] = []
    removed = {}
    for place in range(len(lanes)):
        keeper = next((better for better in kept if similar[better, place]), None)
        if keeper is None:
            kept.append(place)
        else:
            removed[numbers[place]] = (numbers[keeper], float(same[keeper, place]) / params.num_perm)
    return removed
