// The C interface (csrc/include/bitpress/bitpress.h): arguments are checked, exceptions become statuses.
#include "bitpress/bitpress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "runtime/error.h"
#include "runtime/model.h"
#include "runtime/session.h"

struct bitpress_model {
  std::shared_ptr<const bitpress::Model> shared;
};

struct bitpress_session {
  std::shared_ptr<const bitpress::Model> model;
  bitpress::Session session;
};

namespace {

using bitpress::Code;
using bitpress::Error;

constexpr int kMostThreads = 256;
constexpr size_t kNormalised = 64;  // images whose floats are held at once

// Plain characters: no destructor at the end of a thread, and no allocation that could fail in turn.
thread_local char last_error[2048] = "";

bitpress_status fail(bitpress_status status, const char* message) {
  std::snprintf(last_error, sizeof last_error, "%s", message);
  return status;
}

template <class F>
bitpress_status guarded(const F& body) noexcept {
  try {
    body();
    return BITPRESS_OK;
  } catch (const Error& error) {
    return fail(static_cast<bitpress_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(BITPRESS_ENVIRONMENT, "out of memory");
  } catch (const std::system_error& error) {
    return fail(BITPRESS_ENVIRONMENT, (std::string("no thread can be started: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return fail(BITPRESS_INTERNAL, error.what());
  } catch (...) {
    return fail(BITPRESS_INTERNAL, "unknown error");
  }
}

void require(bool given, const char* argument) {
  if (!given) throw Error(Code::kUsage, std::string(argument) + " is NULL");
}

bitpress_tensor tensor_of(const bitpress::Buffer& b) {
  return {b.name.c_str(), static_cast<size_t>(b.c), static_cast<size_t>(b.h), static_cast<size_t>(b.w)};
}

// Products below with a value's size in bytes cannot overflow afterwards.
void check_count(const bitpress_session& s, size_t images) {
  const size_t most = std::numeric_limits<ptrdiff_t>::max() / sizeof(float) /
                      static_cast<size_t>(std::max(s.session.in().elements(), s.session.out().elements()));
  if (images > most)
    throw Error(Code::kUsage, std::to_string(images) + " images do not fit memory, at most " + std::to_string(most));
}

void check_finite(const float* x, size_t size, size_t per_image) {
  const float* bad = std::find_if(x, x + size, [](float v) { return !std::isfinite(v); });
  if (bad == x + size) return;
  const size_t at = static_cast<size_t>(bad - x);
  throw Error(Code::kUsage, "value " + std::to_string(at % per_image) + " of image " + std::to_string(at / per_image) +
                                " is " + (std::isnan(*bad) ? "NaN" : "infinite"));
}

}  // namespace

extern "C" {

const char* bitpress_version(void) { return BITPRESS_VERSION; }

int bitpress_abi_version(void) { return BITPRESS_ABI_VERSION; }

const char* bitpress_last_error(void) { return last_error; }

bitpress_status bitpress_load(const char* path, bitpress_model** model) {
  if (model) *model = nullptr;
  return guarded([&] {
    require(path, "path");
    require(model, "model");
    const bitpress::FileBytes file = bitpress::read_file(path);
    *model = new bitpress_model{std::make_shared<const bitpress::Model>(file.view())};
  });
}

bitpress_status bitpress_load_mapped(const char* path, bitpress_model** model) {
  if (model) *model = nullptr;
  return guarded([&] {
    require(path, "path");
    require(model, "model");
    const bitpress::MappedFile file(path);
    *model = new bitpress_model{std::make_shared<const bitpress::Model>(file.view())};
  });
}

bitpress_status bitpress_load_memory(const void* data, size_t size, bitpress_model** model) {
  if (model) *model = nullptr;
  return guarded([&] {
    require(data || size == 0, "data");
    require(model, "model");
    const bitpress::Bytes bytes{static_cast<const uint8_t*>(data), size};
    *model = new bitpress_model{std::make_shared<const bitpress::Model>(bytes)};
  });
}

void bitpress_model_free(bitpress_model* model) { delete model; }

bitpress_tensor bitpress_input(const bitpress_model* model) { return tensor_of(model->shared->program.in()); }

bitpress_tensor bitpress_output(const bitpress_model* model) { return tensor_of(model->shared->program.out()); }

bitpress_status bitpress_session_new(const bitpress_model* model, bitpress_session** session) {
  if (session) *session = nullptr;
  return guarded([&] {
    require(model, "model");
    require(session, "session");
    *session = new bitpress_session{model->shared, bitpress::Session(model->shared, 1)};
  });
}

void bitpress_session_free(bitpress_session* session) { delete session; }

bitpress_status bitpress_set_threads(bitpress_session* session, int threads) {
  return guarded([&] {
    require(session, "session");
    if (threads < 1 || threads > kMostThreads)
      throw Error(Code::kUsage, "threads=" + std::to_string(threads) + ": valid values are 1 to 256");
    session->session.set_threads(threads);
  });
}

bitpress_status bitpress_run(bitpress_session* session, const float* input, size_t images, float* output) {
  return guarded([&] {
    require(session, "session");
    require(images == 0 || input, "input");
    require(images == 0 || output, "output");
    check_count(*session, images);
    const size_t size = session->session.in().elements();
    check_finite(input, images * size, size);
    session->session.run(input, images, output);
  });
}

bitpress_status bitpress_run_u8(bitpress_session* session, const uint8_t* input, size_t images, float* output) {
  return guarded([&] {
    require(session, "session");
    require(images == 0 || input, "input");
    require(images == 0 || output, "output");
    check_count(*session, images);
    const size_t size = session->session.in().elements(), out = session->session.out().elements();
    std::vector<float> floats(std::min(images, kNormalised) * size);
    for (size_t first = 0; first < images; first += kNormalised) {
      const size_t n = std::min(kNormalised, images - first);
      bitpress::normalize_u8(session->model->program, input + first * size, n, floats.data());
      check_finite(floats.data(), n * size, size);
      session->session.run(floats.data(), n, output + first * out);
    }
  });
}

bitpress_status bitpress_golden_check(bitpress_session* session) {
  return guarded([&] {
    require(session, "session");
    session->session.check_golden();
  });
}

}  // extern "C"
