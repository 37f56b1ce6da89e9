// The gradient of attention within segments (contract: segment_attention.h).
//
// Requires: segment_forward.h before it.
//
// A task is one segment with some of the query heads of one KV head. Only that task adds to the gradients of its
// queries and to its own sums of the gradients of keys and values. Each weight is therefore computed once, and tasks
// share no sums.

struct BackwardSpace {
  AlignedBuffer panel, blocks, segment;
};

inline BackwardSpace& backward_space() {
  thread_local BackwardSpace space;
  return space;
}

// The keys and values of a segment and the sums of their gradients, each float32 [count, size].
struct SegmentSums {
  float *keys, *values, *k_grad, *v_grad;
};

// The rows of a panel, [kPanelLanes, size], and their transposes (`_across`, [size, kPanelLanes]). For each lane: the
// logsumexp of the forward pass, and the sum of weight * gradient over the keys (which is out . grad).
struct PanelRows {
  float *queries, *queries_across, *grad, *grad_across, *q_grad;
  float lse[kPanelLanes], row_sum[kPanelLanes];
};

// Turns scores into weights, and gradients of weights into gradients of scores, both in place.
inline void differentiate_block(const KeyBlock& block, const PanelRows& rows, float* scores, float* grads) {
  const bool whole = block.is_seen_whole();
  const float softcap = block.panel.shape.softcap;
  for (int64_t key = 0; key < block.count; ++key) {
    const Range seen = block.lanes_of(key, key + 1);
    for (int64_t v = 0; v < block.panel.vectors(); ++v) {
      const int64_t at = key * kPanelLanes + v * kWidth;
      Vec score = load(scores + at), slope = splat(1.0f);
      if (softcap != 0) {
        score = capped(score, softcap);
        const Vec part = score / splat(softcap);
        slope -= part * part;
      }
      Vec weight = exponential(score - load(rows.lse + v * kWidth));
      // The gradient of a softmax subtracts the sum of weight * gradient over its row.
      Vec grad = weight * (load(grads + at) - load(rows.row_sum + v * kWidth)) * slope;
      if (!whole) {
        const IntVec mask = lanes_in(seen, v);
        weight = mask ? weight : Vec{};
        grad = mask ? grad : Vec{};
      }
      store(scores + at, weight);
      store(grads + at, grad);
    }
  }
}

inline void read_panel(const SegmentBackwardArgs& a, const Panel& panel, int64_t size, PanelRows& rows) {
  // The memory of q_grad holds `out` until row_sum is computed.
  read_lanes(panel, a.q, a.shape.scale, rows.queries, size);
  read_lanes(panel, a.grad, 1.0f, rows.grad, size);
  read_lanes(panel, a.out, 1.0f, rows.q_grad, size);
  for (int64_t lane = 0; lane < kPanelLanes; ++lane) {
    const bool is_there = lane < panel.lanes;
    Vec sum = {};
    for (int64_t d = 0; is_there && d < size; d += kWidth)
      sum = Isa::fma(load(rows.grad + lane * size + d), load(rows.q_grad + lane * size + d), sum);
    rows.row_sum[lane] = total(sum);
    rows.lse[lane] = is_there ? a.lse[panel.lse_of(lane)] : 0.0f;
  }
  transpose(rows.queries, panel.vectors() * kWidth, size, size, rows.queries_across, kPanelLanes);
  transpose(rows.grad, panel.vectors() * kWidth, size, size, rows.grad_across, kPanelLanes);
  std::fill(rows.q_grad, rows.q_grad + panel.lanes * size, 0.0f);
}

inline void differentiate_panel(const SegmentBackwardArgs& a, const Panel& panel, int64_t size, SegmentSums sums) {
  BackwardSpace& space = backward_space();
  float* const memory = static_cast<float*>(space.panel.at_least(5 * kPanelLanes * size * 4));
  float* const scores = static_cast<float*>(space.blocks.at_least(2 * kSegmentBlock * kPanelLanes * 4));
  float* const grads = scores + kSegmentBlock * kPanelLanes;
  PanelRows rows;
  float** const parts[] = {&rows.queries, &rows.queries_across, &rows.grad, &rows.grad_across, &rows.q_grad};
  for (int i = 0; i < 5; ++i) *parts[i] = memory + i * kPanelLanes * size;
  read_panel(a, panel, size, rows);
  const Range all = keys_of(panel);
  for (int64_t first = all.from; first < all.to; first += kSegmentBlock) {
    const KeyBlock block{panel, first, std::min(kSegmentBlock, all.to - first)};
    key_products(block, sums.keys + first * size, size, rows.queries_across, scores);
    key_products(block, sums.values + first * size, size, rows.grad_across, grads);
    differentiate_block(block, rows, scores, grads);
    add_over_keys(block, grads, sums.keys + first * size, size, rows.q_grad);
    // The queries are already multiplied by the scale.
    add_over_lanes(block, grads, rows.queries, size, sums.k_grad + first * size);
    add_over_lanes(block, scores, rows.grad, size, sums.v_grad + first * size);
  }
  for (int64_t lane = 0; lane < panel.lanes; ++lane)
    write_row(rows.q_grad + lane * size, a.shape.scale, a.shape.head_dim, a.q_grad, a.shape.is_bfloat16,
              panel.row_of(lane) * a.shape.head_dim);
}

