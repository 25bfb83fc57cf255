// Text -> folded bytes and units. docs/spec.md, sections 1 to 3.
//
// Documents stand one after another in one text, and a bitmap says where they begin. Every thread takes the code points
// that begin in its 32 bytes, whatever document they belong to, so work is as even as the text is. Two passes:
// `measure` finds what each stretch adds (core/span.h), a scan turns that into the place where each stretch begins,
// `find` writes.
//
// A stretch is read into sets of 32 bits: ASCII four bytes at a time, other code points one by one, folded in place. So
// the time of a warp goes with the most of these that one of its threads has. Where a code point folds to more bytes
// than it has itself, the thread takes its whole stretch code point by code point.
#include "core/ascii.h"
#include "core/span.h"
#include "cuda/block.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t READ_BYTES = 32;  // of text, a thread
constexpr uint32_t READ_WORDS = READ_BYTES / 4;
constexpr uint32_t READ_THREADS = 256;
constexpr uint32_t JOIN_THREADS = 1024;

// Folded bytes that a block of `find` collects, before they and the starts of their units go to memory as wholes: those
// of its text, a blank before and what its last code point has beyond. Text that folds to more goes there directly.
constexpr uint32_t BLOCK_BYTES = READ_BYTES * READ_THREADS + 4;
constexpr uint32_t VECTOR_BYTES = sizeof(uint4), VECTOR_STARTS = 4;
constexpr uint32_t FIND_BLOCKS = 6;  // of a multiprocessor: with fewer registers than that leaves a thread they spill

// A stretch in shared memory, and up to three bytes of its last code point that are beyond it. An odd number of words
// apart, equal words of all lanes are in different banks.
constexpr uint32_t SLOT_WORDS = READ_WORDS + 1;

/// `starts` has bit p set where a document that is not empty starts at byte p, and bit `size`; one word more follows.
/// The bytes have room to the next multiple of READ_BYTES.
struct Text {
  const uint8_t* bytes;
  uint32_t size;
  const uint32_t* starts;
  FoldTable fold;
  uint32_t lower;  // what lowers four letters of ASCII
};

__device__ __forceinline__ Text make_text(const uint8_t* bytes, uint32_t size, const uint32_t* starts,
                                          const uint16_t* fold_index, const uint32_t* fold_pages,
                                          const uint32_t* fold_expansions, uint32_t fold) {
  return {
      bytes, size, starts, {fold_index, fold_pages, fold_expansions, fold == FOLD_FULL}, fold == FOLD_NONE ? 0 : LOWER};
}

/// Bits of `starts` for the bytes after `at`, 31 of them.
__device__ __forceinline__ uint32_t starts_after(const Text& text, uint32_t at) {
  const uint32_t* word = text.starts + at / 32;
  return __funnelshift_r(word[0], word[1], at) >> 1;
}

/// Decodes at `at`, no further than to the next document, of which `starts` tells as starts_after() does; returns the
/// bytes consumed.
__device__ __forceinline__ uint32_t decode(const Text& text, uint32_t at, uint32_t starts, uint32_t* code_point) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(text.bytes) + at / 4;
  const uint32_t size = decode_short(__funnelshift_r(words[0], words[1], at * 8), code_point);
  if (size != 0 && (starts & bits_below(size - 1)) == 0) return size;
  const int64_t most = starts == 0 ? 4 : lowest_bit(starts) + 1;
  return static_cast<uint32_t>(decode_utf8(text.bytes + at, most, code_point));
}

/// Bytes from `at` on that belong to a code point which begins before it. Only the nearest byte that is no continuation
/// can begin one: a decode never consumes a further one, and a continuation that no lead consumes is a code point.
__device__ __forceinline__ uint32_t overhang(const Text& text, uint32_t at) {
  if ((text.bytes[at] & 0xC0) != 0x80) return 0;
  for (uint32_t back = 1; back <= 3 && back <= at; ++back) {
    if ((text.bytes[at - back] & 0xC0) == 0x80) continue;
    uint32_t code_point;
    const uint32_t consumed = decode(text, at - back, starts_after(text, at - back), &code_point);
    return consumed > back ? consumed - back : 0;
  }
  return 0;
}

