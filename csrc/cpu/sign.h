// Signing a batch of documents on all workers.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tier.h"

namespace gpudedup {

/// Lane constants and fold tables of one parameter set.
class Signer {
 public:
  Signer(UnitKind unit, uint32_t shingle_units, Fold fold, uint32_t lane_count, uint64_t seed);
  const SignPlan& plan() const { return plan_; }

 private:
  std::vector<uint32_t> a_, b_;
  SignPlan plan_;
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

struct Free {
  void operator()(void* pointer) const { std::free(pointer); }
};
using Values = std::unique_ptr<uint32_t[], Free>;

/// `count` values of no meaning yet; on large pages where they are many, which spares most page faults.
/// Throws std::bad_alloc.
Values make_values(size_t count);

/// Shingle hashes of a batch in document order, as they come (not yet sets); ragged.
struct ShingleHashes {
  std::vector<int64_t> offsets;  // [count + 1]
  Values hashes;                 // [offsets[count]]
};

/// lanes uint32[count, lane_count], content uint64[count, 2], unit_count uint64[count]; `kept` may be null.
void sign(Context& context, const Signer& signer, const Documents& documents, uint32_t* lanes, uint64_t* content,
          uint64_t* unit_count, ShingleHashes* kept);

}  // namespace gpudedup
