// The transpose of a float32 matrix.
//
// Requires: vectors.h before it.

// Returns a0 b0 a1 b1 ..., where a0 and b0 are the numbers at index kFrom of a and b.
template <int kFrom, int... kPlaces>
inline Vec interleaved(Vec a, Vec b, std::integer_sequence<int, kPlaces...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, (kFrom + kPlaces / 2 + kPlaces % 2 * kWidth)...);
#else
  return __builtin_shuffle(a, b, IntVec{(kFrom + kPlaces / 2 + kPlaces % 2 * kWidth)...});
#endif
}

// Transposes [rows, columns] to [columns, rows]. Both sizes must be multiples of kWidth.
inline void transpose(const float* from, int64_t rows, int64_t columns, int64_t from_row, float* to, int64_t to_row) {
  constexpr std::make_integer_sequence<int, kWidth> places;
  for (int64_t r = 0; r < rows; r += kWidth)
    for (int64_t c = 0; c < columns; c += kWidth) {
      Vec square[kWidth], other[kWidth];
      RYZJAX_UNROLL for (int i = 0; i < kWidth; ++i) square[i] = load(from + (r + i) * from_row + c);
      // Interleaving the two halves of the rows log2(kWidth) times transposes the square.
      RYZJAX_UNROLL for (int width = kWidth; width > 1; width /= 2) {
        RYZJAX_UNROLL for (int i = 0; i < kWidth / 2; ++i) {
          other[2 * i] = interleaved<0>(square[i], square[i + kWidth / 2], places);
          other[2 * i + 1] = interleaved<kWidth / 2>(square[i], square[i + kWidth / 2], places);
        }
        RYZJAX_UNROLL for (int i = 0; i < kWidth; ++i) square[i] = other[i];
      }
      RYZJAX_UNROLL for (int i = 0; i < kWidth; ++i) store(to + (c + i) * to_row + r, square[i]);
    }
}
