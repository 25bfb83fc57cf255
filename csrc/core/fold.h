// Fold and class of a code point by table: no context, no reordering. docs/spec.md, sections 2 and 3.
#pragma once
#include "core/fold_tables.h"

namespace gpudedup {

enum Fold : int32_t { FOLD_NONE = 0, FOLD_CASE = 1, FOLD_FULL = 2 };

/// The tables of one fold, wherever they lie (host or device memory).
struct FoldTable {
  const uint16_t* index;
  const uint32_t* pages;
  const uint32_t* expansions;
  bool decompose_hangul;  // fold "full": syllables become jamo by arithmetic
};

GPUDEDUP_HD uint32_t fold_entry(const FoldTable& table, uint32_t code_point) {
  uint32_t page = table.index[code_point >> FOLD_PAGE_BITS];
  return table.pages[page << FOLD_PAGE_BITS | (code_point & ((1u << FOLD_PAGE_BITS) - 1))];
}

GPUDEDUP_HD bool is_hangul_syllable(uint32_t code_point) { return code_point - 0xAC00 < 11172; }

/// The kind of `code_point`, whose entry this is, if it folds to itself; else KIND_SPECIAL or more.
GPUDEDUP_HD uint32_t kind_of_fixed(const FoldTable& table, uint32_t code_point, uint32_t entry) {
  const uint32_t kind = entry << (32 - KIND_SHIFT) | entry >> KIND_SHIFT;  // a payload makes it more
  return table.decompose_hangul && is_hangul_syllable(code_point) ? KIND_SPECIAL : kind;
}

/// Calls take(kind, folded code point) for each code point that `code_point` folds to.
template <class Take>
GPUDEDUP_HD void fold_code_point(const FoldTable& table, uint32_t code_point, Take&& take) {
  uint32_t entry = fold_entry(table, code_point);
  uint32_t kind = entry >> KIND_SHIFT;
  uint32_t payload = entry & PAYLOAD_MASK;
  if (kind == KIND_SPECIAL) {
    for (uint32_t i = 0; i < (payload & 31); ++i) {
      uint32_t element = table.expansions[(payload >> 5) + i];
      take(element >> KIND_SHIFT, element & CODE_POINT_MASK);
    }
    return;
  }
  if (table.decompose_hangul && is_hangul_syllable(code_point)) {  // Unicode 16.0, section 3.12
    const uint32_t syllable = code_point - 0xAC00;
    take(KIND_JOINER, 0x1100 + syllable / 588);
    take(KIND_JOINER, 0x1161 + syllable % 588 / 28);
    if (syllable % 28) take(KIND_JOINER, 0x11A7 + syllable % 28);
    return;
  }
  take(kind, (code_point + payload) & PAYLOAD_MASK);
}

}  // namespace gpudedup
