// Which of a sequence of 64-bit keys are equal.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "cpu/parallel.h"

namespace gpudedup {

/// The places whose key another place has too: group after group by ascending key, by place in each.
struct EqualKeys {
  std::vector<uint32_t> places;
  std::vector<uint32_t> lengths;  // of the groups, in order
};

/// keys(first, count, out) writes those of places first .. first + count - 1 to out; from several threads at once, and
/// more than once for each place.
using KeySource = std::function<void(size_t first, size_t count, uint64_t* out)>;

/// Finds equal keys among those of places 0 .. count - 1, count < 2^32. Beside what it returns it takes 12 bytes a
/// place and some megabytes a worker, or, where that is more than `memory_bytes`, less in as many passes over the keys
/// as it takes. Keys that agree in their upper bits stay together in memory: if most of them do, that takes 12 bytes
/// each.
EqualKeys equal_keys(Context& context, size_t count, const KeySource& keys, uint64_t memory_bytes);

}  // namespace gpudedup
