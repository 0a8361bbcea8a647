// What each instruction set offers to gemm.cpp.
#pragma once
#include "gemm.h"
#include "isa.h"

namespace carzero::cpu {

struct GemmTable {
  bool multiplies_bf16;
  void (*pack_f32)(View<float>, int64_t K, int64_t N, Operand, void* packed, int64_t n0, int64_t n1);
  void (*pack_bf16)(View<bf16>, int64_t K, int64_t N, Operand, void* packed, int64_t n0, int64_t n1);
  void (*pack_half)(View<half>, int64_t K, int64_t N, Operand, void* packed, int64_t n0, int64_t n1);
  // rows 0..R of columns n0..n1 of y, transposed to out[n - n0][r] with row stride tn_stride(R, operand)
  void (*transpose_f32)(const float* y, int64_t ldy, int64_t R, int64_t n0, int64_t n1, Operand, void* out);
  void (*transpose_bf16)(const bf16* y, int64_t ldy, int64_t R, int64_t n0, int64_t n1, Operand, void* out);
  // as gemm() with K > 0 and n0 < n1
  void (*gemm)(const void* a, int64_t lda, int64_t rows, const PackedB&, float* c, int64_t ldc, bool accumulate,
               int64_t n0, int64_t n1);
};

// Of the given and of the selected instruction set.
const GemmTable& gemm_kernels(Isa isa);
const GemmTable& gemm_kernels();

// A whole number of cache lines, and one more: rows a power of two apart would share the sets of the first-level cache.
constexpr int64_t tn_stride(int64_t R, Operand operand) {
  return operand == Operand::f32 ? (R + 15) / 16 * 16 + 16 : (R + 31) / 32 * 32 + 32;
}

// 32-bit words of a column of the packed operand: a float, or two bf16 one above the other.
constexpr int64_t packed_words(int64_t K, Operand operand) {
  return operand == Operand::f32 ? K : (K + 31) / 32 * 16;
}

}  // namespace carzero::cpu
