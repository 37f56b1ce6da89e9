// Causal attention of whole sequences packed into rows, and its gradient: the contract, the same for every instruction
// set.
//
// Runs of equal numbers in `segment_ids` are sequences; 0 is padding. Everything is float32 between what is read and
// what is written, rounded once. Blocks of keys and panels of queries are counted from a sequence's first token, so
// that the outputs of a sequence, and of its gradient those of queries, depend on that sequence alone; sums over query
// heads follow `parts`. Nothing depends on the number of threads.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace ryzjax {

struct SegmentShape {
  int64_t rows, length, heads, kv_heads, head_dim;
  bool is_bfloat16;            // all but lse, sinks and parts; else float32
  const int32_t* segment_ids;  // [rows, length]
  float scale;
  int64_t window;              // tokens a query sees, itself included; 0 for all
  float softcap;               // 0 for none
};

struct SegmentForwardArgs {
  SegmentShape shape;
  const void *q, *k, *v;  // [rows, length, heads or kv_heads, head_dim]
  const float* sinks;     // [heads], or null
  void* out;              // like q; zero in padding
  float* lse;             // [rows, heads, length], log of the sum of exponentials, the sink's with it; 0 in padding
};

struct SegmentBackwardArgs {
  SegmentShape shape;
  const void *q, *k, *v, *out, *grad;  // grad of out
  const float* lse;
  void *q_grad, *k_grad, *v_grad;
  // Query heads of a KV head are dealt into this many parts, a divisor of their number. Where there are several, each
  // has a sum of its own in k_parts and v_parts, [parts, rows, length, kv_heads, head_dim], added up in order.
  int64_t parts;
  float *k_parts, *v_parts;
};

}  // namespace ryzjax
