"""What there is to measure on: every GPU that can be used, and every instruction-set tier of the CPU."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gpudedup import _cpu
from gpudedup.backends.cpu import cpu_tier
from gpudedup.errors import DeviceError, ParameterError

BASELINE = "baseline"
"""The tier that every machine has; what the others are checked against."""


@dataclass(frozen=True)
class Device:
    """What cases run on: a GPU, or the CPU with one instruction-set tier."""

    device: str
    """As the parameter of that name: "cpu" or "cuda:N"."""
    tier: str | None = None
    gpu: str | None = None
    """The name of the GPU."""

    @property
    def environment(self) -> dict[str, str]:
        """For the process of a case."""
        return {"GPUDEDUP_CPU": self.tier} if self.tier else {}

    def __str__(self) -> str:
        detail = self.tier or self.gpu
        return f"{self.device} ({detail})" if detail else self.device


def present_devices(asked: Sequence[str]) -> tuple[tuple[Device, ...], str | None]:
    """All devices, GPUs first, then tiers from the best on; or those asked for ("cpu", "cuda", "cuda:N"), and why there
    is no GPU. GPUDEDUP_CPU leaves one tier. Raises ParameterError and DeviceError.
    """
    for name in asked:
        if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", name):
            raise ParameterError(f'--device must be "cpu", "cuda" or "cuda:N", got {name!r}')
    best = cpu_tier()
    tiers = [best] if os.environ.get("GPUDEDUP_CPU") else [best, *_lower(best)]
    on_cpu = tuple(Device("cpu", tier) for tier in tiers) if not asked or "cpu" in asked else ()
    if asked and all(name == "cpu" for name in asked):
        return on_cpu, None
    gpus, reason = _gpus()
    wanted = [name if ":" in name else "cuda:0" for name in asked if name != "cpu"]
    for name in wanted:
        if name not in gpus:
            raise DeviceError(f"--device {name} is not available: {reason or 'there are ' + ', '.join(gpus)}")
    return tuple(Device(name, gpu=gpus[name]) for name in (dict.fromkeys(wanted) if asked else gpus)) + on_cpu, reason


def _lower(best: str) -> list[str]:
    return [tier for tier in _cpu.available_tiers().split() if tier != best]


def _gpus() -> tuple[dict[str, str], str | None]:
    """Those that can be used, "cuda:N" and name; why the first cannot."""
    from gpudedup.backends.cuda.detect import detect

    found = detect()
    if found.reason is not None and not found.gpus:
        return {}, found.reason
    usable = [gpu for gpu in found.gpus if detect(gpu.index).reason is None]
    return {f"cuda:{gpu.index}": gpu.name for gpu in usable}, found.reason
