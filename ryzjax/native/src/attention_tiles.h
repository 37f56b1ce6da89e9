// Paged attention of one task: the scores, softmax and weighted sums over one block of keys at a time.
//
// Requires: kv_slots.h before it.
//
// A lane is one query of one head. Lanes that read the same keys (the heads of a group, the queries of a task) process
// a block of keys together. Scores are computed in tiles of 4 keys x 6 lanes. They become weights, and the values are
// added to sums that stay in registers for the whole block.

constexpr int kBlock = 64;          // keys of a block
constexpr int64_t kPart = 2048;     // positions that share a softmax; a multiple of kBlock
constexpr int kLanes = 6;           // lanes of a tile of scores, at most
constexpr int64_t kTileLanes = 96;  // lanes of a prefill task, about
constexpr float kNoScore = -1e30f;  // the largest score of a lane before its first key

// Dot products of bfloat16 numbers, for models and caches in bfloat16 or narrower.
struct Bf16Dot {
  using Element = uint16_t;
  using Sum = Isa::Sum;
  static constexpr int kStep = 32;
  static Isa::Chunk chunk(const uint16_t* p) { return Isa::load(p); }
  static Sum zero() { return Isa::zero(); }
  static Sum dot(Sum sum, const Isa::Chunk& a, const Isa::Chunk& b) { return Isa::dot(sum, a, b); }
  static float sum_of(const Sum& sum) { return Isa::total(sum); }
  static void store_sums(const Sum& a, const Sum& b, const Sum& c, const Sum& d, float* out) {
    Isa::store_totals(a, b, c, d, out);
  }
  static uint16_t from_float(float value) { return float_to_bf16(value); }
};

// Dot products of float32 numbers, for models or caches in float32.
struct F32Dot {
  using Element = float;
  using Sum = Vec;
  static constexpr int kStep = kWidth;
  static Vec chunk(const float* p) { return load(p); }
  static Sum zero() { return Vec{}; }
  static Sum dot(Sum sum, Vec a, Vec b) { return Isa::fma(a, b, sum); }
  static float sum_of(const Sum& sum) { return total(sum); }
  static void store_sums(const Sum& a, const Sum& b, const Sum& c, const Sum& d, float* out) {
    out[0] = total(a), out[1] = total(b), out[2] = total(c), out[3] = total(d);
  }
  static float from_float(float value) { return value; }
};

// One unit of parallel work: queries of one row and KV head, over one part of the row's positions or over all parts.
struct Task {
  int64_t row, head;
  int64_t first_query, queries;  // range of the row's queries
  int64_t part;                  // index of the part; negative for all parts
  int64_t result;                // of a decode task: index of its first lane in the results of all parts
};

// The running softmax of each lane: largest score, sum of weights, weighted sum of values.
struct Lanes {
  float* peak;    // [lanes]
  float* sums;    // [lanes, kWidth], whose total is the sum of weights
  float* values;  // [lanes, value_size]
};

struct Workspace {
  AlignedBuffer queries, keys, values, scores, weights, state, merged;
};

inline Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

// A block of keys and values of one KV head, in the form that the tiles read.
template <typename Dot>
struct Block {
  const typename Dot::Element* keys[kBlock];
  const float* values;  // [kBlock, value_size]
  float key_scale[kBlock], value_scale[kBlock];
  int count;
};

// Sizes that are the same for all tasks of a call.
struct Shape {
  int64_t key_size;    // head_dim, padded to Dot::kStep
  int64_t value_size;  // head_dim, padded to kWidth
  int64_t group;       // query heads per KV head
};

