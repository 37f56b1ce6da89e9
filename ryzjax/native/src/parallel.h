// Parallel loops over threads that the caller provides: XLA's thread pool in a running program, plain threads in tests.
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

// The threads that a loop may use.
struct Threads {
  int64_t count = 1;                                    // includes the calling thread
  std::function<void(std::function<void()>)> schedule;  // runs a closure later, on another thread
};

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// One parallel loop. Each worker first runs a range of its own, in order, so that the data a kernel prefetches is the
// data of its next task. It then helps to finish the ranges of other workers. The last holder deletes the loop.
class Loop {
 public:
  template <typename Task>
  Loop(int64_t n, int64_t workers, const Task& task)
      : n_(n), num_ranges_(workers < kMaxRanges ? workers : kMaxRanges), task_(&task),
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
  static constexpr int64_t kMaxRanges = 16;
  struct alignas(64) Range {
    std::atomic<int64_t> next;
    int64_t end;
  };

  Range ranges_[kMaxRanges];
  std::atomic<int64_t> workers_{0}, done_{0}, holders_{1};
  const int64_t n_, num_ranges_;
  const void* const task_;  // valid until all tasks are done; a later helper finds no index left and does not use it
  void (*const run_)(const void*, int64_t);
};

// Helper threads that have no work left and wait a moment for the next loop before they return to their pool. A step
// runs hundreds of loops that are microseconds apart, which is less than it takes to wake a sleeping thread.
class Lingering {
 public:
  // Hands `loop` to a waiting helper, together with the caller's hold on it. Returns false if no helper waits.
  bool offer(Loop* loop) {
    for (auto& seat : seats_) {
      if (seat.loop.load(std::memory_order_relaxed) != waiting()) continue;
      Loop* expected = waiting();
      if (seat.loop.compare_exchange_strong(expected, loop, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  // The body of a helper: runs `loop`, then every loop that is offered within kPatience after the previous one.
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
    std::atomic<Loop*> loop{nullptr};  // null for a free seat
  };
  // Marks a seat whose helper waits for a loop. No loop has this address.
  static Loop* waiting() { return reinterpret_cast<Loop*>(alignof(Loop)); }

  // Takes a free seat and waits there. Returns the loop that was offered, or null after kPatience or without a free
  // seat.
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
      seat.loop.store(nullptr, std::memory_order_release);  // `offered` now holds the loop
      return offered;
    }
    return nullptr;
  }

  Seat seats_[kSeats];
};

inline Lingering lingering;

constexpr int kSpins = 2000;  // takes some tens of microseconds

// Runs task(i) once for every i in [0, n). The calling thread works too, and runs every task that no helper has begun.
// It waits only for tasks that are running, never for a thread to become free, so nested and concurrent loops cannot
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
  // A helper that takes long has probably lost its core to another thread, so this thread yields its own.
  for (int spins = 0; !loop->is_done(); ++spins) spins < kSpins ? pause() : std::this_thread::yield();
  loop->release();
}

}  // namespace ryzjax
