// Matrix products of the op on CPU: one packed operand, float32 accumulation, the instruction set chosen at run time.
//
// Everything here is single-threaded: callers own the threading, over rows or over columns n0..n1 (n0 a multiple of
// panel_width, n1 a multiple of it or N). The result does not depend on how columns or rows are split.
#pragma once
#include <cstddef>
#include <cstdint>

#include "bf16.h"

namespace carzero::cpu {

// Type in which the operands enter the product. bf16 is taken only where the CPU multiplies it natively (AMX,
// AVX-512 BF16); everywhere else 16-bit inputs are widened to float32 while they are packed.
enum class Operand { f32, bf16 };

// Element (r, c) of a matrix is at data[r * row_stride + c * col_stride], in units of its element type.
template <class T>
struct View {
  const T* data;
  int64_t row_stride;
  int64_t col_stride;
};

// The right operand [K, N], laid out for the micro-kernel. `data` is not owned.
//
// The layout is the same for every instruction set: panels of 16 columns, one after the other. f32: [K][16] floats.
// bf16: [K rounded up to 32, / 2][16][2], pairs of rows side by side. Missing rows and columns are zeros.
struct PackedB {
  int64_t K = 0;
  int64_t N = 0;
  Operand operand = Operand::f32;
  const void* data = nullptr;
};

inline constexpr int64_t kPanelWidth = 16;
constexpr int64_t panel_width(Operand) { return kPanelWidth; }

// Whether the selected instruction set multiplies bf16 operands.
bool multiplies_bf16();

// The operand type that is fastest on this CPU for bfloat16 (true) or float16/float32 (false) compute.
Operand native_operand(bool bfloat16);

// Bytes of a packed [K, N] right operand, and of one of its panels. Align the buffer to 64.
size_t packed_bytes(int64_t K, int64_t N, Operand operand);
size_t panel_bytes(int64_t K, Operand operand);

// Packs columns n0..n1 of b [K, N], given with any strides (a transposed weight [N, K] is View{w, 1, ld}). T: float, bf16
// or half. Fast where one of the strides is 1. Writes every byte of its panels, the zeros included. bf16 operands are
// rounded to nearest even.
template <class T>
void pack_b(View<T> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1);

// C[rows, N] (+)= A[rows, K] B. A has unit column stride; its element type is float for Operand::f32, bf16 for
// Operand::bf16. C is float32 with row stride ldc. Columns n0..n1 only: c still points at column 0.
// K = 0 gives zeros (or leaves C alone under accumulate).
void gemm(const void* a, int64_t lda, int64_t rows, const PackedB& b, float* c, int64_t ldc, bool accumulate, int64_t n0,
          int64_t n1);

// C[N, K] (+)= Y[R, N]^T X[R, K], rows n0..n1 of C only (any n0, n1): the gradient of a weight. Y has row stride ldy and
// type T (float or bf16; it is converted to x.operand); x is X packed by pack_b(View{x, ldx, 1}, R, K, ...), so
// x.K = R and x.N = K. `c` and `y` point at column or row 0. Threads that own disjoint n ranges own disjoint outputs.
// `scratch`: tn_scratch_bytes(R, n1 - n0, x.operand), aligned to 64; it receives Y^T.
template <class T>
void gemm_tn(const T* y, int64_t ldy, const PackedB& x, float* c, int64_t ldc, bool accumulate, int64_t n0, int64_t n1,
             void* scratch);
size_t tn_scratch_bytes(int64_t R, int64_t columns, Operand operand);

}  // namespace carzero::cpu
