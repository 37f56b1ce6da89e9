// Writes a step's keys and values into their pages, and attends: the contract, the same for every instruction set.
//
// Every query sees its keys in blocks of 64 positions, counted from the sequence's first, and parts of 2048, each with
// a softmax of its own that are merged in order. So what a query is given depends on its own sequence alone: not on
// what else the step does, nor on how a prompt was cut into chunks, nor on the number of threads.
#pragma once

#include <cstdint>
#include <string>

#include "parallel.h"

namespace ryzjax {

enum class KVKind : int32_t { kFloat32, kBfloat16, kInt8, kFloat8 };

struct AttentionArgs {
  int64_t tokens, heads, kv_heads, head_dim;
  bool is_bfloat16;             // q, k, v and out; else float32
  const void *q, *k, *v;        // [tokens, heads or kv_heads, head_dim]
  void* out;                    // like q; zero for padding tokens
  KVKind kv_kind;
  int64_t layers, pages, page_size;
  void *k_cache, *v_cache;      // [layers, pages, kv_heads, page_size, head_dim]
  void *k_scale, *v_scale;      // of int8: bfloat16 [layers, pages, kv_heads, page_size]; of float8: float32 [layers, kv_heads]
  int32_t layer;
  const int32_t *write_page, *write_offset;  // [tokens]; page 0 takes nothing: padding writes there
  int64_t rows, row_pages;
  const int32_t* page_table;    // [rows, row_pages]
  const int32_t *query_start, *query_len, *context_len;  // [rows]
  int32_t num_decode_rows, num_rows;
  float scale;
  int64_t window;               // positions a query sees, itself included; 0 for all
  float softcap;                // 0 for none
  const float* sinks;           // [heads], or null
};

// What is wrong with the batch: an index that would leave an array. Empty where nothing is.
std::string check_attention(const AttentionArgs& args);

}  // namespace ryzjax
