"""What signing should take on an H200, by counting: python benchmarks/gpu_model.py [--bytes N] [--write]

Each kernel of signing is compiled for sm_90 by NVRTC, disassembled, and run here instruction by instruction (`sass.py`)
over a sample of text; what comes out is compared with the CPU backend. That gives what a byte of text takes:
instructions by the part of a multiprocessor that executes them, lanes that stand still in divergent warps included, and
cycles of shared memory. A kernel's time is then that of the busiest part, or that of the bytes that must move,
whichever is more.

This is arithmetic and no measurement. Stalls, misses of caches, tails and launches are left out, so it is a bound from
below. --write keeps the times in gpu_model.json, for bench_gpu.py to print beside what it measures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sass
from bench_gpu import PREDICTED, SEED, TEXTS, bytes_of_kernels, texts
from gpu_target import TESTS

from gpudedup import _cpu
from gpudedup.backends.base import ToSign
from gpudedup.backends.columns import buffers
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import program
from gpudedup.backends.cuda import sign as signing
from gpudedup.params import Params, parse_shingle

TEXT_BLOCK = signing.READ_BYTES * signing.READ_THREADS
THREADS = {
    "mark_documents": signing.READ_THREADS,
    "measure_words": signing.READ_THREADS,
    "measure_chars": signing.READ_THREADS,
    "join_words": signing.JOIN_THREADS,
    "join_chars": signing.JOIN_THREADS,
    "find_words": signing.READ_THREADS,
    "find_chars": signing.READ_THREADS,
    "first_words": signing.READ_THREADS,
    "first_chars": signing.READ_THREADS,
    "hash_units": signing.HASH_THREADS,
    "sign_lanes": signing.SIGN_THREADS,
    "band_keys": signing.SIGN_THREADS,
}


@dataclass(frozen=True)
class Gpu:
    """Rates of an H200 SXM. Multiprocessors, clock and bandwidth: NVIDIA H200 datasheet and H100 whitepaper.
    Instructions of a warp that a multiprocessor starts in a cycle: CUDA C++ programming guide, throughput of native
    arithmetic instructions for compute capability 9.0, over 32 lanes."""

    multiprocessors: int = 132
    hertz: float = 1.75e9
    memory: float = 4.8e12  # bytes a second
    issue: float = 4.0  # any, four schedulers
    alu: float = 2.0  # 64 lanes: sums, comparisons, minima, shifts, logic
    multiply: float = 2.0  # 64 lanes: 32-bit multiply-add
    special: float = 0.5  # 16 lanes: counts of bits and leading zeros, reversal
    access: float = 1.0  # 32 lanes: loads, stores, shuffles
    shared: float = 1.0  # accesses to shared memory without bank conflicts

    warps: int = 64
    registers: int = 65536
    shared_bytes: int = 228 << 10  # of which a block takes 1 KiB more than it asks for


H200 = Gpu()
PARTS = {
    "multiply": ("IMAD", "HFMA2"),
    "special": ("POPC", "FLO", "BREV", "I2F", "F2I", "MUFU"),
    "access": ("LDG", "STG", "LDS", "STS", "LD", "ST", "REDG", "RED", "ATOMG", "SHFL"),
    "alu": (
        *("LOP3", "SHF", "IADD3", "VIADD", "ISETP", "SEL", "PRMT", "LEA", "PLOP3", "MOV"),
        *("VIMNMX", "VIMNMX3", "VIADDMNMX", "IMNMX"),
    ),
}  # branches and uniform instructions are issued only
SHOWN = ("alu", "multiply", "special", "access", "shared")


@dataclass(frozen=True)
class Load:
    """What a kernel took for one text."""

    instructions: int
    """Of warps."""
    parts: dict[str, int]
    """Of warps, by part of a multiprocessor; cycles for "shared"."""
    bytes_moved: int
    text_bytes: int
    one_block: bool
    """It runs on one multiprocessor."""

    def seconds(self, gpu: Gpu) -> dict[str, float]:
        """What each part would take alone."""
        cycles = {part: count / getattr(gpu, part) for part, count in self.parts.items()}
        cycles["issue"] = self.instructions / gpu.issue
        multiprocessors = 1 if self.one_block else gpu.multiprocessors
        found = {part: count / multiprocessors / gpu.hertz for part, count in cycles.items()}
        return found | {"memory": self.bytes_moved / gpu.memory}


def parts(kernel: str, counts: sass.Counts) -> dict[str, int]:
    code, by_name = sass.parse(compiled()[0][kernel]), Counter[str]()
    for number, count in counts.executed.items():
        by_name[code.instructions[number].names[0]] += count
    found = {part: sum(by_name[name] for name in names) for part, names in PARTS.items()}
    return found | {"shared": counts.shared_cycles}


@cache
def compiled() -> tuple[dict[str, str], dict[str, Any]]:
    """SASS and usage by kernel, for sm_90."""
    sys.path.append(TESTS)
    import cuda_static
    from cuda.pathfinder import find_nvidia_binary_utility

    cubin, usage = cuda_static.compile_kernels(program.translation_unit(), program.options(), 90)
    with tempfile.TemporaryDirectory() as folder:
        return cuda_static.disassemble(str(find_nvidia_binary_utility("nvdisasm")), cubin, Path(folder)), usage


class Piece:
    """The arrays of one piece of text, and its kernels in order."""

    def __init__(self, text: pa.Array, params: Params) -> None:
        values, offsets = buffers(text)
        values, offsets = values[offsets[0] : offsets[-1]], offsets - offsets[0]
        self.size, self.documents, self._params, self._text = len(values), len(text), params, text
        _, n = parse_shingle(params.shingle)
        lanes, (bands, rows) = params.num_perm, params.banding
        padded = np.zeros((self.size // signing.READ_BYTES + 1) * signing.READ_BYTES, np.uint8)
        padded[: self.size] = values
        index, pages, expansions, _ = _cpu.fold_tables(params.fold)
        a, b = signing.lane_constants(params.seed, -(-lanes // signing.WARP_LANES) * signing.WARP_LANES)
        self.blocks = -(-self.size // TEXT_BLOCK)
        u32, u64 = np.uint32, np.uint64
        arrays: dict[str, npt.NDArray[Any]] = {
            "bytes": padded,
            "starts": np.zeros(self.size // 32 + 2, u32),
            "fold_index": index,
            "fold_pages": pages,
            "fold_expansions": expansions,
            "before": np.zeros(4 * self.blocks * signing.READ_THREADS, u32),
            "blocks": np.zeros(4 * self.blocks, u32),
            "needed": np.zeros(2, u32),
            "folded": np.zeros(2 * self.size + signing.FOLDED_SLACK, np.uint8),
            "unit_start": np.zeros(2 * self.size, u32),
            "offsets": offsets.astype(u32),
            "first": np.zeros(self.documents + 1, u32),
            "shingles": np.zeros(2 * self.size, u32),
            "content": np.zeros(2 * self.documents, u64),
            "a": a,
            "b": b,
            "lanes": np.full(lanes * self.documents, 0xFFFFFFFF, u32),
            "scope_keys": np.zeros(self.documents, u64),
            "keys": np.zeros(bands * self.documents, u64),
        }
        self._arrays = arrays
        self._memory = sass.Memory(sum(256 + array.nbytes for array in arrays.values()))
        self._args: dict[str, Any] = {name: self._memory.put(array) for name, array in arrays.items()}
        numbers = {
            "size": self.size,
            "count": self.blocks,
            "unit_room": 2 * self.size,
            "byte_room": 2 * self.size,
            "n": n,
        }
        numbers |= {"fold": signing.FOLDS.index(params.fold), "documents": self.documents}
        numbers |= {"lane_count": lanes, "bands": bands, "rows": rows}
        self._args |= {name: u32(value) for name, value in numbers.items()}

    def get(self, name: str) -> npt.NDArray[Any]:
        return self._memory.get(self._args[name], self._arrays[name])

    def run(self) -> dict[str, sass.Counts]:
        """Counts by kernel, in order. Raises AssertionError if what they wrote is not what the CPU says."""
        kind = parse_shingle(self._params.shingle)[0] + "s"
        counts = {
            "mark_documents": self._launch("mark_documents", self.documents + 1, signing.READ_THREADS),
            f"measure_{kind}": self._launch(f"measure_{kind}", self.size, TEXT_BLOCK),
            f"join_{kind}": self._launch(f"join_{kind}", 1, 1),
            f"find_{kind}": self._launch(f"find_{kind}", self.size, TEXT_BLOCK),
            f"first_{kind}": self._launch(f"first_{kind}", self.documents + 1, signing.READ_THREADS),
        }
        units, warps = int(self.get("needed")[0]), signing.SIGN_THREADS // sass.LANES
        counts["hash_units"] = self._launch("hash_units", units, signing.HASH_UNITS)
        counts["sign_lanes"] = self._launch("sign_lanes", units, signing.SIGN_UNITS * warps)
        counts["band_keys"] = self._launch("band_keys", len(self._arrays["keys"]), signing.SIGN_THREADS)
        [own] = CpuBackend(self._params, "as asked").sign([ToSign(self._text, band_keys=True, lanes=True)])
        for name, expected in (("content", own.content), ("lanes", own.lanes), ("keys", own.band_keys)):
            assert expected is not None
            np.testing.assert_array_equal(self.get(name), expected.reshape(-1), name)
        return counts

    def _launch(self, kernel: str, items: int, block_items: int) -> sass.Counts:
        grid = -(-items // block_items)
        args = [self._args[parameter.name] for parameter in program.signatures()[kernel].parameters]
        return sass.launch(sass.parse(compiled()[0][kernel]), self._memory, grid, THREADS[kernel], args)


def loads(kind: str, size: int) -> tuple[Piece, dict[str, Load]]:
    params = Params()
    piece = Piece(texts(kind, size, SEED), params)
    counts = piece.run()
    units, folded = (int(value) for value in piece.get("needed"))
    moved = bytes_of_kernels(piece.size, piece.documents, units, folded, params)
    found = {}
    for kernel, each in counts.items():
        # One turn of the block that joins blocks is for as many as it has threads.
        text = signing.JOIN_THREADS * TEXT_BLOCK if kernel == "join_words" else piece.size
        instructions = sum(each.executed.values())
        found[kernel] = Load(instructions, parts(kernel, each), moved[kernel], text, kernel == "join_words")
    return piece, found


def resident_warps(kernel: str, gpu: Gpu) -> int:
    """Of a multiprocessor, as registers and shared memory allow."""
    usage, warps = compiled()[1][kernel], THREADS[kernel] // sass.LANES
    blocks = min(gpu.warps, gpu.registers // (-(-usage.registers // 8) * 8 * sass.LANES)) // warps
    return warps * (min(blocks, gpu.shared_bytes // (usage.shared + 1024)) if usage.shared else blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict the times of signing on an H200 from machine code.")
    parser.add_argument("--bytes", type=int, default=32_000, help="of text in a sample; 32,000 unless given")
    parser.add_argument("--write", action="store_true", help=f"keep the times in {PREDICTED.name}")
    given = parser.parse_args()
    predicted: dict[str, Any] = {"kernels": program.digest()[:12], "seconds_per_byte": {}}
    for kind in TEXTS:
        piece, found = loads(kind, given.bytes)
        print(f"\n{kind}: {piece.size} bytes, {piece.documents} documents, {int(piece.get('needed')[0])} units\n")
        print(f"| kernel | all | {' | '.join(SHOWN)} | warps | limit | GB/s |")
        print("| --- | ---: |" + " ---: |" * len(SHOWN) + " ---: | --- | ---: |")
        seconds = {}
        for kernel, load in found.items():
            times = load.seconds(H200)
            limit = max(times, key=lambda part: times[part])
            seconds[kernel] = times[limit] / load.text_bytes
            counts = [load.instructions, *(load.parts[part] for part in SHOWN)]
            each = " | ".join(f"{count * sass.LANES / load.text_bytes:.1f}" for count in counts)
            rate = f"{1e-9 / seconds[kernel]:,.0f}"
            print(f"| `{kernel}` | {each} | {resident_warps(kernel, H200)} | {limit} | {rate} |", flush=True)
        seconds["all"] = sum(seconds.values())
        print(f"| all |{' |' * len(SHOWN)} | | | {1e-9 / seconds['all']:,.0f} |")
        predicted["seconds_per_byte"][kind] = seconds
    if given.write:
        PREDICTED.write_text(json.dumps(predicted, indent=1) + "\n")


if __name__ == "__main__":
    main()
