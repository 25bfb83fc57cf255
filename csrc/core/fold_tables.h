// Layout of the generated fold tables (fold_tables.cpp, made by tools/make_tables.py). docs/spec.md, sections 2 and 3.
#pragma once
#include "core/platform.h"

namespace gpudedup {

constexpr uint32_t FOLD_PAGE_BITS = 7;
constexpr uint32_t FOLD_INDEX_SIZE = 0x110000 >> FOLD_PAGE_BITS;

// An entry joins fold and class of a code point. Bits 31..30 are the kind of what it folds to:
constexpr uint32_t KIND_SEPARATOR = 0;  // separates units
constexpr uint32_t KIND_JOINER = 1;     // joins its neighbours to a run
constexpr uint32_t KIND_SINGLE = 2;     // is a unit of its own
constexpr uint32_t KIND_SPECIAL = 3;    // nothing (payload 0), or a sequence: payload = offset << 5 | count
constexpr uint32_t KIND_SHIFT = 30;
// The payload of a joiner or a single is (folded - given) mod 2^22, so that pages that map to themselves coincide.
constexpr uint32_t PAYLOAD_MASK = (1u << 22) - 1;
constexpr uint32_t CODE_POINT_MASK = (1u << 21) - 1;
// An element of a sequence is its kind << 30 | code point.

#if !defined(__CUDACC_RTC__)                           // the host's copy
extern const uint16_t fold_index[3][FOLD_INDEX_SIZE];  // [fold][code point >> 7] -> page
extern const uint32_t fold_pages[];                    // [page][code point & 127] -> entry
extern const uint32_t fold_expansions[];
extern const uint32_t fold_page_count;
extern const uint32_t fold_expansion_count;
extern const char fold_tables_sha256[65];
extern const char fold_tables_sources[];
#endif

}  // namespace gpudedup
