// The contract of causal attention over whole sequences packed into rows, and of its gradient. It is the same for every
// instruction set.
//
// A run of equal numbers in `segment_ids` is a sequence; 0 is padding. The computation is in float32, and results are
// rounded once, when they are written. Blocks of keys and panels of queries are counted from the first token of a
// sequence, so the output of a sequence and the gradient of its queries depend only on that sequence. The order of the
// sums over query heads depends on `parts`. Nothing depends on the number of threads.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ryzjax {

struct SegmentShape {
  int64_t rows, length, heads, kv_heads, head_dim;
  bool is_bfloat16;            // dtype of all arrays but lse, sinks, k_parts and v_parts: bfloat16, or else float32
  const int32_t* segment_ids;  // [rows, length]
  float scale;                 // factor of the scores
  int64_t window;              // tokens that a query sees, itself included; 0 for no limit
  float softcap;               // scores become softcap * tanh(score / softcap); 0 for no cap
};

struct SegmentForwardArgs {
  SegmentShape shape;
  const void *q, *k, *v;  // [rows, length, heads or kv_heads, head_dim]
  const float* sinks;     // [heads]: a score that joins every softmax of a head without a value; null for none
  void* out;              // shape of q; zero for padding
  float* lse;             // [rows, heads, length]: logsumexp of the scores and the sink; 0 for padding
};

struct SegmentBackwardArgs {
  SegmentShape shape;
  const void *q, *k, *v, *out;  // arguments and result of the forward pass
  const void* grad;             // gradient of `out`, of its shape
  const float* lse;             // result of the forward pass
  void *q_grad, *k_grad, *v_grad;  // gradients of q, k and v, of their shapes; zero for padding
  // The query heads of a KV head are split into this many parts, which must divide their number. If there are several,
  // each part sums its gradients of keys and values in k_parts and v_parts, [parts, rows, length, kv_heads, head_dim],
  // and the parts are then added up in order. If parts is 1, k_parts and v_parts are not used.
  int64_t parts;
  float *k_parts, *v_parts;
};

}  // namespace ryzjax
