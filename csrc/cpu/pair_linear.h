// The gradients of one linear map y = x W^T + b over the rows of a tile, with all threads.
#pragma once
#include <cstdint>
#include <vector>

#include "pair_call.h"
#include "pair_layers.h"
#include "pair_threads.h"
#include "pair_weights.h"
#include "pair_workspace.h"

namespace carzero::cpu {

// Rows that a partial sum of a LayerNorm's gradient covers: fixed, so that sums do not depend on the threads.
inline constexpr int64_t kSumRows = 32;
// Rows of a weight whose gradient one thread takes at a time.
inline constexpr int64_t kGradientRows = 96;

// Units of rows of a tile: whole blocks of kSumRows.
inline Cut row_cut(int64_t rows, int threads) {
  const int64_t blocks = ceil_div(rows, kSumRows);
  return {rows, std::min<int64_t>(blocks, std::max<int64_t>(threads, std::min<int64_t>(2 * threads, rows / 96))),
          kSumRows};
}

// Columns n0 .. n1 of rows of operands as a packed right operand [rows, width].
void pack_rows(Rows x, int64_t rows, int64_t width, Operand operand, void* packed, int64_t n0, int64_t n1);

// C[n0 .. n1] (+)= y^T x for rows of operands y.
void multiply_transposed_rows(Rows y, const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0, int64_t n1,
                              void* scratch);

struct LinearMap {
  Rows dy;  // [rows, N]
  int64_t N;
  Rows x;  // [rows, K]
  int64_t K;
  int64_t rows;
  Array weight;  // [N, K] in the caller's type, from row `weight_row` of a parameter
  int64_t weight_row;
  float* dweight;  // [N, K], added to
  float* dbias;    // [N], added to for columns from dbias_from
  int64_t dbias_from;
  float* dx;  // [rows, K], row stride dx_stride
  int64_t dx_stride;
  bool accumulate;  // into dx
};

struct LinearScratch {
  void* weight;                // packed weight of any map
  void* x;                     // packed rows of any map
  std::vector<void*> threads;  // transposed slice, one a thread
  static LinearScratch take(int64_t weight_bytes, int64_t x_bytes, int64_t most_rows, Operand operand, int threads,
                            Arena& arena);
};

// Runs one map; done(r0, n) follows each unit's rows of dx at once, while other threads may still read dy and x.
template <class Done>
void linear_backward(const LinearMap& map, Operand operand, int threads, const LinearScratch& scratch,
                     const Done& done);

// The two halves of linear_backward that do not depend on `done`.
void pack_linear(const LinearMap& map, Operand operand, int threads, const LinearScratch& scratch);
void linear_input_gradient(const LinearMap& map, Operand operand, const LinearScratch& scratch, int64_t r0, int64_t n);
void linear_weight_gradient(const LinearMap& map, Operand operand, const LinearScratch& scratch, int64_t n0, int64_t n1,
                            int thread);

template <class Done>
void linear_backward(const LinearMap& map, Operand operand, int threads, const LinearScratch& scratch,
                     const Done& done) {
  pack_linear(map, operand, threads, scratch);
  const Cut rows = row_cut(map.rows, threads);
  for_each_unit(rows.parts + ceil_div(map.N, kGradientRows), threads, [&](int64_t u, int thread) {
    if (u < rows.parts) {
      const int64_t r0 = rows.begin(u), n = rows.begin(u + 1) - r0;
      linear_input_gradient(map, operand, scratch, r0, n);
      done(r0, n);
    } else {
      const int64_t n0 = (u - rows.parts) * kGradientRows;
      linear_weight_gradient(map, operand, scratch, n0, std::min(n0 + kGradientRows, map.N), thread);
    }
  });
}

}  // namespace carzero::cpu
