"""Whether a GPU can be used here, and if not, why: one line for a person, with the way out.

Nothing here raises. What costs least is asked first: a machine without a driver never imports CuPy.
"""

from __future__ import annotations

import ctypes
import os
import re
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

MIN_CUDA = 12
"""The oldest major version of CUDA that gpudedup has an extra for."""

MIN_CAPABILITY = 75
"""Compute capability 7.5, the oldest that the compilers of CUDA 13 know."""

MIN_FREE_BYTES = 1 << 30
"""Less free memory than this holds no batch worth a GPU."""

_CUPY_PACKAGES = ("cupy", "cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x")

# Of cudaError_t, whose values CUDA never changes (CUDA Runtime API, enum cudaError).
_MEMORY_ALLOCATION, _INITIALIZATION, _INSUFFICIENT_DRIVER, _DEVICES_UNAVAILABLE, _NO_DEVICE = 2, 3, 35, 46, 100
# Of cudaDeviceAttr and cudaComputeMode.
_COMPUTE_MODE_ATTRIBUTE, _COMPUTE_MODE_PROHIBITED = 20, 2


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    """A device that CUDA shows."""

    index: int
    name: str
    capability: str
    """Compute capability, as in 9.0."""
    memory_bytes: int


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """What was found. Versions are those of what was looked at before the answer was clear, None beyond that."""

    reason: str | None
    """Why the GPU that was asked about cannot be used; None: it can."""
    gpus: tuple[Gpu, ...] = ()
    free_bytes: int | None = None
    """Free memory of the GPU that was asked about."""
    driver: str | None = None
    """Version of the NVIDIA driver, where the system says it."""
    driver_cuda: str | None = None
    """The newest CUDA that the driver supports."""
    cupy: str | None = None
    cupy_cuda: str | None = None
    """The CUDA that CuPy was built for."""
    nvrtc: str | None = None
    """Version of the run-time compiler."""


def detect(index: int = 0, root: Path = Path("/")) -> Detection:
    """Whether GPU ``index`` (as CUDA_VISIBLE_DEVICES counts) can be used. ``root``: where /proc is looked for.

    A GPU that can be used holds a CUDA context of this process afterwards, a few hundred MB of its memory.
    """
    seen: dict[str, Any] = {}
    try:
        reason = _reason(index, root, seen)
    except Exception as error:  # whatever a broken driver or CuPy comes up with
        reason = f"CUDA cannot be used: {first_line(error)}; look whether nvidia-smi works"
    return Detection(reason=reason, **seen)


def ruled_out() -> str | None:
    """Why there can be no GPU, as far as it costs nothing to know."""
    if os.environ.get("GPUDEDUP_DISABLE_GPU") == "1":
        return "GPUDEDUP_DISABLE_GPU=1 turns GPUs off; unset it to use one"
    if _driver_cuda() == 0:
        return (
            "no NVIDIA driver was found (libcuda.so.1 is missing); install one, or start the container with GPUs "
            "(docker run --gpus all)"
        )
    return None


def _reason(index: int, root: Path, seen: dict[str, Any]) -> str | None:
    """Why not, or None; puts what it learns into ``seen``."""
    if (reason := ruled_out()) is not None:
        return reason
    supported = _driver_cuda()
    seen |= {"driver": _driver_version(root), "driver_cuda": _version(supported)}
    if supported < MIN_CUDA * 1000:
        return f"the NVIDIA driver is too old: it supports CUDA {_version(supported)}, {MIN_CUDA}.0 or newer is needed"
    install = _install(supported)

    installed = [name for name in _CUPY_PACKAGES if _is_installed(name)]
    if len(installed) > 1:
        return f"CuPy is installed more than once: pip uninstall {' '.join(installed)}, then {install}"
    try:
        cupy = import_cupy()
    except ModuleNotFoundError as error:
        if error.name == "cupy":
            return f"CuPy is not installed: {install}"
        return f"CuPy cannot be imported ({first_line(error)}): {install}"
    except Exception as error:
        package = installed[0] if installed else "cupy"
        return f"CuPy cannot be imported ({first_line(error)}): pip uninstall {package}, then {install}"
    runtime = cupy.cuda.runtime
    built = runtime.runtimeGetVersion()
    seen |= {"cupy": cupy.__version__, "cupy_cuda": _version(built)}
    if built // 1000 > supported // 1000:
        package = installed[0] if installed else "cupy"
        return (
            f"the NVIDIA driver supports CUDA {_version(supported)}, but CuPy {cupy.__version__} was built for CUDA "
            f"{_version(built)}: update the driver, or pip uninstall {package}, then {install}"
        )
    install = _install(built)
    try:
        seen["nvrtc"] = "{}.{}".format(*cupy.cuda.nvrtc.getVersion())
    except Exception:
        return f"the run-time compiler of CUDA (libnvrtc) was not found: {install}"

    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        if error.status != _NO_DEVICE:
            return _start_failure(error)
        count = 0
    if count == 0:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return f"CUDA_VISIBLE_DEVICES={visible!r} leaves no GPU visible; unset it or name one that nvidia-smi lists"
        return "the NVIDIA driver shows no GPU; look whether nvidia-smi lists one"
    seen["gpus"] = tuple(_gpu(runtime, number) for number in range(count))
    if index >= count:
        names = " and ".join(filter(None, (", ".join(f"cuda:{i}" for i in range(count - 1)), f"cuda:{count - 1}")))
        return f"cuda:{index} was asked for, but visible {'is' if count == 1 else 'are'} only {names}"
    return _refusal(cupy, seen["gpus"][index], seen) or _compiler_failure(cupy, index, install)


