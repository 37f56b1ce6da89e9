// Products of int8 activations by AVX-512 VNNI: Ice Lake, Zen 4 and later.
#include "isa_includes.h"

#if defined(__AVX512BW__) && defined(__AVX512VNNI__)
#include <immintrin.h>

namespace ryzjax {
namespace {

#define RYZJAX_AVX512_VNNI
#include "integers_avx512.h"

}  // namespace

const IntegerProducts* avx512_vnni_integers() { return &kIntegers; }

}  // namespace ryzjax
#else
namespace ryzjax {
const IntegerProducts* avx512_vnni_integers() { return nullptr; }
}  // namespace ryzjax
#endif
