// What differs between CUDA and the tests' emulator of it, once.
#pragma once
#include "core/platform.h"

#if defined(GPUDEDUP_EMULATOR)
#include "emulator/simt.h"
#else
/// A static shared array of `count` values, without meaning at first. Aligned as `type` asks, and no more.
#define GPUDEDUP_SHARED(type, name, count) __shared__ type name[count]
#endif
