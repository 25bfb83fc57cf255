#include "cpu/buckets.h"

#include <stdexcept>

#include "core/band.h"

namespace gpudedup {

uint64_t Buckets::window_size(uint64_t position) const { return gpudedup::window_size(position, window_); }
uint64_t Buckets::window_position(uint64_t position, uint64_t i) const {
  return gpudedup::window_position(position, window_, i);
}

void check_band(const Band& band, size_t count) {
  auto require = [](bool condition, const char* message) {
    if (!condition) throw std::invalid_argument(message);
  };
  const uint32_t *member = band.members, *end = band.members + band.member_count;
  for (size_t i = 0; i < band.bucket_count; ++i) {
    uint32_t length = band.lengths[i];
    require(length >= 2, "a bucket must have two members or more");
    require(length <= static_cast<size_t>(end - member), "lengths add up to more than the members of their band");
    for (const uint32_t* last = member + length - 1; member < last; ++member)
      require(member[0] < member[1], "members of a bucket must ascend");
    require(*member++ < count, "members names no document");
  }
  require(member == end, "lengths add up to less than the members of their band");
}

EqualKeys sort_band(Context& context, const uint64_t* keys, const uint32_t* documents, size_t count,
                    uint64_t memory_bytes) {
  constexpr size_t AHEAD = 32;  // documents come in any order, so keys are asked for before they are needed
  return equal_keys(
      context, count,
      [=](size_t first, size_t size, uint64_t* out) {
        for (size_t i = first; i < first + size; ++i) {
          __builtin_prefetch(keys + documents[std::min(i + AHEAD, count - 1)]);
          *out++ = keys[documents[i]];
        }
      },
      memory_bytes);
}

Buckets::Buckets(Context& context, const std::vector<Band>& bands, const Ranked& ranked, uint64_t window,
                 Scratch scratch)
    : fixed_(ranked.fixed), window_(window), scratch_(std::move(scratch)) {
  if (ranked.scopes) scopes_.assign(ranked.scopes, ranked.scopes + ranked.count);
  if (ranked.across) across_.assign(ranked.across, ranked.across + ranked.count);
  size_t member_count = 0, bucket_count = 0;
  for (const Band& band : bands) {
    member_count += band.member_count;
    bucket_count += band.bucket_count;
  }
  members_ = ScratchArray<uint32_t>(scratch_, member_count);
  first_slot_ = ScratchArray<uint64_t>(scratch_, ranked.count + 1);
  slots_ = ScratchArray<Slot>(scratch_, member_count);

  // What is checked and used is a copy: bands may lie in files, and those may change at any time.
  std::vector<uint32_t> lengths;
  lengths.reserve(bucket_count);
  std::vector<bool> bounded(ranked.count);
  uint32_t* to = members_.data();
  for (const Band& band : bands) {
    std::vector<uint32_t> band_lengths(band.lengths, band.lengths + band.bucket_count);
    const uint32_t* from = std::copy_n(band.members, band.member_count, to) - band.member_count;
    check_band({from, band.member_count, band_lengths.data(), band.bucket_count}, ranked.count);
    for (uint32_t length : band_lengths) {
      const uint32_t* end = from + length;
      longest_ = std::max<uint64_t>(longest_, length);
      if (length > 2 * window_ + 1) {
        ++bounded_buckets_;
        for (const uint32_t* member = from; member < end; ++member) bounded[*member] = true;
      }
      if (end[-1] >= fixed_) {  // else all are: no candidates
        lengths.push_back(length);
        for (; from < end; ++from) ++first_slot_[(*to++ = *from) + 1];
      }
      from = end;
    }
    context.check();
  }
  bounded_documents_ = static_cast<uint64_t>(std::count(bounded.begin(), bounded.end(), true));
  longest_ = std::max<uint64_t>(longest_, ranked.count > 0);  // documents without company have a bucket each

  // first_slot_[document + 1] is where the document's slots begin, then moves on with each, to where they end.
  uint64_t sum = 0;
  for (size_t i = 1; i <= ranked.count; ++i) sum += std::exchange(first_slot_[i], sum);
  uint64_t first = 0;
  for (uint32_t length : lengths) {
    for (uint32_t position = 0; position < length; ++position) {
      uint64_t& slot = first_slot_[members_[first + position] + 1];
      slots_[slot++] = {static_cast<uint32_t>(first), static_cast<uint32_t>(first >> 32), position};
    }
    first += length;
    if (first % 1024 < length) context.check();  // now and then
  }
}

uint64_t Buckets::candidate_bound(uint32_t document) const {
  if (document < fixed_) return 0;
  uint64_t sum = 0;
  for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i) sum += window_size(slots_[i].position);
  return std::min<uint64_t>(sum, document);
}

}  // namespace gpudedup
