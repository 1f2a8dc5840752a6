// Everything that is no matrix product: depthwise convolution, quantize, requantize, pools. Anonymous namespace.
// Depthwise vocabulary V: kLanes, Vec, zero, load_act<signed>(bytes) -> int32 lanes, load_w, madd(acc, a, w), store;
// kRows: of the kernel that madd takes at once. 2: load_pair<signed>(bytes, bytes) -> int16 lanes in turns; 4, and no
// load_act: load_three, load_four -> bytes in turns, less the least level. kStreams: whether windows of 3 x 3 have a
// form of their own.

// Windows of 3 x 3 along a row of pixels, each column of the input read and widened once: sums of `pixels` -> acc.
template <class V, bool kSigned, int kStride>
BITPRESS_INLINE inline void depthwise_3x3(const Depthwise& d, const uint8_t* in, const int32_t* weights, size_t padded,
                                          uint32_t pixels, int32_t* acc) {
  constexpr int kColumns = 3, kParts = V::kRows == 4 ? 1 : V::kRows == 2 ? 2 : 3;
  struct {
    typename V::Vec v[kParts * kColumns];  // of all rows, or of the upper two, or of each, then of the last
  } w, a;
  unroll<kParts * kColumns>([&](auto i) BITPRESS_INLINE { w.v[i] = V::load_w(weights + i * padded); });
  const uint8_t *top = in + d.tap_offsets[0], *next = in + d.tap_offsets[kColumns],
                *last = in + d.tap_offsets[2 * kColumns];
  const size_t step = d.column_bytes;
  const auto column = [&](auto slot) BITPRESS_INLINE {
    if constexpr (V::kRows == 4) {
      a.v[slot] = V::template load_three<kSigned>(top, next, last);
    } else if constexpr (V::kRows == 2) {
      a.v[slot] = V::template load_pair<kSigned>(top, next);
    } else {
      a.v[slot] = V::template load_act<kSigned>(top);
      a.v[kColumns + slot] = V::template load_act<kSigned>(next);
    }
    if constexpr (V::kRows != 4) a.v[(kParts - 1) * kColumns + slot] = V::template load_act<kSigned>(last);
    top += step;
    next += step;
    last += step;
  };
  // Slots take turns, so that nothing is moved: pixel i of three has its first column in slot i * kStride % 3.
  unroll<kColumns - kStride>([&](auto i) BITPRESS_INLINE { column(i); });
  for (uint32_t x = 0; x < pixels; x += kColumns)
    unroll<kColumns>([&](auto i) BITPRESS_INLINE {
      if (x + i >= pixels) return;
      unroll<kStride>([&](auto k)
                          BITPRESS_INLINE { column(Index<(i * kStride + kColumns - kStride + k) % kColumns>{}); });
      auto s = V::zero();
      unroll<kColumns>([&](auto k) BITPRESS_INLINE {
        constexpr int slot = (i * kStride + k) % kColumns;
        unroll<kParts>([&](auto part)
                           BITPRESS_INLINE { s = V::madd(s, a.v[part * kColumns + slot], w.v[part * kColumns + k]); });
      });
      V::store(acc + (x + i) * V::kLanes, s);
    });
}

