// bitserial: convolution by AND and popcount on bit planes. One template; the leaf is the vocabulary V:
//   kLanes           output channels of a vector of 32-bit words
//   kSteps           words whose counts may be added before reduce(): 8 bits a byte, 255 / 8 of them
//   kPixels, kBlocks pixels and blocks of channels of a tile (at most 2 blocks)
//   load(words), broadcast(word), zero, count(and of two), add, reduce(counts) -> int32 lanes,
//   mul_add(sum, int32, lanes), store(int32*, lanes)
//   pack(bytes, planes, bits, count, stride): count bytes, a multiple of 64 -> planes, `stride` words apart
//   copy(to, from, n): may read and write up to 63 bytes more
//   window_sum(bytes, n, flip): sum of bytes ^ flip
// Bits of K are gathered for a tile of pixels at a time, so that the windows of the layer are never in memory at once.

// Words of one plane of a window: an even number, so that 64 bits are stored at a time.
inline size_t plane_words(const Conv& c) { return (static_cast<size_t>(c.words) + 1) & ~size_t{1}; }

template <class V, int MB, int NB>
void bitserial_tile(const Conv& c, const uint32_t* a, const uint32_t* w, size_t block_words, int32_t* out) {
  struct {
    typename V::Vec v[MB * NB];
  } sum, counts;
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { sum.v[i] = V::zero(); });
  const size_t a_words = plane_words(c), a_stride = c.a_bits * a_words;
  for (uint32_t p = 0; p < c.w_bits; ++p) {
    for (uint32_t q = 0; q < c.a_bits; ++q) {
      const int32_t coeff = c.coeffs[p * c.a_bits + q];
      const uint32_t* aq = a + q * a_words;
      const uint32_t* wp = w + static_cast<size_t>(p) * c.words * V::kLanes;
      for (uint32_t done = 0; done < c.words;) {
        const uint32_t n = c.words - done < V::kSteps ? c.words - done : V::kSteps;
        unroll<MB * NB>([&](auto i) BITPRESS_INLINE { counts.v[i] = V::zero(); });
        for (uint32_t k = 0; k < n; ++k) {
          typename V::Vec wv[MB];
          unroll<MB>([&](auto i) BITPRESS_INLINE { wv[i] = V::load(wp + static_cast<size_t>(i) * block_words); });
          unroll<NB>([&](auto j) BITPRESS_INLINE {
            const typename V::Vec av = V::broadcast(aq + static_cast<size_t>(j) * a_stride);
            unroll<MB>([&](auto i) BITPRESS_INLINE {
              counts.v[j * MB + i] = V::add(counts.v[j * MB + i], V::count(V::both(av, wv[i])));
            });
          });
          ++aq;
          wp += V::kLanes;
        }
        unroll<MB * NB>([&](auto i)
                            BITPRESS_INLINE { sum.v[i] = V::mul_add(sum.v[i], coeff, V::reduce(counts.v[i])); });
        done += n;
      }
    }
  }
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { V::store(out + i * static_cast<int>(V::kLanes), sum.v[i]); });
}

template <class V, int MB, int NB>
void bitserial_tiles(uint32_t pixels, const Conv& c, const uint32_t* a, const uint32_t* w, size_t block_words,
                     int32_t* out) {
  if constexpr (NB > 1)
    if (pixels < NB) return bitserial_tiles<V, MB, NB - 1>(pixels, c, a, w, block_words, out);
  bitserial_tile<V, MB, NB>(c, a, w, block_words, out);
}

// Windows of `pixels` pixels -> their planes, and factor * the sum of each window's levels.
template <class V>
void bitserial_pack(const Conv& c, const uint8_t* in, uint32_t pixels, uint8_t* gathered, uint32_t* planes,
                    int32_t* window) {
  const size_t depth = static_cast<size_t>(c.taps) * c.valid, bytes = (depth + 63) / 64 * 64;
  const bool whole = c.taps == 1 && depth == bytes;
  for (uint32_t j = 0; j < pixels && !whole; ++j) {
    uint8_t* to = gathered + j * (bytes + 64);
    for (uint32_t t = 0; t < c.taps; ++t)
      V::copy(to + static_cast<size_t>(t) * c.valid, in + j * c.pixel_stride + c.tap_offsets[t], c.valid);
    __builtin_memset(to + depth, 0, 64);
  }
  // A loop of its own: vectors that overlap what was just stored would wait for the stores.
  for (uint32_t j = 0; j < pixels; ++j) {
    const uint8_t* from = whole ? in + j * c.pixel_stride + c.tap_offsets[0] : gathered + j * (bytes + 64);
    V::pack(from, planes + j * c.a_bits * plane_words(c), c.a_bits, bytes, plane_words(c));
    if (c.out.factor) {
      const uint32_t flipped = c.flip * static_cast<uint32_t>(depth);
      const uint32_t sum = V::window_sum(from, static_cast<uint32_t>(depth), c.flip) - flipped;
      window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
    }
  }
}

template <class V, class F>
void bitserial(const Conv& c) {
  constexpr uint32_t NB = V::kPixels, MB = V::kBlocks;
  alignas(64) int32_t acc[NB * MB * V::kLanes + 16];
  int32_t window[kStrip];
  const size_t bytes = (static_cast<size_t>(c.taps) * c.valid + 63) / 64 * 64;
  const size_t block_words = c.block_stride / sizeof(uint32_t), pixel_words = c.a_bits * plane_words(c);
  uint32_t* planes = reinterpret_cast<uint32_t*>(c.scratch + kStrip * (bytes + 64));
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    for (uint32_t x = 0; x < c.out_cols; x += kStrip) {
      const uint32_t strip = c.out_cols - x < kStrip ? c.out_cols - x : kStrip;
      bitserial_pack<V>(c, c.in + y * c.row_stride + x * c.pixel_stride, strip, c.scratch, planes, window);
      for (uint32_t block = c.block_begin; block < c.block_end;) {
        const uint32_t* w = static_cast<const uint32_t*>(c.weights) + block * block_words;
        const uint32_t blocks = c.block_end - block < MB ? 1 : MB;
        const uint32_t row = block * V::kLanes, made = blocks * V::kLanes;
        const uint32_t rows = c.rows - row < made ? c.rows - row : made;
        for (uint32_t j = 0; j < strip; j += NB) {
          const uint32_t pixels = strip - j < NB ? strip - j : NB;
          if (blocks == MB)
            bitserial_tiles<V, MB, NB>(pixels, c, planes + j * pixel_words, w, block_words, acc);
          else
            bitserial_tiles<V, 1, NB>(pixels, c, planes + j * pixel_words, w, block_words, acc);
          finish<F, FromSums>(c.out, acc, made, row, rows, c.first_pixel + y * c.out_row_pixels + x + j, pixels,
                              c.out.factor ? window + j : nullptr);
        }
        block += blocks;
      }
    }
  }
}
