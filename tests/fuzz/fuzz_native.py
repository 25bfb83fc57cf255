"""Random and damaged arguments for every native entry point; meant for a build with sanitizers.

    GPUDEDUP_SANITIZE=address,undefined python setup.py build_ext --inplace
    LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 \
        python tests/fuzz/fuzz_native.py --executions 1000000 --seed 0

An execution is one call. It must give a result that fits its arguments or raise ValueError or TypeError; a sanitizer
ends the process at anything else. Equal seeds make equal calls.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gpudedup import _cpu

PIECES = [
    *(b"word", b" ", b"\n", b"_", b"A", b"0", b"x" * 64, b"y" * 65, b" " * 63, b"\0", b"\x7f"),
    *(
        "é".encode(),
        "中".encode(),
        "說".encode(),
        "한".encode(),
        "ﷺ".encode(),
        "\u3300".encode(),
        "\U00020000".encode(),
    ),
    *("\u0301".encode(), "\u200b".encode(), "\u00ad".encode(), "ก".encode(), "™".encode(), "\U0010ffff".encode()),
    *(b"\xff", b"\x80", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf"),
]
Rng = random.Random


def some_text(rng: Rng) -> bytes:
    kind = rng.random()
    if kind < 0.2:
        return rng.randbytes(rng.randrange(300))
    if kind < 0.25:
        return rng.choice(PIECES) * rng.randrange(9000)
    text = bytearray(b"".join(rng.choice(PIECES) for _ in range(rng.randrange(60))))
    for _ in range(rng.randrange(4)):
        if text:
            text[rng.randrange(len(text))] = rng.randrange(256)
    return bytes(text)


def some_offsets(rng: Rng, size: int) -> np.ndarray:
    """Mostly good: ascending and within the text."""
    count = rng.randrange(1, 9)
    offsets = sorted(rng.randrange(size + 1) for _ in range(count))
    if rng.random() < 0.15:
        offsets[rng.randrange(count)] = rng.choice([-1, size + 1, 2**31 - 1, -(2**31)])
    if rng.random() < 0.05:
        rng.shuffle(offsets)
    if rng.random() < 0.02:
        offsets = []
    return np.array(offsets, rng.choice([np.int32, np.int64]))


def fuzz_sign(rng: Rng) -> None:
    text = some_text(rng)
    unit = rng.choice(["word", "word", "char", "tokens"])
    num_perm = rng.choice([0, 1, 63, 64, 65])
    signer = _cpu.Signer(
        unit=unit,
        n=rng.choice([1, 2, 5, 8, 9, 256]),
        fold=rng.choice(["none", "case", "full"]),
        num_perm=num_perm,
        seed=rng.randrange(2**64),
    )
    values: Any = np.frombuffer(text, np.uint8)
    if unit == "tokens":
        values = np.frombuffer(text[: len(text) // 8 * 8], np.int64)
    offsets = some_offsets(rng, len(values))
    count = max(0, len(offsets) - 1)
    bands = None
    if rng.random() < 0.5:
        rows = rng.choice([1, 1, 2, 7, 32])
        bands = (num_perm // rows, rows)
        if rng.random() < 0.05:
            bands = rng.choice([(1, 0), (1, 66), (66, 1), (2**32 - 1, 2**32 - 1)])
    content, units, lanes, keys, hashes, bounds = signer.sign(
        values,
        offsets,
        bands=bands,
        scope_keys=optional(rng, count, np.uint64),
        lanes=rng.random() < 0.5,
        keep_hashes=rng.random() < 0.5,
        workers=rng.choice([1, 1, 1, 2]),
    )
    assert len(content) == len(units) == count
    assert lanes is None or len(lanes) == count
    assert (keys is None) == (bands is None)
    assert keys is None or bands is None or keys.shape == (bands[0], count)
    assert (hashes is None) == (bounds is None)
    if hashes is not None and bounds is not None:
        assert bounds[-1] == len(hashes)
        assert ((np.diff(bounds) == 0) == (units == 0)).all()


def fuzz_hash_values(rng: Rng) -> None:
    text = some_text(rng)
    _cpu.hash_values(np.frombuffer(text, np.uint8), some_offsets(rng, len(text)))


def fuzz_intersect(rng: Rng) -> None:
    left, right = (np.unique(some_numbers(rng, rng.randrange(100), 200)) for _ in range(2))
    assert _cpu.intersect(left, right, 0) == len(np.intersect1d(left, right))


def some_numbers(rng: Rng, count: int, limit: int) -> np.ndarray:
    return np.array([rng.randrange(limit) for _ in range(count)], np.uint32)


def some_lanes(rng: Rng, count: int, num_perm: int) -> np.ndarray:
    return np.array([[rng.randrange(3) for _ in range(num_perm)] for _ in range(count)], np.uint32).reshape(
        count, num_perm
    )


def optional(rng: Rng, count: int, kind: type) -> Any:
    if rng.random() < 0.5:
        return None
    return np.array([rng.randrange(3) for _ in range(count + (rng.random() < 0.03))], kind)


def fuzz_group(rng: Rng) -> None:
    count = rng.randrange(12)
    content = np.array([[rng.randrange(3), rng.randrange(2)] for _ in range(count)], np.uint64).reshape(count, 2)
    order = some_numbers(rng, count, max(1, count + (rng.random() < 0.1)))
    leader = _cpu.group_content(
        order, content, within=optional(rng, count, np.int32), across=optional(rng, count, np.int32), workers=1
    )
    assert (leader <= np.arange(count)).all()


def grouped(signatures: np.ndarray, width: int) -> list[np.ndarray]:
    """Signatures as groups of lanes, each at the end of its own memory."""
    return [signatures[:, first : first + width].copy() for first in range(0, signatures.shape[1], width)]


def damaged(rng: Rng, band: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The band as it is, or now and then with a value changed, lost or added."""
    if rng.random() < 0.98:
        return band
    parts = [part.tolist() for part in band]
    part = rng.choice(parts)
    place = rng.randrange(len(part) + 1)
    part[place : place + rng.randrange(2)] = [rng.choice([0, 1, 2, 3, 39, 40, 2**32 - 1])] * rng.randrange(2)
    return np.array(parts[0], np.uint32), np.array(parts[1], np.uint32)