/// Reads [begin, end), of at most READ_BYTES, with all code points that begin there folded in place; `begin` is a
/// multiple of READ_BYTES. take(word number, word) is given the bytes four at a time, put(i, code point) then the unit
/// characters that are not of ASCII and differ from the bytes from i on, or reach beyond READ_BYTES. False if one folds
/// to more than its own bytes.
template <class Take, class Put>
__device__ __forceinline__ bool read_stretch(const Text& text, uint32_t begin, uint32_t end, Stretch* stretch,
                                             Take&& take, Put&& put) {
  const uint32_t own = bits_below(end - begin);
  const uint4* from = reinterpret_cast<const uint4*>(text.bytes + begin);
  const uint4 low = from[0], high = from[1];
  const uint32_t words[READ_WORDS] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
  uint32_t joiners = 0, wide = 0;
#pragma unroll
  for (uint32_t i = READ_WORDS; i-- > 0;) {
    joiners = __funnelshift_l(gather_tops(ascii_joiners(words[i])), joiners, 4);
    wide |= words[i];
    take(i, words[i]);
  }
  if ((wide & TOP_BITS) != 0) {
    wide = 0;
#pragma unroll
    for (uint32_t i = READ_WORDS; i-- > 0;) wide = __funnelshift_l(gather_tops(words[i] & TOP_BITS), wide, 4);
    wide &= own;
  } else {
    wide = 0;
  }
  joiners &= own;
  const uint32_t starts = text.starts[begin / 32];
  *stretch = {joiners, 0, ~own, starts & own, joiners, 0};
  if ((wide & 1) != 0) {
    const uint32_t before = (1u << overhang(text, begin)) - 1;
    stretch->skipped |= before;
    wide &= ~before;
  }
  const uint32_t starts_next = wide == 0 ? 0 : text.starts[begin / 32 + 1];
  while (wide != 0) {
    const uint32_t at = lowest_bit(wide);
    uint32_t code_point;
    const uint32_t consumed = decode(text, begin + at, __funnelshift_r(starts, starts_next, at) >> 1, &code_point);
    const uint32_t all = bits_below(consumed) << at;
    wide &= ~all;
    const uint32_t kind = kind_of_fixed(text.fold, code_point, fold_entry(text.fold, code_point));
    if (kind < KIND_SPECIAL) {  // as most of any script; its bytes stay
      stretch->skipped |= all & (all - 1);
      stretch->joiners |= (kind & 1) << at;
      stretch->singles |= (kind >> 1) << at;
      if (kind != KIND_SEPARATOR) {
        stretch->bytes |= all;
        if (at + consumed > READ_BYTES) {
          stretch->beyond = at + consumed - READ_BYTES;
          put(at, code_point);
        }
      }
      continue;
    }
    stretch->skipped |= all;
    uint32_t to = at;
    bool in_place = true;
    fold_code_point(text.fold, code_point, [&](uint32_t kind, uint32_t folded) {
      const uint32_t size = kind == KIND_SEPARATOR ? 1 : utf8_size(folded), next = to + size;
      in_place = in_place && to < READ_BYTES && next <= at + consumed;
      if (!in_place) return;
      const uint32_t bit = 1u << to;
      stretch->skipped &= ~bit;
      if (kind == KIND_JOINER) stretch->joiners |= bit;
      if (kind == KIND_SINGLE) stretch->singles |= bit;
      if (kind != KIND_SEPARATOR) {
        stretch->bytes |= bits_below(size) << to;
        stretch->beyond = next > READ_BYTES ? next - READ_BYTES : 0;
        put(to, folded);
      }
      to = next;
    });
    if (!in_place) return false;
  }
  return true;
}

/// Calls border() where a document starts and take(kind, code point) for each folded code point of those that begin in
/// [begin, end).
template <class Border, class Take>
__device__ __forceinline__ void read_code_points(const Text& text, uint32_t begin, uint32_t end, Border&& border,
                                                 Take&& take) {
  const uint32_t starts = text.starts[begin / 32];
  uint32_t at = begin + overhang(text, begin);
  while (at < end) {
    if (starts >> (at - begin) & 1) border();
    uint32_t code_point;
    const uint32_t consumed = decode(text, at, starts_after(text, at), &code_point);
    fold_code_point(text.fold, code_point, take);
    at += consumed;
  }
}

