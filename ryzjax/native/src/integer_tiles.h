// The loops of y = x W^T with x quantized to int8 (contract: linear.h).
//
// Requires: integer_rows.h before it.
//
//   m <= kFusedColumns   The units of a block of W are unpacked in registers and multiplied with all rows of x.
//   larger m             The units of a panel of W are unpacked into the L2 cache once, and multiplied there with tiles
//                        of kFusedColumns rows of x.
//
// Both compute an element of y by the same operations: an exact int32 sum for each unit, times the two scales, added in
// float32 in the order in which the units are stored. The bits therefore depend neither on m nor on the tile.

constexpr int kFusedColumns = 8;
constexpr int64_t kIntegerPanelBytes = 256 << 10;  // of unpacked weights
constexpr int64_t kIntegerUnitBytes = kUnit * kWidth;  // of a block

// C rows of x, and the sums of a block with them.
template <int C>
struct IntegerColumns {
  const int8_t* values;
  const float *scales, *sums;
  int64_t row_values, row_units;  // numbers and units of a row of x
  Vec acc[C];

  explicit IntegerColumns(const QuantizedRows& x, int64_t m)
      : values(x.values + m * x.units * kUnit), scales(x.scales + m * x.units), sums(x.sums + m * x.units),
        row_values(x.units * kUnit), row_units(x.units) {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) acc[c] = Vec{};
  }

  template <typename Format>
  inline __attribute__((always_inline)) void add(int64_t unit, int64_t group, const RowBlock& block,
                                                 const typename Isa::Integer::Bytes (&w)[kUnitVectors]) {
    using Integer = Isa::Integer;
    const Vec scale = load(block.scales + group * kWidth);
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      const int8_t* const x = values + c * row_values + unit * kUnit;
      const int64_t at = c * row_units + unit;
      Vec sum = Format::is_signed ? Integer::dot_signed(w, x) : Integer::dot_unsigned(w, x);
      if constexpr (Format::is_signed && Integer::kBias != 0) sum = Isa::fma(splat(-Integer::kBias), splat(sums[at]), sum);
      if constexpr (Format::zeros == Zeros::kEight) sum = Isa::fma(splat(-8.0f), splat(sums[at]), sum);
      if constexpr (Format::zeros == Zeros::kStored)
        sum = Isa::fma(-load(block.zeros + group * kWidth), splat(sums[at]), sum);
      acc[c] = Isa::fma(sum, scale * splat(scales[at]), acc[c]);
    }
  }

  // Stores the sums of `rows` rows of W into out [C, ld].
  void store_to(float* out, int64_t ld, int64_t rows) const {
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      if (rows == kWidth) {
        store(out + c * ld, acc[c]);
      } else {
        std::memcpy(out + c * ld, &acc[c], rows * 4);
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
    const float* const scales = scales_.values + (row - first_) * scales_.stride;
    for (int64_t r = 0; r < kWidth; ++r)
      for (int64_t g = 0; g < groups_; ++g)
        floats_[g * kWidth + r] = r < count ? scales[r * scales_.stride + g] * code_scale_ : 0.0f;
    if (a_.zeros != nullptr) {
      float* const zeros = floats_ + groups_ * kWidth;
      for (int64_t r = 0; r < kWidth; ++r) {
        const uint8_t* const from = row_zeros(a_, row + std::min(r, count - 1));
        for (int64_t g = 0; g < groups_; ++g)
          zeros[g * kWidth + r] =
              a_.kind == WeightKind::kInt8 ? static_cast<float>(static_cast<int8_t>(from[g])) : from[g];
      }
      block.zeros = zeros;
    }
    // A block is read in whole units of whole rows. Where the matrix has no such, it is read from a padded copy.
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
    const RowBlock block = blocks.at(row);
    IntegerColumns<C> columns(x, 0);
    // Ahead of the rows as they are stored: the loads below walk kWidth of them side by side.
    Fetch fetch = Fetch::beyond(a, row, kWidth);
    each_unit<Format>(a, block, [&](int64_t unit, int64_t group, auto& w) __attribute__((always_inline)) {
      fetch.template next<kIntegerUnitBytes / (Format::is_nibbles ? 2 : 1)>();
      columns.template add<Format>(unit, group, block, w);
    });
    columns.store_to(a.out + row, a.n, std::min<int64_t>(kWidth, last - row));
  }
}

