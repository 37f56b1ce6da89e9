// Helpers of the XLA custom calls: the kernels in use, XLA's threads, and checks of shapes.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <utility>

#include "kernels.h"
#include "xla/ffi/api/c_api.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace ryzjax {

using Ints = ffi::Buffer<ffi::S32>;

// Returns the kernels in use: those that RYZJAX_NATIVE_ISA names, or the fastest. Null if this machine cannot run the
// named ones.
inline const Kernels* kernels() {
  static const Kernels* const chosen = [] {
    const char* asked = std::getenv("RYZJAX_NATIVE_ISA");
    return choose_kernels(asked == nullptr ? "" : asked);
  }();
  return chosen;
}

inline Threads threads_of(ffi::ThreadPool& pool) {
  Threads threads;
  threads.count = pool.num_threads();
  threads.schedule = [&pool](std::function<void()> work) { pool.Schedule(std::move(work)); };
  return threads;
}

inline bool same_shape(const ffi::AnyBuffer& a, const ffi::AnyBuffer& b) {
  return std::equal(a.dimensions().begin(), a.dimensions().end(), b.dimensions().begin(), b.dimensions().end());
}

}  // namespace ryzjax
