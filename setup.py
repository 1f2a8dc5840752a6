"""Build: directory mapping to one import package, and the native module by CMake.

`BITPRESS_NATIVE=0` builds nothing native; otherwise a failed native build fails the install.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
PACKAGES = {
    "bitpress": "bitpress",
    "bitpress.cli": "bitpress/cli",
    "bitpress.page": "bitpress/page",
    "bitpress.reporting": "bitpress/reporting",
    "bitpress.core": "core",
    "bitpress.core.models": "core/models",
    "bitpress.core.search": "core/search",
    "bitpress.kernels": "kernels",
    "bitpress.kernels.gpu": "kernels/gpu",
    "bitpress.compiler": "compiler",
    "bitpress.benchmarks": "benchmarks",
}


def version() -> str:
    """The one version string, from bitpress/_version.py."""
    scope: dict[str, str] = {}
    exec((ROOT / "bitpress" / "_version.py").read_text(encoding="utf-8"), scope)
    return scope["__version__"]


class CMakeBuild(build_ext):
    """Runs CMake + Ninja for the one extension."""

    def build_extension(self, ext: Extension) -> None:
        """Configures and builds; the module lands where setuptools wants it."""
        import pybind11

        out = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [
                "cmake",
                "-S",
                str(ROOT),
                "-B",
                str(build),
                "-G",
                "Ninja",
                "-DCMAKE_BUILD_TYPE=Release",
                "-DBITPRESS_PYTHON=ON",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DBITPRESS_MODULE_DIR={out}",
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", str(build), "--target", "_native"], check=True)


native = os.environ.get("BITPRESS_NATIVE", "1")
if native not in ("0", "1"):
    raise SystemExit(f"BITPRESS_NATIVE={native!r}: valid values are 0 and 1")

setup(
    version=version(),
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "bitpress": ["py.typed", "*.pyi"],
        "bitpress.page": ["*.html", "*.css", "*.js"],
        "bitpress.kernels": ["*.def"],
        "bitpress.kernels.gpu": ["tables/*.json"],
    },
    ext_modules=[Extension("bitpress._native", sources=[])] if native == "1" else [],
    cmdclass={"build_ext": CMakeBuild},
)
