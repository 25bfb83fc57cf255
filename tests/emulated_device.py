"""A `Device` of memory of this process and kernels that run on the CPU, as unkind as the interface allows.

Copies and kernels are queued and run when something waits for them, at once, or at random, as ``timing`` says. Memory
comes filled with a pattern, lies between guards, and is filled again when it is dropped. What a caller must not do
raises EmulationError, so also the use of the same bytes by two streams without a wait between them (but for what loop
bodies write, which nothing declares). What a caller must be ready for is done to it on order (`Faults`).
"""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import emulator
import numpy as np
import numpy.typing as npt
from emulator import EmulationError, Emulator, Order

from gpudedup.backends.cuda.device import DeviceArray, HostArray, Scalar
from gpudedup.errors import DeviceError, DeviceMemoryError

ALIGNMENT = 256
GUARD_BYTES = 1024
GUARD = 0xA7
DROPPED = 0xEE
FRESH = {"forward": 0xCD, "reverse": 0x37}  # and random bytes in random order: what is read unwritten differs

Timing = Literal["late", "early", "random"]


@dataclass(slots=True)
class Counters:
    """What was asked of the device; bytes of copies by direction."""

    calls: int = 0
    launches: int = 0
    loops: int = 0
    sorts: int = 0
    scans: int = 0
    fills: int = 0
    copies: int = 0
    synchronisations: int = 0
    uploads: int = 0
    downloads: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    allocations: int = 0
    host_allocations: int = 0
    memory_questions: int = 0
    peak_bytes: int = 0


@dataclass(slots=True)
class Faults:
    """Which call fails, counted from 1 as `Counters` does: one that finds no room, a launch that is refused, and the
    call from which on the device is lost."""

    allocation: int | None = None
    host_allocation: int | None = None
    launch: int | None = None
    lost: int | None = None


class Allocation:
    """Bytes between two guards, and the streams that have used them."""

    def __init__(self, nbytes: int, pattern: npt.NDArray[np.uint8] | int) -> None:
        self._whole = np.full(nbytes + 2 * GUARD_BYTES + 2 * ALIGNMENT, GUARD, np.uint8)
        begin = GUARD_BYTES + -(self._whole.ctypes.data + GUARD_BYTES) % ALIGNMENT
        if (self._whole.ctypes.data + begin) % (2 * ALIGNMENT) == 0:
            begin += ALIGNMENT  # not aligned to more than was promised
        self.content = self._whole[begin : begin + nbytes]
        self.content[:] = pattern
        self.address = self.content.ctypes.data
        self.guards = (self._whole[begin - GUARD_BYTES : begin], self._whole[begin + nbytes :][:GUARD_BYTES])
        self._last: dict[tuple[int, int, EmulatedStream, bool], int] = {}  # begin, end, stream, writes: item of stream

    def access(self, array: DeviceArray, stream: EmulatedStream, item: int, *, writes: bool) -> None:
        """Note a use; raise EmulationError if nothing keeps it apart from one on another stream."""
        begin, end = array.address, array.address + array.nbytes
        if array.size == 0:
            return
        for (first, last, other, wrote), position in self._last.items():
            apart = stream is other or end <= first or last <= begin or stream.knows.get(other, 0) >= position
            if (writes or wrote) and not apart:
                raise EmulationError(
                    f"{array.size} values of {array.dtype} are {'written' if writes else 'read'} on one stream without "
                    f"a wait for another that {'writes' if wrote else 'reads'} them"
                )
        self._last[begin, end, stream, writes] = item

    def streams(self, knows: dict[EmulatedStream, int]) -> set[EmulatedStream]:
        """Those that may still use it; of the others nothing is remembered."""
        self._last = {use: item for use, item in self._last.items() if knows.get(use[2], 0) < item}
        return {stream for _, _, stream, _ in self._last}

    def in_order(self, knows: dict[EmulatedStream, int]) -> bool:
        """Whether one of those streams comes after all uses on the others."""
        streams, uses = self.streams(knows), self._last.items()
        return not streams or any(
            all(stream is use[2] or stream.knows.get(use[2], 0) >= item for use, item in uses) for stream in streams
        )

    def check(self, after: str) -> None:
        for guard, side in zip(self.guards, ("before", "behind"), strict=True):
            if (guard != GUARD).any():
                raise EmulationError(f"{after} wrote {side} device memory of {self.content.size} bytes")


