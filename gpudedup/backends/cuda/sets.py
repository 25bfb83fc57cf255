"""Shingle sets on a device, by document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup import _cpu
from gpudedup.backends.base import I64, U32, U64
from gpudedup.backends.cuda.device import Arrays, Blocks, DeviceArray, Event, HostArray, Scalar, filled
from gpudedup.backends.cuda.ring import Ring
from gpudedup.errors import DeviceMemoryError

THREADS = 256

RESERVE_PART = 16
"""Sets leave this part of the device's memory to those who compare them."""


@dataclass(frozen=True, slots=True)
class _Block:
    """The sets of some documents, one after another with gaps: row r lies in values[offsets[r] : offsets[r + 1]]."""

    values: DeviceArray
    documents: U32
    offsets: U64


class DeviceSets:
    """Room for the sets of ``count`` documents, 12 bytes each beside their values. When the device is full, all move
    to the host's store, and `on_host` gives that.

    What the kernels work in is kept for the next batch, since all run in one stream.
    """

    def __init__(self, ring: Ring, host: _cpu.SetStore, count: int, *, workers: int) -> None:
        device, stream = ring.device, ring.stream
        self._ring, self._device, self._stream, self._workers = ring, device, stream, workers
        self._host = host
        self._full = False
        self._blocks: list[_Block] = []
        self._present = np.zeros(count, bool)
        self._work: Arrays[DeviceArray] = Arrays(device.alloc, stream.synchronize)
        # Hashes that were made to sets may be held by nothing but what is queued.
        self._values = Blocks(device, device.memory_bytes // RESERVE_PART, stream.synchronize)
        self.address = filled(device, max(1, count), np.uint64, 0, stream)
        self.size = filled(device, max(1, count), np.uint32, 0, stream)

    @property
    def bytes_in_memory(self) -> int:
        return self._host.bytes_in_memory

    @property
    def bytes_on_disk(self) -> int:
        return self._host.bytes_on_disk

    @property
    def on_device(self) -> bool:
        return not self._full

    def missing(self, numbers: U32) -> U32:
        return np.ascontiguousarray(numbers[~self._present[numbers]])

    def add(self, numbers: U32, rows: U32, hashes: U32, offsets: I64, *, adopt: bool = False, workers: int) -> None:
        if not self.add_parts(numbers, rows, (hashes,), offsets):
            self._host.add(numbers, rows, hashes, offsets, adopt=adopt, workers=workers)
            self._present[numbers] = True

    def add_parts(
        self, numbers: U32, rows: U32, parts: Sequence[U32 | DeviceArray], offsets: I64, ready: Event | None = None
    ) -> bool:
        """`add` of hashes that lie in parts on the device, from ``ready`` on, and on the host; False if the device has
        no room."""
        if ready is not None:
            self._stream.wait(ready)
        if not self._full:
            try:
                with self._device.range("sets"):
                    self._add(numbers, rows, parts, offsets)
                self._present[numbers] = True
            except DeviceMemoryError:
                self.on_host()
        return not self._full

    def trim(self) -> None:
        """Give back what only `add` needs."""
        self._work.clear()

    def on_host(self) -> _cpu.SetStore:
        """All sets in the host's store; the device's copies are given up."""
        self._full = True
        self.trim()
        self._values.clear()
        all_sizes = self._ring.fetched(self.size) if self._blocks else np.zeros(0, np.uint32)
        while self._blocks:
            block = self._blocks.pop()
            values, sizes = self._ring.fetched(block.values), all_sizes[block.documents]
            offsets = np.empty(2 * len(sizes) + 1, np.int64)  # each set, then the gap after it
            offsets[0::2] = block.offsets
            offsets[1::2] = block.offsets[:-1] + sizes
            rows = np.arange(0, 2 * len(sizes), 2, dtype=np.uint32)
            self._host.add(block.documents, rows, values, offsets, workers=self._workers)
        return self._host

    def _add(self, numbers: U32, rows: U32, parts: Sequence[U32 | DeviceArray], offsets: I64) -> None:
        device, stream, count = self._device, self._stream, len(numbers)
        first = offsets[rows].astype(np.uint64)
        ends = np.concatenate(([0], np.cumsum(offsets[rows + 1] - offsets[rows]))).astype(np.uint64)
        total = int(ends[-1])
        # Only the stretch of the batch that the rows lie in.
        low, high = (int(first.min()), int(offsets[rows + 1].max())) if count else (0, 0)
        on_device = self._joined("hashes", parts, low, high)
        first_place, places = self._sent("first", first - np.uint64(low)), self._sent("places", ends)
        documents = self._sent("documents", numbers)
        values = self._values.alloc(total, np.uint32)
        keys = self._working("keys", total, np.uint64)
        distinct, before = self._working("distinct", total, np.uint32), self._working("before", total + 1, np.uint64)
        blocks, size = -(-total // THREADS), np.uint64(total)
        keying: list[DeviceArray | Scalar] = [on_device, first_place, places, np.uint32(count), keys]
        device.launch("key_hashes", blocks, THREADS, keying, stream)
        device.sort(keys, stream)
        device.launch("mark_distinct", blocks, THREADS, [keys, size, distinct], stream)
        device.scan(distinct, before, stream)
        device.launch("place_sets", blocks, THREADS, [keys, size, distinct, before, places, values], stream)
        table: list[DeviceArray | Scalar] = [documents, places, np.uint32(count), before, values]
        table += [self.address, self.size]
        device.launch("enter_sets", -(-count // THREADS), THREADS, table, stream)
        self._blocks.append(_Block(values, numbers.copy(), ends))

    def _joined(self, name: str, parts: Sequence[U32 | DeviceArray], low: int, high: int) -> DeviceArray:
        """The values low .. high - 1 of the parts one after another."""
        if len(parts) == 1 and isinstance(parts[0], DeviceArray):
            return parts[0][low:high]
        target, first = self._working(name, high - low, np.uint32), 0
        for part in parts:
            begin, end = max(low, first), min(high, first + part.size)
            if begin < end:
                values, place = part[begin - first : end - first], target[begin - low : end - low]
                if isinstance(values, DeviceArray):
                    self._device.copy(values, place, self._stream)
                else:
                    self._ring.upload(values, place)
            first += part.size
        return target

    def _working(self, name: str, size: int, dtype: npt.DTypeLike) -> DeviceArray:
        self._work.reserve(name, size, dtype)
        return self._work[name][:size]

    def _sent(self, name: str, values: HostArray) -> DeviceArray:
        target = self._working(name, len(values), values.dtype)
        self._ring.upload(values, target)
        return target
