// What bitpress-run was asked to do, and what the environment adds to it.
#pragma once

#include <string>

namespace bitpress::tool {

struct Arguments {
  std::string model, input, output, json;  // empty: not given; json "-": standard output
  std::string kernel, shape;               // of --bench-kernel
  bool verify = false, bench = false, help = false, version = false;
  double seconds = 2;
  int threads = 1;
};

extern const char kHelp[];

// Error(kUsage) for what makes no sense; BITPRESS_NUM_THREADS stands in for --threads. BITPRESS_NATIVE=0 forbids what
// this program is made of: Error(kEnvironment).
Arguments parse(int count, const char* const* words);

}  // namespace bitpress::tool
