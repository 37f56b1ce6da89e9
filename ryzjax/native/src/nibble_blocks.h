// Reads nibbles in blocks of 64 bytes, for instruction sets that define RYZJAX_NIBBLE_BLOCKS.
//
// Requires: NibbleRow and Fetch of weight_rows.h, which includes this header.
//
// A 16-bit word holds four nibbles, and a shift brings each of them to the bits that the table look-up reads. The 128
// columns of a block are therefore read in this order: low nibbles of even bytes, low nibbles of odd bytes, high
// nibbles of even bytes, high nibbles of odd bytes. x is reordered in the same way once, before the product.
//
// Building the tables takes most of the time where groups are small. A block of four runs of 32 columns therefore builds
// all its tables together, and looks up in all four with one instruction.

#ifdef RYZJAX_NIBBLE_BLOCKS

constexpr int64_t kNibbleBlock = 128;  // columns

// The number of columns that are read in blocks. They are the first of a row, and x is reordered for them.
inline int64_t reordered_columns(const LinearArgs& a) {
  if (a.kind != WeightKind::kNibbles || (a.pack != 32 && a.pack != 64 && a.pack % kNibbleBlock)) return 0;
  return a.k / kNibbleBlock * kNibbleBlock;
}

// Copies a row of x with its columns in the order of the blocks. Columns after the last block keep their order.
inline void reorder_row(const LinearArgs& a, const uint16_t* x, uint16_t* to) {
  const int64_t half = a.pack / 2;
  int64_t k = 0;
  for (const int64_t end = reordered_columns(a); k < end; k += kNibbleBlock) {
    if (a.pack == 32) {
      for (int64_t high = 0; high < 2; ++high) {
        uint16_t columns[64];  // of the low or the high nibbles of four runs
        for (int64_t run = 0; run < 4; ++run) std::memcpy(columns + 16 * run, x + k + 32 * run + 16 * high, 32);
        Isa::split_even_odd(columns, columns + 32, to + k + 64 * high);
      }
      continue;
    }
    // First columns of the low nibbles of the block's first 32 bytes and of its other 32 bytes. The columns of the high
    // nibbles lie half a run further.
    const int64_t run = k / a.pack * a.pack;
    const int64_t low = a.pack == 64 ? k : run + (k - run) / 2, next = a.pack == 64 ? k + 64 : low + 32;
    Isa::split_even_odd(x + low, x + next, to + k);
    Isa::split_even_odd(x + low + half, x + next + half, to + k + 64);
  }
  std::memcpy(to + k, x + k, (a.k - k) * 2);
}

// As walk_reordered. kTwoTables says that the two halves of a block may belong to different groups.
template <bool kHasZeros, bool kTwoTables, typename Row, int R, typename Use>
inline __attribute__((always_inline)) void walk_blocks(const LinearArgs& a, Row (&rows)[R], int64_t end, Fetch& fetch,
                                                       Use&& use) {
  const auto codes = Isa::codes(rows[0].codebook, kHasZeros);
  const auto codes_of = [&](const Row& row, int64_t group) __attribute__((always_inline)) {
    return kHasZeros ? Isa::subtract(codes, row.zero(group)) : codes;
  };
  for (int64_t k = 0; k < end; k += kNibbleBlock) {
    Isa::Words words[R];
    Isa::Table tables[R];
    Isa::Chunk w[R];
    const int64_t first = k / a.group, second = kTwoTables ? (k + 64) / a.group : first;
    fetch.template next<64 * R>();
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      const Row& row = rows[r];
      const float* const scales = row.scales.values;
      words[r] = Isa::load_words(row.values + k / 2);
      tables[r] = kTwoTables ? Isa::tables(codes_of(row, first), scales[first], codes_of(row, second), scales[second])
                             : Isa::table_twice(codes_of(row, first), scales[first]);
    }
#define RYZJAX_CHUNK(AT, SHIFT)                                                                                      \
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = Isa::from_words<SHIFT, kTwoTables>(words[r], tables[r]);          \
  use(k + AT, 32, w);
    RYZJAX_CHUNK(0, 0) RYZJAX_CHUNK(32, 8) RYZJAX_CHUNK(64, 4) RYZJAX_CHUNK(96, 12)
#undef RYZJAX_CHUNK
  }
}

// As walk_reordered, for runs of 32 columns, which may belong to four groups.
template <bool kHasZeros, typename Row, int R, typename Use>
inline __attribute__((always_inline)) void walk_four_runs(const LinearArgs& a, Row (&rows)[R], int64_t end, Fetch& fetch,
                                                          Use&& use) {
  const auto codes = Isa::codes(rows[0].codebook, kHasZeros);
  const bool is_one_a_run = a.group == 32;
  for (int64_t k = 0; k < end; k += kNibbleBlock) {
    Isa::Words words[R];
    Isa::Table first[R], last[R];  // of the first two runs, and of the last two
    Isa::Chunk w[R];
    fetch.template next<64 * R>();
    RYZJAX_UNROLL for (int r = 0; r < R; ++r) {
      const Row& row = rows[r];
      const auto both = [&](int64_t run) __attribute__((always_inline)) {
        const int64_t g = is_one_a_run ? k / 32 + run : (k + 32 * run) / a.group;
        const int64_t h = is_one_a_run ? g + 1 : (k + 32 * run + 32) / a.group;
        return Isa::tables(kHasZeros ? Isa::subtract(codes, row.zero(g)) : codes, row.scales.values[g],
                           kHasZeros ? Isa::subtract(codes, row.zero(h)) : codes, row.scales.values[h]);
      };
      words[r] = Isa::load_words(row.values + k / 2);
      first[r] = both(0), last[r] = both(2);
    }
#define RYZJAX_CHUNK(AT, SHIFT)                                                                                      \
  RYZJAX_UNROLL for (int r = 0; r < R; ++r) w[r] = Isa::from_words_of_four<SHIFT>(words[r], first[r], last[r]);      \
  use(k + AT, 32, w);
    RYZJAX_CHUNK(0, 0) RYZJAX_CHUNK(32, 8) RYZJAX_CHUNK(64, 4) RYZJAX_CHUNK(96, 12)
#undef RYZJAX_CHUNK
  }
}

// Calls use(k, count, w) for the chunks w of R rows, over the reordered columns [0, end).
template <typename Row, int R, typename Use>
inline __attribute__((always_inline)) void walk_reordered(const LinearArgs& a, Row (&rows)[R], int64_t end, Fetch& fetch,
                                                          Use&& use) {
  const bool two = a.group % kNibbleBlock != 0;
  if (a.pack == 32) {
    a.zeros ? walk_four_runs<true>(a, rows, end, fetch, use) : walk_four_runs<false>(a, rows, end, fetch, use);
  } else if (a.zeros) {
    two ? walk_blocks<true, true>(a, rows, end, fetch, use) : walk_blocks<true, false>(a, rows, end, fetch, use);
  } else {
    two ? walk_blocks<false, true>(a, rows, end, fetch, use) : walk_blocks<false, false>(a, rows, end, fetch, use);
  }
}

#else

inline int64_t reordered_columns(const LinearArgs&) { return 0; }
inline void reorder_row(const LinearArgs&, const uint16_t*, uint16_t*) {}
template <typename Row, int R, typename Use>
inline void walk_reordered(const LinearArgs&, Row (&)[R], int64_t, Fetch&, Use&&) {}

#endif
