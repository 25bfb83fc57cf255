"""A corpus of any size with planted copies, and the truth about them.

    python -m gpudedup.bench.corpus OUT --gb 1 --mix english|chinese|mixed --seed 1

OUT/part-00000.parquet, ...  id int64, text string; zstd, row groups of about 32 MB of text
OUT/truth.parquet            a row for each document made from another: id, origin, kind, rate
OUT/meta.json                arguments and counts

Lengths are log-normal (median 2 kB, sigma 1, 300 bytes to 64 kB) and one document per 100 MB has 1 to 10 MB. Cluster
sizes follow a power law (exponent 2.7, up to 3,000); unless --plain, there is one cluster of 1,000 per 40,000 documents
and one of 10,000 per 100,000. Text is words drawn by their frequency in real texts, a fifth of them made up, so
strangers share hardly any 5-shingle. A third of the longer originals carry the header and footer of one of 200 sites.
In one of ten clusters all documents are one form filled with other names and numbers: similar, and no copies.

Every document is a function of (seed, its cluster, its number), so any shard can be made by any process: the bytes do
not depend on how many there are. Memory: about 60 bytes a document and 200 MB a process.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from gpudedup.backends.base import I32, I64, U64
from gpudedup.bench.noise import F64, fraction, mix, noise, stream
from gpudedup.bench.words import DRAW_BITS, MIXES, NUMBERS, SITES, Pool, load_pool
from gpudedup.machine import worker_count

KINDS = (
    "exact", "format", "edit", "sentence", "truncate", "boilerplate", "watermark", "repost", "embed", "mixed",
    "template",
)  # fmt: skip
KIND_SHARE = (0.15, 0.08, 0.30, 0.08, 0.10, 0.08, 0.05, 0.06, 0.04, 0.06)
"""Of copies, by kind. The last kind, template, is one of whole clusters."""
TEMPLATE_SHARE = 0.1
"""Of clusters."""
RATES: dict[str, tuple[float, ...]] = {
    "exact": (0.0,),
    "format": (0.2, 0.5, 1.0),  # share of paragraphs
    "edit": (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2),  # per word
    "sentence": (0.05, 0.1, 0.2, 0.35),  # share of sentences
    "truncate": (0.3, 0.5, 0.7, 0.8, 0.9, 0.95),  # part that stays
    "boilerplate": (1.0,),
    "watermark": (0.2, 0.5, 1.0),  # share of paragraph ends
    "repost": (0.1, 0.4, 1.0),  # strength
    "embed": (0.25, 0.5, 1.0),  # added / text
    "mixed": (0.002, 0.005, 0.01, 0.02, 0.03),  # per word
    "template": (0.03, 0.05, 0.08, 0.12),  # share of words that differ
}
BY_PIECES = ("edit", "sentence", "truncate", "boilerplate", "embed", "mixed", "template")
BATCH_BYTES = 32 << 20
WORDS_A_DRAW = 64 // DRAW_BITS
SITE_BYTES = 2000
"""Originals shorter than this carry no page furniture: it would make strangers alike."""
SCHEMA = pa.schema([("id", pa.int64()), ("text", pa.string())])
TRUTH = pa.schema(
    [
        ("id", pa.int64()),
        ("origin", pa.int64()),
        ("kind", pa.dictionary(pa.int8(), pa.string())),
        ("rate", pa.float32()),
    ]
)


@dataclass(frozen=True)
class Order:
    """What to make."""

    out: str
    text_bytes: int
    mix: str
    seed: int
    shard_bytes: int
    plain: bool


@dataclass(frozen=True)
class Plan:
    """Which cluster each document is of; a cluster has a language and a length in bytes."""

    size: I64
    length: I64
    language: I64
    cluster: I64
    """Of each document."""
    origin: I64
    """Of each cluster, its first document: the one that copies are made from."""
    shard_first: I64

    @property
    def documents(self) -> int:
        return len(self.cluster)

    @property
    def copies(self) -> int:
        return len(self.cluster) - len(self.size)


def make_plan(order: Order, pool: Pool) -> Plan:
    """The same for every process. O(documents)."""
    rng = np.random.default_rng([order.seed, 1])
    sizes, lengths, total = [], [], 0.0
    while total < order.text_bytes:
        size = np.minimum(rng.zipf(2.7, 20_000), 3000)
        length = np.clip(np.exp(rng.normal(np.log(2000), 1.0, 20_000)), 300, 64_000)
        length = np.where(size > 200, np.minimum(length, 6000), length)
        sizes.append(size)
        lengths.append(length)
        total += float((size * length).sum())
    size, length = np.concatenate(sizes).astype(np.int64), np.concatenate(lengths).astype(np.int64)
    documents = int(order.text_bytes / total * size.sum())
    if not order.plain:
        large = [10_000] * (documents // 100_000) + [1000] * (documents // 40_000)
        place = (np.arange(len(large)) * 7919 + 13) % max(1, min(len(size), documents // 2))
        size[place] = large
        length[place] = np.minimum(length[place], 3000)
        for number in range(round(order.text_bytes / 1e8)):
            place_of_huge = number * 15_013 + 7
            size[place_of_huge], length[place_of_huge] = 1, int(10 ** rng.uniform(6, 7))
    count = int(np.searchsorted(np.cumsum(size * length), order.text_bytes)) + 1
    size, length = size[:count], length[:count]
    language = rng.choice(len(pool.languages), len(size), p=pool.share)
    cluster = rng.permutation(np.repeat(np.arange(len(size)), size))
    _, origin = np.unique(cluster, return_index=True)
    ends = np.cumsum(length[cluster])
    cuts = np.searchsorted(ends, np.arange(order.shard_bytes, int(ends[-1]), order.shard_bytes), side="left") + 1
    shard_first = np.unique(np.concatenate([[0], cuts, [len(cluster)]]))
    return Plan(size, length, language, cluster, origin.astype(np.int64), shard_first.astype(np.int64))


class Writer:
    """Makes the texts of any documents of a plan."""

    def __init__(self, order: Order, pool: Pool, plan: Plan) -> None:
        self.order, self.pool, self.plan = order, pool, plan
        self._seed = int(mix(np.array([order.seed], np.uint64))[0])

    def _keys(self, numbers: I64, purpose: int) -> U64:
        return mix(mix(numbers.astype(np.uint64) + np.uint64(self._seed)) + np.uint64(purpose))

    # ------------------------------------------------------------------------------------------------- originals

    def originals(self, clusters: I64) -> tuple[I32, I64]:
        """(pieces, offsets) of the original text of each cluster given, repeats allowed."""
        pool, plan = self.pool, self.plan
        language = plan.language[clusters]
        keys = self._keys(clusters, 1)
        draws = np.maximum(1, (plan.length[clusters] / pool.mean_bytes[language] / WORDS_A_DRAW).astype(np.int64))
        ends = np.cumsum(draws)
        starts = ends - draws
        bits = stream(
            np.repeat(keys, draws),
            np.arange(int(ends[-1]), dtype=np.uint64) - np.repeat(starts, draws).astype(np.uint64),
        )
        count, first = np.repeat(pool.count[language].astype(np.uint64), draws), np.repeat(pool.first[language], draws)
        words = np.empty((len(bits), WORDS_A_DRAW), np.int32)
        for number in range(WORDS_A_DRAW):
            own = bits >> np.uint64(number * DRAW_BITS) & np.uint64((1 << DRAW_BITS) - 1)
            words[:, number] = pool.places[(own * count >> np.uint64(DRAW_BITS)).astype(np.int64) + first]
        closing = bits >> np.uint64(62) == 0  # a quarter of the sentence ends
        words[closing] = pool.paragraph[words[closing]]
        return words.ravel(), np.concatenate([[0], ends * WORDS_A_DRAW]).astype(np.int64)

    def sites(self, clusters: I64) -> I64:
        """The number of the site that the original of each cluster is from, Zipf-like; -1: none."""
        keys = self._keys(clusters, 2)
        site = (SITES ** fraction(mix(keys))).astype(np.int64) - 1
        return np.where((self.plan.length[clusters] < SITE_BYTES) | (fraction(keys) > 1 / 3), -1, site)

    def furnished(self, words: I32, language: int, site: int) -> I32:
        header = self.pool.header[language] + site
        return np.concatenate([[header], words, [header + SITES]]).astype(np.int32)

    # ---------------------------------------------------------------------------------------------------- copies

    def kinds(self, documents: I64) -> tuple[I64, F64, U64]:
        """(number in KINDS, rate, key) of each document, as if it were a copy."""
        keys = self._keys(documents, 3)
        kind = np.searchsorted(np.cumsum(KIND_SHARE), fraction(keys), side="right")
        kind = np.minimum(kind, len(KIND_SHARE) - 1)
        of_cluster = self._keys(self.plan.cluster[documents], 4)
        kind[fraction(of_cluster) < TEMPLATE_SHARE] = KINDS.index("template")
        rate = np.zeros(len(documents))
        spread = fraction(mix(np.where(kind == KINDS.index("template"), of_cluster, keys) + np.uint64(1)))
        for number, name in enumerate(KINDS):
            own = kind == number
            rate[own] = np.array(RATES[name])[(spread[own] * len(RATES[name])).astype(int)]
        return kind, rate, mix(keys + np.uint64(2))

    def filled(self, form: I32, rate: float, language: int, cluster: int, key: int) -> I32:
        """A form whose gaps, the same for all documents of a cluster, hold words and numbers of this document."""
        gaps = np.flatnonzero(fraction(noise(int(self._keys(np.array([cluster]), 5)[0]), len(form))) < rate)
        bits = noise(key, len(gaps))
        numbers = self.pool.number[language] + (bits >> np.uint64(32)).astype(np.int64) % NUMBERS
        out = form.copy()
        out[gaps] = np.where(bits % np.uint64(2) == 0, numbers, self.pool.draw(language, bits))
        return out

    def change_pieces(self, kind: str, words: I32, rate: float, language: int, key: int) -> I32:
        pool = self.pool
        if kind == "mixed":
            trim, furnish, site = fraction(noise(key, 3)).tolist()
            words = self.change_pieces("edit", words, rate, language, key + 1)
            if trim < 0.6:
                words = words[: max(1, int(len(words) * (1 - trim / 3)))]
            return self.furnished(words, language, int(SITES**site) - 1) if furnish < 0.6 else words
        if kind == "truncate":
            return words[: max(1, int(len(words) * rate))]
        if kind == "boilerplate":
            return self.furnished(words, language, key % SITES)
        bits = noise(key, len(words))
        if kind == "edit":
            chance = fraction(bits) / rate
            changed = np.flatnonzero(chance < 1)
            fresh = pool.draw(language, mix(bits[changed]))
            copies = np.ones(len(words), np.int64)
            out = words.copy()
            out[changed[chance[changed] < 0.85]] = fresh[chance[changed] < 0.85]  # replaced, then 15 % inserted before
            copies[changed[chance[changed] < 0.15]] = 0  # deleted
            inserted = changed[chance[changed] >= 0.85]
            copies[inserted] = 2
            out = np.repeat(out, copies)
            out[np.cumsum(copies)[inserted] - 2] = fresh[chance[changed] >= 0.85]
            return out
        if kind == "sentence":
            number: I64 = np.cumsum(pool.ends[words]) - pool.ends[words]  # a sentence's last word is its own
            chosen = fraction(noise(key + 1, int(number[-1]) + 1))[number] < rate
            chosen &= ~pool.ends[words]  # its end stays, and with it the paragraph
            return np.where(chosen, pool.draw(language, bits), words)
        assert kind == "embed"
        before = pool.draw(language, noise(key + 1, int(len(words) * rate * (bits[0] % 3) / 2)))
        after = pool.draw(language, noise(key + 2, int(len(words) * rate) - len(before) + 1))
        return np.concatenate([before, words, after])

    def change_text(self, kind: str, text: str, rate: float, language: int, key: int) -> str:
        bits = noise(key, 8).tolist()
        name = self.pool.languages[language]
        if kind == "format":
            return _reformat(text, rate, key)
        mark = _mark(bits[0], name in ("zh", "zht"))
        if kind == "watermark":
            return _watermarked(text, mark, rate, key)
        assert kind == "repost"
        if name in ("zh", "zht"):
            table = self.pool.traditional if name == "zh" else self.pool.simplified
            begin = 0 if rate == 1 else bits[1] % max(1, len(text) // 2)
            end = len(text) if rate == 1 else begin + int(len(text) * rate)
            text = text[:begin] + text[begin:end].translate(table) + text[end:]
        text = _watermarked(text, mark, rate / 2, key + 1)
        if bits[2] % 3 == 0:
            text = text.replace("&", "&amp;").replace('"', "&quot;").replace("\n\n", "<br />\n")
        if bits[3] % 2:
            text += _comments(bits[4:], rate, name in ("zh", "zht"))
        return text

    # --------------------------------------------------------------------------------------------------- batches

    def texts(self, first: int, last: int) -> pa.Array:
        """The documents first to last - 1."""
        plan = self.plan
        documents = np.arange(first, last)
        clusters = plan.cluster[first:last]
        words, offsets = self.originals(clusters)
        kind, rate, keys = self.kinds(documents)
        copy = plan.origin[clusters] != documents
        site = self.sites(clusters)
        parts, lengths, by_text = [], np.diff(offsets), []
        done = 0
        for i in np.flatnonzero((site >= 0) | copy).tolist():
            new, language, name = words[offsets[i] : offsets[i + 1]], int(plan.language[clusters[i]]), KINDS[kind[i]]
            changed = copy[i] and name in BY_PIECES
            if copy[i] and not changed and name != "exact":
                by_text.append(i)
            if site[i] >= 0:
                new = self.furnished(new, language, int(site[i]))
            if changed and name == "template":
                new = self.filled(new, float(rate[i]), language, int(clusters[i]), int(keys[i]))
            elif changed:
                new = self.change_pieces(name, new, float(rate[i]), language, int(keys[i]))
            if changed or site[i] >= 0:
                parts += [words[offsets[done] : offsets[i]], new]
                lengths[i] = len(new)
                done = i + 1
        parts.append(words[offsets[done] :])
        out = join(self.pool.pieces, np.concatenate(parts), lengths)
        if not by_text:
            return out
        mask = np.zeros(len(out), bool)
        mask[by_text] = True
        changed = [
            self.change_text(
                KINDS[kind[i]], out[i].as_py(), float(rate[i]), int(plan.language[clusters[i]]), int(keys[i])
            )
            for i in by_text
        ]
        return pc.replace_with_mask(out, pa.array(mask), pa.array(changed, pa.large_string()))

    def truth(self, first: int, last: int) -> pa.Table:
        """Which of the documents first to last - 1 were made from another, and how."""
        documents = np.arange(first, last)
        origin = self.plan.origin[self.plan.cluster[first:last]]
        made = np.flatnonzero(origin != documents)
        kind, rate, _ = self.kinds(documents[made])
        kinds = pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int8)), pa.array(KINDS))
        return pa.table([documents[made], origin[made], kinds, rate.astype(np.float32)], schema=TRUTH)

    def write_shard(self, number: int) -> tuple[pa.Table, int]:
        """Writes part-NUMBER.parquet; its rows of the truth, and its bytes of text."""
        first, last = self.plan.shard_first[number : number + 2].tolist()
        ends = np.cumsum(self.plan.length[self.plan.cluster[first:last]])
        cuts = np.searchsorted(ends, np.arange(BATCH_BYTES, int(ends[-1]), BATCH_BYTES), side="left") + 1
        bounds = np.unique(np.concatenate([[0], cuts, [last - first]])) + first
        path = os.path.join(self.order.out, f"part-{number:05}.parquet")
        text_bytes = 0
        with pq.ParquetWriter(path, SCHEMA, compression="zstd", compression_level=1, use_dictionary=False) as writer:
            for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
                texts = self.texts(begin, end)
                text_bytes += pc.sum(pc.binary_length(texts)).as_py()
                ids = pa.array(np.arange(begin, end))
                writer.write_table(pa.table([ids, texts.cast(pa.string())], schema=SCHEMA))
        return self.truth(first, last), text_bytes


def join(pieces: pa.Array, words: I32, lengths: I64) -> pa.Array:
    """Texts of ``lengths`` pieces each: the pieces lie one after the other, so only offsets are new."""
    taken = pieces.take(pa.array(words))
    _, offsets, data = taken.buffers()
    ends = np.frombuffer(offsets, np.int64)[np.concatenate([[0], np.cumsum(lengths)])]
    return pa.Array.from_buffers(pa.large_string(), len(lengths), [None, pa.py_buffer(ends), data])


# -------------------------------------------------------------------------------------------------- changes of text

_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def _reformat(text: str, rate: float, key: int) -> str:
    paragraphs = text.split("\n\n")
    for i, chance in enumerate(fraction(noise(key + 1, len(paragraphs))).tolist()):
        if chance >= rate:
            continue
        if key % 4 == 0:
            paragraphs[i] = paragraphs[i].upper()
        elif key % 4 == 1:
            paragraphs[i] = paragraphs[i].replace(" ", "  ") + " \r"
        elif key % 4 == 2:
            paragraphs[i] = paragraphs[i].translate(_WIDE)
        else:
            paragraphs[i] = "\t" + paragraphs[i].replace(",", " ,").replace("，", ", ").replace("。", "。\u3000")
    return "\n\n".join(paragraphs)


def _mark(bits: int, chinese: bool) -> str:
    code = "".join(chr(65 + bits // 26**i % 26) for i in range(4))
    return (
        f"{code}阅读网整理，更多内容请访问{code.lower()}点例"
        if chinese
        else f"[{code}] Read more stories like this at {code.lower()}.example"
    )


def _watermarked(text: str, mark: str, rate: float, key: int) -> str:
    paragraphs = text.split("\n\n")
    chances = fraction(noise(key + 2, len(paragraphs))).tolist()
    marked = [p + "\n\n" + mark if chance < rate else p for p, chance in zip(paragraphs, chances, strict=True)]
    return "\n\n".join(marked)


def _comments(bits: list[int], rate: float, chinese: bool) -> str:
    lines = []
    for number, value in enumerate(bits[: 1 + int(rate * 3)]):
        hours, likes, name = value % 40, value // 40 % 60, value // 2400 % 99999
        lines.append(
            f"{number + 1}楼 用户{name} {hours}小时前 说得好 赞({likes}) 回复"
            if chinese
            else f"#{number + 1} reader{name}, {hours} hours ago: well said. {likes} likes, reply"
        )
    return "\n\n" + "\n".join(lines)


# ------------------------------------------------------------------------------------------------------- processes

_writer: Writer | None = None


def _start(order: Order) -> None:
    global _writer
    pa.set_cpu_count(1)
    pool = load_pool(order.mix)
    _writer = Writer(order, pool, make_plan(order, pool))


def _shard(number: int) -> tuple[pa.Table, int]:
    assert _writer is not None
    return _writer.write_shard(number)


def make_corpus(
    out: str | os.PathLike[str],
    *,
    text_bytes: int,
    mix_name: str = "mixed",
    seed: int = 1,
    processes: int | None = None,
    shard_bytes: int = 128_000_000,
    plain: bool = False,
) -> dict[str, object]:
    """Writes the corpus; returns what meta.json holds."""
    os.makedirs(out, exist_ok=True)
    order = Order(os.fspath(out), text_bytes, mix_name, seed, shard_bytes, plain)
    pool = load_pool(mix_name)
    plan = make_plan(order, pool)
    shards = range(len(plan.shard_first) - 1)
    processes = min(processes or worker_count(), len(shards))
    kinds: Counter[str] = Counter()
    with pq.ParquetWriter(os.path.join(out, "truth.parquet"), TRUTH, compression="zstd") as truth:
        if processes == 1:
            writer = Writer(order, pool, plan)
            text_bytes = _write_truth(truth, map(writer.write_shard, shards), kinds)
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(order,)) as executor:
                text_bytes = _write_truth(truth, executor.map(_shard, shards), kinds)
    written = sum(pq.read_metadata(os.path.join(out, f"part-{n:05}.parquet")).num_rows for n in shards)
    assert written == plan.documents
    meta: dict[str, object] = {
        "text_bytes_planned": text_bytes,
        "mix": mix_name,
        "seed": seed,
        "plain": plain,
        "shards": len(shards),
        "documents": plan.documents,
        "text_bytes": text_bytes,
        "clusters": len(plan.size),
        "copies": plan.copies,
        "largest_clusters": np.sort(plan.size)[::-1][:5].tolist(),
        "kinds": dict(sorted(kinds.items())),
    }
    Path(out, "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    return meta


def _write_truth(writer: pq.ParquetWriter, shards: Iterable[tuple[pa.Table, int]], kinds: Counter[str]) -> int:
    """Counts kinds; the bytes of text of all shards."""
    total = 0
    for table, text_bytes in shards:
        writer.write_table(table)
        kinds.update(table["kind"].to_pylist())
        total += text_bytes
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description="Make a corpus with planted copies and their truth.")
    parser.add_argument("out")
    parser.add_argument("--gb", type=float, default=1.0, help="text, in 10^9 bytes")
    parser.add_argument("--mix", choices=sorted(MIXES), default="mixed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, help="default: one per core")
    parser.add_argument("--shard-mb", type=int, default=128)
    parser.add_argument("--plain", action="store_true", help="no forced large clusters and huge documents")
    given = parser.parse_args()
    begin = time.perf_counter()
    meta = make_corpus(
        given.out,
        text_bytes=int(given.gb * 1e9),
        mix_name=given.mix,
        seed=given.seed,
        processes=given.processes,
        shard_bytes=given.shard_mb * 1_000_000,
        plain=given.plain,
    )
    seconds = time.perf_counter() - begin
    print(f"{meta['documents']} documents, {meta['copies']} of them copies, {given.gb * 1e3 / seconds:.0f} MB/s")


if __name__ == "__main__":
    main()
