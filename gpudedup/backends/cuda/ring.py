"""Copies between a device and any memory, at the rate of pinned memory."""

from __future__ import annotations

from collections import deque

import numpy as np

from gpudedup import _cpu
from gpudedup.backends.cuda.device import Device, DeviceArray, Event, HostArray, Stream, fetched
from gpudedup.errors import DeviceMemoryError

SEGMENT_BYTES, SEGMENTS = 1 << 24, 4
"""Of pinned memory. Copies of up to three segments lie ahead of the device."""


FEW = 16
"""What is at most this part of a segment comes down without one."""


class Ring:
    """Copies through a ring of pinned segments, taken as they are needed: the driver copies straight between them and
    the device, and threads between them and where values lie, which may change as soon as `upload` returns. All copies
    go into one stream."""

    def __init__(self, device: Device, stream: Stream, *, workers: int) -> None:
        self.device, self.stream, self.workers = device, stream, workers
        self._segments: list[HostArray] = []
        self._left: list[Event | None] = [None] * SEGMENTS  # when the copies of a segment were done
        self._current = -1
        self._used = SEGMENT_BYTES  # of the current one

    @property
    def segment_bytes(self) -> int:
        return SEGMENT_BYTES

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
            _cpu.copy_values(part, source[done : done + size], workers=self.workers)
            self.device.upload(part, there[done : done + size], self.stream)
            done += size
            self._used += size

    def sent(self, values: HostArray) -> DeviceArray:
        """A copy on the device. Raises DeviceMemoryError."""
        array = self.device.alloc(len(values), values.dtype)
        self.upload(values, array)
        return array

    def fetched(self, array: DeviceArray) -> HostArray:
        """A copy on the host. Waits for the stream; while a segment is copied out of, the next ones come down. Without
        pinned memory the driver goes through its own."""
        if array.nbytes <= SEGMENT_BYTES // FEW or not self._has_room():
            return fetched(self.device, array, self.stream)
        values = np.empty(array.size, array.dtype)
        source, target = array.view(np.uint8), values.view(np.uint8)
        coming: deque[tuple[int, HostArray, Event]] = deque()

        def take() -> None:
            first, part, done = coming.popleft()
            done.synchronize()
            _cpu.copy_values(target[first : first + len(part)], part, workers=self.workers)

        for first in range(0, array.nbytes, SEGMENT_BYTES):
            if len(coming) == SEGMENTS:
                take()  # of the segment that comes next
            part = self.segment()[: array.nbytes - first]
            self.device.download(source[first : first + len(part)], part, self.stream)
            coming.append((first, part, self.stream.record()))
        while coming:
            take()
        return values

    def _has_room(self) -> bool:
        """Whether all segments are there, or can be."""
        try:
            self.reserve(SEGMENTS)
        except DeviceMemoryError:
            return False
        return True

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
