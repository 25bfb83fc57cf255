#include "cpu/equal_keys.h"

#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

#include "cpu/scratch.h"

namespace gpudedup {
namespace {

/// A place with its key in two halves: 12 bytes, where a 64-bit member would make it 16.
struct Row {
  uint32_t high, low, place;
  uint64_t key() const { return static_cast<uint64_t>(high) << 32 | low; }
  bool operator<(const Row& other) const { return key() != other.key() ? key() < other.key() : place < other.place; }
};

// Rows of a part, as wished: with the table beside them they stay in a cache of 256 KB. More parts than that cost more
// in cache lines being written at once than they save.
constexpr size_t PART_ROWS = 4096;
constexpr unsigned MOST_PART_BITS = 14;
// A part of more rows, which only keys that are not like random ones make, is sorted where it lies.
constexpr size_t LARGE_PART_ROWS = 1 << 20;
constexpr size_t BLOCK = 4096;  // keys asked for at once

/// Keys are cut into parts by their upper bits, and those cut by chunks of places, so that rows move without locks and
/// stay in the order of places.
class Parts {
 public:
  Parts(Context& context, size_t count, const KeySource& keys) : context_(context), count_(count), keys_(keys) {
    while (bits_ < MOST_PART_BITS && count >> bits_ > PART_ROWS) ++bits_;
    chunks_ = std::min<size_t>(4 * context.workers(), (count + BLOCK - 1) / BLOCK);
    chunk_size_ = (count + chunks_ - 1) / chunks_;
    counts_.assign(chunks_ << bits_, 0);
    each_key(context_, [&](size_t chunk, uint64_t key, uint32_t) { ++counts_[at(chunk, part_of(key))]; });
  }

  size_t size() const { return size_t{1} << bits_; }
  unsigned bits() const { return bits_; }
  size_t rows(size_t part) const {
    size_t sum = 0;
    for (size_t chunk = 0; chunk < chunks_; ++chunk) sum += counts_[at(chunk, part)];
    return sum;
  }

  /// Writes the rows of the parts [first, last), one part after another.
  void gather(size_t first, size_t last, Row* rows) {
    uint32_t sum = 0;
    for (size_t part = first; part < last; ++part)
      for (size_t chunk = 0; chunk < chunks_; ++chunk) sum += std::exchange(counts_[at(chunk, part)], sum);
    each_key(context_, [&](size_t chunk, uint64_t key, uint32_t place) {
      size_t part = part_of(key);
      if (part - first < last - first)
        rows[counts_[at(chunk, part)]++] = {static_cast<uint32_t>(key >> 32), static_cast<uint32_t>(key), place};
    });
  }

 private:
  size_t part_of(uint64_t key) const { return key >> (64 - bits_); }
  size_t at(size_t chunk, size_t part) const { return (chunk << bits_) + part; }

  /// body(chunk, key, place) for all places: chunks at the same time, each in order.
  template <class Body>
  void each_key(Context& context, Body&& body) {
    context.each(
        chunks_,
        [&](size_t chunk, unsigned) {
          std::array<uint64_t, BLOCK> keys;
          size_t end = std::min(count_, (chunk + 1) * chunk_size_);
          for (size_t first = chunk * chunk_size_; first < end && !context.stopped(); first += BLOCK) {
            size_t count = std::min(BLOCK, end - first);
            keys_(first, count, keys.data());
            for (size_t i = 0; i < count; ++i) body(chunk, keys[i], static_cast<uint32_t>(first + i));
          }
        },
        count_ <= BLOCK);
  }

  Context& context_;
  size_t count_;
  const KeySource& keys_;
  unsigned bits_ = 1;
  size_t chunks_, chunk_size_;
  std::vector<uint32_t> counts_;  // [chunk, part]; once gathered: where the chunk's rows of the part end
};

/// Finds the equal keys of one part after another.
class Finder {
 public:
  explicit Finder(unsigned part_bits) : part_bits_(part_bits) {}

