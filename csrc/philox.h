// Counter-based random numbers: Philox 4x32-10, the same bits as carzero/ops/rng.py, for C++ and CUDA.
//
// Key: the low and the high word of the 64-bit seed. Counter words:
//   site | layer << 8 | direction << 16 | head << 17,  global memory index,  global query index,  column >> 3
// A call's four words are eight 16-bit lanes, low half first: those of columns 8c .. 8c+7. An element is kept where its
// lane is at least t = round(65536 p), and scaled by 65536 / (65536 - t).
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once
#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define CARZERO_HOST_DEVICE __host__ __device__ __forceinline__
#else
// always_inline: the header is compiled once per instruction set, and an out-of-line copy would be shared between them.
#define CARZERO_HOST_DEVICE static inline __attribute__((always_inline))
#endif

namespace carzero {

// Where a mask is applied.
enum class Site : uint32_t {
  attention = 0,
  after_out_projection = 1,
  ffn_hidden = 2,
  after_ffn = 3,
  before_head = 4,
  head_hidden_1 = 5,
  head_hidden_2 = 6,
  head_hidden_3 = 7,
};

namespace philox {

inline constexpr uint32_t M0 = 0xD2511F53u, M1 = 0xCD9E8D57u;
inline constexpr uint32_t W0 = 0x9E3779B9u, W1 = 0xBB67AE85u;
inline constexpr int kRounds = 10;

struct Words {
  uint32_t w[4];
};

struct Key {
  uint32_t lo, hi;
};

CARZERO_HOST_DEVICE Key key_of(int64_t seed) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return {static_cast<uint32_t>(bits), static_cast<uint32_t>(bits >> 32)};
}

// The first counter word.
CARZERO_HOST_DEVICE uint32_t stream(Site site, int layer, int direction, int head) {
  return static_cast<uint32_t>(site) | static_cast<uint32_t>(layer) << 8 | static_cast<uint32_t>(direction) << 16 |
         static_cast<uint32_t>(head) << 17;
}

// Ten rounds.
CARZERO_HOST_DEVICE Words words(Key key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
  for (int round = 0; round < kRounds; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(c0) * M0;
    const uint64_t p1 = static_cast<uint64_t>(c2) * M1;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key.lo;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key.hi;
    c3 = static_cast<uint32_t>(p0);
    key.lo += W0;
    key.hi += W1;
  }
  return {{c0, c1, c2, c3}};
}

// Lane of column `column & 7`.
CARZERO_HOST_DEVICE uint32_t lane(const Words& words, int64_t column) {
  const uint32_t word = words.w[(column & 7) >> 1];
  return (column & 1) ? word >> 16 : word & 0xFFFFu;
}

// t = round(65536 p), half to even as Python rounds; lanes below it are dropped.
CARZERO_HOST_DEVICE uint32_t threshold(double p) {
  const double t = nearbyint(65536.0 * p);
  return t > 65535.0 ? 65535u : static_cast<uint32_t>(t);
}

// The inverse of the exact keep rate.
CARZERO_HOST_DEVICE float keep_scale(uint32_t threshold) { return 65536.0f / static_cast<float>(65536u - threshold); }

}  // namespace philox
}  // namespace carzero
