#include "thread_pool.h"

#include <algorithm>
#include <chrono>

namespace bitpress {
namespace {

// Steps of a small network follow each other within microseconds, and waking a sleeper costs about 50 of them.
constexpr auto kSpin = std::chrono::microseconds(50);

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// True as soon as `ready` is, false if it is not within kSpin.
template <class Ready>
bool spin(const Ready& ready) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return false;
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  try {
    for (int i = 1; i < threads; ++i) workers_.emplace_back(&ThreadPool::work, this, i);
  } catch (...) {  // the host has no more threads: those that run must end before this object does
    stop();
    throw;
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stop_ = true;
  generation_.fetch_add(1);
  {
    std::lock_guard<std::mutex> lock(mutex_);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run_part(int thread) const {
  const size_t n = workers_.size() + 1, i = static_cast<size_t>(thread);
  const size_t begin = items_ * i / n, end = items_ * (i + 1) / n;
  if (begin < end) call_(context_, begin, end, thread);
}

void ThreadPool::run_erased(size_t items, const void* context, Call call) {
  items_ = items;
  context_ = context;
  call_ = call;
  pending_ = static_cast<int>(workers_.size());
  generation_.fetch_add(1);
  if (sleepers_.load() > 0) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }
  run_part(0);
  const auto finished = [this] { return pending_.load() == 0; };
  if (spin(finished)) return;
  std::unique_lock<std::mutex> lock(mutex_);
  done_.wait(lock, finished);
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  const auto called = [this, &seen] { return generation_.load() != seen; };
  for (;;) {
    if (!spin(called)) {
      std::unique_lock<std::mutex> lock(mutex_);
      sleepers_.fetch_add(1);
      wake_.wait(lock, called);
      sleepers_.fetch_sub(1);
    }
    seen = generation_.load();
    if (stop_) return;
    run_part(thread);
    if (pending_.fetch_sub(1) == 1) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
      }
      done_.notify_one();
    }
  }
}

}  // namespace bitpress
