#include "pair_backward_tile.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "plan.h"

namespace carzero::cpu {

TileBuffers TileBuffers::take(const Call& call, const TileSizes& sizes, int threads, Arena& arena) {
  const Dims& dims = call.dims;
  const Operand operand = call.operand;
  const int64_t bytes = element_bytes(operand), D = row_stride(dims.D), F = row_stride(dims.F);
  const int64_t wide = product_stride(dims), R = sizes.rows, keys = sizes.keys;
  TileBuffers y{};
  y.m = arena.take(keys * dims.D * bytes);
  y.m_stats = arena.take<float>(2 * keys);
  y.dm = arena.take<float>(keys * dims.D);
  y.kv = arena.take<float>(keys * dims.L * 2 * dims.D);
  y.dkv = arena.take<float>(keys * 2 * dims.D * (sizes.parts ? dims.L : 1));
  y.dkv_operand = operand == Operand::f32 ? static_cast<void*>(y.dkv) : arena.take(keys * 2 * dims.D * bytes);
  for (int64_t l = 0; l <= dims.L; ++l) {
    LayerRows rows{};
    rows.t_in = arena.take<float>(R * D);
    if (l < dims.L) {
      rows.query = arena.take(R * D * bytes);
      rows.attended = arena.take(R * D * bytes);
      rows.t_mid = arena.take<float>(R * D);
      rows.hidden = arena.take(R * F * bytes);
    }
    if (l > 0) y.layers.back().t_out = rows.t_in;
    y.layers.push_back(rows);
  }
  if (!dims.head.empty()) {
    y.head.in = arena.take(R * D * bytes);
    for (size_t i = 1; i + 1 < dims.head.size(); ++i) {
      y.head.hidden.push_back(arena.take(R * row_stride(dims.head[i]) * bytes));
    }
  }
  y.dt = arena.take<float>(R * D);
  y.dy = arena.take(R * wide * bytes);
  y.dy_next = arena.take(R * wide * bytes);
  y.x = arena.take(R * D * bytes);
  y.stats = arena.take<float>(2 * R);
  y.product = arena.take<float>(R * wide);
  y.g = arena.take<float>(R);
  y.sums = arena.take<float>(ceil_div(std::max(R, keys), kSumRows) * 2 * dims.D);
  y.attention = AttentionScratch::take(dims, operand, R, keys, sizes.most_keys, sizes.segments, threads, arena);
  // the forward recompute packs one layer's k^T and v; the attention's backward does not need them any more
  Arena measure;
  take_memory_layer(dims, operand, sizes.most_keys, false, 0, measure);
  y.memory_layer_bytes = static_cast<int64_t>(measure.used());
  for (int64_t s = 0; s < sizes.segments; ++s) y.memory_layer.push_back(arena.take(y.memory_layer_bytes));
  const auto packed = [&](int64_t K, int64_t N) { return static_cast<int64_t>(packed_bytes(K, N, operand)); };
  int64_t weight = std::max({packed(2 * dims.D, dims.D), packed(dims.F, dims.D), packed(dims.D, dims.F)});
  int64_t most_x = std::max({packed(R, dims.D), packed(R, dims.F), packed(keys, dims.D)});
  for (size_t i = 1; i < dims.head.size(); ++i) {
    weight = std::max(weight, packed(dims.head[i], dims.head[i - 1]));
    most_x = std::max(most_x, packed(R, dims.head[i - 1]));
  }
  y.linear = LinearScratch::take(weight, most_x, std::max(R, keys), operand, threads, arena);
  const int64_t unit = std::min(R, kForwardRows);
  for (int i = 0; i < threads; ++i) {
    y.threads.push_back(RowScratch::take(dims, operand, unit, sizes.most_keys, false, arena));
  }
  return y;
}

std::vector<TilePart> cut_tiles(const Call& call, const WorkList& list, int64_t rows, int64_t keys) {
  std::vector<TilePart> tiles;
  const int64_t segments = static_cast<int64_t>(list.segments().size());
  int64_t tile_rows = 0, tile_keys = 0;
  bool open = false;  // whether the last tile may take more segments
  for (int64_t s = 0; s < segments; ++s) {
    const int64_t count = list.segments()[static_cast<size_t>(s)].count;
    const int64_t n = KeyTable(call, list, s, s + 1).total();
    if (count > rows) {
      const int64_t parts = ceil_div(count, rows);
      const Cut cut{count, parts, 1};
      for (int64_t i = 0; i < parts; ++i) tiles.push_back({s, s + 1, cut.begin(i), cut.begin(i + 1), i + 1 == parts});
      open = false;
      continue;
    }
    if (open && tile_rows + count <= rows && tile_keys + n <= keys) {
      tiles.back().s1 = s + 1;
      tiles.back().i1 = 0;
      tile_rows += count;
      tile_keys += n;
    } else {
      tiles.push_back({s, s + 1, 0, count, true});
      tile_rows = count;
      tile_keys = n;
      open = true;
    }
  }
  return tiles;
}

TileSizes sizes_of(const Call& call, const WorkList& list, const std::vector<TilePart>& tiles) {
  TileSizes sizes;
  for (const TilePart& tile : tiles) {
    const KeyTable keys(call, list, tile.s0, tile.s1);
    int64_t rows = tile.i1 - tile.i0;
    if (tile.whole()) {
      rows = 0;
      for (int64_t s = tile.s0; s < tile.s1; ++s) rows += list.segments()[static_cast<size_t>(s)].count;
    }
    sizes.rows = std::max(sizes.rows, rows);
    sizes.keys = std::max(sizes.keys, keys.total());
    sizes.most_keys = std::max(sizes.most_keys, keys.most());
    sizes.segments = std::max(sizes.segments, tile.s1 - tile.s0);
    sizes.parts |= !tile.whole();
  }
  return sizes;
}

std::vector<TilePart> plan_tiles(const Call& call, const WorkList& list) {
  const auto keys_for = [&](int64_t rows) { return rows * kBackwardKeysPerRow; };
  if (call.tile_pairs > 0) return cut_tiles(call, list, call.tile_pairs, keys_for(call.tile_pairs));
  const auto bytes_of = [&](const std::vector<TilePart>& tiles) {
    Arena measure;
    TileBuffers::take(call, sizes_of(call, list, tiles), 0, measure);
    return static_cast<int64_t>(measure.used());
  };
  const int64_t fewest = *std::rbegin(kBackwardRows);
  std::vector<TilePart> tiles = cut_tiles(call, list, fewest, keys_for(fewest));
  const auto packed = static_cast<int64_t>(packed_weights_bytes(call.dims, call.operand, {}));
  const int64_t budget = std::max({kBackwardLeastBytes, kBackwardBytes - packed, bytes_of(tiles) * 5 / 4});
  for (const int64_t rows : kBackwardRows) {
    tiles = cut_tiles(call, list, rows, keys_for(rows));
    if (bytes_of(tiles) <= budget) break;
  }
  return tiles;
}

void project_tile_memory(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& keys,
                         const TilePart& part, const TileBuffers& buffers) {
  const int64_t D = call.dims.D, L = call.dims.L, stride = L * 2 * D, total = keys.total();
  for_each_unit(part.s1 - part.s0, call.threads, [&](int64_t u, int) {
    normalise_memory(call, weights, list, keys, part.s0 + u, part.s0 + u + 1, buffers.m, buffers.m_stats);
  });
  std::memset(buffers.dm, 0, static_cast<size_t>(total * D) * sizeof(float));
  const Cut cut{total, std::max<int64_t>(1, ceil_div(total, kForwardRows)), 6};
  for_each_unit(cut.parts * L, call.threads, [&](int64_t u, int) {
    const int64_t l = u / cut.parts, r0 = cut.begin(u % cut.parts), n = cut.begin(u % cut.parts + 1) - r0;
    const LayerWeights& w = weights.layers[static_cast<size_t>(l)];
    float* kv = buffers.kv + r0 * stride + l * 2 * D;
    gemm(row_of(buffers.m, r0, D, call.operand), D, n, w.key_value, kv, stride, false, 0, 2 * D);
    row_ops().bias({kv + D, stride}, n, D, w.value_bias, Operand::f32, {kv + D, stride});
  });
}

void memory_gradient(const Call& call, const Weights& weights, const WorkList& list, const KeyTable& keys,
                     const TilePart& part, const TileBuffers& buffers, void* gradient) {
  const int64_t D = call.dims.D, total = keys.total(), bytes = element_bytes(call.memory.dtype);
  std::vector<int64_t> memory_row(static_cast<size_t>(total));
  for (int64_t s = part.s0; s < part.s1; ++s) {
    const Keys& own = keys.of(s);
    const int64_t first = list.segments()[static_cast<size_t>(s)].memory * call.dims.P;
    for (int64_t i = 0; i < own.n; ++i) {
      memory_row[static_cast<size_t>(keys.offset(s) + i)] = first + (own.row == nullptr ? i : own.row[i]);
    }
  }
  for_each_unit(ceil_div(total, kSumRows), call.threads, [&](int64_t u, int) {
    std::vector<float> x(static_cast<size_t>(kSumRows * D));
    const int64_t r0 = u * kSumRows, n = std::min(kSumRows, total - r0);
    const auto offset = [&](int64_t i) { return memory_row[static_cast<size_t>(r0 + i)] * D * bytes; };
    for (int64_t i = 0; i < n; ++i) {
      row_ops().widen(static_cast<const std::byte*>(call.memory.data) + offset(i), call.memory.dtype, D,
                      x.data() + i * D);
    }
    float* dm = buffers.dm + r0 * D;
    row_ops().layer_norm_backward({dm, D}, {x.data(), D}, buffers.m_stats + 2 * r0, n, D, weights.norm_gain, false,
                                  {dm, D}, buffers.sums + u * 2 * D);
    for (int64_t i = 0; i < n; ++i) {
      row_ops().narrow(dm + i * D, D, call.memory.dtype, static_cast<std::byte*>(gradient) + offset(i));
    }
  });
}

}  // namespace carzero::cpu
