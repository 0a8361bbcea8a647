// The memory side: LayerNorm, keys and values of a few memories, packed for the attention products.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_call.h"
#include "pair_weights.h"
#include "pair_worklist.h"
#include "pair_workspace.h"

namespace carzero::cpu {

// What the attention of one layer needs of one memory with n keys.
struct MemoryLayer {
  // plain: H operands k^T [K, n]; absorbed: one operand [D, n H], column p H + h = Wq_h^T k_ph
  std::byte* key = nullptr;
  // plain: H operands v [n, K]; absorbed: one operand [n H, D], row p H + h = v_ph Wo_h^T
  std::byte* value = nullptr;
  // absorbed keys only: [H][shift_stride], log count + bq_h . k_ph scaled
  float* shift = nullptr;
  bool absorbed_key = false, absorbed_value = false;
};

// Row stride of a shift table and of a row of scores.
constexpr int64_t score_stride(int64_t n) { return row_stride(n); }

// Cuts the pieces of one memory and layer off the arena.
MemoryLayer take_memory_layer(const Dims& dims, Operand operand, int64_t n, bool absorb, int64_t layer, Arena& arena);

// LN0 of the present rows of segments s0 .. s1 - 1, rows `r0` .. `r1` of the table, to m [table rows, D].
// stats: null, or two floats a row.
void normalise_memory(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& table, int64_t s0,
                      int64_t s1, void* m, float* stats);

// Temporary memory of one thread in fill_memory_layers.
struct ProjectionScratch {
  float* kv;        // [rows, 2D]
  void* operand;    // [rows, 2D], for bf16 operands and absorption
  float* absorbed;  // [rows, H D]
  static ProjectionScratch take(const Dims& dims, Operand operand, int64_t rows, bool absorb, Arena& arena);
};

// Keys and values of layer `l` for the keys of segments s0 .. s1 - 1: from m (normalised), or from the projected
// memory.
void project_keys(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& table, int64_t s0,
                  int64_t s1, int64_t l, const void* m, float* kv, int64_t kv_stride);

// Packs them: layers[s - s0] for segments s0 .. s1 - 1, kv [keys, 2D] with row stride kv_stride from the first of them.
void pack_memory_layers(const Call& call, const Weights& weights, const KeyTable& table, int64_t s0, int64_t s1,
                        int64_t l, const float* kv, int64_t kv_stride, const ProjectionScratch& scratch,
                        MemoryLayer* const* layers);

}  // namespace carzero::cpu
