// Vocabulary of 512-bit vectors (AVX-512 F, BW, DQ, VL). Anonymous namespace.

struct F {
  static constexpr uint32_t kLanes = 16;
  static constexpr uint32_t kTogether = 4;
  using Vec = __m512;
  using Ints = __m512i;
  static __mmask16 first(uint32_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  static Vec load(const float* p) { return _mm512_loadu_ps(p); }
  static Vec set(float x) { return _mm512_set1_ps(x); }
  static Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
  static Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
  static Vec from_i32(Ints a) { return _mm512_cvtepi32_ps(a); }
  static Ints load_i32(const int32_t* p) { return _mm512_loadu_si512(p); }
  static Ints load_u16(const uint16_t* p) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static Ints set_i32(int32_t x) { return _mm512_set1_epi32(x); }
  static Ints add_i32(Ints a, Ints b) { return _mm512_add_epi32(a, b); }
  static Ints shl(Ints a, int32_t n) { return _mm512_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static Ints sub_i32(Ints a, Ints b) { return _mm512_sub_epi32(a, b); }
  template <int n>
  static Ints shr_i32(Ints a) {
    return _mm512_srai_epi32(a, n);
  }
  static void store_i32(int32_t* p, Ints a) { _mm512_storeu_si512(p, a); }
  // Bytes of 16-bit lanes, multiplied in the lanes' upper halves (contract.h, Requantize::scale).
  static constexpr size_t kBytes = 64;
  struct Scale {
    __m512i flip, scale, up, down, most, base;
    Scale(uint8_t f, uint16_t s, uint16_t u, uint16_t d, uint8_t m, uint8_t b)
        : flip(_mm512_set1_epi8(static_cast<char>(f))),
          scale(_mm512_set1_epi16(static_cast<int16_t>(s))),
          up(_mm512_set1_epi16(static_cast<int16_t>(u))),
          down(_mm512_set1_epi16(static_cast<int16_t>(d))),
          most(_mm512_set1_epi8(static_cast<char>(m))),
          base(_mm512_set1_epi8(static_cast<char>(b))) {}
    __m512i moved(__m512i v) const {
      return _mm512_subs_epu16(_mm512_adds_epu16(_mm512_mulhi_epu16(v, scale), up), down);
    }
    BITPRESS_INLINE void operator()(const uint8_t* from, uint8_t* to) const {
      const __m512i high = _mm512_set1_epi16(static_cast<int16_t>(0xFF00));
      const __m512i v = _mm512_xor_si512(_mm512_loadu_si512(from), flip);
      const __m512i even = _mm512_srli_epi16(moved(_mm512_slli_epi16(v, 8)), 8), odd = moved(_mm512_and_si512(v, high));
      const __m512i rises = _mm512_min_epu8(_mm512_or_si512(even, _mm512_and_si512(odd, high)), most);
      _mm512_storeu_si512(to, _mm512_add_epi8(rises, base));
    }
  };
  static Vec load_u8(const uint8_t* p, uint32_t n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }
  static Vec load_i8(const int8_t* p, uint32_t n) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p)));
  }
  static Vec load_f32(const float* p, uint32_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static Vec load_f32_exactly(const float* p, uint32_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static void store_f32(float* p, Vec a, uint32_t n) { _mm512_mask_storeu_ps(p, first(n), a); }
  static void store_levels(uint8_t* p, Vec a, uint32_t n) {
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a));
    if (n == kLanes) return _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    _mm_mask_storeu_epi8(p, first(n), bytes);  // slow on Zen 4, so not for whole vectors
  }
  static BITPRESS_INLINE void store_four(uint8_t* p, size_t apart, bool is_signed, int32_t lo, int32_t hi, Vec a, Vec b,
                                         Vec c, Vec d) {
    const __m512i low = _mm512_set1_epi8(static_cast<char>(lo)), high = _mm512_set1_epi8(static_cast<char>(hi));
    const __m512i ab = _mm512_packs_epi32(_mm512_cvtps_epi32(a), _mm512_cvtps_epi32(b));
    const __m512i cd = _mm512_packs_epi32(_mm512_cvtps_epi32(c), _mm512_cvtps_epi32(d));
    const __m512i quarters = is_signed ? _mm512_min_epi8(_mm512_max_epi8(_mm512_packs_epi16(ab, cd), low), high)
                                       : _mm512_min_epu8(_mm512_max_epu8(_mm512_packus_epi16(ab, cd), low), high);
    const __m512i all =
        _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), quarters);
    if (apart == 16) return _mm512_storeu_si512(p, all);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_castsi512_si128(all));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + apart), _mm512_extracti32x4_epi32(all, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 2 * apart), _mm512_extracti32x4_epi32(all, 2));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 3 * apart), _mm512_extracti32x4_epi32(all, 3));
  }
};

inline uint32_t sum_bytes(const uint8_t* p, uint32_t n, uint8_t flip) {
  const __m512i f = _mm512_set1_epi8(static_cast<char>(flip));
  __m512i sum = _mm512_setzero_si512();
  for (uint32_t i = 0; i < n; i += 64) {
    const __mmask64 mask = n - i < 64 ? (__mmask64{1} << (n - i)) - 1 : ~__mmask64{0};
    const __m512i v = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, p + i), _mm512_maskz_mov_epi8(mask, f));
    sum = _mm512_add_epi64(sum, _mm512_sad_epu8(v, _mm512_setzero_si512()));
  }
  return static_cast<uint32_t>(_mm512_reduce_add_epi64(sum));
}

