#include "program.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "error.h"

namespace bitpress {
namespace {

__extension__ using u128 = unsigned __int128;

constexpr uint64_t kMaxMeta = 16 << 20;

enum Flag : uint8_t { kOutChannels = 1, kChannels = 2, kEpilogue = 4, kHasWeights = 8, kTable = 16 };

struct OpRow {
  const char* name;
  uint8_t needed, allowed;  // flags
};
constexpr OpRow kOpRows[kOps] = {
    {"quantize", kEpilogue, kEpilogue},
    {"conv2d", kEpilogue | kHasWeights, kEpilogue | kHasWeights | kOutChannels},
    {"depthwise_conv2d", kEpilogue | kHasWeights, kEpilogue | kHasWeights | kOutChannels},
    {"requantize", kEpilogue, kEpilogue},
    {"max_pool2d", 0, 0},
    {"sum_pool2d", kEpilogue, kEpilogue},
    {"gather", kChannels, kChannels | kOutChannels},
    {"lookup", kTable, kTable},
    {"product", kEpilogue, kEpilogue},
};

struct HeadRecord {
  uint64_t arena_bytes;
  uint32_t input, output, c, reserved;
};
static_assert(sizeof(HeadRecord) == 24);

struct BufferRecord {
  uint16_t name, reserved;
  char storage[4];
  uint32_t c;
  uint16_t h, w;
  uint64_t offset, bytes;
};
static_assert(sizeof(BufferRecord) == 32);

struct StepRecord {
  uint8_t op, flags;
  uint16_t name, layer, hint;
  char weight[4];
  uint32_t data, residual, output;
  uint16_t kernel[2], stride[2], padding[4], dilation[2];
  uint32_t groups, rows, depth, constants, indices, weights;
  float lo, hi, m_r;
};
static_assert(sizeof(StepRecord) == 80);

std::string str(uint64_t n) { return std::to_string(n); }

// Elements of a section, copied: sections are aligned in the file, but the file need not be in memory.
template <class T>
std::vector<T> elements(Bytes bytes, const char* section) {
  if (bytes.size % sizeof(T))
    corrupt("SizeMismatch",
            std::string(section) + ": " + str(bytes.size) + " bytes are no multiple of " + str(sizeof(T)));
  std::vector<T> out(bytes.size / sizeof(T));
  if (bytes.size) std::memcpy(out.data(), bytes.data, bytes.size);
  return out;
}

// The same of a record: filled up with zeros.
bool parse_word(const char word[4], bool as_weight, Encoding* out) {
  const std::string name(word, strnlen(word, 4));
  return std::all_of(word + name.size(), word + 4, [](char c) { return c == 0; }) &&
         parse_encoding(name, as_weight, out);
}

// Well-formed UTF-8: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_utf8(const uint8_t* s, size_t size) {
  for (size_t i = 0; i < size;) {
    const uint8_t lead = s[i];
    const size_t more = lead < 0x80 ? 0 : lead >= 0xC2 && lead < 0xE0 ? 1 : lead >= 0xE0 && lead < 0xF0 ? 2 : 3;
    if (more == 3 && (lead < 0xF0 || lead > 0xF4)) return false;
    if (more >= size - i) return false;
    for (size_t k = 1; k <= more; ++k)
      if ((s[i + k] & 0xC0) != 0x80) return false;
    if (lead == 0xE0 && s[i + 1] < 0xA0) return false;
    if (lead == 0xED && s[i + 1] > 0x9F) return false;
    if (lead == 0xF0 && s[i + 1] < 0x90) return false;
    if (lead == 0xF4 && s[i + 1] > 0x8F) return false;
    i += more + 1;
  }
  return true;
}

std::vector<std::string> read_strings(Bytes bytes, const std::string& section) {
  uint32_t count = 0;
  if (bytes.size >= 4) std::memcpy(&count, bytes.data, 4);
  const uint64_t start = 4 + 4 * uint64_t{count};
  if (bytes.size < 4 || start > bytes.size)
    corrupt("SizeMismatch", section + ": " + str(bytes.size) + " bytes cannot hold " + str(count) + " strings");
  std::vector<uint32_t> ends = elements<uint32_t>({bytes.data + 4, static_cast<size_t>(start - 4)}, "strings");
  if (!std::is_sorted(ends.begin(), ends.end())) corrupt("BadText", section + ": the strings' ends do not ascend");
  const uint64_t last = ends.empty() ? 0 : ends.back();
  if (start + last != bytes.size)
    corrupt("SizeMismatch", section + ": strings end at byte " + str(start + last) + " of " + str(bytes.size));
  std::vector<std::string> out;
  out.reserve(count);
  uint32_t begin = 0;
  for (uint32_t end : ends) {
    const uint8_t* text = bytes.data + start + begin;
    if (!is_utf8(text, end - begin)) corrupt("BadText", section + ": string " + str(out.size()) + " is not UTF-8");
    out.emplace_back(reinterpret_cast<const char*>(text), end - begin);
    begin = end;
  }
  return out;
}

const std::string& name_at(const std::vector<std::string>& names, uint32_t number, const std::string& what) {
  if (number >= names.size())
    corrupt("BadReference", what + ": name " + str(number) + ", there are " + str(names.size()));
  return names[number];
}

void read_head(Bytes bytes, Program* program) {
  if (bytes.size < sizeof(HeadRecord))
    corrupt("SizeMismatch",
            "program: " + str(bytes.size) + " bytes, at least " + str(sizeof(HeadRecord)) + " are needed");
  HeadRecord r;
  std::memcpy(&r, bytes.data, sizeof r);
  if (r.reserved) corrupt("NonZeroPadding", "program: reserved bytes are not zero");
  if (bytes.size != sizeof r + 8 * uint64_t{r.c})
    corrupt("SizeMismatch",
            "program: " + str(bytes.size) + " bytes do not hold mean and std of " + str(r.c) + " channels");
  program->arena_bytes = r.arena_bytes;
  program->input = r.input;
  program->output = r.output;
  const std::vector<float> facts = elements<float>({bytes.data + sizeof r, bytes.size - sizeof r}, "program");
  program->mean.assign(facts.begin(), facts.begin() + r.c);
  program->std.assign(facts.begin() + r.c, facts.end());
}

Buffer read_buffer(const BufferRecord& r, const std::vector<std::string>& names) {
  Buffer out;
  out.name = name_at(names, r.name, "buffer");
  if (r.reserved) corrupt("NonZeroPadding", "buffer " + out.name + ": reserved bytes are not zero");
  if (!parse_word(r.storage, false, &out.storage))
    corrupt("BadEnum", "buffer " + out.name + ": unknown storage; known are f32, u1..u8, i2..i8");
  out.c = r.c;
  out.h = r.h;
  out.w = r.w;
  out.offset = r.offset;
  out.bytes = r.bytes;
  return out;
}

// What steps take from the shared sections, one after another and completely.
class Pools {
 public:
  Pools(std::vector<float> constants, std::vector<int32_t> indices, std::vector<Bytes> weights)
      : constants_(std::move(constants)), indices_(std::move(indices)), weights_(std::move(weights)) {}

