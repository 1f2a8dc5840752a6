#include "npy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <limits>

#include "runtime/error.h"

namespace bitpress::tool {
namespace {

constexpr char kMagic[6] = {'\x93', 'N', 'U', 'M', 'P', 'Y'};
constexpr uint32_t kMostHeader = 1 << 16;  // numpy itself refuses more than 10,000 characters unless told otherwise
constexpr size_t kMostAxes = 32;
constexpr uint64_t kMostBytes = std::numeric_limits<int64_t>::max();

[[noreturn]] void refuse(const std::string& detail) { throw Error(Code::kUsage, detail); }

// A literal of Python, as far as numpy's headers need it.
class Literal {
 public:
  explicit Literal(const std::string& text) : text_(text) {}

  bool take(const char* token) {
    skip();
    const size_t size = std::strlen(token);
    if (text_.compare(at_, size, token) != 0) return false;
    at_ += size;
    return true;
  }
  void expect(const char* token) {
    if (!take(token)) refuse("its header has no " + std::string(token) + " at character " + std::to_string(at_));
  }
  std::string quoted() {
    skip();
    const char quote = at_ < text_.size() ? text_[at_] : 0;
    const size_t end = quote == '\'' || quote == '"' ? text_.find(quote, at_ + 1) : std::string::npos;
    if (end == std::string::npos) refuse("its header has no string at character " + std::to_string(at_));
    const std::string out = text_.substr(at_ + 1, end - at_ - 1);
    at_ = end + 1;
    return out;
  }
  uint64_t number() {
    skip();
    uint64_t out = 0;
    const size_t begin = at_;
    for (; at_ < text_.size() && text_[at_] >= '0' && text_[at_] <= '9'; ++at_) {
      const uint64_t digit = static_cast<uint64_t>(text_[at_] - '0');
      if (out > (kMostBytes - digit) / 10) refuse("a length in its shape is above " + std::to_string(kMostBytes));
      out = out * 10 + digit;
    }
    if (at_ == begin) refuse("its header has no number at character " + std::to_string(at_));
    return out;
  }
  void end() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n')) ++at_;
    if (at_ != text_.size()) refuse("its header goes on behind the dictionary, at character " + std::to_string(at_));
  }

 private:
  void skip() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  const std::string& text_;
  size_t at_ = 0;
};

std::vector<uint64_t> shape_of(Literal* text) {
  std::vector<uint64_t> out;
  text->expect("(");
  while (!text->take(")")) {
    if (out.size() == kMostAxes) refuse("its shape has more than " + std::to_string(kMostAxes) + " axes");
    out.push_back(text->number());
    if (text->take(",")) continue;
    text->expect(")");
    if (out.size() == 1) refuse("its shape is no tuple");
    break;
  }
  return out;
}

void read_type(const std::string& descr, NpyHeader* out) {
  if (descr == "<f4")
    out->dtype = "float32", out->element = 4;
  else if (descr == "|u1" || descr == "<u1")
    out->dtype = "uint8", out->element = 1;
  else
    refuse("its numbers are '" + descr.substr(0, 32) + "', not float32 ('<f4') or uint8 ('|u1')");
}

void read_exactly(FILE* file, void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, file) != bytes)
    refuse(std::ferror(file) ? std::string("it cannot be read: ") + std::strerror(errno) : "it is too short");
}

// Length of what a little-endian number of `bytes` announces.
uint32_t read_length(FILE* file, size_t bytes) {
  uint8_t some[4] = {};
  read_exactly(file, some, bytes);
  return some[0] | static_cast<uint32_t>(some[1]) << 8 | static_cast<uint32_t>(some[2]) << 16 |
         static_cast<uint32_t>(some[3]) << 24;
}

NpyHeader read_header(FILE* file, uint64_t file_bytes) {
  char start[8];
  if (std::fread(start, 1, sizeof start, file) != sizeof start || std::memcmp(start, kMagic, sizeof kMagic) != 0)
    refuse("it does not begin as a .npy does");
  const int version = start[6];
  if (version < 1 || version > 3 || start[7] != 0)
    refuse("its version is " + std::to_string(start[6]) + "." + std::to_string(start[7]) + ", known are 1.0 to 3.0");
  const uint32_t size = read_length(file, version == 1 ? 2 : 4);
  if (size > kMostHeader)
    refuse("its header has " + std::to_string(size) + " bytes, at most " + std::to_string(kMostHeader) +
           " are allowed");
  std::string text(size, ' ');
  read_exactly(file, text.data(), size);
  NpyHeader out = parse_npy_header(text);
  const uint64_t begin = sizeof start + (version == 1 ? 2 : 4) + size;  // no more than the file, which holds it
  if (file_bytes - begin != out.data_bytes)
    refuse("it has " + std::to_string(file_bytes - begin) + " bytes of numbers, its shape says " +
           std::to_string(out.data_bytes));
  return out;
}

}  // namespace

