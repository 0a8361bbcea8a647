#include <cmath>
#include <stdexcept>

#include "emulate_block.h"

namespace carzero::cuda::emulation {

Block* block = nullptr;

namespace {
ucontext_t scheduler;
bool others_first = false;  // the warp that runs gives way at once
}

void to_scheduler() { swapcontext(&block->running->context, &scheduler); }

void let_others() {
  if (block->order.eager) return;
  block->running->meeting = Meeting::arrived;
  others_first = true;
  to_scheduler();
}

[[noreturn]] void fail(const std::string& why) {
  if (block->failure.empty()) {
    block->failure = "emulated kernel: " + why + " (block " + std::to_string(block->index.memories) + ", " + std::to_string(block->index.heads) + ", " +
                     std::to_string(block->index.parts) + "; thread " +
                     std::to_string(block->running->thread) + ")";
  }
  // the block is given up: this fiber is never resumed
  while (true) to_scheduler();
}

namespace {

constexpr size_t kStack = 96 * 1024;

void enter() {
  (*block->kernel)();
  block->running->finished = true;
  to_scheduler();
}

// Runs a warp until each of its lanes waits for others or has finished; whether any moved.
bool run_warp(Warp& warp) {
  bool any = false, moved = true;
  while (moved && block->failure.empty()) {
    moved = false;
    for (Lane* lane : warp.lanes) {
      if (lane->finished) continue;
      if (lane->meeting == Meeting::barrier && barrier_open(*lane)) lane->meeting = Meeting::none;
      if (lane->meeting != Meeting::none) continue;
      any = moved = true;
      block->running = lane;
      swapcontext(&scheduler, &lane->context);
      if (!block->failure.empty()) return true;
      if (others_first) {
        others_first = false;
        return true;
      }
    }
  }
  return any;
}

void release(Meeting kind) {
  for (Lane& lane : block->lanes) {
    if (lane.meeting == kind) lane.meeting = Meeting::none;
  }
}

void start(Block& b) {
  for (Lane& lane : b.lanes) {
    getcontext(&lane.context);
    lane.context.uc_stack.ss_sp = lane.stack.get();
    lane.context.uc_stack.ss_size = kStack;
    lane.context.uc_link = nullptr;
    makecontext(&lane.context, enter, 0);
    lane.finished = false;
    lane.meeting = Meeting::none;
    lane.open.clear();
    lane.groups.clear();
  }
  for (Warp& warp : b.warps) {
    warp.arrived = 0;
    warp.products = 0;
  }
  b.barriers.clear();
  b.writers.assign(b.shared_bytes / 16 + 1, {});
  std::memset(b.shared, 0xFF, b.shared_bytes);
}

// Lets those go on for whom all came that they wait for.
void release_block(Block& b) {
  size_t all = 0, part = 0;
  for (const Lane& lane : b.lanes) {
    all += lane.meeting == Meeting::block;
    part += lane.meeting == Meeting::part;
  }
  if (all == b.lanes.size()) release(Meeting::block);
  if (part > 0 && part == static_cast<size_t>(b.part)) release(Meeting::part);
}

bool release_cluster(std::vector<Block>& cluster) {
  for (const Block& b : cluster) {
    for (const Lane& lane : b.lanes) {
      if (lane.meeting != Meeting::cluster) return false;
    }
  }
  for (Block& b : cluster) {
    block = &b;
    release(Meeting::cluster);
  }
  return true;
}

// Runs the first warp that can move, or the last.
bool run_one(std::vector<Block>& cluster, bool reverse) {
  const size_t blocks = cluster.size();
  for (size_t k = 0; k < blocks; ++k) {
    block = &cluster[reverse ? blocks - 1 - k : k];
    const size_t warps = block->warps.size();
    for (size_t i = 0; i < warps; ++i) {
      if (run_warp(block->warps[reverse ? warps - 1 - i : i])) return true;
    }
  }
  return false;
}

// Lets those of the first, or the last, warp go on that arrived somewhere; whether there were any.
bool resume(std::vector<Block>& cluster, bool reverse) {
  const size_t blocks = cluster.size();
  for (size_t k = 0; k < blocks; ++k) {
    std::vector<Warp>& warps = cluster[reverse ? blocks - 1 - k : k].warps;
    for (size_t i = 0; i < warps.size(); ++i) {
      bool any = false;
      for (Lane* lane : warps[reverse ? warps.size() - 1 - i : i].lanes) {
        if (lane->meeting != Meeting::arrived) continue;
        lane->meeting = Meeting::none;
        any = true;
      }
      if (any) return true;
    }
  }
  return false;
}

// One copy of a box, or parcel, of any block; whether there was any.
bool land_any(std::vector<Block>& cluster, bool reverse) {
  const size_t blocks = cluster.size();
  for (size_t k = 0; k < blocks; ++k) {
    block = &cluster[reverse ? blocks - 1 - k : k];
    if (land_one()) return true;
  }
  return false;
}

// The blocks of a cluster. What may be late, is until nothing else moves: in order copies are the last, in reverse the
// threads that arrived.
void run_cluster(std::vector<Block>& cluster) {
  const bool reverse = cluster[0].order.reverse;
  for (Block& b : cluster) start(b);
  while (true) {
    if (run_one(cluster, reverse)) {
      if (!block->failure.empty()) return;
      release_block(*block);
      continue;
    }
    if (!reverse && resume(cluster, reverse)) continue;
    if (release_cluster(cluster) || land_any(cluster, reverse)) continue;
    if (reverse && resume(cluster, reverse)) continue;
    size_t done = 0, waiting = 0, threads = 0;
    for (Block& b : cluster) {
      threads += b.lanes.size();
      for (const Lane& lane : b.lanes) {
        done += lane.finished;
        waiting += !lane.finished && lane.meeting != Meeting::none && lane.meeting != Meeting::barrier;
      }
    }
    if (done == threads) {
      for (Block& b : cluster) {
        block = &b;
        check_groups();
      }
      return;
    }
    block->failure = "emulated kernel: of " + std::to_string(threads) + " threads " + std::to_string(waiting) +
                     " wait at a barrier and " + std::to_string(done) + " have finished; the rest hang";
    return;
  }
}

void land(const Copy& copy) {
  written(copy.offset, copy.bytes);
  std::memcpy(block->shared + copy.offset, copy.from, copy.bytes);
}

void copy(uint32_t offset, const void* from, size_t bytes) {
  shared_at(offset, bytes, bytes);
  if (reinterpret_cast<uintptr_t>(from) % bytes) fail("an asynchronous copy reads from an unaligned address");
  if (block->order.eager) {
    land({offset, from, bytes});
  } else {
    block->running->open.push_back({offset, from, bytes});
  }
}

uint32_t bits(float x) {
  uint32_t b;
  std::memcpy(&b, &x, 4);
  return b;
}
float number(uint32_t b) {
  float x;
  std::memcpy(&x, &b, 4);
  return x;
}

uint16_t to_bf16(float x) {
  const uint32_t b = bits(x);
  if (std::isnan(x)) return 0x7FFF;
  return static_cast<uint16_t>((b + 0x7FFFu + ((b >> 16) & 1)) >> 16);
}
float from_bf16(uint32_t h) { return number(h << 16); }

uint16_t to_f16(float x) {
  const uint16_t sign = static_cast<uint16_t>((bits(x) >> 16) & 0x8000u);
  if (std::isnan(x)) return 0x7FFF;
  const double a = std::fabs(static_cast<double>(x));
  if (a >= 65520.0) return sign | 0x7C00;
  int exponent = 0;
  std::frexp(a, &exponent);
  // spacing of the numbers around a; below 2^-14 it no longer shrinks
  const double step = std::ldexp(1.0, std::max(exponent - 11, -24));
  const double rounded = std::nearbyint(a / step) * step;
  if (rounded == 0) return sign;
  std::frexp(rounded, &exponent);
  if (exponent < -13) return sign | static_cast<uint16_t>(std::ldexp(rounded, 24));
  const auto mantissa = static_cast<uint16_t>(std::ldexp(rounded, 11 - exponent));
  return static_cast<uint16_t>(sign | ((exponent + 14) << 10) | (mantissa & 0x3FF));
}
float from_f16(uint32_t h) {
  const int exponent = (h >> 10) & 31, mantissa = h & 0x3FF;
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * std::ldexp(static_cast<float>(exponent ? mantissa + 1024 : mantissa), (exponent ? exponent : 1) - 25);
}

// mma.m16n8k16: lane 4g + t holds
//   A  register 0: row g, k 2t 2t+1;  1: row g+8, same k;  2: row g, k 2t+8 2t+9;  3: row g+8, those k
//   B  register 0: k 2t 2t+1, column g;  1: k 2t+8 2t+9
//   C  0, 1: row g, columns 2t 2t+1;  2, 3: row g+8
void product(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (*widen)(uint32_t)) {
  Lane& lane = *block->running;
  for (int i = 0; i < 4; ++i) lane.in[i] = a[i], lane.accumulator[i] = c[i];
  lane.in[4] = b0, lane.in[5] = b1;
  meet(Meeting::product, [&](Warp& warp) {
    float A[16][16], B[16][8];
    for (int l = 0; l < 32; ++l) {
      const int g = l >> 2, t = l & 3;
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
          A[g + 8 * (i & 1)][2 * t + 8 * (i >> 1) + half] = widen(warp.lanes[l]->in[i] >> (16 * half) & 0xFFFF);
        }
        for (int i = 0; i < 2; ++i) B[2 * t + 8 * i + half][g] = widen(warp.lanes[l]->in[4 + i] >> (16 * half) & 0xFFFF);
      }
    }
    for (int l = 0; l < 32; ++l) {
      const int g = l >> 2, t = l & 3;
      for (int i = 0; i < 4; ++i) {
        float sum = warp.lanes[l]->accumulator[i];
        for (int k = 0; k < 16; ++k) sum += A[g + 8 * (i >> 1)][k] * B[k][2 * t + (i & 1)];
        warp.lanes[l]->accumulator[i] = sum;
      }
    }
    ++block->counters.products;
  });
  for (int i = 0; i < 4; ++i) c[i] = lane.accumulator[i];
}

