// Compares attention within segments and its gradient with plain loops in float64, for every instruction set of this
// machine. Also checks that the results of a sequence depend neither on the sequences it is packed with nor on the
// number of threads.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "testing.h"

namespace {

using ryzjax::Kernels;
using ryzjax::SegmentBackwardArgs;
using ryzjax::SegmentForwardArgs;
using ryzjax::SegmentShape;
using ryzjax::Threads;
using ryzjax::testing::exact_buffer;
using ryzjax::testing::ThreadSet;
using ryzjax::testing::uniform;

struct Case {
  bool bfloat16;
  int64_t heads, kv_heads, dim;
  int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
  int64_t parts = 1;
};

using Lengths = std::vector<std::vector<int64_t>>;  // of the sequences of each row; padding follows them
using Numbers = std::vector<float>;

// An array as the kernels read it, in a buffer of its exact size.
class Array {
 public:
  Array(const Numbers& numbers, bool bfloat16) : Array(numbers.size(), bfloat16) {
    for (size_t i = 0; i < numbers.size(); ++i) {
      const uint16_t bits = ryzjax::float_to_bf16(numbers[i]);
      std::memcpy(bytes_.get() + i * width_, bfloat16 ? static_cast<const void*>(&bits) : &numbers[i], width_);
    }
  }
  // Fills the array with NaN, so that a number that a kernel does not write is detected.
  Array(size_t count, bool bfloat16) : count_(count), width_(bfloat16 ? 2 : 4), bytes_(exact_buffer<uint8_t>(count * width_)) {
    std::memset(bytes_.get(), 0xff, count * width_);
  }
  void* get() const { return bytes_.get(); }
  Numbers numbers() const {
    Numbers result(count_);
    for (size_t i = 0; i < count_; ++i) {
      uint16_t bits;
      if (width_ == 4) {
        std::memcpy(&result[i], bytes_.get() + i * 4, 4);
      } else {
        std::memcpy(&bits, bytes_.get() + i * 2, 2);
        result[i] = ryzjax::bf16_to_float(bits);
      }
    }
    return result;
  }

