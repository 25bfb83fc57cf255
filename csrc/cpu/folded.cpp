#include "cpu/folded.h"

#include <mutex>
#include <vector>

#include "core/utf8.h"
#include "cpu/sign.h"

namespace gpudedup {
namespace {

uint32_t entry(const FoldTable& table, uint32_t code_point) {
  if (table.decompose_hangul && is_hangul_syllable(code_point)) return FOLDED_SYLLABLE << FOLDED_KIND_SHIFT;
  uint32_t count = 0, size = 0, bytes = 0, joiners = 0, kind = FOLDED_NOTHING;
  fold_code_point(table, code_point, [&](uint32_t folded_kind, uint32_t folded) {
    ++count;
    joiners += folded_kind == KIND_JOINER;
    kind = folded_kind == KIND_SEPARATOR ? FOLDED_SEPARATOR
           : folded_kind == KIND_SINGLE  ? FOLDED_SINGLE
                                         : FOLDED_JOINERS;
    uint8_t encoded[4];
    for (int32_t i = 0, length = kind == FOLDED_SEPARATOR ? 0 : encode_utf8(folded, encoded); i < length; ++i, ++size)
      if (size < 3) bytes |= static_cast<uint32_t>(encoded[i]) << (8 * size);
  });
  if (size > 3 || (count > 1 && joiners < count)) return 0;
  return kind << FOLDED_KIND_SHIFT | count << FOLDED_COUNT_SHIFT | size << FOLDED_SIZE_SHIFT | bytes;
}

}  // namespace

const uint32_t* folded_entries(Fold fold) {
  static std::once_flag made[3];
  static std::vector<uint32_t> entries[3];
  std::call_once(made[fold], [&] {
    const FoldTable table = fold_table(fold);
    std::vector<uint32_t>& of = entries[fold];
    of.resize(FOLDED_CODE_POINTS);
    for (uint32_t code_point = 0; code_point < FOLDED_CODE_POINTS; ++code_point)
      if (code_point - 0xD800 >= 0x800) of[code_point] = entry(table, code_point);  // surrogates stay 0
  });
  return entries[fold].data();
}

}  // namespace gpudedup
