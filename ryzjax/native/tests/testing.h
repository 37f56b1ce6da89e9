// Helpers of the kernels' tests: buffers of an exact size, so that sanitizers detect accesses out of bounds, threads,
// and the list of instruction sets that this machine can run.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "kernels.h"
#include "numbers.h"

namespace ryzjax::testing {

inline std::mt19937 random_bits(0);

inline float uniform(float low, float high) { return std::uniform_real_distribution<float>(low, high)(random_bits); }

// Runs each closure on a thread of its own. That is slow, but it runs the loops in parallel under the sanitizers.
class ThreadSet {
 public:
  ~ThreadSet() { join(); }
  void join() {
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }
  Threads view() {
    return {3, [this](std::function<void()> work) { threads_.emplace_back(std::move(work)); }};
  }

 private:
  std::vector<std::thread> threads_;
};

template <typename T>
std::unique_ptr<T[]> exact_buffer(size_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// Returns the kernels that this machine can run, and prints the names of those it cannot.
inline std::vector<const Kernels*> every_kernels() {
  std::vector<const Kernels*> found;
  for (const char* name : {"avx512", "avx512-vnni", "avx512-bw", "avx2-vnni", "avx2", "dotprod", "portable"}) {
    const Kernels* kernels = choose_kernels(name);
    if (kernels == nullptr) {
      std::printf("%s: not on this machine\n", name);
    } else {
      found.push_back(kernels);
    }
  }
  return found;
}

}  // namespace ryzjax::testing
