"""Shingle hashes that stay on the device until sets are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpudedup.backends.base import I64, U32, SetStore
from gpudedup.backends.cuda.device import Device, DeviceArray, Stream, fetched
from gpudedup.backends.cuda.sets import DeviceSets


@dataclass(frozen=True, slots=True)
class DeviceShingles:
    """`Shingles` in parts, piece by piece of a batch: on the device, or on the host where that had no room. What writes
    them was queued in ``stream``."""

    device: Device
    stream: Stream
    parts: tuple[U32 | DeviceArray, ...]
    offsets: I64

    @property
    def hashes(self) -> U32:
        on_host = [
            fetched(self.device, part, self.stream) if isinstance(part, DeviceArray) else part for part in self.parts
        ]
        return np.concatenate(on_host)

    @property
    def bytes_in_memory(self) -> int:
        on_host = sum(part.nbytes for part in self.parts if not isinstance(part, DeviceArray))
        return self.offsets.nbytes + on_host

    def add_to(self, store: SetStore, numbers: U32, rows: U32, *, workers: int) -> None:
        if isinstance(store, DeviceSets) and store.add_parts(
            numbers, rows, self.parts, self.offsets, self.stream.record()
        ):
            return
        store.add(numbers, rows, self.hashes, self.offsets, adopt=True, workers=workers)
