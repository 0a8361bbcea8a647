#include "pair_forward.h"

#include <cmath>
#include <optional>

#include "pair_layers.h"
#include "pair_prepare.h"
#include "pair_threads.h"
#include "plan.h"

namespace carzero::cpu {
namespace {

// Consecutive memories of a group whose keys are projected by one thread at a time.
constexpr int64_t kProjectedRows = 192;

class Forward {
 public:
  Forward(const Call& call, float* out, Maps maps)
      : call_(call),
        list_(call),
        load_(load_of(call, list_)),
        weights_(call, absorb_of(call, load_)),
        absorb_(weights_.absorb()),
        out_(out),
        maps_(maps) {
    cut_groups();
  }

  void run() {
    if (list_.rows() == 0) return;
    const Dims& dims = call_.dims;
    Arena measure;
    cut(measure);
    const Workspace workspace(measure.used());
    Arena arena = workspace.arena();
    cut(arena);
    decoder_.emplace(
        Decoder{call_, weights_.get(), first_query_, 1.0f / std::sqrt(static_cast<float>(dims.K())), maps_});
    const Cut queries{dims.Q, std::min<int64_t>(call_.threads, ceil_div(dims.Q, 24)), 6};
    for_each_unit(queries.parts, call_.threads, [&](int64_t u, int thread) {
      for (int64_t q = queries.begin(u); q < queries.begin(u + 1); q += tile_rows_) {
        project_queries(call_, weights_.get(), q, std::min(q + tile_rows_, queries.begin(u + 1)),
                        threads_[static_cast<size_t>(thread)].rows, first_query_);
      }
    });
    for (const Group& group : groups_) run_group(group);
  }

 private:
  struct Group {
    int64_t s0, s1, rows, keys;
    size_t bytes;
  };
  struct Thread {
    RowScratch rows;
    ProjectionScratch projection;
    LayerRows layer;
    HeadRows head;
    TileRows tile;
  };

  void cut_groups() {
    const int64_t segments = static_cast<int64_t>(list_.segments().size());
    int64_t most_rows = 0;
    size_t limit = static_cast<size_t>(kGroupBytes);
    // twice: the first pass counts the groups, the second evens them out
    for (int pass = 0; pass < 2; ++pass) {
      groups_.clear();
      size_t total = 0;
      for (int64_t s = 0; s < segments; ++s) {
        const KeyTable keys(call_, list_, s, s + 1);
        Arena arena;
        for (int64_t l = 0; l < call_.dims.L; ++l) {
          take_memory_layer(call_.dims, call_.operand, keys.total(), absorb_, l, arena);
        }
        const int64_t rows = list_.segments()[static_cast<size_t>(s)].count;
        if (groups_.empty() || groups_.back().bytes + arena.used() > limit) groups_.push_back({s, s, 0, 0, 0});
        Group& group = groups_.back();
        group.s1 = s + 1;
        group.rows += rows;
        group.keys += keys.total();
        group.bytes += arena.used();
        total += arena.used();
        largest_ = std::max(largest_, arena.used());
      }
      if (pass == 0 && groups_.size() > 1) limit = std::min(limit, total / groups_.size() + largest_);
    }
    for (const Group& group : groups_) {
      most_rows = std::max(most_rows, forward_tile_rows(group.rows, call_.threads, call_.tile_pairs));
      group_bytes_ = std::max(group_bytes_, group.bytes);
      group_keys_ = std::max(group_keys_, group.keys);
    }
    tile_rows_ = std::max<int64_t>(1, std::min(most_rows, list_.rows()));
  }

  void cut(Arena& arena) {
    const Dims& dims = call_.dims;
    const Operand operand = call_.operand;
    const int64_t bytes = element_bytes(operand), D = row_stride(dims.D);
    first_query_ = arena.take(dims.Q * D * bytes);
    normalised_ = call_.projected ? nullptr : arena.take(group_keys_ * dims.D * bytes);
    bank_ = arena.take(static_cast<int64_t>(group_bytes_));
    threads_.resize(static_cast<size_t>(call_.threads));
    for (Thread& thread : threads_) {
      thread.rows = RowScratch::take(dims, operand, tile_rows_, load_.most_keys, absorb_, arena);
      thread.projection =
          ProjectionScratch::take(dims, operand, std::max(kProjectedRows, load_.most_keys), absorb_, arena);
      float* t = arena.take<float>(tile_rows_ * D);
      void* query = arena.take(tile_rows_ * D * bytes);
      void* attended = absorb_ ? nullptr : arena.take(tile_rows_ * D * bytes);
      void* hidden = arena.take(tile_rows_ * row_stride(dims.F) * bytes);
      thread.layer = {t, query, attended, t, hidden, t};
      thread.head.in = query;
      thread.head.hidden.clear();
      for (size_t i = 1; i + 1 < dims.head.size(); ++i) {
        thread.head.hidden.push_back(arena.take(tile_rows_ * row_stride(dims.head[i]) * bytes));
      }
    }
  }