// Any window: four pixels share a load of weights.
template <class V, bool kSigned>
void depthwise_window(const Depthwise& d, const uint8_t* in, const int32_t* weights, size_t padded, uint32_t pixels,
                      int32_t* acc) {
  constexpr uint32_t L = V::kLanes, kTile = 4;
  const size_t step = d.pixel_stride;
  for (uint32_t j = 0; j < pixels; j += kTile, in += kTile * step) {
    // The last tile may have fewer pixels: the others repeat the first and are not stored.
    const uint32_t left = pixels - j;
    const size_t at[kTile] = {0, left > 1 ? step : 0, left > 2 ? 2 * step : 0, left > 3 ? 3 * step : 0};
    struct {
      typename V::Vec v[kTile];
    } s;
    unroll<kTile>([&](auto i) BITPRESS_INLINE { s.v[i] = V::zero(); });
    const int32_t* w = weights;
    const auto add = [&](uint32_t t, const auto& load) BITPRESS_INLINE {
      for (uint32_t c = 0; c < d.columns; ++c, w += padded) {
        const auto wv = V::load_w(w);
        const uint8_t* p = in + d.tap_offsets[t + c];
        unroll<kTile>([&](auto i) BITPRESS_INLINE { s.v[i] = V::madd(s.v[i], load(p + at[i]), wv); });
      }
    };
    for (uint32_t t = 0; t < d.taps; t += V::kRows * d.columns) {
      size_t below[3] = {};  // rows that the kernel lacks repeat the first: their weights are 0
      for (uint32_t i = 0; i + 1 < V::kRows; ++i) {
        const uint32_t tap = t + (i + 1) * d.columns;
        below[i] = tap < d.taps ? d.tap_offsets[tap] - d.tap_offsets[t] : 0;
      }
      if constexpr (V::kRows == 4) {
        add(t, [&](const uint8_t* p) BITPRESS_INLINE {
          return V::template load_four<kSigned>(p, p + below[0], p + below[1], p + below[2]);
        });
      } else {
        if constexpr (V::kRows == 2)
          if (below[0]) {
            add(t, [&](const uint8_t* p) BITPRESS_INLINE { return V::template load_pair<kSigned>(p, p + below[0]); });
            continue;
          }
        add(t, [&](const uint8_t* p) BITPRESS_INLINE { return V::template load_act<kSigned>(p); });
      }
    }
    unroll<kTile>([&](auto i) BITPRESS_INLINE { V::store(acc + (j + i) * L, s.v[i]); });
  }
}

template <class V, class F, bool kSigned>
void depthwise_as(const Depthwise& given) {
  constexpr uint32_t L = V::kLanes, kPixels = 32;  // of one epilogue
  alignas(64) int32_t acc[kPixels * L + 16];
  const Depthwise d = given;  // stores of bytes could change the original, for all that the compiler knows
  const size_t padded = (d.rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes;
  for (uint32_t row = 0; row < d.rows; row += L) {
    const uint32_t rows = d.rows - row < L ? d.rows - row : L;
    const int32_t* weights = d.weights + row;
    for (uint32_t y = 0; y < d.out_rows; ++y) {
      for (uint32_t x = 0; x < d.out_cols; x += kPixels) {
        const uint32_t pixels = d.out_cols - x < kPixels ? d.out_cols - x : kPixels;
        const uint8_t* in = d.in + y * d.row_stride + x * d.pixel_stride + row;
        const uint32_t slides = V::kStreams ? d.sliding : 0;
        if constexpr (V::kStreams) {
          if (slides == 1) depthwise_3x3<V, kSigned, 1>(d, in, weights, padded, pixels, acc);
          if (slides == 2) depthwise_3x3<V, kSigned, 2>(d, in, weights, padded, pixels, acc);
        }
        if (!slides) depthwise_window<V, kSigned>(d, in, weights, padded, pixels, acc);
        finish<F, FromSums>(d.out, acc, L, row, rows, d.first_pixel + y * d.out_row_pixels + x, pixels, nullptr);
      }
    }
  }
}

template <class V, class F>
void depthwise(const Depthwise& d) {
  d.is_signed ? depthwise_as<V, F, true>(d) : depthwise_as<V, F, false>(d);
}

// levels_of(from, to) for every kStep bytes of `r`, the last of which are filled up with zeros.
template <size_t kStep, class LevelsOf>
BITPRESS_INLINE inline void by_steps(const Requantize& r, const LevelsOf& levels_of) {
  const size_t at = r.first_pixel * r.out.channels, count = r.pixels * r.out.channels;
  const uint8_t* in = static_cast<const uint8_t*>(r.in) + at;
  uint8_t* out = static_cast<uint8_t*>(r.out.data) + at;
  size_t done = 0;
  for (; done + kStep <= count; done += kStep) levels_of(in + done, out + done);
  if (done == count) return;
  uint8_t from[kStep] = {}, to[kStep];
  __builtin_memcpy(from, in + done, count - done);
  levels_of(from, to);
  __builtin_memcpy(out + done, to, count - done);
}

// Bytes to levels of few steps, some vectors at a time, which share a broadcast rise. Vectors are copied one by one:
// gcc copies arrays of them in halves, which loads of whole ones then wait for, and took three times as long.
template <class F>
void count_rises(const Requantize& r) {
  constexpr int kVectors = 4, kWide = F::kLanes < 8 ? 16 : 32;
  typedef int8_t Bytes __attribute__((vector_size(kWide)));
  typedef uint8_t Levels __attribute__((vector_size(kWide)));
  const int8_t *const rises = r.rises, flip = static_cast<int8_t>(r.storage == Storage::kU8 ? 0x80 : 0);
  const Bytes flips = Bytes{} + flip;
  const Levels base = Levels{} + r.base;
  const uint32_t rise_count = r.rise_count;
  const auto levels_of = [=](const uint8_t* from, uint8_t* to) BITPRESS_INLINE {
    struct {
      Bytes v[kVectors];
      Levels level[kVectors];
    } s;
    unroll<kVectors>([&](auto k) BITPRESS_INLINE {
      __builtin_memcpy(&s.v[k], from + k * kWide, kWide);
      s.v[k] ^= flips;
      s.level[k] = base;
    });
    for (uint32_t j = 0; j < rise_count; ++j) {
      const Bytes rise = Bytes{} + rises[j];
      unroll<kVectors>([&](auto k) BITPRESS_INLINE { s.level[k] -= reinterpret_cast<Levels>(s.v[k] > rise); });
    }
    unroll<kVectors>([&](auto k) BITPRESS_INLINE { __builtin_memcpy(to + k * kWide, &s.level[k], kWide); });
  };
  by_steps<kVectors * kWide>(r, levels_of);
}

template <class F>
void scale_levels(const Requantize& r) {
  by_steps<F::kBytes>(r, typename F::Scale(r.storage == Storage::kI8 ? 0x80 : 0, r.scale, r.up, r.down,
                                           static_cast<uint8_t>(r.rise_count), r.base));
}

template <class F>
void requantize(const Requantize& r) {
  if constexpr (F::kLanes >= 8)
    if (r.scale) return scale_levels<F>(r);
  if (r.rise_count) return count_rises<F>(r);
  const uint32_t rows = static_cast<uint32_t>(r.out.channels);
  const size_t at = r.first_pixel * r.out.channels;
  const uint32_t pixels = static_cast<uint32_t>(r.pixels);
  if (r.storage == Storage::kU8)
    finish<F, FromU8>(r.out, static_cast<const uint8_t*>(r.in) + at, rows, 0, rows, r.first_pixel, pixels, nullptr);
  else if (r.storage == Storage::kI8)
    finish<F, FromI8>(r.out, static_cast<const int8_t*>(r.in) + at, rows, 0, rows, r.first_pixel, pixels, nullptr);
  else
    finish<F, FromF32>(r.out, static_cast<const float*>(r.in) + at, rows, 0, rows, r.first_pixel, pixels, nullptr);
}

// What becomes of the values of one channel before they are rounded.
template <class F>
struct Law {
  using Vec = typename F::Vec;
  const Vec m, b, lo, hi;
  Law(const Output& out, size_t channel)
      : m(F::set(out.m[channel])), b(F::set(out.b[channel])), lo(F::set(out.lo)), hi(F::set(out.hi)) {}
  BITPRESS_INLINE Vec operator()(Vec x) const { return F::min(F::max(F::add(F::mul(x, m), b), lo), hi); }
};

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)  // of gcc since version 12
#define BITPRESS_SHUFFLES
#endif
#endif

