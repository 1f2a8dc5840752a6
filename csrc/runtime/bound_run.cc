// What a bound step does when it runs: arguments for the kernel, and the copies through scratch memory.
#include <algorithm>
#include <chrono>
#include <cstring>

#include "bound.h"

namespace bitpress {
namespace {

using gemm::Storage;

Storage storage_of(const Encoding& e) {
  return e.is_float() ? Storage::kF32 : e.is_signed() ? Storage::kI8 : Storage::kU8;
}

size_t element_of(const Buffer& b) { return b.storage.is_float() ? 4 : 1; }

#ifdef BITPRESS_DELAY
// Lives BITPRESS_DELAY percent longer than what it lies around: a slow kernel for the study of the gate.
class Delay {
 public:
  ~Delay() {
    const double end = (Clock::now() - start_).count() * (1 + BITPRESS_DELAY / 100.0);
    while ((Clock::now() - start_).count() < end) {
    }
  }

 private:
  using Clock = std::chrono::steady_clock;
  const Clock::time_point start_ = Clock::now();
};
#else
struct Delay {};
#endif

}  // namespace

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
  o.small = small_;
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
    case Op::kConv2d: {
      const uint32_t some = blocks_at_once(end - begin);
      for (uint32_t block = block_begin; block < block_end; block += some)
        run_convolution(place, begin, end, block, std::min(block + some, block_end), scratch);
      return;
    }
    case Op::kDepthwiseConv2d:
      return run_depthwise(place, begin, end, scratch);
    case Op::kMaxPool2d:
    case Op::kSumPool2d:
      return run_pool(place, begin, end, scratch);
    case Op::kGather:
      return run_gather(place, begin, end);
    case Op::kLookup:
      return run_lookup(place, begin, end);
    case Op::kProduct:
      return run_product(place, begin, end, scratch);
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
    c.out_cols = c.in_cols = static_cast<uint32_t>(pixels);
    c.first_pixel = at;
    row_->run(c);
    at += pixels;
  }
}

// Blocks of channels whose weights stay near while several bands go by: weights beyond are read once a call, not once a
// band. Families that make something of activations first would make it again for each part.
uint32_t Bound::blocks_at_once(size_t rows) const {
  constexpr uint32_t kTogether = 4;  // blocks that kernels take at once
  const bool plain = !row_->bitserial() && !row_->lut() && !row_->sliced() && !row_->winograd() && !row_->packed();
  if (!plain || rows <= windows_.band || block_bytes_ == 0) return UINT32_MAX / 2;
  return std::max(kTogether, static_cast<uint32_t>(kNear / block_bytes_) / kTogether * kTogether);
}

