"""Suite ``quality``: removals and candidates against exact truth, labels and sources; peers at the same job beside it.

A set is a file of the user's, or a made corpus of each mix. Every removal of every run is checked: it names a document
that stays, and their exact similarity, which reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import gpudedup
from gpudedup.backends.base import I64, ToSign
from gpudedup.backends.cpu import CpuBackend
from gpudedup.bench.devices import Device
from gpudedup.bench.inputs import Inputs, made, text_bytes
from gpudedup.bench.peers.run import QUALITY_BYTES, QUICK_BYTES, SLOW_BYTES, Corpora, records
from gpudedup.bench.quality import (
    Agreement,
    Judge,
    Recall,
    is_candidate,
    label_figures,
    pooled,
    recall_by_similarity,
    sources_lost,
    unproven,
)
from gpudedup.bench.record import Record, Text, new_record
from gpudedup.bench.suites import Order
from gpudedup.bench.truth import Pairs, shingle_sets, similar_pairs
from gpudedup.bench.words import MIXES
from gpudedup.errors import BenchmarkError, InputError
from gpudedup.io import open_paths
from gpudedup.io.paths import InputFile, find_files
from gpudedup.params import MAX_BUCKET_WINDOW, PPM, Params

THRESHOLDS = (0.6, 0.7, 0.8, 0.9)
SEEDS = 5
RECALL_SEEDS = 2
CURVE_FROM = 0.3
"""Similarity at which the curve of recall begins; above twice QUALITY_BYTES of text it is the lowest threshold, since
pairs of low similarity are many."""
ENOUGH = 200
"""Removals that make a set's own share meaningful."""
MOST_SETS = 32
INPUT_BYTES = 200_000_000
"""Text of a file of the user's that is looked at, from its beginning: about what exact truth does in a few minutes."""
NO_TEXTS = pa.chunked_array([], pa.large_binary())
LABELS = ("cluster", "label")
SOURCE = "source"
CHECKED = "every removal: its keeper stays, and their exact similarity is the one named and reaches the threshold"


@dataclass(frozen=True)
class Set:
    """Texts, and what is known of them."""

    name: str
    texts: pa.ChunkedArray
    labels: I64 | None = None
    sources: I64 | None = None
    cannot: str = ""
    """Why nothing can be said of it."""

    @property
    def text(self) -> Text:
        size = sum(map(text_bytes, self.texts.chunks))
        return Text(name=self.name, documents=len(self.texts), text_bytes=size)


