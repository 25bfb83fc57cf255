// How stretches of text join to units: an associative operation on four integers, so that units come from a parallel
// scan. docs/spec.md, section 3.
#pragma once
#include "core/bits.h"
#include "core/fold.h"
#include "core/unit.h"

namespace gpudedup {

/// A stretch of folded text is cut by some of its code points (`Words` and `Chars` say which). What stands before its
/// first cut and after its last one belongs to gaps that its neighbours continue; everything between is settled.
/// No sum reaches 2^32: a text is shorter than 2^28 bytes, and a byte folds to up to 6 units and 11 bytes (U+FDFA).
struct alignas(16) Span {
  uint32_t head;   // the gap before the first cut; of a stretch without cuts, all of it
  uint32_t tail;   // the gap after the last cut; UNCUT without cuts
  uint32_t units;  // made by cuts and by the gaps between them
  uint32_t bytes;  // folded, of unit characters anywhere and of blanks between cuts
};
constexpr uint32_t UNCUT = 0xFFFFFFFFu;
GPUDEDUP_HD Span empty_span() { return {0, UNCUT, 0, 0}; }

/// Bytes that encode_utf8 writes.
GPUDEDUP_HD uint32_t utf8_size(uint32_t code_point) {
  return 1 + (code_point >= 0x80) + (code_point >= 0x800) + (code_point >= 0x10000);
}

/// Up to 32 bytes of folded text; bit i of a set tells of byte i. Unit characters begin where `joiners` or `singles`
/// say; what is neither of these nor skipped separates.
struct Stretch {
  uint32_t joiners;
  uint32_t singles;
  uint32_t skipped;  // no code point begins here
  uint32_t borders;  // a document begins here
  uint32_t bytes;    // of unit characters
  uint32_t beyond;   // bytes that the last unit character has after the 32

  GPUDEDUP_HD uint32_t begins(const Stretch& s) { return s.joiners | s.singles; }
  GPUDEDUP_HD uint32_t separators(const Stretch& s) { return ~(s.joiners | s.singles | s.skipped); }
  GPUDEDUP_HD uint32_t size(const Stretch& s) { return bit_count(s.bytes) + s.beyond; }
};

/// Where a stretch begins: the gap that it goes on with, and the units and folded bytes before it.
struct Place {
  uint32_t gap;
  uint32_t units;
  uint32_t bytes;
};

/// Each number of `from` moved up: from a number in `through` on to the next that is not. An addition carries it there;
/// two that meet on the way arrive as one.
GPUDEDUP_HD uint32_t carry(uint32_t from, uint32_t through) { return ((from & through) + through) | (from & ~through); }

/// word:n. Separators, singles and borders of documents cut; a gap is a run of that many joiners, and makes a unit for
/// every 64 of them and for the rest.
struct Words {
  static constexpr bool ONE_CODE_POINT = false;  // whether every unit is one code point
  GPUDEDUP_HD uint32_t merge(uint32_t run, uint32_t next) { return run + next; }
  GPUDEDUP_HD uint32_t gap_units(uint32_t run) { return (run + MAX_RUN - 1) / MAX_RUN; }
  GPUDEDUP_HD uint32_t gap_bytes(uint32_t) { return 0; }
  GPUDEDUP_HD Span border() { return {0, 0, 0, 0}; }
  GPUDEDUP_HD Span code_point(uint32_t kind, uint32_t bytes) {
    if (kind == KIND_JOINER) return {1, UNCUT, 0, bytes};
    return kind == KIND_SINGLE ? Span{0, 0, 1, bytes} : border();
  }
  /// The run that is open at a place has begun its units before it.
  GPUDEDUP_HD Place after(const Span& span) {
    uint32_t run = span.tail == UNCUT ? span.head : span.tail;
    return {run, span.units + gap_units(run), span.bytes};
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

  /// Joiners that begin a run after a cut: all but those before which a joiner stands, or the head's.
  GPUDEDUP_HD uint32_t new_runs(const Stretch& s) {
    return s.joiners & (~carry(s.joiners << 1 | 1, s.skipped & ~s.borders) | s.borders);
  }
  /// Joiners before the first cut.
  GPUDEDUP_HD uint32_t head(const Stretch& s) {
    const uint32_t cuts = Stretch::separators(s) | s.singles | s.borders;
    return s.joiners & ((cuts & -cuts) - 1);
  }
  GPUDEDUP_HD Span span(const Stretch& s) {
    const uint32_t ends = Stretch::separators(s) | s.singles, size = Stretch::size(s);
    if ((ends | s.borders) == 0) return {bit_count(s.joiners), UNCUT, 0, size};
    uint32_t last = s.joiners;
    if (ends != 0) last &= 0xFFFFFFFEu << highest_bit(ends);
    if (s.borders != 0) last &= 0xFFFFFFFFu << highest_bit(s.borders);
    return {bit_count(head(s)), bit_count(last), bit_count(new_runs(s) | s.singles) - (last != 0), size};
  }
  /// Where units begin, if a run of `run` joiners stands before.
  GPUDEDUP_HD uint32_t units(uint32_t run, const Stretch& s) {
    uint32_t rest = head(s);  // the run is cut at most once in here
    for (uint32_t more = -run % MAX_RUN; more > 0 && rest != 0; --more) rest &= rest - 1;
    return new_runs(s) | s.singles | (rest & -rest);
  }
  GPUDEDUP_HD uint32_t blanks(uint32_t, const Stretch&) { return 0; }
};

/// char:n. Unit characters cut; a gap is the greatest of what stands in it, and makes a blank where that is separators
/// alone: they stand between two unit characters of one document.
struct Chars {
  static constexpr bool ONE_CODE_POINT = true;
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

