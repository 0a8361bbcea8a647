#include "pair_layers.h"

#include <algorithm>

namespace carzero::cpu {

void TileRows::clear() {
  pieces.clear();
  rows.clear();
  ids.clear();
}

void TileRows::append(const Call& call, const WorkList& list, int64_t segment, int64_t i0, int64_t i1) {
  const Segment& from = list.segments()[static_cast<size_t>(segment)];
  pieces.push_back({segment, count(), i1 - i0});
  for (int64_t i = i0; i < i1; ++i) {
    const PairRow row = list.row(from, i);
    rows.push_back(row);
    ids.push_back({call.memory_offset + static_cast<uint32_t>(from.memory),
                   call.query_offset + static_cast<uint32_t>(row.query)});
  }
}

int64_t product_stride(const Dims& dims) {
  int64_t widest = std::max(dims.D, dims.F);
  for (int64_t width : dims.head) widest = std::max(widest, width);
  return row_stride(widest);
}

RowScratch RowScratch::take(const Dims& dims, Operand operand, int64_t rows, int64_t most_keys, bool absorb,
                            Arena& arena) {
  const int64_t bytes = element_bytes(operand), stride = score_stride(most_keys);
  const int64_t wide = absorb ? stride * dims.H : stride;
  RowScratch y{};
  y.rows = rows;
  y.most_keys = most_keys;
  // scores of a block of rows stay in the second-level cache beside an operand panel
  y.score_rows = std::min(rows, std::max<int64_t>(24, (int64_t{1} << 16) / std::max<int64_t>(wide, 1) / 6 * 6));
  y.x = arena.take(rows * row_stride(dims.D) * bytes);
  y.c = arena.take<float>(rows * product_stride(dims));
  y.scores = arena.take<float>(y.score_rows * wide);
  y.weights = operand == Operand::f32 ? static_cast<void*>(y.scores) : arena.take(y.score_rows * wide * bytes);
  if (absorb) y.mixed = arena.take<float>(y.score_rows * score_stride(most_keys * dims.H));
  return y;
}

void project_queries(const Call& call, const Weights& weights, int64_t q0, int64_t q1, const RowScratch& scratch,
                     void* first_query) {
  const int64_t D = call.dims.D, stride = row_stride(D), n = q1 - q0;
  const LayerWeights& w = weights.layers[0];
  for (int64_t i = 0; i < n; ++i) {
    const auto* from =
        static_cast<const std::byte*>(call.queries.data) + (q0 + i) * D * element_bytes(call.queries.dtype);
    row_ops().widen(from, call.queries.dtype, D, scratch.c + i * stride);
  }
  const FloatRows rows{scratch.c, stride};
  row_ops().layer_norm(rows, n, D, weights.norm_gain, weights.norm_shift, call.dims.eps, Operand::f32,
                       {scratch.c, stride}, nullptr);
  row_ops().layer_norm(rows, n, D, w.norm2_gain, w.norm2_shift, call.dims.eps, call.operand, {scratch.x, stride},
                       nullptr);
  gemm(scratch.x, stride, n, w.query, scratch.c, stride, false, 0, D);
  row_ops().bias(rows, n, D, w.query_bias, call.operand, {row_of(first_query, q0, stride, call.operand), stride});
}

void start_rows(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, float* t) {
  const Call& call = decoder.call;
  const int64_t D = call.dims.D, stride = row_stride(D);
  for (int64_t r = r0; r < r0 + n; ++r) {
    float* to = t + r * stride;
    const auto* from = static_cast<const std::byte*>(call.queries.data) +
                       tile.rows[static_cast<size_t>(r)].query * D * element_bytes(call.queries.dtype);
    row_ops().widen(from, call.queries.dtype, D, to);
    row_ops().layer_norm({to, stride}, 1, D, decoder.weights.norm_gain, decoder.weights.norm_shift, call.dims.eps,
                         Operand::f32, {to, stride}, nullptr);
  }
}

namespace {

// Rows of one piece in the attention of one layer.
struct Attend {
  const Decoder& decoder;
  int64_t l;
  const Keys& keys;
  const MemoryLayer& memory;
  const PairRow* rows;
  const PairId* ids;
  int64_t n;
  const RowScratch& scratch;

