// Threads of a call: independent units of work, taken one by one. Results must not depend on who takes which.
#pragma once
#include <omp.h>

#include <cstdint>

namespace carzero::cpu {

// Calls f(unit, thread) for every unit 0 .. units - 1, thread in 0 .. threads - 1. f throws nothing.
template <class F>
void for_each_unit(int64_t units, int threads, const F& f) {
  if (units <= 1 || threads == 1) {
    for (int64_t u = 0; u < units; ++u) f(u, 0);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    const int thread = omp_get_thread_num();
#pragma omp for schedule(dynamic, 1)
    for (int64_t u = 0; u < units; ++u) f(u, thread);
  }
}

// Part i of n elements cut into `parts` of whole `grain`s, as even as they come: [begin(i), begin(i + 1)).
struct Cut {
  int64_t n, parts, grain = 1;
  int64_t begin(int64_t i) const {
    const int64_t grains = (n + grain - 1) / grain;
    const int64_t at = grains * i / parts * grain;
    return at < n ? at : n;
  }
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace carzero::cpu
