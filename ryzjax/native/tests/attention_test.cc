// Compares paged attention and KV writes with plain loops in float64, for every instruction set of this machine, on
// ragged batches in all storage formats with pages in random order. Also checks that the output of a token depends only
// on its own sequence, as attention.h promises.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "testing.h"

namespace {

using ryzjax::AttentionArgs;
using ryzjax::Kernels;
using ryzjax::KVKind;
using ryzjax::testing::exact_buffer;
using ryzjax::testing::random_bits;
using ryzjax::testing::ThreadSet;
using ryzjax::testing::uniform;

struct Case {
  KVKind kv;
  bool bfloat16;
  int64_t heads, kv_heads, dim, page_size;
  int64_t window = 0;
  float softcap = 0;
  bool sinks = false;
};

float rounded(float value, bool bfloat16) {
  return bfloat16 ? ryzjax::bf16_to_float(ryzjax::float_to_bf16(value)) : value;
}

// The inputs and the KV cache of several steps. Each row is one sequence of at most `length` tokens.
class Run {
 public:
  Run(const Case& c, int64_t rows, int64_t length) : c_(c), rows_(rows), length_(length) {
    row_pages_ = (length + c.page_size - 1) / c.page_size;
    pages_ = rows * row_pages_ + 1;
    table_ = exact_buffer<int32_t>(rows * row_pages_);
    for (int64_t i = 0; i < rows * row_pages_; ++i) table_[i] = static_cast<int32_t>(i + 1);
    std::shuffle(table_.get(), table_.get() + rows * row_pages_, random_bits);
    const int64_t slots = kLayers * pages_ * c.kv_heads * c.page_size;
    bytes_ = slots * c.dim * (c.kv == KVKind::kFloat32 ? 4 : c.kv == KVKind::kBfloat16 ? 2 : 1);
    scale_bytes_ = c.kv == KVKind::kInt8 ? slots * 2 : kLayers * c.kv_heads * 4;
    for (int i = 0; i < 2; ++i) {
      cache_[i] = exact_buffer<uint8_t>(bytes_);
      scales_[i] = exact_buffer<uint8_t>(scale_bytes_);
      // Unwritten slots must not matter: they hold NaN if the format has one.
      std::memset(cache_[i].get(), c.kv == KVKind::kInt8 || c.kv == KVKind::kFloat8 ? 0x7e : 0xff, bytes_);
      std::memset(scales_[i].get(), 0xff, scale_bytes_);
      if (c.kv == KVKind::kFloat8)
        for (int64_t j = 0; j < kLayers * c.kv_heads; ++j) {
          const float scale = uniform(0.0046f, 0.01f);
          std::memcpy(scales_[i].get() + 4 * j, &scale, 4);
        }
    }
    for (auto* numbers : {&q_, &k_, &v_}) {
      numbers->resize(rows * length * (numbers == &q_ ? c.heads : c.kv_heads) * c.dim);
      for (float& x : *numbers) x = rounded(uniform(-2, 2), c.bfloat16);
    }
    for (int64_t i = 0; i < c.heads; ++i) sinks_.push_back(uniform(-1, 1));
    done_.assign(rows, 0);
  }

