// The decoder's weights as the kernels read them: matrices packed for the product, vectors as padded float32.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_call.h"

namespace carzero::cpu {

struct LayerWeights {
  PackedB key_value;  // [D, 2D]: keys, values
  PackedB query, out, ffn1, ffn2;
  const float *query_bias, *value_bias, *out_bias, *ffn1_bias, *ffn2_bias;
  const float *norm2_gain, *norm2_shift, *norm3_gain, *norm3_shift;
  // of each head, for absorption: [K, D], rows of Wq and of Wo^T; data null where not packed
  std::vector<PackedB> absorb_query, absorb_out;
};

struct Weights {
  const float *norm_gain, *norm_shift;
  std::vector<LayerWeights> layers;
  std::vector<PackedB> head;            // all maps but the last
  std::vector<const float*> head_bias;  // likewise
  const float* last_weight = nullptr;   // [width of the last hidden layer]
  float last_bias = 0;
};

// What a blob holds beside the layers themselves.
struct PackContents {
  bool absorption = false;  // the matrices of absorb_query (layers after the first) and absorb_out
};

size_t packed_weights_bytes(const Dims& dims, Operand operand, PackContents contents);

// Fills `blob` (aligned to 64) from the parameters.
void pack_weights(const std::vector<Array>& parameters, const Dims& dims, Operand operand, PackContents contents,
                  int threads, void* blob);

// Why a blob cannot serve a call of these sizes; empty where it can.
const char* blob_mismatch(const void* blob, size_t bytes, const Dims& dims, Operand operand);
PackContents blob_contents(const void* blob);

Weights weights_of(const void* blob, const Dims& dims);

// Columns n0 .. n1 of a [K, N] operand whose element (k, n) is at w[offset + k * row_stride + n * col_stride].
void pack_any(Array w, int64_t offset, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N, Operand operand,
              void* packed, int64_t n0, int64_t n1);

}  // namespace carzero::cpu
