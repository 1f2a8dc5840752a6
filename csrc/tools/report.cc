#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "npy.h"

namespace bitpress::tool {
namespace {

std::string format(const char* layout, ...) __attribute__((format(printf, 1, 2)));
std::string format(const char* layout, ...) {
  char text[256];
  va_list values;
  va_start(values, layout);
  std::vsnprintf(text, sizeof text, layout, values);
  va_end(values);
  return text;
}

std::string shape_text(const std::vector<uint64_t>& shape, const char* between) {
  std::string out;
  for (const uint64_t n : shape) out += (out.empty() ? "" : between) + std::to_string(n);
  return out;
}

// Characters of UTF-8, so that columns stand below each other.
size_t width_of(const std::string& text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; }));
}

// A name from a file: what would steer a terminal is shown, not sent.
std::string printable(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    out += byte < 0x20 || byte == 0x7F ? format("\\x%02x", byte) : std::string(1, c);
  }
  return out;
}

std::string cpu_name() {
  const File file(std::fopen("/proc/cpuinfo", "re"));
  char line[256];
  while (file && std::fgets(line, sizeof line, file.get())) {
    const char* colon = std::strchr(line, ':');
    if (!colon || (std::strncmp(line, "model name", 10) != 0 && std::strncmp(line, "Hardware", 8) != 0)) continue;
    std::string out = colon + 1;
    out.erase(0, out.find_first_not_of(" \t"));
    out.erase(out.find_last_not_of(" \t\n") + 1);
    return out;
  }
  return "unknown";
}

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\')
      out += std::string("\\") + c;
    else
      out += byte < 0x20 || byte == 0x7F ? format("\\u%04x", byte) : std::string(1, c);
  }
  return out + "\"";
}

std::string number(double x) { return format("%.6g", x); }

std::string list(const std::vector<uint64_t>& shape) { return "[" + shape_text(shape, ", ") + "]"; }

// "key": value pairs between braces; `value` is JSON.
class Object {
 public:
  Object& add(const char* key, const std::string& value) {
    text_ += (text_.empty() ? "" : ", ") + quoted(key) + ": " + value;
    return *this;
  }
  std::string str() const { return "{" + text_ + "}"; }

 private:
  std::string text_;
};

std::string steps_json(const Report& r) {
  std::string out;
  for (size_t i = 0; i < r.steps.size(); ++i) {
    const StepInfo& s = r.steps[i];
    Object row;
    row.add("name", quoted(s.name)).add("layer", quoted(s.layer)).add("op", quoted(s.op));
    row.add("out_shape", list(r.shapes[i])).add("kernel", quoted(s.kernel)).add("isa", quoted(s.isa));
    row.add("why", quoted(s.why)).add("median", r.step_ms.empty() ? "null" : number(r.step_ms[i]));
    out += (i ? ",\n    " : "\n    ") + row.str();
  }
  return "[" + out + "\n  ]";
}

std::string samples_json(const std::vector<double>& samples) {
  std::string out;
  for (const double x : samples) out += (out.empty() ? "" : ", ") + number(x);
  return "[" + out + "]";
}

std::string total_json(const Report& r) {
  if (!r.timed) return "null";
  Object total;
  total.add("median", number(r.total.median)).add("min", number(r.total.min)).add("p90", number(r.total.p90));
  total.add("samples", samples_json(r.total.samples));
  return Object().add("batch", "1").add("threads", std::to_string(r.asked.threads)).add("total", total.str()).str();
}

}  // namespace

Latency latency_of(std::vector<double> samples) {
  std::vector<double> sorted = samples;
  std::sort(sorted.begin(), sorted.end());
  const size_t n = sorted.size();
  const double median = (sorted[n / 2] + sorted[(n - 1) / 2]) / 2;
  return {median, sorted[0], sorted[std::min(n - 1, n * 9 / 10)], std::move(samples)};
}

