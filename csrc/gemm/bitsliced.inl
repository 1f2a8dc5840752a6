// bitsliced: convolution by full adders on bit planes of pixels. One template; the leaf is the vocabulary V:
//   kBytes              of a vector: a bit a pixel
//   kTile               bytes of the square that transpose() turns
//   zero, load, store (aligned), load_any, broadcast(uint32*), both, either, differ, flip
//   full_add(&sum, x, y), half_add(&sum, x): the carry
//   at_least(bit, so_far, threshold): majority of the first two and ~threshold
//   shl<n>, shr<n>, shl_by(v, n), shr_by(v, n): of words of 16 bits or more
//   transpose(in, stride, out, stride)
// Output pixels are a line of bits, rows padded to bytes; a tile is a vector of it, of any rows. Activations are cut
// into planes once for every column of the kernel, so that a tap is a move by whole bytes. Elements of K in chunks are
// copied to where a list of places finds them in the first-level cache; sums of a tile's channels lie in memory as
// planes.

template <class V>
struct SliceLayout {
  size_t pitch, slots, line, channels, bits, chunks;
  uint8_t *lines, *elements, *sums, *shared, *octets;

  explicit SliceLayout(const Conv& c)
      : pitch((c.out_cols + 7) / 8),
        slots((c.in_rows + c.stride_h - 1) / c.stride_h),
        line((c.stride_h * slots * pitch + 64 + 63) / 64 * 64),
        channels((c.valid + kSliceChannels - 1) / kSliceChannels * kSliceChannels),
        bits(c.a_bits),
        chunks((static_cast<size_t>(c.taps) * c.columns * c.valid + c.run - 1) / c.run),
        lines(c.scratch),
        elements(lines + c.columns * channels * bits * line),
        sums(elements + (static_cast<size_t>(c.run) + 1) * 2 * bits * V::kBytes),
        shared(sums + static_cast<size_t>(c.block_end - c.block_begin) * kSliceChannels * c.levels * V::kBytes),
        octets(shared + c.levels * V::kBytes) {}
};

