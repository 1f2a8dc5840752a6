#include "bound.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "error.h"

namespace bitpress {
namespace {

// Bytes of scratch memory of a thread. No network needs a hundredth; a small file that claims huge borders would.
constexpr size_t kMostScratch = size_t{1} << 30;
// Bytes of a chunk's planes. A longer list costs less for each of its elements, while rows find most of the planes in
// the first-level cache: all of 48 KiB, or more where a row takes few of them, or each has many (Xeon 6/167,
// 2026-11-29: 24, 48, 72, 96 KiB at 64x576x3136: w2a2 of 62 % 218, 207, 218, 220 us, of 20 % 121, 109, 108, 107, w2a4
// of 62 % 403, 367, 357, 360).
constexpr uint32_t kSliceElements = 48 << 10, kSliceFewer = 72 << 10;
constexpr double kFewDigits = 0.4;
constexpr size_t kSliceBand = 256 << 10;  // of input that becomes planes at once, which stay in the second

// The level that is stored for a sum or a level, docs/numerics.md 5.
float level_of(const Step& s, uint32_t row, float value) {
  const float t = value * s.m[row];
  return std::nearbyint(std::min(std::max(t + s.b[row], s.lo), s.hi));
}

}  // namespace

std::vector<uint8_t> codes_of(const Step& s, uint32_t row) {
  const size_t row_bytes = s.fields.size / s.rows;
  const uint32_t bits = static_cast<uint32_t>(s.weight.bits), per_byte = 8 / bits, mask = (1u << bits) - 1;
  std::vector<uint8_t> out(s.depth);
  const uint8_t* fields = s.fields.data + row * row_bytes;
  for (uint32_t k = 0; k < s.depth; ++k)
    out[k] = static_cast<uint8_t>(fields[k / per_byte] >> (k % per_byte * bits) & mask);
  return out;
}

uint32_t planes_of_slices(const Encoding& act) { return act.bits == 3 ? 4 : static_cast<uint32_t>(act.bits); }

uint32_t delay_at_hand(const int8_t* weights, uint32_t steps, uint32_t lanes, int32_t top, uint32_t delay) {
  const size_t halves = size_t{lanes} * 2;  // pairs of neighbours, each a lane of int16
  std::vector<int32_t> above(halves), below(halves);
  const auto holds = [&] {
    for (uint32_t from = 0; from < steps; from += delay) {
      std::fill(above.begin(), above.end(), 0);
      std::fill(below.begin(), below.end(), 0);
      for (uint32_t k = from; k < std::min(from + delay, steps); ++k)
        for (size_t i = 0; i < halves; ++i) {
          const int32_t u = weights[(k * halves + i) * 2], v = weights[(k * halves + i) * 2 + 1];
          above[i] += std::max(u, 0) + std::max(v, 0);
          below[i] -= std::min(u, 0) + std::min(v, 0);
        }
      const int32_t most =
          std::max(*std::max_element(above.begin(), above.end()), *std::max_element(below.begin(), below.end()));
      if (int64_t{most} * top > INT16_MAX) return false;
    }
    return true;
  };
  while (delay > 1 && !holds()) {
    const uint32_t rests = (steps + delay - 1) / delay + 1;
    delay = std::min(delay - 1, (steps + rests - 1) / rests);
  }
  return delay;
}

Bound::Bound(const Step& step, const Program& program, const Choice& choice)
    : step_(step), in_(program.buffers[step.data]), out_(program.buffers[step.output]) {
  if (step.residual != kNone) {
    residual_ = program.buffers[step.residual].storage;
    residual_elements_ = program.buffers[step.residual].elements();
  }
  const Problem problem = problem_of(step, program);
  const Choice::Verdict verdict = choice.find(problem);
  slices_.digits_of_weight = problem.digits;
  row_ = verdict.row;
  why_ = verdict.why;
  bind_epilogue(step, step.op == Op::kConv2d ? step.rows / step.groups : step.rows);
  if (step.op == Op::kConv2d) bind_convolution(step);
  if (step.op == Op::kDepthwiseConv2d) bind_depthwise(step);
  if (step.op == Op::kGather) bind_gather(step);
  if (step.op == Op::kRequantize) bind_rises(step);
  if (step.op == Op::kLookup) bind_lookup(step);
  if (step.op == Op::kSumPool2d || step.op == Op::kProduct) scratch_ = (step.rows + kSpareRows) * sizeof(int32_t);
  if (scratch_ > kMostScratch)
    throw Error(Code::kUnsupported, "step " + step.name + " needs " + std::to_string(scratch_) +
                                        " bytes of working memory for its borders and windows, at most " +
                                        std::to_string(kMostScratch) + " are given: make padding or kernel smaller");
  step_.fields = Bytes{};
  step_.m.clear();
  step_.b.clear();
}

void Bound::bind_epilogue(const Step& s, uint32_t per_group) {
  padded_rows_ = static_cast<uint32_t>(padded(per_group, gemm::kMaxLanes));
  const size_t groups = s.rows / per_group, size = groups * padded_rows_ + kSpareRows;
  bias_.assign(size, 0);
  m_.assign(size, 0);
  b_.assign(size, 0);
  if (!s.has_epilogue) return;
  float most_m = 0, most_b = 0;
  for (size_t r = 0; r < s.rows; ++r) {
    const size_t at = r / per_group * padded_rows_ + r % per_group;
    m_[at] = s.m[r];
    b_[at] = s.b[r];
    most_m = std::max(most_m, std::abs(s.m[r]));
    most_b = std::max(most_b, std::abs(s.b[r]));
  }
  if (!s.has_weights) return;
  constexpr double kMost = 1 << 30, kLevel = 256;  // what rounding adds to half of int32 is far from its end
  const double sum = kLevel * s.depth * magnitude(s.weight);
  small_ = sum * double{most_m} + double{most_b} + kLevel * std::abs(double{s.m_r}) <= kMost;
}

// Where the windows of a convolution lie. `channels_chosen`: the input's channels are not used in their order.
void Bound::plan_windows(bool channels_chosen) {
  const Step& s = step_;
  Windows& w = windows_;
  const bool padding = s.top | s.left | s.bottom | s.right;
  const bool pointwise = s.kernel_h == 1 && s.kernel_w == 1 && s.stride_h == 1 && s.stride_w == 1;
  const bool whole = s.kernel_h == in_.h && s.kernel_w == in_.w && s.dilation_h == 1 && s.dilation_w == 1;
  const bool depthwise = s.op == Op::kDepthwiseConv2d;
  w.channels = depthwise ? s.rows : static_cast<uint32_t>(in_.c) / s.groups;
  w.flat = !depthwise && s.groups == 1 && !padding && (pointwise || whole);
  w.copy = padding || w.zero || w.element != 1 || (s.groups > 1 && !depthwise) || channels_chosen;
  const uint32_t width = w.copy ? s.left + static_cast<uint32_t>(in_.w) + s.right : static_cast<uint32_t>(in_.w);
  const size_t pixel = size_t{w.channels} * w.element;
  w.row_bytes = width * pixel;
  if (w.flat) {
    w.taps = 1;
    w.valid = s.depth;
    w.offsets = {0};
  } else {
    const bool sliced = row_->sliced();
    const bool joined = !depthwise && s.dilation_w == 1 && !sliced;  // taps of a row of the kernel follow one another
    w.taps = joined || sliced ? s.kernel_h : s.kernel_h * s.kernel_w;
    w.valid = joined ? s.kernel_w * w.channels : w.channels;
    for (uint32_t t = 0; t < w.taps; ++t) {
      if (sliced) {
        w.offsets.push_back(t * s.dilation_h);
        continue;
      }
      const uint32_t ky = joined ? t : t / s.kernel_w, kx = joined ? 0 : t % s.kernel_w;
      w.offsets.push_back(static_cast<uint32_t>(ky * s.dilation_h * w.row_bytes + kx * s.dilation_w * pixel));
    }
  }
  w.run = w.valid;
}

// How much goes through scratch memory at once: what fits the first-level cache beside weights and sums; more, up to a
// share of the second, where many weights would otherwise be read again for each small band. Tiles would rather have
// few bands, each of which costs their set-up: ResNet-18 lost 4 % by small ones.
void Bound::plan_bands(size_t weight_bytes) {
  constexpr size_t kLeast = 24 << 10, kMost = 192 << 10;
  const Step& s = step_;
  Windows& w = windows_;
  size_t budget = std::clamp(weight_bytes, kLeast, kMost);
  if (row_->tiled()) budget = kMost;
  if (row_->sliced()) budget = kSliceBand;
  if (w.flat) {
    const size_t window = size_t{w.valid} * w.element;
    const size_t part = row_->sliced() ? row_->group : 14, most = row_->sliced() ? 8 * part : 448;
    w.band = static_cast<uint32_t>(std::clamp<size_t>(budget / window / part * part, part, most));
    w.band_bytes = w.band * window;
    w.scratch = w.copy ? w.band_bytes : 0;
    return;
  }
  const uint32_t reach = (s.kernel_h - 1) * s.dilation_h + 1;
  const size_t rows = std::max<size_t>(budget / w.row_bytes, 1);
  const size_t most = rows > reach ? (rows - reach) / s.stride_h + 1 : 1;
  const uint32_t bands = static_cast<uint32_t>((out_.h + most - 1) / most);
  w.band = static_cast<uint32_t>((out_.h + bands - 1) / bands);
  if (row_->winograd()) w.band = static_cast<uint32_t>(padded(w.band, 2));
  w.band_bytes = ((w.band - 1) * size_t{s.stride_h} + reach) * w.row_bytes;
  w.scratch = w.copy ? w.band_bytes : 0;
}

void Bound::bind_convolution(const Step& s) {
  if (row_->sliced()) return bind_slices(s);
  if (row_->packed()) return bind_fields(s);
  if (row_->winograd()) return bind_winograd(s);
  const bool bits = row_->bitserial(), lut = row_->lut(), wide = row_->group < 4 && !lut;
  Windows& w = windows_;
  w.element = wide ? 2 : 1;
  w.zero = static_cast<uint8_t>(bits || wide ? 0 : zero_byte(in_.storage));
  plan_windows(false);
  if (!bits && !lut) w.run = static_cast<uint32_t>(padded(w.valid, row_->group));
  const uint32_t lanes = row_->lanes, per_group = s.rows / s.groups;
  blocks_ = (per_group + lanes - 1) / lanes;
  const size_t depth = size_t{w.taps} * (lut ? (w.valid + row_->group - 1) / row_->group : w.run);
  words_ = (s.depth + 31) / 32;
  block_bytes_ = bits ? size_t{4} * static_cast<size_t>(s.weight.bits) * words_ * lanes : depth * lanes * w.element;
  group_bytes_ = block_bytes_ * blocks_;
  weights_ = Memory(group_bytes_ * s.groups);

  const bool apart = w.taps == 1 && (w.flat || size_t{s.stride_w} * w.channels >= w.valid);
  const Split split = lut            ? split_for_lut(s.weight, row_->group == 2 || (w.valid % 3 != 0 && !apart))
                      : bits || wide ? Split{0, bits ? s.weight.offset : 0, 0}
                                     : split_weight(s.weight);
  shift_ = split.shift;
  factor_ = split.factor;
  for (int p = 0; bits && p < s.weight.bits; ++p)
    for (int q = 0; q < in_.storage.bits; ++q)
      coeffs_.push_back(s.weight.coeffs[static_cast<size_t>(p)] * in_.storage.coeffs[static_cast<size_t>(q)]);

  if (lut) bind_lut(s, split);

  const uint32_t group_size = row_->tiled() ? 4 : row_->group;  // a power of two here
  int32_t spelled[256] = {};                                    // what stands for a code
  for (uint32_t code = 0; code < 1u << s.weight.bits; ++code)
    spelled[code] = (s.weight.level(code) - split.factor) >> split.shift;  // exact: what is left is even
  for (uint32_t row = 0; row < s.rows && !lut; ++row) {
    const std::vector<uint8_t> codes = codes_of(s, row);
    const uint32_t group = row / per_group, lane = row % per_group % lanes;
    uint8_t* block = weights_.data() + group * group_bytes_ + row % per_group / lanes * block_bytes_;
    if (bits) {
      auto* planes = reinterpret_cast<uint32_t*>(block);
      for (uint32_t k = 0; k < s.depth; ++k)
        for (uint32_t p = 0; p < static_cast<uint32_t>(s.weight.bits); ++p)
          planes[(p * size_t{words_} + k / 32) * lanes + lane] |= (codes[k] >> p & 1u) << (k % 32);
      continue;
    }
    int64_t sum = 0;
    for (uint32_t k = 0, t = 0; t < w.taps; ++t) {
      for (uint32_t i = 0; i < w.valid; ++i, ++k) {
        const size_t at = size_t{t} * w.run + i, in_group = at & (group_size - 1);
        const size_t place =
            group_size == 1 ? lane * depth + at : (at - in_group) * lanes + lane * group_size + in_group;
        const int32_t v = spelled[codes[k]];
        sum += v;
        if (wide)
          reinterpret_cast<int16_t*>(block)[place] = static_cast<int16_t>(v);
        else
          reinterpret_cast<int8_t*>(block)[place] = static_cast<int8_t>(v);
      }
    }
    const int64_t less = row_->flips() ? 128 : 0, scaled = sum * (1 << split.shift);
    const int64_t bias = -int64_t{w.zero} * (scaled + int64_t{split.factor} * s.depth) + less * scaled;
    bias_[group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
  }
  if (row_->delayed()) {
    const uint32_t steps = static_cast<uint32_t>(depth / group_size);
    delay_ = steps;
    for (size_t at = 0; at < weights_.size() && block_bytes_; at += block_bytes_)
      delay_ = delay_at_hand(reinterpret_cast<const int8_t*>(weights_.data() + at), steps, lanes,
                             in_.storage.hi() + w.zero, delay_);
  }
  plan_bands(weights_.size());
  // Behind the band: windows and planes of a strip of pixels.
  scratch_ = padded(w.scratch + gemm::kSlack, 64);
  if (lut) scratch_ += 2 * (w.band_bytes + 64);
  if (bits)
    scratch_ += gemm::kStrip *
                (padded(s.depth, 64) + 64 + size_t{4} * static_cast<size_t>(in_.storage.bits) * padded(words_, 2));
}

// The tables of the layer's weights, and codes of groups: element i of each part of a run, rows of a block in lanes.
void Bound::bind_lut(const Step& s, const Split& split) {
  const Windows& w = windows_;
  int32_t v[4] = {};  // of a code; the codes of missing elements and rows stand for 0
  uint8_t none = 2;
  int32_t lo = 0, hi = 0;
  for (uint32_t code = 0; code < 1u << s.weight.bits; ++code) {
    v[code] = (s.weight.level(code) - split.factor) >> split.shift;
    if (v[code] == 0) none = static_cast<uint8_t>(code);
    lo = std::min(lo, v[code]);
    hi = std::max(hi, v[code]);
  }
  constexpr int32_t kTop = 3;  // largest byte of an activation
  const uint32_t each = row_->group, bits = 2 * each, size = 1u << bits;
  const int32_t most = static_cast<int32_t>(each) * kTop, constant = -most * lo;
  delay_ = static_cast<uint32_t>(255 / (most * (hi - lo))) / 4 * 4;  // what tiles take at once
  tables_ = Memory(size_t{size} * size);
  for (uint32_t a = 0; a < size; ++a)
    for (uint32_t k = 0; k < size; ++k) {
      int32_t sum = constant;
      for (uint32_t i = 0; i < bits; i += 2) sum += static_cast<int32_t>(a >> i & 3) * v[k >> i & 3];
      tables_.data()[size * a + k] = static_cast<uint8_t>(sum);
    }

  const uint32_t lanes = row_->lanes, half = lanes / 2, per_group = s.rows / s.groups,
                 part = (w.valid + each - 1) / each;
  std::memset(weights_.data(), none * (each == 2 ? 5 : 21), weights_.size());
  for (uint32_t row = 0; row < s.rows; ++row) {
    const std::vector<uint8_t> codes = codes_of(s, row);
    const uint32_t group = row / per_group, channel = row % per_group % lanes;
    const uint32_t lane = channel < half ? 2 * channel : 2 * (channel - half) + 1;
    uint8_t* block = weights_.data() + group * group_bytes_ + row % per_group / lanes * block_bytes_;
    int64_t sum = 0;
    for (uint32_t k = 0; k < s.depth; ++k) {
      const uint32_t at = k % w.valid, shift = 2 * (at / part);
      uint8_t& code = block[(size_t{k / w.valid} * part + at % part) * lanes + lane];
      code = static_cast<uint8_t>((code & ~(3u << shift)) | static_cast<uint32_t>(codes[k]) << shift);
      sum += v[codes[k]];
    }
    const int64_t looks = int64_t{w.taps} * part;
    const int64_t bias = -int64_t{w.zero} * (sum * (1 << split.shift) + int64_t{split.factor} * s.depth) -
                         looks * constant * (1 << split.shift);
    bias_[group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
  }
}

// Fields of rows in blocks, chunk by chunk; see csrc/gemm/gemv.inl.
void Bound::bind_fields(const Step& s) {
  Windows& w = windows_;
  w.zero = static_cast<uint8_t>(zero_byte(in_.storage));
  plan_windows(false);
  const uint32_t lanes = row_->lanes, per_group = s.rows / s.groups, bits = static_cast<uint32_t>(s.weight.bits);
  const size_t vector = size_t{lanes} * 4, step = vector * 8 / bits, chunks = (s.depth + step - 1) / step;
  const size_t row_bytes = chunks * vector;
  blocks_ = (per_group + lanes - 1) / lanes;
  block_bytes_ = row_bytes * lanes;
  group_bytes_ = block_bytes_ * blocks_;
  weights_ = Memory(group_bytes_ * s.groups);
  const Split split = split_for_fields(s.weight);
  shift_ = split.shift;
  factor_ = split.factor;
  for (uint32_t row = 0; row < s.rows; ++row) {
    const std::vector<uint8_t> codes = codes_of(s, row);
    uint8_t* to = weights_.data() + row / per_group * group_bytes_ + row % per_group * row_bytes;
    int64_t sum = 0;
    for (size_t k = 0; k < s.depth; ++k) {
      const int32_t v = (s.weight.level(codes[k]) - split.factor) >> split.shift;
      const size_t in_step = k % step;
      to[k / step * vector + in_step % vector] |=
          static_cast<uint8_t>(static_cast<uint32_t>(v) << (in_step / vector * bits));
      sum += v;
    }
    const int64_t bias = -int64_t{w.zero} * (sum * (1 << split.shift) + int64_t{split.factor} * s.depth);
    bias_[row / per_group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
  }
  plan_bands(weights_.size());
  scratch_ = padded(w.scratch + gemm::kSlack, 64) + gemm::kGemvPixels * row_bytes * 8 / bits;
}

// Lists of what each weight's digits add or take away, chunk by chunk.
// How rows lie in vectors, and elements in chunks. Windows one pixel apart are cut into planes once and moved, borders
// coming of themselves; others once for each column of the kernel.
void Bound::plan_slices(const Step& s) {
  Windows& w = windows_;
  Slices& z = slices_;
  w.zero = static_cast<uint8_t>(zero_byte(in_.storage));
  plan_windows(false);
  constexpr uint64_t kWord = 64, kMostPixels = 512;  // of a row that is moved; of a vector
  const uint64_t widest = std::max(in_.w, out_.w);
  z.columns = w.flat ? 1 : s.kernel_w;
  z.shifted = z.columns > 1 && s.stride_w == 1 && w.zero == 0 && widest <= kWord;
  if (z.shifted) {
    w.copy = false;
    w.row_bytes = in_.w * in_.c;
    for (z.pitch = 2; 8 * z.pitch < widest;) z.pitch *= 2;
  } else {
    z.pitch = static_cast<uint32_t>((std::min<uint64_t>(w.flat ? out_.h * out_.w : out_.w, kMostPixels) + 7) / 8);
  }
  plan_bands(0);
  // Vectors of half the size where twice as many would not be needed: they take more than half the time.
  const uint32_t full = row_->group / 8;
  const auto needed = [&](uint32_t bytes) {
    return w.flat || z.pitch >= bytes ? (z.pitch + bytes - 1) / bytes
                                      : (w.band + bytes / z.pitch - 1) / (bytes / z.pitch);
  };
  const bool half = full == 64 && needed(full / 2) < 1.6 * needed(full);
  const uint32_t vector = z.vector = half ? full / 2 : full;
  const uint32_t bits = planes_of_slices(in_.storage), plain = bits * vector;
  z.pitch = w.flat ? vector : std::min(z.pitch, vector);
  const uint32_t height = w.flat ? 1 : s.kernel_h, reach = w.offsets.back() + 1, stride = w.flat ? 1 : s.stride_h;
  constexpr size_t kMostPlaces = UINT16_MAX;  // of a list
  const auto places = [&](uint32_t columns) { return (2 + size_t{columns}) * z.vectors * plain / gemm::kSlicePlace; };
  const auto stand = [&] {
    const uint32_t rows = vector / z.pitch;
    z.tall = w.flat ? 1 : (w.band + rows - 1) / rows;
    z.vectors = (z.tall - 1) * stride + reach;
  };
  for (stand(); places(1) > kMostPlaces && w.band > 1; stand()) w.band = (w.band + 1) / 2;
  const uint32_t all = w.valid * z.columns;
  const uint32_t bytes = bits == 4 || z.digits_of_weight < kFewDigits ? kSliceFewer : kSliceElements;
  z.chunk = std::max(bytes / (height * plain), 1u);
  while (places(z.chunk) > kMostPlaces && z.chunk > 1) z.chunk /= 2;  // one fits, or the row would not: kMostReach
  if (z.chunk > z.columns) z.chunk = z.chunk / z.columns * z.columns;
  z.chunks = (all + z.chunk - 1) / z.chunk;
  if (z.chunk > z.columns) z.chunk = static_cast<uint32_t>(padded((all + z.chunks - 1) / z.chunks, z.columns));
  z.chunks = (all + z.chunk - 1) / z.chunk;
  // Whatever the band: a row of pixels more than windows reach down.
  z.line = padded(vector + ((reach - 1) / stride + 1) * z.pitch, vector);
  scratch_ = padded(w.scratch + gemm::kSlack, 64) + gemm::kSliceChannels * bits * z.line * z.tall * stride +
             z.chunks * (2 + size_t{z.chunk}) * z.vectors * plain;
}

void Bound::bind_slices(const Step& s) {
  plan_slices(s);
  const Windows& w = windows_;
  Slices& z = slices_;
  const uint32_t per_group = s.rows / s.groups, bits = planes_of_slices(in_.storage);
  const uint32_t vector = z.vector, height = w.flat ? 1 : s.kernel_h;
  blocks_ = (per_group + row_->lanes - 1) / row_->lanes;

  const Split split = split_for_slices(s.weight);
  z.odd = split.shift == 1;
  std::array<int8_t, 9> digits[16] = {};
  for (uint32_t code = 0; code < 1u << s.weight.bits; ++code) {
    digits[code] = signed_digits((s.weight.level(code) - split.factor) >> split.shift);
    for (uint32_t d = 0; d < digits[code].size(); ++d)
      if (digits[code][d]) z.digits = std::max(z.digits, d + 1);
  }

  const int64_t top = (1 << bits) - 1;  // of a byte
  const uint32_t least = gemm::kSliceCarry[bits];
  const auto planes_of = [](int64_t sum) {  // sums are exact modulo 2^32
    uint32_t out = 0;
    for (; sum && out < 32; sum >>= 1) ++out;
    return out;
  };
  int64_t most = 0;  // largest sum
  std::vector<std::vector<uint8_t>> codes;
  for (uint32_t row = 0; row < s.rows; ++row) {
    codes.push_back(codes_of(s, row));
    int64_t bias = 0, reach = 0;
    for (const uint8_t code : codes.back()) {
      bias -= w.zero * int64_t{s.weight.level(code)};
      for (uint32_t d = 0; d < z.digits; ++d) {
        bias -= digits[code][d] < 0 ? top << (d + split.shift) : 0;
        reach += digits[code][d] ? top << d : 0;
      }
    }
    bias_[row / per_group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
    most = std::max(most, z.odd ? 2 * reach + top * s.depth : reach);
  }
  z.levels = std::max(planes_of(most + 1), least + z.digits - 1 + (z.odd ? 1 : 0));

  const uint32_t place = bits * vector / gemm::kSlicePlace;
  const auto nothing = [&](int less) { return static_cast<uint16_t>(less ? z.vectors * place : 0); };
  std::vector<uint16_t> lists;
  size_t waiting = 0;  // carries of the longest list's blocks
  // Whole blocks first; what is left fills a block, or half of one, with what is nothing.
  const auto write_list = [&](std::vector<uint16_t>(&found)[2], uint32_t above) {
    constexpr size_t kBlock = gemm::kSliceBlock, kHalf = kBlock / 2;
    size_t blocks[2], halves[2];
    for (const int less : {0, 1}) {
      const size_t rest = found[less].size() % kBlock;
      halves[less] = rest > 0 && rest <= kHalf ? 1 : 0;
      blocks[less] = found[less].size() / kBlock + (rest > kHalf ? 1 : 0);
      found[less].resize(blocks[less] * kBlock + halves[less] * kHalf, nothing(less));
    }
    waiting = std::max(waiting, blocks[0] + blocks[1] + halves[0] + halves[1]);
    for (const size_t count : {blocks[0], blocks[1], halves[0], halves[1], size_t{above}})
      lists.push_back(static_cast<uint16_t>(count));
    for (const int less : {0, 1})
      lists.insert(lists.end(), found[less].begin(), found[less].end() - static_cast<ptrdiff_t>(halves[less] * kHalf));
    for (const int less : {0, 1})
      lists.insert(lists.end(), found[less].end() - static_cast<ptrdiff_t>(halves[less] * kHalf), found[less].end());
  };
  for (uint32_t group = 0; group < s.groups; ++group) {
    std::vector<int64_t> reach(per_group + 1, 0);  // of a row's counters so far
    for (uint32_t chunk = 0; chunk < z.chunks; ++chunk) {
      const uint32_t begin = chunk * z.chunk, end = std::min(begin + z.chunk, w.valid * z.columns);
      for (uint32_t row = 0; row <= per_group; ++row) {
        if (row % row_->lanes == 0 || row == per_group) z.starts.push_back(static_cast<uint32_t>(lists.size()));
        const uint32_t count = row == per_group ? 1 : z.digits;  // behind the last: every element
        std::vector<uint16_t> found[9][2];                       // [digit][to be taken away]
        for (uint32_t i = begin; i < end; ++i)
          for (uint32_t y = 0; y < height; ++y) {
            const uint32_t k = (y * z.columns + i % z.columns) * w.valid + i / z.columns;
            const auto at = static_cast<uint16_t>(((2 + i - begin) * z.vectors + w.offsets[y]) * place);
            for (uint32_t d = 0; d < count; ++d) {
              const int digit = row == per_group ? 1 : digits[codes[group * per_group + row][k]][d];
              if (digit) found[d][digit < 0].push_back(at);
            }
          }
        for (uint32_t d = 0; d < count; ++d)
          reach[row] += static_cast<int64_t>(found[d][0].size() + found[d][1].size()) * top << d;
        for (uint32_t d = 0; d < count; ++d) write_list(found[d], std::max(planes_of(reach[row] >> d), least) - least);
      }
    }
  }
  weights_ = Memory(lists.size() * sizeof(uint16_t));
  std::memcpy(weights_.data(), lists.data(), weights_.size());
  bind_thresholds(s, most);
  scratch_ += ((size_t{gemm::kSliceChannels} + 1) * z.levels + waiting + gemm::kSliceTogether - 1) * vector;
}

void Bound::link(Bound& from, Bound& to) {
  if (!from.row_->sliced() || !to.row_->sliced()) return;
  Slices &a = from.slices_, &b = to.slices_;
  const Step& s = to.step_;
  const bool whole = from.windows_.band == from.out_.h && to.windows_.band == to.out_.h && from.step_.groups == 1 &&
                     s.groups == 1 && !from.windows_.flat;
  const bool alike = a.vector == b.vector && a.pitch == b.pitch && a.tall == b.tall &&
                     a.stored_bits == planes_of_slices(to.in_.storage) && from.step_.lo == 0;
  const bool near = b.shifted && s.stride_h == 1 && s.top <= to.windows_.offsets.back();
  if (!whole || !alike || !near || to.in_.c * a.stored_bits * a.tall * b.line > to.in_.bytes) return;
  a.next_line = b.line;
  a.next_top = s.top;
  b.linked = true;
  from.why_ += "; leaves bit planes";
  to.why_ += "; reads bit planes";
}

// Where the stored level steps, found in the law itself; none where a residual comes in, or the levels are many.
void Bound::bind_thresholds(const Step& s, int64_t most) {
  constexpr int64_t kMostSum = int64_t{1} << 30;
  if (!few_levels(s, out_.storage) || most >= kMostSum) return;
  Slices& z = slices_;
  const uint32_t steps = static_cast<uint32_t>(s.hi - s.lo), per_group = s.rows / s.groups;
  for (z.stored_bits = 1; (1u << z.stored_bits) <= steps;) ++z.stored_bits;
  const uint32_t count = (1u << z.stored_bits) - 1;
  for (uint32_t row = 0; row < s.rows; ++row) {
    const int32_t bias = bias_[row / per_group * size_t{padded_rows_} + row % per_group];
    const bool falling = s.m[row] < 0;
    const auto level = [&](int64_t sum) {  // above `lo`
      return level_of(s, row, static_cast<float>(static_cast<int32_t>(sum + bias))) - s.lo;
    };
    z.falling.push_back(falling ? ~0u : 0);
    for (uint32_t j = 1; j <= count; ++j) {
      // Least sum that makes j levels, or, falling, one below.
      const auto reached = [&](int64_t sum) {
        return falling ? level(sum) <= static_cast<float>(count) - static_cast<float>(j)
                       : level(sum) >= static_cast<float>(j);
      };
      int64_t low = 0, high = most + 1;  // which no sum is
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (reached(middle))
          high = middle;
        else
          low = middle + 1;
      }
      for (uint32_t i = 0; i < z.levels; ++i) z.thresholds.push_back(high >> i & 1 ? ~0u : 0);
    }
  }
}

void Bound::bind_depthwise(const Step& s) {
  plan_windows(!s.out_channels.empty());
  Windows& w = windows_;
  // Of unsigned bytes levels in their order, without a residual, that cannot leave int32 before they are bounded.
  w.image = row_->woven() && slides() && !in_.storage.is_signed() && small_ && !out_.storage.is_float() &&
            s.residual == kNone && s.out_channels.empty() && s.rows > 16;
  if (w.image) {
    w.copy = false;
    w.row_bytes = in_.w * in_.c;
  }
  const size_t rows = padded(s.rows, gemm::kMaxLanes);
  const uint32_t each = row_->group, lines = (s.kernel_h + each - 1) / each, bits = each == 4 ? 8 : 16;
  const int32_t less = each == 4 && in_.storage.is_signed() ? 128 : 0;
  weights_ = Memory(size_t{lines} * s.kernel_w * rows * sizeof(int32_t));
  auto* weights = reinterpret_cast<int32_t*>(weights_.data());
  for (uint32_t row = 0; row < s.rows; ++row) {
    const std::vector<uint8_t> codes = codes_of(s, row);
    for (uint32_t k = 0; k < s.depth; ++k) {
      const uint32_t y = k / s.kernel_w, x = k % s.kernel_w;
      const int32_t level = s.weight.level(codes[k]);
      const uint32_t field = static_cast<uint32_t>(level) & ((1u << bits) - 1);
      weights[(y / each * s.kernel_w + x) * rows + row] |= static_cast<int32_t>(field << (y % each * bits));
      bias_[row] -= less * level;
    }
  }
  plan_bands(0);
  if (w.image) w.band = static_cast<uint32_t>(out_.h);
  scratch_ = w.scratch;
}

bool Bound::slides() const {
  const Step& s = step_;
  return s.kernel_h == 3 && s.kernel_w == 3 && s.dilation_w == 1 && s.stride_w <= 2;
}

// Codes are the lowest bits of bytes.
void Bound::bind_lookup(const Step& s) {
  const bool floats = out_.storage.is_float();
  tables_ = Memory(256 * (floats ? sizeof(float) : 1));
  for (size_t byte = 0; byte < 256; ++byte) {
    const float entry = s.table[byte & (s.table.size() - 1)];
    if (floats)
      reinterpret_cast<float*>(tables_.data())[byte] = entry;
    else
      tables_.data()[byte] = static_cast<uint8_t>(static_cast<int32_t>(entry));
  }
}

void Bound::bind_gather(const Step& s) {
  for (uint32_t r = 0; r < s.rows; ++r) {
    const int32_t from = s.channels[r], to = s.out_channels.empty() ? static_cast<int32_t>(r) : s.out_channels[r];
    if (!runs_.empty()) {
      gemm::GatherRun& last = runs_.back();
      const bool follows = last.from < 0 ? from < 0 : from == last.from + last.count;
      if (follows && to == last.to + last.count) {
        ++last.count;
        continue;
      }
    }
    runs_.push_back({from, to, 1});
  }
}

// Where the level of a byte rises, found in the law itself; nothing where channels differ, levels fall or are many.
void Bound::bind_rises(const Step& s) {
  if (in_.storage.is_float() || !few_levels(s, out_.storage)) return;
  const auto all_as_first = [](const std::vector<float>& v) {
    return std::all_of(v.begin(), v.end(), [&](float x) { return x == v.front(); });
  };
  if (!(s.m.front() >= 0) || !all_as_first(s.m) || !all_as_first(s.b)) return;
  const auto level = [&](int byte) { return static_cast<int>(level_of(s, 0, static_cast<float>(byte))); };
  const int first = in_.storage.is_signed() ? -128 : 0;
  base_ = static_cast<uint8_t>(level(first));
  for (int byte = first + 1, now = level(first); byte < first + 256; ++byte)
    for (; now < level(byte); ++now) rises_.push_back(static_cast<int8_t>(byte - 1 - first - 128));
  constexpr size_t kFew = 4;  // rises, which are counted as fast
  if (rises_.size() > kFew && s.m.front() < 1) find_scale(s.m.front());
}

// gemm::Requantize::scale and what is added, if there are some under which every byte becomes the level that its rises
// say; none where thresholds lie unevenly.
void Bound::find_scale(float m) {
  int wanted[256] = {};  // rises below
  for (int byte = 0; byte < 256; ++byte)
    for (const int8_t rise : rises_) wanted[byte] += byte - 128 > rise;
  const int most = static_cast<int>(rises_.size()), middle = static_cast<int>(m * 65536);
  for (int scale = std::max(middle - 8, 1); scale <= std::min(middle + 8, 65535); ++scale) {
    int least = -65535, largest = 65535;  // of what is added
    for (int byte = 0; byte < 256; ++byte) {
      const int begin = 256 * wanted[byte] - byte * scale / 256;  // 256 * byte would leave int with it
      if (wanted[byte] > 0) least = std::max(least, begin);
      if (wanted[byte] < most) largest = std::min(largest, begin + 255);
    }
    if (least > largest) continue;
    const int added = std::clamp(0, least, largest);
    scale_ = static_cast<uint16_t>(scale);
    up_ = static_cast<uint16_t>(std::max(added, 0));
    down_ = static_cast<uint16_t>(std::max(-added, 0));
    return;
  }
}

}  // namespace bitpress