  // Runs a step of counts[i] tokens of row order[i] for each i, with rows of one token first. Returns the output of the
  // tokens, [tokens, heads, dim].
  std::vector<float> step(const Kernels& kernels, const std::vector<int64_t>& order, const std::vector<int64_t>& counts) {
    const Case& c = c_;
    int64_t tokens = 3;  // padding
    for (int64_t count : counts) tokens += count;
    const int64_t rows = static_cast<int64_t>(order.size());
    const size_t width = c.bfloat16 ? 2 : 4;
    auto q = exact_buffer<uint8_t>(tokens * c.heads * c.dim * width), out = exact_buffer<uint8_t>(tokens * c.heads * c.dim * width);
    auto k = exact_buffer<uint8_t>(tokens * c.kv_heads * c.dim * width), v = exact_buffer<uint8_t>(tokens * c.kv_heads * c.dim * width);
    auto page = exact_buffer<int32_t>(tokens), offset = exact_buffer<int32_t>(tokens), table = exact_buffer<int32_t>(rows * row_pages_);
    auto start = exact_buffer<int32_t>(rows), length = exact_buffer<int32_t>(rows), context = exact_buffer<int32_t>(rows);
    std::fill(page.get(), page.get() + tokens, 0);
    std::fill(offset.get(), offset.get() + tokens, 0);
    std::memset(q.get(), 0, tokens * c.heads * c.dim * width);
    std::memset(k.get(), 0xff, tokens * c.kv_heads * c.dim * width);
    std::memset(v.get(), 0xff, tokens * c.kv_heads * c.dim * width);
    int64_t at = 0;
    int32_t decode = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = order[r];
      std::copy_n(table_.get() + row * row_pages_, row_pages_, table.get() + r * row_pages_);
      start[r] = static_cast<int32_t>(at), length[r] = static_cast<int32_t>(counts[r]);
      context[r] = static_cast<int32_t>(done_[row] + counts[r]);
      decode += counts[r] == 1;
      for (int64_t i = 0; i < counts[r]; ++i, ++at) {
        const int64_t position = done_[row] + i;
        page[at] = table_[row * row_pages_ + position / c.page_size];
        offset[at] = static_cast<int32_t>(position % c.page_size);
        put(q.get(), at, q_, row * length_ + position, c.heads * c.dim);
        put(k.get(), at, k_, row * length_ + position, c.kv_heads * c.dim);
        put(v.get(), at, v_, row * length_ + position, c.kv_heads * c.dim);
      }
      done_[row] += counts[r];
    }
    AttentionArgs a = {};
    a.tokens = tokens, a.heads = c.heads, a.kv_heads = c.kv_heads, a.head_dim = c.dim;
    a.is_bfloat16 = c.bfloat16, a.q = q.get(), a.k = k.get(), a.v = v.get(), a.out = out.get();
    a.kv_kind = c.kv, a.layers = kLayers, a.pages = pages_, a.page_size = c.page_size;
    a.k_cache = cache_[0].get(), a.v_cache = cache_[1].get();
    a.k_scale = scales_[0].get(), a.v_scale = scales_[1].get();
    a.layer = kLayers - 1, a.write_page = page.get(), a.write_offset = offset.get();
    a.rows = rows, a.row_pages = row_pages_, a.page_table = table.get();
    a.query_start = start.get(), a.query_len = length.get(), a.context_len = context.get();
    a.num_decode_rows = decode, a.num_rows = static_cast<int32_t>(rows);
    a.scale = scale(), a.window = c.window, a.softcap = c.softcap, a.sinks = c.sinks ? sinks_.data() : nullptr;
    if (!check_attention(a).empty()) {
      std::printf("%s\n", check_attention(a).c_str());
      std::exit(1);
    }
    {
      ThreadSet threads;
      kernels.attend(a, threads.view());
    }
    std::vector<float> result(at * c.heads * c.dim);
    for (size_t i = 0; i < result.size(); ++i) result[i] = get(out.get(), i);
    for (int64_t i = at * c.heads * c.dim; i < tokens * c.heads * c.dim; ++i)
      if (get(out.get(), i) != 0) result[0] = NAN;
    return result;
  }

  // Returns the expected output of one position of a row, computed in float64.
  std::vector<double> expected(int64_t row, int64_t position) const {
    const Case& c = c_;
    std::vector<double> result(c.heads * c.dim);
    for (int64_t h = 0; h < c.heads; ++h) {
      const int64_t kv = h / (c.heads / c.kv_heads), first = c.window ? std::max<int64_t>(0, position + 1 - c.window) : 0;
      double total = c.sinks ? std::exp(static_cast<double>(sinks_[h])) : 0;
      for (int64_t at = first; at <= position; ++at) {
        double score = 0;
        for (int64_t d = 0; d < c.dim; ++d)
          score += static_cast<double>(q_[((row * length_ + position) * c.heads + h) * c.dim + d]) * stored(0, row, at, kv, d);
        score *= scale();
        if (c.softcap != 0) score = c.softcap * std::tanh(score / c.softcap);
        const double weight = std::exp(score);
        total += weight;
        for (int64_t d = 0; d < c.dim; ++d) result[h * c.dim + d] += weight * stored(1, row, at, kv, d);
      }
      for (int64_t d = 0; d < c.dim; ++d) result[h * c.dim + d] /= total;
    }
    return result;
  }

