// Signatures where they lie, and the keys of their bands. docs/spec.md, section 5.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "cpu/tier.h"

namespace gpudedup {

/// Signatures of `lane_count` lanes in batches; document numbers run over all of them. A batch is a list of groups of
/// lanes: uint32[count, width], of which group g holds the lanes from g * width on; the last may be narrower. In memory
/// one group holds all lanes; in a run directory groups are columns, so that a band reads no other lanes than its own.
class Lanes {
 public:
  explicit Lanes(uint32_t lane_count) : lane_count_(lane_count) {}

  /// groups: of `width` lanes each but the last, which has the rest of lane_count.
  void add(std::vector<const uint32_t*> groups, uint32_t width, size_t count);

  uint32_t lane_count() const { return lane_count_; }
  size_t size() const { return ends_.empty() ? 0 : ends_.back(); }

  /// How many lanes two documents share, or fewer if that cannot reach `needed`.
  uint64_t equal(const Tier& cpu, size_t left, size_t right, uint64_t needed) const;

  /// out[document] = the key of band number `band`, of the lanes from band * rows on. scope_keys [size()] may be null.
  void band_keys(Context& context, uint32_t band, uint32_t rows, const uint64_t* scope_keys, uint64_t* out) const;

 private:
  struct Batch {
    std::vector<const uint32_t*> groups;
    uint32_t width;
    size_t first, count;
  };
  /// Consecutive lanes of one document, as far as they lie together.
  struct Run {
    const uint32_t* lanes;
    uint32_t count;
    uint32_t stride;  // to the same lanes of the next document of the batch
  };
  Run run(const Batch& batch, size_t document, uint32_t lane) const;
  const Batch& of(size_t document) const;

  uint32_t lane_count_;
  std::vector<Batch> batches_;
  std::vector<size_t> ends_;
};

}  // namespace gpudedup
