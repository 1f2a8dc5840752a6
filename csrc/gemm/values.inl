// Everything that is no matrix product: depthwise convolution, quantize, requantize, pools. Anonymous namespace.
// Depthwise vocabulary V: kLanes, Vec, zero, load_act<signed>(bytes) -> int32 lanes, load_w, madd(acc, a, w), store.

template <class V, class F, bool kSigned>
void depthwise_as(const Depthwise& d) {
  constexpr uint32_t L = V::kLanes;
  constexpr uint32_t kTile = 4, kPixels = 16;  // pixels that share a load of weights; pixels of one epilogue
  alignas(64) int32_t acc[kPixels * L + 16];
  const size_t padded = (d.rows + kMaxLanes - 1) / kMaxLanes * kMaxLanes, step = d.pixel_stride;
  const uint32_t* const offsets = d.tap_offsets;
  const uint32_t taps = d.taps;
  for (uint32_t row = 0; row < d.rows; row += L) {
    const uint32_t rows = d.rows - row < L ? d.rows - row : L;
    for (uint32_t y = 0; y < d.out_rows; ++y) {
      for (uint32_t x = 0; x < d.out_cols; x += kPixels) {
        const uint32_t pixels = d.out_cols - x < kPixels ? d.out_cols - x : kPixels;
        for (uint32_t j = 0; j < pixels; j += kTile) {
          const uint8_t* in = d.in + y * d.row_stride + (x + j) * step + row;
          // The last tile may have fewer pixels: the others repeat the first and are not stored.
          const uint32_t left = pixels - j;
          const size_t p1 = left > 1 ? step : 0, p2 = left > 2 ? 2 * step : 0, p3 = left > 3 ? 3 * step : 0;
          typename V::Vec s0 = V::zero(), s1 = s0, s2 = s0, s3 = s0;
          const int32_t* weights = d.weights + row;
          if (d.sliding && left >= kTile) {  // neighbouring pixels share two of three columns: half of the loads
            for (uint32_t t = 0; t < taps; t += 3, weights += 3 * padded) {
              const typename V::Vec w0 = V::load_w(weights), w1 = V::load_w(weights + padded),
                                    w2 = V::load_w(weights + 2 * padded);
              const uint8_t* p = in + offsets[t];
              const typename V::Vec a0 = V::template load_act<kSigned>(p), a1 = V::template load_act<kSigned>(p + step),
                                    a2 = V::template load_act<kSigned>(p + 2 * step),
                                    a3 = V::template load_act<kSigned>(p + 3 * step),
                                    a4 = V::template load_act<kSigned>(p + 4 * step),
                                    a5 = V::template load_act<kSigned>(p + 5 * step);
              s0 = V::madd(V::madd(V::madd(s0, a0, w0), a1, w1), a2, w2);
              s1 = V::madd(V::madd(V::madd(s1, a1, w0), a2, w1), a3, w2);
              s2 = V::madd(V::madd(V::madd(s2, a2, w0), a3, w1), a4, w2);
              s3 = V::madd(V::madd(V::madd(s3, a3, w0), a4, w1), a5, w2);
            }
          } else {
            for (uint32_t t = 0; t < taps; ++t, weights += padded) {
              const typename V::Vec w = V::load_w(weights);
              const uint8_t* p = in + offsets[t];
              s0 = V::madd(s0, V::template load_act<kSigned>(p), w);
              s1 = V::madd(s1, V::template load_act<kSigned>(p + p1), w);
              s2 = V::madd(s2, V::template load_act<kSigned>(p + p2), w);
              s3 = V::madd(s3, V::template load_act<kSigned>(p + p3), w);
            }
          }
          int32_t* out = acc + j * L;
          V::store(out, s0);
          V::store(out + L, s1);
          V::store(out + 2 * L, s2);
          V::store(out + 3 * L, s3);
        }
        finish<F, FromSums>(d.out, acc, L, row, rows, d.first_pixel + y * d.out_row_pixels + x, pixels, nullptr);
      }
    }
  }
}

template <class V, class F>
void depthwise(const Depthwise& d) {
  d.is_signed ? depthwise_as<V, F, true>(d) : depthwise_as<V, F, false>(d);
}

template <class F>
void requantize(const Requantize& r) {
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

// Channels are few and pixels many, so the lanes are pixels here, and the results are interleaved afterwards.
template <class F>
void quantize(const Quantize& q) {
  constexpr uint32_t L = F::kLanes;
  const typename F::Vec lo = F::set(q.out.lo), hi = F::set(q.out.hi);
  const size_t channels = q.out.channels, end = q.first_pixel + q.pixels;
  for (size_t c = 0; c < channels; ++c) {
    const typename F::Vec m = F::set(q.out.m[c]), b = F::set(q.out.b[c]);
    const float* in = q.in + c * q.plane;
    for (size_t x = q.first_pixel; x < end; x += L) {
      const uint32_t n = end - x < L ? static_cast<uint32_t>(end - x) : L;
      const typename F::Vec t = F::min(F::max(F::add(F::mul(F::load_f32_exactly(in + x, n), m), b), lo), hi);
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

// Captured by value, like all that inner loops use: stores of bytes could change whatever is read through a reference,
// and nothing would be vectorised.
template <class T>
void max_pool_as(const Pool& p) {
  const uint32_t n = p.channels;
  for (uint32_t y = p.row_begin; y < p.row_end; ++y)
    for (uint32_t x = 0; x < p.out_w; ++x) {
      T* const out = static_cast<T*>(p.out.data) + (static_cast<size_t>(y) * p.out_w + x) * n;
      bool first = true;
      window<T>(p, y, x, [out, n, &first](const T* __restrict in) {
        T* __restrict to = out;
        if (first)
          for (uint32_t c = 0; c < n; ++c) to[c] = in[c];
        else
          for (uint32_t c = 0; c < n; ++c) to[c] = to[c] < in[c] ? in[c] : to[c];
        first = false;
      });
    }
}

inline void max_pool2d(const Pool& p) {
  if (p.storage == Storage::kU8) return max_pool_as<uint8_t>(p);
  if (p.storage == Storage::kI8) return max_pool_as<int8_t>(p);
  max_pool_as<float>(p);
}

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
