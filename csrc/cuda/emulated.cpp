// The kernels as a C++ compiler sees them, for tests/cuda: one C function a kernel, run by emulate.cpp.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <functional>
#include <stdexcept>

#include "backward_keys.h"
#include "backward_queries.h"
#include "backward_wgmma.h"
#include "forward.h"
#include "forward_wgmma.h"
#include "plan.h"

using namespace carzero::cuda;

namespace {

// What a test tells and learns beside the call itself.
struct Run {
  int64_t shared_bytes;  // the device's
  int32_t multiprocessors, f16, reverse, eager, absorbed, wgmma, variant;
  int64_t blocks, threads, shared, products, conflicts;
};

template <class T, class Call>
using Kernel = void (*)(const Call&);

template <class T>
Kernel<T, ForwardCall> forward_kernel(int variant, bool absorbed) {
#define CARZERO_CASE(kTiles, kRowTiles, kWarps, kBlocks) \
  if (variant == kTiles) return attention_forward<T, kTiles, kRowTiles, kAbsorbed>;
  if (absorbed) {
    constexpr bool kAbsorbed = true;
    CARZERO_ABSORBED_VARIANTS(CARZERO_CASE)
  } else {
    constexpr bool kAbsorbed = false;
    CARZERO_FORWARD_VARIANTS(CARZERO_CASE)
  }
#undef CARZERO_CASE
  return nullptr;
}

template <class T>
Kernel<T, BackwardCall> query_kernel(int variant, bool collapsed) {
#define CARZERO_CASE(kPanels, kOutPanels, kCollapsed) \
  if (variant == kPanels && (kCollapsed || !collapsed)) return attention_backward_queries<T, kPanels, kOutPanels, kCollapsed>;
  CARZERO_QUERY_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return nullptr;
}

template <class T>
Kernel<T, BackwardCall> key_kernel(int variant) {
#define CARZERO_CASE(kOutPanels) \
  if (variant == kOutPanels) return attention_backward_keys<T, kOutPanels>;
  CARZERO_KEY_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return nullptr;
}

template <class T>
void wgmma_kernel(const ForwardCall& call, int variant, const QueryMap& queries) {
#define CARZERO_CASE(kTiles, kPanels) \
  if (variant == kTiles && panel_count(call.width) == kPanels) return attention_forward_wgmma<T, kTiles, kPanels>(call, queries);
  CARZERO_WGMMA_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  throw std::runtime_error("no such kernel");
}

template <class T>
void wgmma_backward_kernel(const BackwardCall& call, const Launch& plan, const QueryMap& queries, const QueryMap& gradients) {
#define CARZERO_CASE(kTiles, kPair)                                              \
  if (plan.variant == kTiles && kPair == (plan.cluster == 2)) {                  \
    return attention_backward_wgmma<T, kTiles, kPair>(call, queries, gradients); \
  }
  CARZERO_BACKWARD_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  throw std::runtime_error("no such kernel");
}

QueryMap map_tensor(const void* from, const QueryTensor& tensor) {
  QueryMap map{static_cast<const uint16_t*>(from), {}, {}};
  std::copy_n(tensor.sizes, 4, map.sizes);
  std::copy_n(tensor.strides, 3, map.strides);
  return map;
}

void launch(const Launch& plan, Run& run, const std::function<void()>& kernel) {
  run.variant = plan.variant;
  run.blocks = static_cast<int64_t>(plan.grid.memories) * plan.grid.heads * plan.grid.parts;
  run.threads = plan.threads;
  run.shared = plan.shared;
  run.wgmma = plan.wgmma;
  if (run.blocks == 0) throw std::runtime_error("no kernel fits");
  const emulation::Order order{run.reverse != 0, run.eager != 0};
  const auto counters = emulation::run(plan.grid, plan.cluster, plan.threads, plan.shared, order, kernel);
  run.products += counters.products;
  run.conflicts += counters.conflicts;
}

template <class Call>
void launch(const Launch& plan, Run& run, void (*kernel)(const Call&), const Call& call) {
  if (kernel == nullptr) throw std::runtime_error("no kernel fits");
  launch(plan, run, [&] { kernel(call); });
}

char message[512];

template <class Body>
const char* guarded(Body body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    std::snprintf(message, sizeof message, "%s", error.what());
    return message;
  }
}

}  // namespace

