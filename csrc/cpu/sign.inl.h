// Text -> units -> shingles -> lanes for one document, tile by tile. Included once by each tier file.
#include <string.h>

#include "core/band.h"
#include "core/minhash.h"
#include "core/shingle.h"
#include "core/unit.h"
#include "cpu/ascii.inl.h"
#include "cpu/folded.h"
#include "cpu/tier.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "hash_units loads words as they lie in memory; unit hashes are defined on little-endian words"
#endif

namespace gpudedup {
namespace {

// ---- units: folded bytes and bounds ----

template <bool words>
inline void take(UnitBuffer& units, uint32_t kind, uint32_t code_point) {
  words ? take_word(units, kind, code_point) : take_char(units, kind, code_point);
}

template <bool words>
inline const uint8_t* take_code_point(const FoldTable& table, const uint8_t* at, const uint8_t* end,
                                      UnitBuffer& units) {
  uint32_t code_point;
  at += decode_utf8(at, end - at, &code_point);
  fold_code_point(table, code_point, [&](uint32_t kind, uint32_t folded) { take<words>(units, kind, folded); });
  return at;
}

/// `decode_short`, of ASCII too; of a surrogate it may say 3 bytes, for that has no entry in `folded`.
inline uint32_t decode_word(uint32_t word, uint32_t* code_point) {
  if ((word & 0x80) == 0) {
    *code_point = word & 0x7F;
    return 1;
  }
#if defined(__AVX512BW__)  // processors with a fast pext: a tenth more for Chinese
  if ((word & 0xC0C0F0) == 0x8080E0) {
    *code_point = _pext_u32(__builtin_bswap32(word), 0x0F3F3F00);
    return *code_point >= 0x800 ? 3 : 0;
  }
#endif
  return decode_short(word, code_point);
}

/// Takes words of what is not ASCII, and the blanks and marks between them, as far as `folded` has entries; leaves at
/// four bytes of ASCII, which `take_ascii` takes faster. Returns where it stopped.
inline const uint8_t* take_words(const SignPlan& plan, const uint8_t* at, const uint8_t* stop, const uint8_t* end,
                                 UnitBuffer& units) {
  uint32_t count = units.count, used = units.used, run = units.run;
  uint32_t first = run ? units.start[count] : 0;           // of the open run
  if (end - stop < 3) stop = end - at < 4 ? at : end - 3;  // bytes are read and written four at a time
  while (at < stop) {
    uint32_t word, code_point;
    memcpy(&word, at, 4);
    uint32_t length = decode_word(word, &code_point);
    if (length <= 1 && (length == 0 || (word & 0x80808080) == 0)) break;
    uint32_t entry = plan.folded[code_point], kind = entry >> FOLDED_KIND_SHIFT;
    uint32_t size = entry >> FOLDED_SIZE_SHIFT & 3;
    if (kind == FOLDED_JOINERS) {
      uint32_t more = entry >> FOLDED_COUNT_SHIFT & 3;
      if (run + more > MAX_RUN) break;
      first = run ? first : used;
      run += more;
      memcpy(units.bytes + used, &entry, 4);
      used += size;
    } else if (kind == FOLDED_SINGLE || kind == FOLDED_SEPARATOR) {
      if (run) {
        units.start[count] = first;
        units.end[count++] = used;
        run = 0;
      }
      memcpy(units.bytes + used, &entry, 4);
      units.start[count] = used;
      used += size;
      units.end[count] = used;
      count += kind == FOLDED_SINGLE;
    } else if (kind == FOLDED_SYLLABLE) {
      if (run + 3 > MAX_RUN) break;
      first = run ? first : used;
      fold_code_point(plan.fold, code_point, [&](uint32_t, uint32_t jamo) {
        used += static_cast<uint32_t>(encode_utf8(jamo, units.bytes + used));
        ++run;
      });
    } else if (kind != FOLDED_NOTHING) {
      break;
    }
    at += length;
  }
  if (run) units.start[count] = first;
  units.count = count;
  units.used = used;
  units.run = run;
  return at;
}

/// Reads code points from `at` while they start before `stop`; the text ends at `end`. Returns where it stopped.
const uint8_t* find_words(const SignPlan& plan, const uint8_t* at, const uint8_t* stop, const uint8_t* end,
                          UnitBuffer& units) {
  while (at < stop) {
    if (*at >= 0x80) {
      const uint8_t* before = at;
      at = take_words(plan, at, stop, end, units);
      if (at == before) at = take_code_point<true>(plan.fold, at, end, units);
      continue;
    }
    uint32_t count = stop - at < BLOCK_BYTES ? static_cast<uint32_t>(stop - at) : BLOCK_BYTES;
    AsciiBlock block = fold_ascii(at, count, plan.lower_ascii, units.bytes + units.used);
    uint64_t not_ascii = block.not_ascii & (~0ull >> (64 - count));
    if (not_ascii) count = static_cast<uint32_t>(__builtin_ctzll(not_ascii));
    if (take_ascii(units, block.joiners, count)) {
      at += count;
    } else {
      for (const uint8_t* block_end = at + count; at < block_end;)
        at = take_code_point<true>(plan.fold, at, end, units);
    }
  }
  return at;
}

/// Takes characters as far as `folded` has entries of one code point. Returns where it stopped.
inline const uint8_t* take_chars(const SignPlan& plan, const uint8_t* at, const uint8_t* stop, const uint8_t* end,
                                 UnitBuffer& units) {
  uint32_t count = units.count, used = units.used;
  bool any = units.any, separated = units.separated;
  auto take_unit = [&](uint32_t size) {
    units.start[count] = used;
    used += size;
    units.end[count++] = used;
  };
  auto take_blank = [&] {
    if (any && separated) {
      units.bytes[used] = ' ';
      take_unit(1);
    }
    any = true;
    separated = false;
  };
  if (end - stop < 3) stop = end - at < 4 ? at : end - 3;
  while (at < stop) {
    uint32_t word, code_point;
    memcpy(&word, at, 4);
    uint32_t length = decode_word(word, &code_point);
    if (length == 0) break;
    uint32_t entry = plan.folded[code_point], kind = entry >> FOLDED_KIND_SHIFT;
    if (kind == FOLDED_SINGLE || kind == FOLDED_JOINERS) {
      if ((entry >> FOLDED_COUNT_SHIFT & 3) != 1) break;
      take_blank();
      memcpy(units.bytes + used, &entry, 4);
      take_unit(entry >> FOLDED_SIZE_SHIFT & 3);
    } else if (kind == FOLDED_SEPARATOR) {
      separated = true;
    } else if (kind == FOLDED_SYLLABLE) {
      take_blank();
      fold_code_point(plan.fold, code_point, [&](uint32_t, uint32_t jamo) {
        take_unit(static_cast<uint32_t>(encode_utf8(jamo, units.bytes + used)));
      });
    } else if (kind != FOLDED_NOTHING) {
      break;
    }
    at += length;
  }
  units.count = count;
  units.used = used;
  units.any = any;
  units.separated = separated;
  return at;
}

const uint8_t* find_chars(const SignPlan& plan, const uint8_t* at, const uint8_t* stop, const uint8_t* end,
                          UnitBuffer& units) {
  while (at < stop) {
    at = take_chars(plan, at, stop, end, units);
    if (at < stop) at = take_code_point<false>(plan.fold, at, end, units);
  }
  return at;
}

// ---- unit hashes ----

#if defined(__AVX512DQ__)

inline __m512i mix8(__m512i z) {
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)), _mm512_set1_epi64(0xBF58476D1CE4E5B9u));
  z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)), _mm512_set1_epi64(0x94D049BB133111EBu));
  return _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
}

