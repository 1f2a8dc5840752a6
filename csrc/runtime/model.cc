#include "model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <string>

#include "error.h"

namespace bitpress {
namespace {

// Images are run together while their values stay in the second-level cache, or while they are smaller than the weights
// that would otherwise be read again for each image.
constexpr size_t kChunkBytes = 256 << 10;
constexpr size_t kMostImages = 64;

constexpr size_t kPeek = 64;  // bytes of the header, read before the rest

struct Descriptor {
  int number;
  explicit Descriptor(int opened) : number(opened) {}
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() {
    if (number >= 0) close(number);
  }
};

[[noreturn]] void unreadable(const char* path, const std::string& why) {
  throw Error(Code::kUsage, std::string("cannot read ") + path + ": " + why);
}

Descriptor open_regular(const char* path, size_t* size) {
  const int number = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe without a writer must not block
  if (number < 0) unreadable(path, std::strerror(errno));
  struct stat facts;
  const int failed = fstat(number, &facts) != 0 ? errno : 0;
  const bool regular = !failed && S_ISREG(facts.st_mode);
  if (!regular) close(number);
  if (failed) unreadable(path, std::strerror(failed));
  if (!regular) unreadable(path, "it is no regular file");
  *size = static_cast<size_t>(facts.st_size);
  return Descriptor(number);
}

// Fewer than `size` only where the file ends.
size_t read_whole(int file, uint8_t* to, size_t size, const char* path) {
  size_t done = 0;
  while (done < size) {
    const ssize_t got = read(file, to + done, std::min<size_t>(size - done, size_t{1} << 30));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) unreadable(path, std::strerror(errno));
    if (got == 0) break;
    done += static_cast<size_t>(got);
  }
  return done;
}

}  // namespace

Model::Model(Bytes file) : program(read_program(file)), choice(Choice::from_environment()) {
  const Together together;
  steps.reserve(program.steps.size());
  for (Step& step : program.steps) {
    steps.emplace_back(step, program, choice);
    weight_bytes += steps.back().weight_bytes();
    scratch_bytes = std::max(scratch_bytes, steps.back().scratch_bytes());
    step.m = {};  // what is needed of these has been copied
    step.b = {};
    step.fields = {};
  }
  link_steps();
  const size_t image = std::max<size_t>(program.arena_bytes, 64);
  most_images = std::clamp<size_t>(std::max(kChunkBytes, weight_bytes) / image, 1, kMostImages);
}

// Buffers that one step writes and one reads, as its input, need not hold levels.
void Model::link_steps() {
  std::vector<uint32_t> writers(program.buffers.size(), 0), readers(program.buffers.size(), 0);
  for (const Step& s : program.steps) {
    ++writers[s.output];
    ++readers[s.data];
    if (s.residual != kNone) ++readers[s.residual];
  }
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = i + 1; j < steps.size(); ++j) {
      const uint32_t buffer = program.steps[i].output;
      if (program.steps[j].data == buffer && writers[buffer] == 1 && readers[buffer] == 1 && buffer != program.output)
        Bound::link(steps[i], steps[j]);
    }
}

void normalize_u8(const Program& program, const uint8_t* images, size_t n, float* out) {
  const Buffer& in = program.in();
  const size_t plane = in.h * in.w, size = in.elements();
  for (size_t i = 0; i < n; ++i)
    for (size_t c = 0; c < in.c; ++c) {
      const float mean = program.mean[c], std = program.std[c];
      const uint8_t* from = images + i * size + c;
      float* to = out + i * size + c * plane;
      for (size_t p = 0; p < plane; ++p) {
        const float x = static_cast<float>(from[p * in.c]) / 255.0f;
        to[p] = (x - mean) / std;
      }
    }
}

FileBytes read_file(const char* path) {
  size_t size = 0;
  const Descriptor file = open_regular(path, &size);
  uint8_t head[kPeek];
  const size_t peeked = read_whole(file.number, head, std::min(size, kPeek), path);
  const bool ours = peeked == kPeek && has_magic({head, kPeek});
  FileBytes out;
  out.data.reset(new uint8_t[ours ? size : kPeek]);
  std::memcpy(out.data.get(), head, peeked);
  out.size = peeked;
  if (ours) out.size += read_whole(file.number, out.data.get() + peeked, size - peeked, path);
  return out;
}

MappedFile::MappedFile(const char* path) {
  const Descriptor file = open_regular(path, &size_);
  if (size_ == 0) return;
  void* const data = mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.number, 0);
  if (data == MAP_FAILED) unreadable(path, std::strerror(errno));
  data_ = data;
}

MappedFile::~MappedFile() {
  if (data_) munmap(data_, size_);
}

}  // namespace bitpress
