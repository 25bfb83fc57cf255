"""The emulator finds planted bugs, and runs right kernels rightly in every order. Expected values come from numpy."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import emulator
import numpy as np
import pytest
from emulated_device import EmulatedDevice, Faults, Timing, loop
from emulator import ORDERS, EmulationError, Emulator, Order

from gpudedup.backends.cuda import program
from gpudedup.backends.cuda.device import Device, DeviceArray, Stream
from gpudedup.errors import DeviceError, DeviceMemoryError

TIMINGS: tuple[Timing, ...] = ("late", "early", "random")

SOURCE = r"""
#include "cuda/device.h"
#define EVERY 0xFFFFFFFFu

constexpr uint32_t THREADS = 256;

template <class T>
static __device__ T scan_block(T value) {
  GPUDEDUP_SHARED(T, sums, THREADS);
  const uint32_t t = threadIdx.x;
  sums[t] = value;
  __syncthreads();
  for (uint32_t step = 1; step < THREADS; step *= 2) {
    const T before = t >= step ? sums[t - step] : 0;
    __syncthreads();
    sums[t] += before;
    __syncthreads();
  }
  return sums[t];
}

// Right kernels.

extern "C" __global__ void __launch_bounds__(THREADS) scan(const uint32_t* __restrict__ in, uint32_t* out,
                                                           uint64_t* wide) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = scan_block(in[i]);
  wide[i] = scan_block(static_cast<uint64_t>(in[i]) << 20);
}

extern "C" __global__ void reduce(const uint64_t* in, uint64_t* out) {
  uint64_t value = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int step = warpSize / 2; step > 0; step /= 2) value += __shfl_xor_sync(EVERY, value, step);
  if (threadIdx.x % warpSize == 0) atomicAdd(out, value);
}

extern "C" __global__ void compact(const uint32_t* in, uint32_t* out, uint32_t* count) {
  GPUDEDUP_SHARED(uint32_t, begin, 1);
  GPUDEDUP_SHARED(uint32_t, warps, THREADS / 32);
  const uint32_t t = threadIdx.x, lane = t % 32, warp = t / 32;
  const uint32_t value = in[blockIdx.x * blockDim.x + t];
  const uint32_t kept = __ballot_sync(EVERY, value % 3 == 0);
  if (lane == 0) warps[warp] = __popc(kept);
  __syncthreads();
  if (t == 0) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < THREADS / 32; ++i) {
      const uint32_t here = warps[i];
      warps[i] = sum;
      sum += here;
    }
    begin[0] = atomicAdd(count, sum);
  }
  __syncthreads();
  if (value % 3 == 0) out[begin[0] + warps[warp] + __popc(kept & ((1u << lane) - 1))] = value;
}

extern "C" __global__ void atomics(const uint32_t* in, uint32_t* out, uint64_t* wide, int64_t* least) {
  GPUDEDUP_SHARED(uint32_t, peak, 1);
  if (threadIdx.x == 0) peak[0] = 0;
  __syncthreads();
  const uint32_t value = in[blockIdx.x * blockDim.x + threadIdx.x];
  atomicMax(peak, value);
  atomicMin(out + 0, value);
  atomicOr(out + 1, value);
  atomicAnd(out + 2, value);
  atomicAdd(wide, static_cast<uint64_t>(value));
  atomicMin(least, -static_cast<int64_t>(value));
  for (uint32_t old = out[4], seen;; old = seen) {  // a sum by exchange
    seen = atomicCAS(out + 4, old, old + value);
    if (seen == old) break;
  }
  __syncthreads();
  if (threadIdx.x == 0) atomicMax(out + 3, peak[0]);
}

extern "C" __global__ void warps(const uint32_t* in, uint32_t* out) {
  const uint32_t lane = threadIdx.x % 32;
  const uint32_t value = in[threadIdx.x];
  uint32_t* at = out + threadIdx.x;
  at[0 * THREADS] = __shfl_sync(EVERY, value, static_cast<int>(31 - lane));
  at[1 * THREADS] = __shfl_up_sync(EVERY, value, 3);
  at[2 * THREADS] = __shfl_down_sync(EVERY, value, 5, 8);
  at[3 * THREADS] = __reduce_min_sync(EVERY, value);
  at[4 * THREADS] = __reduce_max_sync(EVERY, value);
  at[5 * THREADS] = __match_any_sync(EVERY, value % 4);
  at[6 * THREADS] = static_cast<uint32_t>(__syncthreads_count(value % 2));
  at[7 * THREADS] = static_cast<uint32_t>(__any_sync(EVERY, value == 7) << 1 | __all_sync(EVERY, value < 7));
  if (lane < 12) at[8 * THREADS] = __reduce_add_sync(0xFFFu, value);
  __syncwarp();
  at[9 * THREADS] = __shfl_sync(EVERY, value, 11, 8);
}

