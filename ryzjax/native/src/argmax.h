// What choosing a token needs of its logits: where the largest is, and the logarithm of the sum of their exponentials.
#pragma once

#include <cstdint>

namespace ryzjax {

struct ArgmaxArgs {
  int64_t rows, size;
  const float* x;       // [rows, size]
  int32_t* argmax;      // [rows]: the first of the largest; the first NaN, where there is one
  float* logsumexp;     // [rows]
};

}  // namespace ryzjax
