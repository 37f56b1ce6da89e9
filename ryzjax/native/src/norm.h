// RMSNorm: x / sqrt(mean(x^2) + eps) * (offset + weight), in float32, rounded once.
#pragma once

#include <cstdint>

namespace ryzjax {

struct NormArgs {
  int64_t rows, size;
  bool is_bfloat16;      // x and out; else float32
  const void* x;         // [rows, size]
  bool weight_is_bfloat16;
  const void* weight;    // [size]
  float eps, offset;
  void* out;
};

}  // namespace ryzjax