  /// Rows of one part, in the order of places; they are moved about.
  EqualKeys operator()(Row* rows, size_t count) {
    EqualKeys found;
    if (count > LARGE_PART_ROWS) {
      if (!std::is_sorted(rows, rows + count)) std::sort(rows, rows + count);  // equal keys are in order already
      append_groups(rows, rows + count, found);
    } else if (count > 1) {
      find(rows, count, found);
    }
    return found;
  }

 private:
  /// Most keys are alone, and most of those have the next bits after a part's to themselves: they go no further. What
  /// is left is put in order by these bits, which leaves little to be sorted.
  void find(const Row* rows, size_t count, EqualKeys& found) {
    constexpr uint32_t ALONE = 0xFFFFFFFFu;
    unsigned bits = 1;
    while (size_t{1} << bits < 2 * count) ++bits;
    auto slot_of = [&](const Row& row) { return row.key() << part_bits_ >> (64 - bits); };
    table_.assign(size_t{1} << bits, 0);
    for (size_t i = 0; i < count; ++i) ++table_[slot_of(rows[i])];
    uint32_t sum = 0;
    for (uint32_t& slot : table_) {
      uint32_t rows_of_slot = slot;
      slot = rows_of_slot < 2 ? ALONE : sum;
      sum += rows_of_slot < 2 ? 0 : rows_of_slot;
    }
    if (ordered_.size() < sum) ordered_.resize(sum);
    for (size_t i = 0; i < count; ++i) {
      uint32_t& slot = table_[slot_of(rows[i])];
      if (slot != ALONE) ordered_[slot++] = rows[i];
    }
    for (Row *first = ordered_.data(), *end = first + sum; first < end;) {
      Row* last = ordered_.data() + table_[slot_of(*first)];
      if (!std::is_sorted(first, last)) std::sort(first, last);
      append_groups(first, last, found);
      first = last;
    }
  }

  static void append_groups(const Row* row, const Row* end, EqualKeys& found) {
    for (const Row* last; row < end; row = last) {
      for (last = row + 1; last < end && last->key() == row->key();) ++last;
      if (last - row < 2) continue;
      found.lengths.push_back(static_cast<uint32_t>(last - row));
      for (const Row* member = row; member < last; ++member) found.places.push_back(member->place);
    }
  }

  unsigned part_bits_;
  std::vector<uint32_t> table_;  // by the next bits of the key: the number of rows, then where they go in `ordered_`
  std::vector<Row> ordered_;
};

}  // namespace

EqualKeys equal_keys(Context& context, size_t count, const KeySource& keys, uint64_t memory_bytes) {
  EqualKeys all;
  if (count < 2) return all;
  Parts parts(context, count, keys);
  std::vector<Finder> finders(context.workers(), Finder(parts.bits()));
  std::vector<size_t> begins;
  for (size_t first = 0, last; first < parts.size(); first = last) {
    begins.assign(1, 0);
    for (last = first; last < parts.size(); ++last) {
      size_t end = begins.back() + parts.rows(last);
      if (end * sizeof(Row) > memory_bytes && last > first) break;
      begins.push_back(end);
    }
    if (begins.back() < 2) continue;
    ScratchArray<Row> rows(begins.back());
    parts.gather(first, last, rows.data());
    std::vector<EqualKeys> found(last - first);
    context.each(
        found.size(),
        [&](size_t part, unsigned worker) {
          found[part] = finders[worker](rows.data() + begins[part], begins[part + 1] - begins[part]);
        },
        count <= BLOCK);
    auto more = [](size_t sum, const EqualKeys& part) { return sum + part.places.size(); };
    if (last == parts.size()) all.places.reserve(std::accumulate(found.begin(), found.end(), all.places.size(), more));
    for (EqualKeys& part : found) {
      all.places.insert(all.places.end(), part.places.begin(), part.places.end());
      all.lengths.insert(all.lengths.end(), part.lengths.begin(), part.lengths.end());
      part = {};
    }
  }
  return all;
}

}  // namespace gpudedup
