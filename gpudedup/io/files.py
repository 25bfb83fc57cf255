"""Input files open for reading, local or remote, behind one interface; the bytes of remote ones fetched ahead."""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

import pyarrow as pa

from gpudedup.io.batches import TARGET_BYTES
from gpudedup.io.remote import Remote, UnreachableError
from gpudedup.store.stopping import checkpoint

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COPY_BYTES = 1 << 30  # Linux reads no more than 2 GB at once

PIECE_BYTES = 4 << 20
"""Bytes asked for in one request at most. An object store answers in some 30 ms and then gives some 80 MB/s a request:
smaller ones are all waiting, and larger ones are slower to be asked for again when the connection breaks.
"""

LEAST_BYTES = 64 << 10
"""Bytes asked for at least: no slower than fewer, and what stands beside is often wanted next."""

AHEAD_BYTES = 4 * PIECE_BYTES
"""Bytes that may be fetched before they are asked for, where a file is read in order."""

REQUESTS = 4
"""At a time, for one file."""

FILES_AHEAD = 16
"""Of which something small is asked at a time."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class LocalFile(io.FileIO):
    """A local file."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._path = path

    def arrow(self) -> pa.NativeFile:
        """The same file for Arrow to read, with a position of its own."""
        return pa.OSFile(self._path)

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing: the system reads ahead by itself."""

    def pread(self, size: int, offset: int) -> bytes:
        """The bytes from ``offset`` on: ``size``, or what there is up to the end."""
        return os.pread(self.fileno(), size, offset)

    def buffer(self, size: int, offset: int) -> pa.Buffer:
        """The same in a buffer of Arrow; more than 2 GB too."""
        buffer = pa.allocate_buffer(size, resizable=True)
        view, done = memoryview(buffer), 0
        while done < size:
            count = os.preadv(self.fileno(), [view[done : done + COPY_BYTES]], offset + done)
            if not count:
                break
            done += count
        return buffer.slice(0, done)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes [start, stop) of a file, there or on their way; ``expected``: not forgotten once they were read."""

    start: int
    stop: int
    data: Future[bytes]
    expected: bool


