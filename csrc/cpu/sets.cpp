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

uintptr_t page_bytes() {
  static const uintptr_t bytes = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  return bytes;
}

uintptr_t round_up(uintptr_t bytes) { return (bytes + page_bytes() - 1) / page_bytes() * page_bytes(); }

/// Whole pages between two addresses go back to the system; what they held is lost.
void give_back_pages(void* first, void* last) {
  uintptr_t begin = round_up(reinterpret_cast<uintptr_t>(first));
  uintptr_t end = reinterpret_cast<uintptr_t>(last) / page_bytes() * page_bytes();
  if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

/// body(i, worker, first hash, how many) for the documents i in [0, count) of a batch, until it is stopped.
template <class Body>
void each_document(Context& context, const uint32_t* rows, size_t count, const int64_t* offsets, Body&& body) {
  constexpr size_t PIECE_HASHES = 1 << 15, PIECE_DOCUMENTS = 1 << 10;  // some 0.2 ms
  std::vector<size_t> pieces;
  size_t hashes = 0;
  for (size_t i = 0; i < count; ++i) {
    if (pieces.empty() || hashes > PIECE_HASHES || i - pieces.back() >= PIECE_DOCUMENTS) {
      pieces.push_back(i);
      hashes = 0;
    }
    hashes += static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]);
  }
  context.each(
      pieces.size(),
      [&](size_t piece, unsigned worker) {
        size_t end = piece + 1 < pieces.size() ? pieces[piece + 1] : count;
        for (size_t i = pieces[piece]; i < end && !context.stopped(); ++i)
          body(i, worker, offsets[rows[i]], static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]));
      },
      pieces.size() < 2 && hashes <= PIECE_HASHES);
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
  each_document(context, rows, count, offsets, [&](size_t i, unsigned worker, int64_t first, size_t size) {
    uint32_t* values = room_for(scratch[worker], 2 * size);
    std::copy_n(hashes + first, size, values);
    add_as_is(numbers[i], values, sort_unique(values, size, values + size));
  });
}

bool SetStore::adopt(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count, uint32_t* hashes,
                     const int64_t* offsets, size_t hash_count, std::shared_ptr<void> owner) {
  size_t taken = 0;
  for (size_t i = 0; i < count; ++i) taken += static_cast<size_t>(offsets[rows[i] + 1] - offsets[rows[i]]);
  taken *= sizeof(uint32_t);
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!scratch_.take(taken)) return false;
    adopted_.push_back(std::move(owner));
  }
  std::vector<size_t> sizes(count);
  std::vector<std::vector<uint32_t>> spare(context.workers());
  each_document(context, rows, count, offsets, [&](size_t i, unsigned worker, int64_t first, size_t size) {
    sizes[i] = sort_unique(hashes + first, size, room_for(spare[worker], size));
  });
  uint32_t* end = hashes;
  for (size_t i = 0; i < count; ++i) {
    std::memmove(end, hashes + offsets[rows[i]], sizes[i] * sizeof(uint32_t));
    sets_[numbers[i]] = {sizes[i] ? end : &EMPTY_SET, sizes[i]};
    end += sizes[i];
  }
  give_back_pages(end, hashes + hash_count);
  std::lock_guard<std::mutex> lock(mutex_);
  scratch_.give_back(taken - std::min<size_t>(taken, round_up(static_cast<size_t>(end - hashes) * sizeof(uint32_t))));
  return true;
}

}  // namespace gpudedup
