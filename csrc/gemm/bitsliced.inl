// bitsliced: convolution by full adders on bit planes of pixels. One template; the leaf is the vocabulary V:
//   kBytes              of a vector: a bit a pixel; it consists of kBytes / 16 pieces
//   zero, load, store (aligned), load_any, store_any, load_once (into a register), broadcast(uint32*)
//   both, either, differ, flip, select(mask, where it is 1, where it is 0)
//   full_add(&sum, x, y), half_add(&sum, x): the carry
//   full_add_less       adds what x and y lack; the carry comes flipped if kFlips
//   at_least(bit, so_far, threshold): majority of the first two and ~threshold
//   shl<n>, shr<n>      of words of 16 bits or more
//   moved<bytes>(v, n)  of words of so many bytes, -n to the left
//   pieces(pointers), put(v, pointers): a vector from and to where its pieces lie
//   unpack_low, unpack_high: bytes of two pieces in turns
//   zip(a, b, to)       bytes of two vectors in turns
//   turn(&v[16])        the 16 x 16 bytes of each piece
//   kWidens             whether there are also Floats, four for each piece: spread(pointer to 4), add, mul, and
//     widen(low, high, &to[4])          2^23 + low + 256 * high, of the bytes of two vectors
//     narrow(of[4], is_signed, lo, hi)  the other way: rounded half to even, bounded
// A row of output pixels takes `pitch` bytes, and a vector holds kBytes / pitch rows that lie `tall` rows apart: rows
// tall * k + i for all k. What a tap sees `ky` rows below is then the vector i + ky, so that a weight is a place in
// memory: planes are made once, of every channel and column of the kernel, and nothing is copied again. Elements are in
// chunks that stay in the first-level cache while 16 rows of weights go by, whose sums lie there as planes, too.

template <class V>
struct SliceLayout {
  size_t tall;           // rows of output between those of a vector
  size_t apart;          // rows of input between those of a vector
  size_t vectors;        // of a column of the kernel
  size_t groups;         // rows of a vector
  size_t plain;          // bytes of the planes of an element
  size_t column, chunk;  // bytes from one to the next
  size_t chunks;
  uint8_t *lines, *planes, *sums, *shared, *waiting;

  explicit SliceLayout(const Conv& c)
      : groups(V::kBytes / c.pitch),
        plain(c.a_bits * V::kBytes),
        column(c.vectors * plain),
        chunk((2 + static_cast<size_t>(c.run)) * column),
        chunks((static_cast<size_t>(c.valid) * c.columns + c.run - 1) / c.run) {
    tall = (c.out_rows + groups - 1) / groups;
    apart = tall * c.stride_h;
    vectors = (tall - 1) * c.stride_h + c.tap_offsets[c.taps - 1] + 1;
    lines = c.scratch;
    planes = lines + kSliceChannels * c.a_bits * apart * c.line;
    sums = planes + chunks * chunk;
    shared = sums + kSliceChannels * c.levels * V::kBytes;
    waiting = shared + c.levels * V::kBytes;
  }
};

// Bits n apart: of a and b, the groups of n bits that are even, and those that are odd, side by side.
template <class V, int n>
BITPRESS_INLINE inline void weave(typename V::Vec& a, typename V::Vec& b) {
  constexpr uint32_t kEven = n == 1 ? 0x55555555u : n == 2 ? 0x33333333u : 0x0F0F0F0Fu;
  const typename V::Vec even = V::set(kEven);
  const typename V::Vec low = V::select(even, a, V::template shl<n>(b));
  b = V::select(even, V::template shr<n>(a), b);
  a = low;
}

// Bytes of eight pixels, less than 2^kBits each -> planes, pixels as bits.
template <class V, int kBits>
BITPRESS_INLINE inline void slice_octet(typename V::Vec (&p)[8]) {
  constexpr int kStep = kBits == 1 ? 1 : kBits == 2 ? 2 : 4, kApart = kStep == 4 ? 4 : kStep;
  // p[i] gets pixels i, i + step, ..: those whose bits fall into different places
  unroll<kStep>([&](auto i) BITPRESS_INLINE {
    unroll<8 / kStep - 1>([&](auto k) BITPRESS_INLINE {
      p[i] = V::either(p[i], V::template shl<(k + 1) * kApart>(p[i + (k + 1) * kStep]));
    });
  });
  if constexpr (kStep == 2) weave<V, 1>(p[0], p[1]);
  if constexpr (kStep == 4) {
    weave<V, 1>(p[0], p[1]);
    weave<V, 1>(p[2], p[3]);
    weave<V, 2>(p[0], p[2]);
    weave<V, 2>(p[1], p[3]);
  }
}

// Bits of a vector's octets that are the j-th of their pieces.
template <class V>
constexpr uint64_t kEachPiece = (V::kBytes == 64   ? 0x0001000100010001u
                                 : V::kBytes == 32 ? 0x00010001u
                                                   : 1u);

// A bit for each octet of a vector: which have pixels, and which have eight; of the j-th of each piece, any or all.
template <class V>
struct OctetBits {
  uint64_t some = 0, whole = 0;

  bool any(size_t j) const { return some >> j & kEachPiece<V>; }
  bool full(size_t j) const { return (whole >> j & kEachPiece<V>) == kEachPiece<V>; }
};

// The lowest n bits.
inline uint64_t low_bits(size_t n) { return n < 64 ? (uint64_t{1} << n) - 1 : ~uint64_t{0}; }

// body(pitch) with the usual ones as constants: what they bound is then unrolled, not guessed at by the processor.
template <class Body>
BITPRESS_INLINE inline void with_pitch(uint32_t pitch, const Body& body) {
  if (pitch == 2) return body(Index<2>{});
  if (pitch == 4) return body(Index<4>{});
  if (pitch == 8) return body(Index<8>{});
  body(static_cast<size_t>(pitch));
}

