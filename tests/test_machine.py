"""Memory and cores as containers and batch jobs limit them, from fake /proc and /sys trees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpudedup import machine

MEMINFO = "MemTotal:       32000000 kB\nMemFree: 1000 kB\nMemAvailable:   16000000 kB\nHugePages_Total:       0\n"
GB = 1 << 30


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_free_memory_without_cgroups(tmp_path):
    assert machine.available_memory_bytes(tree(tmp_path, {"proc/meminfo": MEMINFO})) == 16_000_000 * 1024
    assert machine.default_memory_bytes(tmp_path) == 8_000_000 * 1024


def test_old_kernels_say_free_only(tmp_path):
    assert machine.available_memory_bytes(tree(tmp_path, {"proc/meminfo": "MemFree: 1000 kB\n"})) == 1_024_000
    assert machine.default_memory_bytes(tmp_path) == 64_000_000, "never below the smallest value of memory"


def test_cgroup_2_limit_of_a_parent_counts(tmp_path):
    group = "sys/fs/cgroup/user.slice/job"
    tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "0::/user.slice/job\n",
            f"{group}/memory.max": "max\n",
            f"{group}/memory.current": "5\n",
            "sys/fs/cgroup/user.slice/memory.max": f"{4 * GB}\n",
            "sys/fs/cgroup/user.slice/memory.current": f"{3 * GB}\n",
            "sys/fs/cgroup/user.slice/memory.stat": f"anon 5\ninactive_file {GB}\n",
        },
    )
    assert machine.available_memory_bytes(tmp_path) == 2 * GB, "cached files can be dropped"
    assert machine.description(tmp_path).memory_bytes == 4 * GB


def test_cgroup_1_in_a_container_whose_path_is_not_mounted(tmp_path):
    tree(
        tmp_path,
        {
            "proc/meminfo": MEMINFO,
            "proc/self/cgroup": "4:memory:/docker/0123abcd\n2:cpu,cpuacct:/docker/0123abcd\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": str(2 * GB),
            "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GB),
            "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 0\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert machine.available_memory_bytes(tmp_path) == GB
    assert machine.worker_count(tmp_path, {}) == 1


def test_cgroup_1_without_a_limit(tmp_path):
    files = {"proc/meminfo": MEMINFO, "proc/self/cgroup": "4:memory:/\n"}
    tree(tmp_path, files | {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"})
    assert machine.available_memory_bytes(tmp_path) == 16_000_000 * 1024


def test_use_above_the_limit_leaves_nothing(tmp_path):
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "100", "sys/fs/cgroup/memory.current": "500"}
    assert machine.available_memory_bytes(tree(tmp_path, files)) == 0


@pytest.mark.parametrize(("quota", "expected"), [("150000 100000", 2), ("50000 100000", 1), ("max 100000", None)])
def test_cgroup_2_cpu_quota(tmp_path, quota, expected):
    tree(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    everything = len(os.sched_getaffinity(0))
    assert machine.worker_count(tmp_path, {}) == min(everything, expected or everything)


@pytest.mark.parametrize("value", ["1", " 1 "])
def test_slurm_task(tmp_path, value):
    assert machine.worker_count(tmp_path, {"SLURM_CPUS_PER_TASK": value}) == 1


@pytest.mark.parametrize("rubbish", ["", "\x00\xff", "-5", "1e9", "9" * 400, "max max", "0 0", "²"])
def test_rubbish_is_ignored(tmp_path, rubbish):
    tree(
        tmp_path,
        {
            "proc/meminfo": f"MemAvailable: {rubbish} kB\n{rubbish}\n:\n",
            "proc/self/cgroup": f"{rubbish}\n0::/../../{rubbish.replace(chr(0), '')}\n4:memory:/\n",
            "proc/cpuinfo": rubbish,
            "sys/fs/cgroup/memory.max": rubbish,
            "sys/fs/cgroup/memory.current": rubbish,
            "sys/fs/cgroup/memory.stat": f"inactive_file {rubbish}\n",
            "sys/fs/cgroup/cpu.max": rubbish,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": rubbish,
        },
    )
    assert machine.available_memory_bytes(tmp_path) == machine.FALLBACK_BYTES
    assert machine.worker_count(tmp_path, {"SLURM_CPUS_PER_TASK": rubbish}) == len(os.sched_getaffinity(0))
    assert machine.description(tmp_path).cpu


def test_this_machine():
    found = machine.description()
    assert 1 <= found.workers <= found.cores
    assert 0 < found.available_memory_bytes <= found.memory_bytes
    assert found.cpu
    assert found.numpy
