"""match on a device: band keys -> buckets, and the candidates of a block of documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U32, U64, Band
from gpudedup.backends.cuda.device import Device, DeviceArray, Scalar, Stream, fetched, filled
from gpudedup.backends.cuda.ring import Ring
from gpudedup.errors import DeviceMemoryError

LISTED_BLOCK = 1 << 16
"""Documents whose candidates are listed at once for a user."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of document low + k: better[begins[k] : begins[k + 1]], ascending."""

    begins: DeviceArray
    better: DeviceArray
    count: int


def sort_band(ring: Ring, keys: U64, documents: DeviceArray) -> Band:
    """The buckets of one band; keys[document] is the key of each of ``documents``, which are given by rank.

    Takes about 60 bytes a document. Raises DeviceMemoryError if that does not fit.
    """
    count = documents.size
    if count == 0:
        return Band(np.zeros(0, np.uint32), np.zeros(0, np.uint32))
    device, stream = ring.device, ring.stream
    every = ring.sent(keys)
    ranked = device.alloc(count, np.uint64)
    order, shared, heads = (device.alloc(count, np.uint32) for _ in range(3))
    device.for_each("gather_keys", count, [every, documents, ranked], stream)
    device.argsort(ranked, order, stream)
    device.for_each("mark_shared", count, [ranked, order, shared, heads], stream)
    slots_before, slot_count = _scanned(device, shared, stream)
    buckets_before, bucket_count = _scanned(device, heads, stream)
    members, first_slot = device.alloc(slot_count, np.uint32), device.alloc(bucket_count + 1, np.uint32)
    args: list[DeviceArray | Scalar] = [order, shared, heads, slots_before, buckets_before, members, first_slot]
    device.for_each("place_members", count, args, stream)
    return Band(ring.fetched(members), np.diff(ring.fetched(first_slot)))