// Where the octets of a vector lie: piece i has those from 16 * i on. Nothing where there are none; of an octet that
// has fewer pixels the last counts again.
template <class V>
struct OctetSources : OctetBits<V> {
  using OctetBits<V>::some;
  using OctetBits<V>::whole;
  const uint8_t* at[V::kBytes];
  size_t step, fewer;  // bytes to the next pixel; pixels of those that have not eight

  // Octets [first, end) of the line of rows `rest`, `apart` apart, of 16 channels from `in` on.
  OctetSources(const Conv& c, const SliceLayout<V>& l, const uint8_t* in, size_t rest, size_t first, size_t end)
      : step(c.pixel_stride), fewer(c.in_cols % 8) {
    alignas(16) static constexpr uint8_t kNothing[16] = {};
    const size_t filled = end - first < V::kBytes ? end - first : V::kBytes;
    const size_t octets = (c.in_cols + 7) / 8, reach = 8 * step;
    size_t row = first / c.pitch * l.apart + rest - c.above, i = 0;  // wraps where there is no row
    with_pitch(c.pitch, [&](auto given) BITPRESS_INLINE {
      const size_t pitch = given;
      for (size_t octet = first % pitch; i < filled; octet = 0, row += l.apart) {
        const bool inside = row < c.in_rows;
        some |= inside ? low_bits(octets) >> octet << i : 0;
        whole |= inside ? low_bits(c.in_cols / 8) >> octet << i : 0;
        const uint8_t* from = inside ? c.in_row_bytes * row + octet * reach + in : kNothing;
        for (const size_t by = inside ? reach : 0; octet < pitch && i < filled; ++octet, ++i, from += by)
          at[i] = octet < octets ? from : kNothing;
      }
    });
    some &= low_bits(filled);
    whole &= low_bits(filled);
    for (; i < V::kBytes; ++i) at[i] = kNothing;
  }
  // Eight pixels of the j-th octet of each piece.
  BITPRESS_INLINE void read(size_t j, typename V::Vec (&p)[8]) const {
    constexpr size_t kPieces = V::kBytes / 16;
    const uint8_t* from[kPieces];
    unroll<kPieces>([&](auto i) BITPRESS_INLINE { from[i] = at[16 * i + j]; });
    if (this->full(j)) {
      unroll<8>([&](auto t) BITPRESS_INLINE {
        const uint8_t* pixel[kPieces];
        unroll<kPieces>([&](auto i) BITPRESS_INLINE { pixel[i] = from[i] + static_cast<size_t>(t) * step; });
        p[t] = V::pieces(pixel);
      });
      return;
    }
    size_t last[kPieces];
    for (size_t i = 0; i < kPieces; ++i)
      last[i] = whole >> (16 * i + j) & 1 ? 7 : some >> (16 * i + j) & 1 ? fewer - 1 : 0;
    for (size_t t = 0; t < 8; ++t) {
      p[t] = V::pieces(from);
      for (size_t i = 0; i < kPieces; ++i) from[i] += t < last[i] ? step : 0;
    }
  }
};

// Sixteen channels from `in` on -> lines [16][planes][apart], pixels as bits. `inside`: bits of pixels.
template <class V>
void slice_lines(const Conv& c, const SliceLayout<V>& l, const uint8_t* in, typename V::Vec inside) {
  const size_t bits = c.a_bits;
  for (size_t rest = 0; rest < l.apart && rest < l.vectors; ++rest) {
    const size_t all = l.groups + (l.vectors - 1 - rest) / l.apart;
    // Rows outside the image are zeros: of few rows they can take a vector more.
    const size_t above = rest < c.above ? (c.above - rest + l.apart - 1) / l.apart : 0;
    const size_t in_reach = c.above + c.in_rows > rest ? (c.above + c.in_rows - rest + l.apart - 1) / l.apart : 0;
    const size_t octets = (in_reach < all ? in_reach : all) * c.pitch;
    size_t begin = above * c.pitch < octets ? above * c.pitch : octets;
    if (begin + (octets - begin + V::kBytes - 1) / V::kBytes * V::kBytes > c.line) begin = 0;  // whole vectors
    const size_t made_end = begin + (octets - begin + V::kBytes - 1) / V::kBytes * V::kBytes;
    for (size_t at = 0; at < all * c.pitch; at += V::kBytes)
      if (at < begin || (at + V::kBytes > made_end && all * c.pitch > made_end))
        for (size_t line = 0; line < kSliceChannels * bits; ++line)
          V::store(l.lines + (line * l.apart + rest) * c.line + at, V::zero());
    for (size_t first = begin; first < octets; first += V::kBytes) {
      const OctetSources<V> from(c, l, in, rest, first, octets);
      typename V::Vec made[4][16];
      for (size_t j = 0; j < 16; ++j) {
        if (!from.any(j)) {
          unroll<4>([&](auto q) BITPRESS_INLINE { made[q][j] = V::zero(); });
          continue;
        }
        typename V::Vec p[8];
        from.read(j, p);
        const auto cut = [&](auto planes) BITPRESS_INLINE {
          slice_octet<V, planes>(p);
          unroll<planes>([&](auto q) BITPRESS_INLINE { made[q][j] = p[q]; });
        };
        if (bits == 1)
          cut(Index<1>{});
        else if (bits == 2)
          cut(Index<2>{});
        else
          cut(Index<4>{});
      }
      for (size_t q = 0; q < bits; ++q) {
        V::turn(made[q]);
        uint8_t* to = l.lines + (q * l.apart + rest) * c.line + first;
        unroll<16>([&](auto i) BITPRESS_INLINE {
          V::store_any(to + static_cast<size_t>(i) * bits * l.apart * c.line, V::both(made[q][i], inside));
        });
      }
    }
  }
}

