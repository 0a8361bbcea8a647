// The backward kernel that owns queries: d_q, and the row sums that the kernel of backward_keys.h needs. A warp keeps 16
// queries, their output gradients and d_q in registers and walks over the keys, whose weights it makes again from the
// forward's log-sum-exp.
//
// Template arguments: element type; kPanels, panels of the head width; kOutPanels, those of d_q that are made in one walk
// over the keys; kCollapsed, whether rows may stand for several under dropout, which takes registers, and with them a
// walk more. Those memories have few rows.
#pragma once
#include "draw.h"
#include "shared_rows.h"

namespace carzero::cuda {

// Multiplies an accumulator pair of 16 queries x 16 keys by the dropout's multipliers: 0 where dropped, the keep scale
// elsewhere, and for a row that stands for n rows the share of them that is kept.
//
// Args: `drawn` of `draw_tile`; `counts`, the first key's place in the table.
template <bool kCollapsed>
CARZERO_DEVICE void drop_queries(float (&x)[2][4], const Dropout& dropout, DrawnTile drawn, Shared s, uint32_t counts,
                                 int head, int memory, int row0, int queries, int key0) {
  const int lane = thread_index() & 31, g = lane >> 2, t = lane & 3;
  uint32_t marks = drawn.marks;
  const uint32_t bits = drawn.bits | marks;
  const uint32_t low = shuffle(bits, g) >> (2 * t), high = shuffle(bits, g + 8) >> (2 * t);
  CARZERO_UNROLL
  for (int n = 0; n < 2; ++n) {
    CARZERO_UNROLL
    for (int i = 0; i < 4; ++i) x[n][i] = (i < 2 ? low : high) >> (8 * n + (i & 1)) & 1 ? x[n][i] * dropout.keep : 0.0f;
  }
  CARZERO_ROLL
  while (kCollapsed && marks) {
    const int column = lowest_bit(marks);
    marks &= marks - 1;
    const MaskRow mask = lane_mask(dropout, head, memory, row0, queries);
    const float share = collapsed_share(mask, key0 + column, s.get<int>(counts + static_cast<uint32_t>(column) * 4));
    const float share_low = shuffle(share, g), share_high = shuffle(share, g + 8);
    CARZERO_UNROLL
    for (int n = 0; n < 2; ++n) {
      CARZERO_UNROLL
      for (int i = 0; i < 4; ++i) {
        x[n][i] *= column == 8 * n + 2 * t + (i & 1) ? (i < 2 ? share_low : share_high) : 1.0f;
      }
    }
  }
}

template <class T, int kPanels, int kOutPanels, bool kCollapsed>
CARZERO_DEVICE void attention_backward_queries(const BackwardCall& c) {
  const Shared s = block_shared();
  const int thread = thread_index(), lane = thread & 31, warp = thread >> 5, warps = thread_count() >> 5;
  const int g = lane >> 2, t = lane & 3;
  const int memory = block_memory(), head = block_head(), split = block_part();

  const int keys = ceil_div(c.rows, 16) * 16, chunks = ceil_div(keys, c.chunk_rows);
  const QueryShared place = query_shared(c.chunk_rows, keys, kPanels);
  const RowMap<false> map{c.rows, 1, 0};
  const float scale_log2 = c.scale * kLog2E;
  const int column0 = head * c.width;
  const int tiles = ceil_div(c.queries, 16), iterations = ceil_div(tiles, c.splits * warps);
  const uint32_t right = block_lane(right_chunk(lane)), transposed = block_lane(right_transposed_chunk(lane));

  fill_tables(s, place.bias, place.counts, keys, map, counts_of(c, memory), nullptr, scale_log2);

  const uint32_t rows_at = place.rows + static_cast<uint32_t>(warp * 32 + g) * 4;
  CARZERO_ROLL
  for (int iteration = 0; iteration < iterations; ++iteration) {
    const int tile = (iteration * c.splits + split) * warps + warp, row0 = tile * 16;
    const bool active = tile < tiles;
    uint32_t q[kPanels * kStepsPerPanel][4], d_out[kPanels * kStepsPerPanel][4];
    if (active) {
      float delta[2] = {0.0f, 0.0f};
      bool there[2];
      int64_t q_at[2], out_at[2];
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int query = row0 + 8 * i + g;
        there[i] = query < c.queries;
        const int64_t row = there[i] ? query : 0;
        q_at[i] = static_cast<int64_t>(memory) * c.q_memory + row * c.q_row + column0 + 2 * t;
        out_at[i] = static_cast<int64_t>(memory) * c.out_memory + row * c.out_row + column0 + 2 * t;
      }
      CARZERO_UNROLL
      for (int step = 0; step < kPanels * kStepsPerPanel; ++step) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) {
          const int column = 16 * step + 8 * (i >> 1);
          const bool inside = 16 * step < c.width && there[i & 1];
          q[step][i] = inside ? load_word(static_cast<const uint16_t*>(c.q) + q_at[i & 1] + column) : 0u;
          d_out[step][i] = inside ? load_word(static_cast<const uint16_t*>(c.d_out) + out_at[i & 1] + column) : 0u;
          const uint32_t o = inside ? load_word(static_cast<const uint16_t*>(c.out) + out_at[i & 1] + column) : 0u;
          delta[i & 1] += T::low(o) * T::low(d_out[step][i]) + T::high(o) * T::high(d_out[step][i]);
        }
      }
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        delta[i] = quad_sum(delta[i]);
        float logsumexp = infinity();
        if (there[i]) {
          const int64_t at = (static_cast<int64_t>(memory) * c.heads + head) * c.queries + row0 + 8 * i + g;
          logsumexp = c.logsumexp[at] * kLog2E;
          if (t == 0) c.delta[at] = delta[i];
        }
        // registers are full: all four lanes of a row write the same, and each reads what it wrote
        s.set(rows_at + static_cast<uint32_t>(i) * 64, logsumexp);
        s.set(rows_at + static_cast<uint32_t>(i) * 64 + 32, delta[i]);
      }
    }

    CARZERO_ROLL
    for (int out0 = 0; out0 < kPanels; out0 += kOutPanels) {
      float d_q[kOutPanels * 8][4];
      CARZERO_UNROLL
      for (int n = 0; n < kOutPanels * 8; ++n) {
        CARZERO_UNROLL
        for (int i = 0; i < 4; ++i) d_q[n][i] = 0.0f;
      }
      CARZERO_ROLL
      for (int chunk = 0; chunk < chunks; ++chunk) {
        const int first = chunk * c.chunk_rows;
        if (chunks > 1 || (iteration == 0 && out0 == 0)) {
          // readers of the last chunk
          block_barrier();
          copy_rows(s, 0, c.chunk_rows, kPanels, keys_of(c, c.k, memory, column0), c.kv_row, first, 0, c.width, map,
                    counts_of(c, memory));
          copy_rows(s, place.values, c.chunk_rows, kPanels, keys_of(c, c.v, memory, column0), c.kv_row, first, 0,
                    c.width, map, counts_of(c, memory));
          copy_commit();
          copy_wait<0>();
          block_barrier();
        }
        if (!active) continue;
        const int stop = keys - first < c.chunk_rows ? keys - first : c.chunk_rows;
        CARZERO_ROLL
        for (int key = 0; key < stop; key += 16) {
          // drawn before there is anything else to keep
          DrawnTile drawn{};
          const uint32_t counts = place.counts + static_cast<uint32_t>(first + key) * 4;
          if (c.dropout.threshold) {
            drawn = draw_tile(c.dropout, s, counts, kCollapsed && c.count != nullptr, head, memory, row0, c.queries, first + key);
          }
          float scores[2][4] = {}, d_weights[2][4] = {};
          CARZERO_UNROLL
          for (int step = 0; step < kPanels * kStepsPerPanel; ++step) {
            const uint32_t at =
                at_step(rows_offset(c.chunk_rows, step / kStepsPerPanel, key) + right, step % kStepsPerPanel);
            uint32_t b[4];
            load_matrices(b, s, at);
            T::multiply(scores[0], q[step], b[0], b[1]);
            T::multiply(scores[1], q[step], b[2], b[3]);
          }
          CARZERO_UNROLL
          for (int step = 0; step < kPanels * kStepsPerPanel; ++step) {
            const uint32_t at =
                at_step(rows_offset(c.chunk_rows, step / kStepsPerPanel, key) + right, step % kStepsPerPanel);
            uint32_t b[4];
            load_matrices(b, s, place.values + at);
            T::multiply(d_weights[0], d_out[step], b[0], b[1]);
            T::multiply(d_weights[1], d_out[step], b[2], b[3]);
          }
          if (c.dropout.threshold) {
            drop_queries<kCollapsed>(d_weights, c.dropout, drawn, s, counts, head, memory, row0, c.queries, first + key);
          }
          CARZERO_UNROLL
          for (int n = 0; n < 2; ++n) {
            CARZERO_UNROLL
            for (int i = 0; i < 4; ++i) {
              const float bias =
                  s.get<float>(place.bias + static_cast<uint32_t>(first + key + 8 * n + 2 * t + (i & 1)) * 4);
              const uint32_t row = rows_at + static_cast<uint32_t>(i >> 1) * 64;
              const float weight = exp2_of(scores[n][i] * scale_log2 + bias - s.get<float>(row));
              scores[n][i] = weight * (d_weights[n][i] - s.get<float>(row + 32));
            }
          }
          const uint32_t a[4] = {T::pack(scores[0][0], scores[0][1]), T::pack(scores[0][2], scores[0][3]),
                                 T::pack(scores[1][0], scores[1][1]), T::pack(scores[1][2], scores[1][3])};
          CARZERO_UNROLL
          for (int n = 0; n < kOutPanels * 4; ++n) {
            // columns that the last walk has too many
            if (kPanels % kOutPanels && out0 + n / 4 >= kPanels) continue;
            uint32_t b[4];
            load_matrices_transposed(b, s,
                                     at_step(rows_offset(c.chunk_rows, out0 + n / 4, key) + transposed, n % 4));
            T::multiply(d_q[2 * n], a, b[0], b[1]);
            T::multiply(d_q[2 * n + 1], a, b[2], b[3]);
          }
        }
      }
      if (!active) continue;
      CARZERO_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int query = row0 + 8 * i + g;
        if (query >= c.queries) continue;
        float* to = c.d_q + static_cast<int64_t>(memory) * c.dq_memory + static_cast<int64_t>(query) * c.dq_row +
                    column0 + out0 * kPanelColumns + 2 * t;
        CARZERO_UNROLL
        for (int n = 0; n < kOutPanels * 8; ++n) {
          if (out0 * kPanelColumns + 8 * n >= c.width) continue;
          to[8 * n] = d_q[n][2 * i] * c.scale;
          to[8 * n + 1] = d_q[n][2 * i + 1] * c.scale;
        }
      }
    }
  }
}

}  // namespace carzero::cuda
