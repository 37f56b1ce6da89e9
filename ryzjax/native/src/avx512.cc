// The kernels for AVX-512 with bfloat16 dot products.
#include "isa_includes.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512BF16__)
#include <immintrin.h>

namespace ryzjax {
namespace {

#define RYZJAX_NIBBLE_BLOCKS

struct Isa {
  static constexpr int kWidth = 16;        // floats in a vector
  static constexpr int kValueVectors = 4;  // vectors of a value that tiles hold in registers for each lane
  // The cache that weights are prefetched into, as for __builtin_prefetch, and how many bytes ahead.
  static constexpr int kPrefetchLocality = 2, kPrefetchAhead = 16 << 10;
  using X = uint16_t;  // the type that products read weights and activations in
  static constexpr int kTileRows = 4, kTileColumns = 6;  // rows of W, and of x, in a tile of a panel
  static constexpr int kSums = 24;  // sums that stay in registers
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

  using Chunk = __m512bh;  // 32 bfloat16
  using Sum = __m512;      // 16 float32; each sums two of the 32 columns of a chunk
  struct Scale {
    __m512 scale, zero;
  };
  using Table = __m512i;  // bfloat16 weight of each nibble, twice: a look-up also reads bit 4, which belongs to another nibble

  static Sum zero() { return _mm512_setzero_ps(); }
  static Chunk load(const uint16_t* p) { return (Chunk)_mm512_loadu_si512(p); }
  static Chunk load_part(const uint16_t* p, int64_t count) {
    return (Chunk)_mm512_maskz_loadu_epi16(static_cast<__mmask32>((uint64_t{1} << count) - 1), p);
  }
  static void store(uint16_t* p, Chunk chunk) { _mm512_storeu_si512(p, (__m512i)chunk); }
  static void store_part(uint16_t* p, Chunk chunk, int64_t count) {
    _mm512_mask_storeu_epi16(p, static_cast<__mmask32>((uint64_t{1} << count) - 1), (__m512i)chunk);
  }
  static Chunk load_x(const X* p, int64_t count) { return count == 32 ? load(p) : load_part(p, count); }
  static void store_x(X* p, Chunk chunk, int64_t count) {
    count == 32 ? store(p, chunk) : store_part(p, chunk, count);
  }
  static Sum dot(Sum sum, Chunk a, Chunk b) { return _mm512_dpbf16_ps(sum, a, b); }
  static float total(Sum sum) {
    const __m256 halves = _mm256_add_ps(_mm512_castps512_ps256(sum), _mm512_extractf32x8_ps(sum, 1));
    const __m128 quarters = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128 pairs = _mm_add_ps(quarters, _mm_movehl_ps(quarters, quarters));
    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
  }
  // Computes four totals at once, each in the same order of additions as `total`.
  static void store_totals(Sum a, Sum b, Sum c, Sum d, float* out) {
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
    const __m512 quarters = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    const __m512 pairs = _mm512_add_ps(quarters, _mm512_permute_ps(quarters, 0x4e));
    const __m512 totals = _mm512_add_ps(pairs, _mm512_permute_ps(pairs, 0xb1));
    const __m512i firsts = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12, 8, 4, 0);
    _mm_storeu_ps(out, _mm512_castps512_ps128(_mm512_permutexvar_ps(firsts, totals)));
  }

