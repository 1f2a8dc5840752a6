// Two sessions of one model on two threads, from C++: classify X.bpk
// Each runs the sample inside the file, and noise; both must find the same.
#include <cstdio>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "bitpress/bitpress.h"

namespace {

struct Free {
  void operator()(bitpress_model* model) const { bitpress_model_free(model); }
  void operator()(bitpress_session* session) const { bitpress_session_free(session); }
};
using Model = std::unique_ptr<bitpress_model, Free>;
using Session = std::unique_ptr<bitpress_session, Free>;

size_t values(const bitpress_tensor& t) { return t.channels * t.height * t.width; }

// Outputs of four images of noise; empty where something failed, which has been said.
std::vector<float> work(const bitpress_model* model) {
  constexpr size_t kImages = 4;
  bitpress_session* made = nullptr;
  bitpress_status status = bitpress_session_new(model, &made);
  const Session session(made);
  std::vector<float> x(kImages * values(bitpress_input(model))), y(kImages * values(bitpress_output(model)));
  std::mt19937 random(1);
  for (float& v : x) v = static_cast<float>(random() % 2001) / 1000.0f - 1.0f;
  if (status == BITPRESS_OK) status = bitpress_golden_check(session.get());
  if (status == BITPRESS_OK) status = bitpress_run(session.get(), x.data(), kImages, y.data());
  if (status == BITPRESS_OK) return y;
  std::fprintf(stderr, "classify: %s\n", bitpress_last_error());  // of this thread
  return {};
}

}  // namespace

int main(int argc, char** argv) {
  bitpress_model* loaded = nullptr;
  const bitpress_status status = bitpress_load(argc > 1 ? argv[1] : nullptr, &loaded);
  const Model model(loaded);
  if (status != BITPRESS_OK) {
    std::fprintf(stderr, "classify: %s\n", bitpress_last_error());
    return status;
  }
  std::vector<float> one, two;
  std::thread beside([&] { one = work(model.get()); });
  two = work(model.get());
  beside.join();
  if (one.empty() || one != two) return BITPRESS_CHECK_FAILED;
  std::printf("bitpress %s: %zu outputs, twice the same\n", bitpress_version(), one.size());
  return 0;
}
