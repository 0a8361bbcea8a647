// Matrix products of the op on CPU: one packed operand, float32 accumulation, the instruction set chosen at run time.
#pragma once
#include <cstddef>
#include <cstdint>

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
struct PackedB {
  int64_t K = 0;
  int64_t N = 0;
  Operand operand = Operand::f32;
  const void* data = nullptr;
};

// The operand type that is fastest on this CPU for 16-bit compute.
Operand native_operand(bool sixteen_bit);

// Bytes of a packed [K, N] right operand (64-byte aligned buffers are expected).
size_t packed_bytes(int64_t K, int64_t N, Operand operand);

// Packs b [K, N] given with any strides (a transposed weight is View{w, 1, ld}). T: float, uint16_t-based bf16 and fp16
// (see bf16.h). Single-threaded; the caller splits columns (n0, n1 multiples of panel_width) over threads.
template <class T>
void pack_b(View<T> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1);
int64_t panel_width(Operand operand);

// C[rows, N] (+)= A[rows, K] B. A has unit column stride; its element type is float for Operand::f32, bf16 bits for
// Operand::bf16. C is float32 with row stride ldc. Single-threaded: callers own the threading. Columns n0..n1 only
// (multiples of panel_width, n1 may be N).
void gemm(const void* a, int64_t lda, int64_t rows, const PackedB& b, float* c, int64_t ldc, bool accumulate, int64_t n0,
          int64_t n1);

}  // namespace carzero::cpu
