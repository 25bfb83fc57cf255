#include "cpu/sign.h"

#include <algorithm>
#include <new>

#include "core/band.h"
#include "core/minhash.h"
#include "cpu/folded.h"

namespace gpudedup {

FoldTable fold_table(Fold fold) { return {fold_index[fold], fold_pages, fold_expansions, fold == FOLD_FULL}; }

Signer::Signer(UnitKind unit, uint32_t shingle_units, Fold fold, uint32_t lane_count, uint64_t seed) {
  uint32_t padded = (lane_count + LANE_BLOCK - 1) / LANE_BLOCK * LANE_BLOCK;
  for (uint32_t j = 0; j < padded; ++j) {
    a_.push_back(lane_multiplier(seed, j));
    b_.push_back(lane_offset(seed, j));
  }
  plan_ = {unit,      shingle_units,    lane_count,           padded,           a_.data(),
           b_.data(), fold_table(fold), folded_entries(fold), fold != FOLD_NONE};
}

namespace {

// A piece of work: large enough to pay for a thread's turn, small enough to balance the last ones.
constexpr int64_t PIECE_BYTES = 256 << 10;
constexpr size_t PIECE_DOCUMENTS = 4096;
constexpr size_t HUGE_HASHES = 4 << 20;
// Below this much text a thread costs more than it saves.
constexpr int64_t BRIEF_BYTES = 32 << 10;

}  // namespace

SignWorker::SignWorker()
    : folded_(new uint8_t[TILE_FOLDED_BYTES]()),
      start_(new uint32_t[TILE_UNITS]),
      end_(new uint32_t[TILE_UNITS]),
      shingle_hash_(new uint32_t[MAX_SHINGLE_UNITS + TILE_UNITS]),
      unit_hash_(new uint64_t[MAX_SHINGLE_UNITS + TILE_UNITS]) {}

SignScratch SignWorker::scratch(uint32_t padded_lanes) {
  minima_.resize(padded_lanes);
  return {folded_.get(), start_.get(), end_.get(), unit_hash_.get(), shingle_hash_.get(), minima_.data()};
}

ShingleSink SignWorker::sink() {
  auto reserve = [](void* owner, size_t count) {
    auto* worker = static_cast<SignWorker*>(owner);
    if (worker->room_ < worker->hash_count + count) {
      // realloc moves the pages of a large block and not the values
      size_t room = std::max({worker->hash_count + count, 2 * worker->room_, size_t{1} << 16});
      void* larger = std::realloc(worker->hashes.get(), room * sizeof(uint32_t));
      if (!larger) throw std::bad_alloc();
      worker->hashes.release();
      worker->hashes.reset(static_cast<uint32_t*>(larger));
      worker->room_ = room;
    }
    return worker->hashes.get() + worker->hash_count;
  };
  auto commit = [](void* owner, size_t count) { static_cast<SignWorker*>(owner)->hash_count += count; };
  return {this, reserve, commit};
}

Values SignWorker::take_hashes() {
  room_ = hash_count = 0;
  return std::move(hashes);
}

std::unique_ptr<SignWorker> Signer::borrow() const {
  std::lock_guard<std::mutex> lock(mutex_);
  if (idle_.empty()) return std::make_unique<SignWorker>();
  std::unique_ptr<SignWorker> worker = std::move(idle_.back());
  idle_.pop_back();
  worker->hash_count = 0;
  return worker;
}

void Signer::give_back(std::unique_ptr<SignWorker> worker) const {
  constexpr size_t MOST_HASHES = 16 << 20;  // of one huge document: not worth 64 MB for as long as the signer lives
  if (worker->hash_count > MOST_HASHES) worker->take_hashes();
  std::lock_guard<std::mutex> lock(mutex_);
  idle_.push_back(std::move(worker));
}

void sign(Context& context, const Signer& signer, const Documents& documents, const SignedBatch& out) {
  struct Piece {
    size_t first;              // document
    const SignWorker* worker;  // that has its hashes, from `hash` on
    size_t hash, hash_count;
  };
  const SignPlan& plan = signer.plan();
  const Tier& cpu = tier();
  ShingleHashes* kept = out.hashes;
  std::vector<Piece> pieces;
  for (size_t i = 0; i < documents.count; ++i) {
    bool full = pieces.empty() || i - pieces.back().first >= PIECE_DOCUMENTS ||
                documents.offset(i + 1) - documents.offset(pieces.back().first) > PIECE_BYTES;
    if (full) pieces.push_back({i, nullptr, 0, 0});
  }
  auto last = [&](size_t piece) { return piece + 1 < pieces.size() ? pieces[piece + 1].first : documents.count; };
  if (kept) kept->offsets.assign(documents.count + 1, 0);
  std::vector<std::unique_ptr<SignWorker>> workers(context.workers());

  auto write_keys = [&](size_t document, const uint32_t* lanes) {
    const BandKeys& to = *out.band_keys;
    uint64_t scope = to.scope_keys ? to.scope_keys[document] : SCOPE_NONE;
    for (uint32_t band = 0; band < to.bands; ++band)
      to.keys[band * documents.count + document] = band_key(band, scope, lanes + band * to.rows, to.rows);
  };
  bool brief = documents.count && documents.offset(documents.count) - documents.offset(0) <= BRIEF_BYTES;
  context.each(
      pieces.size(),
      [&](size_t piece, unsigned number) {
        if (!workers[number]) workers[number] = signer.borrow();
        SignWorker& worker = *workers[number];
        SignScratch scratch = worker.scratch(plan.padded_lanes);
        ShingleSink sink = worker.sink();
        size_t start = worker.hash_count;
        for (size_t i = pieces[piece].first; i < last(piece); ++i) {
          int64_t first = documents.offset(i);
          SignedDocument document{out.content + 2 * i, 0};
          size_t before = worker.hash_count;
          if (!cpu.sign(plan, scratch, kept ? &sink : nullptr, documents.bytes + first, documents.offset(i + 1) - first,
                        context.stop(), &document))
            return;
          out.unit_count[i] = document.unit_count;
          if (out.lanes) std::copy_n(scratch.minima, plan.lane_count, out.lanes + i * plan.lane_count);
          if (out.band_keys) write_keys(i, scratch.minima);
          if (kept) kept->offsets[i + 1] = static_cast<int64_t>(worker.hash_count - before);
        }
        pieces[piece].worker = &worker;
        pieces[piece].hash = start;
        pieces[piece].hash_count = worker.hash_count - start;
      },
      brief);
  if (kept) {
    for (size_t i = 0; i < documents.count; ++i) kept->offsets[i + 1] += kept->offsets[i];
    bool huge = pieces.size() == 1 && pieces[0].hash_count > HUGE_HASHES;
    if (huge) {  // one document that fills memory: its hashes are not copied
      kept->hashes = workers[0]->take_hashes();
    } else {
      size_t bytes = static_cast<size_t>(kept->offsets.back()) * sizeof(uint32_t);
      kept->hashes.reset(static_cast<uint32_t*>(std::malloc(std::max<size_t>(1, bytes))));
      if (!kept->hashes) throw std::bad_alloc();
    }
    context.each(
        huge ? 0 : pieces.size(),
        [&](size_t i, unsigned) {
          const Piece& piece = pieces[i];
          std::copy_n(piece.worker->hashes.get() + piece.hash, piece.hash_count,
                      kept->hashes.get() + kept->offsets[piece.first]);
        },
        brief);
  }
  for (std::unique_ptr<SignWorker>& worker : workers)
    if (worker) signer.give_back(std::move(worker));
}

}  // namespace gpudedup
