// UTF-8, decoding anything: an ill-formed maximal subpart is one U+FFFD. docs/spec.md, section 1.
#pragma once
#include "core/platform.h"

namespace gpudedup {

constexpr uint32_t REPLACEMENT = 0xFFFD;

/// Decodes the code point at `bytes`, `size` >= 1 bytes from the end of the text; returns the bytes consumed (1 to 4).
/// The second byte's bounds keep out overlong forms, surrogates and code points above U+10FFFF
/// (Unicode 16.0, table 3-7; U+FFFD substitution of maximal subparts, section 3.9).
GPUDEDUP_HD int32_t decode_utf8(const uint8_t* bytes, int64_t size, uint32_t* code_point) {
  uint32_t lead = bytes[0];
  *code_point = lead;
  if (lead < 0x80) return 1;
  *code_point = REPLACEMENT;
  if (lead < 0xC2 || lead > 0xF4) return 1;
  int32_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint32_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint32_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  uint32_t value = lead & (0x7Fu >> length);
  for (int32_t i = 1; i < length; ++i) {
    if (i >= size || bytes[i] < low || bytes[i] > high) return i;
    value = value << 6 | (bytes[i] & 0x3F);
    low = 0x80;
    high = 0xBF;
  }
  *code_point = value;
  return length;
}

/// The same of a well-formed sequence of two or three bytes at the start of a little-endian word, without a loop;
/// returns 0 if there is none.
GPUDEDUP_HD uint32_t decode_short(uint32_t word, uint32_t* code_point) {
  if ((word & 0xC0C0F0) == 0x8080E0) {
    *code_point = (word & 0xF) << 12 | (word >> 2 & 0xFC0) | (word >> 16 & 0x3F);
    return *code_point >= 0x800 && *code_point - 0xD800 >= 0x800 ? 3 : 0;  // not overlong, no surrogate
  }
  *code_point = (word & 0x1F) << 6 | (word >> 8 & 0x3F);
  return (word & 0xC0E0) == 0x80C0 && *code_point >= 0x80 ? 2 : 0;
}

/// Writes a scalar value as UTF-8; returns the bytes written (1 to 4).
GPUDEDUP_HD int32_t encode_utf8(uint32_t code_point, uint8_t* out) {
  if (code_point < 0x80) {
    out[0] = static_cast<uint8_t>(code_point);
    return 1;
  }
  if (code_point < 0x800) {
    out[0] = static_cast<uint8_t>(0xC0 | code_point >> 6);
    out[1] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
    return 2;
  }
  if (code_point < 0x10000) {
    out[0] = static_cast<uint8_t>(0xE0 | code_point >> 12);
    out[1] = static_cast<uint8_t>(0x80 | (code_point >> 6 & 0x3F));
    out[2] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
    return 3;
  }
  out[0] = static_cast<uint8_t>(0xF0 | code_point >> 18);
  out[1] = static_cast<uint8_t>(0x80 | (code_point >> 12 & 0x3F));
  out[2] = static_cast<uint8_t>(0x80 | (code_point >> 6 & 0x3F));
  out[3] = static_cast<uint8_t>(0x80 | (code_point & 0x3F));
  return 4;
}

}  // namespace gpudedup
