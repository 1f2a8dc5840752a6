// Rows for AVX2: 256-bit integer vectors without a dot-product instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx2.inl"
#include "../gemm/turn.inl"
#include "../gemm/slices.inl"

// Bits of a vector, counted by nibbles with a shuffle (Mula), added as bytes.
struct Planes {
  static constexpr uint32_t kLanes = 8, kSteps = 31;
  static constexpr int kPixels = 4,
                       kBlocks = 1;  // sums, counts, tables and temporaries of more do not fit 16 registers
  using Vec = __m256i;
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec load(const uint32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vec broadcast(const uint32_t* p) { return _mm256_set1_epi32(static_cast<int32_t>(*p)); }
  static Vec both(Vec a, Vec b) { return _mm256_and_si256(a, b); }
  static Vec count(Vec x) {
    const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2,
                                           2, 3, 2, 3, 3, 4);
    const __m256i low = _mm256_set1_epi8(15);
    return _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(x, low)),
                           _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(x, 4), low)));
  }
  static Vec add(Vec a, Vec b) { return _mm256_add_epi8(a, b); }
  static Vec reduce(Vec x) {
    return _mm256_madd_epi16(_mm256_maddubs_epi16(x, _mm256_set1_epi8(1)), _mm256_set1_epi16(1));
  }
  static Vec mul_add(Vec sum, int32_t coeff, Vec counts) {
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(counts, _mm256_set1_epi32(coeff)));
  }
  static void store(int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static void copy(uint8_t* to, const uint8_t* from, size_t n) {
    for (size_t i = 0; i < n; i += 32)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i),
                          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
  }
  // The top bit of every byte is a plane's 32 bits; doubling the bytes brings the next lower plane there.
  static void pack(const uint8_t* bytes, uint32_t* planes, uint32_t bits, size_t count, size_t stride) {
    const __m128i up = _mm_cvtsi32_si128(static_cast<int32_t>(8 - bits));
    for (size_t i = 0; i < count; i += 32) {
      __m256i v = _mm256_sll_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + i)), up);
      uint32_t* out = planes + i / 32 + bits * stride;
      for (uint32_t q = 0; q < bits; ++q, v = _mm256_add_epi8(v, v)) {
        out -= stride;
        *out = static_cast<uint32_t>(_mm256_movemask_epi8(v));
      }
    }
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// A full adder takes five instructions.
struct Slices : HalfSlices {
  static constexpr bool kFlips = true;
  static Vec load_once(const uint8_t* p) { return load(p); }  // there are few registers
  // The sum depends on one operation of those before, so that a chain of additions is short.
  static BITPRESS_INLINE Vec full_add(Vec& sum, Vec x, Vec y) {
    const Vec t = _mm256_xor_si256(x, y);
    const Vec out = _mm256_or_si256(_mm256_and_si256(sum, t), _mm256_and_si256(x, y));
    sum = _mm256_xor_si256(sum, t);
    return out;
  }
  static BITPRESS_INLINE Vec half_add(Vec& sum, Vec x) {
    const Vec out = _mm256_and_si256(sum, x);
    sum = _mm256_xor_si256(sum, x);
    return out;
  }
  static BITPRESS_INLINE Vec at_least(Vec bit, Vec so_far, Vec threshold) {
    return _mm256_or_si256(_mm256_and_si256(bit, so_far), _mm256_andnot_si256(threshold, _mm256_or_si256(bit, so_far)));
  }
  static BITPRESS_INLINE Vec full_add_less(Vec& sum, Vec x, Vec y) {
    const Vec t = _mm256_xor_si256(x, y);
    const Vec out = _mm256_or_si256(_mm256_andnot_si256(sum, t), _mm256_and_si256(x, y));
    sum = _mm256_xor_si256(sum, t);
    return out;
  }
};

