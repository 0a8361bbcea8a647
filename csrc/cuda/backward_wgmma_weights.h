// Of the backward kernel of Hopper (backward_wgmma.h) what happens to a tile of 64 queries between its products: the fourth
// group's fetching and table, and the weights and gradients of scores that the three groups make by keys.
#pragma once
#include "masks.h"
#include "shared_rows.h"
#include "warpgroup.h"

namespace carzero::cuda {

// Weights wait for their gradients times 4096; what a table says of a query allows for it.
inline constexpr float kHeldScale = 4096.0f, kHeldLog2 = 12.0f;

// Which keys of a tile of 8 stand for several.
CARZERO_DEVICE uint32_t marks_of(Shared s, const BackwardShared& place, int n) {
  return s.get<uint8_t>(place.collapsed + static_cast<uint32_t>(n / 2 * 4 + n % 2));
}

// Row sums of out * d_out, by the threads of one group: four lanes a row.
template <class T>
CARZERO_DEVICE void sum_rows(const BackwardCall& c, Shared s, uint32_t gradients, uint32_t delta, int row0) {
  const int thread = opaque(thread_index()) % kGroupThreads, part = thread & 3;
  const int64_t base = static_cast<int64_t>(opaque(block_memory())) * c.out_memory + opaque(block_head()) * c.width;
  CARZERO_ROLL
  for (int r = thread >> 2; r < kGroupRows; r += kGroupThreads / 4) {
    const bool there = row0 + r < c.queries;
    const uint16_t* row =
        static_cast<const uint16_t*>(c.out) + base + static_cast<int64_t>(there ? row0 + r : 0) * c.out_row;
    float sum = 0.0f;
    CARZERO_ROLL
    for (int panel = 0; panel < kBackwardGroups; ++panel) {
      Words4 out[2];
      // odd rows begin with the other four chunks: the four lanes of two rows meet all banks once
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int chunk = 4 * (i ^ (r & 1)) + part, column = panel * kPanelColumns + 8 * chunk;
        out[i] = there && column < c.width ? load_words(row + column) : Words4{};
      }
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int chunk = 4 * (i ^ (r & 1)) + part;
        const auto d_out = s.get<Words4>(gradients + chunk_offset(kGroupRows, panel, r, chunk));
        CARZERO_UNROLL
        for (int w = 0; w < 4; ++w) {
          sum += T::low(out[i].w[w]) * T::low(d_out.w[w]) + T::high(out[i].w[w]) * T::high(d_out.w[w]);
        }
      }
    }
    sum = quad_sum(sum);
    if (part == 0) s.set(delta + static_cast<uint32_t>(r) * 4, sum / kHeldScale);
  }
}