NpyHeader parse_npy_header(const std::string& line) {
  NpyHeader out;
  Literal text(line);
  bool type = false, order = false, shape = false;
  text.expect("{");
  while (!text.take("}")) {
    const std::string key = text.quoted();
    text.expect(":");
    bool* seen = key == "descr" ? &type : key == "fortran_order" ? &order : key == "shape" ? &shape : nullptr;
    if (!seen || *seen) refuse("its header has an unknown key, or one twice: '" + key.substr(0, 32) + "'");
    *seen = true;
    if (seen == &type) {
      read_type(text.quoted(), &out);
    } else if (seen == &shape) {
      out.shape = shape_of(&text);
    } else if (!text.take("False")) {
      text.expect("True");
      refuse("it is in Fortran order: save numpy.ascontiguousarray(x)");
    }
    if (text.take(",")) continue;
    text.expect("}");
    break;
  }
  text.end();
  if (!type || !order || !shape) refuse("its header lacks descr, fortran_order or shape");
  out.data_bytes = out.element;
  bool empty = false;
  for (const uint64_t n : out.shape) empty = empty || n == 0;
  for (const uint64_t n : out.shape) {
    if (empty) break;
    if (out.data_bytes > kMostBytes / n) refuse("its shape has too many elements");
    out.data_bytes *= n;
  }
  if (empty) out.data_bytes = 0;
  return out;
}

NpyReader::NpyReader(const std::string& path) : path_(path) {
  const int number = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (number < 0) refuse("cannot read " + path + ": " + std::strerror(errno));
  file_.reset(fdopen(number, "rb"));
  if (!file_) {
    close(number);
    refuse("cannot read " + path + ": " + std::strerror(errno));
  }
  struct stat facts;
  if (fstat(number, &facts) != 0 || !S_ISREG(facts.st_mode)) refuse("cannot read " + path + ": it is no regular file");
  try {
    header_ = read_header(file_.get(), static_cast<uint64_t>(facts.st_size));
  } catch (const Error& error) {
    refuse(path + " is no .npy file that can be used: " + error.what());
  }
}

void NpyReader::read(void* to, size_t bytes) {
  if (std::fread(to, 1, bytes, file_.get()) != bytes) refuse("cannot read " + path_ + ": it has become shorter");
}

WholeFile::WholeFile(const std::string& path) : path_(path) {
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  const std::string temporary =
      path.substr(0, name) + "." + path.substr(name) + "." + std::to_string(getpid()) + ".tmp";
  file_.reset(std::fopen(temporary.c_str(), "wb"));
  if (!file_) fail();
  temporary_ = temporary;
}

WholeFile::~WholeFile() {
  if (!temporary_.empty()) unlink(temporary_.c_str());
}

void WholeFile::fail() { refuse("cannot write " + path_ + ": " + std::strerror(errno)); }

void WholeFile::write(const void* from, size_t bytes) {
  if (bytes && std::fwrite(from, 1, bytes, file_.get()) != bytes) fail();
}

void WholeFile::finish() {
  if (std::fflush(file_.get()) != 0 || fsync(fileno(file_.get())) != 0)
    fail();  // before the name says that it is whole
  if (std::fclose(file_.release()) != 0) fail();
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) fail();
  temporary_.clear();
}

std::string npy_header(uint64_t rows, uint64_t columns) {
  constexpr size_t kAlign = 64, kGrowth = 21;  // numpy leaves room for the first axis to grow to 21 digits
  const std::string first = std::to_string(rows);
  std::string text = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + first + ", " + std::to_string(columns) +
                     "), }" + std::string(kGrowth - first.size(), ' ');
  const size_t prefix = sizeof kMagic + 4, used = prefix + text.size() + 1;
  text += std::string(kAlign - used % kAlign, ' ') + "\n";
  const char start[4] = {1, 0, static_cast<char>(text.size() & 0xFF), static_cast<char>(text.size() >> 8)};
  return std::string(kMagic, sizeof kMagic) + std::string(start, sizeof start) + text;
}

}  // namespace bitpress::tool
