// The CUDA attention core as torch ops, through torch's stable ABI: the library loads beside any torch from 2.11 on, with
// or without CUDA. carzero/ops/cuda_core.py calls them.
//
// All write into tensors that they are given and wait for nothing, so that they can be captured in a CUDA graph.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <string>

#include "launch.h"

// Absent from CPU builds of torch, where no call gets that far.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace carzero::cuda {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

void check(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "carzero_cuda::", what, ": ", cudaGetErrorString(error), ".");
}

Device device_of(int index) {
  int bytes = 0, multiprocessors = 0;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, index), "shared memory");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, index), "multiprocessors");
  bool wgmma = false;
#ifdef CARZERO_CUDA_WGMMA
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, index), "compute capability");
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, index), "compute capability");
  wgmma = major == 9 && minor == 0;
#endif
  return {bytes, multiprocessors, wgmma};
}

cudaStream_t current_stream(int index) {
  void* stream = nullptr;
  STD_TORCH_CHECK(
      aoti_torch_get_current_cuda_stream != nullptr && aoti_torch_get_current_cuda_stream(index, &stream) == 0,
      "carzero_cuda: this torch has no current CUDA stream; it is a build without CUDA.");
  return static_cast<cudaStream_t>(stream);
}

const Kernels& kernels_of(const Tensor& q) {
  const ScalarType type = q.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half,
                  "carzero_cuda: q must be bfloat16 or float16; use another backend for other dtypes.");
  return type == ScalarType::Half ? f16_kernels : bf16_kernels;
}

// Rows of 16-byte pieces, as copies to shared memory read them.
void check_rows(const Tensor& x, const Tensor& q, const char* name) {
  STD_TORCH_CHECK(x.dim() == 3 && x.stride(2) == 1, "carzero_cuda: ", name, " must be [m, rows, D], D contiguous.");
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type() && x.get_device_index() == q.get_device_index(),
                  "carzero_cuda: ", name, " must have the dtype and the device of q.");
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(x.data_ptr()) % 16 == 0 && x.stride(0) % 8 == 0 && x.stride(1) % 8 == 0,
                  "carzero_cuda: rows of ", name, " must begin at multiples of 16 bytes; call .contiguous() on it.");
}

void check_whole(const Tensor& x, ScalarType type, int64_t numel, const Tensor& q, const char* name) {
  STD_TORCH_CHECK(x.is_contiguous() && x.scalar_type() == type && x.numel() == numel &&
                      x.get_device_index() == q.get_device_index(),
                  "carzero_cuda: ", name, " must be contiguous, on the device of q, of ", numel,
                  " elements of its dtype, got ", x.numel(), ".");
}

int narrow(int64_t x, int64_t most, const char* name) {
  STD_TORCH_CHECK(x >= 1 && x <= most, "carzero_cuda: ", name, " must lie in 1 .. ", most, ", got ", x, ".");
  return static_cast<int>(x);
}

Dropout dropout_of(const MaybeTensor& seed, const MaybeTensor& memory_index, const MaybeTensor& query_index,
                   int64_t threshold, int64_t layer, int64_t direction, int memories, int queries, const Tensor& q) {
  Dropout d{};
  if (threshold == 0) return d;
  STD_TORCH_CHECK(seed && memory_index && query_index,
                  "carzero_cuda: dropout needs seed, memory_index and query_index.");
  check_whole(*seed, ScalarType::Long, 1, q, "seed");
  check_whole(*memory_index, ScalarType::Long, memories, q, "memory_index");
  const bool shared = query_index->numel() == queries;
  check_whole(*query_index, ScalarType::Long, shared ? queries : static_cast<int64_t>(memories) * queries, q,
              "query_index");
  d.seed = static_cast<const int64_t*>(seed->data_ptr());
  d.memory_index = static_cast<const int64_t*>(memory_index->data_ptr());
  d.query_index = static_cast<const int64_t*>(query_index->data_ptr());
  d.query_memory = shared ? 0 : queries;
  d.threshold = static_cast<uint32_t>(narrow(threshold, 65535, "threshold"));
  d.keep = philox::keep_scale(d.threshold);
  d.layer = static_cast<int>(layer);
  d.direction = static_cast<int>(direction);
  return d;
}

