"""What signing and comparing should take on an H200, by counting: python benchmarks/gpu_model.py [--bytes N] [--write]

Each kernel is compiled for sm_90 by NVRTC, disassembled, and run here instruction by instruction (`sass.py`) over a
sample; what comes out is compared with the CPU backend or with numpy. That gives what a byte of text, a shingle hash or
a comparison takes: instructions by the part of a multiprocessor that executes them, lanes that stand still in divergent
warps included, and cycles of shared memory. A kernel's time is then that of the busiest part, or that of the bytes that
must move, whichever is more.

This is arithmetic and no measurement. Stalls, misses of caches, tails and launches are left out, so it is a bound from
below. --write keeps the times in gpu_model.json, for bench_gpu.py to print beside what it measures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import sass
from gpu_kernels import PREDICTED, TEXTS, bytes_of_kernels, texts
from gpu_measure import SEED
from gpu_target import TESTS

from gpudedup import _cpu
from gpudedup.backends.base import ToSign
from gpudedup.backends.columns import buffers
from gpudedup.backends.cpu import CpuBackend
from gpudedup.backends.cuda import program, sets
from gpudedup.backends.cuda import sign as signing
from gpudedup.backends.cuda import verify as verifying
from gpudedup.backends.cuda.lanes import GROUP
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
    "key_hashes": sets.THREADS,
    "mark_distinct": sets.THREADS,
    "place_sets": sets.THREADS,
    "intersect_pairs": 32 * verifying.WARPS,
    "advance_sets": 32 * verifying.WARPS,
    "advance_lanes": 32 * verifying.WARPS,
}
CASES = {kind: (kind, Params()) for kind in TEXTS} | {
    "english, 2 kB, char:24, 260 lanes": ("english, 2 kB", Params(shingle="char:24", num_perm=260)),
    "chinese, 2 kB, char:5, 128 lanes": ("chinese, 2 kB", Params(shingle="char:5")),
}
"""Of signing: texts and how they are signed."""
SET_SIZE = 600
"""Shingles of a document, and of a set."""


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
    loaded: float = 4.0  # sectors from the L1 cache, 128 bytes
    stored: float = 1.2  # sectors to the L2 cache: 5,120 bytes for all (NVIDIA A100 whitepaper; no newer figure)

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
SHOWN = ("alu", "multiply", "special", "access", "shared", "loaded", "stored")


@dataclass(frozen=True)
class Load:
    """What a kernel took for one sample."""

    instructions: int
    """Of warps."""
    parts: dict[str, int]
    """Of warps, by part of a multiprocessor; cycles for "shared"; sectors of 32 bytes, one access after another, for
    "loaded" and "stored"."""
    bytes_moved: int
    items: int
    """Bytes of text, hashes or comparisons, of which all this is."""
    one_block: bool = False
    """It runs on one multiprocessor."""

    def seconds(self, gpu: Gpu) -> dict[str, float]:
        """What each part would take alone."""
        cycles = {part: count / getattr(gpu, part) for part, count in self.parts.items()}
        cycles["issue"] = self.instructions / gpu.issue
        multiprocessors = 1 if self.one_block else gpu.multiprocessors
        found = {part: count / multiprocessors / gpu.hertz for part, count in cycles.items()}
        return found | {"memory": self.bytes_moved / gpu.memory}

    def limit(self, gpu: Gpu) -> tuple[str, float]:
        """The part that takes longest, and its seconds for an item."""
        seconds = self.seconds(gpu)
        part = max(seconds, key=lambda part: seconds[part])
        return part, seconds[part] / self.items


def parts(kernel: str, counts: sass.Counts) -> dict[str, int]:
    code, by_name = sass.parse(compiled()[0][kernel]), Counter[str]()
    for number, count in counts.executed.items():
        by_name[code.instructions[number].names[0]] += count
    found = {part: sum(by_name[name] for name in names) for part, names in PARTS.items()}
    return found | {"shared": counts.shared_cycles, "loaded": counts.sectors_read, "stored": counts.sectors_written}


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
        a, b = signing.lane_constants(params.seed, -(-lanes // signing.WARP_THREADS) * signing.WARP_THREADS)
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


def loads(case: str, size: int) -> tuple[Piece, dict[str, Load]]:
    kind, params = CASES[case]
    piece = Piece(texts(kind, size, SEED), params)
    counts = piece.run()
    units, folded = (int(value) for value in piece.get("needed"))
    moved = bytes_of_kernels(piece.size, piece.documents, units, folded, params)
    found = {}
    for kernel, each in counts.items():
        # One turn of the block that joins blocks is for as many as it has threads.
        is_join = kernel.startswith("join_")
        text = signing.JOIN_THREADS * TEXT_BLOCK if is_join else piece.size
        found[kernel] = Load(sum(each.executed.values()), parts(kernel, each), moved[kernel], text, is_join)
    return piece, found


class Sample:
    """Arrays by the names that kernels give them."""

    def __init__(self, **arrays: npt.NDArray[Any]) -> None:
        self._arrays = arrays
        self._memory = sass.Memory(sum(256 + array.nbytes for array in arrays.values()))
        self.address = {name: self._memory.put(array) for name, array in arrays.items()}

    def get(self, name: str) -> npt.NDArray[Any]:
        return self._memory.get(self.address[name], self._arrays[name])

    def put(self, name: str, values: npt.NDArray[Any]) -> None:
        self._memory.set(self.address[name], values)

    def launch(self, kernel: str, blocks: int, moved: int, items: int, **numbers: Any) -> Load:
        given = self.address | numbers
        args = [given[parameter.name] for parameter in program.signatures()[kernel].parameters]
        counts = sass.launch(sass.parse(compiled()[0][kernel]), self._memory, blocks, THREADS[kernel], args)
        return Load(sum(counts.executed.values()), parts(kernel, counts), moved, items)


def set_loads() -> dict[str, Load]:
    """Of the kernels that make sets of hashes: for a hash of 8 documents, among 65,536 rows. The sort between them is
    CuPy's and is not here."""
    count, rows = 8, 1 << 16
    offsets = np.minimum(np.arange(rows + 1) // (rows // count), count).astype(np.uint64) * np.uint64(SET_SIZE)
    total = int(offsets[-1])
    hashes = np.random.default_rng(SEED).integers(0, 4 * SET_SIZE, total).astype(np.uint32)
    sample = Sample(
        hashes=hashes,
        first=offsets[:-1],
        offsets=offsets,
        keys=np.zeros(total, np.uint64),
        distinct=np.zeros(total, np.uint32),
        before=np.zeros(total + 1, np.uint64),
        values=np.zeros(total, np.uint32),
    )
    blocks = -(-total // sets.THREADS)
    found = {"key_hashes": sample.launch("key_hashes", blocks, 12 * total, total, count=np.uint32(rows))}
    keys = np.sort(sample.get("keys"))
    sample.put("keys", keys)
    found["mark_distinct"] = sample.launch("mark_distinct", blocks, 12 * total, total, size=np.uint64(total))
    distinct = sample.get("distinct")
    sample.put("before", np.concatenate(([0], np.cumsum(distinct))).astype(np.uint64))
    found["place_sets"] = sample.launch("place_sets", blocks, 24 * total, total, size=np.uint64(total))
    for number, own in enumerate(hashes.reshape(count, SET_SIZE)):
        expected = np.unique(own)
        begin = number * SET_SIZE
        np.testing.assert_array_equal(sample.get("values")[begin : begin + len(expected)], expected)
    return found


def comparison_loads() -> dict[str, Load]:
    """Of the kernels that compare: for a pair of sets of about 600 values, or of signatures of 128 lanes. Documents
    have four candidates, of which the last is like them: 19 of 20 values are theirs."""
    count, candidates = 16, 4
    chance, params = np.random.default_rng(SEED), Params()
    kept = chance.integers(0, 2**32, (count * candidates, SET_SIZE), np.uint32)
    like = kept[candidates - 1 :: candidates].copy()
    like[:, ::20] = chance.integers(0, 2**32, like[:, ::20].shape, np.uint32)
    members = [np.unique(own) for own in (*kept, *like)]
    sizes = np.array([len(own) for own in members], np.uint32)
    documents, kept_count, pairs = len(members), len(kept), count * candidates
    a, b = signing.lane_constants(params.seed, params.num_perm)
    lanes = np.stack([(own[:, None] * a + b).min(0) for own in members])
    groups = np.concatenate([lanes[:, i : i + GROUP].reshape(-1) for i in range(0, params.num_perm, GROUP)])
    u32, u64 = np.uint32, np.uint64
    arrays = {
        "values": np.concatenate(members),
        "set_address": np.zeros(documents, u64),
        "set_size": sizes,
        "lanes": groups,
        "documents": np.arange(documents, dtype=u32),
        "left": np.repeat(np.arange(kept_count, documents, dtype=u32), candidates),
        "right": np.arange(pairs, dtype=u32),
        "common": np.zeros(pairs, u32),
        "active": np.arange(kept_count, documents, dtype=u32),
        "begins": np.arange(0, pairs + 1, candidates, dtype=u64),
        "better": np.arange(pairs, dtype=u32),
        "previous_equal": np.zeros(1, u32),
        "kept_equal": np.zeros(1, u32),
        "request_count": np.zeros(1, u32),
        "waits": np.zeros(count, u32),
    }
    changed = {
        "cursor": np.arange(0, pairs, candidates, dtype=u64),
        "requests": np.zeros(count, u32),
        "large_common": np.zeros(count, u32),
        "state": np.where(np.arange(documents) < kept_count, u32(1), u32(0)),
        "keeper": np.zeros(documents, u32),
        "part": np.zeros(documents, u64),
        "whole": np.zeros(documents, u64),
    }
    sample = Sample(**arrays, **changed)
    places = np.cumsum(np.concatenate(([0], sizes[:-1]))).astype(u64) * u64(4)
    sample.put("set_address", u64(sample.address["values"]) + places)
    set_bytes, blocks = 4 * int(sizes[arrays["left"]].sum() + sizes[arrays["right"]].sum()), -(-count // 8)
    found = {
        "intersect_pairs": sample.launch(
            "intersect_pairs", -(-pairs // 8), set_bytes + 12 * pairs, pairs, count=u32(pairs)
        )
    }
    common = [len(np.intersect1d(members[a], members[b])) for a, b in zip(arrays["left"], arrays["right"], strict=True)]
    np.testing.assert_array_equal(sample.get("common"), common)
    ppm = params.threshold_ppm
    numbers = {
        "active_count": u32(count),
        "low": u32(kept_count),
        "has_equals": u32(0),
        "threshold_ppm": u64(ppm),
        "reciprocal": u64(2**64 // (10**6 + ppm)),
        "lane_document_count": u32(documents),
        "lane_count": u32(params.num_perm),
    }
    for kernel, moved in (("advance_sets", set_bytes), ("advance_lanes", 8 * params.num_perm * pairs)):
        for name, values in changed.items():
            sample.put(name, values)
        found[kernel] = sample.launch(kernel, blocks, moved + 12 * pairs + 60 * count, pairs, **numbers)
        expected = np.arange(candidates - 1, pairs, candidates)
        np.testing.assert_array_equal(sample.get("keeper")[kept_count:], expected, kernel)
        np.testing.assert_array_equal(sample.get("waits"), 0, kernel)
    return found


def resident_warps(kernel: str, gpu: Gpu) -> int:
    """Of a multiprocessor, as registers and shared memory allow."""
    usage, warps = compiled()[1][kernel], THREADS[kernel] // sass.LANES
    blocks = min(gpu.warps, gpu.registers // (-(-usage.registers // 8) * 8 * sass.LANES)) // warps
    return warps * (min(blocks, gpu.shared_bytes // (usage.shared + 1024)) if usage.shared else blocks)


def rows(found: dict[str, Load]) -> Iterator[str]:
    """Of a table: what a lane executes for an item, and the rest of a kernel."""
    for kernel, load in found.items():
        part, seconds = load.limit(H200)
        counts = [load.instructions, *(load.parts[part] for part in SHOWN)]
        each = " | ".join(f"{count * sass.LANES / load.items:.1f}" for count in counts)
        yield f"| `{kernel}` | {each} | {resident_warps(kernel, H200)} | {part} | {seconds * 1e12:,.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description="Predict the times of kernels on an H200 from machine code.")
    parser.add_argument("--bytes", type=int, default=32_000, help="of text in a sample; 32,000 unless given")
    parser.add_argument("--write", action="store_true", help=f"keep the times in {PREDICTED.name}")
    given = parser.parse_args()
    head = f"| kernel | all | {' | '.join(SHOWN)} | warps | limit | ps |\n"
    head += "| --- | ---: |" + " ---: |" * len(SHOWN) + " ---: | --- | ---: |"
    predicted: dict[str, Any] = {"kernels": program.digest()[:12], "seconds_per_byte": {}}
    for case in CASES:
        piece, found = loads(case, given.bytes)
        units = int(piece.get("needed")[0])
        print(f"\na byte of {case}: {piece.size} bytes, {piece.documents} documents, {units} units\n")
        print("\n".join([head, *rows(found)]), flush=True)
        seconds = {kernel: load.limit(H200)[1] for kernel, load in found.items()}
        seconds["all"] = sum(seconds.values())
        print(f"\nall: {seconds['all'] * 1e12:.2f} ps a byte, {1e-9 / seconds['all']:,.0f} GB/s")
        predicted["seconds_per_byte"][case] = seconds
    for item, found in (("hash", set_loads()), ("comparison", comparison_loads())):
        print(f"\na {item}:\n\n" + "\n".join([head, *rows(found)]), flush=True)
        predicted[f"seconds_per_{item}"] = {kernel: load.limit(H200)[1] for kernel, load in found.items()}
    if given.write:
        PREDICTED.write_text(json.dumps(predicted, indent=1) + "\n")


if __name__ == "__main__":
    main()
