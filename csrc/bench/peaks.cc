#include "peaks.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../kernels/dispatch.h"
#include "../runtime/memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace bitpress::bench {
namespace {

// Seconds of a window: far below the slice of a scheduler, so that several go by undisturbed on a busy host.
constexpr double kWindow = 200e-6;
constexpr std::uint64_t kMostLoops = std::uint64_t{1} << 40;

// Calls f(loops), which gives the operations that it did, for about `seconds` in windows of kWindow, and visit(rate)
// behind each.
template <typename F, typename Visit>
void windows(F f, double seconds, const Visit& visit) {
  using clock = std::chrono::steady_clock;
  auto timed = [&](std::uint64_t loops, double& took) {
    const auto begin = clock::now();
    const double done = f(loops);
    took = std::chrono::duration<double>(clock::now() - begin).count();
    return done;
  };
  std::uint64_t loops = 1;
  double took = 0;
  timed(loops, took);  // what a first use costs, of tile registers a trap, is no window
  for (timed(loops, took); took < kWindow / 2 && loops < kMostLoops; timed(loops, took)) {
    loops *= 2;
  }
  double spent = 0;
  do {
    const double done = timed(loops, took);
    visit(done / took);
    spent += took;
    if (took < kWindow / 2 && loops < kMostLoops) loops *= 2;  // a neighbour had made it look long enough
  } while (spent < seconds);
}

// Best, not median: a roof is what the machine can do, and a busy neighbour only ever lowers a window.
template <typename F>
double best_rate(F f, double seconds) {
  double best = 0;
  windows(f, seconds, [&](double rate) { best = std::max(best, rate); });
  return best;
}

// Not where sets are emulated: these are the instructions themselves.
bool present([[maybe_unused]] const std::string& isa) {
#if !defined(BITPRESS_EMULATED)
  for (const Isa& each : isas())
    if (isa == each.name) return each.missing.empty();
#endif
  return false;
}

struct Peak {
  const char* family;
  const char* isa;
  double (*run)(std::uint64_t loops);
};

#if defined(__x86_64__)

// Every loop holds 8 or 12 independent chains: latency (4-5 cycles) times two ports. Volatile asm, so that nothing is
// hoisted or merged; register renaming lets all chains share a temporary. Target attributes, not per-file flags: these
// functions call nothing and share nothing.

#define CHAINS8(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7")
#define CHAINS12(X) CHAINS8(X) X("8") X("9") X("10") X("11")
#define ACC8(V) \
  V c0{}, c1{}, c2{}, c3{}, c4{}, c5{}, c6{}, c7 {}
#define OUT8 "+v"(c0), "+v"(c1), "+v"(c2), "+v"(c3), "+v"(c4), "+v"(c5), "+v"(c6), "+v"(c7)

// SSE2, the baseline: 8 products of int16 a pmaddwd.
double dot_generic(std::uint64_t loops) {
  ACC8(__m128i);
  __m128i a = _mm_set1_epi16(3);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "movdqa %8, %%xmm15\n\tpmaddwd %8, %%xmm15\n\tpaddd %%xmm15, %" n "\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a)
                 : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 8;
}

#define MULTIPLY_ADD(multiply, add, temporary, n) \
  multiply " %8, %8, " temporary "\n\t" add " " temporary ", %" n ", %" n "\n\t"
#define CHAIN(name, isa, V, operand, step, products)              \
  __attribute__((target(isa))) double name(std::uint64_t loops) { \
    ACC8(V);                                                      \
    V a = operand;                                                \
    for (std::uint64_t i = 0; i < loops; ++i) {                   \
      asm volatile(CHAINS8(step) : OUT8 : "v"(a) : "xmm15");      \
    }                                                             \
    return static_cast<double>(loops) * 8 * products;             \
  }

// vpmaddwd + vpaddd: products of int16, which hold every level.
#define WORDS256(n) MULTIPLY_ADD("vpmaddwd", "vpaddd", "%%ymm15", n)
#define WORDS512(n) MULTIPLY_ADD("vpmaddwd", "vpaddd", "%%zmm15", n)
CHAIN(dot_avx2, "avx2", __m256i, _mm256_set1_epi16(3), WORDS256, 16)
CHAIN(dot_avx512, "avx512f,avx512bw", __m512i, _mm512_set1_epi16(3), WORDS512, 32)

// vpmaddubsw + vpaddw: sums delayed in int16, the least that a kernel without VNNI can do.
#define BYTES256(n) MULTIPLY_ADD("vpmaddubsw", "vpaddw", "%%ymm15", n)
#define BYTES512(n) MULTIPLY_ADD("vpmaddubsw", "vpaddw", "%%zmm15", n)
CHAIN(delayed_avx2, "avx2", __m256i, _mm256_set1_epi8(3), BYTES256, 32)
CHAIN(delayed_avx512, "avx512f,avx512bw", __m512i, _mm512_set1_epi8(3), BYTES512, 64)

__attribute__((target("avx2"))) double dot_avxvnni(std::uint64_t loops) {
  ACC8(__m256i);
  __m256i c8{}, c9{}, c10{}, c11{}, a = _mm256_set1_epi8(3);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "%{vex%} vpdpbusd %12, %12, %" n "\n\t"
    asm volatile(CHAINS12(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7), "+x"(c8), "+x"(c9),
                   "+x"(c10), "+x"(c11)
                 : "x"(a));
#undef STEP
  }
  return static_cast<double>(loops) * 12 * 32;
}