// Loads the block of positions [first, min(first + kBlock, end)), and prefetches the block after it.
template <typename Dot>
void load_block(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t first, int64_t end,
                Workspace& space, Block<Dot>& block) {
  using Element = typename Dot::Element;
  block.count = static_cast<int>(std::min<int64_t>(kBlock, end - first));
  // Keys that are stored in the format of the products are read in place.
  const bool in_place = a.head_dim == shape.key_size && ((a.kv_kind == KVKind::kBfloat16 && sizeof(Element) == 2) ||
                                                         (a.kv_kind == KVKind::kFloat32 && sizeof(Element) == 4));
  Element* keys = in_place ? nullptr : static_cast<Element*>(space.keys.at_least(kBlock * shape.key_size * sizeof(Element)));
  float* values = static_cast<float*>(space.values.at_least(kBlock * shape.value_size * 4));
  float* row = static_cast<float*>(space.weights.at_least(shape.key_size * 4));
  block.values = values;
  Slots slots(a, task.row, task.head, first);
  const int64_t ahead = std::min<int64_t>(block.count, std::max<int64_t>(0, end - first - kBlock));
  Slots later(a, task.row, task.head, ahead ? first + kBlock : first);
  for (int i = 0; i < block.count; ++i) {
    if (i < ahead) prefetch_slot(a, later.next());
    const int64_t slot = slots.next();
    if (in_place) {
      block.keys[i] = static_cast<const Element*>(a.k_cache) + slot * a.head_dim;
    } else {
      read_slot(a, a.k_cache, slot, row, shape.key_size);
      Element* to = keys + i * shape.key_size;
      for (int64_t d = 0; d < shape.key_size; ++d) to[d] = Dot::from_float(row[d]);
      block.keys[i] = to;
    }
    read_slot(a, a.v_cache, slot, values + i * shape.value_size, shape.value_size);
    if (a.kv_kind == KVKind::kInt8) {
      block.key_scale[i] = bf16_to_float(static_cast<const uint16_t*>(a.k_scale)[slot]);
      block.value_scale[i] = bf16_to_float(static_cast<const uint16_t*>(a.v_scale)[slot]);
    }
  }
}

// scores[c][r] = (query c) . (key r), for R keys and C queries. Rows of scores are kBlock apart.
template <typename Dot, int R, int C>
inline void score_tile(const typename Dot::Element* const* keys, const typename Dot::Element* queries, int64_t size,
                       float* scores) {
  typename Dot::Sum sums[R][C];
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Dot::zero();
  for (int64_t d = 0; d < size; d += Dot::kStep) {
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      const auto key = Dot::chunk(keys[r] + d);
      RYZJAX_UNROLL for (int c = 0; c < C; ++c) sums[r][c] = Dot::dot(sums[r][c], key, Dot::chunk(queries + c * size + d));
    }
  }
  RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
    if constexpr (R == 4) {
      Dot::store_sums(sums[0][c], sums[1][c], sums[2][c], sums[3][c], scores + c * kBlock);
    } else {
      scores[c * kBlock] = Dot::sum_of(sums[0][c]);
    }
  }
}

template <typename Dot, int C>
void score_lanes(const Block<Dot>& block, const typename Dot::Element* queries, int64_t size, float* scores) {
  int i = 0;
  for (; i + 4 <= block.count; i += 4) score_tile<Dot, 4, C>(block.keys + i, queries, size, scores + i);
  for (; i < block.count; ++i) score_tile<Dot, 1, C>(block.keys + i, queries, size, scores + i);
}

// Turns the scores of one lane into weights, in place, and updates `peak` and `sums`. The lane sees keys [low, high) of
// the block. Returns the factor by which its weighted sum of values must be multiplied first.
template <typename Dot>
inline float softmax_lane(const AttentionArgs& a, const Block<Dot>& block, float scale, int low, int high, float* scores,
                   float& peak, float* sums) {
  const int size = static_cast<int>(round_up(block.count, kWidth));
  const Vec factor = splat(scale);
  Vec top = splat(kNoScore);
  for (int i = block.count; i < size; ++i) scores[i] = 0;
  for (int i = 0; i < size; i += kWidth) {
    Vec s = load(scores + i) * factor;
    if (a.kv_kind == KVKind::kInt8) s *= load(block.key_scale + i);
    if (a.softcap != 0) s = splat(a.softcap) * hyperbolic_tangent(s / splat(a.softcap));
    store(scores + i, s);
  }
  for (int i = 0; i < low; ++i) scores[i] = -INFINITY;
  for (int i = high; i < size; ++i) scores[i] = -INFINITY;
  for (int i = 0; i < size; i += kWidth) top = larger(top, load(scores + i));
  const float before = peak;
  peak = std::max(before, largest(top));
  Vec sum = load(sums);
  const float shrink = before == peak ? 1.0f : exponential(splat(before - peak))[0];
  sum *= splat(shrink);
  const Vec middle = splat(peak);
  for (int i = 0; i < size; i += kWidth) {
    Vec w = exponential(load(scores + i) - middle);
    sum += w;
    if (a.kv_kind == KVKind::kInt8) w *= load(block.value_scale + i);
    store(scores + i, w);
  }
  store(sums, sum);
  return shrink;
}

