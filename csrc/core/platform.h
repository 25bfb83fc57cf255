// What differs between compilers, once: integer names (NVRTC has no <cstdint>) and how a function is declared.
#pragma once

#if defined(__CUDACC_RTC__)
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define GPUDEDUP_HD static __host__ __device__ __forceinline__
#else
// Internal linkage: a copy compiled for AVX-512 must never be the one that the linker gives to other files.
#define GPUDEDUP_HD static inline __attribute__((always_inline, unused))
#endif
