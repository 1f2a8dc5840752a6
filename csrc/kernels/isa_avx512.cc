// Rows for AVX-512 F, BW, DQ, VL: 512-bit vectors without a dot-product instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"

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

struct Dots : Block {
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
#include "../gemm/i8dot.inl"
#include "../gemm/values.inl"

}  // namespace

void i8dot_avx512(const Conv& c) { i8dot<Words, F>(c); }
void i8dot16_avx512(const Conv& c) { i8dot<Delayed, F>(c); }
void bitserial_avx512(const Conv& c) { bitserial<Nibbles, F>(c); }
void depthwise_avx512(const Depthwise& d) { depthwise<Dots, F>(d); }
void requantize_avx512(const Requantize& r) { requantize<F>(r); }

}  // namespace bitpress::gemm
