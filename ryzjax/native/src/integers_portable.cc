// Products of int8 activations in portable C++.
#include "isa_includes.h"

namespace ryzjax {
namespace {

struct Isa {
  static constexpr int kWidth = 4;
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
  static Vec load_half(const uint16_t* p) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i]);
    return v;
  }

  using Bytes = uint8_t __attribute__((vector_size(4 * kWidth)));
  static constexpr float kBias = 0;
  static constexpr int kPrefetchLocality = 3, kPrefetchAhead = 4 << 10;
  static constexpr int kBlocks = 1;

  static void load(const uint8_t* p, int64_t stride, Bytes* out) {
    for (int r = 0; r < kWidth; ++r)
      for (int i = 0; i < 16; ++i) out[i / 4][4 * r + i % 4] = p[r * stride + i];
  }
  static Bytes low_nibbles(Bytes w) { return w & 15; }
  static Bytes high_nibbles(Bytes w) { return w >> 4; }
  static Bytes table(const int8_t* codes) {
    Bytes table;
    std::memcpy(&table, codes, sizeof table);
    return table;
  }
  static Bytes look_up(Bytes nibbles, Bytes table) {
    for (int i = 0; i < 4 * kWidth; ++i) nibbles[i] = table[nibbles[i]];
    return nibbles;
  }
  static Bytes biased(Bytes w) { return w; }
  static Bytes four_columns(const int8_t* x) {
    Bytes columns;
    for (int r = 0; r < kWidth; ++r) std::memcpy(reinterpret_cast<char*>(&columns) + 4 * r, x, 4);
    return columns;
  }
  // Nibbles are the same as signed and as unsigned bytes.
  template <bool kIsSigned>
  struct Dot {
    using Sum = int32_t __attribute__((vector_size(4 * kWidth)));
    static Sum zero() { return Sum{}; }
    static Sum add(Sum sum, Bytes w, Bytes x) {
      int8_t w_bytes[4 * kWidth], x_bytes[4 * kWidth];
      std::memcpy(w_bytes, &w, sizeof w_bytes);
      std::memcpy(x_bytes, &x, sizeof x_bytes);
      for (int i = 0; i < 4 * kWidth; ++i) sum[i / 4] += w_bytes[i] * x_bytes[i];
      return sum;
    }
    static Vec total(Sum sum) { return __builtin_convertvector(sum, Vec); }
  };
};

#include "all_integers.h"

}  // namespace

const IntegerProducts* portable_integers() { return &kIntegers; }

}  // namespace ryzjax
