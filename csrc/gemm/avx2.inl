// Vocabulary of 256-bit vectors (AVX2, no FMA: multiply and add are rounded apart). Anonymous namespace.

struct F {
  static constexpr uint32_t kLanes = 8;
  static constexpr uint32_t kTogether = 4;
  using Vec = __m256;
  using Ints = __m256i;
  static Vec load(const float* p) { return _mm256_loadu_ps(p); }
  static Vec set(float x) { return _mm256_set1_ps(x); }
  static Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
  static Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
  static Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
  static Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
  static Vec from_i32(Ints a) { return _mm256_cvtepi32_ps(a); }
  static Ints load_i32(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Ints load_u16(const uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static Ints set_i32(int32_t x) { return _mm256_set1_epi32(x); }
  static Ints add_i32(Ints a, Ints b) { return _mm256_add_epi32(a, b); }
  static Ints shl(Ints a, int32_t n) { return _mm256_sll_epi32(a, _mm_cvtsi32_si128(n)); }
  static Ints sub_i32(Ints a, Ints b) { return _mm256_sub_epi32(a, b); }
  template <int n>
  static Ints shr_i32(Ints a) {
    return _mm256_srai_epi32(a, n);
  }
  static void store_i32(int32_t* p, Ints a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a); }
  // Bytes of 16-bit lanes, multiplied in the lanes' upper halves (contract.h, Requantize::scale).
  static constexpr size_t kBytes = 32;
  struct Scale {
    __m256i flip, scale, up, down, most, base;
    Scale(uint8_t f, uint16_t s, uint16_t u, uint16_t d, uint8_t m, uint8_t b)
        : flip(_mm256_set1_epi8(static_cast<char>(f))),
          scale(_mm256_set1_epi16(static_cast<int16_t>(s))),
          up(_mm256_set1_epi16(static_cast<int16_t>(u))),
          down(_mm256_set1_epi16(static_cast<int16_t>(d))),
          most(_mm256_set1_epi8(static_cast<char>(m))),
          base(_mm256_set1_epi8(static_cast<char>(b))) {}
    __m256i moved(__m256i v) const {
      return _mm256_subs_epu16(_mm256_adds_epu16(_mm256_mulhi_epu16(v, scale), up), down);
    }
    BITPRESS_INLINE void operator()(const uint8_t* from, uint8_t* to) const {
      const __m256i high = _mm256_set1_epi16(static_cast<int16_t>(0xFF00));
      const __m256i v = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)), flip);
      const __m256i even = _mm256_srli_epi16(moved(_mm256_slli_epi16(v, 8)), 8), odd = moved(_mm256_and_si256(v, high));
      const __m256i rises = _mm256_min_epu8(_mm256_or_si256(even, _mm256_and_si256(odd, high)), most);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi8(rises, base));
    }
  };
  static Vec load_u8(const uint8_t* p, uint32_t) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Vec load_i8(const int8_t* p, uint32_t) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  static Vec load_f32(const float* p, uint32_t) { return _mm256_loadu_ps(p); }
  static __m256i first(uint32_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec load_f32_exactly(const float* p, uint32_t n) { return _mm256_maskload_ps(p, first(n)); }
  static void store_f32(float* p, Vec a, uint32_t n) {
    if (n == kLanes) return _mm256_storeu_ps(p, a);
    _mm256_maskstore_ps(p, first(n), a);
  }
  static void store_levels(uint8_t* p, Vec a, uint32_t n) {
    const __m256i i = _mm256_cvtps_epi32(a);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1));
    // Levels of a u8 lie above the range of a saturating signed pack: keep the low bytes.
    const __m128i bytes = _mm_packus_epi16(_mm_and_si128(words, _mm_set1_epi16(0xFF)), _mm_setzero_si128());
    if (n == kLanes) return _mm_storel_epi64(reinterpret_cast<__m128i*>(p), bytes);
    const uint64_t all = static_cast<uint64_t>(_mm_cvtsi128_si64(bytes));
    for (uint32_t k = 0; k < n; ++k) p[k] = static_cast<uint8_t>(all >> (8 * k));
  }
  static BITPRESS_INLINE void store_four(uint8_t* p, size_t apart, bool is_signed, int32_t lo, int32_t hi, Vec a, Vec b,
                                         Vec c, Vec d) {
    const __m256i low = _mm256_set1_epi8(static_cast<char>(lo)), high = _mm256_set1_epi8(static_cast<char>(hi));
    const __m256i ab = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
    const __m256i cd = _mm256_packs_epi32(_mm256_cvtps_epi32(c), _mm256_cvtps_epi32(d));
    const __m256i halves = is_signed ? _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(ab, cd), low), high)
                                     : _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(ab, cd), low), high);
    const __m256i all = _mm256_permutevar8x32_epi32(halves, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    const __m128i first = _mm256_castsi256_si128(all), last = _mm256_extracti128_si256(all, 1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), first);
    _mm_storeh_pd(reinterpret_cast<double*>(p + apart), _mm_castsi128_pd(first));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p + 2 * apart), last);
    _mm_storeh_pd(reinterpret_cast<double*>(p + 3 * apart), _mm_castsi128_pd(last));
  }
};

