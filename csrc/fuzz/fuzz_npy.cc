// One input of the fuzzer: the dictionary that a .npy begins with.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "runtime/error.h"
#include "tools/npy.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const bitpress::tool::NpyHeader header =
        bitpress::tool::parse_npy_header(std::string(reinterpret_cast<const char*>(data), size));
    uint64_t bytes = header.element;
    for (const uint64_t n : header.shape) bytes *= n;  // may wrap only where a refusal was missed
    if (bytes != header.data_bytes) std::abort();
  } catch (const bitpress::Error& error) {
    if (error.code() != bitpress::Code::kUsage) std::abort();
  }
  return 0;
}
