// Units -> shingle hashes, lanes, content and band keys. docs/spec.md, sections 4 and 5.
//
// The units of all documents are numbered through; document d has units first[d] .. first[d + 1]. A shingle has the
// number of its first unit, so a document's shingles are the first of its units, and the last n - 1 numbers stand
// empty. Work is cut by units: a tile may hold many documents, and a document many tiles.
#include "core/band.h"
#include "core/minhash.h"
#include "core/shingle.h"
#include "cuda/block.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t HASH_THREADS = 256;
constexpr uint32_t HASH_UNITS = 1024;  // of a block
constexpr uint32_t HASH_WARP_UNITS = HASH_UNITS / (HASH_THREADS / WARP_THREADS);
constexpr uint32_t MAX_SHINGLE = 256;  // units

constexpr uint32_t SIGN_THREADS = 128;
constexpr uint32_t SIGN_UNITS = 512;   // of a warp
constexpr uint32_t LONG_STRETCH = 32;  // of shingles
constexpr uint32_t THREAD_LANES = 4;   // minima that a thread holds beside their a and b
constexpr uint32_t WARP_LANES = THREAD_LANES * WARP_THREADS;

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

/// hash_bytes of folded[begin .. end), by loads of aligned words: up to 11 bytes past the end are read and left out.
__device__ __forceinline__ uint64_t hash_folded(const uint8_t* folded, uint32_t begin, uint32_t end) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(folded) + begin / 4;
  const uint32_t shift = begin % 4 * 8;
  uint32_t size = end - begin;
  uint64_t u = hash_start(size);
  for (uint32_t left = words[0]; size > 0; words += 2) {
    const uint32_t middle = words[1], right = words[2];
    uint64_t word =
        static_cast<uint64_t>(__funnelshift_r(middle, right, shift)) << 32 | __funnelshift_r(left, middle, shift);
    if (size < 8) word &= ~0ull >> (64 - 8 * size);
    u = absorb(u, word);
    size -= size < 8 ? size : 8;
    left = right;
  }
  return u;
}

