// Threads for the length of one call. None outlives it, so a process may fork between calls.
#pragma once
#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <exception>
#include <functional>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace gpudedup {

/// How a native call runs: with how many threads, and how the caller can stop it.
class Context {
 public:
  /// `poll` is called on the calling thread at least every 50 ms or so; what it throws ends the call.
  Context(unsigned workers, std::function<void()> poll) : workers_(workers ? workers : 1), poll_(std::move(poll)) {}

  unsigned workers() const { return workers_; }
  const bool* stop() const { return &stop_; }
  bool stopped() const { return __atomic_load_n(&stop_, __ATOMIC_RELAXED); }

  /// For long serial work on the calling thread: polls if 50 ms have passed.
  void check() {
    auto now = std::chrono::steady_clock::now();
    if (now - polled_ < std::chrono::milliseconds(50)) return;
    polled_ = now;
    poll_();
  }

  /// Runs task(i, worker) for every i in [0, count), worker < workers(), in any order. The first exception of a task
  /// or of the poll stops the others and is thrown here. `brief` work is done on the calling thread.
  template <class Task>
  void each(size_t count, Task&& task, bool brief = false) {
    if (brief || count == 0) {
      for (size_t i = 0; i < count; ++i) task(i, 0u);
      return;
    }
    std::mutex mutex;
    std::condition_variable changed;
    std::exception_ptr failure;
    size_t next = 0;
    unsigned running = static_cast<unsigned>(std::min<size_t>(workers_, count));
    auto fail = [&](std::exception_ptr error) {
      std::lock_guard<std::mutex> lock(mutex);
      if (!failure) failure = error;
      __atomic_store_n(&stop_, true, __ATOMIC_RELAXED);
    };
    auto work = [&](unsigned worker) {
      try {
        for (size_t i; !stopped() && (i = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED)) < count;) task(i, worker);
      } catch (...) {
        fail(std::current_exception());
      }
      std::lock_guard<std::mutex> lock(mutex);
      --running;
      changed.notify_one();
    };
    std::vector<std::thread> threads;
    try {
      for (unsigned worker = 0, wanted = running; worker < wanted; ++worker) threads.emplace_back(work, worker);
    } catch (...) {  // the system gives no more threads: those that run are enough, none is not
      std::lock_guard<std::mutex> lock(mutex);
      running -= static_cast<unsigned>(std::min<size_t>(workers_, count) - threads.size());
      if (threads.empty() && !failure)
        failure = std::make_exception_ptr(std::runtime_error("the system gives no thread to work on"));
    }
    {
      std::unique_lock<std::mutex> lock(mutex);
      while (!changed.wait_for(lock, std::chrono::milliseconds(50), [&] { return running == 0; })) {
        lock.unlock();
        if (!stopped()) try {
            poll_();
          } catch (...) {
            fail(std::current_exception());
          }
        lock.lock();
      }
    }
    for (std::thread& thread : threads) thread.join();
    if (failure) std::rethrow_exception(failure);
  }

 private:
  unsigned workers_;
  std::function<void()> poll_;
  std::chrono::steady_clock::time_point polled_ = std::chrono::steady_clock::now();
  bool stop_ = false;
};

}  // namespace gpudedup
