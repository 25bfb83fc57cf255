#include "cpu/sort.h"

#include <algorithm>
#include <utility>

namespace gpudedup {

size_t sort_unique(uint32_t* values, size_t count, uint32_t* spare) {
  if (count < 256) {  // counting 256 buckets four times costs more than comparing
    std::sort(values, values + count);
  } else {
    size_t counts[4][256] = {};
    for (size_t i = 0; i < count; ++i)
      for (int d = 0; d < 4; ++d) ++counts[d][values[i] >> (8 * d) & 255];
    uint32_t *from = values, *to = spare;
    for (int d = 0; d < 4; ++d) {
      size_t sum = 0;
      for (size_t& c : counts[d]) sum += std::exchange(c, sum);
      for (size_t i = 0; i < count; ++i) to[counts[d][from[i] >> (8 * d) & 255]++] = from[i];
      std::swap(from, to);
    }  // four passes: the result is back in `values`
  }
  return static_cast<size_t>(std::unique(values, values + count) - values);
}

}  // namespace gpudedup
