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
  static constexpr uint32_t kPixels = 16, kLanes = 16, kBytes = 64, kStep = kBytes * kLanes;
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

// What is fetched while others are multiplied: lines [begin, end) of the weights that a step of the next MB blocks
// takes.
struct Ahead {
  const uint8_t* from;
  uint32_t begin, end;
};

// MB blocks of channels x NB tiles of `pixels` pixels, which begin at in[0 .. NB) -> out [NB][pixels][MB * kLanes].
template <int MB, int NB>
void amx_tile(const Conv& c, const uint8_t* const* in, const uint8_t* w, uint32_t pixels, Ahead ahead, int32_t* out) {
  constexpr size_t kRow = MB * Tiles::kLanes;
  unroll<MB * NB>([](auto i) BITPRESS_INLINE { Tiles::zero<i>(); });
  for (uint32_t t = 0; t < c.taps; ++t) {
    const size_t tap = c.tap_offsets[t];
    for (uint32_t k = 0; k < c.run; k += Tiles::kBytes, w += Tiles::kStep, ahead.from += Tiles::kStep) {
      for (uint32_t i = ahead.begin; i < ahead.end; ++i)
        _mm_prefetch(ahead.from + i / 16 * c.block_stride + i % 16 * Tiles::kBytes, _MM_HINT_T1);
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
    Tiles::store<i>(out + static_cast<size_t>(i / MB) * pixels * kRow + i % MB * Tiles::kLanes, kRow * sizeof(int32_t));
  });
}

// Up to four tiles of pixels whose sums are made together.
struct Group {
  const uint8_t* in[4];
  size_t first[4];  // pixel of the output
  uint32_t count;
};

// Where tiles begin, row by row; `parts` of them make a row: the last one ends with the row, and computes some pixels
// again.
struct Cursor {
  uint32_t y, part;

  void next(const Conv& c, uint32_t parts, uint32_t pixels, uint32_t count, Group& g) {
    g.count = count;
    for (uint32_t j = 0; j < count; ++j) {
      const uint32_t at = part * pixels, x = at + pixels < c.out_cols ? at : c.out_cols - pixels;
      g.in[j] = c.in + y * c.row_stride + x * c.pixel_stride;
      g.first[j] = c.first_pixel + y * c.out_row_pixels + x;
      if (++part == parts) part = 0, ++y;
    }
  }
};

// MB blocks from `block` on of a group's pixels, from their sums. Neighbours are finished together, which saves calls
// and, where a tile's pixels are no multiple of four, slow ends; else VGG7 lost 2 % by it
// with two blocks.
template <int MB>
void finish_group(const Conv& c, const Group& g, uint32_t block, uint32_t pixels, const int32_t* acc) {
  constexpr uint32_t kRow = MB * Tiles::kLanes;
  const uint32_t row = block * Tiles::kLanes, rows = c.rows - row < kRow ? c.rows - row : kRow;
  int32_t window[4 * Tiles::kPixels];
  for (uint32_t j = 0, next; j < g.count; j = next) {
    for (next = j + 1; (MB == 1 || pixels % 4) && next < g.count && g.first[next] == g.first[next - 1] + pixels;)
      ++next;
    for (uint32_t i = j; c.out.factor && i < next; ++i)
      window_sums<Block>(c, g.in[i], pixels, window + (i - j) * pixels);
    finish<F, FromSums>(c.out, acc + j * pixels * kRow, kRow, row, rows, g.first[j], (next - j) * pixels,
                        c.out.factor ? window : nullptr);
  }
}

// Groups of NB tiles, then single ones. To begin the next group before this one is finished, so that tiles are
// multiplied meanwhile, gained nothing (ResNet-20, VGG7: lost 2 to 4 %).
template <int MB, int NB>
void amx_blocks(const Conv& c, uint32_t block, uint32_t parts, uint32_t pixels) {
  alignas(64) int32_t acc[NB * Tiles::kPixels * MB * Tiles::kLanes];
  const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
  const uint32_t all = c.out_rows * parts;
  const bool more = block + 2 * MB <= c.block_end;
  const uint32_t lines = MB * 16, share = more ? (lines * NB + all - 1) / all : 0;
  Ahead ahead{w + (more ? MB * c.block_stride : 0), 0, 0};
  Group g;
  Cursor cursor{0, 0};
  for (uint32_t n = 0; n < all; n += g.count) {
    ahead.begin = ahead.end;
    ahead.end = ahead.end + share < lines ? ahead.end + share : more ? lines : 0;
    cursor.next(c, parts, pixels, all - n < NB ? 1 : NB, g);
    if (g.count == NB)
      amx_tile<MB, NB>(c, g.in, w, pixels, ahead, acc);
    else
      amx_tile<MB, 1>(c, g.in, w, pixels, ahead, acc);
    finish_group<MB>(c, g, block, pixels, acc);
  }
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
