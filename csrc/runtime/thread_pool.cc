#include "thread_pool.h"

#include <algorithm>
#include <chrono>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

namespace bitpress {

// Keeps workers off the caller's CPU. A sleeper that is woken while every CPU is busy (threads of another runtime spin
// for a while after their work) is queued behind its waker. Where CPUs are told to share no cache, as virtual ones
// often are, it stays there from then on: no search for an idle CPU goes beyond a shared cache, and caller and worker
// take turns in sleeping, so that no balancer sees two that want to run. Two threads then take longer than one.
class Apart {
 public:
#if defined(__linux__)
  explicit Apart(int threads) {
    CPU_ZERO(&allowed_);
    if (sched_getaffinity(0, sizeof allowed_, &allowed_) != 0 || CPU_COUNT(&allowed_) < threads) CPU_ZERO(&allowed_);
  }

  // Before a wake. One look at the number of the CPU where the caller stayed there. A refusal (sandboxes) changes
  // nothing but speed.
  void caller_is_here(std::vector<std::thread>& workers) {
    const int here = sched_getcpu();
    if (here == avoided_ || here < 0 || here >= CPU_SETSIZE || !CPU_ISSET(here, &allowed_)) return;
    cpu_set_t others = allowed_;
    CPU_CLR(here, &others);
    for (std::thread& worker : workers) pthread_setaffinity_np(worker.native_handle(), sizeof others, &others);
    avoided_ = here;
  }

 private:
  cpu_set_t allowed_;  // of the thread that made the pool; none where there are fewer than threads
  int avoided_ = -1;
#else
  explicit Apart(int) {}
  void caller_is_here(std::vector<std::thread>&) {}
#endif
};

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

ThreadPool::ThreadPool(int threads) : apart_(std::make_unique<Apart>(threads)) {
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
    apart_->caller_is_here(workers_);
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
