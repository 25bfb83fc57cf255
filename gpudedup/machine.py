"""What this machine, or the container or batch job that this process is in, lets it use."""

from __future__ import annotations

import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from gpudedup import _cpu

UNLIMITED = 1 << 60
"""cgroup v1 writes about 2^63 for no limit; nothing real is above this."""

FALLBACK_BYTES = 2 << 30
"""Taken as free memory where the system does not say (no /proc)."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine in words and numbers, for manifests, `gpudedup info` and benchmarks."""

    system: str
    cpu: str
    cores: int
    """Logical cores of the machine."""
    workers: int
    """Cores that this process may use."""
    memory_bytes: int
    """Memory of the machine, or the cgroup's limit where that is less."""
    available_memory_bytes: int
    python: str
    pyarrow: str
    numpy: str


def description(root: Path = Path("/")) -> Machine:
    """This machine. ``root``: where /proc and /sys are looked for."""
    return Machine(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=_cpu_model(root),
        cores=os.cpu_count() or 1,
        workers=worker_count(root),
        memory_bytes=min(
            [_meminfo(root).get("MemTotal", FALLBACK_BYTES), *(limit for limit, _ in _memory_groups(root))]
        ),
        available_memory_bytes=available_memory_bytes(root),
        python=sys.version.split()[0],
        pyarrow=pa.__version__,
        numpy=np.__version__,
    )


def available_memory_bytes(root: Path = Path("/")) -> int:
    """Bytes that can be used now: the smallest of free memory and what each cgroup's limit leaves; at least 0.

    What a cgroup holds of files that were read counts as free, as it does for the machine (MemAvailable).
    """
    info = _meminfo(root)
    free = info.get("MemAvailable", info.get("MemFree", FALLBACK_BYTES))
    return max(0, min([free, *(limit - used for limit, used in _memory_groups(root))]))


def default_memory_bytes(root: Path = Path("/")) -> int:
    """Half of what is available, the default of the ``memory`` parameter; at least its smallest value, 64 MB."""
    return max(64_000_000, available_memory_bytes(root) // 2)


def free_bytes(path: Path) -> int:
    """Bytes that this user can still write below ``path``, or where it would be made."""
    folder = path.absolute()
    while not folder.is_dir():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def worker_count(root: Path = Path("/"), environment: Mapping[str, str] = os.environ) -> int:
    """Cores that this process may use: the smallest of its affinity, cgroup quotas and Slurm task; at least 1."""
    try:
        counts = [len(os.sched_getaffinity(0))]
    except (AttributeError, OSError):
        counts = [os.cpu_count() or 1]
    counts.extend(_cpu_quotas(root))
    slurm = _integer(environment.get("SLURM_CPUS_PER_TASK", ""))
    if slurm is not None and slurm > 0:
        counts.append(slurm)
    return max(1, min(counts))


def release_memory() -> None:
    """Give memory that was freed back to the system, which Arrow's pool and the C library keep for later otherwise."""
    pa.default_memory_pool().release_unused()
    _cpu.release_memory()


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[: 1 << 16].decode("utf-8", "replace")
    except OSError:
        return ""


def _integer(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _meminfo(root: Path) -> dict[str, int]:
    """Bytes by name from /proc/meminfo; empty where it cannot be read."""
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        value = _integer(rest.removesuffix("kB"))
        if value is not None:
            found[name] = value * 1024
    return found


def _groups(root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Folders of this process's cgroup for a controller and of all groups above it, and whether they are of version 2.

    In a container /proc/self/cgroup may name a path outside of what is mounted; then its own group is the mount's root.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        parts = [part for part in path.split("/") if part not in ("", ".", "..")]
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup/unified", root / "sys/fs/cgroup"]
        elif controller in controllers.split(","):
            mounts = [root / "sys/fs/cgroup" / controllers, root / "sys/fs/cgroup" / controller]
        else:
            continue
        for mount in mounts:
            if mount.is_dir():
                for depth in range(len(parts), -1, -1):
                    yield mount.joinpath(*parts[:depth]), number == "0"
                break


def _memory_groups(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use beside cached files) of every cgroup that limits memory."""
    for folder, second in _groups(root, "memory"):
        limit = _integer(_text(folder / ("memory.max" if second else "memory.limit_in_bytes")))
        used = _integer(_text(folder / ("memory.current" if second else "memory.usage_in_bytes")))
        if limit is None or limit >= UNLIMITED:
            continue
        files = 0
        for line in _text(folder / "memory.stat").splitlines():
            name, _, value = line.partition(" ")
            if name == ("inactive_file" if second else "total_inactive_file"):
                files = _integer(value) or 0
        yield limit, max(0, (used or 0) - files)


def _cpu_quotas(root: Path) -> Iterator[int]:
    """Whole cores that every cgroup's quota allows, rounded up."""
    for folder, second in _groups(root, "cpu"):
        if second:
            quota_text, _, period_text = _text(folder / "cpu.max").partition(" ")
        else:
            quota_text, period_text = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        quota, period = _integer(quota_text), _integer(period_text)
        if quota and period:
            yield math.ceil(quota / period)


def _cpu_model(root: Path) -> str:
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Model", "cpu model") and value.strip():
            return " ".join(value.split())
    return platform.processor() or platform.machine() or "unknown"
