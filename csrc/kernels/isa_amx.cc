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

  // Tiles of sums and of pixels have so many rows, those of pixels so many bytes a row, a multiple of four.
  static void shape(uint32_t pixels, uint32_t bytes) {
    Shapes s{};
    s.palette = 1;
    for (int i = 0; i < 8; ++i) {
      const bool in = i == kIn || i == kIn + 1;
      s.row_bytes[i] = static_cast<uint16_t>(in ? bytes : kBytes);
      s.rows[i] = static_cast<uint8_t>(i < kWeights ? pixels : bytes / 4);
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

// MB blocks of channels x NB tiles of pixels, which begin at in[0 .. NB) -> sums[0 .. NB), each [pixels][MB * kLanes].
template <int MB, int NB>
void amx_tile(const Conv& c, const uint8_t* const* in, const uint8_t* w, Ahead ahead, int32_t* const* sums) {
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
  unroll<MB * NB>(
      [&](auto i) BITPRESS_INLINE { Tiles::store<i>(sums[i / MB] + i % MB * Tiles::kLanes, kRow * sizeof(int32_t)); });
}

// Where tiles lie. A tile takes `pixels` of a row, `parts` make one; or, `line`, 16 of all rows, between whose pixels
// lie others that nobody reads, `pitch` from one row to the next: so tiles are full where rows are short. The last tile
// of a row, or of the line, ends with it, and computes some pixels again.
struct Grid {
  static constexpr uint32_t kLine = 128;  // whose sums stay near until all are made

  bool line;
  uint32_t pitch, end, pixels, parts, tiles;

  explicit Grid(const Conv& c) {
    constexpr uint32_t kFull = Tiles::kPixels;
    const auto up = [](uint32_t n, uint32_t to) { return (n + to - 1) / to; };
    const bool even = c.row_stride % c.pixel_stride == 0;
    pitch = even ? static_cast<uint32_t>(c.row_stride / c.pixel_stride) : c.out_cols;
    end = (c.out_rows - 1) * pitch + c.out_cols;
    parts = up(c.out_cols, kFull);
    pixels = up(c.out_cols, parts);
    // A tile of few pixels takes three quarters of the time of a full one, and its share of the rest: it waits for
    // weights. Rows of 8 lost a third by that, rows of 7 two fifths.
    const uint32_t by_rows = c.out_rows * parts * (3 * kFull + pixels), by_line = up(end, kFull) * 4 * kFull;
    line = even && end >= kFull && end <= kLine && by_line < by_rows;
    if (line) pixels = kFull, parts = up(end, kFull);
    tiles = line ? parts : c.out_rows * parts;
  }
  uint32_t row_of(uint32_t tile) const { return line ? 0 : tile / parts; }
  uint32_t column_of(uint32_t tile, const Conv& c) const {
    const uint32_t at = (line ? tile : tile % parts) * pixels, last = (line ? end : c.out_cols) - pixels;
    return at < last ? at : last;
  }
};

// Tiles whose sums are made together: where they begin, and where their sums and, but of a line, their pixels go.
template <int NB>
struct Group {
  const uint8_t* in[NB];
  int32_t* sums[NB];
  size_t first[NB];
  uint32_t count;
};

// MB blocks from `block` on of a group's pixels, from their sums. Neighbours are finished together, which saves calls
// and, where a tile's pixels are no multiple of four, slow ends; else VGG7 lost 2 % by it
// with two blocks.
template <int MB, int NB>
void finish_group(const Conv& c, const Group<NB>& g, uint32_t block, uint32_t pixels) {
  constexpr uint32_t kRow = MB * Tiles::kLanes;
  const uint32_t row = block * Tiles::kLanes, rows = c.rows - row < kRow ? c.rows - row : kRow;
  int32_t window[NB * Tiles::kPixels];
  for (uint32_t j = 0, next; j < g.count; j = next) {
    for (next = j + 1; (MB == 1 || pixels % 4) && next < g.count && g.first[next] == g.first[next - 1] + pixels;)
      ++next;
    for (uint32_t i = j; c.out.factor && i < next; ++i)
      window_sums<Block>(c, g.in[i], pixels, window + (i - j) * pixels);
    finish<F, FromSums>(c.out, g.sums[j], kRow, row, rows, g.first[j], (next - j) * pixels,
                        c.out.factor ? window : nullptr);
  }
}

// The same of all pixels of a line, row by row.
template <int MB>
void finish_line(const Conv& c, const Grid& grid, uint32_t block, const int32_t* sums) {
  constexpr uint32_t kRow = MB * Tiles::kLanes;
  const uint32_t row = block * Tiles::kLanes, rows = c.rows - row < kRow ? c.rows - row : kRow;
  int32_t window[Grid::kLine];
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    if (c.out.factor) window_sums<Block>(c, c.in + y * c.row_stride, c.out_cols, window);
    finish<F, FromSums>(c.out, sums + y * grid.pitch * kRow, kRow, row, rows, c.first_pixel + y * c.out_row_pixels,
                        c.out_cols, c.out.factor ? window : nullptr);
  }
}

// Groups of NB tiles, then single ones. To finish a group while tiles of the next are multiplied gained nothing: in one
// piece behind them ResNet-20 and VGG7 lost 2 to 4 %; a few pixels in every step ResNet-18 lost 20 %, as if tdpbusd
// held the port that half of an epilogue's instructions are given. Nor did weights of 2 and 4 bits that are widened
// step by step: layers of 2 MB at 7 x 7 took a third less, but the clock fell from 3.7 to 3 GHz, for the other layers
// too.
template <int MB, int NB>
void amx_blocks(const Conv& c, const Grid& grid, uint32_t block) {
  constexpr uint32_t kRow = MB * Tiles::kLanes, kHeld = NB * Tiles::kPixels;
  alignas(64) int32_t sums[(kHeld < Grid::kLine ? Grid::kLine : kHeld) * kRow];
  const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
  const bool more = block + 2 * MB <= c.block_end;
  const uint32_t lines = MB * 16, share = more ? (lines * NB + grid.tiles - 1) / grid.tiles : 0;
  Ahead ahead{w + (more ? MB * c.block_stride : 0), 0, 0};
  Group<NB> g;
  for (uint32_t n = 0; n < grid.tiles; n += g.count) {
    ahead.begin = ahead.end;
    ahead.end = ahead.end + share < lines ? ahead.end + share : more ? lines : 0;
    g.count = grid.tiles - n < NB ? 1 : NB;
    for (uint32_t j = 0; j < g.count; ++j) {
      const uint32_t y = grid.row_of(n + j), x = grid.column_of(n + j, c);
      g.in[j] = c.in + y * c.row_stride + x * c.pixel_stride;
      g.sums[j] = sums + (grid.line ? x : j * grid.pixels) * kRow;
      g.first[j] = c.first_pixel + y * c.out_row_pixels + x;
    }
    if (g.count == NB)
      amx_tile<MB, NB>(c, g.in, w, ahead, g.sums);
    else
      amx_tile<MB, 1>(c, g.in, w, ahead, g.sums);
    if (!grid.line) finish_group<MB>(c, g, block, grid.pixels);
  }
  if (grid.line) finish_line<MB>(c, grid, block, sums);
}

}  // namespace

void i8dot_amx(const Conv& c) {
  if (c.out_cols == 0) return;
  const Grid grid(c);
  // Short rows lie in fewer lines of a cache: one that lies in two takes three times as long, which was a third of
  // ResNet-20's first layers.
  Tiles::shape(grid.pixels, c.valid < Tiles::kBytes ? (c.valid + 3) / 4 * 4 : Tiles::kBytes);
  uint32_t block = c.block_begin;
  for (; c.block_end - block >= 2; block += 2) amx_blocks<2, 2>(c, grid, block);
  if (block < c.block_end) amx_blocks<1, 4>(c, grid, block);
  Tiles::release();
}

}  // namespace bitpress::gemm
