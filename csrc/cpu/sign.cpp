#include "cpu/sign.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "core/minhash.h"

namespace gpudedup {

FoldTable fold_table(Fold fold) { return {fold_index[fold], fold_pages, fold_expansions, fold == FOLD_FULL}; }

Signer::Signer(UnitKind unit, uint32_t shingle_units, Fold fold, uint32_t lane_count, uint64_t seed) {
  uint32_t padded = (lane_count + LANE_BLOCK - 1) / LANE_BLOCK * LANE_BLOCK;
  for (uint32_t j = 0; j < padded; ++j) {
    a_.push_back(lane_multiplier(seed, j));
    b_.push_back(lane_offset(seed, j));
  }
  plan_ = {unit, shingle_units, lane_count, padded, a_.data(), b_.data(), fold_table(fold), fold != FOLD_NONE};
}

namespace {

// A piece of work: large enough to pay for a thread's turn, small enough to balance the last ones.
constexpr int64_t PIECE_BYTES = 256 << 10;
constexpr size_t PIECE_DOCUMENTS = 4096;
// Below this much text a thread costs more than it saves.
constexpr int64_t BRIEF_BYTES = 32 << 10;

struct Worker {
  std::unique_ptr<uint8_t[]> folded{new uint8_t[TILE_FOLDED_BYTES]()};
  std::unique_ptr<uint32_t[]> start{new uint32_t[TILE_UNITS]};
  std::unique_ptr<uint32_t[]> end{new uint32_t[TILE_UNITS]};
  std::unique_ptr<uint64_t[]> unit_hash{new uint64_t[MAX_SHINGLE_UNITS + TILE_UNITS]};
  std::unique_ptr<uint32_t[]> shingle_hash{new uint32_t[MAX_SHINGLE_UNITS + TILE_UNITS]};
  std::vector<uint32_t> minima;
  SignScratch scratch(uint32_t padded_lanes) {
    minima.resize(padded_lanes);
    return {folded.get(), start.get(), end.get(), unit_hash.get(), shingle_hash.get(), minima.data()};
  }
};

/// Shingle hashes of one piece; `used` of `room` are filled.
struct PieceHashes {
  Values values;
  size_t room = 0, used = 0;
};

uint32_t* reserve(void* owner, size_t count) {
  auto* piece = static_cast<PieceHashes*>(owner);
  if (piece->room < piece->used + count) {
    size_t room = std::max({piece->used + count, 2 * piece->room, size_t{1} << 14});
    Values larger = make_values(room);
    std::copy_n(piece->values.get(), piece->used, larger.get());
    piece->values = std::move(larger);
    piece->room = room;
  }
  return piece->values.get() + piece->used;
}

void commit(void* owner, size_t count) { static_cast<PieceHashes*>(owner)->used += count; }

}  // namespace

Values make_values(size_t count) {
  constexpr size_t LARGE_PAGE = 2 << 20;
  size_t bytes = std::max<size_t>(1, count * sizeof(uint32_t));
  if (bytes < 2 * LARGE_PAGE) {
    Values values(static_cast<uint32_t*>(std::malloc(bytes)));
    if (!values) throw std::bad_alloc();
    return values;
  }
  bytes = (bytes + LARGE_PAGE - 1) / LARGE_PAGE * LARGE_PAGE;
  Values values(static_cast<uint32_t*>(std::aligned_alloc(LARGE_PAGE, bytes)));
  if (!values) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  ::madvise(values.get(), bytes, MADV_HUGEPAGE);  // advice: where it is not taken, pages are small
#endif
  return values;
}

void sign(Context& context, const Signer& signer, const Documents& documents, uint32_t* lanes, uint64_t* content,
          uint64_t* unit_count, ShingleHashes* kept) {
  const SignPlan& plan = signer.plan();
  const Tier& cpu = tier();
  std::vector<size_t> piece_first{0};
  for (size_t i = 0; i < documents.count; ++i) {
    size_t first = piece_first.back();
    if (i - first >= PIECE_DOCUMENTS || (i > first && documents.offset(i + 1) - documents.offset(first) > PIECE_BYTES))
      piece_first.push_back(i);
  }
  size_t pieces = documents.count ? piece_first.size() : 0;
  piece_first.push_back(documents.count);
  std::vector<PieceHashes> hashes(kept ? pieces : 0);
  if (kept) kept->offsets.assign(documents.count + 1, 0);
  std::vector<std::unique_ptr<Worker>> workers(context.workers());

  bool brief = documents.count && documents.offset(documents.count) - documents.offset(0) <= BRIEF_BYTES;
  context.each(
      pieces,
      [&](size_t piece, unsigned worker) {
        if (!workers[worker]) workers[worker] = std::make_unique<Worker>();
        SignScratch scratch = workers[worker]->scratch(plan.padded_lanes);
        ShingleSink sink{kept ? &hashes[piece] : nullptr, reserve, commit};
        for (size_t i = piece_first[piece]; i < piece_first[piece + 1]; ++i) {
          int64_t first = documents.offset(i);
          SignedDocument out{lanes + i * plan.lane_count, content + 2 * i, 0};
          size_t before = kept ? hashes[piece].used : 0;
          if (!cpu.sign(plan, scratch, kept ? &sink : nullptr, documents.bytes + first, documents.offset(i + 1) - first,
                        context.stop(), &out))
            return;
          unit_count[i] = out.unit_count;
          if (kept) kept->offsets[i + 1] = static_cast<int64_t>(hashes[piece].used - before);
        }
      },
      brief);
  if (!kept) return;
  for (size_t i = 0; i < documents.count; ++i) kept->offsets[i + 1] += kept->offsets[i];
  kept->hashes = make_values(static_cast<size_t>(kept->offsets.back()));
  context.each(
      pieces,
      [&](size_t piece, unsigned) {
        std::copy_n(hashes[piece].values.get(), hashes[piece].used,
                    kept->hashes.get() + kept->offsets[piece_first[piece]]);
        hashes[piece] = {};
      },
      brief);
}

}  // namespace gpudedup
