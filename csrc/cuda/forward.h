// The forward kernel. A block holds one (memory, head)'s keys and values in shared memory; its warps take tiles of
// queries on their own. Scores of whole rows stay in registers: no running maximum, no rescaling, nothing between warps.
//
// Template arguments: element type; kTiles, tiles of 16 keys (P rounded up to a bucket of plan.h); kRowTiles, 16-query
// tiles of a warp that share each load of keys and values; kAbsorbed: all heads' rows side by side as one set of keys of
// width D, softmax over each head's.
#pragma once
#include "draw.h"
#include "shared_rows.h"

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
  const uint32_t threshold = c.dropout.threshold;

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
    if (threshold && c.count != nullptr) {
      for (int j = thread; j < kTiles; j += thread_count()) {
        uint32_t marks = 0;
        for (int i = 0; i < 16; ++i) {
          marks |= (s.get<int>(place.counts + static_cast<uint32_t>(16 * j + i) * 4) > 1 ? 1u : 0u) << i;
        }
        s.set(place.collapsed + static_cast<uint32_t>(j) * 4, marks);
      }
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

        // scale and bias; an absent row's bias of minus infinity wins over its score, which is 0
        CARZERO_UNROLL
        for (int n = 0; n < kColumnTiles; ++n) {
          CARZERO_UNROLL
          for (int i = 0; i < 2; ++i) {
            const float bias = s.get<float>(place.bias + static_cast<uint32_t>(8 * n + 2 * t + i) * 4);
            CARZERO_UNROLL
            for (int r = 0; r < kRowTiles; ++r) {
              scores[r][n][i] = scores[r][n][i] * scale_log2 + bias;
              scores[r][n][2 + i] = scores[r][n][2 + i] * scale_log2 + bias;
            }
          }
        }

        // softmax numerators; their sum divides the result, or, where a row holds several heads, the weights themselves
        CARZERO_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          CARZERO_UNROLL
          for (int i = 0; i < 2; ++i) {
            if constexpr (kAbsorbed) {
              CARZERO_ROLL
              for (int h = 0; h < c.heads; ++h) {
                const int low = h * c.group_tiles, high = low + c.group_tiles;
                float largest = -infinity(), sum = 0.0f;
                CARZERO_UNROLL
                for (int n = 0; n < kColumnTiles; ++n) {
                  if (n >= low && n < high) {
                    largest = fmaxf(largest, fmaxf(scores[r][n][2 * i], scores[r][n][2 * i + 1]));
                  }
                }
                largest = quad_max(largest);
                if (largest == -infinity()) largest = 0.0f;
                CARZERO_UNROLL
                for (int n = 0; n < kColumnTiles; ++n) {
                  if (n >= low && n < high) {
                    sum += scores[r][n][2 * i] = exp2_of(scores[r][n][2 * i] - largest);
                    sum += scores[r][n][2 * i + 1] = exp2_of(scores[r][n][2 * i + 1] - largest);
                  }
                }
                sum = quad_sum(sum);
                const float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
                CARZERO_UNROLL
                for (int n = 0; n < kColumnTiles; ++n) {
                  if (n >= low && n < high) {
                    scores[r][n][2 * i] *= inverse;
                    scores[r][n][2 * i + 1] *= inverse;
                  }
                }
              }
              // columns that pad the last head's group are no head's
              CARZERO_UNROLL
              for (int n = 0; n < kColumnTiles; ++n) {
                if (n >= c.heads * c.group_tiles) scores[r][n][2 * i] = scores[r][n][2 * i + 1] = 0.0f;
              }
              factor[r][i] = 1.0f;
            } else {
              float largest = -infinity(), sum = 0.0f;
              CARZERO_UNROLL
              for (int n = 0; n < kColumnTiles; ++n) {
                largest = fmaxf(largest, fmaxf(scores[r][n][2 * i], scores[r][n][2 * i + 1]));
              }
              largest = quad_max(largest);
              // no row at all: weights of 0
              if (largest == -infinity()) largest = 0.0f;
              CARZERO_UNROLL
              for (int n = 0; n < kColumnTiles; ++n) {
                sum += scores[r][n][2 * i] = exp2_of(scores[r][n][2 * i] - largest);
                sum += scores[r][n][2 * i + 1] = exp2_of(scores[r][n][2 * i + 1] - largest);
              }
              sum = quad_sum(sum);
              factor[r][i] = sum > 0.0f ? 1.0f / sum : 0.0f;
              const int query = row0 + 16 * r + 8 * i + g;
              if (c.logsumexp != nullptr && t == 0 && query < c.queries) {
                // of no row: infinity, so that the backward's exponentials are 0
                c.logsumexp[(static_cast<int64_t>(memory) * c.heads + head) * c.queries + query] =
                    sum > 0.0f ? (largest + log2_of(sum)) * kLn2 : infinity();
              }
              if (c.maps != nullptr && query < c.queries) {
                float* to = c.maps + (static_cast<int64_t>(memory) * c.queries + query) * c.rows;
                const float share = factor[r][i] / static_cast<float>(c.heads);
                CARZERO_UNROLL
                for (int n = 0; n < kColumnTiles; ++n) {
                  CARZERO_UNROLL
                  for (int e = 0; e < 2; ++e) {
                    const int column = 8 * n + 2 * t + e;
                    if (column < c.rows) {
                      const float a = scores[r][n][2 * i + e] * share;
                      // the same thread adds all heads
                      to[column] = head_step ? to[column] + a : a;
                    }
                  }
                }
              }
            }
          }
        }

        if (threshold) {
          CARZERO_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            MaskRow mask = lane_mask(c.dropout, head, memory, row0 + 16 * r, c.queries);
            // eight bits for 16 keys, shifted in from the top: unrolled, this loop would be most of the kernel
            constexpr int kWords = (kTiles + 3) / 4;
            uint32_t packed[kWords] = {};
            CARZERO_ROLL
            for (int j = 0; j < kTiles; ++j) {
              int block8 = 2 * j + (lane >> 4);
              if constexpr (kAbsorbed) {
                mask.stream = philox::stream(Site::attention, c.dropout.layer, c.dropout.direction,
                                             block8 / c.group_tiles);
                block8 %= c.group_tiles;
              }
              uint32_t bits = draw_bits(mask, block8);
              // a collapsed row's share comes below
              if (c.count != nullptr) bits |= s.get<uint32_t>(place.collapsed + static_cast<uint32_t>(j) * 4);
              const uint32_t low = shuffle(bits, g) >> (2 * t), high = shuffle(bits, g + 8) >> (2 * t);
              const uint32_t mine8 = (low & 3) | (low >> 6 & 12) | (high & 3) << 4 | (high >> 2 & 192);
              CARZERO_UNROLL
              for (int w = 0; w < kWords; ++w) {
                packed[w] = packed[w] >> 8 | (w + 1 < kWords ? packed[w + 1 < kWords ? w + 1 : w] : mine8) << 24;
              }
            }
            CARZERO_UNROLL
            for (int j = 0; j < kTiles; ++j) {
              const int at = 4 * kWords - kTiles + j;
              const uint32_t mine8 = packed[at / 4] >> (8 * (at % 4));
              CARZERO_UNROLL
              for (int i = 0; i < 8; ++i) {
                float& x = scores[r][2 * j + (i >> 1 & 1)][(i & 1) + (i >> 2) * 2];
                x = mine8 >> i & 1 ? x : 0.0f;
              }
            }
          }
          if (c.count != nullptr) {
            CARZERO_ROLL
            for (int j = 0; j < kTiles; ++j) {
              uint32_t marks = s.get<uint32_t>(place.collapsed + static_cast<uint32_t>(j) * 4);
              CARZERO_ROLL
              while (marks) {
                const int column = 16 * j + lowest_bit(marks);
                marks &= marks - 1;
                const int n = s.get<int>(place.counts + static_cast<uint32_t>(column) * 4);
                const int of_head = kAbsorbed ? map.head(column) : head;
                CARZERO_UNROLL
                for (int r = 0; r < kRowTiles; ++r) {
                  float share[2] = {0.0f, 0.0f};
                  CARZERO_ROLL
                  for (int i = 0; i < 2; ++i) {
                    const int query = row0 + 16 * r + 8 * i + g;
                    const MaskRow mask = mask_row(c.dropout, of_head, memory, query < c.queries ? query : 0);
                    // a quad shares the blocks of its row
                    const float kept = quad_sum(static_cast<float>(kept_among(mask, map.row(column), n, t, 4)));
                    share[0] = share[1];
                    share[1] = kept / static_cast<float>(n);
                  }
                  CARZERO_UNROLL
                  for (int tile8 = 0; tile8 < kColumnTiles; ++tile8) {
                    CARZERO_UNROLL
                    for (int i = 0; i < 4; ++i) {
                      // multiplied everywhere: a branch becomes an index, which moves the scores to local memory
                      scores[r][tile8][i] *= column == 8 * tile8 + 2 * t + (i & 1) ? share[i >> 1] : 1.0f;
                    }
                  }
                }
              }
            }
          }
          CARZERO_UNROLL
          for (int r = 0; r < kRowTiles; ++r) {
            CARZERO_UNROLL
            for (int i = 0; i < 2; ++i) factor[r][i] *= c.dropout.keep;
          }
        }

        // an accumulator's layout is a left operand's
        CARZERO_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          CARZERO_UNROLL
          for (int j = 0; j < kTiles; ++j) {
            weights[r][j][0] = T::pack(scores[r][2 * j][0], scores[r][2 * j][1]);
            weights[r][j][1] = T::pack(scores[r][2 * j][2], scores[r][2 * j][3]);
            weights[r][j][2] = T::pack(scores[r][2 * j + 1][0], scores[r][2 * j + 1][1]);
            weights[r][j][3] = T::pack(scores[r][2 * j + 1][2], scores[r][2 * j + 1][3]);
          }
        }
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
        CARZERO_UNROLL
        for (int r = 0; r < kRowTiles; ++r) {
          CARZERO_UNROLL
          for (int i = 0; i < 2; ++i) {
            const int query = row0 + 16 * r + 8 * i + g;
            if (query >= c.queries) continue;
            const int64_t to = static_cast<int64_t>(memory) * c.out_memory + static_cast<int64_t>(query) * c.out_row +
                               column0 + panel * kPanelColumns + 2 * t;
            CARZERO_UNROLL
            for (int n = 0; n < 8; ++n) {
              if (panel * kPanelColumns + 8 * n >= c.width) continue;
              const float x = sums[r][n][2 * i] * factor[r][i], y = sums[r][n][2 * i + 1] * factor[r][i];
              if (c.out_float) {
                float* out = static_cast<float*>(c.out) + to + 8 * n;
                out[0] = x;
                out[1] = y;
              } else {
                *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(c.out) + to + 8 * n) = T::pack(x, y);
              }
            }
          }
        }
      }
    }
  }
}

}  // namespace carzero::cuda
