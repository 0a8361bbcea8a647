#include "pair_prepare.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace carzero::cpu {

Load load_of(const Call& call, const WorkList& list) {
  Load load;
  const int64_t P = call.dims.P;
  for (const Segment& segment : list.segments()) {
    int64_t keys = P;
    if (call.row_count != nullptr) {
      const int32_t* count = call.row_count + segment.memory * P;
      keys = std::count_if(count, count + P, [](int32_t n) { return n > 0; });
    }
    ++load.memories;
    load.keys += keys;
    load.most_keys = std::max(load.most_keys, keys);
    load.rows += segment.count;
    load.row_keys += static_cast<double>(segment.count) * static_cast<double>(keys);
  }
  return load;
}

bool absorb_of(const Call& call, const Load& load) {
  const char* asked = std::getenv("CARZERO_CPU_ABSORB");
  if (asked != nullptr && *asked != '\0') return std::strcmp(asked, "0") != 0;
  return absorption_pays(call.dims, load, call.packed != nullptr);
}

PreparedWeights::PreparedWeights(const Call& call, bool absorb) : absorb_(absorb) {
  const void* blob = call.packed;
  if (blob == nullptr) {
    own_.emplace(packed_weights_bytes(call.dims, call.operand, {absorb}), Workspace::Reuse::no);
    blob = own_->data();
    pack_weights(call.parameters, call.dims, call.operand, {absorb}, call.threads, own_->data());
  } else {
    absorb_ = absorb && blob_contents(blob).absorption;
  }
  weights_ = weights_of(blob, call.dims);
}

}  // namespace carzero::cpu
