#include "cpu/sets.h"

#include <algorithm>
#include <cstring>

#include "cpu/sort.h"

namespace gpudedup {
namespace {

constexpr size_t BLOCK_BYTES = 8 << 20;
constexpr uint32_t EMPTY_SET = 0;  // an empty set needs an address that is not null

}  // namespace

uint32_t* SetStore::allocate(size_t values) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (values > free_values_) {
    // Blocks grow with what there is, so that their number stays small: a process has some 65,000 mappings.
    size_t block = std::max<size_t>(BLOCK_BYTES, (bytes_in_memory() + bytes_on_disk()) / 64);
    size_t bytes = (std::max(block, values * sizeof(uint32_t)) + 4095) / 4096 * 4096;
    blocks_.push_back(scratch_.map(bytes));
    free_ = static_cast<uint32_t*>(blocks_.back().data());
    free_values_ = bytes / sizeof(uint32_t);
  }
  free_values_ -= values;
  return std::exchange(free_, free_ + values);
}

void SetStore::add_as_is(uint32_t number, const uint32_t* values, size_t size) {
  uint32_t* place = size ? allocate(size) : const_cast<uint32_t*>(&EMPTY_SET);
  if (size) std::memcpy(place, values, size * sizeof(uint32_t));
  sets_[number] = {place, size};
}

void SetStore::add(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count,
                   const uint32_t* hashes, const int64_t* offsets) {
  constexpr size_t PIECE = 64;
  std::vector<std::vector<uint32_t>> scratch(context.workers());
  context.each((count + PIECE - 1) / PIECE,
               [&](size_t piece, unsigned worker) {
                 std::vector<uint32_t>& values = scratch[worker];
                 for (size_t i = piece * PIECE; i < std::min(count, (piece + 1) * PIECE) && !context.stopped(); ++i) {
                   int64_t first = offsets[rows[i]];
                   size_t size = static_cast<size_t>(offsets[rows[i] + 1] - first);
                   if (values.size() < 2 * size) values.resize(2 * size);
                   std::copy_n(hashes + first, size, values.begin());
                   add_as_is(numbers[i], values.data(), sort_unique(values.data(), size, values.data() + size));
                 }
               },
               count < 8);
}

}  // namespace gpudedup