// ldmatrix.x4: lanes 8i .. 8i+7 name the rows of matrix i, 16 bytes each. Lane 4g + t receives of every matrix elements
// (g, 2t) and (g, 2t+1), or of its transpose.
void load(uint32_t (&d)[4], uint32_t offset, bool transposed) {
  Lane& lane = *block->running;
  shared_at(offset, 16, 16);
  lane.in[0] = offset;
  lane.argument = transposed;
  meet(Meeting::load, [&](Warp& warp) {
    for (int i = 0; i < 4; ++i) {
      uint16_t matrix[8][8];
      unsigned banks = 0;
      for (int r = 0; r < 8; ++r) {
        const Lane& source = *warp.lanes[8 * i + r];
        if (source.argument != static_cast<int>(transposed)) fail("lanes of one warp met at different loads");
        std::memcpy(matrix[r], block->shared + source.in[0], 16);
        banks |= 1u << (source.in[0] / 16 % 8);
      }
      block->counters.conflicts += banks != 0xFF;
      for (int l = 0; l < 32; ++l) {
        const int g = l >> 2, t = l & 3;
        const uint32_t low = transposed ? matrix[2 * t][g] : matrix[g][2 * t];
        const uint32_t high = transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
        warp.lanes[l]->out[i] = low | high << 16;
      }
    }
  });
  for (int i = 0; i < 4; ++i) d[i] = lane.out[i];
}

}  // namespace

