// The kernels for sm_90a alone and their launch; CMake compiles this file for no other target.
#include "forward_wgmma.h"
#include "launch.h"

namespace carzero::cuda {
namespace {

template <class T, int kTiles, int kPanels>
__global__ void __launch_bounds__(3 * kGroupThreads, 1)
    wgmma_kernel(const __grid_constant__ ForwardCall call, const __grid_constant__ QueryMap queries) {
  attention_forward_wgmma<T, kTiles, kPanels>(call, queries);
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

cudaError_t map_queries(const ForwardCall& c, QueryMap& map) {
  Encode encode = nullptr;
  if (const cudaError_t error = find_encode(encode); error != cudaSuccess) return error;
  const QueryTensor tensor = query_tensor(c);
  const cuuint32_t box[4] = {kPanelColumns, 1, kGroupRows, 1}, steps[4] = {1, 1, 1, 1};
  // 16-bit words as they are; what lies outside is 0
  const CUresult result =
      encode(&map.map, CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, const_cast<void*>(c.q),
             reinterpret_cast<const cuuint64_t*>(tensor.sizes), reinterpret_cast<const cuuint64_t*>(tensor.strides), box,
             steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

template <class T>
cudaError_t launch(const ForwardCall& call, const Launch& plan, cudaStream_t stream) {
  QueryMap queries{};
  if (const cudaError_t error = map_queries(call, queries); error != cudaSuccess) return error;
  void (*kernel)(ForwardCall, QueryMap) = nullptr;
#define CARZERO_CASE(kTiles, kPanels) \
  if (plan.variant == kTiles && panel_count(call.width) == kPanels) kernel = wgmma_kernel<T, kTiles, kPanels>;
  CARZERO_WGMMA_VARIANTS(CARZERO_CASE)
#undef CARZERO_CASE
  if (kernel == nullptr) return cudaErrorInvalidConfiguration;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(plan.shared));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(plan.grid.memories), static_cast<unsigned>(plan.grid.heads),
                  static_cast<unsigned>(plan.grid.parts));
  kernel<<<grid, static_cast<unsigned>(plan.threads), plan.shared, stream>>>(call, queries);
  return cudaGetLastError();
}

}  // namespace

cudaError_t forward_wgmma(const ForwardCall& call, const Launch& plan, bool f16, cudaStream_t stream) {
  return f16 ? launch<F16>(call, plan, stream) : launch<Bf16>(call, plan, stream);
}

}  // namespace carzero::cuda
