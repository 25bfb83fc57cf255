// How stretches of text join to units: an associative operation on four integers, so that units come from a parallel
// scan. docs/spec.md, section 3.
#pragma once
#include "core/fold.h"
#include "core/unit.h"

namespace gpudedup {

/// A stretch of folded text is cut by some of its code points (`Words` and `Chars` say which). What stands before its
/// first cut and after its last one belongs to gaps that its neighbours continue; everything between is settled.
struct alignas(16) Span {
  uint32_t head;   // the gap before the first cut; of a stretch without cuts, all of it
  uint32_t tail;   // the gap after the last cut; UNCUT without cuts
  uint32_t units;  // made by cuts and by the gaps between them
  uint32_t bytes;  // folded, of unit characters anywhere and of blanks between cuts
};
constexpr uint32_t UNCUT = 0xFFFFFFFFu;
GPUDEDUP_HD Span empty_span() { return {0, UNCUT, 0, 0}; }

/// Sums of units and bytes stop at 2^32 - 1, which is more than any capacity: a byte of text folds to up to 6 units and
/// 11 bytes (U+FDFA).
GPUDEDUP_HD uint32_t capped_sum(uint32_t x, uint32_t y) { return x + y < x ? 0xFFFFFFFFu : x + y; }

/// Bytes that encode_utf8 writes.
GPUDEDUP_HD uint32_t utf8_size(uint32_t code_point) {
  return 1 + (code_point >= 0x80) + (code_point >= 0x800) + (code_point >= 0x10000);
}

/// Where a stretch begins: the gap that it goes on with, and the units and folded bytes before it.
struct Place {
  uint32_t gap;
  uint32_t units;
  uint32_t bytes;
};

/// word:n. Separators, singles and borders of documents cut; a gap is a run of that many joiners, and makes a unit for
/// every 64 of them and for the rest. No code point folds to more unbroken joiners a byte than U+327C, five of three
/// bytes, so the run of a text of 2^30 bytes is a number below 2^32.
struct Words {
  GPUDEDUP_HD uint32_t merge(uint32_t run, uint32_t next) { return run + next; }
  GPUDEDUP_HD uint32_t gap_units(uint32_t run) { return run / MAX_RUN + (run % MAX_RUN != 0); }
  GPUDEDUP_HD uint32_t gap_bytes(uint32_t) { return 0; }
  GPUDEDUP_HD Span border() { return {0, 0, 0, 0}; }
  GPUDEDUP_HD Span code_point(uint32_t kind, uint32_t bytes) {
    if (kind == KIND_JOINER) return {1, UNCUT, 0, bytes};
    return kind == KIND_SINGLE ? Span{0, 0, 1, bytes} : border();
  }
  /// The run that is open at a place has begun its units before it.
  GPUDEDUP_HD Place after(const Span& span) {
    uint32_t run = span.tail == UNCUT ? span.head : span.tail;
    return {run, capped_sum(span.units, gap_units(run)), span.bytes};
  }

  /// Calls begin() where a unit begins and put(code point) for each code point of it.
  template <class Begin, class Put>
  GPUDEDUP_HD void take(uint32_t& run, uint32_t kind, uint32_t code_point, Begin&& begin, Put&& put) {
    if (kind == KIND_SEPARATOR) {
      run = 0;
      return;
    }
    if (kind == KIND_SINGLE || run % MAX_RUN == 0) begin();
    put(code_point);
    run = kind == KIND_SINGLE ? 0 : run + 1;
  }
  GPUDEDUP_HD void take_border(uint32_t& run) { run = 0; }
};

/// char:n. Unit characters cut; a gap is the greatest of what stands in it, and makes a blank where that is separators
/// alone: they stand between two unit characters of one document.
struct Chars {
  static constexpr uint32_t NOTHING = 0, SEPARATORS = 1, BORDER = 2;
  GPUDEDUP_HD uint32_t merge(uint32_t gap, uint32_t next) { return gap > next ? gap : next; }
  GPUDEDUP_HD uint32_t gap_units(uint32_t gap) { return gap == SEPARATORS; }
  GPUDEDUP_HD uint32_t gap_bytes(uint32_t gap) { return gap == SEPARATORS; }
  GPUDEDUP_HD Span border() { return {BORDER, UNCUT, 0, 0}; }
  GPUDEDUP_HD Span code_point(uint32_t kind, uint32_t bytes) {
    return kind == KIND_SEPARATOR ? Span{SEPARATORS, UNCUT, 0, 0} : Span{NOTHING, NOTHING, 1, bytes};
  }
  /// A blank begins with the unit character after it.
  GPUDEDUP_HD Place after(const Span& span) {
    return {span.tail == UNCUT ? span.head : span.tail, span.units, span.bytes};
  }

  template <class Begin, class Put>
  GPUDEDUP_HD void take(uint32_t& gap, uint32_t kind, uint32_t code_point, Begin&& begin, Put&& put) {
    if (kind == KIND_SEPARATOR) {
      gap = merge(gap, SEPARATORS);
      return;
    }
    if (gap == SEPARATORS) {
      begin();
      put(' ');
    }
    begin();
    put(code_point);
    gap = NOTHING;
  }
  GPUDEDUP_HD void take_border(uint32_t& gap) { gap = BORDER; }
};

/// The span of two stretches, one after the other. Associative, with empty_span() neutral.
template <class Units>
GPUDEDUP_HD Span join(const Span& left, const Span& right) {
  uint32_t bytes = capped_sum(left.bytes, right.bytes);
  if (left.tail == UNCUT) return {Units::merge(left.head, right.head), right.tail, right.units, bytes};
  uint32_t gap = Units::merge(left.tail, right.head);
  if (right.tail == UNCUT) return {left.head, gap, left.units, bytes};
  uint32_t units = capped_sum(left.units, right.units);
  return {left.head, right.tail, capped_sum(units, Units::gap_units(gap)), capped_sum(bytes, Units::gap_bytes(gap))};
}

}  // namespace gpudedup
