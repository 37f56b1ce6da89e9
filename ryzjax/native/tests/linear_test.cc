// Compares the matrix product with plain loops in float64, for every instruction set of this machine, on odd sizes and
// tails. Buffers have the exact size that they need, so the sanitizers catch every access out of bounds.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "testing.h"

namespace {

using ryzjax::Activations;
using ryzjax::Kernels;
using ryzjax::LinearArgs;
using ryzjax::ScaleKind;
using ryzjax::WeightKind;
using ryzjax::ZeroKind;
using ryzjax::testing::exact_buffer;
using ryzjax::testing::random_bits;
using ryzjax::testing::ThreadSet;
using ryzjax::testing::uniform;

struct Case {
  WeightKind kind;
  int64_t m, n, k, group, pack;
  bool zeros = false, codebook = false, one_scale_row = false;
  ScaleKind scale_kind = ScaleKind::kFloat32;
  bool int8_x = false, is_extreme = false, half_zeros = false;
};

// Returns a row of x as the kernels multiply it with int8 activations.
std::vector<double> quantized_row(const uint16_t* x, int64_t k) {
  std::vector<double> row(k);
  for (int64_t first = 0; first < k; first += 32) {
    const int64_t last = std::min(k, first + 32);
    float peak = 0;
    for (int64_t i = first; i < last; ++i) peak = std::max(peak, std::abs(ryzjax::bf16_to_float(x[i])));
    const float scale = peak * (1.0f / 127.0f), inverse = peak > 0 ? 127.0f / peak : 0.0f;
    for (int64_t i = first; i < last; ++i)
      row[i] = static_cast<double>(std::nearbyint(ryzjax::bf16_to_float(x[i]) * inverse)) * scale;
  }
  return row;
}

// Returns the largest error of a case, relative to the sum of the products' magnitudes.
double check(const Kernels& kernels, const Case& c) {
  const bool is_wide = std::strstr(kernels.name, "avx2") != nullptr || std::strstr(kernels.name, "avx512-") != nullptr;
  const int64_t groups = c.group ? c.k / c.group : 1, scale_rows = c.one_scale_row ? 1 : c.n;
  auto x = exact_buffer<uint16_t>(c.m * c.k);
  for (int64_t i = 0; i < c.m * c.k; ++i) x[i] = ryzjax::float_to_bf16(c.is_extreme ? (i % 3 ? 1.0f : -1.0f) : uniform(-1, 1));
  auto out = exact_buffer<float>(c.m * c.n);
  auto scales32 = exact_buffer<float>(scale_rows * groups);
  auto scales16 = exact_buffer<uint16_t>(scale_rows * groups);
  for (int64_t i = 0; i < scale_rows * groups; ++i) {
    scales16[i] = ryzjax::float_to_bf16(uniform(0.01f, 0.1f));
    scales32[i] = ryzjax::bf16_to_float(scales16[i]);
    if (c.scale_kind == ScaleKind::kFloat16) {
      scales16[i] = static_cast<uint16_t>(0x2000 + (random_bits() & 0x7ff));
      scales32[i] = ryzjax::half_to_float(scales16[i]);
    }
  }
  // Nested scales: 8-bit codes of 256 numbers, with a scale for every 256 codes and an offset.
  const int64_t num_scales = scale_rows * groups;
  auto codes = exact_buffer<uint8_t>(num_scales);
  auto code_values = exact_buffer<float>(256), code_scales = exact_buffer<float>((num_scales + 255) / 256);
  constexpr float kOffset = 0.05f;
  if (c.scale_kind == ScaleKind::kNested) {
    for (int i = 0; i < 256; ++i) code_values[i] = uniform(-1, 1);
    for (int64_t i = 0; i < (num_scales + 255) / 256; ++i) code_scales[i] = uniform(0.01f, 0.04f);
    for (int64_t i = 0; i < num_scales; ++i) {
      codes[i] = static_cast<uint8_t>(random_bits());
      const float product = code_values[codes[i]] * code_scales[i / 256];
      scales32[i] = product + kOffset;
    }
  }
  auto zeros = exact_buffer<uint8_t>(scale_rows * groups);
  for (int64_t i = 0; i < scale_rows * groups; ++i) zeros[i] = random_bits() & 15;
  auto half_zeros = exact_buffer<uint16_t>(scale_rows * groups);
  for (int64_t i = 0; i < scale_rows * groups; ++i)  // a magnitude from 2^-3 to 16, of either sign
    half_zeros[i] = static_cast<uint16_t>(0x3000 + random_bits() % 0x1c00 + (random_bits() & 0x8000));
  const auto zero_at = [&](int64_t at) {
    if (c.half_zeros) return ryzjax::half_to_float(half_zeros[at]);
    return c.kind == WeightKind::kInt8 ? static_cast<float>(static_cast<int8_t>(zeros[at])) : static_cast<float>(zeros[at]);
  };
  auto codebook = exact_buffer<float>(16);
  for (int i = 0; i < 16; ++i) codebook[i] = i == 3 ? -1.0f : std::nearbyint(uniform(-127, 127)) / 127.0f;
  auto wide = exact_buffer<uint16_t>(c.kind == WeightKind::kBfloat16 ? c.n * c.k : 0);
  auto bytes = exact_buffer<uint8_t>(c.kind == WeightKind::kBfloat16 ? 0 : c.kind == WeightKind::kInt8 ? c.n * c.k : c.n * c.k / 2);
  std::vector<double> w(c.n * c.k);
  for (int64_t n = 0; n < c.n; ++n)
    for (int64_t k = 0; k < c.k; ++k) {
      if (c.kind == WeightKind::kBfloat16) {
        wide[n * c.k + k] = ryzjax::float_to_bf16(uniform(-1, 1));
        w[n * c.k + k] = ryzjax::bf16_to_float(wide[n * c.k + k]);
        continue;
      }
      const int64_t at = (c.one_scale_row ? 0 : n) * groups + (c.group ? k / c.group : 0);
      float value;
      if (c.kind == WeightKind::kInt8) {
        bytes[n * c.k + k] = c.is_extreme ? 0x80 : static_cast<uint8_t>(random_bits());
        value = static_cast<float>(static_cast<int8_t>(bytes[n * c.k + k]));
        if (c.zeros) value -= zero_at(at);
      } else {
        const int64_t run = k / c.pack, in_run = k % c.pack, half = c.pack / 2;
        uint8_t& byte = bytes[n * c.k / 2 + run * half + in_run % half];
        if (in_run < half) byte = c.is_extreme ? 0xff : static_cast<uint8_t>(random_bits());
        const int nibble = in_run < half ? byte & 15 : byte >> 4;
        value = c.codebook ? codebook[nibble] : static_cast<float>(nibble) - (c.zeros ? zero_at(at) : 8.0f);
      }
      const float scaled = value * scales32[at];
      w[n * c.k + k] = c.int8_x   ? static_cast<double>(value) * scales32[at]
                       : is_wide ? scaled
                                 : ryzjax::bf16_to_float(ryzjax::float_to_bf16(scaled));
    }
  LinearArgs args = {};
  args.m = c.m, args.n = c.n, args.k = c.k;
  args.activations = c.int8_x ? Activations::kInt8 : Activations::kBfloat16;
  args.x = x.get(), args.out = out.get(), args.kind = c.kind;
  args.values = c.kind == WeightKind::kBfloat16 ? static_cast<void*>(wide.get()) : bytes.get();
  args.group = c.group ? c.group : c.k, args.pack = c.pack;
  args.scale_kind = c.scale_kind, args.scale_rows = scale_rows;
  args.scales = c.scale_kind == ScaleKind::kFloat32  ? static_cast<void*>(scales32.get())
                : c.scale_kind == ScaleKind::kNested ? static_cast<void*>(codes.get())
                                                     : scales16.get();
  args.scale_codes = code_values.get(), args.scale_blocks = code_scales.get(), args.scale_offset = kOffset;
  args.zeros = !c.zeros ? nullptr : c.half_zeros ? static_cast<const void*>(half_zeros.get()) : zeros.get();
  args.zero_kind = c.half_zeros ? ZeroKind::kFloat16 : ZeroKind::kInteger;
  args.codebook = c.codebook ? codebook.get() : nullptr;
  {
    ThreadSet threads;
    // The call multiplies x by the same matrix twice. Both results must have the same bits.
    LinearArgs both[2] = {args, args};
    auto again = exact_buffer<float>(c.m * c.n);
    both[1].out = again.get();
    kernels.linear(both, 2, threads.view());
    threads.join();
    for (int64_t i = 0; i < c.m * c.n; ++i)
      if (std::memcmp(&out[i], &again[i], 4) != 0) return HUGE_VAL;
    // A row alone has the same bits as among others.
    for (int64_t m = 0; m < c.m; ++m) {
      auto one = exact_buffer<float>(c.n);
      LinearArgs alone = args;
      alone.m = 1, alone.x = x.get() + m * c.k, alone.out = one.get();
      kernels.linear(&alone, 1, threads.view());
      threads.join();
      if (std::memcmp(one.get(), out.get() + m * c.n, c.n * 4) != 0) return HUGE_VAL;
    }
  }
  double worst = 0;
  for (int64_t m = 0; m < c.m; ++m) {
    std::vector<double> row(c.k);
    for (int64_t k = 0; k < c.k; ++k) row[k] = ryzjax::bf16_to_float(x[m * c.k + k]);
    if (c.int8_x) row = quantized_row(x.get() + m * c.k, c.k);
    for (int64_t n = 0; n < c.n; ++n) {
      double sum = 0, size = 0;
      for (int64_t k = 0; k < c.k; ++k) {
        const double product = row[k] * w[n * c.k + k];
        sum += product, size += std::abs(product);
      }
      worst = std::max(worst, std::abs(out[m * c.n + n] - sum) / size);
    }
  }
  return worst;
}

}  // namespace

