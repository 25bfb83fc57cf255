#include "cpu/verify.h"

#include <numeric>

namespace gpudedup {
namespace {

enum State : uint8_t { OPEN, KEPT, REMOVED };

// Candidates held at a time: 64 MB. A block of documents never has more unless one document alone does.
constexpr uint64_t BLOCK_CANDIDATES = 16u << 20;
// Blocks grow, so that most of a large cluster meets candidates that are known to be removed, and drops them.
constexpr uint32_t FIRST_BLOCK_DOCUMENTS = 1u << 10, BLOCK_DOCUMENTS = 1u << 18;
constexpr size_t PIECE = 256;  // documents a task
constexpr size_t BRIEF = 64;   // fewer documents are not worth a thread

/// Blocks of consecutive documents, but those of earlier runs, with a bounded number of candidates: calls
/// body(first, last).
template <class Body>
void each_block(const Buckets& buckets, Body&& body) {
  uint32_t count = static_cast<uint32_t>(buckets.count());
  uint32_t documents = FIRST_BLOCK_DOCUMENTS;
  for (uint32_t first = static_cast<uint32_t>(buckets.fixed()), last; first < count;
       first = last, documents = std::min(2 * documents, BLOCK_DOCUMENTS)) {
    uint64_t candidates = 0;
    for (last = first; last < count && last - first < documents; ++last) {
      candidates += buckets.candidate_bound(last);
      if (candidates > BLOCK_CANDIDATES && last > first) break;
    }
    body(first, last);
  }
}

/// The candidates of a block's documents that are worth a look, and how far each document has come.
class Block {
 public:
  struct Rest {
    const uint32_t* at;
    const uint32_t* end;
  };

  /// find(document, list) appends the document's candidates.
  template <class Find>
  Block(Context& context, uint32_t first, uint32_t last, Find&& find)
      : first_(first), lists_((last - first + PIECE - 1) / PIECE), rest_(last - first) {
    context.each(
        lists_.size(),
        [&](size_t piece, unsigned) {
          std::vector<uint32_t>& list = lists_[piece];
          uint32_t from = static_cast<uint32_t>(piece * PIECE);
          uint32_t to = std::min<uint32_t>(last - first, from + PIECE);
          std::vector<size_t> ends;
          for (uint32_t i = from; i < to; ++i) {
            if (context.stopped()) return;
            find(first + i, list);
            ends.push_back(list.size());
          }
          for (uint32_t i = from; i < to; ++i)
            rest_[i] = {list.data() + (i == from ? 0 : ends[i - from - 1]), list.data() + ends[i - from]};
        },
        last - first < BRIEF);
  }
  Rest& operator[](uint32_t document) { return rest_[document - first_]; }

 private:
  uint32_t first_;
  std::vector<std::vector<uint32_t>> lists_;
  std::vector<Rest> rest_;
};

class Keepers {
 public:
  Keepers(Context& context, const Buckets& buckets, const Comparison& compare, const EqualContent& equal,
          const Decision* prior)
      : context_(context),
        buckets_(buckets),
        compare_(compare),
        prior_(prior),
        state_(buckets.count(), OPEN),
        scratch_(buckets.scratch()),
        skips_(scratch_, buckets.member_count()) {
    out_.keeper.assign(buckets.count(), NONE);
    out_.similarity.resize(buckets.count());
    std::fill_n(state_.begin(), buckets.fixed(), KEPT);
    if (equal.leader) link_equal(equal.leader);
  }

  Decision run() {
    each_block(buckets_, [&](uint32_t first, uint32_t last) { decide(first, last); });
    out_.compared = __atomic_load_n(&compared_, __ATOMIC_RELAXED);
    return std::move(out_);
  }

 private:
  State state(uint32_t document) const {
    return static_cast<State>(__atomic_load_n(&state_[document], __ATOMIC_ACQUIRE));
  }
  void settle(uint32_t document, State state) { __atomic_store_n(&state_[document], state, __ATOMIC_RELEASE); }

  /// Chains the documents of equal content by rank: previous_equal_ of each is the one before it.
  void link_equal(const uint32_t* leader) {
    previous_equal_.assign(buckets_.count(), NONE);
    std::vector<uint32_t> last(buckets_.count(), NONE);
    for (uint32_t i = 0; i < buckets_.count(); ++i) {
      previous_equal_[i] = last[leader[i]];
      last[leader[i]] = i;
    }
    kept_equal_.assign(buckets_.count(), NONE);
    for (uint32_t i = 0; i < buckets_.fixed(); ++i)
      if (leader[i] != i) kept_equal_[i] = leader[i];
  }

  bool similar(uint32_t better, uint32_t worse, Similarity* similarity, uint64_t& compared) const {
    if (prior_ && prior_->keeper[better] == NONE) {  // kept then, so compared then unless a better keeper was found
      uint32_t keeper = prior_->keeper[worse];
      if (keeper == NONE || better < keeper) return false;
      if (better == keeper && prior_->similarity[worse].whole) {
        *similarity = prior_->similarity[worse];
        return reaches(similarity->part, similarity->whole, compare_.threshold_ppm);
      }
    }
    ++compared;
    return compare_(better, worse, similarity);
  }