/// Eight units at a time; the places past the last hold bounds of no meaning and are masked off.
inline void hash_units(const UnitBuffer& units, uint64_t* hashes) {
  const __m512i golden = _mm512_set1_epi64(static_cast<long long>(GOLDEN)), eight = _mm512_set1_epi64(8);
  for (uint32_t i = 0; i < units.count; i += 8) {
    __mmask8 live = units.count - i < 8 ? static_cast<__mmask8>((1u << (units.count - i)) - 1) : 0xFF;
    __m512i at = _mm512_cvtepu32_epi64(_mm256_maskz_loadu_epi32(live, units.start + i));
    __m512i rest = _mm512_sub_epi64(_mm512_cvtepu32_epi64(_mm256_maskz_loadu_epi32(live, units.end + i)), at);
    __m512i u = mix8(_mm512_add_epi64(rest, golden));
    for (__mmask8 more = live; more;) {
      __m512i word = _mm512_mask_i64gather_epi64(_mm512_setzero_si512(), more, at, units.bytes, 1);
      // Of the last word only the low `rest` bytes count.
      __m512i unused = _mm512_slli_epi64(_mm512_sub_epi64(eight, _mm512_min_epu64(rest, eight)), 3);
      word = _mm512_and_si512(word, _mm512_srlv_epi64(_mm512_set1_epi64(-1), unused));
      u = _mm512_mask_mov_epi64(u, more, mix8(_mm512_xor_si512(_mm512_add_epi64(u, golden), word)));
      more = _mm512_mask_cmpgt_epu64_mask(more, rest, eight);
      rest = _mm512_sub_epi64(rest, eight);
      at = _mm512_add_epi64(at, eight);
    }
    _mm512_mask_storeu_epi64(hashes + i, live, u);
  }
}

