// 16 x 16 bytes turned: row i of `out` is column i of `in`. For x86. Anonymous namespace.

// Four perfect shuffles of the rows: each moves the top bit of a byte's row to the bottom of its column.
inline void turn16(const uint8_t* in, size_t in_stride, uint8_t* out, size_t out_stride) {
  __m128i rows[16];
  unroll<16>([&](auto i) BITPRESS_INLINE {
    rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + static_cast<size_t>(i) * in_stride));
  });
  unroll<4>([&](auto) BITPRESS_INLINE {
    __m128i made[16];
    unroll<8>([&](auto i) BITPRESS_INLINE {
      made[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      made[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    });
    unroll<16>([&](auto i) BITPRESS_INLINE { rows[i] = made[i]; });
  });
  unroll<16>([&](auto i) BITPRESS_INLINE {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + static_cast<size_t>(i) * out_stride), rows[i]);
  });
}
