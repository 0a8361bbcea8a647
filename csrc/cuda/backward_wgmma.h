// The backward kernel of Hopper: all gradients. As in backward_keys.h queries and output gradients stream past a block's
// keys and values, 64 at a time; but products are wgmma, and three groups of four warps share them:
//
// - the weights of 64 queries and what becomes the gradient of their scores: a group has a third of the keys;
// - from these, which lie in shared memory after that, transposed gradients [head columns][keys or queries]: a group has
//   64 of the columns, so that it keeps 64 x 104 elements each of d_k and d_v in registers, 52 a thread.
//
// A fourth group fetches the next 64 queries and makes what belongs to them: row sums, and the bits of dropout.
//
// Where a memory has more keys than a block can hold, two blocks, a cluster, have half of them each. For 64 queries each
// block makes its keys' part of d_q, and sends that of 32 of them to the other, which adds its own.
//
// Template arguments: element type; kTiles, tiles of 8 keys of a block; kPair, whether there are two.
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

// Where k16 step `step` of a row begins, from its first on.
CARZERO_HOST_DEVICE uint32_t step_offset(int rows, int step) {
  return rows_offset(rows, step / kStepsPerPanel, 0) + static_cast<uint32_t>(step % kStepsPerPanel) * 32;
}

// Begins to make a group's columns of d_q, transposed, for 32 queries of a tile from `first` on.
template <class T, int kRows>
CARZERO_DEVICE void multiply_queries(uint32_t base, const BackwardShared& place, int group, int first, float (&d_q)[4][4]) {
  const uint64_t left = matrix_descriptor(base + rows_offset(kRows, group, 0)),
                 right = matrix_descriptor(base + place.d_scores + rows_offset(kGroupRows, 0, first));
  CARZERO_UNROLL
  for (int step = 0; step < kRows / 16; ++step) {
    group_multiply_left_columns<T>(d_q, moved(left, rows_offset(kRows, 0, 16 * step)),
                                   moved(right, step_offset(kGroupRows, step)), step);
  }
  group_commit();
}

// The same of a group's columns of d_v and d_k: more of all their sums.
template <class T, int kTiles>
CARZERO_DEVICE void multiply_values(uint32_t base, const BackwardShared& place, int group, uint32_t gradients,
                                    float (&d_v)[kTiles][4]) {
  const uint64_t left = matrix_descriptor(gradients + rows_offset(kGroupRows, group, 0)),
                 right = matrix_descriptor(base + place.weights, kGroupRows * kPanelRowBytes);
  CARZERO_UNROLL
  for (int step = 0; step < kGroupRows / 16; ++step) {
    const uint32_t rows = rows_offset(kGroupRows, 0, 16 * step);
    group_multiply_columns<T>(d_v, moved(left, rows), moved(right, rows), 1);
  }
  group_commit();
}
template <class T, int kTiles>
CARZERO_DEVICE void multiply_keys(uint32_t base, const BackwardShared& place, int group, uint32_t queries,
                                  float (&d_k)[kTiles][4]) {
  const uint64_t left = matrix_descriptor(queries + rows_offset(kGroupRows, group, 0)),
                 right = matrix_descriptor(base + place.d_scores, kGroupRows * kPanelRowBytes);
  CARZERO_UNROLL
  for (int step = 0; step < kGroupRows / 16; ++step) {
    const uint32_t rows = rows_offset(kGroupRows, 0, 16 * step);
    group_multiply_columns<T>(d_k, moved(left, rows), moved(right, rows), 1);
  }
  group_commit();
}

// The first of 16 columns of the head that a warp has of its group's: a lane holds two of them, 8 apart.
CARZERO_DEVICE int warp_column(int group) {
  return group * kPanelColumns + thread_index() % kGroupThreads / 32 * 16;
}

// Where a thread's sixteen sums of d_q lie in the other block's shared memory: four at a time, beside those of its neighbours.
CARZERO_DEVICE uint32_t sent_offset(const BackwardShared& place, int thread, int n) {
  return place.weights + static_cast<uint32_t>(n * kBackwardGroups * kGroupThreads + thread) * 16;
}

// Sends them to the other block, `rank` of the cluster.
CARZERO_DEVICE void send_queries(Shared s, const BackwardShared& place, int rank, const float (&d_q)[4][4]) {
  const int thread = opaque(thread_index());
  CARZERO_UNROLL
  for (int n = 0; n < 4; ++n) {
    const uint32_t words[4] = {bits_of(d_q[n][0]), bits_of(d_q[n][1]), bits_of(d_q[n][2]), bits_of(d_q[n][3])};
    send_words(s, rank, sent_offset(place, thread, n), words, place.arrived);
  }
}

// Adds what the other block sent.
CARZERO_DEVICE void add_queries(Shared s, const BackwardShared& place, float (&d_q)[4][4]) {
  const int thread = opaque(thread_index());
  CARZERO_UNROLL
  for (int n = 0; n < 4; ++n) {
    const auto sent = s.get<Words4>(sent_offset(place, thread, n));
    CARZERO_UNROLL
    for (int i = 0; i < 4; ++i) d_q[n][i] += float_of(sent.w[i]);
  }
}

