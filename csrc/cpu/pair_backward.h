// The gradients of a call, recomputed by tile.
#pragma once
#include <vector>

#include "pair_call.h"

namespace carzero::cpu {

struct Gradients {
  void* memory = nullptr;          // [M, P, D] in the memory's type, zeroed by the caller; absent rows stay zero
  void* queries = nullptr;         // [Q, D] in the queries' type
  std::vector<float*> parameters;  // in the parameters' order, zeroed by the caller
};

// grad: of the result of pair_forward, float32 in its shape.
void pair_backward(const Call& call, const float* grad, const Gradients& gradients);

}  // namespace carzero::cpu