// Vectors of the lines of one plane from `from` on: each(place of a vector, where its first plane goes from `to` on).
// What is constant is read once: stores of bytes could change it, for all that the compiler knows.
template <class V, class Each>
BITPRESS_INLINE inline void over_lines(const Conv& c, const SliceLayout<V>& l, const uint8_t* from, uint8_t* to,
                                       const Each& each) {
  const size_t vectors = l.vectors, apart = l.apart, line = c.line, pitch = c.pitch, plain = l.plain;
  for (size_t v = 0; v < vectors; v += apart, from += pitch) {
    const uint8_t* place = from;
    for (size_t rest = 0; rest < apart && v + rest < vectors; ++rest, place += line, to += plain) each(place, to);
  }
}

// What a vector holds of rows that take `word` bytes, n pixels to the right, or -n to the left.
template <class V>
BITPRESS_INLINE inline typename V::Vec moved(uint32_t word, typename V::Vec x, int n) {
  return word == 2 ? V::template moved<2>(x, n) : word == 4 ? V::template moved<4>(x, n) : V::template moved<8>(x, n);
}

// Planes of three columns one pixel apart, the first of which begins one before the image: `column` bytes apart.
template <class V, uint32_t word>
void slice_three(const Conv& c, const SliceLayout<V>& l, const uint8_t* lines, uint8_t* to) {
  const size_t column = l.column, bits = c.a_bits, apart = l.apart * c.line;
  for (size_t q = 0; q < bits; ++q, lines += apart, to += V::kBytes)
    over_lines<V>(c, l, lines, to, [column](const uint8_t* from, uint8_t* place) BITPRESS_INLINE {
      const typename V::Vec x = V::load_any(from);
      V::store(place, moved<V>(word, x, -1));
      V::store(place + column, x);
      V::store(place + 2 * column, moved<V>(word, x, 1));
    });
}

// Lines of channels [channel, channel + count), of which `lines` has the first's, -> their planes of columns [begin,
// end) of the kernel, each of which lies column_bytes pixels further to the right if `shifted`.
template <class V>
void slice_columns(const Conv& c, const SliceLayout<V>& l, const uint8_t* lines, uint32_t channel, uint32_t count,
                   uint32_t begin, uint32_t end) {
  // Elements by channels, then by columns, in chunks: divided once, because division is slow.
  size_t at = static_cast<size_t>(channel) * c.columns + begin;
  uint8_t* chunk = l.planes + at / c.run * l.chunk;
  at %= c.run;
  const auto next = [&](uint32_t n) {
    for (at += n; at >= c.run; at -= c.run) chunk += l.chunk;
  };
  if (c.shifted && c.columns == 3 && c.column_bytes == 1 && c.left == 1 && c.run % 3 == 0) {
    const auto three = c.pitch == 2 ? slice_three<V, 2> : c.pitch == 4 ? slice_three<V, 4> : slice_three<V, 8>;
    for (uint32_t i = 0; i < count; ++i, next(3))
      three(c, l, lines + i * c.a_bits * l.apart * c.line, chunk + (2 + at) * l.column);
    return;
  }
  const uint32_t pitch = c.pitch;
  for (uint32_t i = 0; i < count; ++i, next(c.columns - (end - begin)))
    for (uint32_t column = begin; column < end; ++column, next(1)) {
      const int shift = c.shifted ? static_cast<int>(column * c.column_bytes) - static_cast<int>(c.left) : 0;
      uint8_t* to = chunk + (2 + at) * l.column;
      for (size_t q = 0; q < c.a_bits; ++q, to += V::kBytes)
        over_lines<V>(c, l, lines + (i * c.a_bits + q) * l.apart * c.line, to,
                      [shift, pitch](const uint8_t* from, uint8_t* place) BITPRESS_INLINE {
                        const typename V::Vec x = V::load_any(from);
                        V::store(place, shift ? moved<V>(pitch, x, shift) : x);
                      });
    }
}

// The first `pixels` bits of each of so many rows of `pitch` bytes.
template <class V>
typename V::Vec row_bits(size_t pitch, size_t pixels, size_t rows) {
  alignas(64) uint8_t bits[V::kBytes] = {};
  for (size_t row = 0; rows && row + pitch <= V::kBytes; row += pitch, --rows) {
    for (size_t x = 0; x < pixels / 8; ++x) bits[row + x] = 0xFF;
    if (pixels % 8) bits[row + pixels / 8] = static_cast<uint8_t>((1u << pixels % 8) - 1);
  }
  return V::load(bits);
}

// Input rows -> planes [chunks][2 + columns of channels][vectors][a_bits]; the first two are of zeros and of ones.
template <class V>
void slice_input(const Conv& c, const SliceLayout<V>& l) {
  for (size_t chunk = 0; chunk < l.chunks; ++chunk)
    for (size_t at = 0; at < 2 * l.column; at += V::kBytes)
      V::store(l.planes + chunk * l.chunk + at, at < l.column ? V::zero() : V::flip(V::zero()));
  if (c.in_lines) return slice_columns<V>(c, l, c.in_lines, 0, c.valid, 0, c.columns);
  // What is moved must not bring pixels that are beside the image; what is not moved stays there.
  const typename V::Vec mask = c.shifted ? row_bits<V>(c.pitch, c.in_cols, l.groups) : V::flip(V::zero());
  for (uint32_t channel = 0; channel < c.valid; channel += kSliceChannels) {
    const uint32_t count = c.valid - channel < kSliceChannels ? c.valid - channel : kSliceChannels;
    const uint32_t together = c.shifted ? c.columns : 1;  // of the same lines
    for (uint32_t column = 0; column < c.columns; column += together) {
      slice_lines<V>(c, l, c.in + column * c.column_bytes + channel, mask);
      slice_columns<V>(c, l, l.lines, channel, count, column, column + together);
    }
  }
}

