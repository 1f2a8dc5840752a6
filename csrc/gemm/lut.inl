// lut: convolution of 2-bit values by look-up in tables of 4^kGroup bytes. One template; the leaf is the vocabulary V:
//   kGroup              products of a look-up: 2 or 3
//   kLanes              output channels of a vector of bytes
//   kMax1, kMax2        most pixels of a tile that is 1, 2 blocks of channels high
//   zero, load(bytes), table(bytes), look(table, indices), add8(&sum, v), add16(&sum, v)
//   odd(v)              every other byte, widened to 16 bits
//   store(int32*, total, odd, add): 16-bit sums of pairs of bytes, and of the odd ones -> int32 in order
//   load_some(bytes, n) zeros behind the first n, which are all that is read
//   code(a, b), code(a, b, c): vectors of bytes -> their low two bits, side by side
//   store_offsets(uint16*, codes): 4^kGroup times each
//   window_sum(bytes, n, flip): sum of bytes ^ flip
//
// A run is cut into kGroup parts; element i of each make one group. Its activations pick a table, its weights of each
// output channel are the index into it, the entry is the sum of the products plus a constant that makes it unsigned.
// Groups of activations are coded once for the rows at hand, wherever windows begin: the code at byte p holds p,
// p + part and, of three, p + 2 * part, so that windows which overlap share them. Of a kernel of three columns three
// parts are the columns.

// Positions of the codes of a run.
template <class V>
inline uint32_t part_of(const Conv& c) {
  return (c.valid + V::kGroup - 1) / V::kGroup;
}

// Codes of `count` groups, of which only the first `seconds` and `thirds` have a second and a third element.
template <class V>
void lut_codes(const uint8_t* in, size_t part, size_t count, size_t seconds, size_t thirds, uint16_t* out) {
  const auto rest = [](size_t n, size_t i) BITPRESS_INLINE { return n > i ? n - i : 0; };
  for (size_t i = 0; i < count; i += V::kLanes) {
    const auto first = V::load_some(in + i, count - i), second = V::load_some(in + i + part, rest(seconds, i));
    if constexpr (V::kGroup == 2)
      V::store_offsets(out + i, V::code(first, second));
    else
      V::store_offsets(out + i, V::code(first, second, V::load_some(in + i + 2 * part, rest(thirds, i))));
  }
}

// One look-up for each of MB blocks of channels x NB pixels; kFirst: sums begin with it.
template <class V, int MB, int NB, bool kFirst>
BITPRESS_INLINE inline void lut_step(const uint8_t* tables, const uint16_t* code, size_t step, const uint8_t* w,
                                     size_t block, typename V::Vec (&sum)[MB * NB]) {
  typename V::Vec index[MB];
  unroll<MB>([&](auto i) BITPRESS_INLINE { index[i] = V::load(w + static_cast<size_t>(i) * block); });
  unroll<NB>([&](auto j) BITPRESS_INLINE {
    const auto table = V::table(tables + code[static_cast<size_t>(j) * step]);
    unroll<MB>([&](auto i) BITPRESS_INLINE {
      const typename V::Vec v = V::look(table, index[i]);
      if constexpr (kFirst)
        sum[j * MB + i] = v;
      else
        V::add8(sum[j * MB + i], v);
    });
  });
}

// MB blocks of channels x NB pixels -> out [NB][MB * kLanes]. Bytes hold `delay` look-ups, 16 bits 257 times as many.
template <class V, int MB, int NB>
__attribute__((noinline)) void lut_tile(const Conv& c, const uint16_t* codes, const uint8_t* w, int32_t* out) {
  constexpr uint32_t kMost = 65535 / 255;
  typename V::Vec total[MB * NB], odd[MB * NB];
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { total[i] = odd[i] = V::zero(); });
  const size_t block = c.block_stride, step = c.pixel_stride;
  const uint8_t* const tables = c.tables;
  const uint32_t part = part_of<V>(c), delay = c.delay;
  uint32_t room = kMost;
  bool stored = false;
  for (uint32_t t = 0; t < c.taps; ++t) {
    const uint16_t* p = codes + c.tap_offsets[t];
    for (uint32_t todo = part; todo;) {
      const uint32_t n = todo < delay ? todo : delay;
      todo -= n;
      typename V::Vec sum[MB * NB];
      if constexpr (MB == 1) {
        lut_step<V, MB, NB, true>(tables, p++, step, w, block, sum);
        w += V::kLanes;
        for (const uint16_t* const end = p + n - 1; p != end; ++p, w += V::kLanes)
          lut_step<V, MB, NB, false>(tables, p, step, w, block, sum);
      } else {  // four steps without a loop: measured, 5-15 % faster for two blocks, slower for one
        const auto four = [&](auto first) BITPRESS_INLINE {
          unroll<4>([&](auto i) BITPRESS_INLINE {
            lut_step<V, MB, NB, first && i == 0>(tables, p + i, step, w + i * V::kLanes, block, sum);
          });
          p += 4;
          w += 4 * V::kLanes;
        };
        uint32_t k = 1;
        if (n >= 4) {
          four(Index<1>{});
          for (k = 4; k + 4 <= n; k += 4) four(Index<0>{});
        } else {
          lut_step<V, MB, NB, true>(tables, p++, step, w, block, sum);
          w += V::kLanes;
        }
        for (; k < n; ++k, ++p, w += V::kLanes) lut_step<V, MB, NB, false>(tables, p, step, w, block, sum);
      }
      // The even bytes are what the odd ones leave of the total: no vector is masked.
      unroll<MB * NB>([&](auto i) BITPRESS_INLINE {
        V::add16(total[i], sum[i]);
        V::add16(odd[i], V::odd(sum[i]));
      });
      if (--room == 0) {
        unroll<MB * NB>([&](auto i) BITPRESS_INLINE {
          V::store(out + i * static_cast<int>(V::kLanes), total[i], odd[i], stored);
          total[i] = odd[i] = V::zero();
        });
        stored = true;
        room = kMost;
      }
    }
  }
  unroll<MB * NB>([&](auto i)
                      BITPRESS_INLINE { V::store(out + i * static_cast<int>(V::kLanes), total[i], odd[i], stored); });
}

