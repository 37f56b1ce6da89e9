// The loops of y = x W^T (contract: linear.h).
//
// Requires: weight_rows.h before it. Defines `kFloats`. There are two loops:
//
//   m <= decode_limit   Up to 4 rows of W are read at a time, as parallel streams, and multiplied by all of x. Weights
//                       become bfloat16 in registers.
//   larger m            A panel of rows of W becomes bfloat16 in the L2 cache, and is then multiplied by all of x in
//                       tiles of at most 4 rows of W x 6 rows of x.

constexpr int64_t kDepth = 2048;  // columns of W that a tile multiplies at a time: so many of kTileColumns rows of x stay in L1
constexpr int kTileRows = 4, kTileColumns = 6;
constexpr int64_t kPanelBytes = 512 << 10;  // of a bfloat16 panel: half of an L2 cache of 1 MiB

// sums[r][c] += (row r of W) . (row c of x), over columns [k0, k1).
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

// out[c * ld + r] = total of sums[r][c]. Every total adds in the same order.
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

// Multiplies rows [first, last) of W by C rows of x, over all columns at once. `scales` starts at row `first`.
template <typename Row, int R, int C>
void whole_rows(const LinearArgs& a, int64_t first, int64_t last, Scales scales) {
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    typename Isa::Sum sums[R][C];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      rows[r].begin(a, n + r, scales.from(n + r - first));
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Isa::zero();
    }
    dot_tile<Row, R, C>(a, rows, a.x, 0, a.k, Fetch::beyond(a, n, R), sums);
    store_totals<R, C>(sums, a.out + n, a.n);
  }
  if constexpr (R > 1) {
    if (n < last) whole_rows<Row, 1, C>(a, n, last, scales.from(n - first));
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

// Writes rows [first, last) of W as bfloat16 [rows, k] to `panel`, R rows at a time. `scales` starts at row `first`.
template <typename Row, int R>
void dequantize_rows(const LinearArgs& a, int64_t first, int64_t last, Scales scales, uint16_t* panel) {
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) rows[r].begin(a, n + r, scales.from(n + r - first));
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
    if (n < last) dequantize_rows<Row, 1>(a, n, last, scales.from(n - first), panel + (n - first) * a.k);
  }
}

// Multiplies a bfloat16 panel by C rows of x. `sums` holds the sums between slices of kDepth columns. `is_cold` says
// that the panel is read from memory rather than from the L2 cache, so that it is worth prefetching.
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
        rows[r].begin(panel, row + r, {});
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
    dequantize_rows<Row, kTileRows>(a, first, last, scales_of(a, first, last), scratch);
    panel.values = scratch;
  }
  // Rows of x are split evenly: 8 become two tiles of 4, not one of 6 and one of 2.
  const int64_t tiles = (a.m + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t m = i * a.m / tiles;
    // Only the first tile reads the rows of W from memory. Dequantized rows are in the cache already.
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

// The largest number of rows of x for which weights go from memory straight into sums, without a panel.
inline int64_t decode_limit(const LinearArgs& a) {
  return a.kind == WeightKind::kInt8 ? 8 : 4;
}

// The number of rows of W in a task. `all` is the number of rows of all matrices in the parallel loop.
inline int64_t task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  if (a.m <= decode_limit(a)) {
    // Small matrices are split into smaller tasks, so that every thread gets some.
    const int64_t rows = round_up(std::max<int64_t>(1, kTaskBytes / row_bytes(a)), 8);
    return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), 8));
  }
  const int64_t rows = std::max<int64_t>(kTileRows, kPanelBytes / (2 * a.k) / kTileRows * kTileRows);
  return std::min(rows, std::max<int64_t>(16, round_up((all + 2 * threads.count - 1) / (2 * threads.count), kTileRows)));
}

template <typename Row>
void run_rows(const LinearArgs& a, int64_t first, int64_t last) {
  if (a.m <= decode_limit(a)) return decode_rows<Row>(a, first, last);
  // A thread keeps its buffers, because a step runs hundreds of these products.
  thread_local AlignedBuffer scratch, sums;
  const bool needs_scratch = !std::is_same_v<Row, Bfloat16Row>;
  const int64_t rows = last - first;
  uint16_t* panel = needs_scratch ? static_cast<uint16_t*>(scratch.at_least(rows * a.k * 2)) : nullptr;
  auto* partial_sums = static_cast<typename Isa::Sum*>(sums.at_least(rows * kTileColumns * sizeof(typename Isa::Sum)));
  panel_rows<Row>(a, first, last, panel, partial_sums);
}

inline bool has_float_zeros(const LinearArgs& a) { return a.zeros != nullptr && a.zero_kind == ZeroKind::kFloat16; }

inline void run_int8_rows(const LinearArgs& a, int64_t first, int64_t last) {
  if (is_halved(a)) {
    return a.zeros ? run_rows<Int8Row<RowZeros::kFloat, 2>>(a, first, last)
                   : run_rows<Int8Row<RowZeros::kDefault, 2>>(a, first, last);
  }
  if (a.zeros == nullptr) return run_rows<Int8Row<RowZeros::kDefault, 1>>(a, first, last);
  return has_float_zeros(a) ? run_rows<Int8Row<RowZeros::kFloat, 1>>(a, first, last)
                            : run_rows<Int8Row<RowZeros::kInteger, 1>>(a, first, last);
}

// Returns x in the order of columns that the rows of W are read in: x itself, or a reordered copy in `buffer`.
inline const uint16_t* reordered_x(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads) {
  if (!reordered_columns(a)) return a.x;
  auto* to = static_cast<uint16_t*>(buffer.at_least(a.m * a.k * 2));
  constexpr int64_t kRows = 32;  // of a task
  parallel_for(threads, (a.m + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t m = task * kRows; m < std::min(a.m, (task + 1) * kRows); ++m) reorder_row(a, a.x + m * a.k, to + m * a.k);
  });
  return to;
}

inline void multiply_floats(const LinearArgs& a, int64_t first, int64_t last) {
  switch (a.kind) {
    case WeightKind::kBfloat16: return run_rows<Bfloat16Row>(a, first, last);
    case WeightKind::kInt8: return run_int8_rows(a, first, last);
    case WeightKind::kNibbles:
      return has_float_zeros(a) ? run_rows<NibbleRow<true>>(a, first, last) : run_rows<NibbleRow<false>>(a, first, last);
  }
}

constexpr FloatProducts kFloats{task_rows, reordered_x, multiply_floats};
