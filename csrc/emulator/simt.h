// CUDA's spellings for a kernel that runs on the CPU, in tests: one fiber per thread, blocks one after another.
//
// Threads run in ascending, descending or seeded random order between the points where they meet (__syncthreads, warp
// collectives), and so do blocks: a missing barrier gives other results in another order. Shared memory is filled
// anew for each block, in another way in each order. Reported as errors: a barrier or collective that not all
// threads, or all lanes of the mask, reach at the same call; a thread that returns while others wait for it, or that
// waits for one that has returned; writes around shared arrays (under the address sanitizer reads too); misaligned
// and wild addresses; shifts and divisions without meaning; static shared memory of more than 48 KiB.
//
// Not modelled: weak memory order, races between blocks or between a kernel and the host, waits in a loop for another
// thread's plain or volatile write, __activemask, dynamic shared memory, clusters, sync of the grid, TMA,
// asynchronous copies, tensor cores, textures, floating point.
#pragma once
#include <type_traits>

#include "emulator/scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)

/// A static shared array of `count` values, without meaning at first.
#define GPUDEDUP_SHARED(type, name, count) type(&name)[count] = simt::shared_array<type[count]>(#name, [] {})

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

namespace simt {

template <class T>
struct given {
  using type = T;
};
template <class T>
using given_t = typename given<T>::type;  // a parameter that converts as in an overload for T

template <class T>
uint64_t to_word(T value) {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA has this for 4 and 8 bytes only");
  return static_cast<uint64_t>(static_cast<std::make_unsigned_t<T>>(value));
}

/// The value of lane `from`, which must take part.
template <class T>
T read_lane(const Call& call, uint32_t mask, T value, int32_t from) {
  if (from < 0 || (mask >> from & 1) == 0)
    fail("%s (%s:%d) reads lane %d, which is not in mask %08x", call.name, file_name(call.file), call.line, from, mask);
  return static_cast<T>(meet_warp(call, mask, to_word(value), static_cast<uint32_t>(from),
                                  [](const Thread* warp, uint32_t i) { return warp[warp[i].from].value; }));
}

/// Folds the values of all lanes of `mask`.
template <class T, class Fold>
T reduce_warp(const Call& call, uint32_t mask, T value, Fold fold) {
  return static_cast<T>(meet_warp(call, mask, to_word(value), 0, [=](const Thread* warp, uint32_t) {
    uint32_t i = static_cast<uint32_t>(__builtin_ctz(mask));
    T result = static_cast<T>(warp[i].value);
    for (++i; i < WARP; ++i)
      if (mask >> i & 1) result = fold(result, static_cast<T>(warp[i].value));
    return to_word(result);
  }));
}

template <class T, bool MIN_MAX = false>
constexpr void check_atomic() {
  static_assert(std::is_integral_v<T> && (sizeof(T) == 4 || sizeof(T) == 8), "CUDA has atomics on 4 and 8 bytes only");
  static_assert(MIN_MAX || sizeof(T) == 4 || std::is_unsigned_v<T>, "CUDA has this atomic on unsigned 8 bytes only");
}

/// Replaces *address by change(*address); the old value.
template <class T, class Change>
T update(T* address, Change change) {
  meet_atomic();
  const T old = *address;
  *address = change(old);
  return old;
}

}  // namespace simt

// Where a call stands in the kernel's source: a default argument is evaluated there.
#define GPUDEDUP_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define GPUDEDUP_CALL \
  simt::Call { __func__, file, line }

inline void __syncthreads(GPUDEDUP_SITE) {
  simt::meet_block(GPUDEDUP_CALL, 0, [](const simt::Thread*, uint32_t) { return 0u; });
}
inline int __syncthreads_count(int predicate, GPUDEDUP_SITE) {
  return static_cast<int>(
      simt::meet_block(GPUDEDUP_CALL, predicate != 0, [](const simt::Thread* threads, uint32_t count) {
        uint64_t sum = 0;
        for (uint32_t i = 0; i < count; ++i) sum += threads[i].value;
        return sum;
      }));
}
inline int __syncthreads_or(int predicate, GPUDEDUP_SITE) {
  return static_cast<int>(
      simt::meet_block(GPUDEDUP_CALL, predicate != 0, [](const simt::Thread* threads, uint32_t count) {
        uint64_t any = 0;
        for (uint32_t i = 0; i < count; ++i) any |= threads[i].value;
        return any;
      }));
}
inline int __syncthreads_and(int predicate, GPUDEDUP_SITE) {
  return static_cast<int>(
      simt::meet_block(GPUDEDUP_CALL, predicate != 0, [](const simt::Thread* threads, uint32_t count) {
        uint64_t all = 1;
        for (uint32_t i = 0; i < count; ++i) all &= threads[i].value;
        return all;
      }));
}

inline void __syncwarp(uint32_t mask = 0xFFFFFFFFu, GPUDEDUP_SITE) {
  simt::meet_warp(GPUDEDUP_CALL, mask, 0, 0, [](const simt::Thread*, uint32_t) { return 0u; });
}

