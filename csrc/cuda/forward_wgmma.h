// The forward kernel of Hopper. As in forward.h a block holds one (memory, head)'s keys and values, and scores of whole
// rows stay in registers; but four warps together multiply 64 queries by all keys in one instruction (wgmma), and the
// queries come by the tensor memory accelerator: a warp of its own asks for the tile after the one that is worked on.
//
// Threads: one or two groups of 128 that multiply, each with tiles and stages of its own, so that one group's softmax
// runs beside the other's products; then the warp that fetches. Template arguments: element type; kTiles as in forward.h.
#pragma once
#include "softmax.h"
#include "warpgroup.h"

namespace carzero::cuda {

// The tiles of one group of a block: every `stride`-th from `first` on.
struct GroupTiles {
  int first, stride, end;
  CARZERO_DEVICE GroupTiles(const ForwardCall& c, int group, int groups)
      : first(block_part() * groups + group), stride(c.splits * groups), end(ceil_div(c.queries, kGroupRows)) {}
  CARZERO_DEVICE int count() const { return first < end ? ceil_div(end - first, stride) : 0; }
};

// One thread asks for every tile of queries of every group and head, as stages become free.
CARZERO_DEVICE void fetch_queries(const ForwardCall& c, const QueryMap& queries, Shared s, const GroupShared& place,
                                  int groups, int head_steps) {
  const int panels = panel_count(c.width), q_memory = c.q_memory ? block_memory() : 0;
  CARZERO_ROLL
  for (int head_step = 0; head_step < head_steps; ++head_step) {
    CARZERO_ROLL
    for (int round = 0; round < GroupTiles(c, 0, groups).count(); ++round) {
      CARZERO_ROLL
      for (int group = 0; group < groups; ++group) {
        const GroupTiles tiles(c, group, groups);
        if (round >= tiles.count()) continue;
        const int turn = head_step * tiles.count() + round, at = group * c.stages + turn % c.stages;
        // the first turn finds a stage free
        barrier_wait(s, empty_at(place, at), (turn / c.stages & 1) ^ 1);
        barrier_expect(s, full_at(place, at), place.stage_bytes);
        CARZERO_ROLL
        for (int panel = 0; panel < panels; ++panel) {
          copy_box(s, stage_at(place, at) + rows_offset(kGroupRows, panel, 0), queries, panel * kPanelColumns,
                   block_head() + head_step, (tiles.first + round * tiles.stride) * kGroupRows, q_memory,
                   full_at(place, at));
        }
      }
    }
  }
}

template <class T, int kTiles, int kPanels>
CARZERO_DEVICE void attention_forward_wgmma(const ForwardCall& c, const QueryMap& queries) {
  constexpr int kRows = kTiles * 16;
  const Shared s = block_shared();
  const int thread = thread_index(), warp = thread >> 5;
  // from one lane: the compiler sees that a warp stays together
  const int group = static_cast<int>(shuffle(static_cast<uint32_t>(thread / kGroupThreads), 0));
  const int groups = thread_count() / kGroupThreads - 1;
  const int memory = block_memory(), head_steps = c.maps != nullptr ? c.heads : 1;

  const int threads = groups * kGroupThreads;
  const GroupShared place = group_shared(kRows, kPanels, groups * c.stages);
  const RowMap<false> map{c.rows, 1, 0};

  if (thread == 0) {
    for (int i = 0; i < groups * c.stages; ++i) {
      barrier_init(s, full_at(place, i), 1);
      barrier_init(s, empty_at(place, i), kGroupThreads / 32);
    }
    fence_barriers();
  }
  block_barrier();
  if (group == groups) {
    set_registers<24, false>();
    if (thread == threads) fetch_queries(c, queries, s, place, groups, head_steps);
    return;
  }

  set_registers<240, true>();
  const GroupTiles tiles(c, group, groups);
  CARZERO_ROLL
  for (int head_step = 0; head_step < head_steps; ++head_step) {
    const int head = block_head() + head_step, column0 = head * c.width;
    // the last head's readers
    if (head_step) part_barrier(threads);
    copy_rows(s, 0, kRows, kPanels, keys_of(c, c.k, memory, column0), c.kv_row, 0, 0, c.width, map,
              counts_of(c, memory), threads);
    copy_commit();
    copy_rows(s, place.rows.values, kRows, kPanels, keys_of(c, c.v, memory, column0), c.kv_row, 0, 0, c.width, map,
              counts_of(c, memory), threads);
    copy_commit();
    fill_tables(s, place.rows.bias, place.rows.counts, kRows, map, counts_of(c, memory), nullptr, c.scale * kLog2E,
                threads);
    copy_wait<1>();
    fence_shared();
    part_barrier(threads);
    if (c.dropout.threshold && c.count != nullptr) {
      mark_collapsed<kTiles>(s, place.rows.counts, place.rows.collapsed, threads);
      part_barrier(threads);
    }

    CARZERO_ROLL
    for (int round = 0; round < tiles.count(); ++round) {
      const int turn = head_step * tiles.count() + round, at = group * c.stages + turn % c.stages;
      float scores[1][2 * kTiles][4];
      uint32_t weights[1][kTiles][4];
      float factor[1][2];
      barrier_wait(s, full_at(place, at), turn / c.stages & 1);
      group_fence();
      CARZERO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        CARZERO_UNROLL
        for (int step = 0; step < kStepsPerPanel; ++step) {
          const uint32_t in_row = static_cast<uint32_t>(step) * 32;
          group_multiply<T>(scores[0],
                            matrix_descriptor(window(s) + stage_at(place, at) + rows_offset(kGroupRows, panel, 0) + in_row),
                            matrix_descriptor(window(s) + rows_offset(kRows, panel, 0) + in_row),
                            panel + step);
        }
      }
      group_commit();
      group_wait();
      if ((thread & 31) == 0) barrier_arrive(s, empty_at(place, at));

      const int row0 = (tiles.first + round * tiles.stride) * kGroupRows + 16 * (warp & 3);
      softmax<T, kTiles, 1, false>(c, s, place.rows, {memory, head, head_step, row0}, scores, weights, factor);

      if (round == 0) {
        copy_wait<0>();
        fence_shared();
        part_barrier(threads);
      }
      CARZERO_UNROLL
      for (int panel = 0; panel < kPanels; ++panel) {
        float sums[1][8][4];
        group_fence();
        CARZERO_UNROLL
        for (int j = 0; j < kTiles; ++j) {
          group_multiply<T>(sums[0], weights[0][j],
                            matrix_descriptor(window(s) + place.rows.values + rows_offset(kRows, panel, 16 * j)), j);
        }
        group_commit();
        group_wait();
        store_panel<T, 1>(c, sums, factor, memory, row0, column0, panel);
      }
    }
    if (tiles.count() == 0) {
      copy_wait<0>();
      fence_shared();
      part_barrier(threads);
    }
  }
}

}  // namespace carzero::cuda
