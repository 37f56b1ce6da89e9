// The table of all kernels, and the choice of an instruction set.
#pragma once

#include <cstdint>

#include "argmax.h"
#include "attention.h"
#include "linear.h"
#include "norm.h"
#include "parallel.h"
#include "products.h"
#include "quantize.h"
#include "segment_attention.h"

namespace ryzjax {

struct Kernels {
  const char* name;
  FloatProducts floats;
  IntegerProducts integers;
  void (*attend)(const AttentionArgs& args, const Threads& threads);
  void (*argmax)(const ArgmaxArgs& args, const Threads& threads);
  void (*rms_norm)(const NormArgs& args, const Threads& threads);
  void (*segment_forward)(const SegmentForwardArgs& args, const Threads& threads);
  void (*segment_backward)(const SegmentBackwardArgs& args, const Threads& threads);
  // Runs on the calling thread. Returns the number of weights that are NaN or infinite, whose rows are not written.
  int64_t (*quantize)(const QuantizeArgs& args);

  // Multiplies the same x by `count` matrices in one parallel loop (linear.cc).
  void linear(const LinearArgs* matrices, int64_t count, const Threads& threads) const;
};

// Each returns null if the library was compiled without that instruction set. `name` and `integers` are empty:
// choose_kernels fills them.
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* portable_kernels();

// Returns the kernels called `name`, or the fastest ones that this machine can run if `name` is "". Returns null if
// this machine cannot run the named ones.
const Kernels* choose_kernels(const char* name);

}  // namespace ryzjax
