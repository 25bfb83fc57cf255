"""match and verify of the CUDA backend on the emulated device, against the reference."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import emulator
import numpy as np
import pytest
import reference
from emulated_device import EmulatedDevice, EmulatedStream, Faults

from gpudedup import _cpu
from gpudedup.backends.base import Band
from gpudedup.backends.cuda import device as memory
from gpudedup.backends.cuda import ring as pinned
from gpudedup.backends.cuda import verify as rounds
from gpudedup.backends.cuda.backend import CudaBackend
from gpudedup.backends.cuda.device import sent
from gpudedup.backends.cuda.lanes import DeviceLanes
from gpudedup.backends.cuda.match import DeviceBuckets, sort_band
from gpudedup.backends.cuda.ring import Ring
from gpudedup.backends.cuda.sets import DeviceSets
from gpudedup.backends.cuda.verify import Compare, CompareLanes, CompareNothing, CompareSets, Keepers
from gpudedup.errors import DeviceMemoryError
from gpudedup.params import Params

pytest.importorskip("numba", reason="the emulated device runs loop bodies by Numba")
ORDERS = ("forward", "reverse", "random")
NONE = 2**32 - 1


@pytest.fixture(autouse=True)
def _guards_around_each_array(monkeypatch: pytest.MonkeyPatch) -> None:
    """No blocks, but an allocation for each array of those that would lie in them."""
    monkeypatch.setattr(memory, "BLOCK_PART", 1 << 60)


def random_keys(count: int, bands: int, variety: int, seed: int) -> np.ndarray:
    """uint64[bands, count]; few values, so that buckets are long, of which some differ in high or low bits alone."""
    draw = np.random.default_rng(seed)
    keys = draw.integers(0, variety, (bands, count)).astype(np.uint64)
    return np.where(keys % np.uint64(3) == 0, keys << np.uint64(61), keys)


def buckets_of(
    device: EmulatedDevice,
    stream: EmulatedStream,
    keys: np.ndarray,
    documents: np.ndarray,
    *,
    window: int = 2,
    **scope: Any,
) -> DeviceBuckets:
    ring = Ring(device, stream, workers=1)
    on_device = ring.sent(documents)
    bands = [sort_band(ring, band, on_device) for band in keys]
    return joined(device, stream, bands, len(documents), window=window, **scope)


def joined(
    device: EmulatedDevice,
    stream: EmulatedStream,
    bands: list[Band],
    count: int,
    *,
    window: int,
    fixed: int = 0,
    **scope: Any,
) -> DeviceBuckets:
    scopes, across = scope.get("scopes"), scope.get("across")

    def host() -> _cpu.Buckets:
        pairs = [(band.members, band.lengths) for band in bands]
        limits = {"scopes": scopes, "across": across, "window": window, "fixed": fixed}
        return _cpu.Buckets(pairs, count=count, **limits, memory_bytes=1 << 20, directory="/", workers=1)

    return DeviceBuckets(
        Ring(device, stream, workers=1), bands, count, scopes, across, window=window, fixed=fixed, host=host
    )


def reference_pairs(keys: Iterable[list[int]], window: int, allowed: Any) -> set[tuple[int, int]]:
    """By the words of docs/spec.md, section 7."""
    pairs = set()
    for band in keys:
        buckets: dict[int, list[int]] = {}
        for document, key in enumerate(band):
            buckets.setdefault(key, []).append(document)
        for members in buckets.values():
            for q, worse in enumerate(members):
                for p, better in enumerate(members[:q]):
                    if (p < window or q - p <= window) and allowed(better, worse):
                        pairs.add((better, worse))
    return pairs


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("count", "variety", "window"), [(0, 1, 2), (1, 1, 2), (2, 1, 1), (40, 1, 3), (40, 10**6, 2), (150, 12, 2)]
)
def test_candidates_are_those_of_the_window_rule(order: Any, count: int, variety: int, window: int) -> None:
    keys = random_keys(count + 30, 4, variety, count)
    draw = random.Random(count)
    documents = np.array(draw.sample(range(count + 30), count), np.uint32)
    scopes = np.array([draw.randrange(-1, 3) for _ in range(count)], np.int32)
    across = np.array([draw.randrange(-1, 2) for _ in range(count)], np.int32)
    ranked = [[band[d] for d in documents.tolist()] for band in keys.tolist()]
    device = EmulatedDevice(order=order, timing="random", seed=count)
    stream = device.stream()
    for limits, allowed in (
        ({}, lambda a, b: True),
        ({"scopes": scopes}, lambda a, b: scopes[a] == scopes[b]),
        ({"scopes": scopes, "across": across}, lambda a, b: scopes[a] == scopes[b] and across[a] != across[b]),
        ({"fixed": count // 2}, lambda a, b: b >= count // 2),
        ({"fixed": count}, lambda a, b: False),
    ):
        buckets = buckets_of(device, stream, keys, documents, window=window, **limits)
        expected = reference_pairs(ranked, window, allowed)
        assert pairs(buckets.candidates(0, count)) == sorted(expected)
        middle = count // 3
        halves = pairs(buckets.candidates(0, middle)) + pairs(buckets.candidates(middle, count))
        assert sorted(halves) == sorted(expected)
        assert pairs(buckets.on_host().candidates(0, count)) == sorted(expected)
        sizes = [len(m) for band in ranked for m in bucket_lists(band)]
        bounded = [m for band in ranked for m in bucket_lists(band) if len(m) > 2 * window + 1]
        assert buckets.longest == max(sizes, default=0)
        assert buckets.bounded_buckets == len(bounded)
        assert buckets.bounded_documents == len({d for m in bounded for d in m})
        own = range(limits.get("fixed", 0), count)  # type: ignore[arg-type]
        shared = {d for b in ranked for m in bucket_lists(b) if len(m) > 1 and m[-1] in own for d in m}
        assert buckets.shared().tolist() == sorted(shared)
        assert buckets.on_host().shared().tolist() == sorted(shared)
    device.check()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("count", "variety"), [(0, 1), (1, 1), (2, 1), (90, 1), (90, 10**6), (300, 40)])
def test_a_band_is_that_of_the_definition(order: Any, count: int, variety: int) -> None:
    """Buckets by ascending key; of the keys some differ in their lowest or highest bits alone."""
    [keys] = random_keys(count + 20, 1, variety, seed=count)
    documents = np.array(random.Random(count).sample(range(count + 20), count), np.uint32)
    device = EmulatedDevice(order=order, timing="random", seed=count)
    ring = Ring(device, device.stream(), workers=1)
    band = sort_band(ring, keys, ring.sent(documents))
    buckets: dict[int, list[int]] = {}
    for place, key in enumerate(keys[documents].tolist()):
        buckets.setdefault(key, []).append(place)
    expected = [members for _, members in sorted(buckets.items()) if len(members) > 1]
    assert band.members.tolist() == [member for members in expected for member in members]
    assert band.lengths.tolist() == [len(members) for members in expected]
    assert (band.members.dtype, band.lengths.dtype) == (np.uint32, np.uint32)
    device.check()


@pytest.mark.parametrize(
    ("members", "lengths"),
    [
        ([0, 1], [1, 1]),
        ([0, 1, 2], [2]),
        ([0, 1], [3]),
        ([0, 5], [2]),
        ([1, 0], [2]),
        ([1, 1], [2]),
        ([0], [2**32 - 1]),
    ],
)
def test_a_damaged_band_is_refused(members: list[int], lengths: list[int]) -> None:
    device = EmulatedDevice()
    bands = [Band(np.arange(4, dtype=np.uint32), np.array([2, 2], np.uint32))]
    bands.append(Band(np.array(members, np.uint32), np.array(lengths, np.uint32)))
    with pytest.raises(ValueError, match=r"member|lengths|bucket"):
        joined(device, device.stream(), bands, 5, window=1)
    device.check()


def pairs(arrays: tuple[np.ndarray, np.ndarray]) -> list[tuple[int, int]]:
    better, worse = arrays
    return sorted(zip(better.tolist(), worse.tolist(), strict=True))


def bucket_lists(band: list[int]) -> list[list[int]]:
    buckets: dict[int, list[int]] = {}
    for document, key in enumerate(band):
        buckets.setdefault(key, []).append(document)
    return list(buckets.values())


def families(count: int, seed: int, largest: int) -> list[set[int]]:
    """Sets in families that share most of their members; some empty overlaps, some equal."""
    draw = random.Random(seed)
    sets: list[set[int]] = []
    for _ in range(count):
        if sets and draw.random() < 0.6:
            base = set(draw.choice(sets))
            for _ in range(draw.randrange(1 + len(base) // 4)):
                base.discard(draw.choice(sorted(base)))
                base.add(draw.randrange(2**32))
            sets.append(base or {1})
        else:
            sets.append({draw.randrange(2**32) for _ in range(draw.choice([1, 2, 31, 32, 33, 65, largest]))})
    return sets


def store_of(device: EmulatedDevice, stream: EmulatedStream, sets: list[set[int]], directory: Path) -> DeviceSets:
    host = _cpu.SetStore(count=len(sets), memory_bytes=1 << 20, directory=str(directory))
    store = DeviceSets(Ring(device, stream, workers=1), host, len(sets), workers=1)
    draw = random.Random(len(sets))
    for low in range(0, len(sets), 17):
        numbers = list(range(low, min(low + 17, len(sets))))
        rows = list(range(len(numbers)))
        draw.shuffle(rows)  # numbers[i] is the batch's row rows[i], among rows that nobody asked for
        by_row = {row: number for number, row in zip(numbers, rows, strict=True)}
        lists: list[list[int]] = [[7, 7, 9]]
        for row in range(len(rows)):
            members = [*sets[by_row[row]], *list(sets[by_row[row]])[:3]]
            draw.shuffle(members)
            lists.append(members)
        hashes = np.array([value for members in lists for value in members], np.uint32)
        offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
        places = np.array(rows, np.uint32) + 1
        store.add(np.array(numbers, np.uint32), places.astype(np.uint32), hashes, offsets, workers=1)
    return store


def expected_decision(
    candidates: set[tuple[int, int]], count: int, similarity: Any, ppm: int, fixed: int = 0
) -> tuple[list[int], list[int], list[int]]:
    """By the words of docs/spec.md, sections 9, 11 and 12; keepers, parts and wholes."""
    by_worse: dict[int, list[int]] = {}
    for better, worse in candidates:
        by_worse.setdefault(worse, []).append(better)
    keepers, parts, wholes = [NONE] * count, [0] * count, [0] * count
    for document in range(fixed, count):
        for better in sorted(by_worse.get(document, [])):
            if keepers[better] != NONE:
                continue
            part, whole = similarity(better, document)
            if part * 10**6 >= ppm * whole:
                keepers[document], parts[document], wholes[document] = better, part, whole
                break
    return keepers, parts, wholes


def jaccard(left: set[int], right: set[int]) -> tuple[int, int]:
    return len(left & right), len(left | right)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("count", "variety", "largest", "fixed"),
    [(1, 1, 40, 0), (60, 1, 200, 0), (200, 30, 100, 0), (1, 1, 40, 1), (60, 1, 100, 25), (200, 30, 100, 90)],
)
def test_removals_by_sets(
    order: Any, count: int, variety: int, largest: int, fixed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "FIRST_BLOCK", 8)
    monkeypatch.setattr(rounds, "LARGEST_BLOCK", 50)
    keys = random_keys(count, 3, variety, seed=count)
    documents = np.arange(count, dtype=np.uint32)
    sets = families(count, count, largest)
    device = EmulatedDevice(order=order, timing="random", seed=count)
    stream = device.stream()
    buckets = buckets_of(device, stream, keys, documents, window=4, fixed=fixed)
    store = store_of(device, stream, sets, tmp_path)
    candidates = reference_pairs(keys.tolist(), 4, lambda a, b: True)
    for ppm in (500_000, 800_000):
        decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, ppm), None).run()
        expected = expected_decision(candidates, count, lambda a, b: jaccard(sets[a], sets[b]), ppm, fixed)
        assert [array.tolist() for array in decision.arrays()] == list(expected)
    device.check()
    host = store.on_host()
    assert [set(host.get(i).tolist()) for i in range(count)] == sets


DIVIDE = """
#include "cuda/intersect.h"
using namespace gpudedup;
extern "C" __global__ void divide(const uint64_t* sizes, uint32_t count, uint64_t ppm, uint64_t reciprocal,
                                  uint64_t* needed) {
  if (threadIdx.x < count) needed[threadIdx.x] = needed_intersection(sizes[threadIdx.x], 0, Threshold{ppm, reciprocal});
}
"""


@pytest.mark.parametrize("ppm", [1, 2, 3, 499_999, 500_000, 750_000, 800_000, 999_999, 1_000_000])
def test_the_least_intersection_without_a_division(ppm: int) -> None:
    """Against exact quotients, around multiples of the divisor where one too many or too few shows."""
    divisor = 10**6 + ppm
    draw = random.Random(ppm)
    around = [
        max(0, divisor * draw.randrange(2**33 // divisor + 1) // ppm + step) for _ in range(50) for step in (-1, 0, 1)
    ]
    sizes = np.array([0, 1, 2, 2**33 - 2, *(size for size in around if size < 2**33)], np.uint64)
    needed = np.zeros(len(sizes), np.uint64)
    reciprocal = np.uint64(2**64 // divisor)
    emulator.build(DIVIDE).launch("divide", 1, 256, [sizes, np.uint32(len(sizes)), np.uint64(ppm), reciprocal, needed])
    assert needed.tolist() == [-(-ppm * size // divisor) for size in sizes.tolist()]


class NamingDevice(EmulatedDevice):
    """Counts launches by kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = Counter[str]()

    def launch(self, kernel: str, *args: Any) -> None:
        self.launched[kernel] += 1
        super().launch(kernel, *args)


