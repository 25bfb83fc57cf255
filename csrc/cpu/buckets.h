// Buckets of documents that share a band key, and the candidates in them. docs/spec.md, section 7.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/equal_keys.h"
#include "cpu/group.h"
#include "cpu/parallel.h"
#include "cpu/scratch.h"

namespace gpudedup {

/// The documents that go to the buckets, by rank, and what limits which of them are compared. Everywhere below, a
/// document is its place in this order.
struct Ranked {
  size_t count;
  size_t fixed;           // as many of them, the first, are of earlier runs: they stay, and have no candidates
  const int32_t* scopes;  // [count], the values of `within`, or null
  const int32_t* across;  // [count], or null: no `across`
};

/// The buckets of one band that hold two documents or more: their members bucket after bucket, by rank in each.
struct Band {
  const uint32_t* members;
  size_t member_count;
  const uint32_t* lengths;  // of its buckets, in order
  size_t bucket_count;
};

/// Throws std::invalid_argument unless the band is one of buckets of two and more of `count` documents.
void check_band(const Band& band, size_t count);

/// The band of documents whose keys are keys[documents[0 .. count - 1]], buckets by ascending key.
EqualKeys sort_band(Context& context, const uint64_t* keys, const uint32_t* documents, size_t count,
                    uint64_t memory_bytes);

class Buckets {
 public:
  /// Takes 16 bytes for each member of a band and 8 a document from `scratch`. Bands are read once and checked; throws
  /// as check_band, and std::system_error without room.
  Buckets(Context& context, const std::vector<Band>& bands, const Ranked& ranked, uint64_t window, Scratch scratch);

  size_t fixed() const { return fixed_; }
  size_t count() const { return first_slot_.size() - 1; }
  uint64_t bounded_buckets() const { return bounded_buckets_; }
  uint64_t bounded_documents() const { return bounded_documents_; }
  uint64_t longest() const { return longest_; }

  /// Whether the document shares a bucket with another, of which one at least is not of an earlier run.
  bool shared(uint32_t document) const { return first_slot_[document + 1] > first_slot_[document]; }

  /// At most this many candidates has the document; O(bands).
  uint64_t candidate_bound(uint32_t document) const;

  /// What is left of the memory that the buckets were given, for as long as they are used.
  Scratch scratch() const { return scratch_; }

  /// Its candidates of better rank, ascending, each once, for which accept(candidate) holds.
  template <class Accept>
  void candidates(uint32_t document, std::vector<uint32_t>& out, Accept&& accept) const {
    if (document < fixed_) return;
    size_t before = out.size();
    for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i) {
      const uint32_t* bucket = members_.data() + slots_[i].first();
      uint64_t position = slots_[i].position;
      for (uint64_t k = 0, n = window_size(position); k < n; ++k) {
        uint32_t candidate = bucket[window_position(position, k)];
        if (comparable(candidate, document) && accept(candidate)) out.push_back(candidate);
      }
    }
    std::sort(out.begin() + before, out.end());
    out.erase(std::unique(out.begin() + before, out.end()), out.end());
  }

  size_t member_count() const { return first_slot_[count()]; }

  /// Its candidates in [low, high), ascending, each once, without those that removed(candidate) holds for. Once removed
  /// is always removed: `skips` [member_count, zeros at first] remembers runs of them, so that a long bucket of copies
  /// costs one step and not its window. May run in several threads at once.
  template <class Removed>
  void candidates_between(uint32_t document, uint32_t low, uint32_t high, uint32_t* skips, std::vector<uint32_t>& out,
                          Removed&& removed) const {
    size_t before = out.size();
    for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i) {
      uint64_t first = slots_[i].first(), position = slots_[i].position, own = first + position;
      uint64_t head_end = position <= 2 * window_ ? own : first + window_;
      walk(low > 0 ? not_below(first, head_end, low) : first, head_end, high, document, skips, out, removed);
      if (head_end < own) {
        uint64_t tail = own - window_;
        walk(low > 0 ? not_below(tail, own, low) : tail, own, high, document, skips, out, removed);
      }
    }
    std::sort(out.begin() + before, out.end());
    out.erase(std::unique(out.begin() + before, out.end()), out.end());
  }

 private:
  /// A document in a bucket: members_[first + position]. 12 bytes, since there are as many as members.
  struct Slot {
    uint32_t first_low, first_high, position;
    uint64_t first() const { return static_cast<uint64_t>(first_high) << 32 | first_low; }
  };

  uint64_t window_size(uint64_t position) const;
  uint64_t window_position(uint64_t position, uint64_t i) const;
  /// The first place of [from, to) whose member is not below `low`; members of a bucket ascend.
  uint64_t not_below(uint64_t from, uint64_t to, uint32_t low) const {
    const uint32_t* begin = members_.data();
    return static_cast<uint64_t>(std::lower_bound(begin + from, begin + to, low) - begin);
  }
  template <class Removed>
  void walk(uint64_t from, uint64_t to, uint32_t high, uint32_t document, uint32_t* skips, std::vector<uint32_t>& out,
            Removed&& removed) const {
    auto skip = [&](uint64_t place) { return __atomic_load_n(&skips[place], __ATOMIC_RELAXED); };
    while (from < to && members_[from] < high) {
      uint64_t next = from;  // past a run of removed members
      while (next < to) {
        if (uint32_t known = skip(next))
          next += known;
        else if (removed(members_[next]))
          ++next;
        else
          break;
      }
      for (uint64_t place = from; place < next; ++place) {
        uint32_t known = skip(place);
        __atomic_store_n(&skips[place], static_cast<uint32_t>(next - place), __ATOMIC_RELAXED);
        if (known) place += known - 1;
      }
      if (next > from) {
        from = next;
        continue;
      }
      if (comparable(members_[from], document)) out.push_back(members_[from]);
      ++from;
    }
  }
  bool comparable(uint32_t better, uint32_t worse) const {
    return (scopes_.empty() || scopes_[better] == scopes_[worse]) &&
           (across_.empty() || across_[better] != across_[worse]);
  }

  size_t fixed_;
  uint64_t window_;
  Scratch scratch_;
  ScratchArray<uint32_t> members_;     // of all buckets that hold candidates, bucket after bucket, by rank
  ScratchArray<uint64_t> first_slot_;  // [count + 1]: into slots_
  ScratchArray<Slot> slots_;           // of each document, band by band
  std::vector<int32_t> scopes_, across_;
  uint64_t bounded_buckets_ = 0, bounded_documents_ = 0, longest_ = 0;
};

}  // namespace gpudedup
