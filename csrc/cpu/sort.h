// Sets of 32-bit values.
#pragma once
#include <cstddef>
#include <cstdint>

namespace gpudedup {

/// Sorts `count` values ascending with `spare` [count] beside them; returns how many are left without repeats.
size_t sort_unique(uint32_t* values, size_t count, uint32_t* spare);

}  // namespace gpudedup
