// The epilogue: exact sums -> stored values, by the law of contract.h. Included inside an anonymous namespace.
//
// A Float vocabulary F supplies kLanes, Vec, load, set, mul, add, min, max, and
//   from_i32(Ints) / Ints operations on int32 lanes: load_i32, load_u16, set_i32, add_i32, shl
//   load_u8 / load_i8 / load_f32 (pointer, n) -> Vec, reading n values (or more, see kSlack)
//   store_levels(uint8_t*, Vec, n), rounding half to even (the values fit a byte); store_f32(float*, Vec, n)
//   kTogether: 1, or 4 where store_four(uint8_t*, apart, is_signed, lo, four Vec) stores whole vectors `apart` bytes
//     from each other, which are not below `lo` then: packing saturates, so a bound costs once in four there

struct FromSums {  // int32 sums [pixel][stride]
  static constexpr bool kSums = true;
  static constexpr size_t kBytes = 4;
  template <class F>
  static typename F::Ints load_sums(const void* p, size_t at) {
    return F::load_i32(static_cast<const int32_t*>(p) + at);
  }
};
struct FromU16 {  // sums below 2^16
  static constexpr bool kSums = true;
  static constexpr size_t kBytes = 2;
  template <class F>
  static typename F::Ints load_sums(const void* p, size_t at) {
    return F::load_u16(static_cast<const uint16_t*>(p) + at);
  }
};
struct FromU8 {
  static constexpr bool kSums = false;
  static constexpr size_t kBytes = 1;
  template <class F>
  static typename F::Vec load(const void* p, size_t at, uint32_t n) {
    return F::load_u8(static_cast<const uint8_t*>(p) + at, n);
  }
};
struct FromI8 {
  static constexpr bool kSums = false;
  static constexpr size_t kBytes = 1;
  template <class F>
  static typename F::Vec load(const void* p, size_t at, uint32_t n) {
    return F::load_i8(static_cast<const int8_t*>(p) + at, n);
  }
};
struct FromF32 {
  static constexpr bool kSums = false;
  static constexpr size_t kBytes = 4;
  template <class F>
  static typename F::Vec load(const void* p, size_t at, uint32_t n) {
    return F::load_f32(static_cast<const float*>(p) + at, n);
  }
};

template <class F>
inline typename F::Vec load_stored(const void* p, Storage storage, size_t at, uint32_t n) {
  if (storage == Storage::kU8) return F::load_u8(static_cast<const uint8_t*>(p) + at, n);
  if (storage == Storage::kI8) return F::load_i8(static_cast<const int8_t*>(p) + at, n);
  return F::load_f32(static_cast<const float*>(p) + at, n);
}

inline float stored_at(const void* p, Storage storage, size_t at) {
  if (storage == Storage::kU8) return static_cast<float>(static_cast<const uint8_t*>(p)[at]);
  if (storage == Storage::kI8) return static_cast<float>(static_cast<const int8_t*>(p)[at]);
  return static_cast<const float*>(p)[at];
}

struct None {};  // no residual

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

// Sums or values of F::kLanes rows from `in` on, before the epilogue, as floats. `kPlain`: no shift and no window.
template <class F, class From, bool kPlain = false>
inline typename F::Vec begin_value(const void* in, size_t at, uint32_t n, [[maybe_unused]] typename F::Ints bias,
                                   [[maybe_unused]] int32_t shift, [[maybe_unused]] const int32_t* window) {
  if constexpr (From::kSums) {
    typename F::Ints acc = From::template load_sums<F>(in, at);
    if constexpr (!kPlain) acc = F::shl(acc, shift);
    acc = F::add_i32(acc, bias);
    if (!kPlain && window) acc = F::add_i32(acc, F::set_i32(*window));
    return F::from_i32(acc);
  } else {
    return From::template load<F>(in, at, n);
  }
}