#else

inline void hash_units(const UnitBuffer& units, uint64_t* hashes) {
  for (uint32_t i = 0; i < units.count; ++i) {
    const uint8_t* bytes = units.bytes + units.start[i];
    uint32_t size = units.end[i] - units.start[i];
    uint64_t u = hash_start(size);
    uint64_t word;
    for (; size > 8; size -= 8, bytes += 8) {
      memcpy(&word, bytes, 8);
      u = absorb(u, word);
    }
    memcpy(&word, bytes, 8);  // the buffer is padded; bytes past the unit are masked off
    hashes[i] = absorb(u, word & (~0ull >> (64 - 8 * size)));
  }
}

#endif

// ---- shingle hashes ----

/// out[i] = hash of the shingle units[i .. i + n), i < count. A fixed n lets the compiler use vectors.
template <uint32_t n>
inline void hash_shingles_fixed(const uint64_t* units, uint64_t count, uint32_t* out) {
  for (uint64_t i = 0; i < count; ++i) out[i] = shingle_hash(units + i, n);
}

inline void hash_shingles(const uint64_t* units, uint64_t count, uint32_t n, uint32_t* out) {
  switch (n) {
    case 1: return hash_shingles_fixed<1>(units, count, out);
    case 2: return hash_shingles_fixed<2>(units, count, out);
    case 3: return hash_shingles_fixed<3>(units, count, out);
    case 4: return hash_shingles_fixed<4>(units, count, out);
    case 5: return hash_shingles_fixed<5>(units, count, out);
    case 6: return hash_shingles_fixed<6>(units, count, out);
    case 7: return hash_shingles_fixed<7>(units, count, out);
    case 8: return hash_shingles_fixed<8>(units, count, out);
  }
  if (count == 0) return;
  uint64_t p = 0, leading = 1;  // K^(n-1), the weight of the unit that leaves
  for (uint32_t i = 0; i + 1 < n; ++i) {
    p = p * MULTIPLIER + units[i];
    leading *= MULTIPLIER;
  }
  for (uint64_t i = 0; i < count; ++i) {
    p = p * MULTIPLIER + units[i + n - 1];
    out[i] = static_cast<uint32_t>(mix(p + n * GOLDEN) >> 32);
    p -= leading * units[i];
  }
}

inline void add_content(const uint64_t* units, uint64_t count, uint64_t first_index, uint64_t* content) {
  uint64_t first = 0, second = 0;
  for (uint64_t i = 0; i < count; ++i) {
    first += content_first(units[i], first_index + i);
    second += content_second(units[i], first_index + i);
  }
  content[0] += first;
  content[1] += second;
}

// ---- lanes ----

#if defined(__AVX512F__)
constexpr uint32_t VECTOR_BYTES = 64;
#elif defined(__AVX2__)
constexpr uint32_t VECTOR_BYTES = 32;
#else
constexpr uint32_t VECTOR_BYTES = 16;
#endif
typedef uint32_t LaneVector __attribute__((vector_size(VECTOR_BYTES)));
constexpr uint32_t VECTOR_LANES = VECTOR_BYTES / 4;
// Vectors of minima that stay in registers beside their a and b: 3 x 4 of 16 (AVX2) or 32 (AVX-512) registers.
constexpr uint32_t BLOCK_VECTORS = 4;

