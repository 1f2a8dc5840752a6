// One kernel row timed by itself on a matrix product, without a network.
#pragma once

#include <string>
#include <vector>

namespace bitpress::tool {

struct KernelTime {
  std::string kernel, isa, shape;
  double macs;             // multiply-accumulates of one run
  std::vector<double> ms;  // of each run, five at least
};

// `row`: a name of kernels.def that computes conv2d. `shape`: MxKxN:WxA, output channels, depth and pixels of a 1x1
// convolution, encodings of weights and activations ("64x576x64:i2xu2"). Runs for about `seconds`, one thread.
// Error: kUsage for what makes no sense, kEnvironment where the host lacks the row's instructions, kUnsupported where
// the row does not compute these encodings.
KernelTime time_kernel(const std::string& row, const std::string& shape, double seconds);

// One line, with a line feed.
std::string line_of(const KernelTime& time);

}  // namespace bitpress::tool
