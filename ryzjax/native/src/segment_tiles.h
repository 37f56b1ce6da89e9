// The parts that attention within segments and its gradient share (contract: segment_attention.h).
//
// Requires: weight_rows.h, norm_rows.h, attention_tiles.h and product_tiles.h before it.
//
// A lane is one query of one head. Lanes are grouped in panels, with queries in order and the heads that share keys
// next to each other. A panel processes keys in blocks. Scores have the layout [key, lane], so that a vector holds the
// scores of kWidth lanes, and the keys of a block that a lane sees are a range of rows.

constexpr int64_t kPanelLanes = 64;
constexpr int64_t kSegmentBlock = 64;  // keys of a block
static_assert(kPanelLanes % kWidth == 0 && kSegmentBlock % kWidth == 0);

// Tokens [first, first + count) of one row: a sequence, or padding.
struct Segment {
  int64_t row, first, count;
  bool is_padding;
};

inline std::vector<Segment> segments_of(const SegmentShape& shape) {
  std::vector<Segment> segments;
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int32_t* ids = shape.segment_ids + row * shape.length;
    for (int64_t first = 0, end; first < shape.length; first = end) {
      for (end = first + 1; end < shape.length && ids[end] == ids[first];) ++end;
      segments.push_back({row, first, end - first, ids[first] == 0});
    }
  }
  return segments;
}

// Lanes [first, first + lanes) of a segment: queries of `heads` heads, from `first_head` on, that read one KV head.
class Panel {
 public:
  Panel(const SegmentShape& shape, const Segment& segment, int64_t first_head, int64_t heads, int64_t first, int64_t lanes)
      : shape(shape), segment(segment), heads(heads), first(first), lanes(lanes) {
    int64_t token = first / heads, head = first % heads;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      tokens_[lane] = token, heads_[lane] = first_head + head;
      if (++head == heads) ++token, head = 0;
    }
  }

  const SegmentShape& shape;
  const Segment& segment;
  const int64_t heads, first, lanes;

  int64_t vectors() const { return (lanes + kWidth - 1) / kWidth; }
  // The token of a lane, counted from the segment's first.
  int64_t token(int64_t lane) const { return tokens_[lane]; }
  int64_t head(int64_t lane) const { return heads_[lane]; }
  // The index of a lane in [rows, length, heads].
  int64_t row_of(int64_t lane) const {
    return (segment.row * shape.length + segment.first + token(lane)) * shape.heads + head(lane);
  }
  // The index of a lane in [rows, heads, length].
  int64_t lse_of(int64_t lane) const {
    return (segment.row * shape.heads + head(lane)) * shape.length + segment.first + token(lane);
  }
  // The first token that `token` sees.
  int64_t oldest(int64_t token) const { return shape.window ? std::max<int64_t>(0, token - shape.window + 1) : 0; }

 private:
  int64_t tokens_[kPanelLanes], heads_[kPanelLanes];
};

struct Range {
  int64_t from, to;
};

// Keys [first, first + count) of a segment, and the panel that processes them.
struct KeyBlock {
  const Panel& panel;
  int64_t first, count;

  // The keys of the block that at least one of lanes [from, to) sees.
  Range keys_of(int64_t from, int64_t to) const {
    const int64_t oldest = panel.oldest(panel.token(from)) - first, newest = panel.token(to - 1) - first;
    return {std::min(count, std::max<int64_t>(0, oldest)), std::max<int64_t>(0, std::min(count, newest + 1))};
  }
  // The lanes that see at least one of keys [from, to).
  Range lanes_of(int64_t from, int64_t to) const {
    const int64_t low = (first + from) * panel.heads - panel.first;
    const int64_t high = panel.shape.window ? (first + to - 1 + panel.shape.window) * panel.heads - panel.first
                                            : panel.lanes;
    return {std::min(panel.lanes, std::max<int64_t>(0, low)), std::max<int64_t>(0, std::min(panel.lanes, high))};
  }
  // Whether every lane sees every key.
  bool is_seen_whole() const {
    return first + count - 1 <= panel.token(0) && panel.oldest(panel.token(panel.lanes - 1)) <= first;
  }
};

// The keys that a panel processes. The range starts at a multiple of kSegmentBlock.
inline Range keys_of(const Panel& panel) {
  return {panel.oldest(panel.token(0)) / kSegmentBlock * kSegmentBlock, panel.token(panel.lanes - 1) + 1};
}

// Reads `count` numbers from index `at` as float32, multiplies them by `factor`, and pads them with zeros to `size`.
inline void read_row(const void* from, bool is_bfloat16, int64_t at, int64_t count, float factor, float* to,
                     int64_t size) {
  int64_t d = 0;
  for (; d + kWidth <= count; d += kWidth) store(to + d, numbers_at(from, is_bfloat16, at + d) * splat(factor));
  for (; d < count; ++d) to[d] = number_at(from, is_bfloat16, at + d) * factor;
  for (; d < size; ++d) to[d] = 0;
}

// The distance of prefetches. The rows of one head are not contiguous, so hardware prefetchers do not find the next
// one.
constexpr int64_t kRowsAhead = 12;

