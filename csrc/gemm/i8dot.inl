// i8dot: convolution by multiply-add instructions on bytes or int16. One template; the leaf is the vocabulary V:
//   kLanes            output channels of a vector
//   kMax1/2/4         most pixels of a tile that is 1, 2, 4 blocks of channels high: accumulators must fit registers
//   kDelayed          dot() accumulates in int16 and widen() makes int32 of it, every Conv::delay steps
//   Vec, Operand      of sums, of weights
//   zero, load(w), broadcast(4 bytes), dot(&acc, a, w), widen(acc), store(int32*, v), add_store(int32*, v)
//   window_sum(bytes, n, flip): sum of bytes ^ flip
//   kSlide1/2         most pixels of a tile of sliding windows, 1 or 2 blocks high; 0: they have no tiles of their own
// A vocabulary of signed bytes (family s8dot) broadcasts bytes ^ 0x80, which are 128 less.
// A step takes 4 bytes of activations (4 levels, or 2 of int16), and kLanes * 4 bytes of weights of each block.

// Address of pixel J: six of a pointer's pixels lie at multiples of three strides, which x86 adds in an address; more
// than seven pixels take a second pointer. A register for each would spill.
struct Strides {
  size_t s1, s3, s5;
};
constexpr int kPointer = 7;  // pixels of a pointer

template <int J>
BITPRESS_INLINE inline const uint8_t* pixel_at(const uint8_t* p, const uint8_t* q, const Strides& s) {
  static_assert(J < 2 * kPointer, "one more pointer is needed");
  if constexpr (J >= kPointer) return pixel_at<J - kPointer>(q, q, s);
  if constexpr (J == 0) return p;
  if constexpr (J == 1) return p + s.s1;
  if constexpr (J == 2) return p + 2 * s.s1;
  if constexpr (J == 3) return p + s.s3;
  if constexpr (J == 4) return p + 4 * s.s1;
  if constexpr (J == 5) return p + s.s5;
  if constexpr (J == 6) return p + 2 * s.s3;
}

// The same with a third pointer.
template <int J>
BITPRESS_INLINE inline const uint8_t* pixel_at(const uint8_t* p, const uint8_t* q, const uint8_t* r, const Strides& s) {
  if constexpr (J < 2 * kPointer) return pixel_at<J>(p, q, s);
  if constexpr (J >= 2 * kPointer) return pixel_at<J - 2 * kPointer>(r, r, s);
}

// Windows of three columns, one pixel apart: MB blocks of channels x NB pixels -> out [NB][MB * kLanes]. Each pixel is
// read once for the three windows that it is in, not once for each: a load beside every product costs a quarter of the
// products' rate (Intel Xeon, family 6, model 167: 0.47 cycles of its counter a product, 0.38 without).
template <class V, int MB, int NB>
void i8dot_slide(const Conv& c, const uint8_t* in, const uint8_t* w, int32_t* out) {
  constexpr int kColumns = 3;
  struct {
    typename V::Vec v[MB * NB];
  } acc;
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { acc.v[i] = V::zero(); });
  Strides s{c.pixel_stride, 3 * c.pixel_stride, 5 * c.pixel_stride};
  asm("" : "+r"(s.s3), "+r"(s.s5));  // not to be computed again
  const uint32_t steps = static_cast<uint32_t>(c.pixel_stride / 4);
  const size_t block = c.block_stride, column = size_t{steps} * V::kLanes * 4;
  for (uint32_t t = 0; t < c.taps; ++t) {
    const uint8_t* p = in + c.tap_offsets[t];
    [[maybe_unused]] const uint8_t *q = p + kPointer * c.pixel_stride, *r = q + kPointer * c.pixel_stride;
    for (uint32_t k = 0; k < steps; ++k) {
      typename V::Operand wv[kColumns * MB];
      unroll<MB>([&](auto i) BITPRESS_INLINE {
        unroll<kColumns>([&](auto x) BITPRESS_INLINE { wv[x * MB + i] = V::load(w + i * block + x * column); });
      });
      unroll<NB + kColumns - 1>([&](auto j) BITPRESS_INLINE {
        const auto a = V::broadcast(pixel_at<j>(p, q, r, s));
        unroll<kColumns>([&](auto x) BITPRESS_INLINE {
          if constexpr (j >= x && j - x < NB)
            unroll<MB>([&](auto i) BITPRESS_INLINE { V::dot(acc.v[(j - x) * MB + i], a, wv[x * MB + i]); });
        });
      });
      p += 4;
      if constexpr (NB + kColumns - 1 > kPointer) q += 4;
      if constexpr (NB + kColumns - 1 > 2 * kPointer) r += 4;
      w += V::kLanes * 4;
    }
    w += (kColumns - 1) * column;
  }
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { V::store(out + i * static_cast<int>(V::kLanes), acc.v[i]); });
}

