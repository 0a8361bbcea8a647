// The row passes of one instruction set. Compiled once per set.
#include "isa.h"
#include "philox_lanes.h"
#include "rowops.h"

namespace carzero::cpu::CARZERO_ISA {

// Columns for which lanes are drawn at a time.
static constexpr int64_t kDrawn = 256;

CARZERO_INLINE vf squared(vf x) { return x * x; }

// The rows of an operand as their element type, chosen once per pass.
#define CARZERO_FOR_OPERAND(operand, T, ...) \
  if (operand == Operand::f32) {             \
    using T = float;                         \
    __VA_ARGS__;                             \
  } else {                                   \
    using T = bf16;                          \
    __VA_ARGS__;                             \
  }

template <class T>
CARZERO_INLINE const T* row(Rows x, int64_t r) {
  return static_cast<const T*>(x.data) + r * x.stride;
}
template <class T>
CARZERO_INLINE T* row(RowsOut x, int64_t r) {
  return static_cast<T*>(x.data) + r * x.stride;
}
CARZERO_INLINE const float* row(FloatRows x, int64_t r) { return x.data + r * x.stride; }
CARZERO_INLINE float* row(FloatRowsOut x, int64_t r) { return x.data + r * x.stride; }

// Calls f(column, value after dropout) for whole vectors of the row, value = of(column).
template <class Of, class To>
CARZERO_INLINE void with_dropout(int64_t n, const Dropout& d, PairId id, Of of, To to) {
  if (d.threshold == 0) {
    for (int64_t c = 0; c < n; c += kLanes) to(c, of(c));
    return;
  }
  uint16_t lanes[kDrawn];
  for (int64_t c0 = 0; c0 < n; c0 += kDrawn) {
    const int64_t width = n - c0 < kDrawn ? n - c0 : kDrawn;
    philox_lanes(d.key, d.stream, id.memory, id.query, c0 / 8, (width + 7) / 8, lanes);
    for (int64_t c = 0; c < width; c += kLanes) to(c0 + c, dropped_out(of(c0 + c), lanes + c, d.threshold, d.scale));
  }
}

static uint16_t half_bits(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // rounds beyond 65504
  if (magnitude < 0x38800000u) {
    // below half's normal range: adding 0.5 leaves the result, rounded to nearest even, in the low bits
    const float shifted = __builtin_bit_cast(float, magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude + 0xFFFu + (magnitude >> 13 & 1u) - 0x38000000u) >> 13));
}

static void widen(const void* in, Dtype dtype, int64_t n, float* out) {
  int64_t i = 0;
  switch (dtype) {
    case Dtype::f32: __builtin_memcpy(out, in, static_cast<size_t>(n) * sizeof(float)); return;
    case Dtype::bf16: {
      const bf16* p = static_cast<const bf16*>(in);
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(p + i));
      for (; i < n; ++i) out[i] = to_float(p[i]);
      return;
    }
    case Dtype::f16: {
      const half* p = static_cast<const half*>(in);
      for (; i + kLanes <= n; i += kLanes) store(out + i, load(p + i));
      for (; i < n; ++i) out[i] = to_float(p[i]);
      return;
    }
  }
}

static void narrow(const float* in, int64_t n, Dtype dtype, void* out) {
  int64_t i = 0;
  switch (dtype) {
    case Dtype::f32: __builtin_memcpy(out, in, static_cast<size_t>(n) * sizeof(float)); return;
    case Dtype::bf16: {
      bf16* p = static_cast<bf16*>(out);
      for (; i + kLanes <= n; i += kLanes) store(p + i, load(in + i));
      for (; i < n; ++i) p[i] = from_float<bf16>(in[i]);
      return;
    }
    case Dtype::f16: {
      half* p = static_cast<half*>(out);
      for (; i < n; ++i) p[i].bits = half_bits(in[i]);
      return;
    }
  }
}

static void to_operand(FloatRows x, int64_t rows, int64_t n, Operand operand, RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const float* in = row(x, r);
        T* to = row<T>(out, r);
        for (int64_t c = 0; c < n; c += kLanes) store(to + c, load(in + c));
      })
}

static void layer_norm(FloatRows x, int64_t rows, int64_t n, const float* gain, const float* shift, float eps,
                       Operand operand, RowsOut out, float* stats) {
  const float inverse = 1.0f / static_cast<float>(n);
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = row(x, r);
    vf s[4] = {};
    int64_t c = 0;
    for (; c + 4 * kLanes <= n; c += 4 * kLanes) {
      for (int j = 0; j < 4; ++j) s[j] += load(in + c + j * kLanes);
    }
    for (; c < n; c += kLanes) s[0] += load(in + c);
    const float mean = hsum((s[0] + s[1]) + (s[2] + s[3])) * inverse;
    vf v[4] = {};
    for (c = 0; c + 4 * kLanes <= n; c += 4 * kLanes) {
      for (int j = 0; j < 4; ++j) v[j] += squared(load(in + c + j * kLanes) - mean);
    }
    for (; c < n; c += kLanes) v[0] += squared(load(in + c) - mean);
    const float rstd = 1.0f / __builtin_sqrtf(hsum((v[0] + v[1]) + (v[2] + v[3])) * inverse + eps);
    if (stats != nullptr) {
      stats[2 * r] = mean;
      stats[2 * r + 1] = rstd;
    }
    CARZERO_FOR_OPERAND(operand, T, {
      T* to = row<T>(out, r);
      for (c = 0; c < n; c += kLanes) {
        store(to + c, (load(in + c) - mean) * rstd * load(gain + c) + load(shift + c));
      }
    })
  }
}

