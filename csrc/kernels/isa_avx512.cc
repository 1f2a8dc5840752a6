// Rows for AVX-512 F, BW, DQ, VL: 512-bit vectors without a dot-product instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"
#include "../gemm/turn.inl"
#include "../gemm/slices.inl"

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
  static constexpr int kMax1 = 8, kMax2 = 8, kMax4 = 4, kSlide1 = 0;
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
  static constexpr size_t kBytes = 64;
  static constexpr bool kFlips = false;
  // Functions of three bits: one where an odd number are; the carry of what was added to a sum, of x, the new sum and
  // y, and of what x and y lack, which leaves the sum as it is; the majority of a, b and ~c; a's choice of b or c.
  static constexpr int kOdd = 0x96, kCarry = 0xB2, kCarryLess = 0x17, kMost = 0xD4, kSelect = 0xCA;
  using Vec = __m512i;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec set(uint32_t word) { return _mm512_set1_epi32(static_cast<int32_t>(word)); }
  static Vec broadcast(const uint32_t* p) { return set(*p); }
  static Vec load(const uint8_t* p) { return _mm512_load_si512(p); }
  static BITPRESS_INLINE Vec load_once(const uint8_t* p) {
    Vec v = load(p);
    BITPRESS_TIED(("" : "+v"(v)), static_cast<void>(0));
    return v;
  }
  static Vec load_any(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static void store(uint8_t* p, Vec v) { _mm512_store_si512(p, v); }
  static void store_any(uint8_t* p, Vec v) { _mm512_storeu_si512(p, v); }
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
    sum = _mm512_ternarylogic_epi32(sum, x, y, kOdd);
    return _mm512_ternarylogic_epi32(x, sum, y, kCarry);
  }
  static BITPRESS_INLINE Vec half_add(Vec& sum, Vec x) {
    const Vec out = _mm512_and_si512(sum, x);
    sum = _mm512_xor_si512(sum, x);
    return out;
  }
  static BITPRESS_INLINE Vec at_least(Vec bit, Vec so_far, Vec threshold) {
    return _mm512_ternarylogic_epi32(bit, so_far, threshold, kMost);
  }
  static BITPRESS_INLINE Vec full_add_less(Vec& sum, Vec x, Vec y) {
    sum = _mm512_ternarylogic_epi32(sum, x, y, kOdd);
    return _mm512_ternarylogic_epi32(x, sum, y, kCarryLess);
  }
  static Vec add_bytes(Vec a, Vec b) { return _mm512_add_epi8(a, b); }
  template <int word>
  static Vec moved(Vec a, int n) {
    if (word == 2)
      return n < 0 ? _mm512_slli_epi16(a, static_cast<unsigned>(-n)) : _mm512_srli_epi16(a, static_cast<unsigned>(n));
    if (word == 4)
      return n < 0 ? _mm512_slli_epi32(a, static_cast<unsigned>(-n)) : _mm512_srli_epi32(a, static_cast<unsigned>(n));
    return n < 0 ? _mm512_slli_epi64(a, static_cast<unsigned>(-n)) : _mm512_srli_epi64(a, static_cast<unsigned>(n));
  }
  static BITPRESS_INLINE Vec pieces(const uint8_t* const (&p)[4]) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(pair(p[0], p[1])), pair(p[2], p[3]), 1);
  }
  static BITPRESS_INLINE void put(Vec v, uint8_t* const (&p)[4], size_t at) {
    unroll<4>([&](auto i) BITPRESS_INLINE {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(p[i] + at), _mm512_extracti32x4_epi32(v, i));
    });
  }
  static BITPRESS_INLINE void turn(Vec (&v)[16]) { turn_pieces<Slices>(v); }
  static Vec unpack_low(Vec a, Vec b) { return _mm512_unpacklo_epi8(a, b); }
  static Vec unpack_high(Vec a, Vec b) { return _mm512_unpackhi_epi8(a, b); }
  static BITPRESS_INLINE void zip(Vec a, Vec b, uint8_t* to) {
    const Vec low = unpack_low(a, b), high = unpack_high(a, b);
    store(to, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), high));
    store(to + kBytes, _mm512_permutex2var_epi64(low, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), high));
  }
  static Vec select(Vec mask, Vec a, Vec b) { return _mm512_ternarylogic_epi32(mask, a, b, kSelect); }
  static constexpr bool kWidens = true;
  using Floats = __m512;
  static Floats spread(const float* p) { return _mm512_broadcast_f32x4(_mm_loadu_ps(p)); }
  static Floats set_float(float x) { return _mm512_set1_ps(x); }
  static Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
  static BITPRESS_INLINE void widen(Vec low, Vec high, Floats (&to)[4]) {
    const Vec above = _mm512_set1_epi16(0x4B00), first = unpack_low(low, high), last = unpack_high(low, high);
    to[0] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(first, above));
    to[1] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(first, above));
    to[2] = _mm512_castsi512_ps(_mm512_unpacklo_epi16(last, above));
    to[3] = _mm512_castsi512_ps(_mm512_unpackhi_epi16(last, above));
  }
  static BITPRESS_INLINE Vec narrow(const Floats (&of)[4], bool is_signed, int32_t lo, int32_t hi) {
    const Vec low = _mm512_set1_epi8(static_cast<char>(lo)), high = _mm512_set1_epi8(static_cast<char>(hi));
    const Vec first = _mm512_packs_epi32(_mm512_cvtps_epi32(of[0]), _mm512_cvtps_epi32(of[1]));
    const Vec last = _mm512_packs_epi32(_mm512_cvtps_epi32(of[2]), _mm512_cvtps_epi32(of[3]));
    return is_signed ? _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(first, last), low), high)
                     : _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(first, last), low), high);
  }

 private:
  static __m256i pair(const uint8_t* low, const uint8_t* high) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low))),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(high)), 1);
  }
};

