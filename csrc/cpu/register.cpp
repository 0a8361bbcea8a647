// The operators of torch.ops.carzero_native, through torch's stable ABI: checks the tensors of a call and hands their
// pointers to the kernels. The only source of libcarzero_cpu.so that sees torch.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "pair_backward.h"
#include "pair_call.h"
#include "pair_forward.h"
#include "pair_weights.h"

namespace carzero::cpu {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Shape = torch::headeronly::IntHeaderOnlyArrayRef;

template <class T>
const T& shown(const T& value) {
  return value;
}

std::string shown(Shape shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
  std::ostringstream sentence;
  ((sentence << shown(parts)), ...);
  throw std::runtime_error(sentence.str());
}

// STD_TORCH_CHECK would put this file's path and line before the sentence.
#define CARZERO_CHECK(condition, ...) \
  if (!(condition)) refuse(__VA_ARGS__)

Dtype dtype_of(const char* function, const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Dtype::f32;
    case ScalarType::BFloat16: return Dtype::bf16;
    case ScalarType::Half: return Dtype::f16;
    default:
      refuse(function, ": ", name, " must be float32, bfloat16 or float16 on the cpp backend, got ", type,
             ". Use backend='torch' for other types.");
  }
}

Array array_of(const char* function, const char* name, const Tensor& t) {
  CARZERO_CHECK(t.is_cpu(), function, ": ", name, " must be on the CPU.");
  CARZERO_CHECK(t.is_contiguous(), function, ": ", name, " must be contiguous, got strides ", t.strides(), " for sizes ",
              t.sizes(), ".");
  return {t.const_data_ptr(), dtype_of(function, name, t.scalar_type())};
}

void check_shape(const char* function, const std::string& name, const Tensor& t, Shape shape) {
  CARZERO_CHECK(std::ranges::equal(t.sizes(), shape), function, ": ", name, " must have shape ", shape, ", got ", t.sizes(), ".");
}

// Sizes that the parameters' shapes tell: D, F, L and the head.
Dims dims_of(const char* function, const Tensors& params, int64_t heads, double eps, bool simr) {
  using I = ParameterIndex;
  const int64_t count = static_cast<int64_t>(params.size());
  const int64_t layers = (count - I::first_layer) / I::per_layer, head = (count - I::first_layer) % I::per_layer;
  CARZERO_CHECK(layers >= 1 && (head == 0 || head == 2 || head == 8), function, ": params must be 2 tensors, ",
              I::per_layer + 0, " for each layer and 0, 2 or 8 of the head, got ", count, ".");
  CARZERO_CHECK(simr || head > 0, function, ": logits need a head of 2 or 8 tensors, got none among ", count, ".");
  Dims dims;
  dims.D = params[0].numel();
  dims.L = layers;
  dims.H = heads;
  dims.eps = static_cast<float>(eps);
  CARZERO_CHECK(heads >= 1 && dims.D % heads == 0 && dims.D / heads % 16 == 0, function,
              ": the cpp backend needs a head width that is a multiple of 16, got width ", dims.D, " over ", heads,
              " heads. Use backend='torch'.");
  const Tensor& w1 = params[static_cast<size_t>(I::layer(0, I::w1))];
  CARZERO_CHECK(w1.dim() == 2, function, ": linear1_weight must be a matrix, got ", w1.sizes(), ".");
  dims.F = w1.size(0);
  if (!simr) {
    dims.head.push_back(dims.D);
    for (int64_t i = 0; i < head / 2; ++i) {
      const Tensor& w = params[static_cast<size_t>(I::first_layer + layers * I::per_layer + 2 * i)];
      CARZERO_CHECK(w.dim() == 2, function, ": head weight ", i, " must be a matrix, got ", w.sizes(), ".");
      dims.head.push_back(w.size(0));
    }
    CARZERO_CHECK(dims.head.back() == 1, function, ": the head must end in width 1, got ", dims.head.back(), ".");
  }
  const int64_t D = dims.D, F = dims.F;
  check_shape(function, "norm_weight", params[0], {D});
  check_shape(function, "norm_bias", params[1], {D});
  for (int64_t l = 0; l < layers; ++l) {
    const std::vector<std::vector<int64_t>> shapes = {{3 * D, D}, {3 * D}, {D, D}, {D}, {F, D}, {F},
                                                      {D, F},     {D},     {D},    {D}, {D},    {D}};
    for (int64_t i = 0; i < I::per_layer; ++i) {
      check_shape(function, "parameter " + std::to_string(i) + " of layer " + std::to_string(l),
                  params[static_cast<size_t>(I::first_layer + l * I::per_layer + i)], shapes[static_cast<size_t>(i)]);
    }
  }
  for (int64_t i = 0; i < dims.maps(); ++i) {
    const auto at = static_cast<size_t>(I::head(dims, i));
    const int64_t in = dims.head[static_cast<size_t>(i)], out = dims.head[static_cast<size_t>(i) + 1];
    check_shape(function, "head weight " + std::to_string(i), params[at], {out, in});
    check_shape(function, "head bias " + std::to_string(i), params[at + 1], {out});
  }
  return dims;
}

