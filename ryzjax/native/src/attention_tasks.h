// Paged attention of a step (contract: attention.h): splits the step into tasks and merges the results of their parts.
//
// Requires: attention_tiles.h before it.
//
// A decode row is split into one task per KV head and part, so that a long context keeps several threads busy. The
// queries of a prefill chunk are split into tasks of about kTileLanes lanes, each of which processes its parts in
// order. Both merge the parts of a lane in the same order with the same arithmetic.

// Merges the softmax of a part into that of the parts before it.
inline void merge_lane(float& peak, float& sum, float* values, float part_peak, float part_sum, const float* part,
                       int64_t size) {
  const float top = std::max(peak, part_peak);
  const float mine = exponential(splat(peak - top))[0], theirs = exponential(splat(part_peak - top))[0];
  peak = top;
  sum = sum * mine + part_sum * theirs;
  for (int64_t d = 0; d < size; d += kWidth)
    store(values + d, Isa::fma(load(part + d), splat(theirs), load(values + d) * splat(mine)));
}

// Starts the softmax of a lane, with the sink of its head if there is one.
inline void start_lane(const AttentionArgs& a, int64_t head, float& peak, float& sum, float* values, int64_t size) {
  peak = a.sinks ? a.sinks[head] : kNoScore;
  sum = a.sinks ? 1.0f : 0.0f;
  std::fill(values, values + size, 0.0f);
}

// Divides a lane's weighted sum by its sum of weights, and writes it to `out`.
inline void finish_lane(const AttentionArgs& a, int64_t token, int64_t head, int64_t kv_head, float sum,
                        const float* values) {
  float factor = 1.0f / std::max(sum, 1e-30f);
  if (a.kv_kind == KVKind::kFloat8) factor *= static_cast<const float*>(a.v_scale)[a.layer * a.kv_heads + kv_head];
  const int64_t to = (token * a.heads + head) * a.head_dim;
  for (int64_t d = 0; d < a.head_dim; ++d) {
    const float value = values[d] * factor;
    if (a.is_bfloat16) {
      static_cast<uint16_t*>(a.out)[to + d] = float_to_bf16(value);
    } else {
      static_cast<float*>(a.out)[to + d] = value;
    }
  }
}

// The first position that a query must read: the start of its window, rounded down to a block.
inline int64_t first_position(const AttentionArgs& a, int64_t query_position) {
  return a.window ? std::max<int64_t>(0, query_position - a.window + 1) / kBlock * kBlock : 0;
}

// Copies the queries of a task to [lanes, key_size], padded with zeros.
template <typename Dot>
const typename Dot::Element* gather_queries(const AttentionArgs& a, const Shape& shape, const Task& task,
                                            Workspace& space) {
  using Element = typename Dot::Element;
  const int64_t count = task.queries * shape.group;
  auto* to = static_cast<Element*>(space.queries.at_least(count * shape.key_size * sizeof(Element)));
  for (int64_t lane = 0; lane < count; ++lane) {
    const int64_t token = a.query_start[task.row] + task.first_query + lane / shape.group;
    const int64_t from = (token * a.heads + task.head * shape.group + lane % shape.group) * a.head_dim;
    Element* row = to + lane * shape.key_size;
    if (a.is_bfloat16 == (sizeof(Element) == 2)) {
      std::memcpy(row, static_cast<const Element*>(a.q) + from, a.head_dim * sizeof(Element));
    } else {
      for (int64_t d = 0; d < a.head_dim; ++d) row[d] = Dot::from_float(number_at(a.q, a.is_bfloat16, from + d));
    }
    for (int64_t d = a.head_dim; d < shape.key_size; ++d) row[d] = 0;
  }
  return to;
}

inline Lanes lanes_of(Workspace& space, int64_t count, int64_t value_size) {
  const int64_t floats = count * kWidth + count * value_size + round_up(count, 16);
  float* base = static_cast<float*>(space.state.at_least(floats * 4));
  return {base + count * (kWidth + value_size), base, base + count * kWidth};
}

// Computes one part of a decode row. Writes the largest score, sum of weights and weighted sum of values of each lane
// to `results`, [lanes of all parts, 2 + value_size]. The parts are merged later.
template <typename Dot>
void decode_task(const AttentionArgs& a, const Shape& shape, const Task& task, float* results) {
  Workspace& space = workspace();
  const auto* queries = gather_queries<Dot>(a, shape, task, space);
  Lanes lanes = lanes_of(space, shape.group, shape.value_size);
  const int64_t context = a.context_len[task.row];
  const int64_t from = std::max(task.part * kPart, first_position(a, context - 1));
  attend_part<Dot>(a, shape, task, from, std::min(context, (task.part + 1) * kPart), shape.group, queries, space, lanes);
  for (int64_t lane = 0; lane < shape.group; ++lane) {
    float* to = results + (task.result + lane) * (2 + shape.value_size);
    to[0] = lanes.peak[lane];
    to[1] = total(load(lanes.sums + lane * kWidth));
    std::memcpy(to + 2, lanes.values + lane * shape.value_size, shape.value_size * 4);
  }
}