 private:
  size_t count_, width_;
  std::unique_ptr<uint8_t[]> bytes_;
};

Numbers draw(size_t count, bool bfloat16) {
  Numbers numbers(count);
  for (float& x : numbers) {
    x = uniform(-2, 2);
    if (bfloat16) x = ryzjax::bf16_to_float(ryzjax::float_to_bf16(x));
  }
  return numbers;
}

struct Inputs {
  Case c;
  int64_t rows, length;
  std::vector<int32_t> ids;
  Numbers q, k, v, grad, sinks;
};

Inputs make_inputs(const Case& c, const Lengths& lengths, int64_t length) {
  Inputs in{c, static_cast<int64_t>(lengths.size()), length, {}, {}, {}, {}, {}, {}};
  in.ids.assign(in.rows * length, 0);
  for (int64_t row = 0; row < in.rows; ++row) {
    int64_t at = row * length;
    for (size_t i = 0; i < lengths[row].size(); at += lengths[row][i++])
      std::fill_n(in.ids.begin() + at, lengths[row][i], static_cast<int32_t>(i + 1));
  }
  const int64_t tokens = in.rows * length;
  in.q = draw(tokens * c.heads * c.dim, c.bfloat16), in.grad = draw(tokens * c.heads * c.dim, c.bfloat16);
  in.k = draw(tokens * c.kv_heads * c.dim, c.bfloat16), in.v = draw(tokens * c.kv_heads * c.dim, c.bfloat16);
  in.sinks = draw(c.heads, false);
  return in;
}

float scale_of(const Case& c) { return 1.0f / std::sqrt(static_cast<float>(c.dim)); }

struct Results {
  Numbers out, lse, q_grad, k_grad, v_grad;
};

Results run(const Kernels& kernels, const Inputs& in, const Threads& threads) {
  const Case& c = in.c;
  auto ids = exact_buffer<int32_t>(in.ids.size());
  std::copy(in.ids.begin(), in.ids.end(), ids.get());
  const SegmentShape shape{in.rows,   in.length, c.heads, c.kv_heads, c.dim, c.bfloat16, ids.get(), scale_of(c),
                           c.window, c.softcap};
  const Array q(in.q, c.bfloat16), k(in.k, c.bfloat16), v(in.v, c.bfloat16), grad(in.grad, c.bfloat16);
  const Array sinks(in.sinks, false), lse(in.rows * c.heads * in.length, false);
  const Array out(in.q.size(), c.bfloat16), q_grad(in.q.size(), c.bfloat16);
  const Array k_grad(in.k.size(), c.bfloat16), v_grad(in.k.size(), c.bfloat16);
  const size_t room = c.parts == 1 ? 0 : c.parts * in.k.size();
  const Array k_parts(room, false), v_parts(room, false);
  SegmentForwardArgs a = {};
  a.shape = shape, a.q = q.get(), a.k = k.get(), a.v = v.get();
  a.sinks = c.sinks ? static_cast<const float*>(sinks.get()) : nullptr;
  a.out = out.get(), a.lse = static_cast<float*>(lse.get());
  kernels.segment_forward(a, threads);
  SegmentBackwardArgs b = {};
  b.shape = shape, b.q = q.get(), b.k = k.get(), b.v = v.get(), b.out = out.get(), b.grad = grad.get();
  b.lse = a.lse, b.q_grad = q_grad.get(), b.k_grad = k_grad.get(), b.v_grad = v_grad.get();
  b.parts = c.parts, b.k_parts = static_cast<float*>(k_parts.get()), b.v_parts = static_cast<float*>(v_parts.get());
  kernels.segment_backward(b, threads);
  return {out.numbers(), lse.numbers(), q_grad.numbers(), k_grad.numbers(), v_grad.numbers()};
}

struct Expected {
  std::vector<double> out, lse, q_grad, k_grad, v_grad;
};

Expected expect(const Inputs& in) {
  const Case& c = in.c;
  Expected e;
  e.out.resize(in.q.size()), e.q_grad.resize(in.q.size()), e.lse.resize(in.rows * c.heads * in.length);
  e.k_grad.resize(in.k.size()), e.v_grad.resize(in.k.size());
  for (int64_t row = 0; row < in.rows; ++row)
    for (int64_t h = 0; h < c.heads; ++h)
      for (int64_t s = 0, start = 0; s < in.length; ++s) {
        const int32_t* ids = in.ids.data() + row * in.length;
        if (ids[s] != ids[start]) start = s;
        if (ids[s] == 0) continue;
        const int64_t query = ((row * in.length + s) * c.heads + h) * c.dim;
        const auto key = [&](int64_t t) { return ((row * in.length + t) * c.kv_heads + h / (c.heads / c.kv_heads)) * c.dim; };
        const int64_t first = c.window ? std::max(start, s + 1 - c.window) : start;
        std::vector<double> scores;
        double total = c.sinks ? std::exp(static_cast<double>(in.sinks[h])) : 0, row_sum = 0;
        for (int64_t t = first; t <= s; ++t) {
          double score = 0;
          for (int64_t d = 0; d < c.dim; ++d) score += static_cast<double>(in.q[query + d]) * in.k[key(t) + d];
          score *= scale_of(c);
          if (c.softcap != 0) score = c.softcap * std::tanh(score / c.softcap);
          scores.push_back(score);
          total += std::exp(score);
        }
        e.lse[(row * c.heads + h) * in.length + s] = std::log(total);
        std::vector<double> weight_grads;
        for (int64_t t = first; t <= s; ++t) {
          const double weight = std::exp(scores[t - first]) / total;
          double weight_grad = 0;
          for (int64_t d = 0; d < c.dim; ++d) {
            e.out[query + d] += weight * in.v[key(t) + d];
            e.v_grad[key(t) + d] += weight * in.grad[query + d];
            weight_grad += static_cast<double>(in.grad[query + d]) * in.v[key(t) + d];
          }
          weight_grads.push_back(weight_grad);
          row_sum += weight * weight_grad;
        }
        for (int64_t t = first; t <= s; ++t) {
          const double score = scores[t - first], weight = std::exp(score) / total;
          double grad = weight * (weight_grads[t - first] - row_sum) * scale_of(c);
          if (c.softcap != 0) grad *= 1 - (score / c.softcap) * (score / c.softcap);
          for (int64_t d = 0; d < c.dim; ++d) {
            e.q_grad[query + d] += grad * in.k[key(t) + d];
            e.k_grad[key(t) + d] += grad * in.q[query + d];
          }
        }
      }
  return e;
}

// Returns the largest error in units of the error that is allowed. The absolute part is relative to the largest number,
// because the terms of gradients cancel.
double worst_of(const Numbers& got, const std::vector<double>& want, double relative, double absolute) {
  double worst = 0, peak = 1;
  for (double x : want) peak = std::max(peak, std::abs(x));
  for (size_t i = 0; i < want.size(); ++i) {
    const double unit = relative * std::abs(want[i]) + absolute * peak + 1e-30;
    worst = std::max(worst, std::isnan(got[i]) ? HUGE_VAL : std::abs(got[i] - want[i]) / unit);
  }
  return worst;
}

// Returns the largest error of all results of a case, in units of the error that is allowed.
double check(const Kernels& kernels, const Case& c) {
  const Inputs in = make_inputs(c, {{70, 1, 64, 9}, {150}, {}, {3, 128}}, 150);
  ThreadSet threads;
  const Results got = run(kernels, in, threads.view());
  const Expected want = expect(in);
  // In bfloat16 results are rounded by half a step, and the rounding of `out` changes the sum that gradients subtract.
  const double relative = c.bfloat16 ? 1.0 / 256 : 0, absolute = c.bfloat16 ? 4e-3 : 5e-6;
  return std::max({worst_of(got.out, want.out, relative, c.bfloat16 ? 1e-5 : 2e-6), worst_of(got.lse, want.lse, 0, 2e-6),
                   worst_of(got.q_grad, want.q_grad, relative, absolute),
                   worst_of(got.k_grad, want.k_grad, relative, absolute),
                   worst_of(got.v_grad, want.v_grad, relative, c.bfloat16 ? 1e-5 : 5e-6)});
}

// Returns tokens [first, first + count) of the first row of [rows, length, size].
Numbers part_of(const Numbers& x, int64_t size, int64_t first, int64_t count) {
  return {x.begin() + first * size, x.begin() + (first + count) * size};
}

// Whether the middle one of three packed sequences has the same bits as when it runs alone on one thread.
bool is_independent(const Kernels& kernels, const Case& c) {
  constexpr int64_t kBefore = 45, kCount = 100;
  const Inputs in = make_inputs(c, {{kBefore, kCount, 30}}, 180);
  ThreadSet threads;
  const Results packed = run(kernels, in, threads.view());
  const int64_t q_size = c.heads * c.dim, k_size = c.kv_heads * c.dim;
  Inputs alone{c, 1, kCount, std::vector<int32_t>(kCount, 7), {}, {}, {}, {}, in.sinks};
  alone.q = part_of(in.q, q_size, kBefore, kCount), alone.grad = part_of(in.grad, q_size, kBefore, kCount);
  alone.k = part_of(in.k, k_size, kBefore, kCount), alone.v = part_of(in.v, k_size, kBefore, kCount);
  const Results single = run(kernels, alone, Threads());
  return single.out == part_of(packed.out, q_size, kBefore, kCount) &&
         single.q_grad == part_of(packed.q_grad, q_size, kBefore, kCount) &&
         single.k_grad == part_of(packed.k_grad, k_size, kBefore, kCount) &&
         single.v_grad == part_of(packed.v_grad, k_size, kBefore, kCount);
}

}  // namespace

