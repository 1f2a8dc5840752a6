// Rows that every host can run: plain C++, no instruction set assumed. Also the plainest text of what the others do.
#include "../gemm/contract.h"
#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"

struct F {
  static constexpr uint32_t kLanes = 4;
  static constexpr uint32_t kTogether = 1;
  struct Vec {
    float v[kLanes];
  };
  struct Ints {
    uint32_t v[kLanes];  // wraps
  };
  template <class Op>
  static Vec each(const Op& op) {
    Vec out;
    unroll<kLanes>([&](auto i) BITPRESS_INLINE { out.v[i] = op(i); });
    return out;
  }
  static Vec load(const float* p) {
    return each([&](uint32_t i) { return p[i]; });
  }
  static Vec set(float x) {
    return each([&](uint32_t) { return x; });
  }
  static Vec mul(Vec a, Vec b) {
    return each([&](uint32_t i) { return a.v[i] * b.v[i]; });
  }
  static Vec add(Vec a, Vec b) {
    return each([&](uint32_t i) { return a.v[i] + b.v[i]; });
  }
  static Vec min(Vec a, Vec b) {
    return each([&](uint32_t i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec max(Vec a, Vec b) {
    return each([&](uint32_t i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
  }
  static Vec from_i32(Ints a) {
    return each([&](uint32_t i) { return static_cast<float>(static_cast<int32_t>(a.v[i])); });
  }
  static Ints load_u16(const uint16_t* p) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = p[i];
    return out;
  }
  static Ints load_i32(const int32_t* p) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = static_cast<uint32_t>(p[i]);
    return out;
  }
  static Ints set_i32(int32_t x) {
    Ints out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = static_cast<uint32_t>(x);
    return out;
  }
  static Ints add_i32(Ints a, Ints b) {
    for (uint32_t i = 0; i < kLanes; ++i) a.v[i] += b.v[i];
    return a;
  }
  static Ints shl(Ints a, int32_t n) {
    for (uint32_t i = 0; i < kLanes; ++i) a.v[i] <<= n;
    return a;
  }
  template <class T>
  static Vec load_some(const T* p, uint32_t n) {
    return each([&](uint32_t i) { return i < n ? static_cast<float>(p[i]) : 0.0f; });
  }
  static Vec load_u8(const uint8_t* p, uint32_t n) { return load_some(p, n); }
  static Vec load_i8(const int8_t* p, uint32_t n) { return load_some(p, n); }
  static Vec load_f32(const float* p, uint32_t n) { return load_some(p, n); }
  static Vec load_f32_exactly(const float* p, uint32_t n) { return load_some(p, n); }
  static void store_f32(float* p, Vec a, uint32_t n) {
    for (uint32_t i = 0; i < n; ++i) p[i] = a.v[i];
  }
  // Adding 1.5 * 2^23 leaves no bits behind the point, so that the addition itself rounds half to even.
  static void store_levels(uint8_t* p, Vec a, uint32_t n) {
    constexpr float kMagic = 12582912.0f;
    for (uint32_t i = 0; i < n; ++i) p[i] = static_cast<uint8_t>(static_cast<int32_t>((a.v[i] + kMagic) - kMagic));
  }
};

// Two rows of 32-bit words in one of 64; counts of bytes by the classic additions within a word.
struct Bits {
  static constexpr uint32_t kLanes = 2, kSteps = 31;
  static constexpr int kPixels = 2, kBlocks = 2;
  using Vec = uint64_t;
  static Vec zero() { return 0; }
  static Vec load(const uint32_t* p) { return p[0] | static_cast<uint64_t>(p[1]) << 32; }
  static Vec broadcast(const uint32_t* p) { return *p * 0x100000001u; }
  static Vec both(Vec a, Vec b) { return a & b; }
  static Vec count(Vec x) {
    x -= (x >> 1) & 0x5555555555555555u;
    x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
    return (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0Fu;
  }
  static Vec add(Vec a, Vec b) { return a + b; }
  static Vec reduce(Vec x) {
    x = (x & 0x00FF00FF00FF00FFu) + ((x >> 8) & 0x00FF00FF00FF00FFu);
    return (x & 0x0000FFFF0000FFFFu) + ((x >> 16) & 0x0000FFFF0000FFFFu);
  }
  static Vec mul_add(Vec sum, int32_t coeff, Vec counts) {
    const uint32_t k = static_cast<uint32_t>(coeff);
    const uint32_t low = static_cast<uint32_t>(sum) + k * static_cast<uint32_t>(counts);
    const uint32_t high = static_cast<uint32_t>(sum >> 32) + k * static_cast<uint32_t>(counts >> 32);
    return low | static_cast<uint64_t>(high) << 32;
  }
  static void store(int32_t* p, Vec v) {
    p[0] = static_cast<int32_t>(static_cast<uint32_t>(v));
    p[1] = static_cast<int32_t>(static_cast<uint32_t>(v >> 32));
  }
  static void copy(uint8_t* to, const uint8_t* from, size_t n) { __builtin_memcpy(to, from, n); }
  static void pack(const uint8_t* bytes, uint32_t* planes, uint32_t bits, size_t count, size_t stride) {
    for (uint32_t q = 0; q < bits; ++q)
      for (size_t k = 0; k < count / 32; ++k) {
        uint32_t word = 0;
        for (uint32_t i = 0; i < 32; ++i) word |= static_cast<uint32_t>((bytes[32 * k + i] >> q) & 1) << i;
        planes[q * stride + k] = word;
      }
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) {
    uint32_t sum = 0;
    for (uint32_t i = 0; i < n; ++i) sum += p[i] ^ flip;
    return sum;
  }
};

// One bit of 128 pixels, in whatever the compiler has for two words.
struct Slices {
  static constexpr size_t kBytes = 16;
  static constexpr bool kFlips = true;
  typedef uint64_t Vec __attribute__((vector_size(16)));
  typedef uint8_t Bytes __attribute__((vector_size(16)));
  static Vec zero() { return Vec{}; }
  static Vec set(uint32_t word) { return Vec{} + word * 0x100000001u; }
  static Vec broadcast(const uint32_t* p) { return set(*p); }
  static Vec load(const uint8_t* p) {
    Vec v;
    __builtin_memcpy(&v, p, sizeof v);
    return v;
  }
  static Vec load_once(const uint8_t* p) { return load(p); }
  static Vec load_any(const uint8_t* p) { return load(p); }
  static void store(uint8_t* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
  static void store_any(uint8_t* p, Vec v) { store(p, v); }
  static Vec both(Vec a, Vec b) { return a & b; }
  static Vec either(Vec a, Vec b) { return a | b; }
  static Vec differ(Vec a, Vec b) { return a ^ b; }
  static Vec flip(Vec a) { return ~a; }
  static Vec select(Vec mask, Vec a, Vec b) { return (mask & a) | (~mask & b); }
  static constexpr bool kWidens = false;
  template <int n>
  static Vec shl(Vec a) {
    return a << n;
  }
  template <int n>
  static Vec shr(Vec a) {
    return a >> n;
  }
  static BITPRESS_INLINE Vec full_add(Vec& sum, Vec x, Vec y) {
    const Vec t = x ^ y, out = (sum & t) | (x & y);
    sum ^= t;
    return out;
  }
  static BITPRESS_INLINE Vec full_add_less(Vec& sum, Vec x, Vec y) {
    const Vec t = x ^ y, out = (~sum & t) | (x & y);
    sum ^= t;
    return out;
  }
  static BITPRESS_INLINE Vec half_add(Vec& sum, Vec x) {
    const Vec out = sum & x;
    sum ^= x;
    return out;
  }
  static Vec at_least(Vec bit, Vec so_far, Vec threshold) { return (bit & so_far) | ((bit | so_far) & ~threshold); }
  static Vec add_bytes(Vec a, Vec b) {
    return reinterpret_cast<Vec>(reinterpret_cast<Bytes>(a) + reinterpret_cast<Bytes>(b));
  }
  template <int word>
  static Vec moved(Vec a, int n) {
    if (word == 8) return n <= -64 || n >= 64 ? zero() : n < 0 ? a << -n : a >> n;
    const uint64_t ones = word == 2 ? 0x0001000100010001u : 0x0000000100000001u;
    const uint64_t whole = word == 2 ? 0xFFFF : 0xFFFFFFFF;
    const int by = n < 0 ? -n : n;
    if (by >= 8 * word) return zero();
    const uint64_t kept = n < 0 ? whole >> by : whole >> by << by;  // what stays within its word
    const Vec v = a & (Vec{} + ones * kept);
    return n < 0 ? v << by : v >> by;
  }
  static Vec pieces(const uint8_t* const (&p)[1]) { return load(p[0]); }
  static void put(Vec v, uint8_t* const (&p)[1], size_t at) { store(p[0] + at, v); }
  static Vec unpack_low(Vec a, Vec b) { return unpack(a, b, 0); }
  static Vec unpack_high(Vec a, Vec b) { return unpack(a, b, 8); }
  static void zip(Vec a, Vec b, uint8_t* to) {
    store(to, unpack_low(a, b));
    store(to + kBytes, unpack_high(a, b));
  }
  static void turn(Vec (&v)[16]) {
    uint8_t square[16][kBytes], turned[16][kBytes];
    __builtin_memcpy(square, v, sizeof square);
    for (size_t i = 0; i < 16; ++i)
      for (size_t j = 0; j < 16; ++j) turned[i][j] = square[j][i];
    __builtin_memcpy(v, turned, sizeof turned);
  }

 private:
  static Vec unpack(Vec x, Vec y, size_t at) {
    uint8_t a[kBytes], b[kBytes], to[kBytes];
    store(a, x);
    store(b, y);
    for (size_t i = 0; i < 8; ++i) {
      to[2 * i] = a[at + i];
      to[2 * i + 1] = b[at + i];
    }
    return load(to);
  }
};

struct Dots {
  static constexpr uint32_t kLanes = 4;
  static constexpr uint32_t kRows = 1;
  static constexpr bool kStreams = false;  // four times the code, and scalars gain little
  struct Vec {
    int32_t v[kLanes];
  };
  static Vec zero() { return Vec{}; }
  template <bool kSigned>
  static Vec load_act(const uint8_t* p) {
    Vec out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = kSigned ? static_cast<int8_t>(p[i]) : p[i];
    return out;
  }
  static Vec load_w(const int32_t* p) {
    Vec out;
    for (uint32_t i = 0; i < kLanes; ++i) out.v[i] = static_cast<int16_t>(p[i]);
    return out;
  }
  static Vec madd(Vec acc, Vec a, Vec w) {
    for (uint32_t i = 0; i < kLanes; ++i) acc.v[i] += a.v[i] * w.v[i];
    return acc;
  }
  static void store(int32_t* p, Vec v) {
    for (uint32_t i = 0; i < kLanes; ++i) p[i] = v.v[i];
  }
};

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"
#include "../gemm/bitsliced.inl"
#include "../gemm/values.inl"

// Loops that compilers turn into multiply-adds of int16 by themselves: no tile, four rows of weights at once.
void i8dot(const Conv& c) {
  const size_t depth = static_cast<size_t>(c.taps) * c.run;
  for (uint32_t block = c.block_begin; block < c.block_end; ++block) {
    const int16_t* w = static_cast<const int16_t*>(c.weights) + block * 4 * depth;
    const uint32_t rows = c.rows - 4 * block < 4 ? c.rows - 4 * block : 4;
    for (uint32_t y = 0; y < c.out_rows; ++y) {
      for (uint32_t x = 0; x < c.out_cols; ++x) {
        int32_t acc[4] = {};
        for (uint32_t r = 0; r < 4; ++r) {
          const int16_t* wr = w + r * depth;
          int32_t sum = 0;
          for (uint32_t t = 0; t < c.taps; ++t, wr += c.run) {
            const int16_t* in =
                reinterpret_cast<const int16_t*>(c.in + y * c.row_stride + x * c.pixel_stride + c.tap_offsets[t]);
            for (uint32_t k = 0; k < c.run; ++k) sum += static_cast<int32_t>(wr[k]) * in[k];
          }
          acc[r] = sum;
        }
        finish<F, FromSums>(c.out, acc, 4, 4 * block, rows, c.first_pixel + y * c.out_row_pixels + x, 1, nullptr);
      }
    }
  }
}

// `count` times `bytes` bytes, each time `to_step` and `from_step` further on. Of few bytes a call of memcpy takes
// longer than what it does, and so does a choice made anew each time: two parts of kPart bytes, which may overlap, make
// them.
template <size_t kPart>
inline void copy_parts(uint8_t* to, size_t to_step, const uint8_t* from, size_t from_step, size_t bytes, size_t count) {
  const size_t last = bytes - kPart;
  for (; count; --count, to += to_step, from += from_step) {
    __builtin_memcpy(to, from, kPart);
    __builtin_memcpy(to + last, from + last, kPart);
  }
}
inline void copy_runs(uint8_t* to, size_t to_step, const uint8_t* from, size_t from_step, size_t bytes, size_t count) {
  for (; bytes > 32 && count; --count, to += to_step, from += from_step) __builtin_memcpy(to, from, bytes);
  if (bytes >= 16) return copy_parts<16>(to, to_step, from, from_step, bytes, count);
  if (bytes >= 8) return copy_parts<8>(to, to_step, from, from_step, bytes, count);
  if (bytes >= 4) return copy_parts<4>(to, to_step, from, from_step, bytes, count);
  for (; bytes; ++to, ++from, --bytes) copy_parts<1>(to, to_step, from, from_step, 1, count);
}
inline void clear_runs(uint8_t* to, size_t to_step, size_t bytes, size_t count) {
  static constexpr uint8_t kZeros[32] = {};
  for (; bytes > sizeof kZeros && count; --count, to += to_step) __builtin_memset(to, 0, bytes);
  copy_runs(to, to_step, kZeros, 0, bytes, count);
}

// Channels that no run names are not touched: another step may have written them.
void gather(const Gather& given) {
  const Gather g = given;  // stores of bytes could change the original, for all that the compiler knows
  const size_t size = g.element_bytes, in_pixel = g.in_channels * size, out_pixel = g.out_channels * size;
  // Pixels [begin, end) of a row lie inside: at least 0 and below in_w, once left is taken away.
  const auto pixels_before = [&](uint32_t at) {
    const uint32_t pixels = (at + g.stride_w - 1) / g.stride_w;
    return pixels < g.out_w ? pixels : g.out_w;
  };
  const uint32_t begin = pixels_before(g.left), end = pixels_before(g.in_w + g.left);
  for (uint32_t y = g.row_begin; y < g.row_end; ++y) {
    const int64_t in_y = static_cast<int64_t>(y) * g.stride_h - g.top;
    const bool here = in_y >= 0 && in_y < g.in_h;
    const uint8_t* in = static_cast<const uint8_t*>(g.in);
    if (here && begin < end) in += (static_cast<size_t>(in_y) * g.in_w + begin * g.stride_w - g.left) * in_pixel;
    uint8_t* const out = static_cast<uint8_t*>(g.out) + size_t{y} * g.out_w * out_pixel;
    for (uint32_t i = 0; i < g.run_count; ++i) {
      const GatherRun r = g.runs[i];
      uint8_t* const to = out + static_cast<size_t>(r.to) * size;
      const size_t bytes = static_cast<size_t>(r.count) * size;
      if (!here || r.from < 0) {
        clear_runs(to, out_pixel, bytes, g.out_w);
        continue;
      }
      clear_runs(to, out_pixel, bytes, begin);
      copy_runs(to + begin * out_pixel, out_pixel, in + static_cast<size_t>(r.from) * size, g.stride_w * in_pixel,
                bytes, end - begin);
      clear_runs(to + end * out_pixel, out_pixel, bytes, g.out_w - end);
    }
  }
}

template <class T>
void lookup_as(const Lookup& l) {
  const T* const table = static_cast<const T*>(l.table);
  T* const out = static_cast<T*>(l.out);
  for (size_t i = 0; i < l.count; ++i) out[i] = table[l.in[i]];
}

}  // namespace

void i8dot_generic(const Conv& c) { i8dot(c); }
void bitserial_generic(const Conv& c) { bitserial<Bits, F>(c); }
void bitsliced_generic(const Conv& c) { bitsliced<Slices, F>(c); }
void depthwise_generic(const Depthwise& d) { depthwise<Dots, F>(d); }
void quantize_generic(const Quantize& q) { quantize<F>(q); }
void requantize_generic(const Requantize& r) { requantize<F>(r); }
void max_pool2d_generic(const Pool& p) { max_pool2d(p); }
void sum_pool2d_generic(const Pool& p) { sum_pool2d<F>(p); }
void gather_generic(const Gather& g) { gather(g); }
void lookup_generic(const Lookup& l) { l.element_bytes == 1 ? lookup_as<uint8_t>(l) : lookup_as<float>(l); }
void product_generic(const Product& p) { product<F>(p); }

}  // namespace bitpress::gemm
