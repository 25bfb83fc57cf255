"""Choosing a backend."""

from __future__ import annotations

from gpudedup.backends.base import Backend
from gpudedup.backends.cuda.detect import ruled_out
from gpudedup.errors import DeviceError
from gpudedup.machine import worker_count
from gpudedup.params import Params

BYTES_A_WORKER = 200_000_000
"""With less input for each CPU worker, "auto" leaves the GPU alone: what a worker gets through, some 100 MB of text a
second, until a GPU does its first work. By arithmetic, not by measurement of a GPU: half a second for a context and the
kernels, and 1.5 seconds of Numba, which compiles its loops anew in each process (docs/gpu.md)."""


def select_backend(params: Params, input_bytes: int | None = None) -> Backend:
    """The backend for ``params.device``; "auto" may choose and says why, all else is obeyed or raises DeviceError.

    input_bytes: of files as they are stored, of tables as they are held; None if nobody knows. Results do not depend on
    the choice.
    """
    from gpudedup.backends.cpu import CpuBackend

    if params.device == "cpu":
        return CpuBackend(params, "as asked")
    if params.device == "auto" and input_bytes is not None and input_bytes < _least_bytes(params):
        too_small = f"auto: {input_bytes / 1e6:,.1f} MB is less work than starting a GPU"
        return CpuBackend(params, ruled_out() or too_small)
    found = _cuda_backend(params)
    if not isinstance(found, str):
        return found
    if params.device == "auto":
        return CpuBackend(params, found)
    raise DeviceError(f'device="{params.device}" is not available: {found}; or use device="auto" or device="cpu"')


def _least_bytes(params: Params) -> int:
    """Of input that is worth a GPU."""
    return BYTES_A_WORKER * (params.workers or worker_count())


def _cuda_backend(params: Params) -> Backend | str:
    """The backend on the GPU that ``params.device`` means, or why there is none, in one line."""
    from gpudedup.backends.cuda.detect import detect

    index = int(params.device.partition(":")[2] or 0)
    if (reason := detect(index).reason) is not None:
        return reason
    from gpudedup.backends.cuda.backend import CudaBackend, try_out
    from gpudedup.backends.cuda.cupy_device import CupyDevice

    found = f"a GPU was found; auto leaves less than {_least_bytes(params) / 1e6:,.0f} MB of input to the CPU"
    try:
        device = CupyDevice(index)
        try_out(device)
        return CudaBackend(params, device, found if params.device == "auto" else "as asked")
    except DeviceError as error:
        return str(error)
