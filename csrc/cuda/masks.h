// Dropout bits of blocks of softmax weights: the same Philox lanes as every other backend (csrc/philox.h), drawn so
// that each lane of a warp makes one call for a 16 x 16 block: eight keys of one query.
#pragma once
#include "calls.h"
#include "layout.h"

namespace carzero::cuda {

// Bit i is set where the lane of column 8c + i is kept.
CARZERO_HOST_DEVICE uint32_t kept_bits(const philox::Words& words, uint32_t threshold) {
  uint32_t bits = 0;
  CARZERO_UNROLL
  for (int i = 0; i < 4; ++i) {
    bits |= ((words.w[i] & 0xFFFFu) >= threshold ? 1u : 0u) << (2 * i);
    bits |= ((words.w[i] >> 16) >= threshold ? 1u : 0u) << (2 * i + 1);
  }
  return bits;
}

// One (memory, query, head)'s generator.
struct MaskRow {
  philox::Key key;
  uint32_t stream, memory, query, threshold;
};

CARZERO_HOST_DEVICE uint32_t kept_block(const MaskRow& row, int block) {
  return kept_bits(philox::words(row.key, row.stream, row.memory, row.query, static_cast<uint32_t>(block)),
                   row.threshold);
}

// Bits of the n columns from `first` on that lie in block 8 * block .. 8 * block + 7.
CARZERO_HOST_DEVICE uint32_t range_bits(int first, int n, int block) {
  const int low = first - 8 * block, high = first + n - 8 * block;
  const uint32_t below_high = high >= 8 ? 0xFFu : (high <= 0 ? 0u : (1u << high) - 1);
  const uint32_t below_low = low >= 8 ? 0xFFu : (low <= 0 ? 0u : (1u << low) - 1);
  return below_high & ~below_low;
}

// How many of the n columns from `first` on are kept, counting every `step`-th block from the `start`-th on.
CARZERO_HOST_DEVICE int kept_among(const MaskRow& row, int first, int n, int start, int step) {
  int kept = 0;
  CARZERO_ROLL
  for (int block = (first >> 3) + start; 8 * block < first + n; block += step) {
    uint32_t bits = kept_block(row, block) & range_bits(first, n, block);
    bits = (bits & 0x55) + (bits >> 1 & 0x55);
    bits = (bits & 0x33) + (bits >> 2 & 0x33);
    kept += static_cast<int>((bits & 0x0F) + (bits >> 4));
  }
  return kept;
}

CARZERO_HOST_DEVICE MaskRow mask_row(const Dropout& dropout, int head, int memory, int query) {
  return {philox::key_of(*dropout.seed),
          philox::stream(Site::attention, dropout.layer, dropout.direction, head),
          static_cast<uint32_t>(dropout.memory_index[memory]),
          static_cast<uint32_t>(dropout.query_index[memory * dropout.query_memory + query]),
          dropout.threshold};
}

}  // namespace carzero::cuda
