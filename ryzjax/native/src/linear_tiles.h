// The loops of y = x W^T (contract: linear.h).
//
// Requires: weight_rows.h before it. Defines `kFloats`. There are two loops:
//
//   m <= decode_limit   Up to 4 rows of W are read at a time, as parallel streams, and multiplied by all of x. Weights
//                       become numbers of type X in registers.
//   larger m            A panel of rows of W becomes numbers of type X in the L2 cache, and is then multiplied by all of
//                       x in tiles.
//
// X is bfloat16, or float32 for instruction sets that cannot multiply bfloat16 and would widen it again and again. Rows
// of float32 are padded with zeros to whole chunks. The sums are the same: bfloat16 products are exact in float32.

using X = Isa::X;
constexpr bool kIsWide = std::is_same_v<X, float>;
constexpr int64_t kDepth = 4096 / sizeof(X);  // columns of W that a tile multiplies at a time, which stay in L1 for its rows of x
constexpr int kTileRows = Isa::kTileRows, kTileColumns = Isa::kTileColumns;
constexpr int64_t kPanelBytes = 512 << 10;  // half of an L2 cache of 1 MiB

// The numbers between two rows of the prepared x, and of a panel.
inline int64_t x_stride(const LinearArgs& a) { return kIsWide ? round_up(a.k, 32) : a.k; }

// sums[r][c] += (row r of W) . (row c of x), over columns [k0, k1).
template <typename Row, int R, int C>
inline __attribute__((always_inline)) void dot_tile(const LinearArgs& a, Row (&rows)[R], const X* x, int64_t k0, int64_t k1,
                                                    Fetch fetch, typename Isa::Sum (&sums)[R][C]) {
  const int64_t ld = x_stride(a);
  typename Isa::Sum acc[R][C];
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = sums[r][c];
  walk<Row, R>(a, rows, k0, k1, fetch, [&](int64_t k, int64_t count, typename Isa::Chunk(&w)[R]) __attribute__((always_inline)) {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      const auto v = Isa::load_x(x + c * ld + k, count);
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
void whole_rows(const LinearArgs& a, const X* x, int64_t first, int64_t last, Scales scales) {
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    typename Isa::Sum sums[R][C];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      rows[r].begin(a, n + r, scales.from(n + r - first));
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Isa::zero();
    }
    dot_tile<Row, R, C>(a, rows, x, 0, a.k, Fetch::beyond(a, n, R), sums);
    store_totals<R, C>(sums, a.out + n, a.n);
  }
  if constexpr (R > 1) {
    if (n < last) whole_rows<Row, 1, C>(a, x, n, last, scales.from(n - first));
  }
}

template <typename Row>
void decode_rows(const LinearArgs& a, const X* x, int64_t first, int64_t last) {
  const Scales scales = scales_of(a, first, last);
  switch (a.m) {
#define RYZJAX_CASE(R, C) \
  case C: return whole_rows<Row, std::min(R, Isa::kSums / C), C>(a, x, first, last, scales);
    RYZJAX_CASE(4, 1) RYZJAX_CASE(4, 2) RYZJAX_CASE(4, 3) RYZJAX_CASE(4, 4)
    RYZJAX_CASE(3, 5) RYZJAX_CASE(3, 6) RYZJAX_CASE(2, 7) RYZJAX_CASE(2, 8)
#undef RYZJAX_CASE
  }
}

// Writes rows [first, last) of W to `panel` [rows, x_stride], R rows at a time. `scales` starts at row `first`.
template <typename Row, int R>
void dequantize_rows(const LinearArgs& a, int64_t first, int64_t last, Scales scales, X* panel) {
  const int64_t ld = x_stride(a);
  int64_t n = first;
  for (; n + R <= last; n += R) {
    Row rows[R];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) rows[r].begin(a, n + r, scales.from(n + r - first));
    X* to = panel + (n - first) * ld;
    walk<Row, R>(a, rows, 0, a.k, Fetch::beyond(a, n, R), [&](int64_t k, int64_t count, typename Isa::Chunk(&w)[R]) __attribute__((always_inline)) {
      RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
        Isa::store_x(to + r * ld + k, w[r], count);
      }
    });
  }
  if constexpr (R > 1) {
    if (n < last) dequantize_rows<Row, 1>(a, n, last, scales.from(n - first), panel + (n - first) * ld);
  }
}

