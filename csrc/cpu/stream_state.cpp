#include "cpu/stream_state.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

#include "core/band.h"

namespace gpudedup {
namespace {

constexpr int64_t MAX_POSITION = int64_t{1} << 62;

void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

}  // namespace

RepresentativeColumns StreamColumns::representatives(size_t first, size_t last) const {
  RepresentativeColumns out;
  for (size_t i = first; i < last; ++i) {
    const Stream::ContentNode& node = stream_.contents_[i];
    out.first.push_back(node.content[0]);
    out.second.push_back(node.content[1]);
    out.scope.push_back(node.scope);
    out.across.push_back(node.across);
    out.kept.push_back(node.kept != NONE);
  }
  return out;
}

std::vector<int64_t> StreamColumns::kept(size_t first, size_t last) const {
  std::vector<int64_t> out;
  for (size_t i = first; i < last; ++i) out.push_back(stream_.kept_[i].position);
  return out;
}

SetColumns StreamColumns::sets(size_t first, size_t limit) const {
  SetColumns out;
  out.offsets.push_back(0);
  for (size_t i = first; i < stream_.sets_.size(); ++i) {
    SetView set = stream_.sets_[static_cast<uint32_t>(i)];
    if (i > first && (set.size > limit || out.values.size() > limit - set.size)) break;
    out.values.insert(out.values.end(), set.values, set.values + set.size);
    out.offsets.push_back(static_cast<int64_t>(out.values.size()));
  }
  return out;
}

KeeperColumns StreamColumns::keepers(size_t first, size_t last) const {
  KeeperColumns out;
  for (size_t i = first; i < last; ++i) {
    const Stream::Removed& removed = stream_.removed_[i];
    out.keeper.push_back(removed.keeper);
    out.part.push_back(removed.similarity.part);
    out.whole.push_back(removed.similarity.whole);
    out.exact.push_back(removed.exact);
  }
  return out;
}

BucketColumns StreamColumns::buckets(size_t first, size_t last) const {
  BucketColumns out;
  std::vector<Stream::Entry> entries;
  for (size_t i = first; i < last; ++i) {
    const Stream::Bucket& bucket = stream_.buckets_[i];
    entries.clear();
    auto add = [&](const Stream::Entry& entry) {
      if (entry.document != Stream::NOBODY && in_window(entry.position, bucket.size, stream_.plan_.window))
        entries.push_back(entry);
    };
    add(bucket.first);
    if (bucket.more != NONE)
      for (const Stream::Entry& entry : stream_.more_[bucket.more]) add(entry);
    // What was put first may have taken the place of one that the window passed.
    std::sort(entries.begin(), entries.end(), [](auto& a, auto& b) { return a.position < b.position; });
    out.size.push_back(bucket.size);
    out.entries.push_back(static_cast<uint32_t>(entries.size()));
    for (const Stream::Entry& entry : entries) {
      out.position.push_back(entry.position);
      out.document.push_back(entry.document);
    }
  }
  return out;
}

BandColumns StreamColumns::band(uint32_t band, uint32_t part, uint32_t parts) const {
  std::vector<std::pair<uint64_t, uint32_t>> rows;
  stream_.bands_[band].each([&](uint64_t key, uint32_t holder) {
    if (static_cast<uint64_t>(static_cast<unsigned __int128>(key) * parts >> 64) == part)
      rows.emplace_back(key, holder);
  });
  std::sort(rows.begin(), rows.end());
  BandColumns out;
  for (const auto& [key, holder] : rows) {
    out.key.push_back(key);
    out.holder.push_back(holder);
  }
  return out;
}

StreamBuilder::StreamBuilder(Stream& stream, int64_t documents, uint64_t compared)
    : stream_(stream), documents_(documents), bands_(stream.plan_.bands) {
  require(stream.whole_ && stream.documents_ == 0, "only a new stream can be filled");
  require(documents >= 0 && documents <= MAX_POSITION, "documents must be from 0 to 2^62");
  stream.whole_ = false;
  stream.documents_ = documents;
  stream.compared_ = compared;
}

void StreamBuilder::require_open() const { require(!stream_.whole_, "the stream is finished"); }

void StreamBuilder::representatives(size_t count, const uint64_t* first, const uint64_t* second, const int32_t* scope,
                                    const int32_t* across, const uint8_t* kept) {
  require_open();
  for (size_t i = 0; i < count; ++i) {
    Stream::require_room(stream_.contents_.size());
    uint32_t* slot = stream_.find_content(first[i], second[i], scope[i], across[i]);
    require(*slot == NONE, "two representatives of one content");
    Stream::ContentNode node{{first[i], second[i]}, scope[i], across[i], NONE, NONE};
    (kept[i] ? node.kept : node.removed) =
        static_cast<uint32_t>(kept[i] ? stream_.kept_.size() : stream_.removed_.size());
    if (kept[i] && stream_.plan_.across) {
      uint32_t* equal_slot = stream_.find_equal(node.content, scope[i]);
      require(*equal_slot == NONE, "two kept representatives of one content");
      stream_.add_equal(equal_slot, {{first[i], second[i]}, scope[i], node.kept});
    }
    stream_.add_content(slot, node);
    if (kept[i])
      stream_.kept_.push_back({-1, scope[i], across[i]});
    else
      stream_.removed_.push_back({-1, {}, false});
  }
}

void StreamBuilder::kept(size_t count, const int64_t* position) {
  require_open();
  require(count <= stream_.kept_.size() - kept_, "more positions than kept representatives");
  for (size_t i = 0; i < count; ++i, ++kept_) {
    int64_t before = kept_ ? stream_.kept_[kept_ - 1].position : -1;
    require(position[i] > before && position[i] < documents_, "positions that do not ascend within the documents");
    stream_.kept_[kept_].position = position[i];
  }
}

void StreamBuilder::sets(size_t count, const uint32_t* values, const int64_t* offsets) {
  require_open();
  bool exact = stream_.plan_.verify == StreamPlan::Verify::exact;
  require(count == 0 || stream_.plan_.verify != StreamPlan::Verify::none, "a set in a stream that compares none");
  require(count <= stream_.kept_.size() - sets_, "more sets than kept representatives");
  stream_.sets_.resize(sets_ + count);
  for (size_t i = 0; i < count; ++i, ++sets_) {
    const uint32_t* set = values + offsets[i];
    size_t size = static_cast<size_t>(offsets[i + 1] - offsets[i]);
    require(exact || size == stream_.plan_.lane_count, "a number of lanes that is not that of the stream");
    for (size_t k = 1; exact && k < size; ++k) require(set[k - 1] < set[k], "a set that does not ascend");
    stream_.sets_.add_as_is(static_cast<uint32_t>(sets_), set, size);
  }
}

bool StreamBuilder::is_kept_position(int64_t position) const {
  size_t low = 0, high = kept_;
  while (low < high) {
    size_t middle = low + (high - low) / 2;
    if (stream_.kept_[middle].position < position)
      low = middle + 1;
    else
      high = middle;
  }
  return low < kept_ && stream_.kept_[low].position == position;
}

void StreamBuilder::keepers(size_t count, const int64_t* keeper, const uint64_t* part, const uint64_t* whole,
                            const uint8_t* exact) {
  require_open();
  require(count <= stream_.removed_.size() - removed_, "more removals than removed representatives");
  for (size_t i = 0; i < count; ++i, ++removed_) {
    require(is_kept_position(keeper[i]), "a keeper that is not kept");
    require(part[i] <= whole[i], "a similarity above 1");
    stream_.removed_[removed_] = {keeper[i], {part[i], whole[i]}, exact[i] != 0};
  }
}

void StreamBuilder::buckets(size_t count, const uint32_t* size, const uint32_t* entries, size_t entry_count,
                            const uint32_t* position, const uint32_t* document) {
  require_open();
  size_t at = 0;
  for (size_t i = 0; i < count; ++i) {
    require(size[i] >= 2 && size[i] <= stream_.contents_.size(), "a bucket of a size that none can have");
    require(entries[i] <= entry_count - at, "fewer entries than the buckets have");
    Stream::Bucket bucket{size[i], {0, Stream::NOBODY}, NONE};
    std::vector<Stream::Entry> more;
    for (size_t last = at + entries[i], first = at; at < last; ++at) {
      Stream::Entry entry{position[at], document[at]};
      require(entry.position < size[i] && in_window(entry.position, size[i], stream_.plan_.window),
              "an entry at a position that can be no candidate's");
      require(entry.document < stream_.kept_.size(), "an entry that is no kept document");
      require(at == first || (position[at - 1] < entry.position && document[at - 1] < entry.document),
              "entries that do not ascend");
      if (at == first)
        bucket.first = entry;
      else
        more.push_back(entry);
    }
    if (!more.empty()) {
      bucket.more = static_cast<uint32_t>(stream_.more_.size());
      stream_.more_.push_back(more);
    }
    Stream::require_room(stream_.buckets_.size());
    stream_.buckets_.push_back(bucket);
    used_.push_back(false);
    ++unused_;
  }
  require(at == entry_count, "more entries than the buckets have");
}

void StreamBuilder::reserve(uint32_t band, size_t keys) {
  require_open();
  require(band < bands_.size(), "a band that the stream does not have");
  require(keys <= stream_.contents_.size(), "more keys than representatives");
  stream_.bands_[band].reserve(keys);
}

void StreamBuilder::band(uint32_t band, size_t count, const uint64_t* key, const uint32_t* holder) {
  require_open();
  require(band < bands_.size(), "a band that the stream does not have");
  BandSoFar& so_far = bands_[band];
  for (size_t i = 0; i < count; ++i) {
    require(so_far.empty || key[i] > so_far.last_key, "band keys that do not ascend");
    so_far.empty = false;
    so_far.last_key = key[i];
    if (holder[i] & Stream::IS_BUCKET) {
      uint32_t bucket = holder[i] & ~Stream::IS_BUCKET;
      require(bucket < used_.size() && !used_[bucket], "a bucket that is none, or that two band keys have");
      used_[bucket] = true;
      --unused_;
      so_far.representatives += stream_.buckets_[bucket].size;
    } else {
      require(holder[i] == Stream::NOBODY || holder[i] < stream_.kept_.size(), "a band key of no kept document");
      so_far.representatives += 1;
    }
    stream_.bands_[band].insert(key[i], holder[i]);
  }
}

void StreamBuilder::finish() {
  require_open();
  size_t sets = stream_.plan_.verify == StreamPlan::Verify::none ? 0 : stream_.kept_.size();
  require(stream_.contents_.size() <= static_cast<uint64_t>(documents_), "more representatives than documents");
  require(kept_ == stream_.kept_.size(), "fewer positions than kept representatives");
  require(sets_ == sets, "fewer sets than kept representatives");
  require(removed_ == stream_.removed_.size(), "fewer removals than removed representatives");
  require(unused_ == 0, "a bucket that no band key has");
  for (const BandSoFar& band : bands_)
    require(band.representatives == stream_.contents_.size(), "a band that does not have every representative once");
  stream_.whole_ = true;
}

}  // namespace gpudedup
