#include "bound.h"

#include <algorithm>
#include <cstring>
#include <new>

namespace bitpress {
namespace {

using gemm::Storage;

constexpr size_t kSpareRows = 16;  // constants behind the last row that a vector may read

size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

Storage storage_of(const Encoding& e) {
  return e.is_float() ? Storage::kF32 : e.is_signed() ? Storage::kI8 : Storage::kU8;
}

size_t element_of(const Buffer& b) { return b.storage.is_float() ? 4 : 1; }

// Codes of one row of packed fields.
std::vector<uint8_t> codes_of(const Step& s, uint32_t row) {
  const size_t row_bytes = s.fields.size / s.rows;
  const uint32_t bits = static_cast<uint32_t>(s.weight.bits), per_byte = 8 / bits, mask = (1u << bits) - 1;
  std::vector<uint8_t> out(s.depth);
  const uint8_t* fields = s.fields.data + row * row_bytes;
  for (uint32_t k = 0; k < s.depth; ++k)
    out[k] = static_cast<uint8_t>(fields[k / per_byte] >> (k % per_byte * bits) & mask);
  return out;
}

}  // namespace

Memory::Memory(size_t size) : size_(size) {
  const size_t bytes = padded(size + gemm::kSlack, 64);
  data_.reset(static_cast<uint8_t*>(std::aligned_alloc(64, bytes)));
  if (!data_) throw std::bad_alloc();
  std::memset(data_.get(), 0, bytes);
}

Bound::Bound(const Step& step, const Program& program, const Choice& choice)
    : step_(step), in_(program.buffers[step.data]), out_(program.buffers[step.output]) {
  if (step.residual != kNone) residual_ = program.buffers[step.residual].storage;
  const Choice::Verdict verdict = choice.find(problem_of(step, program));
  row_ = verdict.row;
  why_ = verdict.why;
  bind_epilogue(step, step.op == Op::kConv2d ? step.rows / step.groups : step.rows);
  if (step.op == Op::kConv2d) bind_convolution(step);
  if (step.op == Op::kDepthwiseConv2d) bind_depthwise(step);
  if (step.op == Op::kGather) bind_gather(step);
  if (step.op == Op::kSumPool2d) scratch_ = (step.rows + kSpareRows) * sizeof(int32_t);
  step_.fields = Bytes{};
  step_.code_sums.clear();
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
  for (size_t r = 0; r < s.rows; ++r) {
    const size_t at = r / per_group * padded_rows_ + r % per_group;
    m_[at] = s.m[r];
    b_[at] = s.b[r];
  }
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
    const bool joined = !depthwise && s.dilation_w == 1;  // the taps of a row of the kernel follow one another
    w.taps = joined ? s.kernel_h : s.kernel_h * s.kernel_w;
    w.valid = joined ? s.kernel_w * w.channels : w.channels;
    for (uint32_t t = 0; t < w.taps; ++t) {
      const uint32_t ky = joined ? t : t / s.kernel_w, kx = joined ? 0 : t % s.kernel_w;
      w.offsets.push_back(static_cast<uint32_t>(ky * s.dilation_h * w.row_bytes + kx * s.dilation_w * pixel));
    }
  }
  w.run = w.valid;
}

// How much goes through scratch memory at once: what fits the first-level cache beside weights and sums; more, up to a
// share of the second, where many weights would otherwise be read again for each small band.
void Bound::plan_bands(size_t weight_bytes) {
  const Step& s = step_;
  Windows& w = windows_;
  const size_t budget = std::max<size_t>(24 << 10, std::min<size_t>(weight_bytes, 192 << 10));
  if (w.flat) {
    const size_t window = size_t{w.valid} * w.element;
    w.band = static_cast<uint32_t>(std::clamp<size_t>(budget / window / 14 * 14, 14, 448));
    w.scratch = w.copy ? w.band * window : 0;
    return;
  }
  const uint32_t reach = (s.kernel_h - 1) * s.dilation_h + 1;
  const size_t rows = std::max<size_t>(budget / w.row_bytes, 1);
  const size_t most = rows > reach ? (rows - reach) / s.stride_h + 1 : 1;
  const uint32_t bands = static_cast<uint32_t>((out_.h + most - 1) / most);
  w.band = static_cast<uint32_t>((out_.h + bands - 1) / bands);
  w.scratch = w.copy ? ((w.band - 1) * size_t{s.stride_h} + reach) * w.row_bytes : 0;
}

