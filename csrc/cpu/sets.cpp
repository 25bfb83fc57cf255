#include "cpu/sets.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "cpu/sort.h"

namespace gpudedup {
namespace {

constexpr size_t BLOCK_BYTES = 8 << 20;
constexpr uint32_t EMPTY_SET = 0;  // an empty set needs an address that is not null

uint32_t* room_for(std::vector<uint32_t>& memory, size_t values) {
  if (memory.size() < values) memory.resize(values);
  return memory.data();
}

/// Whole pages between two addresses go back to the system; what they held is lost.
void give_back_pages(void* first, void* last) {
  const uintptr_t page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  uintptr_t begin = (reinterpret_cast<uintptr_t>(first) + page - 1) / page * page;
  uintptr_t end = reinterpret_cast<uintptr_t>(last) / page * page;
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

/// body(i, worker) for i in [0, count), until it is stopped.
template <class Body>
void each_document(Context& context, size_t count, Body&& body) {
  constexpr size_t PIECE = 64;
  context.each((count + PIECE - 1) / PIECE,
               [&](size_t piece, unsigned worker) {
                 for (size_t i = piece * PIECE; i < std::min(count, (piece + 1) * PIECE) && !context.stopped(); ++i)
                   body(i, worker);
               },
               count < 8);
}

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
  std::vector<std::vector<uint32_t>> scratch(context.workers());
  each_document(context, count, [&](size_t i, unsigned worker) {
    const uint32_t* first = hashes + offsets[rows[i]];
    size_t size = static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]);
    uint32_t* values = room_for(scratch[worker], 2 * size);
    std::copy_n(first, size, values);
    add_as_is(numbers[i], values, sort_unique(values, size, values + size));
  });
}

bool SetStore::adopt(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count, uint32_t* hashes,
                     const int64_t* offsets, size_t hash_count, std::shared_ptr<void> owner) {
  size_t wanted = 0;
  for (size_t i = 0; i < count; ++i) wanted += static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]);
  if (!scratch_.take(wanted * sizeof(uint32_t))) return false;
  adopted_.push_back(std::move(owner));
  std::vector<size_t> sizes(count);
  std::vector<std::vector<uint32_t>> spare(context.workers());
  each_document(context, count, [&](size_t i, unsigned worker) {
    uint32_t* values = hashes + offsets[rows[i]];
    size_t size = static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]);
    sizes[i] = sort_unique(values, size, room_for(spare[worker], size));
  });
  uint32_t* end = hashes;
  for (size_t i = 0; i < count; ++i) {
    std::memmove(end, hashes + offsets[rows[i]], sizes[i] * sizeof(uint32_t));
    sets_[numbers[i]] = {sizes[i] ? end : &EMPTY_SET, sizes[i]};
    end += sizes[i];
  }
  give_back_pages(end, hashes + hash_count);
  return true;
}

}  // namespace gpudedup
