"""A GPU, through CuPy: memory, streams, copies, kernels compiled by NVRTC, sorting; Numba for the loop bodies.

Each call makes its device current in the thread it comes from, for as long as it takes. A stream keeps what its queued
work reads and writes until it was waited for: memory that is dropped before is not handed out again meanwhile.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from gpudedup.backends.cuda import device, program
from gpudedup.backends.cuda.detect import first_line, import_cupy
from gpudedup.backends.cuda.device import DeviceArray, HostArray, Scalar
from gpudedup.errors import DeviceError, DeviceMemoryError

LOOP_THREADS, MIN_LOOP_BLOCKS, MAX_LOOP_BLOCKS = 256, 128, 1 << 14
"""The grid of a loop: at most 4 Mi threads, each going on in steps of that many. Numba warns below 128 blocks."""

LOG_LINES = 12
"""As much is shown of the compiler's log; its first error stands first."""

# Of cudaError_t and CUresult, which share these values (CUDA Runtime API, enum cudaError).
_OUT_OF_MEMORY = 2
_KERNEL_FAILED = frozenset((700, 702, 710, 714, 715, 716, 717, 718, 719))  # illegal address ... launch failure
_DEVICE_LOST = frozenset((4, 46, 100, 101, 201, 214, 220, 226, 709, 999))  # unavailable, ECC, NVLink, context, unknown
_IMAGE_REFUSED = frozenset((200, 209, 218))  # invalid image, none for this GPU, invalid PTX

