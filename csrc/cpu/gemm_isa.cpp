// The product of one instruction set: packing, micro-kernels and blocking. Compiled once per set.
#include "gemm_pack.h"
#include "gemm_table.h"
#include "gemm_words.h"
#if defined(CARZERO_USE_AMX) || defined(CARZERO_EMULATE_AMX)
#include "gemm_amx.h"
#endif

namespace carzero::cpu::CARZERO_ISA {

static void multiply(const void* a, int64_t lda, int64_t rows, const PackedB& b, float* c, int64_t ldc, bool accumulate,
                     int64_t n0, int64_t n1) {
  if (b.operand == Operand::f32) {
    multiply_words<Operand::f32>(static_cast<const float*>(a), lda, rows, b, c, ldc, accumulate, n0, n1);
  } else {
#if defined(CARZERO_USE_AMX) || defined(CARZERO_EMULATE_AMX)
    multiply_tiles(static_cast<const bf16*>(a), lda, rows, b, c, ldc, accumulate, n0, n1);
#else
    multiply_words<Operand::bf16>(static_cast<const bf16*>(a), lda, rows, b, c, ldc, accumulate, n0, n1);
#endif
  }
}

extern const GemmTable gemm_table;
const GemmTable gemm_table = {
    kMultipliesBf16, pack<float>, pack<bf16>, pack<half>, transpose<float>, transpose<bf16>, multiply,
};

}  // namespace carzero::cpu::CARZERO_ISA