  /// Takes the document as far as decided ones allow. Returns NONE if it is decided now, else the one it waits for.
  uint32_t advance(uint32_t document, Block::Rest& rest, uint64_t& compared) {
    if (state(document) == REMOVED) return NONE;  // by a candidate from before the block
    uint32_t equal = NONE;  // the first kept document of equal content: it removes all after it but those that stay
    if (!previous_equal_.empty() && previous_equal_[document] != NONE) {
      uint32_t previous = previous_equal_[document];
      if (state(previous) == OPEN) return previous;
      equal = kept_equal_[previous];
      if (equal == NONE && state(previous) == KEPT) equal = previous;
      kept_equal_[document] = equal;
    }
    for (; rest.at < rest.end && *rest.at < equal; ++rest.at) {
      uint32_t candidate = *rest.at;
      State decided = state(candidate);
      if (decided == OPEN) return candidate;
      if (decided == KEPT && try_keeper(candidate, document, compared)) return NONE;
    }
    if (equal != NONE) {
      out_.keeper[document] = equal;
      out_.similarity[document] = {1, 1};
    }
    settle(document, equal == NONE ? KEPT : REMOVED);
    return NONE;
  }

  /// Candidates of a document of the block that begins at `first`, without those known to be removed. Before the block
  /// all is decided: if a candidate there removes the document, those in the block are not even looked for.
  void find(uint32_t document, uint32_t first, std::vector<uint32_t>& list) {
    auto removed = [&](uint32_t candidate) { return state(candidate) == REMOVED; };
    size_t before = list.size();
    buckets_.candidates_between(document, 0, first, skips_.data(), list, removed);
    if (previous_equal_.empty() || previous_equal_[document] == NONE) {
      uint64_t compared = 0;
      for (size_t i = before; i < list.size(); ++i)
        if (try_keeper(list[i], document, compared)) break;
      __atomic_fetch_add(&compared_, compared, __ATOMIC_RELAXED);
      list.resize(before);
      if (state(document) == REMOVED) return;
    }
    buckets_.candidates_between(document, first, document, skips_.data(), list, removed);
  }

  /// Removes the document for a kept candidate if they are similar.
  bool try_keeper(uint32_t candidate, uint32_t document, uint64_t& compared) {
    Similarity similarity;
    if (!similar(candidate, document, &similarity, compared)) return false;
    out_.keeper[document] = candidate;
    out_.similarity[document] = similarity;
    settle(document, REMOVED);
    return true;
  }

  void decide(uint32_t first, uint32_t last) {
    Block block(context_, first, last,
                [&](uint32_t document, std::vector<uint32_t>& list) { find(document, first, list); });
    std::vector<uint32_t> waiting(last - first, NONE);  // head of the list of those that wait for a document
    std::vector<uint32_t> next(last - first, NONE);     // the rest of that list
    std::vector<uint32_t> ready(last - first), blocked_on;
    std::iota(ready.begin(), ready.end(), first);
    std::vector<uint32_t> woken;
    while (!ready.empty()) {
      context_.check();
      blocked_on.assign(ready.size(), NONE);
      bool brief = ready.size() < BRIEF;
      context_.each((ready.size() + PIECE - 1) / PIECE,
                    [&](size_t piece, unsigned) {
                      uint64_t compared = 0;
                      for (size_t i = piece * PIECE; i < std::min(ready.size(), (piece + 1) * PIECE); ++i) {
                        if (context_.stopped()) return;
                        if (brief) context_.check();
                        blocked_on[i] = advance(ready[i], block[ready[i]], compared);
                      }
                      __atomic_fetch_add(&compared_, compared, __ATOMIC_RELAXED);
                    },
                    brief);
      woken.clear();
      for (size_t i = 0; i < ready.size(); ++i) {
        uint32_t document = ready[i], other = blocked_on[i];
        if (other == NONE) {
          for (uint32_t w = waiting[document - first]; w != NONE; w = next[w - first]) woken.push_back(w);
          waiting[document - first] = NONE;
        } else if (state_[other] == OPEN) {
          next[document - first] = waiting[other - first];
          waiting[other - first] = document;
        } else {
          woken.push_back(document);
        }
      }
      ready.swap(woken);
    }
  }

  Context& context_;
  const Buckets& buckets_;
  const Comparison& compare_;
  const Decision* prior_;
  std::vector<uint8_t> state_;
  Scratch scratch_;
  ScratchArray<uint32_t> skips_;
  std::vector<uint32_t> previous_equal_, kept_equal_;
  uint64_t compared_ = 0;
  Decision out_;
};

/// Disjoint sets whose root is their best-ranked member.
class Components {
 public:
  explicit Components(size_t count) : parent_(count) { std::iota(parent_.begin(), parent_.end(), 0); }
  uint32_t root(uint32_t document) {
    while (parent_[document] != document) document = parent_[document] = parent_[parent_[document]];
    return document;
  }
  void join(uint32_t left, uint32_t right) {
    left = root(left);
    right = root(right);
    parent_[std::max(left, right)] = std::min(left, right);
  }

