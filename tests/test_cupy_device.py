"""The body of `Device` over CuPy, with CuPy replaced: what it asks for, what it keeps, what its errors say.

tests/test_cuda_compile.py holds the replacement against the real CuPy where that is installed.
"""

from __future__ import annotations

import os
import sys
import threading
import types
from typing import Any

import numpy as np
import pytest
from fake_cupy import ERRORS, CompileException, CUDADriverError, FakeCupy

from gpudedup.backends.cuda import cupy_device, program
from gpudedup.backends.cuda.cupy_device import CupyDevice
from gpudedup.backends.cuda.device import DeviceArray
from gpudedup.errors import DeviceError, DeviceMemoryError
from gpudedup.kernels import BODIES

SOURCE = 'extern "C" __global__ void twice(const uint32_t* from, uint64_t* to, uint32_t count) {}'


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> FakeCupy:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CUPY_CACHE_IN_MEMORY", raising=False)
    monkeypatch.setattr(program, "signatures", lambda: program.declarations(SOURCE))
    return FakeCupy(2).install(monkeypatch)


@pytest.fixture
def device(cupy: FakeCupy) -> CupyDevice:
    """Not the device that is current otherwise."""
    return CupyDevice(1)


def put(device: CupyDevice, stream: Any, values: Any) -> DeviceArray:
    array = device.alloc(len(values), values.dtype)
    device.upload(values, array, stream)
    return array


def get(device: CupyDevice, stream: Any, array: DeviceArray) -> Any:
    values = device.alloc_host(array.size, array.dtype)
    device.download(array, values, stream)
    stream.synchronize()
    return values


def test_what_it_is(device: CupyDevice, cupy: FakeCupy) -> None:
    assert (device.name, device.memory_bytes) == ("NVIDIA H200", 150 << 30)
    assert device.free_bytes() == cupy.free
    array = device.alloc(100, np.uint64)
    assert array.nbytes == 800
    del array
    assert device.free_bytes() == cupy.free + 800, "what the pool holds can be allocated too"


def test_ranges_have_names_and_end(device: CupyDevice, cupy: FakeCupy) -> None:
    with device.range("match"), pytest.raises(ZeroDivisionError), device.range("sets"):
        1 / 0  # noqa: B018
    assert cupy.ranges == ["gpudedup match", "gpudedup sets", "end", "end"]


def test_copies_and_fills(device: CupyDevice, cupy: FakeCupy) -> None:
    stream = device.stream()
    values = np.arange(1000, dtype=np.uint32)
    array = put(device, stream, values)
    device.fill(array[10:20], 0xFF, stream)
    values[10:20] = 2**32 - 1
    assert get(device, stream, array).tolist() == values.tolist()
    device.upload(values[:3], array[5:], stream)  # shorter than its target
    assert get(device, stream, array[4:9]).tolist() == [4, 0, 1, 2, 8]
    copied = put(device, stream, np.zeros(6, np.uint32))
    device.copy(array[4:8], copied[1:], stream)
    assert get(device, stream, copied).tolist() == [0, 4, 0, 1, 2, 0]
    assert [call[1] for call in cupy.calls if call[0] == "memcpyAsync"][-2:] == [3, 2]
    assert {call[2] for call in cupy.calls if call[0] == "memcpyAsync"} == {1}, "on this device"
    assert {call[3] for call in cupy.calls if call[0] in ("memcpyAsync", "memsetAsync")} == {stream.handle.ptr}
    assert cupy.current_device() == 0, "what was current is so again"


@pytest.mark.parametrize(
    ("size", "dtype", "error"), [(11, np.uint32, ValueError), (10, np.int32, TypeError), (5, np.uint64, TypeError)]
)
def test_copies_that_do_not_fit(device: CupyDevice, size: int, dtype: Any, error: type[Exception]) -> None:
    stream = device.stream()
    array = device.alloc(10, np.uint32)
    with pytest.raises(error):
        device.upload(np.zeros(size, dtype), array, stream)
    with pytest.raises(error):
        device.copy(device.alloc(size, dtype), array, stream)
    with pytest.raises(TypeError, match="contiguous"):
        device.upload(np.zeros(20, np.uint32)[::2], array, stream)


