// What forward and backward do alike before their loops: count the work, choose absorption, have packed weights.
#pragma once
#include <optional>

#include "pair_weights.h"
#include "pair_worklist.h"
#include "pair_workspace.h"
#include "plan.h"

namespace carzero::cpu {

Load load_of(const Call& call, const WorkList& list);

// Whether the forward pass absorbs: where it pays, unless CARZERO_CPU_ABSORB=0 or 1 says otherwise (tests,
// measurements).
bool absorb_of(const Call& call, const Load& load);

// The call's packed weights, or ones packed here.
class PreparedWeights {
 public:
  PreparedWeights(const Call& call, bool absorb);
  const Weights& get() const { return weights_; }
  // As asked for, where the weights were packed for it.
  bool absorb() const { return absorb_; }

 private:
  bool absorb_;
  std::optional<Workspace> own_;
  Weights weights_;
};

}  // namespace carzero::cpu
