// Four bytes of text at once, in a little-endian word. In ASCII letters and digits join to runs, all else separates,
// and every fold but "none" only lowers letters. docs/spec.md, sections 2 and 3.
#pragma once
#include "core/platform.h"

namespace gpudedup {

constexpr uint32_t EACH_BYTE = 0x01010101u;
constexpr uint32_t TOP_BITS = 0x80 * EACH_BYTE;
constexpr uint32_t LOWER = 0x20 * EACH_BYTE;  // set in lower letters, not in upper ones, and in digits

/// The top bit of each byte that is `low` or more, of bytes below 0x80: no sum reaches into the next byte. Other bits
/// have no meaning.
GPUDEDUP_HD uint32_t at_least(uint32_t bytes, uint32_t low) { return bytes + (0x80 - low) * EACH_BYTE; }

/// The top bit of each byte that is a letter or a digit.
GPUDEDUP_HD uint32_t ascii_joiners(uint32_t word) {
  const uint32_t bytes = word & ~TOP_BITS, lowered = bytes | LOWER;
  const uint32_t letters = at_least(lowered, 'a') & ~at_least(lowered, 'z' + 1);
  const uint32_t digits = at_least(bytes, '0') & ~at_least(bytes, '9' + 1);
  return (letters | digits) & ~word & TOP_BITS;
}

/// Four numbers 0 to 3, one for each byte whose top bit is set, in the upper four bits: the product moves the top bits
/// of bytes 0 to 3 to bits 28 to 31, and no two of its other parts meet there. Other bits have no meaning.
GPUDEDUP_HD uint32_t gather_tops(uint32_t tops) { return tops * 0x00204081u; }

}  // namespace gpudedup
