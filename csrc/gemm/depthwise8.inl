// depthwise8: windows of 3 x 3, 64 channels at once, from unsigned bytes to stored levels in registers, with AVX-512
// VNNI. Three rows of a column are woven into words (top, next, last, 0) by unpacking; each woven column serves three
// outputs. Words of vector i are channels 16 * lane + 4 * i + 0..3 of 128-bit lanes, which packing brings back in
// order. Constants are brought into that order once a block. Anonymous namespace.

// Vectors of 16 channels each -> the order of woven words.
struct Woven {
  __m512i v[4];
};
inline Woven weave_channels(const void* p, uint32_t rows) {
  __m512i in[4];
  unroll<4>([&](auto i) BITPRESS_INLINE {
    const uint32_t first = 16 * static_cast<uint32_t>(i), some = rows > first ? rows - first : 0;
    const auto mask = static_cast<__mmask16>(some < 16 ? (1u << some) - 1 : 0xFFFF);
    in[i] = _mm512_maskz_loadu_epi32(mask, static_cast<const int32_t*>(p) + first);
  });
  constexpr int kLow = 0x44, kHigh = 0xEE, kEven = 0x88, kOdd = 0xDD;
  const __m512i a = _mm512_shuffle_i32x4(in[0], in[1], kLow), b = _mm512_shuffle_i32x4(in[2], in[3], kLow);
  const __m512i c = _mm512_shuffle_i32x4(in[0], in[1], kHigh), d = _mm512_shuffle_i32x4(in[2], in[3], kHigh);
  return {{_mm512_shuffle_i32x4(a, b, kEven), _mm512_shuffle_i32x4(a, b, kOdd), _mm512_shuffle_i32x4(c, d, kEven),
           _mm512_shuffle_i32x4(c, d, kOdd)}};
}

// `kPair`: a column is half a vector wide, see depthwise8_pairs.
template <class Dot, int kStride, bool kPair = false>
void depthwise8_3x3(const Depthwise& given) {
  constexpr int kColumns = 3;
  const Depthwise d = given;  // stores of bytes could change the original, for all that the compiler knows
  const size_t padded = (d.rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  const __m512i zero = _mm512_setzero_si512();
  const __m512i bounds[2] = {_mm512_set1_epi8(static_cast<char>(static_cast<int32_t>(d.out.lo))),
                             _mm512_set1_epi8(static_cast<char>(static_cast<int32_t>(d.out.hi)))};
  const bool out_signed = d.out.storage == Storage::kI8;
  for (uint32_t row = 0; row < d.rows; row += 64) {
    const uint32_t rows = d.rows - row < 64 ? d.rows - row : 64;
    const __mmask64 mask = rows < 64 ? (__mmask64{1} << rows) - 1 : ~__mmask64{0};
    const Woven w[kColumns] = {weave_channels(d.weights + row, rows), weave_channels(d.weights + padded + row, rows),
                               weave_channels(d.weights + 2 * padded + row, rows)};
    const Woven m = weave_channels(d.out.m + row, rows), b = weave_channels(d.out.b + row, rows),
                bias = weave_channels(d.out.bias + row, rows);
    for (uint32_t y = 0; y < d.out_rows; ++y) {
      // Rows outside of the image are read from zeros, which no column moves on from.
      alignas(64) static constexpr uint8_t kNothing[64] = {};
      const uint8_t* at[3];
      size_t steps[3];
      unroll<3>([&](auto t) BITPRESS_INLINE {
        const int64_t from =
            d.first_row + static_cast<int64_t>(y) * d.row_step + t * static_cast<int64_t>(d.row_dilation);
        const bool some = from >= 0 && from < static_cast<int64_t>(d.in_rows);
        steps[t] = some ? d.column_bytes : 0;
        at[t] = some ? d.in + static_cast<size_t>(from) * d.row_bytes + row : kNothing;
      });
      int32_t column_at = -d.left;
      const int32_t columns = static_cast<int32_t>(d.in_cols);
      uint8_t* out = static_cast<uint8_t*>(d.out.data) + (d.first_pixel + y * d.out_row_pixels) * d.out.channels +
                     d.out.first_channel + row;
      Woven a[kColumns];
      const auto column = [&](auto slot) BITPRESS_INLINE {
        __m512i p, q, r;
        const bool here = column_at >= 0 && column_at < columns, behind = column_at + 1 >= 0 && column_at + 1 < columns;
        if (here && (!kPair || behind)) {
          const int64_t i = column_at;
          p = _mm512_loadu_si512(at[0] + i * static_cast<int64_t>(steps[0]));
          q = _mm512_loadu_si512(at[1] + i * static_cast<int64_t>(steps[1]));
          r = _mm512_loadu_si512(at[2] + i * static_cast<int64_t>(steps[2]));
        } else if (kPair && (here || behind)) {
          const __mmask64 half = here ? 0xFFFFFFFFu : __mmask64{0xFFFFFFFFu} << 32;
          const int64_t i = column_at;
          p = _mm512_maskz_loadu_epi8(half, at[0] + i * static_cast<int64_t>(steps[0]));
          q = _mm512_maskz_loadu_epi8(half, at[1] + i * static_cast<int64_t>(steps[1]));
          r = _mm512_maskz_loadu_epi8(half, at[2] + i * static_cast<int64_t>(steps[2]));
        } else {
          p = q = r = zero;
        }
        ++column_at;
        const __m512i low = _mm512_unpacklo_epi8(p, q), high = _mm512_unpackhi_epi8(p, q);
        const __m512i low_last = _mm512_unpacklo_epi8(r, zero), high_last = _mm512_unpackhi_epi8(r, zero);
        a[slot].v[0] = _mm512_unpacklo_epi16(low, low_last);
        a[slot].v[1] = _mm512_unpackhi_epi16(low, low_last);
        a[slot].v[2] = _mm512_unpacklo_epi16(high, high_last);
        a[slot].v[3] = _mm512_unpackhi_epi16(high, high_last);
      };
      // Slots take turns, so that nothing is moved: pixel i of three has its first column in slot i * kStride % 3.
      unroll<kColumns - kStride>([&](auto i) BITPRESS_INLINE { column(i); });
      for (uint32_t x = 0; x < d.out_cols; x += kColumns)
        unroll<kColumns>([&](auto i) BITPRESS_INLINE {
          if (x + i >= d.out_cols) return;
          unroll<kStride>([&](auto k)
                              BITPRESS_INLINE { column(Index<(i * kStride + kColumns - kStride + k) % kColumns>{}); });
          const Woven* weights = w;  // read again for each pixel: columns fill the registers
          BITPRESS_TIED(("" : "+r"(weights)), static_cast<void>(0));
          __m512i t[4];
          unroll<4>([&](auto g) BITPRESS_INLINE {
            __m512i s = bias.v[g];
            unroll<kColumns>(
                [&](auto k) BITPRESS_INLINE { Dot::dot(s, a[(i * kStride + k) % kColumns].v[g], weights[k].v[g]); });
            const __m512 v = _mm512_mul_ps(_mm512_cvtepi32_ps(s), _mm512_castsi512_ps(m.v[g]));
            t[g] = _mm512_cvtps_epi32(_mm512_add_ps(v, _mm512_castsi512_ps(b.v[g])));
          });
          const __m512i* limit = bounds;
          BITPRESS_TIED(("" : "+r"(limit)), static_cast<void>(0));
          const __m512i first = _mm512_packs_epi32(t[0], t[1]), second = _mm512_packs_epi32(t[2], t[3]);
          const __m512i levels =
              out_signed ? _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(first, second), limit[0]), limit[1])
                         : _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, second), limit[0]), limit[1]);
          if (rows == 64)
            _mm512_storeu_si512(out, levels);
          else
            _mm512_mask_storeu_epi8(out, mask, levels);
          out += d.out.channels;
        });
    }
  }
}

