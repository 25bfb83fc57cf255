// Units -> shingle hashes, lanes, content and band keys. docs/spec.md, sections 4 and 5.
//
// The units of all documents are numbered through; document d has units first[d] .. first[d + 1]. A shingle has the
// number of its first unit, so a document's shingles are the first of its units, and the last n - 1 numbers stand
// empty. Work is cut by units: a tile may hold many documents, and a document many tiles.
#include "core/band.h"
#include "core/minhash.h"
#include "core/shingle.h"
#include "core/unit.h"
#include "cuda/block.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t HASH_THREADS = 256;
constexpr uint32_t HASH_UNITS = 2048;  // of a block
constexpr uint32_t THREAD_UNITS = HASH_UNITS / HASH_THREADS;
constexpr uint32_t HASH_WARP_UNITS = WARP_THREADS * THREAD_UNITS;
constexpr uint32_t MAX_SHINGLE = 256;  // units

constexpr uint32_t SIGN_THREADS = 128;
constexpr uint32_t SIGN_UNITS = 512;   // of a warp
constexpr uint32_t LONG_STRETCH = 32;  // of shingles
constexpr uint32_t FEW_LANES = 8;      // as many, or fewer, beside multiples of 32 share a warp
constexpr uint32_t THREAD_LANES = 4;   // minima that a thread holds at most, beside their a and b

/// Shingles of a document of `units` units.
__device__ __forceinline__ uint32_t shingle_count(uint32_t units, uint32_t n) {
  return units >= n ? units - n + 1 : units != 0;
}

