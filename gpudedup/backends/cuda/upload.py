"""Copies to a device from any memory, without waiting for the device in steady state."""

from __future__ import annotations

import numpy as np

from gpudedup import _cpu
from gpudedup.backends.cuda.device import Device, DeviceArray, Event, HostArray, Stream

SEGMENT_BYTES, SEGMENTS = 1 << 24, 4
"""Of pinned memory. Copies of up to three segments lie ahead of the device."""


class Uploader:
    """Copies through a ring of pinned segments, taken as they are needed, so the driver copies straight from where the
    values lie, and these may change as soon as `upload` returns. All copies go into one stream."""

    def __init__(self, device: Device, stream: Stream, *, workers: int) -> None:
        self.device, self.stream, self._workers = device, stream, workers
        self._segments: list[HostArray] = []
        self._left: list[Event | None] = [None] * SEGMENTS  # when the copies of a segment were done
        self._current = -1
        self._used = SEGMENT_BYTES  # of the current one

    def upload(self, values: HostArray, target: DeviceArray) -> None:
        """Waits only where the ring is full, for its oldest copies. Equal dtypes; values may be fewer. Raises
        DeviceMemoryError without pinned memory."""
        source, there = np.ascontiguousarray(values).view(np.uint8), target.view(np.uint8)
        done = 0
        while done < len(source):
            if self._used == SEGMENT_BYTES:
                self._turn()
            size = min(SEGMENT_BYTES - self._used, len(source) - done)
            part = self._segments[self._current][self._used : self._used + size]
            _cpu.copy_values(part, source[done : done + size], workers=self._workers)
            self.device.upload(part, there[done : done + size], self.stream)
            done += size
            self._used += size

    def sent(self, values: HostArray) -> DeviceArray:
        """A copy on the device. Raises DeviceMemoryError."""
        array = self.device.alloc(len(values), values.dtype)
        self.upload(values, array)
        return array

    def reserve(self, segments: int) -> None:
        """Take the pinned memory for as many calls of `segment`. Raises DeviceMemoryError."""
        while len(self._segments) < min(self._current + 1 + segments, SEGMENTS):
            self._segments.append(self.device.alloc_host(SEGMENT_BYTES, np.uint8))

    def segment(self) -> HostArray:
        """The next segment, uint8[SEGMENT_BYTES], to be filled, and copied from in this stream, before any other call.
        Waits as `upload` does."""
        self._turn()
        self._used = SEGMENT_BYTES
        return self._segments[self._current]

    def _turn(self) -> None:
        """Go on to the next segment."""
        self.reserve(1)
        following = (self._current + 1) % SEGMENTS
        if (left := self._left[following]) is not None:
            left.synchronize()
        if self._current >= 0:
            self._left[self._current] = self.stream.record()
        self._current, self._used = following, 0
