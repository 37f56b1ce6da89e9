// Paged attention over an instruction set's `Isa`. Included once by each of them, inside its namespace.
//
// A lane is one query of one head. Lanes that read the same keys (the heads of a group, the queries of a tile) go
// through a block of keys together: scores as tiles of 4 keys x 6 lanes, weights, then values into sums that stay in
// registers for a block.

constexpr int kBlock = 64;          // keys
constexpr int64_t kPart = 2048;     // positions that share a softmax; a multiple of kBlock
constexpr int kLanes = 6;           // of a tile
constexpr int64_t kTileLanes = 96;  // of a task, about
constexpr float kNothing = -1e30f;  // the largest score of a lane that has seen none

// Numbers that scores are made of: bfloat16 as the model's own, or float32.
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

// float8 e4m3; NaN, which is never written, becomes 480.
inline float e4m3_to_float(uint8_t bits) {
  const uint32_t magnitude = bits & 0x7f;
  const float value = magnitude < 8 ? static_cast<float>(magnitude) * 0x1p-9f
                                    : bits_to_float((magnitude << 20) + (120u << 23));
  return bits & 0x80 ? -value : value;
}

// To the nearest float8 e4m3, ties to even; |value| <= 448.
inline uint8_t float_to_e4m3(float value) {
  const uint32_t bits = float_to_bits(value), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffff;
  if (magnitude < (121u << 23))  // below 2^-6: a multiple of 2^-9
    return static_cast<uint8_t>(sign | static_cast<uint32_t>(std::nearbyint(bits_to_float(magnitude) * 0x1p9f)));
  const uint32_t rounded = magnitude + 0x7ffff + (magnitude >> 20 & 1);
  return static_cast<uint8_t>(sign | ((rounded >> 20) - (120u << 3)));
}

inline size_t kv_bytes(KVKind kind) { return kind == KVKind::kFloat32 ? 4 : kind == KVKind::kBfloat16 ? 2 : 1; }

// Where one slot of one head begins, counted in slots.
inline int64_t slot_of(const AttentionArgs& a, int64_t page, int64_t head, int64_t offset) {
  return ((a.layer * a.pages + page) * a.kv_heads + head) * a.page_size + offset;
}

// Puts a row of head_dim numbers into a slot, as `write_kv` of ryzjax/ops does.
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

// Queries of one row that share a KV head and a part of its positions (all parts, where `part` is negative).
struct Task {
  int64_t row, head;
  int64_t first_query, queries;  // within the row's
  int64_t part;
  int64_t result;                // where decode rows put their parts
};

// A lane's softmax so far: largest score, sum of weights, weighted sum of values.
struct Lanes {
  float* peak;    // [lanes]
  float* sums;    // [lanes, kWidth]
  float* values;  // [lanes, value_size]
};

struct Workspace {
  AlignedBuffer queries, keys, values, scores, weights, state, merged;
};

inline Workspace& workspace() {
  thread_local Workspace space;
  return space;
}

// A block of keys and values of one head, as the tiles read them.
template <typename Dot>
struct Block {
  const typename Dot::Element* keys[kBlock];
  const float* values;  // [kBlock, value_size]
  float key_scale[kBlock], value_scale[kBlock];
  int count;
};

// What does not change over a task.
struct Shape {
  int64_t key_size;    // head_dim, padded to Dot::kStep
  int64_t value_size;  // head_dim, padded to kWidth
  int64_t group;       // query heads of a KV head
};

// One slot's numbers as float32 without scale, zeros behind them.
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

// The slots of a task's positions, one after the other.
class Slots {
 public:
  Slots(const AttentionArgs& a, const Task& task, int64_t first)
      : a_(a), pages_(a.page_table + task.row * a.row_pages), head_(task.head), page_(first / a.page_size),
        offset_(first % a.page_size) {
    turn();
  }
  int64_t next() {
    if (offset_ == a_.page_size) ++page_, offset_ = 0, turn();
    return slot_ + offset_++;
  }

 private:
  void turn() { slot_ = slot_of(a_, pages_[page_], head_, 0); }

  const AttentionArgs& a_;
  const int32_t* const pages_;
  const int64_t head_;
  int64_t page_, offset_, slot_ = 0;
};

// Asks for a slot's keys and values, which lie apart from the last one's: no processor guesses that by itself.
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

