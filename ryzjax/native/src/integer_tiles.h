// The loops of y = x W^T with x quantized to int8 (contract: linear.h).
//
// Requires: integer_rows.h and product_tiles.h before it.
//
//   m <= kFusedColumns   The units of a block of W are unpacked in registers and multiplied with all rows of x.
//   larger m             The units of a panel of W are unpacked into the L2 cache once, and multiplied there with tiles
//                        of Isa::Integer::kBlocks blocks and Isa::Integer::kColumns rows of x.
//
// Both compute an element of y by the same operations: an exact int32 sum for each unit, or each of its two groups, times the two scales, added in
// float32 in the order in which the units are stored. The bits therefore depend neither on m nor on the tile.

constexpr int kFusedColumns = 8;
constexpr int64_t kIntegerPanelBytes = 256 << 10;  // of unpacked weights
constexpr int64_t kIntegerUnitBytes = kUnit * kWidth;  // of a block

// The sums of B blocks of W with C rows of x.
template <int B, int C>
struct IntegerSums {
  const int8_t* values;
  const float *scales, *sums, *half_sums;
  int64_t row_values, row_units;  // numbers and units of a row of x
  Vec acc[B][C];

  IntegerSums(const QuantizedRows& x, int64_t m)
      : values(x.values + m * x.units * kUnit), scales(x.scales + m * x.units), sums(x.sums + m * x.units),
        half_sums(x.half_sums + 2 * m * x.units), row_values(x.units * kUnit), row_units(x.units) {
    RYZJAX_UNROLL for (int b = 0; b < B; ++b) RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[b][c] = Vec{};
  }

  // Adds a unit. w[b] are the kUnitVectors vectors of block b.
  template <typename Format>
  inline __attribute__((always_inline)) void add(int64_t unit, int64_t group, const RowBlock (&blocks)[B],
                                                 const typename Isa::Integer::Bytes* const (&w)[B]) {
    RYZJAX_UNROLL for (int part = 0; part < Format::parts; ++part) add_part<Format>(unit, part, group + part, blocks, w);
  }

  // Adds the columns of a unit that belong to `group`: all, or one half of them.
  template <typename Format>
  inline __attribute__((always_inline)) void add_part(int64_t unit, int part, int64_t group, const RowBlock (&blocks)[B],
                                                      const typename Isa::Integer::Bytes* const (&w)[B]) {
    using Integer = Isa::Integer;
    using Dot = typename Integer::template Dot<Format::is_signed>;
    constexpr int kVectors = kUnitVectors / Format::parts;
    const int8_t* const x = values + unit * kUnit + part * 4 * kVectors;
    const auto scaled = [&](int b, int c, typename Dot::Sum products) __attribute__((always_inline)) {
      const int64_t at = c * row_units + unit;
      const Vec x_sum = splat(Format::parts == 1 ? sums[at] : half_sums[2 * at + part]);
      Vec sum = Dot::total(products);
      if constexpr (Format::is_signed && Integer::kBias != 0) sum = Isa::fma(splat(-Integer::kBias), x_sum, sum);
      if constexpr (Format::zeros == Zeros::kEight) sum = Isa::fma(splat(-8.0f), x_sum, sum);
      if constexpr (Format::zeros == Zeros::kStored) sum = Isa::fma(-load(blocks[b].zeros + group * kWidth), x_sum, sum);
      const Vec scale = load(blocks[b].scales + group * kWidth) * splat(scales[c * row_units + unit]);
      acc[b][c] = Isa::fma(sum, scale, acc[b][c]);
    };
    if constexpr (B == 1) {
      // The eight vectors of W stay in registers.
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
        typename Dot::Sum products = Dot::zero();
        RYZJAX_UNROLL for (int i = 0; i < kVectors; ++i)
          products = Dot::add(products, w[0][part * kVectors + i], Integer::four_columns(x + c * row_values + 4 * i));
        scaled(0, c, products);
      }
    } else {
      // The sums stay in registers.
      typename Dot::Sum products[B][C];
      RYZJAX_UNROLL for (int b = 0; b < B; ++b) RYZJAX_UNROLL for (int c = 0; c < C; ++c) products[b][c] = Dot::zero();
      RYZJAX_UNROLL for (int i = 0; i < kVectors; ++i) {
        typename Integer::Bytes columns[C];
        RYZJAX_UNROLL for (int c = 0; c < C; ++c) columns[c] = Integer::four_columns(x + c * row_values + 4 * i);
        RYZJAX_UNROLL for (int b = 0; b < B; ++b)
          RYZJAX_UNROLL for (int c = 0; c < C; ++c)
            products[b][c] = Dot::add(products[b][c], w[b][part * kVectors + i], columns[c]);
      }
      RYZJAX_UNROLL for (int b = 0; b < B; ++b) RYZJAX_UNROLL for (int c = 0; c < C; ++c) scaled(b, c, products[b][c]);
    }
  }

  // Stores the sums with block b of `rows` rows of W into out [C, ld].
  void store_to(int b, float* out, int64_t ld, int64_t rows) const {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      if (rows == kWidth) {
        store(out + c * ld, acc[b][c]);
      } else {
        std::memcpy(out + c * ld, &acc[b][c], rows * 4);
      }
    }
  }
};

