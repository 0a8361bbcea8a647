// One block of a kernel on the CPU: every thread a fiber, every warp-wide instruction a meeting of its 32 lanes that is
// carried out with the exact fragment layouts of the PTX ISA. For tests alone.
//
// What it is strict about: all lanes of a warp must meet at the same instruction and all threads at the same barrier;
// shared memory starts as NaN; accesses must be aligned and inside; an asynchronous copy lands either as late as its
// wait allows or at once, and the first warp that can move does, or the last; where copies are late, a thread that arrives
// at a barrier in shared memory goes on last. A missing wait or barrier shows as a wrong number in one of the four. So does wgmma, which reads its operands when it is waited for and leaves NaN
// in its accumulators until then, or at once; and copies of boxes, which leave NaN until nothing else can move. What a
// thread wrote itself wgmma must not read before that thread's fence.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "layout.h"

namespace carzero::cuda::emulation {

struct Order {
  bool reverse = false;  // the last warp first
  bool eager = false;    // copies land when they are issued
};

struct Counters {
  int64_t products = 0, conflicts = 0;  // mma instructions; ldmatrix phases that meet a bank twice
};

// Runs every block of a grid, `cluster` parts of a (memory, head) together; throws std::runtime_error where the kernel
// breaks a rule above.
Counters run(Grid grid, int cluster, int threads, size_t shared_bytes, Order order, const std::function<void()>& kernel);

int thread_index();
int thread_count();
int block_memory();
int block_head();
int block_part();
void block_barrier();
uint32_t shuffle(uint32_t x, int lane);
float shuffle(float x, int lane);
uint32_t shuffle_xor(uint32_t x, int mask);
float shuffle_xor(float x, int mask);
uint32_t ballot(bool x);

// Remembers that this thread wrote there by itself, which wgmma sees after its fence alone.
void written(uint32_t offset, size_t bytes);
// Fails unless `bytes` at `offset` lie inside shared memory, aligned to `align`.
char* shared_at(uint32_t offset, size_t bytes, size_t align);

struct Shared {
  template <class V>
  V get(uint32_t offset) const {
    V value;
    std::memcpy(&value, shared_at(offset, sizeof(V), sizeof(V)), sizeof(V));
    return value;
  }
  template <class V>
  void set(uint32_t offset, V value) const {
    std::memcpy(shared_at(offset, sizeof(V), sizeof(V)), &value, sizeof(V));
    written(offset, sizeof(V));
  }
  void clear16(uint32_t offset) const {
    std::memset(shared_at(offset, 16, 16), 0, 16);
    written(offset, 16);
  }
};
inline Shared block_shared() { return {}; }

void copy16(Shared, uint32_t offset, const void* from);
void copy4(Shared, uint32_t offset, const void* from);
void copy_commit();
void copy_wait(int left);
void load_matrices(uint32_t (&d)[4], Shared, uint32_t offset);
void load_matrices_transposed(uint32_t (&d)[4], Shared, uint32_t offset);

struct Bf16 {
  static constexpr bool kF16 = false;
  static uint32_t pack(float lo, float hi);
  static float low(uint32_t x);
  static float high(uint32_t x);
  static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
};
struct F16 {
  static constexpr bool kF16 = true;
  static uint32_t pack(float lo, float hi);
  static float low(uint32_t x);
  static float high(uint32_t x);
  static void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
};

// warpgroup.h: wgmma, mbarriers and the tensor memory accelerator (emulate_wgmma.cpp).
struct QueryMap {
  const uint16_t* from;
  uint64_t sizes[4], strides[3];  // as plan.h's QueryTensor
};
void part_barrier(int threads);
void barrier_init(Shared, uint32_t barrier, int arrivals);
void barrier_arrive(Shared, uint32_t barrier);
void barrier_expect(Shared, uint32_t barrier, uint32_t bytes);
void barrier_wait(Shared, uint32_t barrier, int parity);
void fence_barriers();
void fence_shared();
void copy_box(Shared, uint32_t offset, const QueryMap& map, int column, int head, int query, int memory,
              uint32_t barrier);
// Between the blocks of a cluster, which are parts `rank` of it.
void cluster_barrier();
void send_words(Shared, int rank, uint32_t offset, const uint32_t (&words)[4], uint32_t barrier);
void barrier_arrive_at(Shared, int rank, uint32_t barrier);
void group_fence();
void group_commit();
void group_wait(int left);
// An operand in shared memory: its descriptor, and whether its rows of m or n lie next to each other, not those of k.
struct GroupOperand {
  uint64_t descriptor;
  bool columns;
};
// `left`: registers of the left operand, or null: `a` is
void group_multiply(float* sums, int column_tiles, const uint32_t* left, GroupOperand a, GroupOperand b, int add,
                    bool f16);

}  // namespace carzero::cuda::emulation
