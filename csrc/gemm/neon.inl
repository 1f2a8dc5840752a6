// Vocabulary of 128-bit vectors (NEON, which every aarch64 has; no fused multiply-add). Anonymous namespace.

struct F {
  static constexpr uint32_t kLanes = 4;
  static constexpr uint32_t kTogether = 1;
  using Vec = float32x4_t;
  using Ints = int32x4_t;
  static Vec load(const float* p) { return vld1q_f32(p); }
  static Vec set(float x) { return vdupq_n_f32(x); }
  static Vec mul(Vec a, Vec b) { return vmulq_f32(a, b); }
  static Vec add(Vec a, Vec b) { return vaddq_f32(a, b); }
  // As the generic rows choose, zeros of either sign and NaN included; fmin and fmax have a law of their own.
  static Vec min(Vec a, Vec b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static Vec max(Vec a, Vec b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static Vec from_i32(Ints a) { return vcvtq_f32_s32(a); }
  static Ints load_i32(const int32_t* p) { return vld1q_s32(p); }
  static Ints set_i32(int32_t x) { return vdupq_n_s32(x); }
  static Ints add_i32(Ints a, Ints b) { return vaddq_s32(a, b); }
  static Ints shl(Ints a, int32_t n) { return vshlq_s32(a, vdupq_n_s32(n)); }
  static uint8x8_t four(const void* p) {
    uint32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return vreinterpret_u8_u32(vdup_n_u32(word));
  }
  static Vec load_u8(const uint8_t* p, uint32_t) { return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(four(p))))); }
  static Vec load_i8(const int8_t* p, uint32_t) {
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(four(p))))));
  }
  static Vec load_f32(const float* p, uint32_t) { return vld1q_f32(p); }
  static Vec load_f32_exactly(const float* p, uint32_t n) {
    if (n == kLanes) return vld1q_f32(p);
    float some[kLanes] = {};
    for (uint32_t i = 0; i < n; ++i) some[i] = p[i];
    return vld1q_f32(some);
  }
  static void store_f32(float* p, Vec a, uint32_t n) {
    if (n == kLanes) return vst1q_f32(p, a);
    float some[kLanes];
    vst1q_f32(some, a);
    for (uint32_t i = 0; i < n; ++i) p[i] = some[i];
  }
  static void store_levels(uint8_t* p, Vec a, uint32_t n) {
    const int16x4_t words = vmovn_s32(vcvtnq_s32_f32(a));  // half to even
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    uint32_t all = vget_lane_u32(vreinterpret_u32_s8(bytes), 0);
    if (n == kLanes) {
      __builtin_memcpy(p, &all, sizeof all);
      return;
    }
    for (uint32_t i = 0; i < n; ++i, all >>= 8) p[i] = static_cast<uint8_t>(all);
  }
};

inline uint32_t sum_bytes(const uint8_t* p, uint32_t n, uint8_t flip) {
  const uint8x16_t f = vdupq_n_u8(flip);
  uint32_t out = 0, i = 0;
  for (; i + 16 <= n; i += 16) out += vaddlvq_u8(veorq_u8(vld1q_u8(p + i), f));
  for (; i < n; ++i) out += static_cast<uint8_t>(p[i] ^ flip);
  return out;
}
