// What one call of the op consists of, as plain data: sizes, raw pointers, random state. Letters as in
// docs/conventions.md.
#pragma once
#include <cstdint>
#include <vector>

#include "gemm.h"
#include "rowops.h"

namespace carzero::cpu {

struct Array {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

constexpr int64_t element_bytes(Dtype dtype) { return dtype == Dtype::f32 ? 4 : 2; }
constexpr int64_t element_bytes(Operand operand) { return operand == Operand::f32 ? 4 : 2; }
constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Row stride of an activation buffer of n columns: whole vectors, and never a multiple of 4 KB, whose rows would share
// the sets of the first-level cache.
constexpr int64_t row_stride(int64_t n) { return round_up(n, 32) % 512 == 0 ? round_up(n, 32) + 32 : round_up(n, 32); }

struct Dims {
  int64_t M = 0, Q = 0, P = 0, D = 0, H = 0, F = 0, L = 0;
  std::vector<int64_t> head;  // widths along the head, from D to 1; empty: the representation itself is the output
  float eps = 0;
  int64_t K() const { return D / H; }
  int64_t maps() const { return head.empty() ? 0 : static_cast<int64_t>(head.size()) - 1; }
};

// Indices into the flat parameter list.
struct ParameterIndex {
  enum Layer { in_proj_w, in_proj_b, out_w, out_b, w1, b1, w2, b2, norm2_w, norm2_b, norm3_w, norm3_b, per_layer };
  static constexpr int64_t norm_w = 0, norm_b = 1, first_layer = 2;
  static int64_t layer(int64_t l, Layer which) { return first_layer + l * per_layer + which; }
  static int64_t head(const Dims& dims, int64_t map) { return first_layer + dims.L * per_layer + 2 * map; }
  static int64_t count(const Dims& dims) { return first_layer + dims.L * per_layer + 2 * dims.maps(); }
};

struct Call {
  Dims dims;
  Operand operand = Operand::f32;
  Array memory;  // [M, P, D], or [M, P, L, 2, D] where projected
  bool projected = false;
  Array queries;                       // [Q, D]
  const int32_t* row_count = nullptr;  // [M, P]
  const int64_t* pairs = nullptr;      // [N, 2]; null: all pairs, in the order of [M, Q]
  int64_t pair_count = 0;
  std::vector<Array> parameters;
  const void* packed = nullptr;  // blob of pack_weights
  uint32_t drop_threshold = 0;   // 0: no dropout
  philox::Key key{};
  int direction = 0;
  uint32_t memory_offset = 0, query_offset = 0;
  int64_t tile_pairs = 0;
  int threads = 1;
  Dropout dropout(Site site, int64_t layer, int64_t head = 0) const {
    return {key, philox::stream(site, static_cast<int>(layer), direction, static_cast<int>(head)), drop_threshold,
            philox::keep_scale(drop_threshold)};
  }
};

}  // namespace carzero::cpu
