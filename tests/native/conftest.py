"""What tests of the library and the tool share: a build of them, samples as files, programs compiled against it.

They are built in the folder of the native module, where all but a few objects lie already; BITPRESS_BUILD=DIR takes
another.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.program import Program

from ..runtime import samples

ROOT = Path(__file__).resolve().parents[2]
CMAKE_TARGETS = ("bitpress-run", "bitpress", "bitpress_static")


def run(
    command: Sequence[object], *, code: int | None = 0, seconds: int = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a program with nothing forced but `environment`; its exit code must be `code` (None: any)."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("BITPRESS_")}
    done = subprocess.run(
        [str(c) for c in command],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert code is None or done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def tool_path(name: str) -> str:
    """A build tool of this environment or of the system; skips where there is none."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def build(folder: Path, *options: str, targets: Sequence[str] = CMAKE_TARGETS) -> Path:
    """Configures `folder` where that is new, and builds; a failed build fails the test. One process at a time."""
    cmake = tool_path("cmake")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if options or not (folder / "CMakeCache.txt").exists():
            ninja = f"-DCMAKE_MAKE_PROGRAM={tool_path('ninja')}"
            run([cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", ninja, *options])
        run([cmake, "--build", folder, "--target", *targets], seconds=1500)
    return folder


@dataclass(frozen=True, slots=True)
class Tree:
    """A build folder."""

    folder: Path

    @property
    def tool(self) -> Path:
        """bitpress-run."""
        return self.folder / "bitpress-run"

    @property
    def library(self) -> Path:
        """The shared library."""
        return self.folder / "libbitpress.so"

    def compile(self, source: Path, out: Path, *flags: str) -> Path:
        """A C99 or C++17 program linked with the shared library, every warning an error."""
        plain = source.suffix == ".c"
        standard = "-std=c99" if plain else "-std=c++17"
        run([
            tool_path("cc" if plain else "c++"), standard, "-Wall", "-Wextra", "-Werror", "-pedantic", "-O1", *flags,
            source, f"-I{ROOT / 'csrc' / 'include'}", f"-L{self.folder}", "-lbitpress", f"-Wl,-rpath,{self.folder}",
            "-pthread", "-o", out,
        ])  # fmt: skip
        return out


def sanitized(kind: str, target: str) -> Tree:
    """`target` built under sanitizers, in a folder that is kept."""
    options = (f"-DBITPRESS_SANITIZE={kind}", "-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1",
               "-DBITPRESS_FUZZ=own")  # fmt: skip
    return Tree(build(ROOT / "build" / f"sanitize-{kind.replace(',', '-')}", *options, targets=[target]))


@pytest.fixture(scope="session")
def tree() -> Tree:
    """The library and the tool, as built for this environment."""
    folder = os.environ.get("BITPRESS_BUILD", "")
    return Tree(build(Path(folder) if folder else ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"))


@dataclass(frozen=True, slots=True)
class Sample:
    """A program, its file, and images for it: `x` float32 NCHW normalised, `u8` uint8 NHWC."""

    program: Program
    file: Path
    x: np.ndarray
    u8: np.ndarray


def sample(program: Program, file: Path, images: int = 3) -> Sample:
    """Writes `program` and makes images."""
    artifact.write(program, file)
    c, h, w = program.buffers[program.input].shape
    rng = np.random.default_rng(11)
    x = rng.normal(size=(images, c, h, w)).astype(np.float32)
    return Sample(program, file, x, rng.integers(0, 256, (images, h, w, c)).astype(np.uint8))


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sample]:
    """Samples by name."""
    folder = tmp_path_factory.mktemp("samples")
    made = {
        "straight": samples.straight("o2", "u2", channels=33), "everything": samples.everything(),
        "deep": samples.deep(),
    }  # fmt: skip
    return {name: sample(program, folder / f"{name}.bpk") for name, program in made.items()}