// The fourth group: for every tile of queries, as a stage becomes free, asks for its matrices and writes its table.
// `first` is the block's first key.
template <class T, int kTiles>
CARZERO_DEVICE void prepare_tiles(const BackwardCall& c, const QueryMap& queries, const QueryMap& gradients, Shared s,
                                  const BackwardShared& place, int first) {
  constexpr int kPart = (kTiles + kBackwardGroups - 1) / kBackwardGroups;
  const int tiles = ceil_div(c.queries, kGroupRows);
  CARZERO_ROLL
  for (int tile = 0; tile < tiles; ++tile) {
    // known anew, as below
    const int thread = opaque(thread_index()) % kGroupThreads, row = thread % kGroupRows;
    const int memory = opaque(block_memory()), head = opaque(block_head());
    const int at = tile % kBackwardStages, turn = tile / kBackwardStages, row0 = tile * kGroupRows;
    const uint32_t stage = stage_at(place, at), table = table_at(place, at);
    // the first turn finds a stage free
    barrier_wait(s, empty_at(place, at), (turn & 1) ^ 1);
    if (thread == 0) {
      barrier_expect(s, full_at(place, at), place.stage_bytes);
      CARZERO_ROLL
      for (int panel = 0; panel < kBackwardGroups; ++panel) {
        const uint32_t to = stage + rows_offset(kGroupRows, panel, 0);
        copy_box(s, to, queries, panel * kPanelColumns, head, row0, c.q_memory ? memory : 0, full_at(place, at));
        copy_box(s, place.gradients + to, gradients, panel * kPanelColumns, head, row0, memory, full_at(place, at));
      }
    }
    if (row0 + kGroupRows + (thread >> 1) < c.queries) {
      // the next tile's rows of `out`: its sums would wait for them
      const uint16_t* next = static_cast<const uint16_t*>(c.out) + static_cast<int64_t>(memory) * c.out_memory +
                             static_cast<int64_t>(row0 + kGroupRows + (thread >> 1)) * c.out_row + head * c.width;
      for (int column = (thread & 1) * kPanelColumns; column < c.width; column += 2 * kPanelColumns) {
        prefetch(next + column);
      }
    }

    const int query = row0 + row;
    const bool there = query < c.queries;
    const int64_t of_row = (static_cast<int64_t>(memory) * c.heads + head) * c.queries + query;
    if (thread < kGroupRows) {
      s.set(table + static_cast<uint32_t>(row) * 4, there ? c.logsumexp[of_row] * kLog2E - kHeldLog2 : infinity());
    }
    if (c.dropout.threshold) {
      const MaskRow mask = mask_row(c.dropout, head, memory, there ? query : 0);
      CARZERO_ROLL
      for (int n = thread / kGroupRows; n < kTiles; n += kGroupThreads / kGroupRows) {
        uint32_t bits = kept_block(mask, first / 8 + n);
        // a collapsed key's share is no bit
        if (c.count != nullptr) bits |= marks_of(s, place, n);
        s.set(table + place.kept + static_cast<uint32_t>((n / kPart * kGroupRows + row) * kKeptBytes + n % kPart),
              static_cast<uint8_t>(bits));
      }
    }
    barrier_wait(s, full_at(place, at), turn & 1);
    sum_rows<T>(c, s, stage + place.gradients, table + place.delta, row0);
    warp_barrier();
    if ((thread & 31) == 0) barrier_arrive(s, ready_at(place, at));
  }
}

// Where a lane's two neighbours, keys 8n + 2t and the next of query `row`, lie among a tile's weights.
CARZERO_DEVICE uint32_t pair_offset(int n, int row, int t) {
  return chunk_offset(kGroupRows, n / 8, row, n % 8) + static_cast<uint32_t>(t) * 4;
}

// Leaves the kept shares of collapsed keys where a lane's own weights will lie: of an even key in their place, of an odd one
// in that of their scores' gradients. `own` is the group's first tile of keys.
template <int kMine>
CARZERO_DEVICE void leave_shares(const BackwardCall& c, Shared s, const BackwardShared& place, int own, int first,
                                 int row0) {
  const int thread = thread_index(), lane = thread & 31, g = lane >> 2, t = lane & 3;
  const int row = thread % kGroupThreads / 32 * 16 + g, memory = block_memory(), head = block_head();
  CARZERO_ROLL
  for (int n = own; n < own + kMine; ++n) {
    uint32_t marks = marks_of(s, place, n);
    CARZERO_ROLL
    while (marks) {
      const int column = lowest_bit(marks);
      marks &= marks - 1;
      const int columns = s.get<int>(place.counts + static_cast<uint32_t>(8 * n + column) * 4);
      CARZERO_ROLL
      for (int i = 0; i < 2; ++i) {
        const int query = row0 + row + 8 * i;
        const MaskRow mask = mask_row(c.dropout, head, memory, query < c.queries ? query : 0);
        const float kept = quad_sum(static_cast<float>(kept_among(mask, first + 8 * n + column, columns, t, 4)));
        if (t == column >> 1) {
          s.set((column & 1 ? place.d_scores : place.weights) + pair_offset(n, row + 8 * i, t),
                kept / static_cast<float>(columns));
        }
      }
    }
  }
}

