// What most code points fold to, as bytes, in one look. docs/spec.md, sections 2 and 3.
#pragma once
#include <stddef.h>

#include "core/fold.h"

namespace gpudedup {

/// Code points below this have an entry: those of at most three bytes of UTF-8.
constexpr uint32_t FOLDED_CODE_POINTS = 0x10000;

/// An entry is 0 where a fold takes more than it can say, else
/// kind << 28 | code points << 26 | bytes << 24 | the bytes themselves, the first one lowest.
enum FoldedKind : uint32_t {
  FOLDED_NOTHING = 1,    // an ignored code point
  FOLDED_SEPARATOR = 2,  // no bytes
  FOLDED_SINGLE = 3,     // one code point
  FOLDED_JOINERS = 4,    // one to three code points
  FOLDED_SYLLABLE = 5,   // of Hangul: its jamo, by arithmetic
};
constexpr uint32_t FOLDED_SIZE_SHIFT = 24, FOLDED_COUNT_SHIFT = 26, FOLDED_KIND_SHIFT = 28;

/// uint32[FOLDED_CODE_POINTS] of a fold; made at the first call, for as long as the process lives.
const uint32_t* folded_entries(Fold fold);

}  // namespace gpudedup