@pytest.mark.parametrize("kernel", ["advance_sets", "advance_lanes", "advance_unverified"])
def test_verify_waits_once_a_round_and_twice_a_block(
    kernel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "FIRST_BLOCK", 8)
    monkeypatch.setattr(rounds, "LARGEST_BLOCK", 50)
    count, blocks = 200, 6  # of 8, 16, 32, 50, 50 and 44 documents
    device = NamingDevice()
    stream = device.stream()
    buckets = buckets_of(device, stream, random_keys(count, 3, 30, seed=1), np.arange(count, dtype=np.uint32), window=4)
    compare: Compare = CompareNothing()
    if kernel == "advance_sets":
        compare = CompareSets(store_of(device, stream, families(count, count, 100), tmp_path), 500_000)
    elif kernel == "advance_lanes":
        lanes = np.random.default_rng(2).integers(0, 2, (count, 20), dtype=np.uint32)
        more: Any = {"memory_bytes": 0, "directory": "/", "workers": 1}
        numbers = np.arange(count, dtype=np.uint32)
        held = DeviceLanes(Ring(device, stream, workers=1), [in_groups(lanes, 8)], numbers, 20, **more)
        compare = CompareLanes(held, sent(device, numbers, stream), 500_000)
    keepers = Keepers(Ring(device, stream, workers=1), buckets, compare, None)
    counters = device.counters
    copies, waits, allocations = counters.copies, counters.synchronisations, counters.allocations
    keepers.run()
    rounds_run, results = device.launched[kernel], 4
    assert rounds_run > blocks
    assert counters.synchronisations - waits == rounds_run + 2 * blocks + results
    assert counters.allocations - allocations == 15 * blocks  # however many rounds a block has
    assert counters.copies - copies == blocks


