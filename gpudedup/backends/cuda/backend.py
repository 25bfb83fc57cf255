"""The CUDA backend: sign, match and verify on one device, the rest on this machine's cores.

What does not fit the device is done by the CPU backend, with the same answer: a batch of which a document is too long,
buckets, sets, or a whole verification. So are components, streams and grouping by content, which are no work for a GPU
or little work at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from gpudedup import _cpu
from gpudedup.backends.base import (
    I32,
    U32,
    U64,
    Band,
    Buckets,
    Decision,
    GatheredLanes,
    LaneGroups,
    SetStore,
    Shingles,
    SignedBatch,
    Stream,
    ToSign,
)
from gpudedup.backends.columns import buffers
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda.device import Device, DeviceArray
from gpudedup.backends.cuda.lanes import DeviceLanes
from gpudedup.backends.cuda.match import DeviceBuckets, sort_band
from gpudedup.backends.cuda.ring import Ring
from gpudedup.backends.cuda.sets import DeviceSets
from gpudedup.backends.cuda.sign import Request, Signer
from gpudedup.backends.cuda.verify import Compare, CompareLanes, CompareNothing, CompareSets, DeviceDecision, Keepers
from gpudedup.errors import DeviceError, DeviceMemoryError
from gpudedup.machine import default_memory_bytes
from gpudedup.params import Params, parse_memory

PIECE_BYTES = 96 << 20
"""Of text at once on the device: six batches of the readers, or one of as many documents as these have at most (131,072
of 128 lanes and 18 bands), so that a launch for each of 10 kernels is little beside the work."""

PIECE_SHARE = 64
"""Three pieces under way take up to 29 times the bytes of one (see `Signer`): at most this part of free memory."""

HOST_PART, HOST_PART_OF_HASHES = 16, 32
"""A piece is at most this part of ``memory``; the second where shingle hashes may come down. Per byte of a piece, three
slots have up to 6 pinned bytes, of values and of what documents take, and for hashes 12 more of characters, 6 of words;
all this a quarter larger where arrays grew. Up to four pieces are held as batches, and one as results. Text that folds
to more units than it has bytes takes more."""

LEFT_PART = 2
"""Shingle hashes that wait for sets leave this part of the device's memory to pieces, keys, buckets and the sets."""


