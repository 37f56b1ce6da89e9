// Every kernel for one instruction set, and the table `kKernels` of them.
//
// Requires: isa_includes.h, and `struct Isa` before it. avx512.cc, avx2.cc and portable.cc each include this header
// once, inside their anonymous namespace, so each compiles its own copy of the kernels with its own compiler flags. The
// order of the headers matters: each may use what those above it define.

#include "vectors.h"
#include "weight_rows.h"
#include "linear_tiles.h"
#include "norm_rows.h"
#include "argmax_rows.h"
#include "kv_slots.h"
#include "attention_tiles.h"
#include "attention_tasks.h"
#include "product_tiles.h"
#include "segment_tiles.h"
#include "segment_forward.h"
#include "segment_backward.h"

constexpr Kernels kKernels{Isa::kName, run_linear, attend, argmax, rms_norm, segment_forward, segment_backward};