/// minima[j] = min(minima[j], lane(h, a[j], b[j])) over all shingle hashes h.
inline void lower_minima(const uint32_t* shingles, uint64_t count, const uint32_t* a, const uint32_t* b,
                         uint32_t padded, uint32_t* minima) {
  for (uint32_t j = 0; j < padded; j += BLOCK_VECTORS * VECTOR_LANES) {
    LaneVector va[BLOCK_VECTORS], vb[BLOCK_VECTORS], best[BLOCK_VECTORS];
    memcpy(va, a + j, sizeof va);
    memcpy(vb, b + j, sizeof vb);
    memcpy(best, minima + j, sizeof best);
    for (uint64_t i = 0; i < count; ++i) {
      LaneVector h = LaneVector{} + shingles[i];
      for (uint32_t v = 0; v < BLOCK_VECTORS; ++v) {
        LaneVector value = va[v] * h + vb[v];
        best[v] = value < best[v] ? value : best[v];
      }
    }
    memcpy(minima + j, best, sizeof best);
  }
}

// ---- a document ----

bool sign(const SignPlan& plan, const SignScratch& scratch, const ShingleSink* sink, const uint8_t* text, int64_t size,
          const bool* stop, SignedDocument* out) {
  const uint8_t* at = text;
  const uint8_t* end = text + size;
  UnitBuffer units = {scratch.folded, scratch.start, scratch.end, 0, 0, 0, false, false};
  uint64_t total = 0;    // units so far
  uint32_t carried = 0;  // unit hashes kept from before, at most n - 1, at the front of unit_hash
  out->content[0] = out->content[1] = 0;
  for (uint32_t j = 0; j < plan.padded_lanes; ++j) scratch.minima[j] = EMPTY_LANE;

  auto take_shingles = [&](uint64_t count, uint32_t n) {
    uint32_t* hashes = sink ? sink->reserve(sink->owner, count) : scratch.shingle_hash;
    hash_shingles(scratch.unit_hash, count, n, hashes);
    lower_minima(hashes, count, plan.a, plan.b, plan.padded_lanes, scratch.minima);
    if (sink) sink->commit(sink->owner, count);
  };

  while (at < end) {
    if (__atomic_load_n(stop, __ATOMIC_RELAXED)) return false;
    const uint8_t* tile_end = end - at > TILE_BYTES ? at + TILE_BYTES : end;
    uint64_t* fresh = scratch.unit_hash + carried;
    uint32_t fresh_count;
    if (plan.unit == UnitKind::token) {
      fresh_count = static_cast<uint32_t>((tile_end - at) / 8);
      for (uint32_t i = 0; i < fresh_count; ++i) fresh[i] = hash_word(load_word(at + 8 * i, 8));
      at = tile_end;
    } else {
      at = plan.unit == UnitKind::word ? find_words(plan, at, tile_end, end, units)
                                       : find_chars(plan, at, tile_end, end, units);
      if (at == end) close_unit(units);
      hash_units(units, fresh);
      fresh_count = units.count;
      if (units.run) {  // an open run moves to the front
        uint32_t open = units.used - units.start[units.count];
        memmove(units.bytes, units.bytes + units.start[units.count], open);
        units.used = open;
      } else {
        units.used = 0;
      }
      units.start[0] = 0;
      units.count = 0;
    }
    add_content(fresh, fresh_count, total, out->content);
    total += fresh_count;
    uint32_t held = carried + fresh_count;
    if (held >= plan.shingle_units) {
      take_shingles(held - plan.shingle_units + 1, plan.shingle_units);
      carried = plan.shingle_units - 1;
      memmove(scratch.unit_hash, scratch.unit_hash + (held - carried), carried * sizeof(uint64_t));
    } else {
      carried = held;
    }
  }
  if (total > 0 && total < plan.shingle_units) take_shingles(1, static_cast<uint32_t>(total));
  out->unit_count = total;
  return true;
}

}  // namespace
}  // namespace gpudedup
