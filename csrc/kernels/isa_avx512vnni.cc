// Rows for AVX-512 VNNI: 64 multiply-adds of bytes an instruction.
#include <immintrin.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/avx512.inl"

struct Dot : Block {
  static constexpr size_t kElementBytes = 1;
  // Tied: with _mm512_dpbusd_epi32 gcc 12 copies and spills accumulators, at half the speed.
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) { asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(w)); }
};

#include "../gemm/finish.inl"
#include "../gemm/i8dot.inl"

}  // namespace

void i8dot_avx512vnni(const Conv& c) { i8dot<Dot, F>(c); }

}  // namespace bitpress::gemm