class DeviceBuckets:
    """The buckets of all bands: 4 bytes a document and band, and 8 to 12 for each member of a band.

    fixed: as many documents, the first, are of earlier runs: they are kept and have no candidates. host: makes the same
    buckets for the CPU. Raises ValueError if a band cannot be one of ``count`` documents, and DeviceMemoryError.
    """

    def __init__(
        self,
        ring: Ring,
        bands: Sequence[Band],
        count: int,
        scopes: I32 | None,
        across: I32 | None,
        *,
        fixed: int = 0,
        window: int,
        host: Callable[[], _cpu.Buckets],
    ) -> None:
        self.count, self.fixed, self.on_host = count, fixed, host
        self._bands = len(bands)
        device, stream = ring.device, ring.stream
        self._ring, self._device, self._stream, self._window = ring, device, stream, window
        self._scopes, self._across = self._column(scopes), self._column(across)
        self._slots = filled(device, len(bands) * count, np.uint32, 0xFF, stream)  # NO_SLOT
        slots = np.cumsum([0, *(len(band.members) for band in bands)]).astype(np.uint64)
        buckets = np.cumsum([0, *(len(band.lengths) + 1 for band in bands)]).astype(np.uint64)
        self._base, self._bucket_base = ring.sent(slots), ring.sent(buckets)
        self._members, self._bucket_of = (device.alloc(int(slots[-1]), np.uint32) for _ in range(2))
        self._first_slot = device.alloc(int(buckets[-1]), np.uint32)
        bounded, marks = (filled(device, count, np.uint32, 0, stream) for _ in range(2))
        self.bounded_buckets, self.longest = 0, min(count, 1)  # documents without company have a bucket each
        room = np.empty(max((len(band.members) for band in bands), default=0), np.uint32)
        for number, band in enumerate(bands):
            self._take(number, band, room, int(slots[number]), int(buckets[number]), bounded, marks)
        self.bounded_documents = _scanned(device, bounded, stream)[1] if self.bounded_buckets else 0
        self._shared = np.flatnonzero(ring.fetched(marks)).astype(np.uint32)

    def shared(self) -> U32:
        """The documents that share a bucket with another, not counting buckets of documents of earlier runs alone."""
        return self._shared

    @property
    def largest_block(self) -> int:
        """Documents whose candidates can be listed at once: 2^31 of them, with repeats, as scans take no more."""
        return max(1, (2**31 - 1) // (self._bands * 2 * self._window))

    def candidates(self, first: int, last: int) -> tuple[U32, U32]:
        """(better, worse): all candidate pairs whose worse document is in [first, last)."""
        betters, worses = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        low, size = max(first, self.fixed), min(self.largest_block, LISTED_BLOCK)
        while low < last:
            high = min(low + size, last)
            try:
                none_removed = filled(self._device, self.count, np.uint32, 0, self._stream)
                found = self.block(low, high, none_removed)
                begins: I64 = self._ring.fetched(found.begins).astype(np.int64)
                better = self._ring.fetched(found.better[: found.count])
            except DeviceMemoryError:
                if size == 1:
                    return self.on_host().candidates(first, last)
                size //= 2
                continue
            betters.append(better)
            worses.append(np.repeat(np.arange(low, high, dtype=np.uint32), begins[1:] - begins[:-1]))
            low = high
        return np.concatenate(betters), np.concatenate(worses)

    def block(self, low: int, high: int, state: DeviceArray) -> Candidates:
        """Candidates of documents low .. high - 1, without those that ``state`` (uint32[count]) says are removed.

        Waits for the device twice, for their number with and without repeats.
        """
        device, stream, block = self._device, self._stream, high - low
        bands = self._bands
        where: list[DeviceArray | Scalar] = [
            np.uint32(low),
            np.uint32(block),
            np.uint32(self.count),
            np.uint32(self._window),
        ]
        sizes = device.alloc(block * bands, np.uint32)
        bases = [self._base, self._bucket_base]
        buckets = [self._bucket_of, self._first_slot, self._slots]
        device.for_each("count_window", sizes.size, [*where, *bases, *buckets, sizes], stream)
        before, total = _scanned(device, sizes, stream)
        pairs = device.alloc(max(1, total), np.uint64)
        begins = device.alloc(block + 1, np.uint64)
        if total == 0:
            device.fill(begins, 0, stream)
            return Candidates(begins, device.alloc(1, np.uint32), 0)
        limits = [self._scopes, self._across, state]
        device.for_each(
            "list_window", sizes.size, [*where, *bases, self._members, *buckets, *limits, before, pairs], stream
        )
        device.sort(pairs, stream)
        firsts = device.alloc(total, np.uint32)
        device.for_each("mark_first", total, [pairs, firsts], stream)
        before, count = _scanned(device, firsts, stream)
        better = device.alloc(max(1, count), np.uint32)
        device.for_each("place_better", total, [pairs, firsts, before, better], stream)
        device.for_each("find_begins", block + 1, [np.uint32(low), pairs, before, begins], stream)
        return Candidates(begins, better, count)

    def _take(
        self, number: int, band: Band, room: U32, base: int, bucket_base: int, bounded: DeviceArray, marks: DeviceArray
    ) -> None:
        """Checks one band and brings it to its place on the device. room: for its members, on the host."""
        device, stream, most = self._device, self._stream, 2 * self._window + 1
        members, lengths = room[: len(band.members)], band.lengths.copy()
        _cpu.copy_values(members, band.members, workers=self._ring.workers)  # a file may change once it was checked
        _cpu.check_band(members, lengths, self.count)
        first = np.zeros(len(lengths) + 1, np.uint32)
        np.cumsum(lengths, out=first[1:])
        slots = self._slots[number * self.count : (number + 1) * self.count]
        placed, bucket_of = (array[base : base + len(members)] for array in (self._members, self._bucket_of))
        first_slot = self._first_slot[bucket_base : bucket_base + len(first)]
        self._ring.upload(members, placed)
        self._ring.upload(first, first_slot)
        device.for_each("place_slots", len(members), [placed, first_slot, bucket_of, slots], stream)
        longest = int(lengths.max(initial=0))
        self.longest = max(self.longest, longest)
        self.bounded_buckets += int((lengths > most).sum())
        where = [placed, bucket_of, first_slot]
        if longest > most:
            device.for_each("mark_bounded", len(members), [*where, np.uint32(most), bounded], stream)
        device.for_each("mark_shared_members", len(members), [*where, np.uint32(self.fixed), marks], stream)

    def _column(self, values: I32 | None) -> DeviceArray:
        return self._ring.sent(np.zeros(1, np.int32) if values is None else np.ascontiguousarray(values, np.int32))


def _scanned(device: Device, values: DeviceArray, stream: Stream) -> tuple[DeviceArray, int]:
    """Prefix sums, and their total on the host."""
    sums = device.alloc(values.size + 1, np.uint64)
    device.scan(values, sums, stream)
    return sums, int(fetched(device, sums[values.size :], stream)[0])