struct Arguments {
  const char* function;
  const Tensor& memory;
  bool projected;
  const Tensor& queries;
  const OptionalTensor& row_count;
  const OptionalTensor& pairs;
  const Tensors& params;
  const OptionalTensor& packed;
  int64_t heads;
  double eps, dropout_p;
  int64_t seed, direction, memory_offset, query_offset, tile_pairs;
  bool simr;
};

Call call_of(const Arguments& a) {
  const char* function = a.function;
  Call call;
  call.dims = dims_of(function, a.params, a.heads, a.eps, a.simr);
  Dims& dims = call.dims;
  const int64_t D = dims.D, L = dims.L;
  call.memory = array_of(function, "memory", a.memory);
  call.queries = array_of(function, "queries", a.queries);
  call.projected = a.projected;
  if (a.projected) {
    CARZERO_CHECK(a.memory.dim() == 5, function, ": projected memory must be [M, P, L, 2, D], got ", a.memory.sizes(),
                ".");
    check_shape(function, "projected memory", a.memory, {a.memory.size(0), a.memory.size(1), L, 2, D});
  } else {
    CARZERO_CHECK(a.memory.dim() == 3 && a.memory.size(2) == D, function, ": memory must be [M, P, ", D, "], got ",
                a.memory.sizes(), ".");
  }
  dims.M = a.memory.size(0);
  dims.P = a.memory.size(1);
  CARZERO_CHECK(a.queries.dim() == 2 && a.queries.size(1) == D, function, ": queries must be [Q, ", D, "], got ",
              a.queries.sizes(), ".");
  dims.Q = a.queries.size(0);
  CARZERO_CHECK(a.memory.scalar_type() == a.queries.scalar_type(), function,
              ": memory and queries must have one dtype, got ", a.memory.scalar_type(), " and ",
              a.queries.scalar_type(), ".");
  call.operand = native_operand(call.memory.dtype == Dtype::bf16);

  if (a.row_count.has_value()) {
    const Tensor& t = *a.row_count;
    CARZERO_CHECK(t.scalar_type() == ScalarType::Int && t.is_contiguous() && t.is_cpu(), function,
                ": row_count must be a contiguous int32 CPU tensor, got ", t.scalar_type(), t.is_cpu() ? "." : " on another device.");
    check_shape(function, "row_count", t, {dims.M, dims.P});
    call.row_count = t.const_data_ptr<int32_t>();
  }
  if (a.pairs.has_value()) {
    const Tensor& t = *a.pairs;
    CARZERO_CHECK(
        t.scalar_type() == ScalarType::Long && t.is_contiguous() && t.is_cpu() && t.dim() == 2 && t.size(1) == 2,
        function, ": pairs must be a contiguous int64 CPU tensor [N, 2], got ", t.scalar_type(), " ", t.sizes(), ".");
    call.pairs = t.const_data_ptr<int64_t>();
    call.pair_count = t.size(0);
    // an empty tensor has no address, and null means all pairs
    static const int64_t none[2] = {0, 0};
    if (call.pairs == nullptr) call.pairs = none;
    for (int64_t i = 0; i < call.pair_count; ++i) {
      const int64_t m = call.pairs[2 * i], q = call.pairs[2 * i + 1];
      CARZERO_CHECK(m >= 0 && m < dims.M && q >= 0 && q < dims.Q, function, ": pairs[", i, "] must lie within ", dims.M,
                  " memories and ", dims.Q, " queries, got (", m, ", ", q, ").");
    }
  }
  for (const Tensor& t : a.params) {
    call.parameters.push_back(array_of(function, "a parameter", t));
    CARZERO_CHECK(t.scalar_type() == a.params[0].scalar_type(), function, ": parameters must share one dtype, got ",
                a.params[0].scalar_type(), " and ", t.scalar_type(), ".");
  }
  if (a.packed.has_value()) {
    const Tensor& t = *a.packed;
    CARZERO_CHECK(t.scalar_type() == ScalarType::Byte && t.is_contiguous() && t.is_cpu(), function,
                ": packed must be a contiguous uint8 CPU tensor, got ", t.scalar_type(), t.is_cpu() ? "." : " on another device.");
    const std::string mismatch = blob_mismatch(t.const_data_ptr(), static_cast<size_t>(t.numel()), dims, call.operand);
    CARZERO_CHECK(mismatch.empty(), function, ": packed weights do not fit this call: ", mismatch,
                ". Pack the weights again for ", a.memory.scalar_type(), ".");
    call.packed = t.const_data_ptr();
  }
  CARZERO_CHECK(a.dropout_p >= 0.0 && a.dropout_p < 1.0, function, ": dropout_p must lie in [0, 1), got ", a.dropout_p,
              ".");
  call.drop_threshold = philox::threshold(a.dropout_p);
  call.key = philox::key_of(a.seed);
  CARZERO_CHECK(a.direction == 0 || a.direction == 1, function, ": direction must be 0 or 1, got ", a.direction, ".");
  call.direction = static_cast<int>(a.direction);
  call.memory_offset = static_cast<uint32_t>(a.memory_offset);
  call.query_offset = static_cast<uint32_t>(a.query_offset);
  CARZERO_CHECK(a.tile_pairs >= 0, function, ": tile_pairs must be at least 0 (automatic), got ", a.tile_pairs, ".");
  call.tile_pairs = a.tile_pairs;
  call.threads = static_cast<int>(torch::stable::get_num_threads());
  return call;
}