// Two pixels of 32 channels are one of 64, whose columns lie half of it apart: every second one is the next pixel's,
// too.
template <class Dot>
void depthwise8_pairs(const Depthwise& d) {
  constexpr uint32_t kHalf = 32, kColumns = 3;
  alignas(64) int32_t weights[kColumns][2 * kHalf], bias[2 * kHalf];
  alignas(64) float m[2 * kHalf], b[2 * kHalf];
  for (uint32_t i = 0; i < 2 * kHalf; ++i) {
    for (uint32_t k = 0; k < kColumns; ++k) weights[k][i] = d.weights[k * kHalf + i % kHalf];
    bias[i] = d.out.bias[i % kHalf];
    m[i] = d.out.m[i % kHalf];
    b[i] = d.out.b[i % kHalf];
  }
  Depthwise pairs = d;
  pairs.weights = weights[0];
  pairs.rows = 2 * kHalf;
  pairs.out_cols = d.out_cols / 2;
  pairs.first_pixel = d.first_pixel / 2;
  pairs.out_row_pixels = d.out_row_pixels / 2;
  pairs.out.channels = 2 * kHalf;
  pairs.out.m = m;
  pairs.out.b = b;
  pairs.out.bias = bias;
  depthwise8_3x3<Dot, 2, true>(pairs);
}

template <class Dot>
void depthwise8(const Depthwise& d) {
  const bool even = d.out_cols % 2 == 0 && d.first_pixel % 2 == 0 && d.out_row_pixels % 2 == 0;
  if (d.sliding == 1 && d.rows == 32 && d.out.channels == 32 && even)
    depthwise8_pairs<Dot>(d);
  else if (d.sliding == 1)
    depthwise8_3x3<Dot, 1>(d);
  else
    depthwise8_3x3<Dot, 2>(d);
}
