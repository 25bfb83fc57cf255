// Runs the threads of a block as fibers, in a chosen order between the points where they must meet, and fails where
// CUDA leaves the outcome undefined.
#pragma once
#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <utility>

#include "emulator/fiber.h"

struct uint3 {
  uint32_t x, y, z;
};
struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
};

// The built-in variables of the running thread.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
constexpr int32_t warpSize = 32;

namespace simt {

constexpr uint32_t WARP = 32;
constexpr uint32_t MAX_THREADS = 1024;
constexpr size_t MAX_SHARED_BYTES = 48 << 10;  // static shared memory of a block, on every architecture
constexpr size_t GAP_BYTES = 64;               // around each shared array
constexpr size_t MAX_SHARED_ARRAYS = 64;
constexpr uint64_t MAX_ATOMICS = 1 << 24;  // of one block between two meetings: more is taken for a wait without end
constexpr unsigned char GAP = 0xA5;

enum class Order : int32_t { forward, reverse, random };

/// A call in a kernel's source.
struct Call {
  const char* name;
  const char* file;
  int line;
  bool operator==(const Call& other) const {
    return line == other.line && std::strcmp(name, other.name) == 0 && std::strcmp(file, other.file) == 0;
  }
};

enum class State : uint8_t { ready, at_barrier, at_collective, returned };

struct Thread {
  Fiber fiber;
  State state;
  Call call;       // where it waits
  uint32_t mask;   // the lanes that a collective waits for
  uint64_t value;  // what it brings to the meeting, then what it takes from it
  uint32_t from;   // the lane whose value it asks for
};

struct SharedArray {
  const char* name;
  unsigned char* begin;
  size_t size;
};

/// One at a time: launches are serialised.
struct Block {
  Fiber scheduler;
  Thread threads[MAX_THREADS];
  uint32_t count = 0;    // threads
  uint32_t current = 0;  // the running one
  uint32_t waiting = 0;  // at the barrier
  uint32_t first_waiting = 0;
  uint32_t returned = 0;  // from the kernel
  uint64_t serial = 0;    // of the block, over all launches
  uint64_t atomics = 0;
  Order order = Order::forward;
  uint64_t random_state = 0;
  const char* kernel = "";
  void (*run)(void**) = nullptr;
  void** args = nullptr;
  bool running = false;  // a fiber, not the scheduler
  char error[1024] = "";