std::string table_of(const Report& r) {
  std::vector<std::vector<std::string>> rows = {{"step", "op", "output", "kernel", "ISA", "ms", "share"}};
  double sum = 0;
  for (const double ms : r.step_ms) sum += ms;
  for (size_t i = 0; i < r.steps.size(); ++i) {
    const StepInfo& s = r.steps[i];
    const double ms = r.step_ms.empty() ? 0 : r.step_ms[i];
    rows.push_back({printable(s.name), s.op, shape_text(r.shapes[i], "x"), s.kernel, s.isa, format("%.4f", ms),
                    format("%.1f%%", sum > 0 ? 100 * ms / sum : 0)});
  }
  rows.push_back({"total", "", "", "", r.isa, format("%.4f", sum), "100.0%"});
  std::vector<size_t> widths(rows[0].size());
  for (const auto& row : rows)
    for (size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], width_of(row[i]));
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string gap(widths[i] - width_of(row[i]), ' ');
      line += i >= 5 ? gap + row[i] : row[i] + gap;
      line += "  ";
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  if (r.timed)
    out += format("one image: median %.4f ms, best %.4f, 90%% within %.4f; %zu runs, %d thread%s\n", r.total.median,
                  r.total.min, r.total.p90, r.total.samples.size(), r.asked.threads, r.asked.threads > 1 ? "s" : "");
  out += format("loaded in %.2f ms, first image %.2f ms\n", r.load_ms, r.first_ms);
  const auto kilobytes = [](uint64_t bytes) { return static_cast<double>(bytes) / 1024; };
  out += format("memory %.0f KiB: program %.0f, file %.0f, layouts %.0f, arena %.0f, rest %.0f\n",
                kilobytes(r.peak_rss_bytes), kilobytes(r.program_bytes), kilobytes(r.file_bytes),
                kilobytes(r.layout_bytes), kilobytes(r.arena_bytes), kilobytes(r.rest()));
  return out;
}

std::string json_of(const Report& r) {
  Object host, memory, run, golden;
  host.add("cpu", quoted(cpu_name())).add("isa", quoted(r.isa));
  host.add("threads", std::to_string(r.asked.threads)).add("gpu", "null");
  memory.add("program", std::to_string(r.program_bytes)).add("rest", std::to_string(r.rest()));
  memory.add("file", std::to_string(r.file_bytes)).add("layouts", std::to_string(r.layout_bytes));
  memory.add("arena", std::to_string(r.arena_bytes)).add("peak_rss", std::to_string(r.peak_rss_bytes));
  run.add("input", quoted(r.asked.input)).add("output", quoted(r.asked.output));
  run.add("n", std::to_string(r.images)).add("outputs", std::to_string(r.outputs));
  run.add("seconds", number(r.run_seconds));
  const bool exact = r.golden_difference.empty();
  golden.add("exact", exact ? "true" : "false").add("difference", exact ? "null" : quoted(r.golden_difference));
  std::string out = "{\n  \"schema\": \"bitpress.native\",\n  \"schema_version\": 1,\n  \"bitpress\": ";
  out += quoted(BITPRESS_VERSION) + ",\n  \"host\": " + host.str();
  out += ",\n  \"artifact\": " + quoted(r.asked.model);
  out += ",\n  \"in_shape\": " + list(r.in_shape) + ",\n  \"out_shape\": " + list(r.out_shape);
  out += ",\n  \"load\": " + number(r.load_ms);
  out += ",\n  \"first\": " + (r.first_ms < 0 ? "null" : number(r.first_ms)) + ",\n  \"memory\": " + memory.str();
  out += ",\n  \"steps\": " + steps_json(r);
  out += ",\n  \"golden\": " + (r.golden_checked ? golden.str() : "null");
  out += ",\n  \"run\": " + (r.ran ? run.str() : "null");
  out += ",\n  \"bench\": " + total_json(r);
  return out + "\n}\n";
}

}  // namespace bitpress::tool