extern "C" __global__ void words(const uint32_t* in, uint32_t* out, const uint64_t* wide, uint64_t* wide_out) {
  const uint32_t x = in[threadIdx.x], y = in[threadIdx.x + 1];
  uint32_t* at = out + threadIdx.x;
  at[0 * THREADS] = __clz(static_cast<int>(x)) + 100 * __ffs(static_cast<int>(x));
  at[1 * THREADS] = __funnelshift_l(x, y, 37);
  at[2 * THREADS] = __funnelshift_r(x, y, 9);
  at[3 * THREADS] = __byte_perm(x, y, 0x2705);
  at[4 * THREADS] = __umulhi(x, y);
  at[5 * THREADS] = min(x, y) ^ max(x, 5u);
  wide_out[threadIdx.x] = __umul64hi(wide[threadIdx.x], wide[threadIdx.x + 1]);
  wide_out[threadIdx.x + THREADS] = __popcll(wide[threadIdx.x]) + 100 * __clzll(wide[threadIdx.x]);
}

extern "C" __global__ void add(const uint32_t* in, uint32_t* out, uint32_t value) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  out[i] = in[i] + value;
}

extern "C" __global__ void turns(uint32_t* next, uint32_t* turn) {
  turn[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(next, 1);
}

// Planted bugs: other results in another order.

extern "C" __global__ void missing_barrier(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, THREADS);
  tile[threadIdx.x] = x[threadIdx.x];
  x[threadIdx.x] = tile[(threadIdx.x + 1) % THREADS];
}

extern "C" __global__ void missing_second_barrier(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, THREADS);
  for (uint32_t round = 0; round < 2; ++round) {
    tile[threadIdx.x] = x[threadIdx.x] + round;
    __syncthreads();
    x[threadIdx.x] = tile[(threadIdx.x + 1) % THREADS];
  }
}

extern "C" __global__ void unwritten(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, THREADS);
  if (threadIdx.x != 9) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void torn_sum(uint32_t* x) {
  const uint32_t old = atomicOr(x, 0);
  atomicExch(x, old + 1);
}

extern "C" __global__ void last_block_wins(uint32_t* x) { x[threadIdx.x] = blockIdx.x; }

// Planted bugs: errors in every order.

