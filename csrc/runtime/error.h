// What can go wrong, as a code (the command line's exit code) and a sentence with the numbers.
#pragma once

#include <stdexcept>
#include <string>

namespace bitpress {

enum class Code { kCheckFailed = 1, kUsage = 2, kUnsupported = 3, kCorrupt = 4, kEnvironment = 5 };

// Thrown inside the library only; every boundary (C, Python) turns it into a status or that language's exception.
class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const { return code_; }

 private:
  Code code_;
};

// A file breaks a rule of docs/format.md; `name` is the rule's error name, with which the message begins.
[[noreturn]] inline void corrupt(const char* name, const std::string& detail) {
  throw Error(Code::kCorrupt, std::string(name) + ": " + detail);
}

}  // namespace bitpress
