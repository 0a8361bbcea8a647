#include "probe.h"

#include "philox_lanes.h"
#include "simd.h"

namespace carzero::cpu::CARZERO_ISA {

// Calls body(start, count) over n elements, a vector at a time.
template <class Body>
CARZERO_INLINE void each_vector(int64_t n, Body body) {
  for (int64_t i = 0; i < n; i += kLanes) body(i, static_cast<int>(n - i < kLanes ? n - i : kLanes));
}

static void probe_exp(const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, exp(load(x + i)));
  const int rest = static_cast<int>(n - i);
  store_first(y + i, exp(load_first(x + i, rest)), rest);
}

static void probe_to_bf16(const float* x, bf16* y, int64_t n) {
  each_vector(n, [=](int64_t i, int count) {
    bf16 buffer[kLanes];
    store(buffer, load_first(x + i, count));
    for (int j = 0; j < count; ++j) y[i + j] = buffer[j];
  });
}

template <class T>
void widen(const T* x, float* y, int64_t n) {
  each_vector(n, [=](int64_t i, int count) {
    T buffer[kLanes] = {};
    for (int j = 0; j < count; ++j) buffer[j] = x[i + j];
    store_first(y + i, load(buffer), count);
  });
}

static void probe_reduce(const float* x, int64_t n, float* sum, float* largest) {
  vf sums{}, top = broadcast(-__builtin_inff());
  each_vector(n, [&](int64_t i, int count) {
    sums += load_first(x + i, count);
    top = max(top, load_first(x + i, count, -__builtin_inff()));
  });
  *sum = hsum(sums);
  *largest = hmax(top);
}

static void probe_philox_lanes(philox::Key key, uint32_t c0, uint32_t memory, uint32_t query, int64_t first_block,
                               int64_t blocks, uint16_t* out) {
  philox_lanes(key, c0, memory, query, first_block, blocks, out);
}

static void probe_drop_out(const float* x, const uint16_t* lanes, uint32_t t, float scale, float* y, int64_t n) {
  each_vector(n, [=](int64_t i, int count) {
    store_first(y + i, dropped_out(load_first(x + i, count), lanes + i, t, scale), count);
  });
}

extern const ProbeTable probe_table;
const ProbeTable probe_table = {
    kLanes, probe_exp, probe_to_bf16, widen<bf16>, widen<half>, probe_reduce, probe_philox_lanes, probe_drop_out,
};

}  // namespace carzero::cpu::CARZERO_ISA
