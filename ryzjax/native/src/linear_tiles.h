// The loops of y = x W^T, over an instruction set's `Isa`. Included once by each of them, inside its namespace.
//
//   M <= decode_limit     4 rows of W at a time, each a stream, against all of x: weights are turned into bfloat16 in
//                        registers
//   more                 a panel of rows becomes bfloat16 in the L2 cache and meets all of x, in tiles of 4 x 6 at most

constexpr int64_t kDepth = 2048;  // columns of a tile at a time: kTileColumns rows of x of them stay in L1
constexpr int kTileRows = 4, kTileColumns = 6;
constexpr int64_t kPanelBytes = 512 << 10;  // of bfloat16: half of an L2 cache of 1 MiB
constexpr int64_t kTaskBytes = 96 << 10;    // of stored weights: what a thread takes at a time when decoding

inline int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

inline int64_t row_bytes(const LinearArgs& a) {
  return a.kind == WeightKind::kBfloat16 ? 2 * a.k : a.kind == WeightKind::kInt8 ? a.k : a.k / 2;
}

// The scales of rows [first, last) as float32: where they lie, or converted into a thread's buffer.
struct Scales {
  const float* values;
  int64_t stride;  // floats from a row to the next; 0 where all rows share theirs
};

inline Scales scales_of(const LinearArgs& a, int64_t first, int64_t last) {
  if (a.kind == WeightKind::kBfloat16) return {nullptr, 0};
  const int64_t groups = a.k / a.group;
  const bool shared = a.scale_rows == 1;
  const int64_t at = shared ? 0 : first * groups, count = shared ? groups : (last - first) * groups;
  if (a.scale_kind == ScaleKind::kFloat32) return {static_cast<const float*>(a.scales) + at, shared ? 0 : groups};
  thread_local AlignedBuffer buffer;
  float* to = static_cast<float*>(buffer.at_least(count * 4));
  const uint16_t* from = static_cast<const uint16_t*>(a.scales) + at;
  const bool is_half = a.scale_kind == ScaleKind::kFloat16;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) store(to + i, is_half ? Isa::load_half(from + i) : load_bf16(from + i));
  for (; i < count; ++i) to[i] = is_half ? half_to_float(from[i]) : bf16_to_float(from[i]);
  return {to, shared ? 0 : groups};
}

inline const uint8_t* row_zeros(const LinearArgs& a, int64_t row) {
  return a.zeros == nullptr || a.scale_rows == 1 ? a.zeros : a.zeros + row * (a.k / a.group);
}

// Readers: begin(a, row, its scales), then for each group begin_group(group) and its chunks of 32 columns, in order.

struct Bfloat16Row {
  const uint16_t* values;
  void begin(const LinearArgs& a, int64_t row, const float*) { values = static_cast<const uint16_t*>(a.values) + row * a.k; }
  void begin_group(int64_t) {}
  Isa::Chunk chunk(int64_t k) const { return Isa::load(values + k); }
  Isa::Chunk part(int64_t k, int64_t count) const { return Isa::load_part(values + k, count); }
};

template <bool kHasZeros>
struct Int8Row {
  const int8_t* values;
  const float* scales;
  const uint8_t* zeros;
  Isa::Scale scale;
  void begin(const LinearArgs& a, int64_t row, const float* row_scales) {
    values = static_cast<const int8_t*>(a.values) + row * a.k;
    scales = row_scales;
    zeros = row_zeros(a, row);
  }
  void begin_group(int64_t group) {
    scale = Isa::scale(scales[group], kHasZeros ? static_cast<float>(static_cast<int8_t>(zeros[group])) : 0.0f);
  }
  Isa::Chunk chunk(int64_t k) const { return Isa::template from_int8<kHasZeros>(values + k, scale); }
  Isa::Chunk part(int64_t k, int64_t count) const {
    int8_t some[32] = {};
    for (int64_t i = 0; i < count; ++i) some[i] = values[k + i];
    return Isa::template from_int8<kHasZeros>(some, scale);
  }
};

// Nibbles in runs of 32 columns, or of a multiple of 64: a chunk is then 16 whole bytes, or one half of 32 bytes.
struct NibbleRow {
  const uint8_t* values;
  const float* scales;
  const uint8_t* zeros;
  const float* codebook;
  Isa::Table table;
  void begin(const LinearArgs& a, int64_t row, const float* row_scales) {
    values = static_cast<const uint8_t*>(a.values) + row * (a.k / 2);
    scales = row_scales;
    zeros = row_zeros(a, row);
    codebook = a.codebook;
  }
  void begin_group(int64_t group) {
    table = codebook ? Isa::table_of(codebook, scales[group])
                     : Isa::table(scales[group], zeros ? static_cast<float>(zeros[group]) : 8.0f);
  }
};

