// Signing a batch of documents on all workers.
#pragma once
#include <cstdlib>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tier.h"

namespace gpudedup {

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};
using Values = std::unique_ptr<uint32_t[], Free>;

/// What a thread needs to sign, kept from batch to batch: its memory would cost page faults each time.
class SignWorker {
 public:
  SignWorker();
  SignScratch scratch(uint32_t padded_lanes);

  /// Shingle hashes of the documents it signed in this batch, one after another.
  Values hashes;
  size_t hash_count = 0;
  ShingleSink sink();
  Values take_hashes();

 private:
  size_t room_ = 0;
  std::unique_ptr<uint8_t[]> folded_;
  std::unique_ptr<uint32_t[]> start_, end_, shingle_hash_;
  std::unique_ptr<uint64_t[]> unit_hash_;
  std::vector<uint32_t> minima_;
};

/// Lane constants, fold tables and idle workers of one parameter set. May be used from several threads at once.
class Signer {
 public:
  Signer(UnitKind unit, uint32_t shingle_units, Fold fold, uint32_t lane_count, uint64_t seed);
  const SignPlan& plan() const { return plan_; }

  std::unique_ptr<SignWorker> borrow() const;
  void give_back(std::unique_ptr<SignWorker> worker) const;

 private:
  std::vector<uint32_t> a_, b_;
  SignPlan plan_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<SignWorker>> idle_;
};

/// The host copy of the tables of one fold.
FoldTable fold_table(Fold fold);

/// Documents as Arrow lays them out: document i is bytes[offset(i) .. offset(i + 1)) times `width` (tokens: 8).
struct Documents {
  const uint8_t* bytes;
  const int32_t* offsets32;  // one of the two is null
  const int64_t* offsets64;
  int64_t width;
  size_t count;
  int64_t offset(size_t i) const { return width * (offsets32 ? offsets32[i] : offsets64[i]); }
};

/// Shingle hashes of a batch in document order, as they come (not yet sets); ragged.
struct ShingleHashes {
  std::vector<int64_t> offsets;  // [count + 1]
  Values hashes;                 // [offsets[count]]
};

/// The keys of all bands; `bands` times `rows` is at most lane_count.
struct BandKeys {
  uint32_t bands, rows;
  const uint64_t* scope_keys;  // [count], or null without `within`
  uint64_t* keys;              // [bands, count]
};

/// What is made of a batch; null where it is not wanted.
struct SignedBatch {
  uint64_t* content;     // [count, 2]
  uint64_t* unit_count;  // [count]
  uint32_t* lanes;       // [count, lane_count]
  const BandKeys* band_keys;
  ShingleHashes* hashes;
};

/// Throws std::bad_alloc.
void sign(Context& context, const Signer& signer, const Documents& documents, const SignedBatch& out);

}  // namespace gpudedup