void Bound::run_convolution(const Place& place, size_t begin, size_t end, uint32_t block_begin, uint32_t block_end,
                            uint8_t* scratch) const {
  [[maybe_unused]] const Delay delay{};
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
  c.tables = tables_.data();
  c.w_bits = static_cast<uint32_t>(step_.weight.bits);
  c.a_bits = static_cast<uint32_t>(in_.storage.bits);
  c.words = words_;
  c.coeffs = coeffs_.data();
  c.flip = in_.storage.is_signed() ? 0x80 : 0;
  c.scratch = scratch + padded(w.scratch + gemm::kSlack, 64);
  if (row_->sliced()) {
    c.a_bits = planes_of_slices(in_.storage);
    c.run = slices_.chunk;
    c.columns = slices_.columns;
    c.stride_h = w.flat ? 1 : step_.stride_h;
    c.in_rows = 1;
    c.in_row_bytes = w.row_bytes;
    c.column_bytes = slices_.shifted ? step_.dilation_w : size_t{step_.dilation_w} * w.channels;
    c.shifted = slices_.shifted;
    c.left = step_.left;
    c.vector = slices_.vector;
    c.pitch = slices_.pitch;
    c.vectors = slices_.vectors;
    c.line = slices_.line;
    c.levels = slices_.levels;
    c.digits = slices_.digits;
    c.odd = slices_.odd;
    c.stored_bits = slices_.stored_bits;
  }
  if (row_->winograd()) {
    c.run = winograd_.run;
    c.strip = winograd_.strip;
    c.lift = winograd_.lift;
    c.tile_bias_apart = padded_rows_;
  }
  c.out = output(place);
  c.starts = slices_.starts.data();
  c.thresholds = slices_.thresholds.data();
  c.falling = slices_.falling.data();
  if (w.flat) return run_line(place, begin, end, c, scratch);

  const size_t out_h = out_.h;
  c.row_stride = step_.stride_h * w.row_bytes;
  c.pixel_stride = size_t{step_.stride_w} * (slices_.shifted ? in_.c : w.channels) * w.element;
  c.out_cols = static_cast<uint32_t>(out_.w);
  c.in_cols = static_cast<uint32_t>(slices_.shifted ? in_.w : out_.w);
  c.out_row_pixels = out_.w;
  const uint32_t reach = (step_.kernel_h - 1) * step_.dilation_h + 1;
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_h, y = at % out_h;
    c.out_rows = static_cast<uint32_t>(std::min<size_t>({w.band, out_h - y, end - at}));
    c.first_pixel = at * out_.w;
    const uint8_t* from = place.data + image * in_.c * in_.h * in_.w;
    const int64_t first = static_cast<int64_t>(y * step_.stride_h) - step_.top;
    c.in_rows = (c.out_rows - 1) * step_.stride_h + reach;
    const int64_t begin_row = std::max<int64_t>(first, 0), seen = c.in_rows;
    for (uint32_t g = 0; g < step_.groups; ++g) {
      if (slices_.shifted) {  // writes no borders
        const int64_t end_row = std::clamp<int64_t>(first + seen, begin_row, static_cast<int64_t>(in_.h));
        c.above = static_cast<uint32_t>(begin_row - first);
        c.in_rows = static_cast<uint32_t>(std::max<int64_t>(end_row - begin_row, 0));
        c.in = from + static_cast<size_t>(begin_row) * w.row_bytes + size_t{g} * w.channels;
      } else if (w.copy) {
        copy_band(from, g, first, c.in_rows, scratch);
        c.in = scratch;
      } else {
        c.in = from + static_cast<size_t>(first) * w.row_bytes;
      }
      if (place.lines && slices_.linked) c.in_lines = from;
      if (place.lines && slices_.next_line) {
        c.out_lines = place.output + image * out_.elements();
        c.out_top = slices_.next_top;
        c.out_line = slices_.next_line;
      }
      c.weights = weights_.data() + g * group_bytes_;
      c.out.first_channel = size_t{g} * c.rows;
      c.out.m = m_.data() + size_t{g} * padded_rows_;
      c.out.b = b_.data() + size_t{g} * padded_rows_;
      c.out.bias = bias_.data() + size_t{g} * padded_rows_;
      if (row_->winograd()) c.tile_bias = winograd_.bias.data() + size_t{g} * 4 * padded_rows_;
      if (row_->sliced()) c.starts = slices_.starts.data() + size_t{g} * slices_.chunks * (blocks_ + 1);
      if (c.stored_bits) {
        const size_t steps = (size_t{1} << c.stored_bits) - 1;
        c.thresholds = slices_.thresholds.data() + size_t{g} * c.rows * steps * slices_.levels;
        c.falling = slices_.falling.data() + size_t{g} * c.rows;
      }
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
  d.columns = step_.kernel_w;
  d.sliding = slides() ? step_.stride_w : 0;
  d.column_bytes = w.channels;
  d.bordered = !w.image;
  d.left = static_cast<int32_t>(step_.left);
  d.in_rows = static_cast<uint32_t>(in_.h);
  d.in_cols = static_cast<uint32_t>(in_.w);
  d.row_dilation = step_.dilation_h;
  d.row_step = step_.stride_h;
  d.row_bytes = w.row_bytes;
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
    d.first_row = static_cast<int32_t>(first);
    if (w.image) {
      d.in = from;
    } else if (w.copy) {
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

void Bound::run_lookup(const Place& place, size_t begin, size_t end) const {
  gemm::Lookup l{};
  const size_t row = out_.w * out_.c;
  l.element_bytes = static_cast<uint32_t>(element_of(out_));
  l.in = place.data + begin * row;
  l.out = place.output + begin * row * l.element_bytes;
  l.table = tables_.data();
  l.count = (end - begin) * row;
  row_->run(l);
}

void Bound::run_product(const Place& place, size_t begin, size_t end, uint8_t* scratch) const {
  gemm::Product p{};
  p.storage = storage_of(in_.storage);
  p.gate_storage = storage_of(residual_);
  p.one = residual_elements_ != out_.elements();
  p.channels = static_cast<uint32_t>(in_.c);
  p.sums = reinterpret_cast<int32_t*>(scratch);
  for (size_t at = begin; at < end;) {
    const size_t image = at / out_.h, y = at % out_.h, stop = std::min<size_t>(out_.h, y + end - at);
    Place here = place;
    here.residual = nullptr;
    here.output += image * out_.elements() * element_of(out_);
    p.in = place.data + image * in_.elements();
    p.gate = place.residual + image * residual_elements_;
    p.first_pixel = y * out_.w;
    p.pixels = (stop - y) * out_.w;
    p.out = output(here);
    row_->run(p);
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
    r.rises = rises_.data();
    r.rise_count = static_cast<uint32_t>(rises_.size());
    r.base = base_;
    r.scale = scale_;
    r.up = up_;
    r.down = down_;
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
