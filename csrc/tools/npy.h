// Arrays of numpy: a strict reader of the two kinds that a network takes, and a writer of its outputs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

namespace bitpress::tool {

struct CloseFile {
  void operator()(FILE* file) const { std::fclose(file); }
};
using File = std::unique_ptr<FILE, CloseFile>;

struct NpyHeader {
  std::string dtype;  // "float32", "uint8"
  size_t element = 0;
  std::vector<uint64_t> shape;
  uint64_t data_bytes = 0;  // product of the shape times element, below 2^63
};

// The header in the dictionary that a .npy begins with, {'descr': '<f4', 'fortran_order': False, 'shape': (1, 3)}.
// Error(kUsage) if anything about it is not as numpy writes it, or the numbers are of another kind.
NpyHeader parse_npy_header(const std::string& text);

// Reads an array front to back. All sizes have been compared with the file's when it is made; memory is the caller's.
class NpyReader {
 public:
  // Error(kUsage): no such file, no .npy of version 1 to 3, other numbers than float32 and uint8, Fortran order, fewer
  // or more bytes than the shape says.
  explicit NpyReader(const std::string& path);
  const NpyHeader& header() const { return header_; }
  void read(void* to, size_t bytes);

 private:
  std::string path_;
  File file_;
  NpyHeader header_;
};

// A file that appears whole or not at all: it is written beside its place and renamed when finished.
class WholeFile {
 public:
  explicit WholeFile(const std::string& path);
  ~WholeFile();
  WholeFile(const WholeFile&) = delete;
  WholeFile& operator=(const WholeFile&) = delete;
  void write(const void* from, size_t bytes);
  void finish();

 private:
  [[noreturn]] void fail();
  std::string path_, temporary_;
  File file_;
};

// Header of a float32 array [rows, columns], the bytes of numpy.save.
std::string npy_header(uint64_t rows, uint64_t columns);

}  // namespace bitpress::tool
