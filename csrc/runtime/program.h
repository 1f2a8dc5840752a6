// The flat program of a .bpk: buffers, steps and what they refer to, checked (docs/format.md 2 and 3).
// `compiler/records.py` and `compiler/check.py` are the same in Python, with the same error names in the same order.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "artifact.h"

namespace bitpress {

// How an integer is spelled in bits: level = offset + sum(coeffs[p] * bit[p]).
struct Encoding {
  std::string name;  // "u4", "i4", "o2", "b1", "t2"; "f32" for floats, which have no bits
  int bits = 0;
  std::array<int32_t, 8> coeffs{};
  int32_t offset = 0;

  bool is_float() const { return bits == 0; }
  bool is_signed() const { return lo() < 0; }
  int32_t lo() const;
  int32_t hi() const;
  int32_t level(uint32_t code) const;
  // Largest magnitude of an activation: signed ones are clamped symmetrically (core/quant.py act_bounds).
  int32_t act_lo() const { return lo() < 0 ? -hi() : 0; }
};

// Encoding of that name, as the format allows it for weights or for stored values; false if there is none.
bool parse_encoding(const std::string& name, bool as_weight, Encoding* out);

struct Buffer {
  std::string name;
  Encoding storage;
  uint64_t c = 0, h = 0, w = 0;
  uint64_t offset = 0, bytes = 0;  // in the arena, for one image

  uint64_t elements() const { return c * h * w; }
};

// The number is part of the format.
enum class Op : uint8_t {
  kQuantize,
  kConv2d,
  kDepthwiseConv2d,
  kRequantize,
  kMaxPool2d,
  kSumPool2d,
  kGather,
  kLookup,
  kProduct
};
constexpr uint8_t kOps = 9;
constexpr uint8_t kFirstOps = 7;  // of them that every reader of version 1 knows; a file with a later one announces it
const char* op_name(Op op);

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

struct Step {
  Op op = Op::kQuantize;
  std::string name, layer, hint;
  uint32_t data = kNone, residual = kNone, output = kNone;  // buffer numbers; a product's `residual` is a factor
  uint32_t kernel_h = 1, kernel_w = 1, stride_h = 1, stride_w = 1;
  uint32_t top = 0, left = 0, bottom = 0, right = 0;
  uint32_t dilation_h = 1, dilation_w = 1;
  uint32_t groups = 1, rows = 0, depth = 0;
  bool has_epilogue = false, has_weights = false;
  Encoding weight;
  Bytes fields;              // [rows, ceil(depth * bits / 8)], a view into the file
  std::vector<float> m, b;   // [rows]
  std::vector<float> table;  // lookup: of each code of the input
  std::vector<int32_t> out_channels, channels;
  float lo = 0, hi = 0, m_r = 0;
};

struct Program {
  std::vector<Buffer> buffers;
  std::vector<Step> steps;
  uint32_t input = 0, output = 0;
  uint64_t arena_bytes = 0;  // for one image
  std::vector<float> mean, std;
  std::vector<std::string> labels;
  std::vector<float> golden_input, golden_output;  // empty if the file has none

  const Buffer& in() const { return buffers[input]; }
  const Buffer& out() const { return buffers[output]; }
};

// The program in the bytes of a .bpk; `fields` of its steps are views into `file`. Error(kCorrupt) if any rule of
// docs/format.md is broken. Metadata is covered by its checksum and not looked at.
Program read_program(Bytes file);

// Rules of docs/format.md 3, called by read_program.
void check_program(const Program& program);

}  // namespace bitpress
