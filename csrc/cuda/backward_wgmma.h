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
#include "backward_wgmma_weights.h"

namespace carzero::cuda {

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

// The same of a group's columns of d_v or d_k, more of their sums: from a stage's output gradients and the weights, or its
// queries and the gradients of their scores.
template <class T, int kTiles>
CARZERO_DEVICE void multiply_rows(uint32_t stage_rows, uint32_t weights, int group, float (&sums)[kTiles][4]) {
  const uint64_t left = matrix_descriptor(stage_rows + rows_offset(kGroupRows, group, 0)),
                 right = matrix_descriptor(weights, kGroupRows * kPanelRowBytes);
  CARZERO_UNROLL
  for (int step = 0; step < kGroupRows / 16; ++step) {
    const uint32_t rows = rows_offset(kGroupRows, 0, 16 * step);
    group_multiply_columns<T>(sums, moved(left, rows), moved(right, rows), 1);
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
      multiply_rows<T, kTiles>(gradients, base + place.weights, group, d_v);
      multiply_queries<T, kRows>(base, place, group, 32 * other, d_q);
      multiply_rows<T, kTiles>(queries, base + place.d_scores, group, d_k);
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
      multiply_rows<T, kTiles>(gradients, base + place.weights, group, d_v);
      group_wait<1>();
      settle(d_q);
      store_queries(c, group, row0, d_q);
      group_fence();
      multiply_queries<T, kRows>(base, place, group, 32, d_q);
      multiply_rows<T, kTiles>(queries, base + place.d_scores, group, d_k);
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
