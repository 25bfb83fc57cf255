// A table of kernels, and one function to launch them by name as cuLaunchKernel would. To be included once, after them.
#pragma once
#include <signal.h>

#include <algorithm>
#include <mutex>
#include <utility>
#include <vector>

#include "emulator/simt.h"

namespace simt {

template <auto>
struct Erased;
template <class... Parameters, void (*kernel)(Parameters...)>
struct Erased<kernel> {
  template <size_t... I>
  static void call(void** args, std::index_sequence<I...>) {
    kernel(*static_cast<Parameters*>(args[I])...);
  }
  static void run(void** args) { call(args, std::index_sequence_for<Parameters...>{}); }
};

struct Kernel {
  const char* name;
  void (*run)(void** args);
  uint32_t max_threads;
};

extern const Kernel kernels[];
extern const size_t kernel_count;

inline thread_local bool launching = false;  // on this OS thread

/// A wild address, or a division by zero, in a kernel. The handler leaves by a switch of stacks, as fail() always does.
inline void on_fault(int number, siginfo_t* info, void*) {
  if (!launching || !block.running) {
    signal(number, SIG_DFL);
    return;
  }
  if (number == SIGFPE) fail("division by zero, or of the least integer by -1");
  fail("no memory of this process at address %p, or its stack is too small", info->si_addr);
}

/// Faults are errors of the kernel while this lives. Under the address sanitizer they are its own to report.
class Faults {
 public:
  Faults() {
    launching = true;
    if (ADDRESS_SANITIZER) return;
    static std::vector<char> memory(64 << 10);
    stack_t stack{};
    stack.ss_sp = memory.data();
    stack.ss_size = memory.size();
    sigaltstack(&stack, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (size_t i = 0; i < std::size(NUMBERS); ++i) sigaction(NUMBERS[i], &action, &old_[i]);
  }
  ~Faults() {
    launching = false;
    if (ADDRESS_SANITIZER) return;
    for (size_t i = 0; i < std::size(NUMBERS); ++i) sigaction(NUMBERS[i], &old_[i], nullptr);
    sigaltstack(&old_stack_, nullptr);
  }

 private:
  static constexpr int NUMBERS[] = {SIGSEGV, SIGBUS, SIGFPE};
  struct sigaction old_[std::size(NUMBERS)];
  stack_t old_stack_{};
};

inline void run_grid(const Kernel& kernel, uint32_t blocks, uint32_t threads, void** args, Order order, uint64_t seed) {
  block.kernel = kernel.name;
  block.run = kernel.run;
  block.args = args;
  block.count = threads;
  block.order = order;
  block.random_state = seed;
  block.error[0] = 0;
  blockIdx = threadIdx = {};
  gridDim = {blocks, 1, 1};
  blockDim = {threads, 1, 1};
  std::vector<uint32_t> turns(blocks);
  for (uint32_t i = 0; i < blocks; ++i) turns[i] = order == Order::reverse ? blocks - 1 - i : i;
  if (order == Order::random) shuffle(turns.data(), turns.size());
  for (uint32_t turn : turns) {
    blockIdx.x = turn;
    run_block();
    if (block.error[0] != 0) return;
  }
}

/// Error texts of the undefined-behaviour sanitizer's calls, which the emulator answers itself. Every description
/// begins with the place in the source.
struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
[[noreturn]] inline void undefined(const SourceLocation* at, const char* what) {
  fail("%s at %s:%u", what, file_name(at->file), at->line);
}

struct TypeMismatch {
  SourceLocation at;
  const void* type;
  unsigned char log_alignment;
};

}  // namespace simt

#define GPUDEDUP_UNDEFINED(name, what)                                                                          \
  extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_##name(const simt::SourceLocation* at) { \
    simt::undefined(at, what);                                                                                  \
  }
GPUDEDUP_UNDEFINED(out_of_bounds, "an index out of its array")
GPUDEDUP_UNDEFINED(shift_out_of_bounds, "a shift by a width or more, or of a sign")
GPUDEDUP_UNDEFINED(divrem_overflow, "a division by zero, or of the least integer by -1")
GPUDEDUP_UNDEFINED(add_overflow, "a sum beyond its signed type")
GPUDEDUP_UNDEFINED(sub_overflow, "a difference beyond its signed type")
GPUDEDUP_UNDEFINED(mul_overflow, "a product beyond its signed type")
GPUDEDUP_UNDEFINED(negate_overflow, "a negation beyond its signed type")
#undef GPUDEDUP_UNDEFINED

extern "C" __attribute__((visibility("hidden"))) void __ubsan_handle_type_mismatch_v1(const simt::TypeMismatch* data,
                                                                                      uintptr_t address) {
  simt::fail("access to address %p, which is null or not a multiple of %d, at %s:%u", reinterpret_cast<void*>(address),
             1 << data->log_alignment, simt::file_name(data->at.file), data->at.line);
}

/// Runs a kernel on `blocks` times `threads`; args[i] points to the value of parameter i. 0 if all went well, else
/// `error` says what did not.
extern "C" __attribute__((visibility("default"))) int gpudedup_launch(const char* name, uint32_t blocks,
                                                                      uint32_t threads, void** args, int32_t order,
                                                                      uint64_t seed, char* error, size_t error_size) {
  static std::mutex one_at_a_time;
  std::lock_guard<std::mutex> lock(one_at_a_time);
  const simt::Kernel* end = simt::kernels + simt::kernel_count;
  const simt::Kernel* kernel =
      std::find_if(simt::kernels, end, [=](auto& each) { return std::strcmp(each.name, name) == 0; });
  if (kernel == end) {
    std::snprintf(error, error_size, "there is no kernel %s", name);
    return 1;
  }
  if (threads == 0 || threads > kernel->max_threads) {
    std::snprintf(error, error_size, "kernel %s cannot be launched with %u threads; it is bounded to 1 to %u", name,
                  threads, kernel->max_threads);
    return 1;
  }
  simt::Faults faults;
  simt::run_grid(*kernel, blocks, threads, args, static_cast<simt::Order>(order), seed);
  std::snprintf(error, error_size, "%s", simt::block.error);
  return error[0] != 0;
}

/// For guards around memory that a sanitized kernel may not touch.
extern "C" __attribute__((visibility("default"))) void gpudedup_poison(const void* begin, size_t size, int on) {
  on ? simt::poison(begin, size) : simt::unpoison(begin, size);
}