class Memory:
    """The owner that callers hold; memory is given back with it."""

    def __init__(self, device: EmulatedDevice, allocation: Allocation) -> None:
        self.device = device
        self.allocation = allocation

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.device._drop(self.allocation)


@dataclass(slots=True)
class Work:
    """Something queued: what it does, and the memory that it uses until then."""

    run: Callable[[], None]
    memory: tuple[Allocation, ...] = ()
    host: HostArray | None = None


@dataclass(slots=True)
class Wait:
    event: EmulatedEvent


@dataclass(frozen=True, slots=True, eq=False)
class EmulatedEvent:
    """The first ``position`` items of a stream; ``knows`` what is done once they are, by stream."""

    stream: EmulatedStream
    position: int
    knows: dict[EmulatedStream, int]

    def synchronize(self) -> None:
        self.stream.device._synchronize(self)


@dataclass(slots=True, eq=False)
class EmulatedStream:
    device: EmulatedDevice
    queue: deque[Work | Wait] = field(default_factory=deque)
    passed: int = 0
    knows: dict[EmulatedStream, int] = field(default_factory=dict)

    def record(self) -> EmulatedEvent:
        self.device._enter()
        return self.event()

    def wait(self, event: EmulatedEvent) -> None:
        self.device._enter()
        merge(self.knows, event.knows)
        self.device._queue(self, Wait(event))

    def synchronize(self) -> None:
        self.device._synchronize(self.event())

    def event(self) -> EmulatedEvent:
        return EmulatedEvent(self, self.end, {**self.knows, self: self.end})

    @property
    def end(self) -> int:
        return self.passed + len(self.queue)

    def ready(self) -> bool:
        if not self.queue:
            return False
        head = self.queue[0]
        return isinstance(head, Work) or head.event.stream.passed >= head.event.position

    def step(self) -> None:
        head = self.queue[0]
        if isinstance(head, Work):
            head.run()
        self.queue.popleft()
        self.passed += 1


def merge(knows: dict[EmulatedStream, int], other: dict[EmulatedStream, int]) -> None:
    """What is known to be done: the first so many items of each stream (a vector clock; Fidge 1988, Mattern 1989)."""
    for stream, position in other.items():
        knows[stream] = max(position, knows.get(stream, 0))


