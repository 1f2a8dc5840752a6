// Stands before the compiler's own <immintrin.h> where x86 kernels are emulated: SIMDe under the native names, and what
// Debian's SIMDe 0.7.4 lacks, written from Intel's description of each instruction.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <cmath>
#include <cstdint>
#include <cstring>
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>

using __mmask16 = simde__mmask16;
using __mmask64 = simde__mmask64;

namespace bitpress::emulated {

// N lanes of T, in memory.
template <class T, int N>
struct Lanes {
  T v[N];
};

template <class To, class From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Each lane of `a`, as `From`, converted to `To`.
template <class To, class From, int N, class Result, class Vector>
inline Result convert(const Vector& a) {
  const auto from = as<Lanes<From, N>>(a);
  Lanes<To, N> to;
  for (int i = 0; i < N; ++i) to.v[i] = static_cast<To>(from.v[i]);
  return as<Result>(to);
}

// The lanes whose bit of the mask is set, zeros elsewhere; others are not read.
template <class T, int N, class Result>
inline Result load_some(uint64_t mask, const void* p) {
  Lanes<T, N> to = {};
  for (int i = 0; i < N; ++i)
    if (mask >> i & 1) std::memcpy(&to.v[i], static_cast<const char*>(p) + i * sizeof(T), sizeof(T));
  return as<Result>(to);
}

template <class T, int N, class Vector>
inline void store_some(void* p, uint64_t mask, const Vector& a) {
  const auto from = as<Lanes<T, N>>(a);
  for (int i = 0; i < N; ++i)
    if (mask >> i & 1) std::memcpy(static_cast<char*>(p) + i * sizeof(T), &from.v[i], sizeof(T));
}

inline __m512i high_products(const __m512i& a, const __m512i& b) {
  const auto x = as<Lanes<uint16_t, 32>>(a), y = as<Lanes<uint16_t, 32>>(b);
  Lanes<uint16_t, 32> to;
  for (int i = 0; i < 32; ++i) to.v[i] = static_cast<uint16_t>(uint32_t{x.v[i]} * y.v[i] >> 16);
  return as<__m512i>(to);
}

inline __m512i rounded(const __m512& a) {
  const auto from = as<Lanes<float, 16>>(a);
  Lanes<int32_t, 16> to;
  for (int i = 0; i < 16; ++i) to.v[i] = static_cast<int32_t>(std::nearbyint(from.v[i]));
  return as<__m512i>(to);
}

// Arithmetic shifts.
inline __m512i shifted(const __m512i& a, int n) {
  auto out = as<Lanes<int32_t, 16>>(a);
  for (int32_t& x : out.v) x >>= n;
  return as<__m512i>(out);
}

template <class T, int N>
inline T sum(const __m512i& a) {
  const auto from = as<Lanes<T, N>>(a);
  T out = 0;
  for (const T x : from.v) out = static_cast<T>(out + x);
  return out;
}

// Four products of an unsigned and a signed byte a lane, added.
template <int N, class Vector>
inline Vector dot_bytes(const Vector& acc, const Vector& a, const Vector& w) {
  auto out = as<Lanes<uint32_t, N>>(acc);
  const auto x = as<Lanes<uint8_t, 4 * N>>(a);
  const auto y = as<Lanes<int8_t, 4 * N>>(w);
  for (int i = 0; i < 4 * N; ++i) out.v[i / 4] += static_cast<uint32_t>(x.v[i] * y.v[i]);
  return as<Vector>(out);
}

// Registers of tiles: up to 16 rows of 64 bytes, zeros beyond their shapes.
struct Tile {
  uint8_t bytes[16][64];
};
inline thread_local Tile tiles[8];
inline thread_local uint8_t tile_shape[64];  // as ldtilecfg reads it

inline uint32_t tile_rows(int t) { return tile_shape[48 + t]; }
inline uint32_t tile_row_bytes(int t) { return tile_shape[16 + 2 * t] + tile_shape[17 + 2 * t] * 256u; }
inline void tile_zero(int t) { tiles[t] = {}; }
inline void tile_shapes(const void* p) {
  std::memcpy(tile_shape, p, sizeof tile_shape);
  for (int t = 0; t < 8; ++t) tile_zero(t);
}
inline void tile_release() { tile_shapes(Tile{}.bytes); }
inline void tile_load(int t, const void* p, size_t apart) {
  tile_zero(t);
  for (uint32_t i = 0; i < tile_rows(t); ++i)
    std::memcpy(tiles[t].bytes[i], static_cast<const char*>(p) + i * apart, tile_row_bytes(t));
}
inline void tile_store(int t, void* p, size_t apart) {
  for (uint32_t i = 0; i < tile_rows(t); ++i)
    std::memcpy(static_cast<char*>(p) + i * apart, tiles[t].bytes[i], tile_row_bytes(t));
}
// Row k / 4 of `w` holds, for each column, four bytes: what bytes k, k + 1, .. of a row of `in` are multiplied by.
inline void tile_dot(int sums, int in, int w) {
  for (uint32_t i = 0; i < tile_rows(sums); ++i)
    for (uint32_t n = 0; n < tile_row_bytes(sums) / 4; ++n) {
      uint32_t sum = 0;
      std::memcpy(&sum, &tiles[sums].bytes[i][4 * n], sizeof sum);
      for (uint32_t k = 0; k < tile_row_bytes(in); ++k)
        sum += static_cast<uint32_t>(tiles[in].bytes[i][k] * static_cast<int8_t>(tiles[w].bytes[k / 4][4 * n + k % 4]));
      std::memcpy(&tiles[sums].bytes[i][4 * n], &sum, sizeof sum);
    }
}

}  // namespace bitpress::emulated

