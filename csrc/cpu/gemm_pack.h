// Packing of the right operand, and the transposition of the left one for weight gradients.
//
// Both work on 32-bit words: a float, or two bf16 of neighbouring rows of the product's inner dimension, the upper row
// in the low half. Blocks of 8 x 8 words are transposed in registers.
#pragma once
#include "gemm_table.h"
#include "simd.h"

namespace carzero::cpu::CARZERO_ISA {

typedef uint32_t words8 __attribute__((vector_size(32)));
typedef int32_t index8 __attribute__((vector_size(32)));
typedef float float8 __attribute__((vector_size(32)));
typedef uint16_t short8 __attribute__((vector_size(16)));

#if defined(__clang__)
#define CARZERO_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CARZERO_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, index8{__VA_ARGS__})
#endif

CARZERO_INLINE void transpose8(words8 (&r)[8]) {
  words8 t[8], u[8];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = CARZERO_SHUFFLE(r[2 * i], r[2 * i + 1], 0, 8, 1, 9, 4, 12, 5, 13);
    t[2 * i + 1] = CARZERO_SHUFFLE(r[2 * i], r[2 * i + 1], 2, 10, 3, 11, 6, 14, 7, 15);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    u[i] = CARZERO_SHUFFLE(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    u[i + 1] = CARZERO_SHUFFLE(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    u[i + 2] = CARZERO_SHUFFLE(t[i + 1], t[i + 3], 0, 1, 8, 9, 4, 5, 12, 13);
    u[i + 3] = CARZERO_SHUFFLE(t[i + 1], t[i + 3], 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = CARZERO_SHUFFLE(u[i], u[i + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    r[i + 4] = CARZERO_SHUFFLE(u[i], u[i + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
}

// Eight consecutive elements as the bits of floats.
CARZERO_INLINE words8 float_bits8(const float* p) { return load_as<words8>(p); }

CARZERO_INLINE words8 float_bits8(const bf16* p) { return __builtin_convertvector(load_as<short8>(p), words8) << 16; }

CARZERO_INLINE words8 float_bits8(const half* p) {
#if defined(__F16C__)
  return (words8)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  words8 v{};
  for (int i = 0; i < 8; ++i) v[i] = __builtin_bit_cast(uint32_t, to_float(p[i]));
  return v;
#endif
}

// Eight consecutive elements as bf16 in the low halves.
template <class T>
CARZERO_INLINE words8 bf16_bits8(const T* p) {
  const words8 bits = float_bits8(p);
  const words8 rounded = (bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16;
  const words8 is_nan = (words8)((index8)(bits & 0x7FFFFFFFu) > 0x7F800000);
  return ((bits >> 16 | 0x40u) & is_nan) | (rounded & ~is_nan);
}

template <>
CARZERO_INLINE_SPECIALISATION words8 bf16_bits8<bf16>(const bf16* p) {
  return __builtin_convertvector(load_as<short8>(p), words8);
}

// A word from one or two elements `stride` apart, the second absent (zero) where `two` is false.
template <Operand operand, class T>
CARZERO_INLINE uint32_t word_at(const T* p, int64_t stride, bool two) {
  if constexpr (operand == Operand::f32) {
    return __builtin_bit_cast(uint32_t, to_float(*p));
  } else {
    const uint32_t low = from_float<bf16>(to_float(p[0])).bits;
    const uint32_t high = two ? from_float<bf16>(to_float(p[stride])).bits : 0u;
    return low | high << 16;
  }
}

// Eight words along the inner dimension, which is contiguous.
template <Operand operand, class T>
CARZERO_INLINE words8 words_along(const T* p) {
  if constexpr (operand == Operand::f32) {
    return float_bits8(p);
  } else if constexpr (__is_same(T, bf16)) {
    return load_as<words8>(p);
  } else {
    const words8 first = bf16_bits8(p), second = bf16_bits8(p + 8);
    return CARZERO_SHUFFLE(first, second, 0, 2, 4, 6, 8, 10, 12, 14) |
           CARZERO_SHUFFLE(first, second, 1, 3, 5, 7, 9, 11, 13, 15) << 16;
  }
}

// Eight words across the inner dimension: of neighbouring columns of one row (or of two rows, `stride` apart).
template <Operand operand, class T>
CARZERO_INLINE words8 words_across(const T* p, int64_t stride, bool two) {
  if constexpr (operand == Operand::f32) {
    return float_bits8(p);
  } else {
    words8 words = bf16_bits8(p);
    if (two) words |= bf16_bits8(p + stride) << 16;
    return words;
  }
}

// Columns n .. n + 7 of b, words 0 .. words - 1, to out[word][8] with rows kPanelWidth apart.
template <Operand operand, class T>
CARZERO_INLINE void pack_columns8(View<T> b, int64_t K, int64_t N, int64_t n, int64_t words, uint32_t* out) {
  constexpr int64_t per_word = operand == Operand::f32 ? 1 : 2;
  const int64_t columns = N - n < 8 ? N - n : 8;
  int64_t w = 0;
  if (b.row_stride == 1) {
    for (; (w + 8) * per_word <= K; w += 8) {
      words8 r[8];
      for (int64_t j = 0; j < 8; ++j) {
        r[j] = j < columns ? words_along<operand>(b.data + w * per_word + (n + j) * b.col_stride) : words8{};
      }
      transpose8(r);
      for (int64_t i = 0; i < 8; ++i) __builtin_memcpy(out + (w + i) * kPanelWidth, &r[i], sizeof(words8));
    }
  } else if (b.col_stride == 1 && columns == 8) {
    for (; w * per_word < K; ++w) {
      const T* row = b.data + w * per_word * b.row_stride + n;
      const words8 r = words_across<operand>(row, b.row_stride, (w + 1) * per_word <= K);
      __builtin_memcpy(out + w * kPanelWidth, &r, sizeof(words8));
    }
  }
  for (; w < words; ++w) {
    const int64_t k = w * per_word;
    for (int64_t j = 0; j < 8; ++j) {
      const T* p = b.data + k * b.row_stride + (n + j) * b.col_stride;
      out[w * kPanelWidth + j] = k < K && j < columns ? word_at<operand>(p, b.row_stride, k + per_word <= K) : 0u;
    }
  }
}

template <Operand operand, class T>
CARZERO_INLINE void pack_panels(View<T> b, int64_t K, int64_t N, void* packed, int64_t n0, int64_t n1) {
  const int64_t words = packed_words(K, operand);
  for (int64_t n = n0; n < n1; n += kPanelWidth) {
    uint32_t* panel = static_cast<uint32_t*>(packed) + n * words;
    pack_columns8<operand>(b, K, N, n, words, panel);
    pack_columns8<operand>(b, K, N, n + 8, words, panel + 8);
  }
}

template <class T>
void pack(View<T> b, int64_t K, int64_t N, Operand operand, void* packed, int64_t n0, int64_t n1) {
  if (operand == Operand::f32) {
    pack_panels<Operand::f32>(b, K, N, packed, n0, n1);
  } else {
    pack_panels<Operand::bf16>(b, K, N, packed, n0, n1);
  }
}

// y[R, n0..n1] to out[n - n0][R], float or bf16.
template <Operand operand, class T>
CARZERO_INLINE void transpose_to(const T* y, int64_t ldy, int64_t R, int64_t n0, int64_t n1, void* out) {
  constexpr int64_t per_word = operand == Operand::f32 ? 1 : 2;
  const int64_t words = (R + per_word - 1) / per_word;
  const int64_t stride = tn_stride(R, operand) / per_word;
  uint32_t* transposed = static_cast<uint32_t*>(out);
  int64_t n = n0;
  for (; n + 8 <= n1; n += 8) {
    uint32_t* rows = transposed + (n - n0) * stride;
    for (int64_t w = 0; w < words; w += 8) {
      words8 r[8];
      for (int64_t i = 0; i < 8; ++i) {
        const int64_t k = (w + i) * per_word;
        r[i] = k < R ? words_across<operand>(y + k * ldy + n, ldy, k + per_word <= R) : words8{};
      }
      transpose8(r);
      // the row stride leaves room for the words beyond R
      for (int64_t j = 0; j < 8; ++j) __builtin_memcpy(rows + j * stride + w, &r[j], sizeof(words8));
    }
  }
  for (; n < n1; ++n) {
    for (int64_t w = 0; w < words; ++w) {
      const int64_t k = w * per_word;
      transposed[(n - n0) * stride + w] = word_at<operand>(y + k * ldy + n, ldy, k + per_word <= R);
    }
  }
}

template <class T>
void transpose(const T* y, int64_t ldy, int64_t R, int64_t n0, int64_t n1, Operand operand, void* out) {
  if (operand == Operand::f32) {
    transpose_to<Operand::f32>(y, ldy, R, n0, n1, out);
  } else {
    transpose_to<Operand::bf16>(y, ldy, R, n0, n1, out);
  }
}

}  // namespace carzero::cpu::CARZERO_ISA
