// How one instruction set multiplies rows of x with rows of a matrix: the parts of the product that linear.cc runs in
// tasks. Bfloat16 activations and int8 activations have instructions of their own, so they are chosen separately.
#pragma once

#include <cstdint>

#include "linear.h"
#include "numbers.h"
#include "parallel.h"

namespace ryzjax {

// Products of bfloat16 activations (linear_tiles.h).
struct FloatProducts {
  // Returns the number of rows of W in a task. `all` is the number of rows of all matrices in the parallel loop.
  int64_t (*task_rows)(const LinearArgs& a, int64_t all, const Threads& threads);
  // Returns x as `multiply` reads it: x itself, or a copy in `buffer` with other columns or as float32.
  const void* (*prepared_x)(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads);
  // Multiplies rows [first, last) of W with the prepared x.
  void (*multiply)(const LinearArgs& a, const void* x, int64_t first, int64_t last);
};

// x as int8. A unit is 32 columns, which share a scale in each row. The rows of a unit are neighbors in memory, because
// the kernels multiply a unit of W with all of them.
struct QuantizedRows {
  const int8_t* values;  // [units, m, 32]; columns past k are 0
  const float* scales;   // [units, m]; NaN if a number of the unit is not finite
  const float* sums;     // [units, m]: the sum of the unit's values
  const float* half_sums;  // [units, m, 2]: the sums of the first and of the last 16 values
};

// Products of int8 activations (integer_tiles.h).
struct IntegerProducts {
  int64_t (*task_rows)(const LinearArgs& a, int64_t all, const Threads& threads);
  // Quantizes all rows of x into `buffer`.
  QuantizedRows (*quantize)(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads);
  // Multiplies rows [first, last) of W with the quantized x.
  void (*multiply)(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last);
};

// Each returns null if the library was compiled without that instruction set.
const IntegerProducts* avx512_vnni_integers();
const IntegerProducts* avx512_bw_integers();
const IntegerProducts* avx_vnni_integers();
const IntegerProducts* avx2_integers();
const IntegerProducts* dotprod_integers();
const IntegerProducts* portable_integers();

}  // namespace ryzjax