// The level that `entries` of so many planes reach as one carry: two bits of a level and its counter leave one above.
constexpr uint32_t carry_level(uint32_t planes, uint32_t entries) {
  uint32_t level = 0, bits = entries;
  while (level < planes || bits > 1) bits = (bits + 1) / 2 + (++level < planes ? entries : 0);
  return level;
}
static_assert(carry_level(1, kSliceBlock) == kSliceCarry[1] && carry_level(2, kSliceBlock) == kSliceCarry[2] &&
              carry_level(4, kSliceBlock) == kSliceCarry[4]);

// Counters of the low levels in registers, and what waits at each for a second one of its weight.
template <class V, int kBits>
struct Counters {
  static constexpr int kLow = static_cast<int>(kSliceCarry[kBits]);
  typename V::Vec sum[kLow], waiting[kLow], out;
};

// One more bit of level l: full adders take two. The type of what it returns says which levels have one waiting.
template <class V, int kBits, bool flipped, int l, int waiting>
BITPRESS_INLINE inline auto carry(Counters<V, kBits>& n, typename V::Vec x, Index<waiting>) {
  if constexpr (l == Counters<V, kBits>::kLow) {
    n.out = x;
    return Index<waiting>{};
  } else if constexpr ((waiting >> l & 1) == 0) {
    n.waiting[l] = x;
    return Index<(waiting | 1 << l)>{};
  } else {
    const auto out = flipped ? V::full_add_less(n.sum[l], n.waiting[l], x) : V::full_add(n.sum[l], n.waiting[l], x);
    return carry<V, kBits, flipped, l + 1>(n, out, Index<(waiting & ~(1 << l))>{});
  }
}

template <class V, int kBits, bool less, int q, int waiting>
BITPRESS_INLINE inline auto add_planes(Counters<V, kBits>& n, const uint8_t* x, const uint8_t* y, Index<waiting> w) {
  if constexpr (q == kBits) {
    return w;
  } else {
    const auto a = V::load(x + q * V::kBytes), b = V::load_once(y + q * V::kBytes);
    const auto out = less ? V::full_add_less(n.sum[q], a, b) : V::full_add(n.sum[q], a, b);
    constexpr bool kFlipped = less && V::kFlips;
    const auto next = carry<V, kBits, kFlipped, q + 1>(n, out, w);
    return add_planes<V, kBits, less, q + 1>(n, x, y, next);
  }
}

// Places are read in twos: loads are what additions wait for.
template <class V, int kBits, bool less, int pairs, int waiting>
BITPRESS_INLINE inline auto add_pairs(Counters<V, kBits>& n, const uint8_t* planes, const uint16_t* places,
                                      Index<waiting> w) {
  if constexpr (pairs == 0) {
    return w;
  } else {
    uint32_t two;
    __builtin_memcpy(&two, places, sizeof two);
    const uint8_t *x = planes + size_t{two & 0xFFFF} * kSlicePlace, *y = planes + size_t{two >> 16} * kSlicePlace;
    return add_pairs<V, kBits, less, pairs - 1>(n, planes, places + 2, add_planes<V, kBits, less, 0>(n, x, y, w));
  }
}

// What waits goes up alone. `flipped`: it waits as what it lacks.
template <class V, int kBits, bool flipped, int l, int waiting>
BITPRESS_INLINE inline void flush(Counters<V, kBits>& n, Index<waiting> w) {
  if constexpr (flipped) {
    if constexpr (waiting == 0) n.out = V::flip(n.out);
    unroll<n.kLow>([&](auto i) BITPRESS_INLINE {
      if constexpr (waiting >> i & 1) n.waiting[i] = V::flip(n.waiting[i]);
    });
    flush<V, kBits, false, 0>(n, w);
  } else if constexpr (l < Counters<V, kBits>::kLow) {
    if constexpr ((waiting >> l & 1) == 0) {
      flush<V, kBits, false, l + 1>(n, w);
    } else {
      const auto out = V::half_add(n.sum[l], n.waiting[l]);
      flush<V, kBits, false, l + 1>(n, carry<V, kBits, false, l + 1>(n, out, Index<(waiting & ~(1 << l))>{}));
    }
  }
}

// What blocks of elements carry, from `waiting` to `last`, up to the counters from `upper` to `end`: by fours, of which
// three full adders make one, not each by half adders all the way (a tenth of a long list's time). By fours whatever
// there is: loops over what there is cost more in branches that are guessed wrong.
template <class V>
BITPRESS_INLINE inline void add_carried(uint8_t* waiting, uint8_t* last, uint8_t* upper, const uint8_t* end) {
  unroll<kSliceTogether - 1>([&](auto i) BITPRESS_INLINE { V::store(last + i * V::kBytes, V::zero()); });
  for (const uint8_t* p = waiting; p < last && upper != end; p += kSliceTogether * V::kBytes) {
    uint8_t* to = upper;
    typename V::Vec sum = V::load(to), x = V::full_add(sum, V::load(p), V::load(p + V::kBytes));
    const typename V::Vec y = V::full_add(sum, V::load(p + 2 * V::kBytes), V::load(p + 3 * V::kBytes));
    V::store(to, sum);
    if ((to += V::kBytes) == end) continue;
    sum = V::load(to);
    x = V::full_add(sum, x, y);
    V::store(to, sum);
    while ((to += V::kBytes) != end) {
      sum = V::load(to);
      x = V::half_add(sum, x);
      V::store(to, sum);
    }
  }
}

// `count` times so many elements; what they carry waits at `carried`.
template <class V, int kBits, int entries, bool less>
BITPRESS_INLINE inline const uint16_t* add_blocks(Counters<V, kBits>& n, const uint8_t* planes, const uint16_t* places,
                                                  uint32_t count, uint8_t*& carried) {
  for (uint32_t i = 0; i < count; ++i, places += entries) {
    flush<V, kBits, less && V::kFlips, 0>(n, add_pairs<V, kBits, less, entries / 2>(n, planes, places, Index<0>{}));
    V::store(carried, n.out);
    carried += V::kBytes;
  }
  return places;
}

