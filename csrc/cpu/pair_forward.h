// The three forward results of a call.
#pragma once
#include "pair_call.h"

namespace carzero::cpu {

// Logits to out[M, Q] or [N]; the representation to out[M, Q, D] or [N, D] where the call has no head.
void pair_forward(const Call& call, float* out);

// Head-averaged attention maps, added to out[L, M, Q, columns] or [L, N, columns], which the caller has zeroed.
void pair_attention(const Call& call, int64_t columns, float* out);

}  // namespace carzero::cpu
