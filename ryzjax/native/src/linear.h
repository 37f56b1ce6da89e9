// The contract of the matrix product y = x W^T, the same for every instruction set.
//
// x is bfloat16, W is bfloat16 or quantized, and sums are float32. A quantized weight is multiplied by its scale. It is
// then rounded to bfloat16, as in the reference implementation, if the instruction set's products read bfloat16. AVX2
// multiplies float32, and does not round it.
//
// A row of y depends only on its row of x. Each element of y is one chain of dot products of 32 columns, in an order
// that the weights' format alone decides. Neither m nor the tile that an element falls into changes it.
//
// With int8 activations, every 32 columns of a row of x are quantized to int8 with a float32 scale, their largest
// magnitude / 127. The products of 32 columns are summed exactly as integers, multiplied by the scales of x and W, and
// added in float32. Weights are then not rounded to bfloat16, and a codebook is rounded to multiples of 1/127 of its
// largest magnitude. A row of x with a number that is not finite has a result of NaN.
#pragma once

#include <cstdint>

namespace ryzjax {

enum class WeightKind : int32_t { kBfloat16, kInt8, kNibbles };
enum class ScaleKind : int32_t { kFloat32, kFloat16, kBfloat16, kNested };
enum class ZeroKind : int32_t { kInteger, kFloat16 };
enum class Activations : int32_t { kBfloat16, kInt8 };

struct LinearArgs {
  int64_t m, n, k;     // rows of x, rows of W, columns of both
  const uint16_t* x;   // bfloat16 [m, k]
  float* out;          // [m, n]
  WeightKind kind;
  const void* values;  // bfloat16 [n, k]; int8 [n, k]; or nibbles, uint8 [n, k / 2], in runs of `pack` columns
  Activations activations;  // how x is multiplied; kInt8 only with quantized weights
  // The remaining fields describe quantized weights. ryzjax/qarray.py defines the format.
  int64_t group;          // group size: columns that share a scale. Equals k if a row has a single scale; else a
                          // multiple of 32, or 16 for int8 with k a multiple of 32.
  int64_t pack;           // columns of a run of nibbles: low nibbles hold its first half, high nibbles its second
  const void* scales;     // [scale_rows, k / group], of dtype scale_kind; uint8 codes if they are nested
  ScaleKind scale_kind;
  int64_t scale_rows;     // n, or 1 if all rows of W share their scales
  // Nested scales: scale i, counted row by row, is scale_codes[code i] * scale_blocks[i / 256] + scale_offset.
  const float* scale_codes;   // [256]
  const float* scale_blocks;  // [number of scales / 256, rounded up]
  float scale_offset;
  const void* zeros;      // zero points [scale_rows, k / group]: float16, or integers: 0 to 15 for nibbles and int8
                          // for int8. Null for the default zero points: 8 for nibbles, 0 for int8.
  ZeroKind zero_kind;
  const float* codebook;  // [16]: the values of the nibbles if they are not integers, else null
};

}  // namespace ryzjax