// Bits n apart: of a and b, the groups of n bits that are even, and those that are odd, side by side.
template <class V, int n>
BITPRESS_INLINE inline void weave(typename V::Vec& a, typename V::Vec& b) {
  constexpr uint32_t kEven = n == 1 ? 0x55555555u : n == 2 ? 0x33333333u : 0x0F0F0F0Fu;
  const typename V::Vec even = V::set(kEven), odd = V::set(~kEven);
  const typename V::Vec low = V::either(V::both(a, even), V::template shl<n>(V::both(b, even)));
  b = V::either(V::both(V::template shr<n>(a), even), V::both(b, odd));
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

// Eight pixels each -> planes, [slots][wide][kBits] vectors of channels. `from`: the first pixel; rows have `pixels`.
// Rows of one remainder by the stride follow one another.
template <class V, int kBits>
void slice_octets(const Conv& c, const SliceLayout<V>& l, const uint8_t* from, size_t pixels, size_t wide) {
  const size_t step = c.pixel_stride;
  uint8_t* to = l.octets;
  for (size_t slot = 0; slot < c.stride_h * l.slots; ++slot) {
    const size_t row = slot % l.slots * c.stride_h + slot / l.slots;
    const uint8_t* in = from + (row < c.in_rows ? row : 0) * c.in_row_bytes;
    for (size_t at = 0; at < wide; ++at, in += 8 * step, to += kBits * V::kBytes) {
      const size_t last = pixels - 8 * at < 8 ? pixels - 8 * at - 1 : 7;
      typename V::Vec p[8];
      if (last == 7)
        unroll<8>([&](auto i) BITPRESS_INLINE { p[i] = V::load_any(in + static_cast<size_t>(i) * step); });
      else
        unroll<8>([&](auto i) BITPRESS_INLINE {
          p[i] = V::load_any(in + (static_cast<size_t>(i) < last ? static_cast<size_t>(i) : last) * step);
        });
      slice_octet<V, kBits>(p);
      unroll<kBits>([&](auto q) BITPRESS_INLINE { V::store(to + q * V::kBytes, p[q]); });
    }
  }
}

// Octets -> lines [channels][bits] of one column of the kernel, `shift` pixels to the right of the first.
template <class V, int kBits>
void slice_column(const SliceLayout<V>& l, size_t slots, size_t shift, size_t wide, uint32_t channels, uint8_t* lines) {
  constexpr size_t kTile = V::kTile, kOctet = kBits * V::kBytes;
  alignas(64) uint8_t square[kBits][kTile][V::kBytes];
  const int bits = static_cast<int>(shift % 8);
  const typename V::Vec low = V::set((0xFFu >> bits) * 0x01010101u), high = V::flip(low);
  const size_t count = slots * l.pitch;
  const uint8_t* from = l.octets + shift / 8 * kOctet;
  size_t at = 0;
  for (size_t first = 0; first < count; first += kTile) {
    const size_t some = count - first < kTile ? count - first : kTile;
    for (size_t j = 0; j < some; ++j, from += kOctet) {
      unroll<kBits>([&](auto q) BITPRESS_INLINE {
        typename V::Vec v = V::load(from + q * V::kBytes);
        if (bits)
          v = V::either(V::both(V::shr_by(v, bits), low),
                        V::both(V::shl_by(V::load(from + kOctet + q * V::kBytes), 8 - bits), high));
        V::store(square[q][j], v);
      });
      if (++at == l.pitch) {
        at = 0;
        from += (wide - l.pitch) * kOctet;
      }
    }
    for (uint32_t k = 0; k < channels; k += kTile)
      for (int q = 0; q < kBits; ++q)
        V::transpose(square[q][0] + k, V::kBytes, lines + (k * kBits + static_cast<uint32_t>(q)) * l.line + first,
                     kBits * l.line);
  }
}

// Input rows -> lines of planes [columns][channels][bits]. Columns that are whole output pixels apart share octets.
template <class V, int kBits>
void slice_lines(const Conv& c, const SliceLayout<V>& l) {
  const bool shared = c.columns == 1 || c.column_bytes % c.pixel_stride == 0;
  const size_t apart = shared && c.columns > 1 ? c.column_bytes / c.pixel_stride : 0;
  const size_t pixels = c.out_cols + (c.columns - 1) * apart, wide = (pixels + 7) / 8;
  for (uint32_t channel = 0; channel < c.valid; channel += V::kBytes) {
    const uint32_t here = c.valid - channel < V::kBytes ? c.valid - channel : static_cast<uint32_t>(V::kBytes);
    for (uint32_t column = 0; column < c.columns; ++column) {
      if (column == 0 || !shared) slice_octets<V, kBits>(c, l, c.in + column * c.column_bytes + channel, pixels, wide);
      slice_column<V, kBits>(l, c.stride_h * l.slots, column * apart, wide, here,
                             l.lines + (column * l.channels + channel) * kBits * l.line);
    }
  }
}

// Elements [begin, end) of K, in the order of weights, as tile `at` (bytes) of a line sees them: their planes, and
// those of what they lack to the largest. Zeros behind.
template <class V, int kBits>
void slice_elements(const Conv& c, const SliceLayout<V>& l, size_t begin, size_t end, size_t at) {
  uint8_t* to = l.elements;
  size_t tap = begin / c.valid, channel = begin % c.valid;
  for (size_t k = begin; k < end;) {
    const size_t row = c.tap_offsets[tap / c.columns], column = tap % c.columns;
    const uint8_t* from = l.lines + (column * l.channels + channel) * kBits * l.line + at +
                          (row % c.stride_h * l.slots + row / c.stride_h) * l.pitch;
    const size_t n = c.valid - channel < end - k ? c.valid - channel : end - k;
    for (size_t i = 0; i < n; ++i, to += 2 * kBits * V::kBytes)
      unroll<kBits>([&](auto q) BITPRESS_INLINE {
        const typename V::Vec v = V::load_any(from);
        V::store(to + q * V::kBytes, v);
        V::store(to + (kBits + q) * V::kBytes, V::flip(v));
        from += l.line;
      });
    k += n;
    channel = 0;
    ++tap;
  }
  unroll<kBits>([&](auto q) BITPRESS_INLINE { V::store(to + q * V::kBytes, V::zero()); });
}

// The level that `entries` of so many planes reach as one carry: two bits of a level and its counter leave one above.
constexpr uint32_t carry_level(uint32_t planes, uint32_t entries) {
  uint32_t level = 0, bits = entries;
  while (level < planes || bits > 1) bits = (bits + 1) / 2 + (++level < planes ? entries : 0);
  return level;
}
static_assert(carry_level(1, kSliceBlock) == kSliceCarry[1] && carry_level(2, kSliceBlock) == kSliceCarry[2] &&
              carry_level(3, kSliceBlock) == kSliceCarry[3] && carry_level(4, kSliceBlock) == kSliceCarry[4]);

// Counters of the low levels in registers, and what waits at each for a second one of its weight.
template <class V, int kBits>
struct Counters {
  static constexpr int kLow = static_cast<int>(kSliceCarry[kBits]);
  typename V::Vec sum[kLow], waiting[kLow], out;
};

// One more bit of level l: full adders take two. The type of what it returns says which levels have one waiting.
template <class V, int kBits, int l, int waiting>
BITPRESS_INLINE inline auto carry(Counters<V, kBits>& n, typename V::Vec x, Index<waiting>) {
  if constexpr (l == Counters<V, kBits>::kLow) {
    n.out = x;
    return Index<waiting>{};
  } else if constexpr ((waiting >> l & 1) == 0) {
    n.waiting[l] = x;
    return Index<(waiting | 1 << l)>{};
  } else {
    return carry<V, kBits, l + 1>(n, V::full_add(n.sum[l], n.waiting[l], x), Index<(waiting & ~(1 << l))>{});
  }
}

template <class V, int kBits, int q, int waiting>
BITPRESS_INLINE inline auto add_planes(Counters<V, kBits>& n, const uint8_t* x, const uint8_t* y, Index<waiting> w) {
  if constexpr (q == kBits) {
    return w;
  } else {
    const auto next =
        carry<V, kBits, q + 1>(n, V::full_add(n.sum[q], V::load(x + q * V::kBytes), V::load(y + q * V::kBytes)), w);
    return add_planes<V, kBits, q + 1>(n, x, y, next);
  }
}

template <class V, int kBits, int pairs, int waiting>
BITPRESS_INLINE inline auto add_pairs(Counters<V, kBits>& n, const uint8_t* elements, const uint16_t* list,
                                      Index<waiting> w) {
  if constexpr (pairs == 0) {
    return w;
  } else {
    const auto next = add_planes<V, kBits, 0>(n, elements + list[0], elements + list[1], w);
    return add_pairs<V, kBits, pairs - 1>(n, elements, list + 2, next);
  }
}

template <class V, int kBits, int l, int waiting>
BITPRESS_INLINE inline void flush(Counters<V, kBits>& n, Index<waiting> w) {
  if constexpr (l < Counters<V, kBits>::kLow) {
    if constexpr ((waiting >> l & 1) == 0)
      flush<V, kBits, l + 1>(n, w);
    else
      flush<V, kBits, l + 1>(
          n, carry<V, kBits, l + 1>(n, V::half_add(n.sum[l], n.waiting[l]), Index<(waiting & ~(1 << l))>{}));
  }
}

template <class V, int kBits, int entries>
BITPRESS_INLINE inline void add_block(Counters<V, kBits>& n, const uint8_t* elements, const uint16_t* list,
                                      uint8_t* counters, uint32_t levels) {
  flush<V, kBits, 0>(n, add_pairs<V, kBits, entries / 2>(n, elements, list, Index<0>{}));
  typename V::Vec x = n.out;
  uint8_t* const end = counters + levels * V::kBytes;
  for (uint8_t* p = counters + n.kLow * V::kBytes; p != end; p += V::kBytes) {
    typename V::Vec sum = V::load(p);
    x = V::half_add(sum, x);
    V::store(p, sum);
  }
}

// A list of elements to counters, of which `levels` are touched, at least Counters::kLow.
template <class V, int kBits>
const uint16_t* add_list(const uint8_t* elements, const uint16_t* list, uint8_t* counters) {
  const uint32_t count = list[0], levels = list[1];
  list += 2;
  if (count == 0) return list;
  Counters<V, kBits> n;
  unroll<n.kLow>([&](auto i) BITPRESS_INLINE { n.sum[i] = V::load(counters + i * V::kBytes); });
  const uint16_t* const end = list + count;
  for (; end - list >= kSliceBlock; list += kSliceBlock)
    add_block<V, kBits, kSliceBlock>(n, elements, list, counters, levels);
  if (end - list >= 2 * kSlicePad) {
    add_block<V, kBits, 2 * kSlicePad>(n, elements, list, counters, levels);
    list += 2 * kSlicePad;
  }
  if (list != end) add_block<V, kBits, kSlicePad>(n, elements, list, counters, levels);
  unroll<n.kLow>([&](auto i) BITPRESS_INLINE { V::store(counters + i * V::kBytes, n.sum[i]); });
  return end;
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

// One more threshold, the j-th, to a count of up to four bits: thresholds ascend, so bit b is that of 2^b, less that of
// 2 * 2^b, more that of 3 * 2^b, ..
template <class V>
BITPRESS_INLINE inline void count(typename V::Vec (&planes)[4], uint32_t j, typename V::Vec reached) {
  planes[0] = V::differ(planes[0], reached);
  if (j % 2 == 0) planes[1] = V::differ(planes[1], reached);
  if (j % 4 == 0) planes[2] = V::differ(planes[2], reached);
  if (j % 8 == 0) planes[3] = V::differ(planes[3], reached);
}

// Planes of a sum -> planes of the stored level, in their place: how many thresholds it reaches.
template <class V>
void compare(const Conv& c, uint32_t row, uint8_t* sum) {
  const uint32_t last = (1u << c.stored_bits) - 1, levels = c.levels;
  const uint32_t* masks = c.thresholds + static_cast<size_t>(row) * last * levels;
  typename V::Vec planes[4], one[1], three[3];
  unroll<4>([&](auto q) BITPRESS_INLINE { planes[q] = V::broadcast(c.falling + row); });
  uint32_t j = 1;
  for (; j + 2 <= last; j += 3, masks += 3 * levels) {
    reach<V, 3>(sum, masks, levels, three);
    unroll<3>([&](auto k) BITPRESS_INLINE { count<V>(planes, j + static_cast<uint32_t>(k), three[k]); });
  }
  for (; j <= last; ++j, masks += levels) {
    reach<V, 1>(sum, masks, levels, one);
    count<V>(planes, j, one[0]);
  }
  for (uint32_t q = 0; q < c.stored_bits; ++q) V::store(sum + q * V::kBytes, planes[q]);
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

// Where eight neighbouring bits of the line of output pixels belong; no pixels where the line has ended.
struct Octet {
  size_t pixel;
  uint32_t pixels;
};
template <class V>
inline Octet octet_of(const Conv& c, const SliceLayout<V>& l, size_t octet) {
  const uint32_t y = static_cast<uint32_t>(octet) / static_cast<uint32_t>(l.pitch),
                 x = 8 * (static_cast<uint32_t>(octet) % static_cast<uint32_t>(l.pitch));
  if (y >= c.out_rows) return {0, 0};
  return {c.first_pixel + y * c.out_row_pixels + x, c.out_cols - x < 8 ? c.out_cols - x : 8};
}

// kTile rows x `pixels` of sums, `width` bytes each, low ones first -> [pixels][kTile].
template <class V>
void join_bytes(const uint8_t* bytes, uint32_t width, uint32_t pixels, int32_t* to) {
  constexpr size_t kPixel = V::kBytes, kPlace = 8 * kPixel;
  for (uint32_t j = 0; j < pixels; ++j, to += V::kTile) {
    const uint8_t* p = bytes + j * kPixel;
    if (width == 1)
      for (size_t i = 0; i < V::kTile; ++i) to[i] = p[i];
    else if (width == 2)
      for (size_t i = 0; i < V::kTile; ++i) to[i] = p[kPlace + i] << 8 | p[i];
    else
      for (size_t i = 0; i < V::kTile; ++i)
        to[i] = static_cast<int32_t>((width == 4 ? uint32_t{p[3 * kPlace + i]} << 24 : 0)) | p[2 * kPlace + i] << 16 |
                p[kPlace + i] << 8 | p[i];
  }
}

// Sums of kTile rows on their way to the law: octets that follow one another in the output go together.
template <class V, class F>
class Finisher {
 public:
  Finisher(const Conv& c, uint32_t width, uint32_t row, uint32_t rows) : c_(c), width_(width), row_(row), rows_(rows) {}
  ~Finisher() { finish_held(); }
  void add(const uint8_t* bytes, Octet o) {
    if (held_ && (o.pixel != first_ + held_ || held_ + o.pixels > kMost)) finish_held();
    if (!held_) first_ = o.pixel;
    join_bytes<V>(bytes, width_, o.pixels, sums_ + held_ * V::kTile);
    held_ += o.pixels;
  }

 private:
  static constexpr uint32_t kMost = 32;
  void finish_held() {
    if (!held_) return;
    finish<F, FromSums>(c_.out, sums_, V::kTile, row_, rows_, first_, held_, nullptr);
    held_ = 0;
  }

  const Conv& c_;
  const uint32_t width_, row_, rows_;
  size_t first_ = 0;
  uint32_t held_ = 0;
  alignas(64) int32_t sums_[kMost * V::kTile + 16];
};

// Planes of `planes` levels of kTile rows of a tile -> values, by the law, or of levels that are ready.
template <class V, class F>
void store_rows(const Conv& c, const SliceLayout<V>& l, const uint8_t* sums, uint32_t row, size_t tile) {
  constexpr size_t kTile = V::kTile, kSquare = kTile * kTile;
  alignas(64) uint8_t turned[32 * kSquare + 64], bytes[4][8][V::kBytes];
  const uint32_t planes = c.stored_bits ? c.stored_bits : c.levels, width = (planes + 7) / 8;
  const uint32_t rows = c.rows - row < kTile ? c.rows - row : static_cast<uint32_t>(kTile);
  const uint32_t low = static_cast<uint8_t>(static_cast<int32_t>(c.out.lo)) * 0x01010101u;
  Finisher<V, F> sums_to_law(c, width, row, rows);
  for (size_t part = 0; part < V::kBytes; part += kTile) {
    if (octet_of(c, l, tile * V::kBytes + part).pixels == 0) return;
    for (uint32_t p = 0; p < planes; ++p)
      V::transpose(sums + p * V::kBytes + part, c.levels * V::kBytes, turned + p * kSquare, kTile);
    for (size_t at = 0; at < kSquare; at += V::kBytes) {
      for (uint32_t b = 0; b < width; ++b) {
        typename V::Vec p[8];
        unroll<8>([&](auto i) BITPRESS_INLINE {
          const uint32_t plane = 8 * b + static_cast<uint32_t>(i);
          p[i] = plane < planes ? V::load(turned + plane * kSquare + at) : V::zero();
        });
        if (planes <= 8 * b + 2)
          join_two<V>(p);
        else if (planes <= 8 * b + 4)
          join_four<V>(p);
        else
          join_octet<V>(p);
        if (c.stored_bits && low) unroll<8>([&](auto i) BITPRESS_INLINE { p[i] = V::add_bytes(p[i], V::set(low)); });
        unroll<8>([&](auto i) BITPRESS_INLINE { V::store(bytes[b][i], p[i]); });
      }
      for (size_t k = 0; k < V::kBytes; k += kTile) {
        const Octet o = octet_of(c, l, tile * V::kBytes + part + (at + k) / kTile);
        if (o.pixels == 0) return;
        if (!c.stored_bits) {
          sums_to_law.add(bytes[0][0] + k, o);
          continue;
        }
        uint8_t* out = static_cast<uint8_t*>(c.out.data) + o.pixel * c.out.channels + c.out.first_channel + row;
        for (uint32_t j = 0; j < o.pixels; ++j, out += c.out.channels)
          if (rows == kTile)
            __builtin_memcpy(out, bytes[0][j] + k, kTile);
          else
            for (uint32_t i = 0; i < rows; ++i) out[i] = bytes[0][j][k + i];
      }
    }
  }
}

template <class V, class F, int kBits>
void bitsliced_of(const Conv& c) {
  const SliceLayout<V> l(c);
  slice_lines<V, kBits>(c, l);
  const uint16_t* const lists = static_cast<const uint16_t*>(c.weights);
  const size_t depth = static_cast<size_t>(c.taps) * c.columns * c.valid, row_bytes = c.levels * V::kBytes;
  const size_t tiles = (c.out_rows * l.pitch + V::kBytes - 1) / V::kBytes;
  const uint32_t begin = c.block_begin * kSliceChannels;
  const uint32_t end = c.block_end * kSliceChannels < c.rows ? c.block_end * kSliceChannels : c.rows;
  for (size_t tile = 0; tile < tiles; ++tile) {
    for (uint32_t row = begin; row < end; ++row) clear_planes<V>(l.sums + (row - begin) * row_bytes, c.levels);
    if (c.odd) clear_planes<V>(l.shared, c.levels);
    for (size_t chunk = 0; chunk < l.chunks; ++chunk) {
      const size_t from = chunk * c.run, to = from + c.run < depth ? from + c.run : depth;
      slice_elements<V, kBits>(c, l, from, to, tile * V::kBytes);
      const uint32_t* starts = c.starts + chunk * (c.rows + 1);
      if (c.odd) add_list<V, kBits>(l.elements, lists + starts[c.rows], l.shared);
      for (uint32_t row = begin; row < end; ++row) {
        const uint16_t* list = lists + starts[row];
        for (uint32_t d = 0; d < c.digits; ++d)
          list = add_list<V, kBits>(l.elements, list, l.sums + (row - begin) * row_bytes + d * V::kBytes);
      }
    }
    for (uint32_t row = begin; row < end; ++row) {
      uint8_t* sum = l.sums + (row - begin) * row_bytes;
      if (c.odd) add_shared<V>(sum, l.shared, c.levels);
      if (c.stored_bits) compare<V>(c, row, sum);
    }
    for (uint32_t row = begin; row < end; row += V::kTile)
      store_rows<V, F>(c, l, l.sums + (row - begin) * row_bytes, row, tile);
  }
}

template <class V, class F>
void bitsliced(const Conv& c) {
  if (c.a_bits == 1) return bitsliced_of<V, F, 1>(c);
  if (c.a_bits == 2) return bitsliced_of<V, F, 2>(c);
  if (c.a_bits == 3) return bitsliced_of<V, F, 3>(c);
  bitsliced_of<V, F, 4>(c);
}