// A list to the counters of a digit of a row; room for a carry of each block at `waiting`, and three more.
template <class V, int kBits>
const uint16_t* add_list(const uint8_t* planes, const uint16_t* list, uint8_t* counters, uint8_t* waiting) {
  Counters<V, kBits> n;
  unroll<n.kLow>([&](auto k) BITPRESS_INLINE { n.sum[k] = V::load(counters + k * V::kBytes); });
  uint8_t *const upper = counters + n.kLow * V::kBytes, *const end = upper + list[4] * V::kBytes;
  uint8_t* last = waiting;
  const uint16_t* places = list + 5;
  places = add_blocks<V, kBits, kSliceBlock, false>(n, planes, places, list[0], last);
  places = add_blocks<V, kBits, kSliceBlock, true>(n, planes, places, list[1], last);
  places = add_blocks<V, kBits, kSliceBlock / 2, false>(n, planes, places, list[2], last);
  places = add_blocks<V, kBits, kSliceBlock / 2, true>(n, planes, places, list[3], last);
  unroll<n.kLow>([&](auto k) BITPRESS_INLINE { V::store(counters + k * V::kBytes, n.sum[k]); });
  add_carried<V>(waiting, last, upper, end);
  return places;
}

template <class V>
void clear_planes(uint8_t* to, uint32_t planes) {
  for (uint32_t i = 0; i < planes; ++i) V::store(to + i * V::kBytes, V::zero());
}

// sum = 2 * sum + shared
template <class V>
void add_shared(uint8_t* sum, const uint8_t* shared, uint32_t levels) {
  typename V::Vec below = V::zero(), x = V::zero();
  for (uint32_t i = 0; i < levels; ++i, sum += V::kBytes, shared += V::kBytes) {
    typename V::Vec doubled = below;
    below = V::load(sum);
    x = V::full_add(doubled, V::load(shared), x);
    V::store(sum, doubled);
  }
}

// Where a sum reaches each of n thresholds: masks [n][levels].
template <class V, int n>
BITPRESS_INLINE inline void reach(const uint8_t* sum, const uint32_t* masks, uint32_t levels,
                                  typename V::Vec (&reached)[n]) {
  unroll<n>([&](auto k) BITPRESS_INLINE { reached[k] = V::set(~0u); });
  for (uint32_t i = 0; i < levels; ++i) {
    const typename V::Vec bit = V::load(sum + i * V::kBytes);
    unroll<n>([&](auto k) BITPRESS_INLINE {
      reached[k] = V::at_least(bit, reached[k], V::broadcast(masks + static_cast<uint32_t>(k) * levels + i));
    });
  }
}

// Planes of a sum -> planes of the stored level, in their place: how many thresholds it reaches. They ascend, so bit b
// is that of the 2^b-th, less that of the 2 * 2^b-th, more that of the 3 * 2^b-th, ..
template <class V, int kBits>
void compare(const Conv& c, uint32_t row, uint8_t* sum) {
  constexpr int kLast = (1 << kBits) - 1;
  const uint32_t levels = c.levels;
  const uint32_t* masks = c.thresholds + size_t{row} * kLast * levels;
  typename V::Vec planes[kBits];
  unroll<kBits>([&](auto q) BITPRESS_INLINE { planes[q] = V::broadcast(c.falling + row); });
  const auto some = [&](auto before, auto together) BITPRESS_INLINE {
    typename V::Vec reached[together];
    reach<V, together>(sum, masks + before * levels, levels, reached);
    unroll<together>([&](auto k) BITPRESS_INLINE {
      unroll<kBits>([&](auto q) BITPRESS_INLINE {
        if constexpr ((before + k + 1) % (1 << q) == 0) planes[q] = V::differ(planes[q], reached[k]);
      });
    });
  };
  unroll<kLast / 3>([&](auto i) BITPRESS_INLINE { some(Index<3 * i>{}, Index<3>{}); });
  if constexpr (kLast % 3) some(Index<kLast - kLast % 3>{}, Index<kLast % 3>{});
  unroll<kBits>([&](auto q) BITPRESS_INLINE { V::store(sum + q * V::kBytes, planes[q]); });
}

// Bits of eight pixels, one vector a plane -> bytes, one vector a pixel.
template <class V>
BITPRESS_INLINE inline void join_octet(typename V::Vec (&p)[8]) {
  unroll<4>([&](auto i) BITPRESS_INLINE { weave<V, 1>(p[2 * i], p[2 * i + 1]); });
  unroll<2>([&](auto i) BITPRESS_INLINE {
    weave<V, 2>(p[4 * i], p[4 * i + 2]);
    weave<V, 2>(p[4 * i + 1], p[4 * i + 3]);
  });
  unroll<4>([&](auto i) BITPRESS_INLINE { weave<V, 4>(p[i], p[i + 4]); });
}

// The same for two planes, or four.
template <class V>
BITPRESS_INLINE inline void join_two(typename V::Vec (&p)[8]) {
  typename V::Vec even = p[0], odd = p[1];
  weave<V, 1>(even, odd);
  const typename V::Vec mask = V::set(0x03030303u);
  unroll<4>([&](auto i) BITPRESS_INLINE {
    p[2 * i] = V::both(V::template shr<2 * i>(even), mask);
    p[2 * i + 1] = V::both(V::template shr<2 * i>(odd), mask);
  });
}
template <class V>
BITPRESS_INLINE inline void join_four(typename V::Vec (&p)[8]) {
  weave<V, 1>(p[0], p[1]);
  weave<V, 1>(p[2], p[3]);
  weave<V, 2>(p[0], p[2]);
  weave<V, 2>(p[1], p[3]);
  const typename V::Vec mask = V::set(0x0F0F0F0Fu);
  unroll<4>([&](auto i) BITPRESS_INLINE {
    p[i + 4] = V::both(V::template shr<4>(p[i]), mask);
    p[i] = V::both(p[i], mask);
  });
}

