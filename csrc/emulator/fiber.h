// A fiber: a stack, and where on it the processor stopped. One OS thread goes from one to another by itself.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool ADDRESS_SANITIZER = true;
inline void poison(const void* begin, size_t size) { __asan_poison_memory_region(begin, size); }
inline void unpoison(const void* begin, size_t size) { __asan_unpoison_memory_region(begin, size); }
#else
constexpr bool ADDRESS_SANITIZER = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

constexpr size_t STACK_BYTES = ADDRESS_SANITIZER ? 512 << 10 : 64 << 10;  // sanitized frames hold redzones

struct Fiber {
  char* stack = nullptr;  // none: the OS thread's own
#if defined(__x86_64__)
  void* sp = nullptr;
#else
  ucontext_t context{};
#endif
#if defined(__SANITIZE_ADDRESS__)
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake_stack = nullptr;
#endif
};

#if defined(__x86_64__)
extern "C" __attribute__((visibility("hidden"))) void gpudedup_switch_stack(void** save, void* load);
// The registers that a call must leave as they are (System V ABI, section 3.2.1); kernels have no floating point.
asm(R"(
.text
.globl gpudedup_switch_stack
.hidden gpudedup_switch_stack
.type gpudedup_switch_stack, @function
gpudedup_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size gpudedup_switch_stack, .-gpudedup_switch_stack
)");
#endif

/// Makes `fiber` start `entry`, which must not return, at the next switch to it.
inline void prepare(Fiber& fiber, void (*entry)()) {
  if (fiber.stack == nullptr) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    void* memory = mmap(nullptr, page + STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0) std::abort();
    fiber.stack = static_cast<char*>(memory) + page;
  }
  unpoison(fiber.stack, STACK_BYTES);  // a thread that failed left frames behind
#if defined(__SANITIZE_ADDRESS__)
  fiber.bottom = fiber.stack;
  fiber.size = STACK_BYTES;
  fiber.fake_stack = nullptr;
#endif
#if defined(__x86_64__)
  void** top = reinterpret_cast<void**>(fiber.stack + STACK_BYTES) - 2;  // (rsp + 8) % 16 == 0 at entry
  *top = reinterpret_cast<void*>(entry);
  for (int i = 1; i <= 6; ++i) top[-i] = nullptr;
  fiber.sp = top - 6;
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = STACK_BYTES;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, entry, 0);
#endif
}

/// To be called first in an entry.
inline void begin([[maybe_unused]] Fiber& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.bottom, &from.size);
#endif
}

/// Goes on with `to`; comes back when something switches to `from`.
inline void switch_fiber(Fiber& from, Fiber& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.size);
#endif
#if defined(__x86_64__)
  gpudedup_switch_stack(&from.sp, to.sp);
#else
  swapcontext(&from.context, &to.context);
#endif
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, &to.bottom, &to.size);
#endif
}

}  // namespace simt