class EmulatedDevice:
    """``order`` and ``seed`` are those of kernels; ``timing`` says when queued work runs."""

    name = "emulated device"

    def __init__(
        self,
        *,
        memory_bytes: int = 1 << 30,
        order: Order = "forward",
        timing: Timing = "late",
        seed: int = 0,
        faults: Faults | None = None,
        kernels: Emulator | None = None,
    ) -> None:
        self.memory_bytes = memory_bytes
        self.counters = Counters()
        self.ranges: list[str] = []
        self.faults = faults or Faults()
        self._kernels = kernels or emulator.kernels()
        self._order = order
        self._timing = timing
        self._random = random.Random(seed)
        self._patterns = np.random.default_rng(seed)
        self._used = 0
        self._living: dict[int, Allocation] = {}
        self._streams: list[EmulatedStream] = []
        self._error: EmulationError | None = None
        self._host_knows: dict[EmulatedStream, int] = {}

    # The interface of gpudedup.backends.cuda.device.Device.

    def range(self, name: str) -> AbstractContextManager[None]:
        self.ranges.append(name)
        return nullcontext()

    def free_bytes(self) -> int:
        self._enter()
        self.counters.memory_questions += 1
        return self.memory_bytes - self._used

    def trim(self) -> None:
        """Nothing is kept of what was dropped."""
        self._enter()
        for stream in self._streams:
            stream.synchronize()

    def stream(self) -> EmulatedStream:
        self._enter()
        self._streams.append(EmulatedStream(self))
        return self._streams[-1]

    def alloc(self, size: int, dtype: npt.DTypeLike) -> DeviceArray:
        self._enter()
        self.counters.allocations += 1
        kind = np.dtype(dtype)
        nbytes = size * kind.itemsize
        if self.counters.allocations == self.faults.allocation or self._used + reserved(nbytes) > self.memory_bytes:
            raise DeviceMemoryError(
                f"no room for {nbytes} bytes on the device: {self._used} of {self.memory_bytes} are taken"
            )
        allocation = Allocation(nbytes, self._fresh(nbytes))
        self._living[allocation.address] = allocation
        for guard in allocation.guards:
            self._kernels.poison(guard.ctypes.data, guard.size, True)
        self._used += reserved(nbytes)
        self.counters.peak_bytes = max(self.counters.peak_bytes, self._used)
        return DeviceArray(allocation.address, kind, size, Memory(self, allocation))

    def alloc_host(self, size: int, dtype: npt.DTypeLike) -> HostArray:
        self._enter()
        self.counters.host_allocations += 1
        if self.counters.host_allocations == self.faults.host_allocation:
            raise DeviceMemoryError(f"no room for {size} values of {np.dtype(dtype)} in pinned host memory")
        array = np.empty(size, dtype)
        array.view(np.uint8)[:] = self._fresh(array.nbytes)
        return array

    def upload(self, source: HostArray, target: DeviceArray, stream: EmulatedStream) -> None:
        self._enter()
        check_copy("upload", source, source.size, target.dtype, target.size)
        self.counters.uploads += 1
        self.counters.bytes_up += source.nbytes
        values, content = source.copy(), self._bytes(target)[: source.nbytes]

        def run() -> None:
            if not np.array_equal(source.view(np.uint8), values.view(np.uint8)):
                raise EmulationError(f"the {values.size} values of an upload were changed before the copy")
            content[:] = values.view(np.uint8)

        self._submit(stream, run, writes=[target[: source.size]], host=source)

    def download(self, source: DeviceArray, target: HostArray, stream: EmulatedStream) -> None:
        self._enter()
        check_copy("download", target, source.size, source.dtype, target.size)
        self.counters.downloads += 1
        self.counters.bytes_down += source.nbytes
        host, content = target[: source.size].view(np.uint8), self._bytes(source)
        queued = (work.host for each in self._streams for work in each.queue if isinstance(work, Work))
        if not any(other is not None and np.may_share_memory(host, other) for other in queued):
            host[:] = self._fresh(host.nbytes)  # it has no meaning until the stream has passed

        def run() -> None:
            host[:] = content

        self._submit(stream, run, reads=[source], host=host)

    def copy(self, source: DeviceArray, target: DeviceArray, stream: EmulatedStream) -> None:
        self._enter()
        require("copy", source.dtype == target.dtype and source.size <= target.size)
        self.counters.copies += 1
        begin, end = target.address, target.address + source.nbytes
        require("copy", end <= source.address or source.address + source.nbytes <= begin)
        given, content = self._bytes(source), self._bytes(target)[: source.nbytes]

        def run() -> None:
            content[:] = given

        self._submit(stream, run, reads=[source], writes=[target[: source.size]])

    def fill(self, target: DeviceArray, byte: int, stream: EmulatedStream) -> None:
        self._enter()
        self.counters.fills += 1
        content = self._bytes(target)
        self._submit(stream, lambda: content.fill(byte), writes=[target])

    def launch(
        self, kernel: str, blocks: int, threads: int, args: Sequence[DeviceArray | Scalar], stream: EmulatedStream
    ) -> None:
        self._enter()
        self._kernels.check(kernel, blocks, threads, args)
        self.counters.launches += 1
        if self.counters.launches == self.faults.launch:
            raise DeviceError(f"the device refused to launch {kernel}")
        bare = [without_owner(arg) for arg in args]
        seed = self._random.getrandbits(64)

        def run() -> None:
            self._kernels.launch(kernel, blocks, threads, bare, self._order, seed)
            self.check_guards(f"kernel {kernel}")

        arrays: tuple[list[DeviceArray], list[DeviceArray]] = ([], [])
        for parameter, arg in zip(self._kernels.signatures[kernel].parameters, args, strict=True):
            if isinstance(arg, DeviceArray):
                arrays[parameter.writes].append(arg)
        if blocks > 0:
            self._submit(stream, run, reads=arrays[False], writes=arrays[True])

    def for_each(self, body: str, count: int, args: Sequence[DeviceArray | Scalar], stream: EmulatedStream) -> None:
        self._enter()
        self.counters.loops += 1
        turns = np.arange(count, dtype=np.int64)
        if self._order == "reverse":
            turns = turns[::-1].copy()
        elif self._order == "random":
            turns = np.random.default_rng(self._random.getrandbits(64)).permutation(turns)
        values = [self._values(arg) if isinstance(arg, DeviceArray) else arg for arg in args]
        function = loop(body)

        def run() -> None:
            try:
                function(turns, *values)
            except (IndexError, OverflowError) as error:
                raise EmulationError(f"loop body {body}: {error}") from error

        self._submit(stream, run, reads=[arg for arg in args if isinstance(arg, DeviceArray)])

    def argsort(self, keys: DeviceArray, order: DeviceArray, stream: EmulatedStream) -> None:
        self._enter()
        require("argsort", keys.dtype == np.uint64 and order.dtype == np.uint32 and keys.size == order.size)
        self.counters.sorts += 1
        given, result = self._values(keys), self._values(order)

        def run() -> None:
            result[:] = np.argsort(given, kind="stable")

        self._submit(stream, run, reads=[keys], writes=[order])

    def sort(self, keys: DeviceArray, stream: EmulatedStream) -> None:
        self._enter()
        require("sort", keys.dtype == np.uint64)
        self.counters.sorts += 1
        self._submit(stream, self._values(keys).sort, writes=[keys])

    def scan(self, values: DeviceArray, sums: DeviceArray, stream: EmulatedStream) -> None:
        self._enter()
        require("scan", values.dtype == np.uint32 and sums.dtype == np.uint64 and sums.size == values.size + 1)
        self.counters.scans += 1
        given, result = self._values(values), self._values(sums)

        def run() -> None:
            result[0] = 0
            np.cumsum(given, dtype=np.uint64, out=result[1:])

        self._submit(stream, run, reads=[values], writes=[sums])

    # What tests look at.

    @property
    def used_bytes(self) -> int:
        """Bytes of living allocations, each rounded up as an allocator would."""
        return self._used

    def check_guards(self, after: str) -> None:
        """Raise EmulationError if ``after`` wrote outside of any living allocation."""
        if not emulator.address_sanitizer():  # which reports it where it happens
            for allocation in self._living.values():
                allocation.check(after)

    def check(self) -> None:
        """Raise EmulationError for what was found where nothing could be raised."""
        if self._error is not None:
            raise self._error
        self.check_guards("something")

    # Memory.

    def _fresh(self, nbytes: int) -> npt.NDArray[np.uint8] | int:
        if self._order in FRESH:
            return FRESH[self._order]
        return self._patterns.integers(1, 256, nbytes, dtype=np.uint8)

    def _drop(self, allocation: Allocation) -> None:
        """Called as the last view goes: the next allocation may get the same bytes at once."""
        queue = (work for stream in self._streams for work in stream.queue if isinstance(work, Work))
        queued = any(allocation in work.memory for work in queue)
        self._used -= reserved(allocation.content.size)
        del self._living[allocation.address]
        for guard in allocation.guards:
            self._kernels.poison(guard.ctypes.data, guard.size, False)
        if queued and not allocation.in_order(self._host_knows):
            using = allocation.streams(self._host_knows)
            self._error = EmulationError(
                f"device memory of {allocation.content.size} bytes was dropped while {len(using)} streams use it"
            )
        elif not queued:
            allocation.content[:] = DROPPED

    def _bytes(self, array: DeviceArray) -> npt.NDArray[np.uint8]:
        allocation = allocation_of(array)
        begin = array.address - allocation.address
        return allocation.content[begin : begin + array.nbytes]

    def _values(self, array: DeviceArray) -> npt.NDArray[Any]:
        return self._bytes(array).view(array.dtype)

    # Time.

    def _enter(self) -> None:
        self.counters.calls += 1
        if self._error is not None:
            raise self._error
        if self.faults.lost is not None and self.counters.calls >= self.faults.lost:
            raise DeviceError("the device is lost")

    def _submit(
        self,
        stream: EmulatedStream,
        run: Callable[[], None],
        *,
        reads: Sequence[DeviceArray] = (),
        writes: Sequence[DeviceArray] = (),
        host: HostArray | None = None,
    ) -> None:
        if stream.device is not self:
            raise EmulationError("a stream of another device")
        merge(stream.knows, self._host_knows)
        position = stream.end + 1
        memory = []
        for array, written in [*((each, False) for each in reads), *((each, True) for each in writes)]:
            allocation = allocation_of(array)
            if self._living.get(allocation.address) is not allocation:
                raise EmulationError("device memory of another device")
            allocation.access(array, stream, position, writes=written)
            memory.append(allocation)
        self._queue(stream, Work(run, tuple(memory), host))

    def _queue(self, stream: EmulatedStream, item: Work | Wait) -> None:
        stream.queue.append(item)
        if self._timing == "early":
            self._run_until(stream, stream.end)
        elif self._timing == "random":
            self._run_some()

    def _synchronize(self, event: EmulatedEvent) -> None:
        self._enter()
        self.counters.synchronisations += 1
        if self._timing == "random":
            self._run_some()
        self._run_until(event.stream, event.position)
        merge(self._host_knows, event.knows)
        for allocation in self._living.values():
            allocation.streams(self._host_knows)
        self.check()

    def _run_some(self) -> None:
        """Work of any streams, as far as events allow and chance wants."""
        while self._random.random() < 0.5 and (ready := [each for each in self._streams if each.ready()]):
            self._random.choice(ready).step()

    def _run_until(self, stream: EmulatedStream, position: int) -> None:
        """No more than is needed."""
        while stream.passed < position:
            head = stream.queue[0]
            if isinstance(head, Wait):
                self._run_until(head.event.stream, head.event.position)
            stream.step()


