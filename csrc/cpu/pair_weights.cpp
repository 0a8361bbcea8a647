#include "pair_weights.h"

#include <cstring>

#include "pair_threads.h"
#include "pair_workspace.h"

namespace carzero::cpu {
namespace {

constexpr uint64_t kMagic = 0x6b63617030726163;
constexpr int64_t kMaxMaps = 8;

struct Header {
  uint64_t magic;
  int64_t D, H, F, L, maps, absorption, operand, bytes;
  int64_t widths[kMaxMaps + 1];
};

// One matrix or vector of the blob and where it comes from.
struct Item {
  int64_t parameter, offset, row_stride, col_stride;
  int64_t K, N;  // K = 0: a vector of N floats
  std::byte* to;
};

// Walks the blob in its fixed order: `Weights` that point into it and, in the same walk, the items that fill it.
struct Walk {
  const Dims& dims;
  Operand operand;
  PackContents contents;
  Arena arena;
  std::vector<Item> items;

  PackedB matrix(int64_t parameter, int64_t offset, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N) {
    auto* to = arena.take(static_cast<int64_t>(packed_bytes(K, N, operand)));
    items.push_back({parameter, offset, row_stride, col_stride, K, N, to});
    return {K, N, operand, to};
  }
  // x W^T for W [N, K] at row `row` of a parameter
  PackedB linear(int64_t parameter, int64_t row, int64_t K, int64_t N) {
    return matrix(parameter, row * K, 1, K, K, N);
  }
  const float* vector(int64_t parameter, int64_t offset, int64_t N) {
    auto* to = arena.take<float>(round_up(N, 16));
    items.push_back({parameter, offset, 0, 0, 0, N, reinterpret_cast<std::byte*>(to)});
    return to;
  }

