#include "cpu/intersect.inl.h"
#include "cpu/sign.inl.h"

namespace gpudedup {
extern const Tier tier_avx512;
const Tier tier_avx512 = {"avx512", sign, intersect, equal_lanes};
}  // namespace gpudedup
