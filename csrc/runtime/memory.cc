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
constexpr size_t kMostWaste = 512 << 10;  // of all large pages that are not full; what a session takes is promised

thread_local Together* together = nullptr;

std::shared_ptr<uint8_t> aligned(size_t bytes, size_t to) {
  void* p = nullptr;
  if (posix_memalign(&p, to, bytes) != 0) throw std::bad_alloc();
  return {static_cast<uint8_t*>(p), std::free};
}

// On large pages where it fills some.
std::shared_ptr<uint8_t> made(size_t bytes) {
  if (bytes < kLargePage) return aligned(bytes, 64);
  std::shared_ptr<uint8_t> out = aligned(bytes, kLargePage);
#if defined(__linux__)
  madvise(out.get(), bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  return out;
}

}  // namespace

Together::Together() : before_(together) { together = this; }

Together::~Together() {
  together = before_;
  join();
}

// Makes a large page of what has been filled: only then is it known how much of one would be wasted.
void Together::join() {
  if (!page_ || wasted_ + left_ > kMostWaste) return;
#if defined(__linux__)
  constexpr int kCollapse = 25;  // MADV_COLLAPSE, which older headers lack; older systems leave it as it is
  if (madvise(page_.get(), kLargePage, kCollapse) == 0) wasted_ += left_;
#endif
}

std::shared_ptr<uint8_t> Together::take(size_t bytes) {
  if (bytes >= kLargePage) return nullptr;
  if (bytes > left_) {
    join();
    page_ = aligned(kLargePage, kLargePage);
    left_ = kLargePage;
  }
  left_ -= bytes;
  return {page_, page_.get() + left_};
}

Memory::Memory(size_t size) : size_(size) {
  const size_t bytes = padded(size + gemm::kSlack, 64);
  if (together) data_ = together->take(bytes);
  if (!data_) data_ = made(bytes);
  std::memset(data_.get(), 0, bytes);
}

}  // namespace bitpress
