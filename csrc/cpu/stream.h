// Documents decided one after another, as they come, with the answer that one batch of all of them would give.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/hash.h"
#include "cpu/group.h"
#include "cpu/sets.h"
#include "cpu/sign.h"
#include "cpu/verify.h"

namespace gpudedup {

/// Items in chunks: growing never moves nor doubles what is there.
template <class Item>
class Chunked {
 public:
  size_t size() const { return size_; }
  Item& operator[](size_t i) { return chunks_[i >> BITS][i & MASK]; }
  const Item& operator[](size_t i) const { return chunks_[i >> BITS][i & MASK]; }
  void push_back(const Item& item) {
    if ((size_ & MASK) == 0) chunks_.emplace_back(new Item[MASK + 1]);
    (*this)[size_++] = item;
  }

 private:
  static constexpr size_t BITS = 12, MASK = (1 << BITS) - 1;
  std::vector<std::unique_ptr<Item[]>> chunks_;
  size_t size_ = 0;
};

/// Open addressing from a 64-bit hash to a node number; the nodes lie elsewhere and hold what is compared.
/// The secret keeps texts made to collide from making a table slow; it has no influence on results.
class NodeTable {
 public:
  explicit NodeTable(uint64_t secret) : secret_(secret), slots_(16, NONE) {}

  /// The slot whose node satisfies matches(node), or the free one for it.
  template <class Matches>
  uint32_t* find(uint64_t hash, Matches&& matches) {
    for (size_t i = mix(hash ^ secret_) & (slots_.size() - 1);; i = (i + 1) & (slots_.size() - 1))
      if (slots_[i] == NONE || matches(slots_[i])) return &slots_[i];
  }

  /// Fills the free slot that find gave; hash_of(node) is needed when the table grows.
  template <class HashOf>
  void fill(uint32_t* slot, uint32_t node, HashOf&& hash_of) {
    *slot = node;
    if (++used_ * 4 < slots_.size() * 3) return;
    std::vector<uint32_t> old(slots_.size() * 2, NONE);
    old.swap(slots_);
    for (uint32_t other : old)
      if (other != NONE) *find(hash_of(other), [](uint32_t) { return false; }) = other;
  }

 private:
  uint64_t secret_;
  std::vector<uint32_t> slots_;
  size_t used_ = 0;
};

/// Open addressing from band keys to 32-bit values: 12 bytes a slot, 71 to 85 % of them filled, so at most 17 bytes a
/// key. Slots are in the order of the keys' hashes, so growing is one pass over both tables.
class KeyTable {
 public:
  explicit KeyTable(uint64_t secret) : secret_(secret) { resize(16); }

  /// The value of the key, or null; valid until the next insert.
  uint32_t* find(uint64_t key) {
    Slot* slot = place(key);
    return slot->value == NONE ? nullptr : &slot->value;
  }

  /// Adds a key that find did not find. `value` is not NONE.
  void insert(uint64_t key, uint32_t value);

  /// Makes room for as many keys, so that inserting them moves none.
  void reserve(size_t keys) { resize(std::max(size_, keys * 20 / 17 + 16)); }

  size_t size() const { return used_; }

  /// Calls visit(key, value) for all of them, in an order that depends on the secret.
  template <class Visit>
  void each(Visit&& visit) const {
    for (const Slot& slot : slots_)
      if (slot.value != NONE) visit(slot.key(), slot.value);
  }

 private:
  struct Slot {
    uint32_t low, high;  // of the key: two halves, so that a slot takes 12 bytes
    uint32_t value;      // NONE: free
    uint64_t key() const { return static_cast<uint64_t>(high) << 32 | low; }
  };
  /// The slot of the key, or the free one for it. The last slots of the table are for runs that reach past its size.
  Slot* place(uint64_t key) {
    Slot* slot = &slots_[static_cast<size_t>(static_cast<unsigned __int128>(mix(key ^ secret_)) * size_ >> 64)];
    while (slot->value != NONE && slot->key() != key) ++slot;
    return slot;
  }
  void resize(size_t size);

