// bitpress-run: a compiled network on the command line, without Python. Errors become one sentence and an exit code,
// those of the command `bitpress`.
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>

#include "arguments.h"
#include "kernel_bench.h"
#include "npy.h"
#include "report.h"
#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/session.h"

namespace bitpress::tool {
namespace {

constexpr size_t kImages = 64;         // read, run and written together
constexpr double kTableSeconds = 0.1;  // for a table that nobody asked to be accurate
constexpr size_t kFewestSamples = 5, kMostSamples = 100000;
constexpr int kInternal = 70;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<uint64_t> shape_of(const Buffer& b) { return {b.c, b.h, b.w}; }

// Of this program alone: what getrusage says begins with the memory of the process that started it.
uint64_t peak_rss() {
  const File file(std::fopen("/proc/self/status", "re"));
  char line[128];
  while (file && std::fgets(line, sizeof line, file.get()))  // no scanf: it brings 90 kB of the C library
    if (std::strncmp(line, "VmHWM:", 6) == 0) return std::strtoull(line + 6, nullptr, 10) * 1024;
  return 0;
}

// Number of images; Error(kUsage) unless the array is one of the two that the network takes.
uint64_t images_of(const NpyHeader& array, const Buffer& in) {
  const auto text = [](std::vector<uint64_t> shape) {
    std::string out;
    for (const uint64_t n : shape) out += (out.empty() ? "" : ", ") + std::to_string(n);
    return out;
  };
  const bool bytes = array.element == 1;
  const std::vector<uint64_t> one = bytes ? std::vector<uint64_t>{in.h, in.w, in.c} : shape_of(in);
  if (array.shape.size() == 4 && std::vector<uint64_t>(array.shape.begin() + 1, array.shape.end()) == one)
    return array.shape[0];
  throw Error(Code::kUsage, "input is " + array.dtype + " [" + text(array.shape) + "], the network takes float32 [N, " +
                                text(shape_of(in)) + "] (normalised) or uint8 [N, " + text({in.h, in.w, in.c}) + "]");
}

void check_finite(const std::vector<float>& x, size_t size, uint64_t first, size_t per_image) {
  for (size_t i = 0; i < size; ++i)
    if (!std::isfinite(x[i]))
      throw Error(Code::kUsage, "input holds NaN or infinity: value " + std::to_string(i % per_image) + " of image " +
                                    std::to_string(first + i / per_image));
}

void run_file(const Model& model, Session* session, Report* report) {
  NpyReader reader(report->asked.input);
  const Buffer& in = session->in();
  const uint64_t n = images_of(reader.header(), in);
  const size_t size = in.elements(), outputs = session->out().elements();
  if (n > UINT64_MAX / sizeof(float) / outputs)
    throw Error(Code::kUsage, std::to_string(n) + " images have more outputs than a file can hold");
  WholeFile writer(report->asked.output);
  const std::string header = npy_header(n, outputs);
  writer.write(header.data(), header.size());
  const size_t most = static_cast<size_t>(std::min<uint64_t>(n, kImages));
  const bool is_bytes = reader.header().element == 1;
  std::vector<float> x(most * size), y(most * outputs);
  std::vector<uint8_t> bytes(is_bytes ? most * size : 0);
  const double start = seconds();
  for (uint64_t first = 0; first < n; first += most) {
    const size_t images = static_cast<size_t>(std::min<uint64_t>(n - first, most));
    if (is_bytes) {
      reader.read(bytes.data(), images * size);
      normalize_u8(model.program, bytes.data(), images, x.data());
    } else {
      reader.read(x.data(), images * size * sizeof(float));
    }
    check_finite(x, images * size, first, size);
    session->run(x.data(), images, y.data());
    writer.write(y.data(), images * outputs * sizeof(float));
  }
  writer.finish();
  report->ran = true;
  report->images = n;
  report->outputs = outputs;
  report->run_seconds = seconds() - start;
}

// Calls once() for a while and gives the milliseconds of each call.
template <class Once>
std::vector<double> sample(double duration, const Once& once) {
  std::vector<double> out;
  for (const double start = seconds(); out.size() < kMostSamples;) {
    const double before = seconds();
    if (out.size() >= kFewestSamples && before - start > duration) break;
    once();
    out.push_back(1e3 * (seconds() - before));
  }
  return out;
}

void time_steps(const Model& model, Session* session, Report* report) {
  std::vector<float> x = model.program.golden_input, y(session->out().elements());
  x.resize(session->in().elements());  // zeros where the file holds no sample: no kernel's time depends on values
  report->first_ms = sample(0, [&] { session->run(x.data(), 1, y.data()); })[0];
  const double duration = report->asked.bench ? report->asked.seconds : kTableSeconds;
  sample(duration / 8, [&] { session->run(x.data(), 1, y.data()); });
  if (report->asked.bench) {
    report->total = latency_of(sample(duration * 5 / 8, [&] { session->run(x.data(), 1, y.data()); }));
    report->timed = true;
  }
  std::vector<std::vector<double>> runs(report->steps.size());
  sample(duration / 4, [&] {
    std::vector<double> ms(runs.size());
    session->profile(x.data(), 1, y.data(), ms.data());
    for (size_t i = 0; i < ms.size(); ++i) runs[i].push_back(ms[i]);
  });
  for (std::vector<double>& samples : runs) report->step_ms.push_back(latency_of(std::move(samples)).median);
}

Report describe(const Arguments& asked, const Model& model, const Session& session) {
  Report out;
  out.asked = asked;
  out.isa = session.isa();
  out.in_shape = shape_of(session.in());
  out.out_shape = shape_of(session.out());
  out.steps = session.steps();
  for (const Step& s : model.program.steps) out.shapes.push_back(shape_of(model.program.buffers[s.output]));
  out.layout_bytes = model.weight_bytes;
  out.arena_bytes = model.program.arena_bytes;
  return out;
}

void say(const std::string& text, FILE* to) { std::fwrite(text.data(), 1, text.size(), to); }

void print(const Report& r) {
  if (!r.step_ms.empty()) say(table_of(r), stdout);
  const std::string where =
      "(" + r.isa + ", " + std::to_string(r.asked.threads) + (r.asked.threads > 1 ? " threads)\n" : " thread)\n");
  if (r.golden_checked && r.golden_difference.empty()) say("the golden sample comes out exactly " + where, stdout);
  char text[64];
  std::snprintf(text, sizeof text, "%llu images in %.3f s: ", static_cast<unsigned long long>(r.images), r.run_seconds);
  if (r.ran) say(text + r.asked.output + " " + where, stdout);
}

int work(const Arguments& asked) {
  const uint64_t program_bytes = peak_rss();
  const double start = seconds();
  FileBytes file = read_file(asked.model.c_str());
  const auto model = std::make_shared<const Model>(file.view());
  const uint64_t file_bytes = file.size;
  file = {};
  Session session(model, asked.threads);
  const double load_ms = 1e3 * (seconds() - start);
  Report report = describe(asked, *model, session);
  report.load_ms = load_ms;
  report.program_bytes = program_bytes;
  report.file_bytes = file_bytes;
  if (asked.verify) {
    report.golden_checked = true;
    try {
      session.check_golden();
    } catch (const Error& error) {
      if (error.code() != Code::kCheckFailed) throw;
      report.golden_difference = error.what();
    }
  }
  const bool right = report.golden_difference.empty();
  if (right && !asked.input.empty()) run_file(*model, &session, &report);
  if (right && (asked.bench || (!asked.verify && asked.input.empty()))) time_steps(*model, &session, &report);
  report.peak_rss_bytes = peak_rss();
  if (asked.json == "-") {
    say(json_of(report), stdout);
  } else {
    print(report);
    if (!asked.json.empty()) {
      WholeFile document(asked.json);
      const std::string text = json_of(report);
      document.write(text.data(), text.size());
      document.finish();
    }
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) throw Error(Code::kUsage, "cannot write standard output");
  if (!right) throw Error(Code::kCheckFailed, asked.model + ": " + report.golden_difference);
  return 0;
}

int complain(int code, const std::string& message) {
  say("bitpress-run: " + message + "\n", stderr);
  return code;
}

int guarded(int count, const char* const* words) {
  std::string model;
  try {
    const Arguments asked = parse(count, words);
    if (asked.help || asked.version) {
      say(asked.help ? kHelp : "bitpress-run " BITPRESS_VERSION "\n", stdout);
      return std::fflush(stdout) ? complain(2, "cannot write standard output") : 0;
    }
    if (!asked.kernel.empty()) {
      say(line_of(time_kernel(asked.kernel, asked.shape, asked.seconds)), stdout);
      return std::fflush(stdout) ? complain(2, "cannot write standard output") : 0;
    }
    model = asked.model;
    return work(asked);
  } catch (const Error& error) {
    const bool about = !model.empty() && (error.code() == Code::kCorrupt || error.code() == Code::kUnsupported);
    const std::string of = about ? model + ": " : "";
    return complain(static_cast<int>(error.code()), of + error.what());
  } catch (const std::bad_alloc&) {
    return complain(static_cast<int>(Code::kEnvironment), "out of memory");
  } catch (const std::system_error& error) {
    return complain(static_cast<int>(Code::kEnvironment), std::string("no thread can be started: ") + error.what());
  } catch (const std::exception& error) {
    return complain(kInternal, std::string("a mistake of ours: ") + error.what());
  }
}

}  // namespace
}  // namespace bitpress::tool

// Nothing is thrown past guarded(); the library's own handler, which would be linked, brings a demangler of 50 kB.
namespace __gnu_cxx {
void __verbose_terminate_handler() { std::abort(); }
}  // namespace __gnu_cxx

int main(int count, char** words) { return bitpress::tool::guarded(count, words); }
