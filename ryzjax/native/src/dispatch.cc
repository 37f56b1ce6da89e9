// Chooses the instruction set that this machine runs.
#include <cstring>

#include "kernels.h"

namespace ryzjax {
namespace {

bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

bool has_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
  return false;
#endif
}

}  // namespace

const Kernels* choose_kernels(const char* name) {
  const Kernels* available[] = {has_avx512() ? avx512_kernels() : nullptr, has_avx2() ? avx2_kernels() : nullptr,
                                portable_kernels()};
  for (const Kernels* kernels : available)
    if (kernels != nullptr && (*name == '\0' || std::strcmp(name, kernels->name) == 0)) return kernels;
  return nullptr;
}

}  // namespace ryzjax
