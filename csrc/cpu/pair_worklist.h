// Which pairs a call computes, grouped by memory: one form for all pairs and for a list of them.
#pragma once
#include <cstdint>
#include <vector>

#include "attention.h"
#include "pair_call.h"

namespace carzero::cpu {

// One pair as a row of a tile.
struct PairRow {
  int64_t query;     // local index
  int64_t position;  // in the output
};

// Pairs first .. first + count - 1 of the list belong to one memory.
struct Segment {
  int64_t memory;
  int64_t first, count;
};

// Memories in ascending order, those without a pair left out; within a memory the pairs keep their given order.
class WorkList {
 public:
  explicit WorkList(const Call& call);
  int64_t rows() const { return rows_; }
  const std::vector<Segment>& segments() const { return segments_; }
  PairRow row(const Segment& segment, int64_t i) const {
    if (positions_.empty()) return {i, segment.memory * queries_ + i};
    const int64_t position = positions_[static_cast<size_t>(segment.first + i)];
    return {pairs_[2 * position + 1], position};
  }

 private:
  int64_t rows_, queries_;
  const int64_t* pairs_;
  std::vector<Segment> segments_;
  std::vector<int64_t> positions_;  // empty: all pairs
};

// The present keys of a few memories.
class KeyTable {
 public:
  // Of segments s0 .. s1 - 1 of the list.
  KeyTable(const Call& call, const WorkList& list, int64_t s0, int64_t s1);
  const Keys& of(int64_t segment) const { return keys_[static_cast<size_t>(segment - first_)]; }
  // Keys of the segments before this one in the table.
  int64_t offset(int64_t segment) const { return offsets_[static_cast<size_t>(segment - first_)]; }
  int64_t total() const { return offsets_.back(); }
  int64_t most() const { return most_; }

 private:
  int64_t first_, most_ = 0;
  std::vector<Keys> keys_;
  std::vector<int64_t> offsets_;
  std::vector<int32_t> rows_, counts_;
  std::vector<float> logs_;
};

}  // namespace carzero::cpu
