#include "kernels.cuh"

namespace carzero::cuda {
extern const Kernels f16_kernels = {forward_of<F16>, backward_queries_of<F16>, backward_keys_of<F16>};
}
