// The contract of paged attention, the same for every instruction set. The kernel writes the keys and values of a step
// into pages of the KV cache, and then computes the attention output of each token.
//
// A query processes its keys in blocks of 64 positions, counted from the first position of its sequence. Each part of
// 2048 positions has its own softmax, and the parts are merged in order. The output of a token therefore depends only
// on its own sequence: not on the other rows of the step, nor on how a prompt was split into chunks, nor on the number
// of threads.
#pragma once

#include <cstdint>
#include <string>

#include "parallel.h"

namespace ryzjax {

enum class KVKind : int32_t { kFloat32, kBfloat16, kInt8, kFloat8 };

struct AttentionArgs {
  int64_t tokens, heads, kv_heads, head_dim;  // tokens of the step, padding included
  bool is_bfloat16;             // dtype of q, k, v and out: bfloat16, or else float32
  const void *q, *k, *v;        // [tokens, heads or kv_heads, head_dim]
  void* out;                    // shape and dtype of q; zero for padding tokens
  KVKind kv_kind;
  int64_t layers, pages, page_size;
  void *k_cache, *v_cache;      // [layers, pages, kv_heads, page_size, head_dim]
  // Scales of a quantized cache, null for others.
  // int8: bfloat16 [layers, pages, kv_heads, page_size]; float8: float32 [layers, kv_heads].
  void *k_scale, *v_scale;
  int32_t layer;                // the layer of the cache that this call reads and writes
  // [tokens]: the page of each token's key and value, and the slot in that page. A token with page 0, such as padding,
  // is not written.
  const int32_t *write_page, *write_offset;
  int64_t rows, row_pages;
  const int32_t* page_table;    // [rows, row_pages]: the pages of each row, in the order of its positions
  // [rows]: the index of a row's first token, its number of tokens in this step, and its number of tokens in the cache
  // after this step.
  const int32_t *query_start, *query_len, *context_len;
  int32_t num_decode_rows, num_rows;  // num_rows counts the rows in use; the decode rows, of one token each, come first
  float scale;                  // factor of the scores
  int64_t window;               // positions that a query sees, its own included; 0 for no limit
  float softcap;                // scores become softcap * tanh(score / softcap); 0 for no cap
  const float* sinks;           // [heads]: a score that joins every softmax of a head without a value; null for none
};

// Checks that no index of the batch leaves its array. Returns a description of the first one that does, or "".
std::string check_attention(const AttentionArgs& args);

}  // namespace ryzjax
