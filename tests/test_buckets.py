"""Bands and buckets on the CPU: what they hold, in how much memory, and what of a damaged band is refused.

Expected values are those of the reference, or made here by the words of docs/spec.md, section 7.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import reference

from gpudedup import _cpu

PLENTY = 1 << 40


def random_keys(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def few_values(count: int, variety: int) -> np.ndarray:
    return random_keys(variety, 1)[np.random.default_rng(2).integers(0, variety, count)]


KEYS: dict[str, Callable[[int], np.ndarray]] = {
    "unlike": lambda n: random_keys(n, 0),
    "a tenth shared": lambda n: np.where(
        random_keys(n, 3) % 10 == 0, few_values(n, max(1, n // 40)), random_keys(n, 4)
    ),
    "pairs": lambda n: few_values(n, max(1, n // 2)),
    "all equal": lambda n: np.full(n, 2**64 - 1, np.uint64),
    "half equal": lambda n: np.where(np.arange(n) % 2 == 0, np.uint64(5), random_keys(n, 5)),
    "equal in the upper half": lambda n: (random_keys(n, 6) % max(1, n // 2)).astype(np.uint64),
    "equal in the lower half": lambda n: (random_keys(n, 7) % max(1, n // 2)).astype(np.uint64) << np.uint64(40),
    "two, in one upper part": lambda n: (np.arange(n) // 3 % 2).astype(np.uint64) + np.uint64(2**63),
}


def expected_band(keys: np.ndarray) -> tuple[list[int], list[int]]:
    """Buckets of two and more by ascending key, members by place."""
    order = np.lexsort((np.arange(len(keys)), keys))
    _, first, lengths = np.unique(keys[order], return_index=True, return_counts=True)
    shared = np.repeat(lengths > 1, lengths)
    assert len(first) == len(lengths)
    return order[shared].tolist(), lengths[lengths > 1].tolist()


def sort_band(keys: np.ndarray, documents: np.ndarray, memory_bytes: int = PLENTY, workers: int = 1) -> Any:
    return _cpu.sort_band(keys, documents, memory_bytes=memory_bytes, workers=workers)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 4097, 60_000])
def test_a_band_is_that_of_the_definition(kind: str, count: int) -> None:
    """Whatever the keys, the memory and the number of workers; documents in an order of their own, some left out."""
    keys = KEYS[kind](count + 10)
    documents = np.random.default_rng(count).permutation(count + 10)[:count].astype(np.uint32)
    members, lengths = expected_band(keys[documents])
    for memory_bytes, workers in ((PLENTY, 1), (PLENTY, 3), (12 * count // 3, 2), (12 * count // 7, 5)):
        band = sort_band(keys, documents, memory_bytes, workers)
        assert [values.tolist() for values in band] == [members, lengths]
        assert [values.dtype for values in band] == [np.uint32, np.uint32]


@pytest.mark.parametrize("kind", ["all equal", "half equal", "equal in the upper half", "a tenth shared"])
def test_more_rows_of_a_part_than_are_put_in_order_beside_it(kind: str) -> None:
    keys = KEYS[kind](2_200_000)
    documents = np.arange(len(keys), dtype=np.uint32)
    members, lengths = expected_band(keys)
    band = sort_band(keys, documents, 4 << 20, 2)
    assert np.array_equal(band[0], members)
    assert np.array_equal(band[1], lengths)


def peak_beyond(call: Callable[[], Any]) -> int:
    """Bytes by which anonymous memory rose at most during the call."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = memory_of("VmHWM")
    kept = call()
    peak = memory_of("VmHWM") - before
    del kept
    return peak