// What forward and backward have in common.
template <class Call>
void fill(Call& c, const Tensor& q, const Tensor& k, const Tensor& v, int64_t heads, int64_t rows, int64_t width,
          int64_t most_rows, int64_t most_width, double scale, const MaybeTensor& count) {
  check_rows(q, q, "q");
  check_rows(k, q, "k");
  check_rows(v, q, "v");
  STD_TORCH_CHECK(k.size(0) == v.size(0) && k.size(1) == v.size(1) && k.stride(0) == v.stride(0) &&
                      k.stride(1) == v.stride(1),
                  "carzero_cuda: k and v must have the same shape and strides.");
  STD_TORCH_CHECK(q.size(0) == k.size(0) || q.size(0) == 1, "carzero_cuda: q must have 1 or ", k.size(0),
                  " memories, got ", q.size(0), ".");
  c.memories = narrow(k.size(0), 0x7FFFFFFF, "m");
  c.queries = narrow(q.size(1), 0x7FFFFF00, "Q");
  c.heads = narrow(heads, 65535, "heads");
  c.rows = narrow(rows, most_rows, "P");
  c.width = narrow(width, most_width, "the head width");
  STD_TORCH_CHECK(width % 16 == 0, "carzero_cuda: the head width must be a multiple of 16, got ", width, ".");
  c.q = q.data_ptr();
  c.q_memory = q.size(0) == 1 ? 0 : q.stride(0);
  c.q_row = q.stride(1);
  c.k = k.data_ptr();
  c.v = v.data_ptr();
  c.kv_memory = k.stride(0);
  c.kv_row = k.stride(1);
  c.scale = static_cast<float>(scale);
  if (count) {
    check_whole(*count, ScalarType::Int, static_cast<int64_t>(c.memories) * rows, q, "count");
    c.count = static_cast<const int32_t*>(count->data_ptr());
  }
}

float* floats(const Tensor& x, int64_t numel, const Tensor& q, const char* name) {
  check_whole(x, ScalarType::Float, numel, q, name);
  return static_cast<float*>(x.data_ptr());
}

void check_fits(const Launch& plan, const Device& device, const char* what) {
  STD_TORCH_CHECK(plan.grid.memories > 0 && plan.shared <= device.shared_bytes, "carzero_cuda::", what,
                  ": no kernel fits into ", device.shared_bytes, " bytes of shared memory; use another backend.");
}

void forward(bool absorbed, bool wgmma, ForwardCall& c, const Tensor& q, const char* what) {
  const int index = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  Device device = device_of(index);
  device.wgmma = device.wgmma && wgmma;
  const Launch plan = plan_forward(c, absorbed, device);
  check_fits(plan, device, what);
  const Kernels& kernels = kernels_of(q);
#ifdef CARZERO_CUDA_WGMMA
  if (plan.wgmma) return check(forward_wgmma(c, plan, &kernels == &f16_kernels, current_stream(index)), what);
#endif
  check(kernels.forward(c, plan, absorbed, current_stream(index)), what);
}

