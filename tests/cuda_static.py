"""What can be said of the kernels without a GPU: NVRTC compiles them for each architecture, and the result is read."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ARCHITECTURES = (75, 80, 90, 100, 120)
"""Turing, the oldest that CUDA 13 compiles for; Ampere; Hopper; Blackwell in data centres and elsewhere."""

CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds to the options it is given."""

BUDGET_NVRTC = (13, 5)
"""The compiler that the budgets are for; another may allocate registers otherwise."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What a kernel may take on any architecture, and what its code for sm_90 must have."""

    registers: int
    """A thread, in the 8s that they are given out in."""
    stack: int = 0
    """Bytes of stack frame a thread: above 0, local memory is read and written."""
    spilled: int = 0
    """Bytes of spills a thread."""
    calls: bool = False
    """Whether it may call a routine; a division of 64 bits is one."""
    divisions: int = 0
    """Reciprocals in its code: a division of 32 bits begins with one."""
    narrow_loads: int = 0
    """Loads of 8 or 16 bits from device memory in loops."""
    carries: int = 0
    """Instructions in innermost loops that take a carry: arithmetic of 64 bits, of hashes or of places in arrays."""
    loads: int = 0
    """At least as many loads from device memory of one innermost loop start before the first of them is used."""
    wants: tuple[str, ...] = ()
    """Instructions, as regular expressions, that it was written for."""


LOADS_16_BYTES = (r"\bLDG\.E\.128\b",)
STORES_16_BYTES = (r"\bSTG\.E\.128\b",)

