// The product of bf16 operands on AMX tiles: 32 x 32 of C in four tile registers, 32 of K a step.
//
// The tile instructions are reached through six macros; with CARZERO_EMULATE_AMX they are plain loops, so that packing,
// blocking and edges run on any CPU. What the emulation cannot show: the instructions' own rounding (they flush
// denormals and add pairs in their own order) and speed.
#pragma once
#include "gemm_table.h"
#include "gemm_words.h"

namespace carzero::cpu::CARZERO_ISA {

// A tile: 16 rows of 64 bytes (32 bf16 or 16 floats).
inline constexpr int64_t kTileRows = 16;
inline constexpr int64_t kTileK = 32;

#if defined(CARZERO_EMULATE_AMX)
struct TileRegister {
  uint32_t rows[kTileRows][16];
};
static thread_local TileRegister tile_registers[8];

static inline void emulated_tile_load(int t, const void* p, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    __builtin_memcpy(tile_registers[t].rows[r], static_cast<const char*>(p) + r * stride, 64);
  }
}

static inline void emulated_tile_store(int t, void* p, int64_t stride) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    __builtin_memcpy(static_cast<char*>(p) + r * stride, tile_registers[t].rows[r], 64);
  }
}

static inline void emulated_tile_multiply(int c, int a, int b) {
  for (int64_t m = 0; m < kTileRows; ++m) {
    for (int64_t k = 0; k < 16; ++k) {
      const uint32_t word = tile_registers[a].rows[m][k];
      const float low = __builtin_bit_cast(float, word << 16), high = __builtin_bit_cast(float, word & 0xFFFF0000u);
      for (int64_t n = 0; n < 16; ++n) {
        const uint32_t other = tile_registers[b].rows[k][n];
        float sum = __builtin_bit_cast(float, tile_registers[c].rows[m][n]);
        sum += low * __builtin_bit_cast(float, other << 16);
        sum += high * __builtin_bit_cast(float, other & 0xFFFF0000u);
        tile_registers[c].rows[m][n] = __builtin_bit_cast(uint32_t, sum);
      }
    }
  }
}

#define TILES_BEGIN() ((void)0)
#define TILES_END() ((void)0)
#define TILE_ZERO(t) (tile_registers[t] = TileRegister{})
#define TILE_LOAD(t, p, stride) emulated_tile_load(t, p, stride)
#define TILE_STORE(t, p, stride) emulated_tile_store(t, p, stride)
#define TILE_MULTIPLY(c, a, b) emulated_tile_multiply(c, a, b)
#else
// Palette 1, all eight registers at full size. Edges are padded in memory, never by a second configuration.
struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);
static const TileConfig tile_config;

// Some compilers do not tell that the tile instructions read or write memory.
#define MEMORY_BARRIER() __asm__ volatile("" ::: "memory")
#define TILES_BEGIN() _tile_loadconfig(&tile_config)
#define TILES_END() _tile_release()
#define TILE_ZERO(t) _tile_zero(t)
#define TILE_LOAD(t, p, stride) \
  do {                          \
    MEMORY_BARRIER();           \
    _tile_loadd(t, p, stride);  \
  } while (0)
#define TILE_STORE(t, p, stride) \
  do {                           \
    _tile_stored(t, p, stride);  \
    MEMORY_BARRIER();            \
  } while (0)
#define TILE_MULTIPLY(c, a, b) _tile_dpbf16ps(c, a, b)
#endif

// K a chunk: two panels of B are 32 KB, of a first-level cache of 48 KB. Rows a block: 128 KB of A.
inline constexpr int64_t kTileChunkK = 512;
inline constexpr int64_t kTileBlockRows = 128;

// A 16 x 16 corner of C: `rows` by `columns` of it exist.
struct Corner {
  float* c;
  int64_t rows, columns;
};

CARZERO_INLINE Corner corner(float* c, int64_t ldc, int64_t rows, int64_t columns, int64_t i, int64_t j) {
  const int64_t r = rows - i * kTileRows, n = columns - j * kPanelWidth;
  return {c + i * kTileRows * ldc + j * kPanelWidth, r < kTileRows ? r : kTileRows, n < kPanelWidth ? n : kPanelWidth};
}

CARZERO_INLINE bool whole(const Corner& x) { return x.rows == kTileRows && x.columns == kPanelWidth; }

CARZERO_INLINE void copy_from(const Corner& x, int64_t ldc, float* edge) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t n = 0; n < x.columns; ++n) edge[r * kPanelWidth + n] = x.c[r * ldc + n];
  }
}

CARZERO_INLINE void copy_to(const Corner& x, int64_t ldc, const float* edge) {
  for (int64_t r = 0; r < x.rows; ++r) {
    for (int64_t n = 0; n < x.columns; ++n) x.c[r * ldc + n] = edge[r * kPanelWidth + n];
  }
}

// A corner at the edge passes through a whole one, so that its sums start from C as the others' do.
#define TILE_START(t, x)                    \
  do {                                      \
    if (!accumulate) {                      \
      TILE_ZERO(t);                         \
    } else if (whole(x)) {                  \
      TILE_LOAD(t, (x).c, ldc * 4);         \
    } else {                                \
      copy_from(x, ldc, edge);              \
      TILE_LOAD(t, edge, kPanelWidth * 4);  \
    }                                       \
  } while (0)
