// Memory of layouts, arenas and scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

namespace bitpress {

// `n` rounded up to a multiple of `to`.
inline size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Zeroed bytes, aligned to cache lines, with gemm::kSlack more behind them; on large pages from kLargePage on, where
// the system gives them.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size);
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };
  std::unique_ptr<uint8_t[], Free> data_;
  size_t size_ = 0;
};

}  // namespace bitpress
