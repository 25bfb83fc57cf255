// Sixty-four bytes of ASCII at once: fold, class and bounds of units. Included by sign.inl.h.
#include <string.h>
#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "core/unit.h"

namespace gpudedup {
namespace {

constexpr uint32_t BLOCK_BYTES = 64;

/// Bit i tells of byte i.
struct AsciiBlock {
  uint64_t joiners;    // letters and digits
  uint64_t not_ascii;  // 0x80 and above
};

// In ASCII every fold but "none" only lowers letters, and what is no letter or digit separates (docs/spec.md, 2 and 3).
// `x - low < n` for unsigned bytes is `min(x - low, n - 1) == x - low` where there is no unsigned comparison.
#if defined(__AVX512BW__)

/// Reads `count` bytes (1 to 64), writes 64.
inline AsciiBlock fold_ascii(const uint8_t* in, uint64_t count, bool lower, uint8_t* out) {
  __m512i x = _mm512_maskz_loadu_epi8(~0ull >> (64 - count), in);
  __m512i lowered = _mm512_or_si512(x, _mm512_set1_epi8(0x20));
  uint64_t letters = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(lowered, _mm512_set1_epi8('a')), _mm512_set1_epi8(26));
  uint64_t digits = _mm512_cmplt_epu8_mask(_mm512_sub_epi8(x, _mm512_set1_epi8('0')), _mm512_set1_epi8(10));
  _mm512_storeu_si512(out, lower ? _mm512_mask_mov_epi8(x, letters, lowered) : x);
  return {letters | digits, static_cast<uint64_t>(_mm512_movepi8_mask(x))};
}

#else

#if defined(__AVX2__)

constexpr uint32_t PART_BYTES = 32;

inline AsciiBlock fold_part(const uint8_t* in, bool lower, uint8_t* out) {
  __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
  __m256i lowered = _mm256_or_si256(x, _mm256_set1_epi8(0x20));
  __m256i from_a = _mm256_sub_epi8(lowered, _mm256_set1_epi8('a'));
  __m256i from_0 = _mm256_sub_epi8(x, _mm256_set1_epi8('0'));
  __m256i letters = _mm256_cmpeq_epi8(_mm256_min_epu8(from_a, _mm256_set1_epi8(25)), from_a);
  __m256i digits = _mm256_cmpeq_epi8(_mm256_min_epu8(from_0, _mm256_set1_epi8(9)), from_0);
  __m256i folded = lower ? _mm256_blendv_epi8(x, lowered, letters) : x;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), folded);
  return {static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_or_si256(letters, digits))),
          static_cast<uint32_t>(_mm256_movemask_epi8(x))};
}

#elif defined(__SSE2__)

constexpr uint32_t PART_BYTES = 16;

inline AsciiBlock fold_part(const uint8_t* in, bool lower, uint8_t* out) {
  __m128i x = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in));
  __m128i lowered = _mm_or_si128(x, _mm_set1_epi8(0x20));
  __m128i from_a = _mm_sub_epi8(lowered, _mm_set1_epi8('a'));
  __m128i from_0 = _mm_sub_epi8(x, _mm_set1_epi8('0'));
  __m128i letters = _mm_cmpeq_epi8(_mm_min_epu8(from_a, _mm_set1_epi8(25)), from_a);
  __m128i digits = _mm_cmpeq_epi8(_mm_min_epu8(from_0, _mm_set1_epi8(9)), from_0);
  __m128i folded = lower ? _mm_or_si128(x, _mm_and_si128(letters, _mm_set1_epi8(0x20))) : x;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), folded);
  return {static_cast<uint32_t>(_mm_movemask_epi8(_mm_or_si128(letters, digits))),
          static_cast<uint32_t>(_mm_movemask_epi8(x))};
}

#else

constexpr uint32_t PART_BYTES = 1;

inline AsciiBlock fold_part(const uint8_t* in, bool lower, uint8_t* out) {
  bool letter = (*in | 0x20u) - 'a' < 26u;
  *out = static_cast<uint8_t>(letter && lower ? *in | 0x20 : *in);
  return {letter || *in - 48u < 10u, *in >> 7};
}

#endif

inline AsciiBlock fold_ascii(const uint8_t* in, uint64_t count, bool lower, uint8_t* out) {
  uint8_t padded[BLOCK_BYTES];
  if (count < BLOCK_BYTES) {
    memset(padded, 0, sizeof padded);
    memcpy(padded, in, count);
    in = padded;
  }
  AsciiBlock block = {0, 0};
  for (uint32_t at = 0; at < BLOCK_BYTES; at += PART_BYTES) {
    AsciiBlock part = fold_part(in + at, lower, out + at);
    block.joiners |= part.joiners << at;
    block.not_ascii |= part.not_ascii << at;
  }
  return block;
}

#endif

/// Appends base + i for each set bit i; returns how many there are. Writes up to 16 places past the last.
inline uint32_t append_bits(uint64_t bits, uint32_t base, uint32_t* out) {
#if defined(__AVX512F__)
  const __m512i places = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const uint32_t* first = out;
  for (uint32_t at = 0; at < 64; at += 16) {
    auto part = static_cast<__mmask16>(bits >> at);
    __m512i there = _mm512_add_epi32(places, _mm512_set1_epi32(static_cast<int>(base + at)));
    _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(part, there));
    out += __builtin_popcount(part);
  }
  return static_cast<uint32_t>(out - first);
#else
  uint32_t count = static_cast<uint32_t>(__builtin_popcountll(bits));
  for (uint32_t done = 0; done < count; done += 8)
    for (uint32_t i = 0; i < 8; ++i) {
      out[done + i] = base + static_cast<uint32_t>(__builtin_ctzll(bits | 1ull << 63));
      bits &= bits - 1;
    }
  return count;
#endif
}

/// Takes `count` folded ASCII bytes that were written at units.used. Returns false, having done nothing, if an open
/// run would grow past MAX_RUN: then they must be taken one by one.
inline bool take_ascii(UnitBuffer& units, uint64_t joiners, uint32_t count) {
  uint64_t valid = ~0ull >> (64 - count);
  joiners &= valid;
  uint32_t leading = ~joiners ? static_cast<uint32_t>(__builtin_ctzll(~joiners)) : 64;
  if (units.run + leading > MAX_RUN) return false;
  uint64_t before = joiners << 1 | (units.run > 0);  // bit i: byte i - 1 is in a run
  uint32_t open = units.run > 0;
  append_bits(joiners & ~before, units.used, units.start + units.count + open);
  units.count += append_bits(~joiners & before & valid, units.used, units.end + units.count);
  uint64_t gaps = ~joiners << (64 - count);
  units.run = gaps ? static_cast<uint32_t>(__builtin_clzll(gaps)) : units.run + count;
  units.used += count;
  return true;
}

}  // namespace
}  // namespace gpudedup
