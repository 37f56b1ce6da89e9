// Readers of the rows of W (contract: linear.h): each turns stored weights into chunks of 32 numbers in registers.
//
// Requires: weight_memory.h before it. Includes nibble_blocks.h.

// Where a reader finds the zero points: the default ones, the stored integers, or `Scales::zeros`.
enum class RowZeros { kDefault, kInteger, kFloat };

// A reader is used in this order: begin(a, row, the row's scales), then for each kGroups groups begin_group(the first of
// them), followed by chunk(k) for every 32 columns of the groups and partial_chunk(k, count) for a last chunk of fewer
// columns.

struct Bfloat16Row {
  static constexpr bool kIsNibbles = false;
  static constexpr int kGroups = 1, kChunkBytes = 64;
  const uint16_t* values;
  void begin(const LinearArgs& a, int64_t row, const Scales&) {
    values = static_cast<const uint16_t*>(a.values) + row * a.k;
  }
  void begin_group(int64_t) {}
  Isa::Chunk chunk(int64_t k) const { return Isa::load(values + k); }
  Isa::Chunk partial_chunk(int64_t k, int64_t count) const { return Isa::load_part(values + k, count); }
};

// kHalves is 2 if the two halves of a chunk belong to different groups, of 16 columns each; else 1.
template <RowZeros kZeros, int kHalves>
struct Int8Row {
  static constexpr bool kIsNibbles = false;
  static constexpr int kGroups = kHalves, kChunkBytes = 32;
  static constexpr bool kHasZeros = kZeros != RowZeros::kDefault;
  const int8_t* values;
  Scales scales;
  const uint8_t* integer_zeros;
  Isa::Scale first, second;  // of the halves of a chunk
  void begin(const LinearArgs& a, int64_t row, const Scales& row_scales) {
    values = static_cast<const int8_t*>(a.values) + row * a.k;
    scales = row_scales;
    if (kZeros == RowZeros::kInteger) integer_zeros = row_zeros(a, row);
  }
  Isa::Scale scale(int64_t group) const {
    const float zero = kZeros == RowZeros::kFloat     ? scales.zeros[group]
                       : kZeros == RowZeros::kInteger ? static_cast<float>(static_cast<int8_t>(integer_zeros[group]))
                                                      : 0.0f;
    return Isa::scale(scales.values[group], zero);
  }
  void begin_group(int64_t group) {
    first = scale(group);
    second = kHalves == 2 ? scale(group + 1) : first;
  }
  Isa::Chunk chunk(int64_t k) const { return Isa::template from_int8<kHasZeros>(values + k, first, second); }
  Isa::Chunk partial_chunk(int64_t k, int64_t count) const {
    int8_t some[32] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = values[k + i];
    return Isa::template from_int8<kHasZeros>(some, first, second);
  }
};

// Nibbles in runs of 32 columns, or of a multiple of 64. A chunk is both nibbles of 16 bytes in a run of 32 columns,
// and the low or the high nibbles of 32 bytes in longer runs.
template <bool kHasFloatZeros>
struct NibbleRow {
  static constexpr bool kIsNibbles = true;
  static constexpr int kGroups = 1;
  const uint8_t* values;
  Scales scales;
  const uint8_t* integer_zeros;
  const float* codebook;
  Isa::Table table;
  void begin(const LinearArgs& a, int64_t row, const Scales& row_scales) {
    values = static_cast<const uint8_t*>(a.values) + row * (a.k / 2);
    scales = row_scales;
    integer_zeros = kHasFloatZeros ? nullptr : row_zeros(a, row);
    codebook = kHasFloatZeros ? nullptr : a.codebook;
  }
  // The stored zero point of a group.
  float zero(int64_t group) const {
    return kHasFloatZeros ? scales.zeros[group] : static_cast<float>(integer_zeros[group]);
  }
  void begin_group(int64_t group) {
    const float scale = scales.values[group];
    table = codebook ? Isa::table_of(codebook, scale)
                     : Isa::table(scale, kHasFloatZeros || integer_zeros ? zero(group) : 8.0f);
  }
};

#include "nibble_blocks.h"

// Calls use(k, count, w) for the chunks w of R rows at columns [k, k + count), in order, over columns [k0, k1). k0 must
// be a multiple of 32 and of the group size.
template <typename Row, int R, typename Use>
inline __attribute__((always_inline)) void walk(const LinearArgs& a, Row (&rows)[R], int64_t k0, int64_t k1,
                                                Fetch fetch, Use&& use) {
  if constexpr (Row::kIsNibbles) {
    // The callers walk all columns of nibbles at once, so k0 is 0 here and k1 is k.
    if (const int64_t reordered = reordered_columns(a)) walk_reordered(a, rows, k0 = reordered, fetch, use);
  }
  int64_t group = k0 == 0 ? 0 : k0 / a.group;
  for (int64_t g0 = k0; g0 < k1; group += Row::kGroups) {
    const int64_t g1 = std::min(g0 + Row::kGroups * a.group, k1);
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) rows[r].begin_group(group);
    typename Isa::Chunk w[R];
    if constexpr (Row::kIsNibbles) {
      if (a.pack == 32) {
        for (int64_t k = g0; k < g1; k += 32) {
          fetch.template next<16 * R>();
          RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = Isa::from_run(rows[r].values + k / 2, rows[r].table);
          use(k, 32, w);
        }
      } else {
        const int64_t half = a.pack / 2;
        for (int64_t run = g0; run < g1; run += a.pack) {
          for (int64_t i = 0; i < half; i += 32) {
            fetch.template next<32 * R>();
            RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = Isa::from_low(rows[r].values + run / 2 + i, rows[r].table);
            use(run + i, 32, w);
          }
          for (int64_t i = 0; i < half; i += 32) {
            RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = Isa::from_high(rows[r].values + run / 2 + i, rows[r].table);
            use(run + half + i, 32, w);
          }
        }
      }
    } else {
      int64_t k = g0;
      for (; k + 32 <= g1; k += 32) {
        fetch.template next<Row::kChunkBytes * R>();
        RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = rows[r].chunk(k);
        use(k, 32, w);
      }
      if (k < g1) {  // only at the end of a row: kGroups groups are a multiple of 32 columns, or the whole row
        RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = rows[r].partial_chunk(k, g1 - k);
        use(k, g1 - k, w);
      }
    }
    g0 = g1;
  }
}
