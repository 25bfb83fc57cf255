"""The kernels through the real CuPy, NVRTC and Numba, as far as that goes without a GPU. Skipped where these are not.

.ci/run installs them into an environment of their own.
"""

from __future__ import annotations

import re
import shutil
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cuda_static as static
import fake_cupy
import numpy as np
import pyarrow as pa
import pytest
from cuda_static import ARCHITECTURES, BUDGET_NVRTC, BUDGETS, Budget, Usage

import gpudedup
from gpudedup.backends.cuda import program
from gpudedup.backends.cuda.cupy_device import CupyDevice
from gpudedup.backends.cuda.device import DeviceArray, Scalar
from gpudedup.errors import DeviceError
from gpudedup.kernels import BODIES
from gpudedup.params import Params

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def nvrtc() -> tuple[int, int]:
    """Its version."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed", exc_type=ImportError)
    try:
        version: tuple[int, int] = cupy.cuda.nvrtc.getVersion()
    except RuntimeError as error:
        pytest.skip(f"NVRTC is not installed: {error.args[0].splitlines()[0]}")
    return version


@pytest.fixture(scope="module")
def nvdisasm(nvrtc: tuple[int, int]) -> str:
    from cuda.pathfinder import find_nvidia_binary_utility

    found = find_nvidia_binary_utility("nvdisasm") or shutil.which("nvdisasm")
    if found is None:
        pytest.skip("nvdisasm is not installed")
    return str(found)


def budgets_hold(version: tuple[int, int]) -> None:
    if version != BUDGET_NVRTC:
        pytest.skip(f"the budgets are for NVRTC {BUDGET_NVRTC}, here is {version}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_within_their_budgets(nvrtc: tuple[int, int], architecture: int) -> None:
    _, found = static.compile_kernels(program.translation_unit(), program.options(), architecture)
    assert found.keys() == program.signatures().keys()
    budgets_hold(nvrtc)
    assert not static.usage_faults(found, BUDGETS)


def test_code_is_what_it_was_written_for(nvrtc: tuple[int, int], nvdisasm: str, tmp_path: Path) -> None:
    cubin, _ = static.compile_kernels(program.translation_unit(), program.options(), 90)
    code = static.disassemble(nvdisasm, cubin, tmp_path)
    assert code.keys() == program.signatures().keys()
    budgets_hold(nvrtc)
    assert not static.code_faults(code, BUDGETS)


@pytest.mark.parametrize("shingle", ["word:5", "char:3"])
def test_machine_code_signs_as_the_cpu_does(
    shingle: str, nvrtc: tuple[int, int], nvdisasm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That for sm_90, run instruction by instruction. A bit that is flipped in a constant of it shows."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_model

    budgets_hold(nvrtc)
    texts = [
        "Straße № 7, ½ Ünï " * 9,
        "",
        "x" * 150 + " 中文的字，" * 20,
        "한국어 텍스트’s end 𠀀\u200b! " * 6,
        "a b c",
    ]
    piece = gpu_model.Piece(pa.array(texts, pa.large_string()).cast(pa.large_binary()), Params(shingle=shingle))
    counts = piece.run()
    assert all(sum(each.executed.values()) > 0 for each in counts.values())
    code, usage = gpu_model.compiled()
    changed = {name: text.replace("0x7f4a7c15", "0x7f4a7c14") for name, text in code.items()}  # of the golden ratio
    assert changed["hash_units"] != code["hash_units"]
    monkeypatch.setattr(gpu_model, "compiled", lambda: (changed, usage))
    with pytest.raises(AssertionError, match="content"):
        gpu_model.Piece(pa.array(texts, pa.large_string()).cast(pa.large_binary()), Params(shingle=shingle)).run()


def test_machine_code_compares_as_numpy_does(
    nvrtc: tuple[int, int], nvdisasm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That for sm_90. A step of the search that goes to another place shows."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu_model

    budgets_hold(nvrtc)
    found = gpu_model.set_loads() | gpu_model.comparison_loads()
    assert all(load.instructions > 0 for load in found.values())
    code, usage = gpu_model.compiled()
    probe = re.compile(r"(SHFL\.IDX PT, R\d+, R\d+), 0xf,")
    changed = {name: probe.sub(r"\1, 0x7,", text) for name, text in code.items()}
    assert changed["intersect_pairs"] != code["intersect_pairs"]
    monkeypatch.setattr(gpu_model, "compiled", lambda: (changed, usage))
    with pytest.raises(AssertionError):
        gpu_model.comparison_loads()


# ---------------------------------------------------------------------------------------- what these checks would catch

PLANTED = """
extern "C" __global__ void good(const uint4* from, uint4* to) { to[threadIdx.x] = from[threadIdx.x]; }
extern "C" __global__ void stack(const unsigned* from, unsigned* to) {
  unsigned local[64] = {};
  for (int i = 0; i < 1000; ++i) local[from[i] % 64] += i;
  to[threadIdx.x] = local[from[threadIdx.x] % 64];
}
extern "C" __global__ void __launch_bounds__(1024, 2) spill(const unsigned* from, unsigned* to) {
  unsigned held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = from[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) to[(63 - i) * 1024 + threadIdx.x] = held[i] * held[(i + 7) % 64];
}
extern "C" __global__ void divide(const unsigned long long* from, unsigned long long* to) {
  to[threadIdx.x] = from[threadIdx.x] / from[threadIdx.x + 1];
}
extern "C" __global__ void loops(const unsigned char* from, unsigned long long size, unsigned* to, unsigned by) {
  unsigned sum = 0;
#pragma unroll 1
  for (unsigned long long i = threadIdx.x; i < size; i += 32) sum += from[i];
  to[threadIdx.x] = sum / by;
}
extern "C" __global__ void chain(const uint2* from, unsigned size, unsigned* to) {
  unsigned sum = 0;
#pragma unroll 1
  for (unsigned i = threadIdx.x; i < size; ++i) {
    const uint2 one = from[i], other = from[i ^ 64];
    sum += from[one.y + other.y].x;
  }
  to[threadIdx.x] = sum;
}
"""


def test_planted_faults_are_found(nvrtc: tuple[int, int], nvdisasm: str, tmp_path: Path) -> None:
    cubin, found = static.compile_kernels(PLANTED, ("-std=c++17",), 90)
    budgets = {name: Budget(255) for name in ("stack", "spill", "divide", "loops", "chain", "gone")} | {
        "good": Budget(4)
    }
    lines = "\n".join(static.usage_faults(found, budgets))
    assert re.fullmatch(
        r"gone has a budget and is no kernel\ngood takes registers \d+, 4 allowed\nspill takes spilled \d+, 0 allowed\n"
        r"(spill takes stack \d+, 0 allowed\n)?stack takes stack 256, 0 allowed",
        lines,
    )
    assert static.usage_faults(found, {}) == [f"{name} has no budget" for name in sorted(found)]
    code = static.disassemble(nvdisasm, cubin, tmp_path)
    budgets = dict.fromkeys(code, Budget(255)) | {"good": Budget(255, wants=(*static.LOADS_16_BYTES, r"\bREDUX\b"))}
    budgets["chain"] = Budget(255, carries=9, loads=3)
    lines = "\n".join(static.code_faults(code, budgets))
    assert re.fullmatch(
        r"chain has loads 2, 3 wanted\ndivide calls a routine: CALL.*\ndivide has divisions \d, 0 allowed\n"
        r"good has no \\bREDUX\\b\nloops has carries \d, 0 allowed\nloops has divisions 1, 0 allowed\n"
        r"loops has narrow_loads 1, 0 allowed\nspill uses local memory: STL.*\nstack has carries 1, 0 allowed\n"
        r"stack uses local memory: STL.*",
        lines,
    )
    allowed = dict.fromkeys(
        code, Budget(255, stack=1024, spilled=1024, calls=True, divisions=2, narrow_loads=1, carries=9)
    )
    allowed["chain"] = Budget(255, carries=9, loads=2)
    assert not static.usage_faults(found, allowed)
    assert not static.code_faults(code, allowed)


def test_errors_of_the_compiler_are_shown(nvrtc: tuple[int, int]) -> None:
    with pytest.raises(static.CompileError, match=r"kernels.cu\(1\): error: .*missing_type"):
        static.compile_kernels('extern "C" __global__ void f(missing_type x) {}', (), 80)


def test_usages_are_read() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
ptxas info    : Compile time = 1.234 ms
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 380 bytes cmem[0]
"""
    assert static.usages(log) == {"first": Usage(40, 8, 16, 512), "second": Usage(255, 0, 0)}