#if defined(BITPRESS_SHUFFLES)
// Three channels of 16 pixels -> 48 bytes, pixel by pixel.
inline void interleave(const uint8_t* channels, uint8_t* out) {
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  Bytes r, g, b;
  __builtin_memcpy(&r, channels, 16);
  __builtin_memcpy(&g, channels + 16, 16);
  __builtin_memcpy(&b, channels + 32, 16);
  const Bytes two[] = {
      __builtin_shufflevector(r, g, 0, 16, 0, 1, 17, 0, 2, 18, 0, 3, 19, 0, 4, 20, 0, 5),
      __builtin_shufflevector(r, g, 21, 0, 6, 22, 0, 7, 23, 0, 8, 24, 0, 9, 25, 0, 10, 26),
      __builtin_shufflevector(r, g, 0, 11, 27, 0, 12, 28, 0, 13, 29, 0, 14, 30, 0, 15, 31, 0),
  };
  const Bytes all[] = {
      __builtin_shufflevector(two[0], b, 0, 1, 16, 3, 4, 17, 6, 7, 18, 9, 10, 19, 12, 13, 20, 15),
      __builtin_shufflevector(two[1], b, 0, 21, 2, 3, 22, 5, 6, 23, 8, 9, 24, 11, 12, 25, 14, 15),
      __builtin_shufflevector(two[2], b, 26, 1, 2, 27, 4, 5, 28, 7, 8, 29, 10, 11, 30, 13, 14, 31),
  };
  __builtin_memcpy(out, all, sizeof all);
}