inline void differentiate_segment(const SegmentBackwardArgs& a, const Segment& segment, int64_t kv_head, int64_t part) {
  const SegmentShape& shape = a.shape;
  const int64_t size = round_up(shape.head_dim, kWidth), floats = segment.count * size;
  float* const memory = static_cast<float*>(backward_space().segment.at_least(4 * floats * 4));
  const SegmentSums sums{memory, memory + floats, memory + 2 * floats, memory + 3 * floats};
  read_keys(shape, segment, kv_head, a.k, {0, segment.count}, sums.keys, size);
  read_keys(shape, segment, kv_head, a.v, {0, segment.count}, sums.values, size);
  std::fill(sums.k_grad, sums.k_grad + 2 * floats, 0.0f);
  const int64_t group = shape.heads / shape.kv_heads, heads = group / a.parts, lanes = segment.count * heads;
  for (int64_t first = 0; first < lanes; first += kPanelLanes)
    differentiate_panel(
        a, {shape, segment, kv_head * group + part * heads, heads, first, std::min(kPanelLanes, lanes - first)}, size,
        sums);
  const bool is_whole = a.parts == 1;
  for (int64_t key = 0; key < segment.count; ++key) {
    const int64_t row = ((is_whole ? 0 : part * shape.rows) + segment.row) * shape.length + segment.first + key;
    const int64_t to = (row * shape.kv_heads + kv_head) * shape.head_dim;
    const bool is_bfloat16 = is_whole && shape.is_bfloat16;
    write_row(sums.k_grad + key * size, 1.0f, shape.head_dim, is_whole ? a.k_grad : a.k_parts, is_bfloat16, to);
    write_row(sums.v_grad + key * size, 1.0f, shape.head_dim, is_whole ? a.v_grad : a.v_parts, is_bfloat16, to);
  }
}

// Adds up the parts of one token's gradients of keys and values, in order, and writes the sums.
inline void add_parts(const SegmentBackwardArgs& a, int64_t token) {
  const SegmentShape& shape = a.shape;
  const int64_t count = shape.kv_heads * shape.head_dim, tokens = shape.rows * shape.length;
  float* const all[] = {a.k_parts, a.v_parts};
  void* const grads[] = {a.k_grad, a.v_grad};
  for (int which = 0; which < 2; ++which) {
    float* const sum = all[which] + token * count;
    for (int64_t part = 1; part < a.parts; ++part)
      for (int64_t i = 0; i < count; ++i) sum[i] += all[which][(part * tokens + token) * count + i];
    write_row(sum, 1.0f, count, grads[which], shape.is_bfloat16, token * count);
  }
}

void segment_backward(const SegmentBackwardArgs& a, const Threads& threads) {
  const SegmentShape& shape = a.shape;
  std::vector<Segment> segments;
  for (const Segment& segment : segments_of(shape)) {
    if (!segment.is_padding) {
      segments.push_back(segment);
      continue;
    }
    clear_segment(shape, segment, shape.heads, shape.is_bfloat16, a.q_grad);
    for (void* grad : {a.k_grad, a.v_grad}) clear_segment(shape, segment, shape.kv_heads, shape.is_bfloat16, grad);
  }
  const int64_t tasks = shape.kv_heads * a.parts;  // tasks of a segment
  parallel_for(threads, static_cast<int64_t>(segments.size()) * tasks, [&](int64_t i) {
    differentiate_segment(a, segments[i / tasks], i % tasks / a.parts, i % a.parts);
  });
  if (a.parts == 1) return;
  constexpr int64_t kTokens = 64;  // of a task
  std::vector<Segment> pieces;
  for (const Segment& segment : segments)
    for (int64_t at = 0; at < segment.count; at += kTokens)
      pieces.push_back({segment.row, segment.first + at, std::min(kTokens, segment.count - at), false});
  parallel_for(threads, static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    const int64_t first = pieces[i].row * shape.length + pieces[i].first;
    for (int64_t token = first; token < first + pieces[i].count; ++token) add_parts(a, token);
  });
}
