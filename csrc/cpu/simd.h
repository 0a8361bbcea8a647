// Vectors of 32-bit lanes in the width of the instruction set this file is compiled for, on GCC/Clang vector extensions.
//
// Only for *_isa.cpp files (see isa.h). Loads and stores need no alignment. a * b + c is fused where the set has FMA.
#pragma once
#include <cstdint>

#include "bf16.h"
#include "inline.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#ifndef CARZERO_ISA
#error "simd.h: CARZERO_ISA is not defined; only files listed per instruction set in CMakeLists.txt may include it"
#endif
#ifndef CARZERO_VECTOR_BYTES
#if defined(__AVX512F__)
#define CARZERO_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define CARZERO_VECTOR_BYTES 32
#else
#define CARZERO_VECTOR_BYTES 16
#endif
#endif

namespace carzero::cpu::CARZERO_ISA {

inline constexpr int kLanes = CARZERO_VECTOR_BYTES / 4;

typedef float vf __attribute__((vector_size(CARZERO_VECTOR_BYTES)));
typedef int32_t vi __attribute__((vector_size(CARZERO_VECTOR_BYTES)));
typedef uint32_t vu __attribute__((vector_size(CARZERO_VECTOR_BYTES)));
typedef uint16_t vh __attribute__((vector_size(CARZERO_VECTOR_BYTES / 2)));
typedef uint64_t vl __attribute__((vector_size(CARZERO_VECTOR_BYTES)));

template <class V, class T>
CARZERO_INLINE V load_as(const T* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

CARZERO_INLINE vf load(const float* p) { return load_as<vf>(p); }
CARZERO_INLINE void store(float* p, vf v) { __builtin_memcpy(p, &v, sizeof(v)); }
CARZERO_INLINE vf broadcast(float x) { return x - vf{}; }
CARZERO_INLINE vu broadcast_u32(uint32_t x) { return x + vu{}; }
CARZERO_INLINE vf as_float(vu v) { return (vf)v; }
CARZERO_INLINE vu as_bits(vf v) { return (vu)v; }

// 0, 1, 2, ...
CARZERO_INLINE vi lane_index() {
  vi v{};
  for (int i = 0; i < kLanes; ++i) v[i] = i;
  return v;
}

// Where `mask` is all ones a, where it is zero b. Comparisons (a < b) give such masks.
CARZERO_INLINE vf select(vi mask, vf a, vf b) { return (vf)(((vi)a & mask) | ((vi)b & ~mask)); }
CARZERO_INLINE vf keep_where(vi mask, vf a) { return (vf)((vi)a & mask); }

// As the instruction does: the second operand where either is NaN.
CARZERO_INLINE vf max(vf a, vf b) {
#if CARZERO_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#elif CARZERO_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return a > b ? a : b;
#endif
}

CARZERO_INLINE vf min(vf a, vf b) {
#if CARZERO_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (vf)_mm512_min_ps((__m512)a, (__m512)b);
#elif CARZERO_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (vf)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return a < b ? a : b;
#endif
}

// The first n lanes (0 <= n <= kLanes) of memory, `fill` in the others; never touches p[n].
CARZERO_INLINE vf load_first(const float* p, int n, float fill = 0.0f) {
  float buffer[kLanes];
  for (int i = 0; i < kLanes; ++i) buffer[i] = fill;
  for (int i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

CARZERO_INLINE void store_first(float* p, vf v, int n) {
  float buffer[kLanes];
  store(buffer, v);
  for (int i = 0; i < n; ++i) p[i] = buffer[i];
}

// Sum of the lanes, pairwise.
CARZERO_INLINE float hsum(vf v) {
  float x[kLanes];
  store(x, v);
#pragma GCC unroll 8
  for (int half_width = kLanes / 2; half_width > 0; half_width /= 2) {
    for (int i = 0; i < half_width; ++i) x[i] += x[i + half_width];
  }
  return x[0];
}

CARZERO_INLINE float hmax(vf v) {
  float x[kLanes];
  store(x, v);
#pragma GCC unroll 8
  for (int half_width = kLanes / 2; half_width > 0; half_width /= 2) {
    for (int i = 0; i < half_width; ++i) x[i] = x[i] > x[i + half_width] ? x[i] : x[i + half_width];
  }
  return x[0];
}

// 16-bit memory. kLanes elements.
CARZERO_INLINE vf load(const bf16* p) {
  return as_float(__builtin_convertvector(load_as<vh>(p), vu) << 16);
}

CARZERO_INLINE vf load(const half* p) {
#if CARZERO_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif CARZERO_VECTOR_BYTES == 32 && defined(__F16C__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  vf v{};
  for (int i = 0; i < kLanes; ++i) v[i] = to_float(p[i]);
  return v;
#endif
}

// bf16 bits in the low half of each lane: nearest, ties to even, NaN stays NaN. The same bits on every set.
CARZERO_INLINE vu bf16_bits(vf v) {
  const vu bits = as_bits(v);
  const vu rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const vu quiet = bits >> 16 | 0x40u;
  const vi is_nan = v != v;
  return (quiet & (vu)is_nan) | (rounded & ~(vu)is_nan);
}

CARZERO_INLINE void store(bf16* p, vf v) {
  const vh bits = __builtin_convertvector(bf16_bits(v), vh);
  __builtin_memcpy(p, &bits, sizeof(bits));
}

// e^x: relative error below 2 ulp; 0 below -87.33 (float32's normal range), -inf included; inf above 88.72; NaN stays.
CARZERO_INLINE vf exp(vf x) {
  const vf bounded = min(broadcast(89.0f), max(broadcast(-88.0f), x));
  // adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits
  const vf shifter = broadcast(12582912.0f);
  const vf shifted = bounded * 1.44269504088896341f + shifter;
  const vf n = shifted - shifter;
  const vf r = bounded - n * 0.693145751953125f - n * 1.42860682030941723e-6f;
  vf p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n as two factors: n = 128 or -127 alone would not be representable
  const vi whole = (vi)shifted - (vi)shifter;
  const vi half_n = whole >> 1;
  const vf y = p * (vf)((half_n + 127) << 23) * (vf)((whole - half_n + 127) << 23);
  const vf in_range = keep_where(~(x < broadcast(-87.33654f)), y);
  const vf bounded_above = select(x > broadcast(88.72283f), broadcast(__builtin_inff()), in_range);
  return select(x != x, x, bounded_above);
}

}  // namespace carzero::cpu::CARZERO_ISA
