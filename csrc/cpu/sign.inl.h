// Text -> units -> shingles -> lanes for one document, tile by tile. Included once by each tier file.
#include <string.h>

#include "core/band.h"
#include "core/minhash.h"
#include "core/shingle.h"
#include "core/unit.h"
#include "cpu/tier.h"

namespace gpudedup {
namespace {

// ---- units: folded bytes and bounds ----

template <bool words>
inline void take(UnitBuffer& units, uint32_t kind, uint32_t code_point) {
  words ? take_word(units, kind, code_point) : take_char(units, kind, code_point);
}

/// Reads code points from `at` while they start before `stop`; the text ends at `end`. Returns where it stopped.
template <bool words>
const uint8_t* find_units(const FoldTable& table, const uint8_t* at, const uint8_t* stop, const uint8_t* end,
                          UnitBuffer& units) {
  while (at < stop) {
    uint32_t code_point;
    at += decode_utf8(at, end - at, &code_point);
    fold_code_point(table, code_point, [&](uint32_t kind, uint32_t folded) { take<words>(units, kind, folded); });
  }
  return at;
}

// ---- unit hashes ----

inline void hash_units(const UnitBuffer& units, uint64_t* hashes) {
  for (uint32_t i = 0; i < units.count; ++i) {
    const uint8_t* bytes = units.bytes + units.start[i];
    uint32_t size = units.size[i];
    uint64_t u = hash_start(size);
    for (; size > 8; size -= 8, bytes += 8) {
      uint64_t word;
      memcpy(&word, bytes, 8);
      u = absorb(u, word);
    }
    uint64_t word;
    memcpy(&word, bytes, 8);  // the buffer is padded; bytes past the unit are masked off
    hashes[i] = absorb(u, word & (~0ull >> (64 - 8 * size)));
  }
}

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
  UnitBuffer units = {scratch.folded, scratch.start, scratch.size, 0, 0, 0, false, false};
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
      at = plan.unit == UnitKind::word ? find_units<true>(plan.fold, at, tile_end, end, units)
                                       : find_units<false>(plan.fold, at, tile_end, end, units);
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
  memcpy(out->lanes, scratch.minima, plan.lane_count * sizeof(uint32_t));
  out->unit_count = total;
  return true;
}

}  // namespace
}  // namespace gpudedup
