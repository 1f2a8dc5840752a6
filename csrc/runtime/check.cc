// What a program must satisfy before it is run (docs/format.md 3). `compiler/check.py` is the same in Python.
#include <algorithm>
#include <cmath>
#include <set>

#include "error.h"
#include "program.h"

namespace bitpress {
namespace {

__extension__ using u128 = unsigned __int128;

constexpr uint64_t kMaxArena = uint64_t{1} << 30;  // bytes for one image
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

std::string str(uint64_t n) { return std::to_string(n); }

bool is_convolution(const Step& s) { return s.op == Op::kConv2d || s.op == Op::kDepthwiseConv2d; }
bool is_pool(const Step& s) { return s.op == Op::kMaxPool2d || s.op == Op::kSumPool2d; }
bool may_have_residual(const Step& s) { return is_convolution(s) || s.op == Op::kRequantize || s.op == Op::kSumPool2d; }

bool is_of_levels(const Step& s) {
  return is_convolution(s) || s.op == Op::kSumPool2d || s.op == Op::kLookup || s.op == Op::kProduct;
}

[[noreturn]] void fail(const char* error, const Step& s, const std::string& detail) {
  corrupt(error, "step " + s.name + " (" + op_name(s.op) + "): " + detail);
}

std::string shape(const Buffer& b) { return "(" + str(b.c) + ", " + str(b.h) + ", " + str(b.w) + ")"; }

template <class T>
void check_unique(const std::vector<T>& items, const char* what) {
  std::set<std::string> seen;
  for (const T& item : items)
    if (item.name.empty() || !seen.insert(item.name).second)
      corrupt("DuplicateName", std::string(what) + ": name '" + item.name + "' is empty or occurs twice");
}

void check_buffer(const Buffer& b, uint64_t arena_bytes, bool external) {
  const std::string label = "buffer " + b.name + ": ";
  if (b.c < 1 || b.h < 1 || b.w < 1) corrupt("BadShape", label + "shape " + shape(b) + ", each must be at least 1");
  const u128 size = static_cast<u128>(b.c) * b.h * b.w * (b.storage.is_float() ? 4 : 1);
  if (b.bytes != size) corrupt("SizeMismatch", label + str(b.bytes) + " bytes do not fit shape " + shape(b));
  if (b.offset % kAlign)
    corrupt("BadAlignment", label + "offset " + str(b.offset) + " is no multiple of " + str(kAlign));
  const uint64_t cap = external ? kMaxArena : arena_bytes;
  if (b.offset + size > cap || (external && b.offset))
    corrupt("ArenaOverflow", label + str(b.bytes) + " bytes at " + str(b.offset) + " lie outside of " + str(cap));
}

void check_head(const Program& p) {
  if (p.arena_bytes > kMaxArena)
    corrupt("ArenaOverflow",
            "the arena has " + str(p.arena_bytes) + " bytes, at most " + str(kMaxArena) + " are allowed");
  for (uint32_t number : {p.input, p.output})
    if (number >= p.buffers.size())
      corrupt("BadReference", "program: buffer " + str(number) + ", there are " + str(p.buffers.size()));
  if (p.input == p.output) corrupt("BadReference", "program: input and output are the same buffer");
  for (size_t i = 0; i < p.buffers.size(); ++i) check_buffer(p.buffers[i], p.arena_bytes, i == p.input);
  if (!p.in().storage.is_float() || !p.out().storage.is_float())
    corrupt("BadEnum", "program: input and output must be f32");
  check_unique(p.buffers, "buffers");
  check_unique(p.steps, "steps");
}

void check_references(const Step& s, const Program& p) {
  const bool residual = s.residual != kNone;
  for (uint32_t number : {s.data, residual ? s.residual : s.data, s.output})
    if (number >= p.buffers.size())
      fail("BadReference", s, "buffer " + str(number) + ", there are " + str(p.buffers.size()));
  const bool product = s.op == Op::kProduct;
  if (product && !residual) fail("BadReference", s, "has no second factor");
  if (residual && !product && !may_have_residual(s)) fail("BadReference", s, "has a residual");
  if (s.output == p.input || s.output == s.data || s.output == s.residual)
    fail("BadReference", s, "writes the input or a buffer that it reads");
  if ((s.op == Op::kQuantize) != (s.data == p.input) || (residual && s.residual == p.input))
    fail("BadReference", s, "quantize reads the program's input, and no other step does");
}

// Output length of a sliding window, 0 where the window does not fit at all.
int64_t window_out(uint64_t size, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
  const int64_t room = static_cast<int64_t>(size) + pad - dilation * (kernel - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

bool channels_fit(const Step& s, uint64_t c, uint64_t out_c) {
  const uint64_t area = uint64_t{s.kernel_h} * s.kernel_w;
  if (s.op == Op::kConv2d) {
    if (c % s.groups || s.rows % s.groups) return false;
    return s.depth == area * (c / s.groups) && (s.groups == 1 || s.out_channels.empty());
  }
  if (s.op == Op::kDepthwiseConv2d) return s.groups == c && c == out_c && s.depth == area;
  return s.op == Op::kGather || c == out_c;
}

void check_shape(const Step& s, const Program& p) {
  const Buffer &in = p.buffers[s.data], &out = p.buffers[s.output];
  if (std::min({s.kernel_h, s.kernel_w, s.stride_h, s.stride_w, s.dilation_h, s.dilation_w, s.groups, s.rows}) < 1)
    fail("BadShape", s, "kernel, stride, dilation, groups and rows must be at least 1");
  const bool unit_kernel = s.kernel_h == 1 && s.kernel_w == 1;
  const bool unit_rest = s.stride_h == 1 && s.stride_w == 1 && !(s.top | s.left | s.bottom | s.right);
  if (!is_convolution(s) && !is_pool(s) && !(unit_kernel && (s.op == Op::kGather || unit_rest)))
    fail("BadShape", s, "kernel, stride and padding do not fit");
  if (!is_convolution(s) && (s.dilation_h != 1 || s.dilation_w != 1 || s.groups != 1))
    fail("BadShape", s, "dilation or groups do not fit");
  const int64_t h = window_out(in.h, s.kernel_h, s.stride_h, int64_t{s.top} + s.bottom, s.dilation_h);
  const int64_t w = window_out(in.w, s.kernel_w, s.stride_w, int64_t{s.left} + s.right, s.dilation_w);
  if (h != static_cast<int64_t>(out.h) || w != static_cast<int64_t>(out.w))
    fail("BadShape", s, "makes " + std::to_string(h) + " x " + std::to_string(w) + ", its output is " + shape(out));
  if (s.rows > out.c || (s.out_channels.empty() && s.rows != out.c))
    fail("BadShape", s, str(s.rows) + " rows, its output has " + str(out.c) + " channels");
  if (!channels_fit(s, in.c, out.c))
    fail("BadShape", s,
         str(in.c) + " channels in, " + str(out.c) + " out, " + str(s.groups) + " groups, " + str(s.rows) +
             " rows do not fit");
  if (s.op == Op::kMaxPool2d && (std::max(s.top, s.bottom) >= s.kernel_h || std::max(s.left, s.right) >= s.kernel_w))
    fail("BadShape", s, "padding is not smaller than the kernel");
  if (s.residual == kNone) return;
  const Buffer& r = p.buffers[s.residual];
  const bool pixel = s.op == Op::kProduct && r.h == 1 && r.w == 1;
  if (r.c != out.c || (!pixel && (r.h != out.h || r.w != out.w)))
    fail("BadShape", s, "residual is " + shape(r) + ", output " + shape(out));
}

void check_storage(const Step& s, const Program& p) {
  const Encoding &in = p.buffers[s.data].storage, &out = p.buffers[s.output].storage;
  const bool factor = s.op == Op::kProduct && p.buffers[s.residual].storage.is_float();
  if (is_of_levels(s) && (in.is_float() || factor)) fail("BadEnum", s, "reads floats, but works on levels");
  if ((s.op == Op::kMaxPool2d || s.op == Op::kGather) && in.name != out.name)
    fail("BadEnum", s, "reads " + in.name + " and writes " + out.name);
}

void check_indices(const Step& s, const Program& p) {
  auto check = [&](const std::vector<int32_t>& numbers, int64_t low, uint64_t limit) {
    for (int64_t n : numbers)
      if (n < low || n >= static_cast<int64_t>(limit))
        fail("BadIndices", s, "channel " + std::to_string(n) + " of " + str(limit));
  };
  check(s.out_channels, 0, p.buffers[s.output].c);
  check(s.channels, -1, p.buffers[s.data].c);
  std::vector<int32_t> sorted = s.out_channels;
  std::sort(sorted.begin(), sorted.end());
  if (std::adjacent_find(sorted.begin(), sorted.end()) != sorted.end()) fail("BadIndices", s, "writes a channel twice");
}

void check_epilogue(const Step& s, const Program& p) {
  if (!s.has_epilogue) return;
  auto finite = [](const std::vector<float>& v) {
    return std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); });
  };
  if (!finite(s.m) || !finite(s.b) || !std::isfinite(s.m_r)) fail("NonFinite", s, "m, b or m_r is NaN or infinite");
  const std::string bounds = "bounds " + std::to_string(s.lo) + " .. " + std::to_string(s.hi);
  if (std::isnan(s.lo) || std::isnan(s.hi)) fail("NonFinite", s, bounds);
  if (s.lo > s.hi || (s.m_r != 0 && (s.residual == kNone || s.op == Op::kProduct)))
    fail("BadEpilogue", s, bounds + ", residual multiplier " + std::to_string(s.m_r));
  const Encoding& out = p.buffers[s.output].storage;
  if (out.is_float()) return;
  const auto low = static_cast<float>(out.act_lo()), high = static_cast<float>(out.hi());
  if (s.lo < low || s.hi > high || s.lo != std::trunc(s.lo) || s.hi != std::trunc(s.hi))
    fail("BadEpilogue", s, bounds + " are not levels of " + out.name);
}

void check_table(const Step& s, const Program& p) {
  if (s.op != Op::kLookup) return;
  const Encoding &in = p.buffers[s.data].storage, &out = p.buffers[s.output].storage;
  const size_t codes = size_t{1} << in.bits;
  if (s.table.size() != codes)
    fail("BadTable", s, "has " + str(s.table.size()) + " entries, its input " + str(codes) + " codes");
  for (const float entry : s.table) {
    if (!std::isfinite(entry)) fail("NonFinite", s, "an entry of the table is NaN or infinite");
  }
  if (out.is_float()) return;
  const auto low = static_cast<float>(out.act_lo()), high = static_cast<float>(out.hi());
  for (const float entry : s.table)
    if (entry < low || entry > high || entry != std::trunc(entry))
      fail("BadTable", s, "an entry of the table is no level of " + out.name);
}

void check_weights(const Step& s) {
  if (!s.has_weights) return;
  const uint32_t used = static_cast<uint32_t>(uint64_t{s.depth} * static_cast<uint64_t>(s.weight.bits) % 8);
  const size_t row_bytes = s.fields.size / s.rows;
  if (!used) return;
  for (uint32_t row = 0; row < s.rows; ++row)
    if (s.fields.data[(row + size_t{1}) * row_bytes - 1] >> used)
      fail("NonZeroPadding", s, "unused bits at the end of a row are not zero");
}

// Largest magnitude that an accumulator of the step can reach, and that its offset-free row sums reach.
int64_t largest_sum(const Step& s, int64_t top) {
  if (s.op == Op::kSumPool2d) return int64_t{s.kernel_h} * s.kernel_w * top;
  if (!s.has_weights) return 0;
  const size_t row_bytes = s.fields.size / s.rows;
  const uint32_t per_byte = 8 / static_cast<uint32_t>(s.weight.bits), mask = (1u << s.weight.bits) - 1;
  int64_t sums[256] = {}, magnitudes[256] = {};
  for (uint32_t byte = 0; byte < 256; ++byte)
    for (uint32_t f = 0; f < per_byte; ++f) {
      const int32_t level = s.weight.level((byte >> (f * static_cast<uint32_t>(s.weight.bits))) & mask);
      sums[byte] += level - s.weight.offset;
      magnitudes[byte] += std::abs(level);
    }
  const int64_t tail = static_cast<int64_t>(row_bytes * per_byte - s.depth) * std::abs(s.weight.level(0));
  int64_t largest = 0;
  for (uint32_t row = 0; row < s.rows; ++row) {
    int64_t sum = 0, magnitude = -tail;
    for (size_t i = 0; i < row_bytes; ++i) {
      sum += sums[s.fields.data[row * row_bytes + i]];
      magnitude += magnitudes[s.fields.data[row * row_bytes + i]];
    }
    largest = std::max({largest, std::abs(sum), magnitude * top});
  }
  return largest;
}

void check_range(const Step& s, const Program& p) {
  const Encoding& in = p.buffers[s.data].storage;
  if (in.is_float()) return;
  const int64_t largest = largest_sum(s, in.hi());
  if (largest > kInt32Max)
    fail("AccumulatorOverflow", s,
         "a sum can reach " + std::to_string(largest) + ", int32 ends at " + std::to_string(kInt32Max));
}

// Channels of a buffer that steps have written. A set, not a bitmap: a small file can claim very many channels.
struct Written {
  bool all = false;
  std::set<int32_t> some;
};

void check_written(const Written& written, const Buffer& buffer, const std::string& reader) {
  if (!written.all && written.some.size() != buffer.c)
    corrupt("UnwrittenRead", reader + " reads " + buffer.name + ", of which only " + str(written.some.size()) + " of " +
                                 str(buffer.c) + " channels have been written");
}

void check_facts(const Program& p) {
  if (p.mean.size() != p.in().c)
    corrupt("SizeMismatch", "mean and std of " + str(p.mean.size()) + " channels, the input has " + str(p.in().c));
  auto finite = [](const std::vector<float>& v) {
    return std::all_of(v.begin(), v.end(), [](float x) { return std::isfinite(x); });
  };
  if (!finite(p.mean) || !finite(p.std)) corrupt("NonFinite", "mean or std is NaN or infinite");
  if (!std::all_of(p.std.begin(), p.std.end(), [](float x) { return x > 0; }))
    corrupt("BadScale", "a std is not above 0");
  if (!p.labels.empty() && p.labels.size() != p.out().elements())
    corrupt("SizeMismatch", str(p.labels.size()) + " labels, the output has " + str(p.out().elements()) + " values");
  if (!finite(p.golden_input) || !finite(p.golden_output))
    corrupt("NonFinite", "the golden sample holds NaN or infinity");
}

}  // namespace

void check_program(const Program& p) {
  check_head(p);
  std::vector<Written> written(p.buffers.size());
  written[p.input].all = true;
  for (const Step& s : p.steps) {
    check_references(s, p);
    check_shape(s, p);
    check_storage(s, p);
    check_indices(s, p);
    check_epilogue(s, p);
    check_table(s, p);
    check_weights(s);
    check_range(s, p);
    check_written(written[s.data], p.buffers[s.data], s.name);
    if (s.residual != kNone) check_written(written[s.residual], p.buffers[s.residual], s.name);
    if (s.out_channels.empty()) written[s.output].all = true;
    written[s.output].some.insert(s.out_channels.begin(), s.out_channels.end());
  }
  check_written(written[p.output], p.out(), "the caller");
  check_facts(p);
}

}  // namespace bitpress
