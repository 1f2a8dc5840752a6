// Rows for AMX: 16 pixels x 16 channels x 64 levels an instruction, on tiles of 16 rows of 64 bytes.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"
#include "../gemm/finish.inl"
#include "../gemm/i8dot.inl"

// The tile registers, by number: four of sums, two of pixels, two of weights. As assembly, because gcc 12 takes the
// memory that its intrinsics for them read to be of no use.
struct Tiles {
  static constexpr uint32_t kPixels = 16, kLanes = 16, kBytes = 64;
  static constexpr int kIn = 4, kWeights = 6;

  // What ldtilecfg reads.
  struct alignas(64) Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };

  // Tiles of sums and of pixels have so many rows.
  static void shape(uint32_t pixels) {
    Shapes s{};
    s.palette = 1;
    for (int i = 0; i < 8; ++i) {
      s.row_bytes[i] = kBytes;
      s.rows[i] = i < kWeights ? static_cast<uint8_t>(pixels) : 16;
    }
    BITPRESS_TIED(volatile("ldtilecfg %0" : : "m"(s)), emulated::tile_shapes(&s));
  }
  static void release() { BITPRESS_TIED(volatile("tilerelease" : :), emulated::tile_release()); }
  template <int t>
  static BITPRESS_INLINE void zero() {
    BITPRESS_TIED(volatile("tilezero %%tmm%c0" : : "i"(t)), emulated::tile_zero(t));
  }
  template <int t>
  static BITPRESS_INLINE void load(const uint8_t* p, size_t apart) {
    BITPRESS_TIED(volatile("tileloadd (%1,%2), %%tmm%c0" : : "i"(t), "r"(p), "r"(apart) : "memory"),
                  emulated::tile_load(t, p, apart));
  }
  template <int t>
  static BITPRESS_INLINE void store(int32_t* p, size_t apart) {
    BITPRESS_TIED(volatile("tilestored %%tmm%c0, (%1,%2)" : : "i"(t), "r"(p), "r"(apart) : "memory"),
                  emulated::tile_store(t, p, apart));
  }
  template <int sums, int in, int w>
  static BITPRESS_INLINE void dot() {
    BITPRESS_TIED(volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(in), "i"(w)),
                  emulated::tile_dot(sums, in, w));
  }
};

// MB blocks of channels x NB tiles of `pixels` pixels, which begin at in[0 .. NB) -> out [NB][pixels][MB * kLanes].
template <int MB, int NB>
void amx_tile(const Conv& c, const uint8_t* const* in, const uint8_t* w, uint32_t pixels, int32_t* out) {
  constexpr size_t kRow = MB * Tiles::kLanes;
  unroll<MB * NB>([](auto i) BITPRESS_INLINE { Tiles::zero<i>(); });
  for (uint32_t t = 0; t < c.taps; ++t) {
    const size_t tap = c.tap_offsets[t];
    for (uint32_t k = 0; k < c.run; k += Tiles::kBytes, w += Tiles::kBytes * Tiles::kLanes) {
      unroll<MB>([&](auto i) BITPRESS_INLINE {
        Tiles::load<Tiles::kWeights + i>(w + static_cast<size_t>(i) * c.block_stride, Tiles::kBytes);
      });
      unroll<NB>([&](auto j) BITPRESS_INLINE {
        Tiles::load<Tiles::kIn + j % 2>(in[j] + tap + k, c.pixel_stride);
        unroll<MB>([&](auto i) BITPRESS_INLINE { Tiles::dot<j * MB + i, Tiles::kIn + j % 2, Tiles::kWeights + i>(); });
      });
    }
  }
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE {
    Tiles::store<i>(out + static_cast<size_t>(i / MB) * pixels * kRow + i % MB * Tiles::kLanes,
                    kRow * sizeof(int32_t));
  });
}

// NB tiles from the n-th on, `parts` of which make a row of pixels: the last one ends with the row, and computes some
// pixels again.
template <int MB, int NB>
void amx_tiles(const Conv& c, uint32_t block, uint32_t n, uint32_t parts, uint32_t pixels) {
  constexpr uint32_t kRow = MB * Tiles::kLanes;
  alignas(64) int32_t acc[NB * Tiles::kPixels * kRow];
  int32_t window[Tiles::kPixels];
  const uint8_t* in[NB];
  size_t first[NB];
  for (uint32_t j = 0; j < NB; ++j) {
    const uint32_t y = (n + j) / parts, at = (n + j) % parts * pixels,
                   x = at + pixels < c.out_cols ? at : c.out_cols - pixels;
    in[j] = c.in + y * c.row_stride + x * c.pixel_stride;
    first[j] = c.first_pixel + y * c.out_row_pixels + x;
  }
  amx_tile<MB, NB>(c, in, static_cast<const uint8_t*>(c.weights) + block * c.block_stride, pixels, acc);
  const uint32_t row = block * Tiles::kLanes, rows = c.rows - row < kRow ? c.rows - row : kRow;
  for (uint32_t j = 0; j < NB; ++j) {
    if (c.out.factor) window_sums<Block>(c, in[j], pixels, window);
    finish<F, FromSums>(c.out, acc + j * pixels * kRow, kRow, row, rows, first[j], pixels,
                        c.out.factor ? window : nullptr);
  }
}

template <int MB, int NB>
void amx_blocks(const Conv& c, uint32_t block, uint32_t parts, uint32_t pixels) {
  uint32_t n = 0;
  for (; n + NB <= c.out_rows * parts; n += NB) amx_tiles<MB, NB>(c, block, n, parts, pixels);
  for (; n < c.out_rows * parts; ++n) amx_tiles<MB, 1>(c, block, n, parts, pixels);
}

}  // namespace

void i8dot_amx(const Conv& c) {
  if (c.out_cols == 0) return;
  const uint32_t parts = (c.out_cols + Tiles::kPixels - 1) / Tiles::kPixels, pixels = (c.out_cols + parts - 1) / parts;
  Tiles::shape(pixels);
  uint32_t block = c.block_begin;
  for (; c.block_end - block >= 2; block += 2) amx_blocks<2, 2>(c, block, parts, pixels);
  if (block < c.block_end) amx_blocks<1, 4>(c, block, parts, pixels);
  Tiles::release();
}

}  // namespace bitpress::gemm
