// The quantizer as a plain C function, which Python calls without XLA: while loading, the rows of many matrices are
// quantized on many threads, into buffers of the caller's choice, and no program has to be compiled for each shape.
#include "ffi_calls.h"

// The arguments are the fields of QuantizeArgs. Returns the number of weights that are NaN or infinite, or -1 if the
// arguments contradict each other.
extern "C" int64_t ryzjax_quantize(int64_t rows, int64_t k, int64_t dtype, const void* w, int64_t kind, int64_t group,
                                   int64_t pack, const float* table, int64_t table_size, void* values, void* scales) {
  using namespace ryzjax;
  const QuantizeArgs a = {rows, k,    static_cast<FloatKind>(dtype), w,      static_cast<QuantizeKind>(kind), group,
                          pack, table, table_size,                    values, scales};
  const bool is_int8 = a.kind == QuantizeKind::kInt8;
  if (kernels() == nullptr || rows < 0 || k <= 0 || dtype < 0 || dtype > 2 || kind < 0 || kind > 2) return -1;
  if (group <= 0 || k % group || (is_int8 ? pack != 0 : pack <= 0 || pack % 2 || k % pack)) return -1;
  if (a.kind == QuantizeKind::kInt4 && (table_size < 1 || table_size > kMaxFactors)) return -1;
  if (a.kind == QuantizeKind::kNormalFloat4 && table_size != kBounds) return -1;
  return kernels()->quantize(a);
}
