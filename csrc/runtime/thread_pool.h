// A fixed set of threads that run one job at a time, cut into equal ranges.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace bitpress {

class Apart;

// Thread rule: one caller at a time. Jobs must not throw. The cut depends on the number of threads only, and no job
// of ours depends on the cut, so that results are the same for any number of threads.
class ThreadPool {
 public:
  // The caller is one of the `threads` (at least 1); the others are started here.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls job(begin, end, thread) so that the ranges cover [0, items) once; returns when all are done.
  template <class Job>
  void run(size_t items, const Job& job) {
    if (items == 0) return;
    if (workers_.empty() || items == 1) return job(size_t{0}, items, 0);
    run_erased(items, &job, [](const void* context, size_t begin, size_t end, int thread) {
      (*static_cast<const Job*>(context))(begin, end, thread);
    });
  }

 private:
  using Call = void (*)(const void* context, size_t begin, size_t end, int thread);

  void run_erased(size_t items, const void* context, Call call);
  void run_part(int thread) const;
  void work(int thread);
  void stop();

  std::unique_ptr<Apart> apart_;
  std::vector<std::thread> workers_;
  size_t items_ = 0;
  const void* context_ = nullptr;
  Call call_ = nullptr;

  // Each wait spins first, then sleeps. A sleeper announces itself before it looks once more, a waker publishes before
  // it looks for sleepers; both are sequentially consistent, so that one of them sees the other.
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> pending_{0};
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::mutex mutex_;
  std::condition_variable wake_, done_;
};

}  // namespace bitpress
