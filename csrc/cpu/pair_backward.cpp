#include "pair_backward.h"

#include <cmath>
#include <cstring>
#include <utility>

#include "pair_backward_tile.h"
#include "pair_prepare.h"

namespace carzero::cpu {
namespace {

using I = ParameterIndex;

class Backward {
 public:
  Backward(const Call& call, const float* grad, const Gradients& gradients)
      : call_(call),
        dims_(call.dims),
        grad_(grad),
        out_(gradients),
        list_(call),
        weights_(call, false),
        tiles_(plan_tiles(call, list_)),
        decoder_{call, weights_.get(), nullptr, 1.0f / std::sqrt(static_cast<float>(call.dims.K())), {}} {}

  void run() {
    TileSizes sizes = sizes_of(call_, list_, tiles_);
    // the queries' side goes through the same buffers
    const int64_t query_rows = std::min<int64_t>(dims_.Q, std::max<int64_t>(sizes.rows, 256));
    sizes.rows = std::max<int64_t>({sizes.rows, query_rows, 1});
    Arena measure;
    cut(sizes, measure);
    const Workspace workspace(measure.used());
    Arena arena = workspace.arena();
    cut(sizes, arena);
    const auto query_floats = static_cast<size_t>(dims_.Q * stride_);
    std::memset(dquery_, 0, query_floats * sizeof(float));
    std::memset(dstart_, 0, query_floats * sizeof(float));
    decoder_.first_query = first_query_;
    for_each_unit(ceil_div(dims_.Q, kSumRows), call_.threads, [&](int64_t u, int thread) {
      const RowScratch& scratch = b_.threads[static_cast<size_t>(thread)];
      for (int64_t q = u * kSumRows, end = std::min(q + kSumRows, dims_.Q); q < end; q += scratch.rows) {
        project_queries(call_, weights_.get(), q, std::min(q + scratch.rows, end), scratch, first_query_);
      }
    });
    for (const TilePart& part : tiles_) run_tile(part);
    for (int64_t q = 0; q < dims_.Q; q += query_rows) query_side(q, std::min(query_rows, dims_.Q - q));
  }

 private:
  void cut(const TileSizes& sizes, Arena& arena) {
    b_ = TileBuffers::take(call_, sizes, call_.threads, arena);
    first_query_ = arena.take(dims_.Q * stride_ * element_bytes(operand_));
    dquery_ = arena.take<float>(dims_.Q * stride_);
    dstart_ = arena.take<float>(dims_.Q * stride_);
  }

  Array weight(int64_t parameter) const { return call_.parameters[static_cast<size_t>(parameter)]; }
  float* gradient(int64_t parameter) const { return out_.parameters[static_cast<size_t>(parameter)]; }

  // The map of a whole parameter over the tile's rows; its result goes to `product`.
  LinearMap map_of(int64_t parameter, const void* dy, int64_t N, const void* x, int64_t x_stride, int64_t K) const {
    return {{dy, wide_},
            N,
            {x, x_stride},
            K,
            tile_.count(),
            weight(parameter),
            0,
            gradient(parameter),
            gradient(parameter + 1),
            0,
            b_.product,
            wide_,
            false};
  }

  template <class Done>
  void back(const LinearMap& map, const Done& done) {
    linear_backward(map, operand_, call_.threads, b_.linear, done);
  }

  template <class F>
  void each_rows(const F& f) {
    const Cut cut = row_cut(tile_.count(), call_.threads);
    for_each_unit(cut.parts, call_.threads,
                  [&](int64_t u, int thread) { f(cut.begin(u), cut.begin(u + 1) - cut.begin(u), thread); });
  }

  // dx (+)= the gradient of a LayerNorm for rows r0 .. r0 + n - 1, r0 a multiple of kSumRows; the parameters' sums stay
  // in `sums` until add_sums.
  void norm_rows(FloatRows dy, FloatRows x, const float* stats, int64_t r0, int64_t n, const float* gain,
                 bool accumulate, FloatRowsOut dx) {
    for (int64_t r = r0; r < r0 + n; r += kSumRows) {
      row_ops().layer_norm_backward({dy.data + r * dy.stride, dy.stride}, {x.data + r * x.stride, x.stride},
                                    stats + 2 * r, std::min(kSumRows, r0 + n - r), dims_.D, gain, accumulate,
                                    {dx.data + r * dx.stride, dx.stride}, b_.sums + r / kSumRows * 2 * dims_.D);
    }
  }
  void add_sums(int64_t rows, int64_t gain_parameter) {
    for (int64_t block = 0; block < ceil_div(rows, kSumRows); ++block) {
      row_ops().add(b_.sums + block * 2 * dims_.D, dims_.D, gradient(gain_parameter));
      row_ops().add(b_.sums + (block * 2 + 1) * dims_.D, dims_.D, gradient(gain_parameter + 1));
    }
  }

