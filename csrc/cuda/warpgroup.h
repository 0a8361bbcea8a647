// What the sm_90a kernels ask of the hardware beyond warp.h, one function an instruction: products of four warps
// (wgmma), mbarriers, and copies by the tensor memory accelerator. Compiled by a C++ compiler they run in the emulation.
// Layouts: PTX ISA, "Matrix fragments for wgmma.mma_async.m64nNk16" (a warp's 16 rows lie as those of mma.m16n8k16),
// "Shared memory matrix layout".
#pragma once
#include "warp.h"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace carzero::cuda {

#if defined(__CUDACC__)

// A tensor [memory, query, head, column] that copies of boxes read.
struct QueryMap {
  CUtensorMap map;
};

CARZERO_DEVICE uint32_t window(Shared s) { return s.window; }

// Between the first `threads` of a block.
CARZERO_DEVICE void part_barrier(int threads) { asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory"); }

CARZERO_DEVICE void barrier_init(Shared s, uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(s.window + barrier), "r"(arrivals) : "memory");
}
CARZERO_DEVICE void barrier_arrive(Shared s, uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(s.window + barrier) : "memory");
}
CARZERO_DEVICE void barrier_expect(Shared s, uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(s.window + barrier), "r"(bytes)
               : "memory");
}
// Until the phase of this parity is over.
CARZERO_DEVICE void barrier_wait(Shared s, uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(s.window + barrier),
      "r"(parity)
      : "memory");
}
// The same, of what another block of the cluster did.
CARZERO_DEVICE void barrier_wait_cluster(Shared s, uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::"r"(
          s.window + barrier),
      "r"(parity)
      : "memory");
}
// Between all threads of a cluster's blocks.
CARZERO_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// A place of this block's shared memory in that of block `rank` of the cluster.
CARZERO_DEVICE uint32_t window_of(Shared s, int rank, uint32_t offset) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(s.window + offset), "r"(rank));
  return there;
}
// Begins to write 16 bytes there, which that block's barrier counts.
CARZERO_DEVICE void send_words(Shared s, int rank, uint32_t offset, const uint32_t (&words)[4], uint32_t barrier) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          window_of(s, rank, offset)),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(window_of(s, rank, barrier))
      : "memory");
}
CARZERO_DEVICE void barrier_arrive_at(Shared s, int rank, uint32_t barrier) {
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(window_of(s, rank, barrier))
               : "memory");
}
// Barriers become visible to copies.
CARZERO_DEVICE void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
// What this thread wrote to shared memory becomes visible to wgmma.
CARZERO_DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// 64 columns of 64 queries of one head; those beyond the tensor are zeros.
CARZERO_DEVICE void copy_box(Shared s, uint32_t offset, const QueryMap& map, int column, int head, int query,
                             int memory, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];"
      ::"r"(s.window + offset), "l"(&map.map), "r"(column), "r"(head), "r"(query), "r"(memory),
      "r"(s.window + barrier)
      : "memory");
}

// Registers a thread of this group of four warps; the block's stay what its launch took.
template <int kRegisters, bool kMore>
CARZERO_DEVICE void set_registers() {
  if constexpr (kMore) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
  } else {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
  }
}