@pytest.mark.parametrize("timing", ["late", "early", "random"])
def test_what_was_uploaded_may_change_at_once(timing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of any size go through the ring as they were, and no copy is overtaken by one of the next round."""
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 64)
    device = EmulatedDevice(timing=timing, seed=3)
    ring = Ring(device, device.stream(), workers=1)
    sizes = [0, 1, 7, 8, 9, 16, 100, 3, 1000, 5]
    expected = [np.arange(size, dtype=np.uint64) + np.uint64(1000 * size) for size in sizes]
    targets = []
    for values in expected:
        given = values.copy()
        targets.append(ring.sent(given))
        given[:] = 0
    assert device.counters.host_allocations == pinned.SEGMENTS
    for target, values in zip(targets, expected, strict=True):
        found = np.zeros(len(values), np.uint64)
        device.download(target, found, ring.stream)
        ring.stream.synchronize()
        assert found.tolist() == values.tolist()
    device.check()


@pytest.mark.parametrize("timing", ["late", "early", "random"])
def test_what_comes_down_goes_through_the_ring(timing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of any size, between others that go up; a wait for each segment, and one more where it was used before."""
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 64)
    device = EmulatedDevice(timing=timing, seed=4)
    ring = Ring(device, device.stream(), workers=1)
    held = []
    for size in [0, 1, 7, 8, 9, 16, 24, 32, 33, 40, 100, 3, 1000, 5]:
        values = np.arange(size, dtype=np.uint64) + np.uint64(1000 * size)
        target = ring.sent(values)
        before = device.counters.synchronisations
        assert ring.fetched(target).tolist() == values.tolist()
        assert device.counters.synchronisations - before <= max(1, 2 * -(-size // 8))
        held.append((target, values))
    for target, values in held:
        assert ring.fetched(target).tolist() == values.tolist()
    assert device.counters.host_allocations == pinned.SEGMENTS
    device.check()


def test_all_segments_are_under_way_before_one_is_copied_out_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 64)
    device = EmulatedDevice()
    ring = Ring(device, device.stream(), workers=1)
    array, downloads = ring.sent(np.arange(48, dtype=np.uint64)), []

    def copy_values(*given: Any, **more: Any) -> None:
        downloads.append(device.counters.downloads)
        _cpu.copy_values(*given, **more)

    monkeypatch.setattr(pinned, "_cpu", SimpleNamespace(copy_values=copy_values))
    assert ring.fetched(array).tolist() == list(range(48))
    assert downloads == [4, 5, 6, 6, 6, 6]


@pytest.mark.parametrize("fault", range(1, 5))
def test_without_pinned_memory_values_come_down_by_the_driver(fault: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 64)
    device = EmulatedDevice(timing="random", faults=Faults(host_allocation=fault))
    ring = Ring(device, device.stream(), workers=1)
    values = np.arange(500, dtype=np.uint64)
    assert ring.fetched(sent(device, values, ring.stream)).tolist() == values.tolist()


def test_documents_go_up_once_for_all_bands() -> None:
    device = EmulatedDevice()
    backend = CudaBackend(Params(num_perm=8, bands=4, rows=2), device, "as asked")
    keys = random_keys(400, 4, 30, seed=4)
    for documents in (np.arange(400, dtype=np.uint32)[::-1].copy(), np.arange(0, 400, 3, dtype=np.uint32)):
        before = device.counters.bytes_up
        for band in keys:
            given = backend.band(band, documents, memory_bytes=1 << 20)
            ranked = band[documents].tolist()
            by_key = sorted(range(len(ranked)), key=ranked.__getitem__)
            assert given.members.tolist() == [place for place in by_key if ranked.count(ranked[place]) > 1]
        assert device.counters.bytes_up - before == keys.nbytes + documents.nbytes


def test_buckets_go_up_without_a_wait_for_each_band() -> None:
    device = EmulatedDevice()
    stream = device.stream()
    waits = []
    for bands in (2, 9):
        keys, documents = random_keys(200, bands, 30, seed=4), np.arange(200, dtype=np.uint32)
        of_band = [_cpu.sort_band(band, documents, memory_bytes=1 << 20, workers=1) for band in keys]
        before = device.counters.synchronisations
        joined(device, stream, [Band(*pair) for pair in of_band], 200, window=64)
        waits.append(device.counters.synchronisations - before)
    assert waits == [1, 1]  # for those that share a bucket


def test_arrays_of_blocks_lie_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 1 KiB, of which 4 KiB of the device's 8 are not to be taken."""
    monkeypatch.setattr(memory, "BLOCK_PART", 8)
    device, waits = EmulatedDevice(memory_bytes=8192), []
    blocks = memory.Blocks(device, 4096, lambda: waits.append(device.used_bytes))
    arrays = [blocks.alloc(size, np.uint32) for size in (64, 1, 0, 65)]
    assert [array.size for array in arrays] == [64, 1, 0, 65]
    assert [array.address - arrays[0].address for array in arrays[:3]] == [0, 256, 512]
    assert (device.counters.allocations, device.used_bytes) == (2, 2048)  # 65 values had no room in the first
    arrays.append(blocks.alloc(512, np.uint32))
    assert (device.counters.allocations, device.used_bytes, waits) == (3, 4096, [])
    with pytest.raises(DeviceMemoryError, match="less than 4096 bytes"):
        blocks.alloc(1, np.uint32)
    assert waits == [4096]
    del arrays[:3]
    assert device.used_bytes == 3072  # the first block went with its last array
    arrays.clear()
    assert device.used_bytes == 2048  # the newest is there for the next
    blocks.clear()
    assert device.used_bytes == 0


@pytest.mark.parametrize(("part", "allocations"), [(1 << 60, 10), (128, 0)])
def test_adding_sets_waits_for_nothing(
    part: int, allocations: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In steady state: no pinned memory is taken, and on the device only what stays there, block by block."""
    monkeypatch.setattr(memory, "BLOCK_PART", part)
    device = EmulatedDevice()
    host = _cpu.SetStore(count=60, memory_bytes=0, directory=str(tmp_path))
    store = DeviceSets(Ring(device, device.stream(), workers=1), host, 60, workers=1)

    def add(batch: int) -> None:
        numbers = np.arange(4 * batch, 4 * batch + 4, dtype=np.uint32)
        hashes = np.arange(batch, batch + 20, dtype=np.uint32)
        store.add(numbers, np.arange(4, dtype=np.uint32), hashes, np.array([0, 5, 9, 9, 20]), workers=1)

    def asked() -> tuple[int, ...]:
        now = device.counters
        return now.allocations, now.host_allocations, now.synchronisations, now.launches, now.uploads, now.sorts

    for batch in range(3):
        add(batch)
    before = asked()
    for batch in range(3, 13):
        add(batch)
    asked_since = [after - was for after, was in zip(asked(), before, strict=True)]
    assert asked_since == [allocations, 0, 0, 40, 40, 10]
    store.trim()
    assert store.on_host() is host
    for batch in (0, 3, 12):
        found = [host.get(4 * batch + row).tolist() for row in range(4)]
        assert found == [list(range(batch + low, batch + high)) for low, high in ((0, 5), (5, 9), (9, 9), (9, 20))]


@pytest.mark.parametrize("order", ORDERS)
def test_large_sets_are_compared_by_the_whole_device(
    order: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sets around and above LARGE_SET of decide.cu, some of whose pairs are similar, unlike, or of unlike size."""
    monkeypatch.setattr(rounds, "MEASURE_BLOCKS", 3)
    draw = random.Random(2)
    base = [draw.randrange(2**32) for _ in range(28_000)]
    # The third waits for the second after it was measured against the first.
    sizes = [
        (0, 17_000),
        (11_000, 28_000),
        (8_000, 28_000),
        (0, 16_384),
        (0, 16_385),
        (0, 20_000),
        (9_000, 20_000),
        (500, 20_000),
        (0, 400),
        (3, 17_000),
        (0, 19_999),
    ]
    sets = [set(base[first:last]) for first, last in sizes]
    keys = np.zeros((1, len(sets)), np.uint64)
    device = EmulatedDevice(order=order, timing="random")
    stream = device.stream()
    buckets = buckets_of(device, stream, keys, np.arange(len(sets), dtype=np.uint32), window=9)
    store = store_of(device, stream, sets, tmp_path)
    candidates = reference_pairs(keys.tolist(), 9, lambda a, b: True)
    for ppm in (550_000, 960_000):
        decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, ppm), None).run()
        expected = expected_decision(candidates, len(sets), lambda a, b: jaccard(sets[a], sets[b]), ppm)
        assert [array.tolist() for array in decision.arrays()] == list(expected)


