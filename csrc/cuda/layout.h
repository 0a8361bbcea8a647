// Where a matrix's elements lie in shared memory and in a warp's registers, and how work is cut. Plain arithmetic for
// host and device; tests/cuda runs it on the host.
//
// Shared memory: a matrix of R rows is cut into panels of 64 columns. A row of a panel is 128 bytes, eight chunks of 16;
// chunk c of row r lies at chunk c ^ (r & 7), so that eight rows' chunks of one column meet all 32 banks once (the
// 128-byte swizzle of the tensor-core instructions). Columns beyond the width are zeros.
//
// Registers: mma.m16n8k16. Lane 4g + t holds of the accumulator rows g and g+8, columns 2t and 2t+1.
#pragma once
#include <cstdint>

#include "../philox.h"

#if defined(__CUDACC__)
#define CARZERO_UNROLL _Pragma("unroll")
#define CARZERO_ROLL _Pragma("unroll 1")
#else
#define CARZERO_UNROLL
#define CARZERO_ROLL
#endif

namespace carzero::cuda {

inline constexpr int kPanelColumns = 64;
inline constexpr int kPanelRowBytes = 128;
inline constexpr int kChunkBytes = 16;
inline constexpr int kStepsPerPanel = 4;  // k16 steps
inline constexpr int kMaxRows = 256;      // P
inline constexpr int kMaxWidth = 256;     // K
inline constexpr int kMaxWarps = 8;

// Blocks of a launch: memories, heads (or 1), and the parts that a (memory, head)'s work is cut into. They are the axes of
// the grid as it is, so that no block has to divide.
struct Grid {
  int memories, heads, parts;
};

CARZERO_HOST_DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
CARZERO_HOST_DEVICE int panel_count(int width) { return ceil_div(width, kPanelColumns); }

// Offset of a 16-byte chunk in a matrix of `rows` rows.
CARZERO_HOST_DEVICE uint32_t chunk_offset(int rows, int panel, int row, int chunk) {
  return static_cast<uint32_t>((panel * rows + row) * kPanelRowBytes + ((chunk ^ (row & 7)) * kChunkBytes));
}

CARZERO_HOST_DEVICE uint32_t matrix_bytes(int rows, int panels) {
  return static_cast<uint32_t>(rows) * static_cast<uint32_t>(panels) * kPanelRowBytes;
}

// Which row and which of the two chunks of a 16 x 16 block a lane names to ldmatrix.x4. The four 8 x 8 matrices arrive
// in one register each, in this order:
//   left operand A [16 rows][16 k]:                 (rows 0-7, k 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15)
//   right operand B, two tiles, rows n, columns k:  (n 0-7, k 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15)
//   right operand B transposed, rows k, columns n:  (k 0-7, n 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15)
struct BlockChunk {
  int row, chunk;
};
CARZERO_HOST_DEVICE BlockChunk left_chunk(int lane) { return {lane & 15, lane >> 4}; }
CARZERO_HOST_DEVICE BlockChunk right_chunk(int lane) { return {(lane & 7) | ((lane >> 4) << 3), (lane >> 3) & 1}; }
CARZERO_HOST_DEVICE BlockChunk right_transposed_chunk(int lane) { return {lane & 15, lane >> 4}; }

// What a lane adds to the place of a 16 x 16 block in the first k16 step of a panel: the block's own chunks are 2 * step
// and the next, so that `at_step` names those of any step.
CARZERO_HOST_DEVICE uint32_t block_lane(BlockChunk c) {
  return static_cast<uint32_t>(c.row * kPanelRowBytes + ((c.chunk ^ (c.row & 7)) * kChunkBytes));
}
// The same place `step` steps on; `offset` is a multiple of 128 bytes and `block_lane`. One instruction, which keeps the
// kernels from holding an address for each step.
CARZERO_HOST_DEVICE uint32_t at_step(uint32_t offset, int step) {
  return offset ^ static_cast<uint32_t>(2 * step * kChunkBytes);
}
// Where rows from `row` on, a multiple of 8, begin in a panel.
CARZERO_HOST_DEVICE uint32_t rows_offset(int rows, int panel, int row) {
  return static_cast<uint32_t>((panel * rows + row) * kPanelRowBytes);
}

// Shared memory of the forward kernel: keys, values (or one panel of them), then a table of `rows` scores' biases, their
// row counts, and one word for 16 columns that marks the collapsed ones.
struct ForwardShared {
  uint32_t values, bias, counts, collapsed, bytes;
};
CARZERO_HOST_DEVICE ForwardShared forward_shared(int rows, int panels, bool resident) {
  ForwardShared s{};
  s.values = matrix_bytes(rows, panels);
  s.bias = s.values + matrix_bytes(rows, resident ? panels : 1);
  s.counts = s.bias + static_cast<uint32_t>(rows) * 4;
  s.collapsed = s.counts + static_cast<uint32_t>(rows) * 4;
  s.bytes = s.collapsed + static_cast<uint32_t>(rows / 16) * 4;
  return s;
}

// Shared memory of the forward kernel of sm_90a: keys, values, `stages` tiles of 64 queries, which all begin at multiples of
// 1024 bytes, the tables, two barriers a stage.
inline constexpr int kGroupRows = 64, kGroupThreads = 128;
struct GroupShared {
  ForwardShared rows;
  uint32_t stages, stage_bytes, barriers, bytes;
};
CARZERO_HOST_DEVICE uint32_t stage_at(const GroupShared& s, int i) {
  return s.stages + static_cast<uint32_t>(i) * s.stage_bytes;
}
CARZERO_HOST_DEVICE uint32_t full_at(const GroupShared& s, int i) { return s.barriers + static_cast<uint32_t>(i) * 16; }
CARZERO_HOST_DEVICE uint32_t empty_at(const GroupShared& s, int i) { return full_at(s, i) + 8; }
CARZERO_HOST_DEVICE GroupShared group_shared(int rows, int panels, int stages) {
  GroupShared s{};
  s.rows = forward_shared(rows, panels, true);
  s.stages = s.rows.bias;
  s.stage_bytes = matrix_bytes(kGroupRows, panels);
  const uint32_t moved = static_cast<uint32_t>(stages) * s.stage_bytes;
  s.rows.bias += moved;
  s.rows.counts += moved;
  s.rows.collapsed += moved;
  s.rows.bytes += moved;
  s.barriers = (s.rows.bytes + 15) / 16 * 16;
  s.bytes = full_at(s, stages);
  return s;
}

// A matrix in 128-byte-swizzled shared memory, as wgmma is told of it (PTX ISA, "Matrix descriptor"): address; bytes from
// 64 columns to the next, where columns lie next to each other and there are more of them; from eight rows to the next.
CARZERO_HOST_DEVICE uint64_t matrix_descriptor(uint32_t address, uint32_t panel_bytes = 0) {
  constexpr uint64_t eight_rows = 8 * kPanelRowBytes, swizzle_128 = 1;
  return static_cast<uint64_t>((address & 0x3FFFFu) >> 4) | static_cast<uint64_t>(panel_bytes >> 4) << 16 |
         (eight_rows >> 4) << 32 | swizzle_128 << 62;
}

// The descriptor of the same layout `bytes`, a multiple of 16, further on.
CARZERO_HOST_DEVICE uint64_t moved(uint64_t descriptor, uint32_t bytes) { return descriptor + (bytes >> 4); }

// Shared memory of the backward kernel that owns queries: `rows` keys and values at a time, tables of all `columns`, the
// log-sum-exps and row sums of each warp's 16 queries.
struct QueryShared {
  uint32_t values, bias, counts, rows, bytes;
};
CARZERO_HOST_DEVICE QueryShared query_shared(int rows, int columns, int panels) {
  QueryShared s{};
  s.values = matrix_bytes(rows, panels);
  s.bias = 2 * s.values;
  s.counts = s.bias + static_cast<uint32_t>(columns) * 4;
  s.rows = s.counts + static_cast<uint32_t>(columns) * 4;
  s.bytes = s.rows + kMaxWarps * 32 * 4;
  return s;
}

// Shared memory of the backward kernel that owns keys: its keys and values, two stages of queries and output gradients
// with their log-sum-exps and row sums, row counts, each warp's table of collapsed keys' shares. What lies before `counts` is taken again to add accumulators up.
inline constexpr uint32_t kSharesBytes = 16 * 16 * 4;
struct KeyShared {
  uint32_t values, queries, gradients, logsumexp, delta, stage_bytes, counts, bias, shares, bytes;
};
CARZERO_HOST_DEVICE KeyShared key_shared(int keys, int queries, int panels) {
  KeyShared s{};
  s.values = matrix_bytes(keys, panels);
  s.queries = 2 * s.values;
  s.gradients = matrix_bytes(queries, panels);
  s.logsumexp = 2 * s.gradients;
  s.delta = s.logsumexp + static_cast<uint32_t>(queries) * 4;
  s.stage_bytes = s.delta + static_cast<uint32_t>(queries) * 4;
  s.counts = s.queries + 2 * s.stage_bytes;
  s.bias = s.counts + static_cast<uint32_t>(keys) * 4;
  s.shares = s.bias + static_cast<uint32_t>(keys) * 4;
  s.bytes = s.shares + static_cast<uint32_t>(keys / 16 * queries / 16) * kSharesBytes;
  return s;
}

// Shared memory of the backward kernel of sm_90a: keys and values, padded to whole steps of 16; two stages of 64 queries and
// as many output gradients; of those 64 the rounded weights and the gradients of their scores, whose columns are keys. All
// these begin at multiples of 1024 bytes. Then tables of the keys, for each stage one of its queries (log-sum-exps, sums, a
// bit for each weight that dropout keeps), three barriers a stage, and two of a pair of blocks. Sums that one of the pair
// sends lie where the other's weights were, and beyond.
inline constexpr int kBackwardGroups = 3, kBackwardStages = 2, kBackwardKeys = 104;
// A block's keys: a multiple of 8, which dropout's blocks are.
CARZERO_HOST_DEVICE int backward_keys(int rows) {
  return ceil_div(ceil_div(rows, ceil_div(rows, kBackwardKeys)), 8) * 8;
}
// Eight bytes of kept bits for a group's keys of one query.
inline constexpr int kKeptBytes = 8;
struct BackwardShared {
  uint32_t values, stages, gradients, stage_bytes, weights, d_scores, bias, counts, collapsed, tables, delta,
      kept, table_bytes, barriers, free, arrived, bytes;
};
// Sixteen numbers of each of three groups' threads.
inline constexpr uint32_t kSentBytes = kBackwardGroups * kGroupThreads * 64;
CARZERO_HOST_DEVICE BackwardShared backward_shared(int key_tiles, bool pair) {
  const int rows = ceil_div(key_tiles, 2) * 16;
  BackwardShared s{};
  s.values = matrix_bytes(rows, kBackwardGroups);
  s.stages = 2 * s.values;
  s.gradients = matrix_bytes(kGroupRows, kBackwardGroups);
  s.stage_bytes = 2 * s.gradients;
  const uint32_t weights_bytes = matrix_bytes(kGroupRows, ceil_div(key_tiles, 8));
  s.d_scores = s.stages + kBackwardStages * s.stage_bytes;
  s.weights = s.d_scores + weights_bytes;
  s.bias = s.weights + (pair ? kSentBytes : weights_bytes);
  s.counts = s.bias + static_cast<uint32_t>(rows) * 4;
  s.collapsed = s.counts + static_cast<uint32_t>(rows) * 4;
  s.tables = (s.collapsed + static_cast<uint32_t>(rows / 16) * 4 + 15) / 16 * 16;
  s.delta = kGroupRows * 4;
  s.kept = 2 * s.delta;
  s.table_bytes = s.kept + kBackwardGroups * kGroupRows * kKeptBytes;
  s.barriers = s.tables + kBackwardStages * s.table_bytes;
  s.free = s.barriers + kBackwardStages * 24;
  s.arrived = s.free + 8;
  s.bytes = s.arrived + 8;
  return s;
}
CARZERO_HOST_DEVICE uint32_t stage_at(const BackwardShared& s, int i) {
  return s.stages + static_cast<uint32_t>(i) * s.stage_bytes;
}
CARZERO_HOST_DEVICE uint32_t table_at(const BackwardShared& s, int i) {
  return s.tables + static_cast<uint32_t>(i) * s.table_bytes;
}
// Barriers of a stage: its matrices have landed, its table is written, nobody reads either any more.
CARZERO_HOST_DEVICE uint32_t full_at(const BackwardShared& s, int i) {
  return s.barriers + static_cast<uint32_t>(i) * 24;
}
CARZERO_HOST_DEVICE uint32_t ready_at(const BackwardShared& s, int i) { return full_at(s, i) + 8; }
CARZERO_HOST_DEVICE uint32_t empty_at(const BackwardShared& s, int i) { return full_at(s, i) + 16; }

}  // namespace carzero::cuda
