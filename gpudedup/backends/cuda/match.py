"""match on a device: band keys -> buckets, and the candidates of a block of documents."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U32, U64
from gpudedup.backends.cuda.device import Device, DeviceArray, HostArray, Scalar, Stream, fetched, filled, sent
from gpudedup.errors import DeviceMemoryError

LISTED_BLOCK = 1 << 16
"""Documents whose candidates are listed at once for a user."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Of document low + k: better[begins[k] : begins[k + 1]], ascending."""

    begins: DeviceArray
    better: DeviceArray
    count: int


@dataclass(frozen=True, slots=True)
class _Band:
    """The buckets of one band that hold two documents or more; see gpudedup/kernels/buckets.py."""

    members: DeviceArray
    bucket_of: DeviceArray
    first_slot: DeviceArray
    lengths: U32
    """Of its buckets, on the host."""


class DeviceBuckets:
    """Documents sorted into buckets, one band at a time: beside what stays, a band takes about 60 bytes a document.

    What stays is 4 bytes a document and band, and 8 to 12 for each document that shares a bucket of the band.
    Raises DeviceMemoryError if that does not fit.
    """

    def __init__(
        self,
        device: Device,
        stream: Stream,
        band_keys: list[U64],
        documents: U32,
        scopes: I32 | None,
        across: I32 | None,
        *,
        bands: int,
        window: int,
        workers: int,
    ) -> None:
        self.count = len(documents)
        self._bands = bands
        self._device, self._stream, self._window, self._workers = device, stream, window, workers
        self._host_scopes, self._host_across = scopes, across
        self._scopes, self._across = self._column(scopes), self._column(across)
        self._slots = filled(device, bands * self.count, np.uint32, 0xFF, stream)  # NO_SLOT
        self._bounded = filled(device, self.count, np.uint32, 0, stream)
        parts = list(self._sort(band_keys, documents, bands)) if self.count else []
        self._lengths = [part.lengths for part in parts]
        self._join(parts)
        most = 2 * window + 1
        lengths = np.concatenate([np.zeros(0, np.uint32), *self._lengths])
        self.bounded_buckets = int((lengths > most).sum())
        self.longest = int(lengths.max(initial=min(self.count, 1)))  # documents without company have a bucket each
        self.bounded_documents = self._scan(self._bounded)[1] if self.bounded_buckets else 0
        del self._bounded
        marks = filled(device, self.count, np.uint32, 0, stream)
        device.for_each("mark_members", self._members.size, [self._members, marks], stream)
        self._shared = np.flatnonzero(self._fetch(marks[: self.count])).astype(np.uint32)

    def shared(self) -> U32:
        """The documents that share a bucket with another."""
        return self._shared

    @property
    def largest_block(self) -> int:
        """Documents whose candidates can be listed at once: 2^31 of them, with repeats, as scans take no more."""
        return max(1, (2**31 - 1) // (self._bands * 2 * self._window))

    def candidates(self, first: int, last: int) -> tuple[U32, U32]:
        """(better, worse): all candidate pairs whose worse document is in [first, last)."""
        betters, worses = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)]
        low, size = first, min(self.largest_block, LISTED_BLOCK)
        while low < last:
            high = min(low + size, last)
            try:
                none_removed = filled(self._device, self.count, np.uint32, 0, self._stream)
                found = self.block(low, high, none_removed)
                begins: I64 = self._fetch(found.begins).astype(np.int64)
                better = self._fetch(found.better[: found.count])
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
        before, total = self._scan(sizes)
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
        before, count = self._scan(firsts)
        better = device.alloc(max(1, count), np.uint32)
        device.for_each("place_better", total, [pairs, firsts, before, better], stream)
        device.for_each("find_begins", block + 1, [np.uint32(low), pairs, before, begins], stream)
        return Candidates(begins, better, count)

    def on_host(self) -> _cpu.Buckets:
        """The same buckets for the CPU."""
        members = self._fetch(self._members)
        ends = np.cumsum([0, *(int(lengths.sum()) for lengths in self._lengths)]).tolist()
        return _cpu.Buckets.of_bands(
            [members[first:end] for first, end in pairwise(ends)],
            self._lengths,
            count=self.count,
            scopes=self._host_scopes,
            across=self._host_across,
            window=self._window,
            workers=self._workers,
        )

    def _sort(self, band_keys: list[U64], documents: U32, bands: int) -> list[_Band]:
        device, stream, count = self._device, self._stream, self.count
        total = sum(keys.shape[1] for keys in band_keys)
        places = device.alloc(count, np.uint32)
        device.upload(np.ascontiguousarray(documents), places, stream)
        staging = [device.alloc_host(total, np.uint64) for _ in range(2)]  # one is filled while the other is copied
        copied = [stream.record(), stream.record()]
        keys, ranked = device.alloc(total, np.uint64), device.alloc(count, np.uint64)
        order, shared, heads = (device.alloc(count, np.uint32) for _ in range(3))
        found = []
        for band in range(bands):
            host = staging[band % 2]
            copied[band % 2].synchronize()
            np.concatenate([batch[band] for batch in band_keys], out=host)
            device.upload(host, keys, stream)
            copied[band % 2] = stream.record()
            device.for_each("gather_keys", count, [keys, places, ranked], stream)
            device.argsort(ranked, order, stream)
            device.for_each("mark_shared", count, [ranked, order, shared, heads], stream)
            slots_before, slot_count = self._scan(shared)
            buckets_before, bucket_count = self._scan(heads)
            members, bucket_of = (device.alloc(slot_count, np.uint32) for _ in range(2))
            first_slot = device.alloc(bucket_count + 1, np.uint32)
            slots = self._slots[band * count : (band + 1) * count]
            device.for_each(
                "place_members",
                count,
                [order, shared, heads, slots_before, buckets_before, members, bucket_of, first_slot, slots],
                stream,
            )
            lengths = np.diff(self._fetch(first_slot))
            most = 2 * self._window + 1
            if lengths.max(initial=0) > most:
                args: list[DeviceArray | Scalar] = [members, bucket_of, first_slot, np.uint32(most), self._bounded]
                device.for_each("mark_bounded", slot_count, args, stream)
            found.append(_Band(members, bucket_of, first_slot, lengths))
        return found

    def _join(self, parts: list[_Band]) -> None:
        """All bands one after another, with where each begins."""
        slots = np.cumsum([0, *(part.members.size for part in parts)]).astype(np.uint64)
        buckets = np.cumsum([0, *(part.first_slot.size for part in parts)]).astype(np.uint64)
        self._base, self._bucket_base = self._kept(slots), self._kept(buckets)
        self._members, self._bucket_of = (self._device.alloc(max(1, int(slots[-1])), np.uint32) for _ in range(2))
        self._first_slot = self._device.alloc(max(1, int(buckets[-1])), np.uint32)
        for part, slot, bucket in zip(parts, slots.tolist(), buckets.tolist(), strict=False):
            self._copy(part.members, self._members[slot:])
            self._copy(part.bucket_of, self._bucket_of[slot:])
            self._copy(part.first_slot, self._first_slot[bucket:])
        self._members = self._members[: int(slots[-1])]
        self._stream.synchronize()  # before the parts are given back

    def _copy(self, source: DeviceArray, target: DeviceArray) -> None:
        self._device.for_each("copy_values", source.size, [source, target], self._stream)

    def _column(self, values: I32 | None) -> DeviceArray:
        return self._kept(np.zeros(1, np.int32) if values is None else np.ascontiguousarray(values, np.int32))

    def _kept(self, values: HostArray) -> DeviceArray:
        """A copy on the device; the values may go."""
        array = sent(self._device, values, self._stream)
        self._stream.synchronize()
        return array

    def _scan(self, values: DeviceArray) -> tuple[DeviceArray, int]:
        """Prefix sums, and their total on the host."""
        sums = self._device.alloc(values.size + 1, np.uint64)
        self._device.scan(values, sums, self._stream)
        return sums, int(self._fetch(sums[values.size :])[0])

    def _fetch(self, array: DeviceArray) -> HostArray:
        return fetched(self._device, array, self._stream)