template <typename Format>
void integer_panel(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  using Bytes = typename Isa::Integer::Bytes;
  thread_local AlignedBuffer memory, float_memory;
  const int64_t units = x.units, blocks = (last - first + kWidth - 1) / kWidth, groups = a.k / a.group;
  auto* const panel = static_cast<Bytes*>(memory.at_least(blocks * units * kIntegerUnitBytes));
  const int64_t block_floats = 2 * groups * kWidth;
  float* const floats = static_cast<float*>(float_memory.at_least(blocks * block_floats * 4));
  thread_local std::vector<int32_t> order, group_of;  // of the units as they are stored
  order.clear(), group_of.clear();
  RowBlocks source(a, first, last);
  for (int64_t b = 0; b < blocks; ++b) {
    const RowBlock block = source.at(first + b * kWidth);
    std::memcpy(floats + b * block_floats, block.scales, (block.zeros ? 2 : 1) * groups * kWidth * 4);
    Bytes* to = panel + b * units * kUnitVectors;
    each_unit<Format>(a, block, [&](int64_t unit, int64_t group, auto& w) __attribute__((always_inline)) {
      RYZJAX_UNROLL for (int i = 0; i < kUnitVectors; ++i) to[i] = w[i];
      to += kUnitVectors;
      if (b == 0) order.push_back(static_cast<int32_t>(unit)), group_of.push_back(static_cast<int32_t>(group));
    });
  }
  const auto tile = [&](auto count, int64_t m) {
    constexpr int C = decltype(count)::value;
    for (int64_t b = 0; b < blocks; ++b) {
      const float* const scales = floats + b * block_floats;
      const RowBlock block = {nullptr, 0, scales, scales + groups * kWidth, {}};
      IntegerColumns<C> columns(x, m);
      const Bytes* from = panel + b * units * kUnitVectors;
      for (int64_t i = 0; i < units; ++i, from += kUnitVectors) {
        Bytes w[kUnitVectors];
        RYZJAX_UNROLL for (int j = 0; j < kUnitVectors; ++j) w[j] = from[j];
        columns.template add<Format>(order[i], group_of[i], block, w);
      }
      const int64_t row = first + b * kWidth;
      columns.store_to(a.out + m * a.n + row, a.n, std::min<int64_t>(kWidth, last - row));
    }
  };
  int64_t m = 0;
  for (; m + kFusedColumns <= a.m; m += kFusedColumns) tile(std::integral_constant<int, kFusedColumns>(), m);
  for (; m + 4 <= a.m; m += 4) tile(std::integral_constant<int, 4>(), m);
  for (; m < a.m; ++m) tile(std::integral_constant<int, 1>(), m);
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
  integer_panel<Format>(a, x, first, last);
}

// The number of rows of W in a task.
inline int64_t integer_task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  const int64_t bytes = a.m <= kFusedColumns ? kTaskBytes / row_bytes(a) : kIntegerPanelBytes / (units_of(a) * kUnit);
  const int64_t rows = std::max<int64_t>(kWidth, bytes / kWidth * kWidth);
  return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), kWidth));
}

inline void run_integer_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  if (a.kind == WeightKind::kInt8) {
    return a.zeros ? integer_rows<IntegerFormat<false, true, Zeros::kStored>>(a, x, first, last)
                   : integer_rows<IntegerFormat<false, true, Zeros::kNone>>(a, x, first, last);
  }
  if (a.codebook) return integer_rows<IntegerFormat<true, true, Zeros::kNone>>(a, x, first, last);
  return a.zeros ? integer_rows<IntegerFormat<true, false, Zeros::kStored>>(a, x, first, last)
                 : integer_rows<IntegerFormat<true, false, Zeros::kEight>>(a, x, first, last);
}
