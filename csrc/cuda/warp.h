// What the kernels ask of the hardware, one function an instruction: tensor-core products, ldmatrix, asynchronous
// copies, shuffles, barriers. Compiled by nvcc each is that PTX instruction; compiled by a C++ compiler each is run in
// lockstep by the emulation of emulate.h, so that the same kernel source is tested without a GPU.
// Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16" and "ldmatrix".
#pragma once
#include <cstdint>

#include "layout.h"

#if defined(__CUDACC__)
#define CARZERO_DEVICE __device__ __forceinline__
#else
#define CARZERO_DEVICE inline
#include <cmath>

#include "emulate.h"
#endif

namespace carzero::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

#if defined(__CUDACC__)

CARZERO_DEVICE float infinity() { return __int_as_float(0x7f800000); }
CARZERO_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
CARZERO_DEVICE int thread_count() { return static_cast<int>(blockDim.x); }
CARZERO_DEVICE int block_memory() { return static_cast<int>(blockIdx.x); }
CARZERO_DEVICE int block_head() { return static_cast<int>(blockIdx.y); }
CARZERO_DEVICE int block_part() { return static_cast<int>(blockIdx.z); }
CARZERO_DEVICE void block_barrier() { __syncthreads(); }
CARZERO_DEVICE void warp_barrier() { __syncwarp(); }
CARZERO_DEVICE uint32_t shuffle(uint32_t x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
CARZERO_DEVICE float shuffle(float x, int lane) { return __shfl_sync(0xFFFFFFFFu, x, lane); }
CARZERO_DEVICE uint32_t shuffle_xor(uint32_t x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
CARZERO_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xFFFFFFFFu, x, mask); }
CARZERO_DEVICE uint32_t ballot(bool x) { return __ballot_sync(0xFFFFFFFFu, x); }
CARZERO_DEVICE int lowest_bit(uint32_t x) { return __ffs(static_cast<int>(x)) - 1; }
CARZERO_DEVICE int bit_count(uint32_t x) { return __popc(x); }
CARZERO_DEVICE uint32_t load_word(const void* p) { return __ldg(static_cast<const uint32_t*>(p)); }

// x, of which the compiler knows nothing: what depends on it is made where it is used, not kept in registers.
CARZERO_DEVICE int opaque(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

CARZERO_DEVICE float exp2_of(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
CARZERO_DEVICE float log2_of(float x) { return log2f(x); }
CARZERO_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
CARZERO_DEVICE float float_of(uint32_t x) { return __uint_as_float(x); }

// The block's dynamic shared memory.
struct Shared {
  char* base;
  uint32_t window;
  template <class V>
  CARZERO_DEVICE V get(uint32_t offset) const {
    return *reinterpret_cast<const V*>(base + offset);
  }
  template <class V>
  CARZERO_DEVICE void set(uint32_t offset, V value) const {
    *reinterpret_cast<V*>(base + offset) = value;
  }
  CARZERO_DEVICE void clear16(uint32_t offset) const { set(offset, make_uint4(0, 0, 0, 0)); }
};
CARZERO_DEVICE Shared block_shared() {
  extern __shared__ __align__(1024) char dynamic[];
  return {dynamic, static_cast<uint32_t>(__cvta_generic_to_shared(dynamic))};
}

CARZERO_DEVICE void copy16(Shared s, uint32_t offset, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(s.window + offset), "l"(from) : "memory");
}
CARZERO_DEVICE void copy4(Shared s, uint32_t offset, const void* from) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(s.window + offset), "l"(from) : "memory");
}
CARZERO_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
CARZERO_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

CARZERO_DEVICE void load_matrices(uint32_t (&d)[4], Shared s, uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(s.window + offset)
               : "memory");
}
CARZERO_DEVICE void load_matrices_transposed(uint32_t (&d)[4], Shared s, uint32_t offset) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(s.window + offset)
               : "memory");
}

struct Bf16 {
  static constexpr bool kF16 = false;
  // Two floats rounded to nearest even, the first in the low half.
  static CARZERO_DEVICE uint32_t pack(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
  }
  static CARZERO_DEVICE float low(uint32_t x) { return __uint_as_float(x << 16); }
  static CARZERO_DEVICE float high(uint32_t x) { return __uint_as_float(x & 0xFFFF0000u); }
  // c += a b
  static CARZERO_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
struct F16 {
  static constexpr bool kF16 = true;
  static CARZERO_DEVICE uint32_t pack(float lo, float hi) {
    uint32_t d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(hi), "f"(lo));
    return d;
  }
  static CARZERO_DEVICE float low(uint32_t x) {
    float f;
    asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, l;}" : "=f"(f) : "r"(x));
    return f;
  }
  static CARZERO_DEVICE float high(uint32_t x) {
    float f;
    asm("{.reg .b16 l, h;\n mov.b32 {l, h}, %1;\n cvt.f32.f16 %0, h;}" : "=f"(f) : "r"(x));
    return f;
  }
  static CARZERO_DEVICE void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

#else

using emulation::ballot;
using emulation::block_barrier;
using emulation::block_head;
using emulation::block_memory;
using emulation::block_part;
using emulation::block_shared;
using emulation::copy16;
using emulation::copy4;
using emulation::copy_commit;
using emulation::load_matrices;
using emulation::load_matrices_transposed;
using emulation::Shared;
using emulation::shuffle;
using emulation::shuffle_xor;
using emulation::thread_count;
using emulation::thread_index;
using Bf16 = emulation::Bf16;
using F16 = emulation::F16;

// lanes meet at a ballot; that it is right to read after it what others wrote before is the barrier's meaning
inline void warp_barrier() { ballot(true); }
inline float infinity() { return INFINITY; }
inline int opaque(int x) { return x; }
inline int lowest_bit(uint32_t x) { return __builtin_ffs(static_cast<int>(x)) - 1; }
inline int bit_count(uint32_t x) { return __builtin_popcount(x); }
inline uint32_t load_word(const void* p) { return *static_cast<const uint32_t*>(p); }
inline float exp2_of(float x) { return std::exp2(x); }
inline float log2_of(float x) { return std::log2(x); }
inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float float_of(uint32_t x) {
  float number;
  std::memcpy(&number, &x, sizeof number);
  return number;
}
template <int kLeft>
void copy_wait() {
  emulation::copy_wait(kLeft);
}

#endif

// Sum and largest over the four lanes that hold one accumulator row.
CARZERO_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
CARZERO_DEVICE float quad_max(float x) {
  x = fmaxf(x, shuffle_xor(x, 1));
  return fmaxf(x, shuffle_xor(x, 2));
}

}  // namespace carzero::cuda
