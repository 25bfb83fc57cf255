"""Signatures on a device, in groups of lanes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gpudedup.backends.base import U32, LaneGroups
from gpudedup.backends.cuda.device import DeviceArray
from gpudedup.backends.cuda.ring import Ring
from gpudedup.backends.lanes import chosen_rows, lanes_room

GROUP = 8
"""Lanes, as in csrc/cuda/decide.cu and in a run directory: 32 bytes of a document, a sector of device memory."""

PIECE = 2048
"""Documents that a thread takes at a time, 1 MB at 128 lanes: it stays in a core's cache from the first group to the
last."""

Values = TypeVar("Values", U32, DeviceArray)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of a batch, whose signatures go to places from ``first`` on of a segment."""

    groups: LaneGroups
    rows: U32
    first: int


class DeviceLanes:
    """The signatures of ``numbers``, which ascend, read in one pass over ``lanes``.

    Lanes 8g .. 8g + 7 of all documents lie together, 32 bytes each, group after group; the last group may be narrower.
    So a column of a run directory goes up as it lies, from threads that copy its rows into pinned memory. Raises
    DeviceMemoryError before the first batch is read.
    """

    def __init__(
        self,
        ring: Ring,
        lanes: Iterable[LaneGroups],
        numbers: U32,
        num_perm: int,
        *,
        memory_bytes: int,
        directory: str,
        workers: int,
    ) -> None:
        """memory_bytes, directory: for `on_host`."""
        self._ring, self._memory_bytes, self._directory = ring, memory_bytes, directory
        self.count, self.num_perm = len(numbers), num_perm
        most = max(1, ring.segment_bytes // (4 * num_perm))
        self.values = ring.device.alloc(self.count * num_perm, np.uint32)
        ring.reserve(-(-self.count // most))
        done = 0
        with ThreadPoolExecutor(workers) as threads:
            for pieces in _loads(chosen_rows(lanes, numbers), most, min(PIECE, -(-most // workers))):
                done += self._send(pieces, done, threads)

    def __len__(self) -> int:
        return self.count

    def on_host(self) -> U32:
        """What `gather_lanes` would have made. Raises OSError without room."""
        found = lanes_room(self.count, self.num_perm, memory_bytes=self._memory_bytes, tmp=self._directory)
        for lane in range(0, self.num_perm, GROUP):
            group = self._ring.fetched(self._group(self.values, self.count, lane))
            found[: self.count, lane : lane + GROUP] = group.reshape(self.count, self._width(lane))
        return found

    def _group(self, values: Values, count: int, lane: int) -> Values:
        """The group from ``lane`` on, of ``count`` documents."""
        return values[lane * count : (lane + self._width(lane)) * count]

    def _width(self, lane: int) -> int:
        return min(GROUP, self.num_perm - lane)

    def _send(self, pieces: list[_Piece], done: int, threads: ThreadPoolExecutor) -> int:
        """Documents from place ``done`` on, through one segment; their number."""
        count = pieces[-1].first + len(pieces[-1].rows)
        segment = self._ring.segment().view(np.uint32)

        def fill(piece: _Piece) -> None:
            """By `take`, which runs beside other threads; group[rows] does not, and takes three times as long."""
            rows, last = piece.rows.astype(np.intp), piece.first + len(piece.rows)
            targets = (
                self._group(segment, count, lane).reshape(count, self._width(lane))[piece.first : last]
                for lane in range(0, self.num_perm, GROUP)
            )
            for group in piece.groups:
                width = group.shape[1]
                if width < GROUP or width % GROUP == 0:
                    parts = -(-width // GROUP)  # of a row
                    narrow = group.reshape(-1, min(width, GROUP))
                    for part in range(parts):  # in its other modes, take would go through a buffer
                        np.take(narrow, rows * parts + part, axis=0, out=next(targets), mode="clip")
                else:
                    taken = np.take(group, rows, axis=0)
                    for lane in range(0, width, GROUP):
                        next(targets)[...] = taken[:, lane : lane + GROUP]

        list(threads.map(fill, pieces))
        for lane in range(0, self.num_perm, GROUP):
            part, whole = self._group(segment, count, lane), self._group(self.values, self.count, lane)
            self._ring.device.upload(part, whole[done * self._width(lane) :], self._ring.stream)
        return count


def _loads(chosen: Iterable[tuple[LaneGroups, U32]], most: int, step: int) -> Iterator[list[_Piece]]:
    """Pieces of at most ``step`` documents, as many as are ``most`` documents together."""
    pieces: list[_Piece] = []
    count = 0
    for groups, rows in chosen:
        if len(groups) > 1 and groups[0].shape[1] % GROUP:
            raise ValueError(f"groups of lanes are {GROUP} wide, or one group all lanes, not {groups[0].shape[1]}")
        low = 0
        while low < len(rows):
            high = min(low + step, low + most - count, len(rows))
            pieces.append(_Piece(groups, rows[low:high], count))
            count += high - low
            low = high
            if count == most:
                yield pieces
                pieces, count = [], 0
    if pieces:
        yield pieces