inline __attribute__((always_inline)) void prefetch_row(const void* from, bool is_bfloat16, int64_t at, int64_t count) {
  const int64_t width = is_bfloat16 ? 2 : 4;
  for (int64_t byte = 0; byte < count * width; byte += 64) prefetch(static_cast<const char*>(from) + at * width + byte);
}

// Writes `count` numbers, multiplied by `factor`, to index `at`.
inline void write_row(const float* from, float factor, int64_t count, void* to, bool is_bfloat16, int64_t at) {
  int64_t d = 0;
  for (; d + kWidth <= count; d += kWidth) {
    const Vec value = load(from + d) * splat(factor);
    if (is_bfloat16) {
      store_bf16(static_cast<uint16_t*>(to) + at + d, value);
    } else {
      store(static_cast<float*>(to) + at + d, value);
    }
  }
  for (; d < count; ++d) {
    if (is_bfloat16) {
      static_cast<uint16_t*>(to)[at + d] = float_to_bf16(from[d] * factor);
    } else {
      static_cast<float*>(to)[at + d] = from[d] * factor;
    }
  }
}

// Reads the keys or values of tokens [keys.from, keys.to) of a segment and KV head, as rows of `size` floats.
inline void read_keys(const SegmentShape& shape, const Segment& segment, int64_t kv_head, const void* from, Range keys,
                      float* to, int64_t size) {
  for (int64_t key = keys.from; key < keys.to; ++key) {
    const int64_t row = (segment.row * shape.length + segment.first + key) * shape.kv_heads + kv_head;
    const int64_t later = row + std::min(kRowsAhead, keys.to - 1 - key) * shape.kv_heads;
    prefetch_row(from, shape.is_bfloat16, later * shape.head_dim, shape.head_dim);
    read_row(from, shape.is_bfloat16, row * shape.head_dim, shape.head_dim, 1.0f, to + (key - keys.from) * size, size);
  }
}

// Reads the rows of a panel from q, out or grad, and pads them with rows of zeros to whole vectors of lanes.
inline void read_lanes(const Panel& panel, const void* from, float factor, float* to, int64_t size) {
  const SegmentShape& shape = panel.shape;
  for (int64_t lane = 0; lane < panel.lanes; ++lane) {
    const int64_t later = panel.row_of(std::min(lane + kRowsAhead, panel.lanes - 1));
    prefetch_row(from, shape.is_bfloat16, later * shape.head_dim, shape.head_dim);
    read_row(from, shape.is_bfloat16, panel.row_of(lane) * shape.head_dim, shape.head_dim, factor, to + lane * size, size);
  }
  std::fill(to + panel.lanes * size, to + panel.vectors() * kWidth * size, 0.0f);
}

// scores[key, lane] = keys[key] . lanes_across[:, lane], with lanes_across [size, kPanelLanes]. Vectors of lanes that
// do not see the key are skipped.
inline void key_products(const KeyBlock& block, const float* keys, int64_t size, const float* lanes_across,
                         float* scores) {
  const bool whole = block.is_seen_whole();
  const int64_t dim = block.panel.shape.head_dim;
  product({keys, size, 1}, {lanes_across, kPanelLanes}, block.count, false, {scores, kPanelLanes},
          [&](int64_t first, int64_t last) -> Extent {
            if (whole) return {0, dim, 0, block.panel.vectors()};
            const Range lanes = block.lanes_of(first, last);
            return {0, dim, lanes.from / kWidth, (lanes.to + kWidth - 1) / kWidth};
          });
}

// sums[lane] += weights[key, lane] * keys[key] over the keys that the lane sees.
inline void add_over_keys(const KeyBlock& block, const float* weights, const float* keys, int64_t size, float* sums) {
  product({weights, 1, kPanelLanes}, {keys, size}, block.panel.lanes, true, {sums, size},
          [&](int64_t first, int64_t last) -> Extent {
            const Range seen = block.keys_of(first, last);
            return {seen.from, seen.to, 0, size / kWidth};
          });
}

// sums[key] += weights[key, lane] * lanes[lane] over the lanes that see the key.
inline void add_over_lanes(const KeyBlock& block, const float* weights, const float* lanes, int64_t size, float* sums) {
  product({weights, kPanelLanes, 1}, {lanes, size}, block.count, true, {sums, size},
          [&](int64_t first, int64_t last) -> Extent {
            const Range seen = block.lanes_of(first, last);
            return {seen.from, seen.to, 0, size / kWidth};
          });
}

// A mask of the lanes of vector `v` that lie in `seen`, a range that KeyBlock::lanes_of returned.
inline IntVec lanes_in(Range seen, int64_t v) {
  alignas(64) static constexpr int32_t kPlaces[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  static_assert(kWidth <= 16);
  IntVec lane;
  std::memcpy(&lane, kPlaces, sizeof lane);
  lane += static_cast<int32_t>(v * kWidth);
  return (lane >= static_cast<int32_t>(seen.from)) & (lane < static_cast<int32_t>(seen.to));
}

inline Vec capped(Vec score, float softcap) {
  return splat(softcap) * hyperbolic_tangent(score / splat(softcap));
}
