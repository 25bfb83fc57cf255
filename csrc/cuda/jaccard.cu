// Intersection sizes of pairs of shingle sets. docs/spec.md, section 9.
#include "cuda/intersect.h"

using namespace gpudedup;

/// common[i] = size of the intersection of the sets of left[i] and right[i]. A warp takes a pair.
extern "C" __global__ void intersect_pairs(const uint32_t* left, const uint32_t* right, uint32_t count,
                                           const uint64_t* set_address, const uint32_t* set_size, uint32_t* common) {
  const uint32_t pair = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (pair >= count) return;  // for whole warps
  const Sets sets{set_address, set_size};
  uint32_t small = left[pair], large = right[pair];
  if (sets.size[small] > sets.size[large]) {
    uint32_t other = small;
    small = large;
    large = other;
  }
  uint32_t size = warp_intersection(sets[small], sets.size[small], sets[large], sets.size[large], 0);
  if ((threadIdx.x & 31) == 0) common[pair] = size;
}
