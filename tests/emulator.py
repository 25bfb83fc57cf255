"""Runs the kernels' own source on the CPU: builds csrc/cuda with csrc/emulator into a library, once per content."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from gpudedup.backends.cuda import program
from gpudedup.backends.cuda.device import DeviceArray, Scalar

ROOT = Path(__file__).resolve().parent.parent
CHECKS = "alignment,null,bounds,shift,integer-divide-by-zero,signed-integer-overflow"  # answered by launch.h
FLAGS = ("-O1", "-g", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra", "-Wno-unknown-pragmas")
MAX_THREADS = 1024

Order = Literal["forward", "reverse", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)


class EmulationError(AssertionError):
    """A kernel, or who launched it, did what CUDA leaves undefined. No code under test may catch it."""


class Emulator:
    """Kernels that were built into a library."""

    def __init__(self, library: Path, signatures: dict[str, program.Signature]) -> None:
        self.signatures = signatures
        self._library = ctypes.CDLL(str(library))
        self._library.gpudedup_launch.argtypes = [
            *(ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)),
            *(ctypes.c_int32, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_size_t),
        ]
        self._library.gpudedup_poison.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def check(self, kernel: str, blocks: int, threads: int, args: Sequence[DeviceArray | Scalar]) -> None:
        """Raise TypeError or ValueError for a launch that CUDA would refuse, or take wrongly."""
        if kernel not in self.signatures:
            raise ValueError(f"there is no kernel {kernel}; there are {', '.join(self.signatures)}")
        if not (0 <= blocks < 2**31 and 1 <= threads <= MAX_THREADS):
            raise ValueError(f"kernel {kernel} cannot be launched on {blocks} blocks of {threads} threads")
        self.signatures[kernel].check(args)

    def launch(
        self,
        kernel: str,
        blocks: int,
        threads: int,
        args: Sequence[DeviceArray | Scalar | npt.NDArray[Any]],
        order: Order = "forward",
        seed: int = 0,
    ) -> None:
        """Run a kernel to its end; arrays of numpy stand for device memory. Raises EmulationError."""
        values = [DeviceArray(a.ctypes.data, a.dtype, a.size, a) if isinstance(a, np.ndarray) else a for a in args]
        self.check(kernel, blocks, threads, values)
        words = [np.uint64(value.address) if isinstance(value, DeviceArray) else value for value in values]
        boxes = [np.array([word]) for word in words]
        pointers = (ctypes.c_void_p * len(boxes))(*(box.ctypes.data for box in boxes))
        error = ctypes.create_string_buffer(1024)
        if self._library.gpudedup_launch(
            kernel.encode(), blocks, threads, pointers, ORDERS.index(order), seed, error, len(error)
        ):
            raise EmulationError(f"{error.value.decode(errors='replace')} (order {order}, seed {seed})")

    def poison(self, address: int, size: int, on: bool) -> None:
        """Under the address sanitizer: kernels may (not) touch these bytes. Else nothing."""
        self._library.gpudedup_poison(address, size, on)


@cache
def kernels() -> Emulator:
    """The project's kernels."""
    return Emulator(compile_library(program.translation_unit(), program.signatures()), program.signatures())


def build(source: str) -> Emulator:
    """The kernels of a source of its own, compiled against csrc as those of csrc/cuda are."""
    signatures = program.declarations(source)
    return Emulator(compile_library(source, signatures), signatures)


def address_sanitizer() -> bool:
    """Whether this process has it loaded, so that libraries may be built with it."""
    return "libasan" in os.environ.get("LD_PRELOAD", "")


def compile_library(source: str, signatures: dict[str, program.Signature]) -> Path:
    """A library with gpudedup_launch (csrc/emulator/launch.h) for these kernels; one process builds it for all."""
    unit = source + registry(signatures)
    compiler = shlex.split(os.environ.get("CXX", "g++"))
    address = ["-fsanitize=address"] if address_sanitizer() else []
    options = [*FLAGS, *address, "-DGPUDEDUP_EMULATOR", *program.options(), f"-I{ROOT / 'csrc'}"]
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [unit, version, *compiler, *options, program.digest()]
    parts += [path.read_text(encoding="utf-8") for path in sorted((ROOT / "csrc" / "emulator").glob("*.h"))]
    folder = private_folder() / hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
    folder.mkdir(exist_ok=True)
    library = folder / "kernels.so"
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            (folder / "kernels.cpp").write_text(unit, encoding="utf-8")
            call([*compiler, *options, f"-fsanitize={CHECKS}", "-c", "kernels.cpp", "-o", "kernels.o"], folder)
            call([*compiler, *FLAGS, *address, "kernels.o", "-o", "unfinished.so"], folder)
            (folder / "unfinished.so").rename(library)
    return library


def registry(signatures: dict[str, program.Signature]) -> str:
    """The table of kernels that csrc/emulator/launch.h looks into."""
    entries = (
        f'    {{"{each.name}", simt::Erased<&{each.name}>::run, {(each.bounds or str(MAX_THREADS)).split(",")[0]}}},\n'
        for each in signatures.values()
    )
    return (
        '\n#include "emulator/launch.h"\nnamespace gpudedup {}\nusing namespace gpudedup;\n'
        f"const simt::Kernel simt::kernels[] = {{\n{''.join(entries)}}};\n"
        f"const size_t simt::kernel_count = {len(signatures)};\n"
    )


def private_folder() -> Path:
    """A folder for built libraries that no other user can write to; it stays, so that the next run builds nothing."""
    folder = Path(tempfile.gettempdir()) / f"gpudedup-emulator-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o022:
        raise PermissionError(f"{folder} is not this user's alone; remove it")
    return folder


def call(command: list[str], folder: Path) -> None:
    # The compiler is not what is tested: it runs without libraries that are loaded for this process.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise EmulationError(f"{shlex.join(command)} failed in {folder}:\n{done.stderr[:8000]}")