  std::vector<float> constants(uint64_t start, uint64_t count, const std::string& step) {
    return take(constants_, &constants_at_, "constants", start, count, step);
  }
  std::vector<int32_t> indices(uint64_t start, uint64_t count, const std::string& step) {
    return take(indices_, &indices_at_, "indices", start, count, step);
  }
  Bytes weights(uint32_t index, const std::string& step) {
    expect("weights", index, weights_at_, step);
    if (index >= weights_.size())
      corrupt("BadReference", "step " + step + " takes weights " + str(index) + ", there are " + str(weights_.size()));
    return weights_[weights_at_++];
  }
  void finish() const {
    finish(constants_at_, constants_.size(), "constants");
    finish(indices_at_, indices_.size(), "indices");
    finish(weights_at_, weights_.size(), "weights");
  }

 private:
  static void expect(const char* pool, uint64_t start, uint64_t at, const std::string& step) {
    if (start != at)
      corrupt("BadReference", "step " + step + " takes " + pool + " from " + str(start) + ", next is " + str(at));
  }
  static void finish(uint64_t at, uint64_t size, const char* pool) {
    if (at != size) corrupt("SizeMismatch", "the steps take " + str(at) + " of " + str(size) + " " + pool);
  }
  template <class T>
  static std::vector<T> take(const std::vector<T>& pool, uint64_t* at, const char* name, uint64_t start, uint64_t count,
                             const std::string& step) {
    expect(name, start, *at, step);
    if (count > pool.size() - *at)
      corrupt("SizeMismatch", "step " + step + " takes " + str(count) + " " + name + " from " + str(*at) +
                                  ", there are " + str(pool.size()));
    const auto begin = pool.begin() + static_cast<ptrdiff_t>(*at);
    *at += count;
    return std::vector<T>(begin, begin + static_cast<ptrdiff_t>(count));
  }

