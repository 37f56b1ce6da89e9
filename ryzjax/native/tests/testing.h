// What the tests of the kernels share: buffers of exactly a size, so that sanitizers see what reads or writes beside
// them; threads; and every instruction set of this machine.
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

// A thread a closure: what matters here is that they run, and that sanitizers see it.
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
std::unique_ptr<T[]> exactly(size_t count) {
  return std::unique_ptr<T[]>(new T[count]);
}

// The implementations this machine can run; says which it cannot.
inline std::vector<const Kernels*> every_kernels() {
  std::vector<const Kernels*> found;
  for (const char* name : {"avx512", "avx2", "portable"}) {
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
