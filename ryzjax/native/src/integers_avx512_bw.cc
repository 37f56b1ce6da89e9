// Products of int8 activations by AVX-512BW: Skylake-X.
#include "isa_includes.h"

#if defined(__AVX512BW__)
#include <immintrin.h>

namespace ryzjax {
namespace {

#include "integers_avx512.h"

}  // namespace

const IntegerProducts* avx512_bw_integers() { return &kIntegers; }

}  // namespace ryzjax
#else
namespace ryzjax {
const IntegerProducts* avx512_bw_integers() { return nullptr; }
}  // namespace ryzjax
#endif