Counters run(Grid grid, int cluster, int threads, size_t shared_bytes, Order order, const std::function<void()>& kernel) {
  if (threads <= 0 || threads % 32) throw std::runtime_error("emulated kernel: a block must be of whole warps");
  if (cluster <= 0 || grid.parts % cluster) throw std::runtime_error("emulated kernel: a grid must be of whole clusters");
  std::vector<Block> blocks(static_cast<size_t>(cluster));
  for (Block& b : blocks) {
    b.lanes = std::vector<Lane>(static_cast<size_t>(threads));
    b.warps = std::vector<Warp>(static_cast<size_t>(threads / 32));
    b.storage.resize(shared_bytes + 1024);
    b.shared = b.storage.data() + (1024 - reinterpret_cast<uintptr_t>(b.storage.data()) % 1024);
    b.shared_bytes = shared_bytes;
    b.order = order;
    b.kernel = &kernel;
    b.cluster = &blocks;
    for (int i = 0; i < threads; ++i) {
      Lane& lane = b.lanes[static_cast<size_t>(i)];
      lane.stack = std::make_unique<char[]>(kStack);
      lane.thread = i;
      lane.warp = &b.warps[static_cast<size_t>(i / 32)];
      lane.warp->lanes[i % 32] = &lane;
    }
  }
  std::string failure;
  for (int x = 0; x < grid.memories; ++x) {
    for (int y = 0; y < grid.heads; ++y) {
      for (int z = 0; z < grid.parts && failure.empty(); z += cluster) {
        for (int i = 0; i < cluster; ++i) blocks[static_cast<size_t>(i)].index = {x, y, z + i};
        run_cluster(blocks);
        for (const Block& b : blocks) {
          if (failure.empty()) failure = b.failure;
        }
      }
    }
  }
  block = nullptr;
  if (!failure.empty()) throw std::runtime_error(failure);
  Counters all;
  for (const Block& b : blocks) {
    all.products += b.counters.products;
    all.conflicts += b.counters.conflicts;
  }
  return all;
}

