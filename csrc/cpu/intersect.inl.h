// Sizes of intersections of ascending sets, and equal lanes. Included once by each tier file.
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/tier.h"

namespace gpudedup {
namespace {

/// Where two ascending sets are being walked, and what they were found to share.
struct Walk {
  const uint32_t *left, *left_end, *right, *right_end;
  uint64_t common;

  uint64_t left_rest() const { return static_cast<uint64_t>(left_end - left); }
  uint64_t right_rest() const { return static_cast<uint64_t>(right_end - right); }
  /// False once `needed` is out of reach, even if all that is left were common.
  bool can_reach(uint64_t needed) const {
    uint64_t rest = left_rest() < right_rest() ? left_rest() : right_rest();
    return common + rest >= needed;
  }
};

// Blocks of one set against blocks of the other: every element with every element, by turning both; then the block
// whose last element is smaller moves on (both if they are equal). Elements are distinct, so no match counts twice.
#if defined(__AVX512F__)

constexpr uint32_t SET_BLOCK = 16;

inline uint64_t block_matches(const uint32_t* left, const uint32_t* right) {
  __m512i a = _mm512_loadu_si512(left), b = _mm512_loadu_si512(right);
  __m512i lanes[4] = {b, _mm512_shuffle_i32x4(b, b, 0x39), _mm512_shuffle_i32x4(b, b, 0x4E),
                      _mm512_shuffle_i32x4(b, b, 0x93)};
  __m512i turns[4] = {a, _mm512_shuffle_epi32(a, _MM_PERM_ADCB), _mm512_shuffle_epi32(a, _MM_PERM_BADC),
                      _mm512_shuffle_epi32(a, _MM_PERM_CBAD)};
  uint64_t alone = 0;
  for (uint32_t turn = 0; turn < 4; ++turn) {
    __mmask16 none = _mm512_cmpneq_epu32_mask(turns[turn], lanes[0]);
    for (uint32_t lane = 1; lane < 4; ++lane) none = _mm512_mask_cmpneq_epu32_mask(none, turns[turn], lanes[lane]);
    alone |= static_cast<uint64_t>(none) << (16 * turn);
  }
  return 64 - static_cast<uint64_t>(__builtin_popcountll(alone));
}

#elif defined(__AVX2__)

constexpr uint32_t SET_BLOCK = 8;

inline uint64_t block_matches(const uint32_t* left, const uint32_t* right) {
  __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(left));
  __m256i b = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(right));
  __m256i swapped = _mm256_permute2x128_si256(b, b, 1);
  __m256i turns[4] = {a, _mm256_shuffle_epi32(a, 0x39), _mm256_shuffle_epi32(a, 0x4E), _mm256_shuffle_epi32(a, 0x93)};
  uint32_t matches = 0;
  for (uint32_t turn = 0; turn < 4; ++turn) {
    __m256i equal = _mm256_or_si256(_mm256_cmpeq_epi32(turns[turn], b), _mm256_cmpeq_epi32(turns[turn], swapped));
    matches |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(equal))) << (8 * turn);
  }
  return static_cast<uint64_t>(__builtin_popcount(matches));
}

#endif

inline bool walk_blocks(Walk& walk, uint64_t needed) {
#if defined(__AVX2__)
  while (walk.left_rest() >= SET_BLOCK && walk.right_rest() >= SET_BLOCK) {
    if (!walk.can_reach(needed)) return false;
    walk.common += block_matches(walk.left, walk.right);
    uint32_t left_last = walk.left[SET_BLOCK - 1], right_last = walk.right[SET_BLOCK - 1];
    walk.left += left_last <= right_last ? SET_BLOCK : 0;
    walk.right += right_last <= left_last ? SET_BLOCK : 0;
  }
#else
  (void)walk, (void)needed;
#endif
  return true;
}

uint64_t intersect(const uint32_t* left, uint64_t left_size, const uint32_t* right, uint64_t right_size,
                   uint64_t needed) {
  Walk walk = {left, left + left_size, right, right + right_size, 0};
  if (!walk_blocks(walk, needed)) return 0;
  while (walk.left < walk.left_end && walk.right < walk.right_end) {
    if (!walk.can_reach(needed)) return 0;
    uint64_t steps = walk.left_rest() < walk.right_rest() ? walk.left_rest() : walk.right_rest();
    if (steps > 64) steps = 64;  // both cursors move at most one a step, so neither can run out
    for (uint64_t k = 0; k < steps; ++k) {
      uint32_t x = *walk.left, y = *walk.right;
      walk.common += x == y;
      walk.left += x <= y;
      walk.right += y <= x;
    }
  }
  return walk.common < needed ? 0 : walk.common;
}

uint64_t equal_lanes(const uint32_t* left, const uint32_t* right, uint32_t count) {
  uint32_t equal = 0;
  for (uint32_t j = 0; j < count; ++j) equal += left[j] == right[j];
  return equal;
}

}  // namespace
}  // namespace gpudedup