// values[c] = values[c] * shrink[c] + sum of weights[c][i] * block[i] over i < count, for C lanes and V vectors of
// values.
template <int C, int V>
inline void value_tile(const float* block, int count, int64_t size, const float* weights, const float* shrink,
                       float* values) {
  Vec sums[C][V];
  RYZJAX_UNROLL for (int c = 0; c < C; ++c)
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = load(values + c * size + v * kWidth) * splat(shrink[c]);
  for (int i = 0; i < count; ++i) {
    Vec value[V];
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) value[v] = load(block + i * size + v * kWidth);
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      const Vec w = splat(weights[c * kBlock + i]);
      RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = Isa::fma(w, value[v], sums[c][v]);
    }
  }
  RYZJAX_UNROLL for (int c = 0; c < C; ++c)
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) store(values + c * size + v * kWidth, sums[c][v]);
}

template <int C>
void add_values(const float* block, int count, int64_t size, const float* weights, const float* shrink, float* values) {
  int64_t d = 0;
  for (; d + Isa::kValueVectors * kWidth <= size; d += Isa::kValueVectors * kWidth)
    value_tile<C, Isa::kValueVectors>(block + d, count, size, weights, shrink, values + d);
  for (; d < size; d += kWidth) value_tile<C, 1>(block + d, count, size, weights, shrink, values + d);
}

// Adds a block, whose first key has position `position`, to the softmax of lanes [first, first + C).
template <typename Dot, int C>
void attend_lanes(const AttentionArgs& a, const Shape& shape, const Task& task, const Block<Dot>& block, int64_t first,
                  int64_t position, float scale, const typename Dot::Element* queries, float* scores, Lanes& lanes) {
  score_lanes<Dot, C>(block, queries + first * shape.key_size, shape.key_size, scores);
  float shrink[C];
  const int64_t before = a.context_len[task.row] - a.query_len[task.row] + task.first_query;
  for (int c = 0; c < C; ++c) {
    const int64_t query = before + (first + c) / shape.group;  // position of the query
    const int64_t low = a.window ? std::max<int64_t>(0, query - a.window + 1 - position) : 0;
    const int64_t high = std::min<int64_t>(block.count, query + 1 - position);
    shrink[c] = softmax_lane(a, block, scale, static_cast<int>(std::min<int64_t>(low, block.count)),
                      static_cast<int>(std::max<int64_t>(0, high)), scores + c * kBlock, lanes.peak[first + c],
                      lanes.sums + (first + c) * kWidth);
  }
  add_values<C>(block.values, block.count, shape.value_size, scores, shrink, lanes.values + first * shape.value_size);
}

// Computes the softmax of all `count` lanes of a task over positions [from, to), into `lanes`.
template <typename Dot>
void attend_part(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t from, int64_t to, int64_t count,
                 const typename Dot::Element* queries, Workspace& space, Lanes& lanes) {
  std::fill(lanes.peak, lanes.peak + count, kNoScore);
  std::fill(lanes.sums, lanes.sums + count * kWidth, 0.0f);
  std::fill(lanes.values, lanes.values + count * shape.value_size, 0.0f);
  float* scores = static_cast<float*>(space.scores.at_least(kLanes * kBlock * 4));
  float scale = a.scale;
  if (a.kv_kind == KVKind::kFloat8) scale *= static_cast<const float*>(a.k_scale)[a.layer * a.kv_heads + task.head];
  const int64_t groups = (count + kLanes - 1) / kLanes;
  Block<Dot> block;
  for (int i = 0; i < kBlock; ++i) block.key_scale[i] = block.value_scale[i] = 0;
  for (int64_t at = from; at < to; at += kBlock) {
    load_block<Dot>(a, shape, task, at, to, space, block);
    // Lanes are split evenly: 7 become 4 and 3, not 6 and 1.
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = g * count / groups;
      switch ((g + 1) * count / groups - first) {
#define RYZJAX_CASE(C) \
  case C: attend_lanes<Dot, C>(a, shape, task, block, first, at, scale, queries, scores, lanes); break;
        RYZJAX_CASE(1) RYZJAX_CASE(2) RYZJAX_CASE(3) RYZJAX_CASE(4) RYZJAX_CASE(5) RYZJAX_CASE(6)
#undef RYZJAX_CASE
      }
    }
  }
}
