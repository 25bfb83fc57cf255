// Sizes of intersections of ascending sets, and equal lanes. Included once by each tier file.
#include "cpu/tier.h"

namespace gpudedup {
namespace {

uint64_t intersect(const uint32_t* left, uint64_t left_size, const uint32_t* right, uint64_t right_size,
                   uint64_t needed) {
  uint64_t i = 0, j = 0, common = 0;
  while (i < left_size && j < right_size) {
    uint64_t left_rest = left_size - i, right_rest = right_size - j;
    uint64_t steps = left_rest < right_rest ? left_rest : right_rest;
    if (common + steps < needed) return 0;  // even if all that is left were common
    if (steps > 64) steps = 64;             // both cursors move at most one a step, so neither can run out
    for (uint64_t k = 0; k < steps; ++k) {
      uint32_t x = left[i], y = right[j];
      common += x == y;
      i += x <= y;
      j += y <= x;
    }
  }
  return common < needed ? 0 : common;
}

uint64_t equal_lanes(const uint32_t* left, const uint32_t* right, uint32_t count) {
  uint32_t equal = 0;
  for (uint32_t j = 0; j < count; ++j) equal += left[j] == right[j];
  return equal;
}

}  // namespace
}  // namespace gpudedup
