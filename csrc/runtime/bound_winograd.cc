// Weights of Winograd's tiles, and the constants that keep them exact: csrc/gemm/winograd.inl.
#include <algorithm>
#include <array>
#include <vector>

#include "bound.h"

namespace bitpress {
namespace {

constexpr size_t kPlaces = 16, kPixels = 4;
constexpr size_t kStrip = 48 << 10;  // bytes of transformed levels and products at once

// G g G' of the nine weights of one row and channel.
std::array<int32_t, kPlaces> transformed(const std::array<int32_t, 9>& g) {
  const auto column = [](int32_t a, int32_t b, int32_t c) {
    return std::array<int32_t, 4>{2 * a, a + b + c, a - b + c, 2 * c};
  };
  std::array<int32_t, kPlaces> out{};
  std::array<std::array<int32_t, 4>, 3> half;
  for (size_t x = 0; x < 3; ++x) half[x] = column(g[x], g[3 + x], g[6 + x]);
  for (size_t i = 0; i < 4; ++i) {
    const auto row = column(half[0][i], half[1][i], half[2][i]);
    std::copy(row.begin(), row.end(), out.begin() + 4 * i);
  }
  return out;
}

}  // namespace

void Bound::bind_winograd(const Step& s) {
  Windows& w = windows_;
  WinogradTiles& t = winograd_;
  w.zero = static_cast<uint8_t>(zero_byte(in_.storage));
  plan_windows(false);
  const bool bytes = row_->group == 4;
  const uint32_t lanes = row_->lanes, each = row_->group, per_group = s.rows / s.groups, channels = w.channels;
  const size_t element = bytes ? 1 : 2;
  t.run = static_cast<uint32_t>(padded(channels, each));
  blocks_ = (per_group + lanes - 1) / lanes;
  const size_t place_bytes = t.run * lanes * element;
  block_bytes_ = kPlaces * place_bytes;
  group_bytes_ = block_bytes_ * blocks_;
  weights_ = Memory(group_bytes_ * s.groups);
  const int32_t top = 4 * (in_.storage.hi() + w.zero);  // of a lifted byte
  if (bytes) t.lift = static_cast<uint8_t>(top / 2);

  // What stands at each place of a block; false where it leaves a byte, which split_for_winograd never does.
  Split split{0, 0, 0};
  t.bias.assign(size_t{s.groups} * kPixels * padded_rows_ + kSpareRows, 0);
  const auto lay_out = [&] {
    int32_t spelled[256] = {};  // what stands for a code
    for (uint32_t code = 0; code < 1u << s.weight.bits; ++code)
      spelled[code] = (s.weight.level(code) - split.factor) >> split.shift;
    for (uint32_t row = 0; row < s.rows; ++row) {
      const std::vector<uint8_t> codes = codes_of(s, row);
      const uint32_t group = row / per_group, lane = row % per_group % lanes;
      uint8_t* block = weights_.data() + group * group_bytes_ + row % per_group / lanes * block_bytes_;
      std::array<int64_t, kPlaces> sums{};
      int64_t sum = 0;
      for (uint32_t k = 0; k < channels; ++k) {
        std::array<int32_t, 9> g;
        for (size_t tap = 0; tap < g.size(); ++tap) sum += g[tap] = spelled[codes[tap * channels + k]];
        const std::array<int32_t, kPlaces> u = transformed(g);
        const size_t place = (k - k % each) * size_t{lanes} + size_t{lane} * each + k % each;
        for (size_t p = 0; p < kPlaces; ++p) {
          if (bytes && (u[p] < INT8_MIN || u[p] > INT8_MAX)) return false;
          sums[p] += u[p];
          if (bytes)
            reinterpret_cast<int8_t*>(block + p * place_bytes)[place] = static_cast<int8_t>(u[p]);
          else
            reinterpret_cast<int16_t*>(block + p * place_bytes)[place] = static_cast<int16_t>(u[p]);
        }
      }
      const int64_t bias = -int64_t{w.zero} * (sum * (1 << split.shift) + int64_t{split.factor} * s.depth);
      bias_[group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
      constexpr int32_t kA[2][kPlaces / 4] = {{1, 1, 1, 0}, {0, 1, -1, -1}};
      for (size_t pixel = 0; pixel < kPixels; ++pixel) {
        int64_t lifted = 0;
        for (size_t p = 0; p < kPlaces; ++p)
          if (p != 5) lifted += int64_t{kA[pixel / 2][p / 4]} * kA[pixel % 2][p % 4] * t.lift * sums[p];
        t.bias[(group * kPixels + pixel) * padded_rows_ + row % per_group] =
            static_cast<int32_t>(static_cast<uint32_t>(-lifted));
      }
    }
    return true;
  };
  if (!lay_out()) {
    split = split_for_winograd(s.weight);
    lay_out();
  }
  shift_ = split.shift;
  factor_ = split.factor;
  delay_ = t.run / each;
  for (size_t at = 0; bytes && at < weights_.size(); at += place_bytes)
    delay_ = delay_at_hand(reinterpret_cast<const int8_t*>(weights_.data() + at), t.run / each, lanes, top, delay_);

  plan_bands(weights_.size());
  const size_t pitch = t.run * element, sums = gemm::kWinogradBlocks * lanes * sizeof(int32_t);
  const uint32_t several = lanes == 8 ? 30 : 28;  // what rows of vectors of that width multiply at once: 5, 6; 14
  t.strip = static_cast<uint32_t>(padded(std::clamp<size_t>(kStrip / (kPlaces * (pitch + sums)), 1, 256), several));
  scratch_ = padded(w.scratch + gemm::kSlack, 64) + kPlaces * (t.strip * pitch + 2 * gemm::kSlack) +
             (kPlaces + kPixels) * t.strip * sums + kPlaces * gemm::kSlack + 2 * t.strip * sizeof(int32_t) +
             gemm::kSlack;
}

}  // namespace bitpress
