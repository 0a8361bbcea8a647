// The Python module carzero._C: build facts, CPU features, and plain doors to the native parts for tests and benchmarks.
// Loading it loads libcarzero_cpu.so, which registers the operators of csrc/cpu/register.cpp.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <ctime>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/gemm.h"
#include "cpu/gemm_table.h"
#include "cpu/isa.h"
#include "cpu/plan.h"
#include "cpu/probe.h"
#include "philox.h"

namespace py = pybind11;
using namespace carzero;

namespace {

py::dict build_info() {
  std::vector<std::string> isas;
  for (cpu::Isa isa : cpu::built_isas()) isas.emplace_back(cpu::isa_name(isa));
  py::dict d;
  d["compiler"] = CARZERO_COMPILER;
  d["cxx_flags"] = CARZERO_CXX_FLAGS;
  d["build_type"] = CARZERO_BUILD_TYPE;
  d["torch_version"] = CARZERO_TORCH_VERSION;
  d["isas"] = isas;
#ifdef _OPENMP
  d["openmp"] = true;
#else
  d["openmp"] = false;
#endif
  return d;
}

py::dict cpu_features() {
  const cpu::CpuFeatures& f = cpu::cpu_features();
  py::dict d;
  d["avx2"] = f.avx2;
  d["fma"] = f.fma;
  d["f16c"] = f.f16c;
  d["avx512f"] = f.avx512f;
  d["avx512bw"] = f.avx512bw;
  d["avx512vl"] = f.avx512vl;
  d["avx512dq"] = f.avx512dq;
  d["avx512_bf16"] = f.avx512_bf16;
  d["amx_tile"] = f.amx_tile;
  d["amx_bf16"] = f.amx_bf16;
  return d;
}

// A float32 or 16-bit (uint16: raw bits) array of two dimensions with any strides.
template <class T>
cpu::View<T> view(const py::array& a) {
  const auto size = static_cast<py::ssize_t>(sizeof(T));
  return {static_cast<const T*>(a.data()), a.strides(0) / size, a.strides(1) / size};
}

cpu::Operand operand_by_name(const std::string& name) {
  if (name == "f32") return cpu::Operand::f32;
  if (name == "bf16") return cpu::Operand::bf16;
  throw py::value_error("carzero._C: operand must be 'f32' or 'bf16', got '" + name + "'.");
}

// Makes an instruction set the selected one while it lives.
class IsaScope {
 public:
  explicit IsaScope(const std::optional<std::string>& name) : active_(name.has_value()) {
    if (active_) cpu::force_isa(cpu::isa_by_name(*name));
  }
  ~IsaScope() {
    if (active_) cpu::reset_isa();
  }
  IsaScope(const IsaScope&) = delete;
  IsaScope& operator=(const IsaScope&) = delete;

