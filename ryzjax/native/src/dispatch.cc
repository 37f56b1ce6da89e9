// Chooses the instruction set that this machine runs.
#include <cstring>
#include <vector>

#include "kernels.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace ryzjax {
namespace {

#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512_bw() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
bool has_avx512_vnni() { return has_avx512_bw() && __builtin_cpu_supports("avx512vnni"); }
bool has_avx512_bf16() { return has_avx512_vnni() && __builtin_cpu_supports("avx512bf16"); }
bool has_avx_vnni() {
#if defined(RYZJAX_AVX_VNNI_BY_AVX512)
  return has_avx512_vnni();
#else
  return has_avx2() && __builtin_cpu_supports("avxvnni");
#endif
}
#else
bool has_avx2() { return false; }
bool has_avx_vnni() { return false; }
bool has_avx512_bw() { return false; }
bool has_avx512_vnni() { return false; }
bool has_avx512_bf16() { return false; }
#endif

bool has_dotprod() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long kDotProducts = 1 << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProducts;
#elif defined(__aarch64__) && defined(__APPLE__)
  return true;
#else
  return false;
#endif
}

// The instruction sets, fastest first. Products of int8 activations have instructions of their own, so an instruction
// set is a pair: AVX-512 without bfloat16 products computes everything else with AVX2.
std::vector<Kernels> runnable_kernels() {
  std::vector<Kernels> found;
  const auto add = [&](const char* name, bool is_here, const Kernels* kernels, const IntegerProducts* integers) {
    if (!is_here || kernels == nullptr || integers == nullptr) return;
    found.push_back(*kernels);
    found.back().name = name;
    found.back().integers = *integers;
  };
  add("avx512", has_avx512_bf16(), avx512_kernels(), avx512_vnni_integers());
  add("avx512-vnni", has_avx512_vnni(), avx2_kernels(), avx512_vnni_integers());
  add("avx2-vnni", has_avx_vnni(), avx2_kernels(), avx_vnni_integers());
  add("avx512-bw", has_avx512_bw(), avx2_kernels(), avx512_bw_integers());
  add("avx2", has_avx2(), avx2_kernels(), avx2_integers());
  add("dotprod", has_dotprod(), portable_kernels(), dotprod_integers());
  add("portable", true, portable_kernels(), portable_integers());
  return found;
}

}  // namespace

const Kernels* choose_kernels(const char* name) {
  static const std::vector<Kernels> runnable = runnable_kernels();
  for (const Kernels& kernels : runnable)
    if (*name == '\0' || std::strcmp(name, kernels.name) == 0) return &kernels;
  return nullptr;
}

}  // namespace ryzjax
