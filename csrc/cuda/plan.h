// Which kernel runs a call and how it is cut: numbers for the host. No choice here changes a bit of a result, but for
// d_k and d_v, whose sums over queries follow the number of query groups, and for the instruction of the products on
// sm_90a, which both add up in float32, in orders of their own.
#pragma once
#include <algorithm>
#include <cstdint>

#include "calls.h"
#include "layout.h"

namespace carzero::cuda {

// X(tiles of 16 keys, 16-query tiles of a warp, most warps of a block, blocks of them that registers must leave room for)
#define CARZERO_FORWARD_VARIANTS(X) \
  X(1, 1, 4, 3) X(2, 1, 4, 3) X(4, 2, 8, 1) X(7, 2, 8, 1) X(13, 1, 8, 1) X(16, 1, 8, 1)
#define CARZERO_ABSORBED_VARIANTS(X) X(4, 2, 8, 1)
// X(tiles of 16 keys, panels of the head width) of the forward kernel of sm_90a
#define CARZERO_WGMMA_VARIANTS(X) X(4, 3) X(7, 3) X(13, 3)
// X(tiles of 8 keys of a block, whether two blocks share a memory's keys) of the backward kernel of sm_90a, which has three
// panels
#define CARZERO_BACKWARD_VARIANTS(X) X(8, false) X(13, false) X(8, true) X(13, true)
// X(panels of the head width, panels of d_q made at a time, collapsed rows under dropout); the first that will do is taken
#define CARZERO_QUERY_VARIANTS(X) X(1, 1, true) X(2, 2, true) X(3, 3, false) X(3, 2, true) X(4, 1, true)
// X(panels of d_k and d_v made by a block)
#define CARZERO_KEY_VARIANTS(X) X(1) X(2) X(3)

inline constexpr int kAbsorbedRows = 64;

struct Device {
  int64_t shared_bytes;  // that a block may have
  int multiprocessors;
  bool wgmma;  // compute capability 9.0, and built for it
};

// What to launch; the grid is empty where the device's shared memory is too small for the call.
struct Launch {
  Grid grid{0, 0, 0};
  int cluster = 1;  // parts that run together
  int threads = 0;
  uint32_t shared = 0;
  int variant = 0;         // the first template argument above
  bool wgmma = false;      // a kernel of sm_90a
  bool collapsed = false;  // whether a query kernel must know collapsed rows
};

struct ForwardShape {
  int row_tiles = 0, warps = 0;
};
inline ForwardShape forward_shape(int tiles) {
#define CARZERO_CASE(kTiles, kRowTiles, kWarps, kBlocks) \
  if (tiles == kTiles) return {kRowTiles, kWarps};
  CARZERO_FORWARD_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return {};
}

// Blocks that share a memory's queries, so that a small call fills the device.
inline int split_queries(int64_t blocks, int tiles, int warps, const Device& device) {
  const int most = std::max(1, ceil_div(tiles, warps));
  const int64_t wanted = 2 * static_cast<int64_t>(device.multiprocessors);
  return static_cast<int>(std::clamp<int64_t>((wanted + blocks - 1) / std::max<int64_t>(blocks, 1), 1, most));
}

// [memories, queries, heads, columns], as boxes are read of it: a box, 1 x 64 x 1 x 64, is a panel of a tile. Axes are told
// innermost first.
struct QueryTensor {
  uint64_t sizes[4], strides[3];  // in elements; in bytes, of all axes but the first
};
template <class Call>
QueryTensor query_tensor(const Call& c, int64_t memory_stride, int64_t row_stride) {
  // one memory, or one that all share
  const bool single = memory_stride == 0 || c.memories == 1;
  const auto row = static_cast<uint64_t>(row_stride) * 2, width = static_cast<uint64_t>(c.width);
  const auto queries = static_cast<uint64_t>(c.queries);
  return {{width, static_cast<uint64_t>(c.heads), queries, single ? 1 : static_cast<uint64_t>(c.memories)},
          {width * 2, row, single ? row * queries : static_cast<uint64_t>(memory_stride) * 2}};
}

// The kernel of sm_90a, where there is one for the call. Not for few rows, where reading queries and writing results is
// what takes the time, nor for few queries, where most of a tile of 64 would be empty.
inline Launch plan_forward_wgmma(ForwardCall& c, const Device& device) {
  Launch launch;
  const int tiles = ceil_div(c.rows, 16), panels = panel_count(c.width);
  if (!device.wgmma || c.rows <= 32 || c.queries <= 32) return launch;
#define CARZERO_CASE(kTiles, kPanels) \
  if (!launch.variant && tiles <= kTiles && panels == kPanels) launch.variant = kTiles;
  CARZERO_WGMMA_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  if (!launch.variant) return launch;
  const int row_tiles = ceil_div(c.queries, kGroupRows), groups = std::min(row_tiles, 2);
  for (c.stages = 2; c.stages > 0; --c.stages) {
    launch.shared = group_shared(launch.variant * 16, panels, groups * c.stages).bytes;
    if (launch.shared <= device.shared_bytes) break;
  }
  if (c.stages == 0) return launch;
  launch.wgmma = true;
  launch.threads = (groups + 1) * kGroupThreads;
  const int heads = c.maps != nullptr ? 1 : c.heads;
  c.splits = split_queries(static_cast<int64_t>(c.memories) * heads, row_tiles, groups, device);
  launch.grid = {c.memories, heads, c.splits};
  return launch;
}

// Completes a call.
inline Launch plan_forward(ForwardCall& c, bool absorbed, const Device& device) {
  Launch launch;
  if (!absorbed) launch = plan_forward_wgmma(c, device);
  if (launch.wgmma) return launch;
  launch = {};
  c.group_tiles = ceil_div(c.rows, 8);
  const int rows = absorbed ? c.heads * c.group_tiles * 8 : c.rows;
  const int tiles = ceil_div(rows, 16), panels = panel_count(c.width);
  if (absorbed) {
    launch.variant = rows <= kAbsorbedRows ? kAbsorbedRows / 16 : 0;
  } else {
#define CARZERO_CASE(kTiles, kRowTiles, kWarps, kBlocks) \
  if (!launch.variant && tiles <= kTiles) launch.variant = kTiles;
    CARZERO_FORWARD_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  }
  if (!launch.variant) return launch;
  launch.shared = forward_shared(launch.variant * 16, panels, true).bytes;
  c.resident = launch.shared <= device.shared_bytes;
  if (!c.resident) launch.shared = forward_shared(launch.variant * 16, panels, false).bytes;
  if (launch.shared > device.shared_bytes) return launch;
  const ForwardShape shape = forward_shape(launch.variant);
  const int row_tiles = ceil_div(c.queries, 16 * shape.row_tiles);
  const int warps = std::clamp(row_tiles, 4, shape.warps);
  launch.threads = 32 * warps;
  const int heads = absorbed || c.maps != nullptr ? 1 : c.heads;
  c.splits = split_queries(static_cast<int64_t>(c.memories) * heads, row_tiles, warps, device);
  launch.grid = {c.memories, heads, c.splits};
  return launch;
}

inline Launch plan_backward_queries(BackwardCall& c, const Device& device) {
  Launch launch;
  const int panels = panel_count(c.width), keys = ceil_div(c.rows, 16) * 16;
  launch.variant = panels;
  launch.collapsed = c.count != nullptr && c.dropout.threshold > 0;
  c.chunk_rows = keys;
  while (c.chunk_rows && query_shared(c.chunk_rows, keys, panels).bytes > device.shared_bytes) c.chunk_rows -= 16;
  if (!c.chunk_rows) return launch;
  launch.shared = query_shared(c.chunk_rows, keys, panels).bytes;
  const int tiles = ceil_div(c.queries, 16), warps = std::clamp(tiles, 4, kMaxWarps);
  launch.threads = 32 * warps;
  c.splits = split_queries(static_cast<int64_t>(c.memories) * c.heads, tiles, warps, device);
  launch.grid = {c.memories, c.heads, c.splits};
  return launch;
}

inline Launch plan_backward_keys(BackwardCall& c, const Device& device) {
  Launch launch;
  const int panels = panel_count(c.width), tiles = ceil_div(c.rows, 16);
  launch.variant = panels == 4 ? 2 : panels;
  for (int blocks = ceil_div(tiles, kMaxWarps); blocks <= tiles; ++blocks) {
    const int key_tiles = ceil_div(tiles, blocks);
    for (int groups = std::min(4, kMaxWarps / key_tiles); groups > 0; --groups) {
      const uint32_t bytes = key_shared(16 * key_tiles, 16 * groups, panels).bytes;
      if (bytes > device.shared_bytes) continue;
      c.chunk_rows = 16 * key_tiles;
      c.query_groups = groups;
      launch.shared = bytes;
      launch.threads = 32 * key_tiles * groups;
      launch.grid = {c.memories, c.heads, ceil_div(c.rows, c.chunk_rows) * ceil_div(panels, launch.variant)};
      return launch;
    }
  }
  return launch;
}

// The kernel of sm_90a, which makes all gradients. As the forward not for few rows, nor for few queries.
inline Launch plan_backward_wgmma(const BackwardCall& c, const Device& device) {
  Launch launch;
  const int keys = backward_keys(c.rows), blocks = ceil_div(c.rows, keys);
  if (!device.wgmma || c.rows <= 32 || c.queries <= 32 || blocks > 2 || panel_count(c.width) != kBackwardGroups) {
    return launch;
  }
#define CARZERO_CASE(kTiles, kPair) \
  if (!launch.variant && keys <= 8 * kTiles && kPair == (blocks == 2)) launch.variant = kTiles;
  CARZERO_BACKWARD_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  launch.shared = backward_shared(launch.variant, blocks == 2).bytes;
  if (launch.shared > device.shared_bytes) return {};
  launch.wgmma = true;
  launch.cluster = blocks;
  launch.threads = (kBackwardGroups + 1) * kGroupThreads;
  launch.grid = {c.memories, c.heads, blocks};
  return launch;
}

}  // namespace carzero::cuda