#define TILE_FINISH(t, x)                   \
  do {                                      \
    if (whole(x)) {                         \
      TILE_STORE(t, (x).c, ldc * 4);        \
    } else {                                \
      TILE_STORE(t, edge, kPanelWidth * 4); \
      copy_to(x, ldc, edge);                \
    }                                       \
  } while (0)

// C[rows, columns] (+)= A[rows, K] B, rows and columns at most 32, K a multiple of 32. A is readable to a multiple of 16
// rows. tmm0-3: C, tmm4-5: A, tmm6-7: B.
static inline void tile_block(const bf16* a, int64_t lda, const bf16* b, int64_t panel_stride, int64_t K, float* c,
                              int64_t ldc, int64_t rows, int64_t columns, bool accumulate) {
  const bool two_rows = rows > kTileRows, two_panels = columns > kPanelWidth;
  const bf16* a1 = a + kTileRows * lda;
  const bf16* b1 = b + panel_stride;
  alignas(64) float edge[kTileRows * kPanelWidth] = {};
  const Corner c00 = corner(c, ldc, rows, columns, 0, 0), c01 = corner(c, ldc, rows, columns, 0, 1);
  const Corner c10 = corner(c, ldc, rows, columns, 1, 0), c11 = corner(c, ldc, rows, columns, 1, 1);
  // bytes from one packed pair of rows, and from one row of A, to the next
  const int64_t b_row = 64, a_row = lda * 2;
  TILE_START(0, c00);
  if (two_panels) TILE_START(1, c01);
  if (two_rows) TILE_START(2, c10);
  if (two_rows && two_panels) TILE_START(3, c11);
  for (int64_t k = 0; k < K; k += kTileK) {
    TILE_LOAD(6, b + k * kPanelWidth, b_row);
    TILE_LOAD(4, a + k, a_row);
    TILE_MULTIPLY(0, 4, 6);
    if (two_panels) {
      TILE_LOAD(7, b1 + k * kPanelWidth, b_row);
      TILE_MULTIPLY(1, 4, 7);
    }
    if (two_rows) {
      TILE_LOAD(5, a1 + k, a_row);
      TILE_MULTIPLY(2, 5, 6);
      if (two_panels) TILE_MULTIPLY(3, 5, 7);
    }
  }
  TILE_FINISH(0, c00);
  if (two_panels) TILE_FINISH(1, c01);
  if (two_rows) TILE_FINISH(2, c10);
  if (two_rows && two_panels) TILE_FINISH(3, c11);
}

static void multiply_tiles(const bf16* a, int64_t lda, int64_t rows, const PackedB& b, float* c, int64_t ldc,
                           bool accumulate, int64_t n0, int64_t n1) {
  const bf16* packed = static_cast<const bf16*>(b.data);
  const int64_t steps = (b.K + kTileK - 1) / kTileK;
  const int64_t panel_stride = steps * kTileK * kPanelWidth;
  const int64_t chunks = (steps * kTileK + kTileChunkK - 1) / kTileChunkK;
  // A where its edges need zeros around them
  alignas(64) bf16 padded[kTileBlockRows * kTileChunkK];
  TILES_BEGIN();
  for (int64_t r0 = 0; r0 < rows; r0 += kTileBlockRows) {
    const int64_t block_rows = rows - r0 < kTileBlockRows ? rows - r0 : kTileBlockRows;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t k0 = part_start(steps, chunks, chunk) * kTileK;
      const int64_t k1 = part_start(steps, chunks, chunk + 1) * kTileK;
      const int64_t present = k1 < b.K ? k1 - k0 : b.K - k0;
      const bf16* a_chunk = a + r0 * lda + k0;
      int64_t a_stride = lda;
      if (present < k1 - k0 || block_rows % kTileRows != 0) {
        a_stride = k1 - k0;
        __builtin_memset(padded, 0, static_cast<size_t>((block_rows + kTileRows - 1) / kTileRows * kTileRows * a_stride) * 2);
        for (int64_t r = 0; r < block_rows; ++r) {
          __builtin_memcpy(padded + r * a_stride, a_chunk + r * lda, static_cast<size_t>(present) * 2);
        }
        a_chunk = padded;
      }
      for (int64_t n = n0; n < n1; n += 2 * kPanelWidth) {
        const bf16* panel = packed + n / kPanelWidth * panel_stride + k0 * kPanelWidth;
        const int64_t columns = n1 - n < 2 * kPanelWidth ? n1 - n : 2 * kPanelWidth;
        for (int64_t r = 0; r < block_rows; r += 2 * kTileRows) {
          const int64_t tile_rows = block_rows - r < 2 * kTileRows ? block_rows - r : 2 * kTileRows;
          tile_block(a_chunk + r * a_stride, a_stride, panel, panel_stride, k1 - k0, c + (r0 + r) * ldc + n, ldc, tile_rows,
                     columns, accumulate || chunk > 0);
        }
      }
    }
  }
  TILES_END();
}

#undef TILE_START
#undef TILE_FINISH
#undef TILES_BEGIN
#undef TILES_END
#undef TILE_ZERO
#undef TILE_LOAD
#undef TILE_STORE
#undef TILE_MULTIPLY

}  // namespace carzero::cpu::CARZERO_ISA
