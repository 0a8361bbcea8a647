// The 16-bit types as they lie in memory, and their scalar conversions. Vector conversions are in simd.h.
#pragma once
#include <cstdint>

#include "inline.h"

namespace carzero::cpu {

struct bf16 {
  uint16_t bits;
};

// IEEE binary16.
struct half {
  uint16_t bits;
};

CARZERO_INLINE float to_float(float x) { return x; }

CARZERO_INLINE float to_float(bf16 x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x.bits) << 16); }

CARZERO_INLINE float to_float(half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t rest = x.bits & 0x7FFFu;
  // moved into float32's fields the exponent is 112 too small; the exact product mends it, denormals included
  float magnitude = __builtin_bit_cast(float, rest << 13) * 0x1p112f;
  if (rest >= 0x7C00u) magnitude = __builtin_bit_cast(float, rest << 13 | 0x7F800000u);
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, magnitude) | sign);
}

template <class T>
CARZERO_INLINE T from_float(float x);

template <>
CARZERO_INLINE_SPECIALISATION float from_float<float>(float x) {
  return x;
}

// Round to nearest, ties to even; a NaN stays a (quiet) NaN.
template <>
CARZERO_INLINE_SPECIALISATION bf16 from_float<bf16>(float x) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>(bits >> 16 | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
}

}  // namespace carzero::cpu
