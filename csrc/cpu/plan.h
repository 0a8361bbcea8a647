// How a call is cut: groups of memories whose keys and values are held at a time, tiles of rows that run through all
// layers, and whether the projections are absorbed into the memory side. Only numbers; no choice here changes a mask,
// and in the forward pass none but absorption changes a bit of the result.
#pragma once
#include <algorithm>
#include <cstdint>

#include "pair_call.h"
#include "pair_threads.h"

namespace carzero::cpu {

// Work of a call: memories that have pairs, their keys in all, and pairs times keys.
struct Load {
  int64_t memories = 0, keys = 0, most_keys = 0, rows = 0;
  double row_keys = 0;
};

// Multiply-adds of all layers' attention blocks with their projections, plain and absorbed.
struct AttentionCost {
  double plain, absorbed;
};
inline AttentionCost attention_cost(const Dims& dims, const Load& load) {
  const double D = static_cast<double>(dims.D), H = static_cast<double>(dims.H),
               later = static_cast<double>(dims.L - 1);
  const double rows = static_cast<double>(load.rows), keys = static_cast<double>(load.keys);
  // the first layer's queries are projected once for all memories
  const double plain = rows * D * D * (1 + 2 * later) + load.row_keys * 2 * D * (1 + later);
  const double absorbed = keys * D * D * (1 + 2 * later) + load.row_keys * D * ((1 + H) + 2 * H * later);
  return {plain, absorbed};
}

// Packing the matrices for absorption moves about this many multiply-adds' worth of bytes a weight.
inline constexpr double kPackCost = 40;

inline bool absorption_pays(const Dims& dims, const Load& load, bool weights_packed) {
  const AttentionCost cost = attention_cost(dims, load);
  const double D = static_cast<double>(dims.D);
  const double packing = weights_packed ? 0 : kPackCost * D * D * static_cast<double>(2 * dims.L - 1);
  return cost.absorbed * 1.1 + packing < cost.plain;
}

// Rows of a forward tile: enough that a pass over the weights is cheap beside the products, few enough that a tile's
// activations stay in cache.
inline constexpr int64_t kForwardRows = 192;
// Packed keys and values of a group of memories.
inline constexpr int64_t kGroupBytes = int64_t{40} << 20;

// Rows of each tile of a group: no more than `target`, the same number of tiles for every thread where there are
// enough.
inline int64_t forward_tile_rows(int64_t group_rows, int threads, int64_t tile_pairs) {
  if (tile_pairs > 0) return tile_pairs;
  int64_t tiles = ceil_div(std::max<int64_t>(group_rows, 1), kForwardRows);
  const int64_t fewest_rows = 24;
  const int64_t even = round_up(tiles, threads);
  if (group_rows / even >= fewest_rows) tiles = even;
  return ceil_div(std::max<int64_t>(group_rows, 1), tiles);
}

// Rows of a backward tile, by preference: every tile reads and writes all gradients of the weights once.
inline constexpr int64_t kBackwardRows[] = {768, 640, 512, 384, 256, 192, 128, 96, 64, 32};
// Keys of a tile for each of its rows; a memory with more is a tile by itself.
inline constexpr int64_t kBackwardKeysPerRow = 4;
// Packed weights and the buffers of one tile together, and what the buffers get where the weights leave less. Where a
// memory is so long that the fewest rows need more, a quarter above that.
inline constexpr int64_t kBackwardBytes = int64_t{120} << 20;
inline constexpr int64_t kBackwardLeastBytes = int64_t{48} << 20;

}  // namespace carzero::cpu