// Inlined always: GCC drops calls of a function that only prefetches, which looks as if it did nothing.
inline __attribute__((always_inline)) void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// What a walk over R rows side by side asks memory for, ahead of itself: bytes in the order they lie in, not as it reads
// them. Interleaved short rows defeat the prefetchers of some processors (Zen 4 reads them at half its speed).
struct Fetch {
  const char* at = nullptr;  // null: nothing is fetched
  int64_t left = INT64_MAX, run = INT64_MAX, skip = 0;  // bytes left of this run, in a run, between two of them

  // Beyond the R whole rows of W from `row` on.
  static Fetch beyond(const LinearArgs& a, int64_t row, int64_t rows) {
    constexpr int64_t kLeast = 4 << 10;  // and by whole tiles
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

// use(k, count, w) for the chunks w of R rows at columns [k, k + count), in order, over columns [k0, k1); k0 is a
// multiple of 32 and of the group.
template <typename Row, int R, typename Use>
inline __attribute__((always_inline)) void walk(const LinearArgs& a, Row (&rows)[R], int64_t k0, int64_t k1,
                                                Fetch fetch, Use&& use) {
  if constexpr (std::is_same_v<Row, NibbleRow>) {
    // All columns of such rows are walked at once.
    if (const int64_t dealt = dealt_columns(a)) walk_dealt(a, rows, k0 = dealt, fetch, use);
  }
  int64_t group = k0 == 0 ? 0 : k0 / a.group;
  for (int64_t g0 = k0; g0 < k1; ++group) {
    const int64_t g1 = std::min(g0 + a.group, k1);
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) rows[r].begin_group(group);
    typename Isa::Chunk w[R];
    if constexpr (std::is_same_v<Row, NibbleRow>) {
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
        fetch.template next<(std::is_same_v<Row, Bfloat16Row> ? 64 : 32) * R>();
        RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = rows[r].chunk(k);
        use(k, 32, w);
      }
      if (k < g1) {  // only at the end of a row: groups are multiples of 32, or all of it
        RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = rows[r].part(k, g1 - k);
        use(k, g1 - k, w);
      }
    }
    g0 = g1;
  }
}

// sums[r][c] += row r of W . row c of x, over columns [k0, k1).
template <typename Row, int R, int C>
inline __attribute__((always_inline)) void dot_tile(const LinearArgs& a, Row (&rows)[R], const uint16_t* x, int64_t k0,
                                                    int64_t k1, Fetch fetch, typename Isa::Sum (&sums)[R][C]) {
  typename Isa::Sum acc[R][C];
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = sums[r][c];
  walk<Row, R>(a, rows, k0, k1, fetch, [&](int64_t k, int64_t count, typename Isa::Chunk(&w)[R]) __attribute__((always_inline)) {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      const auto v = count == 32 ? Isa::load(x + c * a.k + k) : Isa::load_part(x + c * a.k + k, count);
      RYZJAX_UNROLL for (int r = 0; r < R; ++r) acc[r][c] = Isa::dot(acc[r][c], w[r], v);
    }
  });
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = acc[r][c];
}

// out[c * ld + r] = the total of sums[r][c], each by the same tree of additions.
template <int R, int C>
inline void store_totals(const typename Isa::Sum (&sums)[R][C], float* out, int64_t ld) {
  if constexpr (R == 4) {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c)
      Isa::store_totals(sums[0][c], sums[1][c], sums[2][c], sums[3][c], out + c * ld);
  } else {
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      constexpr int kWhole = C / 4 * 4;
      RYZJAX_UNROLL for (int c = 0; c < kWhole; c += 4) {
        float four[4];
        Isa::store_totals(sums[r][c], sums[r][c + 1], sums[r][c + 2], sums[r][c + 3], four);
        RYZJAX_UNROLL for (int i = 0; i < 4; ++i) out[(c + i) * ld + r] = four[i];
      }
      RYZJAX_UNROLL for (int c = kWhole; c < C; ++c) out[c * ld + r] = Isa::total(sums[r][c]);
    }
  }
}

// C columns of y for rows [first, last) of W, all of K at once; `scales` are those of row `first` and on.
template <typename Row, int R, int C>
void whole_rows(const LinearArgs& a, int64_t first, int64_t last, Scales scales) {
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    typename Isa::Sum sums[R][C];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      rows[r].begin(a, n + r, scales.values + (n + r - first) * scales.stride);
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Isa::zero();
    }
    dot_tile<Row, R, C>(a, rows, a.x, 0, a.k, Fetch::beyond(a, n, R), sums);
    store_totals<R, C>(sums, a.out + n, a.n);
  }
  if constexpr (R > 1) {
    if (n < last) whole_rows<Row, 1, C>(a, n, last, {scales.values + (n - first) * scales.stride, scales.stride});
  }
}

