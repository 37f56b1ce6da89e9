// The contract of the quantizer: rows of a matrix are rounded to the nearest values of int8, int4 or NF4, with one scale
// for each group of columns.
//
// int8 and int4 have 2^bits levels, scale * q with q from -2^(bits-1) to 2^(bits-1) - 1. Scales are rounded to bfloat16
// before q is chosen. The scale that just covers a group is (its largest magnitude) * 2 / (2^bits - 1). int8 takes it.
// int4 tries it times every factor f_0, f_1, ..., then times every -f_0, -f_1, ..., and takes the first candidate with
// the least squared error. A negative scale gives the extra level to positive weights. A scale that is zero or subnormal
// becomes 1.
//
// NF4 divides a group by its largest magnitude. The code of a weight is the number of bounds that are less than it.
//
// Subnormal weights count as zero. The result does not depend on the instruction set.
#pragma once

#include <cstdint>

namespace ryzjax {

enum class FloatKind : int64_t { kFloat32, kBfloat16, kFloat16 };
enum class QuantizeKind : int64_t { kInt8, kInt4, kNormalFloat4 };

constexpr int64_t kMaxFactors = 64;
constexpr int64_t kBounds = 15;  // between the 16 values of NF4

struct QuantizeArgs {
  int64_t rows, k;
  FloatKind dtype;
  const void* w;  // [rows, k]
  QuantizeKind kind;
  int64_t group;  // divides k
  int64_t pack;   // columns of a run of packed nibbles (ryzjax/qarray.py), an even divisor of k; 0 for int8
  // int4: from 1 to kMaxFactors positive factors of the scale. NF4: kBounds rising bounds. int8: not used.
  const float* table;
  int64_t table_size;
  void* values;  // int8 [rows, k], or nibbles uint8 [rows, k / 2]; a nibble of int4 is q + 8
  void* scales;  // bfloat16 [rows, k / group], or for NF4 the largest magnitudes, float32 [rows, k / group]
};

}  // namespace ryzjax