  FloatRows at(const float* data, int64_t r, int64_t stride) const { return {data + r * stride, stride}; }
  RowsOut operands(void* data, int64_t r, int64_t stride) const { return {row_of(data, r, stride, operand_), stride}; }
  const PairId* ids(int64_t r) const { return tile_.ids.data() + r; }

  void run_tile(const TilePart& part) {
    keys_.emplace(call_, list_, part.s0, part.s1);
    tile_.clear();
    for (int64_t s = part.s0; s < part.s1; ++s) {
      const int64_t count = list_.segments()[static_cast<size_t>(s)].count;
      tile_.append(call_, list_, s, part.whole() ? 0 : part.i0, part.whole() ? count : part.i1);
    }
    kv_stride_ = dims_.L * 2 * dims_.D;
    dkv_stride_ = part.whole() ? 2 * dims_.D : kv_stride_;
    if (part.i0 == 0) project_tile_memory(call_, weights_.get(), list_, *keys_, part, b_);
    forward(part);
    head_backward();
    for (int64_t l = dims_.L - 1; l >= 0; --l) {
      layer_backward(part, l);
      if (part.whole()) fold(l, b_.dkv);
    }
    if (!part.whole() && part.last) {
      for (int64_t l = 0; l < dims_.L; ++l) fold(l, b_.dkv + l * 2 * dims_.D);
    }
    if (part.last) {
      memory_gradient(call_, weights_.get(), list_, *keys_, part, b_, out_.memory);
      add_sums(keys_->total(), I::norm_w);
    }
  }

  void forward(const TilePart& part) {
    each_rows([&](int64_t r0, int64_t n, int) { start_rows(decoder_, tile_, r0, n, b_.layers[0].t_in); });
    std::vector<MemoryLayer> layers;
    std::vector<MemoryLayer*> pointers;
    layers.reserve(static_cast<size_t>(part.s1 - part.s0));
    for (int64_t s = part.s0; s < part.s1; ++s) {
      Arena arena(b_.memory_layer[static_cast<size_t>(s - part.s0)], static_cast<size_t>(b_.memory_layer_bytes));
      layers.push_back(take_memory_layer(dims_, operand_, keys_->of(s).n, false, 0, arena));
      pointers.push_back(&layers.back());
    }
    for (int64_t l = 0; l < dims_.L; ++l) {
      for_each_unit(part.s1 - part.s0, call_.threads, [&](int64_t u, int) {
        const int64_t s = part.s0 + u;
        const float* kv = b_.kv + keys_->offset(s) * kv_stride_ + l * 2 * dims_.D;
        pack_memory_layers(call_, weights_.get(), *keys_, s, s + 1, l, kv, kv_stride_, {}, pointers.data() + u);
      });
      each_rows([&](int64_t r0, int64_t n, int thread) {
        const RowScratch& scratch = b_.threads[static_cast<size_t>(thread)];
        for (int64_t r = r0; r < r0 + n; r += scratch.rows) {
          forward_layer(decoder_, l, tile_, r, std::min(scratch.rows, r0 + n - r), *keys_, pointers.data(), part.s0,
                        b_.layers[static_cast<size_t>(l)], scratch);
        }
      });
    }
  }