static void bias(FloatRows x, int64_t rows, int64_t n, const float* b, Operand operand, RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const float* in = row(x, r);
        T* to = row<T>(out, r);
        for (int64_t c = 0; c < n; c += kLanes) store(to + c, load(in + c) + load(b + c));
      })
}

static void bias_relu(FloatRows x, int64_t rows, int64_t n, const float* b, const Dropout& d, const PairId* ids,
                      Operand operand, RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const float* in = row(x, r);
        T* to = row<T>(out, r);
        with_dropout(
            n, d, ids[r],
            [&](int64_t c) __attribute__((always_inline)) { return max(vf{}, load(in + c) + load(b + c)); },
            [&](int64_t c, vf v) __attribute__((always_inline)) { store(to + c, v); });
      })
}

static void bias_residual(FloatRows x, int64_t rows, int64_t n, const float* b, const Dropout& d, const PairId* ids,
                          FloatRows t, FloatRowsOut out) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* in = row(x, r);
    const float* residual = row(t, r);
    float* to = row(out, r);
    with_dropout(
        n, d, ids[r], [&](int64_t c) __attribute__((always_inline)) { return load(in + c) + load(b + c); },
        [&](int64_t c, vf v) __attribute__((always_inline)) { store(to + c, load(residual + c) + v); });
  }
}

static void drop(FloatRows x, int64_t rows, int64_t n, const Dropout& d, const PairId* ids, Operand operand,
                 RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const float* in = row(x, r);
        T* to = row<T>(out, r);
        with_dropout(
            n, d, ids[r], [&](int64_t c) __attribute__((always_inline)) { return load(in + c); },
            [&](int64_t c, vf v) __attribute__((always_inline)) { store(to + c, v); });
      })
}

static void dot(Rows x, int64_t rows, int64_t n, Operand operand, const float* w, float b, float* out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const T* in = row<T>(x, r);
        vf s{};
        int64_t c = 0;
        for (; c + kLanes <= n; c += kLanes) s += load(in + c) * load(w + c);
        float sum = hsum(s);
        for (; c < n; ++c) sum += to_float(in[c]) * w[c];
        out[r] = sum + b;
      })
}

static void relu_backward(FloatRows dy, int64_t rows, int64_t n, Rows h, float scale, Operand operand, RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        const float* in = row(dy, r);
        const T* active = row<T>(h, r);
        T* to = row<T>(out, r);
        for (int64_t c = 0; c < n; c += kLanes) {
          store(to + c, keep_where(load(active + c) > vf{}, load(in + c) * scale));
        }
      })
}

static void dot_backward(const float* g, int64_t rows, int64_t n, const float* w, Rows h, float scale, Operand operand,
                         RowsOut out) {
  CARZERO_FOR_OPERAND(
      operand, T, for (int64_t r = 0; r < rows; ++r) {
        T* to = row<T>(out, r);
        const vf factor = broadcast(g[r] * scale);
        for (int64_t c = 0; c < n; c += kLanes) {
          const vf v = load(w + c) * factor;
          store(to + c, h.data == nullptr ? v : keep_where(load(row<T>(h, r) + c) > vf{}, v));
        }
      })
}

static void layer_norm_backward(FloatRows dy, FloatRows x, const float* stats, int64_t rows, int64_t n,
                                const float* gain, bool accumulate, FloatRowsOut dx, float* partial) {
  const float inverse = 1.0f / static_cast<float>(n);
  for (int64_t c = 0; c < 2 * n; c += kLanes) store(partial + c, vf{});
  for (int64_t r = 0; r < rows; ++r) {
    const float* g = row(dy, r);
    const float* in = row(x, r);
    float* to = row(dx, r);
    const float mean = stats[2 * r], rstd = stats[2 * r + 1];
    vf s1{}, s2{};
    for (int64_t c = 0; c < n; c += kLanes) {
      const vf gc = load(g + c);
      const vf hat = (load(in + c) - mean) * rstd;
      const vf scaled = gc * load(gain + c);
      s1 += scaled;
      s2 += scaled * hat;
      store(partial + c, load(partial + c) + gc * hat);
      store(partial + n + c, load(partial + n + c) + gc);
    }
    const float m1 = hsum(s1) * inverse, m2 = hsum(s2) * inverse;
    for (int64_t c = 0; c < n; c += kLanes) {
      const vf hat = (load(in + c) - mean) * rstd;
      const vf v = (load(g + c) * load(gain + c) - m1 - hat * m2) * rstd;
      store(to + c, accumulate ? load(to + c) + v : v);
    }
  }
}

static void column_sums(Rows y, int64_t rows, int64_t n0, int64_t n1, Operand operand, const float* g, float* out) {
  CARZERO_FOR_OPERAND(operand, T, {
    int64_t c = n0;
    for (; c + kLanes <= n1; c += kLanes) {
      vf s{};
      for (int64_t r = 0; r < rows; ++r) s += g == nullptr ? load(row<T>(y, r) + c) : load(row<T>(y, r) + c) * g[r];
      store(out + c, load(out + c) + s);
    }
    for (; c < n1; ++c) {
      float s = 0;
      for (int64_t r = 0; r < rows; ++r) s += to_float(row<T>(y, r)[c]) * (g == nullptr ? 1.0f : g[r]);
      out[c] += s;
    }
  })
}

static void add(const float* x, int64_t n, float* out) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) store(out + c, load(out + c) + load(x + c));
  for (; c < n; ++c) out[c] += x[c];
}

extern const RowOps row_ops_table;
const RowOps row_ops_table = {
    widen, narrow,        to_operand,   layer_norm,          bias,        bias_relu, bias_residual, drop,
    dot,   relu_backward, dot_backward, layer_norm_backward, column_sums, add,
};

}  // namespace carzero::cpu::CARZERO_ISA