void Bound::bind_convolution(const Step& s) {
  const bool bits = row_->bitserial(), wide = row_->group < 4;
  Windows& w = windows_;
  w.element = wide ? 2 : 1;
  w.zero = static_cast<uint8_t>(bits || wide ? 0 : zero_byte(in_.storage));
  plan_windows(false);
  if (!bits) w.run = static_cast<uint32_t>(padded(w.valid, row_->group));
  const uint32_t lanes = row_->lanes, per_group = s.rows / s.groups;
  blocks_ = (per_group + lanes - 1) / lanes;
  const size_t depth = size_t{w.taps} * w.run;
  words_ = (s.depth + 31) / 32;
  block_bytes_ = bits ? size_t{4} * static_cast<size_t>(s.weight.bits) * words_ * lanes : depth * lanes * w.element;
  group_bytes_ = block_bytes_ * blocks_;
  weights_ = Memory(group_bytes_ * s.groups);

  const Split split = bits || wide ? Split{0, bits ? s.weight.offset : 0, 0} : split_weight(s.weight);
  shift_ = split.shift;
  factor_ = split.factor;
  if (row_->delayed()) delay_ = static_cast<uint32_t>(std::min<int64_t>(delay_of(s.weight, in_.storage), 1 << 30));
  for (int p = 0; bits && p < s.weight.bits; ++p)
    for (int q = 0; q < in_.storage.bits; ++q)
      coeffs_.push_back(s.weight.coeffs[static_cast<size_t>(p)] * in_.storage.coeffs[static_cast<size_t>(q)]);

  for (uint32_t row = 0; row < s.rows; ++row) {
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
    for (uint32_t k = 0; k < s.depth; ++k) {
      const size_t at = size_t{k / w.valid} * w.run + k % w.valid;
      const int32_t v = (s.weight.level(codes[k]) - split.factor) >> split.shift;  // exact: what is left is even
      sum += v;
      const uint32_t group_size = row_->group;
      const size_t place =
          group_size == 1 ? lane * depth + at : (at / group_size * lanes + lane) * group_size + at % group_size;
      if (wide)
        reinterpret_cast<int16_t*>(block)[place] = static_cast<int16_t>(v);
      else
        reinterpret_cast<int8_t*>(block)[place] = static_cast<int8_t>(v);
    }
    const int64_t bias = -int64_t{w.zero} * (sum * (1 << split.shift) + int64_t{split.factor} * s.depth);
    bias_[group * size_t{padded_rows_} + row % per_group] = static_cast<int32_t>(static_cast<uint32_t>(bias));
  }
  plan_bands(weights_.size());
  // Behind the band: windows and planes of a strip of pixels.
  scratch_ = padded(w.scratch + gemm::kSlack, 64);
  if (bits)
    scratch_ += gemm::kStrip *
                (padded(s.depth, 64) + 64 + size_t{4} * static_cast<size_t>(in_.storage.bits) * padded(words_, 2));
}

