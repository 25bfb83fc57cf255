#include "cpu/lanes.h"

#include <algorithm>

#include "core/band.h"

namespace gpudedup {
namespace {

constexpr size_t PIECE = 512;            // documents a task
constexpr size_t PIECE_LANES = 1 << 14;  // of one band, put together at once

}  // namespace

void Lanes::add(std::vector<const uint32_t*> groups, uint32_t width, size_t count) {
  if (count == 0) return;
  batches_.push_back({std::move(groups), width, size(), count});
  ends_.push_back(size() + count);
}

const Lanes::Batch& Lanes::of(size_t document) const {
  return batches_[static_cast<size_t>(std::upper_bound(ends_.begin(), ends_.end(), document) - ends_.begin())];
}

Lanes::Run Lanes::run(const Batch& batch, size_t document, uint32_t lane) const {
  uint32_t group = lane / batch.width, first = group * batch.width;
  uint32_t width = std::min(batch.width, lane_count_ - first);
  return {batch.groups[group] + (document - batch.first) * width + (lane - first), width - (lane - first), width};
}

uint64_t Lanes::equal(const Tier& cpu, size_t left, size_t right, uint64_t needed) const {
  const Batch &left_batch = of(left), &right_batch = of(right);
  uint64_t equal = 0;
  for (uint32_t lane = 0; lane < lane_count_ && equal + (lane_count_ - lane) >= needed;) {
    Run x = run(left_batch, left, lane), y = run(right_batch, right, lane);
    uint32_t together = std::min(x.count, y.count);
    equal += cpu.equal_lanes(x.lanes, y.lanes, together);
    lane += together;
  }
  return equal;
}

void Lanes::band_keys(Context& context, uint32_t band, uint32_t rows, const uint64_t* scope_keys, uint64_t* out) const {
  context.each((size() + PIECE - 1) / PIECE,
               [&](size_t piece, unsigned) {
                 size_t at_once = std::clamp<size_t>(PIECE_LANES / std::max(rows, 1u), 1, PIECE);
                 std::vector<uint32_t> lanes(at_once * rows);
                 size_t end = std::min(size(), (piece + 1) * PIECE);
                 for (size_t first = piece * PIECE, last; first < end; first = last) {
                   const Batch& batch = of(first);
                   last = std::min({end, batch.first + batch.count, first + at_once});
                   for (uint32_t i = 0; i < rows;) {
                     Run part = run(batch, first, band * rows + i);
                     uint32_t width = part.stride, together = std::min(part.count, rows - i);
                     for (size_t k = 0; k < last - first; ++k)
                       for (uint32_t j = 0; j < together; ++j) lanes[k * rows + i + j] = part.lanes[k * width + j];
                     i += together;
                   }
                   for (size_t k = 0; k < last - first; ++k)
                     out[first + k] =
                         band_key(band, scope_keys ? scope_keys[first + k] : SCOPE_NONE, lanes.data() + k * rows, rows);
                 }
               },
               size() < 2 * PIECE);
}

}  // namespace gpudedup
