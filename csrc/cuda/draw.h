// How a warp draws the dropout bits of 16 queries x 16 keys: one Philox call a lane.
#pragma once
#include "masks.h"
#include "warp.h"

namespace carzero::cuda {

// The generator of query `lane & 15` of a tile; beyond the last query that of the first, whose bits nobody uses.
CARZERO_DEVICE MaskRow lane_mask(const Dropout& dropout, int head, int memory, int row0, int queries) {
  const int query = row0 + (thread_index() & 15);
  return mask_row(dropout, head, memory, query < queries ? query : 0);
}

// Bit i of lanes l and l + 16: whether key i of the block is kept for query l. Lanes 0-15 draw the first eight keys,
// lanes 16-31 the others; `block8` is a lane's own.
CARZERO_DEVICE uint32_t draw_bits(const MaskRow& mask, int block8) {
  const uint32_t mine = kept_block(mask, block8), other = shuffle_xor(mine, 16);
  return (thread_index() & 16) ? other | mine << 8 : mine | other << 8;
}

// Which of 16 rows, whose counts lie at `counts`, stand for several.
CARZERO_DEVICE uint32_t collapsed_rows(Shared s, uint32_t counts) {
  const int lane = thread_index() & 31;
  return ballot(lane < 16 && s.get<int>(counts + static_cast<uint32_t>(lane & 15) * 4) > 1);
}

// A 16 x 16 block's bits, and which of its rows are collapsed, whose bits count for nothing.
struct DrawnTile {
  uint32_t bits, marks;
};
CARZERO_DEVICE DrawnTile draw_tile(const Dropout& dropout, Shared s, uint32_t counts, bool counted, int head,
                                   int memory, int row0, int queries, int key0) {
  const MaskRow mask = lane_mask(dropout, head, memory, row0, queries);
  return {draw_bits(mask, (key0 >> 3) + ((thread_index() & 16) >> 4)), counted ? collapsed_rows(s, counts) : 0u};
}

// The kept share of a collapsed row's n columns from `first` on, for query `lane & 15`: lanes l and l + 16 each count
// every second block.
CARZERO_DEVICE float collapsed_share(const MaskRow& mask, int first, int n) {
  const float kept = static_cast<float>(kept_among(mask, first, n, (thread_index() & 16) >> 4, 2));
  return (kept + shuffle_xor(kept, 16)) / static_cast<float>(n);
}

}  // namespace carzero::cuda