void Bound::bind_depthwise(const Step& s) {
  plan_windows(!s.out_channels.empty());
  const size_t rows = padded(s.rows, gemm::kMaxLanes);
  weights_ = Memory(size_t{s.depth} * rows * sizeof(int32_t));
  auto* weights = reinterpret_cast<int32_t*>(weights_.data());
  for (uint32_t row = 0; row < s.rows; ++row) {
    const std::vector<uint8_t> codes = codes_of(s, row);
    for (uint32_t k = 0; k < s.depth; ++k) weights[k * rows + row] = s.weight.level(codes[k]) & 0xFFFF;
  }
  plan_bands(0);
  scratch_ = windows_.scratch;
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

double Bound::work(size_t images) const {
  const uint64_t window = step_.has_weights ? step_.depth : uint64_t{step_.kernel_h} * step_.kernel_w * 16;
  return static_cast<double>(images) * static_cast<double>(step_.rows * out_.h * out_.w * window);
}

size_t Bound::items(size_t images) const { return windows_.flat ? images * out_.h * out_.w : images * out_.h; }

gemm::Output Bound::output(const Place& place) const {
  gemm::Output o{};
  o.data = place.output;
  o.storage = storage_of(out_.storage);
  o.residual = place.residual;
  o.residual_storage = storage_of(residual_);
  o.channels = out_.c;
  o.out_channels = step_.out_channels.empty() ? nullptr : step_.out_channels.data();
  o.m = m_.data();
  o.b = b_.data();
  o.bias = bias_.data();
  o.shift = shift_;
  o.factor = factor_;
  o.lo = step_.lo;
  o.hi = step_.hi;
  o.m_r = step_.m_r;
  return o;
}

// `elements` levels -> bytes shifted by `zero`, or int16.
void Bound::copy_line(const uint8_t* from, size_t elements, uint8_t* to) const {
  if (windows_.element == 1) {
    const uint8_t zero = windows_.zero;
    if (zero == 0) {
      std::memcpy(to, from, elements);
      return;
    }
    for (size_t i = 0; i < elements; ++i) to[i] = static_cast<uint8_t>(from[i] + zero);
    return;
  }
  auto* out = reinterpret_cast<int16_t*>(to);
  if (in_.storage.is_signed()) {
    const auto* in = reinterpret_cast<const int8_t*>(from);
    for (size_t i = 0; i < elements; ++i) out[i] = in[i];
  } else {
    for (size_t i = 0; i < elements; ++i) out[i] = from[i];
  }
}

// Input rows [row, row + rows), some perhaps outside of the image, with their borders; one group's channels.
void Bound::copy_band(const uint8_t* image, uint32_t group, int64_t row, uint32_t rows, uint8_t* to) const {
  const Windows& w = windows_;
  const size_t pixel = size_t{w.channels} * w.element, left = step_.left * pixel, right = step_.right * pixel;
  const bool chosen = step_.op == Op::kDepthwiseConv2d && !step_.out_channels.empty();
  for (uint32_t i = 0; i < rows; ++i, to += w.row_bytes) {
    const int64_t y = row + i;
    if (y < 0 || y >= static_cast<int64_t>(in_.h)) {
      std::memset(to, w.zero, w.row_bytes);
      continue;
    }
    const uint8_t* from = image + static_cast<size_t>(y) * in_.w * in_.c;
    std::memset(to, w.zero, left);
    std::memset(to + w.row_bytes - right, w.zero, right);
    uint8_t* out = to + left;
    if (chosen) {
      for (size_t x = 0; x < in_.w; ++x, from += in_.c)
        for (uint32_t r = 0; r < step_.rows; ++r) *out++ = from[step_.out_channels[r]];
    } else if (w.channels == in_.c) {
      copy_line(from, in_.w * in_.c, out);
    } else {
      for (size_t x = 0; x < in_.w; ++x, from += in_.c, out += pixel)
        copy_line(from + size_t{group} * w.channels, w.channels, out);
    }
  }
}

void Bound::run(const Place& place, size_t begin, size_t end, uint32_t block_begin, uint32_t block_end,
                uint8_t* scratch) const {
  switch (step_.op) {
    case Op::kConv2d:
      return run_convolution(place, begin, end, block_begin, block_end, scratch);
    case Op::kDepthwiseConv2d:
      return run_depthwise(place, begin, end, scratch);
    case Op::kMaxPool2d:
    case Op::kSumPool2d:
      return run_pool(place, begin, end, scratch);
    case Op::kGather:
      return run_gather(place, begin, end);
    case Op::kQuantize:
    case Op::kRequantize:
      return run_values(place, begin, end);
  }
}

void Bound::run_line(const Place& place, size_t begin, size_t end, gemm::Conv c, uint8_t* scratch) const {
  const size_t window = step_.depth;
  c.pixel_stride = window * windows_.element;
  c.out_rows = 1;
  for (size_t at = begin; at < end;) {
    const size_t pixels = std::min<size_t>(windows_.band, end - at);
    c.in = place.data + at * window;
    if (windows_.copy) {
      copy_line(c.in, pixels * window, scratch);
      c.in = scratch;
    }
    c.out_cols = static_cast<uint32_t>(pixels);
    c.first_pixel = at;
    row_->run(c);
    at += pixels;
  }
}

void Bound::run_convolution(const Place& place, size_t begin, size_t end, uint32_t block_begin, uint32_t block_end,
                            uint8_t* scratch) const {
  const Windows& w = windows_;
  gemm::Conv c{};
  c.tap_offsets = w.offsets.data();
  c.taps = w.taps;
  c.run = w.run;
  c.valid = w.valid;
  c.weights = weights_.data();
  c.block_stride = block_bytes_;
  c.rows = step_.rows / step_.groups;
  c.block_begin = block_begin;
  c.block_end = block_end;
  c.delay = delay_;
  c.w_bits = static_cast<uint32_t>(step_.weight.bits);
  c.a_bits = static_cast<uint32_t>(in_.storage.bits);
  c.words = words_;
  c.coeffs = coeffs_.data();
  c.flip = in_.storage.is_signed() ? 0x80 : 0;
  c.scratch = scratch + padded(w.scratch + gemm::kSlack, 64);
  c.out = output(place);
  if (w.flat) return run_line(place, begin, end, c, scratch);

  const size_t out_h = out_.h;
  c.row_stride = step_.stride_h * w.row_bytes;
  c.pixel_stride = size_t{step_.stride_w} * w.channels * w.element;
  c.out_cols = static_cast<uint32_t>(out_.w);
  c.out_row_pixels = out_.w;
  const uint32_t reach = (step_.kernel_h - 1) * step_.dilation_h + 1;
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_h, y = at % out_h;
    c.out_rows = static_cast<uint32_t>(std::min<size_t>({w.band, out_h - y, end - at}));
    c.first_pixel = at * out_.w;
    const uint8_t* from = place.data + image * in_.c * in_.h * in_.w;
    const int64_t first = static_cast<int64_t>(y * step_.stride_h) - step_.top;
    for (uint32_t g = 0; g < step_.groups; ++g) {
      if (w.copy) {
        copy_band(from, g, first, (c.out_rows - 1) * step_.stride_h + reach, scratch);
        c.in = scratch;
      } else {
        c.in = from + static_cast<size_t>(first) * w.row_bytes;
      }
      c.weights = weights_.data() + g * group_bytes_;
      c.out.first_channel = size_t{g} * c.rows;
      c.out.m = m_.data() + size_t{g} * padded_rows_;
      c.out.b = b_.data() + size_t{g} * padded_rows_;
      c.out.bias = bias_.data() + size_t{g} * padded_rows_;
      row_->run(c);
    }
    at += c.out_rows;
  }
}