// Prepares blocks of a range of rows: scales and zero points by group, and the last rows padded to a whole block.
class RowBlocks {
 public:
  RowBlocks(const LinearArgs& a, int64_t first, int64_t last) : a_(a), first_(first), last_(last) {
    groups_ = a.k / a.group;
    scales_ = scales_of(a, first, last);
    floats_ = static_cast<float*>(space().floats.at_least(2 * groups_ * kWidth * 4));
    if (a.codebook != nullptr) codes_ = Isa::Integer::table(codes_of(a.codebook, code_scale_).data());
  }

  // Returns the block of the rows from `row` on.
  RowBlock at(int64_t row) {
    const int64_t count = std::min<int64_t>(kWidth, last_ - row), bytes = row_bytes(a_);
    RowBlock block = {static_cast<const uint8_t*>(a_.values) + row * bytes, bytes, floats_, nullptr, codes_};
    by_group(scales_.values + (row - first_) * scales_.stride, count, floats_);
    if (a_.codebook != nullptr)
      for (int64_t i = 0; i < groups_ * kWidth; ++i) floats_[i] *= code_scale_;
    if (a_.zeros != nullptr) {
      float* const zeros = floats_ + groups_ * kWidth;
      if (scales_.zeros != nullptr) by_group(scales_.zeros + (row - first_) * scales_.stride, count, zeros);
      for (int64_t r = 0; scales_.zeros == nullptr && r < kWidth; ++r) {
        const uint8_t* const from = row_zeros(a_, row + std::min(r, count - 1));
        for (int64_t g = 0; g < groups_; ++g)
          zeros[g * kWidth + r] =
              a_.kind == WeightKind::kInt8 ? static_cast<float>(static_cast<int8_t>(from[g])) : from[g];
      }
      block.zeros = zeros;
    }
    // A block is read in whole units and kWidth rows. If the matrix ends before that, a padded copy is read.
    if (count < kWidth || (a_.kind == WeightKind::kInt8 && a_.k % kUnit)) {
      const int64_t stride = round_up(bytes, kUnit);
      auto* const copy = static_cast<uint8_t*>(space().rows.at_least(kWidth * stride));
      std::memset(copy, 0, kWidth * stride);
      for (int64_t r = 0; r < count; ++r) std::memcpy(copy + r * stride, block.values + r * bytes, bytes);
      block.values = copy, block.stride = stride;
    }
    return block;
  }

 private:
  // Writes the scales or zero points of `count` rows to `to` [groups, kWidth], with 0 for rows past them.
  void by_group(const float* from, int64_t count, float* to) const {
    // Squares of kWidth rows and kWidth groups are transposed in registers.
    const int64_t squares = count == kWidth && scales_.stride != 0 ? groups_ / kWidth * kWidth : 0;
    if (squares > 0) transpose(from, kWidth, squares, scales_.stride, to, kWidth);
    for (int64_t r = 0; r < kWidth; ++r)
      for (int64_t g = squares; g < groups_; ++g) to[g * kWidth + r] = r < count ? from[r * scales_.stride + g] : 0.0f;
  }

