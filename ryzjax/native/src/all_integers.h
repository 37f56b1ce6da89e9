// The products of int8 activations for one instruction set, and the table `kIntegers` of them.
//
// Requires: isa_includes.h, and `struct Isa` before it. Each integers_*.cc includes this header once, inside its anonymous
// namespace.
//
// `Isa` provides:
//   kWidth            the number of floats in a Vec, and of rows of W in a block
//   Vec, fma          a vector of float32, and a * b + c
//   load_half         kWidth float16 as float32
//   Bytes             a vector of 4 bytes for each of kWidth rows
//   load              16 bytes of each of kWidth rows, transposed into 4 vectors
//   low_nibbles, high_nibbles, table, look_up
//   biased, kBias     int8 as the integer units take them: w + kBias
//   four_columns      4 columns of x, for every row
//   Dot<is_signed>    sums of products of nibbles, or of biased int8, with int8: zero, add, and total as float32
//   kBlocks           blocks whose units are in registers at the same time
//   kPrefetchLocality, kPrefetchAhead   how weights are prefetched

#include "vectors.h"
#include "transpose.h"
#include "weight_memory.h"
#include "integer_rows.h"
#include "integer_tiles.h"
