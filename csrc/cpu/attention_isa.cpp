// The passes over attention scores of one instruction set. Compiled once per set.
#include "attention.h"
#include "isa.h"
#include "philox_lanes.h"

namespace carzero::cpu::CARZERO_ISA {

// Keys whose factors are computed at a time.
static constexpr int64_t kChunk = 256;

static void softmax(FloatRowsOut scores, int64_t rows, int64_t n, float scale, const float* shift) {
  if (n == 0) return;
  const int64_t whole = n / kLanes * kLanes;
  const int tail = static_cast<int>(n - whole);
  const vf minus_infinity = broadcast(-__builtin_inff());
  for (int64_t r = 0; r < rows; ++r) {
    float* s = scores.data + r * scores.stride;
    vf top = minus_infinity;
    const auto scaled = [&](int64_t c, vf v) __attribute__((always_inline)) {
      v = v * scale;
      if (shift != nullptr) v += c < whole ? load(shift + c) : load_first(shift + c, tail);
      return v;
    };
    for (int64_t c = 0; c < whole; c += kLanes) {
      const vf v = scaled(c, load(s + c));
      store(s + c, v);
      top = max(top, v);
    }
    if (tail != 0) {
      vf v = scaled(whole, load(s + whole));
      v = select(lane_index() < tail, v, minus_infinity);
      store(s + whole, v);
      top = max(top, v);
    }
    const float peak = hmax(top);
    vf sum{};
    for (int64_t c = 0; c < n; c += kLanes) {
      const vf e = exp(load(s + c) - peak);
      store(s + c, e);
      sum += e;
    }
    const float inverse = 1.0f / hsum(sum);
    for (int64_t c = 0; c < n; c += kLanes) store(s + c, load(s + c) * inverse);
  }
}

// The lanes of a pair's original rows, block by block as keys ask for them in ascending order.
struct LaneWindow {
  uint16_t lanes[kChunk];
  int64_t first = 0, end = 0;
};

// kept(first, count): how many of the lanes first .. first + count - 1 are at least the threshold.
CARZERO_INLINE int32_t kept(LaneWindow& window, const Dropout& d, PairId id, int64_t first, int64_t count) {
  int32_t total = 0;
  for (int64_t c = first; c < first + count;) {
    if (c < window.first || c >= window.end) {
      window.first = c / 8 * 8;
      const int64_t blocks = (first + count + 7) / 8 - window.first / 8;
      const int64_t drawn = blocks < 16 ? 16 : blocks < kChunk / 8 ? blocks : kChunk / 8;
      philox_lanes(d.key, d.stream, id.memory, id.query, window.first / 8, drawn, window.lanes);
      window.end = window.first + drawn * 8;
    }
    const int64_t stop = window.end < first + count ? window.end : first + count;
    const uint16_t* lanes = window.lanes - window.first;
    for (; c < stop; ++c) total += lanes[c] >= d.threshold;
  }
  return total;
}

// factors[0 .. width) of keys k0 .. k0 + width - 1
CARZERO_INLINE void draw_factors(const Keys& keys, int64_t k0, int64_t width, const Dropout& d, PairId id,
                                 LaneWindow& window, float* factors) {
  if (d.threshold == 0) {
    for (int64_t c = 0; c < width; c += kLanes) store(factors + c, broadcast(1.0f));
  } else if (keys.row == nullptr) {
    uint16_t lanes[kChunk];
    philox_lanes(d.key, d.stream, id.memory, id.query, k0 / 8, (width + 7) / 8, lanes);
    for (int64_t c = 0; c < width; c += kLanes) {
      store(factors + c, dropped_out(broadcast(1.0f), lanes + c, d.threshold, d.scale));
    }
  } else {
    for (int64_t c = 0; c < width; ++c) {
      const int32_t count = keys.count[k0 + c];
      const int32_t number = kept(window, d, id, keys.row[k0 + c], count);
      factors[c] = static_cast<float>(number) / static_cast<float>(count) * d.scale;
    }
  }
}

template <class T>
CARZERO_INLINE void drop_rows(FloatRows weights, int64_t rows, const Keys& keys, const Dropout& d, const PairId* ids,
                              RowsOut out) {
  float factors[kChunk];
  for (int64_t r = 0; r < rows; ++r) {
    const float* w = weights.data + r * weights.stride;
    T* to = static_cast<T*>(out.data) + r * out.stride;
    LaneWindow window;
    for (int64_t k0 = 0; k0 < keys.n; k0 += kChunk) {
      const int64_t width = keys.n - k0 < kChunk ? keys.n - k0 : kChunk;
      draw_factors(keys, k0, width, d, ids[r], window, factors);
      for (int64_t c = 0; c < width; c += kLanes) store(to + k0 + c, load(w + k0 + c) * load(factors + c));
    }
  }
}

static void drop(FloatRows weights, int64_t rows, const Keys& keys, const Dropout& d, const PairId* ids,
                 Operand operand, RowsOut out) {
  if (operand == Operand::f32) {
    drop_rows<float>(weights, rows, keys, d, ids, out);
  } else {
    drop_rows<bf16>(weights, rows, keys, d, ids, out);
  }
}

// Two passes over the keys: the row's sum of weight times gradient, then the results; factors are drawn once for up to
// kKept keys and again beyond.
static constexpr int64_t kKept = 1088;

template <class T>
CARZERO_INLINE void backward_rows(FloatRows weights, FloatRows dweights, int64_t rows, const Keys& keys, float scale,
                                  const Dropout& d, const PairId* ids, RowsOut dropped, RowsOut dscores) {
  float factors[kKept];
  for (int64_t r = 0; r < rows; ++r) {
    const float* w = weights.data + r * weights.stride;
    const float* g = dweights.data + r * dweights.stride;
    T* to_w = static_cast<T*>(dropped.data) + r * dropped.stride;
    T* to_s = static_cast<T*>(dscores.data) + r * dscores.stride;
    LaneWindow window;
    float sum = 0;
    for (int64_t k0 = 0; k0 < keys.n; k0 += kChunk) {
      const int64_t width = keys.n - k0 < kChunk ? keys.n - k0 : kChunk;
      float* f = factors + (k0 + kChunk <= kKept ? k0 : 0);
      draw_factors(keys, k0, width, d, ids[r], window, f);
      vf s{};
      for (int64_t c = 0; c < width; c += kLanes) {
        vf v = load(w + k0 + c) * load(f + c) * load(g + k0 + c);
        if (c + kLanes > width) v = keep_where(lane_index() < static_cast<int32_t>(width - c), v);
        s += v;
      }
      sum += hsum(s);
    }
    for (int64_t k0 = 0; k0 < keys.n; k0 += kChunk) {
      const int64_t width = keys.n - k0 < kChunk ? keys.n - k0 : kChunk;
      float* f = factors + (k0 + kChunk <= kKept ? k0 : 0);
      if (keys.n > kKept) draw_factors(keys, k0, width, d, ids[r], window, f);
      for (int64_t c = 0; c < width; c += kLanes) {
        const vf wc = load(w + k0 + c), fc = load(f + c), gc = load(g + k0 + c);
        store(to_w + k0 + c, wc * fc);
        store(to_s + k0 + c, wc * (fc * gc - sum) * scale);
      }
    }
  }
}

static void backward(FloatRows weights, FloatRows dweights, int64_t rows, const Keys& keys, float scale,
                     const Dropout& d, const PairId* ids, Operand operand, RowsOut dropped, RowsOut dscores) {
  if (operand == Operand::f32) {
    backward_rows<float>(weights, dweights, rows, keys, scale, d, ids, dropped, dscores);
  } else {
    backward_rows<bf16>(weights, dweights, rows, keys, scale, d, ids, dropped, dscores);
  }
}

extern const AttentionOps attention_ops_table;
const AttentionOps attention_ops_table = {softmax, drop, backward};

}  // namespace carzero::cpu::CARZERO_ISA