def memory_of(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's own memory would count")
@pytest.mark.parametrize("kind", ["a tenth shared", "pairs", "half equal"])
def test_memory_stays_within_its_bound(kind: str) -> None:
    """Of the rows at once only as many as fit; skewed keys take 12 bytes each, and never more."""
    count = 3_000_000
    keys, documents = KEYS[kind](count), np.arange(count, dtype=np.uint32)
    answer = 4 * len(expected_band(keys)[0])
    spare = 8 << 20  # threads, tables
    whole = peak_beyond(lambda: sort_band(keys, documents))
    part = peak_beyond(lambda: sort_band(keys, documents, 12 * count // 10))
    assert whole < 12 * count + 3 * answer + spare
    assert part < (12 * count // 2 if kind == "half equal" else 12 * count // 10) + 4 * answer + spare


def all_pairs(bands: list[np.ndarray], window: int, allowed: Callable[[int, int], bool]) -> list[tuple[int, int]]:
    """By the words of docs/spec.md, section 7."""
    pairs = set()
    for keys in bands:
        buckets: dict[int, list[int]] = {}
        for place, key in enumerate(keys.tolist()):
            buckets.setdefault(key, []).append(place)
        for members in buckets.values():
            for q, worse in enumerate(members):
                for p, better in enumerate(members[:q]):
                    if (p < window or q - p <= window) and allowed(better, worse):
                        pairs.add((better, worse))
    return sorted(pairs)


def buckets_of(bands: list[Any], count: int, *, memory_bytes: int = PLENTY, **options: Any) -> Any:
    defaults: dict[str, Any] = {"window": 2, "directory": "/", "workers": 2}
    return _cpu.Buckets(bands, count=count, memory_bytes=memory_bytes, **{**defaults, **options})


@pytest.mark.parametrize("window", [1, 2, 7, 64])
@pytest.mark.parametrize("memory_bytes", [PLENTY, 3000, 0])
def test_candidates_are_those_of_the_window_rule(window: int, memory_bytes: int, tmp_path: Any) -> None:
    """In memory, half and wholly in files; with scopes and without."""
    draw = random.Random(window)
    count = 240
    keys = [np.array([draw.randrange(variety) for _ in range(count)], np.uint64) for variety in (5, 60, 10**6, 1)]
    scopes = np.array([draw.randrange(3) for _ in range(count)], np.int32)
    across = np.array([draw.randrange(2) for _ in range(count)], np.int32)
    documents = np.arange(count, dtype=np.uint32)
    bands = [sort_band(band, documents) for band in keys]
    for limits, allowed in (
        ({}, lambda a, b: True),
        ({"scopes": scopes}, lambda a, b: scopes[a] == scopes[b]),
        ({"scopes": scopes, "across": across}, lambda a, b: scopes[a] == scopes[b] and across[a] != across[b]),
        ({"scopes": scopes, "fixed": 100}, lambda a, b: scopes[a] == scopes[b] and b >= 100),
    ):
        options = {**limits, "memory_bytes": memory_bytes, "directory": str(tmp_path)}
        buckets = buckets_of(bands, count, window=window, **options)
        better, worse = buckets.candidates(0, count)
        assert sorted(zip(better.tolist(), worse.tolist(), strict=True)) == all_pairs(keys, window, allowed)
        sizes = [np.unique(band, return_counts=True)[1] for band in keys]
        assert buckets.longest == count
        assert buckets.bounded_buckets == sum((size > 2 * window + 1).sum() for size in sizes)
        assert buckets.bounded_documents == count  # one bucket of the last band holds all
        assert buckets.shared().tolist() == list(range(count))
        assert list(tmp_path.iterdir()) == []  # files have no name: nothing to leave behind


def test_decisions_do_not_depend_on_memory(tmp_path: Any) -> None:
    count = 3000
    documents = np.arange(count, dtype=np.uint32)
    bands = [sort_band(few_values(count, variety), documents) for variety in (40, 900, 5)]
    lanes = np.random.default_rng(1).integers(0, 2, (count, 16)).astype(np.uint32)
    answers = []
    for memory_bytes in (PLENTY, 100_000, 0):
        buckets = buckets_of(bands, count, memory_bytes=memory_bytes, directory=str(tmp_path))
        decision = _cpu.verify(
            buckets, components=False, threshold_ppm=750_000, sets=None, lanes=_cpu.Lanes([[lanes]], 16),
            documents=documents, leader=None, prior=None, workers=2,
        )  # fmt: skip
        answers.append([values.tolist() for values in decision.arrays()])
    assert answers[0] == answers[1] == answers[2]
    assert 100 < sum(keeper != _cpu.NONE for keeper in answers[0][0]) < count


def test_no_room_is_an_os_error(tmp_path: Any) -> None:
    bands = [sort_band(np.zeros(100, np.uint64), np.arange(100, dtype=np.uint32))]
    with pytest.raises(OSError, match="nowhere"):
        buckets_of(bands, 100, memory_bytes=0, directory=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("members", "lengths", "message"),
    [
        ([0, 1], [1, 1], "two members"),
        ([0, 1], [0, 2], "two members"),
        ([0, 1, 2], [2], "add up to less"),
        ([0, 1], [3], "add up to more"),
        ([0, 1], [2, 2], "add up to more"),
        ([], [2**32 - 1], "add up to more"),
        ([0, 5], [2], "names no document"),
        ([0, 2**32 - 1], [2], "names no document"),
        ([1, 0], [2], "must ascend"),
        ([1, 1], [2], "must ascend"),
    ],
)
def test_a_damaged_band_is_refused(members: list[int], lengths: list[int], message: str) -> None:
    whole = (np.arange(4, dtype=np.uint32), np.array([2, 2], np.uint32))
    hurt = (np.array(members, np.uint32), np.array(lengths, np.uint32))
    for bands in ([hurt], [whole, hurt], [hurt, whole]):
        with pytest.raises(ValueError, match=message):
            buckets_of(bands, 5)
    with pytest.raises(ValueError, match=message):
        _cpu.check_band(*hurt, 5)
    _cpu.check_band(*whole, 5)


def test_bands_may_lie_in_read_only_files(tmp_path: Any) -> None:
    band = sort_band(few_values(500, 90), np.arange(500, dtype=np.uint32))
    mapped = []
    for name, values in zip(("members", "lengths"), band, strict=True):
        np.save(tmp_path / name, values)
        mapped.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    expected = [values.tolist() for values in buckets_of([band], 500).candidates(0, 500)]
    assert [values.tolist() for values in buckets_of([tuple(mapped)], 500).candidates(0, 500)] == expected


def test_documents_without_a_key_are_refused() -> None:
    with pytest.raises(ValueError, match="no band key"):
        sort_band(np.zeros(3, np.uint64), np.array([0, 3], np.uint32))


@pytest.mark.parametrize("count", [0, 1, 2, 300, 9000])
@pytest.mark.parametrize("scoped", [False, True])
def test_leaders_are_the_first_of_their_content(count: int, scoped: bool) -> None:
    """Among contents of which many have the 64-bit key that they are grouped by: mix((c_0 + G) xor c_1)."""
    draw = np.random.default_rng(count)
    first = draw.integers(0, max(1, count // 3), count).astype(np.uint64)
    golden = np.uint64(0x9E3779B97F4A7C15)
    second = np.where(draw.random(count) < 0.5, (first + golden) ^ np.uint64(12345), first % np.uint64(2))
    content = np.stack([first, second], axis=1)
    within = draw.integers(0, 2, count).astype(np.int32) if scoped else None
    across = draw.integers(0, 2, count).astype(np.int32) if scoped else None
    order = draw.permutation(count).astype(np.uint32)
    leaders: dict[tuple[int, ...], int] = {}
    expected = []
    for place, document in enumerate(order.tolist()):
        scope = (within[document], across[document]) if within is not None and across is not None else ()
        expected.append(leaders.setdefault((*content[document].tolist(), *scope), place))
    for workers in (1, 3):
        leader = _cpu.group_content(order, content, within=within, across=across, workers=workers)
        assert leader.tolist() == expected


def grouped(lanes: np.ndarray, width: int) -> list[np.ndarray]:
    return [lanes[:, first : first + width].copy() for first in range(0, lanes.shape[1], width)]


@pytest.mark.parametrize(("num_perm", "rows"), [(1, 1), (8, 3), (20, 5), (20, 7), (128, 10), (130, 64)])
@pytest.mark.parametrize("scoped", [False, True])
def test_keys_of_one_band_from_groups_of_lanes(num_perm: int, rows: int, scoped: bool) -> None:
    """Bands that begin and end anywhere in a group, in batches of other sizes and widths, read-only ones too."""
    count = 70
    lanes = np.random.default_rng(rows).integers(0, 2**32, (count, num_perm), dtype=np.uint32)
    scopes = random_keys(count, 9) if scoped else None
    batches = [grouped(lanes[:1], 8), grouped(lanes[1:1], 8), grouped(lanes[1:40], 8), grouped(lanes[40:], num_perm)]
    for group in batches[2]:
        group.flags.writeable = False
    expected = [
        reference.band_keys(row, num_perm // rows, rows, scope)
        for row, scope in zip(lanes.tolist(), [0] * count if scopes is None else scopes.tolist(), strict=True)
    ]
    every = _cpu.Lanes(batches, num_perm)
    for band in range(num_perm // rows):
        keys = every.band_keys(band, rows=rows, scope_keys=scopes, workers=2)
        assert keys.tolist() == [row[band] for row in expected]


def test_keys_of_many_documents_by_several_workers() -> None:
    lanes = np.random.default_rng(1).integers(0, 2**32, (9000, 20), dtype=np.uint32)
    batches = [grouped(part, 8) for part in np.array_split(lanes, 7)]
    expected = [reference.band_keys(row, 4, 5) for row in lanes.tolist()]
    for band in range(4):
        keys = _cpu.Lanes(batches, 20).band_keys(band, rows=5, workers=3)
        assert keys.tolist() == [row[band] for row in expected]


@pytest.mark.parametrize("threshold_ppm", [1, 500_000, 750_000, 999_999, 1_000_000])
def test_lanes_are_compared_where_they_lie(threshold_ppm: int) -> None:
    """Of documents in one batch and in two, of equal and of unequal widths: the share of equal lanes, to the last."""
    count, num_perm = 60, 21
    draw = np.random.default_rng(4)
    lanes = np.where(
        draw.random((count, num_perm)) < draw.random((count, 1)), 7, draw.integers(0, 3, (count, num_perm))
    )
    lanes = lanes.astype(np.uint32)
    batches = [grouped(lanes[:20], 8), grouped(lanes[20:35], 8), grouped(lanes[35:], 5)]
    documents = draw.permutation(count).astype(np.uint32)
    buckets = buckets_of([sort_band(np.zeros(count, np.uint64), documents)], count, window=count)
    decision = _cpu.verify(
        buckets, components=False, threshold_ppm=threshold_ppm, sets=None, lanes=_cpu.Lanes(batches, num_perm),
        documents=documents, leader=None, prior=None, workers=2,
    )  # fmt: skip
    ranked = lanes[documents]
    kept: list[int] = []
    expected = []
    for document in range(count):
        shared = {other: int((ranked[other] == ranked[document]).sum()) for other in kept}
        keeper = next((other for other in kept if shared[other] * 10**6 >= threshold_ppm * num_perm), _cpu.NONE)
        expected.append((keeper, *((shared[keeper], num_perm) if keeper != _cpu.NONE else (0, 0))))
        kept += [document] if keeper == _cpu.NONE else []
    assert list(zip(*(values.tolist() for values in decision.arrays()), strict=True)) == expected
    assert sum(keeper != _cpu.NONE for keeper, *_ in expected) > 0 or threshold_ppm > 900_000


def keepers_by_definition(pairs: set[tuple[int, int]], count: int, fixed: int, components: bool) -> list[int]:
    """[count], NONE for what is kept: from similar pairs, by the words of docs/spec.md, sections 11 and 12."""
    own = {(better, worse) for better, worse in pairs if worse >= fixed}
    keeper = [_cpu.NONE] * count
    if not components:
        for document in range(fixed, count):
            kept = [better for better, worse in own if worse == document and keeper[better] == _cpu.NONE]
            keeper[document] = min(kept, default=_cpu.NONE)
        return keeper
    part = list(range(count))
    for _ in range(count):
        for better, worse in own:
            part[better] = part[worse] = min(part[better], part[worse])
    for document in range(fixed, count):
        if part[document] != document:
            keeper[document] = part[document]
    return keeper


@pytest.mark.parametrize("components", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_documents_of_earlier_runs_stay(components: bool, seed: int) -> None:
    """Not compared with each other, keepers of others; with and without `across`, where equal contents are similar."""
    draw = random.Random(seed)
    count, window = 60, draw.choice([1, 3, 64])
    fixed = draw.choice([0, 1, 20, 45, count])
    sets = [{draw.randrange(5) * 100 + i for i in draw.sample(range(12), 9)} for _ in range(count)]
    across = leader = content = None
    if draw.random() < 0.5:
        across = np.array([draw.randrange(4) for _ in range(count)], np.int32)
        content = [draw.randrange(9) if draw.random() < 0.4 else 100 + i for i in range(count)]
        of_scope: dict[tuple[int, int], int] = {}
        for i in range(count):  # equal ones of equal value are no representatives: take another content
            if of_scope.setdefault((content[i], int(across[i])), i) != i:
                content[i] = 100 + i
        first: dict[int, int] = {}
        leader = np.array([first.setdefault(each, i) for i, each in enumerate(content)], np.uint32)

    def allowed(better: int, worse: int) -> bool:
        return worse >= fixed and (across is None or bool(across[better] != across[worse]))

    def equal(better: int, worse: int) -> bool:
        return content is not None and content[better] == content[worse]

    keys = [np.array([draw.randrange(variety) for _ in range(count)], np.uint64) for variety in (4, 30)]
    documents = np.arange(count, dtype=np.uint32)
    bands = [sort_band(band, documents) for band in keys]
    candidates = set(all_pairs(keys, window, allowed))
    candidates |= {(a, b) for b in range(fixed, count) for a in range(b) if equal(a, b)}
    store = _cpu.SetStore(count=count, memory_bytes=PLENTY, directory="/")
    hashes = np.array([value for members in sets for value in members], np.uint32)
    offsets = np.cumsum([0, *map(len, sets)]).astype(np.int64)
    store.add(documents, documents, hashes, offsets, workers=1)

    def jaccard(a: int, b: int) -> tuple[int, int]:
        return (1, 1) if equal(a, b) else (len(sets[a] & sets[b]), len(sets[a] | sets[b]))

    buckets = buckets_of(bands, count, window=window, across=across, fixed=fixed)
    prior = None
    for ppm in (500_000, 800_000):
        decision = _cpu.verify(
            buckets, components=components, threshold_ppm=ppm, sets=store, lanes=None, documents=documents,
            leader=leader, prior=prior, workers=2,
        )  # fmt: skip
        similar = {pair for pair in candidates if jaccard(*pair)[0] * 10**6 >= ppm * jaccard(*pair)[1]}
        expected = keepers_by_definition(similar, count, fixed, components)
        keeper, part, whole = (values.tolist() for values in decision.arrays())
        assert keeper == expected
        for document in range(count):
            pair = (keeper[document], document)
            measured = jaccard(*pair) if pair in candidates else (0, 0)
            assert (part[document], whole[document]) == measured
        if not components:
            assert all(document >= fixed or keeper[document] == _cpu.NONE for document in range(count))
            needed = set(_cpu.undecided_documents(buckets, decision).tolist())
            assert needed <= set(buckets.shared().tolist())
            prior = decision