// sums[r][c] += (row r of a panel) . (row c of x) over columns [k0, k1). `is_cold` says that the panel is read from memory
// rather than from the L2 cache, so that it is worth prefetching.
template <int R, int C, typename T>
inline void panel_tile(const LinearArgs& panel, const T* rows, const T* x, int64_t k0, int64_t k1, bool is_cold,
                       typename Isa::Sum (&sums)[R][C]) {
  if constexpr (std::is_same_v<T, float>) {
    // A vector at a time, rather than a chunk of four, so that the sums, R vectors and one more fit the registers.
    const int64_t ld = x_stride(panel);
    typename Isa::Sum acc[R][C];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = sums[r][c];
    for (int64_t k = k0; k < round_up(k1, 32); k += kWidth) {
      Vec w[R];
      RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = load(rows + r * ld + k);
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
        const Vec v = load(x + c * ld + k);
        RYZJAX_UNROLL for (int r = 0; r < R; ++r)
          acc[r][c] = (typename Isa::Sum)Isa::fma(w[r], v, (Vec)acc[r][c]);
      }
    }
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = acc[r][c];
  } else {
    Bfloat16Row readers[R];
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) readers[r].values = reinterpret_cast<const uint16_t*>(rows) + r * panel.k;
    Fetch fetch;
    if (is_cold) {
      const int64_t slice_bytes = 2 * (k1 - k0);
      fetch = {reinterpret_cast<const char*>(rows + R * panel.k + k0), slice_bytes, slice_bytes, 2 * panel.k - slice_bytes};
    }
    dot_tile<Bfloat16Row, R, C>(panel, readers, x, k0, k1, fetch, sums);
  }
}

// Multiplies a panel by C rows of x. `sums` holds the sums between slices of kDepth columns.
template <int C>
void panel_columns(const LinearArgs& panel, bool is_cold, const X* x, float* out, int64_t ld_out, typename Isa::Sum* sums) {
  const int64_t n = panel.n;
  for (int64_t k0 = 0; k0 < panel.k; k0 += kDepth) {
    const int64_t k1 = k0 + kDepth < panel.k ? k0 + kDepth : panel.k;
    const bool is_first = k0 == 0, is_last = k1 == panel.k;
    auto slice = [&](auto tile_rows, int64_t row) {
      constexpr int R = decltype(tile_rows)::value;
      typename Isa::Sum acc[R][C];
      RYZJAX_UNROLL for (int r = 0; r < R; ++r)
        RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[r][c] = is_first ? Isa::zero() : sums[(row + r) * C + c];
      const X* const rows = static_cast<const X*>(panel.values) + row * x_stride(panel);
      panel_tile<R, C>(panel, rows, x, k0, k1, is_cold, acc);
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
void panel_rows(const LinearArgs& a, const X* x, int64_t first, int64_t last, X* scratch, typename Isa::Sum* sums) {
  LinearArgs panel = a;
  panel.n = last - first;
  panel.group = a.k;
  if (scratch == nullptr) {
    panel.values = static_cast<const uint16_t*>(a.values) + first * a.k;
  } else {
    dequantize_rows<Row, 4>(a, first, last, scales_of(a, first, last), scratch);
    panel.values = scratch;
  }
  // Rows of x are split evenly: 8 become two tiles of 4, not one of 6 and one of 2.
  const int64_t tiles = (a.m + kTileColumns - 1) / kTileColumns;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t m = i * a.m / tiles;
    // Only the first tile reads the rows of W from memory. A scratch panel is in the cache already.
    const bool is_cold = i == 0 && scratch == nullptr;
    const X* const from = x + m * x_stride(a);
    float* out = a.out + m * a.n + first;
    switch ((i + 1) * a.m / tiles - m) {
#define RYZJAX_CASE(C) \
  case C: panel_columns<std::min(C, kTileColumns)>(panel, is_cold, from, out, a.n, sums); break;
      RYZJAX_CASE(1) RYZJAX_CASE(2) RYZJAX_CASE(3) RYZJAX_CASE(4) RYZJAX_CASE(5) RYZJAX_CASE(6)
#undef RYZJAX_CASE
    }
  }
}

// The largest number of rows of x for which weights go from memory straight into sums, without a panel.
inline int64_t decode_limit(const LinearArgs& a) {
  return kIsWide || a.kind == WeightKind::kInt8 ? 8 : 4;
}

// The number of rows of W in a task. `all` is the number of rows of all matrices in the parallel loop.
inline int64_t task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  if (a.m <= decode_limit(a)) {
    // Small matrices are split into smaller tasks, so that every thread gets some.
    const int64_t rows = round_up(std::max<int64_t>(1, kTaskBytes / row_bytes(a)), 8);
    return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), 8));
  }
  const int64_t rows = std::max<int64_t>(kTileRows, kPanelBytes / (static_cast<int64_t>(sizeof(X)) * a.k) / kTileRows * kTileRows);
  return std::min(rows, std::max<int64_t>(16, round_up((all + 2 * threads.count - 1) / (2 * threads.count), kTileRows)));
}

