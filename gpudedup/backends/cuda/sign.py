"""Signing on a device: documents in, signatures and content hashes out, with copies and kernels of several batches
under way at a time.

Requests are joined, and cut at document borders, into pieces large enough to keep the device busy and small enough to
fit it. A piece goes through three streams: up, kernels, down. Every step is queued at once, and the host waits for a
piece only when its results are due. What the host cannot know beforehand, how many units and folded bytes a text has,
is compared with the room on the device; where there was too little, nothing was written past it, the host reads what
is needed together with the results, and that piece goes again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup import _cpu
from gpudedup.backends.base import I32, I64, U8, U32, U64, HostShingles, Shingles, SignedBatch
from gpudedup.backends.cuda.device import Arrays, Blocks, Device, DeviceArray, Event, HostArray, Scalar, sent
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

    @property
    def wanted(self) -> tuple[bool, ...]:
        """Requests in which this is equal take the same way."""
        return self.scope_keys is not None, self.band_keys, self.lanes, self.shingles


def lane_constants(seed: int, count: int) -> tuple[U32, U32]:
    """(a, b) uint32[count], from the SplitMix64 stream of the seed (docs/spec.md, section 5)."""
    x = np.arange(1, 2 * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    high = ((x ^ x >> np.uint64(31)) >> np.uint64(32)).astype(np.uint32)
    return high[0::2] | np.uint32(1), np.ascontiguousarray(high[1::2])


def document_bytes(params: Params) -> int:
    """What a document takes on the device beside its values: offsets, counts, scope, content, keys, lanes."""
    return 48 + 8 * params.banding.bands + 4 * params.num_perm


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

    def __init__(self, request: Request) -> None:
        self.request = request
        self.parts: list[SignedBatch] = []
        self.shingle_counts: list[U64] = []
        self.hashes: list[U32 | DeviceArray] = []

    def signed(self, shingles: Shingles | None) -> SignedBatch:
        first, parts = self.parts[0], self.parts
        if len(parts) == 1:
            return replace(first, shingles=shingles)
        keys, lanes = ([part.band_keys for part in parts], [part.lanes for part in parts])
        return SignedBatch(
            content=np.concatenate([part.content for part in parts]),
            unit_count=np.concatenate([part.unit_count for part in parts]),
            band_keys=None if first.band_keys is None else np.concatenate(keys, axis=1),  # type: ignore[arg-type]
            lanes=None if first.lanes is None else np.concatenate(lanes),  # type: ignore[arg-type]
            shingles=shingles,
        )


@dataclass(frozen=True, slots=True)
class _Part:
    """Documents first .. last - 1 of a request."""

    output: _Output
    first: int
    last: int

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
        return self.last == len(self.output.request.offsets) - 1


class _Piece:
    """What goes through the device at once: parts of consecutive requests that want the same as ``request``. Part i has
    documents places[i] .. places[i + 1] - 1 of the piece."""

    def __init__(self, parts: list[_Part]) -> None:
        self.parts = parts
        self.request = parts[0].output.request
        self.places = [0, *accumulate(part.count for part in parts)]
        self.count = self.places[-1]
        self.size = sum(part.size for part in parts)


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
        self._kept = None if left_bytes is None else Blocks(device, left_bytes)
        self._device, self._workers = device, workers
        self._unit, self._n = parse_shingle(params.shingle)
        self._lane_count = params.num_perm
        self._bands, self._rows = params.banding
        self._document_bytes = document_bytes(params)
        self._bound = max(1, min(piece_bytes, MAX_PIECE_BYTES - 1))
        self._up, self._compute, self._down = device.stream(), device.stream(), device.stream()
        self._fetch = device.stream()  # also down, of what is asked for while others wait in `_down` for kernels
        quiet = self._fetch.synchronize  # all else is done when a slot is used again
        self._slots = [_Slot(Arrays(device.alloc_host), Arrays(device.alloc, quiet)) for _ in range(slots)]
        self._work: Arrays[DeviceArray] = Arrays(device.alloc, self._compute.synchronize)
        self._holding = False  # memory of pieces
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

    def sign(self, requests: Iterable[Request]) -> Iterator[SignedBatch]:
        """The results of each request, in order. While one is waited for, the next ones are under way.

        Raises DeviceMemoryError if a single document does not fit, after the results of all requests before its own.
        """
        source = iter(requests)
        todo: deque[_Part] = deque()
        flight: deque[_Piece] = deque()
        slots = deque(self._slots)  # those of the pieces in flight come last
        alone = False  # the next piece has the device to itself
        try:
            while True:
                if (todo or self._draw(source, todo)) and not flight:
                    self._check_length(todo[0])
                begin = bool(todo) and len(flight) < (1 if alone else len(slots)) and not self._too_long(todo[0])
                if not begin and not flight:
                    return
                piece = self._next_piece(source, todo) if begin else flight.popleft()
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
                        self._bound = max(1, min(self._bound, self._cost(piece.size, piece.count)) // 2)
                    waiting = [*flight, piece] if begin else [piece, *flight]
                    todo.extendleft(part for each in reversed(waiting) for part in reversed(each.parts))
                    flight.clear()
                    self.release()
                    continue
                alone = False
                for part in piece.parts:
                    if part.final:
                        yield part.output.signed(self._shingles(part.output))
        finally:
            self._synchronize()  # whatever ends this, the memory of pieces is free to be used again

    def keep_no_shingles(self) -> None:
        """From here on shingle hashes come to the host."""
        self._kept = None

    def release(self) -> None:
        """Give all memory of pieces back, if there is any. The next ones take it anew."""
        if not self._holding:
            return
        self._synchronize()
        if self._kept is not None:
            self._kept.clear()
        for slot in self._slots:
            slot.host.clear()
            slot.device.clear()
        self._work.clear()
        self._holding = False
        self._device.trim()

    def _draw(self, source: Iterator[Request], todo: deque[_Part]) -> bool:
        """Put the next request, if there is one, behind those that wait."""
        request = next(source, None)
        if request is not None:
            todo.append(_Part(_Output(request), 0, len(request.offsets) - 1))
        return request is not None

    def _too_long(self, part: _Part) -> bool:
        """Whether positions in the first document have no room in 32 bits."""
        return part.count > 0 and int(part.offsets[1] - part.offsets[0]) * self._width >= MAX_PIECE_BYTES

    def _check_length(self, part: _Part) -> None:
        if self._too_long(part):
            raise DeviceMemoryError(
                f"a document of {int(part.offsets[1] - part.offsets[0]) * self._width} bytes is too long for the GPU "
                f"backend, which signs documents of less than {MAX_PIECE_BYTES} bytes; sign it on the CPU"
            )

    def _padded(self, size: int) -> int:
        """Text is read READ_BYTES at a time, and a word after the one that has its last byte."""
        return size if self._unit == "tokens" else -(-(size + 8) // READ_BYTES) * READ_BYTES

    def _cost(self, size: int, count: int) -> int:
        """What the bound of a piece bounds."""
        return max(size * self._width, count * self._document_bytes)

    def _next_piece(self, source: Iterator[Request], todo: deque[_Part]) -> _Piece:
        """Take off the front what is within the bound: of the first request as much as fits, at least a document; of
        those that follow and want the same, each as a whole, so that its results need not be put together.
        """
        first = todo.popleft()
        end = min(int(first.offsets[0]) + self._bound // self._width, int(first.offsets[-1]))
        fitting = int(np.searchsorted(first.offsets, first.offsets.dtype.type(end), "right")) - 1
        middle = first.first + max(1, min(fitting, self._bound // self._document_bytes))
        if middle < first.last:
            todo.appendleft(_Part(first.output, middle, first.last))
            return _Piece([_Part(first.output, first.first, middle)])
        parts, size, count, wanted = [first], first.size, first.count, first.output.request.wanted
        # A document that is a piece by itself must not get a piece that others' results wait for, so no empty ones.
        while parts[-1].count and (todo or self._draw(source, todo)):
            size, count = size + todo[0].size, count + todo[0].count
            if todo[0].output.request.wanted != wanted or self._cost(size, count) > self._bound:
                break
            parts.append(todo.popleft())
        return _Piece(parts)

    def _synchronize(self) -> None:
        for stream in (self._up, self._compute, self._down, self._fetch):
            stream.synchronize()

    def _begin(self, piece: _Piece, slot: _Slot) -> None:
        """Queue all steps of a piece."""
        count, size = piece.count, piece.size
        self._reserve(piece, slot)
        values, offsets, done = slot.host["values"], slot.host["offsets"], 0
        for part, place in zip(piece.parts, piece.places, strict=False):
            request, start = part.output.request, int(part.offsets[0])
            text = request.values[start : start + part.size]
            _cpu.copy_values(values[done : done + part.size], text, workers=self._workers)
            np.subtract(part.offsets, start - done, out=offsets[place : place + part.count + 1], casting="unsafe")
            if request.scope_keys is not None:
                slot.host["scope_keys"][place : place + part.count] = request.scope_keys[part.first : part.last]
            done += part.size
        padded = self._padded(size)
        values[size:padded] = 0
        up = {"values": padded, "offsets": count + 1}
        if piece.request.scope_keys is not None:
            up["scope_keys"] = count
        elif piece.request.band_keys:
            self._device.fill(slot.device["scope_keys"][:count], 0, self._up)  # SCOPE_NONE
        for name, items in up.items():
            self._device.upload(slot.host[name][:items], slot.device[name], self._up)
        self._compute.wait(self._up.record())
        self._run(piece, slot)

    def _reserve(self, piece: _Piece, slot: _Slot, needed_units: int = 0, needed_bytes: int = 0) -> None:
        """All memory of a piece but that of packed shingle hashes on the host. needed: as far as it is known."""
        request, count, size = piece.request, piece.count, piece.size
        self._holding = True
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
            units = max(needed_units, (size if self._unit == "char" else size // 2 + count) + 64)
            folded = max(needed_bytes, size + size // 4 + 256)
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
        request, count = piece.request, piece.count
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
        request, count, size = piece.request, piece.count, piece.size
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
        request, count, lanes = piece.request, piece.count, slot.device["lanes"]
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
                self._reserve(piece, slot, needed_units, needed_bytes)
                self._run(piece, slot)
                slot.wait()

        first = slot.host["offsets" if self._unit == "tokens" else "first"][: piece.count + 1]
        units = np.diff(first).astype(np.uint64)
        bands, width = self._bands * piece.request.band_keys, self._lane_count * piece.request.lanes
        content = self._copied(slot, "content", 0, 2 * piece.count).reshape(piece.count, 2)
        keys = self._copied(slot, "band_keys", 0, bands * piece.count).reshape(bands, piece.count) if bands else None
        lanes = self._copied(slot, "lanes", 0, width * piece.count).reshape(piece.count, width) if width else None
        shingle_counts = np.where(units >= self._n, units - (self._n - 1), units > 0)
        hashes = self._hashes(piece, slot, shingle_counts) if piece.request.shingles else []  # may find no room
        for part, (low, high) in zip(piece.parts, pairwise(piece.places), strict=True):
            part.output.parts.append(
                SignedBatch(
                    content=content[low:high],
                    unit_count=units[low:high],
                    band_keys=None if keys is None else keys[:, low:high],
                    lanes=None if lanes is None else lanes[low:high],
                    shingles=None,
                )
            )
            part.output.shingle_counts.append(shingle_counts[low:high])
        for part, of_part in zip(piece.parts, hashes, strict=False):
            part.output.hashes.append(of_part)

    def _copied(self, slot: _Slot, name: str, first: int, last: int) -> npt.NDArray[Any]:
        """Values of a host array of a slot, which the next piece will write to."""
        values = slot.host[name][first:last]
        copy = np.empty_like(values)
        _cpu.copy_values(copy, values, workers=self._workers)
        return copy

    def _hashes(self, piece: _Piece, slot: _Slot, counts: U64) -> list[U32 | DeviceArray]:
        """The shingle hashes of each part of a piece. counts: of each document."""
        ends = np.concatenate([np.zeros(1, np.uint64), counts]).cumsum()[piece.places].tolist()
        packed = slot.device["packed"][: ends[-1]]
        kept = self._keep_packed(packed)
        if kept is not None:
            return [kept[first:last] for first, last in pairwise(ends)]
        self._fetch_packed(slot, packed)
        return [self._copied(slot, "packed", first, last) for first, last in pairwise(ends)]

    def _shingles(self, output: _Output) -> Shingles | None:
        if not output.request.shingles:
            return None
        offsets = np.concatenate([np.zeros(1, np.uint64), *output.shingle_counts]).cumsum().astype(np.int64)
        on_host = [part for part in output.hashes if not isinstance(part, DeviceArray)]
        if len(on_host) < len(output.hashes):
            return DeviceShingles(self._device, self._fetch, tuple(output.hashes), offsets)
        return HostShingles(on_host[0] if len(on_host) == 1 else np.concatenate(on_host), offsets)

    def _keep_packed(self, packed: DeviceArray) -> DeviceArray | None:
        """The shingle hashes of a piece in memory of their own size, if there is room. On an H200 a copy on the device
        should go at half of 4.8 TB/s, one to the host at some 50 GB/s (by arithmetic).
        """
        if self._kept is None or not packed.size:
            return None
        try:
            kept = self._kept.alloc(packed.size, np.uint32)
        except DeviceMemoryError:
            return None
        self._device.copy(packed, kept, self._fetch)
        self._compute.wait(self._fetch.record())  # the next piece of this slot writes there
        return kept

    def _fetch_packed(self, slot: _Slot, packed: DeviceArray) -> None:
        """The shingle hashes of a piece to the host. They come down only now that their number is known, while the
        device is busy with the next pieces: they take half of the way down, or more, and room for the most there could
        be is several times as much."""
        slot.host.reserve("packed", packed.size, np.uint32)
        self._device.download(packed, slot.host["packed"], self._fetch)
        self._fetch.record().synchronize()
