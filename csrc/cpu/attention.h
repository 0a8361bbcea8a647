// Rows of attention scores: softmax with collapsed and absent keys, its dropout, its gradient.
//
// A row holds the scores of one head of one pair, contiguous over the keys; row strides leave room for whole vectors of
// 16 lanes behind the last key, and that room may be overwritten.
#pragma once
#include <cstdint>

#include "rowops.h"

namespace carzero::cpu {

// The keys of one memory: the rows of it that are present. Key i stands for original rows row[i] .. row[i] + count[i] -
// 1; row null: key i is row i, alone.
struct Keys {
  int64_t n = 0;
  const int32_t* row = nullptr;
  const int32_t* count = nullptr;
  const float* log_count = nullptr;  // null: all zero
  int64_t columns = 0;               // one beyond the last original row
};

struct AttentionOps {
  // In place: softmax(scores * scale + shift); shift null: none. n = 0: nothing happens.
  void (*softmax)(FloatRowsOut scores, int64_t rows, int64_t n, float scale, const float* shift);
  // out = weights with their dropout: times (kept lanes of the key's original rows) / count * the exact scale
  void (*drop)(FloatRows weights, int64_t rows, const Keys&, const Dropout&, const PairId*, Operand, RowsOut out);
  // Gradient of drop(softmax(scores * scale + shift)), given the softmax and the gradient of the dropped weights: that
  // of the scores to `dscores` and the dropped weights to `dropped`, either of which may be one of the inputs.
  void (*backward)(FloatRows weights, FloatRows dweights, int64_t rows, const Keys&, float scale, const Dropout&,
                   const PairId*, Operand, RowsOut dropped, RowsOut dscores);
};

// Of the selected instruction set.
const AttentionOps& attention_ops();

}  // namespace carzero::cpu