  int64_t H() const { return decoder.call.dims.H; }
  int64_t K() const { return decoder.call.dims.K(); }
  Operand operand() const { return decoder.call.operand; }

  // scores to weights, in place, then with dropout to `out`
  void weigh(int64_t h, FloatRowsOut scores, const float* shift, RowsOut out) const {
    attention_ops().softmax(scores, n, keys.n, decoder.scale, shift);
    const FloatRows weights{scores.data, scores.stride};
    if (decoder.maps.data != nullptr) map(weights);
    const Dropout dropout = decoder.call.dropout(Site::attention, l, h);
    if (dropout.threshold == 0 && out.data == scores.data) return;
    attention_ops().drop(weights, n, keys, dropout, ids, operand(), out);
  }

  // adds a head's weights to the maps, a key's weight evenly over its original rows
  void map(FloatRows weights) const {
    const Maps& maps = decoder.maps;
    const float share = 1.0f / static_cast<float>(H());
    for (int64_t r = 0; r < n; ++r) {
      float* to = maps.data + (l * maps.positions + rows[r].position) * maps.columns;
      const float* from = weights.data + r * weights.stride;
      for (int64_t i = 0; i < keys.n; ++i) {
        const int64_t first = keys.row == nullptr ? i : keys.row[i], count = keys.count == nullptr ? 1 : keys.count[i];
        const float part = from[i] * share / static_cast<float>(count);
        for (int64_t column = first; column < first + count; ++column) to[column] += part;
      }
    }
  }

  // attended = weights v, head by head
  void plain(const void* query, int64_t query_stride, RowsOut attended) const {
    const int64_t stride = score_stride(keys.n);
    for (int64_t h = 0; h < H(); ++h) {
      const auto part = static_cast<int64_t>(packed_bytes(K(), keys.n, operand()));
      const PackedB k{K(), keys.n, operand(), memory.key + h * part};
      gemm(static_cast<const std::byte*>(query) + h * K() * element_bytes(operand()), query_stride, n, k,
           scratch.scores, stride, false, 0, keys.n);
      weigh(h, {scratch.scores, stride}, keys.log_count, {scratch.weights, stride});
      const PackedB v{keys.n, K(), operand(),
                      memory.value + h * static_cast<int64_t>(packed_bytes(keys.n, K(), operand()))};
      auto* to = static_cast<std::byte*>(attended.data) + h * K() * element_bytes(operand());
      if (operand() == Operand::f32) {
        gemm(scratch.weights, stride, n, v, reinterpret_cast<float*>(to), attended.stride, false, 0, K());
      } else {
        gemm(scratch.weights, stride, n, v, scratch.c, attended.stride, false, 0, K());
        row_ops().to_operand({scratch.c, attended.stride}, n, K(), operand(), {to, attended.stride});
      }
    }
  }