def test_nothing(device: CupyDevice, cupy: FakeCupy) -> None:
    stream = device.stream()
    none, keys = device.alloc(0, np.uint32), device.alloc(0, np.uint64)
    assert device.alloc_host(0, np.uint32).size == 0
    before = len(cupy.calls)
    device.upload(np.empty(0, np.uint32), none, stream)
    device.download(none, np.empty(0, np.uint32), stream)
    device.fill(none, 1, stream)
    device.argsort(keys, none, stream)
    device.sort(keys, stream)
    device.launch("twice", 0, 64, [none, keys, np.uint32(0)], stream)
    device.for_each("not looked up", 0, [], stream)
    assert len(cupy.calls) == before
    sums = device.alloc(1, np.uint64)
    device.scan(none, sums, stream)
    assert get(device, stream, sums).tolist() == [0]


def test_sorts_and_sums(device: CupyDevice) -> None:
    stream = device.stream()
    keys = np.array([2**63 + 5, 1, 2**63 + 5, 0, 1, 2**64 - 1], np.uint64)
    array, order = put(device, stream, keys), device.alloc(len(keys), np.uint32)
    device.argsort(array, order, stream)
    assert get(device, stream, order).tolist() == [3, 1, 4, 0, 2, 5], "equal keys in their order"
    assert get(device, stream, array).tolist() == keys.tolist(), "the keys stay"
    device.sort(array, stream)
    assert get(device, stream, array).tolist() == sorted(keys.tolist())
    values = np.array([2**32 - 1, 2**32 - 1, 0, 7], np.uint32)
    sums = device.alloc(5, np.uint64)
    device.scan(put(device, stream, values), sums, stream)
    assert get(device, stream, sums).tolist() == [0, 2**32 - 1, 2**33 - 2, 2**33 - 2, 2**33 + 5]


def test_a_launch_passes_bare_values(device: CupyDevice, cupy: FakeCupy) -> None:
    stream = device.stream()
    source, target = device.alloc(5, np.uint32), device.alloc(5, np.uint64)
    device.launch("twice", 3, 64, [source[1:], target, np.uint32(4)], stream)
    _, name, grid, block, args, queue = cupy.calls[-1]
    assert (name, grid, block, queue) == ("twice", (3,), (64,), stream.handle.ptr)
    assert args == (source.address + 4, target.address, 4)
    assert [type(arg) for arg in args] == [np.uint64, np.uint64, np.uint32]
    (code, options), *others = cupy.modules
    assert code == program.translation_unit()
    assert f"-DGPUDEDUP_DIGEST=0x{program.digest()[:16]}" in options, "CuPy's cache does not look at headers"
    assert not others
    with pytest.raises(TypeError, match="takes uint32 count"):
        device.launch("twice", 3, 64, [source, target, np.uint64(4)], stream)
    with pytest.raises(TypeError, match="3 arguments"):
        device.launch("twice", 3, 64, [source, target], stream)


# ------------------------------------------------------------------------------------------------------------ lifetimes


def test_memory_in_use_is_not_handed_out(device: CupyDevice) -> None:
    stream = device.stream()
    array = put(device, stream, np.arange(8, dtype=np.uint64))
    address = array.address
    del array
    others = [device.alloc(8, np.uint64) for _ in range(3)]
    assert address not in [other.address for other in others]
    stream.synchronize()
    assert device.alloc(8, np.uint64).address == address


