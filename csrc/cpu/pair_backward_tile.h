// One tile of the backward pass: memories and rows held at a time, and every buffer that they need.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_attention_backward.h"
#include "pair_layers.h"
#include "pair_linear.h"

namespace carzero::cpu {

// Segments s0 .. s1 - 1 whole, or rows i0 .. i1 - 1 of one segment.
struct TilePart {
  int64_t s0, s1, i0, i1;
  bool whole() const { return i0 == 0 && last; }
  bool last;  // the tile ends its segments
};

// What the largest tile needs.
struct TileSizes {
  int64_t rows = 0, keys = 0, most_keys = 0, segments = 0;
  bool parts = false;  // some segment is cut into several tiles
};

// The rows' buffers: strides row_stride of D, F or the head's widths.
struct TileBuffers {
  // the memory side
  void* m;                               // LN0(memory) [keys, D]
  float *m_stats, *dm;                   // [keys, 2], [keys, D]
  float* kv;                             // [keys, L 2D]
  float* dkv;                            // [keys, 2D], of all layers where a segment is cut
  void* dkv_operand;                     // [keys, 2D]; dkv itself where operands are float
  std::vector<std::byte*> memory_layer;  // room for one layer's packed keys and values
  int64_t memory_layer_bytes;
  // the rows, kept from the forward recompute
  std::vector<LayerRows> layers;
  HeadRows head;
  // gradients
  float* dt;           // [rows, D]
  void *dy, *dy_next;  // operands [rows, widest]
  void* x;             // recomputed LayerNorm output [rows, D]
  float* stats;        // its statistics [rows, 2]
  float* product;      // [rows, widest]
  float* g;            // gradient of the logits [rows]
  float* sums;         // partial sums of LayerNorm gradients [blocks, 2D]
  AttentionScratch attention;
  LinearScratch linear;
  std::vector<RowScratch> threads;
  static TileBuffers take(const Call& call, const TileSizes& sizes, int threads, Arena& arena);
};

// Tiles of at most `rows` rows each and, but for a single memory, at most `keys` keys.
std::vector<TilePart> cut_tiles(const Call& call, const WorkList& list, int64_t rows, int64_t keys);
TileSizes sizes_of(const Call& call, const WorkList& list, const std::vector<TilePart>& tiles);

// The largest tiles whose buffers fit the budget, whatever the number of threads: the order of the gradients' sums
// follows the tiles.
std::vector<TilePart> plan_tiles(const Call& call, const WorkList& list);

// LN0 of the tile's memories to m, and every layer's keys and values to kv; dm = 0.
void project_tile_memory(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& keys,
                         const TilePart& part, const TileBuffers& buffers);

// dm through LN0 to the rows of the memory's gradient [M, P, D]; the sums for LN0 stay in `sums`.
void memory_gradient(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& keys,
                     const TilePart& part, const TileBuffers& buffers, void* gradient);

}  // namespace carzero::cpu