__attribute__((target("avx512f,avx512vnni"))) double dot_avx512vnni(std::uint64_t loops) {
  ACC8(__m512i);
  __m512i c8{}, c9{}, c10{}, c11{}, a = _mm512_set1_epi8(3);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "vpdpbusd %12, %12, %" n "\n\t"
    asm volatile(CHAINS12(STEP) : OUT8, "+v"(c8), "+v"(c9), "+v"(c10), "+v"(c11) : "v"(a));
#undef STEP
  }
  return static_cast<double>(loops) * 12 * 64;
}

// Tiles of 16 x 16 sums, each of 64 products of bytes.
double dot_amx(std::uint64_t loops) {
  struct alignas(64) {
    std::uint8_t palette, start_row, reserved[14];
    std::uint16_t row_bytes[16];
    std::uint8_t rows[16];
  } shapes{};
  shapes.palette = 1;
  for (int i = 0; i < 8; ++i) shapes.row_bytes[i] = 64, shapes.rows[i] = 16;
  asm volatile("ldtilecfg %0" : : "m"(shapes));
  for (std::uint64_t i = 0; i < loops; ++i) {
    asm volatile(
        "tdpbusd %tmm6, %tmm4, %tmm0\n\ttdpbusd %tmm7, %tmm4, %tmm1\n\t"
        "tdpbusd %tmm6, %tmm5, %tmm2\n\ttdpbusd %tmm7, %tmm5, %tmm3");
  }
  asm volatile("tilerelease");
  return static_cast<double>(loops) * 4 * 16 * 16 * 64;
}

// Bits: one AND and one carry-save adder a vector (Harley and Seal; the rest of the count is amortised away), which is
// five logic operations without vpternlog. No popcount by shuffles is cheaper.
double bits_generic(std::uint64_t loops) {
  ACC8(__m128i);
  __m128i a = _mm_set1_epi8(0x35), w = _mm_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n)                                          \
  "movdqa %8, %%xmm15\n\tpand %9, %%xmm15\n\tmovdqa %" n \
  ", %%xmm14\n\tpxor %%xmm15, %%xmm14\n\t"               \
  "pand %" n ", %%xmm15\n\tpand %8, %%xmm14\n\tpxor %9, %" n "\n\tpor %%xmm15, %" n "\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a), "x"(w)
                 : "xmm14", "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 128;
}

__attribute__((target("avx2"))) double bits_avx2(std::uint64_t loops) {
  ACC8(__m256i);
  __m256i a = _mm256_set1_epi8(0x35), w = _mm256_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n)                                                                   \
  "vpand %8, %9, %%ymm15\n\tvpxor %%ymm15, %" n ", %%ymm14\n\tvpand %%ymm15, %" n \
  ", %%ymm15\n\t"                                                                 \
  "vpand %%ymm14, %8, %%ymm13\n\tvpxor %%ymm14, %9, %" n "\n\tvpor %%ymm13, %%ymm15, %%ymm15\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a), "x"(w)
                 : "xmm13", "xmm14", "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 256;
}

__attribute__((target("avx512f"))) double bits_avx512(std::uint64_t loops) {
  ACC8(__m512i);
  __m512i a = _mm512_set1_epi8(0x35), w = _mm512_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) \
  "vpandq %8, %9, %%zmm15\n\tvpternlogq $0x96, %%zmm15, %8, %" n "\n\tvpternlogq $0xe8, %9, %8, %%zmm15\n\t"
    asm volatile(CHAINS8(STEP) : OUT8 : "v"(a), "v"(w) : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 512;
}