// Each returns null, or what is wrong.
extern "C" {

int64_t carzero_sizeof_forward_call() { return sizeof(ForwardCall); }
int64_t carzero_sizeof_backward_call() { return sizeof(BackwardCall); }

const char* carzero_emulated_forward(ForwardCall* call, Run* run) {
  return guarded([&] {
    const Launch plan =
        plan_forward(*call, run->absorbed != 0, {run->shared_bytes, run->multiprocessors, run->wgmma != 0});
    if (plan.wgmma) {
      const QueryMap queries = map_tensor(call->q, query_tensor(*call, call->q_memory, call->q_row));
      const auto kernel = run->f16 ? wgmma_kernel<F16> : wgmma_kernel<Bf16>;
      launch(plan, *run, [&] { kernel(*call, plan.variant, queries); });
      return;
    }
    launch(plan, *run,
           run->f16 ? forward_kernel<F16>(plan.variant, run->absorbed) : forward_kernel<Bf16>(plan.variant, run->absorbed),
           *call);
  });
}

// As library.cpp does; `runs` of one or two kernels.
const char* carzero_emulated_backward(BackwardCall* call, Run* runs) {
  return guarded([&] {
    const bool f16 = runs[0].f16 != 0;
    const Device device{runs[0].shared_bytes, runs[0].multiprocessors, runs[0].wgmma != 0};
    Launch plan = plan_backward_wgmma(*call, device);
    if (plan.wgmma) {
      const QueryMap queries = map_tensor(call->q, query_tensor(*call, call->q_memory, call->q_row));
      const QueryMap gradients = map_tensor(call->d_out, query_tensor(*call, call->out_memory, call->out_row));
      const auto kernel = f16 ? wgmma_backward_kernel<F16> : wgmma_backward_kernel<Bf16>;
      return launch(plan, runs[0], [&] { kernel(*call, plan, queries, gradients); });
    }
    plan = plan_backward_queries(*call, device);
    launch(plan, runs[0], f16 ? query_kernel<F16>(plan.variant, plan.collapsed) : query_kernel<Bf16>(plan.variant, plan.collapsed), *call);
    plan = plan_backward_keys(*call, device);
    launch(plan, runs[1], f16 ? key_kernel<F16>(plan.variant) : key_kernel<Bf16>(plan.variant), *call);
  });
}

// The arithmetic of layout.h, one by one.
uint32_t carzero_chunk_offset(int rows, int panel, int row, int chunk) { return chunk_offset(rows, panel, row, chunk); }
void carzero_ldmatrix_chunks(int lane, int* out) {
  const BlockChunk all[3] = {left_chunk(lane), right_chunk(lane), right_transposed_chunk(lane)};
  std::memcpy(out, all, sizeof all);
}
uint32_t carzero_at_step(int operand, int lane, int rows, int panel, int row, int step) {
  const BlockChunk chunk = operand == 0 ? left_chunk(lane) : (operand == 1 ? right_chunk(lane) : right_transposed_chunk(lane));
  return at_step(rows_offset(rows, panel, row) + block_lane(chunk), step);
}
uint32_t carzero_kept_block(int64_t seed, int layer, int direction, int head, uint32_t memory, uint32_t query,
                            uint32_t threshold, int block) {
  return kept_block({carzero::philox::key_of(seed),
                     carzero::philox::stream(carzero::Site::attention, layer, direction, head), memory, query, threshold},
                    block);
}
uint32_t carzero_range_bits(int first, int n, int block) { return range_bits(first, n, block); }
uint32_t carzero_pack(int f16, float lo, float hi) { return f16 ? F16::pack(lo, hi) : Bf16::pack(lo, hi); }
float carzero_unpack(int f16, uint32_t word) { return f16 ? F16::low(word) : Bf16::low(word); }

}  // extern "C"