void attention_forward_op(const Tensor q, const Tensor k, const Tensor v, int64_t heads, double scale,
                          const MaybeTensor count, const Tensor out, const MaybeTensor logsumexp,
                          const MaybeTensor maps, const MaybeTensor seed, const MaybeTensor memory_index,
                          const MaybeTensor query_index, int64_t threshold, int64_t layer, int64_t direction,
                          bool wgmma) {
  ForwardCall c{};
  const int64_t width = heads > 0 ? q.size(2) / heads : 0;
  fill(c, q, k, v, heads, k.size(1), width, kMaxRows, kMaxWidth, scale, count);
  check_rows(out, q, "out");
  STD_TORCH_CHECK(out.size(0) == c.memories && out.size(1) == c.queries && out.size(2) == q.size(2),
                  "carzero_cuda::attention_forward: out must be [m, Q, D].");
  c.out = out.data_ptr();
  c.out_memory = out.stride(0);
  c.out_row = out.stride(1);
  const int64_t pairs = static_cast<int64_t>(c.memories) * c.queries;
  if (logsumexp) c.logsumexp = floats(*logsumexp, pairs * heads, q, "logsumexp");
  if (maps) c.maps = floats(*maps, pairs * c.rows, q, "maps");
  c.dropout = dropout_of(seed, memory_index, query_index, threshold, layer, direction, c.memories, c.queries, q);
  forward(false, wgmma, c, q, "attention_forward");
}

void attention_absorbed_op(const Tensor x, const Tensor keys, const Tensor values, const MaybeTensor key_bias,
                           int64_t heads, double scale, const MaybeTensor count, const Tensor out,
                           const MaybeTensor seed, const MaybeTensor memory_index, const MaybeTensor query_index,
                           int64_t threshold, int64_t layer, int64_t direction) {
  ForwardCall c{};
  STD_TORCH_CHECK(heads > 0 && keys.size(1) % heads == 0,
                  "carzero_cuda::attention_absorbed: keys must be [m, heads * P, D].");
  const int64_t rows = keys.size(1) / heads;
  fill(c, x, keys, values, heads, rows, x.size(2), kAbsorbedRows, 1024, scale, count);
  const int64_t pairs = static_cast<int64_t>(c.memories) * c.queries;
  c.out = floats(out, pairs * x.size(2), x, "out");
  c.out_memory = static_cast<int64_t>(c.queries) * x.size(2);
  c.out_row = x.size(2);
  c.out_float = true;
  if (key_bias) c.key_bias = floats(*key_bias, static_cast<int64_t>(c.memories) * keys.size(1), x, "key_bias");
  c.dropout = dropout_of(seed, memory_index, query_index, threshold, layer, direction, c.memories, c.queries, x);
  forward(true, false, c, x, "attention_absorbed");
}

