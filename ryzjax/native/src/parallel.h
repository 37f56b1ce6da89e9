// Parallel loops over whatever threads the caller has: XLA's own in a running program, plain ones in tests.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace ryzjax {

// Where work can be sent besides the calling thread.
struct Threads {
  int64_t count = 1;                                         // the calling thread included
  std::function<void(std::function<void()>)> schedule;  // runs a closure some time later, on another thread
};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Runs task(i) once for every i in [0, n). The caller works too, and takes whatever helpers have not begun: it
// waits for tasks that are running, never for a thread to come free, so that nested and concurrent loops cannot
// block each other.
template <typename Task>
void parallel_for(const Threads& threads, int64_t n, const Task& task) {
  const int64_t helpers = (threads.count < n ? threads.count : n) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < n; ++i) task(i);
    return;
  }
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    int64_t n;
    const Task* task;  // lives until done == n; a helper that comes later finds next >= n and does not touch it
  };
  auto state = std::make_shared<State>();
  state->n = n;
  state->task = &task;
  auto work = [](State& s) {
    for (int64_t i = s.next.fetch_add(1, std::memory_order_relaxed); i < s.n;
         i = s.next.fetch_add(1, std::memory_order_relaxed)) {
      (*s.task)(i);
      s.done.fetch_add(1, std::memory_order_release);
    }
  };
  for (int64_t h = 0; h < helpers; ++h) threads.schedule([state, work] { work(*state); });
  work(*state);
  while (state->done.load(std::memory_order_acquire) < n) pause();
}

}  // namespace ryzjax
