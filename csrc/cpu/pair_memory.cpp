#include "pair_memory.h"

#include <cmath>

namespace carzero::cpu {

MemoryLayer take_memory_layer(const Dims& dims, Operand operand, int64_t n, bool absorb, int64_t layer, Arena& arena) {
  const int64_t D = dims.D, H = dims.H, K = dims.K();
  const auto take = [&](size_t bytes) { return arena.take(static_cast<int64_t>(bytes)); };
  MemoryLayer y;
  y.absorbed_key = absorb && layer > 0;
  y.absorbed_value = absorb;
  y.key = y.absorbed_key ? take(packed_bytes(D, n * H, operand)) : take(packed_bytes(K, n, operand) * size_t(H));
  y.value = y.absorbed_value ? take(packed_bytes(n * H, D, operand)) : take(packed_bytes(n, K, operand) * size_t(H));
  if (y.absorbed_key) y.shift = arena.take<float>(H * score_stride(n));
  return y;
}

void normalise_memory(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& table, int64_t s0,
                      int64_t s1, void* m, float* stats) {
  const int64_t D = call.dims.D, P = call.dims.P;
  std::vector<float> row(static_cast<size_t>(D));
  for (int64_t s = s0; s < s1; ++s) {
    const Keys& keys = table.of(s);
    const int64_t memory = list.segments()[static_cast<size_t>(s)].memory;
    for (int64_t i = 0; i < keys.n; ++i) {
      const int64_t p = keys.row == nullptr ? i : keys.row[i];
      const auto* from =
          static_cast<const std::byte*>(call.memory.data) + (memory * P + p) * D * element_bytes(call.memory.dtype);
      row_ops().widen(from, call.memory.dtype, D, row.data());
      const int64_t at = table.offset(s) + i;
      auto* to = static_cast<std::byte*>(m) + at * D * element_bytes(call.operand);
      row_ops().layer_norm({row.data(), D}, 1, D, weights.norm_gain, weights.norm_shift, call.dims.eps, call.operand,
                           {to, D}, stats == nullptr ? nullptr : stats + 2 * at);
    }
  }
}

ProjectionScratch ProjectionScratch::take(const Dims& dims, Operand operand, int64_t rows, bool absorb, Arena& arena) {
  ProjectionScratch y{};
  y.kv = arena.take<float>(rows * 2 * dims.D);
  if (absorb) {
    if (operand != Operand::f32) y.operand = arena.take(rows * 2 * dims.D * element_bytes(operand));
    y.absorbed = arena.take<float>(rows * dims.H * dims.D);
  }
  return y;
}

void project_keys(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& table, int64_t s0,
                  int64_t s1, int64_t l, const void* m, float* kv, int64_t kv_stride) {
  const int64_t D = call.dims.D, P = call.dims.P, L = call.dims.L;
  const int64_t first = table.offset(s0), rows = table.offset(s1) - first;
  if (!call.projected) {
    const auto* a = static_cast<const std::byte*>(m) + first * D * element_bytes(call.operand);
    const LayerWeights& w = weights.layers[static_cast<size_t>(l)];
    gemm(a, D, rows, w.key_value, kv, kv_stride, false, 0, 2 * D);
    row_ops().bias({kv + D, kv_stride}, rows, D, w.value_bias, Operand::f32, {kv + D, kv_stride});
    return;
  }
  for (int64_t s = s0; s < s1; ++s) {
    const Keys& keys = table.of(s);
    const int64_t memory = list.segments()[static_cast<size_t>(s)].memory;
    for (int64_t i = 0; i < keys.n; ++i) {
      const int64_t p = keys.row == nullptr ? i : keys.row[i];
      const auto* from = static_cast<const std::byte*>(call.memory.data) +
                         ((memory * P + p) * L + l) * 2 * D * element_bytes(call.memory.dtype);
      row_ops().widen(from, call.memory.dtype, 2 * D, kv + (table.offset(s) - first + i) * kv_stride);
    }
  }
}

namespace {

// absorbed[r][h] = x[r][h K ..] W_h for every head: [rows, H D]
void absorb(const void* x, int64_t stride, int64_t rows, const std::vector<PackedB>& w, const Dims& dims,
            float* absorbed) {
  for (int64_t h = 0; h < dims.H; ++h) {
    const PackedB& b = w[static_cast<size_t>(h)];
    const auto* a = static_cast<const std::byte*>(x) + h * dims.K() * element_bytes(b.operand);
    gemm(a, stride, rows, b, absorbed + h * dims.D, dims.H * dims.D, false, 0, dims.D);
  }
}

// log count + scale bq_h . k_ph for each head and key
void fill_shift(const Dims& dims, const Keys& keys, const float* bias, const float* k, int64_t stride, float* shift) {
  const int64_t K = dims.K();
  const float scale = 1.0f / std::sqrt(static_cast<float>(K));
  for (int64_t h = 0; h < dims.H; ++h) {
    float* to = shift + h * score_stride(keys.n);
    row_ops().dot({k + h * K, stride}, keys.n, K, Operand::f32, bias + h * K, 0.0f, to);
    for (int64_t p = 0; p < keys.n; ++p) {
      to[p] = to[p] * scale + (keys.log_count == nullptr ? 0.0f : keys.log_count[p]);
    }
  }
}

}  // namespace

void pack_memory_layers(const Call& call, const Weights& weights, const KeyTable& table, int64_t s0, int64_t s1,
                        int64_t l, const float* kv, int64_t kv_stride, const ProjectionScratch& scratch,
                        MemoryLayer* const* layers) {
  const Dims& dims = call.dims;
  const int64_t D = dims.D, H = dims.H, K = dims.K();
  const Operand operand = call.operand;
  const int64_t first = table.offset(s0), rows = table.offset(s1) - first;
  const LayerWeights& w = weights.layers[static_cast<size_t>(l)];
  if (s0 == s1) return;
  const bool absorbed_key = layers[0]->absorbed_key, absorbed_value = layers[0]->absorbed_value;

  // plain parts: each memory and head by itself
  for (int64_t s = s0; s < s1; ++s) {
    const int64_t n = table.of(s).n;
    const float* from = kv + (table.offset(s) - first) * kv_stride;
    for (int64_t h = 0; h < H && !absorbed_key; ++h) {
      auto* to = layers[s - s0]->key + h * static_cast<int64_t>(packed_bytes(K, n, operand));
      pack_b(View<float>{from + h * K, 1, kv_stride}, K, n, operand, to, 0, n);
    }
    for (int64_t h = 0; h < H && !absorbed_value; ++h) {
      auto* to = layers[s - s0]->value + h * static_cast<int64_t>(packed_bytes(n, K, operand));
      pack_b(View<float>{from + D + h * K, kv_stride, 1}, n, K, operand, to, 0, K);
    }
  }
  if (!absorbed_value) return;

  // absorbed parts: the products over all memories' rows at once
  const void* x = kv;
  int64_t stride = kv_stride;
  if (operand != Operand::f32) {
    row_ops().to_operand({kv, kv_stride}, rows, 2 * D, operand, {scratch.operand, 2 * D});
    x = scratch.operand;
    stride = 2 * D;
  }
  const auto* values = static_cast<const std::byte*>(x) + D * element_bytes(operand);
  absorb(values, stride, rows, w.absorb_out, dims, scratch.absorbed);
  for (int64_t s = s0; s < s1; ++s) {
    const int64_t n = table.of(s).n;
    const float* from = scratch.absorbed + (table.offset(s) - first) * H * D;
    pack_b(View<float>{from, D, 1}, n * H, D, operand, layers[s - s0]->value, 0, D);
  }
  if (!absorbed_key) return;
  absorb(x, stride, rows, w.absorb_query, dims, scratch.absorbed);
  for (int64_t s = s0; s < s1; ++s) {
    const Keys& keys = table.of(s);
    const float* from = scratch.absorbed + (table.offset(s) - first) * H * D;
    pack_b(View<float>{from, 1, D}, D, keys.n * H, operand, layers[s - s0]->key, 0, keys.n * H);
    fill_shift(dims, keys, w.query_bias, kv + (table.offset(s) - first) * kv_stride, kv_stride, layers[s - s0]->shift);
  }
}

}  // namespace carzero::cpu