#define _mm512_cvtepi32_epi8(a) bitpress::emulated::convert<uint8_t, uint32_t, 16, __m128i>(a)
#define _mm512_cvtepi32_ps(a) bitpress::emulated::convert<float, int32_t, 16, __m512>(a)
#define _mm512_cvtepi8_epi32(a) bitpress::emulated::convert<int32_t, int8_t, 16, __m512i>(a)
#define _mm512_cvtepu8_epi32(a) bitpress::emulated::convert<int32_t, uint8_t, 16, __m512i>(a)
#define _mm512_cvtepu8_epi16(a) bitpress::emulated::convert<int16_t, uint8_t, 32, __m512i>(a)
#define _mm512_cvtepu16_epi32(a) bitpress::emulated::convert<int32_t, uint16_t, 16, __m512i>(a)
#define _mm512_srai_epi32(a, n) bitpress::emulated::shifted(a, n)
#define _mm512_mulhi_epu16(a, b) bitpress::emulated::high_products(a, b)
#define _mm512_cvtps_epi32(a) bitpress::emulated::rounded(a)
#define _mm512_maskz_loadu_epi8(mask, p) bitpress::emulated::load_some<uint8_t, 64, __m512i>(mask, p)
#define _mm512_maskz_loadu_epi32(mask, p) bitpress::emulated::load_some<uint32_t, 16, __m512i>(mask, p)
#define _mm_maskz_loadu_epi8(mask, p) bitpress::emulated::load_some<uint8_t, 16, __m128i>(mask, p)
#define _mm512_maskz_loadu_ps(mask, p) bitpress::emulated::load_some<float, 16, __m512>(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) bitpress::emulated::store_some<float, 16>(p, mask, a)
#define _mm_mask_storeu_epi8(p, mask, a) bitpress::emulated::store_some<uint8_t, 16>(p, mask, a)
#define _mm512_mask_storeu_epi8(p, mask, a) bitpress::emulated::store_some<uint8_t, 64>(p, mask, a)
#define _mm512_reduce_add_epi64(a) static_cast<int64_t>(bitpress::emulated::sum<uint64_t, 8>(a))
#define _mm512_reduce_add_epi32(a) static_cast<int32_t>(bitpress::emulated::sum<uint32_t, 16>(a))
#undef _mm512_madd_epi16  // SIMDe names the masked one so
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#undef _mm256_dpbusd_epi32
#undef _mm512_dpbusd_epi32
#define _mm256_dpbusd_epi32(acc, a, w) bitpress::emulated::dot_bytes<8>(acc, a, w)
#define _mm512_dpbusd_epi32(acc, a, w) bitpress::emulated::dot_bytes<16>(acc, a, w)
