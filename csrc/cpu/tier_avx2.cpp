#include "cpu/intersect.inl.h"
#include "cpu/sign.inl.h"

namespace gpudedup {
extern const Tier tier_avx2;
const Tier tier_avx2 = {"avx2", sign, intersect, equal_lanes};
}  // namespace gpudedup