/// The span of what begins in [begin, end).
template <class Units>
__device__ __forceinline__ Span measure(const Text& text, uint32_t begin, uint32_t end) {
  Stretch stretch;
  if (read_stretch(text, begin, end, &stretch, [](uint32_t, uint32_t) {}, [](uint32_t, uint32_t) {}))
    return Units::span(stretch);
  Span span = empty_span();
  read_code_points(
      text, begin, end, [&] { span = join<Units>(span, Units::border()); },
      [&](uint32_t kind, uint32_t code_point) {
        span = join<Units>(span, Units::code_point(kind, utf8_size(code_point)));
      });
  return span;
}

/// Where the stretch of a thread ends, which begins at `begin`; not after `begin` if there is no text for it.
__device__ __forceinline__ uint32_t stretch_end(const Text& text, uint32_t begin) {
  return begin + READ_BYTES < text.size ? begin + READ_BYTES : text.size;
}

/// The span of all stretches before each in its block; the span of each block.
template <class Units>
__device__ __forceinline__ void measure_all(const Text& text, Span* before, Span* blocks) {
  const uint32_t thread = blockIdx.x * READ_THREADS + threadIdx.x, begin = thread * READ_BYTES;
  const Span span = begin < text.size ? measure<Units>(text, begin, stretch_end(text, begin)) : empty_span();
  Span total;
  before[thread] = block_scan<Units>(span, &total);
  if (threadIdx.x == 0) blocks[blockIdx.x] = total;
}

/// Replaces the span of each block by that of all blocks before it; needed = units and folded bytes of all.
template <class Units>
__device__ __forceinline__ void join_all(Span* blocks, uint32_t count, uint32_t* needed) {
  Span carried = empty_span();
  for (uint32_t base = 0; base < count; base += JOIN_THREADS) {
    const uint32_t i = base + threadIdx.x;
    Span total;
    const Span before = block_scan<Units>(i < count ? blocks[i] : empty_span(), &total);
    if (i < count) blocks[i] = join<Units>(carried, before);
    carried = join<Units>(carried, total);
  }
  if (threadIdx.x == 0) {
    const Place end = Units::after(carried);
    needed[0] = end.units;
    needed[1] = end.bytes;
  }
}

/// Whether what was measured has room. Where it has not, there are no units, and the host comes again with more room.
__device__ __forceinline__ bool fits(const uint32_t* needed, uint32_t unit_room, uint32_t byte_room) {
  return needed[0] <= unit_room && needed[1] <= byte_room;
}

/// Writes the folded bytes of a thread's stretch to folded[place.bytes] and after, and to unit_start[place.units] and
/// after where in them its units begin.
template <class Units, class Start>
__device__ __forceinline__ void write_stretch(const Text& text, uint32_t begin, Place place, uint32_t* slot,
                                              uint8_t* folded, Start* unit_start) {
  const uint32_t end = stretch_end(text, begin);
  folded += place.bytes;
  unit_start += place.units;
  const auto begin_unit = [&](bool begins, uint32_t at) {
    if (begins) *unit_start = static_cast<Start>(at);
    unit_start += begins;
  };
  Stretch stretch;
  if (read_stretch(
          text, begin, end, &stretch, [&](uint32_t i, uint32_t word) { slot[i] = word | (text.lower & ~(word >> 2)); },
          [&](uint32_t at, uint32_t code_point) { encode_utf8(code_point, reinterpret_cast<uint8_t*>(slot) + at); })) {
    const uint32_t blanks = Units::blanks(place.gap, stretch), units = Units::units(place.gap, stretch);
    if (!Units::ONE_CODE_POINT) {  // few begin here; else nearly every byte begins one, as is seen below
      for (uint32_t rest = units; rest != 0; rest &= rest - 1)
        begin_unit(true, place.bytes + bit_count(stretch.bytes & ((rest & -rest) - 1)));
    }
#pragma unroll
    for (uint32_t i = 0; i < READ_WORDS; ++i) {
      const uint32_t word = slot[i];
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) {
        const uint32_t blank = blanks >> (4 * i + k) & 1, byte = stretch.bytes >> (4 * i + k) & 1;
        if (Units::ONE_CODE_POINT) {
          begin_unit(blank, place.bytes);
          begin_unit(units >> (4 * i + k) & 1, place.bytes + blank);
          place.bytes += blank + byte;
        }
        if (blank) *folded = ' ';
        folded += blank;
        if (byte) *folded = static_cast<uint8_t>(word >> (8 * k));
        folded += byte;
      }
    }
    const uint32_t word = slot[READ_WORDS];
    for (uint32_t i = 0; i < stretch.beyond; ++i) *folded++ = static_cast<uint8_t>(word >> (8 * i));
    return;
  }
  read_code_points(
      text, begin, end, [&] { Units::take_border(place.gap); },
      [&](uint32_t kind, uint32_t code_point) {
        Units::take(
            place.gap, kind, code_point, [&] { begin_unit(true, place.bytes); },
            [&](uint32_t put) {
              const uint32_t size = static_cast<uint32_t>(encode_utf8(put, folded));
              folded += size;
              place.bytes += size;
            });
      });
}