def test_an_event_frees_what_came_before_it(device: CupyDevice) -> None:
    stream = device.stream()
    first = put(device, stream, np.arange(8, dtype=np.uint64))
    event = stream.record()
    second = put(device, stream, np.arange(9, dtype=np.uint64))
    addresses = first.address, second.address
    del first, second
    event.synchronize()
    assert device.alloc(8, np.uint64).address == addresses[0]
    other = device.alloc(9, np.uint64)
    assert other.address != addresses[1]
    event.synchronize()  # a second time, and after what came later
    stream.synchronize()
    event.synchronize()
    assert device.alloc(9, np.uint64).address == addresses[1]


def test_waiting_for_one_stream_frees_what_it_waited_for(device: CupyDevice) -> None:
    """Else a stream that is never waited for itself would keep all that it ever used."""
    first, second = device.stream(), device.stream()
    before = put(device, first, np.arange(8, dtype=np.uint64))
    second.wait(first.record())
    after = put(device, first, np.arange(9, dtype=np.uint64))
    addresses = before.address, after.address
    del before, after
    second.synchronize()
    assert device.alloc(8, np.uint64).address == addresses[0]
    assert device.alloc(9, np.uint64).address != addresses[1]


def test_host_memory_lives_until_it_was_copied(device: CupyDevice) -> None:
    import weakref

    stream = device.stream()
    array = device.alloc(4, np.uint32)
    values = np.arange(4, dtype=np.uint32)
    alive = weakref.ref(values)
    device.upload(values, array, stream)
    del values
    assert alive() is not None
    stream.synchronize()
    assert alive() is None


def test_what_nobody_holds_goes_back_to_the_driver(device: CupyDevice, cupy: FakeCupy) -> None:
    """Also what only queued work used."""
    free, stream = device.free_bytes(), device.stream()
    kept, dropped = device.alloc(100, np.uint32), device.alloc(200, np.uint32)
    device.fill(dropped, 7, stream)
    device.fill(kept, 7, stream)
    del dropped
    assert device.free_bytes() == free  # the stream holds it
    device.trim()
    assert device.free_bytes() == free  # as the driver says it
    assert cupy._free_blocks == []
    assert ("freeHost", device.index) in cupy.calls
    result = np.zeros(100, np.uint32)
    device.download(kept, result, stream)
    assert set(result.tolist()) == {0x07070707}


def test_without_room_it_waits_and_tries_again(device: CupyDevice, cupy: FakeCupy, monkeypatch: Any) -> None:
    stream, other = device.stream(), device.stream()
    held = put(device, stream, np.arange(8, dtype=np.uint64))
    address = held.address
    del held
    malloc = device._pool.malloc

    def full(size: int) -> Any:
        if not cupy._free_blocks:
            cupy.fail["malloc"] = 2
        return malloc(size)

    monkeypatch.setattr(device._pool, "malloc", full)
    real = stream.handle.synchronize
    monkeypatch.setattr(stream.handle, "synchronize", lambda: (cupy.fail.pop("malloc", None), real()))
    assert device.alloc(8, np.uint64).address == address
    waited = {call[1] for call in cupy.calls if call[0] == "streamSynchronize"}
    assert waited == {stream.handle.ptr, other.handle.ptr}


def test_streams_wait_for_each_other(device: CupyDevice, cupy: FakeCupy) -> None:
    first, second = device.stream(), device.stream()
    second.wait(first.record())
    assert cupy.calls[-1] == ("streamWaitEvent", second.handle.ptr)


def test_several_threads(device: CupyDevice, cupy: FakeCupy) -> None:
    """A new thread starts with device 0 current; the work goes to device 1 all the same."""
    results, errors = [], []

    def work(seed: int) -> None:
        try:
            stream = device.stream()
            keys = np.random.default_rng(seed).integers(0, 9, 500).astype(np.uint64)
            order = device.alloc(len(keys), np.uint32)
            device.argsort(put(device, stream, keys), order, stream)
            results.append(get(device, stream, order).tolist() == np.argsort(keys, kind="stable").tolist())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert results == [True] * 4


# --------------------------------------------------------------------------------------------------------------- errors


