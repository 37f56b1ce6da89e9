// y = x W^T: the contract of the kernels, the same for every instruction set.
//
// Activations are bfloat16, weights bfloat16 or quantized; sums are float32. A row of y depends on its row of x
// alone: each element is one chain of 32-wide dot products, in an order that the weights' format decides, whatever M is
// and whichever tile it falls into. Quantized weights are rounded to bfloat16 after their scale, as the reference does.
#pragma once

#include <cstdint>

namespace ryzjax {

enum class WeightKind : int32_t { kBfloat16, kInt8, kNibbles };
enum class ScaleKind : int32_t { kFloat32, kFloat16, kBfloat16 };

struct LinearArgs {
  int64_t m, n, k;
  const uint16_t* x;  // bfloat16 [m, k]
  float* out;         // [m, n]
  WeightKind kind;
  const void* values;  // [n, k]: bfloat16, int8, or nibbles in runs of `pack` columns (ryzjax/qarray.py)
  // Of quantized weights:
  int64_t group;           // columns that share a scale; k where a row has one
  int64_t pack;            // of nibbles
  const void* scales;      // [n or 1, k / group]
  ScaleKind scale_kind;
  int64_t scale_rows;      // n, or 1
  const uint8_t* zeros;    // like scales; of nibbles 0 to 15, of int8 its bits; null where implied: 8 and 0
  const float* codebook;   // [16], of nibbles that are no integers; null
};

}  // namespace ryzjax
