// Rows for AVX-512 F, BW, DQ, VL: 512-bit vectors without a dot-product instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"
#include "../gemm/turn.inl"

struct Words : Block {
  static constexpr size_t kElementBytes = 2;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm512_madd_epi16(a, w);
    BITPRESS_TIED(("vpaddd %1, %0, %0" : "+v"(acc) : "v"(t)), acc = _mm512_add_epi32(acc, t));
  }
};

struct Delayed : Block {
  static constexpr bool kDelayed = true;
  static constexpr size_t kElementBytes = 1;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm512_maddubs_epi16(a, w);
    BITPRESS_TIED(("vpaddw %1, %0, %0" : "+v"(acc) : "v"(t)), acc = _mm512_add_epi16(acc, t));
  }
  static Vec widen(Vec v) { return _mm512_madd_epi16(v, _mm512_set1_epi16(1)); }
  static void add_store(int32_t* p, Vec v) { _mm512_storeu_si512(p, _mm512_add_epi32(_mm512_loadu_si512(p), v)); }
};

// The same, widened at once: where the sum of two steps could leave int16, but no pair does. Smaller tiles, and fewer.
struct Widened : Block {
  static constexpr int kMax1 = 8, kMax2 = 8, kMax4 = 4;
  static constexpr bool kDelayed = false;
  static constexpr size_t kElementBytes = 1;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm512_madd_epi16(_mm512_maddubs_epi16(a, w), _mm512_set1_epi16(1));
    BITPRESS_TIED(("vpaddd %1, %0, %0" : "+v"(acc) : "v"(t)), acc = _mm512_add_epi32(acc, t));
  }
};

// Bits of a vector, counted by nibbles with a shuffle (Mula), added as bytes.
struct Nibbles : Planes {
  static constexpr uint32_t kSteps = 31;
  static Vec count(Vec x) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4));
    const __m512i low = _mm512_set1_epi8(15);
    return _mm512_add_epi8(_mm512_shuffle_epi8(table, _mm512_and_si512(x, low)),
                           _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(x, 4), low)));
  }
  static Vec add(Vec a, Vec b) { return _mm512_add_epi8(a, b); }
  static Vec reduce(Vec x) {
    return _mm512_madd_epi16(_mm512_maddubs_epi16(x, _mm512_set1_epi8(1)), _mm512_set1_epi16(1));
  }
};

// One bit of 512 pixels. Any function of three bits is one instruction.
struct Slices {
  static constexpr size_t kBytes = 64, kTile = 16;
  using Vec = __m512i;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec set(uint32_t word) { return _mm512_set1_epi32(static_cast<int32_t>(word)); }
  static Vec broadcast(const uint32_t* p) { return set(*p); }
  static Vec load(const uint8_t* p) { return _mm512_load_si512(p); }
  static Vec load_any(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Vec v) { _mm512_store_si512(p, v); }
  static Vec both(Vec a, Vec b) { return _mm512_and_si512(a, b); }
  static Vec either(Vec a, Vec b) { return _mm512_or_si512(a, b); }
  static Vec differ(Vec a, Vec b) { return _mm512_xor_si512(a, b); }
  static Vec flip(Vec a) { return _mm512_xor_si512(a, _mm512_set1_epi32(-1)); }
  template <int n>
  static Vec shl(Vec a) {
    return _mm512_slli_epi16(a, n);
  }
  template <int n>
  static Vec shr(Vec a) {
    return _mm512_srli_epi16(a, n);
  }
  // The sum first: the carry is x where x and y are equal, and what the new sum is not where they differ. From the old
  // sum it would take a copy, which the new one overwrites.
  static BITPRESS_INLINE Vec full_add(Vec& sum, Vec x, Vec y) {
    constexpr int kOdd = 0x96, kCarry = 0xB2;
    sum = _mm512_ternarylogic_epi32(sum, x, y, kOdd);
    return _mm512_ternarylogic_epi32(x, sum, y, kCarry);
  }
  static BITPRESS_INLINE Vec half_add(Vec& sum, Vec x) {
    const Vec out = _mm512_and_si512(sum, x);
    sum = _mm512_xor_si512(sum, x);
    return out;
  }
  static BITPRESS_INLINE Vec at_least(Vec bit, Vec so_far, Vec threshold) {
    constexpr int kMost = 0xD4;  // of a, b and ~c
    return _mm512_ternarylogic_epi32(bit, so_far, threshold, kMost);
  }
  static Vec shl_by(Vec a, int n) { return _mm512_sll_epi16(a, _mm_cvtsi32_si128(n)); }
  static Vec shr_by(Vec a, int n) { return _mm512_srl_epi16(a, _mm_cvtsi32_si128(n)); }
  static Vec add_bytes(Vec a, Vec b) { return _mm512_add_epi8(a, b); }
  static void transpose(const uint8_t* in, size_t in_stride, uint8_t* out, size_t out_stride) {
    turn16(in, in_stride, out, out_stride);
  }
};

struct Dots : Pairs {
  template <bool kSigned>
  static Vec load_act(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return kSigned ? _mm512_cvtepi8_epi32(v) : _mm512_cvtepu8_epi32(v);
  }
  static Vec load_w(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Vec madd(Vec acc, Vec a, Vec w) { return _mm512_add_epi32(acc, _mm512_madd_epi16(a, w)); }
};

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"
#include "../gemm/bitsliced.inl"
#include "../gemm/i8dot.inl"
#include "../gemm/values.inl"
#include "../gemm/winograd.inl"

}  // namespace

void i8dot_avx512(const Conv& c) { i8dot<Words, F>(c); }
void i8dot16_avx512(const Conv& c) { c.delay < kLeastDelay ? i8dot<Widened, F>(c) : i8dot<Delayed, F>(c); }
void bitserial_avx512(const Conv& c) { bitserial<Nibbles, F>(c); }
void bitsliced_avx512(const Conv& c) { bitsliced<Slices, F>(c); }
void winograd16_avx512(const Conv& c) { winograd<Plain, Words, F>(c); }
void depthwise_avx512(const Depthwise& d) { depthwise<Dots, F>(d); }
void requantize_avx512(const Requantize& r) { requantize<F>(r); }

}  // namespace bitpress::gemm
