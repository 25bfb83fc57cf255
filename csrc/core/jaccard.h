// Similarity in integers. docs/spec.md, section 9.
#pragma once
#include "core/platform.h"

namespace gpudedup {

constexpr uint64_t PPM = 1000000;

/// Whether part / whole reaches the threshold, both below 2^33: no product exceeds 2^53.
GPUDEDUP_HD bool reaches(uint64_t part, uint64_t whole, uint64_t threshold_ppm) {
  return part * PPM >= threshold_ppm * whole;
}

/// Least intersection with which sets of sizes m and n are similar: i*10^6 >= T*(m + n - i) solved for i.
GPUDEDUP_HD uint64_t needed_intersection(uint64_t m, uint64_t n, uint64_t threshold_ppm) {
  uint64_t divisor = PPM + threshold_ppm;
  return (threshold_ppm * (m + n) + divisor - 1) / divisor;
}

}  // namespace gpudedup