__attribute__((target("avx512f,avx512vpopcntdq"))) double bits_avx512vbmi(std::uint64_t loops) {
  ACC8(__m512i);
  __m512i a = _mm512_set1_epi8(0x35), w = _mm512_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "vpandq %8, %9, %%zmm15\n\tvpopcntq %%zmm15, %%zmm15\n\tvpaddq %%zmm15, %" n ", %" n "\n\t"
    asm volatile(CHAINS8(STEP) : OUT8 : "v"(a), "v"(w) : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 512;
}

// A full adder takes two bits of a pixel and gives one of the next weight: in the end, one adder a bit that is added.
double adds_generic(std::uint64_t loops) {
  ACC8(__m128i);
  __m128i a = _mm_set1_epi8(0x35), w = _mm_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n)                                                                          \
  "movdqa %8, %%xmm15\n\tmovdqa %8, %%xmm13\n\tpxor %9, %%xmm15\n\tpand %9, %%xmm13\n\t" \
  "movdqa %%xmm15, %%xmm14\n\tpand %" n ", %%xmm14\n\tpxor %%xmm15, %" n "\n\tpor %%xmm13, %%xmm14\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a), "x"(w)
                 : "xmm13", "xmm14", "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 128;
}

__attribute__((target("avx2"))) double adds_avx2(std::uint64_t loops) {
  ACC8(__m256i);
  __m256i a = _mm256_set1_epi8(0x35), w = _mm256_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n)                                                                                                    \
  "vpxor %8, %9, %%ymm15\n\tvpand %8, %9, %%ymm13\n\tvpand %%ymm15, %" n ", %%ymm14\n\tvpxor %%ymm15, %" n ", %" n \
  "\n\tvpor %%ymm13, %%ymm14, %%ymm14\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a), "x"(w)
                 : "xmm13", "xmm14", "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 256;
}

