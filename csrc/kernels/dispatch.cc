#include "dispatch.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../runtime/error.h"
#include "rows.h"

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace bitpress {
namespace {

// A name of the surface whose rows belong to numpy.
constexpr const char* kReference = "reference";

std::vector<std::string> words(const char* text) {
  std::vector<std::string> out;
  for (const char* end = text; *text; text = *end ? end + 1 : end) {
    end = std::strchr(text, '|') ? std::strchr(text, '|') : text + std::strlen(text);
    out.emplace_back(text, end);
  }
  return out;
}

std::string joined(const std::vector<std::string>& items) {
  std::string out;
  for (const std::string& item : items) out += (out.empty() ? "" : ", ") + item;
  return out;
}

#if defined(__x86_64__) && !defined(BITPRESS_EMULATED)
// Leaf 7 of CPUID, for what not every compiler knows by name: bit of a register, 0 eax .. 3 edx, of a subleaf.
bool cpuid7(unsigned subleaf, int reg, int bit) {
  unsigned regs[4] = {};
  return __get_cpuid_count(7, subleaf, &regs[0], &regs[1], &regs[2], &regs[3]) && (regs[reg] >> bit & 1);
}

// Whether this process may use the tile registers. Linux keeps their 8 KB for those that ask, once for all threads.
bool tiles_granted() {
#if defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, which older headers lack
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
#else
  return false;
#endif
}
#endif

// __builtin_cpu_supports takes literals only. It asks the operating system too, whether it saves the registers. Bits
// are those of Linux's HWCAP_ASIMD, HWCAP_ASIMDDP and HWCAP2_I8MM, which older headers lack.
bool supports(const std::string& feature) {
#if defined(BITPRESS_EMULATED)
  return feature.rfind("avx", 0) == 0 || feature.rfind("amx", 0) == 0 || feature == "fma";
#elif defined(__x86_64__)
#define FEATURE(name) \
  if (feature == name) return __builtin_cpu_supports(name);
  FEATURE("avx2")
  FEATURE("fma")
  if (feature == "avxvnni") return cpuid7(1, 0, 4) && __builtin_cpu_supports("avx2");
  if (feature == "amxtile") return cpuid7(0, 3, 24) && tiles_granted();
  if (feature == "amxint8") return cpuid7(0, 3, 25) && tiles_granted();
  FEATURE("avx512f")
  FEATURE("avx512bw")
  FEATURE("avx512dq")
  FEATURE("avx512vl")
  FEATURE("avx512vnni")
  FEATURE("avx512vbmi")
  FEATURE("avx512vbmi2")
  FEATURE("avx512bitalg")
  FEATURE("avx512vpopcntdq")
#undef FEATURE
#elif defined(__aarch64__) && defined(__linux__)
  if (feature == "asimd") return getauxval(AT_HWCAP) & 1 << 1;
  if (feature == "asimddp") return getauxval(AT_HWCAP) & 1 << 20;
  if (feature == "i8mm") return getauxval(AT_HWCAP2) & 1 << 13;
#endif
  return false;
}

// As CPUID names it; empty elsewhere.
std::string vendor() {
#if defined(__x86_64__)
  unsigned eax = 0, words[3] = {};
  __get_cpuid(0, &eax, &words[0], &words[2], &words[1]);
  return std::string(reinterpret_cast<const char*>(words), sizeof words);
#else
  return "";
#endif
}

Isa make_isa(const char* name, const char* contains, const char* features) {
  std::vector<std::string> missing;
  for (const std::string& feature : words(features))
    if (!supports(feature)) missing.push_back(feature);
  return {name, words(contains), joined(missing)};
}

const Isa* isa_named(const std::string& name) {
  for (const Isa& isa : isas())
    if (name == isa.name) return &isa;
  return nullptr;
}

const char* variable(const char* name) {
  const char* value = std::getenv(name);
  return value && *value ? value : nullptr;
}

Op op_named(const char* name) {
  for (uint8_t i = 0; i < kOps; ++i)
    if (std::strcmp(op_name(static_cast<Op>(i)), name) == 0) return static_cast<Op>(i);
  throw Error(Code::kUsage, std::string("unknown op ") + name);
}

// Odd levels as 2 * v + 1.
Split halved(const Encoding& w) { return {1, 1, std::max(std::abs((w.lo() - 1) / 2), std::abs((w.hi() - 1) / 2))}; }

// Empty if the row computes the problem exactly.
std::string misfit(const Row& r, const Problem& p) {
  if (r.op != p.op) return std::string("computes ") + op_name(r.op) + ", not " + op_name(p.op);
  const int w = p.weight.bits, a = p.act.is_float() ? 32 : p.act.bits;
  auto range = [](char side, int from, int to, int bits) {
    const std::string s(1, side);
    return "has " + s + std::to_string(from) + ".." + s + std::to_string(to) + ", not " + s + std::to_string(bits);
  };
  if (w < r.w_from || w > r.w_to) return range('w', r.w_from, r.w_to, w);
  if (a < r.a_from || a > r.a_to) return range('a', r.a_from, r.a_to, a);
  if (r.delayed() && delay_of(p.weight, p.act, p.largest) < 1)
    return "pairs of " + p.weight.name + " x " + p.act.name + " products leave int16";
  if (r.op == Op::kDepthwiseConv2d && r.group == 4 && split_weight(p.weight).factor != 0)
    return "has weights of signed bytes, not " + p.weight.name;
  constexpr uint64_t kMostReach = 512;  // of planes that a list of 16 bits can name
  if (r.sliced() && p.reach > kMostReach) return "has windows of at most " + std::to_string(kMostReach) + " rows";
  if (r.winograd()) {
    if (p.tiles == 0) return "computes windows of 3 x 3, one pixel apart";
    const int64_t top = p.act.hi() + zero_byte(p.act), largest = magnitude(p.weight);
    if (static_cast<int64_t>(p.depth) * 4 * top * largest > INT32_MAX) return "four times the largest sum leaves int32";
  }
  return "";
}

// Digits of the weight of a code that are not 0.
int digits_of(const Encoding& weight, const Split& split, uint32_t code) {
  int count = 0;
  for (const int8_t digit : signed_digits((weight.level(code) - split.factor) >> split.shift)) count += digit != 0;
  return count;
}

// On average, all codes being as common.
double digits_of(const Encoding& weight) {
  const Split split = split_for_slices(weight);
  const uint32_t codes = 1u << weight.bits;
  int count = 0;
  for (uint32_t code = 0; code < codes; ++code) count += digits_of(weight, split, code);
  return static_cast<double>(count) / codes;
}

// On average, of packed fields.
double digits_of(const Encoding& weight, Bytes fields) {
  if (fields.size == 0) return 0;
  const Split split = split_for_slices(weight);
  const uint32_t bits = static_cast<uint32_t>(weight.bits), mask = (1u << bits) - 1;
  uint64_t met[256] = {}, count = 0;
  for (size_t i = 0; i < fields.size; ++i) ++met[fields.data[i]];
  for (uint32_t byte = 0; byte < 256; ++byte)
    for (uint32_t at = 0; at < 8 && met[byte]; at += bits)
      count += met[byte] * static_cast<uint64_t>(digits_of(weight, split, byte >> at & mask));
  return static_cast<double>(count) / (static_cast<double>(fields.size) * (8.0 / bits));
}

uint64_t padded(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

// Microseconds for one image. A product costs what its row says, an output kOutput for all families. bitserial packs
// planes once for every pixel, kPixel + kPack a bit, and ends every pair of planes in a multiplication an output,
// kPair. lut codes every pixel once, kPixel, and widens sums of 16 bits, kWiden an output. Picoseconds, fitted on the
// machine of kernels.def to within a quarter over w1a1 .. w4a4 of ResNet-20 and ResNet-18 (lut: and 1x1). bitsliced
// makes planes of every element of a window, kSlice a bit of one, kApart where columns of the kernel are not moved from
// one another; its last vector is full whatever is in it, and a lane of 256 bits takes kHalf of one of 512. Its
// outputs cost kLevel, and kTurn, or kTurnApart, where they become sums first (its constants, and those of windows that
// slide: Intel Xeon (family 6, model 167), 2026-11-29, layers alone, to within a fifth). winograd transforms each
// channel of a tile, kInput, and 16 products of each row into four sums, kFold with 8 lanes. Of i8dot, one block of 16
// channels takes kAlone: each product reads an operand that no other block shares. Windows that slide take kSlides;
// their columns share operands, so that one block takes kShared. i8dot16 takes kAtOnce as long where it widens every
// step. gemv adds the lanes of each output up, kAcross. Tiles begin and end in kGroup for each 2 x 2 of them, and one
// of few pixels takes half as long as a full one; runs, filled up, are a third of windows of 3 x 3.
double arithmetic(const Row& r, const Problem& p) {
  constexpr double kOutput = 100, kPixel = 5000, kPack = 20, kPair = 20, kWiden = 40, kSlice = 6.5, kApart = 36,
                   kAtOnce = 1.5, kHalf = 1.27, kLevel = 60, kTurn = 40, kTurnApart = 140, kAlone = 1.35,
                   kSlides = 0.93, kShared = 1.1;
  constexpr double kFold = 2300, kInput = 100, kGroup = 32000, kAcross = 2000;
  const double pixels = static_cast<double>(p.pixels), groups = static_cast<double>(p.groups);
  if (p.op != Op::kConv2d) return r.cost * pixels * static_cast<double>(p.rows * std::max<uint64_t>(p.depth, 1)) * 1e-6;
  const double rows = groups * static_cast<double>(padded(p.rows / p.groups, r.lanes));
  const double depth = static_cast<double>(padded(p.depth, r.group));
  if (r.lut()) return ((r.cost * depth + kOutput + kWiden) * rows + groups * kPixel) * pixels * 1e-6;
  if (r.sliced()) {
    const double bits = p.act.bits * static_cast<double>(p.depth), filters = static_cast<double>(p.rows);
    const double digits = p.digits > 0 ? p.digits : digits_of(p.weight);
    double lanes = static_cast<double>(padded(p.pixels, r.group));
    if (r.group == 512) lanes = std::min(lanes, kHalf * static_cast<double>(padded(p.pixels, r.group / 2)));
    const double slices = groups * (p.tiles ? kSlice : kApart) * bits;
    const double output = kLevel + (!p.by_law ? 0 : p.tiles ? kTurn : kTurnApart);
    return ((r.cost * digits * bits + output) * filters + slices) * lanes * 1e-6;
  }
  if (r.winograd()) {
    const double fold = kFold * 8 / r.lanes;
    const double channels = static_cast<double>(padded(p.depth / 9, r.group));
    return ((r.cost * 16 * channels + 4 * kOutput + fold) * rows + groups * kInput * channels) *
           static_cast<double>(p.tiles) * 1e-6;
  }
  if (r.tiled()) {
    const double taps = p.tiles && p.depth % 3 == 0 ? 3 : 1;
    const double run = static_cast<double>(padded(p.depth / static_cast<uint64_t>(taps), r.group));
    const double filled = static_cast<double>(padded(p.pixels, 16)), few = 0.5 + 0.5 * std::min(pixels / 16, 1.0);
    return ((r.cost * few * taps * run + kGroup / 1024) * filled + kOutput * pixels) * rows * 1e-6;
  }
  if (r.packed()) return (r.cost * depth + kOutput + kAcross) * rows * pixels * 1e-6;
  if (!r.bitserial()) {
    const bool at_once = r.delayed() && delay_of(p.weight, p.act, p.largest) < gemm::kLeastDelay;
    const bool wide = r.lanes == 16, slides = p.tiles && wide && r.group == 4 && !r.delayed();  // with VNNI
    const bool alone = rows == r.lanes && wide;
    const double operands = (at_once ? kAtOnce : 1) * (slides ? kSlides : 1) * (alone ? slides ? kShared : kAlone : 1);
    return (r.cost * operands * depth + kOutput) * rows * pixels * 1e-6;
  }
  const double planes = p.weight.bits * p.act.bits;
  const double pack = groups * (kPixel + kPack * p.act.bits * depth);
  return ((r.cost * planes * depth + kPair * planes + kOutput) * rows + pack) * pixels * 1e-6;
}

// Bytes of a convolution's weights as a row holds them, without what it pads.
double layout_bytes(const Row& r, const Problem& p) {
  const double weights = static_cast<double>(p.rows * p.depth);
  if (p.op != Op::kConv2d || r.sliced()) return 0;  // lists are as long as the weights have digits
  if (r.lut()) return weights / r.group;
  if (r.winograd()) return weights * 16 / 9 * (r.group < 4 ? 2 : 1);
  if (r.bitserial() || r.packed()) return weights * p.weight.bits / 8;
  return weights * (r.group < 4 ? 2 : 1);
}

// The same, or what weights beyond `kNear` take to come, kByte each, once an image. Of rows that wait for them
// alike, the one with less to do is better, for several images share them.
double estimate(const Row& r, const Problem& p) {
  constexpr double kByte = 40, kTie = 1e-3;
  const double bytes = layout_bytes(r, p), work = arithmetic(r, p);
  return std::max(work, bytes > kNear ? bytes * kByte * 1e-6 : 0.0) + kTie * work;
}

std::string number(double x) {
  char text[32];
  std::snprintf(text, sizeof text, x < 10 ? "%.2g" : "%.0f", x);
  return text;
}

}  // namespace

bool Row::lut() const { return std::strcmp(family, "lut") == 0; }
bool Row::sliced() const { return std::strcmp(family, "bitsliced") == 0; }
bool Row::woven() const { return std::strcmp(family, "depthwise8") == 0; }
bool Row::packed() const { return std::strcmp(family, "gemv") == 0; }
bool Row::delayed() const { return std::strcmp(family, "i8dot16") == 0; }
bool Row::winograd() const { return std::strncmp(family, "winograd", 8) == 0; }
bool Row::flips() const { return std::strcmp(family, "s8dot") == 0; }
bool Row::tiled() const { return std::strcmp(isa, "amx") == 0; }

const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = [] {
    constexpr const char* kRows[][3] = {
#define ISA(name, contains, features) {#name, contains, features},
#include "../../kernels/isa.def"
#undef ISA
    };
    std::vector<Isa> out;
    for (const auto& row : kRows) out.push_back(make_isa(row[0], row[1], row[2]));
    return out;
  }();
  return all;
}

const std::vector<Row>& rows() {
  static const std::vector<Row> all = [] {
    static const struct {
      const char *family, *isa, *name, *op;
      uint8_t bits[4], lanes;
      uint16_t group;
      double cost;
      void (*function)();
    } kRows[] = {
// CMake defines BITPRESS_BUILT_isa as "~," for the sets that it builds: the function comes second then, else null.
#define BITPRESS_SECOND(first, second, ...) second
#define BITPRESS_PICK(...) BITPRESS_SECOND(__VA_ARGS__)
#define KERNEL(family, isa, op, w_from, w_to, a_from, a_to, lanes, group, cost) \
  {#family,                                                                     \
   #isa,                                                                        \
   #family "_" #isa,                                                            \
   #op,                                                                         \
   {w_from, w_to, a_from, a_to},                                                \
   lanes,                                                                       \
   group,                                                                       \
   static_cast<double>(cost),                                                   \
   BITPRESS_PICK(BITPRESS_BUILT_##isa reinterpret_cast<void (*)()>(gemm::family##_##isa), nullptr, )},
#include "../../kernels/kernels.def"
#undef KERNEL
#undef BITPRESS_PICK
#undef BITPRESS_SECOND
    };
    constexpr struct {
      const char *vendor, *name;
      double cost;
    } kCosts[] = {
#define COST(vendor, family, isa, cost) {#vendor, #family "_" #isa, cost},
#include "../../kernels/costs.def"
#undef COST
    };
    const std::string here = vendor();
    std::vector<Row> out;
    for (const auto& r : kRows) {
      out.push_back({r.family, r.isa, r.name, op_named(r.op), r.bits[0], r.bits[1], r.bits[2], r.bits[3], r.lanes,
                     r.group, r.cost, r.function});
      for (const auto& own : kCosts)
        if (here == own.vendor && out.back().name == own.name) out.back().cost = own.cost;
    }
    return out;
  }();
  return all;
}

Problem problem_of(const Step& s, const Program& p) {
  const Buffer& out = p.buffers[s.output];
  const bool near = s.op == Op::kConv2d && s.kernel_h == 3 && s.kernel_w == 3 && s.stride_h == 1 && s.stride_w == 1 &&
                    s.dilation_h == 1 && s.dilation_w == 1 && out.h * out.w > 1;
  const uint64_t window = s.op == Op::kMaxPool2d || s.op == Op::kSumPool2d ? uint64_t{s.kernel_h} * s.kernel_w : 1;
  int32_t largest = 0;  // every byte is a code
  if (s.has_weights && s.weight.bits == 8) {
    bool met[256] = {};
    for (size_t i = 0; i < s.fields.size; ++i) met[s.fields.data[i]] = true;
    for (uint32_t code = 0; code < 256; ++code)
      if (met[code]) largest = std::max(largest, std::abs(s.weight.level(code)));
  }
  return {s.op,
          s.weight,
          p.buffers[s.data].storage,
          s.rows,
          s.has_weights ? s.depth : window,
          out.h * out.w,
          s.groups,
          near ? (out.h + 1) / 2 * ((out.w + 1) / 2) : 0,
          largest,
          (s.kernel_h - 1) * uint64_t{s.dilation_h} + 1,
          s.has_weights && s.weight.bits <= 4 ? digits_of(s.weight, s.fields) : 0,
          s.op == Op::kConv2d && !few_levels(s, p.buffers[s.output].storage)};
}

bool few_levels(const Step& s, const Encoding& out) {
  constexpr float kMostLevels = 15;
  return !out.is_float() && s.residual == kNone && s.out_channels.empty() && s.hi - s.lo <= kMostLevels;
}

int32_t magnitude(const Encoding& w) { return std::max(std::abs(w.lo()), std::abs(w.hi())); }

Split split_weight(const Encoding& w) {
  if (w.lo() >= -128 && w.hi() <= 127) return {0, 0, magnitude(w)};
  if (w.lo() >= 0) return {0, 128, 128};  // u8: v = w - 128
  return halved(w);
}

Split split_for_lut(const Encoding& w, bool zero) {
  bool has = w.bits < 2;  // then there is a code to spare
  for (uint32_t code = 0; code < 1u << w.bits; ++code) has |= w.level(code) == 0;
  if (has || !zero) return {0, 0, magnitude(w)};
  return halved(w);
}

Split split_for_winograd(const Encoding& w) {
  constexpr int32_t kTaps = 9;
  const int32_t largest = magnitude(w);
  if (kTaps * largest <= INT8_MAX) return {0, 0, largest};
  if (w.lo() >= 0) return {0, (w.hi() + 1) / 2, (w.hi() + 1) / 2};
  return halved(w);  // odd levels
}

Split split_for_fields(const Encoding& w) {
  if (w.bits == 8) return split_weight(w);
  const int32_t step = w.level(1) - w.level(0), shift = step % 2 == 0 && (w.hi() - w.lo()) % 2 == 0 ? 1 : 0;
  return {shift, w.lo(), (w.hi() - w.lo()) >> shift};
}

Split split_for_slices(const Encoding& w) {
  for (uint32_t code = 0; code < 1u << w.bits; ++code)
    if (w.level(code) == 0) return {0, 0, magnitude(w)};
  return halved(w);
}

std::array<int8_t, 9> signed_digits(int32_t v) {
  std::array<int8_t, 9> out{};
  for (size_t i = 0; v != 0; ++i, v /= 2) {  // an odd v loses what leaves a multiple of four
    if (v % 2 == 0) continue;
    out[i] = static_cast<int8_t>(2 - ((v % 4) + 4) % 4);
    v -= out[i];
  }
  return out;
}

int32_t zero_byte(const Encoding& act) { return act.is_signed() ? act.hi() : 0; }

int64_t delay_of(const Encoding& weight, const Encoding& act, int32_t largest) {
  const Split split = split_weight(weight);
  const int32_t at_hand = (largest + split.factor) >> split.shift;  // of u8, whose v is w - 128, a bound above its own
  const int64_t v = largest ? std::min(split.largest, at_hand) : split.largest;
  const int64_t pair = 2 * v * (act.hi() + zero_byte(act));
  return 32767 / std::max<int64_t>(pair, 1);
}

Choice Choice::from_environment() {
  Choice out;
  for (const Isa& isa : isas())
    if (isa.missing.empty()) out.isa_ = isa.name;
  if (const char* cap = variable("BITPRESS_FORCE_ISA")) {
    const Isa* isa = isa_named(cap);
    if (!isa) {
      std::vector<std::string> known = {kReference};
      if (known[0] == cap)
        throw Error(Code::kEnvironment, std::string("BITPRESS_FORCE_ISA=") + cap +
                                            ": this host's native module has no " +
                                            "rows of it; usable here is at most " + out.isa_);
      for (const Isa& each : isas()) known.emplace_back(each.name);
      throw Error(Code::kUsage, std::string("BITPRESS_FORCE_ISA=") + cap + ": valid values are " + joined(known));
    }
    if (!isa->missing.empty())
      throw Error(Code::kEnvironment, std::string("BITPRESS_FORCE_ISA=") + cap + ": this host lacks " + isa->missing +
                                          "; usable here is " + out.isa_);
    out.isa_ = out.cap_ = cap;
  }
  if (const char* kernel = variable("BITPRESS_FORCE_KERNEL")) {
    const auto row = std::find_if(rows().begin(), rows().end(), [&](const Row& r) { return r.name == kernel; });
    if (row == rows().end()) {
      std::vector<std::string> known;
      for (const Row& r : rows()) known.push_back(r.name);
      throw Error(Code::kUsage, std::string("BITPRESS_FORCE_KERNEL=") + kernel + ": valid values are " + joined(known));
    }
    const std::string why = out.why_unusable(*row);
    if (!why.empty()) throw Error(Code::kEnvironment, std::string("BITPRESS_FORCE_KERNEL=") + kernel + ": " + why);
    out.kernel_ = kernel;
  }
  return out;
}

std::string Choice::why_unusable(const Row& row) const {
  const Isa* isa = isa_named(row.isa);
  if (!isa->missing.empty()) return "the host lacks " + isa->missing;
  if (!row.function) return std::string(row.isa) + " was left out when this was built";
  if (cap_.empty() || cap_ == row.isa) return "";
  const std::vector<std::string>& within = isa_named(cap_)->contains;
  if (std::find(within.begin(), within.end(), row.isa) != within.end()) return "";
  return std::string(row.isa) + " is not part of BITPRESS_FORCE_ISA=" + cap_;
}

std::vector<Choice::Verdict> Choice::explain(const Problem& problem) const {
  std::vector<Verdict> out;
  for (const Row& row : rows()) {
    std::string why = misfit(row, problem);
    if (why.empty()) why = why_unusable(row);
    if (why.empty()) {
      const double cost = estimate(row, problem);
      out.push_back({&row, cost, "about " + number(cost) + " us"});
    } else {
      out.push_back({&row, -1, why});
    }
  }
  if (kernel_.empty()) return out;
  const bool fits =
      std::any_of(out.begin(), out.end(), [&](const Verdict& v) { return v.cost >= 0 && v.row->name == kernel_; });
  for (Verdict& v : out)
    if (fits && v.cost >= 0 && v.row->name != kernel_) v = {v.row, -1, "BITPRESS_FORCE_KERNEL=" + kernel_ + " fits"};
  return out;
}

Choice::Verdict Choice::find(const Problem& problem) const {
  std::vector<Verdict> fitting;
  std::string reasons;
  for (const Verdict& v : explain(problem)) {
    if (v.cost >= 0)
      fitting.push_back(v);
    else if (v.row->op == problem.op)
      reasons += "; " + v.row->name + ": " + v.why;
  }
  if (fitting.empty())
    throw Error(Code::kUnsupported, std::string("no kernel for ") + op_name(problem.op) + " of " + problem.weight.name +
                                        " weights and " + problem.act.name + " activations" + reasons);
  for (size_t i = 0; i < fitting.size() && i < 2; ++i)  // the best two, in the order of the list where they are equal
    for (size_t k = fitting.size() - 1; k > i; --k)
      if (fitting[k].cost < fitting[k - 1].cost) std::swap(fitting[k], fitting[k - 1]);
  Verdict best = fitting[0];
  if (best.row->name == kernel_)
    best.why = "BITPRESS_FORCE_KERNEL=" + kernel_;
  else if (fitting.size() == 1)
    best.why = "the only row that fits";
  else
    best.why = best.why + ", " + fitting[1].row->name + " " + fitting[1].why;
  return best;
}

}  // namespace bitpress
