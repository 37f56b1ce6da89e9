// Products of int8 with 256-bit vectors: by AVX2, or by AVX-VNNI if RYZJAX_AVX_VNNI is defined.
//
// Requires: isa_includes.h and immintrin.h. What each member does: all_integers.h.

struct Isa {
  static constexpr int kWidth = 8;
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
  static Vec load_half(const uint16_t* p) {
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }

  using Bytes = __m256i;
#ifdef RYZJAX_AVX_VNNI
  static constexpr float kBias = 128;
#else
  static constexpr float kBias = 0;
#endif
  static constexpr int kPrefetchLocality = 3, kPrefetchAhead = 4 << 10;
  static constexpr int kBlocks = 1;

  static __m128i bytes16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void load(const uint8_t* p, int64_t stride, Bytes* out) {
    __m256i rows[4];  // rows r and r + 4
    for (int r = 0; r < 4; ++r)
      rows[r] = _mm256_inserti128_si256(_mm256_castsi128_si256(bytes16(p + r * stride)), bytes16(p + (r + 4) * stride), 1);
    const __m256i low01 = _mm256_unpacklo_epi32(rows[0], rows[1]), low23 = _mm256_unpacklo_epi32(rows[2], rows[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(rows[0], rows[1]), high23 = _mm256_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm256_unpacklo_epi64(low01, low23);
    out[1] = _mm256_unpackhi_epi64(low01, low23);
    out[2] = _mm256_unpacklo_epi64(high01, high23);
    out[3] = _mm256_unpackhi_epi64(high01, high23);
  }
  static Bytes low_nibbles(Bytes w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes w) { return _mm256_and_si256(_mm256_srli_epi16(w, 4), _mm256_set1_epi8(15)); }
  static Bytes table(const int8_t* codes) {
    return _mm256_broadcastsi128_si256(bytes16(reinterpret_cast<const uint8_t*>(codes)));
  }
  static Bytes look_up(Bytes nibbles, Bytes table) { return _mm256_shuffle_epi8(table, nibbles); }
  static Bytes four_columns(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
#ifdef RYZJAX_AVX_VNNI
  static Bytes biased(Bytes w) { return _mm256_xor_si256(w, _mm256_set1_epi8(-128)); }
  template <bool kIsSigned>
  struct Dot {
    using Sum = __m256i;
    static Sum zero() { return _mm256_setzero_si256(); }
    static Sum add(Sum sum, Bytes w, Bytes x) {
#ifdef RYZJAX_AVX_VNNI_BY_AVX512
      return _mm256_dpbusd_epi32(sum, w, x);
#else
      return _mm256_dpbusd_avx_epi32(sum, w, x);
#endif
    }
    static Vec total(Sum sum) { return (Vec)_mm256_cvtepi32_ps(sum); }
  };
#else
  static Bytes biased(Bytes w) { return w; }
  // Nibbles: two products are at most 2 * 15 * 127 = 3,810, so int16 holds the sum of all eight pairs of a unit.
  // int8: two products of |w| and x with the sign of w are at most 2 * 128 * 127 = 32,512, which int16 just holds.
  template <bool kIsSigned>
  struct Dot {
    using Sum = __m256i;  // int32 if signed, else int16
    static Sum zero() { return _mm256_setzero_si256(); }
    static Sum add(Sum sum, Bytes w, Bytes x) {
      if (!kIsSigned) return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
      const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    static Vec total(Sum sum) {
      return (Vec)_mm256_cvtepi32_ps(kIsSigned ? sum : _mm256_madd_epi16(sum, _mm256_set1_epi16(1)));
    }
  };
#endif
};

#include "all_integers.h"
