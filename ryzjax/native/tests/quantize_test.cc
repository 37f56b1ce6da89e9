// Compares the quantizer with plain loops in float64: rows with and without tails, every dtype and kind, zero and equal
// groups, tiny and huge weights, and NaN and infinity. Every instruction set must give the same bytes.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "testing.h"

namespace {

using ryzjax::FloatKind;
using ryzjax::Kernels;
using ryzjax::QuantizeArgs;
using ryzjax::QuantizeKind;
using ryzjax::testing::exact_buffer;
using ryzjax::testing::uniform;

constexpr int64_t kFactors = 41;
float factors[kFactors], bounds[ryzjax::kBounds], values[ryzjax::kBounds + 1];

struct Case {
  int64_t rows, k, group, pack;
  QuantizeKind kind;
  FloatKind dtype;
  float size;  // of the weights; 0 for groups of zeros and of equal weights
};

struct Result {
  std::vector<uint8_t> values, scales;
  int64_t odd;
};

bool is_int8(const Case& c) { return c.kind == QuantizeKind::kInt8; }

Result run(const Kernels& kernels, const Case& c, const std::vector<float>& w) {
  const int64_t count = c.rows * c.k, num_scales = count / c.group;
  auto full = exact_buffer<float>(count);
  auto half = exact_buffer<uint16_t>(count);
  for (int64_t i = 0; i < count; ++i) {
    full[i] = w[i];
    if (c.dtype == FloatKind::kBfloat16) half[i] = ryzjax::float_to_bf16(w[i]);
    if (c.dtype == FloatKind::kFloat16)  // w is a multiple of 2^-6 below 8, or not finite
      half[i] = std::isfinite(w[i]) ? 0 : 0x7c01;
    if (c.dtype == FloatKind::kFloat16 && std::isfinite(w[i]) && w[i] != 0) {
      const int exponent = std::ilogb(w[i]);
      const auto fraction = static_cast<uint16_t>(std::ldexp(std::fabs(w[i]), 10 - exponent)) & 0x3ff;
      half[i] = static_cast<uint16_t>((w[i] < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | fraction);
    }
  }
  const bool is_nf4 = c.kind == QuantizeKind::kNormalFloat4;
  const size_t value_bytes = is_int8(c) ? count : count / 2, scale_bytes = num_scales * (is_nf4 ? 4 : 2);
  auto out = exact_buffer<uint8_t>(value_bytes), scales = exact_buffer<uint8_t>(scale_bytes);
  std::memset(out.get(), 0, value_bytes);
  std::memset(scales.get(), 0, scale_bytes);
  const QuantizeArgs a = {c.rows, c.k, c.dtype,
                          c.dtype == FloatKind::kFloat32 ? static_cast<void*>(full.get()) : half.get(), c.kind, c.group,
                          c.pack, is_nf4 ? bounds : factors, is_nf4 ? ryzjax::kBounds : kFactors, out.get(),
                          scales.get()};
  const int64_t odd = kernels.quantize(a);
  return {{out.get(), out.get() + value_bytes}, {scales.get(), scales.get() + scale_bytes}, odd};
}

int code_at(const Case& c, const Result& r, int64_t row, int64_t column) {
  if (is_int8(c)) return static_cast<int8_t>(r.values[row * c.k + column]);
  const int64_t in_run = column % c.pack, half = c.pack / 2;
  const uint8_t byte = r.values[row * c.k / 2 + column / c.pack * half + in_run % half];
  return in_run < half ? byte & 15 : byte >> 4;
}

// Returns the squared error with the best q for a scale, relative to the square of the group's peak.
double best_error(const float* w, int64_t group, double scale, double peak, int low, int high) {
  double sum = 0;
  for (int64_t i = 0; i < group; ++i) {
    const double q = std::min<double>(std::max<double>(std::nearbyint(w[i] / scale), low), high);
    sum += std::pow((q * scale - w[i]) / peak, 2);
  }
  return sum;
}

float usable(float scale) {
  scale = ryzjax::bf16_to_float(ryzjax::float_to_bf16(scale));
  return scale < 0x1p-126f ? 1.0f : scale;
}

// Whether a group has the right codes for its scale, and a scale with the least error.
bool group_is_right(const Case& c, const Result& r, const float* w, int64_t row, int64_t g) {
  const int64_t at = row * (c.k / c.group) + g;
  float peak = 0;
  for (int64_t i = 0; i < c.group; ++i) peak = std::max(peak, std::fabs(w[i]));
  if (c.kind == QuantizeKind::kNormalFloat4) {
    float magnitude;
    std::memcpy(&magnitude, r.scales.data() + 4 * at, 4);
    if (magnitude != peak) return false;
    for (int64_t i = 0; i < c.group; ++i) {
      const float relative = w[i] * (peak < 0x1p-126f ? 0.0f : 1 / peak);
      int code = 0;
      for (const float bound : bounds) code += bound < relative;
      if (code_at(c, r, row, g * c.group + i) != code) return false;
    }
    return true;
  }
  uint16_t bits;
  std::memcpy(&bits, r.scales.data() + 2 * at, 2);
  const float scale = ryzjax::bf16_to_float(bits);
  const int high = is_int8(c) ? 127 : 7, low = -high - 1, zero = is_int8(c) ? 0 : 8;
  for (int64_t i = 0; i < c.group; ++i) {
    const float level = std::min<float>(std::max<float>(std::nearbyint(w[i] / scale), low), high);
    if (code_at(c, r, row, g * c.group + i) != level + zero) return false;
  }
  if (is_int8(c)) return scale == usable(peak * (2.0f / 255.0f));
  if (peak == 0) return scale == 1;
  const double found = best_error(w, c.group, scale, peak, low, high);
  for (const float factor : factors)
    for (const float sign : {1.0f, -1.0f}) {
      const float candidate = sign * usable(peak * factor * (2.0f / 15.0f));
      if (best_error(w, c.group, candidate, peak, low, high) * (1 + 1e-5) + 1e-12 < found) return false;
    }
  return true;
}

std::vector<float> weights_of(const Case& c) {
  std::vector<float> w(c.rows * c.k);
  for (int64_t i = 0; i < c.rows * c.k; ++i) {
    const bool is_zero = i / c.group % 2;
    w[i] = c.size == 0 ? (is_zero ? 0.0f : -2.5f) : std::round(uniform(-8, 8) * uniform(0, 1) * 64) / 64 * c.size;
    if (c.dtype == FloatKind::kBfloat16) w[i] = ryzjax::bf16_to_float(ryzjax::float_to_bf16(w[i]));
    if (std::fabs(w[i]) < 0x1p-126f) w[i] = 0;
  }
  return w;
}

bool case_is_right(const Case& c) {
  std::vector<float> w = weights_of(c);
  std::vector<Result> results;
  for (const Kernels* kernels : ryzjax::testing::every_kernels()) {
    const Result r = run(*kernels, c, w);
    if (r.odd != 0) return false;
    for (int64_t row = 0; row < c.rows; ++row)
      for (int64_t g = 0; g < c.k / c.group; ++g)
        if (!group_is_right(c, r, w.data() + row * c.k + g * c.group, row, g)) {
          std::printf("%s: ", kernels->name);
          return false;
        }
    results.push_back(r);
    if (r.values != results[0].values || r.scales != results[0].scales) return false;
    std::vector<float> damaged = w;
    damaged[0] = NAN, damaged[c.rows * c.k - 1] = c.dtype == FloatKind::kFloat16 ? NAN : INFINITY;
    if (run(*kernels, c, damaged).odd != (c.rows * c.k > 1 ? 2 : 1)) return false;
  }
  return true;
}

}  // namespace

int main() {
  factors[0] = 1;
  for (int64_t i = 1; i < kFactors; ++i) factors[i] = 1.1f - 0.6f * (i - 1) / (kFactors - 2);
  for (int64_t i = 0; i <= ryzjax::kBounds; ++i) values[i] = -1 + 2.0f * i / ryzjax::kBounds;
  for (int64_t i = 0; i < ryzjax::kBounds; ++i) bounds[i] = (values[i] + values[i + 1]) / 2;
  int ran = 0;
  const struct {
    int64_t k, group, pack;
    QuantizeKind kind;
  } forms[] = {{256, 32, 32, QuantizeKind::kInt4},          {128, 64, 64, QuantizeKind::kInt4},
               {384, 128, 128, QuantizeKind::kInt4},        {352, 352, 32, QuantizeKind::kInt4},
               {12, 6, 2, QuantizeKind::kInt4},             {172, 172, 0, QuantizeKind::kInt8},
               {1, 1, 0, QuantizeKind::kInt8},              {7, 7, 0, QuantizeKind::kInt8},
               {160, 32, 0, QuantizeKind::kInt8},           {192, 64, 64, QuantizeKind::kNormalFloat4},
               {20, 10, 10, QuantizeKind::kNormalFloat4}};
  for (const auto& form : forms)
    for (const FloatKind dtype : {FloatKind::kFloat32, FloatKind::kBfloat16, FloatKind::kFloat16})
      for (const float size : {1.0f, 0.0f, 0x1p-90f, 0x1p-125f, 0x1p120f}) {
        if (dtype == FloatKind::kFloat16 && size != 0 && size != 1) continue;
        const Case c = {5, form.k, form.group, form.pack, form.kind, dtype, size};
        if (!case_is_right(c)) {
          std::printf("kind %d, dtype %d, K=%ld, groups of %ld, weights of size %g\n", static_cast<int>(c.kind),
                      static_cast<int>(c.dtype), static_cast<long>(c.k), static_cast<long>(c.group), c.size);
          return 1;
        }
        ++ran;
      }
  std::printf("quantize: %d cases\n", ran);
  return ran > 0 ? 0 : 1;
}