// Sums of two 2-bit products by four bits of index, the same table in both halves of a vector. Additions are tied, as
// those of dot products are.
struct Tables {
  static constexpr uint32_t kGroup = 2, kLanes = 32;
  static constexpr int kMax1 = 8, kMax2 = 4;
  using Vec = __m256i;
  static BITPRESS_INLINE Vec zero() { return _mm256_setzero_si256(); }
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static BITPRESS_INLINE Vec table(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Vec load_some(const uint8_t* p, size_t n) {
    if (n >= kLanes) return load(p);
    alignas(32) uint8_t some[kLanes] = {};
    for (size_t i = 0; i < n; ++i) some[i] = p[i];
    return load(some);
  }
  static void store_offsets(uint16_t* p, Vec v) {
    __m256i* out = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(out, _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm256_castsi256_si128(v)), 4));
    _mm256_storeu_si256(out + 1, _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm256_extracti128_si256(v, 1)), 4));
  }
  static Vec code(Vec first, Vec second) {
    return _mm256_or_si256(_mm256_and_si256(first, _mm256_set1_epi8(3)),
                           _mm256_and_si256(_mm256_slli_epi16(second, 2), _mm256_set1_epi8(12)));
  }
  static BITPRESS_INLINE Vec look(Vec table, Vec index) { return _mm256_shuffle_epi8(table, index); }
  static BITPRESS_INLINE void add8(Vec& sum, Vec v) {
    BITPRESS_TIED(("vpaddb %1, %0, %0" : "+x"(sum) : "x"(v)), sum = _mm256_add_epi8(sum, v));
  }
  static BITPRESS_INLINE void add16(Vec& sum, Vec v) { sum = _mm256_add_epi16(sum, v); }
  static BITPRESS_INLINE Vec odd(Vec v) { return _mm256_srli_epi16(v, 8); }
  static BITPRESS_INLINE void store(int32_t* p, Vec total, Vec odd, bool add) {
    const Vec even = _mm256_sub_epi16(total, _mm256_slli_epi16(odd, 8));
    const Vec v[] = {
        _mm256_cvtepu16_epi32(_mm256_castsi256_si128(even)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(even, 1)),
        _mm256_cvtepu16_epi32(_mm256_castsi256_si128(odd)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(odd, 1))};
    unroll<4>([&](auto i) BITPRESS_INLINE {
      __m256i* out = reinterpret_cast<__m256i*>(p) + i;
      _mm256_storeu_si256(out, add ? _mm256_add_epi32(v[i], _mm256_loadu_si256(out)) : v[i]);
    });
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Fields of weights that stay packed; products as those of Delayed, of eight bits as those of Words.
struct Fields {
  static constexpr uint32_t kLanes = 8;
  static constexpr size_t kBytes = 32;
  static constexpr bool kExact = false;
  using Vec = __m256i;
  static BITPRESS_INLINE Vec zero() { return _mm256_setzero_si256(); }
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  template <int kBits, int s>
  static BITPRESS_INLINE Vec field(Vec v) {
    return _mm256_and_si256(_mm256_srli_epi16(v, s * kBits), _mm256_set1_epi8((1 << kBits) - 1));
  }
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) { Delayed::dot(acc, a, w); }
  static BITPRESS_INLINE void dot8(Vec& sum, Vec a, Vec w) {
    const Vec none = zero(), sign = _mm256_cmpgt_epi8(none, w);
    Words::dot(sum, _mm256_unpacklo_epi8(a, none), _mm256_unpacklo_epi8(w, sign));
    Words::dot(sum, _mm256_unpackhi_epi8(a, none), _mm256_unpackhi_epi8(w, sign));
  }
  static BITPRESS_INLINE void widen(Vec& sum, Vec acc) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(acc, _mm256_set1_epi16(1)));
  }
  static BITPRESS_INLINE int32_t total(Vec v) {
    const __m128i half = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    const __m128i pair = _mm_add_epi32(half, _mm_shuffle_epi32(half, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(pair, _mm_shuffle_epi32(pair, 0xB1)));
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Two int16 products a lane, or one where the high halves of both sides are zero.
struct Dots : Words {
  static constexpr uint32_t kRows = 2;
  static constexpr bool kStreams = true;
  template <bool kSigned>
  static BITPRESS_INLINE Vec load_pair(const uint8_t* p, const uint8_t* q) {
    const __m128i v = _mm_unpacklo_epi8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)),
                                        _mm_loadl_epi64(reinterpret_cast<const __m128i*>(q)));
    return kSigned ? _mm256_cvtepi8_epi16(v) : _mm256_cvtepu8_epi16(v);
  }
  template <bool kSigned>
  static Vec load_act(const uint8_t* p) {
    const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    return kSigned ? _mm256_cvtepi8_epi32(v) : _mm256_cvtepu8_epi32(v);
  }
  static Vec load_w(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vec madd(Vec acc, Vec a, Vec w) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, w)); }
};

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"
#include "../gemm/bitsliced.inl"
#include "../gemm/gemv.inl"
#include "../gemm/i8dot.inl"
#include "../gemm/lut.inl"
#include "../gemm/values.inl"
#include "../gemm/winograd.inl"

}  // namespace

void i8dot_avx2(const Conv& c) { i8dot<Words, F>(c); }
void i8dot16_avx2(const Conv& c) { c.delay < kLeastDelay ? i8dot<Widened, F>(c) : i8dot<Delayed, F>(c); }
void bitserial_avx2(const Conv& c) { bitserial<Planes, F>(c); }
void bitsliced_avx2(const Conv& c) { bitsliced<Slices, F>(c); }
void lut_avx2(const Conv& c) { lut<Tables, F>(c); }
void gemv_avx2(const Conv& c) { gemv<Fields, F>(c); }
void winograd16_avx2(const Conv& c) { winograd<Plain, Words, F>(c); }
void winograd8_avx2(const Conv& c) { winograd<Lifted, Delayed, F>(c); }
void depthwise_avx2(const Depthwise& d) { depthwise<Dots, F>(d); }
void quantize_avx2(const Quantize& q) { quantize<F>(q); }
void requantize_avx2(const Requantize& r) { requantize<F>(r); }
void max_pool2d_avx2(const Pool& p) { max_pool2d(p); }
void sum_pool2d_avx2(const Pool& p) { sum_pool2d<F>(p); }
void product_avx2(const Product& p) { product<F>(p); }

}  // namespace bitpress::gemm
