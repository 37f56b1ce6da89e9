// The contract of the argmax kernel, which also computes the logsumexp of each row. Sampling needs both of its logits.
#pragma once

#include <cstdint>

namespace ryzjax {

struct ArgmaxArgs {
  int64_t rows, size;
  const float* x;    // [rows, size]
  int32_t* argmax;   // [rows]: index of the first NaN of the row, or else of the first largest number
  float* logsumexp;  // [rows]: log(sum(exp(x))); NaN if the row has a NaN
};

}  // namespace ryzjax
