// Shingle hashes. docs/spec.md, section 5.
#pragma once
#include "core/hash.h"

namespace gpudedup {

/// The shingle of the `count` consecutive unit hashes at `units`: a polynomial in K, mixed with the count; 32 bits.
GPUDEDUP_HD uint32_t shingle_hash(const uint64_t* units, uint64_t count) {
  uint64_t p = 0;
  for (uint64_t i = 0; i < count; ++i) p = p * MULTIPLIER + units[i];
  return static_cast<uint32_t>(mix(p + count * GOLDEN) >> 32);
}

}  // namespace gpudedup