CARZERO_DEVICE void group_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
CARZERO_DEVICE void group_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last kLeft groups of products are done.
template <int kLeft = 0>
CARZERO_DEVICE void group_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
// After a wait: what reads these sums the compiler must not move before it, which it does not know to fill them.
template <int kColumnTiles>
CARZERO_DEVICE void settle(float (&d)[kColumnTiles][4]) {
  CARZERO_UNROLL
  for (int n = 0; n < kColumnTiles; ++n) {
    asm volatile("" : "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])::"memory");
  }
}

struct alignas(16) Words4 {
  uint32_t w[4];
};
CARZERO_DEVICE Words4 load_words(const void* p) {
  const uint4 x = __ldg(static_cast<const uint4*>(p));
  return {{x.x, x.y, x.z, x.w}};
}
// Asks for 128 bytes that are read from global memory later.
CARZERO_DEVICE void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" ::"l"(p)); }

// Operand names and operands of N / 2 accumulator registers.
#define CARZERO_D8 "{%0,%1,%2,%3,%4,%5,%6,%7"
#define CARZERO_D12 CARZERO_D8 ",%8,%9,%10,%11"
#define CARZERO_D16 CARZERO_D12 ",%12,%13,%14,%15"
#define CARZERO_D20 CARZERO_D16 ",%16,%17,%18,%19"
#define CARZERO_D32 CARZERO_D20 ",%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define CARZERO_D52 \
  CARZERO_D32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51"
#define CARZERO_D56 CARZERO_D52 ",%52,%53,%54,%55"
#define CARZERO_D104 \
  CARZERO_D56 \
  ",%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83," \
  "%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103"
#define CARZERO_R(n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define CARZERO_R2 CARZERO_R(0), CARZERO_R(1)
#define CARZERO_R3 CARZERO_R2, CARZERO_R(2)
#define CARZERO_R4 CARZERO_R3, CARZERO_R(3)
#define CARZERO_R5 CARZERO_R4, CARZERO_R(4)
#define CARZERO_R8 CARZERO_R5, CARZERO_R(5), CARZERO_R(6), CARZERO_R(7)
#define CARZERO_R13 CARZERO_R8, CARZERO_R(8), CARZERO_R(9), CARZERO_R(10), CARZERO_R(11), CARZERO_R(12)
#define CARZERO_R14 CARZERO_R13, CARZERO_R(13)
#define CARZERO_R26 \
  CARZERO_R14, CARZERO_R(14), CARZERO_R(15), CARZERO_R(16), CARZERO_R(17), CARZERO_R(18), CARZERO_R(19), \
      CARZERO_R(20), CARZERO_R(21), CARZERO_R(22), CARZERO_R(23), CARZERO_R(24), CARZERO_R(25)
// d = a b^T (+ d where `add`), a and b in shared memory. COLUMNS: "0, 0" where rows of k lie next to each other, "1" for an
// operand whose rows of m or n do
#define CARZERO_PRODUCT(N, TYPE, NAMES, REGISTERS, A, B, ADD, COLUMNS)                                        \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N      \
               "k16.f32." TYPE "." TYPE " " NAMES "}, %" A ", %" B ", add, 1, 1, " COLUMNS ";\n}"             \
               : REGISTERS                                                                                   \
               : "l"(a), "l"(b), "r"(add))
#define CARZERO_PRODUCTS(TYPE)                                                                                 \
  if constexpr (kColumnTiles == 2) CARZERO_PRODUCT("16", TYPE, CARZERO_D8, CARZERO_R2, "8", "9", "10", "0, 0");  \
  if constexpr (kColumnTiles == 3) {                                                                           \
    CARZERO_PRODUCT("24", TYPE, CARZERO_D12, CARZERO_R3, "12", "13", "14", "0, 0");                            \
  }                                                                                                            \
  if constexpr (kColumnTiles == 5) {                                                                           \
    CARZERO_PRODUCT("40", TYPE, CARZERO_D20, CARZERO_R5, "20", "21", "22", "0, 0");                            \
  }                                                                                                            \
  if constexpr (kColumnTiles == 8) {                                                                           \
    CARZERO_PRODUCT("64", TYPE, CARZERO_D32, CARZERO_R8, "32", "33", "34", "0, 0");                            \
  }                                                                                                            \
  if constexpr (kColumnTiles == 14) {                                                                          \
    CARZERO_PRODUCT("112", TYPE, CARZERO_D56, CARZERO_R14, "56", "57", "58", "0, 0");                          \
  }                                                                                                            \
  if constexpr (kColumnTiles == 26) {                                                                          \
    CARZERO_PRODUCT("208", TYPE, CARZERO_D104, CARZERO_R26, "104", "105", "106", "0, 0");                      \
  }
#define CARZERO_PRODUCTS_LEFT_COLUMNS(TYPE) \
  CARZERO_PRODUCT("32", TYPE, CARZERO_D16, CARZERO_R4, "16", "17", "18", "1, 0")
#define CARZERO_PRODUCTS_COLUMNS(TYPE)                                                                          \
  if constexpr (kColumnTiles == 8) {                                                                           \
    CARZERO_PRODUCT("64", TYPE, CARZERO_D32, CARZERO_R8, "32", "33", "34", "1, 1");                            \
  }                                                                                                            \
  if constexpr (kColumnTiles == 13) {                                                                          \
    CARZERO_PRODUCT("104", TYPE, CARZERO_D52, CARZERO_R13, "52", "53", "54", "1, 1");                          \
  }
