// The emulated block's state, for emulate.cpp and emulate_wgmma.cpp.
#pragma once
#include <ucontext.h>

#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "emulate.h"

namespace carzero::cuda::emulation {

// What a lane waits in: for its warp, for others of the block or cluster, for a barrier in shared memory, or, having arrived at
// one, until nobody else can go on.
enum class Meeting { none, shuffle, ballot, load, product, group, block, part, cluster, barrier, arrived };

struct Copy {
  uint32_t offset;
  const void* from;
  size_t bytes;
};

struct Warp;

struct Lane {
  ucontext_t context{};
  std::unique_ptr<char[]> stack;
  int thread = 0;
  bool finished = false;
  Warp* warp = nullptr;
  // what the lane brought to the meeting that it waits in, and what it takes away
  Meeting meeting = Meeting::none;
  uint32_t in[8] = {}, out[4] = {};
  float accumulator[4] = {};
  int argument = 0;
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
  // how often it made its writes visible to wgmma and the tensor memory accelerator
  uint32_t fences = 0;
  // the wgmma that it issues: accumulators, left operand in registers or null
  float* sums = nullptr;
  const uint32_t* left = nullptr;
  GroupOperand operands[2] = {};
  // accumulators in flight, as they will be
  std::map<float*, std::vector<float>> flying;
};

// A wgmma that was issued, of one warp's 16 of the 64 rows.
struct GroupProduct {
  float* sums[32];
  const uint32_t* left[32];
  GroupOperand a, b;
  int column_tiles;
  bool add, f16;
};

struct Warp {
  Lane* lanes[32] = {};
  int arrived = 0;
  bool fenced = false;   // wgmma.fence since the last wait
  int64_t products = 0;  // wgmma, of which all four warps must issue the same number
  std::vector<GroupProduct> open;
  std::deque<std::vector<GroupProduct>> committed;
};

// An mbarrier: arrivals of a phase, those still to come, bytes that copies still owe, phases that are over.
struct Barrier {
  int arrivals = 0, pending = 0, phase = 0;
  int64_t bytes = 0;
};

// A copy of a box that was asked for.
struct Box {
  uint32_t offset, barrier;
  const QueryMap* map;
  int at[4];
};

// 16 bytes on their way from another block of the cluster.
struct Parcel {
  uint32_t offset, words[4], barrier;
};

struct Block {
  std::vector<Lane> lanes;
  std::vector<Warp> warps;
  std::vector<char> storage;
  char* shared = nullptr;
  size_t shared_bytes = 0;
  Grid index{};
  Order order;
  Lane* running = nullptr;
  std::string failure;
  Counters counters;
  const std::function<void()>* kernel = nullptr;
  std::map<uint32_t, Barrier> barriers;
  std::deque<Box> boxes;
  std::deque<Parcel> parcels;
  std::vector<Block>* cluster = nullptr;  // the blocks that run together, this one among them
  int part = 0;  // threads that a part's barrier waits for
  // who wrote 16 bytes of shared memory last, and how many fences it had made
  struct Writer {
    int thread = -1;
    uint32_t fences = 0;
  };
  std::vector<Writer> writers;
};

extern Block* block;

void to_scheduler();
// After an arrival at a barrier: those who waited for it go first, unless copies are eager, and so is this.
void let_others();
[[noreturn]] void fail(const std::string& why);
float widen(uint32_t x, bool f16);

// Whether the barrier that a lane waits for lets it go on.
bool barrier_open(const Lane& lane);
// Carries out one copy of a box, or one parcel, that has not landed yet; whether there was any.
bool land_one();
// Fails unless the four warps of each group issued the same number of wgmma.
void check_groups();

// Waits until all 32 lanes came; the last of them runs `act`.
template <class Act>
void meet(Meeting kind, Act act) {
  Lane& lane = *block->running;
  Warp& warp = *lane.warp;
  lane.meeting = kind;
  if (++warp.arrived < 32) {
    to_scheduler();
    return;
  }
  warp.arrived = 0;
  for (Lane* other : warp.lanes) {
    if (other->meeting != kind) fail("lanes of one warp met at different instructions");
  }
  act(warp);
  for (Lane* other : warp.lanes) other->meeting = Meeting::none;
}

}  // namespace carzero::cuda::emulation