/// Calls vector(i) for every `width` numbers from i on, a multiple of it, of low .. high - 1, and one(i) for those at
/// both ends, where the rest of a vector is another block's.
template <class Vector, class One>
__device__ __forceinline__ void for_vectors(uint32_t width, uint32_t low, uint32_t high, Vector&& vector, One&& one) {
  for (uint32_t from = threadIdx.x * width; from < high; from += READ_THREADS * width) {
    if (from >= low && from + width <= high) {
      vector(from);
    } else {
      for (uint32_t i = from > low ? from : low; i < from + width && i < high; ++i) one(i);
    }
  }
}

/// Writes the folded bytes of all units one after another, and where in them each unit starts.
template <class Units>
__device__ __forceinline__ void find(const Text& text, const Span* before, const Span* blocks, const uint32_t* needed,
                                     uint8_t* folded, uint32_t* unit_start) {
  GPUDEDUP_SHARED(uint32_t, slots, READ_THREADS* SLOT_WORDS);
  GPUDEDUP_SHARED(uint4, block_folded, BLOCK_BYTES / VECTOR_BYTES + 2);
  // A word of a byte has a separator beside it, but at a document's end.
  constexpr uint32_t BLOCK_UNITS = Units::ONE_CODE_POINT ? BLOCK_BYTES : BLOCK_BYTES / 2;
  GPUDEDUP_SHARED(uint2, block_starts, BLOCK_UNITS / VECTOR_STARTS + 2);  // of 16 bits
  const uint32_t thread = blockIdx.x * READ_THREADS + threadIdx.x, begin = thread * READ_BYTES;
  uint32_t* slot = &slots[threadIdx.x * SLOT_WORDS];
  const Span here = blocks[blockIdx.x];
  Place first = Units::after(here);
  Place last = {0, needed[0], needed[1]};
  if (blockIdx.x + 1 < gridDim.x) last = Units::after(blocks[blockIdx.x + 1]);
  Place place = Units::after(join<Units>(here, before[thread]));
  if (last.units - first.units > BLOCK_UNITS || last.bytes - first.bytes > BLOCK_BYTES) {
    if (begin < text.size) write_stretch<Units>(text, begin, place, slot, folded, unit_start);
    return;
  }

  // Shared bytes and starts lie as in memory, relative to 16 bytes there, so that whole vectors go there.
  uint8_t* bytes = reinterpret_cast<uint8_t*>(&block_folded[0]);
  uint16_t* starts = reinterpret_cast<uint16_t*>(&block_starts[0]);
  const uint32_t byte_base = first.bytes & ~(VECTOR_BYTES - 1), unit_base = first.units & ~(VECTOR_STARTS - 1);
  place.bytes -= byte_base;
  place.units -= unit_base;
  if (begin < text.size) write_stretch<Units>(text, begin, place, slot, bytes, starts);
  __syncthreads();
  first = Units::after(blocks[blockIdx.x]);  // read again: registers that held it would be spilled
  for_vectors(
      VECTOR_STARTS, first.units - unit_base, last.units - unit_base,
      [&](uint32_t i) {
        const uint2 four = block_starts[i / VECTOR_STARTS];
        *reinterpret_cast<uint4*>(unit_start + unit_base + i) =
            make_uint4(byte_base + (four.x & 0xFFFF), byte_base + (four.x >> 16), byte_base + (four.y & 0xFFFF),
                       byte_base + (four.y >> 16));
      },
      [&](uint32_t i) { unit_start[unit_base + i] = byte_base + starts[i]; });
  for_vectors(
      VECTOR_BYTES, first.bytes - byte_base, last.bytes - byte_base,
      [&](uint32_t i) { *reinterpret_cast<uint4*>(folded + byte_base + i) = block_folded[i / VECTOR_BYTES]; },
      [&](uint32_t i) { folded[byte_base + i] = bytes[i]; });
}

