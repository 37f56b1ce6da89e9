// Products of int8 activations by the dot products of Armv8.2 and later.
#include "isa_includes.h"

#if defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>

namespace ryzjax {
namespace {

struct Isa {
  static constexpr int kWidth = 4;
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
  static Vec load_half(const uint16_t* p) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i]);
    return v;
  }

  using Bytes = uint8x16_t;
  static constexpr float kBias = 0;
  static constexpr int kPrefetchLocality = 3, kPrefetchAhead = 4 << 10;
  static constexpr int kBlocks = 2;

  static void load(const uint8_t* p, int64_t stride, Bytes* out) {
    uint32x4_t rows[4];
    for (int r = 0; r < 4; ++r) rows[r] = vreinterpretq_u32_u8(vld1q_u8(p + r * stride));
    const uint64x2_t low01 = vreinterpretq_u64_u32(vzip1q_u32(rows[0], rows[1]));
    const uint64x2_t low23 = vreinterpretq_u64_u32(vzip1q_u32(rows[2], rows[3]));
    const uint64x2_t high01 = vreinterpretq_u64_u32(vzip2q_u32(rows[0], rows[1]));
    const uint64x2_t high23 = vreinterpretq_u64_u32(vzip2q_u32(rows[2], rows[3]));
    out[0] = vreinterpretq_u8_u64(vzip1q_u64(low01, low23));
    out[1] = vreinterpretq_u8_u64(vzip2q_u64(low01, low23));
    out[2] = vreinterpretq_u8_u64(vzip1q_u64(high01, high23));
    out[3] = vreinterpretq_u8_u64(vzip2q_u64(high01, high23));
  }
  static Bytes low_nibbles(Bytes w) { return vandq_u8(w, vdupq_n_u8(15)); }
  static Bytes high_nibbles(Bytes w) { return vshrq_n_u8(w, 4); }
  static Bytes table(const int8_t* codes) { return vreinterpretq_u8_s8(vld1q_s8(codes)); }
  static Bytes look_up(Bytes nibbles, Bytes table) { return vqtbl1q_u8(table, nibbles); }
  static Bytes biased(Bytes w) { return w; }
  static Bytes four_columns(const int8_t* x) {
    uint32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_u8_u32(vdupq_n_u32(four));
  }
  // Nibbles are the same as signed and as unsigned bytes.
  template <bool kIsSigned>
  struct Dot {
    using Sum = int32x4_t;
    static Sum zero() { return vdupq_n_s32(0); }
    static Sum add(Sum sum, Bytes w, Bytes x) {
      return vdotq_s32(sum, vreinterpretq_s8_u8(w), vreinterpretq_s8_u8(x));
    }
    static Vec total(Sum sum) { return (Vec)vcvtq_f32_s32(sum); }
  };
};

#include "all_integers.h"

}  // namespace

const IntegerProducts* dotprod_integers() { return &kIntegers; }

}  // namespace ryzjax
#else
namespace ryzjax {
const IntegerProducts* dotprod_integers() { return nullptr; }
}  // namespace ryzjax
#endif