  // The gradient of the last layer's output, to dt, and the first dy.
  void head_backward() {
    const int64_t D = dims_.D, R = tile_.count();
    const float* t = b_.layers.back().t_in;
    const Weights& w = weights_.get();
    const auto finish = [&](int64_t r0, int64_t n) {
      // the statistics alone are wanted: x is free here
      row_ops().layer_norm(at(t, r0, stride_), n, D, w.norm_gain, w.norm_shift, dims_.eps, operand_,
                           operands(b_.x, r0, stride_), b_.stats + 2 * r0);
      norm_rows({b_.product, wide_}, {t, stride_}, b_.stats, r0, n, w.norm_gain, false, {b_.dt, stride_});
      begin_layer(dims_.L - 1, r0, n, b_.dy);
    };
    if (dims_.head.empty()) {
      each_rows([&](int64_t r0, int64_t n, int) {
        for (int64_t r = r0; r < r0 + n; ++r) {
          std::memcpy(b_.product + r * wide_, grad_ + tile_.rows[static_cast<size_t>(r)].position * D,
                      static_cast<size_t>(D) * sizeof(float));
        }
        finish(r0, n);
      });
      add_sums(R, I::norm_w);
      return;
    }
    const int64_t maps = dims_.maps(), last = I::head(dims_, maps - 1),
                  width = dims_.head[static_cast<size_t>(maps) - 1];
    const bool linear = maps == 1;
    const void* last_in = linear ? b_.head.in : b_.head.hidden.back();
    const int64_t last_stride = row_stride(width);
    const float scale = philox::keep_scale(call_.drop_threshold);
    const auto through_dropout = [&](int64_t r0, int64_t n) {
      row_ops().drop(at(b_.product, r0, wide_), n, D, call_.dropout(Site::before_head, 0), ids(r0), Operand::f32,
                     {b_.product + r0 * wide_, wide_});
      finish(r0, n);
    };
    each_rows([&](int64_t r0, int64_t n, int thread) {
      const RowScratch& scratch = b_.threads[static_cast<size_t>(thread)];
      for (int64_t r = r0; r < r0 + n; r += scratch.rows) {
        forward_head(decoder_, tile_, r, std::min(scratch.rows, r0 + n - r), t, b_.head, scratch, nullptr);
      }
      for (int64_t r = r0; r < r0 + n; ++r) b_.g[r] = grad_[tile_.rows[static_cast<size_t>(r)].position];
      if (linear) {
        row_ops().dot_backward(b_.g + r0, n, D, w.last_weight, {nullptr, 0}, 1.0f, Operand::f32,
                               {b_.product + r0 * wide_, wide_});
        through_dropout(r0, n);
      } else {
        row_ops().dot_backward(b_.g + r0, n, width, w.last_weight,
                               {row_of(last_in, r0, last_stride, operand_), last_stride}, scale, operand_,
                               operands(b_.dy, r0, wide_));
      }
    });
    row_ops().column_sums({last_in, last_stride}, R, 0, width, operand_, b_.g, gradient(last));
    double sum = 0;
    for (int64_t r = 0; r < R; ++r) sum += static_cast<double>(b_.g[r]);
    gradient(last + 1)[0] += static_cast<float>(sum);
    for (int64_t i = maps - 2; i >= 0; --i) {
      const int64_t in = dims_.head[static_cast<size_t>(i)], out = dims_.head[static_cast<size_t>(i) + 1];
      const void* x = i == 0 ? b_.head.in : b_.head.hidden[static_cast<size_t>(i) - 1];
      void* dy = std::exchange(b_.dy, b_.dy_next);
      b_.dy_next = dy;
      back(map_of(I::head(dims_, i), dy, out, x, row_stride(in), in), [&](int64_t r0, int64_t n) {
        if (i == 0) {
          through_dropout(r0, n);
        } else {
          row_ops().relu_backward(at(b_.product, r0, wide_), n, in,
                                  {row_of(x, r0, row_stride(in), operand_), row_stride(in)}, scale, operand_,
                                  operands(b_.dy, r0, wide_));
        }
      });
    }
    add_sums(R, I::norm_w);
  }

  // dy of layer l's last map: dt through the dropout after it
  void begin_layer(int64_t l, int64_t r0, int64_t n, void* dy) {
    row_ops().drop(at(b_.dt, r0, stride_), n, dims_.D, call_.dropout(Site::after_ffn, l), ids(r0), operand_,
                   operands(dy, r0, wide_));
  }

