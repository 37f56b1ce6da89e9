// Activations quantized to int8, and the weights that integer_tiles.h multiplies them with (contract: linear.h).
//
// Requires: weight_memory.h and `Isa` before it.
//
// A unit is 32 columns, which share a scale in each row of x. A block is kWidth rows of W, whose sums are the lanes of
// one vector. The integer instructions multiply four neighboring columns at a time, so a unit of a block is eight vectors
// of bytes. Lane r of vector j holds columns 4 j to 4 j + 3 of row r. Weights are stored row by row, in the order that
// the other kernels read too. A unit is transposed in registers while it is loaded, with one shuffle for 16 bytes.

constexpr int64_t kUnit = 32;
constexpr int kUnitVectors = 8;

inline int64_t units_of(const LinearArgs& a) { return (a.k + kUnit - 1) / kUnit; }

// Quantizes `count` <= kUnit numbers. project_integer in ryzjax/ops/linear computes the same bits.
inline void quantize_unit(const uint16_t* x, int64_t count, int8_t* values, float* scale, float* sum,
                          float* half_sums) {
  constexpr int kVectors = kUnit / kWidth;
  uint16_t padded[kUnit] = {};
  if (count < kUnit) {
    std::memcpy(padded, x, count * 2);
    x = padded;
  }
  Vec v[kVectors];
  Vec peaks = {}, odd = {};
  RYZJAX_UNROLL for (int i = 0; i < kVectors; ++i) {
    v[i] = load_bf16(x + i * kWidth);
    peaks = larger(peaks, larger(v[i], -v[i]));
    odd += v[i] - v[i];  // NaN if a number is not finite
  }
  const float peak = largest(peaks);
  if (std::isnan(total(odd)) || peak < 1e-30f) {
    std::memset(values, 0, kUnit);
    *scale = peak < 1e-30f && !std::isnan(total(odd)) ? 0.0f : NAN;
    *sum = half_sums[0] = half_sums[1] = 0;
    return;
  }
  const Vec inverse = splat(127.0f / peak);
  *scale = peak * (1.0f / 127.0f);
  IntVec sums[2] = {};
  RYZJAX_UNROLL for (int i = 0; i < kVectors; ++i) {
    // Adding 1.5 * 2^23 rounds to a whole number, ties to even, and leaves it in the low bits.
    const Vec shifted = v[i] * inverse + splat(12582912.0f);
    const IntVec q = (IntVec)((UintVec)shifted - 0x4b400000u);
    sums[i / (kVectors / 2)] += q;
    using Bytes = int8_t __attribute__((vector_size(kWidth)));
    const Bytes bytes = __builtin_convertvector(q, Bytes);
    std::memcpy(values + i * kWidth, &bytes, kWidth);
  }
  int32_t first = 0, second = 0;
  for (int i = 0; i < kWidth; ++i) first += sums[0][i], second += sums[1][i];
  half_sums[0] = static_cast<float>(first), half_sums[1] = static_cast<float>(second);
  *sum = static_cast<float>(first + second);
}

// Quantizes all rows of x into `buffer`.
inline QuantizedRows quantize_x(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads) {
  const int64_t units = units_of(a), all = units * a.m;
  auto* const values = static_cast<int8_t*>(buffer.at_least(all * (kUnit + 16)));
  auto* const scales = reinterpret_cast<float*>(values + all * kUnit);
  float* const sums = scales + all;
  float* const half_sums = sums + all;
  constexpr int64_t kRows = 16;  // of a task
  parallel_for(threads, (a.m + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t m = task * kRows; m < std::min(a.m, (task + 1) * kRows); ++m)
      for (int64_t unit = 0; unit < units; ++unit) {
        const int64_t at = unit * a.m + m;
        quantize_unit(a.x + m * a.k + unit * kUnit, std::min(kUnit, a.k - unit * kUnit), values + at * kUnit, scales + at,
                      sums + at, half_sums + 2 * at);
      }
  });
  return {values, scales, sums, half_sums};
}