 private:
  std::vector<uint32_t> parent_;
};

}  // namespace

bool Comparison::operator()(uint32_t left, uint32_t right, Similarity* similarity, bool always) const {
  if (sets) return sets_similar((*sets)[left], (*sets)[right], similarity, always);
  if (!lanes) return true;
  uint64_t count = lanes->lane_count(), needed = always ? 0 : (threshold_ppm * count + PPM - 1) / PPM;
  *similarity = {lanes->equal(*cpu, documents[left], documents[right], needed), count};
  return reaches(similarity->part, count, threshold_ppm);
}

bool Comparison::sets_similar(SetView left, SetView right, Similarity* similarity, bool always) const {
  uint64_t needed = needed_intersection(left.size, right.size, threshold_ppm);
  if (std::min(left.size, right.size) < needed && !always) return false;
  uint64_t common = cpu->intersect(left.values, left.size, right.values, right.size, always ? 0 : needed);
  *similarity = {common, left.size + right.size - common};
  return common >= needed;
}

bool Comparison::lanes_similar(const uint32_t* left, const uint32_t* right, uint32_t count,
                               Similarity* similarity) const {
  uint64_t equal = cpu->equal_lanes(left, right, count);
  *similarity = {equal, count};
  return reaches(equal, count, threshold_ppm);
}

Decision verify_keepers(Context& context, const Buckets& buckets, const Comparison& compare, const EqualContent& equal,
                        const Decision* prior) {
  return Keepers(context, buckets, compare, equal, prior).run();
}

Decision verify_components(Context& context, const Buckets& buckets, const Comparison& compare,
                           const EqualContent& equal) {
  uint32_t count = static_cast<uint32_t>(buckets.count()), fixed = static_cast<uint32_t>(buckets.fixed());
  Components components(count);
  Decision out;
  out.keeper.assign(count, NONE);
  out.similarity.resize(count);
  if (equal.leader) {
    std::vector<bool> joins(count);  // by leader: whether any of its content is not of an earlier run
    for (uint32_t i = fixed; i < count; ++i) joins[equal.leader[i]] = true;
    for (uint32_t i = 0; i < count; ++i)
      if (joins[equal.leader[i]]) components.join(i, equal.leader[i]);
  }

  each_block(buckets, [&](uint32_t first, uint32_t last) {
    Block block(context, first, last, [&](uint32_t document, std::vector<uint32_t>& list) {
      buckets.candidates(document, list, [](uint32_t) { return true; });
    });
    std::vector<uint32_t> active(last - first), still;
    std::iota(active.begin(), active.end(), first);
    std::vector<uint8_t> joined;
    while (!active.empty()) {  // one pair of each document a round, so that what it joins spares later pairs
      context.check();
      still.clear();
      for (uint32_t document : active) {
        Block::Rest& rest = block[document];
        while (rest.at < rest.end && components.root(*rest.at) == components.root(document)) ++rest.at;
        if (rest.at < rest.end) still.push_back(document);
      }
      active.swap(still);
      joined.assign(active.size(), 0);
      context.each((active.size() + PIECE - 1) / PIECE,
                   [&](size_t piece, unsigned) {
                     Similarity similarity;
                     for (size_t i = piece * PIECE;
                          i < std::min(active.size(), (piece + 1) * PIECE) && !context.stopped(); ++i)
                       joined[i] = compare(*block[active[i]].at, active[i], &similarity);
                   },
                   active.size() < BRIEF);
      out.compared += active.size();
      for (size_t i = 0; i < active.size(); ++i)
        if (joined[i])
          components.join(*block[active[i]].at, active[i]);
        else
          ++block[active[i]].at;
    }
  });

  std::vector<uint32_t> candidates;
  for (uint32_t i = fixed; i < count; ++i) {
    uint32_t root = components.root(i);
    if (root == i) continue;
    context.check();
    out.keeper[i] = root;
    if (equal.leader && equal.leader[i] == equal.leader[root]) {
      out.similarity[i] = {1, 1};
      continue;
    }
    candidates.clear();
    buckets.candidates(i, candidates, [&](uint32_t candidate) { return candidate == root; });
    if (!candidates.empty()) compare(root, i, &out.similarity[i], true);
  }
  return out;
}

std::vector<uint32_t> undecided_documents(Context& context, const Buckets& buckets, const Decision& prior) {
  uint32_t count = static_cast<uint32_t>(buckets.count());
  std::vector<bool> needed(count);
  std::vector<uint32_t> candidates;
  for (uint32_t i = 0; i < count; ++i) {
    if (!buckets.shared(i)) continue;
    context.check();
    uint32_t keeper = prior.keeper[i];
    candidates.clear();
    buckets.candidates(i, candidates, [&](uint32_t better) { return prior.keeper[better] != NONE || better > keeper; });
    // NONE is above every document, so a kept document needs those of its candidates that were removed
    for (uint32_t better : candidates) needed[better] = needed[i] = true;
  }
  std::vector<uint32_t> documents;
  for (uint32_t i = 0; i < count; ++i)
    if (needed[i]) documents.push_back(i);
  return documents;
}

}  // namespace gpudedup