  std::vector<float> constants_;
  std::vector<int32_t> indices_;
  std::vector<Bytes> weights_;
  uint64_t constants_at_ = 0, indices_at_ = 0, weights_at_ = 0;
};

void read_weights(const StepRecord& r, Pools* pools, Step* step) {
  if (!(r.flags & kHasWeights)) {
    if (std::any_of(r.weight, r.weight + 4, [](char c) { return c != 0; }) || (r.depth && !(r.flags & kTable)))
      corrupt("BadEnum", "step " + step->name + ": has a weight encoding or depth, but no weights");
    return;
  }
  if (!parse_word(r.weight, true, &step->weight))
    corrupt("BadEnum", "step " + step->name + ": unknown weight encoding");
  step->has_weights = true;
  step->fields = pools->weights(r.weights, step->name);
  const uint64_t row_bytes = (uint64_t{r.depth} * static_cast<uint64_t>(step->weight.bits) + 7) / 8;
  if (step->fields.size != uint64_t{r.rows} * row_bytes)  // below 2^64: 2^32 x 2^32
    corrupt("SizeMismatch", "step " + step->name + ": " + str(r.rows) + " rows of " + str(r.depth) + " " +
                                step->weight.name + " weights take " + str(uint64_t{r.rows} * row_bytes) +
                                " bytes, the section has " + str(step->fields.size));
}

void read_epilogue(const StepRecord& r, Pools* pools, Step* step) {
  step->lo = r.lo;
  step->hi = r.hi;
  step->m_r = r.m_r;
  if (!(r.flags & kEpilogue)) {
    if (!(r.lo == 0 && r.hi == 0 && r.m_r == 0))
      corrupt("BadEpilogue", "step " + step->name + ": has bounds, but no epilogue");
    return;
  }
  step->has_epilogue = true;
  step->m = pools->constants(r.constants, r.rows, step->name);
  step->b = pools->constants(uint64_t{r.constants} + r.rows, r.rows, step->name);
}

Step read_step(const StepRecord& r, const std::vector<std::string>& names, const std::vector<Buffer>& buffers,
               Pools* pools) {
  Step s;
  s.name = name_at(names, r.name, "step");
  if (r.op >= kOps) corrupt("BadEnum", "step " + s.name + ": op " + str(r.op) + ", known are 0.." + str(kOps - 1));
  const OpRow& row = kOpRows[r.op];
  s.op = static_cast<Op>(r.op);
  if ((r.flags & row.needed) != row.needed || (r.flags & ~row.allowed))
    corrupt("BadEnum", "step " + s.name + ": flags " + str(r.flags) + " do not fit " + row.name);
  const std::pair<int, uint32_t> references[] = {
      {kEpilogue | kTable, r.constants}, {kOutChannels | kChannels, r.indices}, {kHasWeights, r.weights}};
  for (const auto& [bits, reference] : references)
    if (!(r.flags & bits) && reference != kNone)
      corrupt("BadReference", "step " + s.name + ": refers to what its flags do not announce");
  s.rows = r.rows;
  s.depth = r.depth;
  uint64_t at = r.indices;
  if (r.flags & kOutChannels) {
    s.out_channels = pools->indices(at, r.rows, s.name);
    at += r.rows;
  }
  if (r.flags & kChannels) s.channels = pools->indices(at, r.rows, s.name);
  s.data = r.data;
  s.residual = r.residual;
  s.output = r.output;
  s.kernel_h = r.kernel[0];
  s.kernel_w = r.kernel[1];
  s.stride_h = r.stride[0];
  s.stride_w = r.stride[1];
  s.top = r.padding[0];
  s.left = r.padding[1];
  s.bottom = r.padding[2];
  s.right = r.padding[3];
  s.dilation_h = r.dilation[0];
  s.dilation_w = r.dilation[1];
  s.groups = r.groups;
  read_weights(r, pools, &s);
  read_epilogue(r, pools, &s);
  if (r.flags & kTable) s.table = pools->constants(r.constants, r.depth, s.name);
  s.layer = name_at(names, r.layer, "layer of step " + s.name);
  s.hint = name_at(names, r.hint, "hint of step " + s.name);
  if ((s.op == Op::kMaxPool2d || s.op == Op::kLookup) && s.output < buffers.size() && s.rows != buffers[s.output].c)
    corrupt("BadShape",
            "step " + s.name + ": " + str(s.rows) + " rows, its output has " + str(buffers[s.output].c) + " channels");
  return s;
}

std::vector<float> read_golden(Bytes bytes, const char* section, const Program& program, uint32_t number) {
  if (!bytes.data) return {};
  std::vector<float> out = elements<float>(bytes, section);
  if (number >= program.buffers.size())
    corrupt("BadReference", "program: buffer " + str(number) + ", there are " + str(program.buffers.size()));
  const Buffer& buffer = program.buffers[number];
  if (out.size() != static_cast<u128>(buffer.c) * buffer.h * buffer.w)
    corrupt("SizeMismatch", std::string(section) + ": " + str(out.size()) + " values do not fit buffer " + buffer.name);
  return out;
}

}  // namespace

