// From folded code points to units. docs/spec.md, section 3.
#pragma once
#include "core/fold.h"
#include "core/utf8.h"

namespace gpudedup {

constexpr uint32_t MAX_RUN = 64;  // code points; a longer run is cut after every 64th

/// Units of some text, growing at the end. Unit i is bytes[start[i] .. end[i]).
/// The unit at `count` may be open: it has `run` > 0 code points and ends at `used`.
struct UnitBuffer {
  uint8_t* bytes;
  uint32_t* start;
  uint32_t* end;
  uint32_t count;
  uint32_t used;
  uint32_t run;    // word units: code points in the open unit
  bool any;        // char units: the document has a unit before
  bool separated;  // char units: separators stand between that unit and the next
};

GPUDEDUP_HD void append(UnitBuffer& units, uint32_t code_point) {
  units.used += static_cast<uint32_t>(encode_utf8(code_point, units.bytes + units.used));
}

GPUDEDUP_HD void close_unit(UnitBuffer& units) {
  if (units.run == 0) return;
  units.end[units.count] = units.used;
  ++units.count;
  units.run = 0;
}

GPUDEDUP_HD void whole_unit(UnitBuffer& units, uint32_t code_point) {
  units.start[units.count] = units.used;
  append(units, code_point);
  units.run = 1;
  close_unit(units);
}

/// word:n: runs of joiners, and singles.
GPUDEDUP_HD void take_word(UnitBuffer& units, uint32_t kind, uint32_t code_point) {
  if (kind == KIND_JOINER) {
    if (units.run == MAX_RUN) close_unit(units);
    if (units.run == 0) units.start[units.count] = units.used;
    append(units, code_point);
    ++units.run;
    return;
  }
  close_unit(units);
  if (kind == KIND_SINGLE) whole_unit(units, code_point);
}

/// char:n: each unit character, and one blank for the separators between two of them.
GPUDEDUP_HD void take_char(UnitBuffer& units, uint32_t kind, uint32_t code_point) {
  if (kind == KIND_SEPARATOR) {
    units.separated = true;
    return;
  }
  if (units.any && units.separated) whole_unit(units, ' ');
  whole_unit(units, code_point);
  units.any = true;
  units.separated = false;
}

}  // namespace gpudedup
