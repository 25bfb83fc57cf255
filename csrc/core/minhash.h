// MinHash lanes. docs/spec.md, section 5; Broder 1997.
#pragma once
#include "core/hash.h"

namespace gpudedup {

constexpr uint32_t EMPTY_LANE = 0xFFFFFFFFu;

/// Lane value of shingle hash h: (a*h + b) mod 2^32 with odd a is a bijection, so equal minima mean equal shingles.
GPUDEDUP_HD uint32_t lane(uint32_t h, uint32_t a, uint32_t b) { return a * h + b; }

/// x_i of the SplitMix64 stream of `seed`.
GPUDEDUP_HD uint64_t stream_word(uint64_t seed, uint64_t i) { return mix(seed + (i + 1) * GOLDEN); }
GPUDEDUP_HD uint32_t lane_multiplier(uint64_t seed, uint64_t j) {
  return static_cast<uint32_t>(stream_word(seed, 2 * j) >> 32) | 1;
}
GPUDEDUP_HD uint32_t lane_offset(uint64_t seed, uint64_t j) {
  return static_cast<uint32_t>(stream_word(seed, 2 * j + 1) >> 32);
}

}  // namespace gpudedup
