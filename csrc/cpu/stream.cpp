#include "cpu/stream.h"

#include <random>
#include <stdexcept>

#include "core/band.h"
#include "cpu/sort.h"

namespace gpudedup {

void KeyTable::insert(uint64_t key, uint32_t value) {
  Slot* slot = place(key);
  *slot = {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), value};
  bool at_end = slot + 1 == slots_.data() + slots_.size();  // find must always meet a free slot
  if (++used_ * 20 >= size_ * 17 || at_end) resize(size_ + size_ / 5 + 1);
}

void KeyTable::resize(size_t size) {
  constexpr size_t OVERHANG = 1024;  // slots for the run at the end; insert makes more when it is longer
  std::vector<Slot> old(size + OVERHANG, Slot{0, 0, NONE});
  old.swap(slots_);
  size_ = size;
  for (const Slot& slot : old) {
    if (slot.value == NONE) continue;
    Slot* free = place(slot.key());
    *free = slot;
    if (free + 1 == slots_.data() + slots_.size()) {  // a run too long for the overhang: more room, and once more
      slots_.swap(old);
      return resize(size + size / 5 + 1);
    }
  }
}

namespace {

uint64_t random_secret() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

uint64_t identity_hash(const uint64_t* content, int32_t scope, int32_t across) {
  return absorb(absorb(content[0], content[1]),
                static_cast<uint64_t>(static_cast<uint32_t>(scope)) << 32 | static_cast<uint32_t>(across));
}

}  // namespace

Stream::Stream(const StreamPlan& plan, uint64_t memory_bytes, std::string directory)
    : plan_(plan),
      secret_(random_secret()),
      content_table_(secret_),
      equal_table_(secret_),
      sets_(memory_bytes, std::move(directory)) {
  for (uint32_t band = 0; band < plan.bands; ++band) bands_.emplace_back(secret_);
}

void Stream::require_room(size_t count) {
  if (count >= 0x7FFFFFFD) throw std::length_error("a stream holds at most 2147483645 documents or shared band keys");
}

uint32_t* Stream::find_content(uint64_t first, uint64_t second, int32_t scope, int32_t across) {
  const uint64_t content[2] = {first, second};
  return content_table_.find(identity_hash(content, scope, across), [&](uint32_t node) {
    const ContentNode& other = contents_[node];
    return other.content[0] == first && other.content[1] == second && other.scope == scope && other.across == across;
  });
}

uint32_t* Stream::find_equal(const uint64_t* content, int32_t scope) {
  return equal_table_.find(identity_hash(content, scope, 0), [&](uint32_t node) {
    const EqualNode& other = equals_[node];
    return other.content[0] == content[0] && other.content[1] == content[1] && other.scope == scope;
  });
}

void Stream::add_content(uint32_t* slot, const ContentNode& representative) {
  uint32_t node = static_cast<uint32_t>(contents_.size());
  contents_.push_back(representative);
  content_table_.fill(slot, node, [&](uint32_t other) {
    const ContentNode& some = contents_[other];
    return identity_hash(some.content, some.scope, some.across);
  });
}

void Stream::add_equal(uint32_t* slot, const EqualNode& kept) {
  uint32_t node = static_cast<uint32_t>(equals_.size());
  equals_.push_back(kept);
  equal_table_.fill(slot, node,
                    [&](uint32_t other) { return identity_hash(equals_[other].content, equals_[other].scope, 0); });
}

/// Kept candidates of the next document, by rank.
void Stream::collect(const uint64_t* keys, int32_t scope, int32_t across, std::vector<uint32_t>& candidates) {
  candidates.clear();
  auto add = [&](uint32_t document) {
    const Kept& kept = kept_[document];
    if (kept.scope == scope && (!plan_.across || kept.across != across)) candidates.push_back(document);
  };
  for (uint32_t b = 0; b < plan_.bands; ++b) {
    const uint32_t* found = bands_[b].find(keys[b]);
    if (!found) continue;
    uint32_t value = *found;
    if (!(value & IS_BUCKET)) {
      if (value != NOBODY) add(value);
      continue;
    }
    const Bucket& bucket = buckets_[value & ~IS_BUCKET];
    auto add_entry = [&](const Entry& entry) {
      if (entry.document != NOBODY && in_window(entry.position, bucket.size, plan_.window)) add(entry.document);
    };
    add_entry(bucket.first);
    if (bucket.more != NONE)
      for (const Entry& entry : more_[bucket.more]) add_entry(entry);
  }
  std::sort(candidates.begin(), candidates.end());
  candidates.erase(std::unique(candidates.begin(), candidates.end()), candidates.end());
}

/// Counts a representative in its buckets; `document` is its number among the kept ones, or NOBODY if it was removed.
void Stream::enter(const uint64_t* keys, uint32_t document) {
  for (uint32_t b = 0; b < plan_.bands; ++b) {
    uint32_t* found = bands_[b].find(keys[b]);
    if (!found) {
      bands_[b].insert(keys[b], document);
      continue;
    }
    uint32_t& value = *found;
    if (!(value & IS_BUCKET)) {
      uint32_t first = value;
      require_room(buckets_.size());
      value = static_cast<uint32_t>(buckets_.size()) | IS_BUCKET;
      buckets_.push_back({1, {0, first}, NONE});
    }
    Bucket& bucket = buckets_[value & ~IS_BUCKET];
    uint32_t position = bucket.size++;
    if (document != NOBODY) enter(bucket, {position, document});
  }
}

