"""libbitpress: its functions and statuses, sessions beside each other, the examples, and a project that installs it."""

from __future__ import annotations

import ctypes
import hashlib
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import bitpress
from bitpress.compiler.execute import execute

from ..cli.tool import good
from .conftest import ROOT, Sample, Tree, run, sanitized, tool_path

_native = pytest.importorskip("bitpress._native", reason="the native module is not built")
pytestmark = pytest.mark.native
HEADER = ROOT / "csrc" / "include" / "bitpress" / "bitpress.h"
OK, FAILED, USAGE, CORRUPT, ENVIRONMENT = 0, 1, 2, 4, 5


class Tensor(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p), ("channels", ctypes.c_size_t), ("height", ctypes.c_size_t),
        ("width", ctypes.c_size_t),
    )  # fmt: skip


class Library:
    """The shared library through ctypes, which gives up the interpreter's lock during calls."""

    def __init__(self, path: Path) -> None:
        self.c = ctypes.CDLL(str(path))
        self.c.bitpress_version.restype = ctypes.c_char_p
        self.c.bitpress_last_error.restype = ctypes.c_char_p
        for name in ("bitpress_input", "bitpress_output"):
            getattr(self.c, name).restype = Tensor
        for name in ("bitpress_model_free", "bitpress_session_free"):
            getattr(self.c, name).restype = None

    def error(self) -> str:
        return self.c.bitpress_last_error().decode()

    def load(self, data: bytes) -> ctypes.c_void_p:
        model = ctypes.c_void_p()
        copy = ctypes.create_string_buffer(data, len(data))
        assert self.c.bitpress_load_memory(copy, ctypes.c_size_t(len(data)), ctypes.byref(model)) == OK, self.error()
        ctypes.memset(copy, 0xAA, len(data))  # nothing of the file is in use from here on
        return model

    def session(self, model: ctypes.c_void_p) -> ctypes.c_void_p:
        session = ctypes.c_void_p()
        assert self.c.bitpress_session_new(model, ctypes.byref(session)) == OK, self.error()
        return session

    def run(self, session: ctypes.c_void_p, x: np.ndarray, outputs: int) -> tuple[int, np.ndarray]:
        """Status and outputs; uint8 images go through bitpress_run_u8."""
        y = np.full((len(x), outputs), np.nan, np.float32)
        function = self.c.bitpress_run_u8 if x.dtype == np.uint8 else self.c.bitpress_run
        pointers = (x.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(x)), y.ctypes.data_as(ctypes.c_void_p))
        return function(session, *pointers), y


@pytest.fixture(scope="module")
def library(tree: Tree) -> Library:
    return Library(tree.library)


@pytest.mark.parametrize("isa", _native.cpu_isas())
@pytest.mark.parametrize("name", ["straight", "everything", "deep"])
def test_outputs_are_those_of_numpy_on_every_isa(
    name: str, isa: str, library: Library, programs: dict[str, Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BITPRESS_FORCE_ISA", isa)
    sample = programs[name]
    model = library.load(sample.file.read_bytes())
    session = library.session(model)
    library.c.bitpress_model_free(model)  # the session keeps what it needs
    want = execute(sample.program, sample.x)
    for threads in (1, 2, 1):
        assert library.c.bitpress_set_threads(session, threads) == OK
        status, got = library.run(session, sample.x, want.shape[1])
        assert status == OK
        np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))
    library.c.bitpress_session_free(session)


def test_uint8_images_are_normalised_by_the_model(library: Library, programs: dict[str, Sample]) -> None:
    sample = programs["everything"]
    images = np.resize(sample.u8, (70, *sample.u8.shape[1:]))
    session = library.session(library.load(sample.file.read_bytes()))
    status, got = library.run(session, images, 10)
    assert status == OK
    np.testing.assert_array_equal(got, bitpress.load(sample.file)(images))


def test_shapes_versions_and_golden_sample(library: Library, programs: dict[str, Sample]) -> None:
    assert library.c.bitpress_version().decode() == bitpress.__version__
    declared = re.search(r"#define BITPRESS_ABI_VERSION (\d+)", HEADER.read_text(encoding="utf-8"))
    assert declared is not None and library.c.bitpress_abi_version() == int(declared[1])
    model = library.load(programs["everything"].file.read_bytes())
    for tensor, want in ((library.c.bitpress_input(model), (3, 9, 11)), (library.c.bitpress_output(model), (10, 1, 1))):
        assert (tensor.channels, tensor.height, tensor.width) == want
    assert library.c.bitpress_input(model).name == b"image"
    assert library.c.bitpress_golden_check(library.session(model)) == OK
    without = library.session(library.load(programs["deep"].file.read_bytes()))
    assert library.c.bitpress_golden_check(without) == USAGE and "no golden sample" in library.error()