  Weights weights() {
    using I = ParameterIndex;
    const int64_t D = dims.D, F = dims.F, K = dims.K();
    arena.take<Header>(1);
    Weights w;
    w.norm_gain = vector(I::norm_w, 0, D);
    w.norm_shift = vector(I::norm_b, 0, D);
    for (int64_t l = 0; l < dims.L; ++l) {
      LayerWeights& y = w.layers.emplace_back();
      const int64_t in = I::layer(l, I::in_proj_w), in_b = I::layer(l, I::in_proj_b), out = I::layer(l, I::out_w);
      y.key_value = linear(in, D, D, 2 * D);
      y.query = linear(in, 0, D, D);
      y.out = linear(out, 0, D, D);
      y.ffn1 = linear(I::layer(l, I::w1), 0, D, F);
      y.ffn2 = linear(I::layer(l, I::w2), 0, F, D);
      y.query_bias = vector(in_b, 0, D);
      y.value_bias = vector(in_b, 2 * D, D);
      y.out_bias = vector(I::layer(l, I::out_b), 0, D);
      y.ffn1_bias = vector(I::layer(l, I::b1), 0, F);
      y.ffn2_bias = vector(I::layer(l, I::b2), 0, D);
      y.norm2_gain = vector(I::layer(l, I::norm2_w), 0, D);
      y.norm2_shift = vector(I::layer(l, I::norm2_b), 0, D);
      y.norm3_gain = vector(I::layer(l, I::norm3_w), 0, D);
      y.norm3_shift = vector(I::layer(l, I::norm3_b), 0, D);
      if (!contents.absorption) continue;
      for (int64_t h = 0; h < dims.H; ++h) {
        if (l > 0) y.absorb_query.push_back(matrix(in, h * K * D, D, 1, K, D));
        y.absorb_out.push_back(matrix(out, h * K, 1, D, K, D));
      }
    }
    const int64_t maps = dims.maps();
    for (int64_t i = 0; i < maps; ++i) {
      const int64_t p = I::head(dims, i), in = dims.head[static_cast<size_t>(i)];
      if (i + 1 < maps) {
        const int64_t out = dims.head[static_cast<size_t>(i) + 1];
        w.head.push_back(linear(p, 0, in, out));
        w.head_bias.push_back(vector(p + 1, 0, out));
      } else {
        w.last_weight = vector(p, 0, in);
        const float* last_bias = vector(p + 1, 0, 1);
        if (last_bias != nullptr) w.last_bias = *last_bias;
      }
    }
    return w;
  }
};

Header header_of(const Dims& dims, Operand operand, PackContents contents, int64_t bytes) {
  Header h{};
  h.magic = kMagic;
  h.D = dims.D, h.H = dims.H, h.F = dims.F, h.L = dims.L, h.maps = dims.maps();
  h.absorption = contents.absorption, h.operand = static_cast<int64_t>(operand), h.bytes = bytes;
  for (size_t i = 0; i < dims.head.size() && i <= kMaxMaps; ++i) h.widths[i] = dims.head[i];
  return h;
}

template <class T>
void pack_typed(const void* w, int64_t offset, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N,
                Operand operand, void* packed, int64_t n0, int64_t n1) {
  pack_b(View<T>{static_cast<const T*>(w) + offset, row_stride, col_stride}, K, N, operand, packed, n0, n1);
}

}  // namespace

void pack_any(Array w, int64_t offset, int64_t row_stride, int64_t col_stride, int64_t K, int64_t N, Operand operand,
              void* packed, int64_t n0, int64_t n1) {
  switch (w.dtype) {
    case Dtype::f32: pack_typed<float>(w.data, offset, row_stride, col_stride, K, N, operand, packed, n0, n1); break;
    case Dtype::bf16: pack_typed<bf16>(w.data, offset, row_stride, col_stride, K, N, operand, packed, n0, n1); break;
    case Dtype::f16: pack_typed<half>(w.data, offset, row_stride, col_stride, K, N, operand, packed, n0, n1); break;
  }
}

size_t packed_weights_bytes(const Dims& dims, Operand operand, PackContents contents) {
  Walk walk{dims, operand, contents, Arena(), {}};
  walk.weights();
  return walk.arena.used();
}

void pack_weights(const std::vector<Array>& parameters, const Dims& dims, Operand operand, PackContents contents,
                  int threads, void* blob) {
  const size_t bytes = packed_weights_bytes(dims, operand, contents);
  std::memset(blob, 0, sizeof(Header));
  Walk walk{dims, operand, contents, Arena(blob, bytes), {}};
  walk.weights();
  // units of some 256 KB, so that threads finish together
  struct Unit {
    const Item* item;
    int64_t n0, n1;
  };
  std::vector<Unit> units;
  for (const Item& item : walk.items) {
    const int64_t step = item.K == 0 ? item.N : round_up(1 + 65536 / item.K, kPanelWidth);
    for (int64_t n = 0; n < item.N; n += step) units.push_back({&item, n, n + step < item.N ? n + step : item.N});
  }
  for_each_unit(static_cast<int64_t>(units.size()), threads, [&](int64_t u, int) {
    const Unit& unit = units[static_cast<size_t>(u)];
    const Item& item = *unit.item;
    const Array& source = parameters[static_cast<size_t>(item.parameter)];
    if (item.K == 0) {
      float* to = reinterpret_cast<float*>(item.to);
      const auto* from = static_cast<const std::byte*>(source.data) + item.offset * element_bytes(source.dtype);
      row_ops().widen(from, source.dtype, item.N, to);
      for (int64_t i = item.N; i < round_up(item.N, 16); ++i) to[i] = 0.0f;
    } else {
      pack_any(source, item.offset, item.row_stride, item.col_stride, item.K, item.N, operand, item.to, unit.n0,
               unit.n1);
    }
  });
  const Header header = header_of(dims, operand, contents, static_cast<int64_t>(bytes));
  std::memcpy(blob, &header, sizeof(header));
}

const char* blob_mismatch(const void* blob, size_t bytes, const Dims& dims, Operand operand) {
  Header got;
  if (bytes < sizeof(got)) return "it is not a blob of carzero_native::pack_weights";
  std::memcpy(&got, blob, sizeof(got));
  if (got.magic != kMagic) return "it is not a blob of carzero_native::pack_weights";
  if (static_cast<size_t>(got.bytes) > bytes) return "the blob is cut short";
  const Header want = header_of(dims, operand, {got.absorption != 0}, got.bytes);
  if (got.operand != want.operand) return "it was packed for another operand type (compute dtype or instruction set)";
  Header layers_only = got;
  // the representation needs no head: a blob with one serves it as well
  if (dims.head.empty()) {
    layers_only.maps = 0;
    std::memset(layers_only.widths, 0, sizeof(layers_only.widths));
  }
  if (std::memcmp(&layers_only, &want, sizeof(want)) != 0) return "it was packed from parameters of other shapes";
  return "";
}

PackContents blob_contents(const void* blob) {
  Header header;
  std::memcpy(&header, blob, sizeof(header));
  return {header.absorption != 0};
}

Weights weights_of(const void* blob, const Dims& dims) {
  Header header;
  std::memcpy(&header, blob, sizeof(header));
  // read only: the arena hands out pointers that Weights keeps as const
  Walk walk{dims,
            static_cast<Operand>(header.operand),
            {header.absorption != 0},
            Arena(const_cast<void*>(blob), static_cast<size_t>(header.bytes)),
            {}};
  return walk.weights();
}

}  // namespace carzero::cpu
