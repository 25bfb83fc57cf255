"""The narrow interface between the CUDA backend and one device. Its bodies: CuPy (`cupy_device`), and the emulator of
the tests, which runs the same kernels on the CPU.

Work is ordered within a stream; nothing here waits for the device but `Stream.synchronize`, `Event.synchronize` and
`Device.alloc` when it has to take memory from the driver. Memory is given back when its last view is dropped: drop
it only when every stream that uses it was synchronised, or is waited for by the last one that uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from gpudedup.errors import DeviceMemoryError

Scalar = np.generic
HostArray = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class DeviceArray:
    """``size`` values of ``dtype`` at ``address`` on the device; ``owner`` keeps the memory."""

    address: int
    dtype: np.dtype[Any]
    size: int
    owner: object

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __getitem__(self, part: slice) -> DeviceArray:
        """A view of consecutive values; bounds as for a list."""
        start, stop, step = part.indices(self.size)
        if step != 1:
            raise ValueError(f"a view of device memory has step 1, not {step}")
        size = max(0, stop - start)
        return DeviceArray(self.address + start * self.dtype.itemsize, self.dtype, size, self.owner)

    def view(self, dtype: npt.DTypeLike) -> DeviceArray:
        """The same bytes as values of another type; a rest too short for a value is left out."""
        kind = np.dtype(dtype)
        return DeviceArray(self.address, kind, self.nbytes // kind.itemsize, self.owner)


class Event(Protocol):
    """A point in a stream."""

    def synchronize(self) -> None:
        """Wait until the device has reached it."""


class Stream(Protocol):
    """A queue of work on the device."""

    def record(self) -> Event:
        """The point that the queue has come to."""

    def wait(self, event: Event) -> None:
        """Work queued from here on starts after ``event``. The host does not wait."""

    def synchronize(self) -> None:
        """Wait until the queue is empty. Raises DeviceError if anything in it failed."""


class Device(Protocol):
    """One device. Any method may raise DeviceError when the device is lost or a launch is refused."""

    name: str
    memory_bytes: int

    def range(self, name: str) -> AbstractContextManager[None]:
        """Names what the calling thread does meanwhile, for profilers (NVTX)."""

    def free_bytes(self) -> int:
        """Bytes that could be allocated now, as far as can be told."""

    def trim(self) -> None:
        """Give memory that nobody holds any more back to the driver, pinned memory too. Waits for all streams."""

    def stream(self) -> Stream:
        """A new queue."""

    def alloc(self, size: int, dtype: npt.DTypeLike) -> DeviceArray:
        """Memory of no meaning yet, aligned to 256 bytes. Raises DeviceMemoryError without room."""

    def alloc_host(self, size: int, dtype: npt.DTypeLike) -> HostArray:
        """Host memory that the device copies from and to without a detour (pinned). Raises DeviceMemoryError."""

    def upload(self, source: HostArray, target: DeviceArray, stream: Stream) -> None:
        """Copy to the device; ``source`` stays as it is until the stream has passed the copy. Equal dtypes; source may
        be shorter."""

    def download(self, source: DeviceArray, target: HostArray, stream: Stream) -> None:
        """Copy to the host; ``target`` is good once the stream has passed the copy. Equal dtypes; source may be
        shorter."""

    def copy(self, source: DeviceArray, target: DeviceArray, stream: Stream) -> None:
        """Copy on the device. Equal dtypes; source may be shorter; they do not overlap."""

    def fill(self, target: DeviceArray, byte: int, stream: Stream) -> None:
        """Set every byte of ``target``."""

    def launch(
        self, kernel: str, blocks: int, threads: int, args: Sequence[DeviceArray | Scalar], stream: Stream
    ) -> None:
        """Run a kernel of csrc/cuda on a grid of ``blocks`` times ``threads``. Types must be those of its declaration;
        0 blocks do nothing."""

    def for_each(self, body: str, count: int, args: Sequence[DeviceArray | Scalar], stream: Stream) -> None:
        """Run a loop body of `gpudedup.kernels` for i = 0 .. count - 1, in any order."""

    def argsort(self, keys: DeviceArray, order: DeviceArray, stream: Stream) -> None:
        """order uint32[n] such that keys uint64[order] ascend, equal keys in their order. n < 2^32."""

    def sort(self, keys: DeviceArray, stream: Stream) -> None:
        """Sort uint64 in place."""

    def scan(self, values: DeviceArray, sums: DeviceArray, stream: Stream) -> None:
        """Exclusive prefix sums: sums uint64[n + 1] of values uint32[n], the total last."""


def sent(device: Device, values: HostArray, stream: Stream) -> DeviceArray:
    """A copy on the device; ``values`` stay as they are until the stream has passed it. Raises DeviceMemoryError."""
    array = device.alloc(len(values), values.dtype)
    device.upload(values, array, stream)
    return array


def fetched(device: Device, array: DeviceArray, stream: Stream) -> HostArray:
    """A copy on the host. Waits for the stream."""
    values = np.empty(array.size, array.dtype)
    device.download(array, values, stream)
    stream.synchronize()
    return values


def filled(device: Device, size: int, dtype: npt.DTypeLike, byte: int, stream: Stream) -> DeviceArray:
    """Memory of which every byte is ``byte``. Raises DeviceMemoryError."""
    array = device.alloc(size, dtype)
    device.fill(array, byte, stream)
    return array


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


Array = TypeVar("Array", bound=_Sized)


class Arrays(Generic[Array]):
    """Arrays by name that only grow. ``quiet`` waits until nothing uses one that is dropped: it and its successor need
    not fit beside each other."""

    def __init__(self, alloc: Callable[[int, npt.DTypeLike], Array], quiet: Callable[[], None] = lambda: None) -> None:
        self._alloc = alloc
        self._quiet = quiet
        self._arrays: dict[str, Array] = {}

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def reserve(self, name: str, size: int, dtype: npt.DTypeLike) -> None:
        """At least ``size`` values. What grows does so by a quarter, lest sizes that vary a little cost each time."""
        old = self._arrays.get(name)
        if old is not None and old.size >= size:
            return
        if old is not None:
            size = max(size, old.size + old.size // 4)
            self._quiet()
            del old, self._arrays[name]
        self._arrays[name] = self._alloc(max(size, 1), dtype)

    def clear(self) -> None:
        self._arrays.clear()


BLOCK_PART = 128
"""A block is this part of a device's memory, 1.1 GB of an H200's: CUDA may order all streams around an allocation
(programming guide, implicit synchronization), so there are a hundred of them and not one for each batch."""

ALIGNMENT = 256
"""Of an array in a block."""


class Blocks:
    """Memory for arrays that stay, one after another in blocks, as long as these leave ``left_bytes`` of the device.

    A block is given back with its last array; the newest is held until `clear`. ``quiet`` waits for work that may hold
    more than what is used: it is called before there is no room."""

    def __init__(self, device: Device, left_bytes: int, quiet: Callable[[], None] = lambda: None) -> None:
        self._device, self._left_bytes, self._quiet = device, left_bytes, quiet
        self._rest: DeviceArray | None = None  # of the newest

    def alloc(self, size: int, dtype: npt.DTypeLike) -> DeviceArray:
        """As `Device.alloc`, of which it is one in many calls. Raises DeviceMemoryError."""
        kind = np.dtype(dtype)
        nbytes = max(1, -(-size * kind.itemsize // ALIGNMENT)) * ALIGNMENT
        rest = self._rest
        if rest is None or rest.size < nbytes:
            rest = self._block(max(nbytes, self._device.memory_bytes // BLOCK_PART))
        self._rest = rest[nbytes:]
        return rest.view(kind)[:size]

    def clear(self) -> None:
        """Hand out nothing more of the newest block."""
        self._rest = None

    def _block(self, nbytes: int) -> DeviceArray:
        if self._device.free_bytes() < self._left_bytes + nbytes:
            self._quiet()
            if self._device.free_bytes() < self._left_bytes + nbytes:
                raise DeviceMemoryError(f"{self._device.name} would have less than {self._left_bytes} bytes left")
        return self._device.alloc(nbytes, np.uint8)