// At most `widest` pixels.
template <class V, int MB, int NB, int widest = NB>
void lut_tiles(uint32_t pixels, const Conv& c, const uint16_t* codes, const uint8_t* w, int32_t* out) {
  if constexpr (NB > 1)
    if (pixels < NB) return lut_tiles<V, MB, narrower(NB, widest), widest>(pixels, c, codes, w, out);
  lut_tile<V, MB, NB>(c, codes, w, out);
  if constexpr (NB < widest && !has_tile(NB + 1, widest))
    if (pixels > NB)
      lut_tiles<V, MB, narrower(NB, widest), widest>(pixels - NB, c, codes + NB * c.pixel_stride, w,
                                                     out + NB * MB * static_cast<int>(V::kLanes));
}

// MB blocks from `block` on, one row of pixels, cut into tiles of nearly equal width.
template <class V, class F, int MB, int NB>
void lut_row(const Conv& c, uint32_t block, uint32_t y, const uint16_t* codes) {
  alignas(64) int32_t acc[NB * MB * V::kLanes + 16];
  int32_t window[NB];
  const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
  const uint32_t row = block * V::kLanes, end = row + MB * V::kLanes;
  const uint32_t rows = (end < c.rows ? end : c.rows) - row;
  const uint32_t parts = (c.out_cols + NB - 1) / NB;
  for (uint32_t part = 0; part < parts; ++part) {
    const uint32_t x = c.out_cols * part / parts, pixels = c.out_cols * (part + 1) / parts - x;
    lut_tiles<V, MB, NB>(pixels, c, codes + x * c.pixel_stride, w, acc);
    if (c.out.factor) {
      for (uint32_t j = 0; j < pixels; ++j) {
        const uint8_t* in = c.in + y * c.row_stride + (x + j) * c.pixel_stride;
        uint32_t sum = 0;
        for (uint32_t t = 0; t < c.taps; ++t) sum += V::window_sum(in + c.tap_offsets[t], c.valid, 0);
        window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
      }
    }
    finish<F, FromSums>(c.out, acc, MB * V::kLanes, row, rows, c.first_pixel + y * c.out_row_pixels + x, pixels,
                        c.out.factor ? window : nullptr);
  }
}

template <class V, class F>
void lut_rows(const Conv& c, uint32_t begin, uint32_t end, const uint16_t* codes) {
  uint32_t block = c.block_begin;
  for (; c.block_end - block >= 2; block += 2)
    for (uint32_t y = begin; y < end; ++y) lut_row<V, F, 2, V::kMax2>(c, block, y, codes + (y - begin) * c.row_stride);
  if (block < c.block_end)
    for (uint32_t y = begin; y < end; ++y) lut_row<V, F, 1, V::kMax1>(c, block, y, codes + (y - begin) * c.row_stride);
}

template <class V, class F>
void lut(const Conv& c) {
  auto* const codes = reinterpret_cast<uint16_t*>(c.scratch);
  const size_t part = part_of<V>(c), step = c.pixel_stride, lacking = V::kGroup * part - c.valid;
  const size_t span = (c.out_cols - 1) * step + c.tap_offsets[c.taps - 1] + part;
  if (c.taps > 1) {
    const size_t all = (c.out_rows - 1) * c.row_stride + span;
    lut_codes<V>(c.in, part, all, all, all, codes);
    return lut_rows<V, F>(c, 0, c.out_rows, codes);
  }
  // One run, at offset 0: rows between those of a stride are not needed. Windows apart from one another are coded one
  // by one, and what the last groups lack is 0; others share codes.
  const size_t last = c.valid > 1 ? part - lacking : 0;  // groups that have their last element
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    const uint8_t* in = c.in + y * c.row_stride;
    if (step < c.valid)
      lut_codes<V>(in, part, span, span, span, codes);
    else
      for (uint32_t x = 0; x < c.out_cols; ++x)
        lut_codes<V>(in + x * step, part, part, V::kGroup == 2 ? last : c.valid > 1 ? part : 0, last, codes + x * step);
    lut_rows<V, F>(c, y, y + 1, codes);
  }
}
