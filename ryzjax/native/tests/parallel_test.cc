// Checks that a parallel loop runs every index once: with one caller and with several at a time, and with helpers that
// wait for the next loop or come late.
#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "parallel.h"
#include "testing.h"

namespace {

using ryzjax::parallel_for;
using ryzjax::Threads;

bool every_index_once(const Threads& threads, int64_t n) {
  std::vector<std::atomic<int>> seen(n);
  parallel_for(threads, n, [&](int64_t i) { seen[i].fetch_add(1); });
  for (auto& count : seen)
    if (count.load() != 1) return false;
  return true;
}

// Runs loops sequentially, some after a sleep, so that helpers are still waiting for some loops and gone for others.
bool repeated(const Threads& threads) {
  for (int round = 0; round < 200; ++round) {
    if (!every_index_once(threads, 1 + round % 37)) return false;
    if (round % 50 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
  }
  return true;
}

bool fail(const char* what) {
  std::printf("%s: an index was not run exactly once\n", what);
  return false;
}

}  // namespace

int main() {
  bool fine = true;
  {
    ryzjax::testing::ThreadSet threads;
    fine = (repeated(threads.view()) || fail("one caller")) && fine;
  }
  {
    std::atomic<int> failed{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c)
      callers.emplace_back([&] {
        ryzjax::testing::ThreadSet threads;
        if (!repeated(threads.view())) failed.fetch_add(1);
      });
    for (auto& caller : callers) caller.join();
    fine = (failed.load() == 0 || fail("four callers")) && fine;
  }
  {
    // Helpers run only after both loops have ended.
    std::vector<std::function<void()>> later;
    const Threads threads{40, [&](std::function<void()> work) { later.push_back(std::move(work)); }};
    fine = ((every_index_once(threads, 100) && every_index_once(threads, 7)) || fail("late helpers")) && fine;
    for (auto& work : later) work();
  }
  return fine ? 0 : 1;
}