int main() {
  int ran = 0;
  for (const Kernels* kernels : ryzjax::testing::every_kernels()) {
    int cases = 0;
    for (const bool bfloat16 : {false, true})
      for (const Case& c : {Case{bfloat16, 2, 2, 16}, Case{bfloat16, 4, 2, 32, 0, 0, true}, Case{bfloat16, 4, 1, 20, 37, 0, false, 2},
                            Case{bfloat16, 7, 1, 64, 0, 4.0f, true, 7}, Case{bfloat16, 2, 1, 128, 100, 3.0f},
                            Case{bfloat16, 1, 1, 5, 1}, Case{bfloat16, 6, 2, 48, 64, 0, true, 3}}) {
        const double worst = check(*kernels, c);
        if (!(worst < 1)) {
          std::printf("%s: bfloat16 %d, heads %ld / %ld of %ld, window %ld: error %g\n", kernels->name, bfloat16,
                      static_cast<long>(c.heads), static_cast<long>(c.kv_heads), static_cast<long>(c.dim),
                      static_cast<long>(c.window), worst);
          return 1;
        }
        if (!is_independent(*kernels, c)) {
          std::printf("%s: a sequence's result depends on its neighbours or threads\n", kernels->name);
          return 1;
        }
        ++cases;
      }
    std::printf("segments, %s: %d cases\n", kernels->name, cases);
    ran += cases;
  }
  return ran > 0 ? 0 : 1;
}