// Where the bytes of a vector, bits of eight neighbouring pixels each, belong in the output.
template <class V>
struct Octets : OctetBits<V> {
  using OctetBits<V>::some;
  using OctetBits<V>::whole;
  size_t pixel[V::kBytes];
  uint64_t follow = 0;  // bits: which go on where the one before ends
  uint32_t fewer;       // pixels of those that have not eight

  Octets(const Conv& c, const SliceLayout<V>& l, size_t i) : fewer(c.out_cols % 8) {
    const size_t octets = (c.out_cols + 7) / 8, whole_octets = c.out_cols / 8;
    const bool joins = l.tall == 1 && whole_octets == c.pitch && c.out_row_pixels == c.out_cols;
    size_t at = 0;
    with_pitch(c.pitch, [&](auto given) BITPRESS_INLINE {
      const size_t pitch = given;
      for (size_t y = i; at + pitch <= V::kBytes; y += l.tall) {
        const uint64_t row = y < c.out_rows ? low_bits(octets) << at : 0;
        some |= row;
        whole |= row & low_bits(whole_octets) << at;
        follow |= joins && at ? row : row & (row - 1);
        size_t first = c.first_pixel + y * c.out_row_pixels;
        for (size_t x = 0; x < pitch; ++x, ++at, first += 8) pixel[at] = first;
      }
    });
    for (; at < V::kBytes; ++at) pixel[at] = 0;
  }
  uint32_t pixels(size_t at) const { return whole >> at & 1 ? 8 : some >> at & 1 ? fewer : 0; }
};

// Sums of 16 rows of a block on their way to the law, [pixel][pieces of a vector][16]: octets that follow one another
// in the output go together, those of every piece side by side.
template <class V, class F, class From>
struct Finisher {
  static constexpr size_t kPieces = V::kBytes / 16, kPiece = kSliceChannels * From::kBytes;
  static constexpr uint32_t kMost = 32;
  size_t first[kPieces];
  uint32_t pixels[kPieces], held = 0;
  uint64_t pieces = 0;  // which have pixels: the places of the bits of kEachPiece
  alignas(64) uint8_t sums[kMost * kPieces * kPiece + 64];

  // Where the sums of the j-th octet of each piece go; null if it has no pixels.
  uint8_t* place(const Conv& c, uint32_t row, uint32_t rows, const Octets<V>& o, size_t j) {
    const uint64_t some = o.some >> j & kEachPiece<V>;
    if (!some) return nullptr;
    if (held == kMost || some != pieces || (o.follow >> j & some) != some) {
      finish_held(c, row, rows);
      pieces = some;
      for (size_t k = 0; k < kPieces; ++k) first[k] = o.pixel[16 * k + j];
    }
    for (size_t k = 0; k < kPieces; ++k) pixels[k] = some >> 16 * k & 1 ? held + o.pixels(16 * k + j) : 0;
    uint8_t* const to = sums + held * kPieces * kPiece;
    held += 8;
    return to;
  }
  void finish_held(const Conv& c, uint32_t row, uint32_t rows) {
    for (size_t k = 0; held && k < kPieces; ++k)
      if (pixels[k])
        finish<F, From>(c.out, sums + k * kPiece, kPieces * kSliceChannels, row, rows, first[k], pixels[k], nullptr);
    held = 0;
  }
};

// Planes [8 * byte, 8 * byte + 8) of the turned planes of a block -> bytes of eight pixels.
template <class V>
void join(const uint8_t* turned, uint32_t planes, uint32_t byte, typename V::Vec (&p)[8]) {
  unroll<8>([&](auto k) BITPRESS_INLINE {
    const uint32_t plane = 8 * byte + static_cast<uint32_t>(k);
    p[k] = plane < planes ? V::load(turned + plane * V::kBytes) : V::zero();
  });
  if (planes <= 8 * byte + 2)
    join_two<V>(p);
  else if (planes <= 8 * byte + 4)
    join_four<V>(p);
  else
    join_octet<V>(p);
}

// Sums of a vector's octets, turned -> values by the law.
template <class V, class F, class From>
void store_sums(const Conv& c, const SliceLayout<V>& l, uint32_t row, const Octets<V>& octets) {
  const uint32_t rows = c.rows - row < kSliceChannels ? c.rows - row : kSliceChannels;
  Finisher<V, F, From> to_law;
  for (size_t j = 0; j < 16; ++j) {
    uint8_t* const to = to_law.place(c, row, rows, octets, j);
    if (!to) continue;
    typename V::Vec low[8], high[8];
    const uint8_t* turned = l.sums + j * c.levels * V::kBytes;
    join<V>(turned, c.levels, 0, low);
    join<V>(turned, c.levels, 1, high);
    if constexpr (From::kBytes == 2) {
      unroll<8>([&](auto t) BITPRESS_INLINE { V::zip(low[t], high[t], to + 2 * V::kBytes * static_cast<size_t>(t)); });
    } else {
      typename V::Vec higher[8], highest[8];
      join<V>(turned, c.levels, 2, higher);
      join<V>(turned, c.levels, 3, highest);
      for (size_t t = 0; t < 8; ++t) {
        alignas(64) uint8_t bytes[4][V::kBytes];
        V::store(bytes[0], low[t]);
        V::store(bytes[1], high[t]);
        V::store(bytes[2], higher[t]);
        V::store(bytes[3], highest[t]);
        for (size_t i = 0; i < V::kBytes; ++i) {
          const uint32_t sum =
              bytes[0][i] | bytes[1][i] << 8 | bytes[2][i] << 16 | static_cast<uint32_t>(bytes[3][i]) << 24;
          __builtin_memcpy(to + (V::kBytes * t + i) * sizeof sum, &sum, sizeof sum);
        }
      }
    }
  }
  to_law.finish_held(c, row, rows);
}