def test_statuses_and_sentences(
    library: Library, programs: dict[str, Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = programs["straight"]
    data = sample.file.read_bytes()
    made = ctypes.c_void_p(1)

    def load(path: object) -> int:
        return int(library.c.bitpress_load(str(path).encode(), ctypes.byref(made)))

    assert load(tmp_path / "none.bpk") == USAGE and "No such file" in library.error() and not made
    assert load(tmp_path) == USAGE and "no regular file" in library.error()
    (tmp_path / "cut.bpk").write_bytes(data[:-1])
    assert load(tmp_path / "cut.bpk") == CORRUPT and library.error().startswith("Truncated: ")
    monkeypatch.setenv("BITPRESS_FORCE_ISA", "neon")
    assert load(sample.file) == ENVIRONMENT and "neon" in library.error()
    monkeypatch.delenv("BITPRESS_FORCE_ISA")
    assert load(sample.file) == OK and made
    session = library.session(made)
    assert library.c.bitpress_load(None, ctypes.byref(made)) == USAGE and library.error() == "path is NULL"
    assert library.c.bitpress_load(str(sample.file).encode(), None) == USAGE
    assert library.c.bitpress_load_memory(None, ctypes.c_size_t(0), ctypes.byref(made)) == CORRUPT
    assert library.c.bitpress_session_new(None, ctypes.byref(made)) == USAGE
    assert library.c.bitpress_run(None, None, ctypes.c_size_t(0), None) == USAGE
    assert library.c.bitpress_run(session, None, ctypes.c_size_t(1), None) == USAGE
    assert library.c.bitpress_run(session, None, ctypes.c_size_t(0), None) == OK
    huge = ctypes.c_size_t(2**64 // 4 // (3 * 8 * 8) + 1)  # times the values of an image, this wraps
    assert library.c.bitpress_run(session, data, huge, data) == USAGE and "do not fit" in library.error()
    for threads in (0, -1, 257):
        assert library.c.bitpress_set_threads(session, threads) == USAGE and f"threads={threads}" in library.error()
    bad = sample.x.copy()
    bad[1, 2, 0, 3] = np.nan
    status, _ = library.run(session, bad, 10)
    assert status == USAGE and library.error() == "value 131 of image 1 is NaN"
    library.c.bitpress_session_free(None)
    library.c.bitpress_model_free(None)


def test_a_mapped_file_gives_the_same_model(library: Library, programs: dict[str, Sample], tmp_path: Path) -> None:
    """Refused as a file that is read is; afterwards the file may go."""
    made = ctypes.c_void_p(1)

    def load(path: Path | None) -> int:
        encoded = None if path is None else str(path).encode()
        return int(library.c.bitpress_load_mapped(encoded, ctypes.byref(made)))

    for sample in programs.values():
        file = tmp_path / "x.bpk"
        shutil.copy(sample.file, file)
        assert load(file) == OK, library.error()
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
        file.write_bytes(b"")
        session, want = library.session(made), execute(sample.program, sample.x)
        status, got = library.run(session, sample.x, want.shape[1])
        assert status == OK and not mapped
        np.testing.assert_array_equal(got.view(np.int32), want.view(np.int32))
    assert load(tmp_path / "x.bpk") == CORRUPT and library.error().startswith("Truncated: ") and not made
    data = bytearray(programs["straight"].file.read_bytes())
    data[200] ^= 1
    (tmp_path / "x.bpk").write_bytes(data)
    assert load(tmp_path / "x.bpk") == CORRUPT
    assert load(tmp_path) == USAGE and "no regular file" in library.error()
    assert load(tmp_path / "none") == USAGE and load(None) == USAGE
    assert "/x.bpk" not in Path("/proc/self/maps").read_text()


def test_errors_belong_to_their_thread(library: Library) -> None:
    assert library.c.bitpress_set_threads(None, 1) == USAGE
    beside: list[str] = []
    thread = threading.Thread(target=lambda: beside.append(library.error()))
    thread.start()
    thread.join()
    assert beside == [""] and library.error() == "session is NULL"


def test_only_the_interface_is_visible(tree: Tree) -> None:
    symbols = run([tool_path("nm"), "-D", "--defined-only", tree.library]).stdout.split()[2::3]
    declared = set(re.findall(r"\b(bitpress_\w+)\(", HEADER.read_text(encoding="utf-8")))
    assert {s.split("@")[0] for s in symbols} - {"BITPRESS_1"} == declared and 10 <= len(declared) <= 15


def raw(sample: Sample, folder: Path) -> Path:
    file = folder / "images.raw"
    sample.x.tofile(file)
    return file


def digest(tree: Tree, folder: Path) -> Path:
    return tree.compile(ROOT / "tests" / "native" / "digest.c", folder / "digest")


def test_sessions_of_one_model_run_beside_each_other(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    sample = programs["everything"]
    done = run([digest(tree, tmp_path), sample.file, raw(sample, tmp_path), len(sample.x), 4, 50])
    assert done.stdout.strip() == hashlib.sha256(execute(sample.program, sample.x).tobytes()).hexdigest()


def test_the_example_in_c(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """C99, every warning an error; values printed with nine digits are exact."""
    sample = programs["everything"]
    example = tree.compile(ROOT / "csrc" / "examples" / "classify.c", tmp_path / "classify")
    lines = run([example, sample.file, raw(sample, tmp_path), 2]).stdout.splitlines()
    want = execute(sample.program, sample.x)
    found = [re.fullmatch(r"image (\d+): class (\d+), (\S+)", line) for line in lines]
    assert [(int(m[2]), np.float32(m[3])) for m in found if m] == [(row.argmax(), row.max()) for row in want]
    assert "cannot read" in run([example, "/dev/null", "/dev/null"], code=USAGE).stderr


def test_the_example_in_cxx(tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    example = tree.compile(ROOT / "csrc" / "examples" / "classify.cc", tmp_path / "classify")
    assert "40 outputs, twice the same" in run([example, programs["everything"].file]).stdout
    assert "path is NULL" in run([example], code=USAGE).stderr


PROJECT = """cmake_minimum_required(VERSION 3.18)
project(outside C CXX)
find_package(bitpress {version} REQUIRED)
find_package(Threads REQUIRED)
set(CMAKE_C_STANDARD 99)
foreach(kind bitpress static)
  add_executable(digest_${{kind}} digest.c)
  target_link_libraries(digest_${{kind}} PRIVATE bitpress::${{kind}} Threads::Threads)
endforeach()
add_executable(example classify.cc)
target_link_libraries(example PRIVATE bitpress::bitpress)
"""


@pytest.fixture(scope="module")
def prefix(tree: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `cmake --install` has put everything."""
    folder = tmp_path_factory.mktemp("install")
    run([tool_path("cmake"), "--install", tree.folder, "--prefix", folder])
    return folder


@pytest.fixture(scope="module")
def outside(prefix: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build folder of a project that finds the package in a prefix that has been moved."""
    folder = tmp_path_factory.mktemp("outside")
    moved, source, made = folder / "moved", folder / "source", folder / "made"
    shutil.copytree(prefix, moved, symlinks=True)
    source.mkdir()
    for file in ("tests/native/digest.c", "csrc/examples/classify.cc"):
        shutil.copy(ROOT / file, source)
    (source / "CMakeLists.txt").write_text(PROJECT.format(version=bitpress.__version__))
    cmake, ninja = tool_path("cmake"), tool_path("ninja")
    found = (f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DCMAKE_PREFIX_PATH={moved}")
    run([cmake, "-S", source, "-B", made, "-G", "Ninja", *found])
    run([cmake, "--build", made])
    return made


def check_digests(outside: Path, file: Path, x: np.ndarray, want: np.ndarray, folder: Path) -> None:
    """The shared and the static library print the SHA-256 of `want` on every ISA."""
    x.tofile(folder / "images.raw")
    digest = hashlib.sha256(want.tobytes()).hexdigest()
    for isa in _native.cpu_isas():
        for kind in ("bitpress", "static"):
            command = [outside / f"digest_{kind}", file, folder / "images.raw", len(x), 1, 1]
            assert run(command, BITPRESS_FORCE_ISA=isa).stdout.strip() == digest, (isa, kind)


@pytest.mark.slow
def test_a_project_outside_prints_python_s_digest(outside: Path, programs: dict[str, Sample], tmp_path: Path) -> None:
    for sample in programs.values():
        check_digests(outside, sample.file, sample.x, execute(sample.program, sample.x), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["w8a8", "w2a2"])
def test_resnet20_outside_prints_python_s_digest(outside: Path, bits: str, real_data: Path, tmp_path: Path) -> None:
    weights, file = real_data / "weights" / "cifar10_resnet20.safetensors", tmp_path / "x.bpk"
    good("compile", "resnet20", "--weights", weights, "--quantize", bits, "--calibrate", "random:16", "-o", file)
    x = np.random.default_rng(3).normal(size=(8, 3, 32, 32)).astype(np.float32)
    check_digests(outside, file, x, bitpress.load(file)(x), tmp_path)


@pytest.mark.slow
def test_pkg_config_describes_the_prefix(prefix: Path, tmp_path: Path) -> None:
    (file,) = prefix.rglob("bitpress.pc")
    text = file.read_text()
    assert f"Version: {bitpress.__version__}" in text and "-lbitpress" in text
    assert (prefix / "bin" / "bitpress-run").exists()
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed: its file was read, not used")
    flags = run(["pkg-config", "--cflags", "--libs", file], PKG_CONFIG_PATH=str(file.parent)).stdout.split()
    run([tool_path("cc"), "-std=c99", ROOT / "csrc" / "examples" / "classify.c", *flags, "-o", tmp_path / "classify"])


@pytest.mark.slow
def test_eight_sessions_under_the_thread_sanitizer(programs: dict[str, Sample], tmp_path: Path) -> None:
    """No race among eight sessions of one model, half of them with a worker of their own."""
    watched = sanitized("thread", "bitpress")
    program = watched.compile(ROOT / "tests" / "native" / "digest.c", tmp_path / "digest", "-fsanitize=thread")
    sample = programs["everything"]
    done = run([program, sample.file, raw(sample, tmp_path), len(sample.x), 8, 20], TSAN_OPTIONS="halt_on_error=1")
    assert done.stdout.strip() == hashlib.sha256(execute(sample.program, sample.x).tobytes()).hexdigest()