// What all rows on bytes or int16 share.
struct Block {
  static constexpr uint32_t kLanes = 16;
  static constexpr int kMax1 = 14, kMax2 = 14, kMax4 = 6, kSlide1 = 0;
  static constexpr bool kDelayed = false;
  using Vec = __m512i;
  using Operand = Vec;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static BITPRESS_INLINE Vec broadcast(const uint8_t* p) {
    Vec v;
    BITPRESS_TIED(("vpbroadcastd %1, %0" : "=v"(v) : "m"(*reinterpret_cast<const int32_t*>(p))),
                  v = _mm512_set1_epi32(*reinterpret_cast<const int32_t*>(p)));
    return v;
  }
  static void store(int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Two int16 products a lane, or one where the high halves of both sides are zero.
struct Pairs : Block {
  static constexpr uint32_t kRows = 2;
  static constexpr bool kStreams = true;
  template <bool kSigned>
  static BITPRESS_INLINE Vec load_pair(const uint8_t* p, const uint8_t* q) {
    const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)),
                  b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    const __m256i v =
        _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(a, b)), _mm_unpackhi_epi8(a, b), 1);
    return kSigned ? _mm512_cvtepi8_epi16(v) : _mm512_cvtepu8_epi16(v);
  }
};

// Fields of weights that stay packed; how they are multiplied is left to the instruction set.
struct Packed {
  static constexpr uint32_t kLanes = 16;
  static constexpr size_t kBytes = 64;
  using Vec = __m512i;
  static BITPRESS_INLINE Vec zero() { return _mm512_setzero_si512(); }
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  template <int kBits, int s>
  static BITPRESS_INLINE Vec field(Vec v) {
    return _mm512_and_si512(_mm512_srli_epi16(v, s * kBits), _mm512_set1_epi8((1 << kBits) - 1));
  }
  static BITPRESS_INLINE int32_t total(Vec v) { return _mm512_reduce_add_epi32(v); }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Bit planes; how bits are counted is left to the instruction set.
struct Planes {
  static constexpr uint32_t kLanes = 16;
  static constexpr int kPixels = 4, kBlocks = 2;
  using Vec = __m512i;
  static Vec zero() { return _mm512_setzero_si512(); }
  static Vec load(const uint32_t* p) { return _mm512_loadu_si512(p); }
  static Vec broadcast(const uint32_t* p) { return _mm512_set1_epi32(static_cast<int32_t>(*p)); }
  static Vec both(Vec a, Vec b) { return _mm512_and_si512(a, b); }
  static Vec mul_add(Vec sum, int32_t coeff, Vec counts) {
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(counts, _mm512_set1_epi32(coeff)));
  }
  static void store(int32_t* p, Vec v) { _mm512_storeu_si512(p, v); }
  static void copy(uint8_t* to, const uint8_t* from, size_t n) {
    for (size_t i = 0; i < n; i += 64) _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  }
  // The top bit of every byte is a plane's 64 bits; doubling the bytes brings the next lower plane there.
  static void pack(const uint8_t* bytes, uint32_t* planes, uint32_t bits, size_t count, size_t stride) {
    const __m128i up = _mm_cvtsi32_si128(static_cast<int32_t>(8 - bits));
    for (size_t i = 0; i < count; i += 64) {
      __m512i v = _mm512_sll_epi16(_mm512_loadu_si512(bytes + i), up);
      uint32_t* out = planes + i / 32 + bits * stride;
      for (uint32_t q = 0; q < bits; ++q, v = _mm512_add_epi8(v, v)) {
        out -= stride;
        const uint64_t mask = _mm512_movepi8_mask(v);
        __builtin_memcpy(out, &mask, sizeof mask);
      }
    }
  }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Levels of Winograd's tiles: bytes modulo 256, or int16.
struct Lifted {
  static constexpr uint32_t kChannels = 64;
  static constexpr size_t kBytes = 64;
  static constexpr bool kLifted = true;
  using Vec = __m512i;
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm512_loadu_si512(p); }
  static BITPRESS_INLINE Vec add(Vec a, Vec b) { return _mm512_add_epi8(a, b); }
  static BITPRESS_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_epi8(a, b); }
  static BITPRESS_INLINE Vec lifted(Vec a, uint8_t lift) { return add(a, _mm512_set1_epi8(static_cast<char>(lift))); }
  static BITPRESS_INLINE void store(uint8_t* p, Vec v) { _mm512_storeu_si512(p, v); }
};
struct Plain {
  static constexpr uint32_t kChannels = 32;
  static constexpr size_t kBytes = 64;
  static constexpr bool kLifted = false;
  using Vec = __m512i;
  static BITPRESS_INLINE Vec load(const uint8_t* p) {
    return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static BITPRESS_INLINE Vec add(Vec a, Vec b) { return _mm512_add_epi16(a, b); }
  static BITPRESS_INLINE Vec sub(Vec a, Vec b) { return _mm512_sub_epi16(a, b); }
  static BITPRESS_INLINE void store(uint8_t* p, Vec v) { _mm512_storeu_si512(p, v); }
};