// Weights times 4096, which float16 holds to 11 bits from 1 down to 2^-26: half the registers while their gradients are made.
template <int kMine>
CARZERO_DEVICE void weigh(const BackwardCall& c, Shared s, const BackwardShared& place, uint32_t table, int own,
                          const float (&scores)[kMine][4], uint32_t (&held)[kMine][2]) {
  const int thread = opaque(thread_index()), g = thread >> 2 & 7, t = thread & 3;
  const float scale_log2 = c.scale * kLog2E;
  const uint32_t of_row = table + static_cast<uint32_t>(thread % kGroupThreads / 32 * 16 + g) * 4;
  const float logsumexp[2] = {s.get<float>(of_row), s.get<float>(of_row + 32)};
  CARZERO_UNROLL
  for (int n = 0; n < kMine; ++n) {
    const uint32_t of_key = place.bias + static_cast<uint32_t>(8 * (own + n) + 2 * t) * 4;
    const float bias[2] = {s.get<float>(of_key), s.get<float>(of_key + 4)};
    CARZERO_UNROLL
    for (int i = 0; i < 2; ++i) {
      held[n][i] = F16::pack(exp2_of(scores[n][2 * i] * scale_log2 + bias[0] - logsumexp[i]),
                             exp2_of(scores[n][2 * i + 1] * scale_log2 + bias[1] - logsumexp[i]));
    }
  }
}

// From weights and their gradients to what the next products read, rounded, in shared memory.
template <class T, int kMine>
CARZERO_DEVICE void finish(const BackwardCall& c, Shared s, const BackwardShared& place, uint32_t table, int own,
                           int group, const uint32_t (&held)[kMine][2], const float (&d_weights)[kMine][4]) {
  const int thread = opaque(thread_index()), g = thread >> 2 & 7, t = thread & 3;
  const int row = thread % kGroupThreads / 32 * 16 + g;
  const uint32_t of_row = table + place.delta + static_cast<uint32_t>(row) * 4;
  const float delta[2] = {s.get<float>(of_row), s.get<float>(of_row + 32)};
  uint32_t kept[2][2] = {};
  if (c.dropout.threshold) {
    CARZERO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const uint32_t bits = table + place.kept + static_cast<uint32_t>((group * kGroupRows + row + 8 * i) * kKeptBytes);
      kept[i][0] = s.get<uint32_t>(bits) >> (2 * t);
      if (kMine > 4) kept[i][1] = s.get<uint32_t>(bits + 4) >> (2 * t);
    }
  }
  CARZERO_UNROLL
  for (int n = 0; n < kMine; ++n) {
    float factor[2][2];
    CARZERO_UNROLL
    for (int i = 0; i < 2; ++i) {
      CARZERO_UNROLL
      for (int e = 0; e < 2; ++e) {
        factor[i][e] = 1.0f / kHeldScale;
        if (c.dropout.threshold) {
          factor[i][e] *= kept[i][n / 4] >> (8 * (n % 4) + e) & 1 ? c.dropout.keep : 0.0f;
        }
      }
    }
    if (c.dropout.threshold && c.count != nullptr) {
      const uint32_t marks = marks_of(s, place, own + n);
      if (marks) {
        CARZERO_UNROLL
        for (int i = 0; i < 2; ++i) {
          CARZERO_UNROLL
          for (int e = 0; e < 2; ++e) {
            const uint32_t of_share = (e ? place.d_scores : place.weights) + pair_offset(own + n, row + 8 * i, t);
            if (marks >> (2 * t + e) & 1) factor[i][e] *= s.get<float>(of_share);
          }
        }
      }
    }
    CARZERO_UNROLL
    for (int i = 0; i < 2; ++i) {
      const float weights[2] = {F16::low(held[n][i]), F16::high(held[n][i])};
      float used[2], d_scores[2];
      CARZERO_UNROLL
      for (int e = 0; e < 2; ++e) {
        used[e] = weights[e] * factor[i][e];
        d_scores[e] = weights[e] * (d_weights[n][2 * i + e] * factor[i][e] - delta[i]);
      }
      const uint32_t at = pair_offset(own + n, row + 8 * i, t);
      s.set(place.weights + at, T::pack(used[0], used[1]));
      s.set(place.d_scores + at, T::pack(d_scores[0], d_scores[1]));
    }
  }
}

}  // namespace carzero::cuda