/// first[i] = the first unit of document i, [documents + 1]: the number of units from bytes before its start. No unit
/// if there was no room for them.
template <class Units>
__device__ __forceinline__ void find_first(const Text& text, const uint32_t* offsets, uint32_t documents,
                                           const Span* before, const Span* blocks, const uint32_t* needed,
                                           bool has_room, uint32_t* first) {
  const uint32_t i = blockIdx.x * READ_THREADS + threadIdx.x;
  if (i > documents) return;
  const uint32_t at = offsets[i];
  if (at == text.size || !has_room) {
    first[i] = has_room ? needed[0] : 0;
    return;
  }
  const uint32_t stretch = at / READ_BYTES, begin = stretch * READ_BYTES;
  Span span = join<Units>(blocks[stretch / READ_THREADS], before[stretch]);
  if (begin < at) span = join<Units>(span, measure<Units>(text, begin, at));
  first[i] = Units::after(span).units;
}

/// Sets the bits of `starts` (zero before) for the documents of `offsets` [documents + 1], of which the first is 0.
/// Only documents that are not empty do so: a million empty ones in a row are no crowd at one word.
extern "C" __global__ void __launch_bounds__(READ_THREADS)
    mark_documents(const uint32_t* offsets, uint32_t documents, uint32_t* starts) {
  const uint32_t i = blockIdx.x * READ_THREADS + threadIdx.x;
  if (i > documents) return;
  const uint32_t at = offsets[i];
  if (i == documents || offsets[i + 1] != at) atomicOr(&starts[at / 32], 1u << (at % 32));
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    measure_words(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
                  const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, uint32_t* before,
                  uint32_t* blocks) {
  measure_all<Words>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold),
                     reinterpret_cast<Span*>(before), reinterpret_cast<Span*>(blocks));
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    measure_chars(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
                  const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, uint32_t* before,
                  uint32_t* blocks) {
  measure_all<Chars>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold),
                     reinterpret_cast<Span*>(before), reinterpret_cast<Span*>(blocks));
}

/// One block. needed uint32[2].
extern "C" __global__ void __launch_bounds__(JOIN_THREADS)
    join_words(uint32_t* blocks, uint32_t count, uint32_t* needed) {
  join_all<Words>(reinterpret_cast<Span*>(blocks), count, needed);
}

extern "C" __global__ void __launch_bounds__(JOIN_THREADS)
    join_chars(uint32_t* blocks, uint32_t count, uint32_t* needed) {
  join_all<Chars>(reinterpret_cast<Span*>(blocks), count, needed);
}

extern "C" __global__ void __launch_bounds__(READ_THREADS, FIND_BLOCKS)
    find_words(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
               const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, const uint32_t* before,
               const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room, uint32_t byte_room, uint8_t* folded,
               uint32_t* unit_start) {
  if (!fits(needed, unit_room, byte_room)) return;
  find<Words>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold),
              reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), needed, folded, unit_start);
}

extern "C" __global__ void __launch_bounds__(READ_THREADS, FIND_BLOCKS)
    find_chars(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
               const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, const uint32_t* before,
               const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room, uint32_t byte_room, uint8_t* folded,
               uint32_t* unit_start) {
  if (!fits(needed, unit_room, byte_room)) return;
  find<Chars>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold),
              reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), needed, folded, unit_start);
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    first_words(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
                const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, const uint32_t* before,
                const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room, uint32_t byte_room,
                const uint32_t* offsets, uint32_t documents, uint32_t* first) {
  find_first<Words>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold), offsets, documents,
                    reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), needed,
                    fits(needed, unit_room, byte_room), first);
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    first_chars(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
                const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t fold, const uint32_t* before,
                const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room, uint32_t byte_room,
                const uint32_t* offsets, uint32_t documents, uint32_t* first) {
  find_first<Chars>(make_text(bytes, size, starts, fold_index, fold_pages, fold_expansions, fold), offsets, documents,
                    reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), needed,
                    fits(needed, unit_room, byte_room), first);
}

}  // namespace gpudedup
