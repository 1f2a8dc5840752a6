// gemv: few pixels against many weights, which stay packed: what is read from memory is what a file holds. One
// template; the leaf is the vocabulary V:
//   kLanes                  output channels of a block
//   kBytes                  of a vector
//   kExact                  whether dot() makes int32; else widen() does, before 16 bits can overflow
//   zero, load(bytes), field<bits, s>(v): field s of every byte
//   dot(&acc, a, w)         bytes of activations, unsigned, times fields
//   dot8(&sum, a, w)        the same for weights of eight bits, which are signed, to int32
//   widen(&sum, acc), total(sum): what is in all lanes
//   window_sum(bytes, n, flip): sum of bytes ^ flip
// A row is cut into chunks of a vector: field s of byte j of a chunk is element s * kBytes + j of it. Fields are
// unsigned: w = 2^shift * field + factor. Windows are copied to where zeros fill the last chunk up.

// Chunks whose products fit 16 bits: pairs of them are at most 2 * 255 * (2^bits - 1).
template <int kBits>
constexpr size_t kGemvChunks = 32767 / (2 * 255 * ((1 << kBits) - 1)) / (8 / kBits);

// One chunk of R rows x P pixels.
template <class V, int kBits, int R, int P>
BITPRESS_INLINE inline void gemv_step(const uint8_t* a, size_t stride, const uint8_t* w, size_t row_bytes,
                                      typename V::Vec (&acc)[R * P]) {
  typename V::Vec packed[R];
  unroll<R>([&](auto r) BITPRESS_INLINE {
    packed[r] = V::load(w + static_cast<size_t>(r) * row_bytes);
    __builtin_prefetch(w + static_cast<size_t>(R + r) * row_bytes);
  });
  unroll<8 / kBits>([&](auto s) BITPRESS_INLINE {
    unroll<P>([&](auto p) BITPRESS_INLINE {
      const typename V::Vec x = V::load(a + static_cast<size_t>(p) * stride + s * V::kBytes);
      unroll<R>([&](auto r) BITPRESS_INLINE {
        if constexpr (kBits == 8)
          V::dot8(acc[p * R + r], x, packed[r]);
        else
          V::dot(acc[p * R + r], x, V::template field<kBits, s>(packed[r]));
      });
    });
  });
}

// R rows x P pixels -> out [P][kLanes].
template <class V, int kBits, int R, int P>
void gemv_tile(const uint8_t* a, size_t stride, const uint8_t* w, size_t row_bytes, int32_t* out) {
  constexpr size_t kStep = V::kBytes * 8 / kBits;
  typename V::Vec sum[R * P];
  unroll<R * P>([&](auto i) BITPRESS_INLINE { sum[i] = V::zero(); });
  const uint8_t* const end = w + row_bytes;
  while (w != end) {
    if constexpr (kBits == 8 || V::kExact) {
      gemv_step<V, kBits, R, P>(a, stride, w, row_bytes, sum);
      a += kStep;
      w += V::kBytes;
    } else {
      typename V::Vec acc[R * P];
      unroll<R * P>([&](auto i) BITPRESS_INLINE { acc[i] = V::zero(); });
      const size_t left = static_cast<size_t>(end - w), most = kGemvChunks<kBits> * V::kBytes;
      for (const uint8_t* const stop = w + (left < most ? left : most); w != stop; w += V::kBytes, a += kStep)
        gemv_step<V, kBits, R, P>(a, stride, w, row_bytes, acc);
      unroll<R * P>([&](auto i) BITPRESS_INLINE { V::widen(sum[i], acc[i]); });
    }
  }
  unroll<P>([&](auto p) BITPRESS_INLINE {
    unroll<R>([&](auto r) BITPRESS_INLINE { out[p * static_cast<int>(V::kLanes) + r] = V::total(sum[p * R + r]); });
  });
}

// P neighbouring pixels from (y, x) on, all blocks.
template <class V, class F, int kBits, int P>
void gemv_pixels(const Conv& c, uint32_t y, uint32_t x) {
  constexpr int R = P == 1 ? 4 : 2;
  const size_t row_bytes = c.block_stride / V::kLanes, stride = row_bytes * 8 / kBits;
  alignas(64) int32_t acc[P * V::kLanes + 16];
  int32_t window[P];
  for (uint32_t p = 0; p < P; ++p) {
    const uint8_t* in = c.in + y * c.row_stride + (x + p) * c.pixel_stride;
    uint8_t* to = c.scratch + p * stride;
    uint32_t sum = 0;
    for (uint32_t t = 0; t < c.taps; ++t, to += c.valid) {
      __builtin_memcpy(to, in + c.tap_offsets[t], c.valid);
      if (c.out.factor) sum += V::window_sum(to, c.valid, 0);
    }
    __builtin_memset(to, 0, stride - static_cast<size_t>(c.taps) * c.valid);
    window[p] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
  }
  const size_t pixel = c.first_pixel + y * c.out_row_pixels + x;
  for (uint32_t block = c.block_begin; block < c.block_end; ++block) {
    const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
    const uint32_t row = block * V::kLanes, rows = c.rows - row < V::kLanes ? c.rows - row : V::kLanes;
    for (uint32_t r = 0; r < rows; r += R)
      gemv_tile<V, kBits, R, P>(c.scratch, stride, w + r * row_bytes, row_bytes, acc + r);
    finish<F, FromSums>(c.out, acc, V::kLanes, row, rows, pixel, P, c.out.factor ? window : nullptr);
  }
}

template <class V, class F, int kBits>
void gemv_of(const Conv& c) {
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    uint32_t x = 0;
    for (; c.out_cols - x >= kGemvPixels; x += kGemvPixels) gemv_pixels<V, F, kBits, kGemvPixels>(c, y, x);
    for (; x < c.out_cols; ++x) gemv_pixels<V, F, kBits, 1>(c, y, x);
  }
}

template <class V, class F>
void gemv(const Conv& c) {
  if (c.w_bits == 1) return gemv_of<V, F, 1>(c);
  if (c.w_bits == 2) return gemv_of<V, F, 2>(c);
  if (c.w_bits == 4) return gemv_of<V, F, 4>(c);
  gemv_of<V, F, 8>(c);
}