def in_groups(lanes: np.ndarray, width: int) -> list[np.ndarray]:
    """As a run directory has them in columns, or as one array."""
    return [lanes[:, first : first + width].copy() for first in range(0, lanes.shape[1], width)]


def lanes_of(
    device: EmulatedDevice, lanes: Iterable[list[np.ndarray]], numbers: np.ndarray, num_perm: int, workers: int = 1
) -> DeviceLanes:
    ring = Ring(device, device.stream(), workers=workers)
    more: Any = {"memory_bytes": 1 << 30, "directory": "/", "workers": workers}
    return DeviceLanes(ring, lanes, numbers, num_perm, **more)


@pytest.mark.parametrize("num_perm", [1, 8, 20, 64, 128, 130, 300])
@pytest.mark.parametrize(("segment", "workers"), [(1 << 24, 1), (1 << 24, 3), (4096, 2)])
def test_lanes_lie_in_groups_of_eight(
    num_perm: int, segment: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the widths of batches, and however they are cut on their way; on the host again as they were."""
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", segment)
    draw = np.random.default_rng(num_perm)
    lanes = draw.integers(0, 2**32, (230, num_perm), dtype=np.uint32)
    batches = [in_groups(lanes[:90], 8), in_groups(lanes[90:91], 8), in_groups(lanes[91:91], 8)]
    batches += [[lanes[91:160]], in_groups(lanes[160:], 16)]
    for chosen in (np.arange(230), np.flatnonzero(draw.random(230) < 0.3), np.array([229]), np.zeros(0)):
        numbers = chosen.astype(np.uint32)
        device = EmulatedDevice(timing="random")
        found = lanes_of(device, iter(batches), numbers, num_perm, workers)
        assert len(found) == len(numbers)
        on_host = found.on_host()
        np.testing.assert_array_equal(on_host[: len(numbers)], lanes[numbers])
        on_device = np.zeros(found.values.size, np.uint32)
        stream = device.stream()
        device.download(found.values, on_device, stream)
        stream.synchronize()
        expected = [lanes[numbers, first : first + 8].reshape(-1) for first in range(0, num_perm, 8)]
        assert on_device.tolist() == [value for group in expected for value in group.tolist()]
        device.check()


def test_groups_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="not 5"):
        lanes_of(EmulatedDevice(), [in_groups(np.zeros((3, 20), np.uint32), 5)], np.arange(3, dtype=np.uint32), 20)


def test_lanes_go_up_without_a_wait_and_none_goes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four segments of 32 documents: one copy for each group of eight lanes and segment, and no memory but the lanes
    themselves and the pinned ring. From the fifth on, one wait for the oldest."""
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 32 * 4 * 64)
    lanes = np.arange(400 * 64, dtype=np.uint32).reshape(400, 64)
    for segments, waits in ((4, 0), (9, 5)):
        count = 32 * segments
        device = EmulatedDevice()
        lanes_of(
            device, [in_groups(part, 8) for part in np.array_split(lanes, 7)], np.arange(count, dtype=np.uint32), 64
        )
        asked = device.counters
        assert (asked.synchronisations, asked.allocations, asked.host_allocations) == (waits, 1, 4)
        assert (asked.uploads, asked.bytes_up, asked.bytes_down) == (8 * segments, 4 * 64 * count, 0)