  // Returns the largest error of the stored keys and values of a position, in units of the error that the format
  // allows.
  double storage_error(int64_t row, int64_t position) const {
    double worst = 0;
    for (int which = 0; which < 2; ++which)
      for (int64_t h = 0; h < c_.kv_heads; ++h) {
        const std::vector<float>& source = which ? v_ : k_;
        double peak = 0;
        const int64_t from = ((row * length_ + position) * c_.kv_heads + h) * c_.dim;
        for (int64_t d = 0; d < c_.dim; ++d) peak = std::max<double>(peak, std::abs(source[from + d]));
        for (int64_t d = 0; d < c_.dim; ++d) {
          const double x = source[from + d], error = std::abs(stored(which, row, position, h, d) - x);
          const double unit = c_.kv == KVKind::kFloat32    ? 1e-30
                              : c_.kv == KVKind::kBfloat16 ? std::abs(x) / 256 + 1e-30
                              : c_.kv == KVKind::kInt8     ? 1.02 * peak / 127 / 2
                                                           : std::max(std::abs(x) / 16, 0.01 / 1024);
          worst = std::max(worst, error / unit);
        }
      }
    return worst;
  }

  const std::vector<uint8_t> cache_bytes() const {
    std::vector<uint8_t> all(cache_[0].get(), cache_[0].get() + bytes_);
    all.insert(all.end(), cache_[1].get(), cache_[1].get() + bytes_);
    return all;
  }

 private:
  static constexpr int64_t kLayers = 2;

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(c_.dim)); }

  void put(uint8_t* to, int64_t at, const std::vector<float>& from, int64_t row, int64_t size) const {
    for (int64_t i = 0; i < size; ++i) {
      const float x = from[row * size + i];
      const uint16_t bits = ryzjax::float_to_bf16(x);
      if (c_.bfloat16) {
        std::memcpy(to + (at * size + i) * 2, &bits, 2);
      } else {
        std::memcpy(to + (at * size + i) * 4, &x, 4);
      }
    }
  }

  float get(const uint8_t* from, int64_t i) const {
    float x;
    uint16_t bits;
    if (!c_.bfloat16) return std::memcpy(&x, from + 4 * i, 4), x;
    return std::memcpy(&bits, from + 2 * i, 2), ryzjax::bf16_to_float(bits);
  }

  double stored(int which, int64_t row, int64_t position, int64_t head, int64_t d) const {
    const int64_t page = table_[row * row_pages_ + position / c_.page_size];
    const int64_t slot = (((kLayers - 1) * pages_ + page) * c_.kv_heads + head) * c_.page_size + position % c_.page_size;
    const uint8_t* at = cache_[which].get();
    switch (c_.kv) {
      case KVKind::kFloat32: {
        float x;
        return std::memcpy(&x, at + (slot * c_.dim + d) * 4, 4), x;
      }
      case KVKind::kBfloat16: {
        uint16_t bits;
        return std::memcpy(&bits, at + (slot * c_.dim + d) * 2, 2), ryzjax::bf16_to_float(bits);
      }
      case KVKind::kInt8: {
        uint16_t bits;
        std::memcpy(&bits, scales_[which].get() + slot * 2, 2);
        return static_cast<double>(static_cast<int8_t>(at[slot * c_.dim + d])) * ryzjax::bf16_to_float(bits);
      }
      case KVKind::kFloat8: {
        float scale;
        std::memcpy(&scale, scales_[which].get() + ((kLayers - 1) * c_.kv_heads + head) * 4, 4);
        const int bits = at[slot * c_.dim + d], exponent = bits >> 3 & 15, mantissa = bits & 7;
        const double size = exponent ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
        return (bits & 0x80 ? -size : size) * scale;
      }
    }
    return 0;
  }

  Case c_;
  int64_t rows_, length_, row_pages_, pages_;
  size_t bytes_, scale_bytes_;
  std::unique_ptr<uint8_t[]> cache_[2], scales_[2];
  std::unique_ptr<int32_t[]> table_;
  std::vector<float> q_, k_, v_, sinks_;
  std::vector<int64_t> done_;
};

