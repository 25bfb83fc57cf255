// Band keys and the window of candidates. docs/spec.md, sections 5 and 7.
#pragma once
#include "core/hash.h"

namespace gpudedup {

constexpr uint64_t SCOPE_NONE = 0;  // no `within` column
constexpr uint64_t SCOPE_NULL = 1;  // a null in it

/// 64-bit key of one band of a signature: its number, the scope and its lanes.
template <class Count>
GPUDEDUP_HD uint64_t band_key(uint64_t band, uint64_t scope, const uint32_t* lanes, Count rows) {
  uint64_t key = absorb(mix(band + GOLDEN), scope);
  for (Count i = 0; i < rows; ++i) key = absorb(key, lanes[i]);
  return key;
}

/// Whether positions p < q of one bucket are a candidate pair.
GPUDEDUP_HD bool in_window(uint64_t p, uint64_t q, uint64_t window) { return p < window || q - p <= window; }

/// How many candidates of better rank position q has.
GPUDEDUP_HD uint64_t window_size(uint64_t q, uint64_t window) { return q <= 2 * window ? q : 2 * window; }

/// The i-th of them, ascending.
GPUDEDUP_HD uint64_t window_position(uint64_t q, uint64_t window, uint64_t i) {
  return i < window || q <= 2 * window ? i : q - 2 * window + i;
}

}  // namespace gpudedup
