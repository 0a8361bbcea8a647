#include "pair_linear.h"

namespace carzero::cpu {

void pack_rows(Rows x, int64_t rows, int64_t width, Operand operand, void* packed, int64_t n0, int64_t n1) {
  if (operand == Operand::f32) {
    pack_b(View<float>{static_cast<const float*>(x.data), x.stride, 1}, rows, width, operand, packed, n0, n1);
  } else {
    pack_b(View<bf16>{static_cast<const bf16*>(x.data), x.stride, 1}, rows, width, operand, packed, n0, n1);
  }
}

void multiply_transposed_rows(Rows y, const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0, int64_t n1,
                              void* scratch) {
  if (x.operand == Operand::f32) {
    gemm_tn(static_cast<const float*>(y.data), y.stride, x, c, ldc, accumulate, n0, n1, scratch);
  } else {
    gemm_tn(static_cast<const bf16*>(y.data), y.stride, x, c, ldc, accumulate, n0, n1, scratch);
  }
}

LinearScratch LinearScratch::take(int64_t weight_bytes, int64_t x_bytes, int64_t most_rows, Operand operand,
                                  int threads, Arena& arena) {
  LinearScratch y{arena.take(weight_bytes), arena.take(x_bytes), {}};
  for (int i = 0; i < threads; ++i) {
    y.threads.push_back(arena.take(static_cast<int64_t>(tn_scratch_bytes(most_rows, kGradientRows, operand))));
  }
  return y;
}

void pack_linear(const LinearMap& map, Operand operand, int threads, const LinearScratch& scratch) {
  const int64_t step = 4 * kPanelWidth, units = ceil_div(map.K, step);
  for_each_unit(2 * units, threads, [&](int64_t u, int) {
    const int64_t n0 = u / 2 * step, n1 = std::min(n0 + step, map.K);
    if (u % 2 == 0) {
      pack_any(map.weight, map.weight_row * map.K, map.K, 1, map.N, map.K, operand, scratch.weight, n0, n1);
    } else {
      pack_rows(map.x, map.rows, map.K, operand, scratch.x, n0, n1);
    }
  });
}

void linear_input_gradient(const LinearMap& map, Operand operand, const LinearScratch& scratch, int64_t r0, int64_t n) {
  gemm(row_of(map.dy.data, r0, map.dy.stride, operand), map.dy.stride, n, {map.N, map.K, operand, scratch.weight},
       map.dx + r0 * map.dx_stride, map.dx_stride, map.accumulate, 0, map.K);
}

void linear_weight_gradient(const LinearMap& map, Operand operand, const LinearScratch& scratch, int64_t n0, int64_t n1,
                            int thread) {
  multiply_transposed_rows(map.dy, {map.rows, map.K, operand, scratch.x}, map.dweight, map.K, true, n0, n1,
                           scratch.threads[static_cast<size_t>(thread)]);
  const int64_t first = std::max(n0, map.dbias_from);
  if (first < n1) row_ops().column_sums(map.dy, map.rows, first, n1, operand, nullptr, map.dbias);
}

}  // namespace carzero::cpu