extern "C" __global__ void divergent_barrier(uint32_t* x) {
  if (threadIdx.x < 100) __syncthreads();
  x[threadIdx.x] = 1;
}
extern "C" __global__ void two_barriers(uint32_t* x) {
  if (threadIdx.x < 100) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  x[threadIdx.x] = 1;
}
extern "C" __global__ void returned_thread(uint32_t* x) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  x[threadIdx.x] = 1;
}
extern "C" __global__ void exited_lane(uint32_t* x) {
  if (threadIdx.x == 37) return;
  x[threadIdx.x] = __shfl_down_sync(EVERY, x[threadIdx.x], 1);
}
extern "C" __global__ void different_collectives(uint32_t* x) {
  if (threadIdx.x % 2 == 0) {
    x[threadIdx.x] = __ballot_sync(EVERY, 1);
  } else {
    x[threadIdx.x] = __shfl_sync(EVERY, x[threadIdx.x], 0);
  }
}
extern "C" __global__ void different_masks(uint32_t* x) {
  x[threadIdx.x] = __ballot_sync(threadIdx.x % 32 < 16 ? EVERY : 0xFFFF0000u, 1);
}
extern "C" __global__ void overlapping_masks(uint32_t* x) {
  x[threadIdx.x] = __ballot_sync(threadIdx.x % 32 < 16 ? EVERY : 0xFFFFFFFEu, 1);
}
extern "C" __global__ void not_in_mask(uint32_t* x) { x[threadIdx.x] = __ballot_sync(0xFFFFu, 1); }
extern "C" __global__ void reads_other_lane(uint32_t* x) {
  if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_sync(0xFFFFu, x[threadIdx.x], 16);
}
extern "C" __global__ void barrier_in_collective(uint32_t* x) {
  if (threadIdx.x == 3) __syncthreads();
  x[threadIdx.x] = __ballot_sync(EVERY, 1);
  if (threadIdx.x != 3) __syncthreads();
}
extern "C" __global__ void shared_index(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, 8);
  tile[x[0] + 8] = 1;
}
extern "C" __global__ void shared_overrun(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, 8);
  uint32_t* bare = tile;
  if (threadIdx.x == 0) bare[x[0] + 8] = 1;
}
extern "C" __global__ void too_much_shared(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, 12289);
  tile[threadIdx.x] = 0;
  x[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void misaligned(uint32_t* x) { x[0] = reinterpret_cast<const uint4*>(x + 1)->x; }
extern "C" __global__ void misaligned_shared(uint32_t* x) {
  GPUDEDUP_SHARED(uint32_t, tile, 8);
  tile[threadIdx.x % 8] = 0;
  x[0] = static_cast<uint32_t>(*reinterpret_cast<const uint64_t*>(&tile[0]));
}
extern "C" __global__ void wild(uint32_t* x) { x[uint64_t{1} << 42] = 1; }
extern "C" __global__ void shift(uint32_t* x) { x[0] = 1u << (x[0] + 32); }
extern "C" __global__ void endless(uint32_t* x) {
  while (atomicOr(x, 0) == 0) {
  }
}

extern "C" __global__ void global_overrun(uint32_t* x, uint32_t n) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i <= n) x[i] = i;
}
"""

THREADS = 256
BLOCKS = 3
every_order = pytest.mark.parametrize("order", ORDERS)
every_timing = pytest.mark.parametrize("timing", TIMINGS)


@pytest.fixture(scope="session")
def kernels() -> Emulator:
    return emulator.build(SOURCE)


def values(size: int = BLOCKS * THREADS) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 1 << 20, size, dtype=np.uint32)


@every_order
def test_scan_of_a_block(kernels: Emulator, order: Order) -> None:
    given = values()
    sums, wide = np.empty_like(given), np.empty(given.size, np.uint64)
    kernels.launch("scan", BLOCKS, THREADS, [given, sums, wide], order)
    expected = given.reshape(BLOCKS, THREADS).cumsum(axis=1, dtype=np.uint64).ravel()
    np.testing.assert_array_equal(sums, expected)
    np.testing.assert_array_equal(wide, expected << np.uint64(20))


@every_order
def test_reduction_by_shuffles(kernels: Emulator, order: Order) -> None:
    given, total = values().astype(np.uint64) << np.uint64(40), np.zeros(1, np.uint64)
    kernels.launch("reduce", BLOCKS, THREADS, [given, total], order)
    assert total[0] == given.sum()


@every_order
def test_compaction_by_ballots(kernels: Emulator, order: Order) -> None:
    given, kept, count = values(), np.zeros(BLOCKS * THREADS, np.uint32), np.zeros(1, np.uint32)
    kernels.launch("compact", BLOCKS, THREADS, [given, kept, count], order)
    expected = given[given % 3 == 0]
    assert count[0] == expected.size
    np.testing.assert_array_equal(np.sort(kept[: expected.size]), np.sort(expected))


@every_order
def test_atomics(kernels: Emulator, order: Order) -> None:
    given = values()
    out, wide, least = (
        np.array([2**32 - 1, 0, 2**32 - 1, 0, 0], np.uint32),
        np.zeros(1, np.uint64),
        np.zeros(1, np.int64),
    )
    kernels.launch("atomics", BLOCKS, THREADS, [given, out, wide, least], order)
    bits = [np.bitwise_or.reduce(given), np.bitwise_and.reduce(given)]
    assert out.tolist() == [given.min(), *bits, given.max(), int(given.sum()) % 2**32]
    assert wide[0] == given.sum()
    assert least[0] == -int(given.max())


@every_order
def test_warp_collectives(kernels: Emulator, order: Order) -> None:
    given, out = values(THREADS) % 8, np.zeros((10, THREADS), np.uint32)
    kernels.launch("warps", 1, THREADS, [given, out.reshape(-1)], order)
    warps, lane = given.reshape(-1, 32), np.arange(32)
    np.testing.assert_array_equal(out[0].reshape(-1, 32), warps[:, ::-1])
    np.testing.assert_array_equal(out[1].reshape(-1, 32), warps[:, np.where(lane < 3, lane, lane - 3)])
    np.testing.assert_array_equal(out[2].reshape(-1, 32), warps[:, np.where(lane % 8 < 3, lane + 5, lane)])
    np.testing.assert_array_equal(out[3].reshape(-1, 32), np.repeat(warps.min(axis=1, keepdims=True), 32, axis=1))
    np.testing.assert_array_equal(out[4].reshape(-1, 32), np.repeat(warps.max(axis=1, keepdims=True), 32, axis=1))
    equal = warps[:, :, None] % 4 == warps[:, None, :] % 4
    np.testing.assert_array_equal(out[5].reshape(-1, 32), (equal << lane).sum(axis=2))
    assert set(out[6].tolist()) == {(given % 2).sum()}
    votes = (warps == 7).any(axis=1) * 2 + (warps < 7).all(axis=1)
    np.testing.assert_array_equal(out[7].reshape(-1, 32), np.repeat(votes[:, None], 32, axis=1))
    np.testing.assert_array_equal(out[8].reshape(-1, 32)[:, :12], np.repeat(warps[:, :12].sum(axis=1)[:, None], 12, 1))
    np.testing.assert_array_equal(out[9].reshape(-1, 32), warps[:, lane // 8 * 8 + 3])


def test_arithmetic(kernels: Emulator) -> None:
    generator = np.random.default_rng(5)
    narrow = generator.integers(0, 2**32, THREADS + 1, dtype=np.uint32) >> generator.integers(0, 32, THREADS + 1)
    narrow = narrow.astype(np.uint32)
    wide = generator.integers(0, 2**64, THREADS + 1, dtype=np.uint64)
    narrow[7], wide[9] = 0, 0
    out, wide_out = np.zeros((6, THREADS), np.uint32), np.zeros((2, THREADS), np.uint64)
    kernels.launch("words", 1, THREADS, [narrow, out.reshape(-1), wide, wide_out.reshape(-1)])
    for i in range(THREADS):
        x, y, u, v = int(narrow[i]), int(narrow[i + 1]), int(wide[i]), int(wide[i + 1])
        both = y << 32 | x
        byte = [both >> 8 * k & 0xFF for k in range(8)]
        first = (x & -x).bit_length()
        assert out[:, i].tolist() == [
            32 - x.bit_length() + 100 * first,
            both << 5 >> 32 & 0xFFFFFFFF,
            both >> 9 & 0xFFFFFFFF,
            byte[2] << 24 | byte[7] << 16 | byte[0] << 8 | byte[5],
            x * y >> 32,
            min(x, y) ^ max(x, 5),
        ]
        assert wide_out[:, i].tolist() == [u * v >> 64, u.bit_count() + 100 * (64 - u.bit_length())]


def test_the_three_orders(kernels: Emulator) -> None:
    turns = {}
    for order in ORDERS:
        turns[order] = np.zeros(BLOCKS * THREADS, np.uint32)
        kernels.launch("turns", BLOCKS, THREADS, [np.zeros(1, np.uint32), turns[order]], order, seed=1)
    assert turns["forward"].tolist() == list(range(BLOCKS * THREADS))
    assert turns["reverse"].tolist() == list(range(BLOCKS * THREADS))[::-1]
    assert sorted(turns["random"].tolist()) == list(range(BLOCKS * THREADS))
    first = turns["random"].reshape(BLOCKS, THREADS).argmin(axis=1)
    assert first.max() >= 16  # not the lowest threads but for a few that fall behind
    again = np.zeros_like(turns["random"])
    kernels.launch("turns", BLOCKS, THREADS, [np.zeros(1, np.uint32), again], "random", seed=1)
    np.testing.assert_array_equal(again, turns["random"])
    kernels.launch("turns", BLOCKS, THREADS, [np.zeros(1, np.uint32), again], "random", seed=2)
    assert (again != turns["random"]).any()


def outcomes(kernels: Emulator, kernel: str, blocks: int) -> set[bytes]:
    found = set()
    for order in ORDERS:
        given = values(THREADS)
        kernels.launch(kernel, blocks, THREADS, [given], order)
        found.add(given.tobytes())
    return found


@pytest.mark.parametrize(
    ("kernel", "blocks"),
    [("missing_barrier", 1), ("missing_second_barrier", 1), ("unwritten", 1), ("torn_sum", 1), ("last_block_wins", 9)],
)
def test_results_depend_on_the_order(kernels: Emulator, kernel: str, blocks: int) -> None:
    assert len(outcomes(kernels, kernel, blocks)) > 1


@every_order
@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("divergent_barrier", "__syncthreads.*returned|returned.*__syncthreads"),
        ("two_barriers", r"__syncthreads \(.*but thread \d+ waits at __syncthreads"),
        ("returned_thread", "__syncthreads.*returned|returned.*__syncthreads"),
        ("exited_lane", "__shfl_down_sync.*returned|returned.*__shfl_down_sync"),
        ("different_collectives", "__ballot_sync.*__shfl_sync|__shfl_sync.*__ballot_sync"),
        ("different_masks", "__ballot_sync.*(with mask|returned)"),
        ("overlapping_masks", "__ballot_sync.*but thread .* with mask"),
        ("not_in_mask", "mask 0000ffff, which lacks the calling lane"),
        ("reads_other_lane", "reads lane 16, which is not in mask 0000ffff"),
        ("barrier_in_collective", "__syncthreads.*but thread"),
        ("shared_index", "an index out of its array at"),
        ("too_much_shared", "49156 bytes with array tile"),
        ("misaligned", "not a multiple of 16"),
        ("misaligned_shared", "not a multiple of 8"),
        ("shift", "a shift by a width or more"),
        ("endless", "waits for what cannot come"),
    ],
)
def test_errors_of_kernels(kernels: Emulator, kernel: str, message: str, order: Order) -> None:
    with pytest.raises(EmulationError, match=rf"kernel {kernel}, block 0.*({message}).*order {order}"):
        kernels.launch(kernel, 1, THREADS, [np.zeros(THREADS, np.uint32)], order)


@pytest.mark.skipif(emulator.address_sanitizer(), reason="the address sanitizer ends the process")
@pytest.mark.parametrize(
    ("kernel", "message"),
    [("shared_overrun", "outside of shared array tile of 32 bytes, at byte 32"), ("wild", "no memory of this process")],
)
def test_wild_writes(kernels: Emulator, kernel: str, message: str) -> None:
    with pytest.raises(EmulationError, match=message):
        kernels.launch(kernel, 1, THREADS, [np.zeros(THREADS, np.uint32)])


def test_emulator_goes_on_after_errors(kernels: Emulator) -> None:
    for _ in range(3):
        with pytest.raises(EmulationError):
            kernels.launch("divergent_barrier", 1, THREADS, [values(THREADS)])
        test_scan_of_a_block(kernels, "random")


def test_launches_that_are_refused(kernels: Emulator) -> None:
    given = values(THREADS)
    for args in (
        [given],
        [given, given, np.int32(1)],
        [given, given, 1],
        [given, given.astype(np.int32), np.uint32(1)],
    ):
        with pytest.raises(TypeError, match="kernel add takes"):
            kernels.launch("add", 1, THREADS, args)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no kernel subtract"):
        kernels.launch("subtract", 1, THREADS, [])
    with pytest.raises(ValueError, match="1025 threads"):
        kernels.launch("add", 1, 1025, [given, given, np.uint32(1)])
    with pytest.raises(EmulationError, match="bounded to 1 to 256"):
        kernels.launch("scan", 1, 288, [given, given, given.astype(np.uint64)])


@pytest.mark.parametrize(
    "source",
    [
        "__global__ void plain(uint32_t* x) {}",
        'extern "C" __global__ void floats(float* x) {}',
        'extern "C" __global__ void twice(int32_t x) {}\nextern "C" __global__ void twice(int32_t x) {}',
        'extern "C" __global__ void flag(bool x) {}',
        'extern "C" __global__ void deep(uint32_t** x) {}',
    ],
)
def test_declarations_that_cannot_be_launched(source: str) -> None:
    with pytest.raises(TypeError, match="kernel"):
        program.declarations(source)


def test_declarations() -> None:
    scan = program.declarations(SOURCE)["scan"]
    assert list(map(str, scan.parameters)) == ["const uint32* in", "uint32* out", "uint64* wide"]
    assert scan.bounds == "THREADS"
    assert [*map(str, program.declarations(SOURCE)["add"].parameters)][2] == "uint32 value"


def test_the_project_declares_its_kernels() -> None:
    assert len(program.digest()) == 64
    assert set(program.signatures()) <= set(emulator.kernels().signatures)


# The device.


def device(kernels: Emulator, **options: object) -> EmulatedDevice:
    made: Device = EmulatedDevice(kernels=kernels, **options)  # type: ignore[arg-type]  # it has the interface
    assert isinstance(made, EmulatedDevice)
    return made


@every_order
@every_timing
def test_a_pipeline_of_two_streams(kernels: Emulator, timing: Timing, order: Order) -> None:
    for seed in range(5):
        gpu = device(kernels, timing=timing, order=order, seed=seed)
        copies, work = gpu.stream(), gpu.stream()
        pinned, result = gpu.alloc_host(THREADS, np.uint32), gpu.alloc_host(THREADS, np.uint32)
        given, out = gpu.alloc(THREADS, np.uint32), gpu.alloc(2 * THREADS, np.uint32)
        for round_ in range(3):
            pinned[:] = values(THREADS) + round_
            gpu.upload(pinned, given, copies)
            uploaded = copies.record()
            work.wait(uploaded)
            gpu.launch("add", 1, THREADS, [given, out[THREADS:], np.uint32(3)], work)
            copies.wait(work.record())
            gpu.download(out[THREADS:], result, copies)
            uploaded.synchronize()
            pinned[:] = 0
            copies.synchronize()
            np.testing.assert_array_equal(result, values(THREADS) + 3 + round_)
        gpu.check()
        assert (gpu.counters.launches, gpu.counters.synchronisations, gpu.counters.uploads) == (3, 6, 3)
        assert gpu.counters.bytes_up == gpu.counters.bytes_down == 3 * 4 * THREADS


def test_sorts_and_sums(kernels: Emulator) -> None:
    gpu = device(kernels)
    stream = gpu.stream()
    keys = values(1000).astype(np.uint64) % 50
    small = values(1000)
    on_device, narrow = gpu.alloc(1000, np.uint64), gpu.alloc(1000, np.uint32)
    order, sums = gpu.alloc(1000, np.uint32), gpu.alloc(1001, np.uint64)
    gpu.upload(keys, on_device, stream)
    gpu.upload(small, narrow, stream)
    gpu.argsort(on_device, order, stream)
    gpu.sort(on_device, stream)
    gpu.scan(narrow, sums, stream)
    found = [np.empty(1000, np.uint32), np.empty(1000, np.uint64), np.empty(1001, np.uint64)]
    for source, target in zip((order, on_device, sums), found, strict=True):
        gpu.download(source, target, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found[0], sorted(range(1000), key=lambda i: (keys[i], i)))
    np.testing.assert_array_equal(found[1], np.sort(keys))
    np.testing.assert_array_equal(found[2], [sum(small[:i].tolist()) for i in range(1001)])


@every_order
@pytest.mark.parametrize("compiled", [True, False])
def test_loop_bodies(kernels: Emulator, order: Order, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled:
        pytest.importorskip("numba")
    else:
        monkeypatch.setitem(sys.modules, "numba", None)
    loop.cache_clear()
    gpu = device(kernels, order=order)
    stream, found = gpu.stream(), np.zeros(100, np.uint64)
    keys, documents, out = gpu.alloc(100, np.uint64), gpu.alloc(100, np.uint32), gpu.alloc(100, np.uint64)
    gpu.upload(np.arange(100, dtype=np.uint64) ** 2, keys, stream)
    gpu.upload(np.arange(100, dtype=np.uint32)[::-1].copy(), documents, stream)
    gpu.for_each("gather_keys", 100, [keys, documents, out], stream)
    gpu.download(out, found, stream)
    stream.synchronize()
    np.testing.assert_array_equal(found, np.arange(99, -1, -1) ** 2)
    gpu.for_each("gather_keys", 101, [keys, documents, out], stream)
    with pytest.raises(EmulationError, match=r"loop body gather_keys: .*out of bounds"):
        stream.synchronize()
    loop.cache_clear()


def with_streams(gpu: EmulatedDevice, use: Callable[..., None]) -> np.ndarray:
    """What comes back of values + 3, if ``use`` queues it rightly."""
    first, second = gpu.stream(), gpu.stream()
    pinned, result = gpu.alloc_host(THREADS, np.uint32), gpu.alloc_host(THREADS, np.uint32)
    pinned[:] = values(THREADS)
    use(gpu, first, second, pinned, gpu.alloc(THREADS, np.uint32), gpu.alloc(THREADS, np.uint32), result)
    return result.copy()


def reuse_early(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    gpu.upload(pinned, given, first)
    pinned[:] = 0
    gpu.launch("add", 1, THREADS, [given, out, np.uint32(3)], first)
    gpu.download(out, result, first)
    first.synchronize()


def no_wait(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    gpu.upload(pinned, given, first)
    gpu.launch("add", 1, THREADS, [given, out, np.uint32(3)], second)
    gpu.download(out, result, second)
    second.synchronize()
    first.synchronize()


def read_early(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    gpu.upload(pinned, given, first)
    gpu.launch("add", 1, THREADS, [given, out, np.uint32(3)], first)
    gpu.download(out, result, first)


def give_back_early(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    """Neither of two streams that read it waits for the other."""
    between = gpu.alloc(THREADS, np.uint32)
    gpu.upload(pinned, between, first)
    second.wait(first.record())
    gpu.launch("add", 1, THREADS, [between, out, np.uint32(3)], second)
    gpu.launch("add", 1, THREADS, [between, given, np.uint32(3)], first)
    del between
    gpu.download(out, result, second)
    second.synchronize()


def give_back_in_order(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    between = gpu.alloc(THREADS, np.uint32)
    gpu.upload(pinned, between, first)
    second.wait(first.record())
    gpu.launch("add", 1, THREADS, [between, out, np.uint32(3)], second)
    del between
    gpu.download(out, result, second)
    second.synchronize()


def write_too_early(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    """The second upload must wait for the kernel that reads the first."""
    gpu.upload(pinned, given, first)
    second.wait(first.record())
    gpu.launch("add", 1, THREADS, [given, out, np.uint32(3)], first)
    other = np.zeros(THREADS, np.uint32)
    gpu.upload(other, given, second)
    second.synchronize()
    gpu.download(out, result, first)
    first.synchronize()


def read_early_again(gpu, first, second, pinned, given, out, result) -> None:  # type: ignore[no-untyped-def]
    """Where the right values lie already."""
    read_early(gpu, first, second, pinned, given, out, result)
    first.synchronize()
    read_early(gpu, first, second, pinned, given, out, result)


@pytest.mark.parametrize("use", [reuse_early, read_early, read_early_again])
def test_host_memory_used_too_early(kernels: Emulator, use: Callable[..., None]) -> None:
    with pytest.raises(AssertionError):  # an EmulationError, or other values
        np.testing.assert_array_equal(with_streams(device(kernels, timing="late"), use), values(THREADS) + 3)


@every_timing
@pytest.mark.parametrize(
    ("use", "message"),
    [
        (no_wait, "read on one stream without a wait for another that writes"),
        (write_too_early, "written on one stream without a wait for another that reads"),
    ],
)
def test_missing_waits(kernels: Emulator, use: Callable[..., None], message: str, timing: Timing) -> None:
    with pytest.raises(EmulationError, match=message):
        with_streams(device(kernels, timing=timing), use)


@every_timing
def test_halves_of_one_array_on_two_streams(kernels: Emulator, timing: Timing) -> None:
    gpu = device(kernels, timing=timing)
    streams, result = (gpu.stream(), gpu.stream()), np.zeros(THREADS, np.uint32)
    memory = gpu.alloc(2 * THREADS, np.uint32)
    for byte, stream in enumerate(streams):
        half = memory[byte * THREADS : (byte + 1) * THREADS]
        gpu.fill(half, byte, stream)
        gpu.launch("add", 1, THREADS, [half, half, np.uint32(byte)], stream)
        gpu.fill(memory[THREADS:THREADS], 9, stream)
    streams[1].synchronize()
    gpu.download(memory[THREADS:], result, streams[0])
    streams[0].synchronize()
    assert set(result.tolist()) == {0x01010101 + 1}


def test_memory_given_back_too_early(kernels: Emulator) -> None:
    with pytest.raises(EmulationError, match="of 1024 bytes was dropped while 2 streams use it"):
        with_streams(device(kernels, timing="late"), give_back_early)


@every_timing
def test_memory_given_back_by_the_last_stream(kernels: Emulator, timing: Timing) -> None:
    gpu = device(kernels, timing=timing)
    assert with_streams(gpu, give_back_in_order).tolist() == (values(THREADS) + 3).tolist()
    gpu.check()


def overrun(gpu: EmulatedDevice, memory: DeviceArray, stream: Stream) -> None:
    gpu.launch("global_overrun", 1, THREADS, [memory, np.uint32(memory.size)], stream)
    stream.synchronize()


@pytest.mark.skipif(emulator.address_sanitizer(), reason="the address sanitizer ends the process")
@every_timing
def test_global_overrun(kernels: Emulator, timing: Timing) -> None:
    gpu = device(kernels, timing=timing)
    stream, memory = gpu.stream(), gpu.alloc(100, np.uint32)
    gpu.launch("global_overrun", 1, THREADS, [memory, np.uint32(99)], stream)
    stream.synchronize()
    with pytest.raises(EmulationError, match="kernel global_overrun wrote behind device memory of 400 bytes"):
        overrun(gpu, memory, stream)


@every_order
def test_fresh_memory_has_no_meaning(kernels: Emulator, order: Order) -> None:
    gpu = device(kernels, order=order)
    stream, memory, result = gpu.stream(), gpu.alloc(1000, np.uint8), np.zeros(1000, np.uint8)
    gpu.download(memory, result, stream)
    stream.synchronize()
    assert result.all()
    assert memory.address % 512 == 256  # aligned to what was promised, and no more


def test_memory_is_counted_and_limited(kernels: Emulator) -> None:
    gpu = device(kernels, memory_bytes=10_000)
    kept = gpu.alloc(1000, np.uint32)
    with pytest.raises(DeviceMemoryError, match="no room for 6400 bytes"):
        gpu.alloc(1600, np.uint32)
    part = kept[10:20]
    del kept
    assert gpu.used_bytes == 4096
    del part
    gc.collect()
    assert gpu.used_bytes == 0
    gpu.alloc(1600, np.uint32)
    assert gpu.counters.peak_bytes == 6656


def test_misuse_of_arrays(kernels: Emulator) -> None:
    gpu, other = device(kernels), device(kernels)
    stream, memory = gpu.stream(), gpu.alloc(THREADS, np.uint32)
    with pytest.raises(EmulationError, match="int32 on the host and uint32 on the device"):
        gpu.upload(np.zeros(4, np.int32), memory, stream)
    with pytest.raises(EmulationError, match="257 values"):
        gpu.upload(np.zeros(THREADS + 1, np.uint32), memory, stream)
    with pytest.raises(EmulationError, match="one run of values"):
        gpu.upload(np.zeros(8, np.uint32)[::2], memory, stream)
    with pytest.raises(EmulationError, match="not aligned"):
        gpu.fill(memory.view(np.uint8)[1:9].view(np.uint64), 0, stream)
    with pytest.raises(EmulationError, match="another device"):
        gpu.fill(other.alloc(4, np.uint32), 0, stream)
    with pytest.raises(EmulationError, match="another device"):
        gpu.fill(memory, 0, other.stream())
    with pytest.raises(EmulationError, match="argsort"):
        gpu.argsort(memory, memory, stream)


def test_faults_on_order(kernels: Emulator) -> None:
    gpu = device(kernels, faults=Faults(allocation=2, host_allocation=1, launch=2, lost=9))
    stream, memory = gpu.stream(), gpu.alloc(THREADS, np.uint32)
    with pytest.raises(DeviceMemoryError):
        gpu.alloc(1, np.uint8)
    with pytest.raises(DeviceMemoryError):
        gpu.alloc_host(1, np.uint8)
    gpu.alloc(1, np.uint8)
    launch = ("add", 1, THREADS, [memory, memory, np.uint32(1)], stream)
    gpu.launch(*launch)
    with pytest.raises(DeviceError, match="refused to launch add"):
        gpu.launch(*launch)
    gpu.launch(*launch)
    for _ in range(2):
        with pytest.raises(DeviceError, match="lost"):
            stream.synchronize()


# Under the address sanitizer.

SANITIZED = """
import sys
import numpy as np
import emulator, test_emulator
kernels = emulator.build(test_emulator.SOURCE)
for order in emulator.ORDERS:
    test_emulator.test_scan_of_a_block(kernels, order)
    test_emulator.test_errors_of_kernels(kernels, "divergent_barrier", "returned", order)
    test_emulator.test_a_pipeline_of_two_streams(kernels, "random", order)
print("right kernels ran", flush=True)
gpu = test_emulator.EmulatedDevice(kernels=kernels)
stream, memory = gpu.stream(), gpu.alloc(33, np.uint32)
gpu.fill(memory, 0, stream)
args = [memory, np.uint32(33)] if sys.argv[1] == "global_overrun" else [memory]
gpu.launch(sys.argv[1], 1, 64, args, stream)
stream.synchronize()
"""


@pytest.mark.parametrize("kernel", ["shared_overrun", "global_overrun"])
def test_overruns_under_the_address_sanitizer(kernel: str) -> None:
    compiler = os.environ.get("CXX", "g++")
    names = [
        subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    if not all(Path(name).is_absolute() for name in names):
        pytest.skip(f"{compiler} has no address sanitizer")
    environment = {**os.environ, "LD_PRELOAD": ":".join(names), "ASAN_OPTIONS": "detect_leaks=0"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", SANITIZED, kernel], env=environment, capture_output=True, text=True)
    assert "right kernels ran" in done.stdout, done.stderr
    assert done.returncode != 0
    assert "AddressSanitizer: use-after-poison" in done.stderr
    assert f"in {kernel}" in done.stderr
