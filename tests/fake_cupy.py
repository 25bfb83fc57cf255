"""The small part of CuPy that gpudedup uses, over host memory: as many devices as wanted, and every failure on demand.

Device memory is host memory, so that copies, fills and array operations are real; work is done when it is queued.
Names, signatures and texts of errors are those of CuPy 14; tests/test_cuda_compile.py compares them with the real one.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
import types
from typing import Any

import numpy as np


class CUDARuntimeError(RuntimeError):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class CUDADriverError(CUDARuntimeError):
    pass


class OutOfMemoryError(MemoryError):
    pass


class CompileException(Exception):  # noqa: N818
    pass


ERRORS = {
    2: "cudaErrorMemoryAllocation: out of memory",
    3: "cudaErrorInitializationError: initialization error",
    35: "cudaErrorInsufficientDriver: CUDA driver version is insufficient for CUDA runtime version",
    46: "cudaErrorDevicesUnavailable: CUDA-capable device(s) is/are busy or unavailable",
    100: "cudaErrorNoDevice: no CUDA-capable device is detected",
    700: "cudaErrorIllegalAddress: an illegal memory access was encountered",
    719: "cudaErrorLaunchFailure: unspecified launch failure",
    802: "cudaErrorSystemNotReady: system not yet initialized",
    999: "cudaErrorUnknown: unknown error",
}

H200 = {"name": b"NVIDIA H200", "major": 9, "minor": 0, "totalGlobalMem": 150 << 30}


class Array(np.ndarray):
    """numpy's array with CuPy's rules: sorts are stable and take no other kind."""

    def argsort(self) -> Any:  # type: ignore[override]
        return np.asarray(self).argsort(kind="stable")

    def sort(self) -> None:  # type: ignore[override]
        np.asarray(self).sort(kind="stable")


class FakeCupy(types.ModuleType):
    """What ``import cupy`` gives. ``fail`` maps a function of CUDA to the status that it fails with."""

    def __init__(self, devices: int = 1, *, built: int = 13020, free: int = 140 << 30) -> None:
        super().__init__("cupy")
        self.__version__ = "14.2.0"
        self.fail: dict[str, int | Exception] = {}
        self.properties = [dict(H200) for _ in range(devices)]
        self.compute_mode = 0
        self.free = free
        self.calls: list[tuple[Any, ...]] = []
        self.kernels: dict[str, Any] = {}
        self.modules: list[tuple[str, tuple[str, ...]]] = []
        self.ranges: list[str] = []
        self._local = threading.local()
        self._blocks: dict[int, Any] = {}
        self._free_blocks: list[Any] = []
        self.cuda = self._cuda(built)

    def current_device(self) -> int:
        return getattr(self._local, "stack", [0])[-1]

    def check(self, function: str) -> None:
        failure = self.fail.get(function)
        if isinstance(failure, Exception):
            raise failure
        if failure is not None:
            raise CUDARuntimeError(failure, ERRORS[failure])

    def install(self, monkeypatch: Any) -> FakeCupy:
        monkeypatch.setitem(sys.modules, "cupy", self)
        return self

    def _cuda(fake, built: int) -> types.SimpleNamespace:  # noqa: N805
        class Device:
            def __init__(self, device: int) -> None:
                self.id = device

            def __enter__(self) -> Device:
                stack = fake._local.__dict__.setdefault("stack", [0])
                stack.append(self.id)
                return self

            def __exit__(self, *_: object) -> None:
                fake._local.stack.pop()

            @property
            def mem_info(self) -> tuple[int, int]:
                fake.check("mem_info")
                return fake.free, fake.properties[self.id]["totalGlobalMem"]

        class Stream:
            def __init__(self, *, non_blocking: bool = False) -> None:
                fake.check("streamCreate")
                assert non_blocking, "the default stream would be waited for"
                self.device, self.ptr = fake.current_device(), id(self)

            def __enter__(self) -> Stream:
                assert self.device == fake.current_device(), "a stream of another device"
                fake._local.__dict__.setdefault("streams", []).append(self)
                return self

            def __exit__(self, *_: object) -> None:
                fake._local.streams.pop()

            def synchronize(self) -> None:
                assert self.device == fake.current_device()
                fake.calls.append(("streamSynchronize", self.ptr))
                fake.check("streamSynchronize")

            def wait_event(self, event: Event) -> None:
                assert self.device == fake.current_device() == event.device
                fake.calls.append(("streamWaitEvent", self.ptr))

        class Event:
            def __init__(self, *, disable_timing: bool = False) -> None:
                self.device = fake.current_device()

            def record(self, stream: Stream) -> None:
                assert self.device == stream.device

            def synchronize(self) -> None:
                fake.check("eventSynchronize")

        class Memory:
            """A block of a pool; given back when the last reference goes, and handed out again first."""

            def __init__(self, size: int, block: Any) -> None:
                self.size, self.block = size, block
                self.ptr = ctypes.addressof(block)

            def __del__(self) -> None:
                fake._free_blocks.append(self.block)

        class MemoryPool:
            def malloc(self, size: int) -> Memory:
                try:
                    fake.check("malloc")
                except CUDARuntimeError as error:
                    text = f"Out of memory allocating {size:,} bytes (allocated so far: 0 bytes)."
                    raise OutOfMemoryError(text) from error
                for i, block in enumerate(fake._free_blocks):
                    if len(block) == size:
                        return Memory(size, fake._free_blocks.pop(i))
                return Memory(size, (ctypes.c_ubyte * size)())

            def free_bytes(self) -> int:
                return sum(map(len, fake._free_blocks))

            def free_all_blocks(self) -> None:
                fake._free_blocks.clear()

        class PinnedMemoryPool:
            def malloc(self, size: int) -> Any:
                fake.check("hostAlloc")
                return bytearray(size)

            def free_all_blocks(self) -> None:
                fake.calls.append(("freeHost", fake.current_device()))

        def unowned(ptr: int, size: int, owner: object, device_id: int = -1) -> types.SimpleNamespace:
            return types.SimpleNamespace(ptr=ptr, size=size, owner=owner, device_id=device_id)

        def pointer(memory: Any, offset: int) -> types.SimpleNamespace:
            assert memory.device_id == fake.current_device()
            return types.SimpleNamespace(ptr=memory.ptr + offset, mem=memory)

        def memcpy(target: int, source: int, size: int, kind: int, stream: int) -> None:
            fake.check("memcpyAsync")
            fake.calls.append(("memcpyAsync", kind, fake.current_device(), stream))
            ctypes.memmove(target, source, size)

        def memset(target: int, value: int, size: int, stream: int) -> None:
            fake.calls.append(("memsetAsync", value, fake.current_device(), stream))
            ctypes.memset(target, value, size)

        def device_count() -> int:
            fake.check("getDeviceCount")
            return len(fake.properties)

        def device_properties(index: int) -> dict[str, Any]:
            fake.check("getDeviceProperties")
            return fake.properties[index]

        def nvrtc_version() -> tuple[int, int]:
            fake.check("nvrtc")
            return 13, 5

        def mem_info() -> tuple[int, int]:
            return fake.free, fake.properties[fake.current_device()]["totalGlobalMem"]

        @contextlib.contextmanager
        def using_allocator(allocator: Any) -> Any:
            fake.calls.append(("using_allocator",))
            yield

        runtime = types.SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            memcpyHostToDevice=1,
            memcpyDeviceToHost=2,
            memcpyDeviceToDevice=3,
            memcpyAsync=memcpy,
            memsetAsync=memset,
            memGetInfo=mem_info,
            runtimeGetVersion=lambda: built,
            getDeviceCount=device_count,
            getDeviceProperties=device_properties,
            deviceGetAttribute=lambda attribute, index: fake.compute_mode if attribute == 20 else 0,
        )
        return types.SimpleNamespace(
            runtime=runtime,
            nvrtc=types.SimpleNamespace(getVersion=nvrtc_version),
            nvtx=types.SimpleNamespace(RangePush=fake.ranges.append, RangePop=lambda: fake.ranges.append("end")),
            compiler=types.SimpleNamespace(CompileException=CompileException),
            driver=types.SimpleNamespace(CUDADriverError=CUDADriverError),
            memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            Device=Device,
            Stream=Stream,
            Event=Event,
            MemoryPool=MemoryPool,
            PinnedMemoryPool=PinnedMemoryPool,
            UnownedMemory=unowned,
            MemoryPointer=pointer,
            using_allocator=using_allocator,
        )

    def RawModule(fake, *, code: str, options: tuple[str, ...] = ()) -> Any:  # noqa: N802, N805
        fake.modules.append((code, options))

        class Module:
            def get_function(self, name: str) -> Any:
                fake.check("compile")

                def kernel(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...]) -> None:
                    fake.check("launchKernel")
                    fake.calls.append(("launchKernel", name, grid, block, args, fake._local.streams[-1].ptr))

                return kernel

        return Module()

    def ndarray(fake, shape: tuple[int], dtype: Any, memptr: Any) -> Array:  # noqa: N805
        assert fake._local.streams, "not in a stream"
        buffer = (ctypes.c_ubyte * memptr.mem.size).from_address(memptr.ptr)
        return np.frombuffer(buffer, dtype, shape[0]).view(Array)

    def cumsum(fake, array: Any, axis: None = None, dtype: Any = None, out: Any = None) -> Any:  # noqa: N805
        return np.cumsum(np.asarray(array), dtype=dtype or out.dtype, out=np.asarray(out))