BUDGETS = {
    # Of units.cu: spans and text are read 16 bytes at once, and byte by byte only where a code point is decoded and
    # folded by itself.
    "find_chars": Budget(48, narrow_loads=16, carries=28, wants=LOADS_16_BYTES),
    "find_words": Budget(48, narrow_loads=16, carries=24, wants=LOADS_16_BYTES),
    "first_chars": Budget(40, narrow_loads=8, carries=4, wants=LOADS_16_BYTES),
    "first_words": Budget(40, narrow_loads=8, carries=4, wants=LOADS_16_BYTES),
    "join_chars": Budget(40, carries=1, wants=LOADS_16_BYTES),
    "join_words": Budget(40, carries=1, wants=LOADS_16_BYTES),
    "mark_documents": Budget(16),
    "measure_chars": Budget(40, narrow_loads=8, carries=6, wants=LOADS_16_BYTES),
    "measure_words": Budget(40, narrow_loads=8, carries=6, wants=LOADS_16_BYTES),
    # Of sign.cu: hashes are of 64 bits; shingles are read and written 16 bytes at once; a lane is a product of 32 by 32
    # bits, and a minimum of three is that of two shingles and those before.
    "band_keys": Budget(32, divisions=1, carries=16),
    "count_shingles": Budget(16),
    "hash_tokens": Budget(56, carries=14, wants=STORES_16_BYTES),
    "hash_units": Budget(56, carries=14, wants=STORES_16_BYTES),
    "pack_shingles": Budget(24),
    "sign_lanes": Budget(56, loads=2, wants=(*LOADS_16_BYTES, r"\bVIMNMX3\.U32\b")),
    # Of sets.cu and jaccard.cu.
    "enter_sets": Budget(24),
    "intersect_pairs": Budget(32, wants=(r"\bVOTE", r"\bSHFL\.IDX\b")),
    "key_hashes": Budget(16, carries=1),
    "mark_distinct": Budget(16),
    "place_sets": Budget(16),
    # Of decide.cu: candidates and the lanes of all documents may be more than 2^32; 128 lanes of two documents are
    # loaded together.
    "advance_lanes": Budget(56, carries=16, loads=8, wants=(r"\bVOTE",)),
    "advance_sets": Budget(48, wants=(r"\bVOTE", r"\bSHFL\.IDX\b")),
    "advance_unverified": Budget(40, carries=4),
    "count_compared": Budget(40, carries=8),
    "measure_large": Budget(32, carries=2),
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What ptxas says of a kernel: registers a thread, bytes of stack frame and of spills a thread, of shared memory a
    block."""

    registers: int
    stack: int
    spilled: int
    shared: int = 0


class CompileError(Exception):
    """The compiler's log."""


def compile_kernels(source: str, options: Sequence[str], architecture: int) -> tuple[bytes, dict[str, Usage]]:
    """(cubin, usage by kernel). Raises CompileError."""
    from cupy.cuda import nvrtc  # not compile_using_nvrtc, which asks the device for its architecture

    given = (*options, *CUPY_OPTIONS, f"-arch=sm_{architecture}", "--ptxas-options=-v")
    program = nvrtc.createProgram(source, "kernels.cu", (), ())
    try:
        nvrtc.compileProgram(program, given)
        # CuPy 14.2 drops the last byte, a zero that the driver does not miss but nvdisasm does.
        return nvrtc.getCUBIN(program) + b"\0", usages(nvrtc.getProgramLog(program))
    except nvrtc.NVRTCError:
        raise CompileError(nvrtc.getProgramLog(program)) from None
    finally:
        nvrtc.destroyProgram(program)


def usages(log: str) -> dict[str, Usage]:
    """Usage by kernel, from what ptxas -v prints."""
    found = {}
    for name, said in re.findall(r"Compiling entry function '(\w+)' for '\w+'(.*?Used \d+ registers[^\n]*)", log, re.S):
        of = {what: int(n) for n, what in re.findall(r"(\d+) bytes (stack frame|spill stores|spill loads)", said)}
        (registers,) = re.findall(r"Used (\d+) registers", said)
        shared = re.search(r"(\d+) bytes smem", said)
        spilled = of["spill stores"] + of["spill loads"]
        found[name] = Usage(int(registers), of["stack frame"], spilled, int(shared[1]) if shared else 0)
    return found


def disassemble(nvdisasm: str, cubin: bytes, folder: Path) -> dict[str, str]:
    """SASS by kernel."""
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    done = subprocess.run([nvdisasm, "-c", path], capture_output=True, text=True, check=True)
    _, *parts = re.split(r"^\.text\.(\w+):$", done.stdout, flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def usage_faults(found: Mapping[str, Usage], budgets: Mapping[str, Budget]) -> list[str]:
    """What takes more than its budget, one line each."""
    lines = [f"{name} has no budget" for name in found.keys() - budgets.keys()]
    lines += [f"{name} has a budget and is no kernel" for name in budgets.keys() - found.keys()]
    for name in found.keys() & budgets.keys():
        for what in ("registers", "stack", "spilled"):
            taken, allowed = getattr(found[name], what), getattr(budgets[name], what)
            if taken > allowed:
                lines.append(f"{name} takes {what} {taken}, {allowed} allowed")
    return sorted(lines)


def instructions_and_loops(text: str) -> tuple[list[str], list[range]]:
    """Instructions of SASS, and which of them each branch back goes over again."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    loops = []
    for line in text.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(found[1].strip())
            target = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", found[1])
            # What waits behind the last instruction branches to itself.
            if target and labels.get(target[1], len(instructions)) < len(instructions) - 1:
                loops.append(range(labels[target[1]], len(instructions)))
    return instructions, loops


def innermost(loops: Sequence[range]) -> list[range]:
    return [own for own in loops if not any(own != other and other[0] in own and other[-1] in own for other in loops)]


def loop_counts(text: str) -> dict[str, int]:
    """What `Budget` bounds from above in loops, and divisions."""
    instructions, loops = instructions_and_loops(text)
    in_loops, in_inner = ({i for loop in some for i in loop} for some in (loops, innermost(loops)))
    return {
        "divisions": sum("MUFU.RCP" in each for each in instructions),
        "narrow_loads": sum(re.search(r"\bLDG?\.E\.[US](8|16)\b", instructions[i]) is not None for i in in_loops),
        "carries": sum(re.search(r"\.E?X\b", instructions[i]) is not None for i in in_inner),
    }


def loads_together(text: str) -> int:
    """The most loads from device memory, in a row of an innermost loop without branches, before one of them is used."""
    instructions, loops = instructions_and_loops(text)
    most = 0
    for loop in innermost(loops):
        loaded: list[set[int]] = []
        for i in loop:
            registers = [int(number) for number in re.findall(r"\bR(\d+)\b", instructions[i])]
            is_load = re.search(r"\bLDG\.E(?:\.\w+)*? R\d+", instructions[i])
            used = registers[1:] if is_load else registers
            if re.search(r"\b(BRA|BSYNC|EXIT)\b", instructions[i]) or any(each & set(used) for each in loaded):
                loaded.clear()
            if is_load:
                words = next((int(bits) // 32 for bits in re.findall(r"\.(64|128)\b", is_load[0])), 1)
                loaded.append(set(range(registers[0], registers[0] + words)))
            most = max(most, len(loaded))
    return most


def code_faults(code: Mapping[str, str], budgets: Mapping[str, Budget]) -> list[str]:
    """Where SASS reads or writes local memory, calls a routine, jumps by a table, has more than its budget of what is
    slow in loops, or less than is wanted."""
    lines = []
    for name, text in code.items():
        budget = budgets[name]
        if not budget.stack and (hit := re.search(r"\b(LDL|STL)\b.*", text)):
            lines.append(f"{name} uses local memory: {hit[0]}")
        if not budget.calls and (hit := re.search(r"\bCALL\b.*", text)):
            lines.append(f"{name} calls a routine: {hit[0]}")
        if hit := re.search(r"\bBRX\b.*", text):
            lines.append(f"{name} jumps by a table: {hit[0]}")
        for what, count in loop_counts(text).items():
            if count > getattr(budget, what):
                lines.append(f"{name} has {what} {count}, {getattr(budget, what)} allowed")
        if (count := loads_together(text)) < budget.loads:
            lines.append(f"{name} has loads {count}, {budget.loads} wanted")
        lines += [f"{name} has no {wanted}" for wanted in budget.wants if not re.search(wanted, text)]
    return sorted(lines)
