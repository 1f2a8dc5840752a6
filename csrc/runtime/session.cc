#include "session.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <mutex>

#include "error.h"
#include "model.h"
#include "thread_pool.h"

namespace bitpress {
namespace {

// Operations below which a step is not worth waking threads for: some 5 microseconds on the fastest hosts.
constexpr double kSerialWork = 1 << 20;

double milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// One channel of NHWC as a plane.
template <class From, class To>
void copy_plane(const uint8_t* from, size_t pixels, size_t channels, size_t channel, To* to) {
  const From* in = reinterpret_cast<const From*>(from) + channel;
  for (size_t p = 0; p < pixels; ++p) to[p] = static_cast<To>(in[p * channels]);
}

}  // namespace

struct Session::State {
  State(std::shared_ptr<const Model> shared, int count)
      : model(std::move(shared)), program(model->program), steps(model->steps) {
    set_threads(count);
  }

  void set_threads(int count) {
    // Made before the old ones go: where the host refuses a thread or memory, all stays as it was.
    auto threads = std::make_unique<ThreadPool>(count);
    std::vector<Memory> memory;
    for (int i = 0; i < count; ++i) memory.emplace_back(model->scratch_bytes);
    pool = std::move(threads);
    scratch = std::move(memory);
  }

  uint8_t* at(uint32_t buffer, size_t images) const { return arena.data() + program.buffers[buffer].offset * images; }

  Place place(const Step& s, const float* x, size_t images) const {
    const bool external = s.data == program.input;
    return {external ? reinterpret_cast<const uint8_t*>(x) : at(s.data, images),
            s.residual == kNone ? nullptr : at(s.residual, images), at(s.output, images), images};
  }

  void run_step(size_t number, const float* x, size_t images) {
    const Bound& bound = steps[number];
    const Place where = place(program.steps[number], x, images);
    const size_t items = bound.items(images), threads = static_cast<size_t>(pool->threads());
    if (bound.work(images) < kSerialWork || threads == 1)
      bound.run(where, 0, items, scratch[0].data());
    else if (items < threads && bound.blocks() > items)
      pool->run(bound.blocks(), [&](size_t begin, size_t end, int thread) {
        bound.run(where, 0, items, static_cast<uint32_t>(begin), static_cast<uint32_t>(end),
                  scratch[static_cast<size_t>(thread)].data());
      });
    else
      pool->run(items, [&](size_t begin, size_t end, int thread) {
        bound.run(where, begin, end, scratch[static_cast<size_t>(thread)].data());
      });
  }

  // Calls after(step, first image, images) behind every step of every chunk.
  template <class After>
  void run(const float* x, size_t n, const After& after) {
    const size_t most = std::min(n, model->most_images);
    if (arena.size() < most * program.arena_bytes) arena = Memory(most * program.arena_bytes);
    const size_t size = program.in().elements();
    for (size_t first = 0; first < n; first += most) {
      const size_t images = std::min(most, n - first);
      for (size_t i = 0; i < steps.size(); ++i) {
        run_step(i, x + first * size, images);
        after(i, first, images);
      }
    }
  }

  void copy_output(size_t first, size_t images, float* y) const {
    const Buffer& out = program.out();
    const size_t pixels = out.h * out.w, size = out.elements();
    for (size_t i = 0; i < images; ++i)
      for (size_t c = 0; c < out.c; ++c)
        copy_plane<float>(at(program.output, images) + i * size * sizeof(float), pixels, out.c, c,
                          y + (first + i) * size + c * pixels);
  }

  const std::shared_ptr<const Model> model;
  const Program& program;
  const std::vector<Bound>& steps;
  std::unique_ptr<ThreadPool> pool;
  std::vector<Memory> scratch;  // of each thread
  Memory arena;
  std::mutex mutex;
};

Session::Session(std::shared_ptr<const Model> model, int threads)
    : state_(std::make_unique<State>(std::move(model), threads)) {}
Session::Session(Bytes file, int threads) : Session(std::make_shared<const Model>(file), threads) {}
Session::~Session() = default;

void Session::set_threads(int threads) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  if (threads != state_->pool->threads()) state_->set_threads(threads);
}

