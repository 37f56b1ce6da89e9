// The loops of y = x W^T with x quantized to int8 (contract: linear.h).
//
// Requires: integer_rows.h and transpose.h before it. Defines `kIntegers`.
//
// Blocks of W are read unit by unit: one block for few rows of x, where reading W takes the time, and kBlocks together for
// more rows. A unit becomes bytes in registers, and is multiplied with up to kRows rows of x before the next one is read.
// The sums of these rows stay in the L1 cache.
//
// An element of y is computed by the same operations for every m: an exact int32 sum for each unit, or for each of its two
// groups, times the two scales, added in float32 in the order in which the units are stored.

constexpr int64_t kRows = 64;    // of x that are multiplied together
constexpr int64_t kFewRows = 8;  // of x, for which one block of W is read at a time
constexpr int kBlocks = Isa::kBlocks;

// Adds the products of a unit, or of one of its groups, with one row of x to the sums of a block. `products` are the exact
// integer sums.
template <typename Format>
inline __attribute__((always_inline)) Vec with_unit(Vec sum, typename Isa::template Dot<Format::is_signed>::Sum products,
                                                    const RowBlock& block, int64_t group, float x_scale, float x_sum) {
  Vec exact = Isa::template Dot<Format::is_signed>::total(products);
  if constexpr (Format::is_signed && Isa::kBias != 0) exact = Isa::fma(splat(-Isa::kBias), splat(x_sum), exact);
  if constexpr (Format::zeros == Zeros::kEight) exact = Isa::fma(splat(-8.0f), splat(x_sum), exact);
  if constexpr (Format::zeros == Zeros::kStored) exact = Isa::fma(-load(block.zeros + group * kWidth), splat(x_sum), exact);
  return Isa::fma(exact, load(block.scales + group * kWidth) * splat(x_scale), sum);
}

// Stores the sums of the first `rows` rows of a block.
inline void store_sums(float* out, Vec sums, int64_t rows) {
  if (rows >= kWidth) return store(out, sums);
  if (rows > 0) std::memcpy(out, &sums, rows * 4);
}

// Prepares blocks of a range of rows: scales and zero points by group, and the last rows padded to a whole block.
class RowBlocks {
 public:
  RowBlocks(const LinearArgs& a, int64_t first, int64_t last) : a_(a), first_(first), last_(last) {
    groups_ = a.k / a.group;
    scales_ = scales_of(a, first, last);
    floats_ = static_cast<float*>(space().floats.at_least(kBlocks * 2 * groups_ * kWidth * 4));
    if (a.codebook != nullptr) codes_ = Isa::table(codes_of(a.codebook, code_scale_).data());
  }