template <typename Row>
void run_rows(const LinearArgs& a, const X* x, int64_t first, int64_t last) {
  if (a.m <= decode_limit(a)) return decode_rows<Row>(a, x, first, last);
  // A thread keeps its buffers, because a step runs hundreds of these products.
  thread_local AlignedBuffer scratch, sums;
  const bool needs_scratch = kIsWide || !std::is_same_v<Row, Bfloat16Row>;
  const int64_t rows = last - first;
  X* panel = needs_scratch ? static_cast<X*>(scratch.at_least(rows * x_stride(a) * sizeof(X))) : nullptr;
  auto* partial_sums = static_cast<typename Isa::Sum*>(sums.at_least(rows * kTileColumns * sizeof(typename Isa::Sum)));
  panel_rows<Row>(a, x, first, last, panel, partial_sums);
}

inline bool has_float_zeros(const LinearArgs& a) { return a.zeros != nullptr && a.zero_kind == ZeroKind::kFloat16; }

inline void run_int8_rows(const LinearArgs& a, const X* x, int64_t first, int64_t last) {
  if (is_halved(a)) {
    return a.zeros ? run_rows<Int8Row<RowZeros::kFloat, 2>>(a, x, first, last)
                   : run_rows<Int8Row<RowZeros::kDefault, 2>>(a, x, first, last);
  }
  if (a.zeros == nullptr) return run_rows<Int8Row<RowZeros::kDefault, 1>>(a, x, first, last);
  return has_float_zeros(a) ? run_rows<Int8Row<RowZeros::kFloat, 1>>(a, x, first, last)
                            : run_rows<Int8Row<RowZeros::kInteger, 1>>(a, x, first, last);
}

// Copies a row of x as bfloat16 in the order of the blocks of nibbles, or as float32, padded with zeros.
inline void prepare_row(const LinearArgs& a, const uint16_t* from, uint16_t* to) { reorder_row(a, from, to); }
inline void prepare_row(const LinearArgs& a, const uint16_t* from, float* to) {
  int64_t i = 0;
  for (; i + kWidth <= a.k; i += kWidth) store(to + i, load_bf16(from + i));
  for (; i < x_stride(a); ++i) to[i] = i < a.k ? bf16_to_float(from[i]) : 0.0f;
}

// Returns x as the loops above read it: x itself, or a copy in `buffer` that is reordered or widened.
inline const void* prepared_x(const LinearArgs& a, AlignedBuffer& buffer, const Threads& threads) {
  if (!kIsWide && !reordered_columns(a)) return a.x;
  const int64_t ld = x_stride(a);
  auto* const to = static_cast<X*>(buffer.at_least(a.m * ld * sizeof(X)));
  constexpr int64_t kRows = 32;  // of a task
  parallel_for(threads, (a.m + kRows - 1) / kRows, [&](int64_t task) {
    for (int64_t m = task * kRows; m < std::min(a.m, (task + 1) * kRows); ++m) {
      prepare_row(a, a.x + m * a.k, to + m * ld);
    }
  });
  return to;
}

inline void multiply_floats(const LinearArgs& a, const void* prepared, int64_t first, int64_t last) {
  const auto* const x = static_cast<const X*>(prepared);
  switch (a.kind) {
    case WeightKind::kBfloat16: return run_rows<Bfloat16Row>(a, x, first, last);
    case WeightKind::kInt8: return run_int8_rows(a, x, first, last);
    case WeightKind::kNibbles:
      return has_float_zeros(a) ? run_rows<NibbleRow<true>>(a, x, first, last) : run_rows<NibbleRow<false>>(a, x, first, last);
  }
}

constexpr FloatProducts kFloats{task_rows, prepared_x, multiply_floats};