std::vector<int64_t> output_shape(const Call& call) {
  std::vector<int64_t> shape;
  if (call.pairs == nullptr) {
    shape = {call.dims.M, call.dims.Q};
  } else {
    shape = {call.pair_count};
  }
  if (call.dims.head.empty()) shape.push_back(call.dims.D);
  return shape;
}

// torch::stable::empty and zero_ look their operators up by name, which the tens of small tensors of a backward call feel.
Tensor empty(Shape shape, ScalarType type) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  using torch::stable::detail::from, torch::stable::detail::to;
  AtenTensorHandle handle = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.data(), strides.data(),
                                                  to<int32_t>(from(type)), aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

Tensor zeros(Shape shape, ScalarType type) {
  Tensor out = empty(shape, type);
  constexpr int64_t few = 1 << 15;  // larger ones are worth torch's threads
  if (out.numel() > few) return torch::stable::zero_(out);
  if (out.numel() > 0) std::memset(out.mutable_data_ptr(), 0, static_cast<size_t>(out.numel()) * out.element_size());
  return out;
}

Tensor forward(const Tensor& memory, bool projected, const Tensor& queries, const OptionalTensor& row_count,
               const OptionalTensor& pairs, const Tensors& params, const OptionalTensor& packed, int64_t heads,
               double eps, double dropout_p, int64_t seed, int64_t direction, int64_t memory_offset,
               int64_t query_offset, int64_t tile_pairs, bool simr) {
  const Call call =
      call_of({"carzero_native::pair_forward", memory, projected, queries, row_count, pairs, params, packed, heads, eps,
               dropout_p, seed, direction, memory_offset, query_offset, tile_pairs, simr});
  Tensor out = empty(output_shape(call), ScalarType::Float);
  pair_forward(call, out.mutable_data_ptr<float>());
  return out;
}

Tensors backward(const Tensor& grad, const Tensor& memory, bool projected, const Tensor& queries,
                             const OptionalTensor& row_count, const OptionalTensor& pairs, const Tensors& params,
                             const OptionalTensor& packed, int64_t heads, double eps, double dropout_p, int64_t seed,
                             int64_t direction, int64_t memory_offset, int64_t query_offset, int64_t tile_pairs,
                             bool simr) {
  const char* function = "carzero_native::pair_backward";
  CARZERO_CHECK(!projected, function, ": a projected memory has no gradient; pass the memory itself.");
  const Call call = call_of({function, memory, projected, queries, row_count, pairs, params, packed, heads, eps,
                             dropout_p, seed, direction, memory_offset, query_offset, tile_pairs, simr});
  CARZERO_CHECK(grad.scalar_type() == ScalarType::Float && grad.is_contiguous(), function,
              ": the gradient must be contiguous float32, got ", grad.scalar_type(), ".");
  check_shape(function, "the gradient", grad, output_shape(call));
  Gradients gradients;
  Tensors out{zeros(memory.sizes(), memory.scalar_type()),
              empty(queries.sizes(), queries.scalar_type())};
  gradients.memory = out[0].mutable_data_ptr();
  gradients.queries = out[1].mutable_data_ptr();
  // sums are kept in float32 and rounded once
  Tensors sums;
  for (const Tensor& p : params) {
    sums.push_back(zeros(p.sizes(), ScalarType::Float));
    gradients.parameters.push_back(sums.back().mutable_data_ptr<float>());
  }
  pair_backward(call, grad.const_data_ptr<float>(), gradients);
  for (size_t i = 0; i < sums.size(); ++i) {
    const Tensor sum = std::move(sums[i]);
    const ScalarType type = params[i].scalar_type();
    out.push_back(type == ScalarType::Float ? sum : torch::stable::to(sum, type));
  }
  return out;
}