  // Expects dt = gradient of the layer's output and dy from begin_layer; leaves those of the layer below.
  void layer_backward(const TilePart& part, int64_t l) {
    const int64_t D = dims_.D, F = dims_.F, R = tile_.count();
    const LayerRows& kept = b_.layers[static_cast<size_t>(l)];
    const LayerWeights& w = weights_.get().layers[static_cast<size_t>(l)];
    const auto swap = [&] { std::swap(b_.dy, b_.dy_next); };

    back(map_of(I::layer(l, I::w2), b_.dy, D, kept.hidden, hidden_stride_, F), [&](int64_t r0, int64_t n) {
      row_ops().relu_backward(at(b_.product, r0, wide_), n, F,
                              {row_of(kept.hidden, r0, hidden_stride_, operand_), hidden_stride_},
                              philox::keep_scale(call_.drop_threshold), operand_, operands(b_.dy_next, r0, wide_));
      row_ops().layer_norm(at(kept.t_mid, r0, stride_), n, D, w.norm3_gain, w.norm3_shift, dims_.eps, operand_,
                           operands(b_.x, r0, stride_), b_.stats + 2 * r0);
    });
    swap();
    back(map_of(I::layer(l, I::w1), b_.dy, F, b_.x, stride_, D), [&](int64_t r0, int64_t n) {
      norm_rows({b_.product, wide_}, {kept.t_mid, stride_}, b_.stats, r0, n, w.norm3_gain, true, {b_.dt, stride_});
      row_ops().drop(at(b_.dt, r0, stride_), n, D, call_.dropout(Site::after_out_projection, l), ids(r0), operand_,
                     operands(b_.dy_next, r0, wide_));
    });
    add_sums(R, I::layer(l, I::norm3_w));
    swap();
    back(map_of(I::layer(l, I::out_w), b_.dy, D, kept.attended, stride_, D), [&](int64_t r0, int64_t n) {
      row_ops().to_operand(at(b_.product, r0, wide_), n, D, operand_, operands(b_.dy_next, r0, stride_));
      if (l > 0) {
        row_ops().layer_norm(at(kept.t_in, r0, stride_), n, D, w.norm2_gain, w.norm2_shift, dims_.eps, operand_,
                             operands(b_.x, r0, stride_), b_.stats + 2 * r0);
      }
    });
    swap();
    attention_backward({decoder_, l, tile_, *keys_, b_.kv + l * 2 * D, kv_stride_, kept.query, b_.dy, b_.dy_next,
                        b_.dkv + (part.whole() ? 0 : l * 2 * D), dkv_stride_, part.i0 > 0},
                       b_.attention);
    swap();
    if (l == 0) {
      add_to_queries();
      return;
    }
    LinearMap map = map_of(I::layer(l, I::in_proj_w), b_.dy, D, b_.x, stride_, D);
    map.dy.stride = stride_;
    back(map, [&](int64_t r0, int64_t n) {
      norm_rows({b_.product, wide_}, {kept.t_in, stride_}, b_.stats, r0, n, w.norm2_gain, true, {b_.dt, stride_});
      begin_layer(l - 1, r0, n, b_.dy_next);
    });
    add_sums(R, I::layer(l, I::norm2_w));
    swap();
  }

  // Sums dq and dt of the first layer over the memories: threads own columns, rows come in order.
  void add_to_queries() {
    constexpr int64_t kColumns = 64;
    const int64_t D = dims_.D;
    for_each_unit(ceil_div(D, kColumns), call_.threads, [&](int64_t u, int) {
      const int64_t c0 = u * kColumns, width = std::min(kColumns, D - c0);
      float wide[kColumns];
      for (int64_t r = 0; r < tile_.count(); ++r) {
        const int64_t to = tile_.rows[static_cast<size_t>(r)].query * stride_ + c0;
        row_ops().add(b_.dt + r * stride_ + c0, width, dstart_ + to);
        const auto* dq =
            static_cast<const std::byte*>(row_of(b_.dy, r, stride_, operand_)) + c0 * element_bytes(operand_);
        row_ops().widen(dq, operand_ == Operand::f32 ? Dtype::f32 : Dtype::bf16, width, wide);
        row_ops().add(wide, width, dquery_ + to);
      }
    });
  }

  // Keys' and values' gradients of layer l into dm and the projections' weights. The key bias gets none: it cancels.
  void fold(int64_t l, const float* dkv) {
    const int64_t D = dims_.D, total = keys_->total(), in_proj = I::layer(l, I::in_proj_w);
    if (total == 0) return;
    const void* dy = dkv;
    int64_t dy_stride = dkv_stride_;
    if (operand_ != Operand::f32) {
      const Cut cut{total, std::min<int64_t>(total, 2 * call_.threads)};
      for_each_unit(cut.parts, call_.threads, [&](int64_t u, int) {
        const int64_t r0 = cut.begin(u);
        row_ops().to_operand({dkv + r0 * dkv_stride_, dkv_stride_}, cut.begin(u + 1) - r0, 2 * D, operand_,
                             operands(b_.dkv_operand, r0, 2 * D));
      });
      dy = b_.dkv_operand;
      dy_stride = 2 * D;
    }
    const LinearMap map{
        {dy, dy_stride},           2 * D, {b_.m, D}, D, total, weight(in_proj), D, gradient(in_proj) + D * D,
        gradient(in_proj + 1) + D, D,     b_.dm,     D, true};
    back(map, [](int64_t, int64_t) {});
  }