// The common case of store_sums by itself, half its time otherwise: whole blocks of rows into levels, in registers.
// Sums become floats by the bits of 2^23 above theirs; the bias is added less 2^23, which is exact as long as it is
// smaller.
template <class V, class F>
bool store_levels_of_sums(const Conv& c, const SliceLayout<V>& l, uint32_t row, const Octets<V>& octets) {
  constexpr size_t kPieces = V::kBytes / 16;
  constexpr float kAbove = 1 << 23;
  const Output o = c.out;
  const bool has_residual = o.residual != nullptr;
  bool common = o.small && o.shift == 0 && o.factor == 0 && o.storage != Storage::kF32 && !o.out_channels &&
                c.rows - row >= kSliceChannels && !(has_residual && o.residual_storage == Storage::kF32);
  float biases[kSliceChannels];
  for (uint32_t i = 0; i < kSliceChannels && common; ++i) {
    common = o.bias[row + i] > -(1 << 23) && o.bias[row + i] < 1 << 23;
    biases[i] = static_cast<float>(o.bias[row + i]) - kAbove;
  }
  if (!common) return false;
  typename V::Floats m[4], b[4], bias[4];
  unroll<4>([&](auto i) BITPRESS_INLINE {
    m[i] = V::spread(o.m + row + 4 * i);
    b[i] = V::spread(o.b + row + 4 * i);
    bias[i] = V::spread(biases + 4 * i);
  });
  // Signed levels are unsigned ones less 128 once their upper bit is flipped.
  const bool flips = o.residual_storage == Storage::kI8;
  const typename V::Vec flip = V::set(flips ? 0x80808080u : 0);
  const typename V::Floats less = V::set_float(flips ? -kAbove - 128 : -kAbove), m_r = V::set_float(o.m_r);
  const bool is_signed = o.storage == Storage::kI8;
  const auto lo = static_cast<int32_t>(o.lo), hi = static_cast<int32_t>(o.hi);
  alignas(64) static constexpr uint8_t kNothing[16] = {};
  for (size_t j = 0; j < 16; ++j) {
    if (!octets.any(j)) continue;
    typename V::Vec low[8], high[8];
    const uint8_t* turned = l.sums + j * c.levels * V::kBytes;
    join<V>(turned, c.levels, 0, low);
    join<V>(turned, c.levels, 1, high);
    uint8_t* to[kPieces];
    const uint8_t* from[kPieces];
    uint32_t pixels[kPieces];
    for (size_t k = 0; k < kPieces; ++k) {
      const size_t at = octets.pixel[16 * k + j] * o.channels + o.first_channel + row;
      pixels[k] = octets.pixels(16 * k + j);
      to[k] = static_cast<uint8_t*>(o.data) + at;
      from[k] = has_residual && pixels[k] ? static_cast<const uint8_t*>(o.residual) + at : kNothing;
    }
    const auto levels = [&](size_t t, const uint8_t* const(&residual)[kPieces]) BITPRESS_INLINE {
      typename V::Floats x[4];
      V::widen(low[t], high[t], x);
      unroll<4>([&](auto i) BITPRESS_INLINE { x[i] = V::add(V::mul(V::add(x[i], bias[i]), m[i]), b[i]); });
      if (has_residual) {
        typename V::Floats y[4];
        V::widen(V::differ(V::pieces(residual), flip), V::zero(), y);
        unroll<4>([&](auto i) BITPRESS_INLINE { x[i] = V::add(x[i], V::mul(V::add(y[i], less), m_r)); });
      }
      return V::narrow(x, is_signed, lo, hi);
    };
    if (octets.full(j)) {
      for (size_t t = 0, at = 0; t < 8; ++t, at += o.channels) {
        const uint8_t* residual[kPieces];
        unroll<kPieces>([&](auto k) BITPRESS_INLINE { residual[k] = from[k] + at; });
        V::put(levels(t, residual), to, at);
      }
      continue;
    }
    for (size_t t = 0; t < 8; ++t) {
      alignas(64) uint8_t bytes[V::kBytes];
      V::store(bytes, levels(t, from));
      for (size_t k = 0; k < kPieces; ++k) {
        if (t >= pixels[k]) continue;
        __builtin_memcpy(to[k], bytes + 16 * k, 16);
        to[k] += o.channels;
        if (t + 1 < pixels[k]) from[k] += o.channels;
      }
    }
  }
  return true;
}

// Levels of a vector's octets, turned -> where they are stored.
template <class V>
void store_levels(const Conv& c, const SliceLayout<V>& l, uint32_t row, const Octets<V>& octets) {
  constexpr size_t kPieces = V::kBytes / 16;
  const uint32_t rows = c.rows - row < kSliceChannels ? c.rows - row : kSliceChannels;
  const uint32_t low = static_cast<uint8_t>(static_cast<int32_t>(c.out.lo)) * 0x01010101u;
  for (size_t j = 0; j < 16; ++j) {
    if (!octets.any(j)) continue;
    uint8_t* out[kPieces];
    const bool full = rows == kSliceChannels && octets.full(j);
    for (size_t k = 0; k < kPieces; ++k)
      out[k] =
          static_cast<uint8_t*>(c.out.data) + octets.pixel[16 * k + j] * c.out.channels + c.out.first_channel + row;
    typename V::Vec p[8];
    join<V>(l.sums + j * c.levels * V::kBytes, c.stored_bits, 0, p);
    if (low) unroll<8>([&](auto t) BITPRESS_INLINE { p[t] = V::add_bytes(p[t], V::set(low)); });
    if (full) {
      unroll<8>([&](auto t) BITPRESS_INLINE { V::put(p[t], out, static_cast<size_t>(t) * c.out.channels); });
      continue;
    }
    alignas(64) uint8_t bytes[8][V::kBytes];
    unroll<8>([&](auto t) BITPRESS_INLINE { V::store(bytes[t], p[t]); });
    for (size_t k = 0; k < kPieces; ++k)
      for (uint32_t t = 0; t < octets.pixels(16 * k + j); ++t, out[k] += c.out.channels)
        __builtin_memcpy(out[k], bytes[t] + 16 * k, rows);
  }
}

