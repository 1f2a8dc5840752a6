// winograd: 3x3 windows one pixel apart, four output pixels at a time, in 16 instead of 36 products a channel: F(2x2,
// 3x3) of Winograd, in integers, hence exact. For a tile of 4x4 levels d and a kernel of 3x3 weights g
//   4 * y = A' ((G g G') * (B' d B)) A, elementwise in the middle, summed over channels there,
//   B' = [1 0 -1 0; 0 1 1 0; 0 -1 1 0; 0 1 0 -1], G = [2 0 0; 1 1 1; 1 -1 1; 0 0 2], A' = [1 1 1 0; 0 1 -1 -1],
// G being twice the usual one, so that nothing is a fraction. Four times a sum fits int32 (csrc/kernels/dispatch.cc),
// so whatever wraps on the way there does no harm, and a shift by two divides exactly.
//
// Bytes (family winograd8): of levels a <= 63, B' d B spans 4 * a, of which Conv::lift = 2 * a makes unsigned bytes,
// computed modulo 256; only its second row's second, a sum of four, has no need. What the lift adds to the products is
// taken back from the tiles, Conv::tile_bias. G g G' fits signed bytes. int16 (family winograd16) holds both as they
// are.
//
// The middle are 16 matrix products, by the tiles of i8dot. The leaf is its vocabulary V, one of floats F, and T:
//   kChannels           of a vector of levels
//   kBytes              of one that is stored
//   Vec, load(bytes), add, sub, store(bytes, v); kLifted, and lifted(v, lift) where it is
// F has sub_i32, shr_i32<n> and store_i32 besides.
// One strip of tiles at a time, numbered through the rows at hand: their transformed levels, [16][tiles][run], stay in
// the second cache, which all blocks of channels read.

// Positions of a strip, in bytes, one behind another; vectors are stored beyond the last tile.
template <class V>
struct StripLayout {
  static constexpr size_t kTile = kWinogradBlocks * V::kLanes;  // sums of one
  size_t pitch, position, apart;                                // of tiles, of places in bytes; of places of products
  uint8_t* inputs;
  int32_t *products, *pixels, *windows;

  explicit StripLayout(const Conv& c)
      : pitch(c.run * V::kElementBytes),
        position((c.strip * pitch + 2 * kSlack - 1) / kSlack * kSlack),
        apart(c.strip * kTile + kSlack / sizeof(int32_t)),  // not a power of two, which few sets of a cache would hold
        inputs(c.scratch),
        products(reinterpret_cast<int32_t*>(inputs + 16 * position)),
        pixels(products + 16 * apart),
        windows(pixels + 4 * c.strip * kTile) {}
};

// B' d B of `count` neighbouring tiles, from output pixel (y, x) on, to 16 places l.position bytes apart. Rows of B' d
// one by one, columns of it two by two: those of a tile's right half are its neighbour's left one. Behind the last
// channels a vector reaches into the next tile, so the last are made first.
template <class T, class V>
void transform_inputs(const Conv& c, const StripLayout<V>& l, uint32_t y, uint32_t x, uint32_t count, uint8_t* to) {
  constexpr int kFirst[] = {0, 1, 2, 1}, kSecond[] = {2, 2, 1, 3};
  const size_t step = c.pixel_stride, place = l.position, pitch = l.pitch;
  // What lies outside only reaches outputs that lie outside.
  const uint8_t* rows[4];
  for (uint32_t i = 0; i < 4; ++i)
    rows[i] = c.in + (y + i < c.out_rows + 2 ? y + i : c.out_rows + 1) * c.row_stride + x * step;
  const size_t last = x + 2 * count + 1 < c.out_cols + 2 ? step : 0;
  [[maybe_unused]] const uint8_t lift = c.lift;
  for (size_t at = (c.run - 1) / T::kChannels * T::kChannels + T::kChannels; at != 0;) {
    at -= T::kChannels;
    unroll<4>([&](auto i) BITPRESS_INLINE {
      const auto both = [](auto n, typename T::Vec a, typename T::Vec b)
                            BITPRESS_INLINE { return n == 1 ? T::add(a, b) : T::sub(a, b); };
      const auto put = [&](auto j, uint8_t* p, typename T::Vec v) BITPRESS_INLINE {
        if constexpr (T::kLifted && !(i == 1 && j == 1)) v = T::lifted(v, lift);
        T::store(p, v);
      };
      const uint8_t *a = rows[kFirst[i]] + at, *b = rows[kSecond[i]] + at;
      uint8_t* p = to + 4 * i * place + at * V::kElementBytes;
      typename T::Vec t0 = both(i, T::load(a), T::load(b)), t1 = both(i, T::load(a + step), T::load(b + step));
      for (uint32_t k = 1; k <= count; ++k, p += pitch) {
        a += 2 * step;
        b += 2 * step;
        const size_t next = k < count ? step : last;
        const typename T::Vec t2 = both(i, T::load(a), T::load(b)), t3 = both(i, T::load(a + next), T::load(b + next));
        put(Index<0>{}, p, T::sub(t0, t2));
        put(Index<1>{}, p + place, T::add(t1, t2));
        put(Index<2>{}, p + 2 * place, T::sub(t2, t1));
        put(Index<3>{}, p + 3 * place, T::sub(t1, t3));
        t0 = t2;
        t1 = t3;
      }
    });
  }
}

