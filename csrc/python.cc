// The Python module bitpress._native: the one file that knows Python. Errors become the classes of
// bitpress.core.errors.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bench/peaks.h"
#include "kernels/dispatch.h"
#include "runtime/error.h"
#include "runtime/session.h"

namespace py = pybind11;

namespace bitpress {
namespace {

using Floats = py::array_t<float, py::array::c_style>;

void raise(const Error& error) {
  static constexpr const char* kNames[] = {"BitpressError",    "CheckFailed",  "UsageError",
                                           "UnsupportedError", "CorruptError", "EnvironmentMissing"};
  const py::object type = py::module_::import("bitpress.core.errors").attr(kNames[static_cast<int>(error.code())]);
  PyErr_SetString(type.ptr(), error.what());
}

std::string text_of(const std::vector<py::ssize_t>& shape) {
  std::string out;
  for (const py::ssize_t n : shape) out += (out.empty() ? "[" : ", ") + std::to_string(n);
  return out + "]";
}

Bytes view(const py::bytes& data) {
  char* bytes = nullptr;
  py::ssize_t size = 0;
  if (PyBytes_AsStringAndSize(data.ptr(), &bytes, &size) != 0) throw py::error_already_set();
  return {reinterpret_cast<const uint8_t*>(bytes), static_cast<size_t>(size)};
}

// Number of images; UsageError unless `x` is float32 [N, C, H, W] of the network's input.
size_t images_of(const Session& session, const Floats& x) {
  const Buffer& in = session.in();
  const auto size = [](uint64_t n) { return static_cast<py::ssize_t>(n); };
  if (x.ndim() != 4 || x.shape(1) != size(in.c) || x.shape(2) != size(in.h) || x.shape(3) != size(in.w))
    throw Error(Code::kUsage, "input is " + text_of({x.shape(), x.shape() + x.ndim()}) +
                                  ", the network takes float32 [N, " + std::to_string(in.c) + ", " +
                                  std::to_string(in.h) + ", " + std::to_string(in.w) + "]");
  return static_cast<size_t>(x.shape(0));
}

Floats run(Session& session, const Floats& x) {
  const size_t n = images_of(session, x);
  Floats y({static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(session.out().elements())});
  const float* from = x.data();
  float* to = y.mutable_data();
  py::gil_scoped_release release;
  session.run(from, n, to);
  return y;
}

py::array_t<double> profile(Session& session, const Floats& x) {
  const size_t n = images_of(session, x);
  std::vector<double> ms(session.steps().size(), 0.0);
  std::vector<float> y(n * session.out().elements());
  {
    const float* from = x.data();
    py::gil_scoped_release release;
    session.profile(from, n, y.data(), ms.data());
  }
  return py::array_t<double>(static_cast<py::ssize_t>(ms.size()), ms.data());
}

// By the clock as it is right behind the run.
py::array_t<double> cycles(Session& session, const Floats& x) {
  py::array_t<double> out = profile(session, x);
  const double per_ms = bench::clock_rate() * 1e-3;
  for (py::ssize_t i = 0; i < out.size(); ++i) out.mutable_data()[i] *= per_ms;
  return out;
}

py::list values(Session& session, const Floats& x) {
  const size_t n = images_of(session, x);
  std::vector<Value> held;
  {
    const float* from = x.data();
    py::gil_scoped_release release;
    held = session.values(from, n);
  }
  py::list out;
  for (const Value& v : held) {
    const std::vector<py::ssize_t> shape = {static_cast<py::ssize_t>(n), static_cast<py::ssize_t>(v.c),
                                            static_cast<py::ssize_t>(v.h), static_cast<py::ssize_t>(v.w)};
    if (v.is_float)
      out.append(py::make_tuple(v.name, py::array_t<float>(shape, v.floats.data())));
    else
      out.append(py::make_tuple(v.name, py::array_t<int32_t>(shape, v.levels.data())));
  }
  return out;
}

py::list steps(const Session& session) {
  py::list out;
  for (const StepInfo& s : session.steps()) {
    py::dict row;
    row["name"] = s.name;
    row["layer"] = s.layer;
    row["op"] = s.op;
    row["kernel"] = s.kernel;
    row["isa"] = s.isa;
    row["why"] = s.why;
    out.append(row);
  }
  return out;
}

py::list kernels() {
  const Choice choice = Choice::from_environment();
  py::list out;
  for (const Row& r : rows()) {
    const std::string why = choice.why_unusable(r);
    py::dict row;
    row["name"] = r.name;
    row["op"] = op_name(r.op);
    row["isa"] = r.isa;
    row["w_bits"] = py::make_tuple(r.w_from, r.w_to);
    row["a_bits"] = py::make_tuple(r.a_from, r.a_to);
    row["lanes"] = r.lanes;
    row["usable"] = why.empty();
    row["why"] = why;
    out.append(row);
  }
  return out;
}

std::vector<std::string> cpu_isas() {
  std::vector<std::string> out;
  for (const Isa& isa : isas())
    if (isa.missing.empty()) out.emplace_back(isa.name);
  return out;
}

Encoding encoding_named(const std::string& name, bool as_weight) {
  Encoding out;
  if (!parse_encoding(name, as_weight, &out)) throw Error(Code::kUsage, "no kernel knows the encoding '" + name + "'");
  return out;
}

py::list explain(const std::string& op, const std::string& w, const std::string& a, uint64_t rows, uint64_t depth,
                 uint64_t pixels, uint64_t groups, uint64_t tiles, int32_t largest, uint64_t reach, double digits,
                 bool by_law) {
  Problem problem;
  for (uint8_t i = 0; i < kOps; ++i)
    if (op == op_name(static_cast<Op>(i))) problem.op = static_cast<Op>(i);
  if (op != op_name(problem.op)) throw Error(Code::kUsage, "unknown op '" + op + "'");
  if (!w.empty()) problem.weight = encoding_named(w, true);
  problem.act = encoding_named(a, false);
  problem.rows = rows;
  problem.depth = depth;
  problem.pixels = pixels;
  problem.groups = groups;
  problem.tiles = tiles;
  problem.largest = largest;
  problem.reach = reach;
  problem.digits = digits;
  problem.by_law = by_law;
  py::list out;
  for (const Choice::Verdict& v : Choice::from_environment().explain(problem))
    out.append(
        py::make_tuple(v.row->name, v.cost < 0 ? py::object(py::none()) : py::object(py::float_(v.cost)), v.why));
  return out;
}

}  // namespace
}  // namespace bitpress