int main() {
  int ran = 0;
  for (const Kernels* kernels : ryzjax::testing::every_kernels()) {
    std::vector<Case> cases;
    for (int64_t m : {1, 2, 3, 4, 5, 8, 9, 16, 17, 24, 35}) {
      cases.push_back({WeightKind::kBfloat16, m, 37, 100, 0, 0});
      cases.push_back({WeightKind::kBfloat16, m, 5, 2112, 0, 0});
      cases.push_back({WeightKind::kBfloat16, m, 1, 1, 0, 0});
      cases.push_back({WeightKind::kInt8, m, 37, 192, 64, 0});
      cases.push_back({WeightKind::kInt8, m, 9, 45, 0, 0, true});
      cases.push_back({WeightKind::kInt8, m, 13, 128, 32, 0, false, false, true, ScaleKind::kFloat16});
      cases.push_back({WeightKind::kNibbles, m, 37, 192, 64, 64});
      cases.push_back({WeightKind::kNibbles, m, 21, 96, 32, 32, true});
      cases.push_back({WeightKind::kNibbles, m, 6, 2176, 128, 128, false, true, false, ScaleKind::kBfloat16});
      cases.push_back({WeightKind::kNibbles, m, 11, 160, 0, 32});
      // A block of 128 nibbles is two runs, one run or a part of one, and groups begin inside of blocks or not.
      cases.push_back({WeightKind::kNibbles, m, 9, 384, 128, 64, true});
      cases.push_back({WeightKind::kNibbles, m, 7, 640, 320, 64});
      cases.push_back({WeightKind::kNibbles, m, 5, 448, 64, 64, true, false, false, ScaleKind::kFloat16});
      cases.push_back({WeightKind::kNibbles, m, 6, 1024, 512, 256, true});
      cases.push_back({WeightKind::kNibbles, m, 3, 384, 192, 192, false, true});
      cases.push_back({WeightKind::kNibbles, m, 37, 448, 64, 64, false, true, false, ScaleKind::kNested});
      cases.push_back({WeightKind::kNibbles, m, 70, 320, 32, 32, false, true, false, ScaleKind::kNested});
      // Groups of 16 int8, and zero points in float16.
      cases.push_back({WeightKind::kInt8, m, 21, 96, 16, 0});
      cases.push_back({WeightKind::kInt8, m, 5, 544, 16, 0, true, false, true});
      const auto with_half_zeros = [&](WeightKind kind, int64_t n, int64_t k, int64_t group, int64_t pack) {
        Case c = {kind, m, n, k, group, pack, true, false, false, ScaleKind::kFloat16};
        c.half_zeros = true;
        cases.push_back(c);
      };
      with_half_zeros(WeightKind::kInt8, 37, 96, 16, 0);
      with_half_zeros(WeightKind::kInt8, 19, 576, 32, 0);
      with_half_zeros(WeightKind::kInt8, 9, 45, 0, 0);
      with_half_zeros(WeightKind::kNibbles, 37, 576, 32, 32);
      with_half_zeros(WeightKind::kNibbles, 5, 448, 64, 64);
      with_half_zeros(WeightKind::kNibbles, 6, 1024, 512, 256);
    }
    const size_t plain = cases.size();
    for (size_t i = 0; i < plain; ++i) {
      Case c = cases[i];
      if (c.kind == WeightKind::kBfloat16) continue;
      c.int8_x = true;
      cases.push_back(c);
      // Every int8 is -128 or every nibble 15, and every int8 of x is 127 or -127.
      c.is_extreme = true;
      cases.push_back(c);
    }
    for (const Case& c : cases) {
      const double worst = check(*kernels, c);
      if (!(worst < 1e-6)) {
        std::printf("%s: kind %d, int8 x %d, m %ld, n %ld, k %ld: error %g\n", kernels->name, static_cast<int>(c.kind), c.int8_x,
                    static_cast<long>(c.m), static_cast<long>(c.n), static_cast<long>(c.k), worst);
        return 1;
      }
      ++ran;
    }
    std::printf("linear, %s: %zu cases\n", kernels->name, cases.size());
  }
  return ran > 0 ? 0 : 1;
}
