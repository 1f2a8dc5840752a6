// Memory of layouts, arenas and scratch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace bitpress {

// `n` rounded up to a multiple of `to`.
inline size_t padded(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Zeroed bytes, aligned to cache lines, with gemm::kSlack more behind them; on large pages where they fill some and the
// system gives them.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size);
  uint8_t* data() const { return data_.get(); }
  size_t size() const { return size_; }

 private:
  std::shared_ptr<uint8_t> data_;
  size_t size_ = 0;
};

// While one lives, what this thread makes of Memory lies side by side, and becomes large pages where it fills them.
class Together {
 public:
  Together();
  ~Together();
  Together(const Together&) = delete;
  Together& operator=(const Together&) = delete;

  std::shared_ptr<uint8_t> take(size_t bytes);  // null: too large to lie beside others

 private:
  void join();

  Together* before_;
  std::shared_ptr<uint8_t> page_;
  size_t left_ = 0, wasted_ = 0;
};

}  // namespace bitpress