// Writes them, for queries from `row0` on.
CARZERO_DEVICE void store_queries(const BackwardCall& c, int group, int row0, const float (&d_q)[4][4]) {
  const int thread = opaque(thread_index()), t = thread & 3, column = warp_column(group);
  if (column >= c.width) return;
  float* const to = c.d_q + static_cast<int64_t>(block_memory()) * c.dq_memory + block_head() * c.width + column +
                    (thread >> 2 & 7);
  CARZERO_UNROLL
  for (int n = 0; n < 4; ++n) {
    CARZERO_UNROLL
    for (int e = 0; e < 2; ++e) {
      // made here: sixteen rows' addresses at once are registers that spill
      const int query = opaque(row0 + 8 * n + 2 * t + e);
      if (query >= c.queries) continue;
      float* const row = to + static_cast<int64_t>(query) * c.dq_row;
      row[0] = d_q[n][e] * c.scale;
      row[8] = d_q[n][2 + e] * c.scale;
    }
  }
}

// The part of one of the three groups, which has kMine tiles of keys.
template <class T, int kTiles, bool kPair, int kMine>
CARZERO_DEVICE void multiply_tiles(const BackwardCall& c, Shared s, const BackwardShared& place, int of_group, int first,
                                   int end) {
  constexpr int kRows = (kTiles + 1) / 2 * 16, kPart = (kTiles + kBackwardGroups - 1) / kBackwardGroups;
  constexpr int kThreads = kBackwardGroups * kGroupThreads;
  const int tiles = ceil_div(c.queries, kGroupRows);
  const bool shares = c.dropout.threshold && c.count != nullptr;

  float d_k[kTiles][4], d_v[kTiles][4];
  CARZERO_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    CARZERO_UNROLL
    for (int i = 0; i < 4; ++i) d_k[n][i] = d_v[n][i] = 0.0f;
  }

  CARZERO_ROLL
  for (int tile = 0; tile < tiles; ++tile) {
    const int at = tile % kBackwardStages, parity = tile / kBackwardStages & 1, row0 = tile * kGroupRows;
    const uint32_t table = table_at(place, at);
    // known anew: addresses and descriptors made of them, kept from tile to tile, are the registers that spill
    const auto base = static_cast<uint32_t>(opaque(static_cast<int>(window(s))));
    const int group = opaque(of_group), own = group * kPart;
    const uint32_t queries = base + stage_at(place, at), gradients = queries + place.gradients;
    barrier_wait(s, full_at(place, at), parity);
    if (shares) {
      // readers of the last tile's weights
      part_barrier(kThreads);
      leave_shares<kMine>(c, s, place, own, first, row0);
    }

    uint32_t held[kMine][2];
    {
      float scores[kMine][4];
      const uint64_t left = matrix_descriptor(queries), right = matrix_descriptor(base + rows_offset(kRows, 0, 8 * own));
      group_fence();
      CARZERO_UNROLL
      for (int step = 0; step < kBackwardGroups * kStepsPerPanel; ++step) {
        group_multiply<T>(scores, moved(left, step_offset(kGroupRows, step)), moved(right, step_offset(kRows, step)),
                          step);
      }
      group_commit();
      // the table may be later than the matrices
      barrier_wait(s, ready_at(place, at), parity);
      group_wait();
      settle(scores);
      weigh<kMine>(c, s, place, table, own, scores, held);
    }
    {
      float d_weights[kMine][4];
      const uint64_t left = matrix_descriptor(gradients),
                     right = matrix_descriptor(base + place.values + rows_offset(kRows, 0, 8 * own));
      group_fence();
      CARZERO_UNROLL
      for (int step = 0; step < kBackwardGroups * kStepsPerPanel; ++step) {
        group_multiply<T>(d_weights, moved(left, step_offset(kGroupRows, step)), moved(right, step_offset(kRows, step)),
                          step);
      }
      group_commit();
      group_wait();
      settle(d_weights);
      // readers of the last tile's weights
      if (!shares) part_barrier(kThreads);
      finish<T, kMine>(c, s, place, table, own, group, held, d_weights);
    }
    fence_shared();
    part_barrier(kThreads);

    group_fence();
    float d_q[4][4];
    if constexpr (kPair) {
      const int rank = opaque(block_part()), other = rank ^ 1;
      multiply_values<T, kTiles>(base, place, group, gradients, d_v);
      multiply_queries<T, kRows>(base, place, group, 32 * other, d_q);
      multiply_keys<T, kTiles>(base, place, group, queries, d_k);
      // the weights have had their last reader here, and what the other block sends may lie in their place
      group_wait<2>();
      if ((thread_index() & 31) == 0) barrier_arrive_at(s, other, place.free);
      group_wait<1>();
      settle(d_q);
      barrier_wait_cluster(s, place.free, tile & 1);
      send_queries(s, place, other, d_q);
      group_fence();
      multiply_queries<T, kRows>(base, place, group, 32 * rank, d_q);
      group_wait<1>();
      if ((thread_index() & 31) == 0) barrier_arrive(s, empty_at(place, at));
      group_wait();
      settle(d_q);
      if (thread_index() == 0) barrier_expect(s, place.arrived, kSentBytes);
      barrier_wait_cluster(s, place.arrived, tile & 1);
      add_queries(s, place, d_q);
      store_queries(c, group, row0 + 32 * rank, d_q);
    } else {
      // 32 queries are written while the gradients of values are made, and 32 beside those of keys: there are no registers
      // left for 64
      multiply_queries<T, kRows>(base, place, group, 0, d_q);
      multiply_values<T, kTiles>(base, place, group, gradients, d_v);
      group_wait<1>();
      settle(d_q);
      store_queries(c, group, row0, d_q);
      group_fence();
      multiply_queries<T, kRows>(base, place, group, 32, d_q);
      multiply_keys<T, kTiles>(base, place, group, queries, d_k);
      group_wait<1>();
      settle(d_q);
      store_queries(c, group, row0 + 32, d_q);
      group_wait();
      if ((thread_index() & 31) == 0) barrier_arrive(s, empty_at(place, at));
    }
    settle(d_k);
    settle(d_v);
  }

  const int thread = thread_index(), t = thread & 3, column = warp_column(of_group);
  if (column >= c.width) return;
  const int64_t base = static_cast<int64_t>(block_memory()) * c.dkv_memory + block_head() * c.width + column +
                       (thread >> 2 & 7);
  CARZERO_UNROLL
  for (int n = 0; n < kTiles; ++n) {
    CARZERO_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int row = first + 8 * n + 2 * t + e;
      if (row >= end) continue;
      const int64_t to = base + static_cast<int64_t>(row) * c.dkv_row;
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        c.d_k[to + 8 * i] += d_k[n][2 * i + e] * c.scale;
        c.d_v[to + 8 * i] += d_v[n][2 * i + e];
      }
    }
  }
}

