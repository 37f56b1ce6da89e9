// Quantizes rows of a matrix (contract: quantize.h).
//
// Requires: vectors.h, norm_rows.h and scale_search.h before it. Groups of any size are processed in whole vectors: a
// group's last vector reads into the next group, and writes codes that the next group overwrites. Buffers of a row are
// therefore one vector longer than the row.

// Reads one row as float32 into `out` [k + kWidth]. Returns the number of weights that are NaN or infinite.
inline int64_t read_row(const QuantizeArgs& a, int64_t row, float* out) {
  const int64_t from = row * a.k, whole = a.k / kWidth * kWidth;
  const auto* half = static_cast<const uint16_t*>(a.w) + from;
  const auto* full = static_cast<const float*>(a.w) + from;
  Vec odd = {};
  const auto keep = [&](int64_t at, Vec v) {
    odd += v - v;  // NaN if a weight is NaN or infinite
    store(out + at, magnitude(v) < splat(kSmallestNormal) ? Vec{} : v);
  };
  switch (a.dtype) {
    case FloatKind::kFloat32:
      for (int64_t i = 0; i < whole; i += kWidth) keep(i, load(full + i));
      break;
    case FloatKind::kBfloat16:
      for (int64_t i = 0; i < whole; i += kWidth) keep(i, load_bf16(half + i));
      break;
    case FloatKind::kFloat16:
      for (int64_t i = 0; i < whole; i += kWidth) keep(i, Isa::load_half(half + i));
      break;
  }
  float last[kWidth] = {};
  for (int64_t i = whole; i < a.k; ++i)
    last[i - whole] = a.dtype == FloatKind::kFloat32    ? full[i]
                      : a.dtype == FloatKind::kBfloat16 ? bf16_to_float(half[i])
                                                        : half_to_float(half[i]);
  keep(whole, load(last));
  if (!std::isnan(total(odd))) return 0;
  int64_t count = 0;
  for (int64_t i = 0; i < a.k; ++i) count += !std::isfinite(out[i]);
  return count;
}

inline float peak_of(const float* w, int64_t count) {
  Vec tops = {};
  const int64_t whole = count / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) tops = larger(tops, magnitude(load(w + i)));
  float peak = largest(tops);
  for (int64_t i = whole; i < count; ++i) peak = std::max(peak, std::fabs(w[i]));
  return peak;
}

inline void store_bytes(int8_t* p, IntVec v) {
  using Bytes = int8_t __attribute__((vector_size(kWidth)));
  const Bytes bytes = __builtin_convertvector(v, Bytes);
  std::memcpy(p, &bytes, sizeof bytes);
}

inline void round_group(const float* w, int64_t group, float scale, float high, int8_t* q) {
  for (int64_t i = 0; i < group; i += kWidth) {
    const Vec level = nearest(load(w + i) / splat(scale));
    store_bytes(q + i, __builtin_convertvector(smaller(larger(level, splat(-high - 1)), splat(high)), IntVec));
  }
}

inline void round_to_nf4(const float* w, int64_t group, float peak, const float* bounds, int8_t* codes) {
  const Vec inverse = splat(peak < kSmallestNormal ? 0.0f : 1.0f / peak);
  for (int64_t i = 0; i < group; i += kWidth) {
    const Vec relative = load(w + i) * inverse;
    IntVec code = {};
    RYZJAX_UNROLL for (int b = 0; b < kBounds; ++b) code -= splat(bounds[b]) < relative;  // a true lane is -1
    store_bytes(codes + i, code);
  }
}

// Packs two codes a byte. `zero` is added to each.
inline void pack_row(const int8_t* codes, int64_t k, int64_t pack, int zero, uint8_t* out) {
  const int64_t half = pack / 2;
  for (int64_t run = 0; run < k; run += pack)
    for (int64_t j = 0; j < half; ++j) {
      const int low = codes[run + j] + zero, high = codes[run + half + j] + zero;
      out[run / 2 + j] = static_cast<uint8_t>(low | high << 4);
    }
}

// Quantizes on the calling thread. Returns the number of weights that are NaN or infinite; their rows are not written.
int64_t quantize(const QuantizeArgs& a) {
  const bool is_int4 = a.kind == QuantizeKind::kInt4;
  const Factors factors(a.table, is_int4 ? a.table_size : 0);
  std::vector<float> row(a.k + kWidth), relative(is_int4 ? a.group : 0);
  std::vector<int8_t> codes(a.k + kWidth);
  const int64_t groups = a.k / a.group;
  int64_t odd = 0;
  for (int64_t r = 0; r < a.rows; ++r) {
    const int64_t found = read_row(a, r, row.data());
    odd += found;
    if (found > 0) continue;
    int8_t* const out = a.kind == QuantizeKind::kInt8 ? static_cast<int8_t*>(a.values) + r * a.k : nullptr;
    for (int64_t g = 0; g < groups; ++g) {
      const float* w = row.data() + g * a.group;
      int8_t* q = codes.data() + g * a.group;
      const float peak = peak_of(w, a.group);
      if (a.kind == QuantizeKind::kNormalFloat4) {
        static_cast<float*>(a.scales)[r * groups + g] = peak;
        round_to_nf4(w, a.group, peak, a.table, q);
        continue;
      }
      const float scale =
          is_int4 ? search_scale(w, a.group, peak, factors, relative.data()) : scale_of(peak, 1.0f, 2.0f / 255.0f);
      static_cast<uint16_t*>(a.scales)[r * groups + g] = float_to_bf16(scale);
      round_group(w, a.group, scale, is_int4 ? 7.0f : 127.0f, q);
    }
    if (out != nullptr) {
      std::memcpy(out, codes.data(), a.k);
    } else {
      pack_row(codes.data(), a.k, a.pack, is_int4 ? 8 : 0, static_cast<uint8_t*>(a.values) + r * a.k / 2);
    }
  }
  return odd;
}
