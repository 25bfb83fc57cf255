#include "cpu/group.h"

#include <algorithm>
#include <numeric>
#include <tuple>

#include "core/hash.h"
#include "cpu/equal_keys.h"

namespace gpudedup {

void group_content(Context& context, const uint32_t* order, size_t count, const uint64_t* content,
                   const int32_t* within, const int32_t* across, uint32_t* leader) {
  auto identity = [&](uint32_t position) {
    size_t document = order[position];
    return std::make_tuple(content[2 * document], content[2 * document + 1], within ? within[document] : 0,
                           across ? across[document] : 0);
  };
  auto keys = [&](size_t first, size_t size, uint64_t* out) {
    for (size_t i = first; i < first + size; ++i) {
      auto [content_0, content_1, scope, other] = identity(static_cast<uint32_t>(i));
      *out++ = absorb(absorb(absorb(content_0, content_1), static_cast<uint32_t>(scope)), static_cast<uint32_t>(other));
    }
  };
  EqualKeys equal = equal_keys(context, count, keys, UINT64_MAX);
  std::iota(leader, leader + count, 0);
  uint32_t* first = equal.places.data();
  for (uint32_t length : equal.lengths) {
    uint32_t* last = first + length;
    auto as_first = [&, leading = identity(*first)](uint32_t place) { return identity(place) == leading; };
    if (!std::all_of(first, last, as_first))  // different contents under one 64-bit key: told apart by all that counts
      std::stable_sort(first, last, [&](uint32_t x, uint32_t y) { return identity(x) < identity(y); });
    for (uint32_t start = *first; first < last; ++first) {
      if (identity(*first) != identity(start)) start = *first;
      leader[*first] = start;
    }
    context.check();
  }
}

}  // namespace gpudedup