template <class T, int kTiles, bool kPair>
CARZERO_DEVICE void attention_backward_wgmma(const BackwardCall& c, const QueryMap& queries, const QueryMap& gradients) {
  constexpr int kRows = (kTiles + 1) / 2 * 16, kPart = (kTiles + kBackwardGroups - 1) / kBackwardGroups,
                kThreads = kBackwardGroups * kGroupThreads;
  const Shared s = block_shared();
  const int thread = thread_index(), memory = block_memory();
  // from one lane: the compiler sees that a warp stays together
  const int group = static_cast<int>(shuffle(static_cast<uint32_t>(thread / kGroupThreads), 0));
  const BackwardShared place = backward_shared(kTiles, kPair);
  const int keys = backward_keys(c.rows), first = block_part() * keys;
  const int end = first + keys < c.rows ? first + keys : c.rows;
  const int32_t* count = counts_of(c, memory);

  if (group < kBackwardGroups) {
    const RowMap<false> map{end, 1, 0};
    const int column0 = block_head() * c.width;
    copy_rows(s, 0, kRows, kBackwardGroups, keys_of(c, c.k, memory, column0), c.kv_row, first, 0, c.width, map, count,
              kThreads);
    copy_rows(s, place.values, kRows, kBackwardGroups, keys_of(c, c.v, memory, column0), c.kv_row, first, 0, c.width,
              map, count, kThreads);
    copy_commit();
    // d_q's products read whole steps of 16 keys
    if (kTiles % 2 && thread < kGroupRows) {
      s.clear16(place.d_scores + chunk_offset(kGroupRows, kTiles / 8, thread, kTiles % 8));
    }
  }
  fill_tables(s, place.bias, place.counts, kRows, RowMap<false>{end - first, 1, 0},
              count == nullptr ? nullptr : count + first, nullptr, 0.0f);
  if (thread == 0) {
    for (int i = 0; i < kBackwardStages; ++i) {
      barrier_init(s, full_at(place, i), 1);
      barrier_init(s, ready_at(place, i), kGroupThreads / 32);
      barrier_init(s, empty_at(place, i), kThreads / 32);
    }
    barrier_init(s, place.free, kThreads / 32);
    barrier_init(s, place.arrived, 1);
    fence_barriers();
  }
  if (kPair) {
    cluster_barrier();
  } else {
    block_barrier();
  }
  if (c.dropout.threshold && c.count != nullptr) {
    mark_collapsed<kRows / 16>(s, place.counts, place.collapsed);
    block_barrier();
  }
  if (group == kBackwardGroups) {
    set_registers<32, false>();
    prepare_tiles<T, kTiles>(c, queries, gradients, s, place, first);
    return;
  }

  set_registers<160, true>();
  copy_wait<0>();
  fence_shared();
  part_barrier(kThreads);
  if (group < kBackwardGroups - 1) {
    multiply_tiles<T, kTiles, kPair, kPart>(c, s, place, group, first, end);
  } else {
    multiply_tiles<T, kTiles, kPair, kTiles - 2 * kPart>(c, s, place, group, first, end);
  }
}

}  // namespace carzero::cuda