  uint64_t secret_;
  size_t size_ = 0, used_ = 0;
  std::vector<Slot> slots_;
};

struct StreamPlan {
  uint32_t bands, rows, lane_count;
  uint64_t window, threshold_ppm;
  enum class Verify : int32_t { exact, signature, none } verify;
  bool across;
};

/// A batch as sign gave it. Arrays by document; scopes and across may be null.
struct StreamBatch {
  size_t count;
  const uint32_t* lanes;
  const uint64_t* content;
  const uint64_t* unit_count;
  const uint64_t* scope_keys;
  const int32_t* scopes;
  const int32_t* across;
  const uint32_t* hashes;  // with verify = exact: document i has hashes[offsets[i] .. offsets[i + 1])
  const int64_t* offsets;  // [count + 1]
};

/// What was decided of each document of a batch: keeper = input position from 0 over all batches, or -1 if it is kept.
struct StreamDecision {
  std::vector<int64_t> keeper;
  std::vector<Similarity> similarity;
  std::vector<uint8_t> exact;  // equal content with its keeper
};

class Stream {
 public:
  // The value of a band key. While one representative has it: its number if it is kept, else NOBODY. Then a bucket.
  static constexpr uint32_t IS_BUCKET = 0x80000000u, NOBODY = 0x7FFFFFFFu;

  Stream(const StreamPlan& plan, uint64_t memory_bytes, std::string directory);

  /// Decides the next documents in order.
  StreamDecision decide(Context& context, const StreamBatch& batch);

  const StreamPlan& plan() const { return plan_; }
  int64_t documents() const { return documents_; }
  uint64_t compared() const { return compared_; }
  bool whole() const { return whole_; }
  uint64_t set_bytes_in_memory() const { return sets_.bytes_in_memory(); }
  uint64_t set_bytes_on_disk() const { return sets_.bytes_on_disk(); }

 private:
  friend class StreamColumns;
  friend class StreamBuilder;
  struct Entry {
    uint32_t position;
    uint32_t document;  // number among the kept ones
  };
  struct Bucket {
    uint32_t size = 0;          // counts every representative, kept or removed
    Entry first = {0, NOBODY};  // a kept one that can still be a candidate; most buckets have no other
    uint32_t more = NONE;       // the rest of them, in more_
  };
  struct ContentNode {  // a representative
    uint64_t content[2];
    int32_t scope, across;
    uint32_t kept;     // its number among the kept ones, or NONE
    uint32_t removed;  // its number among the removed representatives, or NONE
  };
  struct EqualNode {  // contents with `across`: the first kept representative
    uint64_t content[2];
    int32_t scope;
    uint32_t kept;
  };
  struct Removed {
    int64_t keeper;
    Similarity similarity;
    bool exact;
  };
  struct Kept {
    int64_t position;
    int32_t scope, across;
  };

  /// Numbers of documents and of buckets have 31 bits, less the last two.
  static void require_room(size_t count);

  uint32_t* find_content(uint64_t first, uint64_t second, int32_t scope, int32_t across);
  uint32_t* find_equal(const uint64_t* content, int32_t scope);
  void add_content(uint32_t* slot, const ContentNode& representative);
  void add_equal(uint32_t* slot, const EqualNode& kept);
  void collect(const uint64_t* keys, int32_t scope, int32_t across, std::vector<uint32_t>& candidates);
  void enter(const uint64_t* keys, uint32_t document);
  void enter(Bucket& bucket, Entry entry);

  StreamPlan plan_;
  uint64_t secret_;
  std::vector<KeyTable> bands_;
  Chunked<Bucket> buckets_;
  Chunked<std::vector<Entry>> more_;
  NodeTable content_table_, equal_table_;
  Chunked<ContentNode> contents_;
  Chunked<EqualNode> equals_;
  Chunked<Removed> removed_;
  Chunked<Kept> kept_;
  SetStore sets_;
  int64_t documents_ = 0;
  uint64_t compared_ = 0;
  bool whole_ = true;  // false while a builder fills it
};

}  // namespace gpudedup
