// One instruction set's implementation of every kernel.
#pragma once

#include <cstdint>

#include "argmax.h"
#include "attention.h"
#include "linear.h"
#include "norm.h"
#include "parallel.h"
#include "segment_attention.h"

namespace ryzjax {

struct Kernels {
  const char* name;
  // Several matrices that meet the same x, as one parallel loop.
  void (*linear)(const LinearArgs* matrices, int64_t count, const Threads& threads);
  void (*attend)(const AttentionArgs& args, const Threads& threads);
  void (*argmax)(const ArgmaxArgs& args, const Threads& threads);
  void (*rms_norm)(const NormArgs& args, const Threads& threads);
  void (*segment_forward)(const SegmentForwardArgs& args, const Threads& threads);
  void (*segment_backward)(const SegmentBackwardArgs& args, const Threads& threads);
};

const Kernels* avx512_kernels();  // null where it was not compiled
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

// The best this machine has; `name` asks for one ("" for the best), null if it is not there.
const Kernels* choose_kernels(const char* name);

}  // namespace ryzjax
