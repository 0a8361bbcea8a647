// The forward kernel. A block holds one (memory, head)'s keys and values in shared memory; its warps take tiles of
// queries on their own. Scores of whole rows stay in registers: no running maximum, no rescaling, nothing between warps.
//
// Template arguments: element type; kTiles, tiles of 16 keys (P rounded up to a bucket of plan.h); kRowTiles, 16-query
// tiles of a warp that share each load of keys and values; kAbsorbed: all heads' rows side by side as one set of keys of
// width D, softmax over each head's.
#pragma once
#include "softmax.h"

namespace carzero::cuda {

// Left operands of kSteps k16 steps, straight from global memory: an element is used by one warp only.
template <int kRowTiles, int kSteps>
CARZERO_DEVICE void load_left(uint32_t (&a)[kRowTiles][kSteps][4], const uint16_t* const (&row)[kRowTiles][2],
                              const bool (&there)[kRowTiles][2], int first_step, int width, int t) {
  CARZERO_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    const int column = (first_step + step) * 16;
    CARZERO_UNROLL
    for (int r = 0; r < kRowTiles; ++r) {
      CARZERO_UNROLL
      for (int i = 0; i < 4; ++i) {
        const bool inside = column < width && there[r][i & 1];
        a[r][step][i] = inside ? load_word(row[r][i & 1] + column + 8 * (i >> 1) + 2 * t) : 0u;
      }
    }
  }
}