class CudaBackend:
    """One device with its streams."""

    def __init__(self, params: Params, device: Device, reason: str) -> None:
        self.name = f"cuda ({device.name})"
        self.reason = reason
        self._params, self._device = params, device
        self._host = CpuBackend(params, reason)
        self.workers = self._host.workers
        self._ring = Ring(device, device.stream(), workers=self.workers)
        self._ranked: tuple[U32, DeviceArray] | None = None  # the documents of the last band, which the next has too
        memory_bytes = default_memory_bytes() if params.memory is None else parse_memory(params.memory)
        host_part = HOST_PART_OF_HASHES if params.verify == "exact" else HOST_PART
        most = min(PIECE_BYTES, device.free_bytes() // PIECE_SHARE, memory_bytes // host_part)
        piece_bytes = max(1 << 16, most)
        to_sets = params.verify == "exact" and params.clustering == "keepers"
        left_bytes = device.memory_bytes // LEFT_PART if to_sets else None
        self._signer = Signer(device, params, piece_bytes=piece_bytes, workers=self.workers, left_bytes=left_bytes)

    def sign(self, batches: Iterable[ToSign]) -> Iterator[SignedBatch]:
        source, drawn = iter(batches), deque[ToSign]()

        def requests(again: Iterable[ToSign]) -> Iterator[Request]:
            for batch in again:
                yield _request(batch)
            for batch in source:
                drawn.append(batch)
                yield _request(batch)

        while True:
            try:
                for signed in self._signer.sign(requests(tuple(drawn))):
                    drawn.popleft()
                    yield signed
                return
            except DeviceMemoryError:  # a document of the next batch does not fit
                yield from self._host.sign([drawn.popleft()])

    def shingles(self, texts: Iterable[pa.Array]) -> Iterator[Shingles]:
        for signed in self.sign(ToSign(text, shingles=True) for text in texts):
            assert signed.shingles is not None
            yield signed.shingles

    def hash_values(self, values: pa.Array) -> U64:
        return self._host.hash_values(values)

    def group_content(self, order: U32, content: U64, within: I32 | None, across: I32 | None) -> U32:
        return self._host.group_content(order, content, within, across)

    def band_keys(self, lanes: Sequence[LaneGroups], band: int, scope_keys: U64 | None) -> U64:
        return self._host.band_keys(lanes, band, scope_keys)

    def band(self, keys: U64, documents: U32, *, memory_bytes: int) -> Band:
        self._signer.release()
        try:
            with self._device.range("match"):
                if self._ranked is None or self._ranked[0] is not documents:
                    self._ranked = None
                    self._ranked = documents, self._ring.sent(documents)
                return sort_band(self._ring, keys, self._ranked[1])
        except DeviceMemoryError:
            self._ranked = None
            return self._host.band(keys, documents, memory_bytes=memory_bytes)

    def buckets(
        self,
        bands: Sequence[Band],
        count: int,
        scopes: I32 | None,
        across: I32 | None,
        *,
        fixed: int = 0,
        memory_bytes: int,
        directory: str,
    ) -> Buckets:
        host = partial(
            self._host.buckets,
            *(bands, count, scopes, across),
            fixed=fixed,
            memory_bytes=memory_bytes,
            directory=directory,
        )
        self._ranked, window = None, self._params.bucket_window
        try:
            with self._device.range("match"):
                return DeviceBuckets(self._ring, bands, count, scopes, across, fixed=fixed, window=window, host=host)
        except DeviceMemoryError:
            return host()

    def set_store(self, count: int, *, memory_bytes: int, directory: str) -> SetStore:
        host = self._host.set_store(count, memory_bytes=memory_bytes, directory=directory)
        if self._params.clustering == "components":
            return host
        try:
            return DeviceSets(self._ring, host, count, workers=self.workers)
        except DeviceMemoryError:
            return host

    def gather_lanes(
        self, lanes: Iterable[LaneGroups], numbers: U32, *, memory_bytes: int, directory: str
    ) -> GatheredLanes:
        if self._params.clustering == "keepers":
            try:
                with self._device.range("lanes"):
                    return DeviceLanes(
                        *(self._ring, lanes, numbers, self._params.num_perm),
                        memory_bytes=memory_bytes,
                        directory=directory,
                        workers=self.workers,
                    )
            except DeviceMemoryError:
                pass
        return self._host.gather_lanes(lanes, numbers, memory_bytes=memory_bytes, directory=directory)

    def verify(
        self,
        buckets: Buckets,
        *,
        threshold_ppm: int,
        sets: SetStore | None,
        lanes: GatheredLanes | None,
        documents: U32,
        leader: U32 | None,
        prior: Decision | None,
    ) -> Decision:
        self._signer.release()
        if isinstance(buckets, DeviceBuckets) and self._params.clustering == "keepers":
            try:
                with self._device.range("verify"):
                    compare = self._compare(threshold_ppm, sets, lanes, documents)
                    if compare is not None:
                        return Keepers(self._ring, buckets, compare, leader).run()
            except DeviceMemoryError:
                pass
        return self._host.verify(
            _buckets_on_host(buckets),
            threshold_ppm=threshold_ppm,
            sets=sets.on_host() if isinstance(sets, DeviceSets) else sets,
            lanes=lanes.on_host() if isinstance(lanes, DeviceLanes) else lanes,
            documents=documents,
            leader=leader,
            prior=None if isinstance(prior, DeviceDecision) else prior,
        )

    def undecided(self, buckets: Buckets, prior: Decision) -> U32:
        if isinstance(prior, DeviceDecision):  # compared again from the start: that is quick
            return buckets.shared()
        return self._host.undecided(_buckets_on_host(buckets), prior)

    def stream(self, *, memory_bytes: int, directory: str) -> Stream:
        self._signer.keep_no_shingles()  # its sets are the CPU's
        return self._host.stream(memory_bytes=memory_bytes, directory=directory)

    def _compare(
        self, threshold_ppm: int, sets: SetStore | None, lanes: GatheredLanes | None, documents: U32
    ) -> Compare | None:
        """How the device compares pairs; None if what it takes is not there."""
        if sets is not None:
            if not isinstance(sets, DeviceSets) or not sets.on_device:
                return None
            sets.trim()
            return CompareSets(sets, threshold_ppm)
        if lanes is None:
            return CompareNothing()
        if not isinstance(lanes, DeviceLanes):
            return None
        return CompareLanes(lanes, self._ring.sent(documents), threshold_ppm)


def try_out(device: Device) -> None:
    """A little of all that a run asks for, so that what is missing or broken shows before any work is done.

    Raises DeviceError.
    """
    stream = device.stream()
    numbers, sums, order = device.alloc(4, np.uint32), device.alloc(5, np.uint64), device.alloc(5, np.uint32)
    counts = device.alloc(1, np.uint32)
    device.for_each("count_up", 4, [np.uint32(1), numbers], stream)
    device.scan(numbers, sums, stream)
    device.argsort(sums, order, stream)
    device.launch("count_shingles", 1, 32, [order[3:], np.uint32(1), np.uint32(1), counts], stream)  # of units 3 .. 4
    found = np.zeros(5, np.uint64), np.zeros(1, np.uint32)
    device.download(sums, found[0], stream)
    device.download(counts, found[1], stream)
    stream.synchronize()
    if found[0].tolist() != [0, 1, 3, 6, 10] or found[1].tolist() != [1]:
        raise DeviceError(f"{device.name} computes wrongly: prefix sums of 1, 2, 3, 4 came out as {found[0].tolist()}")


def _request(batch: ToSign) -> Request:
    values, offsets = buffers(batch.text)
    return Request(values, offsets, batch.scope_keys, batch.band_keys, batch.lanes, batch.shingles)


def _buckets_on_host(buckets: Buckets) -> _cpu.Buckets:
    if isinstance(buckets, DeviceBuckets):
        return buckets.on_host()
    assert isinstance(buckets, _cpu.Buckets)
    return buckets
