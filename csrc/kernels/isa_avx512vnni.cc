// Rows for AVX-512 VNNI: 64 multiply-adds of bytes an instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"

struct Dot : Block {
  static constexpr size_t kElementBytes = 1;
  static constexpr int kSlide1 = 16, kSlide2 = 12;
  // Tied: with _mm512_dpbusd_epi32 gcc 12 copies and spills accumulators, at half the speed.
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    BITPRESS_TIED(("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w)), acc = _mm512_dpbusd_epi32(acc, a, w));
  }
};

struct Fields : Packed {
  static constexpr bool kExact = true;
  static BITPRESS_INLINE void dot(Vec& sum, Vec a, Vec w) { Dot::dot(sum, a, w); }
  static BITPRESS_INLINE void dot8(Vec& sum, Vec a, Vec w) { Dot::dot(sum, a, w); }
};

// Four rows of a kernel side by side, as bytes, in one instruction: unsigned ones, which signed ones become by a flip.
struct Quads : Block {
  static constexpr uint32_t kRows = 4;
  static constexpr bool kStreams = true;
  static __m128i load_row(const uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
  template <bool kSigned>
  static BITPRESS_INLINE Vec woven(__m128i p, __m128i q, __m128i r, __m128i s) {
    const __m128i a = _mm_unpacklo_epi8(p, q), b = _mm_unpackhi_epi8(p, q), c = _mm_unpacklo_epi8(r, s),
                  d = _mm_unpackhi_epi8(r, s);
    Vec v = _mm512_castsi128_si512(_mm_unpacklo_epi16(a, c));
    v = _mm512_inserti32x4(v, _mm_unpackhi_epi16(a, c), 1);
    v = _mm512_inserti32x4(v, _mm_unpacklo_epi16(b, d), 2);
    v = _mm512_inserti32x4(v, _mm_unpackhi_epi16(b, d), 3);
    return kSigned ? _mm512_xor_si512(v, _mm512_set1_epi8(static_cast<char>(0x80))) : v;
  }
  template <bool kSigned>
  static BITPRESS_INLINE Vec load_three(const uint8_t* p, const uint8_t* q, const uint8_t* r) {
    return woven<kSigned>(load_row(p), load_row(q), load_row(r), _mm_setzero_si128());
  }
  template <bool kSigned>
  static BITPRESS_INLINE Vec load_four(const uint8_t* p, const uint8_t* q, const uint8_t* r, const uint8_t* s) {
    return woven<kSigned>(load_row(p), load_row(q), load_row(r), load_row(s));
  }
  static Vec load_w(const int32_t* p) { return _mm512_loadu_si512(p); }
  static BITPRESS_INLINE Vec madd(Vec acc, Vec a, Vec w) {
    Dot::dot(acc, a, w);
    return acc;
  }
};

#include "../gemm/finish.inl"
#include "../gemm/gemv.inl"
#include "../gemm/i8dot.inl"
#include "../gemm/values.inl"
#include "../gemm/depthwise8.inl"
#include "../gemm/winograd.inl"

}  // namespace

void i8dot_avx512vnni(const Conv& c) { i8dot<Dot, F>(c); }
void winograd8_avx512vnni(const Conv& c) { winograd<Lifted, Dot, F>(c); }
void gemv_avx512vnni(const Conv& c) { gemv<Fields, F>(c); }
void depthwise8_avx512vnni(const Depthwise& d) { d.bordered ? depthwise<Quads, F>(d) : depthwise8<Dot>(d); }

}  // namespace bitpress::gemm