__attribute__((target("avx512f"))) double adds_avx512(std::uint64_t loops) {
  ACC8(__m512i);
  __m512i a = _mm512_set1_epi8(0x35), w = _mm512_set1_epi8(0x53);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "vpternlogq $0x96, %9, %8, %" n "\n\tvpternlogq $0xb2, %9, %" n ", %%zmm15\n\t"
    asm volatile(CHAINS8(STEP) : OUT8 : "v"(a), "v"(w) : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 512;
}

// 32 sums of two products from a table, added up.
__attribute__((target("avx2"))) double looks_avx2(std::uint64_t loops) {
  ACC8(__m256i);
  __m256i a = _mm256_set1_epi8(0x5), w = _mm256_set1_epi8(0x3);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "vpshufb %9, %8, %%ymm15\n\tvpaddb %%ymm15, %" n ", %" n "\n\t"
    asm volatile(CHAINS8(STEP)
                 : "+x"(c0), "+x"(c1), "+x"(c2), "+x"(c3), "+x"(c4), "+x"(c5), "+x"(c6), "+x"(c7)
                 : "x"(a), "x"(w)
                 : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 64;
}

// 64 sums of three products from a table, added up.
__attribute__((target("avx512f,avx512bw,avx512vbmi"))) double looks_avx512vbmi(std::uint64_t loops) {
  ACC8(__m512i);
  __m512i a = _mm512_set1_epi8(3);
  for (std::uint64_t i = 0; i < loops; ++i) {
#define STEP(n) "vpermb %8, %8, %%zmm15\n\tvpaddb %%zmm15, %" n ", %" n "\n\t"
    asm volatile(CHAINS8(STEP) : OUT8 : "v"(a) : "xmm15");
#undef STEP
  }
  return static_cast<double>(loops) * 8 * 64 * 3;
}

#undef OUT8
#undef ACC8
#undef CHAINS12
#undef CHAINS8

constexpr Peak kPeaks[] = {
    {"i8dot", "generic", dot_generic},
    {"i8dot", "avx2", dot_avx2},
    {"i8dot", "avxvnni", dot_avxvnni},
    {"i8dot", "avx512", dot_avx512},
    {"i8dot", "avx512vnni", dot_avx512vnni},
    {"i8dot", "avx512vbmi", dot_avx512vnni},
    {"i8dot", "amx", dot_amx},
    {"i8dot16", "avx2", delayed_avx2},
    {"i8dot16", "avxvnni", dot_avxvnni},
    {"i8dot16", "avx512", delayed_avx512},
    {"i8dot16", "avx512vnni", dot_avx512vnni},
    {"i8dot16", "avx512vbmi", dot_avx512vnni},
    {"bitserial", "generic", bits_generic},
    {"bitserial", "avx2", bits_avx2},
    {"bitserial", "avxvnni", bits_avx2},
    {"bitserial", "avx512", bits_avx512},
    {"bitserial", "avx512vnni", bits_avx512},
    {"bitserial", "avx512vbmi", bits_avx512vbmi},
    {"bitsliced", "generic", adds_generic},
    {"bitsliced", "avx2", adds_avx2},
    {"bitsliced", "avx512", adds_avx512},
    {"lut", "avx2", looks_avx2},
    {"lut", "avx512vbmi", looks_avx512vbmi},
};

__attribute__((target("avx2"))) std::uint64_t read_avx2(const unsigned char* data, std::size_t bytes) {
  __m256i s0{}, s1{}, s2{}, s3{};
  for (std::size_t i = 0; i + 128 <= bytes; i += 128) {
    const auto* p = reinterpret_cast<const __m256i*>(data + i);
    s0 = _mm256_xor_si256(s0, _mm256_loadu_si256(p));
    s1 = _mm256_xor_si256(s1, _mm256_loadu_si256(p + 1));
    s2 = _mm256_xor_si256(s2, _mm256_loadu_si256(p + 2));
    s3 = _mm256_xor_si256(s3, _mm256_loadu_si256(p + 3));
  }
  const __m256i all = _mm256_xor_si256(_mm256_xor_si256(s0, s1), _mm256_xor_si256(s2, s3));
  return static_cast<std::uint64_t>(_mm256_extract_epi64(all, 0) ^ _mm256_extract_epi64(all, 3));
}

#else

constexpr Peak kPeaks[] = {{"", "", nullptr}};  // no roof is known here: every look-up gives 0

#endif

std::uint64_t read_plain(const unsigned char* data, std::size_t bytes) {
  std::uint64_t sums[4] = {0, 0, 0, 0};
  for (std::size_t i = 0; i + 32 <= bytes; i += 32) {
    std::uint64_t words[4];
    std::memcpy(words, data + i, sizeof words);
    for (int k = 0; k < 4; ++k) sums[k] ^= words[k];
  }
  return sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
}

}  // namespace

namespace {

double (*peak_of(const std::string& family, const std::string& isa))(std::uint64_t) {
  for (const Peak& row : kPeaks)
    if (family == row.family && isa == row.isa && present(isa)) return row.run;
  return nullptr;
}

}  // namespace

double peak_rate(const std::string& family, const std::string& isa, double seconds) {
  auto* const run = peak_of(family, isa);
  return run ? best_rate(run, seconds) : 0;
}

double peak_per_cycle(const std::string& family, const std::string& isa, double seconds) {
  auto* const run = peak_of(family, isa);
  if (!run) return 0;
  std::vector<double> found;
  windows(run, seconds, [&](double rate) { found.push_back(rate / clock_rate()); });
  std::nth_element(found.begin(), found.begin() + static_cast<std::ptrdiff_t>(found.size() / 2), found.end());
  return found[found.size() / 2];
}

double clock_rate() {
  constexpr int kLoops = 150, kEach = 16;  // an addition takes a cycle on every CPU that has a row
  const auto begin = std::chrono::steady_clock::now();
  std::uint64_t x = 1;
  for (int i = 0; i < kLoops; ++i)
    for (int k = 0; k < kEach; ++k) {
      x += x;
      asm volatile("" : "+r"(x));
    }
  return kLoops * kEach / std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double read_rate(std::size_t bytes, double seconds) {
  if (bytes < 4096) return 0;
  const Memory block(bytes);  // as layouts are held: on pages of 4 KB what the TLBs do not reach reads at half the rate
  for (std::size_t i = 0; i < bytes; ++i) block.data()[i] = static_cast<unsigned char>(i * 31 + 7);
  auto* reader = read_plain;
#if defined(__x86_64__)
  if (present("avx2")) reader = read_avx2;
#endif
  volatile std::uint64_t sink = 0;  // keeps the reads
  return best_rate(
      [&](std::uint64_t loops) {
        for (std::uint64_t i = 0; i < loops; ++i) sink = sink ^ reader(block.data(), bytes);
        return static_cast<double>(loops) * static_cast<double>(bytes);
      },
      seconds);
}

}  // namespace bitpress::bench
