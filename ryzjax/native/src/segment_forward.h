// Attention within segments (contract: segment_attention.h), as in FlashAttention-2 (Dao, arXiv 2307.08691).
//
// Requires: segment_tiles.h before it.

struct ForwardSpace {
  AlignedBuffer queries, across, keys, values, scores, sums;
};

inline ForwardSpace& forward_space() {
  thread_local ForwardSpace space;
  return space;
}

// The running softmax of each lane of a panel: largest score, sum of weights, and the factor for the sums so far.
struct Softmax {
  float peak[kPanelLanes], total[kPanelLanes], shrink[kPanelLanes];
};

// Turns scores into weights, in place, and updates the softmax. The weighted sums so far must be multiplied by `shrink`
// before the values of this block are added.
inline void softmax_block(const KeyBlock& block, float* scores, Softmax& softmax) {
  const bool whole = block.is_seen_whole();
  const float softcap = block.panel.shape.softcap;
  for (int64_t v = 0; v < block.panel.vectors(); ++v) {
    float* const column = scores + v * kWidth;
    const Vec before = load(softmax.peak + v * kWidth);
    Vec peak = before;
    for (int64_t key = 0; key < block.count; ++key) {
      Vec score = load(column + key * kPanelLanes);
      if (softcap != 0) score = capped(score, softcap);
      if (!whole) score = lanes_in(block.lanes_of(key, key + 1), v) ? score : splat(-INFINITY);
      if (softcap != 0 || !whole) store(column + key * kPanelLanes, score);
      peak = larger(peak, score);
    }
    const Vec shrink = exponential(before - peak);
    Vec total = load(softmax.total + v * kWidth) * shrink;
    for (int64_t key = 0; key < block.count; ++key) {
      const Vec weight = exponential(load(column + key * kPanelLanes) - peak);
      store(column + key * kPanelLanes, weight);
      total += weight;
    }
    store(softmax.peak + v * kWidth, peak);
    store(softmax.total + v * kWidth, total);
    store(softmax.shrink + v * kWidth, shrink);
  }
}

inline void shrink_rows(const float* factors, int64_t rows, int64_t size, float* sums) {
  for (int64_t row = 0; row < rows; ++row) {
    if (factors[row] == 1.0f) continue;
    for (int64_t d = 0; d < size; d += kWidth) store(sums + row * size + d, load(sums + row * size + d) * splat(factors[row]));
  }
}

inline void attend_panel(const SegmentForwardArgs& a, const Panel& panel, int64_t kv_head) {
  const SegmentShape& shape = a.shape;
  const int64_t size = round_up(shape.head_dim, kWidth);
  ForwardSpace& space = forward_space();
  const auto floats = [](AlignedBuffer& buffer, int64_t count) { return static_cast<float*>(buffer.at_least(count * 4)); };
  float* const queries = floats(space.queries, kPanelLanes * size);
  float* const across = floats(space.across, kPanelLanes * size);
  float* const keys = floats(space.keys, kSegmentBlock * size);
  float* const values = floats(space.values, kSegmentBlock * size);
  float* const scores = floats(space.scores, kSegmentBlock * kPanelLanes);
  float* const sums = floats(space.sums, kPanelLanes * size);
  read_lanes(panel, a.q, shape.scale, queries, size);
  transpose(queries, panel.vectors() * kWidth, size, size, across, kPanelLanes);
  std::fill(sums, sums + panel.lanes * size, 0.0f);
  Softmax softmax;
  for (int64_t lane = 0; lane < kPanelLanes; ++lane) {
    const bool has_sink = a.sinks != nullptr && lane < panel.lanes;
    softmax.peak[lane] = has_sink ? a.sinks[panel.head(lane)] : kNoScore;
    softmax.total[lane] = has_sink ? 1.0f : 0.0f;
  }
  const Range all = keys_of(panel);
  for (int64_t first = all.from; first < all.to; first += kSegmentBlock) {
    const KeyBlock block{panel, first, std::min(kSegmentBlock, all.to - first)};
    read_keys(shape, panel.segment, kv_head, a.k, {first, first + block.count}, keys, size);
    read_keys(shape, panel.segment, kv_head, a.v, {first, first + block.count}, values, size);
    key_products(block, keys, size, across, scores);
    softmax_block(block, scores, softmax);
    shrink_rows(softmax.shrink, panel.lanes, size, sums);
    add_over_keys(block, scores, values, size, sums);
  }
  for (int64_t lane = 0; lane < panel.lanes; ++lane) {
    write_row(sums + lane * size, 1.0f / softmax.total[lane], shape.head_dim, a.out, shape.is_bfloat16,
              panel.row_of(lane) * shape.head_dim);
    a.lse[panel.lse_of(lane)] = softmax.peak[lane] + std::log(softmax.total[lane]);
  }
}

// Clears the tokens of a segment in an array [rows, length, heads, head_dim].
inline void clear_segment(const SegmentShape& shape, const Segment& segment, int64_t heads, bool is_bfloat16, void* to) {
  const int64_t row_bytes = heads * shape.head_dim * (is_bfloat16 ? 2 : 4);
  std::memset(static_cast<char*>(to) + (segment.row * shape.length + segment.first) * row_bytes, 0,
              segment.count * row_bytes);
}

void segment_forward(const SegmentForwardArgs& a, const Threads& threads) {
  const SegmentShape& shape = a.shape;
  const int64_t group = shape.heads / shape.kv_heads;
  struct Task {
    const Segment* segment;
    int64_t first;  // the panel's first lane
  };
  const std::vector<Segment> segments = segments_of(shape);
  std::vector<Task> tasks;
  for (const Segment& segment : segments) {
    if (segment.is_padding) {
      clear_segment(shape, segment, shape.heads, shape.is_bfloat16, a.out);
      for (int64_t head = 0; head < shape.heads; ++head) {
        float* const lse = a.lse + (segment.row * shape.heads + head) * shape.length + segment.first;
        std::fill(lse, lse + segment.count, 0.0f);
      }
      continue;
    }
    for (int64_t first = 0; first < segment.count * group; first += kPanelLanes) tasks.push_back({&segment, first});
  }
  parallel_for(threads, static_cast<int64_t>(tasks.size()) * shape.kv_heads, [&](int64_t i) {
    const Task& task = tasks[i / shape.kv_heads];
    const int64_t kv_head = i % shape.kv_heads;
    const int64_t lanes = std::min(kPanelLanes, task.segment->count * group - task.first);
    attend_panel(a, {shape, *task.segment, kv_head * group, group, task.first, lanes}, kv_head);
  });
}