  static Vec load_half(const uint16_t* p) {
    return (Vec)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Scale scale(float scale, float zero) { return {_mm512_set1_ps(scale), _mm512_set1_ps(zero)}; }
  template <bool kHasZeros>
  static Chunk from_int8(const int8_t* p, const Scale& first, const Scale& second) {
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
    const __m512 high =
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16))));
    return _mm512_cvtne2ps_pbh(_mm512_mul_ps(kHasZeros ? _mm512_sub_ps(high, second.zero) : high, second.scale),
                               _mm512_mul_ps(kHasZeros ? _mm512_sub_ps(low, first.zero) : low, first.scale));
  }

  static Table twice(__m512 values) {
    const __m256i once = (__m256i)_mm512_cvtneps_pbh(values);
    return _mm512_broadcast_i64x4(once);
  }
  static Table table(float scale, float zero) {
    const __m512 nibbles = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return twice(_mm512_mul_ps(_mm512_sub_ps(nibbles, _mm512_set1_ps(zero)), _mm512_set1_ps(scale)));
  }
  static Table table_of(const float* codebook, float scale) {
    return twice(_mm512_mul_ps(_mm512_loadu_ps(codebook), _mm512_set1_ps(scale)));
  }
  // The following functions serve nibble_blocks.h.
  using Codes = __m512;  // the values of nibbles 0 to 15, before their scale
  using Words = __m512i;
  static Codes codes(const float* codebook, bool has_zeros) {
    if (codebook != nullptr) return _mm512_loadu_ps(codebook);
    const __m512 nibbles = _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return has_zeros ? nibbles : _mm512_sub_ps(nibbles, _mm512_set1_ps(8));
  }
  static Codes subtract(Codes codes, float zero) { return _mm512_sub_ps(codes, _mm512_set1_ps(zero)); }
  // A table for the first half of the words and one for the second half. Bit 4 of an index selects between them.
  static Table tables(Codes first, float first_scale, Codes second, float second_scale) {
    return (Table)_mm512_cvtne2ps_pbh(_mm512_mul_ps(second, _mm512_set1_ps(second_scale)),
                                      _mm512_mul_ps(first, _mm512_set1_ps(first_scale)));
  }
  static Table table_twice(Codes codes, float scale) { return twice(_mm512_mul_ps(codes, _mm512_set1_ps(scale))); }
  static Words load_words(const uint8_t* p) { return _mm512_loadu_si512(p); }
  // The weights of the nibbles at bit kShift of every word. A look-up reads the low five bits of a word.
  template <int kShift, bool kTwoTables>
  static Chunk from_words(Words words, Table table) {
    const __m512i shifted = kShift ? _mm512_srli_epi16(words, kShift) : words;
    if (!kTwoTables) return (Chunk)_mm512_permutexvar_epi16(shifted, table);
    const __m512i half = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(16), 1);
    // (shifted & 15) | half
    return (Chunk)_mm512_permutexvar_epi16(_mm512_ternarylogic_epi32(shifted, _mm512_set1_epi16(15), half, 0xea), table);
  }
  // As from_words, where every eight words have their own table: two of them in `first`, two in `last`.
  template <int kShift>
  static Chunk from_words_of_four(Words words, Table first, Table last) {
    const __m512i shifted = kShift ? _mm512_srli_epi16(words, kShift) : words;
    const __m512i table = _mm512_set_epi64(0x0030003000300030, 0x0030003000300030, 0x0020002000200020, 0x0020002000200020,
                                           0x0010001000100010, 0x0010001000100010, 0, 0);
    // (shifted & 15) | table
    const __m512i index = _mm512_ternarylogic_epi32(shifted, _mm512_set1_epi16(15), table, 0xea);
    return (Chunk)_mm512_permutex2var_epi16(first, index, last);
  }
  // Writes the even columns of the 32 at `p` and the 32 at `q`, then their odd columns.
  static void split_even_odd(const uint16_t* p, const uint16_t* q, uint16_t* out) {
    const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(q);
    const __m512i evens = _mm512_cvtepu8_epi16(_mm256_set_epi8(62, 60, 58, 56, 54, 52, 50, 48, 46, 44, 42, 40, 38, 36, 34, 32,
                                                               30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0));
    const __m512i odds = _mm512_add_epi16(evens, _mm512_set1_epi16(1));
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(a, evens, b));
    _mm512_storeu_si512(out + 32, _mm512_permutex2var_epi16(a, odds, b));
  }

  static __m512i words(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Chunk from_low(const uint8_t* p, Table table) {
    return (Chunk)_mm512_permutexvar_epi16(words(p), table);
  }
  static Chunk from_high(const uint8_t* p, Table table) {
    return (Chunk)_mm512_permutexvar_epi16(_mm512_srli_epi16(words(p), 4), table);
  }
  static Chunk from_run(const uint8_t* p, Table table) {
    const __m256i low = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m512i both = _mm512_inserti64x4(_mm512_castsi256_si512(low), _mm256_srli_epi16(low, 4), 1);
    return (Chunk)_mm512_permutexvar_epi16(both, table);
  }
};

#include "all_kernels.h"

}  // namespace

const Kernels* avx512_kernels() { return &kKernels; }

}  // namespace ryzjax
#else
namespace ryzjax {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace ryzjax
#endif