  // Returns the block of the rows from `row` on, which may be past the last one. The memory of a block is in use until
  // the next one with the same number, from 0 to kBlocks - 1.
  RowBlock at(int number, int64_t row) {
    float* const floats = floats_ + number * 2 * groups_ * kWidth;
    const int64_t count = std::max<int64_t>(0, std::min<int64_t>(kWidth, last_ - row)), bytes = row_bytes(a_);
    RowBlock block = {static_cast<const uint8_t*>(a_.values) + row * bytes, bytes, floats, nullptr, codes_};
    by_group(scales_.values + (row - first_) * scales_.stride, count, floats);
    if (a_.codebook != nullptr)
      for (int64_t i = 0; i < groups_ * kWidth; ++i) floats[i] *= code_scale_;
    if (a_.zeros != nullptr) {
      float* const zeros = floats + groups_ * kWidth;
      if (scales_.zeros != nullptr) {
        by_group(scales_.zeros + (row - first_) * scales_.stride, count, zeros);
      } else {
        integers_by_group(row, count, zeros);
      }
      block.zeros = zeros;
    }
    // A block is read in whole units and kWidth rows. If the matrix ends before that, a padded copy is read.
    if (count < kWidth || (a_.kind == WeightKind::kInt8 && a_.k % kUnit)) {
      const int64_t stride = round_up(bytes, kUnit);
      auto* const copy = static_cast<uint8_t*>(space().rows.at_least(kBlocks * kWidth * stride)) + number * kWidth * stride;
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

  // Does the same with the zero points of the rows from `row` on, which are stored as integers.
  void integers_by_group(int64_t row, int64_t count, float* to) const {
    std::fill(to, to + groups_ * kWidth, 0.0f);
    for (int64_t r = 0; r < count; ++r) {
      const uint8_t* const from = row_zeros(a_, row + r);
      for (int64_t g = 0; g < groups_; ++g)
        to[g * kWidth + r] = a_.kind == WeightKind::kInt8 ? static_cast<int8_t>(from[g]) : from[g];
    }
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
  Isa::Bytes codes_ = {};
};

// Multiplies B blocks, which start at `row` of W, with rows [m, m + count) of x. count is at most M.
template <typename Format, int B, int M>
void multiply_blocks(const LinearArgs& a, const QuantizedRows& x, const RowBlock (&blocks)[B], int64_t row, int64_t last,
                     int64_t m, int64_t count) {
  using Dot = typename Isa::template Dot<Format::is_signed>;
  Vec sums[M][B] = {};
  const int64_t rows = M == 1 ? 1 : count;  // a constant, so that a single row's sum stays in a register
  Fetch fetch = Fetch::beyond(a, row, B * kWidth);
  each_unit<Format>(a, blocks, [&](int64_t unit, int64_t group, auto& w) __attribute__((always_inline)) {
    fetch.template next<B * kWidth * kUnit / (Format::is_nibbles ? 2 : 1)>();
    const int64_t at = unit * a.m + m;
    const int8_t* values = x.values + at * kUnit;
    for (int64_t i = 0; i < rows; ++i, values += kUnit) {
      RYZJAX_UNROLL for (int part = 0; part < Format::parts; ++part) {
        constexpr int kVectors = kUnitVectors / Format::parts;
        typename Dot::Sum products[B];
        RYZJAX_UNROLL for (int b = 0; b < B; ++b) products[b] = Dot::zero();
        RYZJAX_UNROLL for (int j = part * kVectors; j < (part + 1) * kVectors; ++j) {
          const Isa::Bytes columns = Isa::four_columns(values + 4 * j);
          RYZJAX_UNROLL for (int b = 0; b < B; ++b) products[b] = Dot::add(products[b], w[b][j], columns);
        }
        const float x_sum = Format::parts == 1 ? x.sums[at + i] : x.half_sums[2 * (at + i) + part];
        RYZJAX_UNROLL for (int b = 0; b < B; ++b)
          sums[i][b] = with_unit<Format>(sums[i][b], products[b], blocks[b], group + part, x.scales[at + i], x_sum);
      }
    }
  });
  for (int64_t i = 0; i < rows; ++i)
    RYZJAX_UNROLL for (int b = 0; b < B; ++b)
      store_sums(a.out + (m + i) * a.n + row + b * kWidth, sums[i][b], last - row - b * kWidth);
}

template <typename Format, int B, int M>
void multiply_rows(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  RowBlocks reader(a, first, last);
  for (int64_t m = 0; m < a.m; m += M)
    for (int64_t row = first; row < last; row += B * kWidth) {
      RowBlock blocks[B];
      RYZJAX_UNROLL for (int b = 0; b < B; ++b) blocks[b] = reader.at(b, row + b * kWidth);
      multiply_blocks<Format, B, M>(a, x, blocks, row, last, m, std::min<int64_t>(M, a.m - m));
    }
}

template <typename Format>
void multiply_format(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  if (a.m == 1) return multiply_rows<Format, 1, 1>(a, x, first, last);
  if (a.m <= kFewRows) return multiply_rows<Format, 1, kRows>(a, x, first, last);
  multiply_rows<Format, Isa::kBlocks, kRows>(a, x, first, last);
}

// The number of rows of W in a task.
inline int64_t integer_task_rows(const LinearArgs& a, int64_t all, const Threads& threads) {
  constexpr int64_t kUnitRows = kBlocks * kWidth;
  const int64_t rows = std::max<int64_t>(kUnitRows, kTaskBytes / row_bytes(a) / kUnitRows * kUnitRows);
  return std::min(rows, round_up((all + 4 * threads.count - 1) / (4 * threads.count), kUnitRows));
}

inline void multiply_integers(const LinearArgs& a, const QuantizedRows& x, int64_t first, int64_t last) {
  if (is_halved(a)) {
    return a.zeros ? multiply_format<IntegerFormat<false, true, Zeros::kStored, true>>(a, x, first, last)
                   : multiply_format<IntegerFormat<false, true, Zeros::kNone, true>>(a, x, first, last);
  }
  if (a.kind == WeightKind::kInt8) {
    return a.zeros ? multiply_format<IntegerFormat<false, true, Zeros::kStored>>(a, x, first, last)
                   : multiply_format<IntegerFormat<false, true, Zeros::kNone>>(a, x, first, last);
  }
  if (a.codebook) return multiply_format<IntegerFormat<true, true, Zeros::kNone>>(a, x, first, last);
  return a.zeros ? multiply_format<IntegerFormat<true, false, Zeros::kStored>>(a, x, first, last)
                 : multiply_format<IntegerFormat<true, false, Zeros::kEight>>(a, x, first, last);
}

constexpr IntegerProducts kIntegers{integer_task_rows, quantize_x, multiply_integers};