// Positions [first, first + kBlock) of those before `end`; asks for the ones after.
template <typename Dot>
void load_block(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t first, int64_t end,
                Workspace& space, Block<Dot>& block) {
  using Element = typename Dot::Element;
  block.count = static_cast<int>(std::min<int64_t>(kBlock, end - first));
  // Keys that are stored as they are multiplied are read where they lie.
  const bool in_place = a.head_dim == shape.key_size && ((a.kv_kind == KVKind::kBfloat16 && sizeof(Element) == 2) ||
                                                         (a.kv_kind == KVKind::kFloat32 && sizeof(Element) == 4));
  Element* keys = in_place ? nullptr : static_cast<Element*>(space.keys.at_least(kBlock * shape.key_size * sizeof(Element)));
  float* values = static_cast<float*>(space.values.at_least(kBlock * shape.value_size * 4));
  float* row = static_cast<float*>(space.weights.at_least(shape.key_size * 4));
  block.values = values;
  Slots slots(a, task, first);
  const int64_t ahead = std::min<int64_t>(block.count, std::max<int64_t>(0, end - first - kBlock));
  Slots later(a, task, ahead ? first + kBlock : first);
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

// scores[c][key] = query c . key
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

// Scores of one lane -> weights, in place; keys [low, high) of the block are visible. Returns what the sums so far
// must be multiplied by.
template <typename Dot>
inline float weigh(const AttentionArgs& a, const Block<Dot>& block, float scale, int low, int high, float* scores,
                   float& peak, float* sums) {
  const int size = static_cast<int>(round_up(block.count, kWidth));
  const Vec factor = splat(scale);
  Vec top = splat(kNothing);
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

// values[c] = values[c] * shrink[c] + weights[c] . block
template <int C, int V>
inline void value_tile(const float* block, int count, int64_t size, const float* weights, const float* shrink,
                       float* values) {
  Vec sums[C][V];
  RYZJAX_UNROLL for (int c = 0; c < C; ++c)
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = load(values + c * size + v * kWidth) * splat(shrink[c]);
  for (int i = 0; i < count; ++i) {
    Vec here[V];
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) here[v] = load(block + i * size + v * kWidth);
    RYZJAX_UNROLL for (int c = 0; c < C; ++c) {
      const Vec w = splat(weights[c * kBlock + i]);
      RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[c][v] = Isa::fma(w, here[v], sums[c][v]);
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

// C lanes, from lane `first` on, meet a block.
template <typename Dot, int C>
void attend_lanes(const AttentionArgs& a, const Shape& shape, const Task& task, const Block<Dot>& block, int64_t first,
                  int64_t position, float scale, const typename Dot::Element* queries, float* scores, Lanes& lanes) {
  score_lanes<Dot, C>(block, queries + first * shape.key_size, shape.key_size, scores);
  float shrink[C];
  const int64_t before = a.context_len[task.row] - a.query_len[task.row] + task.first_query;
  for (int c = 0; c < C; ++c) {
    const int64_t query = before + (first + c) / shape.group;  // its position
    const int64_t low = a.window ? std::max<int64_t>(0, query - a.window + 1 - position) : 0;
    const int64_t high = std::min<int64_t>(block.count, query + 1 - position);
    shrink[c] = weigh(a, block, scale, static_cast<int>(std::min<int64_t>(low, block.count)),
                      static_cast<int>(std::max<int64_t>(0, high)), scores + c * kBlock, lanes.peak[first + c],
                      lanes.sums + (first + c) * kWidth);
  }
  add_values<C>(block.values, block.count, shape.value_size, scores, shrink, lanes.values + first * shape.value_size);
}

// All lanes of a task over positions [from, to), into `lanes`.
template <typename Dot>
void attend_part(const AttentionArgs& a, const Shape& shape, const Task& task, int64_t from, int64_t to, int64_t count,
                 const typename Dot::Element* queries, Workspace& space, Lanes& lanes) {
  std::fill(lanes.peak, lanes.peak + count, kNothing);
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
    // Lanes are dealt out evenly: 7 are 4 and 3, not 6 and 1.
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

// A part's softmax joins those before it.
inline void merge_lane(float& peak, float& sum, float* values, float part_peak, float part_sum, const float* part,
                       int64_t size) {
  const float top = std::max(peak, part_peak);
  const float mine = exponential(splat(peak - top))[0], theirs = exponential(splat(part_peak - top))[0];
  peak = top;
  sum = sum * mine + part_sum * theirs;
  for (int64_t d = 0; d < size; d += kWidth)
    store(values + d, Isa::fma(load(part + d), splat(theirs), load(values + d) * splat(mine)));
}

inline void start_lane(const AttentionArgs& a, int64_t head, float& peak, float& sum, float* values, int64_t size) {
  peak = a.sinks ? a.sinks[head] : kNothing;
  sum = a.sinks ? 1.0f : 0.0f;
  std::fill(values, values + size, 0.0f);
}

// A lane's result as a token's output.
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

inline int64_t first_position(const AttentionArgs& a, int64_t query_position) {
  return a.window ? std::max<int64_t>(0, query_position - a.window + 1) / kBlock * kBlock : 0;
}

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

// A decode row's part -> `results` [lanes of all parts, 2 + value_size]; merged later.
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

// A tile of a chunk, part after part.
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
  // Chunks first: their tasks are the long ones.
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
  // Parts of decode rows, in order.
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
  constexpr int64_t kWriteTokens = 16;  // a task
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
