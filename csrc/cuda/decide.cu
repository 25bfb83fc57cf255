// Which documents are removed for which, a block of documents after another. docs/spec.md, sections 9 and 11.
//
// A warp walks down one document's candidates, best first. One that it is not like is passed whatever becomes of it; at
// one that it is like and that is not decided yet, the document waits, and the host launches it again. Documents before
// the block are decided, and the best-ranked that waits for none is in each round, so rounds end. The answer is unique:
// it does not depend on which decisions a round has seen. The same on the CPU: `Keepers` in csrc/cpu/verify.cpp.
#include "cuda/intersect.h"

using namespace gpudedup;

namespace {

constexpr uint32_t NONE = 0xFFFFFFFFu;
enum State : uint32_t { OPEN = 0, KEPT = 1, REMOVED = 2 };

/// A smaller set of more values than this is compared by the whole device (measure_large).
constexpr uint32_t LARGE_SET = 1 << 14;

struct Similarity {
  uint64_t part, whole;
};

/// What a comparison came to: the pair is similar or not, or is to be measured by the whole device first.
enum Outcome { UNLIKE, SIMILAR, UNMEASURED };

struct CompareSets {
  Sets sets;
  Threshold threshold;
  const uint32_t* large_common;  // of this document's pair, if `measured`
  __device__ Outcome operator()(uint32_t better, uint32_t worse, bool measured, uint32_t slot,
                                Similarity* similarity) const {
    uint64_t m = sets.size[better], n = sets.size[worse];
    const uint64_t needed = needed_intersection(m, n, threshold);
    const bool first = m <= n;
    const uint64_t least = first ? m : n;
    if (least < needed) return UNLIKE;
    uint64_t common;
    if (least > LARGE_SET) {
      if (!measured) return UNMEASURED;
      common = large_common[slot];
    } else {
      common = warp_intersection(first ? sets[better] : sets[worse], static_cast<uint32_t>(least),
                                 first ? sets[worse] : sets[better], static_cast<uint32_t>(first ? n : m),
                                 static_cast<uint32_t>(needed));
    }
    *similarity = {common, m + n - common};
    return common >= needed ? SIMILAR : UNLIKE;
  }
};

/// Lanes of `count` documents in groups of 8, group after group: a document has 32 bytes of each, a sector of memory,
/// so that they go up as they lie in the columns of a run directory. The last group may be narrower.
struct CompareLanes {
  static constexpr uint32_t GROUP = 8;
  /// Loads of a thread for each document that are under way together: all of 128 lanes. To look after every 32 whether
  /// the threshold can still be reached would spare unlike pairs half of their bytes, and leave a quarter in flight.
  static constexpr uint32_t LOADS = 4;
  const uint32_t* lanes;
  const uint32_t* documents;
  uint32_t count;
  uint32_t lane_count;
  uint64_t threshold_ppm;

  __device__ uint32_t lane_of(uint32_t row, uint32_t lane) const {
    const uint32_t first = lane & ~(GROUP - 1), width = lane_count - first < GROUP ? lane_count - first : GROUP;
    return lanes[static_cast<uint64_t>(first) * count + static_cast<uint64_t>(row) * width + (lane - first)];
  }

