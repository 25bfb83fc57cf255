"""libcudf's MinHash of runs of characters, text and signatures on the device: ``python nvtext_minhash.py ORDER.json``.

It needs pylibcudf, pyarrow and an NVIDIA GPU, but no cudf. The order names a Parquet file with the column ``text``, the
``width`` of a run, the number of ``lanes`` and of timed ``rounds``. What it answers is one line of JSON. Written by the
public documentation of pylibcudf 26.10 (``nvtext.minhash``).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SEED = 42
PRIME = (1 << 61) - 1
MASK = (1 << 32) - 1
CHECKED = 2
"""Documents whose signatures are compared with their definition."""


def permutations(lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """The factors and summands of the lanes, uint32 each."""
    rng = np.random.default_rng(SEED)
    return rng.integers(1, (1 << 31) - 1, lanes, np.uint32), rng.integers(0, (1 << 31) - 1, lanes, np.uint32)


def murmur3(data: bytes, seed: int) -> int:
    """MurmurHash3_x86_32 (Appleby 2011, public domain)."""
    h, tail = seed, len(data) & ~3
    for begin in range(0, len(data), 4):
        k = int.from_bytes(data[begin : begin + 4], "little") * 0xCC9E2D51 & MASK
        k = (k << 15 | k >> 17) * 0x1B873593 & MASK
        h ^= k
        if begin < tail:
            h = ((h << 13 | h >> 19) * 5 + 0xE6546B64) & MASK
    h ^= len(data)
    h = (h ^ h >> 16) * 0x85EBCA6B & MASK
    h = (h ^ h >> 13) * 0xC2B2AE35 & MASK
    return h ^ h >> 16


def defined(text: str, width: int, a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The signature of a text of ``width`` characters or more: of each lane the least of
    (a * h + b) mod (2^61 - 1) mod 2^32 over the hashes h of its runs."""
    hashes = {murmur3(text[i : i + width].encode(), SEED) for i in range(len(text) - width + 1)}
    return [min((f * h + s) % PRIME & MASK for h in hashes) for f, s in zip(a, b, strict=True)]


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Seconds of each round, and whether signatures are those of the definition above."""
    import pylibcudf
    import rmm
    from pylibcudf._version import __version__
    from pylibcudf.nvtext.minhash import minhash
    from rmm.pylibrmm.stream import DEFAULT_STREAM

    rmm.reinitialize(pool_allocator=True)  # else each result would wait for memory
    texts = pq.read_table(order["file"], columns=["text"])["text"].combine_chunks()
    factors, summands = permutations(order["lanes"])
    given = (texts, pa.array(factors), pa.array(summands))
    column, a, b = (pylibcudf.Column.from_arrow(values, stream=DEFAULT_STREAM) for values in given)
    seconds: list[float] = []
    for number in range(order["rounds"] + 1):
        DEFAULT_STREAM.synchronize()
        begin = time.perf_counter()
        signed = minhash(column, SEED, a, b, order["width"], stream=DEFAULT_STREAM)
        DEFAULT_STREAM.synchronize()
        if number:  # the first gets its memory and loads the kernel
            seconds.append(time.perf_counter() - begin)
    lanes = signed.to_arrow(stream=DEFAULT_STREAM)
    first = [(text.as_py(), lane.as_py()) for text, lane in zip(texts[:CHECKED], lanes[:CHECKED], strict=True)]
    as_documented = all(
        lane == defined(text, order["width"], factors.tolist(), summands.tolist()) for text, lane in first
    )
    return {"version": __version__, "seconds": seconds, "as_documented": as_documented}


if __name__ == "__main__":
    print(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
