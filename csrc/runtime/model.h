// What a file becomes at load: its program, bound to kernels of this host, with their weights laid out.
// Immutable from then on, so that any number of sessions on any threads may share it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "bound.h"

namespace bitpress {

struct Model {
  // Reads and checks the bytes of a .bpk, which may be freed afterwards, and binds kernel rows as the environment
  // allows. Error: kCorrupt, kUsage, kEnvironment, kUnsupported.
  explicit Model(Bytes file);

  Program program;  // without what the bound steps have laid out: fields, code sums, m and b
  Choice choice;
  std::vector<Bound> steps;
  size_t weight_bytes = 0, scratch_bytes = 0;  // of all steps; of the step that needs most, for each thread
  size_t most_images = 1;                      // run together

 private:
  void link_steps();
};

// A file's uint8 images [n, H, W, C] -> float32 [n, C, H, W], (x/255 - mean)/std, each operation rounded
// (`normalize_u8` of core/quant.py).
void normalize_u8(const Program& program, const uint8_t* images, size_t n, float* out);

// All bytes of a regular file. Error(kUsage) where it cannot be read. Of a file that does not begin as a .bpk does,
// only the first bytes: enough for the refusal, and nothing is allocated for what is not ours.
struct FileBytes {
  std::unique_ptr<uint8_t[]> data;
  size_t size = 0;
  Bytes view() const { return {data.get(), size}; }
};
FileBytes read_file(const char* path);

// The same bytes as pages of the file itself, for as long as this lives. Whoever shortens the file meanwhile ends the
// process by SIGBUS, and whoever changes it changes bytes that have been checked.
class MappedFile {
 public:
  explicit MappedFile(const char* path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  Bytes view() const { return {static_cast<const uint8_t*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace bitpress
