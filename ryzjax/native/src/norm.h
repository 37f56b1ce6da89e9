// The contract of the RMSNorm kernel: out = x / sqrt(mean(x^2) + eps) * (offset + weight) for each row of x.
//
// The computation is in float32. The result is rounded once, when it is written.
#pragma once

#include <cstdint>

namespace ryzjax {

struct NormArgs {
  int64_t rows, size;
  bool is_bfloat16;         // dtype of x and out: bfloat16, or else float32
  const void* x;            // [rows, size]
  bool weight_is_bfloat16;  // dtype of weight: bfloat16, or else float32
  const void* weight;       // [size]
  float eps, offset;
  void* out;                // [rows, size]
};

}  // namespace ryzjax
