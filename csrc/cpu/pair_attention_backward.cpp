#include "pair_attention_backward.h"

#include <algorithm>

namespace carzero::cpu {
namespace {

// Rows whose scores one thread holds.
constexpr int64_t kBlockRows = 96;
// Keys whose gradient one product takes.
constexpr int64_t kKeySlice = 128;

struct Block {
  const Piece* piece;
  int64_t row, rows;
};

}  // namespace

AttentionScratch AttentionScratch::take(const Dims& dims, Operand operand, int64_t rows, int64_t keys,
                                        int64_t most_keys, int64_t segments, int threads, Arena& arena) {
  const int64_t bytes = element_bytes(operand), K = dims.K(), one = score_stride(most_keys);
  AttentionScratch y{};
  y.most_keys = most_keys;
  y.stride = one * dims.H;
  y.weights = arena.take(rows * y.stride * bytes);
  y.dscores = arena.take(rows * y.stride * bytes);
  // whole panels over keys, or whole pairs of keys, for each memory
  const int64_t padded = keys + 32 * segments;
  y.key_t = arena.take(static_cast<int64_t>(packed_bytes(K, 16, operand)) / 16 * padded * dims.H);
  y.value_t = arena.take(static_cast<int64_t>(packed_bytes(K, 16, operand)) / 16 * padded * dims.H);
  y.key = arena.take(round_up(K, 32) * padded * bytes * dims.H);
  for (int i = 0; i < threads; ++i) {
    y.threads.push_back({arena.take<float>(kBlockRows * one), arena.take<float>(kBlockRows * one),
                         arena.take<float>(kBlockRows * row_stride(K)),
                         arena.take(static_cast<int64_t>(packed_bytes(rows, K, operand))),
                         arena.take(static_cast<int64_t>(packed_bytes(rows, K, operand))),
                         arena.take(static_cast<int64_t>(tn_scratch_bytes(rows, kKeySlice, operand)))});
  }
  return y;
}

void attention_backward(const AttentionTile& t, const AttentionScratch& scratch) {
  const Call& call = t.decoder.call;
  const Dims& dims = call.dims;
  const Operand operand = call.operand;
  const int64_t D = dims.D, H = dims.H, K = dims.K(), bytes = element_bytes(operand);
  const int64_t one = scratch.stride / H, stride = row_stride(D);
  const int64_t pieces = static_cast<int64_t>(t.tile.pieces.size());
  const auto part = [&](const void* data, int64_t row, int64_t head) {
    return static_cast<const std::byte*>(data) + (row * stride + head * K) * bytes;
  };
  const auto weights_at = [&](void* data, int64_t row, int64_t head) {
    return static_cast<std::byte*>(data) + (row * scratch.stride + head * one) * bytes;
  };
  // where a memory's packed operands begin
  const int64_t segment0 = pieces == 0 ? 0 : t.tile.pieces.front().segment;
  const auto packed_at = [&](int64_t segment, int64_t unit) {
    return (t.keys.offset(segment) + 32 * (segment - segment0)) * H * unit;
  };
  const int64_t across = static_cast<int64_t>(packed_bytes(K, 16, operand)) / 16, along = round_up(K, 32) * bytes;

  for_each_unit(pieces * H, call.threads, [&](int64_t u, int) {
    const int64_t segment = t.tile.pieces[static_cast<size_t>(u / H)].segment, h = u % H, n = t.keys.of(segment).n;
    const float* k = t.kv + t.keys.offset(segment) * t.kv_stride + h * K;
    const auto wide = static_cast<int64_t>(packed_bytes(K, n, operand));
    pack_b(View<float>{k, 1, t.kv_stride}, K, n, operand, scratch.key_t + packed_at(segment, across) + h * wide, 0, n);
    pack_b(View<float>{k + D, 1, t.kv_stride}, K, n, operand, scratch.value_t + packed_at(segment, across) + h * wide,
           0, n);
    pack_b(View<float>{k, t.kv_stride, 1}, n, K, operand,
           scratch.key + packed_at(segment, along) + h * static_cast<int64_t>(packed_bytes(n, K, operand)), 0, K);
  });

  std::vector<Block> blocks;
  for (const Piece& piece : t.tile.pieces) {
    const Cut cut{piece.rows, ceil_div(piece.rows, kBlockRows)};
    for (int64_t i = 0; i < cut.parts; ++i) {
      blocks.push_back({&piece, piece.row + cut.begin(i), cut.begin(i + 1) - cut.begin(i)});
    }
  }
  for_each_unit(static_cast<int64_t>(blocks.size()) * H, call.threads, [&](int64_t u, int thread) {
    const Block& block = blocks[static_cast<size_t>(u / H)];
    const int64_t h = u % H, segment = block.piece->segment, r = block.row, rows = block.rows;
    const Keys& keys = t.keys.of(segment);
    const int64_t n = keys.n;
    const AttentionScratch::Thread& own = scratch.threads[static_cast<size_t>(thread)];
    const auto wide = static_cast<int64_t>(packed_bytes(K, n, operand));
    const PackedB key_t{K, n, operand, scratch.key_t + packed_at(segment, across) + h * wide};
    const PackedB value_t{K, n, operand, scratch.value_t + packed_at(segment, across) + h * wide};
    const PackedB key{n, K, operand,
                      scratch.key + packed_at(segment, along) + h * static_cast<int64_t>(packed_bytes(n, K, operand))};
    gemm(part(t.query, r, h), stride, rows, key_t, own.scores, one, false, 0, n);
    attention_ops().softmax({own.scores, one}, rows, n, t.decoder.scale, keys.log_count);
    gemm(part(t.dattended, r, h), stride, rows, value_t, own.dscores, one, false, 0, n);
    void* dscores = weights_at(scratch.dscores, r, h);
    attention_ops().backward({own.scores, one}, {own.dscores, one}, rows, keys, t.decoder.scale,
                             call.dropout(Site::attention, t.l, h), t.tile.ids.data() + r, operand,
                             {weights_at(scratch.weights, r, h), scratch.stride}, {dscores, scratch.stride});
    auto* dquery = static_cast<std::byte*>(t.dquery) + (r * stride + h * K) * bytes;
    if (operand == Operand::f32) {
      gemm(dscores, scratch.stride, rows, key, reinterpret_cast<float*>(dquery), stride, false, 0, K);
    } else {
      gemm(dscores, scratch.stride, rows, key, own.product, row_stride(K), false, 0, K);
      row_ops().to_operand({own.product, row_stride(K)}, rows, K, operand, {dquery, stride});
    }
  });

  // every key's gradient in one place: a memory and head at a time, keys or values
  for_each_unit(pieces * H * 2, call.threads, [&](int64_t u, int thread) {
    const Piece& piece = t.tile.pieces[static_cast<size_t>(u / 2 / H)];
    const int64_t h = u / 2 % H, n = t.keys.of(piece.segment).n;
    const bool values = u % 2 == 1;
    const AttentionScratch::Thread& own = scratch.threads[static_cast<size_t>(thread)];
    void* packed = values ? own.dattended : own.query;
    pack_rows({part(values ? t.dattended : t.query, piece.row, h), stride}, piece.rows, K, operand, packed, 0, K);
    const Rows y{weights_at(values ? scratch.weights : scratch.dscores, piece.row, h), scratch.stride};
    float* to = t.dkv + t.keys.offset(piece.segment) * t.dkv_stride + (values ? D : 0) + h * K;
    for (int64_t n0 = 0; n0 < n; n0 += kKeySlice) {
      multiply_transposed_rows(y, {piece.rows, K, operand, packed}, to, t.dkv_stride, t.accumulate, n0,
                               std::min(n0 + kKeySlice, n), own.transposed);
    }
  });
}

}  // namespace carzero::cpu
