// Rows for Ice Lake, Zen 4 and later: VPOPCNTDQ counts the bits of words.
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

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"

}  // namespace

void bitserial_avx512vbmi(const Conv& c) { bitserial<Popcount, F>(c); }

}  // namespace bitpress::gemm
