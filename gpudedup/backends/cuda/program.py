"""The kernels' source in csrc/cuda: what is compiled, under which key it may be cached, and what a launch must pass."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from gpudedup.backends.cuda.device import DeviceArray, Scalar

TYPES = {
    f"{name}_t": np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "int32", "int64")
}  # what a kernel may take, and pointers to it

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
BOUNDS = r"(?:__launch_bounds__\s*\((?P<{}>[^()]*)\)\s*)?"
KERNEL = re.compile(
    rf'extern\s+"C"\s+__global__\s+{BOUNDS.format("before")}void\s+{BOUNDS.format("after")}'
    r"(?P<name>\w+)\s*\((?P<parameters>[^()]*)\)"
)
PARAMETER = re.compile(
    r"(?P<const>const\s+)?(?P<type>\w+)(?:\s+const)?\s*(?P<star>\*?)\s*(?:__restrict__\s+)?(?P<name>\w+)"
)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A value of ``dtype``, or a pointer to such values; ``writes``: one through which the kernel may write."""

    name: str
    dtype: np.dtype[Any]
    pointer: bool
    writes: bool

    def __str__(self) -> str:
        const = "const " if self.pointer and not self.writes else ""
        return f"{const}{self.dtype}{'*' if self.pointer else ''} {self.name}"


@dataclass(frozen=True, slots=True)
class Signature:
    """A kernel's declaration; ``bounds`` is its expression in __launch_bounds__, if it has one."""

    name: str
    parameters: tuple[Parameter, ...]
    bounds: str | None

    def check(self, args: Sequence[DeviceArray | Scalar]) -> None:
        """Raise TypeError if ``args`` are not exactly of the declared types: a launch passes bare bytes."""
        if len(args) != len(self.parameters):
            raise TypeError(
                f"kernel {self.name} takes {len(self.parameters)} arguments, not {len(args)}: "
                + ", ".join(map(str, self.parameters))
            )
        for parameter, arg in zip(self.parameters, args, strict=True):
            kind = DeviceArray if parameter.pointer else Scalar
            if not isinstance(arg, kind) or arg.dtype != parameter.dtype:
                given = type(arg).__name__ + (f" of {arg.dtype}" if isinstance(arg, DeviceArray) else "")
                raise TypeError(f"kernel {self.name} takes {parameter}, and was given a {given}")


def declarations(source: str) -> dict[str, Signature]:
    """The kernels that ``source`` defines: extern "C" __global__ void name(type name, ...), types as in `TYPES`."""
    code = COMMENT.sub(" ", source)
    found = {}
    for match in KERNEL.finditer(code):
        name, parameters = match["name"], []
        for text in filter(None, (part.strip() for part in match["parameters"].split(","))):
            parameter = PARAMETER.fullmatch(text)
            if parameter is None or parameter["type"] not in TYPES:
                raise TypeError(f"kernel {name}: {text!r} is none of {', '.join(TYPES)}, nor a pointer to one")
            pointer = parameter["star"] == "*"
            writes = pointer and parameter["const"] is None
            parameters.append(Parameter(parameter["name"], TYPES[parameter["type"]], pointer, writes))
        found[name] = Signature(name, tuple(parameters), match["before"] or match["after"])
    if len(found) != len(re.findall(r"\b__global__\b", code)):
        raise TypeError(
            f'a kernel is not declared as extern "C" __global__ void name(...), or twice; found: {[*found]}'
        )
    return found


def folder() -> Path:
    """The folder that kernels are compiled against: of core/ and cuda/, in any kind of install."""
    return Path(str(files("gpudedup.csrc")))


@cache
def sources() -> tuple[Path, ...]:
    """The files that define kernels."""
    return tuple(sorted((folder() / "cuda").glob("*.cu")))


@cache
def signatures() -> dict[str, Signature]:
    """All kernels by name."""
    return declarations("\n".join(path.read_text(encoding="utf-8") for path in sources()))


def translation_unit() -> str:
    """One source that defines all kernels."""
    return "".join(f'#include "cuda/{path.name}"\n' for path in sources())


@cache
def digest() -> str:
    """SHA-256, in hex, of all that the kernels are made of; compilers' caches know the outermost source only."""
    parts = hashlib.sha256()
    for path in sorted([*sources(), *(folder() / "cuda").glob("*.h"), *(folder() / "core").glob("*.h")]):
        content = path.read_bytes()
        parts.update(f"{path.relative_to(folder()).as_posix()}\0{len(content)}\0".encode() + content)
    return parts.hexdigest()


def options() -> tuple[str, ...]:
    """What NVRTC and host compilers are given; the architecture is the caller's."""
    return ("-std=c++17", f"-I{folder()}", f"-DGPUDEDUP_DIGEST=0x{digest()[:16]}")
