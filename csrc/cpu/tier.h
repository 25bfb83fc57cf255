// What one instruction-set tier offers: the two hot loops, on plain memory. The tier files include core headers and
// this one only: a std:: template instantiated there could leak its instructions into the rest of the program.
#pragma once
#include <stddef.h>

#include "core/fold.h"

namespace gpudedup {

enum class UnitKind : int32_t { word, character, token };

/// Lanes are computed in blocks; constants and minima are padded to a multiple of this many.
constexpr uint32_t LANE_BLOCK = 64;
constexpr uint32_t MAX_SHINGLE_UNITS = 256;

/// Bytes of text (or 8-byte tokens) that are taken through all steps at once; the scratch stays in L1 and L2.
constexpr uint32_t TILE_BYTES = 8192;
/// A code point yields at most 18 folded ones (from 3 bytes), at most 6 units a byte and 11 folded bytes a byte; an
/// open run of 64 code points may come before, and a block of 64 may be written or read past what counts.
constexpr uint32_t TILE_UNITS = 6 * (TILE_BYTES + 4) + 128;
constexpr uint32_t TILE_FOLDED_BYTES = 11 * (TILE_BYTES + 4) + 4 * 64 + 128;

struct SignPlan {
  UnitKind unit;
  uint32_t shingle_units;  // n
  uint32_t lane_count;     // num_perm
  uint32_t padded_lanes;   // to a multiple of LANE_BLOCK
  const uint32_t* a;       // [padded_lanes]
  const uint32_t* b;
  FoldTable fold;
  const uint32_t* folded;  // its entries, see cpu/folded.h
  bool lower_ascii;        // every fold but "none"
};

/// A worker's memory; sizes as named above.
struct SignScratch {
  uint8_t* folded;         // [TILE_FOLDED_BYTES]
  uint32_t* start;         // [TILE_UNITS]
  uint32_t* end;           // [TILE_UNITS]
  uint64_t* unit_hash;     // [MAX_SHINGLE_UNITS + TILE_UNITS]
  uint32_t* shingle_hash;  // [MAX_SHINGLE_UNITS + TILE_UNITS], used without a sink
  uint32_t* minima;        // [padded_lanes]; the signature is its first lane_count
};

/// Where shingle hashes go when they are kept: `reserve` returns room for `count` more after those taken so far.
struct ShingleSink {
  void* owner;
  uint32_t* (*reserve)(void* owner, size_t count);
  void (*commit)(void* owner, size_t count);
};

struct SignedDocument {
  uint64_t* content;  // [2]
  uint64_t unit_count;
};

struct Tier {
  const char* name;
  /// Signs one document of `size` bytes (tokens: of size / 8 int64 values), its lanes into scratch.minima. Returns
  /// false once *stop is set (read as a relaxed atomic).
  bool (*sign)(const SignPlan& plan, const SignScratch& scratch, const ShingleSink* sink, const uint8_t* text,
               int64_t size, const bool* stop, SignedDocument* out);
  /// Size of the intersection of two ascending sets, or 0 as soon as it cannot reach `needed`.
  uint64_t (*intersect)(const uint32_t* left, uint64_t left_size, const uint32_t* right, uint64_t right_size,
                        uint64_t needed);
  /// Number of equal lanes.
  uint64_t (*equal_lanes)(const uint32_t* left, const uint32_t* right, uint32_t count);
};

/// The tier in use: the best that this machine has, or the one that GPUDEDUP_CPU names.
/// Throws std::invalid_argument for an unknown name or one that this machine cannot run.
const Tier& tier();

/// Names of the tiers that this machine can run, best first, separated by blanks.
const char* available_tiers();

}  // namespace gpudedup