/// The document of a unit, which is one of low .. high: the last that begins at or before it, so never an empty one.
__device__ __forceinline__ uint32_t document_of(const uint32_t* first, uint32_t low, uint32_t high, uint32_t unit) {
  while (low < high) {
    const uint32_t middle = high - (high - low) / 2;
    if (first[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// The same by a warp, whose lanes look at 32 documents at once: of a million in four turns and not in twenty.
__device__ __forceinline__ uint32_t warp_document_of(const uint32_t* first, uint32_t low, uint32_t high,
                                                     uint32_t unit) {
  while (low < high) {
    const uint32_t step = (high - low + WARP_THREADS - 1) / WARP_THREADS;
    const uint32_t probe = low + (warp_lane() + 1) * step;
    low += step * bit_count(__ballot_sync(FULL_WARP, probe <= high && first[probe] <= unit));
    if (high - low >= step) high = low + step - 1;
  }
  return low;
}

static_assert(HASH_THREADS >= 4 * MAX_RUN, "a table has an entry for each size of a unit, in threads of a block");

/// Of a size in bytes: hash_start plus GOLDEN, and what counts of the first eight bytes.
struct alignas(16) SizeEntry {
  uint64_t start, mask;
};

/// The eight folded bytes from `begin` on, by loads of aligned words: up to 11 bytes from there are read.
__device__ __forceinline__ uint64_t folded_word(const uint8_t* folded, uint32_t begin) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(folded) + begin / 4;
  const uint32_t shift = begin % 4 * 8, middle = words[1];
  const uint64_t high = __funnelshift_r(middle, words[2], shift);
  return high << 32 | __funnelshift_r(words[0], middle, shift);
}

/// hash_bytes of text units, cut in two: a warp goes on until the longest of its words is done, so the first eight
/// bytes of all come before the rest of the few that have more.
struct FoldedUnits {
  const uint8_t* folded;
  const uint32_t* unit_start;
  uint32_t last, folded_end;
  const SizeEntry* sizes;  // of 1 byte and more

  __device__ __forceinline__ uint32_t size(uint32_t unit) const {
    const uint32_t* own = unit_start + unit;
    return (unit == last ? folded_end : own[1]) - own[0];
  }
  /// Of the first eight bytes; `more`: there are others.
  __device__ __forceinline__ uint64_t begin(uint32_t unit, bool* more) const {
    const uint32_t bytes = size(unit);
    const SizeEntry entry = sizes[bytes - 1];
    *more = bytes > 8;
    return mix(entry.start ^ (folded_word(folded, unit_start[unit]) & entry.mask));
  }
  __device__ __forceinline__ uint64_t finish(uint32_t unit, uint64_t u) const {
    const uint32_t bytes = size(unit), from = unit_start[unit];
#pragma unroll 1
    for (uint32_t at = 8; at < bytes; at += 8)
      u = absorb(u, folded_word(folded, from + at) & sizes[bytes - at - 1].mask);
    return u;
  }
};

struct TokenUnits {
  const int64_t* tokens;
  __device__ __forceinline__ uint64_t begin(uint32_t unit, bool*) const {
    return hash_word(static_cast<uint64_t>(tokens[unit]));
  }
  __device__ __forceinline__ uint64_t finish(uint32_t, uint64_t u) const { return u; }
};

__device__ __forceinline__ void add_to(uint64_t* sum, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

/// Where in shared memory the hash of a tile's unit lies: what the threads of a warp read together, THREAD_UNITS apart,
/// lies in different banks.
__device__ __forceinline__ constexpr uint32_t hash_slot(uint32_t unit) { return unit + unit / THREAD_UNITS; }

/// Shingle hashes of a tile, and what its units add to content uint64[documents, 2].
template <class Units>
__device__ __forceinline__ void hash_tile(const uint32_t* first, uint32_t documents, uint32_t n, uint32_t* shingles,
                                          uint64_t* content, const Units& of) {
  GPUDEDUP_SHARED(uint64_t, hashes, hash_slot(HASH_UNITS + MAX_SHINGLE));
  GPUDEDUP_SHARED(uint64_t, terms, 2);  // of a window: of the unit that leaves it, and of its count
  const uint32_t units = first[documents], begin = blockIdx.x * HASH_UNITS;
  if (begin >= units) return;
  const uint32_t end = units - begin < HASH_UNITS ? units : begin + HASH_UNITS;
  const uint32_t reach = units - end < n - 1 ? units : end + n - 1;
  uint32_t longer = 0;
  for (uint32_t i = threadIdx.x, bit = 1; begin + i < reach; i += HASH_THREADS, bit *= 2) {
    bool more = false;
    hashes[hash_slot(i)] = of.begin(begin + i, &more);
    if (more) longer |= bit;
  }
  for (; longer != 0; longer &= longer - 1) {
    const uint32_t i = threadIdx.x + lowest_bit(longer) * HASH_THREADS;
    hashes[hash_slot(i)] = of.finish(begin + i, hashes[hash_slot(i)]);
  }
#pragma unroll 1
  for (uint32_t i = reach + threadIdx.x; i < end + n - 1; i += HASH_THREADS) hashes[hash_slot(i - begin)] = 0;
  if (threadIdx.x == 0) {
    uint64_t power = 1;
#pragma unroll 1
    for (uint32_t i = 0; i < n; ++i) power *= MULTIPLIER;
    terms[0] = 0 - power;
    terms[1] = n * GOLDEN;
  }
  __syncthreads();

  // A thread takes consecutive units, and its window of n rolls along. It rolls across borders of documents too: the
  // numbers that get such a shingle stand empty.
  const uint32_t warp_begin = begin + threadIdx.x / WARP_THREADS * HASH_WARP_UNITS;
  if (warp_begin >= end) return;
  const uint32_t warp_end = end - warp_begin < HASH_WARP_UNITS ? end : warp_begin + HASH_WARP_UNITS;
  const uint32_t unit = warp_begin + warp_lane() * THREAD_UNITS;
  uint32_t document = warp_document_of(first, 0, documents - 1, warp_begin);
  uint64_t sum_first = 0, sum_second = 0;
  if (first[document + 1] < warp_end) {
    const uint32_t high = warp_document_of(first, document, documents - 1, warp_end - 1);
    document = document_of(first, document, high, unit < warp_end ? unit : warp_end - 1);
  }
  if (unit < warp_end) {
    const uint64_t* own = hashes + hash_slot(unit - begin);
    const auto window = [&](uint64_t p, uint32_t from, uint32_t to) {
#pragma unroll 1
      for (uint32_t i = from; i < to; ++i) p = p * MULTIPLIER + own[hash_slot(i)];
      return p;
    };
    uint64_t p = 0;
    uint32_t taken = 0;
#pragma unroll 1
    for (; taken + THREAD_UNITS <= n; taken += THREAD_UNITS) {
#pragma unroll
      for (uint32_t i = 0; i < THREAD_UNITS; ++i) p = p * MULTIPLIER + own[hash_slot(taken) + i];
    }
    p = window(p, taken, n);
    const uint64_t leaving = terms[0], count_term = terms[1];
    uint32_t to = first[document + 1], border = first[document] == unit ? unit : to;
    uint64_t place = (unit - first[document]) * GOLDEN;
#pragma unroll 1
    for (uint32_t group = 0; group < THREAD_UNITS && unit + group < end; group += 4) {
      const uint64_t* leaves = own + group;
      const uint64_t* enters = own + hash_slot(group + n);
      const uint32_t pad = THREAD_UNITS - (group + n) % THREAD_UNITS;
      uint32_t found[4] = {0, 0, 0, 0};
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) {
        uint64_t z = p + count_term;
        if (unit + group + k == border) {
          if (border == to) {
            if (to == units) break;
            add_to(content + 2 * static_cast<uint64_t>(document), sum_first);
            add_to(content + 2 * static_cast<uint64_t>(document) + 1, sum_second);
            sum_first = sum_second = place = 0;
            document = first[document + 2] > to ? document + 1 : document_of(first, document + 2, documents - 1, to);
            to = first[document + 1];
          }
          const uint32_t size = to - border;
          if (size < n) z = window(0, group + k, group + k + size) + size * GOLDEN;
          border = to;
        }
        found[k] = static_cast<uint32_t>(mix(z) >> 32);
        const uint64_t u = leaves[k];
        place += GOLDEN;
        sum_first += mix(u + place);
        sum_second += mix(u * MULTIPLIER + place);
        p = p * MULTIPLIER + (k < pad ? enters : enters + 1)[k] + u * leaving;
      }
      if (unit + group + 4 <= end) {
        *reinterpret_cast<uint4*>(shingles + unit + group) = make_uint4(found[0], found[1], found[2], found[3]);
      } else {
        for (uint32_t k = 0; k < 4; ++k)
          if (unit + group + k < end) shingles[unit + group + k] = found[k];
      }
    }
  }
  if (sum_by_key(document, &sum_first, &sum_second)) {
    add_to(content + 2 * static_cast<uint64_t>(document), sum_first);
    add_to(content + 2 * static_cast<uint64_t>(document) + 1, sum_second);
  }
}

/// shingles uint32[units], content uint64[documents, 2] of zeros before, first uint32[documents + 1]. The folded bytes
/// have 12 bytes of room after them.
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    hash_units(const uint8_t* folded, const uint32_t* unit_start, const uint32_t* needed, const uint32_t* first,
               uint32_t documents, uint32_t n, uint32_t* shingles, uint64_t* content) {
  GPUDEDUP_SHARED(SizeEntry, sizes, HASH_THREADS);
  const uint32_t size = threadIdx.x + 1;
  sizes[threadIdx.x] = {hash_start(size) + GOLDEN, size < 8 ? ~0ull >> (64 - 8 * size) : ~0ull};
  __syncthreads();
  hash_tile(first, documents, n, shingles, content,
            FoldedUnits{folded, unit_start, first[documents] - 1, needed[1], sizes});
}

/// The same where units are tokens.
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    hash_tokens(const int64_t* tokens, const uint32_t* first, uint32_t documents, uint32_t n, uint32_t* shingles,
                uint64_t* content) {
  hash_tile(first, documents, n, shingles, content, TokenUnits{tokens});
}

/// The arrays of `sign_lanes`, and a warp's tile of shingles: begin .. end - 1, of `document` and those after it.
struct LaneTile {
  const uint32_t *shingles, *first;
  uint32_t documents, n;
  const uint32_t *a, *b;
  uint32_t lane_count;
  uint32_t* lanes;
  uint32_t begin, end, document;
};

/// Calls sign(document, here, stop, whole) for all documents of the tile: their shingles in it are here .. stop - 1,
/// and those are the `whole` of them.
template <class Sign>
__device__ __forceinline__ void for_documents(const LaneTile& tile, Sign&& sign) {
  const uint32_t* const first = tile.first;
  const uint32_t begin = tile.begin, end = tile.end;
  uint32_t document = tile.document, from = first[document], to = first[document + 1];
  for (;;) {
    const uint32_t shingles_end = from + shingle_count(to - from, tile.n);
    sign(document, from > begin ? from : begin, shingles_end < end ? shingles_end : end,
         from >= begin && shingles_end <= end);
    if (to >= end) return;
    // The next that is not empty: mostly the next, else found by halving, for there may be a million empty ones.
    from = to;
    to = first[document + 2];
    ++document;
    if (to == from) {
      document = document_of(first, document + 1, tile.documents - 1, from);
      to = first[document + 1];
    }
  }
}

/// Of the lanes from `group` on, WIDTH for a thread: their minima over the tile.
template <uint32_t WIDTH>
__device__ __forceinline__ void sign_group(const LaneTile& tile, uint32_t group) {
  const uint32_t *shingles = tile.shingles, lane_count = tile.lane_count;
  uint32_t group_a[WIDTH], group_b[WIDTH];
#pragma unroll
  for (uint32_t k = 0; k < WIDTH; ++k) {
    group_a[k] = tile.a[group + k * WARP_THREADS + warp_lane()];
    group_b[k] = tile.b[group + k * WARP_THREADS + warp_lane()];
  }
  uint8_t* const own_lanes = reinterpret_cast<uint8_t*>(tile.lanes + group + warp_lane());
  for_documents(tile, [&](uint32_t document, uint32_t here, uint32_t stop, bool whole) {
    uint32_t best[WIDTH];
#pragma unroll
    for (uint32_t k = 0; k < WIDTH; ++k) best[k] = EMPTY_LANE;
    const auto take = [&](uint32_t h, uint32_t next) {
#pragma unroll
      for (uint32_t k = 0; k < WIDTH; ++k) {
        const uint32_t value = lane(h, group_a[k], group_b[k]), other = lane(next, group_a[k], group_b[k]);
        const uint32_t least = value < other ? value : other;  // GPUs since Hopper take a minimum of three
        best[k] = least < best[k] ? least : best[k];
      }
    };
    uint32_t i = here;
    if (here + LONG_STRETCH <= stop) {  // eight at a time, as they lie in memory
      for (; i % 4 != 0; ++i) take(shingles[i], shingles[i]);
#pragma unroll 1
      for (; i + 8 <= stop; i += 8) {
        const uint4* eight = reinterpret_cast<const uint4*>(shingles + i);
        const uint4 lower = eight[0], upper = eight[1];
        take(lower.x, lower.y);
        take(lower.z, lower.w);
        take(upper.x, upper.y);
        take(upper.z, upper.w);
      }
    }
#pragma unroll 1
    for (; i + 2 <= stop; i += 2) {
      const uint32_t* two = shingles + i;
      take(two[0], two[1]);
    }
    if (i < stop) take(shingles[i], shingles[i]);
    uint32_t* own = reinterpret_cast<uint32_t*>(own_lanes + static_cast<uint64_t>(document) * (4 * lane_count));
    const uint32_t lanes_left = here < stop ? lane_count - group : 0;
    if (whole) {
#pragma unroll
      for (uint32_t k = 0; k < WIDTH; ++k)
        if (k * WARP_THREADS + warp_lane() < lanes_left) own[k * WARP_THREADS] = best[k];
    } else {
#pragma unroll
      for (uint32_t k = 0; k < WIDTH; ++k) {
        // An older value is never below: it spares the long documents most atomics.
        if (k * WARP_THREADS + warp_lane() < lanes_left && best[k] < own[k * WARP_THREADS])
          atomicMin(own + k * WARP_THREADS, best[k]);
      }
    }
  });
}

/// The same of the last `left` lanes, few of them: each is several threads', which share its shingles out.
__device__ __forceinline__ void sign_few(const LaneTile& tile, uint32_t group, uint32_t left) {
  const uint32_t width = left == 1 ? 1 : 2u << highest_bit(left - 1);  // of lanes, a power of two
  const uint32_t number = warp_lane() & (width - 1), a = tile.a[group + number], b = tile.b[group + number];
  const uint32_t share = warp_lane() >> highest_bit(width), step = WARP_THREADS >> highest_bit(width);
  for_documents(tile, [&](uint32_t document, uint32_t here, uint32_t stop, bool) {
    uint32_t best = EMPTY_LANE;
#pragma unroll 1
    for (uint32_t i = here + share; i < stop; i += step) {
      const uint32_t value = lane(tile.shingles[i], a, b);
      best = value < best ? value : best;
    }
#pragma unroll 1
    for (uint32_t by = width; by < WARP_THREADS; by *= 2) {
      const uint32_t other = __shfl_xor_sync(FULL_WARP, best, by);
      best = other < best ? other : best;
    }
    if (warp_lane() < left && here < stop)
      atomicMin(tile.lanes + static_cast<uint64_t>(document) * tile.lane_count + group + number, best);
  });
}

/// Lanes of all documents from a warp's tile of shingles. lanes uint32[documents, lane_count] holds EMPTY_LANE before;
/// a and b are padded to a multiple of WARP_THREADS.
extern "C" __global__ void __launch_bounds__(SIGN_THREADS)
    sign_lanes(const uint32_t* shingles, const uint32_t* first, uint32_t documents, uint32_t n, const uint32_t* a,
               const uint32_t* b, uint32_t lane_count, uint32_t* lanes) {
  const uint32_t warp = (blockIdx.x * SIGN_THREADS + threadIdx.x) / WARP_THREADS;
  const uint32_t units = first[documents], begin = warp * SIGN_UNITS;
  if (begin >= units) return;
  const uint32_t end = units - begin < SIGN_UNITS ? units : begin + SIGN_UNITS;
  const uint32_t low = warp_document_of(first, 0, documents - 1, begin);

  const LaneTile tile{shingles, first, documents, n, a, b, lane_count, lanes, begin, end, low};
  // As few groups as can be, and as even: one lane a thread takes as many loads and steps as four do.
  uint32_t left = (lane_count + WARP_THREADS - 1 - FEW_LANES) / WARP_THREADS;  // lanes of a thread
  uint32_t group = 0;
  for (uint32_t groups = (left + THREAD_LANES - 1) / THREAD_LANES; groups > 0; --groups) {
    const uint32_t width = left > 3 * groups ? 4 : left > 2 * groups ? 3 : left > groups ? 2 : 1;
    if (width == 4)
      sign_group<4>(tile, group);
    else if (width == 3)
      sign_group<3>(tile, group);
    else if (width == 2)
      sign_group<2>(tile, group);
    else
      sign_group<1>(tile, group);
    group += width * WARP_THREADS;
    left -= width;
  }
  if (group < lane_count) sign_few(tile, group, lane_count - group);
}

/// keys uint64[bands, documents] of lanes uint32[documents, lane_count]. A thread takes a band of a document.
extern "C" __global__ void __launch_bounds__(SIGN_THREADS)
    band_keys(const uint32_t* lanes, uint32_t documents, uint32_t lane_count, uint32_t bands, uint32_t rows,
              const uint64_t* scope_keys, uint64_t* keys) {
  const uint32_t item = blockIdx.x * SIGN_THREADS + threadIdx.x, document = item / bands, band = item % bands;
  if (document >= documents) return;
  const uint32_t* own = lanes + static_cast<uint64_t>(document) * lane_count + band * rows;
  keys[static_cast<uint64_t>(band) * documents + document] = band_key(band, scope_keys[document], own, rows);
}

/// counts[i] = shingles of document i.
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    count_shingles(const uint32_t* first, uint32_t documents, uint32_t n, uint32_t* counts) {
  const uint32_t i = blockIdx.x * HASH_THREADS + threadIdx.x;
  if (i < documents) counts[i] = shingle_count(first[i + 1] - first[i], n);
}

/// Moves shingle hashes together: those of document i to packed[offsets[i] .. offsets[i + 1]).
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    pack_shingles(const uint32_t* shingles, const uint32_t* first, const uint64_t* offsets, uint32_t documents,
                  uint32_t n, uint32_t* packed) {
  const uint32_t units = first[documents], begin = blockIdx.x * HASH_UNITS;
  if (begin >= units) return;
  const uint32_t end = units - begin < HASH_UNITS ? units : begin + HASH_UNITS;
  const uint32_t low = warp_document_of(first, 0, documents - 1, begin);
  const uint32_t high = warp_document_of(first, low, documents - 1, end - 1);
  for (uint32_t unit = begin + threadIdx.x; unit < end; unit += HASH_THREADS) {
    const uint32_t document = document_of(first, low, high, unit);
    const uint32_t from = first[document], index = unit - from;
    if (index < shingle_count(first[document + 1] - from, n)) packed[offsets[document] + index] = shingles[unit];
  }
}

}  // namespace gpudedup
