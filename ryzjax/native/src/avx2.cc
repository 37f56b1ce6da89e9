// The kernels for AVX2, FMA and F16C. They compute bfloat16 numbers as float32.
#include "isa_includes.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

namespace ryzjax {
namespace {

struct Isa {
  static constexpr int kWidth = 8;        // floats in a vector
  static constexpr int kValueVectors = 2;  // vectors of a value that tiles hold in registers for each lane
  // The cache that weights are prefetched into, as for __builtin_prefetch, and how many bytes ahead.
  static constexpr int kPrefetchLocality = 3, kPrefetchAhead = 4 << 10;
  using X = float;  // the type that products read weights and activations in
  static constexpr int kTileRows = 3, kTileColumns = 4;  // rows of W, and of x, in a tile of a panel
  static constexpr int kSums = 12;  // sums that stay in registers
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

  struct Chunk {
    __m256 v[4];  // 32 float32
  };
  using Sum = __m256;
  struct Scale {
    __m256 scale, zero;
  };
  struct Table {
    __m256 low, high;  // weights of nibbles 0 to 7 and 8 to 15
  };

  static Sum zero() { return _mm256_setzero_ps(); }
  static __m256 widen(const uint16_t* p) {
    const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
  }
  static Chunk load(const uint16_t* p) { return {{widen(p), widen(p + 8), widen(p + 16), widen(p + 24)}}; }
  // Rows of x and of panels are padded to whole chunks.
  static Chunk load_x(const X* p, int64_t) {
    return {{_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8), _mm256_loadu_ps(p + 16), _mm256_loadu_ps(p + 24)}};
  }
  static Chunk load_part(const uint16_t* p, int64_t count) {
    uint16_t part[32] = {};
    for (int64_t i = 0; i < count; ++i) part[i] = p[i];
    return load(part);
  }
  static void store_x(X* p, const Chunk& chunk, int64_t) {
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(p + 8 * i, chunk.v[i]);
  }
  static Sum dot(Sum sum, const Chunk& a, const Chunk& b) {
    for (int i = 0; i < 4; ++i) sum = _mm256_fmadd_ps(a.v[i], b.v[i], sum);
    return sum;
  }
  static float total(Sum sum) {
    const __m128 halves = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
    const __m128 pairs = _mm_add_ps(halves, _mm_movehl_ps(halves, halves));
    return _mm_cvtss_f32(_mm_add_ss(pairs, _mm_movehdup_ps(pairs)));
  }

  static void store_totals(Sum a, Sum b, Sum c, Sum d, float* out) {
    out[0] = total(a);
    out[1] = total(b);
    out[2] = total(c);
    out[3] = total(d);
  }

  static Vec load_half(const uint16_t* p) {
    return (Vec)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Scale scale(float scale, float zero) { return {_mm256_set1_ps(scale), _mm256_set1_ps(zero)}; }
  template <bool kHasZeros>
  static Chunk from_int8(const int8_t* p, const Scale& first, const Scale& second) {
    Chunk chunk;
    for (int i = 0; i < 4; ++i) {
      const __m256i q = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i)));
      const Scale& s = i < 2 ? first : second;
      chunk.v[i] = _mm256_mul_ps(kHasZeros ? _mm256_sub_ps(_mm256_cvtepi32_ps(q), s.zero) : _mm256_cvtepi32_ps(q), s.scale);
    }
    return chunk;
  }

  static Table table(float scale, float zero) {
    const __m256 low = _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0), high = _mm256_add_ps(low, _mm256_set1_ps(8));
    const __m256 s = _mm256_set1_ps(scale), z = _mm256_set1_ps(zero);
    return {_mm256_mul_ps(_mm256_sub_ps(low, z), s), _mm256_mul_ps(_mm256_sub_ps(high, z), s)};
  }
  static Table table_of(const float* codebook, float scale) {
    const __m256 s = _mm256_set1_ps(scale);
    return {_mm256_mul_ps(_mm256_loadu_ps(codebook), s), _mm256_mul_ps(_mm256_loadu_ps(codebook + 8), s)};
  }
  static __m256 look_up(__m256i nibbles, const Table& table) {
    const __m256 low = _mm256_permutevar8x32_ps(table.low, nibbles);
    const __m256 high = _mm256_permutevar8x32_ps(table.high, nibbles);
    // Bit 3 becomes the sign bit, which selects in a blend.
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(nibbles, 28)));
  }
  static __m256i bytes(const uint8_t* p) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  }
  static Chunk from_low(const uint8_t* p, const Table& table) {
    Chunk chunk;
    for (int i = 0; i < 4; ++i) chunk.v[i] = look_up(bytes(p + 8 * i), table);
    return chunk;
  }
  static Chunk from_high(const uint8_t* p, const Table& table) {
    Chunk chunk;
    for (int i = 0; i < 4; ++i) chunk.v[i] = look_up(_mm256_srli_epi32(bytes(p + 8 * i), 4), table);
    return chunk;
  }
  static Chunk from_run(const uint8_t* p, const Table& table) {
    Chunk chunk;
    for (int i = 0; i < 2; ++i) {
      const __m256i both = bytes(p + 8 * i);
      chunk.v[i] = look_up(both, table);
      chunk.v[i + 2] = look_up(_mm256_srli_epi32(both, 4), table);
    }
    return chunk;
  }
};

#include "all_kernels.h"

}  // namespace

const Kernels* avx2_kernels() { return &kKernels; }

}  // namespace ryzjax
#else
namespace ryzjax {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace ryzjax
#endif