@dataclass
class Found:
    """Of one set, or of several, at one threshold: counts over all seeds."""

    removals: list[Agreement] = field(default_factory=list)
    similar: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Similarity of the similar pairs of representatives, once a seed."""
    candidate: list[np.ndarray[Any, Any]] = field(default_factory=list)
    """Which of them are candidates in unbounded buckets."""

    def add(self, other: Found) -> None:
        self.removals += other.removals
        self.similar += other.similar
        self.candidate += other.candidate

    def figures(self, threshold: float, seeds: int) -> dict[str, float]:
        similarity, candidate = _joined(self.similar), _joined(self.candidate).astype(bool)
        reach = similarity >= threshold
        found, wanted = int((candidate & reach).sum()), int(reach.sum())
        return {
            **pooled(self.removals).figures(),
            "candidates_recall_share": found / wanted if wanted else 1.0,
            "similar_pairs_count": wanted / min(seeds, RECALL_SEEDS),
        }

    def curve(self, params: Params) -> Recall:
        similarity, candidate = _joined(self.similar), _joined(self.candidate).astype(bool)
        return recall_by_similarity(similarity, candidate, params.banding)


def _joined(parts: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return np.concatenate(parts) if parts else np.zeros(0)


# ---------------------------------------------------------------------------------------------------------- the suite


def suite(order: Order) -> Iterator[Record]:
    """Of every set and threshold, then of all sets; then the peers, if their environments were named."""
    thresholds, seeds = ((0.8,), 1) if order.quick else (THRESHOLDS, SEEDS)
    sets = list(_sets(order))
    for device in order.best:
        whole = {threshold: Found() for threshold in thresholds}
        worst: dict[float, tuple[float, str]] = {}
        for one in sets:
            order.tell(f"exact pairs of {one.name}, {len(one.texts)} documents")
            if one.cannot:
                yield _record(order, device, f"removals of {one.name}", None, cannot=one.cannot)
                continue
            try:
                truth = _Truth(one, CURVE_FROM if one.text.text_bytes <= 2 * QUALITY_BYTES else thresholds[0])
            except InputError as error:
                yield _record(order, device, f"removals of {one.name}", one.text, cannot=str(error))
                continue
            for threshold in thresholds:
                order.tell(f"removals of {one.name} at t = {threshold}")
                found, figures = truth.look(threshold, seeds, device, order)
                whole[threshold].add(found)
                f1 = pooled(found.removals).f1
                if figures["exact_removed_count"] >= ENOUGH and f1 < worst.get(threshold, (2.0, ""))[0]:
                    worst[threshold] = f1, one.name
                yield _record(
                    order,
                    device,
                    f"removals of {one.name} at t = {threshold}",
                    one.text,
                    parameters={"threshold": threshold, "seeds": seeds},
                    checked=CHECKED,
                    figures=figures,
                    curves=found.curve(Params(threshold=threshold)).curves(),
                )
        for threshold in thresholds if len(sets) > 1 else ():
            if not whole[threshold].removals:
                continue
            params = Params(threshold=threshold)
            figures = {**whole[threshold].figures(threshold, seeds), "promised_recall_share": params.recall}
            parameters: dict[str, Any] = {"threshold": threshold, "seeds": seeds, "sets": len(sets)}
            if threshold in worst:
                figures["least_f1_share"], parameters["least_f1_set"] = worst[threshold]
            yield _record(
                order,
                device,
                f"removals of all sets at t = {threshold}",
                None,
                parameters=parameters,
                checked=CHECKED,
                figures=figures,
                curves=whole[threshold].curve(params).curves(),
            )
    if order.peers is not None:
        yield from records(order, _corpora(order))


def _record(order: Order, device: Device, case: str, text: Text | None, **fields: Any) -> Record:
    return new_record("quality", case, device=device.device, seed=order.seed, corpus=text, **fields)


class _Truth:
    """The exact pairs of a set, and what runs find of them."""

    def __init__(self, one: Set, lowest: float) -> None:
        self.set = one
        params = Params()
        self.pairs = similar_pairs(shingle_sets(one.texts.chunks, params), round(lowest * PPM))
        first = _first_of_content(one.texts, params)
        own = np.arange(len(first))
        self.of_representatives = self.pairs.where((first == own)[self.pairs.i] & (first == own)[self.pairs.j])
        self.similarity = self.of_representatives.similarity()

    def look(self, threshold: float, seeds: int, device: Device, order: Order) -> tuple[Found, dict[str, float]]:
        """Raises BenchmarkError if a removal is not what it says."""
        one, found = self.set, Found()
        pairs = self.pairs.at(round(threshold * PPM))
        judge = Judge(len(one.texts), pairs)
        more: list[dict[str, float]] = []
        for seed in range(order.seed, order.seed + seeds):
            removed, keeper = _removals(one, pairs, threshold, seed, device, order)
            mask = np.zeros(len(one.texts), bool)
            mask[removed] = True
            found.removals.append(judge.agreement(mask))
            figures = {"removed_count": float(len(removed)), "false_removals_count": float(judge.false_removals(mask))}
            if one.labels is not None:
                clusters = np.arange(len(one.texts))
                clusters[removed] = keeper
                figures |= label_figures(clusters, one.labels)
            if one.sources is not None:
                figures["sources_lost_count"] = float(sources_lost(one.sources, mask))
            more.append(figures)
        for seed in range(order.seed, order.seed + min(seeds, RECALL_SEEDS)):
            found.similar.append(self.similarity)
            found.candidate.append(self._candidates(threshold, seed, device, order))
        means = {name: float(np.mean([one[name] for one in more])) for name in more[0]}
        if one.sources is not None:
            means["sources_lost_by_exact_count"] = float(sources_lost(one.sources, judge.exact))
        own = {
            "exact_removed_count": float(judge.exact.sum()),
            "promised_recall_share": Params(threshold=threshold).recall,
        }
        return found, {**found.figures(threshold, seeds), **own, **means}

    def _candidates(self, threshold: float, seed: int, device: Device, order: Order) -> np.ndarray[Any, Any]:
        """Of the pairs of representatives, those that are candidates in unbounded buckets."""
        result = _run(
            self.set, threshold, seed, device, order, verify="none", bucket_window=MAX_BUCKET_WINDOW
        ).candidates()
        better, worse = (result[name].to_numpy().astype(np.int64) for name in ("better", "worse"))
        return is_candidate(self.of_representatives, better, worse)


def _run(one: Set, threshold: float, seed: int, device: Device, order: Order, **options: Any) -> gpudedup.Result:
    return gpudedup.deduplicate(
        pa.table({"text": one.texts}),
        threshold=threshold,
        seed=seed,
        device=device.device,
        workers=order.workers,
        **options,
    )


def _removals(one: Set, pairs: Pairs, threshold: float, seed: int, device: Device, order: Order) -> tuple[I64, I64]:
    """(removed, keeper) of a run, checked."""
    table = _run(one, threshold, seed, device, order).removed
    removed, keeper = (table[name].to_numpy().astype(np.int64) for name in ("row", "keeper_row"))
    wrong = unproven(pairs, removed, keeper, table["similarity"].to_numpy())
    if wrong:
        raise BenchmarkError(
            f"{wrong} of {len(removed)} removals of {one.name} at t = {threshold}, seed {seed}, are not what they say"
        )
    return removed, keeper


def _first_of_content(texts: pa.ChunkedArray, params: Params) -> I64:
    """Per document the first one of equal content."""
    signed = CpuBackend(params, "exact truth").sign(ToSign(chunk) for chunk in texts.chunks)
    content = np.concatenate([np.zeros((0, 2), np.uint64), *(batch.content for batch in signed)])
    _, first, group = np.unique(content, axis=0, return_index=True, return_inverse=True)
    out: I64 = first[group.ravel()]
    return out


# ------------------------------------------------------------------------------------------------------ sets and texts


def _sets(order: Order) -> Iterator[Set]:
    """Each of the first MOST_SETS files of the user's, plain text files of one argument together; else a made corpus of
    each mix, whose labels and sources are the planted originals."""
    if order.inputs:
        found = [(given, find_files([given])) for given in order.inputs]
        paths = [path for given, files in found for path in _paths(given, files)]
        yield from (_given(path, order) for path in paths[:MOST_SETS])
        if len(paths) > MOST_SETS:
            rest = f"{len(paths) - MOST_SETS} files more"
            yield Set(rest, NO_TEXTS, cannot=f"only the first {MOST_SETS} files are looked at; name these alone")
        return
    size = min(order.text_bytes, QUICK_BYTES if order.quick else QUALITY_BYTES)
    for mix in (order.mix,) if order.quick else sorted(MIXES):
        corpus = made(order, mix=mix, size=size)
        assert corpus.folder is not None
        chunks = [chunk for file in corpus.files for chunk in pq.read_table(file, columns=["text"])["text"].chunks]
        origins = _origins(corpus.folder / "truth.parquet", corpus.documents)
        yield Set(mix, pa.chunked_array(chunks), labels=origins, sources=origins)


def _origins(path: Path, documents: int) -> I64:
    """Of each document the one that it is a copy of, or itself. Members of a template are nobody's copy."""
    planted = pq.read_table(path, columns=["id", "origin", "kind"])
    copies = planted.filter(pc.not_equal(planted["kind"].cast(pa.string()), "template"))
    out = np.arange(documents)
    out[copies["id"].to_numpy()] = copies["origin"].to_numpy()
    return out


