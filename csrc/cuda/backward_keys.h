// The backward kernel that owns keys: d_k and d_v. A warp keeps the gradients of 16 keys and values in registers while
// queries and output gradients stream past in two stages; where a memory has few keys, several warps share 16 of them,
// each with queries of its own, and their sums are added in a fixed order. Nothing is added by two blocks.
//
// Template arguments: element type; kOutPanels, panels of the gradients that a block makes, which divide the head's. A
// head wider than that has its columns shared by several blocks, each of which makes the weights again.
#pragma once
#include "draw.h"
#include "shared_rows.h"

namespace carzero::cuda {

// The kept shares of a tile's collapsed keys, of 16 queries each, into this warp's table: before the products, because there
// are no registers left for the generator beside their sums.
CARZERO_DEVICE void table_shares(Shared s, uint32_t shares, const Dropout& dropout, DrawnTile drawn, uint32_t counts,
                                 int head, int memory, int row0, int queries, int key0) {
  uint32_t marks = drawn.marks;
  CARZERO_ROLL
  while (marks) {
    const int row = lowest_bit(marks);
    marks &= marks - 1;
    const MaskRow mask = lane_mask(dropout, head, memory, row0, queries);
    const float share = collapsed_share(mask, key0 + row, s.get<int>(counts + static_cast<uint32_t>(row) * 4));
    s.set(shares + static_cast<uint32_t>(16 * row + (thread_index() & 15)) * 4, share);
  }
  warp_barrier();
}

// Multiplies accumulator pairs of 16 keys x 16 queries by the dropout's multipliers: the transpose of `drop_queries`.
CARZERO_DEVICE void drop_keys(float (&x)[2][4], float (&y)[2][4], float keep, DrawnTile drawn, Shared s,
                              uint32_t shares) {
  const int lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
  const uint32_t bits = drawn.bits | drawn.marks;
  CARZERO_UNROLL
  for (int n = 0; n < 2; ++n) {
    CARZERO_UNROLL
    for (int e = 0; e < 2; ++e) {
      const int query = 8 * n + 2 * t + e;
      const uint32_t of_query = shuffle(bits, query) >> g;
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        float factor = of_query >> (8 * i) & 1 ? keep : 0.0f;
        const int row = g + 8 * i;
        if (drawn.marks >> row & 1) factor *= s.get<float>(shares + static_cast<uint32_t>(16 * row + query) * 4);
        x[n][2 * i + e] *= factor;
        y[n][2 * i + e] *= factor;
      }
    }
  }
}

// Begins to copy a stage: rows of queries and output gradients, log-sum-exps (infinity beyond the last query) and sums.
CARZERO_DEVICE void copy_stage(Shared s, uint32_t offset, const KeyShared& place, const BackwardCall& c, int stage_rows,
                               int row0, int head, int memory, int panels) {
  const RowMap<false> map{c.queries, 1, 0};
  const int column0 = head * c.width;
  const int64_t q = static_cast<int64_t>(memory) * c.q_memory + column0;
  const int64_t out = static_cast<int64_t>(memory) * c.out_memory + column0;
  copy_rows(s, offset, stage_rows, panels, static_cast<const uint16_t*>(c.q) + q, c.q_row, row0, 0, c.width, map,
            nullptr);
  copy_rows(s, offset + place.gradients, stage_rows, panels, static_cast<const uint16_t*>(c.d_out) + out, c.out_row,
            row0, 0, c.width, map, nullptr);
  const int64_t rows = (static_cast<int64_t>(memory) * c.heads + head) * c.queries;
  for (int r = thread_index(); r < stage_rows; r += thread_count()) {
    const uint32_t at = offset + static_cast<uint32_t>(r) * 4;
    if (row0 + r < c.queries) {
      copy4(s, at + place.logsumexp, c.logsumexp + rows + row0 + r);
      copy4(s, at + place.delta, c.delta + rows + row0 + r);
    } else {
      s.set(at + place.logsumexp, infinity());
      s.set(at + place.delta, 0.0f);
    }
  }
  copy_commit();
}