def use(device: CupyDevice, stream: Any, source: DeviceArray, target: DeviceArray) -> None:
    device.stream()
    device.alloc(5, np.uint64)
    device.alloc_host(1000, np.uint32)
    device.upload(np.zeros(5, np.uint32), source, stream)
    device.launch("twice", 3, 64, [source, target, np.uint32(4)], stream)
    stream.synchronize()


def driver_error(status: int, text: str) -> CUDADriverError:
    return CUDADriverError(status, text)


@pytest.mark.parametrize(
    ("function", "failure", "kind", "said"),
    [
        ("launchKernel", 2, DeviceMemoryError, "has no room, launching kernel twice: cudaErrorMemoryAllocation"),
        ("launchKernel", 719, DeviceError, "a kernel failed on NVIDIA H200 .cuda:1., noticed launching kernel twice"),
        ("streamSynchronize", 700, DeviceError, "a kernel failed on .* noticed waiting for work: cudaErrorIllegalAddr"),
        ("streamSynchronize", 46, DeviceError, "NVIDIA H200 .cuda:1. was lost, waiting for work: cudaErrorDevicesUn"),
        ("streamSynchronize", 999, DeviceError, "was lost"),
        ("launchKernel", driver_error(1, "CUDA_ERROR_INVALID_VALUE: invalid argument"), DeviceError,
         "failed, launching kernel twice: CUDADriverError: CUDA_ERROR_INVALID_VALUE.*; device=.cpu. needs no GPU"),
        ("compile", CompileException("kernels.cu(3): error: expected a ;\n" + "x\n" * 50), DeviceError,
         r"do not compile for NVIDIA H200 \(cuda:1\) with NVRTC 13.5.*\n.*expected a ;\n(x\n?){11}$"),
        ("compile", RuntimeError("Failed to find CUDA headers. Please"), DeviceError, "compiling the kernels: Runtime"),
        ("memcpyAsync", 700, DeviceError, "a kernel failed on .* noticed copying 20 bytes"),
        ("hostAlloc", 2, DeviceMemoryError, "has no room, allocating 4,000 bytes of pinned host memory"),
        ("malloc", 2, DeviceMemoryError, "has no room, allocating 40 bytes: Out of memory allocating 40 bytes"),
        ("streamCreate", 2, DeviceMemoryError, "making a stream"),
    ],
)  # fmt: skip
def test_errors_say_what_and_where(
    device: CupyDevice, cupy: FakeCupy, function: str, failure: Any, kind: type[DeviceError], said: str
) -> None:
    stream = device.stream()
    source, target = device.alloc(5, np.uint32), device.alloc(6, np.uint64)
    cupy.fail[function] = failure
    with pytest.raises(kind, match=said) as caught:
        use(device, stream, source, target)
    assert type(caught.value) is kind
    assert 'device="cpu"' in str(caught.value)
    assert caught.value.__cause__ is not None
    assert caught.value.exit_code == 5


@pytest.mark.parametrize(
    "failure",
    [
        PermissionError(13, "Permission denied: '/home/user/.cupy/kernel_cache/tmp1'"),
        OSError(30, "Read-only file system"),
        driver_error(200, "CUDA_ERROR_INVALID_IMAGE: device kernel image is invalid"),
        driver_error(209, "CUDA_ERROR_NO_BINARY_FOR_GPU: no kernel image is available for execution on the device"),
    ],
    ids=["permission", "read-only", "damaged", "of another GPU"],
)
def test_a_bad_cache_is_done_without(device: CupyDevice, cupy: FakeCupy, monkeypatch: Any, failure: Exception) -> None:
    check = cupy.check

    def once(function: str) -> None:
        if function == "compile" and "CUPY_CACHE_IN_MEMORY" not in os.environ:
            raise failure
        check(function)

    monkeypatch.setattr(cupy, "check", once)
    stream = device.stream()
    args = [device.alloc(5, np.uint32), device.alloc(5, np.uint64), np.uint32(4)]
    device.launch("twice", 3, 64, args, stream)
    assert cupy.calls[-1][:2] == ("launchKernel", "twice")
    assert os.environ["CUPY_CACHE_IN_MEMORY"] == "1"