def _paths(given: str, files: Sequence[InputFile]) -> list[str]:
    return [given] if files[0].format == "plain" else [file.path for file in files]


def _given(path: str, order: Order) -> Set:
    """A file of the user's, up to INPUT_BYTES of its text. Raises InputError if it cannot be read."""
    schema, name = _opened([path], [], order).kept_schema(), Path(path).stem or path
    named = [field.name for field in schema if not pa.types.is_nested(field.type)]
    label = next((column for column in LABELS if column in named), None)
    columns = [column for column in named if column in (label, SOURCE)]
    batches = list(_batches([path], columns, order, INPUT_BYTES))
    if not any(text_bytes(batch["text"]) for batch in batches):
        return Set(name, NO_TEXTS, cannot="there is no text in it")
    table = pa.Table.from_batches(batches)
    known = {column: _codes(table[column]) for column in columns}
    return Set(name, table["text"], labels=known.get(label or ""), sources=known.get(SOURCE))


def _opened(paths: list[str], columns: list[str], order: Order) -> Any:
    return open_paths(
        paths, text_column=order.text_column, columns=[order.text_column, *columns], memory_bytes=1 << 30, tmp=None
    )


def _batches(paths: list[str], columns: list[str], order: Order, limit: int) -> Iterator[pa.RecordBatch]:
    """The column text (large_binary) and ``columns`` of the first batches that hold ``limit`` bytes of text."""
    source = _opened(paths, columns, order)
    size = 0
    for shard in source.shards:
        for batch in shard.read([order.text_column, *columns]):
            text, *others = batch.columns.columns
            if pa.types.is_dictionary(text.type):
                text = text.dictionary_decode()
            text = text.cast(pa.large_binary())
            yield pa.RecordBatch.from_arrays([text, *others], ["text", *columns])
            size += text_bytes(text)
            if size >= limit:
                return