template <class T, int kOutPanels>
CARZERO_DEVICE void attention_backward_keys(const BackwardCall& c) {
  const Shared s = block_shared();
  const int thread = thread_index(), lane = thread & 31, warp = thread >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int panels = panel_count(c.width), parts = ceil_div(panels, kOutPanels);
  const int memory = block_memory(), head = block_head();
  const int out0 = block_part() % parts * kOutPanels, first = block_part() / parts * c.chunk_rows;
  const int key_tiles = c.chunk_rows / 16, key = warp % key_tiles * 16, group = warp / key_tiles;

  const int stage_rows = 16 * c.query_groups, stages = ceil_div(c.queries, stage_rows);
  const KeyShared place = key_shared(c.chunk_rows, stage_rows, panels);
  const RowMap<false> map{c.rows, 1, 0};
  const int32_t* count = counts_of(c, memory);
  const float scale_log2 = c.scale * kLog2E;
  const int column0 = head * c.width;

  copy_rows(s, 0, c.chunk_rows, panels, keys_of(c, c.k, memory, column0), c.kv_row, first, 0, c.width, map, count);
  copy_rows(s, place.values, c.chunk_rows, panels, keys_of(c, c.v, memory, column0), c.kv_row, first, 0, c.width, map,
            count);
  for (int r = thread; r < c.chunk_rows; r += thread_count()) {
    const int row = first + r, n = row >= c.rows ? 0 : (count == nullptr ? 1 : count[row]);
    s.set(place.counts + static_cast<uint32_t>(r) * 4, n);
    s.set(place.bias + static_cast<uint32_t>(r) * 4, n > 0 ? log2_of(static_cast<float>(n)) : -infinity());
  }
  // keys and values arrive with the first stage, and the tables are read after its barrier
  copy_stage(s, place.queries, place, c, stage_rows, 0, head, memory, panels);
  const uint32_t left = block_lane(left_chunk(lane)), right = block_lane(right_chunk(lane)),
                 transposed = block_lane(right_transposed_chunk(lane));
  float d_k[kOutPanels * 8][4], d_v[kOutPanels * 8][4];
  CARZERO_UNROLL
  for (int n = 0; n < kOutPanels * 8; ++n) {
    CARZERO_UNROLL
    for (int i = 0; i < 4; ++i) d_k[n][i] = d_v[n][i] = 0.0f;
  }

  CARZERO_ROLL
  for (int stage = 0; stage < stages; ++stage) {
    // known anew: addresses made of them, kept from stage to stage, are the registers that spill
    const int memory = opaque(block_memory()), head = opaque(block_head());
    const uint32_t here = place.queries + static_cast<uint32_t>(stage & 1) * place.stage_bytes;
    if (stage + 1 < stages) {
      copy_stage(s, place.queries + static_cast<uint32_t>((stage + 1) & 1) * place.stage_bytes, place, c, stage_rows,
                 (stage + 1) * stage_rows, head, memory, panels);
      copy_wait<1>();
    } else {
      copy_wait<0>();
    }
    block_barrier();
    const int row0 = stage * stage_rows + 16 * group;
    if (row0 < c.queries) {
      DrawnTile drawn{};
      const uint32_t counts = place.counts + static_cast<uint32_t>(key) * 4;
      const uint32_t shares = place.shares + static_cast<uint32_t>(warp) * kSharesBytes;
      if (c.dropout.threshold) {
        drawn = draw_tile(c.dropout, s, counts, c.count != nullptr, head, memory, row0, c.queries, first + key);
        table_shares(s, shares, c.dropout, drawn, counts, head, memory, row0, c.queries, first + key);
      }
      float scores[2][4] = {}, d_weights[2][4] = {};
      CARZERO_ROLL
      for (int panel = 0; panel < panels; ++panel) {
        CARZERO_UNROLL
        for (int step = 0; step < kStepsPerPanel; ++step) {
          const uint32_t at_key = at_step(rows_offset(c.chunk_rows, panel, key) + left, step);
          const uint32_t at_query = at_step(here + rows_offset(stage_rows, panel, 16 * group) + right, step);
          uint32_t a[4], b[4];
          load_matrices(a, s, at_key);
          load_matrices(b, s, at_query);
          T::multiply(scores[0], a, b[0], b[1]);
          T::multiply(scores[1], a, b[2], b[3]);
        }
      }
      CARZERO_ROLL
      for (int panel = 0; panel < panels; ++panel) {
        CARZERO_UNROLL
        for (int step = 0; step < kStepsPerPanel; ++step) {
          const uint32_t at_key = at_step(rows_offset(c.chunk_rows, panel, key) + left, step);
          const uint32_t at_query = at_step(here + rows_offset(stage_rows, panel, 16 * group) + right, step);
          uint32_t a[4], b[4];
          load_matrices(a, s, place.values + at_key);
          load_matrices(b, s, place.gradients + at_query);
          T::multiply(d_weights[0], a, b[0], b[1]);
          T::multiply(d_weights[1], a, b[2], b[3]);
        }
      }
      CARZERO_UNROLL
      for (int n = 0; n < 2; ++n) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t at = here + static_cast<uint32_t>(16 * group + 8 * n + 2 * t + (i & 1)) * 4;
          const float logsumexp = s.get<float>(at + place.logsumexp) * kLog2E;
          const float bias = s.get<float>(place.bias + static_cast<uint32_t>(key + 8 * (i >> 1) + g) * 4);
          scores[n][i] = exp2_of(scores[n][i] * scale_log2 + bias - logsumexp);
        }
      }
      float used[2][4];
      CARZERO_UNROLL
      for (int n = 0; n < 2; ++n) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) used[n][i] = scores[n][i];
      }
      if (c.dropout.threshold) {
        drop_keys(used, d_weights, c.dropout.keep, drawn, s, shares);
      }
      CARZERO_UNROLL
      for (int n = 0; n < 2; ++n) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) {
          const uint32_t at = here + static_cast<uint32_t>(16 * group + 8 * n + 2 * t + (i & 1)) * 4;
          scores[n][i] *= d_weights[n][i] - s.get<float>(at + place.delta);
        }
      }
      const uint32_t a_v[4] = {T::pack(used[0][0], used[0][1]), T::pack(used[0][2], used[0][3]),
                               T::pack(used[1][0], used[1][1]), T::pack(used[1][2], used[1][3])};
      const uint32_t a_k[4] = {T::pack(scores[0][0], scores[0][1]), T::pack(scores[0][2], scores[0][3]),
                               T::pack(scores[1][0], scores[1][1]), T::pack(scores[1][2], scores[1][3])};
      CARZERO_UNROLL
      for (int n = 0; n < kOutPanels * 4; ++n) {
        const uint32_t at =
            at_step(here + rows_offset(stage_rows, out0 + n / 4, 16 * group) + transposed, n % 4);
        uint32_t b[4];
        load_matrices_transposed(b, s, place.gradients + at);
        T::multiply(d_v[2 * n], a_v, b[0], b[1]);
        T::multiply(d_v[2 * n + 1], a_v, b[2], b[3]);
        load_matrices_transposed(b, s, at);
        T::multiply(d_k[2 * n], a_k, b[0], b[1]);
        T::multiply(d_k[2 * n + 1], a_k, b[2], b[3]);
      }
    }
    // readers of this stage, before the one after the next is copied over it
    block_barrier();
  }

  // the groups' sums, one after the other, eight columns at a time: lane by lane, 32 bytes each
  CARZERO_ROLL
  for (int from = 1; from < c.query_groups; ++from) {
    CARZERO_UNROLL
    for (int n = 0; n < kOutPanels * 8; ++n) {
      const uint32_t at = static_cast<uint32_t>((key / 16 * 32 + lane) * 32);
      if (group == from) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) {
          s.set(at + static_cast<uint32_t>(i) * 4, d_k[n][i]);
          s.set(at + static_cast<uint32_t>(4 + i) * 4, d_v[n][i]);
        }
      }
      block_barrier();
      if (group == 0) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) {
          d_k[n][i] += s.get<float>(at + static_cast<uint32_t>(i) * 4);
          d_v[n][i] += s.get<float>(at + static_cast<uint32_t>(4 + i) * 4);
        }
      }
      block_barrier();
    }
  }
  if (group != 0) return;

  CARZERO_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = first + key + 8 * i + g;
    if (row >= c.rows) continue;
    const int64_t to = static_cast<int64_t>(memory) * c.dkv_memory + static_cast<int64_t>(row) * c.dkv_row + column0 +
                       out0 * kPanelColumns + 2 * t;
    CARZERO_UNROLL
    for (int n = 0; n < kOutPanels * 8; ++n) {
      if (out0 * kPanelColumns + 8 * n >= c.width) continue;
      CARZERO_UNROLL
      for (int e = 0; e < 2; ++e) {
        c.d_k[to + 8 * n + e] += d_k[n][2 * i + e] * c.scale;
        c.d_v[to + 8 * n + e] += d_v[n][2 * i + e];
      }
    }
  }
}

}  // namespace carzero::cuda