 private:
  bool active_;
};

void require(bool holds, const std::string& sentence) {
  if (!holds) throw py::value_error("carzero._C: " + sentence);
}

void check_operand(cpu::Operand operand) {
  require(operand == cpu::Operand::f32 || cpu::multiplies_bf16(),
          std::string("bf16 operands need an instruction set that multiplies them; '") +
              cpu::isa_name(cpu::selected_isa()) + "' does not.");
}

// `out` is a uint8 array, written in place so that tests can put guards around it.
void pack_into(const py::array& b, const std::string& type, const std::string& operand_name, py::array_t<uint8_t> out,
               int64_t n0, int64_t n1, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  const cpu::Operand operand = operand_by_name(operand_name);
  const int64_t K = b.shape(0), N = b.shape(1);
  require(static_cast<size_t>(out.nbytes()) == cpu::packed_bytes(K, N, operand), "pack_b: out has the wrong size.");
  void* packed = out.mutable_data();
  if (type == "f32") {
    cpu::pack_b(view<float>(b), K, N, operand, packed, n0, n1);
  } else if (type == "bf16") {
    cpu::pack_b(view<cpu::bf16>(b), K, N, operand, packed, n0, n1);
  } else {
    require(type == "f16", "pack_b: type must be 'f32', 'bf16' or 'f16', got '" + type + "'.");
    cpu::pack_b(view<cpu::half>(b), K, N, operand, packed, n0, n1);
  }
}

// Processor time of this thread: other processes' turns do not count.
double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Multiplies `repeat` times and returns the processor seconds of each, without Python's.
std::vector<double> gemm_into(const py::array& a, const py::array_t<uint8_t>& packed, int64_t N,
                              const std::string& operand_name, py::array_t<float> c, bool accumulate, int64_t n0,
                              int64_t n1, const std::optional<std::string>& isa, int repeat) {
  const IsaScope scope(isa);
  const cpu::Operand operand = operand_by_name(operand_name);
  check_operand(operand);
  const int64_t item = operand == cpu::Operand::f32 ? 4 : 2;
  const int64_t rows = a.shape(0), K = a.shape(1);
  require(a.itemsize() == item && (a.strides(1) == item || K < 2), "gemm: a needs unit column stride and its operand's type.");
  require(static_cast<size_t>(packed.nbytes()) == cpu::packed_bytes(K, N, operand), "gemm: packed has the wrong size.");
  require(c.shape(0) == rows && c.shape(1) == N, "gemm: c must be [rows, N].");
  const cpu::PackedB b{K, N, operand, packed.data()};
  float* out = c.mutable_data();
  std::vector<double> seconds;
  const py::gil_scoped_release release;
  for (int i = 0; i < repeat; ++i) {
    const double start = thread_seconds();
    cpu::gemm(a.data(), a.strides(0) / item, rows, b, out, c.strides(0) / 4, accumulate, n0, n1);
    seconds.push_back(thread_seconds() - start);
  }
  return seconds;
}

// c[N, K] (+)= y[R, N]^T x[R, K] for rows n0..n1 of c.
void gemm_tn_into(const py::array& y, const std::string& type, const py::array_t<uint8_t>& packed, int64_t K,
                  const std::string& operand_name, py::array_t<float> c, bool accumulate, int64_t n0, int64_t n1,
                  py::array_t<uint8_t> scratch, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  const cpu::Operand operand = operand_by_name(operand_name);
  check_operand(operand);
  const int64_t R = y.shape(0);
  require(static_cast<size_t>(packed.nbytes()) == cpu::packed_bytes(R, K, operand), "gemm_tn: packed has the wrong size.");
  require(static_cast<size_t>(scratch.nbytes()) == cpu::tn_scratch_bytes(R, n1 - n0, operand),
          "gemm_tn: scratch has the wrong size.");
  const cpu::PackedB x{R, K, operand, packed.data()};
  const int64_t ldc = c.strides(0) / 4;
  if (type == "f32") {
    cpu::gemm_tn(static_cast<const float*>(y.data()), y.strides(0) / 4, x, c.mutable_data(), ldc, accumulate, n0, n1,
                 scratch.mutable_data());
  } else {
    cpu::gemm_tn(static_cast<const cpu::bf16*>(y.data()), y.strides(0) / 2, x, c.mutable_data(), ldc, accumulate, n0, n1,
                 scratch.mutable_data());
  }
}

// How a forward call over all pairs would be cut.
py::dict plan_tiles(int64_t memories, int64_t queries, int64_t keys, int64_t D, int64_t H, int64_t F, int64_t L, int threads,
                    bool weights_packed, int64_t tile_pairs) {
  require(memories > 0 && queries > 0 && keys > 0 && D > 0 && H > 0 && F > 0 && L > 0 && threads > 0,
          "plan_tiles: every size must be positive.");
  cpu::Dims dims;
  dims.M = memories;
  dims.Q = queries;
  dims.P = keys;
  dims.D = D;
  dims.H = H;
  dims.F = F;
  dims.L = L;
  cpu::Load load;
  load.memories = memories;
  load.keys = memories * keys;
  load.most_keys = keys;
  load.rows = memories * queries;
  load.row_keys = static_cast<double>(load.rows) * static_cast<double>(keys);
  const cpu::AttentionCost cost = cpu::attention_cost(dims, load);
  py::dict d;
  d["absorb"] = cpu::absorption_pays(dims, load, weights_packed);
  d["multiply_adds_plain"] = cost.plain;
  d["multiply_adds_absorbed"] = cost.absorbed;
  d["forward_tile_rows"] = cpu::forward_tile_rows(load.rows, threads, tile_pairs);
  return d;
}

py::array_t<uint32_t> philox_words(int64_t seed, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, int64_t n) {
  py::array_t<uint32_t> out({n, int64_t{4}});
  uint32_t* p = out.mutable_data();
  for (int64_t i = 0; i < n; ++i) {
    const philox::Words words = philox::words(philox::key_of(seed), c0, c1, c2, c3 + static_cast<uint32_t>(i));
    for (int j = 0; j < 4; ++j) p[4 * i + j] = words.w[j];
  }
  return out;
}

py::object philox_lanes(int64_t seed, int site, int layer, int direction, int head, int64_t memory,
                                   int64_t query, int64_t columns, int64_t first_block,
                                   const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  const int64_t blocks = (columns + 7) / 8;
  py::array_t<uint16_t> out(blocks * 8);
  cpu::probe().philox_lanes(philox::key_of(seed), philox::stream(static_cast<Site>(site), layer, direction, head),
                                   static_cast<uint32_t>(memory), static_cast<uint32_t>(query), first_block, blocks,
                                   out.mutable_data());
  return out[py::slice(0, columns, 1)];
}

using FloatArray = py::array_t<float, py::array::c_style | py::array::forcecast>;
using WordArray = py::array_t<uint16_t, py::array::c_style>;

py::array_t<float> drop_out(const FloatArray& x, const WordArray& lanes, uint32_t t, float scale,
                            const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  require(lanes.size() >= x.size() + 16, "drop_out: lanes must be readable 16 elements beyond x.");
  py::array_t<float> y(x.size());
  cpu::probe().drop_out(x.data(), lanes.data(), t, scale, y.mutable_data(), x.size());
  return y;
}

py::array_t<float> vector_exp(const FloatArray& x, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  py::array_t<float> y(x.size());
  cpu::probe().exp(x.data(), y.mutable_data(), x.size());
  return y;
}

py::tuple vector_reduce(const FloatArray& x, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  float sum, largest;
  cpu::probe().reduce(x.data(), x.size(), &sum, &largest);
  return py::make_tuple(sum, largest);
}

WordArray float_to_bf16(const FloatArray& x, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  WordArray y(x.size());
  cpu::probe().to_bf16(x.data(), reinterpret_cast<cpu::bf16*>(y.mutable_data()), x.size());
  return y;
}

FloatArray bits_to_float(const WordArray& x, const std::string& type, const std::optional<std::string>& isa) {
  const IsaScope scope(isa);
  FloatArray y(x.size());
  if (type == "bf16") {
    cpu::probe().from_bf16(reinterpret_cast<const cpu::bf16*>(x.data()), y.mutable_data(), x.size());
  } else {
    require(type == "f16", "bits_to_float: type must be 'bf16' or 'f16', got '" + type + "'.");
    cpu::probe().from_half(reinterpret_cast<const cpu::half*>(x.data()), y.mutable_data(), x.size());
  }
  return y;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (!modules.contains("torch")) {
    throw py::import_error("carzero._C: torch must be imported before it; run `import torch` first.");
  }
  m.doc() = "Doors for tests and benchmarks into libcarzero_cpu.so, and facts about it.";
  m.def("build_info", &build_info, "Compiler, flags, instruction sets and torch version of this build.");
  m.def("cpu_features", &cpu_features, "Instruction set extensions that this CPU and its operating system run.");
  m.def(
      "selected_isa",
      [] {
        const cpu::IsaChoice& choice = cpu::isa_choice();
        return py::make_tuple(cpu::isa_name(choice.isa), choice.reason);
      },
      "(name, reason) of the instruction set in use.");
  m.def("built_isas", [] {
    std::vector<py::tuple> all;
    for (cpu::Isa isa : cpu::built_isas()) {
      const bool runs = cpu::cpu_runs(isa);
      all.push_back(py::make_tuple(cpu::isa_name(isa), runs, runs && cpu::gemm_kernels(isa).multiplies_bf16));
    }
    return all;
  }, "(name, whether this CPU runs it, whether it multiplies bf16) of each instruction set of this build.");
  m.def("reset_isa", &cpu::reset_isa, "Makes the next call read CARZERO_CPU_ISA again; for tests.");

  m.def("packed_bytes", [](int64_t K, int64_t N, const std::string& operand) {
    return cpu::packed_bytes(K, N, operand_by_name(operand));
  });
  m.def("tn_scratch_bytes", [](int64_t R, int64_t columns, const std::string& operand) {
    return cpu::tn_scratch_bytes(R, columns, operand_by_name(operand));
  });
  m.def("pack_b", &pack_into, py::arg("b"), py::arg("type"), py::arg("operand"), py::arg("out").noconvert(), py::arg("n0"),
        py::arg("n1"), py::arg("isa") = py::none());
  m.def("gemm", &gemm_into, py::arg("a"), py::arg("packed").noconvert(), py::arg("N"), py::arg("operand"),
        py::arg("c").noconvert(), py::arg("accumulate"), py::arg("n0"), py::arg("n1"), py::arg("isa") = py::none(),
        py::arg("repeat") = 1, "Writes into c; returns the processor seconds of each repetition.");
  m.def("gemm_tn", &gemm_tn_into, py::arg("y"), py::arg("type"), py::arg("packed").noconvert(), py::arg("K"),
        py::arg("operand"), py::arg("c").noconvert(), py::arg("accumulate"), py::arg("n0"), py::arg("n1"),
        py::arg("scratch").noconvert(), py::arg("isa") = py::none());
  m.def("plan_tiles", &plan_tiles, py::arg("memories"), py::arg("queries"), py::arg("keys"), py::arg("D"), py::arg("H"),
        py::arg("F"), py::arg("L"), py::arg("threads"), py::arg("weights_packed") = true, py::arg("tile_pairs") = 0,
        "How a forward call over all pairs, with `keys` rows a memory, would be cut.");
  m.def("philox_words", &philox_words, py::arg("seed"), py::arg("c0"), py::arg("c1"), py::arg("c2"), py::arg("c3"),
        py::arg("n"), "The words of counters c3 .. c3 + n - 1, uint32 [n, 4].");
  m.def("philox_lanes", &philox_lanes, py::arg("seed"), py::arg("site"), py::arg("layer"), py::arg("direction"),
        py::arg("head"), py::arg("memory"), py::arg("query"), py::arg("columns"), py::arg("first_block") = 0,
        py::arg("isa") = py::none(), "The 16-bit lanes of one pair's columns, as the row operations draw them.");
  m.def("philox_threshold", &philox::threshold, py::arg("p"));
  m.def("philox_keep_scale", &philox::keep_scale, py::arg("threshold"));
  m.def("drop_out", &drop_out, py::arg("x"), py::arg("lanes"), py::arg("threshold"), py::arg("scale"),
        py::arg("isa") = py::none());
  m.def("vector_exp", &vector_exp, py::arg("x"), py::arg("isa") = py::none());
  m.def("vector_reduce", &vector_reduce, py::arg("x"), py::arg("isa") = py::none());
  m.def("float_to_bf16", &float_to_bf16, py::arg("x"), py::arg("isa") = py::none());
  m.def("bits_to_float", &bits_to_float, py::arg("x"), py::arg("type"), py::arg("isa") = py::none());
}