// MB blocks of channels x NB pixels -> out [NB][MB * kLanes].
template <class V, int MB, int NB>
void i8dot_tile(const Conv& c, const uint8_t* in, const uint8_t* w, int32_t* out) {
  struct {
    typename V::Vec v[MB * NB];
  } acc;
  unroll<MB * NB>([&](auto i) BITPRESS_INLINE { acc.v[i] = V::zero(); });
  Strides s{c.pixel_stride, 3 * c.pixel_stride, 5 * c.pixel_stride};
  asm("" : "+r"(s.s3), "+r"(s.s5));  // not to be computed again
  const size_t block = c.block_stride;
  const uint32_t steps = c.run * static_cast<uint32_t>(V::kElementBytes) / 4;
  [[maybe_unused]] uint32_t left = c.delay;
  if constexpr (V::kDelayed)
    unroll<MB * NB>([&](auto i) BITPRESS_INLINE { V::store(out + i * static_cast<int>(V::kLanes), V::zero()); });
  for (uint32_t t = 0; t < c.taps; ++t) {
    const uint8_t* p = in + c.tap_offsets[t];
    [[maybe_unused]] const uint8_t* q = p + kPointer * c.pixel_stride;
    uint32_t todo = steps;
    while (todo) {
      uint32_t n = todo;
      if constexpr (V::kDelayed) n = todo < left ? todo : left;
      todo -= n;
      for (uint32_t k = 0; k < n; ++k) {  // two steps at once: no faster with AVX2, on 1x1 and 3x3 alike
        typename V::Operand wv[MB];
        unroll<MB>([&](auto i) BITPRESS_INLINE { wv[i] = V::load(w + static_cast<size_t>(i) * block); });
        unroll<NB>([&](auto j) BITPRESS_INLINE {
          const auto a = V::broadcast(pixel_at<j>(p, q, s));
          unroll<MB>([&](auto i) BITPRESS_INLINE { V::dot(acc.v[j * MB + i], a, wv[i]); });
        });
        p += 4;
        if constexpr (NB > kPointer) q += 4;
        w += V::kLanes * 4;
      }
      if constexpr (V::kDelayed) {
        left -= n;
        if (left == 0 || (todo == 0 && t + 1 == c.taps)) {
          unroll<MB * NB>([&](auto i) BITPRESS_INLINE {
            V::add_store(out + i * static_cast<int>(V::kLanes), V::widen(acc.v[i]));
            acc.v[i] = V::zero();
          });
          left = c.delay;
        }
      }
    }
  }
  if constexpr (!V::kDelayed)
    unroll<MB * NB>([&](auto i) BITPRESS_INLINE { V::store(out + i * static_cast<int>(V::kLanes), acc.v[i]); });
}

// At most `widest` pixels; `slides`: of sliding windows.
template <class V, int MB, int NB, bool slides = false, int widest = NB>
void i8dot_tiles(uint32_t pixels, const Conv& c, const uint8_t* in, const uint8_t* w, int32_t* out) {
  if constexpr (NB > 1)
    if (pixels < NB) return i8dot_tiles<V, MB, narrower(NB, widest), slides, widest>(pixels, c, in, w, out);
  if constexpr (slides)
    i8dot_slide<V, MB, NB>(c, in, w, out);
  else
    i8dot_tile<V, MB, NB>(c, in, w, out);
  if constexpr (NB < widest && !has_tile(NB + 1, widest))
    if (pixels > NB)
      i8dot_tiles<V, MB, narrower(NB, widest), slides, widest>(pixels - NB, c, in + NB * c.pixel_stride, w,
                                                               out + NB * MB * static_cast<int>(V::kLanes));
}

