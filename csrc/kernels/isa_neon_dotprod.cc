// Rows for the dot product of Armv8.2: 16 multiply-adds of signed bytes an instruction.
#include <arm_neon.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/neon.inl"

struct Dot {
  static constexpr uint32_t kLanes = 8;
  static constexpr int kMax1 = 10, kMax2 = 5, kMax4 = 2, kSlide1 = 0;
  static constexpr bool kDelayed = false;
  static constexpr size_t kElementBytes = 1;
  struct Vec {
    int32x4_t low, high;
  };
  struct Operand {
    int8x16_t low, high;
  };
  static Vec zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Operand load(const uint8_t* p) {
    return {vreinterpretq_s8_u8(vld1q_u8(p)), vreinterpretq_s8_u8(vld1q_u8(p + 16))};
  }
  static int8x16_t broadcast(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_u32(vdupq_n_u32(word ^ 0x80808080u));
  }
  static BITPRESS_INLINE void dot(Vec& acc, int8x16_t a, Operand w) {
    acc.low = vdotq_s32(acc.low, w.low, a);
    acc.high = vdotq_s32(acc.high, w.high, a);
  }
  static void store(int32_t* p, Vec v) {
    vst1q_s32(p, v.low);
    vst1q_s32(p + 4, v.high);
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

#include "../gemm/finish.inl"
#include "../gemm/i8dot.inl"

}  // namespace

void s8dot_neon_dotprod(const Conv& c) { i8dot<Dot, F>(c); }

}  // namespace bitpress::gemm
