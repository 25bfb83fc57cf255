// What a stream remembers as plain columns, and a stream made of such columns again. They hold content, not layout:
// equal streams give equal columns, whatever their secrets and however their documents came in batches.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/stream.h"

namespace gpudedup {

/// Representatives in input order.
struct RepresentativeColumns {
  std::vector<uint64_t> first, second;  // content
  std::vector<int32_t> scope, across;
  std::vector<uint8_t> kept;
};

/// Why the other ones were removed.
struct KeeperColumns {
  std::vector<int64_t> keeper;  // position in the input
  std::vector<uint64_t> part, whole;
  std::vector<uint8_t> exact;
};

/// What kept documents are compared by: values[offsets[i] .. offsets[i + 1]) are the shingle hashes of one, ascending,
/// or its lanes.
struct SetColumns {
  std::vector<uint32_t> values;
  std::vector<int64_t> offsets;
};

/// Band keys, ascending within a band, and who has each: a kept document, Stream::NOBODY if the one representative
/// with it was removed, or Stream::IS_BUCKET | number of a bucket.
struct BandColumns {
  std::vector<uint64_t> key;
  std::vector<uint32_t> holder;
};

/// Band keys of several representatives, in the order in which they became that.
struct BucketColumns {
  std::vector<uint32_t> size;                // representatives
  std::vector<uint32_t> entries;             // how many of the following are of this bucket
  std::vector<uint32_t> position, document;  // kept documents that can still be candidates, by position
};

/// The columns of a stream, piece by piece. Ranges are [first, last).
class StreamColumns {
 public:
  explicit StreamColumns(const Stream& stream) : stream_(stream) {}

  size_t representatives() const { return stream_.contents_.size(); }
  size_t kept() const { return stream_.kept_.size(); }
  size_t keepers() const { return stream_.removed_.size(); }
  size_t buckets() const { return stream_.buckets_.size(); }
  size_t keys(uint32_t band) const { return stream_.bands_[band].size(); }

  RepresentativeColumns representatives(size_t first, size_t last) const;
  std::vector<int64_t> kept(size_t first, size_t last) const;  // input positions
  KeeperColumns keepers(size_t first, size_t last) const;
  BucketColumns buckets(size_t first, size_t last) const;

  /// One of `parts` ranges of a band's keys, of about equal size. Looks at all slots of the band.
  BandColumns band(uint32_t band, uint32_t part, uint32_t parts) const;

  /// Kept documents from `first` on with at most `limit` values in all, or one that has more; none at the end and with
  /// verify = none.
  SetColumns sets(size_t first, size_t limit) const;

 private:
  const Stream& stream_;
};

/// Fills an empty stream from columns, in pieces of any size: first the representatives, then in any order what refers
/// to them, each table in its order, bands last. Nothing is believed: throws std::invalid_argument for columns that no
/// stream can have given, before anything could be read out of bounds by them. The stream cannot be used until finish.
class StreamBuilder {
 public:
  /// `documents`: rows of the input so far; `compared`: pairs.
  StreamBuilder(Stream& stream, int64_t documents, uint64_t compared);

  void representatives(size_t count, const uint64_t* first, const uint64_t* second, const int32_t* scope,
                       const int32_t* across, const uint8_t* kept);
  void kept(size_t count, const int64_t* position);

  /// Offsets [count + 1] ascend and are within the values, which the caller has to check.
  void sets(size_t count, const uint32_t* values, const int64_t* offsets);
  void keepers(size_t count, const int64_t* keeper, const uint64_t* part, const uint64_t* whole, const uint8_t* exact);

  /// The entries of these buckets, one after the other, must be `entry_count`.
  void buckets(size_t count, const uint32_t* size, const uint32_t* entries, size_t entry_count,
               const uint32_t* position, const uint32_t* document);

  /// Makes room in a band, once it is known that as many keys are there.
  void reserve(uint32_t band, size_t keys);
  void band(uint32_t band, size_t count, const uint64_t* key, const uint32_t* holder);

  /// Checks that nothing is missing.
  void finish();

 private:
  struct BandSoFar {
    uint64_t representatives = 0;
    uint64_t last_key = 0;
    bool empty = true;
  };
  void require_open() const;
  bool is_kept_position(int64_t position) const;

  Stream& stream_;
  int64_t documents_;
  size_t kept_ = 0, removed_ = 0, sets_ = 0;  // rows so far
  std::vector<BandSoFar> bands_;
  std::vector<bool> used_;  // by bucket: a band key refers to it
  size_t unused_ = 0;
};

}  // namespace gpudedup
