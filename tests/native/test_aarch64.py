"""Built for 64-bit Arm by a cross compiler, run by qemu: every NEON row against the oracle, whole networks by SHA-256.

What must come out is computed on this host when the test runs, by numpy.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import bitpress
from bitpress.compiler.execute import execute
from bitpress.kernels import native

from ..cli.tool import good
from . import golden
from .conftest import CMAKE_TARGETS, ROOT, Sample, Tree, build, run, tool_path
from .test_library import PROJECT

pytestmark = [pytest.mark.native, pytest.mark.slow]
COMPILER, EMULATOR, SYSTEM = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
ISAS = ("generic", *(name for name in native.isas() if name.startswith("neon")))
ROWS = tuple(row for row in native.rows() if row.isa in ISAS)
MULTIPLY = tuple(row.name for row in ROWS if row.op in ("conv2d", "depthwise_conv2d"))
OLD, NEW = "cortex-a53", "max"  # the first 64-bit core, and all that qemu knows


def emulated(*command: object, code: int = 0, cpu: str = NEW, **environment: str) -> str:
    """Stdout of a program for Arm, whose variables are `environment`."""
    done = run([tool_path(EMULATOR), "-cpu", cpu, "-L", SYSTEM, *command], code=code, seconds=900, **environment)
    return done.stdout if code == 0 else done.stderr


@pytest.fixture(scope="module")
def arm() -> Tree:
    """The library and the tool for Arm; skips, and says what to install, where they cannot be built or run."""
    for name, package in ((COMPILER, "g++-aarch64-linux-gnu"), (EMULATOR, "qemu-user")):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (Debian: {package}): NOTHING OF THE ARM BUILD IS TESTED")
    toolchain = f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64.cmake'}"
    return Tree(build(ROOT / "build" / "aarch64", toolchain, targets=CMAKE_TARGETS))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> golden.Golden:
    return golden.write(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def conform(arm: Tree, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tests/native/conform.c for Arm, with the static library."""
    made = tmp_path_factory.mktemp("conform") / "conform"
    source = ROOT / "tests" / "native" / "conform.c"
    plain = COMPILER.replace("g++", "gcc")
    run(
        [
            plain,
            "-std=c99",
            "-Wall",
            "-Werror",
            "-O1",
            "-c",
            source,
            f"-I{ROOT / 'csrc' / 'include'}",
            "-o",
            f"{made}.o",
        ]
    )
    run([COMPILER, "-static", f"{made}.o", arm.folder / "libbitpress.a", "-pthread", "-o", made])
    return made


@pytest.mark.parametrize("kernel", MULTIPLY)
def test_rows_that_multiply(kernel: str, arm: Tree, conform: Path, cases: golden.Golden) -> None:
    forced = {"BITPRESS_FORCE_KERNEL": kernel}
    steps = json.loads(emulated(arm.tool, cases.fitting(kernel), "--json", **forced))["steps"]
    assert steps[-1]["kernel"] == kernel
    cases.check(kernel, lambda file: emulated(conform, file, **forced))


@pytest.mark.parametrize("isa", ISAS)
def test_whole_programs(isa: str, arm: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """Every op, with rows of `isa` among those chosen; the golden sample too."""
    for sample in programs.values():
        np.save(tmp_path / "x.npy", sample.x)
        options = ["--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy", "--threads", 2, "--json", "-"]
        found = json.loads(emulated(arm.tool, sample.file, *options, BITPRESS_FORCE_ISA=isa))
        got = np.load(tmp_path / "y.npy", allow_pickle=False)
        np.testing.assert_array_equal(got.view(np.int32), execute(sample.program, sample.x).view(np.int32))
        assert found["host"]["isa"] == isa and isa in {step["isa"] for step in found["steps"]}
    assert "comes out exactly" in emulated(arm.tool, programs["everything"].file, "--verify", BITPRESS_FORCE_ISA=isa)


@pytest.mark.parametrize("name", ["ties", "pool"])
def test_program(name: str, arm: Tree, tmp_path: Path) -> None:
    """tests/csrc/NAME.cc: rounding of every requantize row; the thread pool, whose atomics are weaker here."""
    source, runtime = ROOT / "tests" / "csrc" / f"{name}.cc", arm.folder / "libbitpress_runtime.a"
    run([COMPILER, "-std=c++17", "-O1", "-static", f"-I{ROOT / 'csrc'}", source, runtime, "-pthread", "-o",
         tmp_path / name])  # fmt: skip
    assert " 0 wrong" in f" {emulated(tmp_path / name)}"


def test_an_old_core_runs_what_it_has(arm: Tree, programs: dict[str, Sample]) -> None:
    file = programs["everything"].file
    found = json.loads(emulated(arm.tool, file, "--verify", "--json", cpu=OLD))
    assert found["golden"]["exact"] and found["host"]["isa"] == "neon"
    said = emulated(arm.tool, file, code=5, cpu=OLD, BITPRESS_FORCE_ISA="neon_i8mm")
    assert "this host lacks asimddp, i8mm; usable here is neon" in said
    assert "this host lacks avx2" in emulated(arm.tool, file, code=5, BITPRESS_FORCE_ISA="avx2")


def test_a_project_outside_prints_python_s_digest(
    arm: Tree, programs: dict[str, Sample], real_data: Path, tmp_path: Path
) -> None:
    """find_package in a cross build; ResNet-20 and the samples, shared and static, on every ISA."""
    prefix, source, made = tmp_path / "prefix", tmp_path / "source", tmp_path / "made"
    run([tool_path("cmake"), "--install", arm.folder, "--prefix", prefix])
    source.mkdir()
    for file in ("tests/native/digest.c", "csrc/examples/classify.cc"):
        shutil.copy(ROOT / file, source)
    (source / "CMakeLists.txt").write_text(PROJECT.format(version=bitpress.__version__))
    options = (f"-DCMAKE_TOOLCHAIN_FILE={ROOT / 'cmake' / 'aarch64.cmake'}", f"-DCMAKE_FIND_ROOT_PATH={prefix}",
               f"-DCMAKE_PREFIX_PATH={prefix}", f"-DCMAKE_MAKE_PROGRAM={tool_path('ninja')}")  # fmt: skip
    run([tool_path("cmake"), "-S", source, "-B", made, "-G", "Ninja", *options])
    run([tool_path("cmake"), "--build", made])
    weights, file = real_data / "weights" / "cifar10_resnet20.safetensors", tmp_path / "resnet20.bpk"
    good("compile", "resnet20", "--weights", weights, "--quantize", "w2a2", "--calibrate", "random:16", "-o", file)
    x = np.random.default_rng(3).normal(size=(2, 3, 32, 32)).astype(np.float32)
    jobs = [(file, x, bitpress.load(file)(x))]
    jobs += [(sample.file, sample.x, execute(sample.program, sample.x)) for sample in programs.values()]
    for model, images, want in jobs:
        images.tofile(tmp_path / "images.raw")
        digest = hashlib.sha256(want.tobytes()).hexdigest()
        for isa in ISAS:
            for kind in ("bitpress", "static"):
                command = [made / f"digest_{kind}", model, tmp_path / "images.raw", len(images), 1, 1]
                assert emulated(*command, BITPRESS_FORCE_ISA=isa).strip() == digest, (model, isa, kind)
