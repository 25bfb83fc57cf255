// Hashes of units, documents and scope values. All arithmetic is modulo 2^64. docs/spec.md, section 5.
#pragma once
#include "core/platform.h"

namespace gpudedup {

constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15u;      // G
constexpr uint64_t MULTIPLIER = 0xD1342543DE82EF95u;  // K

/// The SplitMix64 finaliser (Steele, Lea, Flood 2014, with Stafford's variant 13 constants): a bijection.
GPUDEDUP_HD uint64_t mix(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// One step of every chained hash here: absorbs the word w into u.
GPUDEDUP_HD uint64_t absorb(uint64_t u, uint64_t w) { return mix((u + GOLDEN) ^ w); }

/// Start of the hash of a value of `size` bytes; its little-endian 8-byte words, zero-padded, are absorbed next.
GPUDEDUP_HD uint64_t hash_start(uint64_t size) { return mix(size + GOLDEN); }

/// Up to eight bytes as a little-endian word padded with zeros.
GPUDEDUP_HD uint64_t load_word(const uint8_t* bytes, uint64_t size) {
  uint64_t word = 0;
  for (uint64_t i = 0; i < size && i < 8; ++i) word |= static_cast<uint64_t>(bytes[i]) << (8 * i);
  return word;
}

/// Hash of `size` bytes: a unit's folded UTF-8, or a scope value.
GPUDEDUP_HD uint64_t hash_bytes(const uint8_t* bytes, uint64_t size) {
  uint64_t u = hash_start(size);
  for (uint64_t at = 0; at < size; at += 8) u = absorb(u, load_word(bytes + at, size - at));
  return u;
}

/// Hash of a 64-bit value (a token, or a fixed-width scope value): that of its eight bytes.
GPUDEDUP_HD uint64_t hash_word(uint64_t word) { return absorb(hash_start(8), word); }

/// What unit i (from 0) of a document adds to its content hash (first, second).
GPUDEDUP_HD uint64_t content_first(uint64_t unit, uint64_t i) { return mix(unit + (i + 1) * GOLDEN); }
GPUDEDUP_HD uint64_t content_second(uint64_t unit, uint64_t i) { return mix(unit * MULTIPLIER + (i + 1) * GOLDEN); }

}  // namespace gpudedup
