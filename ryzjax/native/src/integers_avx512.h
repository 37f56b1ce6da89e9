// Products of int8 with 512-bit vectors: by AVX-512BW, or by AVX-512 VNNI if RYZJAX_AVX512_VNNI is defined.
//
// Requires: isa_includes.h and immintrin.h. What each member does: all_integers.h.

struct Isa {
  static constexpr int kWidth = 16;
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
  static Vec load_half(const uint16_t* p) {
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  using Bytes = __m512i;
#ifdef RYZJAX_AVX512_VNNI
  static constexpr float kBias = 128;
#else
  static constexpr float kBias = 0;
#endif
  static constexpr int kPrefetchLocality = 2, kPrefetchAhead = 4 << 10;
  static constexpr int kBlocks = 2;

  static __m128i bytes16(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  static void load(const uint8_t* p, int64_t stride, Bytes* out) {
    __m512i rows[4];  // rows r, r + 4, r + 8 and r + 12
    for (int r = 0; r < 4; ++r) {
      rows[r] = _mm512_castsi128_si512(bytes16(p + r * stride));
      rows[r] = _mm512_inserti32x4(rows[r], bytes16(p + (r + 4) * stride), 1);
      rows[r] = _mm512_inserti32x4(rows[r], bytes16(p + (r + 8) * stride), 2);
      rows[r] = _mm512_inserti32x4(rows[r], bytes16(p + (r + 12) * stride), 3);
    }
    const __m512i low01 = _mm512_unpacklo_epi32(rows[0], rows[1]), low23 = _mm512_unpacklo_epi32(rows[2], rows[3]);
    const __m512i high01 = _mm512_unpackhi_epi32(rows[0], rows[1]), high23 = _mm512_unpackhi_epi32(rows[2], rows[3]);
    out[0] = _mm512_unpacklo_epi64(low01, low23);
    out[1] = _mm512_unpackhi_epi64(low01, low23);
    out[2] = _mm512_unpacklo_epi64(high01, high23);
    out[3] = _mm512_unpackhi_epi64(high01, high23);
  }
  static Bytes low_nibbles(Bytes w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
  static Bytes high_nibbles(Bytes w) { return _mm512_and_si512(_mm512_srli_epi16(w, 4), _mm512_set1_epi8(15)); }
  static Bytes table(const int8_t* codes) {
    return _mm512_broadcast_i32x4(bytes16(reinterpret_cast<const uint8_t*>(codes)));
  }
  static Bytes look_up(Bytes nibbles, Bytes table) { return _mm512_shuffle_epi8(table, nibbles); }
  static Bytes four_columns(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
#ifdef RYZJAX_AVX512_VNNI
  static Bytes biased(Bytes w) { return _mm512_xor_si512(w, _mm512_set1_epi8(-128)); }
  template <bool kIsSigned>
  struct Dot {
    using Sum = __m512i;
    static Sum zero() { return _mm512_setzero_si512(); }
    static Sum add(Sum sum, Bytes w, Bytes x) { return _mm512_dpbusd_epi32(sum, w, x); }
    static Vec total(Sum sum) { return (Vec)_mm512_cvtepi32_ps(sum); }
  };
#else
  static Bytes biased(Bytes w) { return w; }
  // AVX-512BW has no instruction that moves the sign of w to x, so x is negated under a mask. As with AVX2, int16 holds
  // the sum of all eight pairs of a unit of nibbles, and the sum of one pair of int8.
  template <bool kIsSigned>
  struct Dot {
    using Sum = __m512i;  // int32 if signed, else int16
    static Sum zero() { return _mm512_setzero_si512(); }
    static Sum add(Sum sum, Bytes w, Bytes x) {
      if (!kIsSigned) return _mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x));
      const __m512i signed_x = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
      const __m512i pairs = _mm512_maddubs_epi16(_mm512_abs_epi8(w), signed_x);
      return _mm512_add_epi32(sum, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    static Vec total(Sum sum) {
      return (Vec)_mm512_cvtepi32_ps(kIsSigned ? sum : _mm512_madd_epi16(sum, _mm512_set1_epi16(1)));
    }
  };
#endif
};

#include "all_integers.h"
