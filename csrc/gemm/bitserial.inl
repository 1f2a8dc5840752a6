// bitserial: convolution by AND and popcount on bit planes. One template; the leaf is the vocabulary V:
//   kLanes           output channels of a vector of 32-bit words
//   kSteps           words whose counts may be added before reduce(): 8 bits a byte, 255 / 8 of them
//   kPixels, kBlocks pixels and blocks of channels of a tile (at most 2 blocks)
//   load(words), broadcast(word), zero, count(and of two), add, reduce(counts) -> int32 lanes,
//   mul_add(sum, int32, lanes), store(int32*, lanes)
//   pack(bytes, words, bits, count, plane_words): count bytes (readable up to a multiple of 64, zero behind) -> planes
//   window_sum(bytes, n, flip): sum of bytes ^ flip
// Bits of K are gathered for a tile of pixels at a time, so that the windows of the layer are never in memory at once.

template <class V, int MB, int NB>
void bitserial_tile(const Conv& c, const uint32_t* a, const uint32_t* w, size_t block_words, int32_t* out) {
  struct {
    typename V::Vec v[MB * NB];
  } sum, counts;
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { sum.v[i] = V::zero(); });
  const size_t a_stride = static_cast<size_t>(c.a_bits) * c.words;
  for (uint32_t p = 0; p < c.w_bits; ++p) {
    for (uint32_t q = 0; q < c.a_bits; ++q) {
      const int32_t coeff = c.coeffs[p * c.a_bits + q];
      const uint32_t* aq = a + static_cast<size_t>(q) * c.words;
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

template <class V, class F>
void bitserial(const Conv& c) {
  constexpr int NB = V::kPixels, MB = V::kBlocks;
  alignas(64) int32_t acc[NB * MB * V::kLanes + 16];
  int32_t window[NB];
  const size_t depth = static_cast<size_t>(c.taps) * c.valid, bytes = (depth + 63) / 64 * 64;
  const size_t block_words = c.block_stride / sizeof(uint32_t);
  uint8_t* gathered = c.scratch;  // [bytes], the tail zero
  uint32_t* planes = reinterpret_cast<uint32_t*>(c.scratch + bytes);
  for (size_t i = depth; i < bytes; ++i) gathered[i] = 0;
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    for (uint32_t x = 0; x < c.out_cols; x += NB) {
      const uint32_t pixels = c.out_cols - x < NB ? c.out_cols - x : NB;
      for (uint32_t j = 0; j < pixels; ++j) {
        const uint8_t* in = c.in + y * c.row_stride + (x + j) * c.pixel_stride;
        const uint8_t* source = in + c.tap_offsets[0];
        if (c.taps > 1 || depth != bytes) {
          for (uint32_t t = 0; t < c.taps; ++t)
            __builtin_memcpy(gathered + static_cast<size_t>(t) * c.valid, in + c.tap_offsets[t], c.valid);
          source = gathered;
        }
        V::pack(source, planes + static_cast<size_t>(j) * c.a_bits * c.words, c.a_bits, bytes, c.words);
        if (c.out.factor) {
          const uint32_t sum =
              V::window_sum(source, static_cast<uint32_t>(depth), c.flip) - c.flip * static_cast<uint32_t>(depth);
          window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
        }
      }
      const size_t pixel = c.first_pixel + y * c.out_row_pixels + x;
      uint32_t block = c.block_begin;
      for (; block < c.block_end; block += MB) {
        const uint32_t* w = static_cast<const uint32_t*>(c.weights) + block * block_words;
        const uint32_t blocks = c.block_end - block < MB ? c.block_end - block : MB;
        if (blocks == MB)
          bitserial_tiles<V, MB, NB>(pixels, c, planes, w, block_words, acc);
        else
          bitserial_tiles<V, 1, NB>(pixels, c, planes, w, block_words, acc);
        const uint32_t row = block * V::kLanes, rows = c.rows - row;
        const uint32_t made = (blocks == MB ? MB : 1) * static_cast<uint32_t>(V::kLanes);
        finish<F, FromSums>(c.out, acc, made, row, rows < made ? rows : made, pixel, pixels,
                            c.out.factor ? window : nullptr);
      }
    }
  }
}
