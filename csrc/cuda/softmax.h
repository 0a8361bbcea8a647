// From the scores of a warp's queries to the weights that multiply the values, in the accumulator's registers: what the
// forward kernels of both product instructions (forward.h, forward_wgmma.h) have in common.
#pragma once
#include "draw.h"
#include "shared_rows.h"

namespace carzero::cuda {

// Where a warp's tiles of 16 queries stand: the first of them is `row0`. `head_step` heads were done before, by the same
// threads, whose sum the maps hold.
struct WarpRows {
  int memory, head, head_step, row0;
};

// Scores become weights, rounded, in left-operand registers; log-sum-exps and maps are written. What `factor` says
// is left to multiply the product with.
template <class T, int kTiles, int kRowTiles, bool kAbsorbed>
CARZERO_DEVICE void softmax(const ForwardCall& c, Shared s, const ForwardShared& place, WarpRows at,
                            float (&scores)[kRowTiles][2 * kTiles][4], uint32_t (&weights)[kRowTiles][kTiles][4],
                            float (&factor)[kRowTiles][2]) {
  constexpr int kColumnTiles = kTiles * 2;
  const int lane = opaque(thread_index()) & 31, g = lane >> 2, t = lane & 3;
  const int memory = at.memory, head = at.head, head_step = at.head_step, row0 = at.row0;
  const RowMap<kAbsorbed> map{c.rows, c.heads, c.group_tiles * 8};
  const float scale_log2 = c.scale * kLog2E;
  const uint32_t threshold = c.dropout.threshold;

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

// Writes 64 columns of the results.
template <class T, int kRowTiles>
CARZERO_DEVICE void store_panel(const ForwardCall& c, const float (&sums)[kRowTiles][8][4],
                                const float (&factor)[kRowTiles][2], int memory, int row0, int column0, int panel) {
  const int lane = opaque(thread_index()) & 31, g = lane >> 2, t = lane & 3;
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

}  // namespace carzero::cuda
