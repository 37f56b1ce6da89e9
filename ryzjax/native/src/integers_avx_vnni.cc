// Products of int8 activations by AVX-VNNI: Alder Lake, Sierra Forest, Zen 5 and later.
#include "isa_includes.h"

#if (defined(__AVXVNNI__) || defined(RYZJAX_AVX_VNNI_BY_AVX512)) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

namespace ryzjax {
namespace {

#define RYZJAX_AVX_VNNI
#include "integers_avx2.h"

}  // namespace

const IntegerProducts* avx_vnni_integers() { return &kIntegers; }

}  // namespace ryzjax
#else
namespace ryzjax {
const IntegerProducts* avx_vnni_integers() { return nullptr; }
}  // namespace ryzjax
#endif