def test_no_room_for_lanes_is_known_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can be read once: on the device or on the host."""
    monkeypatch.setattr(pinned, "SEGMENT_BYTES", 4 * 64)

    def unread() -> Iterator[list[np.ndarray]]:
        raise AssertionError("lanes were read")
        yield

    faults = [Faults(allocation=1), *(Faults(host_allocation=number) for number in (1, 2, 3, 4))]
    for fault in faults:
        with pytest.raises(DeviceMemoryError):
            lanes_of(EmulatedDevice(faults=fault), unread(), np.arange(40, dtype=np.uint32), 8)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("num_perm", [1, 40, 128, 131, 300])
def test_removals_by_lanes_and_unverified(order: Any, num_perm: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "FIRST_BLOCK", 16)
    draw = np.random.default_rng(5)
    lanes = draw.integers(0, 3, (120, num_perm)).astype(np.uint32)
    near = draw.integers(0, 20, 120)
    lanes[near < 10] = lanes[near[near < 10]]  # and some are alike but for a few of their last lanes
    last = lanes[:, -num_perm // 3 :]
    last[...] = np.where(draw.random(last.shape) < draw.random(120)[:, None] - 0.4, 7 + last, last)
    keys = random_keys(120, 3, 9, seed=1)
    documents = draw.permutation(120).astype(np.uint32)[:100]
    device = EmulatedDevice(order=order, timing="random")
    stream = device.stream()
    buckets = buckets_of(device, stream, keys, documents, window=4)
    ranked = [[band[d] for d in documents.tolist()] for band in keys.tolist()]
    candidates = reference_pairs(ranked, 4, lambda a, b: True)
    more: Any = {"memory_bytes": 0, "directory": "/", "workers": 2}
    ring = Ring(device, stream, workers=2)
    of_all = DeviceLanes(ring, [in_groups(lanes, 8)], np.arange(120, dtype=np.uint32), num_perm, **more)
    on_device = sent(device, documents, stream)
    rows = lanes[documents]
    for ppm in (420_000, 650_000, 1_000_000):
        decision = Keepers(Ring(device, stream, workers=1), buckets, CompareLanes(of_all, on_device, ppm), None).run()
        expected = expected_decision(candidates, 100, lambda a, b: (int((rows[a] == rows[b]).sum()), num_perm), ppm)
        assert [array.tolist() for array in decision.arrays()] == list(expected)
        assert 0 < sum(keeper != NONE for keeper in expected[0]) < 100
    decision = Keepers(Ring(device, stream, workers=1), buckets, CompareNothing(), None).run()
    assert decision.keeper.tolist() == expected_decision(candidates, 100, lambda a, b: (0, 0), 0)[0]
    assert decision.whole.max() == 0


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fixed", [0, 20])
def test_documents_of_equal_content_across(order: Any, fixed: int, tmp_path: Path) -> None:
    """The reference's rule for `across` against the chain of equals that the device walks."""
    draw = random.Random(3)
    count = 150
    content = [draw.randrange(30) for _ in range(count)]
    across = np.array([draw.randrange(3) for _ in range(count)], np.int32)
    first: dict[tuple[int, int], int] = {}
    documents = [i for i in range(count) if first.setdefault((content[i], int(across[i])), i) == i]
    content, across = [content[i] for i in documents], across[documents]
    leaders: dict[int, int] = {}
    leader = np.array([leaders.setdefault(c, i) for i, c in enumerate(content)], np.uint32)
    keys = random_keys(len(documents), 2, 6, seed=8)
    # Contents 2k and 2k + 1 are similar too, so an equal one and a similar one may both be kept and rank better.
    sets = {c: {1000 * (c // 2) + i for i in range(20 - c % 2)} for c in content}
    candidates = reference_pairs(keys.tolist(), 2, lambda a, b: across[a] != across[b])
    candidates |= {(a, b) for b in range(len(content)) for a in range(b) if content[a] == content[b]}

    def similarity(better: int, worse: int) -> tuple[int, int]:
        return (1, 1) if content[better] == content[worse] else jaccard(sets[content[better]], sets[content[worse]])

    expected = expected_decision(candidates, len(content), similarity, 800_000, fixed)
    device = EmulatedDevice(order=order, timing="random")
    stream = device.stream()
    documents = np.arange(len(content), dtype=np.uint32)
    buckets = buckets_of(device, stream, keys, documents, across=across, fixed=fixed)
    store = store_of(device, stream, [sets[c] for c in content], tmp_path)
    decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, 800_000), leader).run()
    assert [array.tolist() for array in decision.arrays()] == list(expected)
    assert {(1, 1), (19, 20)} <= set(zip(*expected[1:], strict=True))


def test_a_chain_in_which_each_waits_for_the_one_before(tmp_path: Path) -> None:
    """Neighbours share a bucket and are similar: every second one is removed."""
    count = 100
    keys = np.zeros((2, count), np.uint64)
    keys[0], keys[1] = np.arange(count) // 2, 1000 + (np.arange(count) + 1) // 2
    sets = [set(range(10 * i, 10 * i + 40)) for i in range(count)]
    device = EmulatedDevice(order="reverse")
    stream = device.stream()
    buckets = buckets_of(device, stream, keys, np.arange(count, dtype=np.uint32))
    store = store_of(device, stream, sets, tmp_path)
    decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, 600_000), None).run()
    assert decision.keeper.tolist() == [NONE if i % 2 == 0 else i - 1 for i in range(count)]