Tensor attention(const Tensor& memory, bool projected, const Tensor& queries, const OptionalTensor& row_count,
                 const OptionalTensor& pairs, const Tensors& params, const OptionalTensor& packed, int64_t heads,
                 double eps, int64_t tile_pairs, int64_t original_rows) {
  const char* function = "carzero_native::pair_attention";
  const Call call = call_of({function, memory, projected, queries, row_count, pairs, params, packed, heads, eps, 0.0, 0,
                             0, 0, 0, tile_pairs, true});
  CARZERO_CHECK(original_rows >= (call.row_count == nullptr ? call.dims.P : 0), function,
              ": original_rows must be at least the memory's ", call.dims.P, " rows, got ", original_rows, ".");
  for (int64_t i = 0; call.row_count != nullptr && i < call.dims.M * call.dims.P; ++i) {
    const int64_t p = i % call.dims.P, n = call.row_count[i];
    CARZERO_CHECK(n <= 0 || p + n <= original_rows, function, ": row ", p, " stands for ", n,
                " rows, which must end within original_rows = ", original_rows, ".");
  }
  std::vector<int64_t> shape = output_shape(call);
  shape.insert(shape.begin(), call.dims.L);
  shape.back() = original_rows;
  Tensor out = zeros(shape, ScalarType::Float);
  pair_attention(call, original_rows, out.mutable_data_ptr<float>());
  return out;
}

Tensor pack(const Tensors& params, int64_t heads, ScalarType compute) {
  const char* function = "carzero_native::pack_weights";
  const bool simr =
      (static_cast<int64_t>(params.size()) - ParameterIndex::first_layer) % ParameterIndex::per_layer == 0;
  const Dims dims = dims_of(function, params, heads, 0.0, simr);
  const Operand operand = native_operand(dtype_of(function, "compute", compute) == Dtype::bf16);
  std::vector<Array> arrays;
  for (const Tensor& t : params) arrays.push_back(array_of(function, "a parameter", t));
  const std::vector<int64_t> bytes{static_cast<int64_t>(packed_weights_bytes(dims, operand, {true}))};
  Tensor blob = empty(bytes, ScalarType::Byte);
  pack_weights(arrays, dims, operand, {true}, static_cast<int>(torch::stable::get_num_threads()), blob.mutable_data_ptr());
  return blob;
}

}  // namespace
}  // namespace carzero::cpu

STABLE_TORCH_LIBRARY(carzero_native, m) {
  const std::string inputs =
      "Tensor memory, bool projected, Tensor queries, Tensor? row_count, Tensor? pairs, Tensor[] params, "
      "Tensor? packed, int heads, float eps, ";
  const std::string options =
      "float dropout_p, int seed, int direction, int memory_offset, int query_offset, int tile_pairs, bool simr";
  m.def(("pair_forward(" + inputs + options + ") -> Tensor").c_str());
  m.def(("pair_backward(Tensor grad, " + inputs + options + ") -> Tensor[]").c_str());
  m.def(("pair_attention(" + inputs + "int tile_pairs, int original_rows) -> Tensor").c_str());
  m.def("pack_weights(Tensor[] params, int heads, ScalarType compute) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(carzero_native, CPU, m) {
  m.impl("pair_forward", TORCH_BOX(&carzero::cpu::forward));
  m.impl("pair_backward", TORCH_BOX(&carzero::cpu::backward));
  m.impl("pair_attention", TORCH_BOX(&carzero::cpu::attention));
  m.impl("pack_weights", TORCH_BOX(&carzero::cpu::pack));
}