def _codes(values: pa.ChunkedArray) -> I64:
    """Equal values to equal numbers; null to -1."""
    out: I64 = pc.fill_null(values.combine_chunks().dictionary_encode().indices, -1).to_numpy().astype(np.int64)
    return out


# ------------------------------------------------------------------------------------------------ corpora of the peers


def _corpora(order: Order) -> Corpora:
    whole = min(order.text_bytes, 2 * QUICK_BYTES) if order.quick else order.text_bytes
    sizes = whole, min(whole, SLOW_BYTES), min(whole, QUICK_BYTES if order.quick else QUALITY_BYTES)
    return Corpora(*(_copied(order, size) if order.inputs else made(order, size=size) for size in sizes))


def _copied(order: Order, size: int) -> Inputs:
    """The beginning of the user's files in a form that every peer can read: ids and UTF-8 text in Parquet. What is no
    UTF-8 is replaced, and documents without text are left out."""
    folder = order.folder / f"peers-{size}"
    folder.mkdir(exist_ok=True)
    files, documents, total = [], 0, 0
    for number, batch in enumerate(_batches(list(order.inputs), [], order, size)):
        texts = [text.decode(errors="replace") for text in batch["text"].to_pylist() if text and not text.isspace()]
        text = pa.array(texts, pa.large_string())
        files.append(str(folder / f"part-{number:05}.parquet"))
        pq.write_table(
            pa.table({"id": np.arange(documents, documents + len(text)), "text": text}), files[-1], compression="zstd"
        )
        documents, total = documents + len(text), total + text_bytes(text)
    return Inputs("input", tuple(files), "text", documents, total)