@pytest.mark.parametrize("order", ORDERS)
def test_rounds_do_not_grow_with_a_bucket_of_unlike_documents(order: Any, tmp_path: Path) -> None:
    """Each is a candidate of the next 64: whoever waited for those to be decided would take a round each."""
    launches = []
    for count in (60, 240):
        sets = [{7 * i, 7 * i + 1} for i in range(count)]
        device = EmulatedDevice(order=order)
        stream = device.stream()
        buckets = buckets_of(
            device, stream, np.zeros((1, count), np.uint64), np.arange(count, dtype=np.uint32), window=64
        )
        store = store_of(device, stream, sets, tmp_path)
        before = device.counters.launches
        decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, 500_000), None).run()
        assert set(decision.keeper.tolist()) == {NONE}
        assert decision.compared == len(reference_pairs([[0] * count], 64, lambda a, b: True))
        launches.append(device.counters.launches - before)
    assert launches[0] == launches[1]


def test_blocks_are_halved_until_they_fit(tmp_path: Path) -> None:
    """Less memory than the candidates of all documents at once take: for a decision, and for their list."""
    count = 300
    keys, documents = random_keys(count, 4, 2, seed=6), np.arange(count, dtype=np.uint32)
    sets = families(count, 9, 20)
    candidates = reference_pairs(keys.tolist(), 16, lambda a, b: True)
    expected = expected_decision(candidates, count, lambda a, b: jaccard(sets[a], sets[b]), 600_000)
    fitted = 0
    for kilobytes in range(200, 1200, 100):
        device = EmulatedDevice(memory_bytes=kilobytes << 10)
        stream = device.stream()
        try:
            buckets = buckets_of(device, stream, keys, documents, window=16)
            store = store_of(device, stream, sets, tmp_path)
            decision = Keepers(Ring(device, stream, workers=1), buckets, CompareSets(store, 600_000), None).run()
        except DeviceMemoryError:
            continue
        if store.on_device:
            fitted += 1
            assert [array.tolist() for array in decision.arrays()] == list(expected)
            assert pairs(buckets.candidates(0, count)) == sorted(candidates)
    plenty = EmulatedDevice()
    stream = plenty.stream()
    buckets = buckets_of(plenty, stream, keys, documents, window=16)
    buckets.candidates(0, count)
    assert plenty.counters.peak_bytes > 700 << 10
    assert fitted >= 5
    plenty.memory_bytes = plenty.used_bytes  # not even for one document
    assert pairs(buckets.candidates(0, count)) == sorted(candidates)


