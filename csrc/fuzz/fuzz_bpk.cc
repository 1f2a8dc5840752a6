// One input of the fuzzer: bytes that might be a .bpk. Refused with a rule's name, or loaded and run.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/session.h"
#include "seal.h"

namespace {

// A small file may ask for much work: windows of a large image, borders, an arena of a gigabyte. That is slow, not
// wrong.
constexpr uint64_t kMostBytes = 4 << 20;
constexpr double kMostWork = 1e7;

bool is_quick(const bitpress::Program& p) {
  uint64_t bytes = p.arena_bytes + p.in().bytes;
  double work = 0;
  for (const bitpress::Step& s : p.steps) {
    const double window = static_cast<double>(s.kernel_h) * s.kernel_w * (s.has_weights ? s.depth : 1);
    work += window * s.rows * static_cast<double>(p.buffers[s.output].h * p.buffers[s.output].w);
    bytes += (s.top + p.buffers[s.data].h + s.bottom) * (s.left + p.buffers[s.data].w + s.right);
  }
  return bytes < kMostBytes && work < kMostWork;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    if (!is_quick(bitpress::read_program({data, size}))) return 0;
    const auto model = std::make_shared<const bitpress::Model>(bitpress::Bytes{data, size});
    bitpress::Session session(model, 1);
    std::vector<float> x(session.in().elements(), 0.5f), y(session.out().elements());
    session.run(x.data(), 1, y.data());
  } catch (const bitpress::Error& error) {
    if (error.code() != bitpress::Code::kCorrupt && error.code() != bitpress::Code::kUnsupported) std::abort();
  }
  return 0;
}

#ifdef BITPRESS_LIBFUZZER
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t most);

// libFuzzer's own damage, sealed seven times of eight.
extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t most, unsigned seed) {
  const size_t made = LLVMFuzzerMutate(data, size, most);
  if (seed % 8) bitpress::seal(data, made);
  return made;
}
#endif
