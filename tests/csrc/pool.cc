// The thread pool under stress: every item once, whatever the numbers, with pauses that send the workers to sleep; and
// workers that wake elsewhere than where the caller runs.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "runtime/thread_pool.h"

namespace {

// How often a worker that slept runs where the caller runs: the caller is bound to each CPU in turn.
int together() {
  int wrong = 0;
#if defined(__linux__)
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0 || CPU_COUNT(&all) < 2) return 0;
  bitpress::ThreadPool pool(2);
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &all)) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) return 0;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));  // longer than workers spin
    pool.run(2, [&](size_t, size_t, int thread) { wrong += thread == 1 && sched_getcpu() == cpu; });
  }
  sched_setaffinity(0, sizeof all, &all);
#endif
  return wrong;
}

}  // namespace

int main() {
  int wrong = together();
  for (const int threads : {1, 2, 3, 8}) {
    bitpress::ThreadPool pool(threads);
    for (int round = 0; round < 3000; ++round) {
      const size_t items = static_cast<size_t>(round % 37);
      std::vector<std::atomic<int>> seen(items);
      pool.run(items, [&](size_t begin, size_t end, int thread) {
        if (thread < 0 || thread >= threads || begin >= end || end > items) std::abort();
        for (size_t i = begin; i < end; ++i) seen[i].fetch_add(1);
      });
      for (const std::atomic<int>& count : seen) wrong += count.load() != 1;
      if (round % 500 == 499) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // longer than workers spin
    }
  }
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