// A' m A of F::kLanes rows: products [16], `apart` int32 from one to the next -> four pixels' sums.
template <class T, class F>
BITPRESS_INLINE inline void transform_output(const int32_t* products, size_t apart, const int32_t* bias,
                                             size_t bias_apart, int32_t* top, int32_t* bottom, size_t pixel) {
  using Ints = typename F::Ints;
  Ints high[4], low[4];
  unroll<4>([&](auto j) BITPRESS_INLINE {
    const Ints m1 = F::load_i32(products + (4 + j) * apart), m2 = F::load_i32(products + (8 + j) * apart);
    high[j] = F::add_i32(F::load_i32(products + j * apart), F::add_i32(m1, m2));
    low[j] = F::sub_i32(F::sub_i32(m1, m2), F::load_i32(products + (12 + j) * apart));
  });
  const auto pair = [&](const Ints(&m)[4], int32_t* to, const int32_t* from) BITPRESS_INLINE {
    Ints left = F::add_i32(m[0], F::add_i32(m[1], m[2])), right = F::sub_i32(F::sub_i32(m[1], m[2]), m[3]);
    if constexpr (T::kLifted) {
      left = F::add_i32(left, F::load_i32(from));
      right = F::add_i32(right, F::load_i32(from + bias_apart));
    }
    F::store_i32(to, F::template shr_i32<2>(left));
    F::store_i32(to + pixel, F::template shr_i32<2>(right));
  };
  pair(high, top, bias);
  pair(low, bottom, bias + 2 * bias_apart);
}

// `count` tiles from `first` on, of `across` in a row: MB blocks of channels from `block` on.
template <class T, class V, class F, int MB, int NB>
void winograd_blocks(const Conv& c, const StripLayout<V>& l, uint32_t block, uint32_t first, uint32_t count,
                     uint32_t across) {
  constexpr size_t kWide = MB * V::kLanes;
  constexpr uint32_t kZero = 0;
  Conv g{};
  g.tap_offsets = &kZero;
  g.taps = 1;
  g.run = c.run;
  g.pixel_stride = l.pitch;
  g.block_stride = c.block_stride;
  g.delay = c.delay;
  const uint8_t* w = static_cast<const uint8_t*>(c.weights) + block * c.block_stride;
  const uint32_t parts = (count + NB - 1) / NB;
  for (uint32_t p = 0; p < 16; ++p, w += l.pitch * V::kLanes)
    for (uint32_t part = 0; part < parts; ++part) {
      const uint32_t at = count * part / parts, tiles = count * (part + 1) / parts - at;
      i8dot_tiles<V, MB, NB>(tiles, g, l.inputs + p * l.position + at * l.pitch, w,
                             l.products + p * l.apart + at * kWide);
    }

  const uint32_t row = block * V::kLanes, end = row + MB * V::kLanes, rows = (end < c.rows ? end : c.rows) - row;
  int32_t* const bottom = l.pixels + 2 * c.strip * kWide;
  for (uint32_t k = 0; k < count; ++k)
    unroll<MB>([&](auto i) BITPRESS_INLINE {
      constexpr size_t kAt = i * V::kLanes;
      transform_output<T, F>(l.products + k * kWide + kAt, l.apart, c.tile_bias + row + kAt, c.tile_bias_apart,
                             l.pixels + 2 * k * kWide + kAt, bottom + 2 * k * kWide + kAt, kWide);
    });

  for (uint32_t k = 0; k < count;) {
    const uint32_t y = 2 * ((first + k) / across), x = 2 * ((first + k) % across);
    const uint32_t left = across - x / 2, some = left < count - k ? left : count - k;
    const uint32_t pixels = c.out_cols - x < 2 * some ? c.out_cols - x : 2 * some;
    for (uint32_t r = 0; r < 2 && y + r < c.out_rows; ++r) {
      if constexpr (T::kLifted)
        if (c.out.factor) window_sums<V>(c, c.in + (y + r) * c.row_stride + x * c.pixel_stride, pixels, l.windows);
      finish<F, FromSums>(c.out, (r ? bottom : l.pixels) + 2 * k * kWide, kWide, row, rows,
                          c.first_pixel + (y + r) * c.out_row_pixels + x, pixels, c.out.factor ? l.windows : nullptr);
    }
    k += some;
  }
}

template <class T, class V, class F>
void winograd(const Conv& c) {
  const StripLayout<V> l(c);
  const uint32_t across = (c.out_cols + 1) / 2, tiles = across * ((c.out_rows + 1) / 2);
  for (uint32_t first = 0; first < tiles; first += c.strip) {
    const uint32_t count = tiles - first < c.strip ? tiles - first : c.strip;
    for (uint32_t k = 0; k < count;) {
      const uint32_t y = (first + k) / across, x = (first + k) % across;
      const uint32_t some = across - x < count - k ? across - x : count - k;
      transform_inputs<T, V>(c, l, 2 * y, 2 * x, some, l.inputs + k * l.pitch);
      k += some;
    }
    uint32_t block = c.block_begin;
    for (; c.block_end - block >= 2; block += 2)
      winograd_blocks<T, V, F, 2, V::kMax2>(c, l, block, first, count, across);
    if (block < c.block_end) winograd_blocks<T, V, F, 1, V::kMax1>(c, l, block, first, count, across);
  }
}
