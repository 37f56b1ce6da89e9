// Vectors of float32: loads, stores, reductions, exp and tanh.
//
// Requires: `Isa`.

// Unrolls a loop. Arrays of sums stay in registers only if the loops over them are unrolled.
#if defined(__clang__)
#define RYZJAX_UNROLL _Pragma("unroll")
#else
#define RYZJAX_UNROLL _Pragma("GCC unroll 32")
#endif

constexpr int kWidth = Isa::kWidth;
using Vec = Isa::Vec;
using IntVec = int32_t __attribute__((vector_size(4 * kWidth)));
using UintVec = uint32_t __attribute__((vector_size(4 * kWidth)));
using HalfVec = uint16_t __attribute__((vector_size(2 * kWidth)));

inline Vec splat(float value) { return value - Vec{}; }
inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Vec load_bf16(const uint16_t* p) {
  HalfVec half;
  std::memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, IntVec) << 16);
}
inline Vec larger(Vec a, Vec b) { return b > a ? b : a; }  // returns a if b is NaN

// Adds in the same order on every call: a tree that halves the vector.
inline float total(Vec v) {
  float part[kWidth];
  store(part, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  return part[0];
}
inline float largest(Vec v) {
  float part[kWidth];
  store(part, v);
  for (int width = kWidth / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) part[i] = part[i + width] > part[i] ? part[i + width] : part[i];
  return part[0];
}

// Returns e^x within 2 units in the last place. Returns 0 below x = -87, e^88 above x = 88, and NaN for NaN.
inline Vec exponential(Vec x) {
  const Vec bounded = x > splat(88.0f) ? splat(88.0f) : x;
  // Adding 1.5 * 2^23 rounds to an integer and leaves that integer in the low bits.
  const Vec shifted = Isa::fma(bounded, splat(1.44269504088896341f), splat(12582912.0f));
  const Vec n = shifted - splat(12582912.0f);
  Vec r = Isa::fma(n, splat(-0.693359375f), bounded);
  r = Isa::fma(n, splat(2.12194440e-4f), r);
  Vec p = splat(1.9875691500e-4f);
  p = Isa::fma(p, r, splat(1.3981999507e-3f));
  p = Isa::fma(p, r, splat(8.3334519073e-3f));
  p = Isa::fma(p, r, splat(4.1665795894e-2f));
  p = Isa::fma(p, r, splat(1.6666665459e-1f));
  p = Isa::fma(p, r, splat(5.0000001201e-1f));
  p = Isa::fma(p, r * r, r) + splat(1.0f);
  // The arithmetic is unsigned because it wraps for x far below -87. The last line discards those results.
  const UintVec exponent = ((UintVec)shifted + (127u - 0x4b400000u)) << 23;
  const Vec value = p * (Vec)exponent;
  return x < splat(-87.0f) ? Vec{} : value;
}

// Returns tanh(x) with an absolute error of about 2^-22.
inline Vec hyperbolic_tangent(Vec x) {
  const Vec e = exponential(x + x);
  return splat(1.0f) - splat(2.0f) / (e + splat(1.0f));
}