void Bound::run_depthwise(const Place& place, size_t begin, size_t end, uint8_t* scratch) const {
  const Windows& w = windows_;
  gemm::Depthwise d{};
  d.is_signed = in_.storage.is_signed();
  d.row_stride = step_.stride_h * w.row_bytes;
  d.pixel_stride = size_t{step_.stride_w} * w.channels;
  d.tap_offsets = w.offsets.data();
  d.taps = w.taps;
  d.weights = reinterpret_cast<const int32_t*>(weights_.data());
  d.rows = step_.rows;
  d.out_cols = static_cast<uint32_t>(out_.w);
  d.out_row_pixels = out_.w;
  d.out = output(place);
  const uint32_t reach = (step_.kernel_h - 1) * step_.dilation_h + 1;
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_.h, y = at % out_.h;
    d.out_rows = static_cast<uint32_t>(std::min<size_t>({w.band, out_.h - y, end - at}));
    d.first_pixel = at * out_.w;
    const uint8_t* from = place.data + image * in_.c * in_.h * in_.w;
    const int64_t first = static_cast<int64_t>(y * step_.stride_h) - step_.top;
    if (w.copy) {
      copy_band(from, 0, first, (d.out_rows - 1) * step_.stride_h + reach, scratch);
      d.in = scratch;
    } else {
      d.in = from + static_cast<size_t>(first) * w.row_bytes;
    }
    row_->run(d);
    at += d.out_rows;
  }
}

