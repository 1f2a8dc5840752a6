#include "memory.h"

#include <cstring>
#include <new>

#include "../gemm/contract.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace bitpress {
namespace {

// Layouts of more than 8 MB, on pages of 4 KB, are more than the TLBs reach: ResNet-18 and VGG7 took 1.15 times as
// long. On memory of less than a large page, a rest of one would be wasted; MobileNets gained nothing by that.
constexpr size_t kLargePage = 2 << 20;

}  // namespace

Memory::Memory(size_t size) : size_(size) {
  const bool large = size >= kLargePage;
  const size_t bytes = padded(size + gemm::kSlack, 64);
  void* made = nullptr;
  if (posix_memalign(&made, large ? kLargePage : 64, bytes) != 0) throw std::bad_alloc();
  data_.reset(static_cast<uint8_t*>(made));
#if defined(__linux__)
  if (large) madvise(data_.get(), bytes / kLargePage * kLargePage, MADV_HUGEPAGE);
#endif
  std::memset(data_.get(), 0, bytes);
}

}  // namespace bitpress