void Stream::enter(Bucket& bucket, Entry entry) {
  auto passed = [&](const Entry& other) {
    return other.document == NOBODY || !in_window(other.position, entry.position, plan_.window);
  };
  if (passed(bucket.first)) {
    bucket.first = entry;
    return;
  }
  if (bucket.more == NONE) {
    bucket.more = static_cast<uint32_t>(more_.size());
    more_.push_back({});
  }
  std::vector<Entry>& more = more_[bucket.more];
  // Entries beyond the first W positions leave once the window has passed them: drop them when they are many.
  if (more.size() >= 3 * plan_.window) more.erase(std::remove_if(more.begin(), more.end(), passed), more.end());
  more.push_back(entry);
}

StreamDecision Stream::decide(Context& context, const StreamBatch& batch) {
  StreamDecision out;
  out.keeper.assign(batch.count, -1);
  out.similarity.resize(batch.count);
  out.exact.assign(batch.count, 0);
  Comparison compare;
  compare.threshold_ppm = plan_.threshold_ppm;
  compare.cpu = &tier();
  if (plan_.verify != StreamPlan::Verify::none) compare.sets = &sets_;
  std::vector<uint64_t> keys(plan_.bands);
  std::vector<uint32_t> candidates, own;

  for (size_t i = 0; i < batch.count; ++i, ++documents_) {
    context.check();
    if (batch.unit_count[i] == 0) continue;  // empty: matches nothing
    int32_t scope = batch.scopes ? batch.scopes[i] : 0, across = batch.across ? batch.across[i] : 0;
    const uint64_t* content = batch.content + 2 * i;

    uint32_t* slot = find_content(content[0], content[1], scope, across);
    if (*slot != NONE) {  // a copy shares the fate of its representative
      const ContentNode& representative = contents_[*slot];
      if (representative.kept == NONE) {
        const Removed& removed = removed_[representative.removed];
        out.keeper[i] = removed.keeper;
        out.similarity[i] = removed.similarity;
        out.exact[i] = removed.exact;
      } else if (!plan_.across) {
        out.keeper[i] = kept_[representative.kept].position;
        out.similarity[i] = {1, 1};
        out.exact[i] = 1;
      }
      continue;
    }

    const uint32_t* lanes = batch.lanes + i * plan_.lane_count;
    for (uint32_t b = 0; b < plan_.bands; ++b)
      keys[b] = band_key(b, batch.scope_keys ? batch.scope_keys[i] : SCOPE_NONE, lanes + b * plan_.rows, plan_.rows);
    uint32_t number = static_cast<uint32_t>(kept_.size());
    require_room(contents_.size());  // of which the kept ones are some
    uint32_t equal = NONE;           // with `across`: the kept document of equal content
    uint32_t* equal_slot = nullptr;
    if (plan_.across) {
      equal_slot = find_equal(content, scope);
      if (*equal_slot != NONE) equal = equals_[*equal_slot].kept;
    }
    collect(keys.data(), scope, across, candidates);

    SetView set{lanes, plan_.lane_count};
    if (plan_.verify == StreamPlan::Verify::exact) {
      size_t size = static_cast<size_t>(batch.offsets[i + 1] - batch.offsets[i]);
      own.resize(2 * size);
      std::copy_n(batch.hashes + batch.offsets[i], size, own.begin());
      set = {own.data(), sort_unique(own.data(), size, own.data() + size)};
    }

    uint32_t keeper = NONE;
    Similarity similarity;
    for (uint32_t candidate : candidates) {
      if (candidate >= equal) break;
      compared_ += plan_.verify != StreamPlan::Verify::none;
      bool similar = plan_.verify == StreamPlan::Verify::none ||
                     (plan_.verify == StreamPlan::Verify::exact
                          ? compare.sets_similar(sets_[candidate], set, &similarity)
                          : compare.lanes_similar(sets_[candidate].values, lanes, plan_.lane_count, &similarity));
      if (!similar) continue;
      keeper = candidate;
      break;
    }
    if (keeper == NONE && equal != NONE) {
      keeper = equal;
      similarity = {1, 1};
      out.exact[i] = 1;
    }

    ContentNode representative{{content[0], content[1]}, scope, across, NONE, NONE};
    if (keeper == NONE) {
      representative.kept = number;
      kept_.push_back({documents_, scope, across});
      if (plan_.verify != StreamPlan::Verify::none) {
        sets_.resize(number + 1);
        sets_.add_as_is(number, set.values, set.size);
      }
      if (equal_slot) add_equal(equal_slot, {{content[0], content[1]}, scope, number});
    } else {
      representative.removed = static_cast<uint32_t>(removed_.size());
      out.keeper[i] = kept_[keeper].position;
      out.similarity[i] = similarity;
      removed_.push_back({out.keeper[i], similarity, out.exact[i] != 0});
    }
    enter(keys.data(), keeper == NONE ? number : NOBODY);
    add_content(slot, representative);
  }
  return out;
}

}  // namespace gpudedup
