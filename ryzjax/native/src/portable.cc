// The kernels in portable C++. The compiler turns their loops into the vectors of the target, such as NEON on Arm.
#include "isa_includes.h"

namespace ryzjax {
namespace {

struct Isa {
  static constexpr int kWidth = 4;        // floats in a vector
  static constexpr int kValueVectors = 2;  // vectors of a value that tiles hold in registers for each lane
  // The cache that weights are prefetched into, as for __builtin_prefetch, and how many bytes ahead.
  static constexpr int kPrefetchLocality = 3, kPrefetchAhead = 4 << 10;
  using X = uint16_t;  // the type that products read weights and activations in
  static constexpr int kTileRows = 4, kTileColumns = 6;  // rows of W, and of x, in a tile of a panel
  static constexpr int kSums = 24;  // sums that stay in registers
  using Vec = float __attribute__((vector_size(4 * kWidth)));
  static Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }

  struct Chunk {
    Vec v[32 / kWidth];  // float32 that are exact bfloat16 numbers
  };
  struct Sum {
    Vec v[16 / kWidth];
  };
  struct Scale {
    float scale, zero;
  };
  struct Table {
    float v[16];
  };

  static Sum zero() { return {}; }
  // Returns the chunk of the values at(0) to at(31).
  template <typename At>
  static Chunk chunk_of(At at) {
    float values[32];
    for (int i = 0; i < 32; ++i) values[i] = at(i);
    Chunk chunk;
    std::memcpy(&chunk, values, sizeof chunk);
    return chunk;
  }
  static Chunk load(const uint16_t* p) {
    using Halves = uint16_t __attribute__((vector_size(2 * kWidth)));
    using Words = uint32_t __attribute__((vector_size(4 * kWidth)));
    Chunk chunk;
    for (int i = 0; i < 32 / kWidth; ++i) {
      Halves halves;
      std::memcpy(&halves, p + i * kWidth, sizeof halves);
      chunk.v[i] = (Vec)(__builtin_convertvector(halves, Words) << 16);
    }
    return chunk;
  }
  static Chunk load_part(const uint16_t* p, int64_t count) {
    return chunk_of([p, count](int i) { return i < count ? bf16_to_float(p[i]) : 0.0f; });
  }
  static void store(uint16_t* p, const Chunk& chunk) { store_part(p, chunk, 32); }
  static void store_part(uint16_t* p, const Chunk& chunk, int64_t count) {
    float values[32];
    std::memcpy(values, &chunk, sizeof values);
    for (int64_t i = 0; i < count; ++i) p[i] = static_cast<uint16_t>(float_to_bits(values[i]) >> 16);
  }
  static Chunk load_x(const X* p, int64_t count) { return count == 32 ? load(p) : load_part(p, count); }
  static void store_x(X* p, const Chunk& chunk, int64_t count) {
    count == 32 ? store(p, chunk) : store_part(p, chunk, count);
  }
  static Sum dot(Sum sum, const Chunk& a, const Chunk& b) {
    constexpr int kVectors = 16 / kWidth;
    for (int i = 0; i < kVectors; ++i) sum.v[i] += a.v[i] * b.v[i];
    for (int i = 0; i < kVectors; ++i) sum.v[i] += a.v[i + kVectors] * b.v[i + kVectors];
    return sum;
  }
  static float total(const Sum& sum) {
    float part[16];
    std::memcpy(part, &sum, sizeof part);
    for (int width = 8; width > 0; width /= 2)
      for (int i = 0; i < width; ++i) part[i] += part[i + width];
    return part[0];
  }

  static void store_totals(const Sum& a, const Sum& b, const Sum& c, const Sum& d, float* out) {
    out[0] = total(a);
    out[1] = total(b);
    out[2] = total(c);
    out[3] = total(d);
  }

  static float rounded(float value) { return bf16_to_float(float_to_bf16(value)); }
  static Vec load_half(const uint16_t* p) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i]);
    return v;
  }
  static Scale scale(float scale, float zero) { return {scale, zero}; }
  template <bool kHasZeros>
  static Chunk from_int8(const int8_t* p, const Scale& first, const Scale& second) {
    return chunk_of([=](int i) {
      const Scale& s = i < 16 ? first : second;
      return rounded((static_cast<float>(p[i]) - s.zero) * s.scale);
    });
  }
  static Table table(float scale, float zero) {
    Table table;
    for (int i = 0; i < 16; ++i) table.v[i] = rounded((static_cast<float>(i) - zero) * scale);
    return table;
  }
  static Table table_of(const float* codebook, float scale) {
    Table table;
    for (int i = 0; i < 16; ++i) table.v[i] = rounded(codebook[i] * scale);
    return table;
  }
  static Chunk from_low(const uint8_t* p, const Table& table) {
    return chunk_of([p, &table](int i) { return table.v[p[i] & 15]; });
  }
  static Chunk from_high(const uint8_t* p, const Table& table) {
    return chunk_of([p, &table](int i) { return table.v[p[i] >> 4]; });
  }
  static Chunk from_run(const uint8_t* p, const Table& table) {
    return chunk_of([p, &table](int i) { return table.v[i < 16 ? p[i] & 15 : p[i - 16] >> 4]; });
  }
};

#include "all_kernels.h"

}  // namespace

const Kernels* portable_kernels() { return &kKernels; }

}  // namespace ryzjax