template <class T, int kTiles, int kRowTiles, bool kAbsorbed>
CARZERO_DEVICE void attention_forward(const ForwardCall& c) {
  constexpr int kRows = kTiles * 16, kColumnTiles = kTiles * 2;
  // k16 steps of queries that are loaded ahead: with few keys there is little to do in the meantime, with many scores
  // there are few registers left
  constexpr int kAhead = kTiles <= 2 ? 4 : (kTiles < 16 ? 2 : 1);
  const Shared s = block_shared();
  const int thread = thread_index(), lane = thread & 31, warp = thread >> 5, warps = thread_count() >> 5;
  const int g = lane >> 2, t = lane & 3;
  // with maps, and with absorption, one block has all heads
  const int memory = block_memory(), first_head = block_head(), split = block_part();
  const int head_steps = c.maps != nullptr ? c.heads : 1;

  const int panels = panel_count(c.width);
  const ForwardShared place = forward_shared(kRows, panels, c.resident != 0);
  const RowMap<kAbsorbed> map{c.rows, c.heads, c.group_tiles * 8};
  const float scale_log2 = c.scale * kLog2E;
  const int tiles = ceil_div(c.queries, 16 * kRowTiles);
  const int iterations = ceil_div(tiles, c.splits * warps);

  const uint32_t right = block_lane(right_chunk(lane)), transposed = block_lane(right_transposed_chunk(lane));

  CARZERO_ROLL
  for (int head_step = 0; head_step < head_steps; ++head_step) {
    const int head = first_head + head_step;
    const int column0 = kAbsorbed ? 0 : head * c.width;
    // the last head's readers
    if (head_step) block_barrier();
    copy_rows(s, 0, kRows, panels, keys_of(c, c.k, memory, column0), c.kv_row, 0, 0, c.width, map,
              counts_of(c, memory));
    copy_commit();
    if (c.resident) {
      copy_rows(s, place.values, kRows, panels, keys_of(c, c.v, memory, column0), c.kv_row, 0, 0, c.width, map,
                counts_of(c, memory));
    }
    copy_commit();
    fill_tables(s, place.bias, place.counts, kRows, map, counts_of(c, memory),
                c.key_bias == nullptr ? nullptr : c.key_bias + static_cast<int64_t>(memory) * c.heads * c.rows,
                scale_log2);
    copy_wait<1>();
    block_barrier();
    if (c.dropout.threshold && c.count != nullptr) {
      mark_collapsed<kTiles>(s, place.counts, place.collapsed);
      block_barrier();
    }

    CARZERO_ROLL
    for (int iteration = 0; iteration < iterations; ++iteration) {
      const int tile = (iteration * c.splits + split) * warps + warp;
      const bool active = tile < tiles;
      const int row0 = tile * 16 * kRowTiles;
      float scores[kRowTiles][kColumnTiles][4];
      uint32_t weights[kRowTiles][kTiles][4];
      float factor[kRowTiles][2];
      if (active) {
        const uint16_t* row[kRowTiles][2];
        bool there[kRowTiles][2];
        CARZERO_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          CARZERO_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int query = row0 + 16 * r + 8 * i + g;
            there[r][i] = query < c.queries;
            row[r][i] = static_cast<const uint16_t*>(c.q) + static_cast<int64_t>(memory) * c.q_memory +
                        static_cast<int64_t>(there[r][i] ? query : 0) * c.q_row + column0;
          }
          CARZERO_UNROLL
          for (int n = 0; n < kColumnTiles; ++n) {
            CARZERO_UNROLL
            for (int i = 0; i < 4; ++i) scores[r][n][i] = 0.0f;
          }
        }

        // scores: the next steps' queries are on their way while these are multiplied
        uint32_t a[kRowTiles][kAhead][4], next[kRowTiles][kAhead][4];
        load_left<kRowTiles, kAhead>(a, row, there, 0, c.width, t);
        CARZERO_ROLL
        for (int first = 0; first < panels * kStepsPerPanel; first += kAhead) {
          load_left<kRowTiles, kAhead>(next, row, there, first + kAhead, c.width, t);
          CARZERO_UNROLL
          for (int step = 0; step < kAhead; ++step) {
            const uint32_t at = at_step(rows_offset(kRows, first / kStepsPerPanel, 0) + right,
                                        first % kStepsPerPanel + step);
            CARZERO_UNROLL
            for (int j = 0; j < kTiles; ++j) {
              uint32_t b[4];
              load_matrices(b, s, at + static_cast<uint32_t>(j) * 16 * kPanelRowBytes);
              CARZERO_UNROLL
              for (int r = 0; r < kRowTiles; ++r) {
                T::multiply(scores[r][2 * j], a[r][step], b[0], b[1]);
                T::multiply(scores[r][2 * j + 1], a[r][step], b[2], b[3]);
              }
            }
          }
          CARZERO_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            CARZERO_UNROLL
            for (int step = 0; step < kAhead; ++step) {
              CARZERO_UNROLL
              for (int i = 0; i < 4; ++i) a[r][step][i] = next[r][step][i];
            }
          }
        }

        softmax<T, kTiles, kRowTiles, kAbsorbed>(c, s, place, {memory, head, head_step, row0}, scores, weights, factor);
      }

      if (c.resident && iteration == 0) {
        copy_wait<0>();
        block_barrier();
      }
      CARZERO_ROLL
      for (int panel = 0; panel < panels; ++panel) {
        if (!c.resident) {
          // readers of the last panel
          block_barrier();
          copy_rows(s, place.values, kRows, 1, keys_of(c, c.v, memory, column0), c.kv_row, 0, panel, c.width, map,
                    counts_of(c, memory));
          copy_commit();
          copy_wait<0>();
          block_barrier();
        }
        if (!active) continue;
        float sums[kRowTiles][8][4];
        CARZERO_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          CARZERO_UNROLL
          for (int n = 0; n < 8; ++n) {
            CARZERO_UNROLL
            for (int i = 0; i < 4; ++i) sums[r][n][i] = 0.0f;
          }
        }
        CARZERO_UNROLL
        for (int n = 0; n < 4; ++n) {
          const uint32_t at =
              at_step(place.values + rows_offset(kRows, c.resident ? panel : 0, 0) + transposed, n);
          CARZERO_UNROLL
          for (int j = 0; j < kTiles; ++j) {
            uint32_t b[4];
            load_matrices_transposed(b, s, at + static_cast<uint32_t>(j) * 16 * kPanelRowBytes);
            CARZERO_UNROLL
            for (int r = 0; r < kRowTiles; ++r) {
              T::multiply(sums[r][2 * n], weights[r][j], b[0], b[1]);
              T::multiply(sums[r][2 * n + 1], weights[r][j], b[2], b[3]);
            }
          }
        }
        store_panel<T, kRowTiles>(c, sums, factor, memory, row0, column0, panel);
      }
    }
  }
}

}  // namespace carzero::cuda
