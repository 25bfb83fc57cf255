// Documents of equal content. docs/spec.md, section 6.
#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu/parallel.h"

namespace gpudedup {

constexpr uint32_t NONE = 0xFFFFFFFFu;

/// leader[i] = the first in `order` of the documents whose content (and value of `within` and `across`, where not null)
/// equals that of order[i]: their position in `order`. content uint64[n, 2]; within, across int32[n], by document.
void group_content(Context& context, const uint32_t* order, size_t count, const uint64_t* content,
                   const int32_t* within, const int32_t* across, uint32_t* leader);

}  // namespace gpudedup
