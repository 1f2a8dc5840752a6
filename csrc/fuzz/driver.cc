// A fuzzer for compilers without libFuzzer: fuzz_X SECONDS SEED FILE...
// Runs every FILE as it is, then damages them at random. The damage knows the container of a .bpk so far as to make its
// checksums right again, so that it gets past them; -fsanitize does the watching. Ends with what it did, or by a crash,
// of which `crash-input` holds the bytes.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "seal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Input = std::vector<uint8_t>;

class Damage {
 public:
  Damage(uint64_t seed, const std::vector<Input>& corpus) : random_(seed), corpus_(corpus) {}

  Input make() {
    Input out = corpus_[below(corpus_.size())];
    for (size_t n = 1 + below(4); n > 0; --n) once(&out);
    if (below(8)) bitpress::seal(out.data(), out.size());
    return out;
  }

 private:
  size_t below(size_t n) { return n ? random_() % n : 0; }

  void once(Input* out) {
    static constexpr uint64_t kNumbers[] = {
        0,           1,     2,     7,     63,         64,         65,         127,        128,        255,
        256,         32767, 65535, 65536, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7F800000, 0x7FC00000, uint64_t{1} << 62,
        ~uint64_t{0}};
    if (out->empty()) return;
    const size_t at = below(out->size());
    switch (below(7)) {
      case 0:
        (*out)[at] = static_cast<uint8_t>(random_());
        return;
      case 1:
        (*out)[at] = static_cast<uint8_t>((*out)[at] ^ 1u << below(8));
        return;
      case 2:
      case 3: {  // a number of a record, where records lie
        const uint64_t number = kNumbers[below(std::size(kNumbers))];
        const size_t width = size_t{1} << below(4), place = at / width * width;
        if (place + width <= out->size()) std::memcpy(out->data() + place, &number, width);
        return;
      }
      case 4:
        out->resize(at);
        return;
      case 5: {  // a piece of another file, or of this one
        const Input& other = corpus_[below(corpus_.size())];
        const size_t from = below(other.size()) & ~size_t{3}, to = at & ~size_t{3};
        const size_t size = std::min({below(96), other.size() - std::min(from, other.size()), out->size() - to});
        if (size) std::memcpy(out->data() + to, other.data() + from, size);
        return;
      }
      default:
        out->insert(out->begin() + static_cast<ptrdiff_t>(at), 1 + below(70), static_cast<uint8_t>(below(256)));
    }
  }

  std::mt19937_64 random_;
  const std::vector<Input>& corpus_;
};

// An exact copy on the heap, so that a read behind the end is seen.
void run(const Input& input) {
  static const char* const kCrash = "crash-input";
  std::ofstream(kCrash, std::ios::binary)
      .write(reinterpret_cast<const char*>(input.data()), std::streamsize(input.size()));
  const Input copy(input.begin(), input.end());
  LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

}  // namespace

int main(int count, char** words) {
  if (count < 4) {
    std::fprintf(stderr, "usage: %s SECONDS SEED FILE...\n", words[0]);
    return 2;
  }
  std::vector<Input> corpus;
  for (int i = 3; i < count; ++i) {
    std::ifstream file(words[i], std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
    run(corpus.back());
  }
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(std::atof(words[1]));
  Damage damage(std::strtoull(words[2], nullptr, 10), corpus);
  uint64_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; ++runs) run(damage.make());
  std::remove("crash-input");
  std::printf("%llu inputs from a corpus of %zu, seed %s: none crashed\n", static_cast<unsigned long long>(runs),
              corpus.size(), words[2]);
  return 0;
}
