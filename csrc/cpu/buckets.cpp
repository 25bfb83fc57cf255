#include "cpu/buckets.h"

#include "core/band.h"
#include "cpu/sort.h"

namespace gpudedup {

uint64_t Buckets::window_size(uint64_t position) const { return gpudedup::window_size(position, window_); }
uint64_t Buckets::window_position(uint64_t position, uint64_t i) const {
  return gpudedup::window_position(position, window_, i);
}

void band_keys(Context& context, const uint32_t* lanes, size_t count, uint32_t lane_count, const uint64_t* scope_keys,
               uint32_t bands, uint32_t rows, uint64_t* out) {
  constexpr size_t PIECE = 1024;
  context.each((count + PIECE - 1) / PIECE,
               [&](size_t piece, unsigned) {
                 for (size_t i = piece * PIECE; i < std::min(count, (piece + 1) * PIECE); ++i)
                   for (uint32_t band = 0; band < bands; ++band)
                     out[band * count + i] = band_key(band, scope_keys ? scope_keys[i] : SCOPE_NONE,
                                                      lanes + i * lane_count + band * rows, rows);
               },
               count < 2 * PIECE);
}

Buckets::Buckets(Context& context, const BandKeys& keys, const Ranked& ranked, uint32_t bands, uint64_t window)
    : Buckets(context, sort_bands(context, keys, ranked, bands), ranked, window) {}

std::vector<Buckets::Band> Buckets::sort_bands(Context& context, const BandKeys& keys, const Ranked& ranked,
                                               uint32_t bands) {
  struct Worker {
    std::vector<KeyedIndex> keyed, spare;
  };
  std::vector<Band> by_band(bands);
  std::vector<Worker> workers(context.workers());
  context.each(
      bands,
      [&](size_t band, unsigned number) {
        auto& [keyed, spare] = workers[number];
        keyed.resize(ranked.count);
        const BandKeys::Batch* batch = nullptr;
        for (size_t i = 0; i < ranked.count; ++i) {
          size_t document = ranked.documents[i];
          if (!batch || !batch->has(document)) batch = &keys.of(document);
          keyed[i] = {batch->values[band * batch->count + document - batch->first], static_cast<uint32_t>(i)};
          if (i % 65536 == 0 && context.stopped()) return;
        }
        radix_sort(keyed, spare, context.stop());
        if (context.stopped()) return;
        Band& out = by_band[band];
        for (size_t first = 0, last; first < keyed.size(); first = last) {
          for (last = first + 1; last < keyed.size() && keyed[last].key == keyed[first].key;) ++last;
          if (last - first < 2) continue;
          out.lengths.push_back(static_cast<uint32_t>(last - first));
          for (size_t i = first; i < last; ++i) out.members.push_back(keyed[i].index);
        }
      },
      ranked.count < 1024);
  return by_band;
}

Buckets::Buckets(Context& context, std::vector<Band> by_band, const Ranked& ranked, uint64_t window) : window_(window) {
  if (ranked.scopes) scopes_.assign(ranked.scopes, ranked.scopes + ranked.count);
  if (ranked.across) across_.assign(ranked.across, ranked.across + ranked.count);
  first_slot_.assign(ranked.count + 1, 0);
  size_t total = 0;
  for (const Band& band : by_band) {
    total += band.members.size();
    for (uint32_t document : band.members) ++first_slot_[document + 1];
  }
  for (size_t i = 0; i < ranked.count; ++i) first_slot_[i + 1] += first_slot_[i];
  context.check();

  std::vector<bool> bounded(ranked.count);
  std::vector<uint64_t> next(first_slot_.begin(), first_slot_.end() - 1);
  members_.reserve(total);
  bucket_first_.reserve(total);
  slots_.resize(total);
  for (Band& band : by_band) {
    const uint32_t* member = band.members.data();
    for (uint32_t length : band.lengths) {
      uint64_t first = members_.size();
      bool is_bounded = length > 2 * window_ + 1;
      bounded_buckets_ += is_bounded;
      longest_ = std::max<uint64_t>(longest_, length);
      for (uint32_t i = 0; i < length; ++i, ++member) {
        slots_[next[*member]++] = members_.size();
        members_.push_back(*member);
        bucket_first_.push_back(first);
        if (is_bounded) bounded[*member] = true;
      }
    }
    band = {};
    context.check();
  }
  for (bool is : bounded) bounded_documents_ += is;
  longest_ = std::max<uint64_t>(longest_, ranked.count > 0);  // documents without company have a bucket each
}

uint64_t Buckets::candidate_bound(uint32_t document) const {
  uint64_t sum = 0;
  for (uint64_t i = first_slot_[document]; i < first_slot_[document + 1]; ++i)
    sum += window_size(slots_[i] - bucket_first_[slots_[i]]);
  return std::min<uint64_t>(sum, document);
}

}  // namespace gpudedup