void Bound::run_pool(const Place& place, size_t begin, size_t end, uint8_t* scratch) const {
  gemm::Pool p{};
  p.storage = storage_of(in_.storage);
  p.channels = static_cast<uint32_t>(in_.c);
  p.in_h = static_cast<uint32_t>(in_.h);
  p.in_w = static_cast<uint32_t>(in_.w);
  p.out_h = static_cast<uint32_t>(out_.h);
  p.out_w = static_cast<uint32_t>(out_.w);
  p.kernel_h = step_.kernel_h;
  p.kernel_w = step_.kernel_w;
  p.stride_h = step_.stride_h;
  p.stride_w = step_.stride_w;
  p.top = step_.top;
  p.left = step_.left;
  p.sums = reinterpret_cast<int32_t*>(scratch);
  const size_t in_bytes = in_.elements() * element_of(in_), out_bytes = out_.elements() * element_of(out_);
  const size_t residual_bytes = out_.elements() * (residual_.is_float() ? 4 : 1);
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_.h, y = at % out_.h, stop = std::min<size_t>(out_.h, y + end - at);
    p.in = place.data + image * in_bytes;
    Place here = place;
    here.output += image * out_bytes;
    if (here.residual) here.residual += image * residual_bytes;
    p.out = output(here);
    p.row_begin = static_cast<uint32_t>(y);
    p.row_end = static_cast<uint32_t>(stop);
    row_->run(p);
    at += stop - y;
  }
}

void Bound::run_gather(const Place& place, size_t begin, size_t end) const {
  gemm::Gather g{};
  g.element_bytes = static_cast<uint32_t>(element_of(in_));
  g.runs = runs_.data();
  g.run_count = static_cast<uint32_t>(runs_.size());
  g.in_channels = in_.c;
  g.out_channels = out_.c;
  g.in_h = static_cast<uint32_t>(in_.h);
  g.in_w = static_cast<uint32_t>(in_.w);
  g.out_w = static_cast<uint32_t>(out_.w);
  g.stride_h = step_.stride_h;
  g.stride_w = step_.stride_w;
  g.top = step_.top;
  g.left = step_.left;
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_.h, y = at % out_.h, stop = std::min<size_t>(out_.h, y + end - at);
    g.in = place.data + image * in_.elements() * element_of(in_);
    g.out = place.output + image * out_.elements() * element_of(out_);
    g.row_begin = static_cast<uint32_t>(y);
    g.row_end = static_cast<uint32_t>(stop);
    row_->run(g);
    at += stop - y;
  }
}

// Items are rows of pixels of images, one after another, and pixels of a row too: quantize must stay within an image.
void Bound::run_values(const Place& place, size_t begin, size_t end) const {
  if (step_.op == Op::kRequantize) {
    gemm::Requantize r{};
    r.in = place.data;
    r.storage = storage_of(in_.storage);
    r.first_pixel = begin * out_.w;
    r.pixels = (end - begin) * out_.w;
    r.out = output(place);
    row_->run(r);
    return;
  }
  gemm::Quantize q{};
  q.plane = in_.h * in_.w;
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_.h, y = at % out_.h, stop = std::min<size_t>(out_.h, y + end - at);
    Place here = place;
    here.output += image * out_.elements() * element_of(out_);
    q.in = reinterpret_cast<const float*>(place.data) + image * in_.elements();
    q.first_pixel = y * out_.w;
    q.pixels = (stop - y) * out_.w;
    q.out = output(here);
    row_->run(q);
    at += stop - y;
  }
}

}  // namespace bitpress