# --------------------------------------------------------------------------------------------------------- loop bodies


def argument_types(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, tuple[tuple[bool, str], ...]]]:
    """(body, (is it an array, type) of each argument) of the loops of a small run, on the emulated device."""
    from emulated_device import EmulatedDevice

    from gpudedup.backends.cuda.backend import CudaBackend

    seen = set()

    class Recorder(EmulatedDevice):
        def for_each(self, body: str, count: int, args: Sequence[DeviceArray | Scalar], stream: Any) -> None:
            seen.add((body, tuple((isinstance(arg, DeviceArray), str(arg.dtype)) for arg in args)))
            super().for_each(body, count, args, stream)

    monkeypatch.setattr(
        "gpudedup.engines.local.select_backend", lambda params, input_bytes: CudaBackend(params, Recorder(), "as asked")
    )
    texts = [f"one two three four five six seven eight nine ten {i}" for i in range(200)]
    table = pa.table({"text": texts, "k": [i % 3 for i in range(200)]})
    gpudedup.deduplicate(table, bucket_window=4)
    gpudedup.deduplicate(table, across="k", bucket_window=4)
    return seen


def test_loops_compile_with_the_types_they_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run passes to the bodies compiles, and neither floats nor local memory come out."""
    pytest.importorskip("numba_cuda", reason="numba-cuda is not installed")
    import numba.cuda.dispatcher
    from numba import cuda, from_dtype
    from numba.types import Array, Tuple, int64, void

    from gpudedup.kernels.loop import compiled_loop

    seen = argument_types(monkeypatch)
    assert {body for body, _ in seen} == BODIES.keys()
    device = types.SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(numba.cuda.dispatcher, "get_current_device", lambda: device)
    for body, described in sorted(seen):
        kinds = [(is_array, from_dtype(np.dtype(name))) for is_array, name in described]
        args = Tuple([Array(kind, 1, "C") if is_array else kind for is_array, kind in kinds])
        loop = compiled_loop(BODIES[body]).py_func
        ptx, _ = cuda.compile(loop, void(int64, args), device=False, cc=(9, 0), output="ptx", abi="numba")
        assert not re.search(r"\.f(16|32|64)\b|\.local\b", ptx), body


# ------------------------------------------------------------------------------------- the fake CuPy and the real one


def names_of(namespace: Any) -> set[str]:
    return {name for name in vars(namespace) if not name.startswith("_")}


def test_the_real_cupy_has_all_that_is_used(nvrtc: tuple[int, int]) -> None:
    import cupy

    fake = fake_cupy.FakeCupy()
    for name, value in vars(fake.cuda).items():
        real = getattr(cupy.cuda, name)
        if isinstance(value, types.SimpleNamespace | type):
            assert names_of(value) <= set(dir(real)), name
    assert {"RawModule", "ndarray", "cumsum", "__version__"} <= set(dir(cupy))
    assert cupy.cuda.runtime.memcpyHostToDevice == fake.cuda.runtime.memcpyHostToDevice
    assert cupy.cuda.runtime.memcpyDeviceToDevice == fake.cuda.runtime.memcpyDeviceToDevice
    assert cupy.cuda.runtime.memcpyDeviceToHost == fake.cuda.runtime.memcpyDeviceToHost


def test_the_real_errors_read_like_the_fake_ones(nvrtc: tuple[int, int]) -> None:
    import cupy

    for status, text in fake_cupy.ERRORS.items():
        error = cupy.cuda.runtime.CUDARuntimeError(status)
        assert (error.status, str(error)) == (status, text)
    assert issubclass(cupy.cuda.memory.OutOfMemoryError, MemoryError)
    assert str(cupy.cuda.compiler.CompileException("log", "source", "name", ())) == "log"


def test_signatures_of_the_real_cupy(nvrtc: tuple[int, int]) -> None:
    """Everything that is called with more than one argument, as it is called; what needs a driver says so."""
    import cupy

    module = cupy.RawModule(code="", options=("-std=c++17",))
    assert callable(module.get_function)
    memory = cupy.cuda.UnownedMemory(4096, 64, object(), 0)
    array = cupy.ndarray((8,), np.dtype(np.uint64), cupy.cuda.MemoryPointer(memory, 0))
    assert (array.data.ptr, array.nbytes) == (4096, 64)
    with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
        pass
    assert cupy.cuda.PinnedMemoryPool().malloc
    for call in ("memcpyAsync(intptr_t dst, intptr_t src, size_t size, int kind, intptr_t stream)",
                 "memsetAsync(intptr_t ptr, int value, size_t size, intptr_t stream)"):  # fmt: skip
        name = call.partition("(")[0]
        assert getattr(cupy.cuda.runtime, name).__doc__ == call
    assert "stable" in cupy.argsort.__doc__
    assert "stable" in cupy.sort.__doc__


def test_without_a_gpu_the_real_cupy_is_a_device_error(nvrtc: tuple[int, int]) -> None:
    import cupy

    if cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(DeviceError, match="opening it: CUDARuntimeError: cudaErrorInsufficientDriver"):
        CupyDevice(0)
