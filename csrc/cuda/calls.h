// What a launch is given, as plain data. Letters as in docs/conventions.md; m counts the memories of this call.
// Strides are in elements; the heads of a row follow each other, H * K elements.
#pragma once
#include <cstdint>

namespace carzero::cuda {

// Attention dropout; see carzero/ops/rng.py. Without it the threshold is 0 and the pointers may be null.
struct Dropout {
  const int64_t* seed;          // one element
  const int64_t* memory_index;  // [m], global
  const int64_t* query_index;   // [m or 1, Q], global
  int64_t query_memory;         // stride of query_index over memories: Q or 0
  uint32_t threshold;
  float keep;  // philox::keep_scale(threshold): a division here would cost the kernels registers
  int layer, direction;
};

struct ForwardCall {
  const void* q;  // [m or 1, Q, H, K]
  int64_t q_memory, q_row;
  const void* k;  // [m, P, H, K], the strides of keys and values are the same
  const void* v;
  int64_t kv_memory, kv_row;
  void* out;  // [m, Q, H, K]
  int64_t out_memory, out_row;
  bool out_float;         // float32 results, else the inputs' dtype
  float* logsumexp;       // [m, H, Q] or null
  float* maps;            // [m, Q, P] or null
  const int32_t* count;   // [m, P] or null
  const float* key_bias;  // absorbed only: [m, H * P], added to unscaled scores, or null
  int memories, queries, rows, heads, width;
  float scale;
  int splits;           // blocks that share one memory's (and head's) queries
  int resident;         // values stay in shared memory; else they are read again for every tile of queries
  int group_tiles;      // absorbed only: tiles of 8 columns that one head's rows are padded to
  int stages;           // wgmma only: tiles of queries in shared memory, of each group of warps
  Dropout dropout;
};

struct BackwardCall {
  const void* q;  // [m or 1, Q, H, K]
  int64_t q_memory, q_row;
  const void* k;  // [m, P, H, K]
  const void* v;
  int64_t kv_memory, kv_row;
  const void* out;     // [m, Q, H, K] of the forward
  const void* d_out;   // its gradient, same strides
  int64_t out_memory, out_row;
  const float* logsumexp;  // [m, H, Q] of the forward
  float* delta;  // [m, H, Q]: sums of out * d_out, which the kernel of d_q writes for the one of d_k and d_v
  float* d_q;              // [m, Q, H, K]
  int64_t dq_memory, dq_row;
  float* d_k;  // [m, P, H, K], added to
  float* d_v;
  int64_t dkv_memory, dkv_row;
  const int32_t* count;  // [m, P] or null
  int memories, queries, rows, heads, width;
  float scale;
  int splits;      // blocks that share the queries (d_q)
  int chunk_rows;  // keys in shared memory at a time (d_q), or owned by a block (d_k, d_v)
  int query_groups;  // warps that share 16 keys, each with its own queries (d_k, d_v)
  Dropout dropout;
};

}  // namespace carzero::cuda
