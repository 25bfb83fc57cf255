// Sets of the numbers 0 to 31, in the bits of a word.
#pragma once
#include "core/platform.h"

namespace gpudedup {

#ifdef __CUDA_ARCH__
GPUDEDUP_HD uint32_t bit_count(uint32_t bits) { return static_cast<uint32_t>(__popc(bits)); }
/// Of bits != 0.
GPUDEDUP_HD uint32_t lowest_bit(uint32_t bits) { return static_cast<uint32_t>(__ffs(static_cast<int32_t>(bits))) - 1; }
GPUDEDUP_HD uint32_t highest_bit(uint32_t bits) {
  return 31 - static_cast<uint32_t>(__clz(static_cast<int32_t>(bits)));
}
#else
GPUDEDUP_HD uint32_t bit_count(uint32_t bits) { return static_cast<uint32_t>(__builtin_popcount(bits)); }
/// Of bits != 0.
GPUDEDUP_HD uint32_t lowest_bit(uint32_t bits) { return bit_count(~bits & (bits - 1)); }
GPUDEDUP_HD uint32_t highest_bit(uint32_t bits) { return 31 - static_cast<uint32_t>(__builtin_clz(bits)); }
#endif

/// The numbers below `count`, which is 1 to 32.
GPUDEDUP_HD uint32_t bits_below(uint32_t count) { return 0xFFFFFFFFu >> (32 - count); }

}  // namespace gpudedup
