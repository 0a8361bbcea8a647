// The decoder's layers and head on a few rows (pairs): products and the passes between them. One thread.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_call.h"
#include "pair_memory.h"
#include "pair_weights.h"
#include "pair_worklist.h"

namespace carzero::cpu {

// Rows of one memory within a tile.
struct Piece {
  int64_t segment;
  int64_t row, rows;  // in the tile
};

// The rows of a tile: pieces in order, without gaps.
struct TileRows {
  std::vector<Piece> pieces;
  std::vector<PairRow> rows;
  std::vector<PairId> ids;
  int64_t count() const { return static_cast<int64_t>(rows.size()); }
  void clear();
  // Rows i0 .. i1 - 1 of a segment.
  void append(const Call& call, const WorkList& list, int64_t segment, int64_t i0, int64_t i1);
};

// Buffers of a layer, row 0 of the tile first. Strides: row_stride of D or F elements. t_mid may be t_in, t_out may be
// t_mid; attended is not written where the values are absorbed.
struct LayerRows {
  float* t_in;
  void* query;
  void* attended;
  float* t_mid;
  void* hidden;
  float* t_out;
};

// Head: `in` [R, D] and the hidden layers' outputs, with row_stride of their widths.
struct HeadRows {
  void* in;
  std::vector<void*> hidden;
};

// Temporary memory for up to `rows` rows.
struct RowScratch {
  int64_t rows, score_rows, most_keys;
  void* x;        // [rows, D]
  float* c;       // [rows, widest], row stride product_stride
  float* scores;  // [score_rows, H or 1, score_stride(most_keys)]
  void* weights;  // the same as operands; `scores` itself where operands are float
  float* mixed;   // absorbed: [score_rows, score_stride(most_keys * H)], floats or operands
  static RowScratch take(const Dims& dims, Operand operand, int64_t rows, int64_t most_keys, bool absorb, Arena& arena);
};

int64_t product_stride(const Dims& dims);

// Head-averaged attention maps [L, output positions, columns], or null.
struct Maps {
  float* data = nullptr;
  int64_t positions = 0, columns = 0;
};

struct Decoder {
  const Call& call;
  const Weights& weights;
  const void* first_query;  // q of the first layer [Q, D], row stride row_stride(D): it does not depend on the memory
  float scale;              // of the scores
  Maps maps;
};

// first_query for queries q0 .. q1 - 1; x, c: scratch. t, stats: null or where to keep LN0(queries) [Q, row_stride(D)].
void project_queries(const Call& call, const Weights& weights, int64_t q0, int64_t q1, const RowScratch& scratch,
                     void* first_query);

// t = LN0(queries) of rows r0 .. r0 + n - 1.
void start_rows(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, float* t);

// Layer `l` on rows r0 .. r0 + n - 1 of the tile. memory[segment - first_segment].
void forward_layer(const Decoder& decoder, int64_t l, const TileRows& tile, int64_t r0, int64_t n, const KeyTable& keys,
                   const MemoryLayer* const* memory, int64_t first_segment, const LayerRows& rows,
                   const RowScratch& scratch);

// Logits of rows r0 .. r0 + n - 1 to out[position]; out null: only the buffers are filled.
void forward_head(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, const float* t,
                  const HeadRows& rows, const RowScratch& scratch, float* out);

// simr = LN0(t) to out[position][D].
void forward_simr(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, const float* t, float* out);

// Row r of a buffer of operands.
inline void* row_of(void* data, int64_t r, int64_t stride, Operand operand) {
  return static_cast<std::byte*>(data) + r * stride * element_bytes(operand);
}
inline const void* row_of(const void* data, int64_t r, int64_t stride, Operand operand) {
  return static_cast<const std::byte*>(data) + r * stride * element_bytes(operand);
}

}  // namespace carzero::cpu
