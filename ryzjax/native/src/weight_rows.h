// Readers of the rows of W (contract: linear.h): each turns stored weights into chunks of 32 bfloat16 in registers.
//
// Requires: vectors.h before it. Includes nibble_blocks.h.

// Bytes of stored weights that a thread takes at a time where each weight is read once.
constexpr int64_t kTaskBytes = 96 << 10;

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

inline int64_t row_bytes(const LinearArgs& a) {
  return a.kind == WeightKind::kBfloat16 ? 2 * a.k : a.kind == WeightKind::kInt8 ? a.k : a.k / 2;
}

// Whether the two halves of every 32 columns have their own scales.
inline bool is_halved(const LinearArgs& a) { return a.group == 16 && a.group != a.k; }

// Scales of rows of W as float32, and their zero points if those are read as float32 too.
struct Scales {
  const float* values;
  const float* zeros;  // null if there are no zero points, or if they are read as the integers that are stored
  int64_t stride;      // floats between two rows; 0 if all rows share their scales

  Scales from(int64_t row) const { return {values + row * stride, zeros ? zeros + row * stride : nullptr, stride}; }
};

// Converts float16 or bfloat16 to float32, in `buffer`.
inline const float* widened(const uint16_t* from, bool is_half, int64_t count, AlignedBuffer& buffer) {
  float* const to = static_cast<float*>(buffer.at_least(count * 4));
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, is_half ? Isa::load_half(from + i) : load_bf16(from + i));
  for (; i < count; ++i) to[i] = is_half ? half_to_float(from[i]) : bf16_to_float(from[i]);
  return to;
}

// Returns the scales of rows [first, last): the stored array itself, or a copy converted into a buffer of this thread.
// Zero points are converted if they are float16, or if the readers of halved chunks need them.
inline Scales scales_of(const LinearArgs& a, int64_t first, int64_t last) {
  if (a.kind == WeightKind::kBfloat16) return {nullptr, nullptr, 0};
  const int64_t groups = a.k / a.group;
  const bool shared = a.scale_rows == 1;
  const int64_t at = shared ? 0 : first * groups, count = shared ? groups : (last - first) * groups;
  thread_local AlignedBuffer scale_buffer, zero_buffer;
  const auto* const halves = static_cast<const uint16_t*>(a.scales);
  Scales scales = {nullptr, nullptr, shared ? 0 : groups};
  scales.values = a.scale_kind == ScaleKind::kFloat32
                      ? static_cast<const float*>(a.scales) + at
                      : widened(halves + at, a.scale_kind == ScaleKind::kFloat16, count, scale_buffer);
  if (a.zeros != nullptr && a.zero_kind == ZeroKind::kFloat16) {
    scales.zeros = widened(static_cast<const uint16_t*>(a.zeros) + at, true, count, zero_buffer);
  } else if (a.zeros != nullptr && is_halved(a)) {
    float* const to = static_cast<float*>(zero_buffer.at_least(count * 4));
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<const int8_t*>(a.zeros)[at + i];
    scales.zeros = to;
  }
  return scales;
}

// Returns the integer zero points of a row, or null if there are none.
inline const uint8_t* row_zeros(const LinearArgs& a, int64_t row) {
  const auto* const zeros = static_cast<const uint8_t*>(a.zeros);
  return zeros == nullptr || a.scale_rows == 1 ? zeros : zeros + row * (a.k / a.group);
}

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

// Always inlined, because GCC drops calls of a function that only prefetches: such a function seems to have no effect.
inline __attribute__((always_inline)) void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// Prefetches memory for a walk over R rows at once. It asks for bytes in the order of their addresses, not in the order
// of the walk, because alternating between short rows defeats the hardware prefetchers of some processors: Zen 4 reads
// such rows at half its speed.
struct Fetch {
  const char* at = nullptr;  // the next byte; null to prefetch nothing
  int64_t left = INT64_MAX, run = INT64_MAX, skip = 0;  // bytes: left of this run, of a run, between runs

  // Prefetches beyond the `rows` whole rows of W that start at `row`.
  static Fetch beyond(const LinearArgs& a, int64_t row, int64_t rows) {
    constexpr int64_t kLeast = 4 << 10;  // bytes ahead, rounded up to whole tiles
    const int64_t tile = rows * row_bytes(a);
    return {static_cast<const char*>(a.values) + row * row_bytes(a) + (kLeast + tile - 1) / tile * tile};
  }

  template <int kBytes>
  inline __attribute__((always_inline)) void next() {
    if (at == nullptr) return;
    RYZJAX_UNROLL for (int i = 0; i < kBytes; i += 64) prefetch(at + i);
    at += kBytes;
    if ((left -= kBytes) <= 0) at += skip, left += run;
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
