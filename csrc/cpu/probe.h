// Doors through which tests reach the inline vector functions of simd.h and philox_lanes.h, one table an instruction set.
#pragma once
#include <cstdint>

#include "../philox.h"
#include "bf16.h"
#include "isa.h"

namespace carzero::cpu {

struct ProbeTable {
  int lanes;
  void (*exp)(const float* x, float* y, int64_t n);
  void (*to_bf16)(const float* x, bf16* y, int64_t n);
  void (*from_bf16)(const bf16* x, float* y, int64_t n);
  void (*from_half)(const half* x, float* y, int64_t n);
  // sum and largest of n values
  void (*reduce)(const float* x, int64_t n, float* sum, float* largest);
  void (*philox_lanes)(philox::Key key, uint32_t c0, uint32_t memory, uint32_t query, int64_t first_block,
                       int64_t blocks, uint16_t* out);
  // the lanes are readable to a whole vector
  void (*drop_out)(const float* x, const uint16_t* lanes, uint32_t t, float scale, float* y, int64_t n);
};

const ProbeTable& probe(Isa isa);
const ProbeTable& probe();

}  // namespace carzero::cpu