PYBIND11_MODULE(_native, m) {
  using namespace bitpress;
  m.doc() = "Bitpress's runtime: reads .bpk artifacts and runs them with the kernels of this host.";
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const Error& error) {
      raise(error);
    }
  });
  py::class_<Session>(m, "Session", "A .bpk bound to this host's kernels. Its calls may come from any thread.")
      .def(py::init([](const py::bytes& data, int threads) {
             if (threads < 1 || threads > 256)
               throw Error(Code::kUsage, "threads=" + std::to_string(threads) + ": valid values are 1 to 256");
             const Bytes bytes = view(data);
             py::gil_scoped_release release;
             return std::make_unique<Session>(bytes, threads);
           }),
           py::arg("data"), py::arg("threads") = 1)
      .def("run", &run, py::arg("x").noconvert(), "float32 [N, C, H, W] -> float32 [N, outputs].")
      .def("profile", &profile, py::arg("x").noconvert(), "Milliseconds of each step of one run on x, float64 [steps].")
      .def("cycles", &cycles, py::arg("x").noconvert(), "Cycles of each step of one run on x, float64 [steps].")
      .def("values", &values, py::arg("x").noconvert(), "[(buffer, int32 levels or float32 [N, C, H, W])] as written.")
      .def("steps", &steps, "Per step: name, layer, op, kernel, isa, why.")
      .def(
          "memory",
          [](const Session& s) {
            const SessionMemory m = s.memory();
            py::dict out;
            out["layouts"] = m.layouts;
            out["arena"] = m.arena;
            out["working"] = m.working;
            return out;
          },
          "Bytes: layouts of the kernels, arena for one image, working memory of all threads.")
      .def_property_readonly("isa", [](const Session& s) { return s.isa(); });
  m.def(
      "check", [](const py::bytes& data) { read_program(view(data)); }, py::arg("data"),
      "None if the bytes are a good .bpk, else CorruptError.");
  m.def("cpu_isas", &cpu_isas, "Names of the instruction sets that this host has, best last.");
  m.def("kernels", &kernels, "The one list of rows: name, op, isa, w_bits, a_bits, lanes, usable, why (not).");
  m.def("explain", &explain, py::arg("op"), py::arg("w"), py::arg("a"), py::arg("rows") = 1, py::arg("depth") = 1,
        py::arg("pixels") = 1, py::arg("groups") = 1, py::arg("tiles") = 0, py::arg("largest") = 0,
        py::arg("reach") = 1, py::arg("digits") = 0.0, py::arg("by_law") = false,
        "[(kernel, estimated microseconds or None, why)] for a problem.");
  m.def("peak_rate", &bench::peak_rate, py::arg("family"), py::arg("isa"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(), "Operations per second that the instructions can do at most.");
  m.def("peak_per_cycle", &bench::peak_per_cycle, py::arg("family"), py::arg("isa"), py::arg("seconds"),
        py::call_guard<py::gil_scoped_release>(), "The same, per cycle of the core.");
  m.def("read_rate", &bench::read_rate, py::arg("bytes"), py::arg("seconds"), py::call_guard<py::gil_scoped_release>(),
        "Bytes per second of reading a block of that size.");
}
