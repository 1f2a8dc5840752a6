// 16 x 16 bytes of each 16 bytes of 16 vectors turned: byte i of vector j becomes byte j of vector i. For x86, whose
// vectors consist of pieces of 16 bytes. Anonymous namespace.

// Four perfect shuffles of the vectors: each moves the top bit of a byte's vector to the bottom of its place.
template <class V>
BITPRESS_INLINE inline void turn_pieces(typename V::Vec (&v)[16]) {
  unroll<4>([&](auto) BITPRESS_INLINE {
    typename V::Vec made[16];
    unroll<8>([&](auto i) BITPRESS_INLINE {
      made[2 * i] = V::unpack_low(v[i], v[i + 8]);
      made[2 * i + 1] = V::unpack_high(v[i], v[i + 8]);
    });
    unroll<16>([&](auto i) BITPRESS_INLINE { v[i] = made[i]; });
  });
}
