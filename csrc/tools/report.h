// What bitpress-run found, as a table for people and as a document for scripts (docs/schema/native.json).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "arguments.h"
#include "runtime/session.h"

namespace bitpress::tool {

struct Latency {
  double median, min, p90;  // milliseconds
  std::vector<double> samples;
};

// Sorted samples are read; at least one.
Latency latency_of(std::vector<double> samples);

struct Report {
  Arguments asked;
  std::string isa;
  std::vector<uint64_t> in_shape, out_shape;  // [C, H, W]
  std::vector<StepInfo> steps;
  std::vector<std::vector<uint64_t>> shapes;  // of each step's output
  std::vector<double> step_ms;                // empty: not measured
  double load_ms = 0;
  // Of the process before it opened the file, and in all; what the other parts leave of that is rest().
  uint64_t program_bytes = 0, peak_rss_bytes = 0;
  uint64_t file_bytes = 0, layout_bytes = 0, arena_bytes = 0;
  uint64_t rest() const {
    const uint64_t parts = program_bytes + file_bytes + layout_bytes + arena_bytes;
    return peak_rss_bytes > parts ? peak_rss_bytes - parts : 0;
  }
  bool golden_checked = false;
  std::string golden_difference;  // empty: none
  bool ran = false;
  uint64_t images = 0, outputs = 0;
  double run_seconds = 0;
  bool timed = false;
  Latency total{};
  double first_ms = -1;  // negative: not measured
};

// Name, op, shape, kernel, isa, milliseconds; then what else was asked for. Ends in a line feed.
std::string table_of(const Report& report);
std::string json_of(const Report& report);

}  // namespace bitpress::tool
