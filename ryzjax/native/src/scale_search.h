// The search for the int4 scale of a group (contract: quantize.h).
//
// The lanes of a batch are candidates, so the sum of a candidate's squared errors needs no reduction over lanes, and its
// order is that of the weights for every instruction set. Each lane tries a scale and its negative together: they give
// the same error for every weight that neither clips.
//
// Requires: vectors.h before it.

constexpr float kSmallestNormal = 0x1p-126f;
constexpr int kBatch = 16;  // candidates of a batch, for every instruction set
constexpr int kBatchVectors = kBatch / kWidth;
constexpr int64_t kSumWeights = 64;  // weights that are summed before their sum is added to the total

inline Vec smaller(Vec a, Vec b) { return b < a ? b : a; }
inline Vec magnitude(Vec v) { return (Vec)((UintVec)v & 0x7fffffffu); }

// Rounds to the nearest integer, ties to even, if |x| < 2^22. Larger numbers and infinity stay large.
inline Vec nearest(Vec x) {
  const Vec shift = splat(12582912.0f);  // 1.5 * 2^23
  return (x + shift) - shift;
}

// Rounds positive numbers to the nearest bfloat16, ties to even.
inline Vec nearest_bf16(Vec x) {
  const UintVec bits = (UintVec)x;
  return (Vec)((bits + 0x7fffu + ((bits >> 16) & 1u)) & 0xffff0000u);
}

// Returns the bfloat16 nearest to `peak * factor * step`, or 1 if that is zero or subnormal.
inline float scale_of(float peak, float factor, float step) {
  const float scale = bf16_to_float(float_to_bf16(peak * factor * step));
  return scale < kSmallestNormal ? 1.0f : scale;
}

// The factors in falling order, and the index of each in QuantizeArgs::table. The last factor fills the last batch.
struct Factors {
  float factor[kMaxFactors];
  int32_t index[kMaxFactors];
  const float* table;
  int64_t count, batches;

  Factors(const float* table, int64_t count) : table(table), count(count), batches((count + kBatch - 1) / kBatch) {
    for (int64_t i = 0; i < count; ++i) index[i] = static_cast<int32_t>(i);
    std::stable_sort(index, index + count, [table](int32_t a, int32_t b) { return table[a] > table[b]; });
    for (int64_t i = count; i < batches * kBatch; ++i) index[i] = index[count - 1];
    for (int64_t i = 0; i < batches * kBatch; ++i) factor[i] = table[index[i]];
  }
};

struct CandidateBatch {
  Vec scale[kBatchVectors], inverse[kBatchVectors];
  float unclipped;  // every lane rounds smaller magnitudes to levels from -7 to 7
};

// Adds the squared errors of `count` weights to those of every scale of the batch, and of their negatives.
inline void add_errors(const float* w, int64_t count, const CandidateBatch& batch, Vec* plus, Vec* minus) {
  Vec both[kBatchVectors] = {}, only_plus[kBatchVectors] = {}, only_minus[kBatchVectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    const float size = std::fabs(w[i]);
    if (size < batch.unclipped) {
      RYZJAX_UNROLL for (int v = 0; v < kBatchVectors; ++v) {
        const Vec q = nearest(splat(size) * batch.inverse[v]);
        const Vec error = Isa::fma(q, batch.scale[v], splat(-size));  // q * scale is exact
        both[v] += error * error;
      }
      continue;
    }
    RYZJAX_UNROLL for (int v = 0; v < kBatchVectors; ++v) {
      const Vec q = nearest(splat(size) * batch.inverse[v]);
      const Vec at_most_7 = Isa::fma(smaller(q, splat(7.0f)), batch.scale[v], splat(-size));
      const Vec at_most_8 = Isa::fma(smaller(q, splat(8.0f)), batch.scale[v], splat(-size));
      only_plus[v] += w[i] < 0 ? at_most_8 * at_most_8 : at_most_7 * at_most_7;
      only_minus[v] += w[i] < 0 ? at_most_7 * at_most_7 : at_most_8 * at_most_8;
    }
  }
  RYZJAX_UNROLL for (int v = 0; v < kBatchVectors; ++v) {
    plus[v] += both[v] + only_plus[v];
    minus[v] += both[v] + only_minus[v];
  }
}

// Returns the squared error of the parts of the weights beyond `limit`.
inline float clipping_error(const float* w, int64_t count, float limit) {
  Vec sums = {};
  const int64_t whole = count / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec beyond = larger(magnitude(load(w + i)) - splat(limit), Vec{});
    sums += beyond * beyond;
  }
  return total(sums);
}

// Returns the scale of a group with the least squared error. `peak` is the group's largest magnitude, and `relative` has
// room for the group.
inline float search_scale(const float* w, int64_t group, float peak, const Factors& factors, float* relative) {
  constexpr float kStep = 2.0f / 15.0f;
  if (peak == 0) return 1;
  // Errors are computed for weights near 1, divided by a power of two, so that no square overflows or underflows.
  const uint32_t exponent = std::min<uint32_t>(float_to_bits(peak) >> 23, 253);
  const float unit = bits_to_float((254 - exponent) << 23);
  for (int64_t i = 0; i < group; ++i) relative[i] = w[i] * unit;

  Vec least[kBatchVectors];
  IntVec at[kBatchVectors] = {};
  for (Vec& each : least) each = splat(INFINITY);
  float bound = INFINITY;
  for (int64_t first = 0; first < factors.batches * kBatch; first += kBatch) {
    CandidateBatch batch;
    Vec raw[kBatchVectors];
    for (int v = 0; v < kBatchVectors; ++v) {
      raw[v] = nearest_bf16(splat(peak) * load(factors.factor + first + v * kWidth) * splat(kStep));
      const Vec scale = raw[v] < splat(kSmallestNormal) ? splat(1.0f) : raw[v];
      batch.scale[v] = scale * splat(unit);
      batch.inverse[v] = splat(1.0f) / batch.scale[v];
    }
    const float most = raw[0][0] * unit, smallest = raw[kBatchVectors - 1][kWidth - 1] * unit;
    // The scales of this and of all later batches are smaller. If clipping alone costs more than the best candidate so
    // far, none of them can win. The margin is far above the rounding of the sums.
    if (first > 0 && clipping_error(relative, group, 8 * most) > 1.001f * bound) break;
    batch.unclipped = 7.49f * smallest;
    Vec plus[kBatchVectors] = {}, minus[kBatchVectors] = {};
    for (int64_t i = 0; i < group; i += kSumWeights)
      add_errors(relative + i, std::min(kSumWeights, group - i), batch, plus, minus);
    for (int v = 0; v < kBatchVectors; ++v) {
      IntVec index;
      std::memcpy(&index, factors.index + first + v * kWidth, sizeof index);
      const auto keep = [&](Vec error, IntVec candidate) {
        const IntVec wins = (error < least[v]) | ((error == least[v]) & (candidate < at[v]));
        least[v] = wins ? error : least[v];
        at[v] = wins ? candidate : at[v];
      };
      keep(plus[v], index);
      keep(minus[v], index + static_cast<int32_t>(factors.count));
      bound = std::min(bound, -largest(-least[v]));
    }
  }
  float best = INFINITY;
  int32_t candidate = 0;
  for (int v = 0; v < kBatchVectors; ++v)
    for (int lane = 0; lane < kWidth; ++lane)
      if (least[v][lane] < best || (least[v][lane] == best && at[v][lane] < candidate)) {
        best = least[v][lane];
        candidate = at[v][lane];
      }
  const float scale = scale_of(peak, factors.table[candidate % factors.count], kStep);
  return candidate < factors.count ? scale : -scale;
}
