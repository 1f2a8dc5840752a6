// A model run on batches: threads, scratch memory and arena of one caller. Knows no file and no Python.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace bitpress {

struct Model;

struct StepInfo {
  std::string name, layer, op, kernel, isa, why;
};

// Bytes: of the kernels' layouts, of the arena for one image, of working memory for all threads.
struct SessionMemory {
  size_t layouts, arena, working;
};

// All steps' results on a batch, by buffer, in the order in which they are first written: NCHW, levels or floats.
struct Value {
  std::string name;
  uint64_t c, h, w;
  bool is_float;
  std::vector<int32_t> levels;
  std::vector<float> floats;
};

// Thread rule: calls from several threads wait for each other. Results do not depend on threads or batch.
class Session {
 public:
  // Shares the model with other sessions.
  Session(std::shared_ptr<const Model> model, int threads);
  // With a model of its own, of the bytes of a .bpk; Error as of Model.
  Session(Bytes file, int threads);
  ~Session();

  // From the next run on; waits for one that is under way.
  void set_threads(int threads);
  int threads() const;

  const Buffer& in() const;
  const Buffer& out() const;
  const std::string& isa() const;
  std::vector<StepInfo> steps() const;
  SessionMemory memory() const;

  // x: n normalised images, float32 NCHW; y: n rows of out().elements() floats.
  void run(const float* x, size_t n, float* y);
  // The same, and the milliseconds of each step (a mean over threads that run images apart) are added to `ms` [steps].
  void profile(const float* x, size_t n, float* y, double* ms);
  std::vector<Value> values(const float* x, size_t n);
  // Runs the sample inside the file. Error: kCheckFailed if a value differs, kUsage if there is no sample.
  void check_golden();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace bitpress