// The common case by itself, a third of the time of a small layer otherwise: a whole vector of neighbouring channels
// into levels, of four pixels at once where that saves packing (of two vectors of one pixel it saved nothing with
// AVX2). `kPlain`: no shift, no sums of windows. `at`: index of the first value; the other arguments as of finish().
template <class F, class From, class Residual, bool kPlain>
inline void finish_levels(const Output& output, const void* in, size_t stride, uint32_t row, size_t at, uint32_t pixels,
                          const int32_t* window) {
  const Output o = output;  // stores of bytes could change the original, for all that the compiler knows
  const typename F::Vec lo = F::set(o.lo), hi = F::set(o.hi), m = F::load(o.m + row), b = F::load(o.b + row);
  [[maybe_unused]] const typename F::Vec m_r = F::set(o.m_r);
  typename F::Ints bias = F::set_i32(0);
  if constexpr (From::kSums) bias = F::load_i32(o.bias + row);
  const auto value = [&](const void* from, size_t to, uint32_t j) BITPRESS_INLINE {
    typename F::Vec t = begin_value<F, From, kPlain>(from, 0, F::kLanes, bias, o.shift, window ? window + j : nullptr);
    t = F::add(F::mul(t, m), b);
    if constexpr (!kSame<Residual, None>)
      t = F::add(t, F::mul(Residual::template load<F>(o.residual, to, F::kLanes), m_r));
    return t;
  };
  const auto* from = static_cast<const char*>(in);
  const size_t step = stride * From::kBytes;
  uint8_t* out = static_cast<uint8_t*>(o.data);
  uint32_t j = 0;
  if constexpr (From::kSums && kPlain && F::kTogether == 4)  // others are rare
    if (o.small)
      for (const size_t apart = o.channels; j + 4 <= pixels; j += 4, at += 4 * apart, from += 4 * step)
        F::store_four(out + at, apart, o.storage == Storage::kI8, static_cast<int32_t>(o.lo),
                      static_cast<int32_t>(o.hi), value(from, at, j), value(from + step, at + apart, j + 1),
                      value(from + 2 * step, at + 2 * apart, j + 2), value(from + 3 * step, at + 3 * apart, j + 3));
  for (; j < pixels; ++j, at += o.channels, from += step)
    F::store_levels(out + at, F::max(F::min(value(from, at, j), hi), lo), F::kLanes);
}

template <class F, class From, class Residual>
inline void finish_levels(const Output& o, const void* in, size_t stride, uint32_t row, size_t at, uint32_t pixels,
                          const int32_t* window) {
  if constexpr (From::kSums)
    if (o.shift == 0 && !window) return finish_levels<F, From, Residual, true>(o, in, stride, row, at, pixels, window);
  finish_levels<F, From, Residual, false>(o, in, stride, row, at, pixels, window);
}

// Rows [row, row + rows) of `pixels` pixels from index `pixel` on. Value of row row+i, pixel j: in[j * stride + i].
// `window`: factor * sum of each pixel's window, null where the factor is 0.
template <class F, class From>
void finish(const Output& output, const void* in, size_t stride, uint32_t row, uint32_t rows, size_t pixel,
            uint32_t pixels, const int32_t* window) {
  constexpr uint32_t L = F::kLanes;
  const Output o = output;
  const typename F::Vec lo = F::set(o.lo), hi = F::set(o.hi), m_r = F::set(o.m_r);
  const bool scattered = o.out_channels != nullptr, levels = o.storage != Storage::kF32;
  for (uint32_t i = 0; i < rows; i += L) {
    const uint32_t n = rows - i < L ? rows - i : L;
    if (n == L && levels && !scattered && !(o.residual && o.residual_storage == Storage::kF32)) {
      const size_t at = pixel * o.channels + o.first_channel + row + i;
      const void* from = static_cast<const char*>(in) + i * From::kBytes;
      if (!o.residual)
        finish_levels<F, From, None>(output, from, stride, row + i, at, pixels, window);
      else if (o.residual_storage == Storage::kU8)
        finish_levels<F, From, FromU8>(output, from, stride, row + i, at, pixels, window);
      else
        finish_levels<F, From, FromI8>(output, from, stride, row + i, at, pixels, window);
      continue;
    }
    const typename F::Vec m = F::load(o.m + row + i), b = F::load(o.b + row + i);
    typename F::Ints bias = F::set_i32(0);
    if constexpr (From::kSums) bias = F::load_i32(o.bias + row + i);
    for (uint32_t j = 0; j < pixels; ++j) {
      typename F::Vec t = begin_value<F, From>(in, j * stride + i, n, bias, o.shift, window ? window + j : nullptr);
      t = F::add(F::mul(t, m), b);
      const size_t at = (pixel + j) * o.channels + (scattered ? 0 : o.first_channel + row + i);
      if (o.residual) {
        typename F::Vec r;
        if (scattered) {
          float some[L] = {};
          for (uint32_t k = 0; k < n; ++k)
            some[k] = stored_at(o.residual, o.residual_storage, at + static_cast<size_t>(o.out_channels[row + i + k]));
          r = F::load(some);
        } else {
          r = load_stored<F>(o.residual, o.residual_storage, at, n);
        }
        t = F::add(t, F::mul(r, m_r));
      }
      t = F::min(F::max(t, lo), hi);  // before rounding: the bounds of levels are integers, so the order is free
      if (!levels) {
        float* out = static_cast<float*>(o.data) + at;
        if (!scattered) {
          F::store_f32(out, t, n);
        } else {
          float some[L];
          F::store_f32(some, t, L);
          for (uint32_t k = 0; k < n; ++k) out[o.out_channels[row + i + k]] = some[k];
        }
      } else {
        uint8_t* out = static_cast<uint8_t*>(o.data) + at;
        if (!scattered) {
          F::store_levels(out, t, n);
        } else {
          uint8_t some[L];
          F::store_levels(some, t, L);
          for (uint32_t k = 0; k < n; ++k) out[o.out_channels[row + i + k]] = some[k];
        }
      }
    }
  }
}
