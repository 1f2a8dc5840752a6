// Rows for every aarch64: 128-bit integer vectors without a dot-product instruction.
#include <arm_neon.h>

#include "rows.h"

namespace bitpress::gemm {
namespace {

#include "../gemm/unroll.inl"
#include "../gemm/neon.inl"

// Signed bytes, four of a channel a step: smull makes int16 of products, sadalp adds neighbours to int32. A channel has
// two sums, of its even and odd pairs, which store() adds.
struct Bytes {
  static constexpr uint32_t kLanes = 4;
  static constexpr int kMax1 = 9, kMax2 = 4, kMax4 = 2, kSlide1 = 0;
  static constexpr bool kDelayed = false;
  static constexpr size_t kElementBytes = 1;
  struct Vec {
    int32x4_t low, high;
  };
  using Operand = int8x16_t;
  static Vec zero() { return {vdupq_n_s32(0), vdupq_n_s32(0)}; }
  static Operand load(const uint8_t* p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
  static Operand broadcast(const uint8_t* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_u32(vdupq_n_u32(word ^ 0x80808080u));
  }
  static BITPRESS_INLINE void dot(Vec& acc, Operand a, Operand w) {
    acc.low = vpadalq_s16(acc.low, vmull_s8(vget_low_s8(a), vget_low_s8(w)));
    acc.high = vpadalq_s16(acc.high, vmull_high_s8(a, w));
  }
  static void store(int32_t* p, Vec v) { vst1q_s32(p, vpaddq_s32(v.low, v.high)); }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Bits of a vector, counted by bytes with cnt.
struct Planes {
  static constexpr uint32_t kLanes = 4, kSteps = 31;
  static constexpr int kPixels = 4, kBlocks = 2;
  using Vec = uint32x4_t;
  static uint8x16_t bytes(Vec v) { return vreinterpretq_u8_u32(v); }
  static Vec zero() { return vdupq_n_u32(0); }
  static Vec load(const uint32_t* p) { return vld1q_u32(p); }
  static Vec broadcast(const uint32_t* p) { return vdupq_n_u32(*p); }
  static Vec both(Vec a, Vec b) { return vandq_u32(a, b); }
  static Vec count(Vec x) { return vreinterpretq_u32_u8(vcntq_u8(bytes(x))); }
  static Vec add(Vec a, Vec b) { return vreinterpretq_u32_u8(vaddq_u8(bytes(a), bytes(b))); }
  static Vec reduce(Vec x) { return vpaddlq_u16(vpaddlq_u8(bytes(x))); }
  static Vec mul_add(Vec sum, int32_t coeff, Vec counts) {
    return vmlaq_u32(sum, counts, vdupq_n_u32(static_cast<uint32_t>(coeff)));
  }
  static void store(int32_t* p, Vec v) { vst1q_s32(p, vreinterpretq_s32_u32(v)); }
  static void copy(uint8_t* to, const uint8_t* from, size_t n) {
    for (size_t i = 0; i < n; i += 16) vst1q_u8(to + i, vld1q_u8(from + i));
  }
  // Eight bytes give one byte of a plane: a test of the plane's bit, the byte's place as a bit, three pairwise sums.
  static void pack(const uint8_t* in, uint32_t* planes, uint32_t bits, size_t count, size_t stride) {
    const uint8x16_t place = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    for (size_t i = 0; i < count; i += 64) {
      const uint8x16_t v0 = vld1q_u8(in + i), v1 = vld1q_u8(in + i + 16), v2 = vld1q_u8(in + i + 32),
                       v3 = vld1q_u8(in + i + 48);
      for (uint32_t q = 0; q < bits; ++q) {
        const uint8x16_t bit = vdupq_n_u8(static_cast<uint8_t>(1u << q));
        const auto at = [&](uint8x16_t v) BITPRESS_INLINE { return vandq_u8(vtstq_u8(v, bit), place); };
        const uint8x16_t low = vpaddq_u8(at(v0), at(v1)), high = vpaddq_u8(at(v2), at(v3));
        const uint8x16_t all = vpaddq_u8(vpaddq_u8(low, high), vpaddq_u8(low, high));
        vst1_u32(planes + q * stride + i / 32, vreinterpret_u32_u8(vget_low_u8(all)));
      }
    }
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Sums of 2-bit products by six bits of index: tbl reads four registers as one table.
struct Tables {
  static constexpr uint32_t kGroup = 3, kLanes = 16;
  static constexpr int kMax1 = 6, kMax2 = 3;
  using Vec = uint8x16_t;
  static Vec zero() { return vdupq_n_u8(0); }
  static Vec load(const uint8_t* p) { return vld1q_u8(p); }
  static uint8x16x4_t table(const uint8_t* p) { return vld1q_u8_x4(p); }
  static Vec load_some(const uint8_t* p, size_t n) {
    if (n >= kLanes) return vld1q_u8(p);
    uint8_t some[kLanes] = {};
    for (size_t i = 0; i < n; ++i) some[i] = p[i];
    return vld1q_u8(some);
  }
  static void store_offsets(uint16_t* p, Vec v) {
    vst1q_u16(p, vshll_n_u8(vget_low_u8(v), 6));
    vst1q_u16(p + 8, vshll_high_n_u8(v, 6));
  }
  static Vec code(Vec first, Vec second, Vec third) {
    const Vec mask = vdupq_n_u8(3);
    return vorrq_u8(vandq_u8(first, mask),
                    vorrq_u8(vshlq_n_u8(vandq_u8(second, mask), 2), vshlq_n_u8(vandq_u8(third, mask), 4)));
  }
  static Vec look(const uint8x16x4_t& table, Vec index) { return vqtbl4q_u8(table, index); }
  static void add8(Vec& sum, Vec v) { sum = vaddq_u8(sum, v); }
  static uint16x8_t words(Vec v) { return vreinterpretq_u16_u8(v); }
  static void add16(Vec& sum, Vec v) { sum = vreinterpretq_u8_u16(vaddq_u16(words(sum), words(v))); }
  static Vec odd(Vec v) { return vreinterpretq_u8_u16(vshrq_n_u16(words(v), 8)); }
  static void store(int32_t* p, Vec total, Vec odd, bool add) {
    const uint16x8_t even = vsubq_u16(words(total), vshlq_n_u16(words(odd), 8));
    const uint32x4_t v[] = {vmovl_u16(vget_low_u16(even)), vmovl_high_u16(even), vmovl_u16(vget_low_u16(words(odd))),
                            vmovl_high_u16(words(odd))};
    unroll<4>([&](auto i) BITPRESS_INLINE {
      const int32x4_t made = vreinterpretq_s32_u32(v[i]);
      vst1q_s32(p + 4 * i, add ? vaddq_s32(made, vld1q_s32(p + 4 * i)) : made);
    });
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

struct Dots {
  static constexpr uint32_t kLanes = 4;
  static constexpr uint32_t kRows = 1;
  static constexpr bool kStreams = true;
  using Vec = int32x4_t;
  static Vec zero() { return vdupq_n_s32(0); }
  template <bool kSigned>
  static Vec load_act(const uint8_t* p) {
    const uint8x8_t v = F::four(p);
    if constexpr (kSigned) return vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(v))));
    return vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(v))));
  }
  static Vec load_w(const int32_t* p) { return vshrq_n_s32(vshlq_n_s32(vld1q_s32(p), 16), 16); }
  static Vec madd(Vec acc, Vec a, Vec w) { return vmlaq_s32(acc, a, w); }
  static void store(int32_t* p, Vec v) { vst1q_s32(p, v); }
};

#include "../gemm/finish.inl"
#include "../gemm/bitserial.inl"
#include "../gemm/i8dot.inl"
#include "../gemm/lut.inl"
#include "../gemm/values.inl"

}  // namespace

void s8dot_neon(const Conv& c) { i8dot<Bytes, F>(c); }
void bitserial_neon(const Conv& c) { bitserial<Planes, F>(c); }
void lut_neon(const Conv& c) { lut<Tables, F>(c); }
void depthwise_neon(const Depthwise& d) { depthwise<Dots, F>(d); }
void quantize_neon(const Quantize& q) { quantize<F>(q); }
void requantize_neon(const Requantize& r) { requantize<F>(r); }
void sum_pool2d_neon(const Pool& p) { sum_pool2d<F>(p); }
void product_neon(const Product& p) { product<F>(p); }

}  // namespace bitpress::gemm
