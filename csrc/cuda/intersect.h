// Intersection of two sorted sets of shingle hashes by a warp.
#pragma once
#include "core/jaccard.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t WHOLE_WARP = 0xFFFFFFFFu;

/// A threshold, and 2^64 / (PPM + threshold) rounded down, by which to divide.
struct Threshold {
  uint64_t ppm, reciprocal;
};

/// `needed_intersection` without the 100 instructions of a 64-bit division. The dividend x is below 2^54, so the
/// product with the reciprocal is at most 1 too low.
__device__ __forceinline__ uint64_t needed_intersection(uint64_t m, uint64_t n, const Threshold& threshold) {
  const uint64_t divisor = PPM + threshold.ppm, x = threshold.ppm * (m + n) + divisor - 1;
  const uint64_t quotient = __umul64hi(x, threshold.reciprocal);
  return quotient + ((quotient + 1) * divisor <= x);
}

/// Shingle sets by document: ascending distinct hashes at address[document], size[document] of them.
struct Sets {
  const uint64_t* address;
  const uint32_t* size;
  __device__ const uint32_t* operator[](uint32_t document) const {
    return reinterpret_cast<const uint32_t*>(address[document]);
  }
};

/// The first place in [from, size) of ascending `values` that is not below `value`.
__device__ __forceinline__ uint32_t lower_bound(const uint32_t* values, uint32_t from, uint32_t size, uint32_t value) {
  while (from < size) {
    uint32_t middle = from + (size - from) / 2;
    if (values[middle] < value)
      from = middle + 1;
    else
      size = middle;
  }
  return from;
}

/// Size of the intersection, or less than `needed` where it cannot reach that. 32 values of the smaller set at a time
/// are looked up in the next 64 of the larger, which the lanes hold in pairs: in eight shuffles, without a load that
/// waits for another. Sets that can be similar seldom need more than 64; a value that does is looked up in memory.
/// Called by whole warps; every lane has the result.
__device__ inline uint32_t warp_intersection(const uint32_t* small, uint32_t m, const uint32_t* large, uint32_t n,
                                             uint32_t needed) {
  constexpr uint32_t LAST = 0xFFFFFFFFu;  // stands after both sets, and is counted first where it is in them
  if (m == 0) return 0;
  const uint32_t lane = threadIdx.x & 31;
  uint32_t common = small[m - 1] == LAST && large[n - 1] == LAST, from = 0;
  for (uint32_t base = 0; base < m; base += 32) {
    if (common + (m - base) < needed) return common;
    const uint32_t value = base + lane < m ? small[base + lane] : LAST;
    const uint32_t place = from + 2 * lane;
    const uint32_t even = place < n ? large[place] : LAST, odd = place + 1 < n ? large[place + 1] : LAST;
    uint32_t below = LAST;  // the last of the first 31 pairs that ends below the value, or -1
#pragma unroll
    for (uint32_t step = 16; step > 0; step /= 2) {
      const uint32_t probe = below + step;
      if (__shfl_sync(WHOLE_WARP, odd, probe) < value) below = probe;
    }
    const uint32_t pair = below + 1;
    const uint32_t first = __shfl_sync(WHOLE_WARP, even, pair), second = __shfl_sync(WHOLE_WARP, odd, pair);
    const bool beyond = second < value && value != LAST;
    const uint32_t at = lower_bound(large, from + 2 * pair, beyond ? n : 0, value);
    const bool found = beyond ? at < n && large[at] == value : value != LAST && (first == value || second == value);
    common += __popc(__ballot_sync(WHOLE_WARP, found));
    from = __shfl_sync(WHOLE_WARP, at, 31);  // values ascend, so the rest of `small` lies from there on
  }
  return common;
}

}  // namespace gpudedup
