// Passes over rows of activations: everything between the matrix products but the softmax (attention.h).
//
// Widths are rounded up to whole vectors of 16 lanes unless a comment says `exact`: buffers have that room
// (row_stride), and what lies in it is never used. D is a multiple of 16.
#pragma once
#include <cstdint>

#include "../philox.h"
#include "gemm.h"

namespace carzero::cpu {

enum class Dtype { f32, bf16, f16 };

// Global indices of a row's pair: the middle words of the random counter.
struct PairId {
  uint32_t memory, query;
};

// The masks of one site, layer, direction and head. threshold 0: nothing is dropped and nothing is drawn.
struct Dropout {
  philox::Key key;
  uint32_t stream;
  uint32_t threshold;
  float scale;
};

// Rows of an operand: float or bf16.
struct Rows {
  const void* data;
  int64_t stride;
};
struct RowsOut {
  void* data;
  int64_t stride;
};
struct FloatRows {
  const float* data;
  int64_t stride;
};
struct FloatRowsOut {
  float* data;
  int64_t stride;
};

struct RowOps {
  // exact; any dtype
  void (*widen)(const void* in, Dtype, int64_t n, float* out);
  void (*narrow)(const float* in, int64_t n, Dtype, void* out);
  // out = x
  void (*to_operand)(FloatRows x, int64_t rows, int64_t n, Operand, RowsOut out);
  // out = (x - mean) rstd gain + shift; mean and rstd to stats[2r], stats[2r + 1] unless null
  void (*layer_norm)(FloatRows x, int64_t rows, int64_t n, const float* gain, const float* shift, float eps, Operand,
                     RowsOut out, float* stats);
  // out = c + bias
  void (*bias)(FloatRows c, int64_t rows, int64_t n, const float* bias, Operand, RowsOut out);
  // out = drop(relu(c + bias))
  void (*bias_relu)(FloatRows c, int64_t rows, int64_t n, const float* bias, const Dropout&, const PairId*, Operand,
                    RowsOut out);
  // out = t + drop(c + bias); out may be t
  void (*bias_residual)(FloatRows c, int64_t rows, int64_t n, const float* bias, const Dropout&, const PairId*,
                        FloatRows t, FloatRowsOut out);
  // out = drop(x)
  void (*drop)(FloatRows x, int64_t rows, int64_t n, const Dropout&, const PairId*, Operand, RowsOut out);
  // exact; out[r] = x[r] . w + bias
  void (*dot)(Rows x, int64_t rows, int64_t n, Operand, const float* w, float bias, float* out);

  // out = dy scale where h > 0, else 0: through a ReLU and the dropout after it
  void (*relu_backward)(FloatRows dy, int64_t rows, int64_t n, Rows h, float scale, Operand, RowsOut out);
  // out = g[r] w[c] scale where h > 0, else 0; h null: everywhere
  void (*dot_backward)(const float* g, int64_t rows, int64_t n, const float* w, Rows h, float scale, Operand,
                       RowsOut out);
  // dx (+)= gradient of layer_norm; dgain to partial[0..n), dshift to partial[n..2n), summed over the rows
  void (*layer_norm_backward)(FloatRows dy, FloatRows x, const float* stats, int64_t rows, int64_t n, const float* gain,
                              bool accumulate, FloatRowsOut dx, float* partial);
  // exact; out[c] += sum over rows of y[r][c] (times g[r] unless null), for c in n0..n1
  void (*column_sums)(Rows y, int64_t rows, int64_t n0, int64_t n1, Operand, const float* g, float* out);
  // exact; out += x
  void (*add)(const float* x, int64_t n, float* out);
};

// Of the selected instruction set.
const RowOps& row_ops();

}  // namespace carzero::cpu