  SharedArray shared[MAX_SHARED_ARRAYS];
  uint32_t shared_count = 0;
  size_t shared_bytes = 0;
  size_t arena_used = 0;
  alignas(64) unsigned char arena[MAX_SHARED_BYTES + (2 * GAP_BYTES + 64) * MAX_SHARED_ARRAYS];
};

inline Block block;

inline uint64_t random_word() {
  uint64_t z = block.random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

inline uint32_t lane() { return block.current % WARP; }

inline void yield() { switch_fiber(block.threads[block.current].fiber, block.scheduler); }

/// Ends the launch with an error that names kernel, block and thread. Does not come back.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* format, ...) {
  int used = std::snprintf(block.error, sizeof block.error, "kernel %s, block %u, thread %u: ", block.kernel,
                           blockIdx.x, block.current);
  va_list args;
  va_start(args, format);
  std::vsnprintf(block.error + used, sizeof block.error - static_cast<size_t>(used), format, args);
  va_end(args);
  if (!block.running) {  // a fault of the emulator itself
    std::fprintf(stderr, "%s\n", block.error);
    std::abort();
  }
  yield();
  std::abort();
}

inline const char* file_name(const char* path) {
  const char* slash = std::strrchr(path, '/');
  return slash == nullptr ? path : slash + 1;
}

/// Room for a shared array of this block, filled so that what is read before it is written differs between orders.
inline void* place_shared(const char* name, size_t size, size_t alignment) {
  block.shared_bytes += size;
  if (block.shared_bytes > MAX_SHARED_BYTES)
    fail("shared memory of %zu bytes with array %s; a block has %zu", block.shared_bytes, name, MAX_SHARED_BYTES);
  if (block.shared_count == MAX_SHARED_ARRAYS)
    fail("shared array %s is one more than the emulator has room for, %zu", name, MAX_SHARED_ARRAYS);
  // Aligned for the type and not for more, so that a wider load by a cast is found.
  size_t begin = (block.arena_used + GAP_BYTES + 63) / 64 * 64;
  if (alignment < 16) begin += alignment;
  SharedArray& array = block.shared[block.shared_count++] = {name, block.arena + begin, size};
  unpoison(block.arena + block.arena_used, begin + size + GAP_BYTES - block.arena_used);
  std::memset(block.arena + block.arena_used, GAP, begin - block.arena_used);
  for (size_t i = 0; i < size; ++i) {
    array.begin[i] = block.order == Order::forward   ? 0xCD
                     : block.order == Order::reverse ? 0x37
                                                     : static_cast<unsigned char>(random_word());
  }
  std::memset(array.begin + size, GAP, GAP_BYTES);
  poison(block.arena + block.arena_used, begin + size + GAP_BYTES - block.arena_used);
  unpoison(array.begin, size);
  block.arena_used = begin + size;
  return array.begin;
}

/// The array of one declaration: the first thread of a block that comes to it places it. `Tag` is the declaration's
/// own.
template <class Array, class Tag>
Array& shared_array(const char* name, Tag) {
  static uint64_t serial = 0;
  static void* place = nullptr;
  if (serial != block.serial) {
    place = place_shared(name, sizeof(Array), alignof(Array));
    serial = block.serial;
  }
  return *static_cast<Array*>(place);
}

/// Looks for writes outside of shared arrays.
inline void check_shared() {
  if (ADDRESS_SANITIZER) return;  // which reports them where they happen
  for (uint32_t i = 0; i < block.shared_count; ++i) {
    const SharedArray& array = block.shared[i];
    for (size_t k = 1; k <= GAP_BYTES; ++k) {
      long long at = array.begin[array.size + k - 1] != GAP ? static_cast<long long>(array.size + k - 1)
                     : *(array.begin - k) != GAP            ? -static_cast<long long>(k)
                                                            : 0;
      if (at == 0) continue;
      std::snprintf(block.error, sizeof block.error,
                    "kernel %s, block %u: something wrote outside of shared array %s of %zu bytes, at byte %lld",
                    block.kernel, blockIdx.x, array.name, array.size, at);
      return;
    }
  }
}

inline const char* doing(const Thread& thread, char (&text)[256]) {
  if (thread.state == State::returned) {
    std::snprintf(text, sizeof text, "has returned");
  } else if (thread.state == State::ready) {
    std::snprintf(text, sizeof text, "runs");
  } else {
    int used = std::snprintf(text, sizeof text, "waits at %s (%s:%d)", thread.call.name, file_name(thread.call.file),
                             thread.call.line);
    if (thread.state == State::at_collective)
      std::snprintf(text + used, sizeof text - static_cast<size_t>(used), " with mask %08x", thread.mask);
  }
  return text;
}

[[noreturn]] inline void fail_at(const Call& call, uint32_t other) {
  char text[256];
  fail("%s (%s:%d), but thread %u %s", call.name, file_name(call.file), call.line, other,
       doing(block.threads[other], text));
}

/// The thread that waits at a collective for the running one, if there is one.
inline const Thread* wanted_by() {
  const Thread* warp = block.threads + (block.current - lane());
  for (uint32_t i = 0; i < WARP && warp + i < block.threads + block.count; ++i)
    if (warp[i].state == State::at_collective && (warp[i].mask >> lane() & 1) != 0) return warp + i;
  return nullptr;
}

inline uint32_t index(const Thread& thread) { return static_cast<uint32_t>(&thread - block.threads); }

/// Waits until all threads of the block are at this call. `combine(threads, count)` is what each takes from it.
template <class Combine>
uint64_t meet_block(const Call& call, uint64_t value, Combine combine) {
  for (uint32_t i = 0; block.returned > 0 && i < block.count; ++i)
    if (block.threads[i].state == State::returned) fail_at(call, i);
  if (block.waiting == 0) block.first_waiting = block.current;
  if (!(block.threads[block.first_waiting].call == call) && block.waiting > 0) fail_at(call, block.first_waiting);
  if (const Thread* other = wanted_by()) fail_at(call, index(*other));
  Thread& self = block.threads[block.current];
  self.state = State::at_barrier;
  self.call = call;
  self.value = value;
  if (++block.waiting < block.count) {
    yield();
    return self.value;
  }
  const uint64_t result = combine(block.threads, block.count);
  for (uint32_t i = 0; i < block.count; ++i) {
    block.threads[i].value = result;
    block.threads[i].state = State::ready;
  }
  block.waiting = 0;
  block.atomics = 0;
  return result;
}

/// Waits until all lanes of `mask` are at this call; then lane i takes result(threads of the warp, i).
template <class Result>
uint64_t meet_warp(const Call& call, uint32_t mask, uint64_t value, uint32_t from, Result result) {
  const uint32_t lane = simt::lane();
  const uint32_t first = block.current - lane;
  Thread* warp = block.threads + first;
  if ((mask >> lane & 1) == 0)
    fail("%s (%s:%d) with mask %08x, which lacks the calling lane %u", call.name, file_name(call.file), call.line, mask,
         lane);
  Thread& self = warp[lane];
  bool all = true;
  for (uint32_t i = 0; i < WARP; ++i) {
    if ((mask >> i & 1) == 0 || i == lane) continue;
    if (first + i >= block.count)
      fail("%s (%s:%d) with mask %08x, but the block ends before lane %u", call.name, file_name(call.file), call.line,
           mask, i);
    const Thread& other = warp[i];
    bool meets = other.state == State::at_collective && (other.mask >> lane & 1) != 0;
    if (other.state == State::returned || other.state == State::at_barrier ||
        (meets && (other.mask != mask || !(other.call == call))))
      fail_at(call, first + i);
    all = all && meets;
  }
  self.state = State::at_collective;
  self.call = call;
  self.mask = mask;
  self.value = value;
  self.from = from;
  if (!all) {
    yield();
    return self.value;
  }
  uint64_t results[WARP];
  for (uint32_t i = 0; i < WARP; ++i)
    if (mask >> i & 1) results[i] = result(warp, i);
  for (uint32_t i = 0; i < WARP; ++i) {
    if ((mask >> i & 1) == 0) continue;
    warp[i].value = results[i];
    warp[i].state = State::ready;
  }
  block.atomics = 0;
  return self.value;
}

/// Before an atomic operation: in random order, others may come first.
inline void meet_atomic() {
  if (++block.atomics > MAX_ATOMICS) {
    fail("%llu atomic operations of the block since threads last met: it waits for what cannot come",
         static_cast<unsigned long long>(MAX_ATOMICS));
  }
  if (block.order == Order::random && random_word() % 4 == 0) yield();
}

[[noreturn]] inline void thread_main() {
  begin(block.scheduler);
  block.run(block.args);
  const Thread* other = block.waiting > 0 ? block.threads + block.first_waiting : wanted_by();
  if (other != nullptr) {
    char text[256];
    fail("returned from the kernel, but thread %u %s", index(*other), doing(*other, text));
  }
  block.threads[block.current].state = State::returned;
  ++block.returned;
  yield();
  std::abort();
}

inline void resume(uint32_t thread) {
  block.current = thread;
  threadIdx.x = thread % blockDim.x;
  threadIdx.y = thread / blockDim.x % blockDim.y;
  threadIdx.z = thread / blockDim.x / blockDim.y;
  block.running = true;
  switch_fiber(block.scheduler, block.threads[thread].fiber);
  block.running = false;
}

template <class T>
void shuffle(T* values, uint64_t count) {
  for (uint64_t i = count; i > 1; --i) std::swap(values[i - 1], values[random_word() % i]);
}

/// Runs all threads of the block that blockIdx names, to the end or to the first error.
inline void run_block() {
  block.waiting = block.returned = block.shared_count = 0;
  block.atomics = block.arena_used = block.shared_bytes = 0;
  ++block.serial;
  unpoison(block.arena, sizeof block.arena);
  poison(block.arena, sizeof block.arena);
  uint32_t turns[MAX_THREADS];
  for (uint32_t i = 0; i < block.count; ++i) {
    prepare(block.threads[i].fiber, thread_main);
    block.threads[i].state = State::ready;
    turns[i] = block.order == Order::reverse ? block.count - 1 - i : i;
  }
  while (block.returned < block.count) {
    if (block.order == Order::random) shuffle(turns, block.count);
    bool ready = false;
    for (uint32_t i = 0; i < block.count; ++i) {
      if (block.threads[turns[i]].state != State::ready) continue;
      ready = true;
      if (block.order == Order::random && random_word() % 4 == 0) continue;  // falls behind
      resume(turns[i]);
      if (block.error[0] != 0) return;
    }
    if (ready) continue;
    char text[256];
    uint32_t stuck = 0;
    while (block.threads[stuck].state == State::returned) ++stuck;
    std::snprintf(block.error, sizeof block.error, "kernel %s, block %u cannot go on: thread %u %s", block.kernel,
                  blockIdx.x, stuck, doing(block.threads[stuck], text));
    return;
  }
  check_shared();
}

}  // namespace simt
