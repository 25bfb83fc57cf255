// Shingle sets by document number.
#pragma once
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace gpudedup {

struct SetView {
  const uint32_t* values;  // ascending, distinct
  uint64_t size;
};

class SetStore {
 public:
  /// In memory up to `memory_bytes`, then in files in `directory`.
  SetStore(uint64_t memory_bytes, std::string directory) : scratch_(memory_bytes, std::move(directory)) {}

  /// Makes room for documents 0 .. count - 1.
  void resize(size_t count) { sets_.resize(count, {nullptr, 0}); }
  size_t size() const { return sets_.size(); }

  /// Adds the sets of `count` documents of a batch: document `numbers[i]` is the batch's rows[i], whose hashes are
  /// hashes[offsets[row] .. offsets[row + 1]) in any order, with repeats.
  /// Throws std::system_error when neither memory nor disk gives room.
  void add(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count, const uint32_t* hashes,
           const int64_t* offsets);

  /// `add` without new memory: the sets are made where the `hash_count` hashes lie, and moved together at their front.
  /// `owner` is held from then on; the pages after the sets go back to the system. Returns false, and does nothing, if
  /// memory has no room for the hashes that are wanted. `rows` must ascend. If it throws, the store is of no further
  /// use.
  bool adopt(Context& context, const uint32_t* numbers, const uint32_t* rows, size_t count, uint32_t* hashes,
             const int64_t* offsets, size_t hash_count, std::shared_ptr<void> owner);

  /// Adds one array as it is (a signature).
  void add_as_is(uint32_t number, const uint32_t* values, size_t size);

  bool has(uint32_t number) const { return sets_[number].values != nullptr; }
  SetView operator[](uint32_t number) const { return sets_[number]; }

  uint64_t bytes_in_memory() const { return scratch_.bytes_in_memory(); }
  uint64_t bytes_on_disk() const { return scratch_.bytes_on_disk(); }

 private:
  uint32_t* allocate(size_t values);

  Scratch scratch_;
  std::vector<SetView> sets_;
  std::vector<Mapping> blocks_;
  std::vector<std::shared_ptr<void>> adopted_;
  uint32_t* free_ = nullptr;
  size_t free_values_ = 0;
  std::mutex mutex_;
};

}  // namespace gpudedup