int32_t Encoding::lo() const {
  int32_t out = offset;
  for (int32_t c : coeffs) out += std::min(c, 0);
  return out;
}

int32_t Encoding::hi() const {
  int32_t out = offset;
  for (int32_t c : coeffs) out += std::max(c, 0);
  return out;
}

int32_t Encoding::level(uint32_t code) const {
  int32_t out = offset;
  for (int p = 0; p < bits; ++p) out += coeffs[static_cast<size_t>(p)] * static_cast<int32_t>((code >> p) & 1u);
  return out;
}

bool parse_encoding(const std::string& name, bool as_weight, Encoding* out) {
  *out = Encoding{};
  out->name = name;
  if (name == "f32") return !as_weight;
  if (name.size() != 2 || name[1] < '1' || name[1] > '8') return false;
  const char family = name[0];
  const int bits = name[1] - '0';
  const bool field = bits == 1 || bits == 2 || bits == 4 || bits == 8;
  if (as_weight && !field) return false;
  out->bits = bits;
  for (int p = 0; p < bits; ++p) out->coeffs[p] = (family == 'o' ? 2 : 1) << p;
  switch (family) {
    case 'u':
      return true;
    case 'i':
      out->coeffs[bits - 1] = -out->coeffs[bits - 1];
      return bits >= 2;
    case 'o':
      out->offset = 1 - (1 << bits);
      return as_weight && bits >= 2;
    case 'b':
      out->coeffs[0] = 2;
      out->offset = -1;
      return as_weight && bits == 1;
    case 't':
      out->coeffs[0] = 1;
      out->coeffs[1] = -1;
      return as_weight && bits == 2;
    default:
      return false;
  }
}

const char* op_name(Op op) { return kOpRows[static_cast<uint8_t>(op)].name; }

Program read_program(Bytes file) {
  Bytes content[kLastKind + 1];
  std::vector<Bytes> weights;
  for (const Section& s : split(file)) {
    if (s.kind == kWeights)
      weights.push_back(s.bytes);
    else
      content[s.kind] = s.bytes;
  }
  Program program;
  read_head(content[kProgram], &program);
  const std::vector<std::string> names = read_strings(content[kNames], "names");
  const std::set<std::string> unique(names.begin(), names.end());
  if (names.empty() || !names[0].empty() || unique.size() != names.size())
    corrupt("DuplicateName", "string 0 of names is not empty, or a string occurs twice");
  for (const BufferRecord& r : elements<BufferRecord>(content[kBuffers], "buffers"))
    program.buffers.push_back(read_buffer(r, names));
  Pools pools(elements<float>(content[kConstants], "constants"), elements<int32_t>(content[kIndices], "indices"),
              std::move(weights));
  for (const StepRecord& r : elements<StepRecord>(content[kSteps], "steps"))
    program.steps.push_back(read_step(r, names, program.buffers, &pools));
  pools.finish();
  if (content[kLabels].data) program.labels = read_strings(content[kLabels], "labels");
  program.golden_input = read_golden(content[kGoldenInput], "golden_input", program, program.input);
  program.golden_output = read_golden(content[kGoldenOutput], "golden_output", program, program.output);
  if (content[kMeta].size > kMaxMeta)
    corrupt("TooLarge", "meta has " + str(content[kMeta].size) + " bytes, at most " + str(kMaxMeta) + " are allowed");
  const auto later = [](const Step& s) { return static_cast<uint8_t>(s.op) >= kFirstOps; };
  const uint32_t needed = std::any_of(program.steps.begin(), program.steps.end(), later) ? kLaterOps : 0;
  if (features(file) != needed)
    corrupt("BadFeature", "the file announces features " + str(features(file)) + ", its steps need " + str(needed));
  check_program(program);
  return program;
}

}  // namespace bitpress
