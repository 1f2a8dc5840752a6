// The thread pool under stress: every item once, whatever the numbers, with pauses that send the workers to sleep.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "runtime/thread_pool.h"

int main() {
  int wrong = 0;
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