def test_mistakes_are_not_blamed_on_the_device(device: CupyDevice) -> None:
    with pytest.raises(LookupError), device.current("testing"):
        raise KeyError("name")


def test_cupy_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(DeviceError, match="CuPy cannot be imported"):
        CupyDevice(0)


def test_a_device_that_does_not_open(cupy: FakeCupy) -> None:
    cupy.fail["getDeviceProperties"] = 46
    with pytest.raises(DeviceError, match="cuda:1 was lost, opening it: " + ERRORS[46][:20]):
        CupyDevice(1)


# ---------------------------------------------------------------------------------------------------------------- loops


def test_loops_run_on_the_stream(device: CupyDevice, cupy: FakeCupy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba is given the addresses as they are, the stream, and a grid that covers the count."""
    launched: list[Any] = []

    class Jitted:
        def __init__(self, function: Any) -> None:
            self.function = function

        def __call__(self, *args: Any) -> None:
            self.function(*args)

        def __getitem__(self, configuration: Any) -> Any:
            def launch(*args: Any) -> None:
                launched.append((configuration, args))
                self.function(*args)

            return launch

    def view(interface: Any, *, sync: bool) -> Any:
        assert not sync
        described = interface.__cuda_array_interface__
        assert described["version"] == 3
        assert "stream" not in described
        (size,), (address, read_only) = described["shape"], described["data"]
        assert not read_only
        return np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(described["typestr"]) * size).from_address(address))

    cuda = types.SimpleNamespace(
        jit=lambda function=None, **_: Jitted(function) if function else Jitted,
        grid=lambda dimensions: 0,
        gridsize=lambda dimensions: 1,
        as_cuda_array=view,
        external_stream=lambda pointer: ("stream", pointer),
    )
    monkeypatch.setitem(sys.modules, "numba", types.SimpleNamespace(cuda=cuda))

    def add(i: int, array: Any, number: Any) -> None:
        array[i] += number

    monkeypatch.setitem(BODIES, "add", add)  # type: ignore[arg-type]
    # Its own copy of what holds the real Numba, forgotten again afterwards.
    monkeypatch.setitem(sys.modules, "gpudedup.kernels.loop", types.ModuleType("placeholder"))
    del sys.modules["gpudedup.kernels.loop"]
    stream = device.stream()
    array = put(device, stream, np.arange(10, dtype=np.uint32))
    device.for_each("add", 7, [array[2:], np.uint32(100)], stream)
    assert get(device, stream, array).tolist() == [0, 1, *range(102, 109), 9]
    ((blocks, threads, queue), (count, _)), *rest = launched
    assert not rest
    assert (threads, queue, count) == (cupy_device.LOOP_THREADS, ("stream", stream.handle.ptr), 7)
    assert blocks == cupy_device.MIN_LOOP_BLOCKS
    big = device.alloc(1, np.uint8)
    grids = []
    for count in (256 * 1000 + 1, 2**31):
        monkeypatch.setattr("gpudedup.kernels.loop.compiled_loop", lambda body: lambda_grid(grids))
        device.for_each("add", count, [big, np.uint8(0)], stream)
    assert grids == [1001, cupy_device.MAX_LOOP_BLOCKS]


def lambda_grid(grids: list[int]) -> Any:
    class Loop:
        def __getitem__(self, configuration: Any) -> Any:
            grids.append(configuration[0])
            return lambda *args: None

    return Loop()


# -------------------------------------------------------------------------------------------------------------- a GPU


@pytest.fixture(scope="module")
def gpu() -> CupyDevice:
    return CupyDevice(0)


SIZES = (1, 2, 31, 1000, 1_000_003)


@pytest.mark.gpu
def test_gpu_loads_all_kernels(gpu: CupyDevice) -> None:
    for name in program.signatures():
        gpu._kernel(name)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
def test_gpu_copies_and_fills(gpu: CupyDevice, size: int) -> None:
    stream = gpu.stream()
    values = np.random.default_rng(size).integers(0, 2**32, size, np.uint32)
    pinned = gpu.alloc_host(size, np.uint32)
    pinned[:] = values
    for source in (values, pinned):
        assert np.array_equal(get(gpu, stream, put(gpu, stream, source)), values)
    array = gpu.alloc(size, np.uint32)
    gpu.copy(put(gpu, stream, values), array, stream)
    gpu.fill(array[size // 2 :], 0xA5, stream)
    values[size // 2 :] = 0xA5A5A5A5
    assert np.array_equal(get(gpu, stream, array), values)


@pytest.mark.gpu
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("distinct", [2, 1000, 2**64])
def test_gpu_sorts_are_stable(gpu: CupyDevice, size: int, distinct: int) -> None:
    stream = gpu.stream()
    keys = np.random.default_rng(size).integers(0, distinct, size, np.uint64, endpoint=distinct < 2**64)
    keys = keys if distinct == 2**64 else keys * np.uint64(2**64 // (distinct + 1))  # the high bit too
    array, order = put(gpu, stream, keys), gpu.alloc(size, np.uint32)
    gpu.argsort(array, order, stream)
    assert np.array_equal(get(gpu, stream, order), np.argsort(keys, kind="stable"))
    assert np.array_equal(get(gpu, stream, array), keys)
    gpu.sort(array, stream)
    assert np.array_equal(get(gpu, stream, array), np.sort(keys))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [0, *SIZES])
def test_gpu_sums_are_of_64_bits(gpu: CupyDevice, size: int) -> None:
    stream = gpu.stream()
    values = np.random.default_rng(size).integers(2**31, 2**32, size, np.uint32)
    sums = gpu.alloc(size + 1, np.uint64)
    gpu.scan(put(gpu, stream, values), sums, stream)
    assert np.array_equal(get(gpu, stream, sums), np.concatenate([[0], np.cumsum(values, dtype=np.uint64)]))


@pytest.mark.gpu
@pytest.mark.parametrize("size", [*SIZES, 5_000_000])
def test_gpu_loops_cover_their_count(gpu: CupyDevice, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    def count_up(i: int, array: Any, number: Any) -> None:
        array[i] += number

    monkeypatch.setitem(BODIES, "test_count_up", count_up)
    stream = gpu.stream()
    array = put(gpu, stream, np.arange(size + 1, dtype=np.uint32))
    gpu.for_each("test_count_up", size, [array, np.uint32(7)], stream)
    expected = np.arange(size + 1, dtype=np.uint32) + 7
    expected[-1] -= 7
    assert np.array_equal(get(gpu, stream, array), expected)


@pytest.mark.gpu
def test_gpu_streams_wait_for_events(gpu: CupyDevice) -> None:
    """Long work in one stream, read in another: without the wait, mostly zeros."""
    first, second = gpu.stream(), gpu.stream()
    keys = np.random.default_rng(0).integers(0, 2**64, 20_000_000, np.uint64)
    array = put(gpu, first, keys)
    target = gpu.alloc_host(len(keys), np.uint64)
    gpu.sort(array, first)
    second.wait(first.record())
    gpu.download(array, target, second)
    second.synchronize()
    assert np.array_equal(target, np.sort(keys))


@pytest.mark.gpu
def test_gpu_without_room_goes_on(gpu: CupyDevice) -> None:
    with pytest.raises(DeviceMemoryError, match="has no room"):
        gpu.alloc(2 * gpu.memory_bytes, np.uint8)
    stream = gpu.stream()
    assert get(gpu, stream, put(gpu, stream, np.arange(3, dtype=np.uint32))).tolist() == [0, 1, 2]