// One bit of 256 pixels, where 512 would be empty by half.
struct FewSlices : HalfSlices {
  static constexpr bool kFlips = false;
  static BITPRESS_INLINE Vec load_once(const uint8_t* p) {
    Vec v = load(p);
    BITPRESS_TIED(("" : "+v"(v)), static_cast<void>(0));
    return v;
  }
  static BITPRESS_INLINE Vec full_add(Vec& sum, Vec x, Vec y) {
    sum = _mm256_ternarylogic_epi32(sum, x, y, Slices::kOdd);
    return _mm256_ternarylogic_epi32(x, sum, y, Slices::kCarry);
  }
  static BITPRESS_INLINE Vec full_add_less(Vec& sum, Vec x, Vec y) {
    sum = _mm256_ternarylogic_epi32(sum, x, y, Slices::kOdd);
    return _mm256_ternarylogic_epi32(x, sum, y, Slices::kCarryLess);
  }
  static BITPRESS_INLINE Vec half_add(Vec& sum, Vec x) {
    const Vec out = _mm256_and_si256(sum, x);
    sum = _mm256_xor_si256(sum, x);
    return out;
  }
  static BITPRESS_INLINE Vec at_least(Vec bit, Vec so_far, Vec threshold) {
    return _mm256_ternarylogic_epi32(bit, so_far, threshold, Slices::kMost);
  }
  static Vec select(Vec mask, Vec a, Vec b) { return _mm256_ternarylogic_epi32(mask, a, b, Slices::kSelect); }
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
void bitsliced_avx512(const Conv& c) {
  c.vector == FewSlices::kBytes ? bitsliced<FewSlices, F>(c) : bitsliced<Slices, F>(c);
}
void winograd16_avx512(const Conv& c) { winograd<Plain, Words, F>(c); }
void depthwise_avx512(const Depthwise& d) { depthwise<Dots, F>(d); }
void requantize_avx512(const Requantize& r) { requantize<F>(r); }

}  // namespace bitpress::gemm