template <typename Row>
void decode_rows(const LinearArgs& a, int64_t first, int64_t last) {
  const Scales scales = scales_of(a, first, last);
  switch (a.m) {
#define RYZJAX_CASE(R, C) \
  case C: return whole_rows<Row, R, C>(a, first, last, scales);
    RYZJAX_CASE(4, 1) RYZJAX_CASE(4, 2) RYZJAX_CASE(4, 3) RYZJAX_CASE(4, 4)
    RYZJAX_CASE(3, 5) RYZJAX_CASE(3, 6) RYZJAX_CASE(2, 7) RYZJAX_CASE(2, 8)
#undef RYZJAX_CASE
  }
}

// Rows of W as bfloat16 [rows, k], in `panel`; R at a time.
template <typename Row, int R>
void round_rows(const LinearArgs& a, int64_t first, int64_t last, Scales scales, uint16_t* panel) {
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) rows[r].begin(a, n + r, scales.values + (n + r - first) * scales.stride);
    uint16_t* to = panel + (n - first) * a.k;
    walk<Row, R>(a, rows, 0, a.k, Fetch::beyond(a, n, R), [&](int64_t k, int64_t count, typename Isa::Chunk(&w)[R]) __attribute__((always_inline)) {
      RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
        if (count == 32) {
          Isa::store(to + r * a.k + k, w[r]);
        } else {
          Isa::store_part(to + r * a.k + k, w[r], count);
        }
      }
    });
  }
  if constexpr (R > 1) {
    if (n < last)
      round_rows<Row, 1>(a, n, last, {scales.values + (n - first) * scales.stride, scales.stride}, panel + (n - first) * a.k);
  }
}

// C rows of x against a bfloat16 panel; sums wait in `sums` between slices of K. A panel that `is_cold` is in memory.
template <int C>
void panel_columns(const LinearArgs& panel, bool is_cold, const uint16_t* x, float* out, int64_t ld_out, typename Isa::Sum* sums) {
  const int64_t n = panel.n;
  for (int64_t k0 = 0; k0 < panel.k; k0 += kDepth) {
    const int64_t k1 = k0 + kDepth < panel.k ? k0 + kDepth : panel.k;
    const bool is_first = k0 == 0, is_last = k1 == panel.k;
    auto slice = [&](auto tile_rows, int64_t row) {
      constexpr int R = decltype(tile_rows)::value;
      Bfloat16Row rows[R];
      typename Isa::Sum acc[R][C];
      RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
        rows[r].begin(panel, row + r, nullptr);
        RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = is_first ? Isa::zero() : sums[(row + r) * C + c];
      }
      Fetch fetch;
      if (is_cold) {
        const int64_t slice_bytes = 2 * (k1 - k0);
        const auto* next = reinterpret_cast<const char*>(rows[0].values + R * panel.k + k0);
        fetch = {next, slice_bytes, slice_bytes, 2 * panel.k - slice_bytes};
      }
      dot_tile<Bfloat16Row, R, C>(panel, rows, x, k0, k1, fetch, acc);
      if (is_last) {
        store_totals<R, C>(acc, out + row, ld_out);
      } else {
        RYZJAX_UNROLL for (int r = 0; r < R; ++r)
          RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[(row + r) * C + c] = acc[r][c];
      }
    };
    int64_t row = 0;
    for (; row + kTileRows <= n; row += kTileRows) slice(std::integral_constant<int, kTileRows>{}, row);
    for (; row < n; ++row) slice(std::integral_constant<int, 1>{}, row);
  }
}

template <typename Row>
void panel_rows(const LinearArgs& a, int64_t first, int64_t last, uint16_t* scratch, typename Isa::Sum* sums) {
  LinearArgs panel = a;
  panel.n = last - first;
  panel.group = a.k;
  if constexpr (std::is_same_v<Row, Bfloat16Row>) {
    panel.values = static_cast<const uint16_t*>(a.values) + first * a.k;
  } else {
    round_rows<Row, kTileRows>(a, first, last, scales_of(a, first, last), scratch);
    panel.values = scratch;
  }
  // Columns are dealt out evenly: 8 are two tiles of 4, not one of 6 and one of 2.
  const int64_t tiles = (a.m + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t m = i * a.m / tiles;
    // Only the first tile of columns meets rows that come from memory.
    const bool is_cold = i == 0 && std::is_same_v<Row, Bfloat16Row>;
    const uint16_t* x = a.x + m * a.k;
    float* out = a.out + m * a.n + first;
    switch ((i + 1) * a.m / tiles - m) {
#define RYZJAX_CASE(C) \
  case C: panel_columns<C>(panel, is_cold, x, out, a.n, sums); break;
      RYZJAX_CASE(1) RYZJAX_CASE(2) RYZJAX_CASE(3) RYZJAX_CASE(4) RYZJAX_CASE(5) RYZJAX_CASE(6)
#undef RYZJAX_CASE
    }
  }
}

