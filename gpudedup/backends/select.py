"""Choosing a backend."""

from __future__ import annotations

from gpudedup.backends.base import Backend
from gpudedup.errors import DeviceError
from gpudedup.params import Params


def select_backend(params: Params) -> Backend:
    """The backend for ``params.device``; "auto" may choose and says why, all else is obeyed or raises DeviceError."""
    from gpudedup.backends.cpu import CpuBackend

    if params.device == "cpu":
        return CpuBackend(params, "as asked")
    found = _cuda_backend(params)
    if not isinstance(found, str):
        return found
    if params.device == "auto":
        return CpuBackend(params, found)
    raise DeviceError(f'device="{params.device}" is not available: {found}; or use device="auto" or device="cpu"')


def _cuda_backend(params: Params) -> Backend | str:
    """The backend on the GPU that ``params.device`` means, or why there is none, in one line."""
    from gpudedup.backends.cuda.detect import detect

    index = int(params.device.partition(":")[2] or 0)
    if (reason := detect(index).reason) is not None:
        return reason
    from gpudedup.backends.cuda.backend import CudaBackend, try_out
    from gpudedup.backends.cuda.cupy_device import CupyDevice

    try:
        device = CupyDevice(index)
        try_out(device)
        return CudaBackend(params, device, "a GPU was found" if params.device == "auto" else "as asked")
    except DeviceError as error:
        return str(error)