def _refusal(cupy: Any, gpu: Gpu, seen: dict[str, Any]) -> str | None:
    """Why this one GPU does not take us, or None."""
    runtime = cupy.cuda.runtime
    which = f"cuda:{gpu.index} ({gpu.name})"
    if int(gpu.capability.replace(".", "")) < MIN_CAPABILITY:
        needed = f"{MIN_CAPABILITY // 10}.{MIN_CAPABILITY % 10}"
        return f"{which} has compute capability {gpu.capability}; {needed} or newer is needed"
    if runtime.deviceGetAttribute(_COMPUTE_MODE_ATTRIBUTE, gpu.index) == _COMPUTE_MODE_PROHIBITED:
        return f"{which} is in compute mode Prohibited; its owner changes that with nvidia-smi -c DEFAULT"
    try:
        with cupy.cuda.Device(gpu.index) as device:
            free, total = device.mem_info  # makes the context, the last thing that can fail
    except runtime.CUDARuntimeError as error:
        if error.status == _DEVICES_UNAVAILABLE:
            return f"{which} is held by another process, for its compute mode is exclusive; nvidia-smi shows by which"
        if error.status == _MEMORY_ALLOCATION:
            return f"{which} has no memory left for this process; nvidia-smi shows who holds it"
        return _start_failure(error)
    seen["free_bytes"] = free
    if free < MIN_FREE_BYTES:
        return (
            f"{which} has {gibibytes(free)} GiB free of {gibibytes(total)}, {gibibytes(MIN_FREE_BYTES)} is needed; "
            "nvidia-smi shows who holds the rest"
        )
    return None


def _compiler_failure(cupy: Any, index: int, install: str) -> str | None:
    """Why nothing can be compiled and loaded, or None: without headers of CUDA, say, CuPy compiles no kernel."""
    try:
        with cupy.cuda.Device(index):
            cupy.RawModule(code='extern "C" __global__ void probe() {}').get_function("probe")
    except Exception as error:
        return f"no kernel can be compiled ({first_line(error)}): {install}"
    return None


def _start_failure(error: Any) -> str:
    if error.status == _INITIALIZATION:
        return (
            "CUDA cannot start in this process, as in one that was forked from a process that had used CUDA; start "
            'processes with multiprocessing.set_start_method("spawn")'
        )
    if error.status == _INSUFFICIENT_DRIVER:
        return "the NVIDIA driver is too old for this CuPy; update the driver"
    return f"CUDA cannot start ({first_line(error)}); look whether nvidia-smi works"


def import_cupy() -> Any:
    """CuPy, also where its cache of compiled kernels cannot be written. Raises what its import raises."""
    folder = os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")
    if not _is_writable(Path(folder)):
        # CuPy makes its folder as it is imported. Any that exists will do: in-memory means that no file is read or
        # written there.
        os.environ["CUPY_CACHE_DIR"] = tempfile.gettempdir()
        os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
    import cupy

    return cupy


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, which may have to be made first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _driver_cuda() -> int:
    """The newest CUDA that the driver supports, 13000 for 13.0; 0 without a driver. Asks libcuda itself, not CuPy."""
    number = ctypes.c_int(0)
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return 0
    return number.value if status == 0 else 0


def _driver_version(root: Path) -> str | None:
    try:
        text = (root / "proc/driver/nvidia/version").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", text)
    return match[0] if match else None


def _is_installed(package: str) -> bool:
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _gpu(runtime: Any, index: int) -> Gpu:
    properties = runtime.getDeviceProperties(index)
    return Gpu(
        index=index,
        name=properties["name"].decode(errors="replace"),
        capability=f"{properties['major']}.{properties['minor']}",
        memory_bytes=int(properties["totalGlobalMem"]),
    )


def _install(cuda: int) -> str:
    """The command that installs what goes with this CUDA."""
    return f"pip install 'gpudedup[cuda{min(cuda // 1000, 13)}]'"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def gibibytes(size: int) -> str:
    """``size`` in GiB, to a tenth."""
    return f"{size / (1 << 30):.1f}"


def first_line(error: BaseException) -> str:
    """The first line with words of an error's text, else its type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if re.search(r"\w", line)), type(error).__name__)