  // The first layer's query projection, LN2 and LN0 for queries q0 .. q0 + n - 1, given the sums over memories.
  void query_side(int64_t q0, int64_t count) {
    const int64_t D = dims_.D, bytes = element_bytes(call_.queries.dtype);
    const Weights& w = weights_.get();
    const LayerWeights& layer = w.layers[0];
    float *x = b_.layers[0].t_in, *t = b_.layers[0].t_mid, *dstart = dstart_ + q0 * stride_, *t_stats = b_.stats;
    std::vector<float> start_stats(static_cast<size_t>(2 * count));
    float* x_stats = start_stats.data();
    const Cut cut = row_cut(count, call_.threads);
    for_each_unit(cut.parts, call_.threads, [&](int64_t u, int) {
      const int64_t r0 = cut.begin(u), n = cut.begin(u + 1) - r0;
      for (int64_t r = r0; r < r0 + n; ++r) {
        row_ops().widen(static_cast<const std::byte*>(call_.queries.data) + (q0 + r) * D * bytes, call_.queries.dtype,
                        D, x + r * stride_);
      }
      row_ops().layer_norm(at(x, r0, stride_), n, D, w.norm_gain, w.norm_shift, dims_.eps, Operand::f32,
                           {t + r0 * stride_, stride_}, x_stats + 2 * r0);
      row_ops().layer_norm(at(t, r0, stride_), n, D, layer.norm2_gain, layer.norm2_shift, dims_.eps, operand_,
                           operands(b_.x, r0, stride_), t_stats + 2 * r0);
      row_ops().to_operand(at(dquery_ + q0 * stride_, r0, stride_), n, D, operand_, operands(b_.dy, r0, stride_));
    });
    const int64_t in_proj = I::layer(0, I::in_proj_w);
    const LinearMap map{{b_.dy, stride_},      D, {b_.x, stride_}, D,     count, weight(in_proj), 0, gradient(in_proj),
                        gradient(in_proj + 1), 0, b_.product,      wide_, false};
    back(map, [&](int64_t r0, int64_t n) {
      norm_rows({b_.product, wide_}, {t, stride_}, t_stats, r0, n, layer.norm2_gain, true, {dstart, stride_});
    });
    add_sums(count, I::layer(0, I::norm2_w));
    for_each_unit(cut.parts, call_.threads, [&](int64_t u, int) {
      const int64_t r0 = cut.begin(u), n = cut.begin(u + 1) - r0;
      norm_rows({dstart, stride_}, {x, stride_}, x_stats, r0, n, w.norm_gain, false, {b_.product, wide_});
      for (int64_t r = r0; r < r0 + n; ++r) {
        row_ops().narrow(b_.product + r * wide_, D, call_.queries.dtype,
                         static_cast<std::byte*>(out_.queries) + (q0 + r) * D * bytes);
      }
    });
    add_sums(count, I::norm_w);
  }

  const Call& call_;
  const Dims& dims_;
  const float* grad_;
  const Gradients& out_;
  WorkList list_;
  PreparedWeights weights_;
  std::vector<TilePart> tiles_;
  Decoder decoder_;
  const Operand operand_ = call_.operand;
  const int64_t stride_ = row_stride(dims_.D), hidden_stride_ = row_stride(dims_.F), wide_ = product_stride(dims_);
  TileBuffers b_;
  std::optional<KeyTable> keys_;
  TileRows tile_;
  int64_t kv_stride_ = 0, dkv_stride_ = 0;
  void* first_query_ = nullptr;
  float *dquery_ = nullptr, *dstart_ = nullptr;
};

}  // namespace

void pair_backward(const Call& call, const float* grad, const Gradients& gradients) {
  Backward(call, grad, gradients).run();
}

}  // namespace carzero::cpu
