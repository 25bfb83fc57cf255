"""The extension at its edges: text that ends where its memory ends, bad arguments, sets that spill, many threads.

An ordinary run finds crashes and differences; under the address and undefined-behaviour sanitizers (`.ci/run`, step
`sanitizers`) the same tests find reads and writes out of bounds. Expected values come from another number of workers,
another cut of the input, or Python's own sets.
"""

from __future__ import annotations

import itertools
import mmap
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpudedup import _cpu

PIECES = [
    *(
        text.encode()
        for text in ("word ", "a", " ", "\n\n", "0123456789", "_", "-", "é", "中文沒有空格", "ﷺ", "가힣", "ｶﾞ")
    ),
    *(
        text.encode()
        for text in ("\u200b", "\u0301", "\U0001f600", "\U00020000", "x" * 63, "x" * 64, "x" * 65, "é" * 64)
    ),
    *(b"\x00", b"\xff", b"\xc3", b"\xe4\xb8", b"\xf0\x9f\x98", b"\xed\xa0\x80", b"\x80" * 9),
]
SIZES = [0, 1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 8184, 8191, 8192, 8193, 8200, 16384, 20000]


def random_bytes(generator: random.Random, size: int) -> bytes:
    text = b"".join(generator.choice(PIECES) for _ in range(size // 4 + 1))
    while len(text) < size:
        text += text
    return text[:size]  # cut anywhere, inside characters too


def sign(documents: list[bytes], *, workers: int = 1, **options: Any) -> tuple[np.ndarray, ...]:
    """One allocation of exactly the bytes of all documents, so that a sanitizer sees one byte too many."""
    text = np.frombuffer(b"".join(documents), np.uint8).copy()
    offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
    settings = {"unit": "word", "n": 5, "fold": "full", "num_perm": 16, "seed": 3, **options}
    scope_keys = np.arange(len(documents), dtype=np.uint64)
    signed = _cpu.Signer(**settings).sign(
        text, offsets, bands=(5, 3), scope_keys=scope_keys, keep_hashes=True, workers=workers
    )
    assert all(made is not None for made in signed)
    return signed  # type: ignore[return-value]


def assert_equal(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> None:
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("fold", ["full", "case", "none"])
@pytest.mark.parametrize(("unit", "n"), [("word", 1), ("word", 5), ("word", 256), ("char", 1), ("char", 9)])
def test_text_of_every_size_and_kind(unit: str, n: int, fold: str) -> None:
    generator = random.Random(f"{unit}{n}{fold}")
    documents = [random_bytes(generator, size) for size in SIZES for _ in range(2)]
    together = sign(documents, unit=unit, n=n, fold=fold)
    assert_equal(together, sign(documents, unit=unit, n=n, fold=fold, workers=5))
    for number, document in enumerate(documents):  # each alone at the end of its own memory
        alone = sign([document], unit=unit, n=n, fold=fold)
        for made, among in zip(alone[:3], together[:3], strict=True):
            np.testing.assert_array_equal(made[0], among[number])


@pytest.mark.parametrize(
    "piece", [b"x", "ﷺ".encode(), "中".encode(), "가".encode(), b"\xff", b" ", "\u0301".encode(), b"a "]
)
def test_one_thing_a_hundred_thousand_times(piece: bytes) -> None:
    for unit, fold in itertools.product(("word", "char"), ("full", "none")):
        (content, units, lanes, _, _, bounds) = sign([piece * 100_000, b"tail"], unit=unit, fold=fold)
        assert bounds[-1] >= 0
        assert units[1] == (1 if unit == "word" else 4)
        again = sign([piece * 100_000, b"tail"], unit=unit, fold=fold, workers=3)
        np.testing.assert_array_equal(lanes, again[2])
        np.testing.assert_array_equal(content, again[0])


def test_tokens() -> None:
    tokens = np.arange(20_000, dtype=np.int64) * -7
    offsets = np.array([0, 0, 1, 4, 5, 9000, 20_000], np.int32)
    signer = _cpu.Signer(unit="tokens", n=5, fold="full", num_perm=8, seed=0)
    _, units, *_, hashes, bounds = signer.sign(tokens, offsets, keep_hashes=True, workers=4)
    assert units.tolist() == np.diff(offsets).tolist()
    assert hashes is not None
    assert bounds is not None
    assert np.diff(bounds).tolist() == [0 if m == 0 else max(1, m - 4) for m in np.diff(offsets).tolist()]


def buckets_of(lanes: np.ndarray, *, workers: int = 1, window: int = 4, **options: Any) -> Any:
    documents = np.arange(len(lanes), dtype=np.uint32)
    every = _cpu.Lanes([[lanes]], lanes.shape[1])
    keys = [every.band_keys(band, rows=2, workers=workers) for band in range(4)]
    bands = [_cpu.sort_band(band, documents, memory_bytes=1 << 30, workers=workers) for band in keys]
    place = {"memory_bytes": 1 << 30, "directory": "/"}
    return _cpu.Buckets(bands, count=len(lanes), window=window, workers=workers, **{**place, **options})


def random_sets(count: int, seed: int) -> list[set[int]]:
    """Sets in families that share most of their members."""
    generator = random.Random(seed)
    sets = []
    for _ in range(count):
        family = generator.randrange(12) * 1000
        size = generator.choice((0, 1, 2, 3, 15, 16, 17, 33, 64, 200))
        sets.append({family + generator.randrange(max(1, size + size // 8)) for _ in range(size)} or {family})
    return sets


def filled_store(sets: list[set[int]], memory_bytes: int, directory: Path, *, adopt: bool = False) -> Any:
    store = _cpu.SetStore(count=len(sets), memory_bytes=memory_bytes, directory=str(directory))
    for first in range(0, len(sets), 50):
        part = [[*members, *members] for members in sets[first : first + 50]]  # every member twice, in any order
        numbers = np.arange(first, first + len(part), dtype=np.uint32)
        rows = np.arange(len(part), dtype=np.uint32)
        hashes = np.array([member for members in part for member in members], np.uint32)
        offsets = np.cumsum([0, *map(len, part)]).astype(np.int64)
        store.add(numbers, rows, hashes, offsets, adopt=adopt, workers=3)
    return store


def spread_like(kind: str, size: int, draw: np.random.Generator) -> np.ndarray:
    values = draw.integers(0, 2**32, size, dtype=np.uint32)
    if kind == "hashes":
        return values
    if kind == "repeats":
        return values[draw.integers(0, size // 9 + 1, size)]
    if kind == "leading digits alike":  # as a text may be made to have them
        return values >> np.uint32(16) | np.uint32(0xABCD0000)
    if kind == "one digit alike":
        return values & np.uint32(0xFF00FFFF)
    return np.sort(values)[::-1] if kind == "falling" else np.full(size, 2**32 - 1, np.uint32)


@pytest.mark.parametrize(
    "kind", ["hashes", "repeats", "leading digits alike", "one digit alike", "falling", "all alike"]
)
def test_sets_of_any_values_are_sorted_without_repeats(kind: str) -> None:
    draw = np.random.default_rng(3)
    for size in (0, 1, 2, 23, 24, 25, 64, 255, 256, 1000, 40_000, 300_000):
        values = spread_like(kind, size, draw)
        for adopt in (False, True):
            store = _cpu.SetStore(count=1, memory_bytes=1 << 30, directory="/")
            one = np.zeros(1, np.uint32)
            store.add(one, one, values.copy(), np.array([0, size]), adopt=adopt, workers=1)
            assert np.array_equal(store.get(0), np.unique(values))


def test_sets_are_made_where_hashes_lie_if_memory_has_room() -> None:
    hashes = np.random.default_rng(4).integers(0, 2**32, 100_000, dtype=np.uint32)
    hashes[1::3] = hashes[::3][:-1]  # repeats
    offsets = np.arange(0, 100_001, 1000)
    sets = [np.unique(hashes[first : first + 1000]) for first in offsets[:-1]]
    for wanted, memory_bytes in ((100, 400_000), (100, 399_999), (3, 12_000), (3, 11_999), (1, 1 << 30)):
        store = _cpu.SetStore(count=100, memory_bytes=memory_bytes, directory="/tmp")
        rows = np.sort(np.random.default_rng(wanted).permutation(100)[:wanted]).astype(np.uint32)
        store.add(rows, rows, hashes.copy(), offsets, adopt=True, workers=2)  # only the store holds the copy now
        fits = 4 * 1000 * wanted <= memory_bytes
        kept = 4 * sum(len(sets[row]) for row in rows.tolist())
        whole_pages = min(4 * 1000 * wanted, -(-kept // mmap.PAGESIZE) * mmap.PAGESIZE)
        assert store.bytes_in_memory == (whole_pages if fits else 0)
        assert (store.bytes_on_disk > 0) == (not fits)
        for row in rows.tolist():
            assert np.array_equal(store.get(row), sets[row])
        assert len(store.missing(np.arange(100, dtype=np.uint32))) == 100 - wanted


def test_memory_of_hashes_that_no_set_is_made_of_goes_back() -> None:
    hashes = np.ones(32 << 20, np.uint32)
    before = resident_bytes()
    store = _cpu.SetStore(count=1, memory_bytes=1 << 30, directory="/")
    one = np.zeros(1, np.uint32)
    store.add(one, one, hashes, np.array([0, 1000, len(hashes)]), adopt=True, workers=1)
    assert before - resident_bytes() > 100 << 20
    assert store.get(0).tolist() == [1]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("components", [False, True])
@pytest.mark.parametrize("adopt", [False, True])
@pytest.mark.parametrize("memory_bytes", [0, 20_000, 1 << 30])
def test_verify_is_jaccard_whatever_memory_and_workers(
    components: bool, memory_bytes: int, adopt: bool, tmp_path: Path
) -> None:
    count = 1500
    sets = random_sets(count, seed=5)
    minima = [[min((7919 * x + 31 * j) % 257 for x in members) % 6 for j in range(8)] for members in sets]
    lanes = np.array(minima, np.uint32)
    store = filled_store(sets, memory_bytes, tmp_path, adopt=adopt)
    assert (store.bytes_on_disk > 0) == (memory_bytes < 1 << 30)
    assert [set(store.get(i).tolist()) for i in range(count)] == sets
    answers = []
    for workers in (1, 4):
        buckets = buckets_of(lanes, workers=workers)
        decision = _cpu.verify(
            buckets, components=components, threshold_ppm=600_000, sets=store, lanes=None,
            documents=np.arange(count, dtype=np.uint32), leader=None, prior=None, workers=workers,
        )  # fmt: skip
        answers.append((*decision.arrays(), np.array([decision.compared])))
    assert_equal(*answers)
    keeper, part, whole, _ = answers[0]
    assert (keeper != _cpu.NONE).sum() > 100
    for document in np.flatnonzero((keeper != _cpu.NONE) & (whole > 0)).tolist():
        left, right = sets[document], sets[keeper[document]]
        assert (part[document], whole[document]) == (len(left & right), len(left | right))
    assert list(tmp_path.iterdir()) == []  # spilled sets have no name: nothing to leave behind


def test_candidates_follow_the_window() -> None:
    lanes = np.zeros((300, 8), np.uint32)  # one bucket a band
    for window in (1, 2, 64, 150, 299, 1 << 20):
        better, worse = buckets_of(lanes, window=window).candidates(0, 300)
        expected = {(p, q) for q in range(300) for p in range(q) if p < window or q - p <= window}
        assert set(zip(better.tolist(), worse.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_signed(np.array([0, 5], np.int64)), "past the text"),
        (lambda: one_signed(np.array([3, 1], np.int64)), "ascend"),
        (lambda: one_signed(np.array([-1, 1], np.int64)), "negative"),
        (lambda: one_signed(np.array([], np.int64)), "at least one"),
        (lambda: one_signed(np.array([0, 4, 8], np.int64)[::2]), "contiguous"),
        (lambda: one_signed(np.array([0, 1], np.float64)), "int32 or int64"),
        (lambda: _cpu.Signer(unit="word", n=0, fold="full", num_perm=1, seed=0), "1 to 256"),
        (lambda: _cpu.Signer(unit="line", n=1, fold="full", num_perm=1, seed=0), "unit must be"),
        (lambda: _cpu.Lanes([[np.zeros((2, 3), np.uint32)]], 4), "num_perm"),
        (lambda: _cpu.Lanes([[]], 4), "num_perm"),
        (lambda: _cpu.Lanes([[np.zeros((2, 5), np.uint32)]], 4), "of the first one's width"),
        (lambda: _cpu.Lanes([[np.zeros((2, 3), np.uint32)] * 2], 4), "of the first one's width"),
        (lambda: _cpu.Lanes([[np.zeros((2, 4), np.uint32)] * 2], 4), "of the first one's width"),
        (lambda: _cpu.Lanes([[np.zeros((2, 0), np.uint32)] * 2], 4), "num_perm"),
        (lambda: _cpu.Lanes([[np.zeros((n, 2), np.uint32) for n in (3, 2)]], 4), "n, width"),
        (lambda: _cpu.Lanes([[np.zeros(4, np.uint32)]], 4), "n, width"),
        (lambda: _cpu.Lanes([[np.zeros((9, 4), np.uint32)]], 4).band_keys(2, rows=2, workers=1), "within num_perm"),
        (lambda: buckets_of(np.zeros((4, 7), np.uint32)), "within num_perm"),
        (lambda: one_signed(np.array([0, 4]), bands=(4, 3)), "at most num_perm"),
        (lambda: one_signed(np.array([0, 4]), bands=(1, 0)), "rows at least 1"),
        (lambda: one_signed(np.array([0, 4]), bands=(1, 1), scope_keys=np.zeros(2, np.uint64)), "scope_keys"),
        (lambda: adopted([1, 0], writeable=True), "ascend"),
        (lambda: adopted([1, 1], writeable=True), "ascend"),
        (lambda: adopted([0, 1], writeable=False), "writeable"),
        (lambda: buckets_of(np.zeros((4, 8), np.uint32), window=0), "window"),
        (lambda: buckets_of(np.zeros((4, 8), np.uint32), across=np.zeros(3, np.int32)), "across"),
        (lambda: buckets_of(np.zeros((4, 8), np.uint32)).candidates(0, 5), "must be documents"),
        (lambda: _cpu.group_content(np.array([4], np.uint32), np.zeros((4, 2), np.uint64), workers=1), "no document"),
        (lambda: _cpu.SetStore(count=1, memory_bytes=9, directory="/").get(1), "past the store"),
    ],
)  # fmt: skip
def test_arguments_that_do_not_fit_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def one_signed(offsets: np.ndarray, **options: Any) -> Any:
    signer = _cpu.Signer(unit="word", n=5, fold="full", num_perm=8, seed=0)
    return signer.sign(b"text", offsets, workers=1, **options)


def adopted(rows: list[int], *, writeable: bool) -> None:
    hashes = np.arange(9, dtype=np.uint32)
    hashes.flags.writeable = writeable
    store = _cpu.SetStore(count=2, memory_bytes=1 << 20, directory="/")
    both = np.arange(2, dtype=np.uint32)
    store.add(both, np.array(rows, np.uint32), hashes, np.array([0, 4, 9]), adopt=True, workers=1)


def test_results_outlive_what_made_them() -> None:
    """Returned arrays own their memory."""
    _, _, lanes, _, hashes, _ = sign([b"one two three four five six seven"] * 3)
    buckets = buckets_of(lanes)
    expected = hashes.copy()
    del lanes
    junk = [np.full(1000, 7, np.uint32) for _ in range(50)]
    assert buckets.longest == 3
    assert buckets.candidates(0, 3)[1].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(hashes, expected)
    assert len(junk) == 50


@pytest.mark.parametrize("size", [0, 1, 1000, (4 << 20) - 1, (5 << 20) + 3])
def test_copies_with_several_threads(size: int) -> None:
    source = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    target = np.zeros(size + 2, np.uint8)
    _cpu.copy_values(target[1:-1], source, workers=3)
    assert np.array_equal(target[1:-1], source)
    assert target[0] == target[-1] == 0


def test_copies_of_arrays_that_are_not_alike() -> None:
    values = np.zeros(8, np.uint8)
    for target in (np.zeros(7, np.uint8), np.zeros(8, np.int8), np.zeros(16, np.uint8)[::2]):
        with pytest.raises(ValueError, match="must be"):
            _cpu.copy_values(target, values, workers=1)
    values.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _cpu.copy_values(values, np.zeros(8, np.uint8), workers=1)
