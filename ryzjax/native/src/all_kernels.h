// Every kernel for one instruction set but the products of int8 activations, and the table `kKernels` of them.
//
// Requires: isa_includes.h, and `struct Isa` before it. avx512.cc, avx2.cc and portable.cc each include this header
// once, inside their anonymous namespace, so each compiles its own copy of the kernels with its own compiler flags. The
// order of the headers matters: each may use what those above it define.
//
// `Isa` provides:
//   kWidth            the number of floats in a Vec
//   kValueVectors     vectors of a value that attention holds in registers for each lane
//   Vec, fma          a vector of float32, and a * b + c
//   X                 the type in which products read weights and activations: uint16_t (bfloat16) or float
//   Chunk             32 bfloat16 numbers: load, or load_part for fewer; load_x and store_x, as X
//   kPrefetchLocality, kPrefetchAhead   how weights are prefetched
//   kTileRows, kTileColumns, kSums   the tile of a product, and the sums that fit the registers
//   Sum               float32 sums of products: zero, dot (adds the products of two chunks), total, store_totals
//   load_half         kWidth float16 as float32
//   Scale, from_int8  the chunk (q - zero) * scale of 32 int8, as X; each half has its own Scale
//   Table             the weights of nibbles 0 to 15 as X: table(scale, zero) or table_of(codebook, scale)
//   from_low          the chunk of the low nibbles of 32 bytes
//   from_high         the chunk of the high nibbles of 32 bytes
//   from_run          the chunk of the low nibbles of 16 bytes, then of their high nibbles
// An instruction set that defines RYZJAX_NIBBLE_BLOCKS also provides what nibble_blocks.h calls.

#include "vectors.h"
#include "weight_memory.h"
#include "weight_rows.h"
#include "linear_tiles.h"
#include "transpose.h"
#include "product_tiles.h"
#include "norm_rows.h"
#include "argmax_rows.h"
#include "scale_search.h"
#include "quantize_rows.h"
#include "kv_slots.h"
#include "attention_tiles.h"
#include "attention_tasks.h"
#include "segment_tiles.h"
#include "segment_forward.h"
#include "segment_backward.h"

// choose_kernels adds the name and the products of int8 activations.
constexpr Kernels kKernels{nullptr, kFloats,         {},               attend,  argmax,
                           rms_norm, segment_forward, segment_backward, quantize};