// Returns the largest error of a ragged run in units of the error that is allowed, or infinity if an output depends on
// how its prompt was split into chunks or on other rows.
double check(const Kernels& kernels, const Case& c) {
  const auto seed = random_bits();
  constexpr int64_t kLength = 150;
  random_bits.seed(seed);
  Run ragged(c, 3, kLength);
  double worst = 0;
  std::vector<std::vector<float>> last(3);
  const auto compare = [&](int64_t row, int64_t position, const float* got) {
    const auto want = ragged.expected(row, position);
    for (size_t i = 0; i < want.size(); ++i) {
      const double unit = c.bfloat16 ? std::abs(want[i]) / 128 + 1e-4 : 1e-5;
      worst = std::max(worst, std::isnan(got[i]) ? HUGE_VAL : std::abs(got[i] - want[i]) / unit);
    }
    if (ragged.storage_error(row, position) > 1.0001) worst = HUGE_VAL;
  };
  const int64_t size = c.heads * c.dim;
  auto first = ragged.step(kernels, {0, 1, 2}, {97, 20, 2});
  for (int64_t i : {0, 63, 64, 96}) compare(0, i, first.data() + i * size);
  compare(1, 19, first.data() + (97 + 19) * size);
  compare(2, 1, first.data() + (97 + 20 + 1) * size);
  auto second = ragged.step(kernels, {0, 2, 1}, {1, 1, 120});
  compare(0, 97, second.data());
  compare(2, 2, second.data() + size);
  compare(1, 139, second.data() + (2 + 119) * size);
  // Row 1 runs again, alone and with its prompt split differently. The output must have the same bits.
  random_bits.seed(seed);
  Run alone(c, 3, kLength);
  alone.step(kernels, {1}, {7});
  alone.step(kernels, {1}, {132});
  const auto one = alone.step(kernels, {1}, {1});
  if (std::memcmp(one.data(), second.data() + (2 + 119) * size, size * 4) != 0) worst = HUGE_VAL;
  return worst;
}

// Returns the error of the last token of a context that has several parts. Comparing every token would be too slow.
double check_long(const Kernels& kernels, const Case& c) {
  constexpr int64_t kLength = 4200;
  Run run(c, 1, kLength);
  run.step(kernels, {0}, {kLength - 1});
  const auto got = run.step(kernels, {0}, {1});
  const auto want = run.expected(0, kLength - 1);
  double worst = 0;
  for (size_t i = 0; i < want.size(); ++i)
    worst = std::max(worst, std::abs(got[i] - want[i]) / (c.bfloat16 ? std::abs(want[i]) / 128 + 1e-4 : 1e-5));
  return worst;
}

}  // namespace

int main() {
  int ran = 0;
  for (const Kernels* kernels : ryzjax::testing::every_kernels()) {
    int cases = 0;
    for (const bool bfloat16 : {true, false})
      for (const KVKind kv : {KVKind::kFloat32, KVKind::kBfloat16, KVKind::kInt8, KVKind::kFloat8})
        for (const Case& c : {Case{kv, bfloat16, 14, 2, 64, 16}, Case{kv, bfloat16, 4, 4, 8, 64, 30, 0, true},
                              Case{kv, bfloat16, 6, 2, 40, 8, 100, 20.0f}, Case{kv, bfloat16, 8, 1, 128, 1, 0, 0, true}}) {
          const double worst = check(*kernels, c);
          if (!(worst < 1)) {
            std::printf("%s: KV %d, bfloat16 %d, heads %ld / %ld of %ld: error %g\n", kernels->name, static_cast<int>(kv),
                        bfloat16, static_cast<long>(c.heads), static_cast<long>(c.kv_heads), static_cast<long>(c.dim), worst);
            return 1;
          }
          ++cases;
        }
    for (const Case& c : {Case{KVKind::kBfloat16, true, 2, 1, 16, 16}, Case{KVKind::kFloat32, false, 2, 1, 16, 16, 3000}})
      if (!(check_long(*kernels, c) < 1)) {
        std::printf("%s: a long context differs\n", kernels->name);
        return 1;
      }
    std::printf("attention, %s: %d cases\n", kernels->name, cases + 2);
    ran += cases;
  }
  return ran > 0 ? 0 : 1;
}