// Computes some queries of a prefill chunk, part by part, and writes their output.
template <typename Dot>
void chunk_task(const AttentionArgs& a, const Shape& shape, const Task& task) {
  Workspace& space = workspace();
  const auto* queries = gather_queries<Dot>(a, shape, task, space);
  const int64_t count = task.queries * shape.group;
  Lanes lanes = lanes_of(space, count, shape.value_size);
  auto* merged = static_cast<float*>(space.merged.at_least(count * (2 + shape.value_size) * 4));
  for (int64_t lane = 0; lane < count; ++lane) {
    float* to = merged + lane * (2 + shape.value_size);
    start_lane(a, task.head * shape.group + lane % shape.group, to[0], to[1], to + 2, shape.value_size);
  }
  const int64_t before = a.context_len[task.row] - a.query_len[task.row] + task.first_query;
  const int64_t begin = first_position(a, before), end = before + task.queries;
  for (int64_t part = begin / kPart; part * kPart < end; ++part) {
    attend_part<Dot>(a, shape, task, std::max(begin, part * kPart), std::min(end, (part + 1) * kPart), count, queries,
                     space, lanes);
    for (int64_t lane = 0; lane < count; ++lane) {
      float* to = merged + lane * (2 + shape.value_size);
      merge_lane(to[0], to[1], to + 2, lanes.peak[lane], total(load(lanes.sums + lane * kWidth)),
                 lanes.values + lane * shape.value_size, shape.value_size);
    }
  }
  for (int64_t lane = 0; lane < count; ++lane) {
    const float* from = merged + lane * (2 + shape.value_size);
    finish_lane(a, a.query_start[task.row] + task.first_query + lane / shape.group,
                task.head * shape.group + lane % shape.group, task.head, from[1], from + 2);
  }
}

template <typename Dot>
void attend_all(const AttentionArgs& a, const Threads& threads) {
  Shape shape;
  shape.group = a.heads / a.kv_heads;
  shape.key_size = round_up(a.head_dim, Dot::kStep);
  shape.value_size = round_up(a.head_dim, kWidth);
  thread_local std::vector<Task> tasks;
  thread_local AlignedBuffer parts;
  tasks.clear();
  int64_t results = 0;
  const int64_t tile = std::max<int64_t>(1, kTileLanes / shape.group);
  // Prefill chunks come first, because their tasks are the long ones.
  for (int64_t row = a.num_decode_rows; row < a.num_rows; ++row)
    for (int64_t query = 0; query < a.query_len[row]; query += tile)
      for (int64_t head = 0; head < a.kv_heads; ++head)
        tasks.push_back({row, head, query, std::min<int64_t>(tile, a.query_len[row] - query), -1, 0});
  for (int64_t row = 0; row < a.num_decode_rows; ++row)
    for (int64_t head = 0; head < a.kv_heads; ++head)
      for (int64_t part = first_position(a, a.context_len[row] - 1) / kPart; part * kPart < a.context_len[row]; ++part) {
        tasks.push_back({row, head, 0, 1, part, results});
        results += shape.group;
      }
  float* const part_results = static_cast<float*>(parts.at_least(std::max<int64_t>(1, results) * (2 + shape.value_size) * 4));
  const std::vector<Task>& all = tasks;
  parallel_for(threads, static_cast<int64_t>(all.size()), [&](int64_t i) {
    if (all[i].part < 0) return chunk_task<Dot>(a, shape, all[i]);
    decode_task<Dot>(a, shape, all[i], part_results);
  });
  // Merge the parts of decode rows, in order.
  thread_local std::vector<float> values;
  values.resize(shape.value_size);
  for (size_t i = 0; i < all.size();) {
    const Task& task = all[i];
    if (task.part < 0) {
      ++i;
      continue;
    }
    size_t end = i + 1;
    while (end < all.size() && all[end].row == task.row && all[end].head == task.head) ++end;
    for (int64_t lane = 0; lane < shape.group; ++lane) {
      float peak, sum;
      start_lane(a, task.head * shape.group + lane, peak, sum, values.data(), shape.value_size);
      for (size_t part = i; part < end; ++part) {
        const float* from = part_results + (all[part].result + lane) * (2 + shape.value_size);
        merge_lane(peak, sum, values.data(), from[0], from[1], from + 2, shape.value_size);
      }
      finish_lane(a, a.query_start[task.row], task.head * shape.group + lane, task.head, sum, values.data());
    }
    i = end;
  }
}

void attend(const AttentionArgs& a, const Threads& threads) {
  constexpr int64_t kWriteTokens = 16;  // of a task
  parallel_for(threads, (a.tokens + kWriteTokens - 1) / kWriteTokens, [&](int64_t task) {
    for (int64_t t = task * kWriteTokens; t < std::min(a.tokens, (task + 1) * kWriteTokens); ++t) write_token(a, t);
  });
  int64_t end = 0;
  for (int64_t row = 0; row < a.num_rows; ++row) end += a.query_len[row];
  const int64_t row_bytes = a.heads * a.head_dim * (a.is_bfloat16 ? 2 : 4);
  std::memset(static_cast<char*>(a.out) + end * row_bytes, 0, (a.tokens - end) * row_bytes);
  if (a.is_bfloat16 && a.kv_kind != KVKind::kFloat32) return attend_all<Bf16Dot>(a, threads);
  attend_all<F32Dot>(a, threads);
}
