"""Runs the machine code of kernels for sm_90, as nvdisasm prints it, a warp at a time, and counts what it executes.

Only the instructions that this project's kernels of signing use are known; another is an error. Values are exact, so a
run checks itself against what the kernel should have written. Nothing is said of time: `gpu_model.py` does that.
Instructions follow the names in NVIDIA's "CUDA Binary Utilities", instruction set of Hopper; their operands are not
documented there and were read from code whose results are known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]
"""A value in each lane, below 2^32."""
Bits = npt.NDArray[np.bool_]

LANES = 32
LOW = np.uint64(0xFFFFFFFF)
WORD = np.uint64(32)
LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*);")
LABEL = re.compile(r"^(\.L_x_\d+):")
PARAMETERS = 0x210
"""Where in constant bank 0 the parameters of a kernel begin."""


class Instruction(NamedTuple):
    guard: str
    opcode: str
    names: tuple[str, ...]
    """The opcode, cut at its dots."""
    operands: tuple[str, ...]


class Code(NamedTuple):
    instructions: list[Instruction]
    labels: dict[str, int]


@dataclass(slots=True)
class Counts:
    """Of all warps that ran: how often each instruction was executed, by its number; 32-byte sectors of memory that
    loads and stores touched; cycles in which shared memory was busy, one for an access that no bank conflict delays."""

    executed: Counter[int] = field(default_factory=Counter)
    sectors_read: int = 0
    sectors_written: int = 0
    shared_cycles: int = 0


def parse(text: str) -> Code:
    instructions, labels = [], {}
    for line in text.splitlines():
        if label := LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := LINE.match(line):
            operands = tuple(part.strip().replace(".reuse", "") for part in found[4].split(",") if part.strip())
            instructions.append(Instruction(found[2] or "", found[3], tuple(found[3].split(".")), operands))
    return Code(instructions, labels)


def signed(values: Words) -> npt.NDArray[np.int64]:
    return values.astype(np.uint32).view(np.int32).astype(np.int64)


def as_floats(values: Words) -> npt.NDArray[np.float32]:
    return values.astype(np.uint32).view(np.float32)


def as_words(values: npt.NDArray[np.float32]) -> Words:
    return values.astype(np.float32).view(np.uint32).astype(np.uint64)


class Memory:
    """Arrays of the device, at addresses of their own."""

    BASE = 1 << 32

    def __init__(self, size: int) -> None:
        self.bytes = np.zeros(-(-size // 256) * 256, np.uint8)
        self._used = 0

    def put(self, values: npt.NDArray[Any]) -> int:
        """Its address."""
        begin, self._used = self._used, -(-(self._used + values.nbytes) // 256) * 256
        self.set(self.BASE + begin, values)
        return self.BASE + begin

    def set(self, address: int, values: npt.NDArray[Any]) -> None:
        begin = address - self.BASE
        self.bytes[begin : begin + values.nbytes] = values.reshape(-1).view(np.uint8)

    def get(self, address: int, like: npt.NDArray[Any]) -> npt.NDArray[Any]:
        begin = address - self.BASE
        return self.bytes[begin : begin + like.nbytes].view(like.dtype).copy()


class Warp:
    """One warp of a block; `run` yields at each barrier of the block."""

    def __init__(
        self, code: Code, memory: Memory, shared: npt.NDArray[np.uint8], constants: bytes, special: Any
    ) -> None:
        self.code, self.memory, self.shared, self.special = code, memory, shared, special
        self.constants = constants
        self.registers = np.zeros((256, LANES), np.uint64)
        self.uniform = np.zeros((64, LANES), np.uint64)
        self.predicates = {f"{prefix}{i}": np.zeros(LANES, bool) for prefix in ("P", "UP") for i in range(7)}
        self.pc = np.zeros(LANES, np.int64)
        self.alive = np.ones(LANES, bool)
        self.joins = np.zeros((16, LANES), bool)
        self.waits = np.full(LANES, -1)
        self.counts = Counts()
        self.active = self.alive

    # ---------------------------------------------------------------------------------------------------- operands

    def read(self, name: str, minus: bool = True) -> Words:
        """``minus``: a leading minus is arithmetic. 2^32 stands for -0, so that carries are right."""
        if name[0] == "-" and name[1] in "RU|":
            return (~self.read(name[1:]) & LOW) + np.uint64(1)
        if name[0] == "~":
            return ~self.read(name[1:]) & LOW
        if name in ("RZ", "URZ", "SRZ"):
            return np.zeros(LANES, np.uint64)
        if name[0] == "R":
            return self.registers[int(name[1:].split(".")[0])]
        if name.startswith("UR"):
            return self.uniform[int(name[2:].split(".")[0])]
        if name.startswith("c["):
            bank, offset = (int(part.replace("RZ", "0"), 16) for part in re.findall(r"\[([^]]+)\]", name))
            assert bank == 0, name
            return np.full(LANES, int.from_bytes(self.constants[offset : offset + 4], "little"), np.uint64)
        return np.full(LANES, int(name, 0) & 0xFFFFFFFF, np.uint64)

    def wide(self, name: str) -> Words:
        if name in ("RZ", "URZ"):
            return self.read(name)
        if name.startswith("c["):
            bank, offset = re.findall(r"0x[0-9a-f]+", name)
            return self.read(name) | self.read(f"c[{bank}][{int(offset, 16) + 4:#x}]") << WORD
        prefix, number = re.fullmatch(r"(U?R)(\d+)(?:\.64)?", name).groups()  # type: ignore[union-attr]
        return self.read(name) | self.read(f"{prefix}{int(number) + 1}") << WORD

    def flag(self, name: str) -> Bits:
        if name[0] == "!":
            return ~self.flag(name[1:])
        return np.ones(LANES, bool) if name in ("PT", "UPT") else self.predicates[name]

    def write(self, name: str, values: Words) -> None:
        if name in ("RZ", "URZ"):
            return
        if name.startswith("UR"):
            self.uniform[int(name[2:])] = values & LOW
        else:
            np.copyto(self.registers[int(name[1:])], values & LOW, where=self.active)

    def write_wide(self, name: str, values: Words) -> None:
        if name in ("RZ", "URZ"):
            return
        prefix, number = re.fullmatch(r"(U?R)(\d+)", name).groups()  # type: ignore[union-attr]
        self.write(name, values & LOW)
        self.write(f"{prefix}{int(number) + 1}", values >> WORD)

    def write_flag(self, name: str, values: Bits) -> None:
        if name not in ("PT", "UPT"):
            np.copyto(self.predicates[name], values, where=self.active)

    def address(self, name: str) -> Words:
        """Of [R4+0x10], [R4.64+0x10], [R4+UR5+0x10], desc[UR6][R4.64]."""
        total = np.zeros(LANES, np.uint64)
        for part in re.fullmatch(r"(?:desc\[\w+\])?\[(.*)\]", name)[1].split("+"):  # type: ignore[index]
            if ".64" in part:
                total = total + self.wide(part)
            elif part.startswith("-"):
                total = total - np.uint64(-int(part, 0))
            else:
                total = total + self.read(re.sub(r"\.(X4|X8|X16|U32)$", "", part))
        return total

    # ------------------------------------------------------------------------------------------------------- running

    def run(self) -> Iterator[None]:
        while self.alive.any():
            ready = self.alive & (self.waits < 0)
            if not ready.any():
                raise RuntimeError("the warp waits for itself")
            pc = int(self.pc[ready].min())
            group = ready & (self.pc == pc)
            instruction = self.code.instructions[pc]
            self.active = group & self.flag(instruction.guard) if instruction.guard else group
            self.pc[group] = pc + 1
            self.counts.executed[pc] += 1
            if instruction.names[0] == "BAR":
                assert (group == self.alive).all()
                yield
            elif self.active.any() or instruction.names[0] == "BSYNC":
                self.step(instruction)

    def target(self, name: str) -> int:
        return self.code.labels[re.search(r"\.L_x_\d+", name)[0]]  # type: ignore[index]

    def step(self, instruction: Instruction) -> None:
        names, operands = instruction.names, instruction.operands
        kind, active = names[0], self.active
        if kind == "BRA" and "DIV" in names:
            assert (active == self.alive).all(), "a shuffle of part of a warp"
        elif kind in ("BRA", "EXIT"):
            flags = [name for name in operands if name.lstrip("!").startswith(("P", "UP"))]
            taken = active & self.flag(flags[0]) if flags else active
            if kind == "BRA":
                self.pc[taken] = self.target(operands[-1])
                return
            self.alive = self.alive & ~taken
            self.release()
        elif kind == "BSSY":
            number = int(operands[0][1:])
            self.joins[number][active] = True
            self.joins[number] &= self.alive
        elif kind == "BREAK":
            self.joins[int(operands[-1][1:])][active] = False
            self.release()
        elif kind == "BSYNC":
            self.waits[active] = int(operands[-1][1:])
            self.release()
        elif kind in ("NOP", "YIELD", "WARPSYNC", "ERRBAR", "CGAERRBAR", "MEMBAR", "CCTL", "DEPBAR"):
            assert kind != "WARPSYNC" or (active == self.alive).all()
        elif kind in ("LDG", "LDS", "STG", "STS", "ST", "LD"):
            self.move(kind, names, operands)
        elif kind in ("REDG", "RED"):
            self.reduce(names, operands)
        elif kind == "SHFL":
            self.shuffle(names[1], operands)
        elif kind in ("VOTE", "VOTEU"):
            self.vote(names[1], operands)
        else:
            self.compute(kind.removeprefix("U") if kind in UNIFORM else kind, names, operands)

    def release(self) -> None:
        for number in set(self.waits[self.waits >= 0].tolist()):
            members = self.joins[number] & self.alive
            waiting = self.waits == number
            if (waiting | ~members).all():
                self.waits[waiting] = -1
                self.joins[number][waiting] = False

    def move(self, kind: str, names: Sequence[str], operands: Sequence[str]) -> None:
        load, is_shared = kind[0] == "L", kind[-1] == "S"
        space = self.shared if is_shared else self.memory.bytes
        size = next((int(name) // 8 for name in names if name in ("64", "128")), 0) or next(
            (int(name[1:]) // 8 for name in names[1:] if re.fullmatch(r"[US](8|16)", name)), 4
        )
        where = self.address(operands[1 if load else 0])[self.active]
        if not is_shared:
            where = where - np.uint64(Memory.BASE)
        assert (where % np.uint64(size) == 0).all(), "misaligned"
        places = where.astype(np.int64)[:, None] + np.arange(size)
        assert places.min() >= 0, "below memory"
        assert places.max() < len(space), "past memory"
        if is_shared:
            self.counts.shared_cycles += bank_cycles(where)
        elif load:
            self.counts.sectors_read += len(np.unique(places // 32))
        else:
            self.counts.sectors_written += len(np.unique(places // 32))
        parts = max(1, size // 4)
        if load:
            found = space[places].reshape(len(where), parts, -1)
            shifts = np.arange(found.shape[2], dtype=np.uint64) * np.uint64(8)
            words = (found.astype(np.uint64) << shifts).sum(2, dtype=np.uint64)
            if "S8" in names or "S16" in names:
                sign = np.uint64(1 << (8 * size - 1))
                words = ((words ^ sign) - sign) & LOW
            for part in range(parts):
                values = np.zeros(LANES, np.uint64)
                values[self.active] = words[:, part]
                self.write(f"R{int(operands[0][1:]) + part}", values)
            return
        number = operands[1]
        for part in range(parts):
            name = number if number == "RZ" else f"R{int(number[1:]) + part}"
            values = self.read(name)[self.active].astype(np.uint32)
            space[places[:, 4 * part : 4 * part + 4]] = values.view(np.uint8).reshape(-1, 4)[:, : min(4, size)]

    def reduce(self, names: Sequence[str], operands: Sequence[str]) -> None:
        size = 8 if "64" in names else 4
        kind = np.uint64 if size == 8 else np.uint32
        values = self.wide(operands[1]) if size == 8 else self.read(operands[1])
        where = self.address(operands[0]) - np.uint64(Memory.BASE)
        target = self.memory.bytes.view(kind)
        places = (where[self.active] // np.uint64(size)).astype(np.int64)
        operation = np.add if "ADD" in names else np.minimum if "MIN" in names else np.bitwise_or
        operation.at(target, places, values[self.active].astype(kind))
        self.counts.sectors_written += len(np.unique(places * size // 32))

    def shuffle(self, mode: str, operands: Sequence[str]) -> None:
        lane = np.arange(LANES)
        by = self.read(operands[3]).astype(np.int64)
        source = {"UP": lane - by, "DOWN": lane + by, "IDX": by, "BFLY": lane ^ by}[mode]
        inside = (source >= 0) & (source < LANES)
        source = np.where(inside, source, lane)
        assert self.active[source[self.active]].all(), "a shuffle from a lane that is elsewhere"
        self.write(operands[1], self.read(operands[2])[source])
        self.write_flag(operands[0], inside)

    def vote(self, mode: str, operands: Sequence[str]) -> None:
        assert (self.active == self.alive).all(), "a vote of part of a warp"
        votes = self.flag(operands[-1]) & self.active
        if re.match(r"U?R", operands[0]):
            ballot = sum(1 << int(lane) for lane in np.flatnonzero(votes))
            self.write(operands[0], np.full(LANES, ballot, np.uint64))
        found = votes.any() if mode == "ANY" else votes[self.active].all()
        self.write_flag(operands[-2], np.full(LANES, found))

    # ---------------------------------------------------------------------------------------------------- arithmetic

    def compute(self, kind: str, names: Sequence[str], operands: Sequence[str]) -> None:
        put, read = self.write, self.read
        if kind in ("MOV", "LDC", "ULDC", "UMOV") or (kind == "R2UR"):
            if "64" in names:
                self.write_wide(operands[0], self.wide(operands[1]))
            else:
                put(operands[0], read(operands[-1]))
        elif kind == "CS2R":
            assert operands[1] == "SRZ"
            self.write_wide(operands[0], read("RZ"))
        elif kind in ("S2R", "S2UR"):
            put(operands[0], self.special[operands[1]])
        elif kind == "HFMA2":
            high, low = (int(np.float16(float(value)).view(np.uint16)) for value in operands[3:5])
            put(operands[0], np.full(LANES, high << 16 | low, np.uint64))
        elif kind == "LOP3":
            flagged = operands[0].lstrip("U")[0] == "P"
            target, a, b, c, table = operands[flagged : flagged + 5]
            values = look_up(int(table, 16), read(a), read(b), read(c))
            put(target, values)
            if flagged:
                self.write_flag(operands[0], values != 0)
        elif kind == "PLOP3":
            flags = [self.flag(name).astype(np.uint64) for name in operands[2:5]]
            for target, table in zip(operands[:2], operands[5:7], strict=True):
                self.write_flag(target, (look_up(int(table, 16), *flags) & np.uint64(1)) != 0)
        elif kind == "IADD3":
            outs, values, ins = self.split(operands[1:])
            total = sum((read(name) for name in values), np.zeros(LANES, np.uint64))
            if "X" in names:
                total = sum((self.flag(name).astype(np.uint64) for name in ins), total)
            self.carry(outs, total)
            put(operands[0], total)
        elif kind in ("VIADD", "IMNMX", "VIMNMX", "VIMNMX3", "VIADDMNMX"):
            self.extremes(kind, names, operands)
        elif kind == "IMAD":
            self.multiply(names, operands)
        elif kind == "LEA":
            self.scaled(names, operands)
        elif kind == "SEL":
            put(operands[0], np.where(self.flag(operands[3]), read(operands[1]), read(operands[2])))
        elif kind == "SHF":
            self.shift(names, operands)
        elif kind == "PRMT":
            both = read(operands[1]) | read(operands[3]) << WORD
            selector, result = read(operands[2]), np.zeros(LANES, np.uint64)
            for i in range(4):
                nibble = selector >> np.uint64(4 * i) & np.uint64(15)
                byte = both >> (np.uint64(8) * (nibble & np.uint64(7))) & np.uint64(0xFF)
                spread = np.where(byte >= 128, np.uint64(0xFF), np.uint64(0))
                result |= np.where(nibble >= 8, spread, byte) << np.uint64(8 * i)
            put(operands[0], result)
        elif kind == "ISETP":
            self.compare(names, operands)
        elif kind in ("FLO", "BREV", "POPC"):
            values = [int(value) for value in read(operands[1])]
            if kind == "POPC":
                found = [value.bit_count() for value in values]
            elif kind == "BREV":
                found = [int(f"{value:032b}"[::-1], 2) for value in values]
            else:
                found = [value.bit_length() - 1 for value in values]
                found = [32 - 1 - top if "SH" in names and top >= 0 else top & 0xFFFFFFFF for top in found]
            put(operands[0], np.array(found, np.uint64))
        elif kind == "I2F":  # a division begins with the reciprocal, rounded up
            exact = (read(operands[1]) & LOW).astype(np.float64)
            near = exact.astype(np.float32)
            put(operands[0], as_words(np.where(near < exact, np.nextafter(near, np.float32(np.inf)), near)))
        elif kind == "MUFU":
            put(operands[0], as_words(np.float32(1) / as_floats(read(operands[1]))))
        elif kind == "F2I":
            put(operands[0], np.minimum(as_floats(read(operands[1])), np.float32(2**32 - 256)).astype(np.uint64))
        else:
            raise NotImplementedError(f"{'.'.join(names)} {', '.join(operands)}")

    @staticmethod
    def split(operands: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
        """Predicates before the values, the values, predicates after them."""
        is_flag = [re.fullmatch(r"!?U?P(T|\d)", name) is not None for name in operands]
        first = is_flag.index(False)
        last = len(operands) - is_flag[::-1].index(False)
        return list(operands[:first]), list(operands[first:last]), list(operands[last:])

    def carry(self, outs: Sequence[str], total: Words) -> None:
        for least, name in enumerate(outs, 1):
            self.write_flag(name, (total >> WORD) >= least)

    def extremes(self, kind: str, names: Sequence[str], operands: Sequence[str]) -> None:
        values = [self.read(name) & LOW for name in operands[1:] if not re.fullmatch(r"!?U?P(T|\d)", name)]
        if kind == "VIADD":
            return self.write(operands[0], values[0] + values[1])
        if kind == "VIADDMNMX":
            values = [values[0] + values[1] & LOW, values[2]]
        least = operands[-1][0] != "!"
        key = values if "U32" in names else [signed(value).astype(np.uint64) ^ np.uint64(1 << 63) for value in values]
        stack = np.stack(key)
        chosen = stack.argmin(0) if least else stack.argmax(0)
        self.write(operands[0], np.stack(values)[chosen, np.arange(LANES)])

    def multiply(self, names: Sequence[str], operands: Sequence[str]) -> None:
        outs, values, ins = self.split(operands[1:])
        a, b = (self.read(name) for name in values[:2])
        if "WIDE" in names or "HI" in names:
            if "U32" not in names:
                a, b = (signed(value & LOW).astype(np.uint64) for value in (a, b))
            c = self.wide(values[2])
            total = a * b + c
            self.write_flag(outs[0] if outs else "PT", total < c)
            if "HI" in names:
                return self.write(operands[0], total >> WORD)
            return self.write_wide(operands[0], total)
        total = a * b + self.read(values[2])
        if "X" in names:
            total = total + self.flag(ins[0]).astype(np.uint64)
            self.carry(outs, (a * b & LOW) + (total - a * b))
        self.write(operands[0], total)

    def scaled(self, names: Sequence[str], operands: Sequence[str]) -> None:
        outs, values, ins = self.split(operands[1:])
        shift = np.uint64(int(values[-1], 0))
        a, b = self.read(values[0]) & LOW, self.read(values[1])
        if "HI" in names:
            high = signed(a).astype(np.uint64) >> WORD if "SX32" in names else self.read(values[2])
            total = ((a | high << WORD) << shift >> WORD & LOW) + b
        else:
            total = (a << shift & LOW) + b
        if "X" in names:
            total = total + self.flag(ins[0]).astype(np.uint64)
        self.carry(outs, total)
        self.write(operands[0], total)

    def shift(self, names: Sequence[str], operands: Sequence[str]) -> None:
        low, by, high = (self.read(name) & LOW for name in operands[1:4])
        wrap, is_wide = "W" in names, "U64" in names or "S64" in names
        most = np.uint64(63 if is_wide else 32)
        by = by & np.uint64(31) if wrap and not is_wide else np.minimum(by, most)
        both = low | high << WORD
        if "L" in names:
            moved = both << by
        elif "S32" in names or "S64" in names:
            moved = (both.view(np.int64) >> by.astype(np.int64)).view(np.uint64)
        else:
            moved = both >> by
        self.write(operands[0], moved >> WORD if "HI" in names else moved)

    def compare(self, names: Sequence[str], operands: Sequence[str]) -> None:
        a, b = (self.read(name) & LOW for name in operands[2:4])
        if "U32" not in names:
            a, b = signed(a), signed(b)  # type: ignore[assignment]
        found = {"EQ": a == b, "NE": a != b, "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b}[names[1]]
        if "EX" in names:  # the lower halves were compared before
            below = self.flag(operands[5])
            strict = {"GE": a > b, "LE": a < b}.get(names[1], found)
            found = found & below if names[1] == "EQ" else strict | ((a == b) & below)
        other = self.flag(operands[4])
        self.write_flag(operands[0], found & other if "AND" in names else found | other)


UNIFORM = {"UMOV", "UIADD3", "ULEA", "USHF", "ULOP3", "USEL", "UISETP", "UIMAD", "UPRMT", "UFLO", "UPOPC", "UBREV"}


def look_up(table: int, a: Words, b: Words, c: Words) -> Words:
    """Each bit by those of a, b and c: bit 4a + 2b + c of the table."""
    result = np.zeros(LANES, np.uint64)
    for row in range(8):
        if table >> row & 1:
            part = (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
            result |= part
    return result & LOW


def bank_cycles(places: Words) -> int:
    """The most distinct words of shared memory in one bank."""
    words = np.unique(places // np.uint64(4))
    return int(np.bincount((words % np.uint64(32)).astype(np.int64)).max())


def launch(code: Code, memory: Memory, grid: int, threads: int, args: Sequence[Any]) -> Counts:
    """Runs ``grid`` blocks, one after another; an argument is an address or a number of numpy."""
    constants = bytearray(PARAMETERS)
    constants[0:4] = int(threads).to_bytes(4, "little")
    constants[12:16] = int(grid).to_bytes(4, "little")
    for arg in args:
        raw = int(arg).to_bytes(8, "little") if isinstance(arg, int) else arg.tobytes()
        constants += b"\0" * (-len(constants) % len(raw)) + raw
    constants += b"\0" * 64
    total = Counts()
    for block in range(grid):
        shared = np.full(1 << 16, 0xCD, np.uint8)
        warps = []
        for first in range(0, threads, LANES):
            lanes = np.arange(LANES, dtype=np.uint64)
            zero = np.zeros(LANES, np.uint64)
            special = {
                "SR_TID.X": lanes + np.uint64(first),
                "SR_CTAID.X": zero + np.uint64(block),
                "SR_LANEID": lanes,
                "SR_CgaCtaId": zero,
            }
            warps.append(Warp(code, memory, shared, bytes(constants), special))
        running = [warp.run() for warp in warps]
        while running:
            running = [each for each in running if next(each, True) is None]
        for warp in warps:
            total.executed += warp.counts.executed
            total.sectors_read += warp.counts.sectors_read
            total.sectors_written += warp.counts.sectors_written
            total.shared_cycles += warp.counts.shared_cycles
    return total
