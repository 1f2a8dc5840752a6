// Rows for Ice Lake, Zen 4 and later: VPOPCNTDQ counts the bits of words, VBMI looks up 64 bytes in one table.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"

struct Popcount : Planes {
  static constexpr uint32_t kSteps = 1u << 26;  // counts are int32 already, so never
  static Vec count(Vec x) { return _mm512_popcnt_epi32(x); }
  static Vec add(Vec a, Vec b) { return _mm512_add_epi32(a, b); }
  static Vec reduce(Vec x) { return x; }
};

// Sums of 2-bit products by six bits of index. Additions are tied: gcc would reorder and spill them.
struct Tables {
  static constexpr uint32_t kGroup = 3, kLanes = 64;
  static constexpr int kMax1 = 8, kMax2 = 4;
  using Vec = __m512i;
  static BITPRESS_INLINE Vec zero() { return _mm512_setzero_si512(); }
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static BITPRESS_INLINE Vec table(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static Vec load_some(const uint8_t* p, size_t n) {
    if (n >= kLanes) return _mm512_loadu_si512(p);
    return _mm512_maskz_loadu_epi8((__mmask64{1} << n) - 1, p);
  }
  static void store_offsets(uint16_t* p, Vec v) {
    const Vec low = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(v)),
              high = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(v, 1));
    _mm512_storeu_si512(p, _mm512_slli_epi16(low, 6));
    _mm512_storeu_si512(p + 32, _mm512_slli_epi16(high, 6));
  }
  static Vec code(Vec first, Vec second, Vec third) {
    constexpr int kInsert = 0xB8;  // third operand's bits where the second is one, else those of the first
    const Vec low = _mm512_and_si512(first, _mm512_set1_epi8(3));
    const Vec two = _mm512_ternarylogic_epi32(low, _mm512_set1_epi8(12), _mm512_slli_epi16(second, 2), kInsert);
    return _mm512_ternarylogic_epi32(two, _mm512_set1_epi8(48), _mm512_slli_epi16(third, 4), kInsert);
  }
  static BITPRESS_INLINE Vec look(Vec table, Vec index) { return _mm512_permutexvar_epi8(index, table); }
  static BITPRESS_INLINE void add8(Vec& sum, Vec v) {
    BITPRESS_TIED(("vpaddb %1, %0, %0" : "+v"(sum) : "v"(v)), sum = _mm512_add_epi8(sum, v));
  }
  static BITPRESS_INLINE void add16(Vec& sum, Vec v) {
    BITPRESS_TIED(("vpaddw %1, %0, %0" : "+v"(sum) : "v"(v)), sum = _mm512_add_epi16(sum, v));
  }
  static BITPRESS_INLINE Vec odd(Vec v) { return _mm512_srli_epi16(v, 8); }
  static BITPRESS_INLINE void store(int32_t* p, Vec total, Vec odd, bool add) {
    const Vec even = _mm512_sub_epi16(total, _mm512_slli_epi16(odd, 8));
    const Vec v[] = {
        _mm512_cvtepu16_epi32(_mm512_castsi512_si256(even)), _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(even, 1)),
        _mm512_cvtepu16_epi32(_mm512_castsi512_si256(odd)), _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(odd, 1))};
    unroll<4>([&](auto i) BITPRESS_INLINE {
      _mm512_storeu_si512(p + 16 * i, add ? _mm512_add_epi32(v[i], _mm512_loadu_si512(p + 16 * i)) : v[i]);
    });
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"
#include "../gemm/lut.inl"

}  // namespace

void bitserial_avx512vbmi(const Conv& c) { bitserial<Popcount, F>(c); }
void lut_avx512vbmi(const Conv& c) { lut<Tables, F>(c); }

}  // namespace bitpress::gemm