// Levels of images of three channels, whole steps of 16 pixels; how many are done.
template <class F>
size_t quantize_three(const Quantize& q) {
  constexpr uint32_t kStep = 16, L = F::kLanes;
  const size_t steps = q.pixels / kStep;
  uint8_t* out = static_cast<uint8_t*>(q.out.data) + 3 * q.first_pixel;
  alignas(16) uint8_t levels[3 * kStep + 16];
  for (size_t step = 0; step < steps; ++step, out += 3 * kStep) {
    unroll<3>([&](auto c) BITPRESS_INLINE {
      const float* in = q.in + c * q.plane + q.first_pixel + step * kStep;
      const Law<F> law(q.out, c);
      unroll<kStep / L>([&](auto k) BITPRESS_INLINE {
        F::store_levels(levels + c * kStep + k * L, law(F::load_f32_exactly(in + k * L, L)), L);
      });
    });
    interleave(levels, out);
  }
  return steps * kStep;
}
#endif

// Channels are few and pixels many, so the lanes are pixels here, and the results are interleaved afterwards.
template <class F>
void quantize(const Quantize& given) {
  Quantize q = given;
#if defined(BITPRESS_SHUFFLES)
  if constexpr (F::kLanes > 1)
    if (q.out.channels == 3 && q.out.storage != Storage::kF32) {
      const size_t done = quantize_three<F>(q);
      q.first_pixel += done;
      q.pixels -= done;
    }
#endif
  constexpr uint32_t L = F::kLanes;
  const size_t channels = q.out.channels, end = q.first_pixel + q.pixels;
  for (size_t c = 0; c < channels; ++c) {
    const Law<F> law(q.out, c);
    const float* in = q.in + c * q.plane;
    for (size_t x = q.first_pixel; x < end; x += L) {
      const uint32_t n = end - x < L ? static_cast<uint32_t>(end - x) : L;
      const typename F::Vec t = law(F::load_f32_exactly(in + x, n));
      if (q.out.storage == Storage::kF32) {
        float some[L];
        F::store_f32(some, t, L);
        for (uint32_t k = 0; k < n; ++k) static_cast<float*>(q.out.data)[(x + k) * channels + c] = some[k];
      } else {
        uint8_t some[L];
        F::store_levels(some, t, L);
        uint8_t* const out = static_cast<uint8_t*>(q.out.data) + x * channels + c;
        if (n == L)
          unroll<L>([&](auto k) BITPRESS_INLINE { out[k * channels] = some[k]; });
        else
          for (uint32_t k = 0; k < n; ++k) out[k * channels] = some[k];
      }
    }
  }
}

// The part of a window, along one axis, that lies inside of the input: [begin, end) of its taps.
struct Inside {
  uint32_t begin, end;
};
inline Inside inside(uint32_t at, uint32_t stride, uint32_t pad, uint32_t kernel, uint32_t size) {
  const int64_t first = static_cast<int64_t>(at) * stride - pad;
  const int64_t room = static_cast<int64_t>(size) - first;
  const uint32_t begin = first < 0 ? static_cast<uint32_t>(-first) : 0;
  const uint32_t end = room <= 0 ? 0 : room < kernel ? static_cast<uint32_t>(room) : kernel;
  return {begin < end ? begin : end, end};
}

template <class T, class Visit>
inline void window(const Pool& p, uint32_t y, uint32_t x, const Visit& visit) {
  const Inside v = inside(y, p.stride_h, p.top, p.kernel_h, p.in_h),
               h = inside(x, p.stride_w, p.left, p.kernel_w, p.in_w);
  for (uint32_t ky = v.begin; ky < v.end; ++ky)
    for (uint32_t kx = h.begin; kx < h.end; ++kx)
      visit(static_cast<const T*>(p.in) +
            (static_cast<size_t>(y * p.stride_h + ky - p.top) * p.in_w + (x * p.stride_w + kx - p.left)) * p.channels);
}