def fuzz_verify(rng: Rng) -> None:
    count, num_perm = rng.randrange(40), rng.choice([4, 9])
    documents = np.arange(count, dtype=np.uint32)
    if rng.random() < 0.05 and count:
        documents[rng.randrange(count)] = rng.choice([count, 2**32 - 1])
    signatures = some_lanes(rng, count, num_perm)
    cut, width = rng.randrange(count + 1), rng.randrange(1, num_perm + 2)
    lanes = _cpu.Lanes([grouped(part, width) for part in (signatures[:cut], signatures[cut:])], num_perm)
    rows, scope_keys = rng.choice([0, 1, 1, 2, 3, 10]), optional(rng, count, np.uint64)
    keys = [lanes.band_keys(band, rows=rows, scope_keys=scope_keys, workers=2) for band in range(rng.choice([1, 2, 4]))]
    memory_bytes = rng.choice([0, 1 << 20])
    sorted_bands = [_cpu.sort_band(band, documents, memory_bytes=memory_bytes, workers=2) for band in keys]
    bands = [damaged(rng, band) for band in sorted_bands]
    buckets = _cpu.Buckets(
        bands,
        count=count,
        fixed=rng.choice([0, 0, rng.randrange(count + 1), count + (rng.random() < 0.05)]),
        scopes=optional(rng, count, np.int32),
        across=optional(rng, count, np.int32),
        window=rng.choice([1, 2, 64]),
        memory_bytes=rng.choice([0, 300, 1 << 30]),
        directory="/tmp",
        workers=rng.choice([1, 2]),
    )
    store = _cpu.SetStore(count=count, memory_bytes=rng.choice([0, 1 << 30]), directory="/tmp")
    hashes, offsets = some_numbers(rng, 200, 50), some_offsets(rng, 200).astype(np.int64)
    rows = some_numbers(rng, count, max(1, len(offsets) - (rng.random() < 0.97)))
    adopt = rng.random() < 0.5
    if adopt and rng.random() < 0.97:
        rows = np.unique(rows)
    store.add(documents[: len(rows)].copy(), rows, hashes, offsets, adopt=adopt, workers=1)
    leader = None
    if rng.random() < 0.3:
        leader = np.array([rng.randrange(i + 1) for i in range(count)], np.uint32)
        if count and rng.random() < 0.1:
            leader[rng.randrange(count)] = rng.choice([count, 2**32 - 1])
    by = rng.choice(["sets", "lanes", "nothing"])
    options: dict[str, Any] = {
        "components": rng.random() < 0.3,
        "sets": store if by == "sets" else None,
        "lanes": lanes if by == "lanes" else None,
        "documents": documents,
        "leader": leader,
        "workers": rng.choice([1, 2]),
    }
    low = _cpu.verify(buckets, threshold_ppm=rng.randrange(1, 10**6), prior=None, **options)
    keeper, part, whole = low.arrays()
    assert (keeper[keeper != _cpu.NONE] < count).all()
    assert (part <= whole).all()
    if not options["components"]:
        _cpu.verify(buckets, threshold_ppm=10**6, prior=low, **options)
        _cpu.undecided_documents(buckets, low)


def some_stream(rng: Rng) -> tuple[_cpu.Stream, dict[str, Any]]:
    """A stream that has decided a few batches, and how to make another like it."""
    options: dict[str, Any] = {
        "bands": 3,
        "rows": rng.choice([1, 2, 2]),
        "num_perm": 6,
        "window": rng.choice([1, 3, 3]),
        "threshold_ppm": rng.randrange(1, 10**6),
        "verify": rng.choice(["exact", "signature", "none"]),
        "across": rng.random() < 0.3,
        "memory_bytes": 1 << 26,
        "directory": "/tmp",
    }
    if rng.random() < 0.02:
        options |= rng.choice([{"window": 0}, {"rows": 3}])
    stream = _cpu.Stream(**options)
    for _ in range(rng.randrange(4)):
        decide_batch(rng, stream)
    return stream, options


