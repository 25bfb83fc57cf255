"""What GPU figures are taken of: a GPU through CuPy; or, in a rehearsal (GPUDEDUP_REHEARSE=1), the tests' emulated
device, so that every line of the suites has run before it meets a GPU. Figures of a rehearsal mean nothing, and say so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gpudedup import machine
from gpudedup.backends.cuda import cupy_device, detect, program
from gpudedup.backends.cuda.device import DeviceArray, HostArray, Scalar, Stream
from gpudedup.bench.record import commit

TESTS = str(Path(__file__).resolve().parent.parent / "tests")
REHEARSAL = os.environ.get("GPUDEDUP_REHEARSE") == "1"

Args = Sequence[DeviceArray | Scalar]
Mark = Any
"""A point in time on the device."""


class Target(Protocol):
    """A device, and what measuring asks of it beside the `Device` interface."""

    device: Any
    emulated: bool

    def mark(self, stream: Stream) -> Mark:
        """The time at which the stream comes here."""

    def seconds(self, begin: Mark, end: Mark) -> float:
        """Between two marks; waits for the second."""

    def run(self, source: str, kernel: str, blocks: int, threads: int, args: Args, stream: Stream) -> None:
        """Launch a kernel of a source of its own, compiled as those of csrc/cuda are."""


class Gpu:
    """GPU 0 of those that CUDA shows. Raises DeviceError if it cannot be used."""

    emulated = False

    def __init__(self) -> None:
        self.device = cupy_device.CupyDevice(0)
        self._cupy = self.device.cupy
        self._modules: dict[str, Any] = {}

    def mark(self, stream: Any) -> Mark:
        with self.device.current("recording an event"):
            event = self._cupy.cuda.Event()
            event.record(stream.handle)
        return event

    def seconds(self, begin: Mark, end: Mark) -> float:
        with self.device.current("waiting for an event"):
            end.synchronize()
            return float(self._cupy.cuda.get_elapsed_time(begin, end)) / 1e3

    def run(self, source: str, kernel: str, blocks: int, threads: int, args: Args, stream: Any) -> None:
        if source not in self._modules:
            self._modules[source] = self._cupy.RawModule(code=source, options=program.options())
        passed = tuple(np.uint64(arg.address) if isinstance(arg, DeviceArray) else arg for arg in args)
        with self.device.current(f"launching {kernel}"), stream.handle:
            self._modules[source].get_function(kernel)((blocks,), (threads,), passed)


class Rehearsal:
    """The tests' emulated device; its times are those of the host."""

    emulated = True

    def __init__(self) -> None:
        sys.path.append(TESTS)
        from emulated_device import EmulatedDevice

        self.device = EmulatedDevice()

    def mark(self, stream: Stream) -> Mark:
        stream.synchronize()
        return time.perf_counter()

    def seconds(self, begin: Mark, end: Mark) -> float:
        return float(end - begin)

    def run(self, source: str, kernel: str, blocks: int, threads: int, args: Args, stream: Stream) -> None:
        import emulator

        stream.synchronize()
        emulator.build(source).launch(kernel, blocks, threads, list(args))


def open_target() -> Target:
    """The GPU; in a rehearsal an emulated device."""
    return Rehearsal() if REHEARSAL else Gpu()


def rehearse() -> None:
    """From here on whole runs in this process find an emulated device as GPU 0, and no other."""
    sys.path.append(TESTS)
    import emulated_device

    def found(index: int = 0) -> detect.Detection:
        gpu = detect.Gpu(index=0, name="emulated", capability="", memory_bytes=0)
        reason = None if index == 0 else f"cuda:{index} was asked for, but visible is only cuda:0"
        return detect.Detection(reason=reason, gpus=(gpu,))

    detect.detect = found  # type: ignore[assignment]
    cupy_device.CupyDevice = lambda index: emulated_device.EmulatedDevice()  # type: ignore[assignment, misc]