__device__ __forceinline__ void add_to(uint64_t* sum, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

/// Shingle hashes of a tile, and what its units add to content uint64[documents, 2]; unit_hash(unit) hashes a unit.
template <class UnitHash>
__device__ __forceinline__ void hash_tile(const uint32_t* first, uint32_t documents, uint32_t n, uint32_t* shingles,
                                          uint64_t* content, UnitHash&& unit_hash) {
  GPUDEDUP_SHARED(uint64_t, hashes, HASH_UNITS + MAX_SHINGLE);
  const uint32_t units = first[documents], begin = blockIdx.x * HASH_UNITS;
  if (begin >= units) return;
  const uint32_t end = units - begin < HASH_UNITS ? units : begin + HASH_UNITS;
  const uint32_t reach = units - end < n - 1 ? units : end + n - 1;
  for (uint32_t i = begin + threadIdx.x; i < reach; i += HASH_THREADS) hashes[i - begin] = unit_hash(i);
  __syncthreads();

  // A warp takes consecutive units, a row of one a lane at a time. While rows lie in one document, lanes add up what
  // theirs add, and the sums of all lanes are added to memory only before a row that does not: few additions meet at
  // the sums of a long document.
  const uint32_t warp_begin = begin + threadIdx.x / WARP_THREADS * HASH_WARP_UNITS;
  if (warp_begin >= end) return;
  const uint32_t warp_end = end - warp_begin < HASH_WARP_UNITS ? end : warp_begin + HASH_WARP_UNITS;
  uint32_t document = document_of(first, 0, documents - 1, warp_begin);
  const uint32_t high = document_of(first, document, documents - 1, warp_end - 1);
  uint64_t sum_first = 0, sum_second = 0;
  for (uint32_t row = warp_begin; row < warp_end; row += WARP_THREADS) {
    const uint32_t row_end = warp_end - row < WARP_THREADS ? warp_end : row + WARP_THREADS;
    const uint32_t next_end = warp_end - row_end < WARP_THREADS ? warp_end : row_end + WARP_THREADS;
    const uint32_t unit = row + warp_lane();
    const bool whole = first[document + 1] >= row_end;
    const uint32_t own = whole ? document : document_of(first, document, high, unit < row_end ? unit : row_end - 1);
    if (unit < row_end) {
      const uint32_t rest = first[own + 1] - unit;  // a short document has one shingle of all
      const uint64_t* from = hashes + (unit - begin);
      shingles[unit] = shingle_hash(from, rest < n ? rest : n);
      const uint32_t index = unit - first[own];
      sum_first += content_first(*from, index);
      sum_second += content_second(*from, index);
    }
    document = __shfl_sync(FULL_WARP, own, WARP_THREADS - 1);
    if (whole && row_end < warp_end && first[document + 1] >= next_end) continue;
    if (sum_by_key(own, &sum_first, &sum_second)) {
      add_to(content + 2 * static_cast<uint64_t>(own), sum_first);
      add_to(content + 2 * static_cast<uint64_t>(own) + 1, sum_second);
    }
    sum_first = sum_second = 0;
  }
}

/// shingles uint32[units], content uint64[documents, 2] of zeros before, first uint32[documents + 1]. The folded bytes
/// have 12 bytes of room after them.
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    hash_units(const uint8_t* folded, const uint32_t* unit_start, const uint32_t* needed, const uint32_t* first,
               uint32_t documents, uint32_t n, uint32_t* shingles, uint64_t* content) {
  const uint32_t last = first[documents] - 1, folded_end = needed[1];
  hash_tile(first, documents, n, shingles, content, [&](uint32_t unit) {
    return hash_folded(folded, unit_start[unit], unit == last ? folded_end : unit_start[unit + 1]);
  });
}

/// The same where units are tokens.
extern "C" __global__ void __launch_bounds__(HASH_THREADS)
    hash_tokens(const int64_t* tokens, const uint32_t* first, uint32_t documents, uint32_t n, uint32_t* shingles,
                uint64_t* content) {
  hash_tile(first, documents, n, shingles, content,
            [&](uint32_t unit) { return hash_word(static_cast<uint64_t>(tokens[unit])); });
}

/// Lanes of all documents from a warp's tile of shingles. lanes uint32[documents, lane_count] holds EMPTY_LANE before;
/// a and b are padded to a multiple of WARP_LANES.
extern "C" __global__ void __launch_bounds__(SIGN_THREADS)
    sign_lanes(const uint32_t* shingles, const uint32_t* first, uint32_t documents, uint32_t n, const uint32_t* a,
               const uint32_t* b, uint32_t lane_count, uint32_t* lanes) {
  const uint32_t warp = (blockIdx.x * SIGN_THREADS + threadIdx.x) / WARP_THREADS;
  const uint32_t units = first[documents], begin = warp * SIGN_UNITS;
  if (begin >= units) return;
  const uint32_t end = units - begin < SIGN_UNITS ? units : begin + SIGN_UNITS;
  const uint32_t low = document_of(first, 0, documents - 1, begin);

  for (uint32_t group = 0; group < lane_count; group += WARP_LANES) {
    uint32_t group_a[THREAD_LANES], group_b[THREAD_LANES];
#pragma unroll
    for (uint32_t k = 0; k < THREAD_LANES; ++k) {
      group_a[k] = a[group + k * WARP_THREADS + warp_lane()];
      group_b[k] = b[group + k * WARP_THREADS + warp_lane()];
    }
    uint32_t document = low;
    for (;;) {
      const uint32_t from = first[document], to = first[document + 1];
      const uint32_t shingles_end = from + shingle_count(to - from, n);
      const uint32_t here = from > begin ? from : begin, stop = shingles_end < end ? shingles_end : end;
      uint32_t best[THREAD_LANES] = {EMPTY_LANE, EMPTY_LANE, EMPTY_LANE, EMPTY_LANE};
      const auto take = [&](uint32_t h, uint32_t next) {
#pragma unroll
        for (uint32_t k = 0; k < THREAD_LANES; ++k) {
          const uint32_t value = lane(h, group_a[k], group_b[k]), other = lane(next, group_a[k], group_b[k]);
          const uint32_t least = value < other ? value : other;  // GPUs since Hopper take a minimum of three
          best[k] = least < best[k] ? least : best[k];
        }
      };
      uint32_t i = here;
      if (here + LONG_STRETCH <= stop) {  // four at a time, as they lie in memory
        for (; i % 4 != 0; ++i) take(shingles[i], shingles[i]);
#pragma unroll 2
        for (; i + 4 <= stop; i += 4) {
          const uint4 four = *reinterpret_cast<const uint4*>(shingles + i);
          take(four.x, four.y);
          take(four.z, four.w);
        }
      }
#pragma unroll 1
      for (; i + 2 <= stop; i += 2) take(shingles[i], shingles[i + 1]);
      if (i < stop) take(shingles[i], shingles[i]);
      uint32_t* own = lanes + static_cast<uint64_t>(document) * lane_count + group + warp_lane();
      const uint32_t lanes_left = here < stop ? lane_count - group : 0;
      if (from >= begin && shingles_end <= end) {
#pragma unroll
        for (uint32_t k = 0; k < WARP_LANES; k += WARP_THREADS)
          if (k + warp_lane() < lanes_left) own[k] = best[k / WARP_THREADS];
      } else {
#pragma unroll
        for (uint32_t k = 0; k < WARP_LANES; k += WARP_THREADS) {
          const uint32_t least = best[k / WARP_THREADS];
          // An older value is never below: it spares the long documents most atomics.
          if (k + warp_lane() < lanes_left && least < own[k]) atomicMin(own + k, least);
        }
      }
      if (to >= end) break;
      // The next that is not empty: mostly the next, else found by halving, for there may be a million empty ones.
      document = first[document + 2] > to ? document + 1 : document_of(first, document + 2, documents - 1, to);
    }
  }
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
  const uint32_t low = document_of(first, 0, documents - 1, begin);
  const uint32_t high = document_of(first, low, documents - 1, end - 1);
  for (uint32_t unit = begin + threadIdx.x; unit < end; unit += HASH_THREADS) {
    const uint32_t document = document_of(first, low, high, unit);
    const uint32_t from = first[document], index = unit - from;
    if (index < shingle_count(first[document + 1] - from, n)) packed[offsets[document] + index] = shingles[unit];
  }
}

}  // namespace gpudedup
