// Stable radix sorts.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace gpudedup {

struct KeyedIndex {
  uint64_t key;
  uint32_t index;
};

/// Sorts by key; equal keys keep their order. Least significant digit first, 11 bits at a time; digits that are the
/// same in all keys cost one pass over the counts only. Ends early, with rows in no order, once *stop is set.
inline void radix_sort(std::vector<KeyedIndex>& rows, std::vector<KeyedIndex>& spare, const bool* stop) {
  constexpr size_t STOP_EVERY = 1 << 20;  // rows: some milliseconds
  auto stopped = [&](size_t i) { return i % STOP_EVERY == 0 && __atomic_load_n(stop, __ATOMIC_RELAXED); };
  constexpr int BITS = 11, DIGITS = 6;
  std::vector<std::array<size_t, 1 << BITS>> counts(DIGITS);
  for (auto& count : counts) count.fill(0);
  for (size_t i = 0; i < rows.size(); ++i) {
    if (stopped(i)) return;
    for (int d = 0; d < DIGITS; ++d) ++counts[d][rows[i].key >> (BITS * d) & ((1 << BITS) - 1)];
  }
  spare.resize(rows.size());
  for (int d = 0; d < DIGITS && !rows.empty(); ++d) {
    auto& count = counts[d];
    if (count[rows[0].key >> (BITS * d) & ((1 << BITS) - 1)] == rows.size()) continue;
    size_t sum = 0;
    for (size_t& c : count) sum += std::exchange(c, sum);
    for (size_t i = 0; i < rows.size(); ++i) {
      if (stopped(i)) return;
      spare[count[rows[i].key >> (BITS * d) & ((1 << BITS) - 1)]++] = rows[i];
    }
    rows.swap(spare);
  }
}

/// Sorts `count` values ascending with `spare` [count] beside them; returns how many are left without repeats.
size_t sort_unique(uint32_t* values, size_t count, uint32_t* spare);

}  // namespace gpudedup
