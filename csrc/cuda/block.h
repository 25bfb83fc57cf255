// Scans and sums over the threads of a warp or a block. Blocks are of whole warps; all threads must call.
#pragma once
#include "core/span.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t WARP_THREADS = 32;
constexpr uint32_t FULL_WARP = 0xFFFFFFFFu;

__device__ __forceinline__ uint32_t warp_lane() { return threadIdx.x & (WARP_THREADS - 1); }

__device__ __forceinline__ Span shuffle_up(const Span& span, uint32_t by) {
  return {__shfl_up_sync(FULL_WARP, span.head, by), __shfl_up_sync(FULL_WARP, span.tail, by),
          __shfl_up_sync(FULL_WARP, span.units, by), __shfl_up_sync(FULL_WARP, span.bytes, by)};
}

/// The join of the spans of this lane and all before it.
template <class Units>
__device__ __forceinline__ Span warp_scan(Span span) {
#pragma unroll
  for (uint32_t by = 1; by < WARP_THREADS; by *= 2) {
    Span before = shuffle_up(span, by);
    if (warp_lane() >= by) span = join<Units>(before, span);
  }
  return span;
}

/// The join of the spans of all threads before this one; `total`: of all threads of the block.
template <class Units>
__device__ __forceinline__ Span block_scan(const Span& span, Span* total) {
  GPUDEDUP_SHARED(Span, warps, WARP_THREADS);
  const uint32_t warp = threadIdx.x / WARP_THREADS, warp_count = blockDim.x / WARP_THREADS;
  const Span inclusive = warp_scan<Units>(span);
  if (warp_lane() == WARP_THREADS - 1) warps[warp] = inclusive;
  __syncthreads();
  if (warp == 0) {
    Span sum = warp_scan<Units>(warp_lane() < warp_count ? warps[warp_lane()] : empty_span());
    warps[warp_lane()] = sum;
  }
  __syncthreads();
  *total = warps[warp_count - 1];
  Span before = shuffle_up(inclusive, 1);
  if (warp_lane() == 0) before = empty_span();
  if (warp > 0) before = join<Units>(warps[warp - 1], before);
  __syncthreads();  // the next call writes `warps`
  return before;
}

/// Sums of `first` and `second` over the lanes of this lane's `key`, which does not descend from lane to lane. True in
/// the last lane of each key, which holds them.
__device__ __forceinline__ bool sum_by_key(uint32_t key, uint64_t* first, uint64_t* second) {
#pragma unroll
  for (uint32_t by = 1; by < WARP_THREADS; by *= 2) {
    const uint32_t key_before = __shfl_up_sync(FULL_WARP, key, by);
    const uint64_t first_before = __shfl_up_sync(FULL_WARP, *first, by);
    const uint64_t second_before = __shfl_up_sync(FULL_WARP, *second, by);
    if (warp_lane() >= by && key_before == key) {
      *first += first_before;
      *second += second_before;
    }
  }
  const uint32_t key_after = __shfl_down_sync(FULL_WARP, key, 1);
  return warp_lane() == WARP_THREADS - 1 || key_after != key;
}

}  // namespace gpudedup