  // out = weights V', all heads at once; the scores from q k^T (first layer) or from x K'
  void absorbed(const void* query, int64_t query_stride, FloatRowsOut out) const {
    const int64_t one = score_stride(keys.n), stride = one * H(), mixed = score_stride(keys.n * H());
    float* scores = scratch.scores;
    if (memory.absorbed_key) {
      const PackedB k{decoder.call.dims.D, keys.n * H(), operand(), memory.key};
      gemm(query, query_stride, n, k, scratch.mixed, mixed, false, 0, keys.n * H());
      for (int64_t r = 0; r < n; ++r) {
        const float* from = scratch.mixed + r * mixed;
        for (int64_t h = 0; h < H(); ++h) {
          for (int64_t p = 0; p < keys.n; ++p) scores[r * stride + h * one + p] = from[p * H() + h];
        }
      }
    }
    for (int64_t h = 0; h < H(); ++h) {
      if (!memory.absorbed_key) {
        const PackedB k{K(), keys.n, operand(),
                        memory.key + h * static_cast<int64_t>(packed_bytes(K(), keys.n, operand()))};
        gemm(static_cast<const std::byte*>(query) + h * K() * element_bytes(operand()), query_stride, n, k,
             scores + h * one, stride, false, 0, keys.n);
      }
      const float* shift = memory.absorbed_key ? memory.shift + h * one : keys.log_count;
      weigh(h, {scores + h * one, stride}, shift,
            {static_cast<std::byte*>(scratch.weights) + h * one * element_bytes(operand()), stride});
    }
    if (operand() == Operand::f32) {
      interleave(static_cast<const float*>(scratch.weights), stride, one, scratch.mixed, mixed);
    } else {
      interleave(static_cast<const bf16*>(scratch.weights), stride, one, reinterpret_cast<bf16*>(scratch.mixed), mixed);
    }
    const PackedB v{keys.n * H(), decoder.call.dims.D, operand(), memory.value};
    gemm(scratch.mixed, mixed, n, v, out.data, out.stride, false, 0, decoder.call.dims.D);
  }

