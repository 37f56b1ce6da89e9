// Runs y = x W^T for several matrices of one x in one parallel loop (contract: linear.h).
#include <algorithm>
#include <memory>
#include <vector>

#include "kernels.h"

namespace ryzjax {

void Kernels::linear(const LinearArgs* matrices, int64_t count, const Threads& threads) const {
  // These belong to the calling thread. Other threads read them while this one waits for the loop to end.
  thread_local std::vector<const void*> prepared;
  thread_local std::vector<std::unique_ptr<AlignedBuffer>> buffers;
  thread_local AlignedBuffer quantized_memory;
  QuantizedRows quantized = {};
  prepared.assign(count, nullptr);
  for (int64_t i = 0; i < count; ++i) {
    if (matrices[i].activations == Activations::kInt8) {
      if (quantized.values == nullptr) quantized = integers.quantize(matrices[i], quantized_memory, threads);
      continue;
    }
    int64_t same = 0;  // matrices of one format share their prepared x
    while (matrices[same].kind != matrices[i].kind || matrices[same].pack != matrices[i].pack ||
           matrices[same].activations != matrices[i].activations)
      ++same;
    if (static_cast<int64_t>(buffers.size()) <= i) buffers.resize(i + 1);
    if (buffers[i] == nullptr) buffers[i] = std::make_unique<AlignedBuffer>();
    prepared[i] = same < i ? prepared[same] : floats.prepared_x(matrices[i], *buffers[i], threads);
  }
  const void* const* const xs = prepared.data();
  int64_t all = 0;
  for (int64_t i = 0; i < count; ++i) all += matrices[i].n;
  const auto rows_of = [&](const LinearArgs& a) {
    return (a.activations == Activations::kInt8 ? integers.task_rows : floats.task_rows)(a, all, threads);
  };
  int64_t tasks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t rows = rows_of(matrices[i]);
    tasks += (matrices[i].n + rows - 1) / rows;
  }
  parallel_for(threads, tasks, [&](int64_t task) {
    const LinearArgs* a = matrices;
    int64_t rows = rows_of(*a);
    for (int64_t matrix_tasks; task >= (matrix_tasks = (a->n + rows - 1) / rows); rows = rows_of(*a))
      task -= matrix_tasks, ++a;
    const int64_t first = task * rows, last = std::min(a->n, first + rows);
    if (a->activations == Activations::kInt8) return integers.multiply(*a, quantized, first, last);
    floats.multiply(*a, xs[a - matrices], first, last);
  });
}

}  // namespace ryzjax
