// Text -> folded bytes and units. docs/spec.md, sections 1 to 3.
//
// Documents stand one after another in one text, and a bitmap says where they begin. Every thread takes the code points
// that begin in its 16 bytes, whatever document they belong to, so work is as even as the text is. Two passes:
// `measure` finds what each stretch adds (core/span.h), a scan turns that into the place where each stretch begins,
// `find` writes.
//
// Bytes are read one by one: neighbours in a warp touch the same few lines at a time, which the first touch brings in
// whole, and a code point of any length at any place then needs no shuffling of registers.
#include "core/span.h"
#include "cuda/block.h"
#include "cuda/device.h"

namespace gpudedup {

constexpr uint32_t READ_BYTES = 16;  // of text, a thread
constexpr uint32_t READ_THREADS = 256;
constexpr uint32_t JOIN_THREADS = 1024;

/// `starts` has bit p set where a document that is not empty starts at byte p, and bit `size`; one word more after it.
struct Text {
  const uint8_t* bytes;
  uint32_t size;
  const uint32_t* starts;
  FoldTable fold;
};

/// The 24 bits of `starts` from byte at - 4 on, for a multiple `at` of 16.
__device__ __forceinline__ uint32_t starts_around(const uint32_t* starts, uint32_t at) {
  const uint16_t* halves = reinterpret_cast<const uint16_t*>(starts) + at / 16;
  const uint32_t before = at == 0 ? 0 : *(halves - 1);
  return before >> 12 | static_cast<uint32_t>(halves[0]) << 4 | (static_cast<uint32_t>(halves[1]) & 0xF) << 20;
}

/// Decodes at bit `bit` of `starts`, no further than to the next document; returns the bytes consumed.
__device__ __forceinline__ uint32_t decode(const uint8_t* bytes, uint32_t starts, uint32_t bit, uint32_t* code_point) {
  const uint32_t after = starts >> (bit + 1);
  const int64_t size = after == 0 ? 4 : __ffs(static_cast<int32_t>(after));
  return static_cast<uint32_t>(decode_utf8(bytes, size, code_point));
}

/// Bytes from `at` on that belong to a code point which begins before it. Only the nearest byte that is no continuation
/// can begin one: a decode never consumes a further one, and a continuation that no lead consumes is a code point.
__device__ __forceinline__ uint32_t overhang(const uint8_t* bytes, uint32_t at, uint32_t starts) {
  if ((bytes[at] & 0xC0) != 0x80) return 0;
  for (uint32_t back = 1; back <= 3; ++back) {
    if (starts >> (5 - back) & 1) return 0;  // byte at - back is of another document
    if ((bytes[at - back] & 0xC0) == 0x80) continue;
    uint32_t code_point;
    const uint32_t consumed = decode(bytes + (at - back), starts, 4 - back, &code_point);
    return consumed > back ? consumed - back : 0;
  }
  return 0;
}

/// Calls border() where a document starts and take(byte, kind, code point) for each folded code point of those that
/// begin in [begin, begin + READ_BYTES).
template <class Border, class Take>
__device__ __forceinline__ void read(const Text& text, uint32_t begin, Border&& border, Take&& take) {
  if (begin >= text.size) return;
  const uint32_t end = text.size - begin < READ_BYTES ? text.size : begin + READ_BYTES;
  const uint32_t starts = starts_around(text.starts, begin);
  uint32_t at = begin + overhang(text.bytes, begin, starts);
  while (at < end) {
    const uint32_t bit = at - begin + 4;
    if (starts >> bit & 1) border();
    uint32_t code_point;
    const uint32_t consumed = decode(text.bytes + at, starts, bit, &code_point);
    fold_code_point(text.fold, code_point, [&](uint32_t kind, uint32_t folded) { take(at, kind, folded); });
    at += consumed;
  }
}

/// The span of each thread's stretch and of those before it in its block; the span of each block.
template <class Units>
__device__ __forceinline__ void measure(const Text& text, Span* before, Span* blocks) {
  const uint32_t thread = blockIdx.x * READ_THREADS + threadIdx.x;
  Span span = empty_span();
  read(
      text, thread * READ_BYTES, [&] { span = join<Units>(span, Units::border()); },
      [&](uint32_t, uint32_t kind, uint32_t code_point) {
        span = join<Units>(span, Units::code_point(kind, utf8_size(code_point)));
      });
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

/// Writes the folded bytes of all units one after another, where in them each unit starts, and the byte of the text
/// that the first code point of each came from.
template <class Units>
__device__ __forceinline__ void find(const Text& text, const Span* before, const Span* blocks, uint8_t* folded,
                                     uint32_t* unit_start, uint32_t* unit_source) {
  const uint32_t thread = blockIdx.x * READ_THREADS + threadIdx.x;
  Place place = Units::after(join<Units>(blocks[blockIdx.x], before[thread]));
  read(
      text, thread * READ_BYTES, [&] { Units::take_border(place.gap); },
      [&](uint32_t at, uint32_t kind, uint32_t code_point) {
        Units::take(
            place.gap, kind, code_point,
            [&] {
              unit_start[place.units] = place.bytes;
              unit_source[place.units] = at;
              ++place.units;
            },
            [&](uint32_t put) { place.bytes += static_cast<uint32_t>(encode_utf8(put, folded + place.bytes)); });
      });
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
                  const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t decompose_hangul,
                  uint32_t* before, uint32_t* blocks) {
  measure<Words>({bytes, size, starts, {fold_index, fold_pages, fold_expansions, decompose_hangul != 0}},
                 reinterpret_cast<Span*>(before), reinterpret_cast<Span*>(blocks));
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    measure_chars(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
                  const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t decompose_hangul,
                  uint32_t* before, uint32_t* blocks) {
  measure<Chars>({bytes, size, starts, {fold_index, fold_pages, fold_expansions, decompose_hangul != 0}},
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

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    find_words(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
               const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t decompose_hangul,
               const uint32_t* before, const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room,
               uint32_t byte_room, uint8_t* folded, uint32_t* unit_start, uint32_t* unit_source) {
  if (!fits(needed, unit_room, byte_room)) return;
  find<Words>({bytes, size, starts, {fold_index, fold_pages, fold_expansions, decompose_hangul != 0}},
              reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), folded, unit_start,
              unit_source);
}

extern "C" __global__ void __launch_bounds__(READ_THREADS)
    find_chars(const uint8_t* bytes, uint32_t size, const uint32_t* starts, const uint16_t* fold_index,
               const uint32_t* fold_pages, const uint32_t* fold_expansions, uint32_t decompose_hangul,
               const uint32_t* before, const uint32_t* blocks, const uint32_t* needed, uint32_t unit_room,
               uint32_t byte_room, uint8_t* folded, uint32_t* unit_start, uint32_t* unit_source) {
  if (!fits(needed, unit_room, byte_room)) return;
  find<Chars>({bytes, size, starts, {fold_index, fold_pages, fold_expansions, decompose_hangul != 0}},
              reinterpret_cast<const Span*>(before), reinterpret_cast<const Span*>(blocks), folded, unit_start,
              unit_source);
}

/// first[i] = the first unit of document i, [documents + 1]: the number of units from bytes before its start. No unit
/// if there was no room for them.
extern "C" __global__ void __launch_bounds__(READ_THREADS)
    first_units(const uint32_t* offsets, uint32_t documents, const uint32_t* unit_source, const uint32_t* needed,
                uint32_t unit_room, uint32_t byte_room, uint32_t* first) {
  const uint32_t i = blockIdx.x * READ_THREADS + threadIdx.x;
  if (i > documents) return;
  const uint32_t at = offsets[i];
  uint32_t low = 0, high = fits(needed, unit_room, byte_room) ? needed[0] : 0;
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (unit_source[middle] < at) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  first[i] = low;
}

}  // namespace gpudedup
