// Slots of the KV cache: conversions of their storage formats, reads, writes and prefetches (contract: attention.h).
//
// Requires: vectors.h, weight_rows.h and norm_rows.h before it.
//
// A slot holds the head_dim numbers of one position, KV head and layer. Slots are numbered in the order of the cache's
// memory.

// Converts a float8 e4m3. NaN becomes 480; the kernels never write NaN.
inline float e4m3_to_float(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7f;
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f
                                    : bits_to_float((magnitude << 20) + (120u << 23));
  return bits & 0x80 ? -value : value;
}

// Rounds to the nearest float8 e4m3, ties to even. |value| must be at most 448.
inline uint8_t float_to_e4m3(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude < (121u << 23))  // below 2^-6: a multiple of 2^-9
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(bits_to_float(magnitude) * 0x1p9f)));
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

inline size_t kv_bytes(KVKind kind) { return kind == KVKind::kFloat32 ? 4 : kind == KVKind::kBfloat16 ? 2 : 1; }

// The index of a slot of this call's layer.
inline int64_t slot_of(const AttentionArgs& a, int64_t page, int64_t head, int64_t offset) {
  return ((a.layer * a.pages + page) * a.kv_heads + head) * a.page_size + offset;
}

// Writes head_dim numbers to a slot, and their scale in int8. The result is that of `write_kv` of ryzjax/ops.
inline void write_slot(const AttentionArgs& a, const float* x, void* cache, void* scales, int64_t head, int64_t slot) {
  const int64_t dim = a.head_dim;
  switch (a.kv_kind) {
    case KVKind::kFloat32: std::memcpy(static_cast<float*>(cache) + slot * dim, x, dim * 4); return;
    case KVKind::kBfloat16:
      for (int64_t d = 0; d < dim; ++d) static_cast<uint16_t*>(cache)[slot * dim + d] = float_to_bf16(x[d]);
      return;
    case KVKind::kInt8: {
      float peak = 0;
      for (int64_t d = 0; d < dim; ++d)
        if (std::isfinite(x[d])) peak = std::max(peak, std::abs(x[d]));
      const uint16_t bits = float_to_bf16(std::max(peak * (1.0f / 127.0f), 1e-30f));
      static_cast<uint16_t*>(scales)[slot] = bits;
      const float scale = bf16_to_float(bits);
      for (int64_t d = 0; d < dim; ++d) {
        const float steps = std::isfinite(x[d]) ? std::nearbyint(x[d] / scale) : 0.0f;
        static_cast<int8_t*>(cache)[slot * dim + d] = static_cast<int8_t>(std::min(127.0f, std::max(-127.0f, steps)));
      }
      return;
    }
    case KVKind::kFloat8: {
      const float scale = static_cast<const float*>(scales)[a.layer * a.kv_heads + head];
      for (int64_t d = 0; d < dim; ++d) {
        const float y = x[d] / scale;
        const float bounded = std::isnan(y) ? 0.0f : std::min(448.0f, std::max(-448.0f, y));
        static_cast<uint8_t*>(cache)[slot * dim + d] = float_to_e4m3(bounded);
      }
      return;
    }
  }
}

// Writes the keys and values of one token.
inline void write_token(const AttentionArgs& a, int64_t token) {
  if (a.write_page[token] == 0) return;
  thread_local std::vector<float> row;
  row.resize(a.head_dim);
  for (int64_t head = 0; head < a.kv_heads; ++head) {
    const int64_t slot = slot_of(a, a.write_page[token], head, a.write_offset[token]);
    const int64_t from = (token * a.kv_heads + head) * a.head_dim;
    const void* const sources[] = {a.k, a.v};
    void* const caches[] = {a.k_cache, a.v_cache};
    void* const scales[] = {a.k_scale, a.v_scale};
    for (int i = 0; i < 2; ++i) {
      if (a.is_bfloat16 && a.kv_kind == KVKind::kBfloat16) {
        std::memcpy(static_cast<uint16_t*>(caches[i]) + slot * a.head_dim,
                    static_cast<const uint16_t*>(sources[i]) + from, a.head_dim * 2);
        continue;
      }
      for (int64_t d = 0; d < a.head_dim; ++d) row[d] = number_at(sources[i], a.is_bfloat16, from + d);
      write_slot(a, row.data(), caches[i], scales[i], head, slot);
    }
  }
}

// Reads the numbers of a slot as float32, not yet multiplied by their scale, and pads them with zeros to `size`.
inline void read_slot(const AttentionArgs& a, const void* cache, int64_t slot, float* out, int64_t size) {
  const int64_t dim = a.head_dim, from = slot * dim;
  int64_t d = 0;
  switch (a.kv_kind) {
    case KVKind::kFloat32: std::memcpy(out, static_cast<const float*>(cache) + from, dim * 4); d = dim; break;
    case KVKind::kBfloat16:
      for (; d + kWidth <= dim; d += kWidth) store(out + d, load_bf16(static_cast<const uint16_t*>(cache) + from + d));
      for (; d < dim; ++d) out[d] = bf16_to_float(static_cast<const uint16_t*>(cache)[from + d]);
      break;
    case KVKind::kInt8:
      for (; d < dim; ++d) out[d] = static_cast<float>(static_cast<const int8_t*>(cache)[from + d]);
      break;
    case KVKind::kFloat8:
      for (; d < dim; ++d) out[d] = e4m3_to_float(static_cast<const uint8_t*>(cache)[from + d]);
      break;
  }
  for (; d < size; ++d) out[d] = 0;
}

// Iterates over the slots of consecutive positions of one row and KV head, from position `first` on.
class Slots {
 public:
  Slots(const AttentionArgs& a, int64_t row, int64_t head, int64_t first)
      : a_(a), pages_(a.page_table + row * a.row_pages), head_(head), page_(first / a.page_size),
        offset_(first % a.page_size) {
    open_page();
  }
  int64_t next() {
    if (offset_ == a_.page_size) ++page_, offset_ = 0, open_page();
    return slot_ + offset_++;
  }

 private:
  void open_page() { slot_ = slot_of(a_, pages_[page_], head_, 0); }

  const AttentionArgs& a_;
  const int32_t* const pages_;
  const int64_t head_;
  int64_t page_, offset_, slot_ = 0;
};

// Prefetches the keys and values of a slot. No hardware prefetcher does this, because slots of consecutive positions
// may lie on distant pages.
inline __attribute__((always_inline)) void prefetch_slot(const AttentionArgs& a, int64_t slot) {
  const int64_t bytes = a.head_dim * static_cast<int64_t>(kv_bytes(a.kv_kind));
  const char* const rows[] = {static_cast<const char*>(a.k_cache), static_cast<const char*>(a.v_cache)};
  for (const char* row : rows)
    for (int64_t at = 0; at < bytes; at += 64) prefetch(row + slot * bytes + at);
  if (a.kv_kind == KVKind::kInt8 && slot % 32 == 0) {
    prefetch(static_cast<const uint16_t*>(a.k_scale) + slot);
    prefetch(static_cast<const uint16_t*>(a.v_scale) + slot);
  }
}
