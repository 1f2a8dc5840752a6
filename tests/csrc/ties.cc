// Half to even, in every row of requantize that this host can run: 0.5, 1.5, 2.5, -0.5 and their neighbours.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "gemm/contract.h"
#include "kernels/dispatch.h"

using namespace bitpress;

int main() {
  const std::vector<float> in = {0.5f, 1.5f, 2.5f, -0.5f, 3.5f, -1.5f, 0.49999997f, 0.50000006f, 254.5f, 253.5f, -2.5f};
  const std::vector<int> signed_out = {0, 2, 2, 0, 4, -2, 0, 1, 127, 127, -2};
  const std::vector<int> unsigned_out = {0, 2, 2, 0, 4, 0, 0, 1, 254, 254, 0};
  const size_t n = in.size();
  const std::vector<float> m(n + 16, 1.0f), b(n + 16, 0.0f);
  std::vector<float> padded = in;
  padded.resize(n + 16);
  int wrong = 0, ran = 0;
  const Choice choice = Choice::from_environment();
  for (const Row& row : rows()) {
    if (row.op != Op::kRequantize || !choice.why_unusable(row).empty()) continue;
    for (const bool is_signed : {false, true}) {
      std::vector<uint8_t> out(n + 64, 0xAA);
      gemm::Requantize r{};
      r.in = padded.data();
      r.storage = gemm::Storage::kF32;
      r.pixels = 1;
      r.out.data = out.data();
      r.out.storage = is_signed ? gemm::Storage::kI8 : gemm::Storage::kU8;
      r.out.channels = n;
      r.out.m = m.data();
      r.out.b = b.data();
      r.out.lo = is_signed ? -127.0f : 0.0f;
      r.out.hi = is_signed ? 127.0f : 255.0f;
      row.run(r);
      ++ran;
      for (size_t i = 0; i < n; ++i) {
        const int got = is_signed ? static_cast<int8_t>(out[i]) : out[i],
                  want = (is_signed ? signed_out : unsigned_out)[i];
        if (got != want) {
          std::printf("%s: %g -> %d, not %d\n", row.name.c_str(), static_cast<double>(in[i]), got, want);
          ++wrong;
        }
      }
      if (out[n] != 0xAA) std::printf("%s: writes behind its channels\n", row.name.c_str()), ++wrong;
    }
  }
  std::printf("%d runs, %d wrong\n", ran, wrong);
  return wrong || ran < 2;
}
