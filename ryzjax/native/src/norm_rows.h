// RMSNorm (contract: norm.h), and reads and writes of arrays that are bfloat16 or float32.
//
// Requires: vectors.h before it.

constexpr int64_t kNormTaskBytes = 64 << 10;  // of a task's rows as float32

inline float number_at(const void* p, bool is_bfloat16, int64_t at) {
  return is_bfloat16 ? bf16_to_float(static_cast<const uint16_t*>(p)[at]) : static_cast<const float*>(p)[at];
}

inline Vec numbers_at(const void* p, bool is_bfloat16, int64_t at) {
  return is_bfloat16 ? load_bf16(static_cast<const uint16_t*>(p) + at) : load(static_cast<const float*>(p) + at);
}

inline void store_bf16(uint16_t* p, Vec v) {
  float values[kWidth];
  store(values, v);
  for (int i = 0; i < kWidth; ++i) p[i] = float_to_bf16(values[i]);
}

inline void norm_row(const NormArgs& a, int64_t row) {
  const int64_t from = row * a.size, whole = a.size / kWidth * kWidth;
  Vec squares = {};
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec x = numbers_at(a.x, a.is_bfloat16, from + i);
    squares = Isa::fma(x, x, squares);
  }
  float sum = total(squares);
  for (int64_t i = whole; i < a.size; ++i) {
    const float x = number_at(a.x, a.is_bfloat16, from + i);
    sum += x * x;
  }
  const float scale = 1.0f / std::sqrt(sum / static_cast<float>(a.size) + a.eps);
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec weight = numbers_at(a.weight, a.weight_is_bfloat16, i) + splat(a.offset);
    const Vec y = numbers_at(a.x, a.is_bfloat16, from + i) * splat(scale) * weight;
    if (a.is_bfloat16) {
      store_bf16(static_cast<uint16_t*>(a.out) + from + i, y);
    } else {
      store(static_cast<float*>(a.out) + from + i, y);
    }
  }
  for (int64_t i = whole; i < a.size; ++i) {
    const float weight = number_at(a.weight, a.weight_is_bfloat16, i) + a.offset;
    const float y = number_at(a.x, a.is_bfloat16, from + i) * scale * weight;
    if (a.is_bfloat16) {
      static_cast<uint16_t*>(a.out)[from + i] = float_to_bf16(y);
    } else {
      static_cast<float*>(a.out)[from + i] = y;
    }
  }
}

void rms_norm(const NormArgs& a, const Threads& threads) {
  const int64_t rows = std::max<int64_t>(1, kNormTaskBytes / (4 * a.size));
  parallel_for(threads, (a.rows + rows - 1) / rows, [&](int64_t task) {
    for (int64_t row = task * rows; row < std::min(a.rows, (task + 1) * rows); ++row) norm_row(a, row);
  });
}
