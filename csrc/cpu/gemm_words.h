// The micro-kernel on vector registers and the loops around it: float32, and bf16 pairs where the CPU has dpbf16.
//
// One tile is MR rows by NV vectors of columns, held in registers over a chunk of K. Loops from the outside: blocks
// of rows whose A chunk fits the second-level cache; chunks of K; panels of B, one of which fits the first-level cache;
// tiles of rows. Each element of C sums over k in the same order whatever the tile, so results do not depend on how the
// rows and columns of a product are split.
#pragma once
#include "gemm_table.h"
#include "simd.h"

namespace carzero::cpu::CARZERO_ISA {

#if defined(__AVX512BF16__) || defined(CARZERO_EMULATE_DPBF16) || defined(CARZERO_EMULATE_AMX)
inline constexpr bool kMultipliesBf16 = true;
#else
inline constexpr bool kMultipliesBf16 = false;
#endif

inline constexpr int kVectorsPerPanel = kPanelWidth / kLanes;
#if CARZERO_VECTOR_BYTES == 64
// 32 registers: 28 accumulators, 2 of B, a broadcast of A
inline constexpr int kMaxVectors = 2;
constexpr int max_rows(int) { return 14; }
#elif CARZERO_VECTOR_BYTES == 32
// 16 registers: 12 accumulators, 2 of B, a broadcast of A
inline constexpr int kMaxVectors = 2;
constexpr int max_rows(int vectors) { return 12 / vectors; }
#elif defined(__x86_64__)
inline constexpr int kMaxVectors = 4;
constexpr int max_rows(int) { return 2; }
#else
// 32 registers of 16 bytes (NEON): 24 accumulators, 4 of B, a broadcast of A
inline constexpr int kMaxVectors = 4;
constexpr int max_rows(int) { return 6; }
#endif
// Columns a tile has where there are enough.
inline constexpr int64_t kTileColumns = kMaxVectors * kLanes;

// Words of K a chunk: a panel is 16 KB, beside the tile's rows of A in a first-level cache of 32 KB.
inline constexpr int64_t kChunkWords = 256;
// Rows a block: 192 KB of A at a whole chunk, of a second-level cache of 512 KB or more.
inline constexpr int64_t kBlockRows = 192;
// Tiles of rows from which on the next panel is fetched beside this one's products: +5 % at N = 6144, -4 % at 32 rows.
inline constexpr int64_t kPrefetchTiles = 16;

template <Operand operand>
struct Element {
  using type = float;
};
template <>
struct Element<Operand::bf16> {
  using type = bf16;
};

// acc + the products of the word of A, in every lane, with the words of B.
template <Operand operand>
CARZERO_INLINE vf multiply_add(vf acc, vf a, vf b) {
  if constexpr (operand == Operand::f32) {
    return a * b + acc;
  } else {
#if CARZERO_VECTOR_BYTES == 64 && defined(__AVX512BF16__)
    return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    const vf high = as_float(as_bits(a) & 0xFFFF0000u) * as_float(as_bits(b) & 0xFFFF0000u) + acc;
    return as_float(as_bits(a) << 16) * as_float(as_bits(b) << 16) + high;
#endif
  }
}

// The tile where not all of its columns exist; apart from the kernels, which are many.
__attribute__((noinline)) static void store_edge(const float* full, int rows, int width, float* c, int64_t ldc,
                                                 bool accumulate, int64_t columns) {
  for (int i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      const float sum = full[i * width + j];
      c[i * ldc + j] = accumulate ? c[i * ldc + j] + sum : sum;
    }
  }
}

// C[MR, columns] (+)= A[MR, k] B over one chunk: `words` whole words, then, for bf16, one more element where `odd`.
// columns <= NV * kLanes.
template <Operand operand, int MR, int NV>
void tile(const typename Element<operand>::type* a, int64_t lda, const float* b, int64_t panel_stride, int64_t words,
          bool odd, float* c, int64_t ldc, bool accumulate, int64_t columns) {
  constexpr int per_word = operand == Operand::f32 ? 1 : 2;
  // every loop over acc is unrolled: one that is not would keep the array in memory
  vf acc[MR][NV];
#pragma GCC unroll 14
  for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) acc[i][v] = vf{};
    // write intent: the sums come back to these lines at the end
    __builtin_prefetch(c + i * ldc, 1);
  }
  for (int64_t w = 0; w < words; ++w) {
    vf bv[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; ++v) {
      bv[v] = load(b + (v / kVectorsPerPanel) * panel_stride + w * kPanelWidth + (v % kVectorsPerPanel) * kLanes);
    }
#pragma GCC unroll 14
    for (int i = 0; i < MR; ++i) {
      const vf av = as_float(broadcast_u32(load_as<uint32_t>(a + i * lda + w * per_word)));
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) acc[i][v] = multiply_add<operand>(acc[i][v], av, bv[v]);
    }
  }
  if constexpr (operand == Operand::bf16) {
    if (odd) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        const vf bv = load(b + (v / kVectorsPerPanel) * panel_stride + words * kPanelWidth + (v % kVectorsPerPanel) * kLanes);
#pragma GCC unroll 14
        for (int i = 0; i < MR; ++i) {
          const vf av = as_float(broadcast_u32(a[i * lda + words * 2].bits));
          acc[i][v] = multiply_add<operand>(acc[i][v], av, bv);
        }
      }
    }
  }
  if (columns == NV * kLanes) {
#pragma GCC unroll 14
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) {
        float* p = c + i * ldc + v * kLanes;
        store(p, accumulate ? load(p) + acc[i][v] : acc[i][v]);
      }
    }
  } else {
    float full[MR][NV * kLanes];
#pragma GCC unroll 14
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < NV; ++v) store(&full[i][v * kLanes], acc[i][v]);
    }
    store_edge(&full[0][0], MR, NV * kLanes, c, ldc, accumulate, columns);
  }
}