// CUDA C++ Programming Guide, "Warp Shuffle Functions": `width`, a power of two, cuts the warp into groups; a lane
// that would read beyond its group reads its own value.
template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = warpSize, GPUDEDUP_SITE) {
  const int32_t lane = static_cast<int32_t>(simt::lane());
  return simt::read_lane(GPUDEDUP_CALL, mask, value, (lane & -width) | (source & (width - 1)));
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = warpSize, GPUDEDUP_SITE) {
  const int32_t lane = static_cast<int32_t>(simt::lane());
  const int32_t from = lane - static_cast<int32_t>(delta);
  return simt::read_lane(GPUDEDUP_CALL, mask, value, from < (lane & -width) ? lane : from);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = warpSize, GPUDEDUP_SITE) {
  const int32_t lane = static_cast<int32_t>(simt::lane());
  const int32_t from = lane + static_cast<int32_t>(delta);
  return simt::read_lane(GPUDEDUP_CALL, mask, value, from > (lane | (width - 1)) ? lane : from);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = warpSize, GPUDEDUP_SITE) {
  const int32_t lane = static_cast<int32_t>(simt::lane());
  const int32_t from = lane ^ bits;
  return simt::read_lane(GPUDEDUP_CALL, mask, value, from > (lane | (width - 1)) ? lane : from);
}

inline uint32_t __ballot_sync(uint32_t mask, int predicate, GPUDEDUP_SITE) {
  const uint32_t bit = predicate != 0 ? 1u << simt::lane() : 0;
  return simt::reduce_warp(GPUDEDUP_CALL, mask, bit, [](uint32_t a, uint32_t b) { return a | b; });
}
inline int __any_sync(uint32_t mask, int predicate, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, static_cast<int>(predicate != 0), [](int a, int b) { return a | b; });
}
inline int __all_sync(uint32_t mask, int predicate, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, static_cast<int>(predicate != 0), [](int a, int b) { return a & b; });
}
template <class T>
uint32_t __match_any_sync(uint32_t mask, T value, GPUDEDUP_SITE) {
  return static_cast<uint32_t>(
      simt::meet_warp(GPUDEDUP_CALL, mask, simt::to_word(value), 0, [=](const simt::Thread* warp, uint32_t lane) {
        uint64_t equal = 0;
        for (uint32_t i = 0; i < simt::WARP; ++i)
          if ((mask >> i & 1) != 0 && warp[i].value == warp[lane].value) equal |= 1u << i;
        return equal;
      }));
}
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, value, [](uint32_t a, uint32_t b) { return a + b; });
}
inline uint32_t __reduce_min_sync(uint32_t mask, uint32_t value, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, value, [](uint32_t a, uint32_t b) { return a < b ? a : b; });
}
inline uint32_t __reduce_max_sync(uint32_t mask, uint32_t value, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, value, [](uint32_t a, uint32_t b) { return a > b ? a : b; });
}
inline uint32_t __reduce_or_sync(uint32_t mask, uint32_t value, GPUDEDUP_SITE) {
  return simt::reduce_warp(GPUDEDUP_CALL, mask, value, [](uint32_t a, uint32_t b) { return a | b; });
}

template <class T>
T atomicAdd(T* address, simt::given_t<T> value) {
  simt::check_atomic<T>();
  using Bits = std::make_unsigned_t<T>;  // wraps
  return simt::update(address,
                      [=](T old) { return static_cast<T>(static_cast<Bits>(old) + static_cast<Bits>(value)); });
}
template <class T>
T atomicMin(T* address, simt::given_t<T> value) {
  simt::check_atomic<T, true>();
  return simt::update(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, simt::given_t<T> value) {
  simt::check_atomic<T, true>();
  return simt::update(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicOr(T* address, simt::given_t<T> value) {
  simt::check_atomic<T>();
  return simt::update(address, [=](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* address, simt::given_t<T> value) {
  simt::check_atomic<T>();
  return simt::update(address, [=](T old) { return old & value; });
}
template <class T>
T atomicExch(T* address, simt::given_t<T> value) {
  simt::check_atomic<T>();
  return simt::update(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::given_t<T> compare, simt::given_t<T> value) {
  simt::check_atomic<T>();
  return simt::update(address, [=](T old) { return old == compare ? value : old; });
}

// Threads run one at a time, so every write is seen at once.
inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __popcll(uint64_t x) { return __builtin_popcountll(x); }
inline int __ffs(int32_t x) { return __builtin_ffs(x); }
inline int __ffsll(int64_t x) { return __builtin_ffsll(x); }
inline int __clz(int32_t x) { return x == 0 ? 32 : __builtin_clz(static_cast<uint32_t>(x)); }
inline int __clzll(int64_t x) { return x == 0 ? 64 : __builtin_clzll(static_cast<uint64_t>(x)); }
inline uint32_t __umulhi(uint32_t x, uint32_t y) { return static_cast<uint32_t>(uint64_t{x} * y >> 32); }
inline uint64_t __umul64hi(uint64_t x, uint64_t y) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>(static_cast<Wide>(x) * y >> 64);
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) << (shift & 31) >> 32);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((uint64_t{high} << 32 | low) >> (shift & 31));
}
/// Byte i of the result is the one of y:x that the low three bits of nibble i of `selector` name; bit 3 spreads its
/// sign.
inline uint32_t __byte_perm(uint32_t x, uint32_t y, uint32_t selector) {
  const uint64_t bytes = uint64_t{y} << 32 | x;
  uint32_t result = 0;
  for (uint32_t i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> (4 * i);
    uint32_t byte = bytes >> (8 * (nibble & 7)) & 0xFF;
    if (nibble & 8) byte = byte & 0x80 ? 0xFF : 0;
    result |= byte << (8 * i);
  }
  return result;
}

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(a) : static_cast<T>(b);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
