#include "pair_worklist.h"

#include <algorithm>
#include <cmath>

namespace carzero::cpu {

WorkList::WorkList(const Call& call) : queries_(call.dims.Q), pairs_(call.pairs) {
  const int64_t M = call.dims.M;
  if (call.pairs == nullptr) {
    rows_ = M * queries_;
    if (queries_ > 0) {
      for (int64_t m = 0; m < M; ++m) segments_.push_back({m, m * queries_, queries_});
    }
    return;
  }
  rows_ = call.pair_count;
  std::vector<int64_t> first(static_cast<size_t>(M) + 1, 0);
  for (int64_t i = 0; i < rows_; ++i) ++first[static_cast<size_t>(pairs_[2 * i]) + 1];
  for (int64_t m = 0; m < M; ++m) {
    const auto at = static_cast<size_t>(m);
    if (first[at + 1] > 0) segments_.push_back({m, first[at], first[at + 1]});
    first[at + 1] += first[at];
  }
  positions_.resize(static_cast<size_t>(rows_));
  for (int64_t i = 0; i < rows_; ++i) positions_[static_cast<size_t>(first[static_cast<size_t>(pairs_[2 * i])]++)] = i;
}

KeyTable::KeyTable(const Call& call, const WorkList& list, int64_t s0, int64_t s1) : first_(s0) {
  const int64_t P = call.dims.P;
  offsets_.push_back(0);
  if (call.row_count == nullptr) {
    for (int64_t s = s0; s < s1; ++s) {
      keys_.push_back({P, nullptr, nullptr, nullptr, P});
      offsets_.push_back(offsets_.back() + P);
    }
    most_ = s1 > s0 ? P : 0;
    return;
  }
  std::vector<bool> collapsed;
  for (int64_t s = s0; s < s1; ++s) {
    const int32_t* count = call.row_count + list.segments()[static_cast<size_t>(s)].memory * P;
    Keys keys;
    bool any = false;
    for (int64_t p = 0; p < P; ++p) {
      if (count[p] <= 0) continue;
      rows_.push_back(static_cast<int32_t>(p));
      counts_.push_back(count[p]);
      logs_.push_back(std::log(static_cast<float>(count[p])));
      keys.columns = std::max(keys.columns, p + count[p]);
      any |= count[p] > 1;
      ++keys.n;
    }
    keys_.push_back(keys);
    collapsed.push_back(any);
    offsets_.push_back(offsets_.back() + keys.n);
    most_ = std::max(most_, keys.n);
  }
  // the tables grow no more: pointers into them hold
  for (size_t i = 0; i < keys_.size(); ++i) {
    keys_[i].row = rows_.data() + offsets_[i];
    keys_[i].count = counts_.data() + offsets_[i];
    if (collapsed[i]) keys_[i].log_count = logs_.data() + offsets_[i];
  }
}

}  // namespace carzero::cpu
