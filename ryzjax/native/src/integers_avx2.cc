// Products of int8 activations by AVX2.
#include "isa_includes.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

namespace ryzjax {
namespace {

#include "integers_avx2.h"

}  // namespace

const IntegerProducts* avx2_integers() { return &kIntegers; }

}  // namespace ryzjax
#else
namespace ryzjax {
const IntegerProducts* avx2_integers() { return nullptr; }
}  // namespace ryzjax
#endif
