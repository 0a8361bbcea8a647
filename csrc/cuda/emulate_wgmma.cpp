// The part of the emulation that sm_90a alone has. A warp carries out its 16 of a wgmma's 64 rows by itself, which is how
// the PTX ISA lays them out; that all four warps issue the same number is checked at the end of the block.
#include <cstring>
#include <limits>
#include <set>

#include "emulate_block.h"

namespace carzero::cuda::emulation {
namespace {

// Where byte `byte` of a matrix lies: the 128-byte swizzle works on addresses.
uint32_t swizzled(uint32_t byte) { return byte ^ ((byte >> 7 & 7) << 4); }

float element(uint32_t byte, bool f16) {
  const uint32_t at = swizzled(byte);
  const Block::Writer& writer = block->writers[at / 16];
  if (writer.thread >= 0 && block->lanes[static_cast<size_t>(writer.thread)].fences == writer.fences) {
    fail("wgmma reads what thread " + std::to_string(writer.thread) + " wrote and has not fenced");
  }
  uint16_t x;
  std::memcpy(&x, shared_at(at, 2, 2), 2);
  return widen(x, f16);
}

// A descriptor's fields.
struct Matrix {
  uint32_t address, panel_bytes, rows8_bytes;
  explicit Matrix(uint64_t d)
      : address(static_cast<uint32_t>(d & 0x3FFF) << 4),
        panel_bytes(static_cast<uint32_t>(d >> 16 & 0x3FFF) << 4),
        rows8_bytes(static_cast<uint32_t>(d >> 32 & 0x3FFF) << 4) {
    if (d >> 62 != 1 || (d >> 49 & 7) != 0) fail("a matrix descriptor without 128-byte swizzle, or with a base offset");
  }
  // row r of eight-row groups, 128 bytes a row, and the byte in it
  uint32_t at(int r, int byte) const {
    return address + static_cast<uint32_t>(r / 8) * rows8_bytes + static_cast<uint32_t>(r % 8 * 128 + byte);
  }
  // element (i, k), i of m or n, as the operand has it
  uint32_t at(int i, int k, bool columns) const {
    return columns ? at(k, i % 64 * 2) + static_cast<uint32_t>(i / 64) * panel_bytes : at(i, 2 * k);
  }
};

void carry_out(Warp& warp, const GroupProduct& p) {
  const Matrix b(p.b.descriptor);
  const int warp_rows = warp.lanes[0]->thread / 32 % 4 * 16, columns = p.column_tiles * 8;
  float A[16][16];
  std::vector<float> B(static_cast<size_t>(columns) * 16);
  if (p.left[0] == nullptr) {
    const Matrix a(p.a.descriptor);
    for (int r = 0; r < 16; ++r) {
      for (int k = 0; k < 16; ++k) A[r][k] = element(a.at(warp_rows + r, k, p.a.columns), p.f16);
    }
  } else {
    for (int l = 0; l < 32; ++l) {
      const int g = l >> 2, t = l & 3;
      for (int i = 0; i < 4; ++i) {
        for (int half = 0; half < 2; ++half) {
          A[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + half] = widen(p.left[l][i] >> (16 * half), p.f16);
        }
      }
    }
  }
  for (int n = 0; n < columns; ++n) {
    for (int k = 0; k < 16; ++k) B[static_cast<size_t>(n * 16 + k)] = element(b.at(n, k, p.b.columns), p.f16);
  }
  for (int l = 0; l < 32; ++l) {
    const int g = l >> 2, t = l & 3;
    std::vector<float>& sums = warp.lanes[l]->flying.at(p.sums[l]);
    for (int n = 0; n < p.column_tiles; ++n) {
      for (int i = 0; i < 4; ++i) {
        float& sum = sums[static_cast<size_t>(4 * n + i)];
        if (!p.add) sum = 0.0f;
        const float* row = A[g + 8 * (i >> 1)];
        const float* column = &B[static_cast<size_t>((8 * n + 2 * t + (i & 1)) * 16)];
        for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      }
    }
  }
}

void arrived(Barrier& barrier) {
  if (barrier.pending > 0 || barrier.bytes != 0) return;
  barrier.phase ^= 1;
  barrier.pending = barrier.arrivals;
}

Barrier& barrier_at(uint32_t offset) {
  shared_at(offset, 8, 8);
  const auto found = block->barriers.find(offset);
  if (found == block->barriers.end()) fail("a barrier at " + std::to_string(offset) + " that nobody made");
  return found->second;
}

void land(const Box& box) {
  uint64_t bytes = 0;
  for (int row = 0; row < kGroupRows; ++row) {
    for (int column = 0; column < kPanelColumns; ++column, bytes += 2) {
      const int at[4] = {box.at[0] + column, box.at[1], box.at[2] + row, box.at[3]};
      bool inside = true;
      for (int i = 0; i < 4; ++i) inside = inside && at[i] >= 0 && static_cast<uint64_t>(at[i]) < box.map->sizes[i];
      uint64_t from = static_cast<uint64_t>(at[0]);
      for (int i = 1; i < 4; ++i) from += static_cast<uint64_t>(at[i]) * (box.map->strides[i - 1] / 2);
      const uint16_t x = inside ? box.map->from[from] : 0;
      std::memcpy(shared_at(swizzled(box.offset + static_cast<uint32_t>(row * 128 + 2 * column)), 2, 2), &x, 2);
    }
  }
  Barrier& barrier = barrier_at(box.barrier);
  barrier.bytes -= static_cast<int64_t>(bytes);
  arrived(barrier);
}

void arrive(uint32_t barrier) {
  Barrier& b = barrier_at(barrier);
  if (--b.pending < 0) fail("more arrivals at a barrier than it expects");
  arrived(b);
}

void land(const Parcel& parcel) {
  std::memcpy(shared_at(parcel.offset, 16, 16), parcel.words, 16);
  Barrier& barrier = barrier_at(parcel.barrier);
  barrier.bytes -= 16;
  arrived(barrier);
}

// The first or the last of what is on its way.
template <class Item>
Item take(std::deque<Item>& items, bool last) {
  const Item item = last ? items.back() : items.front();
  if (last) {
    items.pop_back();
  } else {
    items.pop_front();
  }
  return item;
}

// Does something in another block of the cluster.
template <class Act>
void in_block(int rank, Act act) {
  Block* const here = block;
  Block& there = here->cluster->at(static_cast<size_t>(rank));
  bool over = true;
  for (const Lane& lane : there.lanes) over = over && lane.finished;
  if (over) fail("access to another block's shared memory after its end");
  there.running = here->running;
  block = &there;
  act();
  block = here;
}

}  // namespace

bool barrier_open(const Lane& lane) { return block->barriers.at(lane.in[0]).phase != lane.argument; }

bool land_one() {
  Block& b = *block;
  if (!b.boxes.empty()) {
    land(take(b.boxes, b.order.reverse));
    return true;
  }
  if (!b.parcels.empty()) {
    land(take(b.parcels, b.order.reverse));
    return true;
  }
  return false;
}

void check_groups() {
  if (!block->boxes.empty() || !block->parcels.empty()) {
    block->failure = "emulated kernel: a block ended before its copies landed";
  }
  for (size_t i = 0; i < block->warps.size(); ++i) {
    const Warp& warp = block->warps[i];
    if (!warp.open.empty() || !warp.committed.empty()) block->failure = "emulated kernel: wgmma was not waited for";
    if (warp.products != 0 && warp.products != block->warps[i / 4 * 4].products) {
      block->failure = "emulated kernel: four warps did not issue the same wgmma";
    }
  }
}

void part_barrier(int threads) {
  block->part = threads;
  block->running->meeting = Meeting::part;
  to_scheduler();
}

void cluster_barrier() {
  block->running->meeting = Meeting::cluster;
  to_scheduler();
}

void send_words(Shared, int rank, uint32_t offset, const uint32_t (&words)[4], uint32_t barrier) {
  const Parcel parcel{offset, {words[0], words[1], words[2], words[3]}, barrier};
  in_block(rank, [&] {
    barrier_at(barrier);
    if (block->order.eager) return land(parcel);
    std::memset(shared_at(offset, 16, 16), 0xFF, 16);
    block->parcels.push_back(parcel);
  });
}
void barrier_arrive_at(Shared, int rank, uint32_t barrier) {
  in_block(rank, [&] { arrive(barrier); });
  let_others();
}

void barrier_init(Shared, uint32_t barrier, int arrivals) {
  shared_at(barrier, 8, 8);
  block->barriers[barrier] = {arrivals, arrivals, 0, 0};
}
void barrier_arrive(Shared, uint32_t barrier) {
  arrive(barrier);
  let_others();
}
void barrier_expect(Shared, uint32_t barrier, uint32_t bytes) {
  barrier_at(barrier).bytes += bytes;
  arrive(barrier);
}
void barrier_wait(Shared, uint32_t barrier, int parity) {
  Lane& lane = *block->running;
  barrier_at(barrier);
  lane.in[0] = barrier;
  lane.argument = parity;
  lane.meeting = Meeting::barrier;
  to_scheduler();
}
void fence_barriers() {}
void fence_shared() { ++block->running->fences; }

void copy_box(Shared, uint32_t offset, const QueryMap& map, int column, int head, int query, int memory,
              uint32_t barrier) {
  const Box box{offset, barrier, &map, {column, head, query, memory}};
  constexpr size_t bytes = kGroupRows * kPanelRowBytes;
  shared_at(offset, bytes, 1024);
  if (block->order.eager) return land(box);
  std::memset(block->shared + offset, 0xFF, bytes);
  block->boxes.push_back(box);
}

void group_fence() {
  meet(Meeting::group, [](Warp& warp) { warp.fenced = true; });
}

void group_multiply(float* sums, int column_tiles, const uint32_t* left, GroupOperand a, GroupOperand b, int add,
                    bool f16) {
  Lane& lane = *block->running;
  lane.sums = sums;
  lane.left = left;
  lane.operands[0] = a;
  lane.operands[1] = b;
  if (lane.flying.find(sums) == lane.flying.end()) {
    lane.flying[sums].assign(sums, sums + 4 * column_tiles);
    std::fill(sums, sums + 4 * column_tiles, std::numeric_limits<float>::quiet_NaN());
  }
  meet(Meeting::group, [&](Warp& warp) {
    if (!warp.fenced) fail("wgmma without wgmma.fence");
    GroupProduct product{{}, {}, a, b, column_tiles, add != 0, f16};
    for (int l = 0; l < 32; ++l) {
      product.sums[l] = warp.lanes[l]->sums;
      product.left[l] = warp.lanes[l]->left;
      if (warp.lanes[l]->operands[0].descriptor != a.descriptor ||
          warp.lanes[l]->operands[1].descriptor != b.descriptor) {
        fail("lanes of one warp describe different matrices");
      }
    }
    ++warp.products;
    ++block->counters.products;
    warp.open.push_back(product);
    if (block->order.eager) carry_out(warp, product);
  });
}

void group_commit() {
  meet(Meeting::group, [](Warp& warp) {
    warp.committed.push_back(std::move(warp.open));
    warp.open.clear();
  });
}

void group_wait(int left) {
  block->running->argument = left;
  meet(Meeting::group, [](Warp& warp) {
    while (static_cast<int>(warp.committed.size()) > warp.lanes[0]->argument) {
      // when eager they were carried out as they were issued
      if (!block->order.eager) {
        for (const GroupProduct& each : warp.committed.front()) carry_out(warp, each);
      }
      warp.committed.pop_front();
    }
    warp.fenced = false;
    // the sums of what is still in flight stay NaN
    std::set<const float*> busy;
    for (const GroupProduct& each : warp.open) busy.insert(each.sums, each.sums + 32);
    for (const auto& group : warp.committed) {
      for (const GroupProduct& each : group) busy.insert(each.sums, each.sums + 32);
    }
    for (Lane* lane : warp.lanes) {
      for (auto each = lane->flying.begin(); each != lane->flying.end();) {
        if (busy.count(each->first)) {
          ++each;
          continue;
        }
        std::memcpy(each->first, each->second.data(), each->second.size() * sizeof(float));
        each = lane->flying.erase(each);
      }
    }
  });
}

}  // namespace carzero::cuda::emulation
