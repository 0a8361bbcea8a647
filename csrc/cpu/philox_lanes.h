// Philox for the row operations: the lanes of many columns of one (memory, query) pair at a time.
#pragma once
#include <cstdint>

#include "../philox.h"
#include "simd.h"

namespace carzero::cpu::CARZERO_ISA {

// Products of the low words of the 64-bit lanes; their high words are ignored.
CARZERO_INLINE vl multiply_low_words(vl a, uint32_t m) {
#if CARZERO_VECTOR_BYTES == 64 && defined(__AVX512F__)
  return (vl)_mm512_mul_epu32((__m512i)a, _mm512_set1_epi64(m));
#elif CARZERO_VECTOR_BYTES == 32 && defined(__AVX2__)
  return (vl)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#elif CARZERO_VECTOR_BYTES == 16 && defined(__SSE2__)
  return (vl)_mm_mul_epu32((__m128i)a, _mm_set1_epi64x(m));
#else
  return (a & 0xFFFFFFFFu) * static_cast<uint64_t>(m);
#endif
}

#if defined(__clang__)
#define CARZERO_INTERLEAVE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CARZERO_INTERLEAVE(a, b, ...) __builtin_shuffle(a, b, vl{__VA_ARGS__})
#endif

// a0, b0, a1, b1, ... of the first, and of the second half of the lanes.
CARZERO_INLINE vl interleave_first(vl a, vl b) {
#if CARZERO_VECTOR_BYTES == 64
  return CARZERO_INTERLEAVE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#elif CARZERO_VECTOR_BYTES == 32
  return CARZERO_INTERLEAVE(a, b, 0, 4, 1, 5);
#else
  return CARZERO_INTERLEAVE(a, b, 0, 2);
#endif
}

CARZERO_INLINE vl interleave_second(vl a, vl b) {
#if CARZERO_VECTOR_BYTES == 64
  return CARZERO_INTERLEAVE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#elif CARZERO_VECTOR_BYTES == 32
  return CARZERO_INTERLEAVE(a, b, 2, 6, 3, 7);
#else
  return CARZERO_INTERLEAVE(a, b, 1, 3);
#endif
}

// Counters a vector holds: one a 64-bit lane, the word in its low half and rubbish in its high half.
inline constexpr int kCounters = CARZERO_VECTOR_BYTES / 8;

// The 16-bit lanes of columns 8 * first_block .. 8 * (first_block + blocks) - 1, in order: 8 * blocks numbers at `out`.
CARZERO_INLINE void philox_lanes(philox::Key key, uint32_t c0, uint32_t memory, uint32_t query, int64_t first_block,
                                 int64_t blocks, uint16_t* out) {
  for (int64_t done = 0; done < blocks; done += 2 * kCounters) {
    // two independent chains hide the latency of the multiplications
    vl x0[2], x1[2], x2[2], x3[2];
    for (int j = 0; j < 2; ++j) {
      x0[j] = vl{} + c0;
      x1[j] = vl{} + memory;
      x2[j] = vl{} + query;
      for (int i = 0; i < kCounters; ++i) x3[j][i] = static_cast<uint64_t>(first_block + done + j * kCounters + i);
    }
    uint32_t k0 = key.lo, k1 = key.hi;
#pragma GCC unroll 10
    for (int round = 0; round < philox::kRounds; ++round) {
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        const vl p0 = multiply_low_words(x0[j], philox::M0);
        const vl p1 = multiply_low_words(x2[j], philox::M1);
        x0[j] = (p1 >> 32) ^ x1[j] ^ static_cast<uint64_t>(k0);
        x1[j] = p1;
        x2[j] = (p0 >> 32) ^ x3[j] ^ static_cast<uint64_t>(k1);
        x3[j] = p0;
      }
      k0 += philox::W0;
      k1 += philox::W1;
    }
    uint64_t words[2 * 2 * kCounters];
    for (int j = 0; j < 2; ++j) {
      const vl low = (x0[j] & 0xFFFFFFFFu) | x1[j] << 32;
      const vl high = (x2[j] & 0xFFFFFFFFu) | x3[j] << 32;
      // low and high of the first counter, of the second, ...
      const vl first = interleave_first(low, high), second = interleave_second(low, high);
      __builtin_memcpy(words + j * 2 * kCounters, &first, sizeof(vl));
      __builtin_memcpy(words + j * 2 * kCounters + kCounters, &second, sizeof(vl));
    }
    const int64_t valid = blocks - done < 2 * kCounters ? blocks - done : 2 * kCounters;
    __builtin_memcpy(out + 8 * done, words, static_cast<size_t>(valid) * 16);
  }
}

// x * scale where the element's lane is at least t, else 0. Reads kLanes lanes.
CARZERO_INLINE vf dropped_out(vf x, const uint16_t* lanes, uint32_t t, float scale) {
  const vi lane = (vi) __builtin_convertvector(load_as<vh>(lanes), vu);
  return keep_where(lane >= static_cast<int32_t>(t), x * scale);
}

}  // namespace carzero::cpu::CARZERO_ISA
