#include "cpu/sort.h"

#include <algorithm>
#include <utility>

namespace gpudedup {
namespace {

constexpr size_t FEW = 24;  // values that counting does not pay for
constexpr uint32_t MOST_DIGIT_BITS = 11;

/// Sorts by the two leading digits of `bits` each; `spare` [count]. Stable.
void sort_leading(uint32_t* values, size_t count, uint32_t* spare, uint32_t bits) {
  size_t places[2][size_t{1} << MOST_DIGIT_BITS];
  const uint32_t digits = 1u << bits, high = 32 - bits, low = high - bits;
  for (auto& of_digit : places) std::fill_n(of_digit, digits, 0);
  for (size_t i = 0; i < count; ++i) {
    ++places[0][values[i] >> low & (digits - 1)];
    ++places[1][values[i] >> high];
  }
  for (auto& of_digit : places) {
    size_t sum = 0;
    for (uint32_t digit = 0; digit < digits; ++digit) sum += std::exchange(of_digit[digit], sum);
  }
  for (size_t i = 0; i < count; ++i) spare[places[0][values[i] >> low & (digits - 1)]++] = values[i];
  for (size_t i = 0; i < count; ++i) values[places[1][spare[i] >> high]++] = spare[i];
}

/// Insertion sort of values that are nearly sorted; after 8 moves a value it gives up: false, and in no order.
bool insert_all(uint32_t* values, size_t count) {
  size_t moves = 0;
  for (size_t i = 1; i < count; ++i) {
    uint32_t value = values[i];
    size_t place = i;
    for (; place > 0 && values[place - 1] > value; --place) values[place] = values[place - 1];
    values[place] = value;
    moves += i - place;
    if (moves > 8 * count) return false;
  }
  return true;
}

}  // namespace

size_t sort_unique(uint32_t* values, size_t count, uint32_t* spare) {
  if (count >= FEW) {
    // Hashes are spread evenly: with 4 to 6 bits more than it takes to count them few have their leading bits in common
    // with another (of more than 2^17 values some, and of 2^22 most, for digits do not grow any more).
    uint32_t log = 63 - static_cast<uint32_t>(__builtin_clzll(count));
    sort_leading(values, count, spare, std::clamp((log + 6) / 2, 4u, MOST_DIGIT_BITS));
  }
  // Of texts made to have hashes that agree in their leading bits, insertion would cost the square.
  if (!insert_all(values, count)) std::sort(values, values + count);
  size_t distinct = std::min<size_t>(count, 1);
  for (size_t i = 1; i < count; ++i) {
    uint32_t value = values[i];
    bool fresh = value != values[distinct - 1];
    values[distinct] = value;
    distinct += fresh;
  }
  return distinct;
}

}  // namespace gpudedup
