#include "attention.h"

namespace ryzjax {

std::string check_attention(const AttentionArgs& a) {
  const auto within = [](int64_t value, int64_t end) { return value >= 0 && value < end; };
  if (!within(a.layer, a.layers)) return "layer " + std::to_string(a.layer) + " is not in the cache";
  if (!within(a.num_rows, a.rows + 1) || !within(a.num_decode_rows, a.num_rows + 1))
    return "more rows than the batch has";
  for (int64_t t = 0; t < a.tokens; ++t)
    if (!within(a.write_page[t], a.pages) || !within(a.write_offset[t], a.page_size))
      return "token " + std::to_string(t) + " is written outside the cache";
  int64_t end = 0;
  for (int64_t r = 0; r < a.num_rows; ++r) {
    const int64_t length = a.query_len[r], context = a.context_len[r];
    if (a.query_start[r] != end || length < 0 || end + length > a.tokens || (r < a.num_decode_rows && length != 1))
      return "the tokens of row " + std::to_string(r) + " do not follow those before";
    end += length;
    if (context < length || context > a.row_pages * a.page_size)
      return "the context of row " + std::to_string(r) + " does not fit its pages";
    for (int64_t p = 0; p * a.page_size < context; ++p)
      if (!within(a.page_table[r * a.row_pages + p], a.pages))
        return "row " + std::to_string(r) + " has a page outside the cache";
  }
  return "";
}

}  // namespace ryzjax
