#include "gemm.h"

#include "gemm_table.h"
#include "isa.h"

namespace carzero::cpu {

CARZERO_DISPATCH(GemmTable, gemm_table, gemm_kernels)

bool multiplies_bf16() { return gemm_kernels().multiplies_bf16; }

Operand native_operand(bool bfloat16) { return bfloat16 && multiplies_bf16() ? Operand::bf16 : Operand::f32; }

size_t panel_bytes(int64_t K, Operand operand) {
  return static_cast<size_t>(packed_words(K, operand) * kPanelWidth) * sizeof(uint32_t);
}

size_t packed_bytes(int64_t K, int64_t N, Operand operand) {
  return panel_bytes(K, operand) * static_cast<size_t>((N + kPanelWidth - 1) / kPanelWidth);
}

template <>
void pack_b<float>(View<float> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1) {
  gemm_kernels().pack_f32(b, K, N, operand, packed, n0, n1);
}

template <>
void pack_b<bf16>(View<bf16> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1) {
  gemm_kernels().pack_bf16(b, K, N, operand, packed, n0, n1);
}

template <>
void pack_b<half>(View<half> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1) {
  gemm_kernels().pack_half(b, K, N, operand, packed, n0, n1);
}

void gemm(const void* a, int64_t lda, int64_t rows, const PackedB& b, float* c, int64_t ldc, bool accumulate, int64_t n0,
          int64_t n1) {
  if (rows <= 0 || n1 <= n0) return;
  if (b.K > 0) {
    gemm_kernels().gemm(a, lda, rows, b, c, ldc, accumulate, n0, n1);
  } else if (!accumulate) {
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t n = n0; n < n1; ++n) c[r * ldc + n] = 0.0f;
    }
  }
}

size_t tn_scratch_bytes(int64_t R, int64_t columns, Operand operand) {
  return static_cast<size_t>(tn_stride(R, operand) * columns) * (operand == Operand::f32 ? 4 : 2);
}

namespace {
void multiply_transposed(const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0, int64_t n1,
                         const void* transposed) {
  gemm(transposed, tn_stride(x.K, x.operand), n1 - n0, x, c + n0 * ldc, ldc, accumulate, 0, x.N);
}
}  // namespace

template <>
void gemm_tn<float>(const float* y, int64_t ldy, const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0,
                    int64_t n1, void* scratch) {
  gemm_kernels().transpose_f32(y, ldy, x.K, n0, n1, x.operand, scratch);
  multiply_transposed(x, c, ldc, accumulate, n0, n1, scratch);
}

template <>
void gemm_tn<bf16>(const bf16* y, int64_t ldy, const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0,
                   int64_t n1, void* scratch) {
  gemm_kernels().transpose_bf16(y, ldy, x.K, n0, n1, x.operand, scratch);
  multiply_transposed(x, c, ldc, accumulate, n0, n1, scratch);
}

}  // namespace carzero::cpu