  /// What stands in a gap, of those numbers that are set in `where`.
  GPUDEDUP_HD uint32_t gap(const Stretch& s, uint32_t where) {
    return s.borders & where ? BORDER : Stretch::separators(s) & where ? SEPARATORS : NOTHING;
  }
  /// Unit characters, other than the first, before which a blank stands.
  GPUDEDUP_HD uint32_t inner_blanks(const Stretch& s) {
    const uint32_t characters = Stretch::begins(s);
    const uint32_t separated = carry(Stretch::separators(s), ~characters);
    const uint32_t bordered = carry(s.borders, ~characters);
    return characters & (characters - 1) & separated & ~bordered;
  }
  GPUDEDUP_HD Span span(const Stretch& s) {
    const uint32_t characters = Stretch::begins(s);
    if (characters == 0) return {gap(s, 0xFFFFFFFFu), UNCUT, 0, 0};
    const uint32_t blanks = bit_count(inner_blanks(s));
    const uint32_t head = gap(s, bits_below(lowest_bit(characters) + 1));
    const uint32_t tail = gap(s, 0xFFFFFFFEu << highest_bit(characters));
    return {head, tail, bit_count(characters) + blanks, Stretch::size(s) + blanks};
  }
  GPUDEDUP_HD uint32_t units(uint32_t, const Stretch& s) { return Stretch::begins(s); }
  /// Unit characters before which a blank stands, if `before` is the gap that the stretch goes on with.
  GPUDEDUP_HD uint32_t blanks(uint32_t before, const Stretch& s) {
    const uint32_t characters = Stretch::begins(s), first = characters & -characters;
    const uint32_t whole = first == 0 ? BORDER : merge(before, gap(s, bits_below(lowest_bit(first) + 1)));
    return inner_blanks(s) | (whole == SEPARATORS ? first : 0);
  }
};

/// The span of two stretches, one after the other. Associative, with empty_span() neutral.
template <class Units>
GPUDEDUP_HD Span join(const Span& left, const Span& right) {
  const uint32_t bytes = left.bytes + right.bytes;
  if (left.tail == UNCUT) return {Units::merge(left.head, right.head), right.tail, right.units, bytes};
  const uint32_t gap = Units::merge(left.tail, right.head);
  if (right.tail == UNCUT) return {left.head, gap, left.units, bytes};
  const uint32_t units = left.units + right.units;
  return {left.head, right.tail, units + Units::gap_units(gap), bytes + Units::gap_bytes(gap)};
}

}  // namespace gpudedup