float widen(uint32_t x, bool f16) { return f16 ? from_f16(x & 0xFFFF) : from_bf16(x & 0xFFFF); }

int thread_index() { return block->running->thread; }
int thread_count() { return static_cast<int>(block->lanes.size()); }
int block_memory() { return block->index.memories; }
int block_head() { return block->index.heads; }
int block_part() { return block->index.parts; }

void block_barrier() {
  block->running->meeting = Meeting::block;
  to_scheduler();
}

void written(uint32_t offset, size_t bytes) {
  const Lane& lane = *block->running;
  for (size_t i = offset / 16; i <= (offset + bytes - 1) / 16; ++i) block->writers[i] = {lane.thread, lane.fences};
}

char* shared_at(uint32_t offset, size_t bytes, size_t align) {
  if (offset % align || offset + bytes > block->shared_bytes) {
    fail("access of " + std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of " +
         std::to_string(block->shared_bytes) + " in shared memory");
  }
  return block->shared + offset;
}

uint32_t shuffle(uint32_t x, int from) {
  Lane& lane = *block->running;
  lane.in[0] = x;
  lane.argument = from;
  meet(Meeting::shuffle, [](Warp& warp) {
    for (Lane* each : warp.lanes) {
      if (each->argument < 0 || each->argument > 31) fail("shuffle from lane " + std::to_string(each->argument));
      each->out[0] = warp.lanes[each->argument]->in[0];
    }
  });
  return lane.out[0];
}
float shuffle(float x, int from) { return number(shuffle(bits(x), from)); }
uint32_t shuffle_xor(uint32_t x, int mask) { return shuffle(x, (thread_index() & 31) ^ mask); }
float shuffle_xor(float x, int mask) { return number(shuffle_xor(bits(x), mask)); }

uint32_t ballot(bool x) {
  Lane& lane = *block->running;
  lane.in[0] = x;
  meet(Meeting::ballot, [](Warp& warp) {
    uint32_t votes = 0;
    for (int l = 0; l < 32; ++l) votes |= warp.lanes[l]->in[0] << l;
    for (Lane* each : warp.lanes) each->out[0] = votes;
  });
  return lane.out[0];
}

void copy16(Shared, uint32_t offset, const void* from) { copy(offset, from, 16); }
void copy4(Shared, uint32_t offset, const void* from) { copy(offset, from, 4); }
void copy_commit() {
  Lane& lane = *block->running;
  lane.groups.push_back(std::move(lane.open));
  lane.open.clear();
}
void copy_wait(int left) {
  Lane& lane = *block->running;
  while (static_cast<int>(lane.groups.size()) > left) {
    for (const Copy& each : lane.groups.front()) land(each);
    lane.groups.pop_front();
  }
}

void load_matrices(uint32_t (&d)[4], Shared, uint32_t offset) { load(d, offset, false); }
void load_matrices_transposed(uint32_t (&d)[4], Shared, uint32_t offset) { load(d, offset, true); }

uint32_t Bf16::pack(float lo, float hi) { return to_bf16(lo) | static_cast<uint32_t>(to_bf16(hi)) << 16; }
float Bf16::low(uint32_t x) { return from_bf16(x & 0xFFFF); }
float Bf16::high(uint32_t x) { return from_bf16(x >> 16); }
void Bf16::multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  product(c, a, b0, b1, from_bf16);
}
uint32_t F16::pack(float lo, float hi) { return to_f16(lo) | static_cast<uint32_t>(to_f16(hi)) << 16; }
float F16::low(uint32_t x) { return from_f16(x & 0xFFFF); }
float F16::high(uint32_t x) { return from_f16(x >> 16); }
void F16::multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  product(c, a, b0, b1, from_f16);
}

}  // namespace carzero::cuda::emulation
