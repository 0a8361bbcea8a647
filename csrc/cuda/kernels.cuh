// The kernels of one element type and their launches. kernels_bf16.cu and kernels_f16.cu compile it, side by side.
#pragma once
#include "backward_keys.h"
#include "backward_queries.h"
#include "forward.h"
#include "launch.h"

namespace carzero::cuda {

template <class T, int kTiles, int kRowTiles, bool kAbsorbed, int kWarps, int kBlocks>
__global__ void __launch_bounds__(32 * kWarps, kBlocks) forward_kernel(const __grid_constant__ ForwardCall call) {
  attention_forward<T, kTiles, kRowTiles, kAbsorbed>(call);
}
template <class T, int kPanels, int kOutPanels, bool kCollapsed>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) query_kernel(const __grid_constant__ BackwardCall call) {
  attention_backward_queries<T, kPanels, kOutPanels, kCollapsed>(call);
}
template <class T, int kOutPanels>
__global__ void __launch_bounds__(32 * kMaxWarps, 1) key_kernel(const __grid_constant__ BackwardCall call) {
  attention_backward_keys<T, kOutPanels>(call);
}

template <class Call>
cudaError_t launch(void (*kernel)(Call), const Call& call, const Launch& plan, cudaStream_t stream) {
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(plan.grid.memories), static_cast<unsigned>(plan.grid.heads),
                  static_cast<unsigned>(plan.grid.parts));
  kernel<<<grid, static_cast<unsigned>(plan.threads), plan.shared, stream>>>(call);
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const ForwardCall& call, const Launch& plan, bool absorbed, cudaStream_t stream) {
#define CARZERO_CASE(kTiles, kRowTiles, kWarps, kBlocks) \
  if (plan.variant == kTiles)                            \
    return launch(forward_kernel<T, kTiles, kRowTiles, kAbsorbed, kWarps, kBlocks>, call, plan, stream);
  if (absorbed) {
    constexpr bool kAbsorbed = true;
    CARZERO_ABSORBED_VARIANTS(CARZERO_CASE)
  } else {
    constexpr bool kAbsorbed = false;
    CARZERO_FORWARD_VARIANTS(CARZERO_CASE)
  }
#undef CARZERO_CASE
  return cudaErrorInvalidConfiguration;
}

template <class T>
cudaError_t backward_queries_of(const BackwardCall& call, const Launch& plan, cudaStream_t stream) {
#define CARZERO_CASE(kPanels, kOutPanels, kCollapsed)                  \
  if (plan.variant == kPanels && (kCollapsed || !plan.collapsed)) \
    return launch(query_kernel<T, kPanels, kOutPanels, kCollapsed>, call, plan, stream);
  CARZERO_QUERY_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return cudaErrorInvalidConfiguration;
}

template <class T>
cudaError_t backward_keys_of(const BackwardCall& call, const Launch& plan, cudaStream_t stream) {
#define CARZERO_CASE(kOutPanels) \
  if (plan.variant == kOutPanels) return launch(key_kernel<T, kOutPanels>, call, plan, stream);
  CARZERO_KEY_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return cudaErrorInvalidConfiguration;
}

}  // namespace carzero::cuda