  template <class T>
  void interleave(const T* weights, int64_t stride, int64_t one, T* to, int64_t to_stride) const {
    for (int64_t r = 0; r < n; ++r) {
      for (int64_t h = 0; h < H(); ++h) {
        for (int64_t p = 0; p < keys.n; ++p) to[r * to_stride + p * H() + h] = weights[r * stride + h * one + p];
      }
    }
  }
};

}  // namespace

void forward_layer(const Decoder& decoder, int64_t l, const TileRows& tile, int64_t r0, int64_t n, const KeyTable& keys,
                   const MemoryLayer* const* memory, int64_t first_segment, const LayerRows& rows,
                   const RowScratch& scratch) {
  const Call& call = decoder.call;
  const Dims& dims = call.dims;
  const Operand operand = call.operand;
  const LayerWeights& w = decoder.weights.layers[static_cast<size_t>(l)];
  const int64_t D = dims.D, stride = row_stride(D), hidden_stride = row_stride(dims.F), wide = product_stride(dims);
  const PairId* ids = tile.ids.data() + r0;
  const FloatRows t_in{rows.t_in + r0 * stride, stride}, t_mid{rows.t_mid + r0 * stride, stride};
  const FloatRows c{scratch.c, wide};
  void* query = row_of(rows.query, r0, stride, operand);
  void* attended = row_of(rows.attended, r0, stride, operand);
  const bool absorbed_value =
      !tile.pieces.empty() && memory[tile.pieces.front().segment - first_segment]->absorbed_value;
  const bool absorbed_key = absorbed_value && l > 0;

  if (l == 0) {
    const auto bytes = static_cast<size_t>(D * element_bytes(operand));
    for (int64_t r = 0; r < n; ++r) {
      const int64_t from = tile.rows[static_cast<size_t>(r0 + r)].query;
      std::copy_n(static_cast<const std::byte*>(row_of(decoder.first_query, from, stride, operand)), bytes,
                  static_cast<std::byte*>(row_of(query, r, stride, operand)));
    }
  } else {
    row_ops().layer_norm(t_in, n, D, w.norm2_gain, w.norm2_shift, dims.eps, operand, {scratch.x, stride}, nullptr);
    if (!absorbed_key) {
      gemm(scratch.x, stride, n, w.query, scratch.c, wide, false, 0, D);
      row_ops().bias(c, n, D, w.query_bias, operand, {query, stride});
    }
  }
  const void* left = absorbed_key ? scratch.x : query;

  for (const Piece& piece : tile.pieces) {
    const int64_t begin = std::max(piece.row, r0), end = std::min(piece.row + piece.rows, r0 + n);
    const Keys& k = keys.of(piece.segment);
    for (int64_t r = begin; r < end; r += scratch.score_rows) {
      const int64_t count = std::min(scratch.score_rows, end - r), at = r - r0;
      const Attend attend{
          decoder, l,      k, *memory[piece.segment - first_segment], tile.rows.data() + r, tile.ids.data() + r,
          count,   scratch};
      if (absorbed_value) {
        attend.absorbed(row_of(left, at, stride, operand), stride, {scratch.c + at * wide, wide});
      } else {
        attend.plain(row_of(left, at, stride, operand), stride, {row_of(attended, at, stride, operand), stride});
      }
    }
  }
  if (decoder.maps.data != nullptr && l + 1 == dims.L) return;
  if (!absorbed_value) gemm(attended, stride, n, w.out, scratch.c, wide, false, 0, D);
  row_ops().bias_residual(c, n, D, w.out_bias, call.dropout(Site::after_out_projection, l), ids, t_in,
                          {rows.t_mid + r0 * stride, stride});

  row_ops().layer_norm(t_mid, n, D, w.norm3_gain, w.norm3_shift, dims.eps, operand, {scratch.x, stride}, nullptr);
  gemm(scratch.x, stride, n, w.ffn1, scratch.c, wide, false, 0, dims.F);
  void* hidden = row_of(rows.hidden, r0, hidden_stride, operand);
  row_ops().bias_relu(c, n, dims.F, w.ffn1_bias, call.dropout(Site::ffn_hidden, l), ids, operand,
                      {hidden, hidden_stride});
  gemm(hidden, hidden_stride, n, w.ffn2, scratch.c, wide, false, 0, D);
  row_ops().bias_residual(c, n, D, w.ffn2_bias, call.dropout(Site::after_ffn, l), ids, t_mid,
                          {rows.t_out + r0 * stride, stride});
}

void forward_head(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, const float* t,
                  const HeadRows& rows, const RowScratch& scratch, float* out) {
  const Call& call = decoder.call;
  const Weights& weights = decoder.weights;
  const Operand operand = call.operand;
  const int64_t D = call.dims.D, stride = row_stride(D), wide = product_stride(call.dims);
  const PairId* ids = tile.ids.data() + r0;
  const FloatRows c{scratch.c, wide};
  row_ops().layer_norm({t + r0 * stride, stride}, n, D, weights.norm_gain, weights.norm_shift, call.dims.eps,
                       Operand::f32, {scratch.c, wide}, nullptr);
  const void* x = row_of(rows.in, r0, stride, operand);
  row_ops().drop(c, n, D, call.dropout(Site::before_head, 0), ids, operand,
                 {row_of(rows.in, r0, stride, operand), stride});
  int64_t x_stride = stride, width = D;
  for (size_t i = 0; i < weights.head.size(); ++i) {
    const PackedB& w = weights.head[i];
    gemm(x, x_stride, n, w, scratch.c, wide, false, 0, w.N);
    width = w.N;
    x_stride = row_stride(width);
    void* hidden = row_of(rows.hidden[i], r0, x_stride, operand);
    const Site site = static_cast<Site>(static_cast<uint32_t>(Site::head_hidden_1) + static_cast<uint32_t>(i));
    row_ops().bias_relu(c, n, width, weights.head_bias[i], call.dropout(site, 0), ids, operand, {hidden, x_stride});
    x = hidden;
  }
  if (out == nullptr) return;
  row_ops().dot({x, x_stride}, n, width, operand, weights.last_weight, weights.last_bias, scratch.c);
  for (int64_t r = 0; r < n; ++r) out[tile.rows[static_cast<size_t>(r0 + r)].position] = scratch.c[r];
}

void forward_simr(const Decoder& decoder, const TileRows& tile, int64_t r0, int64_t n, const float* t, float* out) {
  const int64_t D = decoder.call.dims.D, stride = row_stride(D);
  for (int64_t r = r0; r < r0 + n; ++r) {
    row_ops().layer_norm({t + r * stride, stride}, 1, D, decoder.weights.norm_gain, decoder.weights.norm_shift,
                         decoder.call.dims.eps, Operand::f32, {out + tile.rows[static_cast<size_t>(r)].position * D, D},
                         nullptr);
  }
}

}  // namespace carzero::cpu