template <Operand operand>
using TileFunction = void (*)(const typename Element<operand>::type*, int64_t, const float*, int64_t, int64_t, bool, float*,
                              int64_t, bool, int64_t);

// The tile of `rows` rows, 1 .. max_rows(NV).
template <Operand operand, int NV, int MR = max_rows(NV)>
CARZERO_INLINE TileFunction<operand> tile_function(int64_t rows) {
  if constexpr (MR == 1) {
    return tile<operand, 1, NV>;
  } else {
    return rows == MR ? tile<operand, MR, NV> : tile_function<operand, NV, MR - 1>(rows);
  }
}

// Splits `total` into `parts` of nearly equal size: the bounds of part i are part_start(i) and part_start(i + 1).
CARZERO_INLINE int64_t part_start(int64_t total, int64_t parts, int64_t i) {
  return total / parts * i + (i < total % parts ? i : total % parts);
}

// A block of rows by up to NV vectors of columns. Tiles of nearly equal height: a last one of a row or two would not hide
// the latency of its additions.
template <Operand operand, int NV>
void multiply_columns(const typename Element<operand>::type* a, int64_t lda, int64_t rows, const float* b,
                      int64_t panel_stride, int64_t words, bool odd, float* c, int64_t ldc, bool accumulate,
                      int64_t columns) {
  if constexpr (NV > 1) {
    if (columns <= (NV - 1) * kLanes) {
      multiply_columns<operand, NV - 1>(a, lda, rows, b, panel_stride, words, odd, c, ldc, accumulate, columns);
      return;
    }
  }
  const int64_t tiles = (rows + max_rows(NV) - 1) / max_rows(NV);
  const int64_t low = rows / tiles, taller = rows % tiles;
  const TileFunction<operand> tall = tile_function<operand, NV>(taller > 0 ? low + 1 : low);
  const TileFunction<operand> flat = tile_function<operand, NV>(low);
  const float* next = b + kTileColumns / kPanelWidth * panel_stride;
  for (int64_t i = 0; i < tiles; ++i) {
    if (tiles >= kPrefetchTiles) {
      const int64_t end = part_start(words, tiles, i + 1);
      for (int64_t w = part_start(words, tiles, i); w < end; ++w) __builtin_prefetch(next + w * kPanelWidth, 0, 2);
    }
    const int64_t r = part_start(rows, tiles, i);
    const TileFunction<operand> function = i < taller ? tall : flat;
    function(a + r * lda, lda, b, panel_stride, words, odd, c + r * ldc, ldc, accumulate, columns);
  }
}

template <Operand operand>
CARZERO_INLINE void multiply_words(const typename Element<operand>::type* a, int64_t lda, int64_t rows, const PackedB& b,
                                   float* c, int64_t ldc, bool accumulate, int64_t n0, int64_t n1) {
  constexpr int64_t per_word = operand == Operand::f32 ? 1 : 2;
  const int64_t whole_words = b.K / per_word;
  const bool odd = b.K % per_word != 0;
  const int64_t panel_stride = packed_words(b.K, operand) * kPanelWidth;
  const float* packed = static_cast<const float*>(b.data);
  const int64_t chunks = whole_words > kChunkWords ? (whole_words + kChunkWords - 1) / kChunkWords : 1;
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows;
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t r0 = part_start(rows, blocks, block);
    const int64_t r1 = part_start(rows, blocks, block + 1);
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t w0 = part_start(whole_words, chunks, chunk);
      const int64_t w1 = part_start(whole_words, chunks, chunk + 1);
      for (int64_t n = n0; n < n1; n += kTileColumns) {
        multiply_columns<operand, kMaxVectors>(a + r0 * lda + w0 * per_word, lda, r1 - r0,
                                               packed + n / kPanelWidth * panel_stride + w0 * kPanelWidth, panel_stride,
                                               w1 - w0, odd && chunk + 1 == chunks, c + r0 * ldc + n, ldc,
                                               accumulate || chunk > 0, n1 - n < kTileColumns ? n1 - n : kTileColumns);
      }
    }
  }
}

}  // namespace carzero::cpu::CARZERO_ISA