_MISTAKES = (DeviceError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""Errors that are what they say; any other that comes out of CuPy or Numba means that the device failed."""


class CupyEvent:
    """A point in a stream."""

    def __init__(self, stream: CupyStream, handle: Any, mark: int) -> None:
        self.handle = handle
        self._stream = stream
        self._mark = mark

    def synchronize(self) -> None:
        with self._stream.device.current("waiting for work"):
            self.handle.synchronize()
        self.release()

    def release(self) -> None:
        """Let go of what work before the event, which is done, used."""
        self._stream.release(self._mark)


class CupyStream:
    """A queue of work, independent of the default stream."""

    def __init__(self, device: CupyDevice, handle: Any) -> None:
        self.device = device
        self.handle = handle
        self._lock = threading.Lock()
        self._used: deque[object] = deque()  # what queued work uses, and events it waits for, oldest first
        self._released = 0  # as many were let go of so far

    def keep(self, *used: object) -> None:
        """Hold what was just queued uses."""
        with self._lock:
            self._used.extend(used)

    def mark(self) -> int:
        """The point that the queue has come to, for `release`."""
        with self._lock:
            return self._released + len(self._used)

    def release(self, mark: int) -> None:
        """Let go of what work before ``mark``, which is done, used; in the streams that it waited for too."""
        passed = []
        with self._lock:
            while self._released < mark:
                used = self._used.popleft()
                self._released += 1
                if isinstance(used, CupyEvent):
                    passed.append(used)
        for event in passed:
            event.release()

    def record(self) -> CupyEvent:
        mark = self.mark()
        with self.device.current("recording an event"):
            handle = self.device.cupy.cuda.Event(disable_timing=True)
            handle.record(self.handle)
        return CupyEvent(self, handle, mark)

    def wait(self, event: device.Event) -> None:
        assert isinstance(event, CupyEvent)
        with self.device.current("ordering two streams"):
            self.handle.wait_event(event.handle)
        self.keep(event)

    def synchronize(self) -> None:
        mark = self.mark()
        with self.device.current("waiting for work"):
            self.handle.synchronize()
        self.release(mark)


class _Interface:
    """A device array as Numba takes it (CUDA Array Interface, version 3); no stream, so that nothing waits."""

    def __init__(self, array: DeviceArray) -> None:
        self.__cuda_array_interface__ = {
            "shape": (array.size,),
            "typestr": array.dtype.str,
            "data": (array.address, False),
            "version": 3,
        }


class CupyDevice:
    """GPU number ``index``, as CUDA_VISIBLE_DEVICES counts. Raises DeviceError if it cannot be used."""

    def __init__(self, index: int) -> None:
        self.name = f"cuda:{index}"  # as errors call it until it has told its name
        self.index = index
        try:
            self.cupy = import_cupy()
        except Exception as error:
            raise DeviceError(f"CuPy cannot be imported: {first_line(error)}") from error
        with self.current("opening it"):
            properties = self.cupy.cuda.runtime.getDeviceProperties(index)
            self._pool = self.cupy.cuda.MemoryPool()
            self._pinned = self.cupy.cuda.PinnedMemoryPool()
        self.name = properties["name"].decode(errors="replace")
        self.memory_bytes = int(properties["totalGlobalMem"])
        self._streams: weakref.WeakSet[CupyStream] = weakref.WeakSet()
        self._module = self.cupy.RawModule(code=program.translation_unit(), options=program.options())
        self._kernels: dict[str, Any] = {}
        self._lock = threading.RLock()

    @contextmanager
    def current(self, doing: str) -> Iterator[None]:
        """Make this device current; errors of CUDA become DeviceError or DeviceMemoryError, others pass."""
        try:
            with self.cupy.cuda.Device(self.index):
                yield
        except _MISTAKES:
            raise
        except Exception as error:
            raise self._device_error(error, doing) from error

    @contextmanager
    def range(self, name: str) -> Iterator[None]:
        self.cupy.cuda.nvtx.RangePush(f"gpudedup {name}")
        try:
            yield
        finally:
            self.cupy.cuda.nvtx.RangePop()

    def free_bytes(self) -> int:
        with self.current("asking for free memory"):
            free, _ = self.cupy.cuda.runtime.memGetInfo()
            return int(free) + int(self._pool.free_bytes())

    def trim(self) -> None:
        self._reclaim()
        with self.current("giving memory back"):
            self._pool.free_all_blocks()
            self._pinned.free_all_blocks()

    def stream(self) -> CupyStream:
        with self.current("making a stream"):
            stream = CupyStream(self, self.cupy.cuda.Stream(non_blocking=True))
        with self._lock:
            self._streams.add(stream)
        return stream

    def alloc(self, size: int, dtype: npt.DTypeLike) -> DeviceArray:
        kind = np.dtype(dtype)
        if size == 0:
            return DeviceArray(0, kind, 0, None)
        with self.current(f"allocating {size * kind.itemsize:,} bytes"):
            try:
                memory = self._pool.malloc(size * kind.itemsize)
            except self.cupy.cuda.memory.OutOfMemoryError:
                self._reclaim()
                memory = self._pool.malloc(size * kind.itemsize)
        return DeviceArray(memory.ptr, kind, size, memory)

    def alloc_host(self, size: int, dtype: npt.DTypeLike) -> HostArray:
        kind = np.dtype(dtype)
        if size == 0:
            return np.empty(0, kind)
        with self.current(f"allocating {size * kind.itemsize:,} bytes of pinned host memory"):
            memory = self._pinned.malloc(size * kind.itemsize)
        return np.frombuffer(memory, kind, size)

    def upload(self, source: HostArray, target: DeviceArray, stream: device.Stream) -> None:
        self._copy(target, source, len(source), "memcpyHostToDevice", stream)

    def download(self, source: DeviceArray, target: HostArray, stream: device.Stream) -> None:
        self._copy(source, target, source.size, "memcpyDeviceToHost", stream)

    def _copy(self, there: DeviceArray, here: HostArray, size: int, direction: str, stream: device.Stream) -> None:
        assert isinstance(stream, CupyStream)
        if there.dtype != here.dtype or not here.flags.c_contiguous:
            raise TypeError(f"{there.dtype} is copied to and from contiguous {there.dtype}, not {here.dtype}")
        if size > min(there.size, len(here)):
            raise ValueError(f"{size} values do not fit: {there.size} on the device, {len(here)} on the host")
        if size == 0:
            return
        runtime = self.cupy.cuda.runtime
        addresses = [there.address, here.ctypes.data]
        if direction == "memcpyDeviceToHost":
            addresses.reverse()
        with self.current(f"copying {size * there.dtype.itemsize:,} bytes"):
            runtime.memcpyAsync(*addresses, size * there.dtype.itemsize, getattr(runtime, direction), stream.handle.ptr)
        stream.keep(there.owner, here)

    def copy(self, source: DeviceArray, target: DeviceArray, stream: device.Stream) -> None:
        assert isinstance(stream, CupyStream)
        if source.dtype != target.dtype:
            raise TypeError(f"{source.dtype} is copied to {source.dtype}, not {target.dtype}")
        if source.size > target.size:
            raise ValueError(f"{source.size} values do not fit in {target.size}")
        if source.size == 0:
            return
        runtime = self.cupy.cuda.runtime
        with self.current(f"copying {source.nbytes:,} bytes on the device"):
            kind = runtime.memcpyDeviceToDevice
            runtime.memcpyAsync(target.address, source.address, source.nbytes, kind, stream.handle.ptr)
        stream.keep(source.owner, target.owner)

    def fill(self, target: DeviceArray, byte: int, stream: device.Stream) -> None:
        assert isinstance(stream, CupyStream)
        if target.size == 0:
            return
        with self.current("filling memory"):
            self.cupy.cuda.runtime.memsetAsync(target.address, byte, target.nbytes, stream.handle.ptr)
        stream.keep(target.owner)

    def launch(
        self, kernel: str, blocks: int, threads: int, args: Sequence[DeviceArray | Scalar], stream: device.Stream
    ) -> None:
        program.signatures()[kernel].check(args)
        if blocks == 0:
            return
        function = self._kernel(kernel)
        passed = tuple(np.uint64(arg.address) if isinstance(arg, DeviceArray) else arg for arg in args)
        with self._on(stream, f"launching kernel {kernel}", args):
            function((blocks,), (threads,), passed)

    def for_each(self, body: str, count: int, args: Sequence[DeviceArray | Scalar], stream: device.Stream) -> None:
        if count == 0:
            return
        blocks = min(max((count + LOOP_THREADS - 1) // LOOP_THREADS, MIN_LOOP_BLOCKS), MAX_LOOP_BLOCKS)
        with self._on(stream, f"running loop {body}", args) as handle:
            from numba import cuda

            from gpudedup.kernels import BODIES
            from gpudedup.kernels.loop import compiled_loop

            loop = compiled_loop(BODIES[body])
            passed = tuple(
                cuda.as_cuda_array(_Interface(arg), sync=False) if isinstance(arg, DeviceArray) else arg for arg in args
            )
            loop[blocks, LOOP_THREADS, cuda.external_stream(handle.ptr)](count, passed)

    def argsort(self, keys: DeviceArray, order: DeviceArray, stream: device.Stream) -> None:
        # Stable by its documentation; for integers it is thrust::stable_sort_by_key with less, a radix sort
        # (cupy/cuda/cupy_thrust.cu). It takes 32 bytes a key for two copies of keys and of 64-bit indices.
        if keys.size:
            with self._on(stream, f"sorting {keys.size:,} keys", (keys, order)):
                self._array(order)[...] = self._array(keys).argsort()

    def sort(self, keys: DeviceArray, stream: device.Stream) -> None:
        if keys.size:
            with self._on(stream, f"sorting {keys.size:,} keys", (keys,)):
                self._array(keys).sort()

    def scan(self, values: DeviceArray, sums: DeviceArray, stream: device.Stream) -> None:
        self.fill(sums[:1], 0, stream)
        if values.size:
            with self._on(stream, f"adding up {values.size:,} values", (values, sums)):
                running = self._array(sums[1:])
                running[...] = self._array(values)  # widened first: every partial sum is uint64
                self.cupy.cumsum(running, out=running)

    @contextmanager
    def _on(self, stream: device.Stream, doing: str, args: Sequence[DeviceArray | Scalar]) -> Iterator[Any]:
        """Let CuPy queue its work in ``stream`` and take its memory from this device's pool."""
        assert isinstance(stream, CupyStream)
        try:
            with self.current(doing), stream.handle, self.cupy.cuda.using_allocator(self._pool.malloc):
                yield stream.handle
        finally:  # a part may have been queued before something failed
            stream.keep(*(arg.owner for arg in args if isinstance(arg, DeviceArray)))

    def _array(self, array: DeviceArray) -> Any:
        memory = self.cupy.cuda.UnownedMemory(array.address, array.nbytes, array.owner, self.index)
        return self.cupy.ndarray((array.size,), array.dtype, self.cupy.cuda.MemoryPointer(memory, 0))

    def _reclaim(self) -> None:
        """Wait for all streams, so that what only their queues hold comes back."""
        with self._lock:
            streams = list(self._streams)
        for stream in streams:
            stream.synchronize()

    def _kernel(self, name: str) -> Any:
        with self._lock:
            if name not in self._kernels:
                with self.current("compiling the kernels"):
                    try:
                        kernel = self._module.get_function(name)
                    except Exception as error:
                        if not isinstance(error, OSError) and getattr(error, "status", None) not in _IMAGE_REFUSED:
                            raise
                        # CuPy's folder of compiled kernels cannot be written, or what was read there is damaged: do
                        # without it. CuPy looks at this variable each time.
                        os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
                        kernel = self._module.get_function(name)
                self._kernels[name] = kernel
            return self._kernels[name]

    def _device_error(self, error: Exception, doing: str) -> DeviceError:
        """What went wrong on this device, while doing what, and the way out."""
        status = getattr(error, "status", getattr(error, "code", None))
        said = first_line(error)
        where = f"{self.name} (cuda:{self.index})" if self.name != f"cuda:{self.index}" else self.name
        if isinstance(error, self.cupy.cuda.memory.OutOfMemoryError) or status == _OUT_OF_MEMORY:
            return DeviceMemoryError(
                f"{where} has no room, {doing}: {said}; end what else uses the GPU (nvidia-smi lists it), "
                'or use device="cpu"'
            )
        if isinstance(error, self.cupy.cuda.compiler.CompileException):
            log = "\n".join(str(error).strip().splitlines()[:LOG_LINES])
            version = ".".join(map(str, self.cupy.cuda.nvrtc.getVersion()))
            return DeviceError(
                f'the kernels do not compile for {where} with NVRTC {version}; use device="cpu" and report this:\n{log}'
            )
        if status in _KERNEL_FAILED:
            return DeviceError(
                f"a kernel failed on {where}, noticed {doing}: {said}; this process can use the GPU no more. "
                'Start again, with device="cpu" if it comes back, and report it'
            )
        if status in _DEVICE_LOST:
            return DeviceError(
                f'{where} was lost, {doing}: {said}; see what nvidia-smi and dmesg say, or use device="cpu"'
            )
        return DeviceError(f'{where} failed, {doing}: {type(error).__name__}: {said}; device="cpu" needs no GPU')
