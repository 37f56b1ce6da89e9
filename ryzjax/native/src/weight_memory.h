// Where the bytes, scales and zero points of rows of W are, and prefetching them (contract: linear.h).
//
// Requires: vectors.h before it.

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

constexpr int64_t kNestedRun = 256;  // scales that share a scale of their own

// Decodes scales [first, first + count) of all that are nested, in `buffer`.
inline const float* decoded(const LinearArgs& a, int64_t first, int64_t count, AlignedBuffer& buffer) {
  float* const to = static_cast<float*>(buffer.at_least(count * 4));
  const auto* const codes = static_cast<const uint8_t*>(a.scales) + first;
  for (int64_t i = 0; i < count;) {
    const int64_t run = (first + i) / kNestedRun, end = std::min(count, (run + 1) * kNestedRun - first);
    const float scale = a.scale_blocks[run];
    for (; i < end; ++i) to[i] = a.scale_codes[codes[i]] * scale + a.scale_offset;
  }
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
  switch (a.scale_kind) {
    case ScaleKind::kFloat32: scales.values = static_cast<const float*>(a.scales) + at; break;
    case ScaleKind::kNested: scales.values = decoded(a, at, count, scale_buffer); break;
    default: scales.values = widened(halves + at, a.scale_kind == ScaleKind::kFloat16, count, scale_buffer);
  }
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

// Always inlined, because GCC drops calls of a function that only prefetches: such a function seems to have no effect.
inline __attribute__((always_inline)) void prefetch(const void* p) { __builtin_prefetch(p, 0, Isa::kPrefetchLocality); }

// Prefetches memory for a walk over R rows at once. It asks for bytes in the order of their addresses, not in the order
// of the walk, because alternating between short rows defeats the hardware prefetchers of some processors: Zen 4 reads
// such rows at half its speed.
struct Fetch {
  const char* at = nullptr;  // the next byte; null to prefetch nothing
  int64_t left = INT64_MAX, run = INT64_MAX, skip = 0;  // bytes: left of this run, of a run, between runs

  // Prefetches beyond the `rows` whole rows of W that start at `row`: kPrefetchAhead bytes, rounded up to whole tiles.
  static Fetch beyond(const LinearArgs& a, int64_t row, int64_t rows) {
    const int64_t tile = rows * row_bytes(a), least = Isa::kPrefetchAhead;
    return {static_cast<const char*>(a.values) + row * row_bytes(a) + (least + tile - 1) / tile * tile};
  }

  template <int kBytes>
  inline __attribute__((always_inline)) void next() {
    if (at == nullptr) return;
    RYZJAX_UNROLL for (int i = 0; i < kBytes; i += 64) prefetch(at + i);
    at += kBytes;
    if ((left -= kBytes) <= 0) at += skip, left += run;
  }
};