  __device__ Outcome operator()(uint32_t better, uint32_t worse, bool, uint32_t, Similarity* similarity) const {
    const uint32_t left = documents[better], right = documents[worse];
    uint32_t equal = 0;
    for (uint32_t base = 0; base < lane_count; base += 32 * LOADS) {
      uint32_t own[LOADS], other[LOADS];
#pragma unroll
      for (uint32_t k = 0; k < LOADS; ++k) {  // no branches: past the end the last lane is read again
        const uint32_t lane = base + 32 * k + (threadIdx.x & 31);
        const uint32_t read = lane < lane_count ? lane : lane_count - 1;
        own[k] = lane_of(left, read);
        other[k] = lane_of(right, read);
      }
#pragma unroll
      for (uint32_t k = 0; k < LOADS; ++k) {
        const uint32_t lane = base + 32 * k + (threadIdx.x & 31);
        equal += __popc(__ballot_sync(WHOLE_WARP, lane < lane_count && own[k] == other[k]));
      }
      const uint32_t seen = base + 32 * LOADS;
      const uint32_t rest = seen < lane_count ? lane_count - seen : 0;
      if (!reaches(equal + rest, lane_count, threshold_ppm)) return UNLIKE;
    }
    *similarity = {equal, lane_count};
    return SIMILAR;
  }
};

struct CompareNothing {
  __device__ Outcome operator()(uint32_t, uint32_t, bool, uint32_t, Similarity* similarity) const {
    *similarity = {0, 0};
    return SIMILAR;
  }
};

/// Candidates of the block's documents: of document low + k, better[begins[k] .. begins[k + 1]), ascending.
struct Candidates {
  uint32_t low;
  const uint64_t* begins;
  const uint32_t* better;
  uint64_t* cursor;  // [block] how far each document has come
};

/// Documents of equal content and other `across` value, chained by rank; has = 0 without `across`.
struct Equals {
  uint32_t has;
  const uint32_t* previous;  // the one before it, or NONE
  uint32_t* kept;            // the first kept one before it, or NONE; good once the document is decided
};

struct Decision {
  uint32_t* state;
  uint32_t* keeper;
  uint64_t* part;
  uint64_t* whole;
};

/// A state is read again by each launch and may change in between; all that is read after it was written before it.
__device__ __forceinline__ uint32_t state_of(const Decision& decision, uint32_t document) {
  return *static_cast<const volatile uint32_t*>(decision.state + document);
}

__device__ __forceinline__ void settle(const Decision& decision, uint32_t document, uint32_t keeper,
                                       const Similarity& similarity) {
  decision.keeper[document] = keeper;
  decision.part[document] = similarity.part;
  decision.whole[document] = similarity.whole;
  __threadfence();
  *static_cast<volatile uint32_t*>(decision.state + document) = keeper == NONE ? KEPT : REMOVED;
}

/// What a document that waits has asked for, or found out, of the candidate that it has come to.
enum Request : uint32_t { NOTHING = 0, TO_MEASURE = 1, KNOWN_SIMILAR = 2 };

/// waits[i] = 0 once active[i] is decided. requests[k]: of document low + k; its similarity, where that is known, lies
/// in `decision` already.
template <class Compare>
__device__ __forceinline__ void advance(const uint32_t* active, uint32_t active_count, const Candidates& candidates,
                                        const Equals& equals, const Compare& compare, uint32_t* requests,
                                        uint32_t* large_common, uint32_t* request_count, const Decision& decision,
                                        uint32_t* waits) {
  const uint32_t i = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
  if (i >= active_count) return;  // for whole warps
  const bool writer = (threadIdx.x & 31) == 0;
  const uint32_t document = active[i], slot = document - candidates.low;
  uint64_t at = candidates.cursor[slot];
  const uint64_t end = candidates.begins[slot + 1];
  uint32_t request = requests[slot];
  uint32_t equal = NONE;  // the first kept document of equal content: it removes all after it but those that stay
  bool decided = false, blocked = false;

  // Lane 0 reads what others may be writing, so that a warp is of one mind.
  if (equals.has && equals.previous[document] != NONE) {
    const uint32_t previous = equals.previous[document];
    const uint32_t state = __shfl_sync(WHOLE_WARP, writer ? state_of(decision, previous) : 0, 0);
    if (state == OPEN) {
      blocked = true;
    } else {
      __threadfence();
      const uint32_t kept = writer ? *static_cast<const volatile uint32_t*>(equals.kept + previous) : 0;
      equal = __shfl_sync(WHOLE_WARP, kept == NONE && state == KEPT ? previous : kept, 0);
      if (writer) *static_cast<volatile uint32_t*>(equals.kept + document) = equal;
    }
  }
  while (!blocked && !decided && at < end && candidates.better[at] < equal) {
    const uint32_t candidate = candidates.better[at];
    const uint32_t state = __shfl_sync(WHOLE_WARP, writer ? state_of(decision, candidate) : 0, 0);
    if (state == REMOVED) {
      request = NOTHING;
      ++at;
      continue;
    }
    Similarity similarity;
    Outcome outcome = SIMILAR;
    if (request == KNOWN_SIMILAR) {
      similarity = {decision.part[document], decision.whole[document]};
    } else {
      outcome = compare(candidate, document, request == TO_MEASURE, slot, &similarity);
    }
    request = NOTHING;
    if (outcome == UNLIKE) {
      ++at;
      continue;
    }
    decided = outcome == SIMILAR && state == KEPT;
    blocked = !decided;
    if (decided) {
      if (writer) settle(decision, document, candidate, similarity);
    } else if (outcome == SIMILAR) {
      request = KNOWN_SIMILAR;
      if (writer) {
        decision.part[document] = similarity.part;
        decision.whole[document] = similarity.whole;
      }
    } else {
      request = TO_MEASURE;
      if (writer) {
        large_common[slot] = 0;
        atomicAdd(request_count, 1u);
      }
    }
  }
  if (!writer) return;
  if (!blocked && !decided) settle(decision, document, equal, equal == NONE ? Similarity{0, 0} : Similarity{1, 1});
  candidates.cursor[slot] = at;
  requests[slot] = request;
  waits[i] = blocked;
}

}  // namespace

