// The gradient of one layer's attention over the rows of a tile, with all threads.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_layers.h"
#include "pair_linear.h"

namespace carzero::cpu {

// One tile and layer. Operands: query, dattended, dquery [R, row_stride(D)].
struct AttentionTile {
  const Decoder& decoder;
  int64_t l;
  const TileRows& tile;
  const KeyTable& keys;
  const float* kv;  // keys, values of this layer [table keys, 2D], row stride kv_stride
  int64_t kv_stride;
  const void* query;
  const void* dattended;
  void* dquery;
  float* dkv;  // gradients of keys, values [table keys, 2D], row stride dkv_stride
  int64_t dkv_stride;
  bool accumulate;  // into dkv
};

struct AttentionScratch {
  struct Thread {
    float *scores, *dscores, *product;  // [block rows, keys], the same, [block rows, K]
    void *query, *dattended, *transposed;
  };
  int64_t stride;                    // of a row of weights: heads times score_stride(most keys)
  void *weights, *dscores;           // [R, stride]
  std::byte *key_t, *value_t, *key;  // packed for each key, head by head: k^T [K, n], v^T [K, n], k [n, K]
  std::vector<Thread> threads;
  int64_t most_keys;
  // For tiles of up to `rows` rows and `keys` keys of up to `segments` memories.
  static AttentionScratch take(const Dims& dims, Operand operand, int64_t rows, int64_t keys, int64_t most_keys,
                               int64_t segments, int threads, Arena& arena);
};

void attention_backward(const AttentionTile& t, const AttentionScratch& scratch);

}  // namespace carzero::cpu
