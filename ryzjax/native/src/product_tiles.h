// Products of float32 matrices that fit in the caches.
//
// Requires: vectors.h before it.
//
// A tile of the result stays in registers while its sums grow. The left matrix is read number by number, the right one
// in vectors. Each sum is one chain in the order of the inner index, for every size of tile.

constexpr int kProductRows = 6;
constexpr int kProductVectors = Isa::kValueVectors;

// The left matrix. Its element (m, i) is at[m * row + i * step], so it may be transposed.
struct Left {
  const float* at;
  int64_t row, step;
};

// A matrix whose rows are read or written in vectors. `row` is the number of elements between two rows.
template <typename T>
struct RowsOf {
  T* at;
  int64_t row;
};
using Right = RowsOf<const float>;
using Result = RowsOf<float>;

// The extent of a tile: it sums over inner indices [from, to), and covers vectors [first, last) of the rows.
struct Extent {
  int64_t from, to, first, last;
};

// M rows and V vectors of c = a b, or of c += a b if `adds`.
template <int M, int V>
inline void product_tile(Left a, Right b, int64_t from, int64_t to, bool adds, Result c) {
  Vec sums[M][V];
  RYZJAX_UNROLL for (int m = 0; m < M; ++m)
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[m][v] = adds ? load(c.at + m * c.row + v * kWidth) : Vec{};
  for (int64_t i = from; i < to; ++i) {
    Vec right[V];
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) right[v] = load(b.at + i * b.row + v * kWidth);
    RYZJAX_UNROLL for (int m = 0; m < M; ++m) {
      const Vec left = splat(a.at[m * a.row + i * a.step]);
      RYZJAX_UNROLL for (int v = 0; v < V; ++v) sums[m][v] = Isa::fma(left, right[v], sums[m][v]);
    }
  }
  RYZJAX_UNROLL for (int m = 0; m < M; ++m)
    RYZJAX_UNROLL for (int v = 0; v < V; ++v) store(c.at + m * c.row + v * kWidth, sums[m][v]);
}

template <int M>
void product_rows(Left a, Right b, Extent extent, bool adds, Result c) {
  const auto tile = [&](auto vectors, int64_t v) {
    constexpr int V = decltype(vectors)::value;
    product_tile<M, V>(a, {b.at + v * kWidth, b.row}, extent.from, extent.to, adds, {c.at + v * kWidth, c.row});
  };
  int64_t v = extent.first;
  for (; v + kProductVectors <= extent.last; v += kProductVectors) tile(std::integral_constant<int, kProductVectors>(), v);
  if constexpr (kProductVectors > 2) {
    if (extent.last - v == 3) return tile(std::integral_constant<int, 3>(), v);
    if (extent.last - v == 2) return tile(std::integral_constant<int, 2>(), v);
  }
  if (extent.last - v == 1) tile(std::integral_constant<int, 1>(), v);
}

// Computes rows [0, rows) of c = a b, or of c += a b if `adds`. `extent_of(first, last)` returns the extent of rows
// [first, last). Vectors of c outside that extent are not written.
template <typename ExtentOf>
void product(Left a, Right b, int64_t rows, bool adds, Result c, const ExtentOf& extent_of) {
  const auto some = [&](auto count, int64_t at) {
    constexpr int M = decltype(count)::value;
    product_rows<M>({a.at + at * a.row, a.row, a.step}, b, extent_of(at, at + M), adds, {c.at + at * c.row, c.row});
    return at + M;
  };
  int64_t at = 0;
  while (at + kProductRows <= rows) at = some(std::integral_constant<int, kProductRows>(), at);
  if (at + 4 <= rows) at = some(std::integral_constant<int, 4>(), at);
  if (at + 2 <= rows) at = some(std::integral_constant<int, 2>(), at);
  if (at + 1 <= rows) some(std::integral_constant<int, 1>(), at);
}