// Five blocks: left to itself, the compiler spills a register to have six on sm_100.
extern "C" __global__ void __launch_bounds__(256, 5)
    advance_sets(const uint32_t* active, uint32_t active_count, uint32_t low, const uint64_t* begins,
                 const uint32_t* better, uint64_t* cursor, uint32_t has_equals, const uint32_t* previous_equal,
                 uint32_t* kept_equal, const uint64_t* set_address, const uint32_t* set_size, uint64_t threshold_ppm,
                 uint64_t reciprocal, uint32_t* requests, uint32_t* large_common, uint32_t* request_count,
                 uint32_t* state, uint32_t* keeper, uint64_t* part, uint64_t* whole, uint32_t* waits) {
  advance(active, active_count, {low, begins, better, cursor}, {has_equals, previous_equal, kept_equal},
          CompareSets{{set_address, set_size}, {threshold_ppm, reciprocal}, large_common}, requests, large_common,
          request_count, {state, keeper, part, whole}, waits);
}

extern "C" __global__ void __launch_bounds__(256)
    advance_lanes(const uint32_t* active, uint32_t active_count, uint32_t low, const uint64_t* begins,
                  const uint32_t* better, uint64_t* cursor, uint32_t has_equals, const uint32_t* previous_equal,
                  uint32_t* kept_equal, const uint32_t* lanes, const uint32_t* documents, uint32_t lane_document_count,
                  uint32_t lane_count, uint64_t threshold_ppm, uint32_t* requests, uint32_t* large_common,
                  uint32_t* request_count, uint32_t* state, uint32_t* keeper, uint64_t* part, uint64_t* whole,
                  uint32_t* waits) {
  advance(active, active_count, {low, begins, better, cursor}, {has_equals, previous_equal, kept_equal},
          CompareLanes{lanes, documents, lane_document_count, lane_count, threshold_ppm}, requests, large_common,
          request_count, {state, keeper, part, whole}, waits);
}

extern "C" __global__ void __launch_bounds__(256)
    advance_unverified(const uint32_t* active, uint32_t active_count, uint32_t low, const uint64_t* begins,
                       const uint32_t* better, uint64_t* cursor, uint32_t has_equals, const uint32_t* previous_equal,
                       uint32_t* kept_equal, uint32_t* requests, uint32_t* large_common, uint32_t* request_count,
                       uint32_t* state, uint32_t* keeper, uint64_t* part, uint64_t* whole, uint32_t* waits) {
  advance(active, active_count, {low, begins, better, cursor}, {has_equals, previous_equal, kept_equal},
          CompareNothing{}, requests, large_common, request_count, {state, keeper, part, whole}, waits);
}

/// large_common[k] += what every thread finds of the intersection that document low + k waits for. Any grid; each pair
/// is cut over all of it, so that one pair of documents of a gigabyte fills the device.
extern "C" __global__ void __launch_bounds__(256)
    measure_large(const uint32_t* active, uint32_t active_count, uint32_t low, const uint32_t* better,
                  const uint64_t* cursor, const uint64_t* set_address, const uint32_t* set_size,
                  const uint32_t* requests, const uint32_t* request_count, uint32_t* large_common) {
  if (*request_count == 0) return;
  const Sets sets{set_address, set_size};
  const uint64_t thread = static_cast<uint64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const uint64_t threads = static_cast<uint64_t>(gridDim.x) * blockDim.x;
  for (uint32_t i = 0; i < active_count; ++i) {
    const uint32_t slot = active[i] - low;
    if (requests[slot] != TO_MEASURE) continue;
    uint32_t small = better[cursor[slot]], large = active[i];
    if (sets.size[small] > sets.size[large]) {
      small = large;
      large = better[cursor[slot]];
    }
    const uint32_t m = sets.size[small], n = sets.size[large];
    uint32_t common = 0;
    for (uint64_t base = 0; base < m; base += threads) {
      const uint64_t place = base + thread;
      bool found = false;
      if (place < m) {
        const uint32_t value = sets[small][place];
        const uint32_t at = lower_bound(sets[large], 0, n, value);
        found = at < n && sets[large][at] == value;
      }
      common += __popc(__ballot_sync(WHOLE_WARP, found));
    }
    if ((threadIdx.x & 31) == 0 && common) atomicAdd(&large_common[slot], common);
  }
}

/// *compared += pairs that the decision of documents low .. low + count - 1 rests on: with each kept candidate down to
/// the keeper. Which others a round compared depends on what it saw.
extern "C" __global__ void __launch_bounds__(256)
    count_compared(uint32_t low, uint32_t count, const uint64_t* begins, const uint32_t* better, const uint64_t* cursor,
                   const uint32_t* state, const uint32_t* keeper, uint64_t* compared) {
  const uint32_t slot = blockIdx.x * blockDim.x + threadIdx.x;
  uint32_t pairs = 0;
  if (slot < count) {
    const uint64_t last = cursor[slot];
    for (uint64_t at = begins[slot]; at < last; ++at) pairs += state[better[at]] == KEPT;
    pairs += last < begins[slot + 1] && better[last] == keeper[low + slot];
  }
  for (uint32_t by = 16; by > 0; by /= 2) pairs += __shfl_down_sync(WHOLE_WARP, pairs, by);
  if ((threadIdx.x & 31) == 0 && pairs)
    atomicAdd(reinterpret_cast<unsigned long long*>(compared), static_cast<unsigned long long>(pairs));
}
