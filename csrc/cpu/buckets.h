// Buckets of documents that share a band key, and the candidates in them. docs/spec.md, section 7.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/group.h"
#include "cpu/parallel.h"

namespace gpudedup {

/// Rows of values in the batches they were made in; document numbers run over all of them.
template <class Value>
class Batches {
 public:
  void add(const Value* values, size_t count) {
    if (count == 0) return;
    batches_.push_back({values, size(), count});
    ends_.push_back(size() + count);
  }
  size_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  struct Batch {
    const Value* values;
    size_t first, count;
    bool has(size_t document) const { return document - first < count; }
  };
  const Batch& of(size_t document) const {
    return batches_[static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), document) - ends_.begin())];
  }

 private:
  std::vector<Batch> batches_;
  std::vector<size_t> ends_;
};

/// Signatures; a batch is uint32[count, lane_count].
class Lanes : public Batches<uint32_t> {
 public:
  explicit Lanes(uint32_t lane_count) : lane_count_(lane_count) {}
  uint32_t lane_count() const { return lane_count_; }
  const uint32_t* operator[](size_t document) const {
    const Batch& batch = of(document);
    return batch.values + (document - batch.first) * lane_count_;
  }

 private:
  uint32_t lane_count_;
};

/// Band keys; a batch is uint64[bands, count], so that a band is read in one go.
using BandKeys = Batches<uint64_t>;

/// uint64[bands, count]: the band keys of `count` signatures. scope_keys [count] may be null.
void band_keys(Context& context, const uint32_t* lanes, size_t count, uint32_t lane_count, const uint64_t* scope_keys,
               uint32_t bands, uint32_t rows, uint64_t* out);

/// The documents that go to the buckets, in rank order, and what limits which of them are compared.
/// Below, a document is its place in `documents`.
struct Ranked {
  const uint32_t* documents;  // [count] -> document number
  size_t count;
  const int32_t* scopes;  // [count], the values of `within`, or null
  const int32_t* across;  // [count], or null: no `across`
};

class Buckets {
 public:
  /// The buckets of one band that hold two documents or more: their members one bucket after another, by rank in each.
  struct Band {
    std::vector<uint32_t> members;
    std::vector<uint32_t> lengths;  // of its buckets, in order
  };

  Buckets(Context& context, const BandKeys& keys, const Ranked& ranked, uint32_t bands, uint64_t window);

  /// Of bands that were sorted elsewhere; `ranked.documents` is not used.
  Buckets(Context& context, std::vector<Band> by_band, const Ranked& ranked, uint64_t window);

  size_t count() const { return first_slot_.size() - 1; }
  uint64_t bounded_buckets() const { return bounded_buckets_; }
  uint64_t bounded_documents() const { return bounded_documents_; }
  uint64_t longest() const { return longest_; }

  /// Whether the document shares a bucket with another.
  bool shared(uint32_t document) const { return first_slot_[document + 1] > first_slot_[document]; }

  /// At most this many candidates has the document; O(bands).
  uint64_t candidate_bound(uint32_t document) const;

  /// Its candidates of better rank, ascending, each once, for which accept(candidate) holds.
  template <class Accept>
  void candidates(uint32_t document, std::vector<uint32_t>& out, Accept&& accept) const {
    size_t before = out.size();
    for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i) {
      uint64_t slot = slots_[i];
      const uint32_t* bucket = members_.data() + bucket_first_[slot];
      uint64_t position = slot - bucket_first_[slot];
      for (uint64_t k = 0, n = window_size(position); k < n; ++k) {
        uint32_t candidate = bucket[window_position(position, k)];
        if (comparable(candidate, document) && accept(candidate)) out.push_back(candidate);
      }
    }
    std::sort(out.begin() + before, out.end());
    out.erase(std::unique(out.begin() + before, out.end()), out.end());
  }

  size_t slot_count() const { return members_.size(); }

  /// Its candidates in [low, high), ascending, each once, without those that removed(candidate) holds for. Once removed
  /// is always removed: `skips` [slot_count, of zeros at first] remembers runs of them, so that a long bucket of copies
  /// costs one step and not its window. May run in several threads at once.
  template <class Removed>
  void candidates_between(uint32_t document, uint32_t low, uint32_t high, std::vector<uint32_t>& skips,
                          std::vector<uint32_t>& out, Removed&& removed) const {
    size_t before = out.size();
    for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i) {
      uint64_t slot = slots_[i], first = bucket_first_[slot], position = slot - first;
      uint64_t head_end = position <= 2 * window_ ? slot : first + window_;
      walk(low > 0 ? not_below(first, head_end, low) : first, head_end, high, document, skips, out, removed);
      if (head_end < slot) {
        uint64_t tail = slot - window_;
        walk(low > 0 ? not_below(tail, slot, low) : tail, slot, high, document, skips, out, removed);
      }
    }
    std::sort(out.begin() + before, out.end());
    out.erase(std::unique(out.begin() + before, out.end()), out.end());
  }

 private:
  static std::vector<Band> sort_bands(Context& context, const BandKeys& keys, const Ranked& ranked, uint32_t bands);
  uint64_t window_size(uint64_t position) const;
  uint64_t window_position(uint64_t position, uint64_t i) const;
  /// The first slot of [from, to) whose member is not below `low`; members of a bucket ascend.
  uint64_t not_below(uint64_t from, uint64_t to, uint32_t low) const {
    auto begin = members_.begin();
    return static_cast<uint64_t>(std::lower_bound(begin + from, begin + to, low) - begin);
  }
  template <class Removed>
  void walk(uint64_t from, uint64_t to, uint32_t high, uint32_t document, std::vector<uint32_t>& skips,
            std::vector<uint32_t>& out, Removed&& removed) const {
    auto skip = [&](uint64_t slot) { return __atomic_load_n(&skips[slot], __ATOMIC_RELAXED); };
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
      for (uint64_t slot = from; slot < next; ++slot) {
        uint32_t known = skip(slot);
        __atomic_store_n(&skips[slot], static_cast<uint32_t>(next - slot), __ATOMIC_RELAXED);
        if (known) slot += known - 1;
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

  uint64_t window_;
  std::vector<uint32_t> members_;       // of all buckets of two and more, bucket after bucket, by rank
  std::vector<uint64_t> bucket_first_;  // [members]: where the member's bucket begins
  std::vector<uint64_t> first_slot_;    // [count + 1]: into slots_
  std::vector<uint64_t> slots_;         // places in members_ of each document, band by band
  std::vector<int32_t> scopes_, across_;
  uint64_t bounded_buckets_ = 0, bounded_documents_ = 0, longest_ = 0;
};

}  // namespace gpudedup
