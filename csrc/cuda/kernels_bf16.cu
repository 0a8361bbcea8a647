#include "kernels.cuh"

namespace carzero::cuda {
extern const Kernels bf16_kernels = {forward_of<Bf16>, backward_queries_of<Bf16>, backward_keys_of<Bf16>};
}
