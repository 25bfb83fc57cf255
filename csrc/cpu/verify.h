// Which documents are removed, comparing no more pairs than that takes. docs/spec.md, sections 9 and 11.
#pragma once
#include <cstdint>
#include <vector>

#include "core/jaccard.h"
#include "cpu/buckets.h"
#include "cpu/lanes.h"
#include "cpu/sets.h"
#include "cpu/tier.h"

namespace gpudedup {

/// part / whole: intersection / union, or equal lanes / lanes. whole = 0: not measured.
struct Similarity {
  uint64_t part = 0, whole = 0;
};

/// How a pair is compared: shingle sets, lanes, or not at all. Documents are places in the rank order.
struct Comparison {
  const SetStore* sets = nullptr;       // verify = exact
  const Lanes* lanes = nullptr;         // verify = signature
  const uint32_t* documents = nullptr;  // [count] -> document number, for lanes
  uint64_t threshold_ppm = 0;
  const Tier* cpu = nullptr;

  /// Whether the pair is similar; fills `similarity` if it is, and, with `always`, also if it is not.
  bool operator()(uint32_t left, uint32_t right, Similarity* similarity, bool always = false) const;

  bool sets_similar(SetView left, SetView right, Similarity* similarity, bool always = false) const;
  bool lanes_similar(const uint32_t* left, const uint32_t* right, uint32_t count, Similarity* similarity) const;
};

/// The decision of an earlier verification of the same candidates at a lower threshold: it tells many pairs' outcome.
struct Decision {
  std::vector<uint32_t> keeper;  // [count]: the document that each was removed for, or NONE
  std::vector<Similarity> similarity;
  uint64_t compared = 0;
};

/// Documents of equal content and different `across` value are candidates and similar whatever the buckets.
/// leader[i] = the best-ranked document of i's content; null without `across`.
struct EqualContent {
  const uint32_t* leader = nullptr;
};

/// Removes each document that is similar to a kept candidate of better rank; its keeper is the best-ranked such. Those
/// of earlier runs stay.
/// A pair is compared only if its better document is kept and no better-ranked keeper was found: what is compared does
/// not depend on the number of workers. With `prior`, pairs whose outcome it tells are not compared again.
Decision verify_keepers(Context& context, const Buckets& buckets, const Comparison& compare, const EqualContent& equal,
                        const Decision* prior);

/// Transitive closure of all similar candidate pairs; the best-ranked document of each component keeps the others but
/// those of earlier runs, which stay.
Decision verify_components(Context& context, const Buckets& buckets, const Comparison& compare,
                           const EqualContent& equal);

/// Documents with a candidate pair whose outcome `prior` does not tell.
std::vector<uint32_t> undecided_documents(Context& context, const Buckets& buckets, const Decision& prior);

}  // namespace gpudedup