inline uint32_t sum_bytes(const uint8_t* p, uint32_t n, uint8_t flip) {
  const __m256i f = _mm256_set1_epi8(static_cast<char>(flip));
  __m256i sum = _mm256_setzero_si256();
  uint32_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m256i v = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i)), f);
    sum = _mm256_add_epi64(sum, _mm256_sad_epu8(v, _mm256_setzero_si256()));
  }
  const __m128i half = _mm_add_epi64(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  uint32_t out = static_cast<uint32_t>(_mm_cvtsi128_si32(half) + _mm_extract_epi32(half, 2));
  for (; i < n; ++i) out += static_cast<uint8_t>(p[i] ^ flip);
  return out;
}

// Products of int16: exact for every level that the format knows. Tried for 8-bit weights and left: Winograd's inner
// product, (a0 + w1) * (a1 + w0), halves the multiplications and gained 5 to 8 %; products of bytes, with what pairs
// have beyond int16 in steps of their own, which a quarter to a half of the steps of trained 1x1 layers would need.
struct Words {
  static constexpr uint32_t kLanes = 8;
  static constexpr int kMax1 = 10, kMax2 = 5, kMax4 = 2, kSlide1 = 0;
  static constexpr bool kDelayed = false;
  static constexpr size_t kElementBytes = 2;
  using Vec = __m256i;
  using Operand = Vec;
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vec broadcast(const uint8_t* p) {
    return _mm256_castps_si256(_mm256_broadcast_ss(reinterpret_cast<const float*>(p)));
  }
  // Tied, like all of these: gcc 12 reorders free additions, hoists the products, and spills.
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm256_madd_epi16(a, w);
    BITPRESS_TIED(("vpaddd %1, %0, %0" : "+x"(acc) : "x"(t)), acc = _mm256_add_epi32(acc, t));
  }
  static void store(int32_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static uint32_t window_sum(const uint8_t* p, uint32_t n, uint8_t flip) { return sum_bytes(p, n, flip); }
};

// Products of bytes, summed in int16 as long as the ranges allow it (Conv::delay), widened then.
struct Delayed : Words {
  static constexpr int kMax1 = 10, kMax2 = 5, kMax4 = 2, kSlide1 = 0;
  static constexpr bool kDelayed = true;
  static constexpr size_t kElementBytes = 1;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm256_maddubs_epi16(a, w);
    BITPRESS_TIED(("vpaddw %1, %0, %0" : "+x"(acc) : "x"(t)), acc = _mm256_add_epi16(acc, t));
  }
  static Vec widen(Vec v) { return _mm256_madd_epi16(v, _mm256_set1_epi16(1)); }
  static void add_store(int32_t* p, Vec v) {
    __m256i* out = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(out, _mm256_add_epi32(_mm256_loadu_si256(out), v));
  }
};

// The same, widened at once: where the sum of two steps could leave int16, but no pair does.
struct Widened : Words {
  static constexpr size_t kElementBytes = 1;
  static BITPRESS_INLINE void dot(Vec& acc, Vec a, Vec w) {
    const Vec t = _mm256_madd_epi16(_mm256_maddubs_epi16(a, w), _mm256_set1_epi16(1));
    BITPRESS_TIED(("vpaddd %1, %0, %0" : "+x"(acc) : "x"(t)), acc = _mm256_add_epi32(acc, t));
  }
};

// Levels of Winograd's tiles: bytes modulo 256, or int16.
struct Lifted {
  static constexpr uint32_t kChannels = 32;
  static constexpr size_t kBytes = 32;
  static constexpr bool kLifted = true;
  using Vec = __m256i;
  static BITPRESS_INLINE Vec load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static BITPRESS_INLINE Vec add(Vec a, Vec b) { return _mm256_add_epi8(a, b); }
  static BITPRESS_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_epi8(a, b); }
  static BITPRESS_INLINE Vec lifted(Vec a, uint8_t lift) { return add(a, _mm256_set1_epi8(static_cast<char>(lift))); }
  static BITPRESS_INLINE void store(uint8_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
struct Plain {
  static constexpr uint32_t kChannels = 16;
  static constexpr size_t kBytes = 32;
  static constexpr bool kLifted = false;
  using Vec = __m256i;
  static BITPRESS_INLINE Vec load(const uint8_t* p) {
    return _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  }
  static BITPRESS_INLINE Vec add(Vec a, Vec b) { return _mm256_add_epi16(a, b); }
  static BITPRESS_INLINE Vec sub(Vec a, Vec b) { return _mm256_sub_epi16(a, b); }
  static BITPRESS_INLINE void store(uint8_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};
