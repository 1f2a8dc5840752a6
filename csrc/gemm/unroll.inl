// Loops that are unrolled in the source, because accumulators must stay in registers. Anonymous namespace.
// gcc 12 keeps arrays of accumulators in memory otherwise, which costs a factor of four.

template <int I>
struct Index {
  constexpr operator int() const { return I; }
};
template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
  using type = Indices<I...>;
};

#define BITPRESS_INLINE __attribute__((always_inline))

// An instruction as assembly, because gcc 12 reorders, copies or spills what it may touch; and what it means, which is
// what runs where a test emulates the instruction set.
#ifndef BITPRESS_EMULATED
#define BITPRESS_TIED(instruction, meaning) asm instruction
#else
#define BITPRESS_TIED(instruction, meaning) meaning
#endif

template <class Body, int... I>
BITPRESS_INLINE inline void unroll_over(const Body& body, Indices<I...>) {
  (body(Index<I>{}), ...);
}

// body(Index<0>), ..., body(Index<N - 1>)
template <int N, class Body>
BITPRESS_INLINE inline void unroll(const Body& body) {
  unroll_over(body, typename MakeIndices<N>::type{});
}

// Whether there is a tile of so many pixels. Beside wide ones those of 6, 5 and 3 are left out: rows are cut into
// nearly equal parts, so that few would be met, and each is half a kilobyte of code.
constexpr bool has_tile(int pixels, int widest) { return widest < 7 || (pixels != 6 && pixels != 5 && pixels != 3); }
constexpr int narrower(int pixels, int widest) {
  return has_tile(pixels - 1, widest) ? pixels - 1 : narrower(pixels - 1, widest);
}
