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

// Images that go through the steps together.
struct Chunk {
  const float* x;  // of the first of them
  size_t first, images;
  int thread;  // whose arena holds their values
  uint8_t* arena;
  bool lines;  // see Place
};

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
    arenas.resize(static_cast<size_t>(count));
  }

  uint8_t* at(uint32_t buffer, const Chunk& chunk) const {
    return chunk.arena + program.buffers[buffer].offset * chunk.images;
  }

  Place place(const Step& s, const Chunk& chunk) const {
    const bool external = s.data == program.input;
    return {external ? reinterpret_cast<const uint8_t*>(chunk.x) : at(s.data, chunk),
            s.residual == kNone ? nullptr : at(s.residual, chunk), at(s.output, chunk), chunk.images, chunk.lines};
  }

  uint8_t* scratch_of(int thread) const { return scratch[static_cast<size_t>(thread)].data(); }

  void run_alone(size_t number, const Chunk& chunk) const {
    const Bound& bound = steps[number];
    bound.run(place(program.steps[number], chunk), 0, bound.items(chunk.images), scratch_of(chunk.thread));
  }

  void run_shared(size_t number, const Chunk& chunk) {
    const Bound& bound = steps[number];
    const size_t items = bound.items(chunk.images), threads = static_cast<size_t>(pool->threads());
    if (threads == 1 || bound.work(chunk.images) < kSerialWork) return run_alone(number, chunk);
    const Place where = place(program.steps[number], chunk);
    if (items < threads && bound.blocks() > items)
      pool->run(bound.blocks(), [&](size_t begin, size_t end, int thread) {
        bound.run(where, 0, items, static_cast<uint32_t>(begin), static_cast<uint32_t>(end), scratch_of(thread));
      });
    else
      pool->run(items, [&](size_t begin, size_t end, int thread) { bound.run(where, begin, end, scratch_of(thread)); });
  }

  // Calls run_step(number, chunk), then after(number, chunk), for every step of every chunk of images [begin, end).
  template <class RunStep, class After>
  void run_images(const float* x, size_t begin, size_t end, int thread, bool lines, const RunStep& run_step,
                  const After& after) {
    const size_t size = program.in().elements();
    uint8_t* arena = arenas[static_cast<size_t>(thread)].data();
    for (size_t first = begin; first < end; first += model->most_images) {
      const Chunk chunk{x + first * size, first, std::min(model->most_images, end - first), thread, arena, lines};
      for (size_t i = 0; i < steps.size(); ++i) {
        run_step(i, chunk);
        after(i, chunk);
      }
    }
  }

  // Many images are shared out among the threads, which then need not wait for each other; few are run together, and
  // the rows of each step shared out. `after` may be called from several threads at once. `levels`: every buffer holds
  // its levels then.
  template <class After>
  void run(const float* x, size_t n, const After& after, bool levels = false) {
    const size_t threads = static_cast<size_t>(pool->threads());
    const bool apart = images_apart(n);
    const size_t most = std::min(apart ? (n + threads - 1) / threads : n, model->most_images);
    for (size_t i = 0; i < (apart ? threads : 1); ++i)
      if (arenas[i].size() < most * program.arena_bytes) arenas[i] = Memory(most * program.arena_bytes);
    const auto shared = [&](size_t i, const Chunk& chunk) { run_shared(i, chunk); };
    if (!apart) return run_images(x, 0, n, 0, threads == 1 && !levels, shared, after);
    pool->run(n, [&](size_t begin, size_t end, int thread) {
      run_images(x, begin, end, thread, !levels, [&](size_t i, const Chunk& chunk) { run_alone(i, chunk); }, after);
    });
  }

  // At least four images a thread: the last ones may leave a thread idle for a fifth of the time at most.
  bool images_apart(size_t n) const { return pool->threads() > 1 && n >= 4 * static_cast<size_t>(pool->threads()); }

  void copy_output(const Chunk& chunk, float* y) const {
    const Buffer& out = program.out();
    const size_t pixels = out.h * out.w, size = out.elements();
    for (size_t i = 0; i < chunk.images; ++i)
      for (size_t c = 0; c < out.c; ++c)
        copy_plane<float>(at(program.output, chunk) + i * size * sizeof(float), pixels, out.c, c,
                          y + (chunk.first + i) * size + c * pixels);
  }

  const std::shared_ptr<const Model> model;
  const Program& program;
  const std::vector<Bound>& steps;
  std::unique_ptr<ThreadPool> pool;
  std::vector<Memory> scratch, arenas;  // of each thread
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

SessionMemory Session::memory() const {
  const Model& model = *state_->model;
  return {model.weight_bytes, static_cast<size_t>(model.program.arena_bytes),
          model.scratch_bytes * static_cast<size_t>(threads())};
}

void Session::run(const float* x, size_t n, float* y) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t last = state_->steps.size() - 1;
  state_->run(x, n, [&](size_t step, const Chunk& chunk) {
    if (step == last) state_->copy_output(chunk, y);
  });
}

void Session::profile(const float* x, size_t n, float* y, double* ms) {
  std::lock_guard<std::mutex> lock(state_->mutex);
  const size_t steps = state_->steps.size(), last = steps - 1;
  const size_t threads = state_->images_apart(n) ? static_cast<size_t>(state_->pool->threads()) : 1;
  std::vector<std::vector<double>> took(threads, std::vector<double>(steps, 0.0));
  std::vector<double> before(threads, milliseconds());
  state_->run(x, n, [&](size_t step, const Chunk& chunk) {
    const size_t thread = static_cast<size_t>(chunk.thread);
    const double now = milliseconds();
    took[thread][step] += now - before[thread];
    if (step == last) state_->copy_output(chunk, y);
    before[thread] = step == last ? milliseconds() : now;
  });
  for (const std::vector<double>& each : took)
    for (size_t i = 0; i < steps; ++i) ms[i] += each[i] / static_cast<double>(threads);
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
  state_->run(
      x, n,
      [&](size_t number, const Chunk& chunk) {
        const Step& s = program.steps[number];
        const Buffer& b = program.buffers[s.output];
        Value& v = out[place[s.output]];
        const size_t pixels = b.h * b.w;
        for (size_t i = 0; i < chunk.images; ++i) {
          const uint8_t* from = state_->at(s.output, chunk) + i * b.bytes;
          for (uint32_t r = 0; r < s.rows; ++r) {
            const size_t c = s.out_channels.empty() ? r : static_cast<size_t>(s.out_channels[r]);
            const size_t to = (chunk.first + i) * b.elements() + c * pixels;
            if (v.is_float)
              copy_plane<float>(from, pixels, b.c, c, v.floats.data() + to);
            else if (b.storage.is_signed())
              copy_plane<int8_t>(from, pixels, b.c, c, v.levels.data() + to);
            else
              copy_plane<uint8_t>(from, pixels, b.c, c, v.levels.data() + to);
          }
        }
      },
      true);
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
