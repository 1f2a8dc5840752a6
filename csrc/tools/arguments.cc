#include "arguments.h"

#include <cctype>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "runtime/error.h"

namespace bitpress::tool {
namespace {

constexpr double kLeastSeconds = 0.01, kMostSeconds = 3600;

[[noreturn]] void usage(const std::string& message) { throw Error(Code::kUsage, message); }

int thread_count(const std::string& text, const char* source) {
  bool digits = !text.empty() && text.size() <= 3;
  for (const char c : text) digits = digits && c >= '0' && c <= '9';
  const int threads = digits ? std::atoi(text.c_str()) : 0;
  if (threads < 1 || threads > 256)
    usage(std::string(source) + "='" + text + "': valid values are whole numbers from 1 to 256");
  return threads;
}

bool is_number(const std::string& text, double* out) {
  if (text.empty() || !(std::isdigit(static_cast<unsigned char>(text[0])) || text[0] == '.')) return false;
  char* end = nullptr;
  *out = std::strtod(text.c_str(), &end);
  return *end == 0;
}

// The words of the command line, with "--name=value" taken apart.
class Words {
 public:
  Words(int count, const char* const* words) {
    for (int i = 1; i < count; ++i) {
      const std::string word = words[i];
      const size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : std::string::npos;
      words_.push_back({word.substr(0, equals), equals != std::string::npos});
      if (equals != std::string::npos) words_.push_back({word.substr(equals + 1), false});
    }
  }
  bool empty() const { return at_ == words_.size(); }
  std::string next() {
    attached_ = words_[at_].attached;
    return words_[at_++].text;
  }
  // Whether a value follows: anything that is no option, or whatever "=" has tied to the word before.
  bool has_value() const { return attached_ || (!empty() && words_[at_].text.rfind("--", 0) != 0); }
  bool attached() const { return attached_; }
  const std::string& peek() const { return words_[at_].text; }
  std::string value(const std::string& option) {
    if (!has_value()) usage(option + " needs a value");
    return next();
  }

 private:
  struct Word {
    std::string text;
    bool attached;  // the next word is its value
  };
  std::vector<Word> words_;
  size_t at_ = 0;
  bool attached_ = false;
};

void read_seconds(Words* words, Arguments* out) {
  if (!words->has_value()) return;
  double seconds = 0;
  const bool number = is_number(words->peek(), &seconds);
  if (!number && !words->attached()) return;  // the model's name
  if (!number || !(seconds >= kLeastSeconds && seconds <= kMostSeconds))
    usage("--bench " + words->peek() + ": seconds from 0.01 to 3600 are valid");
  words->next();
  out->seconds = seconds;
}

void read_option(const std::string& word, Words* words, Arguments* out) {
  if (word == "--input")
    out->input = words->value(word);
  else if (word == "--output")
    out->output = words->value(word);
  else if (word == "--threads")
    out->threads = thread_count(words->value(word), "--threads");
  else if (word == "--json")
    out->json = words->has_value() ? words->next() : "-";
  else if (word == "--bench-kernel")
    out->kernel = words->value(word), out->shape = words->value(word);
  else if (word == "--bench")
    out->bench = true, read_seconds(words, out);
  else if (words->attached() && (word == "--verify" || word == "--help" || word == "--version"))
    usage(word + " takes no value");
  else if (word == "--verify")
    out->verify = true;
  else if (word == "--help" || word == "-h")
    out->help = true;
  else if (word == "--version")
    out->version = true;
  else
    usage("unknown option " + word + "; bitpress-run --help lists them");
}

void read_environment(Arguments* out) {
  if (const char* native = std::getenv("BITPRESS_NATIVE"); native && *native) {
    if (std::strcmp(native, "0") != 0 && std::strcmp(native, "1") != 0)
      usage(std::string("BITPRESS_NATIVE='") + native + "': valid values are 0 and 1");
    if (*native == '0')
      throw Error(Code::kEnvironment,
                  "BITPRESS_NATIVE=0 forbids native code, and this program is nothing else: "
                  "unset it, or use `bitpress run`");
  }
  if (const char* threads = std::getenv("BITPRESS_NUM_THREADS"))
    out->threads = thread_count(threads, "BITPRESS_NUM_THREADS");
}

}  // namespace

const char kHelp[] =
    "usage: bitpress-run X.bpk [OPTION ...]\n"
    "\n"
    "Runs a compiled network. Without an option it prints the steps, the kernel of each and its milliseconds.\n"
    "\n"
    "  --input X.npy      float32 [N, C, H, W], normalised, or uint8 [N, H, W, C]\n"
    "  --output Y.npy     float32 [N, outputs]; with --input\n"
    "  --verify           runs the golden sample inside the file; exit code 1 unless it comes out exactly\n"
    "  --bench [SECONDS]  latency of one image and of each step (2 seconds)\n"
    "  --bench-kernel ROW SHAPE   times one kernel, without X.bpk; SHAPE is MxKxN:WxA, as 64x576x64:i2xu2\n"
    "  --threads N        1 to 256 (1, or BITPRESS_NUM_THREADS)\n"
    "  --json [PATH|-]    the same as a document; on standard output nothing else is printed then\n"
    "  --version, --help\n"
    "\n"
    "Exit codes: 0 ok, 1 a check failed, 2 usage, 3 no kernel, 4 corrupt file, 5 environment.\n";

Arguments parse(int count, const char* const* list) {
  Arguments out;
  read_environment(&out);
  for (Words words(count, list); !words.empty();) {
    const std::string word = words.next();
    if (word.size() > 1 && word[0] == '-')
      read_option(word, &words, &out);
    else if (out.model.empty() && !word.empty())
      out.model = word;
    else
      usage("one X.bpk is expected, '" + word + "' is too much");
  }
  if (out.help || out.version) return out;
  if (!out.kernel.empty()) {
    if (!out.model.empty() || !out.input.empty() || !out.output.empty() || !out.json.empty() || out.verify)
      usage("--bench-kernel needs no X.bpk and goes with --bench SECONDS only");
    return out;
  }
  if (out.model.empty()) usage("no X.bpk is given; bitpress-run --help says more");
  if (out.input.empty() != out.output.empty()) usage("--input and --output come together");
  return out;
}

}  // namespace bitpress::tool