int Session::threads() const {
  std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->pool->threads();
}

const Buffer& Session::in() const { return state_->program.in(); }
const Buffer& Session::out() const { return state_->program.out(); }
const std::string& Session::isa() const { return state_->model->choice.isa(); }

std::vector<StepInfo> Session::steps() const {
  std::vector<StepInfo> out;
  for (size_t i = 0; i < state_->steps.size(); ++i) {
    const Step& s = state_->program.steps[i];
    const Bound& b = state_->steps[i];
    out.push_back({s.name, s.layer, op_name(s.op), b.row().name, b.row().isa, b.why()});
  }
  return out;
}

void Session::run(const float* x, size_t n, float* y) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t last = state_->steps.size() - 1;
  state_->run(x, n, [&](size_t step, size_t first, size_t images) {
    if (step == last) state_->copy_output(first, images, y);
  });
}

void Session::profile(const float* x, size_t n, float* y, double* ms) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t last = state_->steps.size() - 1;
  double before = milliseconds();
  state_->run(x, n, [&](size_t step, size_t first, size_t images) {
    const double now = milliseconds();
    ms[step] += now - before;
    if (step == last) state_->copy_output(first, images, y);
    before = step == last ? milliseconds() : now;
  });
}

std::vector<Value> Session::values(const float* x, size_t n) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const Program& program = state_->program;
  std::vector<size_t> place(program.buffers.size(), SIZE_MAX);
  std::vector<Value> out;
  for (const Step& s : program.steps) {
    if (place[s.output] != SIZE_MAX) continue;
    place[s.output] = out.size();
    const Buffer& b = program.buffers[s.output];
    const bool floats = b.storage.is_float();
    const size_t size = n * b.elements();
    out.push_back({b.name, b.c, b.h, b.w, floats, std::vector<int32_t>(floats ? 0 : size),
                   std::vector<float>(floats ? size : 0)});
  }
  // Copied behind each step: another value may take the place in the arena later. Channels that no step writes are 0.
  state_->run(x, n, [&](size_t number, size_t first, size_t images) {
    const Step& s = program.steps[number];
    const Buffer& b = program.buffers[s.output];
    Value& v = out[place[s.output]];
    const size_t pixels = b.h * b.w;
    for (size_t i = 0; i < images; ++i) {
      const uint8_t* from = state_->at(s.output, images) + i * b.bytes;
      for (uint32_t r = 0; r < s.rows; ++r) {
        const size_t c = s.out_channels.empty() ? r : static_cast<size_t>(s.out_channels[r]);
        const size_t to = (first + i) * b.elements() + c * pixels;
        if (v.is_float)
          copy_plane<float>(from, pixels, b.c, c, v.floats.data() + to);
        else if (b.storage.is_signed())
          copy_plane<int8_t>(from, pixels, b.c, c, v.levels.data() + to);
        else
          copy_plane<uint8_t>(from, pixels, b.c, c, v.levels.data() + to);
      }
    }
  });
  return out;
}

void Session::check_golden() {
  const std::vector<float>& want = state_->program.golden_output;
  if (want.empty()) throw Error(Code::kUsage, "the file holds no golden sample: there is nothing to verify");
  std::vector<float> got(want.size());
  run(state_->program.golden_input.data(), 1, got.data());
  size_t differing = 0, first = 0;
  for (size_t i = want.size(); i-- > 0;)
    if (!(got[i] == want[i])) ++differing, first = i;
  if (!differing) return;
  char text[160];
  std::snprintf(text, sizeof text,
                "%zu of %zu values of the golden sample differ; value %zu is %.9g and should be %.9g", differing,
                want.size(), first, static_cast<double>(got[first]), static_cast<double>(want[first]));
  throw Error(Code::kCheckFailed, text);
}

}  // namespace bitpress