  void run_group(const Group& group) {
    const Dims& dims = call_.dims;
    const KeyTable keys(call_, list_, group.s0, group.s1);
    Arena arena(bank_, group_bytes_);
    std::vector<MemoryLayer> layers;  // [layer][segment]
    std::vector<MemoryLayer*> pointers;
    const int64_t segments = group.s1 - group.s0;
    layers.reserve(static_cast<size_t>(segments * dims.L));
    for (int64_t l = 0; l < dims.L; ++l) {
      for (int64_t s = group.s0; s < group.s1; ++s) {
        layers.push_back(take_memory_layer(dims, call_.operand, keys.of(s).n, absorb_, l, arena));
        pointers.push_back(&layers.back());
      }
    }
    const auto layer = [&](int64_t l, int64_t s) { return pointers.data() + l * segments + (s - group.s0); };

    if (!call_.projected) {
      for_each_unit(segments, call_.threads, [&](int64_t u, int) {
        normalise_memory(call_, weights_.get(), list_, keys, group.s0 + u, group.s0 + u + 1, normalised_, nullptr);
      });
    }
    std::vector<int64_t> cuts{group.s0};
    for (int64_t s = group.s0; s < group.s1; ++s) {
      const int64_t first = keys.offset(cuts.back());
      if (s > cuts.back() && keys.offset(s) + keys.of(s).n - first > kProjectedRows) cuts.push_back(s);
    }
    cuts.push_back(group.s1);
    const int64_t parts = static_cast<int64_t>(cuts.size()) - 1;
    for_each_unit(parts * dims.L, call_.threads, [&](int64_t u, int thread) {
      const int64_t l = u / parts, s0 = cuts[static_cast<size_t>(u % parts)],
                    s1 = cuts[static_cast<size_t>(u % parts) + 1];
      const ProjectionScratch& scratch = threads_[static_cast<size_t>(thread)].projection;
      project_keys(call_, weights_.get(), list_, keys, s0, s1, l, normalised_, scratch.kv, 2 * dims.D);
      pack_memory_layers(call_, weights_.get(), keys, s0, s1, l, scratch.kv, 2 * dims.D, scratch, layer(l, s0));
    });

    const int64_t tile_rows = forward_tile_rows(group.rows, call_.threads, call_.tile_pairs);
    for_each_unit(ceil_div(group.rows, tile_rows), call_.threads, [&](int64_t u, int thread) {
      Thread& own = threads_[static_cast<size_t>(thread)];
      fill_tile(group, u * tile_rows, std::min(group.rows, (u + 1) * tile_rows), own.tile);
      const int64_t n = own.tile.count();
      start_rows(*decoder_, own.tile, 0, n, own.layer.t_in);
      for (int64_t l = 0; l < dims.L; ++l) {
        forward_layer(*decoder_, l, own.tile, 0, n, keys, layer(l, group.s0), group.s0, own.layer, own.rows);
      }
      if (maps_.data != nullptr) return;
      if (dims.head.empty()) {
        forward_simr(*decoder_, own.tile, 0, n, own.layer.t_out, out_);
      } else {
        forward_head(*decoder_, own.tile, 0, n, own.layer.t_out, own.head, own.rows, out_);
      }
    });
  }

  // Rows begin .. end - 1 of a group.
  void fill_tile(const Group& group, int64_t begin, int64_t end, TileRows& tile) const {
    tile.clear();
    int64_t at = 0;
    for (int64_t s = group.s0; s < group.s1 && at < end; ++s) {
      const int64_t count = list_.segments()[static_cast<size_t>(s)].count;
      const int64_t i0 = std::max<int64_t>(begin - at, 0), i1 = std::min(end - at, count);
      if (i0 < i1) tile.append(call_, list_, s, i0, i1);
      at += count;
    }
  }

  const Call& call_;
  WorkList list_;
  Load load_;
  PreparedWeights weights_;
  bool absorb_;
  float* out_;
  Maps maps_;
  std::vector<Group> groups_;
  int64_t tile_rows_ = 1, group_keys_ = 0;
  size_t group_bytes_ = 0, largest_ = 0;
  void* first_query_ = nullptr;
  void* normalised_ = nullptr;
  void* bank_ = nullptr;
  std::vector<Thread> threads_;
  std::optional<Decoder> decoder_;
};

}  // namespace

void pair_forward(const Call& call, float* out) { Forward(call, out, {}).run(); }

void pair_attention(const Call& call, int64_t columns, float* out) {
  const int64_t positions = call.pairs == nullptr ? call.dims.M * call.dims.Q : call.pair_count;
  Forward(call, nullptr, {out, positions, columns}).run();
}

}  // namespace carzero::cpu
