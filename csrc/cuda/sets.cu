// From the shingle hashes of chosen documents to sets: ascending, distinct. The sort between the kernels is the
// device's. Work is cut by hashes, never by documents. The same on the CPU: csrc/cpu/sets.cpp.
#include "cuda/device.h"

namespace {

/// The last of the ascending offsets[0 .. count) that is not above `place`; those of empty rows are passed over.
__device__ __forceinline__ uint32_t row_of(const uint64_t* offsets, uint32_t count, uint64_t place) {
  uint32_t from = 0, to = count;
  while (from < to) {
    uint32_t middle = from + (to - from) / 2;
    if (offsets[middle] <= place)
      from = middle + 1;
    else
      to = middle;
  }
  return from - 1;
}

__device__ __forceinline__ uint64_t thread_number() {
  return static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

}  // namespace

/// keys[i] = chosen row << 32 | hash. Chosen row r has the hashes from first[r] on in `hashes`, and the places from
/// offsets[r] on in `keys`; offsets[count] are all.
extern "C" __global__ void key_hashes(const uint32_t* hashes, const uint64_t* first, const uint64_t* offsets,
                                      uint32_t count, uint64_t* keys) {
  const uint64_t place = thread_number();
  if (place >= offsets[count]) return;
  const uint32_t row = row_of(offsets, count, place);
  keys[place] = static_cast<uint64_t>(row) << 32 | hashes[first[row] + (place - offsets[row])];
}

/// distinct[i] = 1 where a key differs from the one before.
extern "C" __global__ void mark_distinct(const uint64_t* keys, uint64_t size, uint32_t* distinct) {
  const uint64_t place = thread_number();
  if (place < size) distinct[place] = place == 0 || keys[place - 1] != keys[place];
}

/// Packs the distinct hashes of row r from values[offsets[r]] on. before: prefix sums of `distinct`.
extern "C" __global__ void place_sets(const uint64_t* keys, uint64_t size, const uint32_t* distinct,
                                      const uint64_t* before, const uint64_t* offsets, uint32_t* values) {
  const uint64_t place = thread_number();
  if (place >= size || !distinct[place]) return;
  const uint64_t first = offsets[keys[place] >> 32];
  values[first + (before[place] - before[first])] = static_cast<uint32_t>(keys[place]);
}

/// Enters the sets in the table by document.
extern "C" __global__ void enter_sets(const uint32_t* documents, const uint64_t* offsets, uint32_t count,
                                      const uint64_t* before, const uint32_t* values, uint64_t* set_address,
                                      uint32_t* set_size) {
  const uint64_t row = thread_number();
  if (row >= count) return;
  set_address[documents[row]] = reinterpret_cast<uint64_t>(values + offsets[row]);
  set_size[documents[row]] = static_cast<uint32_t>(before[offsets[row + 1]] - before[offsets[row]]);
}