def decide_batch(rng: Rng, stream: _cpu.Stream) -> tuple[np.ndarray, ...]:
    count = rng.randrange(12)
    sizes = [rng.randrange(9) for _ in range(count)]
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    if rng.random() < 0.05:
        offsets[rng.randrange(len(offsets))] = rng.choice([-1, 10**9])
    decided = stream.decide(
        lanes=some_lanes(rng, count, 6),
        content=np.array([[rng.randrange(5), 0] for _ in range(count)], np.uint64).reshape(count, 2),
        unit_count=np.array([rng.randrange(3) for _ in range(count)], np.uint64),
        scopes=optional(rng, count, np.int32),
        across=optional(rng, count, np.int32),
        hashes=some_numbers(rng, sum(sizes), 30) if rng.random() < 0.9 else None,
        offsets=offsets if rng.random() < 0.9 else None,
        num_perm=6,
    )
    assert (decided[0] < stream.documents).all()
    return decided


def fuzz_stream(rng: Rng) -> None:
    some_stream(rng)


Columns = dict[str, list[np.ndarray]]


def fuzz_stream_builder(rng: Rng) -> None:
    """A stream made of the columns of another goes on as that does; of columns with changes, it goes on or is none."""
    stream, options = some_stream(rng)
    rows = stream.rows
    columns: Columns = {
        "representatives": [*stream.representatives(0, rows["representatives"])],
        "kept": [stream.kept(0, rows["kept"])],
        "sets": [*stream.sets(0, 1 << 20)],
        "keepers": [*stream.keepers(0, rows["keepers"])],
        "buckets": [*stream.buckets(0, rows["buckets"])],
        **{f"band{band}": [*stream.band(band, 0, 1)] for band in range(stream.bands)},
    }
    if rng.random() < 0.3:
        other = _cpu.Stream(**options)
        try:
            build(other, columns, stream.documents)
        except ValueError as error:
            raise AssertionError("the columns of a stream were refused") from error
        twin = random.Random()
        twin.setstate(rng.getstate())
        expected = decide_batch(twin, stream)
        assert all(map(np.array_equal, decide_batch(rng, other), expected))
        return
    for _ in range(rng.choice([1, 1, 2])):
        arrays = rng.choice([*columns.values()])
        place = rng.randrange(len(arrays))
        arrays[place] = changed(rng, arrays[place])
    documents = stream.documents if rng.random() < 0.9 else rng.choice([-1, 0, stream.documents + 5, 2**63 - 1])
    calls = [*columns.items()]
    if rng.random() < 0.1:
        rng.shuffle(calls)
    other = _cpu.Stream(**options)
    build(other, dict(calls), documents)
    decide_batch(rng, other)


def build(stream: _cpu.Stream, columns: Columns, documents: int) -> None:
    builder = _cpu.StreamBuilder(stream, documents=documents, compared=0)
    for kind, arrays in columns.items():
        if kind.startswith("band"):
            builder.reserve(int(kind[4:]), len(arrays[0]))
            builder.band(int(kind[4:]), *arrays)
        else:
            getattr(builder, kind)(*arrays)
    builder.finish()


def changed(rng: Rng, array: np.ndarray) -> np.ndarray:
    how = rng.random()
    if how < 0.15:
        return array[: rng.randrange(len(array) + 1)].copy()
    if how < 0.25:
        return np.concatenate((array, array[-1:]))
    array = array.copy()
    for _ in range(rng.choice([1, 1, 3]) if len(array) else 0):
        info = np.iinfo(array.dtype)
        near = [int(array[rng.randrange(len(array))]) + step for step in (-1, 0, 1)]
        array[rng.randrange(len(array))] = min(
            max(rng.choice([*near, 0, info.min, info.max, 2**31]), info.min), info.max
        )
    return array


TARGETS: list[tuple[int, Callable[[Rng], None]]] = [
    *((6, fuzz_sign), (1, fuzz_hash_values), (1, fuzz_intersect), (1, fuzz_group), (2, fuzz_verify)),
    *((1, fuzz_stream), (2, fuzz_stream_builder)),
]


def fuzz(executions: int, seed: int) -> dict[str, int]:
    """Calls by outcome: "result" or "refused"."""
    rng = random.Random(seed)
    targets = [target for weight, target in TARGETS for _ in range(weight)]
    outcomes = {"result": 0, "refused": 0}
    for _ in range(executions):
        try:
            rng.choice(targets)(rng)
            outcomes["result"] += 1
        except (ValueError, TypeError):
            outcomes["refused"] += 1
    return outcomes


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--executions", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.monotonic()
    counts = fuzz(arguments.executions, arguments.seed)
    took = time.monotonic() - start
    print(f"{arguments.executions} executions, seed {arguments.seed}, tier {_cpu.tier()}: {counts}, {took:.0f} s")
