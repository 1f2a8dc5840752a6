#include "kernel_bench.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "report.h"
#include "runtime/bound.h"
#include "runtime/error.h"

namespace bitpress::tool {
namespace {

constexpr uint64_t kMostSide = 1 << 20, kMostMacs = uint64_t{1} << 36, kMostBytes = 1 << 28;
constexpr size_t kFewest = 5, kMost = 100000;

// Numbers that repeat: no kernel's time depends on them.
uint8_t next(uint32_t* state) {
  *state = *state * 1664525u + 1013904223u;
  return static_cast<uint8_t>(*state >> 24);
}

struct Asked {
  uint64_t rows = 0, depth = 0, pixels = 0;
  Encoding weight, act;
};

Asked parse_shape(const std::string& text) {
  Asked out;
  uint64_t* const sides[] = {&out.rows, &out.depth, &out.pixels};
  size_t at = 0;
  bool good = true;
  for (size_t i = 0; i < 3 && good; ++i) {
    const size_t begin = at;
    for (; at < text.size() && text[at] >= '0' && text[at] <= '9' && at - begin < 7; ++at)
      *sides[i] = *sides[i] * 10 + static_cast<uint64_t>(text[at] - '0');
    good =
        at > begin && *sides[i] >= 1 && *sides[i] <= kMostSide && at < text.size() && text[at++] == (i < 2 ? 'x' : ':');
  }
  const size_t cross = text.find('x', at);
  good = good && cross != std::string::npos && parse_encoding(text.substr(at, cross - at), true, &out.weight) &&
         parse_encoding(text.substr(cross + 1), false, &out.act) && !out.act.is_float() &&
         out.rows * out.depth <= kMostMacs / out.pixels && out.rows * out.depth <= kMostBytes &&
         out.depth * out.pixels <= kMostBytes && out.rows * out.pixels <= kMostBytes;
  if (!good)
    throw Error(Code::kUsage, "shape '" + text + "': MxKxN:WxA is expected, say 64x576x64:i2xu2, sides to 1048576, " +
                                  std::to_string(kMostBytes) + " values and " + std::to_string(kMostMacs) +
                                  " multiply-accumulates at most");
  return out;
}

Buffer buffer(const char* name, const Encoding& storage, uint64_t c, uint64_t w) {
  Buffer out;
  out.name = name;
  out.storage = storage;
  out.c = c;
  out.h = 1;
  out.w = w;
  out.bytes = c * w;
  return out;
}

// The one row that may be chosen is that of the environment.
Choice only(const std::string& row) {
  setenv("BITPRESS_FORCE_KERNEL", row.c_str(), 1);
  return Choice::from_environment();
}

}  // namespace

KernelTime time_kernel(const std::string& row, const std::string& shape, double seconds) {
  const Asked asked = parse_shape(shape);
  const Choice choice = only(row);
  Program program;
  Encoding levels;
  parse_encoding("u8", false, &levels);
  program.buffers = {buffer("in", asked.act, asked.depth, asked.pixels),
                     buffer("out", levels, asked.rows, asked.pixels)};
  program.output = 1;
  uint32_t random = 1;
  const size_t row_bytes = (asked.depth * static_cast<uint64_t>(asked.weight.bits) + 7) / 8;
  std::vector<uint8_t> fields(asked.rows * row_bytes);
  for (uint8_t& byte : fields) byte = next(&random);

  Step step;
  step.op = Op::kConv2d;
  step.name = row;
  step.data = 0;
  step.output = 1;
  step.rows = static_cast<uint32_t>(asked.rows);
  step.depth = static_cast<uint32_t>(asked.depth);
  step.has_epilogue = step.has_weights = true;
  step.weight = asked.weight;
  step.fields = {fields.data(), fields.size()};
  step.m.assign(asked.rows, 1e-3f);
  step.b.assign(asked.rows, 100);
  step.hi = 255;
  for (const Choice::Verdict& v : choice.explain(problem_of(step, program)))
    if (v.row->name == row && v.cost < 0) throw Error(Code::kUnsupported, row + " " + v.why + " (" + shape + ")");
  const Bound bound(step, program, choice);

  const Memory in(asked.depth * asked.pixels), out(asked.rows * asked.pixels), scratch(bound.scratch_bytes());
  const int32_t lo = asked.act.act_lo(), span = asked.act.hi() - lo + 1;
  for (size_t i = 0; i < in.size(); ++i) in.data()[i] = static_cast<uint8_t>(lo + next(&random) % span);
  const Place place{in.data(), nullptr, out.data(), 1};
  KernelTime made{row, bound.row().isa, shape, static_cast<double>(asked.rows * asked.depth * asked.pixels), {}};
  using clock = std::chrono::steady_clock;
  const auto begin = clock::now();
  do {
    const auto before = clock::now();
    bound.run(place, 0, bound.items(1), scratch.data());
    made.ms.push_back(std::chrono::duration<double, std::milli>(clock::now() - before).count());
  } while (made.ms.size() < kFewest ||
           (made.ms.size() < kMost && std::chrono::duration<double>(clock::now() - begin).count() < seconds));
  return made;
}

std::string line_of(const KernelTime& time) {
  const Latency ms = latency_of(time.ms);
  char text[256];
  std::snprintf(
      text, sizeof text, "%s %s: median %.4f ms, best %.4f, 90%% within %.4f; %zu runs; %.1f G MAC/s at best\n",
      time.kernel.c_str(), time.shape.c_str(), ms.median, ms.min, ms.p90, ms.samples.size(), time.macs / ms.min * 1e-6);
  return text;
}

}  // namespace bitpress::tool