void attention_backward_op(const Tensor d_out, const Tensor q, const Tensor k, const Tensor v, const Tensor out,
                           const Tensor logsumexp, int64_t heads, double scale, const MaybeTensor count,
                           const Tensor delta, const Tensor d_q, const Tensor d_k, const Tensor d_v,
                           const MaybeTensor seed, const MaybeTensor memory_index, const MaybeTensor query_index,
                           int64_t threshold, int64_t layer, int64_t direction, bool wgmma) {
  BackwardCall c{};
  const int64_t width = heads > 0 ? q.size(2) / heads : 0;
  fill(c, q, k, v, heads, k.size(1), width, kMaxRows, kMaxWidth, scale, count);
  const char* what = "attention_backward";
  check_rows(out, q, "out");
  check_rows(d_out, q, "d_out");
  STD_TORCH_CHECK(out.stride(0) == d_out.stride(0) && out.stride(1) == d_out.stride(1) &&
                      out.size(0) == c.memories && d_out.size(0) == c.memories && out.size(1) == c.queries &&
                      d_out.size(1) == c.queries && out.size(2) == q.size(2) && d_out.size(2) == q.size(2),
                  "carzero_cuda::attention_backward: out and d_out must be [m, Q, D] with the same strides.");
  c.out = out.data_ptr();
  c.d_out = d_out.data_ptr();
  c.out_memory = out.stride(0);
  c.out_row = out.stride(1);
  const int64_t pairs = static_cast<int64_t>(c.memories) * c.queries;
  c.logsumexp = floats(logsumexp, pairs * heads, q, "logsumexp");
  c.delta = floats(delta, pairs * heads, q, "delta");
  c.d_q = floats(d_q, pairs * q.size(2), q, "d_q");
  c.dq_memory = static_cast<int64_t>(c.queries) * q.size(2);
  c.dq_row = q.size(2);
  for (const Tensor* d : {&d_k, &d_v}) {
    STD_TORCH_CHECK(d->dim() == 3 && d->stride(2) == 1 && d->scalar_type() == ScalarType::Float &&
                        d->size(0) == c.memories && d->size(1) == c.rows && d->size(2) == q.size(2) &&
                        d->stride(0) == d_k.stride(0) && d->stride(1) == d_k.stride(1) &&
                        d->get_device_index() == q.get_device_index(),
                    "carzero_cuda::attention_backward: d_k and d_v must be float32 [m, P, D] with the same strides.");
  }
  c.d_k = static_cast<float*>(d_k.data_ptr());
  c.d_v = static_cast<float*>(d_v.data_ptr());
  c.dkv_memory = d_k.stride(0);
  c.dkv_row = d_k.stride(1);
  c.dropout = dropout_of(seed, memory_index, query_index, threshold, layer, direction, c.memories, c.queries, q);

  const int index = q.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(index);
  Device device = device_of(index);
  device.wgmma = device.wgmma && wgmma;
  const cudaStream_t stream = current_stream(index);
  const Kernels& kernels = kernels_of(q);
  Launch plan = plan_backward_wgmma(c, device);
#ifdef CARZERO_CUDA_WGMMA
  if (plan.wgmma) return check(backward_wgmma(c, plan, &kernels == &f16_kernels, stream), what);
#endif
  plan = plan_backward_queries(c, device);
  check_fits(plan, device, what);
  check(kernels.backward_queries(c, plan, stream), what);
  plan = plan_backward_keys(c, device);
  check_fits(plan, device, what);
  check(kernels.backward_keys(c, plan, stream), what);
}

#define CARZERO_MASKS_SCHEMA \
  "Tensor? seed, Tensor? memory_index, Tensor? query_index, int threshold, int layer, int direction"
#define CARZERO_DROPOUT_SCHEMA CARZERO_MASKS_SCHEMA ") -> ()"

}  // namespace

STABLE_TORCH_LIBRARY(carzero_cuda, m) {
  m.def(
      "attention_forward(Tensor q, Tensor k, Tensor v, int heads, float scale, Tensor? count, Tensor(a!) out, "
      "Tensor(b!)? logsumexp, Tensor(c!)? maps, " CARZERO_MASKS_SCHEMA ", bool wgmma=True) -> ()");
  m.def(
      "attention_absorbed(Tensor x, Tensor keys, Tensor values, Tensor? key_bias, int heads, float scale, "
      "Tensor? count, Tensor(a!) out, " CARZERO_DROPOUT_SCHEMA);
  m.def(
      "attention_backward(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor logsumexp, int heads, "
      "float scale, Tensor? count, Tensor(a!) delta, Tensor(b!) d_q, Tensor(c!) d_k, Tensor(d!) d_v, "
      CARZERO_MASKS_SCHEMA ", bool wgmma=True) -> ()");
}
STABLE_TORCH_LIBRARY_IMPL(carzero_cuda, CUDA, m) {
  m.impl("attention_forward", TORCH_BOX(&attention_forward_op));
  m.impl("attention_absorbed", TORCH_BOX(&attention_absorbed_op));
  m.impl("attention_backward", TORCH_BOX(&attention_backward_op));
}

}  // namespace carzero::cuda

// The architectures that the kernels were compiled for, comma-separated, and by which nvcc.
extern "C" __attribute__((visibility("default"))) const char* carzero_cuda_targets() { return CARZERO_CUDA_TARGETS; }
extern "C" __attribute__((visibility("default"))) const char* carzero_cuda_nvcc() { return CARZERO_CUDA_NVCC; }