  struct Space {
    AlignedBuffer floats, rows;
  };
  static Space& space() {
    thread_local Space mine;
    return mine;
  }
  // A codebook as multiples of 1/127 of its largest magnitude, which `scale` returns.
  static std::array<int8_t, 16> codes_of(const float* codebook, float& scale) {
    float peak = 0;
    for (int i = 0; i < 16; ++i) peak = std::max(peak, std::abs(codebook[i]));
    scale = peak > 0 ? peak / 127.0f : 1.0f;
    std::array<int8_t, 16> codes;
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<int8_t>(std::nearbyint(codebook[i] / scale));
    return codes;
  }

  const LinearArgs& a_;
  const int64_t first_, last_;
  int64_t groups_;
  Scales scales_;
  float* floats_;
  float code_scale_ = 1.0f;
  Isa::Integer::Bytes codes_ = {};
};

// Multiplies rows [first, last) of W with C rows of x.
template <typename Format, int C>
void fused_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  RowBlocks blocks(a, first, last);
  for (int64_t row = first; row < last; row += kWidth) {
    const RowBlock block[1] = {blocks.at(row)};
    IntegerSums<1, C> sums(x, 0);
    Fetch fetch = Fetch::beyond(a, row, kWidth);
    each_unit<Format>(a, block[0], [&](int64_t unit, int64_t group, auto& w) __attribute__((always_inline)) {
      fetch.template next<kIntegerUnitBytes / (Format::is_nibbles ? 2 : 1)>();
      sums.template add<Format>(unit, group, block, {w});
    });
    sums.store_to(0, a.out + row, a.n, std::min<int64_t>(kWidth, last - row));
  }
}

// The unpacked units of some blocks of W, with their scales and zero points.
struct IntegerPanel {
  Isa::Integer::Bytes* values;  // [blocks, units, kUnitVectors]
  float* floats;                // [blocks, 2, groups, kWidth]
  int64_t units, groups;
  const std::vector<int32_t>*order, *group_of;  // the unit and the group at each place of `values`

  RowBlock block(int64_t b) const {
    const float* const scales = floats + b * 2 * groups * kWidth;
    return {nullptr, 0, scales, scales + groups * kWidth, Isa::Integer::Bytes{}};
  }
};

template <typename Format>
IntegerPanel unpack_panel(const LinearArgs& a, int64_t units, int64_t first, int64_t last) {
  using Bytes = Isa::Integer::Bytes;
  thread_local AlignedBuffer memory, float_memory;
  thread_local std::vector<int32_t> order, group_of;
  order.clear(), group_of.clear();
  const int64_t blocks = (last - first + kWidth - 1) / kWidth, groups = a.k / a.group, floats = 2 * groups * kWidth;
  const IntegerPanel panel = {static_cast<Bytes*>(memory.at_least(blocks * units * kIntegerUnitBytes)),
                              static_cast<float*>(float_memory.at_least(blocks * floats * 4)), units, groups, &order,
                              &group_of};
  RowBlocks source(a, first, last);
  for (int64_t b = 0; b < blocks; ++b) {
    const RowBlock block = source.at(first + b * kWidth);
    std::memcpy(panel.floats + b * floats, block.scales, (block.zeros ? floats : floats / 2) * 4);
    Bytes* to = panel.values + b * units * kUnitVectors;
    each_unit<Format>(a, block, [&](int64_t unit, int64_t group, auto& w) __attribute__((always_inline)) {
      RYZJAX_UNROLL for (int i = 0; i < kUnitVectors; ++i) to[i] = w[i];
      to += kUnitVectors;
      if (b == 0) order.push_back(static_cast<int32_t>(unit)), group_of.push_back(static_cast<int32_t>(group));
    });
  }
  return panel;
}

