#include "cpu/intersect.inl.h"
#include "cpu/sign.inl.h"

namespace gpudedup {
extern const Tier tier_baseline;
const Tier tier_baseline = {"baseline", sign, intersect, equal_lanes};
}  // namespace gpudedup