// Rows of x up to which weights go from memory straight into sums.
inline int64_t decode_limit(const LinearArgs& a) {
  return a.kind == WeightKind::kInt8 ? 8 : 4;
}

// Rows of W that a thread takes at a time; `all` rows are there to be shared, of this matrix and its neighbours.
inline int64_t task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  if (a.m <= decode_limit(a)) {
    // Small matrices are cut finer, so that every thread has some of them.
    const int64_t rows = round_up(std::max<int64_t>(1, kTaskBytes / row_bytes(a)), 8);
    return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), 8));
  }
  const int64_t rows = std::max<int64_t>(kTileRows, kPanelBytes / (2 * a.k) / kTileRows * kTileRows);
  return std::min(rows, std::max<int64_t>(16, round_up((all + 2 * threads.count - 1) / (2 * threads.count), kTileRows)));
}

template <typename Row>
void run_rows(const LinearArgs& a, int64_t first, int64_t last) {
  if (a.m <= decode_limit(a)) return decode_rows<Row>(a, first, last);
  // A thread keeps its buffers: a step runs hundreds of these.
  thread_local AlignedBuffer scratch, sums;
  const bool needs_scratch = !std::is_same_v<Row, Bfloat16Row>;
  const int64_t rows = last - first;
  uint16_t* panel = needs_scratch ? static_cast<uint16_t*>(scratch.at_least(rows * a.k * 2)) : nullptr;
  auto* waiting = static_cast<typename Isa::Sum*>(sums.at_least(rows * kTileColumns * sizeof(typename Isa::Sum)));
  panel_rows<Row>(a, first, last, panel, waiting);
}

// x as `a` reads it: dealt into `buffer` where it must be.
inline const uint16_t* dealt_x(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads) {
  if (!dealt_columns(a)) return a.x;
  auto* to = static_cast<uint16_t*>(buffer.at_least(a.m * a.k * 2));
  constexpr int64_t kRows = 32;  // a task
  parallel_for(threads, (a.m + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t m = task * kRows; m < std::min(a.m, (task + 1) * kRows); ++m) deal_row(a, a.x + m * a.k, to + m * a.k);
  });
  return to;
}

void run_linear(const LinearArgs* given, int64_t count, const Threads& threads) {
  // The calling thread's own: others read what is dealt here while this one waits for them.
  thread_local std::vector<LinearArgs> dealt;
  thread_local std::vector<std::unique_ptr<AlignedBuffer>> buffers;
  dealt.assign(given, given + count);
  for (int64_t i = 0; i < count; ++i) {
    int64_t same = 0;  // matrices of one kind share what they multiply
    while (given[same].kind != given[i].kind || given[same].pack != given[i].pack) ++same;
    if (static_cast<int64_t>(buffers.size()) <= i) buffers.push_back(std::make_unique<AlignedBuffer>());
    dealt[i].x = same < i ? dealt[same].x : dealt_x(given[i], *buffers[i], threads);
  }
  const LinearArgs* const matrices = dealt.data();
  int64_t all = 0;
  for (int64_t i = 0; i < count; ++i) all += matrices[i].n;
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t rows = task_rows(matrices[i], all, threads);
    tasks += (matrices[i].n + rows - 1) / rows;
  }
  parallel_for(threads, tasks, [&](int64_t task) {
    const LinearArgs* a = matrices;
    int64_t rows = task_rows(*a, all, threads);
    for (int64_t here; task >= (here = (a->n + rows - 1) / rows); rows = task_rows(*a, all, threads)) task -= here, ++a;
    const int64_t first = task * rows, last = std::min(a->n, first + rows);
    switch (a->kind) {
      case WeightKind::kBfloat16: return run_rows<Bfloat16Row>(*a, first, last);
      case WeightKind::kInt8:
        return a->zeros ? run_rows<Int8Row<true>>(*a, first, last) : run_rows<Int8Row<false>>(*a, first, last);
      case WeightKind::kNibbles: return run_rows<NibbleRow>(*a, first, last);
    }
  });
}
