// Compares RMSNorm, argmax and logsumexp with plain loops in float64, for every instruction set of this machine, on
// sizes with and without tails and on numbers that are not finite.
#include <cmath>
#include <cstdio>

#include "testing.h"

namespace {

using ryzjax::Kernels;
using ryzjax::testing::exact_buffer;
using ryzjax::testing::ThreadSet;
using ryzjax::testing::uniform;

// Returns the largest error of RMSNorm, in units of the error that is allowed.
double norm_error(const Kernels& kernels, int64_t rows, int64_t size, bool bfloat16) {
  auto x = exact_buffer<float>(rows * size), out = exact_buffer<float>(rows * size);
  auto x16 = exact_buffer<uint16_t>(rows * size), out16 = exact_buffer<uint16_t>(rows * size), weight = exact_buffer<uint16_t>(size);
  for (int64_t i = 0; i < rows * size; ++i) {
    x16[i] = ryzjax::float_to_bf16(uniform(-3, 3));
    x[i] = ryzjax::bf16_to_float(x16[i]);
  }
  for (int64_t i = 0; i < size; ++i) weight[i] = ryzjax::float_to_bf16(uniform(-1, 1));
  ryzjax::NormArgs a = {rows, size, bfloat16, bfloat16 ? static_cast<void*>(x16.get()) : x.get(), true, weight.get(),
                        1e-6f, 1.0f, bfloat16 ? static_cast<void*>(out16.get()) : out.get()};
  {
    ThreadSet threads;
    kernels.rms_norm(a, threads.view());
  }
  double worst = 0;
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = 0; i < size; ++i) squares += static_cast<double>(x[r * size + i]) * x[r * size + i];
    const double scale = 1 / std::sqrt(squares / size + 1e-6f);
    for (int64_t i = 0; i < size; ++i) {
      const double want = x[r * size + i] * scale * (1.0 + ryzjax::bf16_to_float(weight[i]));
      const double got = bfloat16 ? ryzjax::bf16_to_float(out16[r * size + i]) : out[r * size + i];
      worst = std::max(worst, std::abs(got - want) / (std::abs(want) * (bfloat16 ? 1 / 250.0 : 2e-6) + 1e-9));
    }
  }
  return worst;
}

// Whether argmax and logsumexp are right for rows of random numbers, the first of which holds `odd` if it is not 0.
bool argmax_is_right(const Kernels& kernels, int64_t rows, int64_t size, float odd) {
  auto x = exact_buffer<float>(rows * size);
  for (int64_t i = 0; i < rows * size; ++i) x[i] = std::round(uniform(-40, 40)) / 4;  // with ties
  if (odd != 0) x[size / 2] = odd;
  auto at = exact_buffer<int32_t>(rows);
  auto sum = exact_buffer<float>(rows);
  {
    ThreadSet threads;
    kernels.argmax({rows, size, x.get(), at.get(), sum.get()}, threads.view());
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = x.get() + r * size;
    int64_t best = 0;
    for (int64_t i = 1; i < size; ++i)
      if (!std::isnan(row[best]) && (std::isnan(row[i]) || row[i] > row[best])) best = i;
    if (at[r] != best) return false;
    if (std::isnan(row[best])) {
      if (!std::isnan(sum[r])) return false;
      continue;
    }
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += std::exp(static_cast<double>(row[i]) - row[best]);
    const double want = std::isinf(row[best]) ? row[best] : row[best] + std::log(total);
    if (want != sum[r] && !(std::abs(want - sum[r]) < 1e-5)) return false;
  }
  return true;
}

}  // namespace

int main() {
  int ran = 0;
  for (const Kernels* kernels : ryzjax::testing::every_kernels()) {
    for (const bool bfloat16 : {true, false})
      for (const int64_t size : {1, 7, 16, 100, 896}) {
        if (!(norm_error(*kernels, 19, size, bfloat16) < 1)) {
          std::printf("%s: RMSNorm of %ld\n", kernels->name, static_cast<long>(size));
          return 1;
        }
        ++ran;
      }
    for (const float odd : {0.0f, NAN, INFINITY, -INFINITY})
      for (const int64_t size : {1, 5, 16, 33, 1000}) {
        if (!argmax_is_right(*kernels, 3, size, odd)) {
          std::printf("%s: argmax of %ld with %g\n", kernels->name, static_cast<long>(size), odd);
          return 1;
        }
        ++ran;
      }
  }
  std::printf("rows: %d cases\n", ran);
  return ran > 0 ? 0 : 1;
}