// factor * sum of the bytes of each pixel's window. Where runs are short, those of a pixel are added as they are: first
// layers took as long for these sums as for their products.
template <class V>
void window_sums(const Conv& c, const uint8_t* in, uint32_t pixels, int32_t* window) {
#if defined(__SSE2__)
  if (c.valid <= 16) {
    alignas(16) uint8_t some[32] = {};
    __builtin_memset(some, 0xFF, 16);
    const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(some + 16 - c.valid));
    for (uint32_t j = 0; j < pixels; ++j) {
      __m128i sums = _mm_setzero_si128();
      for (uint32_t t = 0; t < c.taps; ++t) {
        const auto* run = reinterpret_cast<const __m128i*>(in + j * c.pixel_stride + c.tap_offsets[t]);
        sums = _mm_add_epi64(sums, _mm_sad_epu8(_mm_and_si128(_mm_loadu_si128(run), first), _mm_setzero_si128()));
      }
      const uint32_t sum = static_cast<uint32_t>(_mm_cvtsi128_si32(sums) + _mm_cvtsi128_si32(_mm_srli_si128(sums, 8)));
      window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
    }
    return;
  }
#endif
  for (uint32_t j = 0; j < pixels; ++j) {
    uint32_t sum = 0;
    for (uint32_t t = 0; t < c.taps; ++t) sum += V::window_sum(in + j * c.pixel_stride + c.tap_offsets[t], c.valid, 0);
    window[j] = static_cast<int32_t>(sum * static_cast<uint32_t>(c.out.factor));
  }
}

// MB blocks from `block` on, all pixels. Rows of pixels are cut into tiles of nearly equal width. Tiles that follow one
// another in the output are finished together, as many as 8 KiB of sums: an epilogue of its own for each took a quarter
// of a layer of 16 channels, one for each row a tenth.
template <class V, class F, int MB, int NB, bool slides = false>
void i8dot_blocks(const Conv& c, uint32_t block) {
  constexpr uint32_t kPixel = MB * V::kLanes, kMost = 8192 / (kPixel * sizeof(int32_t)),
                     kHeld = kMost < NB ? NB : kMost;
  alignas(64) int32_t acc[kHeld * kPixel + 16];
  int32_t window[kHeld];
  const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
  const uint32_t row = block * V::kLanes, end = row + kPixel;
  const uint32_t rows = (end < c.rows ? end : c.rows) - row;
  const uint32_t parts = (c.out_cols + NB - 1) / NB;  // of a row: of so many pixels, or one more
  const uint32_t least = c.out_cols / parts, more = c.out_cols % parts;
  uint32_t held = 0;
  size_t first = 0;
  const auto finish_held = [&] {
    if (held) finish<F, FromSums>(c.out, acc, kPixel, row, rows, first, held, c.out.factor ? window : nullptr);
    held = 0;
  };
  for (uint32_t y = 0; y < c.out_rows; ++y) {
    for (uint32_t x = 0, left = parts - more, pixels; x < c.out_cols; x += pixels) {
      pixels = least + (left == 0);
      left -= left > 0;
      const size_t pixel = c.first_pixel + y * c.out_row_pixels + x;
      if (held + pixels > kHeld || pixel != first + held) finish_held();
      if (!held) first = pixel;
      const uint8_t* in = c.in + y * c.row_stride + x * c.pixel_stride;
      i8dot_tiles<V, MB, NB, slides>(pixels, c, in, w, acc + held * kPixel);
      if constexpr (V::kElementBytes == 1)  // int16 holds every level, and needs no factor
        if (c.out.factor) window_sums<V>(c, in, pixels, window + held);
      held += pixels;
    }
  }
  finish_held();
}

template <class V, class F>
void i8dot(const Conv& c) {
  uint32_t block = c.block_begin;
  if constexpr (V::kSlide1 > 0) {
    // Narrower tiles read weights more often: with levels of 8 bits, two blocks of 37 KB took 2 % longer so, of 74 KB 4
    // %.
    constexpr size_t kNear = 24 << 10;
    const auto tiles = [&](uint32_t most) { return (c.out_cols + most - 1) / most; };
    if (c.run * V::kElementBytes == 3 * c.pixel_stride &&
        (tiles(V::kSlide2) <= tiles(V::kMax2) || 2 * c.block_stride <= kNear)) {
      for (; c.block_end - block >= 2; block += 2) i8dot_blocks<V, F, 2, V::kSlide2, true>(c, block);
      if (block < c.block_end) i8dot_blocks<V, F, 1, V::kSlide1, true>(c, block);
      return;
    }
  }
  if (c.out_cols <= V::kMax4)
    for (; c.block_end - block >= 4; block += 4) i8dot_blocks<V, F, 4, V::kMax4>(c, block);
  for (; c.block_end - block >= 2; block += 2) i8dot_blocks<V, F, 2, V::kMax2>(c, block);
  if (block < c.block_end) i8dot_blocks<V, F, 1, V::kMax1>(c, block);
}