// How the bytes of a matrix become integers, and which zero point is subtracted from the sums.
enum class Zeros { kNone, kEight, kStored };

template <bool kIsNibbles, bool kIsSigned, Zeros kZeros, bool kIsHalved = false>
struct IntegerFormat {
  static constexpr bool is_nibbles = kIsNibbles;
  static constexpr bool is_signed = kIsSigned;  // int8, or codes of a codebook; else nibbles from 0 to 15
  static constexpr Zeros zeros = kZeros;
  static constexpr int parts = kIsHalved ? 2 : 1;  // groups that a unit belongs to
};

// kWidth rows of W.
struct RowBlock {
  const uint8_t* values;
  int64_t stride;       // bytes between two rows
  const float* scales;  // [groups, kWidth]
  const float* zeros;   // [groups, kWidth], or null
  Isa::Bytes codes;  // the codebook as int8, for look-ups
};

// Calls use(unit, group, w) for the units of B blocks, in the order in which their nibbles are stored. `group` is
// the first of the Format::parts groups of the unit. w[b] is the unit of block b.
template <typename Format, int B, typename Use>
inline __attribute__((always_inline)) void each_unit(const LinearArgs& a, const RowBlock (&blocks)[B], Use&& use) {
  using Bytes = Isa::Bytes;
  constexpr int kHalf = kUnitVectors / 2;
  const int64_t units = units_of(a), group_units = a.group == a.k ? units : Format::parts * a.group / kUnit;
  int64_t at = 0, unit = 0;  // the next byte of a row, and the next unit
  Bytes w[B][kUnitVectors];
  const auto load = [&](int b, int64_t byte, Bytes* to) __attribute__((always_inline)) {
    Isa::load(blocks[b].values + byte, blocks[b].stride, to);
  };
  const auto decoded = [&](int b, Bytes nibbles) __attribute__((always_inline)) {
    return Format::is_signed ? Isa::biased(Isa::look_up(nibbles, blocks[b].codes)) : nibbles;
  };
  for (int64_t group = 0; unit < units; group += Format::parts) {
    const int64_t end = std::min(units, unit + group_units);
    if constexpr (!Format::is_nibbles) {
      for (; unit < end; ++unit, at += kUnit) {
        RYZJAX_UNROLL for (int b = 0; b < B; ++b) {
          load(b, at, w[b]);
          load(b, at + kUnit / 2, w[b] + kHalf);
          RYZJAX_UNROLL for (int i = 0; i < kUnitVectors; ++i) w[b][i] = Isa::biased(w[b][i]);
        }
        use(unit, group, w);
      }
    } else if (a.pack == kUnit) {
      for (; unit < end; ++unit, at += kUnit / 2) {
        RYZJAX_UNROLL for (int b = 0; b < B; ++b) {
          Bytes both[kHalf];
          load(b, at, both);
          RYZJAX_UNROLL for (int i = 0; i < kHalf; ++i) {
            w[b][i] = decoded(b, Isa::low_nibbles(both[i]));
            w[b][i + kHalf] = decoded(b, Isa::high_nibbles(both[i]));
          }
        }
        use(unit, group, w);
      }
    } else {
      const int64_t half = a.pack / (2 * kUnit);  // units of half a run
      for (; unit < end; unit += 2 * half)
        for (int64_t i = 0; i < half; ++i, at += kUnit) {
          Bytes both[B][kUnitVectors];
          RYZJAX_UNROLL for (int b = 0; b < B; ++b) {
            load(b, at, both[b]);
            load(b, at + kUnit / 2, both[b] + kHalf);
            RYZJAX_UNROLL for (int j = 0; j < kUnitVectors; ++j) w[b][j] = decoded(b, Isa::low_nibbles(both[b][j]));
          }
          use(unit + i, group, w);
          RYZJAX_UNROLL for (int b = 0; b < B; ++b)
            RYZJAX_UNROLL for (int j = 0; j < kUnitVectors; ++j) w[b][j] = decoded(b, Isa::high_nibbles(both[b][j]));
          use(unit + half + i, group, w);
        }
    }
  }
}
