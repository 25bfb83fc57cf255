"""Signing on a device: documents in, signatures and content hashes out, with copies and kernels of several batches
under way at a time.

A batch is cut at document borders into pieces that fit the device. A piece goes through three streams: up, kernels,
down. Every step is queued at once, and the host waits for a piece only when its results are due. What the host cannot
know beforehand, how many units and folded bytes a text has, is compared with the room on the device; where there was
too little, nothing was written past it, the host reads what is needed together with the results, and that piece goes
again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U8, U32, U64, HostShingles, Shingles, SignedBatch
from gpudedup.backends.cuda.device import Arrays, Device, DeviceArray, Event, HostArray, Scalar, sent
from gpudedup.backends.cuda.shingles import DeviceShingles
from gpudedup.errors import DeviceMemoryError
from gpudedup.params import Params, parse_shingle

# The constants of the same names in csrc/cuda/units.cu and sign.cu.
READ_BYTES, READ_THREADS, JOIN_THREADS = 32, 256, 1024
HASH_THREADS, HASH_UNITS = 256, 2048
WARP_THREADS, SIGN_THREADS, SIGN_UNITS = 32, 128, 512

MAX_PIECE_BYTES = 1 << 28
"""Of text, in one piece. What it folds to, at most 11 times as long, is counted in 32 bits."""

FOLDS = ("none", "case", "full")
"""As kernels number them (core/fold.h)."""

FOLDED_SLACK = 12
"""Bytes after the folded text that its hash reads and leaves out."""

UNITS_A_BYTE = 6
"""At most: a code point of three bytes folds to 18."""


@dataclass(frozen=True, slots=True)
class Request:
    """Documents values[offsets[i] : offsets[i + 1]], text as bytes or tokens, and what is wanted of them beside content
    and unit counts. scope_keys uint64[n]. Raises ValueError if offsets do not ascend within the values: kernels trust
    them."""

    values: U8 | I64
    offsets: I32 | I64
    scope_keys: U64 | None = None
    band_keys: bool = True
    lanes: bool = False
    shingles: bool = False

    def __post_init__(self) -> None:
        offsets = self.offsets
        if len(offsets) == 0 or (offsets[1:] < offsets[:-1]).any():
            raise ValueError("offsets must be at least one and ascend")
        if offsets[0] < 0 or offsets[-1] > len(self.values):
            raise ValueError(f"offsets reach from {offsets[0]} to {offsets[-1]}, outside of {len(self.values)} values")
        if self.scope_keys is not None and len(self.scope_keys) != len(offsets) - 1:
            raise ValueError(f"{len(self.scope_keys)} scope keys for {len(offsets) - 1} documents")


def lane_constants(seed: int, count: int) -> tuple[U32, U32]:
    """(a, b) uint32[count], from the SplitMix64 stream of the seed (docs/spec.md, section 5)."""
    x = np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    high = ((x ^ x >> np.uint64(31)) >> np.uint64(32)).astype(np.uint32)
    return high[0::2] | np.uint32(1), np.ascontiguousarray(high[1::2])


@dataclass(slots=True)
class _Slot:
    """Memory of one piece on its way: what goes up and comes down, on both sides."""

    host: Arrays[HostArray]
    device: Arrays[DeviceArray]
    unit_room: int = 0  # of the last run
    byte_room: int = 0
    done: Event | None = None

    def wait(self) -> None:
        assert self.done is not None
        self.done.synchronize()


class _Output:
    """The results of one request, as its pieces come in."""

    def __init__(self, request: Request, bands: int, lane_count: int) -> None:
        count = len(request.offsets) - 1
        self.request = request
        self.content = np.empty((count, 2), np.uint64)
        self.unit_count = np.empty(count, np.uint64)
        self.band_keys = np.empty((bands, count), np.uint64) if request.band_keys else None
        self.lanes = np.empty((count, lane_count), np.uint32) if request.lanes else None
        self.hashes: list[U32 | DeviceArray] = []
        self.shingle_offsets = np.zeros(count + 1, np.int64)  # counts, until all are known

    def signed(self, shingles: Shingles | None) -> SignedBatch:
        return SignedBatch(
            content=self.content,
            unit_count=self.unit_count,
            band_keys=self.band_keys,
            lanes=self.lanes,
            shingles=shingles,
        )


@dataclass(slots=True)
class _Piece:
    """Documents first .. last - 1 of a request. The rooms are those it is known to need."""

    output: _Output
    first: int
    last: int
    unit_room: int = 0
    byte_room: int = 0

    @property
    def count(self) -> int:
        return self.last - self.first

    @property
    def offsets(self) -> I32 | I64:
        return self.output.request.offsets[self.first : self.last + 1]

    @property
    def size(self) -> int:
        """Values: bytes of text, or tokens."""
        return int(self.offsets[-1]) - int(self.offsets[0])

    @property
    def final(self) -> bool:
        return self.last == len(self.output.unit_count)


class Signer:
    """Signs with the parameters of one run. `sign` may be called again once its last iterator is used up or closed."""

    def __init__(
        self,
        device: Device,
        params: Params,
        *,
        piece_bytes: int,
        slots: int = 3,
        workers: int = 1,
        left_bytes: int | None = None,
    ) -> None:
        """``piece_bytes`` bounds the values of a piece, and what its documents take beside them. On the device, three
        slots take up to 19 times as much for words, 29 times for characters and 8 times for tokens; more where text
        folds to more units or bytes. ``workers`` threads copy the values to pinned memory. Shingle hashes stay on the
        device as long as they leave ``left_bytes`` of it free; None: they come to the host."""
        self.left_bytes = left_bytes
        self._device, self._workers = device, workers
        self._unit, self._n = parse_shingle(params.shingle)
        self._lane_count = params.num_perm
        self._bands, self._rows = params.banding
        self._bound = max(1, min(piece_bytes, MAX_PIECE_BYTES - 1))
        self._up, self._compute, self._down = device.stream(), device.stream(), device.stream()
        self._fetch = device.stream()  # also down, of what is asked for while others wait in `_down` for kernels
        self._slots = [_Slot(Arrays(device.alloc_host), Arrays(device.alloc)) for _ in range(slots)]
        self._work: Arrays[DeviceArray] = Arrays(device.alloc, self._compute.synchronize)
        a, b = lane_constants(params.seed, -(-self._lane_count // WARP_THREADS) * WARP_THREADS)
        self._a, self._b = self._constant(a), self._constant(b)
        self._fold: tuple[DeviceArray | Scalar, ...] = ()
        if self._unit != "tokens":
            index, pages, expansions, _ = _cpu.fold_tables(params.fold)
            self._fold = (
                *(self._constant(index), self._constant(pages), self._constant(expansions)),
                np.uint32(FOLDS.index(params.fold)),
            )

    def _constant(self, values: HostArray) -> DeviceArray:
        array = sent(self._device, values, self._up)
        self._up.synchronize()
        return array

    @property
    def _width(self) -> int:
        """Bytes of a value."""
        return 8 if self._unit == "tokens" else 1

    @property
    def _document_bytes(self) -> int:
        """What a document takes on the device beside its values: offsets, counts, scope, content, keys, lanes."""
        return 48 + 8 * self._bands + 4 * self._lane_count

    def sign(self, requests: Iterable[Request]) -> Iterator[SignedBatch]:
        """The results of each request, in order. While one is waited for, the next ones are under way.

        Raises DeviceMemoryError if a single document does not fit, after the results of all requests before its own.
        """
        source = iter(requests)
        todo: deque[_Piece] = deque()
        flight: deque[_Piece] = deque()
        slots = deque(self._slots)  # those of the pieces in flight come last
        alone = False  # the next piece has the device to itself
        try:
            while True:
                if not todo and (request := next(source, None)) is not None:
                    todo.append(_Piece(_Output(request, self._bands, self._lane_count), 0, len(request.offsets) - 1))
                if todo and not flight:
                    self._check_length(todo[0])
                begin = bool(todo) and len(flight) < (1 if alone else len(slots)) and not self._too_long(todo[0])
                if not begin and not flight:
                    return
                piece = self._cut(todo) if begin else flight.popleft()
                try:
                    if begin:
                        with self._device.range("sign"):
                            self._begin(piece, slots[0])
                        slots.rotate(-1)
                        flight.append(piece)
                        continue
                    with self._device.range("signed"):
                        self._finish(piece, slots[-1 - len(flight)])
                except DeviceMemoryError as error:
                    if piece.count <= 1 and alone:
                        raise DeviceMemoryError(f"a document of {piece.size * self._width} bytes: {error}") from None
                    alone = piece.count <= 1
                    if not alone:
                        self._bound = max(1, min(self._bound, self._cost(piece)) // 2)
                    waiting = [*flight, piece] if begin else [piece, *flight]
                    todo.extendleft(reversed(waiting))
                    flight.clear()
                    self._release()
                    continue
                alone = False
                if piece.final:
                    yield piece.output.signed(self._shingles(piece.output))
        finally:
            self._synchronize()  # whatever ends this, the memory of pieces is free to be used again

    def _too_long(self, piece: _Piece) -> bool:
        """Whether positions in the first document of a piece have no room in 32 bits."""
        return piece.count > 0 and int(piece.offsets[1] - piece.offsets[0]) * self._width >= MAX_PIECE_BYTES

    def _check_length(self, piece: _Piece) -> None:
        if self._too_long(piece):
            raise DeviceMemoryError(
                f"a document of {int(piece.offsets[1] - piece.offsets[0]) * self._width} bytes is too long for the GPU "
                f"backend, which signs documents of less than {MAX_PIECE_BYTES} bytes; sign it on the CPU"
            )

    def _padded(self, size: int) -> int:
        """Text is read READ_BYTES at a time, and a word after the one that has its last byte."""
        return size if self._unit == "tokens" else -(-(size + 8) // READ_BYTES) * READ_BYTES

    def _cost(self, piece: _Piece) -> int:
        return max(piece.size * self._width, piece.count * self._document_bytes)

    def _cut(self, todo: deque[_Piece]) -> _Piece:
        """Take off the front as much as is within the bound, at least a document."""
        piece = todo.popleft()
        end = min(int(piece.offsets[0]) + self._bound // self._width, int(piece.offsets[-1]))
        fitting = int(np.searchsorted(piece.offsets, piece.offsets.dtype.type(end), "right")) - 1
        count = max(1, min(fitting, self._bound // self._document_bytes))
        if count >= piece.count:
            return piece
        middle = piece.first + count
        todo.appendleft(_Piece(piece.output, middle, piece.last))
        return _Piece(piece.output, piece.first, middle)

    def _synchronize(self) -> None:
        for stream in (self._up, self._compute, self._down, self._fetch):
            stream.synchronize()

    def _release(self) -> None:
        """Give all memory of pieces back."""
        self._synchronize()
        for slot in self._slots:
            slot.host.clear()
            slot.device.clear()
        self._work.clear()

    def _begin(self, piece: _Piece, slot: _Slot) -> None:
        """Queue all steps of a piece."""
        request, count, size = piece.output.request, piece.count, piece.size
        self._reserve(piece, slot)
        start = int(piece.offsets[0])
        padded = self._padded(size)
        _cpu.copy_values(slot.host["values"][:size], request.values[start : start + size], workers=self._workers)
        slot.host["values"][size:padded] = 0
        np.subtract(piece.offsets, start, out=slot.host["offsets"][: count + 1], casting="unsafe")
        up = {"values": padded, "offsets": count + 1}
        if request.scope_keys is not None:
            np.copyto(slot.host["scope_keys"][:count], request.scope_keys[piece.first : piece.last])
            up["scope_keys"] = count
        elif request.band_keys:
            self._device.fill(slot.device["scope_keys"][:count], 0, self._up)  # SCOPE_NONE
        for name, items in up.items():
            self._device.upload(slot.host[name][:items], slot.device[name], self._up)
        self._compute.wait(self._up.record())
        self._run(piece, slot)

    def _reserve(self, piece: _Piece, slot: _Slot) -> None:
        """All memory of a piece but that of packed shingle hashes on the host."""
        request, count, size = piece.output.request, piece.count, piece.size
        values = np.int64 if self._unit == "tokens" else np.uint8
        up: dict[str, tuple[int, npt.DTypeLike]] = {
            "values": (self._padded(size), values),
            "offsets": (count + 1, np.uint32),
        }
        if request.scope_keys is not None:
            up["scope_keys"] = (count, np.uint64)
        for name, (items, kind) in {**up, **self._down_arrays(piece)}.items():
            slot.host.reserve(name, items, kind)
            slot.device.reserve(name, items, kind)
        if request.band_keys:
            slot.device.reserve("scope_keys", count, np.uint64)
            slot.device.reserve("lanes", self._lane_count * count, np.uint32)

        slot.unit_room, slot.byte_room = size, 0
        if self._unit != "tokens":
            # A word of one letter has a separator beside it, but at a document's end; what folds to more bytes is rare.
            units = max(piece.unit_room, (size if self._unit == "char" else size // 2 + count) + 64)
            folded = max(piece.byte_room, size + size // 4 + 256)
            blocks = -(-size // (READ_BYTES * READ_THREADS))
            self._work.reserve("starts", size // 32 + 2, np.uint32)
            self._work.reserve("before", 4 * blocks * READ_THREADS, np.uint32)
            self._work.reserve("blocks", 4 * blocks, np.uint32)
            self._work.reserve("unit_start", units, np.uint32)
            self._work.reserve("shingles", units, np.uint32)
            self._work.reserve("folded", folded + FOLDED_SLACK, np.uint8)
            slot.unit_room = min(self._work["unit_start"].size, self._work["shingles"].size)
            slot.byte_room = self._work["folded"].size - FOLDED_SLACK
        else:
            self._work.reserve("shingles", size, np.uint32)
        if request.shingles:
            self._work.reserve("counts", count, np.uint32)
            self._work.reserve("shingle_offsets", count + 1, np.uint64)
            slot.device.reserve("packed", slot.unit_room, np.uint32)

    def _down_arrays(self, piece: _Piece) -> dict[str, tuple[int, npt.DTypeLike]]:
        """What comes down of a piece, as soon as it is there."""
        request, count = piece.output.request, piece.count
        arrays: dict[str, tuple[int, npt.DTypeLike]] = {"content": (2 * count, np.uint64)}
        if self._unit != "tokens":
            arrays["first"] = (count + 1, np.uint32)
            arrays["needed"] = (2, np.uint32)
        if request.band_keys:
            arrays["band_keys"] = (self._bands * count, np.uint64)
        if request.lanes:
            arrays["lanes"] = (self._lane_count * count, np.uint32)
        return arrays

    def _run(self, piece: _Piece, slot: _Slot) -> None:
        """Queue the kernels, and the way down, of a piece that is up."""
        request, count, size = piece.output.request, piece.count, piece.size
        device, shingles = slot.device, self._work["shingles"]
        documents, n = np.uint32(count), np.uint32(self._n)
        self._device.fill(device["content"][: 2 * count], 0, self._compute)
        if self._unit == "tokens":
            units, first = size, device["offsets"]
            self._launch(
                "hash_tokens", units, HASH_UNITS, HASH_THREADS,
                device["values"], first, documents, n, shingles, device["content"],
            )  # fmt: skip
        else:
            units, first = min(slot.unit_room, UNITS_A_BYTE * size), device["first"]
            self._find_units(piece, slot)
            self._launch(
                "hash_units", units, HASH_UNITS, HASH_THREADS,
                self._work["folded"], self._work["unit_start"], device["needed"], first, documents, n, shingles,
                device["content"],
            )  # fmt: skip
        if request.band_keys or request.lanes:
            self._sign_shingles(piece, slot, first, units)
        if request.shingles:
            counts, offsets = self._work["counts"], self._work["shingle_offsets"]
            self._launch("count_shingles", count, HASH_THREADS, HASH_THREADS, first, documents, n, counts)
            self._device.scan(counts[:count], offsets[: count + 1], self._compute)
            self._launch(
                "pack_shingles", units, HASH_UNITS, HASH_THREADS,
                shingles, first, offsets, documents, n, device["packed"],
            )  # fmt: skip

        self._down.wait(self._compute.record())
        for name, (items, _) in self._down_arrays(piece).items():
            self._device.download(device[name][:items], slot.host[name], self._down)
        slot.done = self._down.record()

    def _launch(self, kernel: str, items: int, block_items: int, threads: int, *args: DeviceArray | Scalar) -> None:
        self._device.launch(kernel, -(-items // block_items), threads, args, self._compute)

    def _find_units(self, piece: _Piece, slot: _Slot) -> None:
        """Text to folded bytes, the units in them, and the first unit of each document."""
        count, size, device, work = piece.count, piece.size, slot.device, self._work
        documents, needed = np.uint32(count), device["needed"]
        text = (device["values"], np.uint32(size), work["starts"], *self._fold)
        spans = (work["before"], work["blocks"])
        block_bytes = READ_BYTES * READ_THREADS
        blocks = -(-size // block_bytes)
        room = (needed, np.uint32(slot.unit_room), np.uint32(slot.byte_room))
        kind = f"{self._unit}s"
        self._device.fill(work["starts"][: size // 32 + 2], 0, self._compute)
        self._launch(
            "mark_documents", count + 1, READ_THREADS, READ_THREADS, device["offsets"], documents, work["starts"]
        )
        self._launch(f"measure_{kind}", size, block_bytes, READ_THREADS, *text, *spans)
        self._launch(f"join_{kind}", 1, 1, JOIN_THREADS, work["blocks"], np.uint32(blocks), needed)
        self._launch(
            f"find_{kind}", size, block_bytes, READ_THREADS, *text, *spans, *room, work["folded"], work["unit_start"]
        )
        self._launch(
            f"first_{kind}", count + 1, READ_THREADS, READ_THREADS,
            *text, *spans, *room, device["offsets"], documents, device["first"],
        )  # fmt: skip

    def _sign_shingles(self, piece: _Piece, slot: _Slot, first: DeviceArray, units: int) -> None:
        request, count, lanes = piece.output.request, piece.count, slot.device["lanes"]
        documents, lane_count = np.uint32(count), np.uint32(self._lane_count)
        self._device.fill(lanes[: self._lane_count * count], 0xFF, self._compute)
        self._launch(
            "sign_lanes", units, SIGN_UNITS * (SIGN_THREADS // WARP_THREADS), SIGN_THREADS,
            self._work["shingles"], first, documents, np.uint32(self._n), self._a, self._b, lane_count, lanes,
        )  # fmt: skip
        if request.band_keys:
            self._launch(
                "band_keys", count * self._bands, SIGN_THREADS, SIGN_THREADS,
                lanes, documents, lane_count, np.uint32(self._bands), np.uint32(self._rows),
                slot.device["scope_keys"], slot.device["band_keys"],
            )  # fmt: skip

    def _finish(self, piece: _Piece, slot: _Slot) -> None:
        """Wait for a piece and put its results where they belong."""
        slot.wait()
        if self._unit != "tokens":
            needed_units, needed_bytes = (int(value) for value in slot.host["needed"][:2])
            if needed_units > slot.unit_room or needed_bytes > slot.byte_room:
                piece.unit_room, piece.byte_room = needed_units, needed_bytes
                self._reserve(piece, slot)
                self._run(piece, slot)
                slot.wait()

        output, count, part = piece.output, piece.count, slice(piece.first, piece.last)
        first = slot.host["offsets" if self._unit == "tokens" else "first"][: count + 1]
        units = np.diff(first)
        output.unit_count[part] = units
        output.content[part] = slot.host["content"][: 2 * count].reshape(count, 2)
        if output.band_keys is not None:
            output.band_keys[:, part] = slot.host["band_keys"][: self._bands * count].reshape(self._bands, count)
        if output.lanes is not None:
            output.lanes[part] = slot.host["lanes"][: self._lane_count * count].reshape(count, self._lane_count)
        if output.request.shingles:
            counts = np.where(units >= self._n, units - np.uint32(self._n - 1), units > 0)
            output.shingle_offsets[piece.first + 1 : piece.last + 1] = counts
            packed = slot.device["packed"][: int(counts.sum())]
            kept = self._keep_packed(packed)
            output.hashes.append(self._fetch_packed(slot, packed) if kept is None else kept)

    def _shingles(self, output: _Output) -> Shingles | None:
        if not output.request.shingles:
            return None
        offsets = np.cumsum(output.shingle_offsets)
        on_host = [part for part in output.hashes if not isinstance(part, DeviceArray)]
        if len(on_host) < len(output.hashes):
            return DeviceShingles(self._device, self._fetch, tuple(output.hashes), offsets)
        return HostShingles(on_host[0] if len(on_host) == 1 else np.concatenate(on_host), offsets)

    def _keep_packed(self, packed: DeviceArray) -> DeviceArray | None:
        """The shingle hashes of a piece in memory of their own size, if there is room. On an H200 a copy on the device
        should go at half of 4.8 TB/s, one to the host at some 50 GB/s (by arithmetic).
        """
        if self.left_bytes is None or not packed.size:
            return None
        if self._device.free_bytes() < self.left_bytes + packed.nbytes:
            return None
        try:
            kept = self._device.alloc(packed.size, np.uint32)
        except DeviceMemoryError:
            return None
        self._device.copy(packed, kept, self._fetch)
        self._fetch.record().synchronize()  # from here on another stream may use it
        return kept

    def _fetch_packed(self, slot: _Slot, packed: DeviceArray) -> U32:
        """The shingle hashes of a piece. They come down only now that their number is known, while the device is
        busy with the next pieces: they take half of the way down, or more, and room for the most there could be is
        several times as much."""
        slot.host.reserve("packed", packed.size, np.uint32)
        self._device.download(packed, slot.host["packed"], self._fetch)
        self._fetch.record().synchronize()
        hashes = np.empty(packed.size, np.uint32)
        _cpu.copy_values(hashes, slot.host["packed"][: packed.size], workers=self._workers)
        return hashes
