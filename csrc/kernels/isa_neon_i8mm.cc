// Rows for the matrix multiply of Armv8.6: 32 multiply-adds an instruction, unsigned bytes by signed ones.
#include <arm_neon.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/neon.inl"
#include "../gemm/finish.inl"

// usmmla takes two rows of eight bytes from either side, so that a vector holds two pixels by two channels.
constexpr uint32_t kLanes = 8, kPairs = 4;  // channels of a block; pairs of pixels of a tile

// `pixels` output pixels, at most two a pair -> out [pixels][kLanes]. Missing ones repeat the last and are not stored.
template <int NP>
void mmla_tile(const Conv& c, const uint8_t* in, const int8_t* w, uint32_t pixels, int32_t* out) {
  int32x4_t acc[NP * 4];
  const uint8_t* from[2 * NP];
  unroll<NP * 4>([&](auto i) BITPRESS_INLINE { acc[i] = vdupq_n_s32(0); });
  unroll<2 * NP>([&](auto j) BITPRESS_INLINE {
    const uint32_t pixel = static_cast<uint32_t>(j) < pixels ? static_cast<uint32_t>(j) : pixels - 1;
    from[j] = in + pixel * c.pixel_stride;
  });
  for (uint32_t t = 0; t < c.taps; ++t) {
    const size_t begin = c.tap_offsets[t];
    for (size_t k = begin; k < begin + c.run; k += 8, w += 8 * kLanes) {
      int8x16_t wv[4];
      unroll<4>([&](auto i) BITPRESS_INLINE { wv[i] = vld1q_s8(w + 16 * i); });
      unroll<NP>([&](auto p) BITPRESS_INLINE {
        const uint8x16_t a = vcombine_u8(vld1_u8(from[2 * p] + k), vld1_u8(from[2 * p + 1] + k));
        unroll<4>([&](auto i) BITPRESS_INLINE { acc[4 * p + i] = vusmmlaq_s32(acc[4 * p + i], a, wv[i]); });
      });
    }
  }
  unroll<NP>([&](auto p) BITPRESS_INLINE {
    int32_t* to = out + 2 * p * static_cast<int>(kLanes);
    unroll<4>([&](auto i) BITPRESS_INLINE {
      vst1_s32(to + 2 * i, vget_low_s32(acc[4 * p + i]));
      vst1_s32(to + static_cast<int>(kLanes) + 2 * i, vget_high_s32(acc[4 * p + i]));
    });
  });
}

template <int NP>
void mmla_tiles(const Conv& c, const uint8_t* in, const int8_t* w, uint32_t pixels, int32_t* out) {
  if constexpr (NP > 1)
    if (pixels <= 2 * (NP - 1)) return mmla_tiles<NP - 1>(c, in, w, pixels, out);
  mmla_tile<NP>(c, in, w, pixels, out);
}

void mmla(const Conv& c) {
  alignas(64) int32_t acc[2 * kPairs * kLanes];
  int32_t window[2 * kPairs];
  for (uint32_t block = c.block_begin; block < c.block_end; ++block) {
    const int8_t* w = static_cast<const int8_t*>(c.weights) + block * c.block_stride;
    const uint32_t row = block * kLanes, rows = c.rows - row < kLanes ? c.rows - row : kLanes;
    for (uint32_t y = 0; y < c.out_rows; ++y) {
      for (uint32_t x = 0; x < c.out_cols; x += 2 * kPairs) {
        const uint32_t pixels = c.out_cols - x < 2 * kPairs ? c.out_cols - x : 2 * kPairs;
        const uint8_t* in = c.in + y * c.row_stride + x * c.pixel_stride;
        mmla_tiles<kPairs>(c, in, w, pixels, acc);
        for (uint32_t j = 0; c.out.factor && j < pixels; ++j) {
          uint32_t sum = 0;
          for (uint32_t t = 0; t < c.taps; ++t)
            sum += sum_bytes(in + j * c.pixel_stride + c.tap_offsets[t], c.valid, 0);
          window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
        }
        finish<F, FromSums>(c.out, acc, kLanes, row, rows, c.first_pixel + y * c.out_row_pixels + x, pixels,
                            c.out.factor ? window : nullptr);
      }
    }
  }
}

}  // namespace

void i8dot_neon_i8mm(const Conv& c) { mmla(c); }

}  // namespace bitpress::gemm
