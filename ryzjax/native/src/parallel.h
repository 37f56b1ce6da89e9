// Parallel loops over whatever threads the caller has: XLA's own in a running program, plain ones in tests.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <thread>

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

// One parallel loop. Who works on it walks a range of its own, in order, so that what a kernel fetches ahead is what it
// meets next; then helps with what is left of the others'.
class Loop {
 public:
  template <typename Task>
  Loop(int64_t n, int64_t workers, const Task& task)
      : n_(n), num_ranges_(workers < kMostRanges ? workers : kMostRanges), task_(&task),
        run_([](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); }) {
    for (int64_t r = 0; r < num_ranges_; ++r) {
      ranges_[r].next.store(r * n / num_ranges_, std::memory_order_relaxed);
      ranges_[r].end = (r + 1) * n / num_ranges_;
    }
  }

  void work() {
    const int64_t mine = workers_.fetch_add(1, std::memory_order_relaxed);
    for (int64_t r = 0; r < num_ranges_; ++r) {
      Range& range = ranges_[(mine + r) % num_ranges_];
      if (range.next.load(std::memory_order_relaxed) >= range.end) continue;
      for (int64_t i = range.next.fetch_add(1, std::memory_order_relaxed); i < range.end;
           i = range.next.fetch_add(1, std::memory_order_relaxed)) {
        run_(task_, i);
        done_.fetch_add(1, std::memory_order_release);
      }
    }
  }
  bool is_done() const { return done_.load(std::memory_order_acquire) == n_; }
  void hold() { holders_.fetch_add(1, std::memory_order_relaxed); }
  void release() {
    if (holders_.fetch_sub(1, std::memory_order_acq_rel) == 1) delete this;
  }

 private:
  static constexpr int64_t kMostRanges = 16;
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };

  Range ranges_[kMostRanges];
  std::atomic<int64_t> workers_{0}, done_{0}, holders_{1};
  const int64_t n_, num_ranges_;
  const void* const task_;  // lives until all are done; a helper that comes later finds no index and does not touch it
  void (*const run_)(const void*, int64_t);
};

// Helpers that have run out of work and wait a moment for the next loop before they go back to their pool: a step has
// hundreds of loops with microseconds between them, less than it takes to wake a sleeping thread.
class Lingering {
 public:
  // Gives `loop` (held for it) to a helper that waits; false if none does.
  bool offer(Loop* loop) {
    for (auto& seat : seats_) {
      if (seat.loop.load(std::memory_order_relaxed) != waiting()) continue;
      Loop* expected = waiting();
      if (seat.loop.compare_exchange_strong(expected, loop, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  // What a helper does: `loop`, then whatever is offered within kPatience of the last one's end.
  void help(Loop* loop) {
    while (loop != nullptr) {
      loop->work();
      loop->release();
      loop = wait();
    }
  }

 private:
  static constexpr int kSeats = 64;
  static constexpr auto kPatience = std::chrono::microseconds(60);
  struct alignas(64) Seat {
    std::atomic<Loop*> loop{nullptr};  // nullptr: empty
  };
  // A pointer that no loop has.
  static Loop* waiting() { return reinterpret_cast<Loop*>(alignof(Loop)); }

  Loop* wait() {
    for (auto& seat : seats_) {
      Loop* expected = nullptr;
      if (seat.loop.load(std::memory_order_relaxed) != nullptr ||
          !seat.loop.compare_exchange_strong(expected, waiting(), std::memory_order_acq_rel))
        continue;
      const auto until = std::chrono::steady_clock::now() + kPatience;
      do {
        for (int i = 0; i < 32 && seat.loop.load(std::memory_order_relaxed) == waiting(); ++i) pause();
      } while (seat.loop.load(std::memory_order_relaxed) == waiting() && std::chrono::steady_clock::now() < until);
      Loop* offered = waiting();
      if (seat.loop.compare_exchange_strong(offered, nullptr, std::memory_order_acq_rel)) return nullptr;
      seat.loop.store(nullptr, std::memory_order_release);  // `offered` is what came
      return offered;
    }
    return nullptr;
  }

  Seat seats_[kSeats];
};

inline Lingering lingering;

constexpr int kSpins = 2000;  // some tens of microseconds

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
  auto* loop = new Loop(n, helpers + 1, task);
  for (int64_t h = 0; h < helpers; ++h) {
    loop->hold();
    if (!lingering.offer(loop)) threads.schedule([loop] { lingering.help(loop); });
  }
  loop->work();
  // A helper that takes long has lost its core to another thread: it may have this one.
  for (int spins = 0; !loop->is_done(); ++spins) spins < kSpins ? pause() : std::this_thread::yield();
  loop->release();
}

}  // namespace ryzjax