class RemoteFile(io.RawIOBase):
    """A remote file: read in order, it is fetched ahead, in several requests at a time; elsewhere just what is read.

    Every failure is one of ``UnskippableError``: UnreachableError after some tries, or what ``check`` raises if the
    file is no more what it was.
    """

    def __init__(self, remote: Remote, size: int, check: Callable[[], None]) -> None:
        self._remote, self._size, self._check = remote, size, check
        self._position = 0
        self._last = -1
        """Where the last read ended."""
        self._ahead = 0
        self._pieces: list[_Piece] = []
        """In order, without overlaps."""
        self._source: pa.NativeFile | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def arrow(self) -> pa.NativeFile:
        """The same file for Arrow to read; both have one position."""
        return pa.PythonFile(self, mode="r")

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch these (start, stop) now, and hold them until others are expected or the file is closed."""
        self._pieces.clear()
        merged: list[list[int]] = []
        for start, stop in sorted(ranges):
            start, stop = max(start, 0), min(stop, self._size)
            if merged and start <= merged[-1][1] + LEAST_BYTES:
                merged[-1][1] = max(merged[-1][1], stop)
            else:
                merged.append([start, stop])
        for start, stop in merged:
            self._pieces += self._request(start, stop, expected=True)

    def pread(self, size: int, offset: int) -> bytes:
        """The bytes from ``offset`` on: ``size``, or what there is up to the end."""
        stop = min(offset + size, self._size)
        if offset >= stop:
            return b""
        in_order = offset == self._last and not any(piece.expected for piece in self._pieces)
        self._ahead = min(max(2 * self._ahead, stop - offset), AHEAD_BYTES) if in_order else 0
        self._last = stop
        return self._read(offset, stop, stop + self._ahead)

    def buffer(self, size: int, offset: int) -> pa.Buffer:
        """The same in a buffer of Arrow, not held twice."""
        stop = max(offset, min(offset + size, self._size))
        buffer = pa.allocate_buffer(stop - offset)
        view = memoryview(buffer).cast("B")
        for start in range(offset, stop, PIECE_BYTES):
            end = min(start + PIECE_BYTES, stop)
            view[start - offset : end - offset] = self._read(start, end, min(start + AHEAD_BYTES, stop))
        return buffer

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As of any file."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """As of any file, but never less than ``size`` before the end."""
        data = self.pread(self._size if size is None or size < 0 else size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        """As of any file."""
        return self._position

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Forget what was fetched; requests that are under way end by themselves."""
        if not self.closed:
            if self._pool is not None:
                self._pool.shutdown(wait=False, cancel_futures=True)
            self._pieces.clear()
        super().close()

    def _read(self, start: int, stop: int, ahead: int) -> bytes:
        """The bytes [start, stop) of the file; those up to about ``ahead`` are fetched meanwhile."""
        ahead = min(max(ahead, start + LEAST_BYTES), self._size)
        self._pieces = [
            piece for piece in self._pieces if piece.expected or (start < piece.stop and piece.start < ahead)
        ]
        missing = self._missing(start, self._due(start, stop, ahead))
        if missing:
            at_once = len(missing) == 1 and missing[0][0] < stop and missing[0][1] - missing[0][0] <= PIECE_BYTES
            for gap in missing:
                self._pieces += self._request(*gap, expected=False, wait=at_once)
            self._pieces.sort(key=attrgetter("start"))
        parts = []
        for piece in self._pieces:
            if piece.start < stop and start < piece.stop:
                data = _result(piece.data)
                low, high = max(start - piece.start, 0), min(stop - piece.start, len(data))
                parts.append(data if high - low == len(data) else memoryview(data)[low:high])
        return parts[0] if len(parts) == 1 and isinstance(parts[0], bytes) else b"".join(parts)

    def _due(self, start: int, stop: int, ahead: int) -> int:
        """Up to where to fetch now: not a little at a time, if it is not needed yet."""
        first = next((first for first, _ in self._missing(start, ahead)), ahead)
        if first < stop or ahead == self._size:
            return ahead
        if ahead - first >= PIECE_BYTES:
            return ahead - (ahead - first) % PIECE_BYTES
        return ahead if ahead - first >= (ahead - stop) // 2 else stop

    def _missing(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The parts of [start, stop) that no piece has."""
        gaps = []
        for piece in self._pieces:
            if piece.start > start:
                gaps.append((start, min(piece.start, stop)))
            start = max(start, piece.stop)
        gaps.append((start, stop))
        return [gap for gap in gaps if gap[0] < gap[1]]

    def _request(self, start: int, stop: int, *, expected: bool, wait: bool = False) -> Iterator[_Piece]:
        """Pieces for the bytes [start, stop), on their way, or already there with ``wait``."""
        for first in range(start, stop, PIECE_BYTES):
            end = min(first + PIECE_BYTES, stop)
            if wait:
                data: Future[bytes] = Future()
                data.set_result(self._download(first, end))
            else:
                if self._pool is None:
                    self._pool = ThreadPoolExecutor(REQUESTS, thread_name_prefix="gpudedup-fetch")
                data = self._pool.submit(self._download, first, end)
            yield _Piece(first, end, data, expected)

    def _download(self, start: int, stop: int) -> bytes:
        def once() -> bytes:
            with self._lock:
                source = self._source = self._source or self._remote.open()
            try:
                data: bytes = source.read_at(stop - start, start)
                if len(data) != stop - start:
                    raise OSError(f"{len(data)} of {stop - start} bytes came")
            except Exception:
                self._source = None
                raise
            return data

        try:
            return self._remote.persistently(once)
        except UnreachableError:
            self._check()
            raise


OpenFile = LocalFile | RemoteFile


def _result(coming: Future[Result]) -> Result:
    """What another thread gives, unless this one is to stop before."""
    while not coming.done():
        checkpoint()
        wait([coming], timeout=0.2)
    return coming.result()


def ahead(
    action: Callable[[Item], Result], items: Iterable[Item], size_of: Callable[[Item], int] = lambda item: 0
) -> Iterator[Callable[[], Result]]:
    """For each item, in order, what gives ``action`` of it, or raises what that raised: for many remote files.

    Others are done meanwhile, up to ``FILES_AHEAD`` and to ``TARGET_BYTES`` by ``size_of``; one that is larger is done
    when it is asked for.
    """
    coming: deque[tuple[int, Callable[[], Result]]] = deque()
    coming_bytes = 0
    pool = ThreadPoolExecutor(FILES_AHEAD, thread_name_prefix="gpudedup-fetch")
    try:
        for item in items:
            size_bytes = size_of(item)
            while coming and (len(coming) == FILES_AHEAD or coming_bytes + size_bytes > TARGET_BYTES):
                coming_bytes -= coming[0][0]
                yield coming.popleft()[1]
            if size_bytes > TARGET_BYTES:
                coming.append((size_bytes, partial(action, item)))
            else:
                coming.append((size_bytes, partial(_result, pool.submit(action, item))))
            coming_bytes += size_bytes
        for _, result in coming:
            yield result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
