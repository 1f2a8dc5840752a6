// Vectors of bitsliced with 256 bits, for x86: all but what adds and compares. Anonymous namespace.

// One bit of 256 pixels.
struct HalfSlices {
  static constexpr size_t kBytes = 32;
  using Vec = __m256i;
  static Vec zero() { return _mm256_setzero_si256(); }
  static Vec set(uint32_t word) { return _mm256_set1_epi32(static_cast<int32_t>(word)); }
  static Vec broadcast(const uint32_t* p) { return set(*p); }
  static Vec load(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
  static Vec load_any(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static void store(uint8_t* p, Vec v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }
  static void store_any(uint8_t* p, Vec v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static Vec both(Vec a, Vec b) { return _mm256_and_si256(a, b); }
  static Vec either(Vec a, Vec b) { return _mm256_or_si256(a, b); }
  static Vec differ(Vec a, Vec b) { return _mm256_xor_si256(a, b); }
  static Vec flip(Vec a) { return _mm256_xor_si256(a, _mm256_set1_epi32(-1)); }
  template <int n>
  static Vec shl(Vec a) {
    return _mm256_slli_epi16(a, n);
  }
  template <int n>
  static Vec shr(Vec a) {
    return _mm256_srli_epi16(a, n);
  }
  static Vec add_bytes(Vec a, Vec b) { return _mm256_add_epi8(a, b); }
  template <int word>
  static Vec moved(Vec a, int n) {
    if (word == 2) return n < 0 ? _mm256_slli_epi16(a, -n) : _mm256_srli_epi16(a, n);
    if (word == 4) return n < 0 ? _mm256_slli_epi32(a, -n) : _mm256_srli_epi32(a, n);
    return n < 0 ? _mm256_slli_epi64(a, -n) : _mm256_srli_epi64(a, n);
  }
  static BITPRESS_INLINE Vec pieces(const uint8_t* const (&p)[2]) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p[0]))),
                                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(p[1])), 1);
  }
  static BITPRESS_INLINE void put(Vec v, uint8_t* const (&p)[2], size_t at) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p[0] + at), _mm256_castsi256_si128(v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p[1] + at), _mm256_extracti128_si256(v, 1));
  }
  static BITPRESS_INLINE void turn(Vec (&v)[16]) { turn_pieces<HalfSlices>(v); }
  static Vec unpack_low(Vec a, Vec b) { return _mm256_unpacklo_epi8(a, b); }
  static Vec unpack_high(Vec a, Vec b) { return _mm256_unpackhi_epi8(a, b); }
  static BITPRESS_INLINE void zip(Vec a, Vec b, uint8_t* to) {
    const Vec low = unpack_low(a, b), high = unpack_high(a, b);
    store(to, _mm256_permute2x128_si256(low, high, 0x20));
    store(to + kBytes, _mm256_permute2x128_si256(low, high, 0x31));
  }
  static Vec select(Vec mask, Vec a, Vec b) {
    return _mm256_or_si256(_mm256_and_si256(mask, a), _mm256_andnot_si256(mask, b));
  }
  static constexpr bool kWidens = true;
  using Floats = __m256;
  static Floats spread(const float* p) { return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(p)); }
  static Floats set_float(float x) { return _mm256_set1_ps(x); }
  static Floats add(Floats a, Floats b) { return _mm256_add_ps(a, b); }
  static Floats mul(Floats a, Floats b) { return _mm256_mul_ps(a, b); }
  static BITPRESS_INLINE void widen(Vec low, Vec high, Floats (&to)[4]) {
    const Vec above = _mm256_set1_epi16(0x4B00), first = unpack_low(low, high), last = unpack_high(low, high);
    to[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(first, above));
    to[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(first, above));
    to[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(last, above));
    to[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(last, above));
  }
  static BITPRESS_INLINE Vec narrow(const Floats (&of)[4], bool is_signed, int32_t lo, int32_t hi) {
    const Vec low = _mm256_set1_epi8(static_cast<char>(lo)), high = _mm256_set1_epi8(static_cast<char>(hi));
    const Vec first = _mm256_packs_epi32(_mm256_cvtps_epi32(of[0]), _mm256_cvtps_epi32(of[1]));
    const Vec last = _mm256_packs_epi32(_mm256_cvtps_epi32(of[2]), _mm256_cvtps_epi32(of[3]));
    return is_signed ? _mm256_min_epi8(_mm256_max_epi8(_mm256_packs_epi16(first, last), low), high)
                     : _mm256_min_epu8(_mm256_max_epu8(_mm256_packus_epi16(first, last), low), high);
  }
};
