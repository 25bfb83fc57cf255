"""verify on a device: the rule of docs/spec.md, section 11, in rounds over blocks of documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gpudedup.backends.base import NO_KEEPER, U32, U64
from gpudedup.backends.cuda.device import DeviceArray, Scalar, fetched, filled
from gpudedup.backends.cuda.lanes import DeviceLanes
from gpudedup.backends.cuda.match import Candidates, DeviceBuckets
from gpudedup.backends.cuda.ring import Ring
from gpudedup.backends.cuda.sets import DeviceSets
from gpudedup.errors import DeviceError, DeviceMemoryError

FIRST_BLOCK, LARGEST_BLOCK = 1 << 12, 1 << 18
"""Documents in a block. The first ones are small: in a cluster of any size most members then meet only its keeper."""

WARPS = 8
"""In a block of threads; a warp takes a document."""

MEASURE_BLOCKS = 512
"""Blocks of threads that compare the pairs of large sets: a few for each multiprocessor of any device."""


KEPT = 1
"""A state of a document, as in csrc/cuda/decide.cu."""


class Compare(Protocol):
    """How pairs are compared: a kernel, and its arguments for it."""

    @property
    def kernel(self) -> str: ...

    def args(self) -> list[DeviceArray | Scalar]: ...


@dataclass(frozen=True, slots=True)
class CompareSets:
    """By shingle sets."""

    sets: DeviceSets
    threshold_ppm: int
    kernel: str = "advance_sets"

    def args(self) -> list[DeviceArray | Scalar]:
        reciprocal = 2**64 // (1_000_000 + self.threshold_ppm)
        return [self.sets.address, self.sets.size, np.uint64(self.threshold_ppm), np.uint64(reciprocal)]


@dataclass(frozen=True, slots=True)
class CompareLanes:
    """By signature; documents[rank] is a place in ``lanes``."""

    lanes: DeviceLanes
    documents: DeviceArray
    threshold_ppm: int
    kernel: str = "advance_lanes"

    def args(self) -> list[DeviceArray | Scalar]:
        lanes = self.lanes
        sizes = [np.uint32(len(lanes)), np.uint32(lanes.num_perm)]
        return [lanes.values, self.documents, *sizes, np.uint64(self.threshold_ppm)]


@dataclass(frozen=True, slots=True)
class CompareNothing:
    """Every candidate is similar."""

    kernel: str = "advance_unverified"

    def args(self) -> list[DeviceArray | Scalar]:
        return []


@dataclass(frozen=True, slots=True)
class DeviceDecision:
    """Which documents are removed for which, brought to the host."""

    keeper: U32
    part: U64
    whole: U64
    compared: int

    def arrays(self) -> tuple[U32, U64, U64]:
        return self.keeper, self.part, self.whole


class Keepers:
    """Decides all documents of ``buckets`` (csrc/cuda/decide.cu). leader[i]: the best-ranked of i's content, with
    `across`."""

    def __init__(self, ring: Ring, buckets: DeviceBuckets, compare: Compare, leader: U32 | None) -> None:
        device, stream = ring.device, ring.stream
        self._ring, self._device, self._stream, self._buckets, self._compare = ring, device, stream, buckets, compare
        count = max(1, buckets.count)
        self._state, self._keeper = (filled(device, count, np.uint32, byte, stream) for byte in (0, 0xFF))
        self._part, self._whole = (filled(device, count, np.uint64, 0, stream) for _ in range(2))
        self._compared = filled(device, 1, np.uint64, 0, stream)
        self._kept_equal = filled(device, count, np.uint32, 0xFF, stream)
        self._has_equals = np.uint32(leader is not None)
        self._previous_equal = filled(device, count, np.uint32, 0xFF, stream)  # NO_KEEPER
        ring.upload(np.full(buckets.fixed, KEPT, np.uint32), self._state)
        if leader is not None:
            ring.upload(previous_of_equal(leader), self._previous_equal)
            ring.upload(kept_equal_of(leader[: buckets.fixed]), self._kept_equal)

    def run(self) -> DeviceDecision:
        low, size, most = self._buckets.fixed, FIRST_BLOCK, min(LARGEST_BLOCK, self._buckets.largest_block)
        while low < self._buckets.count:
            size = min(size, most)
            high = min(low + size, self._buckets.count)
            try:
                self._decide(low, high)
            except DeviceMemoryError:
                if size == 1:
                    raise
                most = size // 2  # what was decided of the block is decided again, in the same way
                continue
            low, size = high, 2 * size
        count = self._buckets.count
        keeper, part, whole, compared = (
            self._ring.fetched(array) for array in (self._keeper, self._part, self._whole, self._compared)
        )
        return DeviceDecision(keeper[:count], part[:count], whole[:count], int(compared[0]))

    def _decide(self, low: int, high: int) -> None:
        """Rounds until every document of the block is decided; waits for the device once a round."""
        device, stream, count = self._device, self._stream, high - low
        candidates = self._buckets.block(low, high, self._state)
        active, waiting, waits = (device.alloc(count, np.uint32) for _ in range(3))
        device.for_each("count_up", count, [np.uint32(low), active], stream)
        before = device.alloc(count + 1, np.uint64)
        cursor = device.alloc(count, np.uint64)
        device.copy(candidates.begins[:count], cursor, stream)
        requests = filled(device, count, np.uint32, 0, stream)
        common = device.alloc(count, np.uint32)
        request_count = device.alloc(1, np.uint32)
        while count:
            device.fill(request_count, 0, stream)
            self._advance(low, active[:count], candidates, cursor, requests, common, request_count, waits)
            device.scan(waits[:count], before[: count + 1], stream)
            args: list[DeviceArray | Scalar] = [active, waits, before, waiting]
            device.for_each("place_waiting", count, args, stream)
            active, waiting = waiting, active
            left = int(fetched(device, before[count : count + 1], stream)[0])
            if left == count and not int(fetched(device, request_count, stream)[0]):
                raise DeviceError(
                    f"{device.name} decided none of {count} documents in a round; do not trust this device"
                )
            count = left
            if count and isinstance(self._compare, CompareSets):
                large: list[DeviceArray | Scalar] = [active, np.uint32(count), np.uint32(low), candidates.better]
                large += [cursor, self._compare.sets.address, self._compare.sets.size]
                device.launch(
                    "measure_large", MEASURE_BLOCKS, 32 * WARPS, [*large, requests, request_count, common], stream
                )
        walked = [candidates.begins, candidates.better, cursor, self._state, self._keeper, self._compared]
        threads = 32 * WARPS
        counted: list[DeviceArray | Scalar] = [np.uint32(low), np.uint32(high - low), *walked]
        device.launch("count_compared", -(-(high - low) // threads), threads, counted, stream)

    def _advance(
        self,
        low: int,
        active: DeviceArray,
        candidates: Candidates,
        cursor: DeviceArray,
        requests: DeviceArray,
        common: DeviceArray,
        request_count: DeviceArray,
        waits: DeviceArray,
    ) -> None:
        walk: list[DeviceArray | Scalar] = [active, np.uint32(active.size), np.uint32(low)]
        walk += [candidates.begins, candidates.better, cursor]
        equals: list[DeviceArray | Scalar] = [self._has_equals, self._previous_equal, self._kept_equal]
        out = [self._state, self._keeper, self._part, self._whole, waits]
        args = [*walk, *equals, *self._compare.args(), requests, common, request_count, *out]
        self._device.launch(self._compare.kernel, -(-active.size // WARPS), 32 * WARPS, args, self._stream)


def previous_of_equal(leader: U32) -> U32:
    """[n]: the document before each among those with its leader, NO_KEEPER before the first. O(n log n)."""
    order = np.argsort(leader, kind="stable")
    same = leader[order[1:]] == leader[order[:-1]]
    previous = np.full(max(1, len(leader)), NO_KEEPER, np.uint32)
    previous[order[1:][same]] = order[:-1][same]
    return previous


def kept_equal_of(leader: U32) -> U32:
    """[fixed]: of each document of earlier runs, all of which are kept, the first of its content if that is another."""
    return np.where(leader == np.arange(len(leader), dtype=np.uint32), np.uint32(NO_KEEPER), leader)