// d = a b (+ d), a in registers, b [16][64] in shared memory, columns next to each other
#define CARZERO_PRODUCT_LEFT(TYPE)                                                                           \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %37, 0;\nwgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE \
               "." TYPE " " CARZERO_D32 "}, {%32,%33,%34,%35}, %36, add, 1, 1, 1;\n}"                         \
               : CARZERO_R8                                                                                  \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

template <class T, int kColumnTiles>
CARZERO_DEVICE void group_multiply(float (&d)[kColumnTiles][4], uint64_t a, uint64_t b, int add) {
  static_assert(kColumnTiles == 2 || kColumnTiles == 3 || kColumnTiles == 5 || kColumnTiles == 8 ||
                    kColumnTiles == 14 || kColumnTiles == 26,
                "no product of this width");
  if constexpr (T::kF16) {
    CARZERO_PRODUCTS("f16");
  } else {
    CARZERO_PRODUCTS("bf16");
  }
}
// The same with a [16 k][64 rows]: 64 rows of m next to each other.
template <class T>
CARZERO_DEVICE void group_multiply_left_columns(float (&d)[4][4], uint64_t a, uint64_t b, int add) {
  if constexpr (T::kF16) {
    CARZERO_PRODUCTS_LEFT_COLUMNS("f16");
  } else {
    CARZERO_PRODUCTS_LEFT_COLUMNS("bf16");
  }
}
// The same with both, b [16 k][8 * kColumnTiles], which its descriptor has in panels.
template <class T, int kColumnTiles>
CARZERO_DEVICE void group_multiply_columns(float (&d)[kColumnTiles][4], uint64_t a, uint64_t b, int add) {
  static_assert(kColumnTiles == 8 || kColumnTiles == 13, "no product of this width");
  if constexpr (T::kF16) {
    CARZERO_PRODUCTS_COLUMNS("f16");
  } else {
    CARZERO_PRODUCTS_COLUMNS("bf16");
  }
}
template <class T>
CARZERO_DEVICE void group_multiply(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int add) {
  if constexpr (T::kF16) {
    CARZERO_PRODUCT_LEFT("f16");
  } else {
    CARZERO_PRODUCT_LEFT("bf16");
  }
}

#else

using emulation::QueryMap;
using emulation::barrier_arrive;
using emulation::barrier_expect;
using emulation::barrier_init;
using emulation::barrier_arrive_at;
using emulation::barrier_wait;
using emulation::cluster_barrier;
using emulation::send_words;
using emulation::copy_box;
using emulation::fence_barriers;
using emulation::fence_shared;
using emulation::group_commit;
using emulation::group_fence;
using emulation::part_barrier;

struct alignas(16) Words4 {
  uint32_t w[4];
};
inline Words4 load_words(const void* p) { return *static_cast<const Words4*>(p); }
inline void prefetch(const void*) {}
inline void barrier_wait_cluster(Shared s, uint32_t barrier, int parity) { barrier_wait(s, barrier, parity); }
template <int kLeft = 0>
void group_wait() {
  emulation::group_wait(kLeft);
}
template <int kColumnTiles>
void settle(float (&)[kColumnTiles][4]) {}
template <int kRegisters, bool kMore>
void set_registers() {}
inline uint32_t window(Shared) { return 0; }
template <class T, int kColumnTiles>
void group_multiply(float (&d)[kColumnTiles][4], uint64_t a, uint64_t b, int add) {
  emulation::group_multiply(&d[0][0], kColumnTiles, nullptr, {a, false}, {b, false}, add, T::kF16);
}
template <class T>
void group_multiply_left_columns(float (&d)[4][4], uint64_t a, uint64_t b, int add) {
  emulation::group_multiply(&d[0][0], 4, nullptr, {a, true}, {b, false}, add, T::kF16);
}
template <class T, int kColumnTiles>
void group_multiply_columns(float (&d)[kColumnTiles][4], uint64_t a, uint64_t b, int add) {
  emulation::group_multiply(&d[0][0], kColumnTiles, nullptr, {a, true}, {b, true}, add, T::kF16);
}
template <class T>
void group_multiply(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b, int add) {
  emulation::group_multiply(&d[0][0], 8, a, {0, false}, {b, true}, add, T::kF16);
}

#endif

}  // namespace carzero::cuda