def test_what_moves_to_the_host_comes_down_once(tmp_path: Path) -> None:
    sets = families(400, 3, 30)
    device = EmulatedDevice()
    store = store_of(device, device.stream(), sets, tmp_path)
    before = device.counters.bytes_down
    store.on_host()
    assert device.counters.bytes_down - before < 4 * (sum(map(len, sets)) + 5 * len(sets)) + 4 * len(sets)


def test_sets_that_do_not_fit_move_to_the_host(tmp_path: Path) -> None:
    sets = families(60, 4, 300)
    baseline = EmulatedDevice()
    store_of(baseline, baseline.stream(), sets, tmp_path)
    for number in range(3, baseline.counters.allocations + 1):  # the first two are the table's
        device = EmulatedDevice(faults=Faults(allocation=number))
        stream = device.stream()
        store = store_of(device, stream, sets, tmp_path)
        assert not store.on_device
        assert store.missing(np.arange(60, dtype=np.uint32)).tolist() == []
        host = store.on_host()
        assert [set(host.get(i).tolist()) for i in range(60)] == sets
        device.check()


def test_buckets_that_do_not_fit_say_so() -> None:
    keys = random_keys(50, 3, 5, seed=2)
    documents = np.arange(50, dtype=np.uint32)
    baseline = EmulatedDevice()
    buckets_of(baseline, baseline.stream(), keys, documents)
    for number in range(1, baseline.counters.allocations + 1):
        device = EmulatedDevice(faults=Faults(allocation=number))
        stream = device.stream()
        with pytest.raises(DeviceMemoryError):
            buckets_of(device, stream, keys, documents)
        device.check()


assert Path(reference.__file__).parent.name == "tests"
