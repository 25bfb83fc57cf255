"""Choosing a backend."""

from __future__ import annotations

from gpudedup.backends.base import Backend
from gpudedup.errors import DeviceError
from gpudedup.params import Params


def select_backend(params: Params) -> Backend:
    """The backend for ``params.device``; "auto" may choose and says why, all else is obeyed or raises DeviceError."""
    from gpudedup.backends.cpu import CpuBackend

    if params.device in ("auto", "cpu"):
        reason = "as asked" if params.device == "cpu" else "this version computes on the CPU only"
        return CpuBackend(params, reason)
    raise DeviceError(
        f'device="{params.device}" is not available: this version of gpudedup computes on the CPU only; '
        'use device="auto" or device="cpu"'
    )
