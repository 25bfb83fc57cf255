#include "cpu/group.h"

#include <algorithm>
#include <tuple>

#include "core/hash.h"
#include "cpu/sort.h"

namespace gpudedup {

void group_content(Context& context, const uint32_t* order, size_t count, const uint64_t* content,
                   const int32_t* within, const int32_t* across, uint32_t* leader) {
  auto identity = [&](uint32_t position) {
    size_t document = order[position];
    return std::make_tuple(content[2 * document], content[2 * document + 1], within ? within[document] : 0,
                           across ? across[document] : 0);
  };
  auto work = [&](size_t, unsigned) {
    std::vector<KeyedIndex> rows(count), spare;
    for (size_t i = 0; i < count; ++i) {
      auto [first, second, scope, other] = identity(static_cast<uint32_t>(i));
      uint64_t key = absorb(absorb(absorb(first, second), static_cast<uint32_t>(scope)), static_cast<uint32_t>(other));
      rows[i] = {key, static_cast<uint32_t>(i)};
    }
    radix_sort(rows, spare, context.stop());
    if (context.stopped()) return;
    for (size_t first = 0, last; first < count; first = last) {
      last = first + 1;
      if (first % 65536 == 0 && context.stopped()) return;
      bool equal = true;
      auto leading = identity(rows[first].index);
      for (; last < count && rows[last].key == rows[first].key; ++last) equal &= identity(rows[last].index) == leading;
      if (!equal)  // different contents under one 64-bit key: tell them apart by all that counts
        std::stable_sort(rows.begin() + first, rows.begin() + last, [&](const KeyedIndex& x, const KeyedIndex& y) {
          return identity(x.index) < identity(y.index);
        });
      for (size_t i = first, start = first; i < last; ++i) {
        if (!equal && identity(rows[i].index) != identity(rows[start].index)) start = i;
        leader[rows[i].index] = rows[start].index;
      }
    }
  };
  context.each(1, work, count < 65536);  // on a thread of its own, so that the caller can poll
}

}  // namespace gpudedup