// Multiplies B blocks of a panel, from block b on, with C rows of x, from row m on.
template <typename Format, int B, int C>
void integer_tile(const LinearArgs& a, const QuantizedRows& x, const IntegerPanel& panel, int64_t b, int64_t m,
                  int64_t first, int64_t last) {
  RowBlock blocks[B];
  const Isa::Integer::Bytes* w[B];
  RYZJAX_UNROLL for (int i = 0; i < B; ++i) {
    blocks[i] = panel.block(b + i);
    w[i] = panel.values + (b + i) * panel.units * kUnitVectors;
  }
  const int32_t* const order = panel.order->data();
  const int32_t* const group_of = panel.group_of->data();
  IntegerSums<B, C> sums(x, m);
  for (int64_t i = 0; i < panel.units; ++i) {
    sums.template add<Format>(order[i], group_of[i], blocks, w);
    RYZJAX_UNROLL for (int j = 0; j < B; ++j) w[j] += kUnitVectors;
  }
  RYZJAX_UNROLL for (int i = 0; i < B; ++i) {
    const int64_t row = first + (b + i) * kWidth;
    sums.store_to(i, a.out + m * a.n + row, a.n, std::min<int64_t>(kWidth, last - row));
  }
}

template <typename Format>
void integer_panel_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  constexpr int kBlocks = Isa::Integer::kBlocks, kColumns = Isa::Integer::kColumns;
  const IntegerPanel panel = unpack_panel<Format>(a, x.units, first, last);
  const int64_t blocks = (last - first + kWidth - 1) / kWidth;
  const auto columns = [&](auto count, int64_t m) {
    constexpr int C = decltype(count)::value;
    int64_t b = 0;
    for (; b + kBlocks <= blocks; b += kBlocks) integer_tile<Format, kBlocks, C>(a, x, panel, b, m, first, last);
    for (; b < blocks; ++b) integer_tile<Format, 1, C>(a, x, panel, b, m, first, last);
  };
  int64_t m = 0;
  for (; m + kColumns <= a.m; m += kColumns) columns(std::integral_constant<int, kColumns>(), m);
  if constexpr (kColumns > 4)
    for (; m + 4 <= a.m; m += 4) columns(std::integral_constant<int, 4>(), m);
  for (; m < a.m; ++m) columns(std::integral_constant<int, 1>(), m);
}

template <typename Format>
void integer_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  switch (a.m) {
#define RYZJAX_CASE(C) \
  case C: return fused_rows<Format, C>(a, x, first, last);
    RYZJAX_CASE(1) RYZJAX_CASE(2) RYZJAX_CASE(3) RYZJAX_CASE(4)
    RYZJAX_CASE(5) RYZJAX_CASE(6) RYZJAX_CASE(7) RYZJAX_CASE(8)
#undef RYZJAX_CASE
  }
  integer_panel_rows<Format>(a, x, first, last);
}

// The number of rows of W in a task.
inline int64_t integer_task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  const int64_t bytes = a.m <= kFusedColumns ? kTaskBytes / row_bytes(a) : kIntegerPanelBytes / (units_of(a) * kUnit);
  const int64_t rows = std::max<int64_t>(kWidth, bytes / kWidth * kWidth);
  return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), kWidth));
}

inline void run_integer_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  if (is_halved(a)) {
    return a.zeros ? integer_rows<IntegerFormat<false, true, Zeros::kStored, true>>(a, x, first, last)
                   : integer_rows<IntegerFormat<false, true, Zeros::kNone, true>>(a, x, first, last);
  }
  if (a.kind == WeightKind::kInt8) {
    return a.zeros ? integer_rows<IntegerFormat<false, true, Zeros::kStored>>(a, x, first, last)
                   : integer_rows<IntegerFormat<false, true, Zeros::kNone>>(a, x, first, last);
  }
  if (a.codebook) return integer_rows<IntegerFormat<true, true, Zeros::kNone>>(a, x, first, last);
  return a.zeros ? integer_rows<IntegerFormat<true, false, Zeros::kStored>>(a, x, first, last)
                 : integer_rows<IntegerFormat<true, false, Zeros::kEight>>(a, x, first, last);
}
