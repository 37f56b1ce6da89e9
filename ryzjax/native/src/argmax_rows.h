// Argmax and logsumexp of rows (contract: argmax.h).
//
// Requires: vectors.h before it.

inline void argmax_row(const ArgmaxArgs& a, int64_t row) {
  const float* x = a.x + row * a.size;
  const int64_t whole = a.size / kWidth * kWidth;
  Vec tops = splat(-INFINITY), nan = {};
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec values = load(x + i);
    tops = larger(tops, values);
    nan += values - values;  // becomes NaN if a number is NaN or infinite; the scan below tells them apart
  }
  float top = largest(tops), odd = total(nan);
  for (int64_t i = whole; i < a.size; ++i) {
    top = x[i] > top ? x[i] : top;
    odd += x[i] - x[i];
  }
  int64_t at = 0;
  if (std::isnan(odd)) {
    for (int64_t i = 0; i < a.size; ++i)
      if (std::isnan(x[i])) {
        a.argmax[row] = static_cast<int32_t>(i);
        a.logsumexp[row] = NAN;
        return;
      }
  }
  while (at + 1 < a.size && x[at] != top) ++at;
  a.argmax[row] = static_cast<int32_t>(at);
  if (std::isinf(top)) {
    a.logsumexp[row] = top;
    return;
  }
  Vec sums = {};
  const Vec middle = splat(top);
  for (int64_t i = 0; i < whole; i += kWidth) sums += exponential(load(x + i) - middle);
  float sum = total(sums);
  for (int64_t i = whole; i < a.size; ++i) sum += std::exp(x[i] - top);
  a.logsumexp[row] = top + std::log(sum);
}

void argmax(const ArgmaxArgs& a, const Threads& threads) {
  parallel_for(threads, a.rows, [&](int64_t row) { argmax_row(a, row); });
}