def reserved(nbytes: int) -> int:
    """What an allocation takes of the device's memory: CuPy's pool gives multiples of 512 bytes."""
    return max(1, -(-nbytes // 512)) * 512


def allocation_of(array: DeviceArray) -> Allocation:
    if not isinstance(array.owner, Memory):
        raise EmulationError(f"an array of {array.size} values is not of this device")
    allocation = array.owner.allocation
    begin = array.address - allocation.address
    if not 0 <= begin <= begin + array.nbytes <= allocation.content.size:
        raise EmulationError(
            f"bytes {begin} to {begin + array.nbytes} of device memory of {allocation.content.size} bytes"
        )
    if begin % array.dtype.itemsize:
        raise EmulationError(f"values of {array.dtype} at byte {begin} of device memory are not aligned")
    return allocation


def without_owner(arg: DeviceArray | Scalar) -> DeviceArray | Scalar:
    """What is queued must not keep the memory: its user has to."""
    return DeviceArray(arg.address, arg.dtype, arg.size, None) if isinstance(arg, DeviceArray) else arg


def check_copy(what: str, host: HostArray, size: int, dtype: np.dtype[Any], room: int) -> None:
    if not (host.flags.c_contiguous and host.ndim == 1):
        raise EmulationError(f"{what} of host memory that is not one run of values: shape {host.shape}")
    if host.dtype != dtype or size > room:
        raise EmulationError(
            f"{what} of {size} values, {host.dtype} on the host and {dtype} on the device, into {room}"
        )


def require(what: str, holds: bool) -> None:
    if not holds:
        raise EmulationError(f"{what} of arrays whose types or sizes are not those that it takes")


@cache
def loop(body: str) -> Callable[..., None]:
    """A loop over a body of `gpudedup.kernels`, compiled if numba is there."""
    from gpudedup.kernels import BODIES

    function = BODIES[body]
    try:
        from numba import njit
    except ImportError:
        compiled = function
    else:
        compiled = njit(boundscheck=True)(function)

    def run(turns: npt.NDArray[np.int64], *args: Any) -> None:
        for i in turns:
            compiled(i, *args)

    return run if compiled is function else njit(run)