@cache
def description() -> dict[str, Any]:
    """The GPU, the machine around it and the software, without names or paths. A copy without git tells its commit by
    GPUDEDUP_COMMIT."""
    found, host = detect.detect(), machine.description()
    gpu = found.gpus[0]
    return {
        "cpu": host.cpu,
        "cores": host.cores,
        "memory_gigabytes": round(host.memory_bytes / 1e9),
        "python": host.python,
        "pyarrow": host.pyarrow,
        "numpy": host.numpy,
        "gpudedup": _version("gpudedup"),
        "commit": os.environ.get("GPUDEDUP_COMMIT") or commit() or "unknown",
        "gpu": gpu.name,
        "gpus": len(found.gpus),
        "capability": gpu.capability,
        "gpu_memory_gigabytes": round(gpu.memory_bytes / 1e9),
        "driver": found.driver,
        "driver_cuda": found.driver_cuda,
        "cuda": found.cupy_cuda,
        "cupy": found.cupy,
        "nvrtc": found.nvrtc,
        "numba_cuda": _version("numba-cuda") or _version("numba"),
        "kernels": program.digest()[:12],
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class Timed:
    """A device whose work is timed, each piece by marks before and after it in its stream; by the clock, what queueing
    it takes the host.

    ``occupy`` gives a stream some work before the first kernel after each `take`. If that lasts longer than queueing
    what follows, kernels lie behind one another, and what a launch takes in Python is in none of their spans.
    """

    def __init__(self, target: Target, occupy: Callable[[Stream], None] = lambda stream: None) -> None:
        self._target, self._device, self._occupy = target, target.device, occupy
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._queueing: dict[str, float] = {}
        self._occupied = False
        self.queued: dict[str, float] = {}
        """Seconds of the host, by kernel or loop, for what the last `take` gave; "all": of all kernels."""
        self.needed: DeviceArray | None = None
        """What the last `hash_units` was given: units and folded bytes of all its documents."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._device, name)

    def launch(self, kernel: str, blocks: int, threads: int, args: Args, stream: Stream) -> None:
        if kernel == "hash_units":
            names = [parameter.name for parameter in program.signatures()[kernel].parameters]
            needed = args[names.index("needed")]
            assert isinstance(needed, DeviceArray)
            self.needed = needed
        if not self._occupied:
            self._occupy(stream)
            self._occupied = True
        with self._span(kernel, stream):
            self._device.launch(kernel, blocks, threads, args, stream)

    def for_each(self, body: str, count: int, args: Args, stream: Stream) -> None:
        with self._span(body, stream):
            self._device.for_each(body, count, args, stream)

    def copy(self, source: DeviceArray, target: DeviceArray, stream: Stream) -> None:
        with self._span("copy", stream):
            self._device.copy(source, target, stream)

    def fill(self, target: DeviceArray, byte: int, stream: Stream) -> None:
        with self._span("fill", stream):
            self._device.fill(target, byte, stream)

    def argsort(self, keys: DeviceArray, order: DeviceArray, stream: Stream) -> None:
        with self._span("argsort", stream):
            self._device.argsort(keys, order, stream)

    def sort(self, keys: DeviceArray, stream: Stream) -> None:
        with self._span("sort", stream):
            self._device.sort(keys, stream)

    def scan(self, values: DeviceArray, sums: DeviceArray, stream: Stream) -> None:
        with self._span("scan", stream):
            self._device.scan(values, sums, stream)

    def upload(self, source: HostArray, target: DeviceArray, stream: Stream) -> None:
        with self._span("upload", stream):
            self._device.upload(source, target, stream)

    def download(self, source: DeviceArray, target: HostArray, stream: Stream) -> None:
        with self._span("download", stream):
            self._device.download(source, target, stream)

    @contextmanager
    def _span(self, name: str, stream: Stream) -> Iterator[None]:
        begin, clock = self._target.mark(stream), time.perf_counter()
        yield
        self._queueing[name] = self._queueing.get(name, 0.0) + time.perf_counter() - clock
        self._spans.append((name, begin, self._target.mark(stream)))

    def take(self) -> dict[str, float]:
        """Seconds by kernel, loop and other work since the last call; "all": from the first kernel to the last."""
        found: dict[str, float] = {}
        for name, begin, end in self._spans:
            found[name] = found.get(name, 0.0) + self._target.seconds(begin, end)
        kernels = [span for span in self._spans if span[0] in program.signatures()]
        if kernels:
            found["all"] = self._target.seconds(kernels[0][1], kernels[-1][2])
        own = sum(seconds for name, seconds in self._queueing.items() if name in program.signatures())
        self.queued = {**self._queueing, "all": own}
        self._spans.clear()
        self._queueing.clear()
        self._occupied = False
        return found