// A vector of the planes [16][levels] of a block's sums, or of stored levels -> values. Each plane is turned where it
// lies; its vector j has the bytes of 16 rows of octet j of each 16.
template <class V, class F>
void store_rows(const Conv& c, const SliceLayout<V>& l, uint32_t row, const Octets<V>& octets) {
  const size_t apart = c.levels * V::kBytes;
  for (uint32_t p = 0; p < (c.stored_bits ? c.stored_bits : c.levels); ++p) {
    uint8_t* const plane = l.sums + p * V::kBytes;
    typename V::Vec v[16];
    unroll<16>([&](auto j) BITPRESS_INLINE { v[j] = V::load(plane + static_cast<size_t>(j) * apart); });
    V::turn(v);
    unroll<16>([&](auto j) BITPRESS_INLINE { V::store(plane + static_cast<size_t>(j) * apart, v[j]); });
  }
  if (c.stored_bits)
    store_levels<V>(c, l, row, octets);
  else if (c.levels <= 16) {
    if constexpr (V::kWidens)
      if (store_levels_of_sums<V, F>(c, l, row, octets)) return;
    store_sums<V, F, FromU16>(c, l, row, octets);
  } else
    store_sums<V, F, FromSums>(c, l, row, octets);
}

// A vector of the planes of a block's levels, its i-th -> the lines that the next convolution reads. Its rows are as
// far apart there, behind out_top rows of zeros.
template <class V>
void store_lines(const Conv& c, const SliceLayout<V>& l, uint32_t row, size_t i, typename V::Vec inside) {
  const size_t at = i + c.out_top, first = at % l.tall * c.out_line, behind = at / l.tall * c.pitch;
  const uint32_t rows = c.rows - row < kSliceChannels ? c.rows - row : kSliceChannels;
  uint8_t* line = c.out_lines + size_t{row} * c.stored_bits * l.tall * c.out_line + first;
  for (uint32_t k = 0; k < rows; ++k)
    for (uint32_t q = 0; q < c.stored_bits; ++q, line += l.tall * c.out_line) {
      for (size_t b = 0; b < c.out_line; b += V::kBytes) V::store_any(line + b, V::zero());
      V::store_any(line + behind, V::both(V::load(l.sums + (k * c.levels + q) * V::kBytes), inside));
    }
}

template <class V, class F>
void bitsliced(const Conv& c) {
  if (c.out_cols > 8 * V::kBytes) {  // a row of many vectors
    Conv part = c;
    for (uint32_t x = 0; x < c.out_cols; x += part.out_cols) {
      part.in = c.in + x * c.pixel_stride;
      part.first_pixel = c.first_pixel + x;
      part.in_cols = part.out_cols = c.out_cols - x < 8 * V::kBytes ? c.out_cols - x : 8 * V::kBytes;
      bitsliced<V, F>(part);
    }
    return;
  }
  const SliceLayout<V> l(c);
  slice_input<V>(c, l);
  const auto add_lists = c.a_bits == 1 ? add_list<V, 1> : c.a_bits == 2 ? add_list<V, 2> : add_list<V, 4>;
  const auto to_levels = c.stored_bits == 1   ? compare<V, 1>
                         : c.stored_bits == 2 ? compare<V, 2>
                         : c.stored_bits == 3 ? compare<V, 3>
                                              : compare<V, 4>;
  const uint16_t* const lists = static_cast<const uint16_t*>(c.weights);
  const uint32_t blocks = (c.rows + kSliceChannels - 1) / kSliceChannels;
  for (size_t i = 0; i < l.tall; ++i) {
    const uint8_t* planes = l.planes + i * c.stride_h * l.plain;
    const Octets<V> octets(c, l, i);
    const typename V::Vec inside =
        c.out_lines ? row_bits<V>(c.pitch, c.out_cols, (c.out_rows - i + l.tall - 1) / l.tall) : V::zero();
    const auto add = [&](uint32_t block, uint8_t* sums) {
      const uint32_t digits = block == blocks ? 1 : c.digits;
      const uint32_t rows = block == blocks ? 1 : c.rows - block * kSliceChannels;
      for (size_t chunk = 0; chunk < l.chunks; ++chunk) {
        const uint16_t* list = lists + c.starts[chunk * (blocks + 1) + block];
        for (uint32_t k = 0; k < rows && k < kSliceChannels; ++k)
          for (uint32_t d = 0; d < digits; ++d)
            list = add_lists(planes + chunk * l.chunk, list, sums + (k * c.levels + d) * V::kBytes, l.waiting);
      }
    };
    if (c.odd) {
      clear_planes<V>(l.shared, c.levels);
      add(blocks, l.shared);
    }
    for (uint32_t block = c.block_begin; block < c.block_end; ++block) {
      const uint32_t row = block * kSliceChannels, rest = c.rows - row;
      clear_planes<V>(l.sums, kSliceChannels * c.levels);
      add(block, l.sums);
      for (uint32_t k = 0; k < (rest < kSliceChannels ? rest : kSliceChannels); ++k) {
        uint8_t* sum = l.sums + k * c.levels * V::kBytes;
        if (c.odd) add_shared<V>(sum, l.shared, c.levels);
        if (c.stored_bits) to_levels(c, row + k, sum);
      }
      if (c.out_lines)
        store_lines<V>(c, l, row, i, inside);
      else
        store_rows<V, F>(c, l, row, octets);
    }
  }
}
