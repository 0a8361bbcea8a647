// The kernels for sm_90a alone and their launch; CMake compiles this file for no other target.
#include "backward_wgmma.h"
#include "forward_wgmma.h"
#include "launch.h"

namespace carzero::cuda {
namespace {

template <class T, int kTiles, int kPanels>
__global__ void __launch_bounds__(3 * kGroupThreads, 1)
    wgmma_kernel(const __grid_constant__ ForwardCall call, const __grid_constant__ QueryMap queries) {
  attention_forward_wgmma<T, kTiles, kPanels>(call, queries);
}
template <class T, int kTiles, bool kPair>
__global__ void __cluster_dims__(1, 1, kPair ? 2 : 1) __launch_bounds__((kBackwardGroups + 1) * kGroupThreads, 1)
    wgmma_backward_kernel(const __grid_constant__ BackwardCall call, const __grid_constant__ QueryMap queries,
                          const __grid_constant__ QueryMap gradients) {
  attention_backward_wgmma<T, kTiles, kPair>(call, queries, gradients);
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function by its name: the library links no driver.
cudaError_t find_encode(Encode& encode) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error =
      cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) return error;
  if (result != cudaDriverEntryPointSuccess) return cudaErrorSymbolNotFound;
  encode = reinterpret_cast<Encode>(found);
  return cudaSuccess;
}

cudaError_t map_tensor(const void* from, const QueryTensor& tensor, QueryMap& map) {
  Encode encode = nullptr;
  if (const cudaError_t error = find_encode(encode); error != cudaSuccess) return error;
  const cuuint32_t box[4] = {kPanelColumns, 1, kGroupRows, 1}, steps[4] = {1, 1, 1, 1};
  // 16-bit words as they are; what lies outside is 0
  const CUresult result =
      encode(&map.map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(from),
             reinterpret_cast<const cuuint64_t*>(tensor.sizes), reinterpret_cast<const cuuint64_t*>(tensor.strides), box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class... Arguments>
cudaError_t launch(void (*kernel)(Arguments...), const Launch& plan, cudaStream_t stream, const Arguments&... arguments) {
  if (kernel == nullptr) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(plan.grid.memories), static_cast<unsigned>(plan.grid.heads),
                  static_cast<unsigned>(plan.grid.parts));
  kernel<<<grid, static_cast<unsigned>(plan.threads), plan.shared, stream>>>(arguments...);
  return cudaGetLastError();
}

template <class T>
cudaError_t forward_of(const ForwardCall& call, const Launch& plan, cudaStream_t stream) {
  QueryMap queries{};
  const cudaError_t error = map_tensor(call.q, query_tensor(call, call.q_memory, call.q_row), queries);
  if (error != cudaSuccess) return error;
  void (*kernel)(ForwardCall, QueryMap) = nullptr;
#define CARZERO_CASE(kTiles, kPanels) \
  if (plan.variant == kTiles && panel_count(call.width) == kPanels) kernel = wgmma_kernel<T, kTiles, kPanels>;
  CARZERO_WGMMA_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return launch(kernel, plan, stream, call, queries);
}

template <class T>
cudaError_t backward_of(const BackwardCall& call, const Launch& plan, cudaStream_t stream) {
  QueryMap queries{}, gradients{};
  cudaError_t error = map_tensor(call.q, query_tensor(call, call.q_memory, call.q_row), queries);
  if (error != cudaSuccess) return error;
  error = map_tensor(call.d_out, query_tensor(call, call.out_memory, call.out_row), gradients);
  if (error != cudaSuccess) return error;
  void (*kernel)(BackwardCall, QueryMap, QueryMap) = nullptr;
#define CARZERO_CASE(kTiles, kPair) \
  if (plan.variant == kTiles && kPair == (plan.cluster == 2)) kernel = wgmma_backward_kernel<T, kTiles, kPair>;
  CARZERO_BACKWARD_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  return launch(kernel, plan, stream, call, queries, gradients);
}

}  // namespace

cudaError_t forward_wgmma(const ForwardCall& call, const Launch& plan, bool f16, cudaStream_t stream) {
  return f16 ? forward_of<F16>(call, plan, stream) : forward_of<Bf16>(call, plan, stream);
}
cudaError_t backward_wgmma(const BackwardCall& call, const Launch& plan, bool f16, cudaStream_t stream) {
  return f16 ? backward_of<F16>(call, plan, stream) : backward_of<Bf16>(call, plan, stream);
}

}  // namespace carzero::cuda
