// Rows for AVX-VNNI: AVX2 and a dot product of bytes.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx2.inl"

struct Dot : Delayed {
  static constexpr int kMax1 = 12, kMax2 = 6, kMax4 = 2, kSlide1 = 0;
  static constexpr bool kDelayed = false;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    BITPRESS_TIED(("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(a), "x"(w)), acc = _mm256_dpbusd_epi32(acc, a, w));
  }
};

#include "../gemm/finish.inl"
#include "../gemm/i8dot.inl"
#include "../gemm/winograd.inl"

}  // namespace

void i8dot_avxvnni(const Conv& c) { i8dot<Dot, F>(c); }
void winograd8_avxvnni(const Conv& c) { winograd<Lifted, Dot, F>(c); }

}  // namespace bitpress::gemm