// The largest of `taps` rows of `columns` neighbours each, of `kBytes` / sizeof(T) channels: it stays in registers,
// where a window that is gone through tap by tap waits for its own stores.
template <class T, int kBytes>
BITPRESS_INLINE inline void largest(const T* in, size_t row, uint32_t taps, size_t pixel, uint32_t columns, T* out) {
  typedef T Vec __attribute__((vector_size(kBytes), aligned(sizeof(T)), may_alias));
  Vec best = *reinterpret_cast<const Vec*>(in);
  for (uint32_t ky = 0; ky < taps; ++ky, in += row)
    for (uint32_t kx = 0; kx < columns; ++kx) {
      const Vec v = *reinterpret_cast<const Vec*>(in + kx * pixel);
      best = best < v ? v : best;
    }
  *reinterpret_cast<Vec*>(out) = best;
}

template <class T>
void max_pool_as(const Pool& p) {
  constexpr uint32_t kWide = 32 / sizeof(T), kFew = 8 / sizeof(T);
  const uint32_t n = p.channels;
  for (uint32_t y = p.row_begin; y < p.row_end; ++y) {
    const Inside v = inside(y, p.stride_h, p.top, p.kernel_h, p.in_h);
    const size_t first_row = size_t{y} * p.stride_h + v.begin - p.top;
    T* out = static_cast<T*>(p.out.data) + static_cast<size_t>(y) * p.out_w * n;
    for (uint32_t x = 0; x < p.out_w; ++x, out += n) {
      const Inside h = inside(x, p.stride_w, p.left, p.kernel_w, p.in_w);
      const T* in = static_cast<const T*>(p.in) + (first_row * p.in_w + size_t{x} * p.stride_w + h.begin - p.left) * n;
      const size_t row = size_t{p.in_w} * n;
      const uint32_t taps = v.end - v.begin, columns = h.end - h.begin;
      uint32_t c = 0;
      for (; c + kWide <= n; c += kWide) largest<T, 32>(in + c, row, taps, n, columns, out + c);
      for (; c + kFew <= n; c += kFew) largest<T, 8>(in + c, row, taps, n, columns, out + c);
      for (; c < n; ++c) largest<T, sizeof(T)>(in + c, row, taps, n, columns, out + c);
    }
  }
}

inline void max_pool2d(const Pool& p) {
  if (p.storage == Storage::kU8) return max_pool_as<uint8_t>(p);
  if (p.storage == Storage::kI8) return max_pool_as<int8_t>(p);
  max_pool_as<float>(p);
}

// Captured by value, like all that inner loops use: stores of bytes could change whatever is read through a reference,
// and nothing would be vectorised.
template <class T, class F>
void sum_pool_as(const Pool& p) {
  const uint32_t n = p.channels;
  int32_t* const sums = p.sums;
  for (uint32_t y = p.row_begin; y < p.row_end; ++y)
    for (uint32_t x = 0; x < p.out_w; ++x) {
      for (uint32_t c = 0; c < n; ++c) sums[c] = 0;
      window<T>(p, y, x, [sums, n](const T* __restrict in) {
        int32_t* __restrict to = sums;
        for (uint32_t c = 0; c < n; ++c) to[c] += in[c];
      });
      finish<F, FromSums>(p.out, sums, n, 0, n, static_cast<size_t>(y) * p.out_w + x, 1, nullptr);
    }
}

template <class F>
void sum_pool2d(const Pool& p) {
  if (p.storage == Storage::kU8) return sum_pool_as<uint8_t, F>(p);
  sum_pool_as<int8_t, F>(p);
}

template <class A, class B, class F>
void product_as(const Product& p) {
  const uint32_t n = p.channels;
  int32_t* const sums = p.sums;
  for (size_t x = p.first_pixel; x < p.first_pixel + p.pixels; ++x) {
    const A* __restrict in = static_cast<const A*>(p.in) + x * n;
    const B* __restrict gate = static_cast<const B*>(p.gate) + (p.one ? 0 : x * n);
    for (uint32_t c = 0; c < n; ++c) sums[c] = static_cast<int32_t>(in[c]) * gate[c];
    finish<F, FromSums>(p.out, sums, n, 0, n, x, 1, nullptr);
  }
}

template <class F>
void product(const Product& p) {
  const bool gate = p.gate_storage == Storage::kU8;
  if (p.storage == Storage::kU8) return gate ? product_as<uint8_t, uint8_t, F>(p) : product_as<uint8_t, int8_t, F>(p);
  gate ? product_as<int8_t, uint8_t, F>(p) : product_as<int8_t, int8_t, F>(p);
}
