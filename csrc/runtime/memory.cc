#include "memory.h"

#include <cstdlib>
#include <cstring>
#include <new>

#include "../gemm/contract.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bitpress {
namespace {

// More than a few MB on pages of 4 KB is more than the TLBs reach: ResNet-18 and VGG7 took 1.15 times as long, and
// MobileNets, no layout of which fills a large page alone, 1.05 times.
constexpr size_t kLargePage = 2 << 20;
constexpr size_t kWorthwhile = kLargePage / 4;  // of memory, for which the rest of a large page may be wasted

thread_local Together* together = nullptr;

std::shared_ptr<uint8_t> made(size_t bytes, bool large) {
  void* p = nullptr;
  if (large) bytes = padded(bytes, kLargePage);
  if (posix_memalign(&p, large ? kLargePage : 64, bytes) != 0) throw std::bad_alloc();
#if defined(__linux__)
  if (large) madvise(p, bytes, MADV_HUGEPAGE);
#endif
  return {static_cast<uint8_t*>(p), std::free};
}

}  // namespace

Together::Together() : before_(together) { together = this; }
Together::~Together() { together = before_; }

std::shared_ptr<uint8_t> Together::take(size_t bytes) {
  seen_ += bytes;
  if (seen_ < kWorthwhile) return nullptr;
  if (bytes > left_) {
    left_ = padded(bytes, kLargePage);
    page_ = made(left_, true);
  }
  left_ -= bytes;
  return {page_, page_.get() + left_};
}

Memory::Memory(size_t size) : size_(size) {
  const size_t bytes = padded(size + gemm::kSlack, 64);
  if (together) data_ = together->take(bytes);
  if (!data_) data_ = made(bytes, bytes >= kWorthwhile);
  std::memset(data_.get(), 0, bytes);
}

}  // namespace bitpress
