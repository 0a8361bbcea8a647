// Filling shared memory: matrices of keys, values or queries, and the tables of a memory's rows.
#pragma once
#include "calls.h"
#include "warp.h"

namespace carzero::cuda {

// Which row of a memory stands in row r of a matrix: r itself, or, with absorption, all heads' rows one after the other,
// each head's padded to whole tiles of 8.
template <bool kAbsorbed>
struct RowMap {
  int rows, heads, group;  // P; with absorption also H and the padded rows of a head
  CARZERO_DEVICE int head(int r) const { return kAbsorbed ? r / group : 0; }
  CARZERO_DEVICE int row(int r) const { return kAbsorbed ? r % group : r; }
  CARZERO_DEVICE bool valid(int r) const { return (!kAbsorbed || r < heads * group) && row(r) < rows; }
};

// A call's row counts of one memory, or null. Pointers are made where they are used, from the call's constants: kept, they
// would be the registers that spill.
template <class Call>
CARZERO_DEVICE const int32_t* counts_of(const Call& c, int memory) {
  return c.count == nullptr ? nullptr : c.count + static_cast<int64_t>(memory) * c.rows;
}
// Where one memory's keys, or values, begin.
template <class Call>
CARZERO_DEVICE const uint16_t* keys_of(const Call& c, const void* base, int memory, int column0) {
  return static_cast<const uint16_t*>(base) + static_cast<int64_t>(memory) * c.kv_memory + column0;
}

// Begins to copy rows `first` .. `first + rows - 1` of `panels` panels from `first_panel` on; rows that are not valid and
// columns beyond the width become zeros, and so do absent rows, which may hold anything. A warp copies a row at a time;
// the first `threads` of the block take part.
template <bool kAbsorbed>
CARZERO_DEVICE void copy_rows(Shared s, uint32_t offset, int rows, int panels, const uint16_t* from, int64_t stride,
                              int first, int first_panel, int width, RowMap<kAbsorbed> map, const int32_t* count,
                              int threads = thread_count()) {
  const int lane = thread_index() & 31, warps = threads >> 5;
  CARZERO_ROLL
  for (int r = thread_index() >> 5; r < rows; r += warps) {
    const int row = map.row(first + r);
    const bool there = map.valid(first + r) && (count == nullptr || count[row] > 0);
    const uint16_t* source = from + (static_cast<int64_t>(map.head(first + r)) * map.rows + row) * stride;
    CARZERO_ROLL
    for (int chunk = lane; chunk < panels * (kPanelColumns / 8); chunk += 32) {
      const int column = (first_panel * (kPanelColumns / 8) + chunk) * 8;
      const uint32_t to = offset + chunk_offset(rows, chunk >> 3, r, chunk & 7);
      if (there && column < width) {
        copy16(s, to, source + column);
      } else {
        s.clear16(to);
      }
    }
  }
}

// log2 of each row's count, minus infinity where there is no row, and the counts; by the first `threads` of the block.
template <bool kAbsorbed>
CARZERO_DEVICE void fill_tables(Shared s, uint32_t bias, uint32_t counts, int rows, RowMap<kAbsorbed> map,
                                const int32_t* count, const float* key_bias, float scale_log2,
                                int threads = thread_count()) {
  CARZERO_ROLL
  for (int r = thread_index(); r < rows; r += threads) {
    const int n = !map.valid(r) ? 0 : (count == nullptr ? 1 : count[map.row(r)]);
    float b = n > 0 ? log2_of(static_cast<float>(n)) : -infinity();
    if (key_bias != nullptr && n > 0) b += key_bias[map.head(r) * map.rows + map.row(r)] * scale_log2;
    s.set(bias + static_cast<uint32_t>(r) * 4, b);
    s.set(counts + static_cast<uint32_t>(r) * 4, n);
  }
}

// One word for 16 rows: which of them stand for several; by the first `threads` of the block.
template <int kTiles>
CARZERO_DEVICE void mark_collapsed(Shared s, uint32_t counts, uint32_t collapsed, int threads = thread_count()) {
  for (int j = thread_index(); j < kTiles; j += threads) {
    uint32_t marks = 0;
    for (int i = 0; i < 16; ++i) {
      marks |= (s.get<int>(counts + static_cast<uint32_t>(16 * j + i) * 4) > 1 ? 1u : 0u) << i;
    }
    s.set(collapsed + static_cast<uint32_t>(j) * 4, marks);
  }
}

}  // namespace carzero::cuda
