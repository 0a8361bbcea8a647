// Launches of planned calls, one set of functions an element type. Defined in kernels_bf16.cu and kernels_f16.cu.
#pragma once
#include <cuda_runtime_api.h>

#include "plan.h"

namespace carzero::cuda {

struct Kernels {
  cudaError_t (*forward)(const ForwardCall&, const Launch&, bool absorbed, cudaStream_t);
  cudaError_t (*backward_queries)(const BackwardCall&, const Launch&, cudaStream_t);
  cudaError_t (*backward_keys)(const BackwardCall&, const Launch&, cudaStream_t);
};
extern const Kernels bf16_kernels, f16_kernels;

// Where Launch::wgmma says so. Defined in kernels_wgmma.cu, which is built where sm_90a is a target (CARZERO_CUDA_WGMMA).
cudaError_t forward_wgmma(const ForwardCall&, const Launch&, bool f16, cudaStream_t);
cudaError_t backward_wgmma(const BackwardCall&, const Launch&, bool f16, cudaStream_t);

}  // namespace carzero::cuda
