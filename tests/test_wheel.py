"""The built wheel, installed into an environment of its own, does everything outside the checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent
NETS = Path(__file__).with_name("cli") / "nets.py"


@dataclass(frozen=True, slots=True)
class Installed:
    """A virtual environment with the wheel, and an empty folder to work in."""

    python: Path
    folder: Path

    def __call__(self, *args: object, code: int = 0) -> str:
        """`bitpress ARGS` of the environment, in the folder; its stdout."""
        command = [str(self.python.with_name("bitpress")), *map(str, args)]
        out = subprocess.run(command, cwd=self.folder, env=_clean(), capture_output=True, text=True, check=False)
        assert out.returncode == code, f"{command}: {out.returncode}\n{out.stderr}"
        assert "Traceback" not in out.stderr
        return out.stdout


def _clean() -> dict[str, str]:
    """Nothing that leads back to the checkout."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("BITPRESS_", "PYTHON", "VIRTUAL_ENV"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def _run(command: Sequence[object], cwd: Path, **environment: str) -> None:
    out = subprocess.run(
        [str(c) for c in command], cwd=cwd, env={**_clean(), **environment}, capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, f"{command}\n{out.stdout[-2000:]}\n{out.stderr[-4000:]}"


@pytest.fixture(scope="module", params=["1", "0"], ids=["native", "pure"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel with the native module, and without; dependencies are borrowed from this environment."""
    folder = tmp_path_factory.mktemp(f"wheel{request.param}")
    source = folder / "source"
    ignore = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "*.egg-info", "__pycache__", "_native*.so", "data"
    )
    shutil.copytree(ROOT, source, ignore=ignore)
    _run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", folder / "dist", "."],
         source, BITPRESS_NATIVE=request.param)  # fmt: skip
    (wheel,) = (folder / "dist").glob("bitpress-*.whl")
    shutil.rmtree(source)
    home = folder / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    _run([sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", wheel], folder)
    _borrow(next(home.glob("lib/python*/site-packages")))
    work = folder / "work"
    work.mkdir()
    return Installed(python, work)


def _borrow(target: Path) -> None:
    """Every library of this environment but Bitpress: links, for a .pth would bring the editable install along."""
    for folder in map(Path, site.getsitepackages()):
        for entry in folder.iterdir():
            mine = "bitpress" in entry.name or entry.suffix == ".pth" or entry.name == "__pycache__"
            if not mine and not (target / entry.name).exists():
                (target / entry.name).symlink_to(entry)


def test_every_verb_works_outside_the_checkout(installed: Installed) -> None:
    folder = installed.folder
    where = subprocess.check_output([installed.python, "-c", "import bitpress; print(bitpress.__file__)"], cwd=folder,
                                    env=_clean(), text=True)  # fmt: skip
    assert str(installed.python.parents[1]) in where
    doctor = json.loads(installed("doctor", "--json", "-"))
    native = doctor["native"]["loaded"]
    spec = shutil.copy(NETS, folder / "nets.py") and "nets.py"
    net, data = f"{spec}:chain", f"{spec}:blobs"
    assert "conv2d" in installed("plan", net, "--bits", "w4a4", "--budget", "bops=10%")
    installed("search", net, "--data", data, "--budget", "bops=10%", "--out", "run", "--epochs-float", "1",
              "--epochs-search", "1", "--epochs-finetune", "1", "--threads", "1", "-q")  # fmt: skip
    installed("compile", "run", "-o", "x.bpk")
    installed("compile", net, "--quantize", "w4a4", "--calibrate", "random:8", "--run", "ptq", "-o", "p.bpk")
    (folder / "nets.py").rename(folder / "hidden.py")
    inspected = json.loads(installed("inspect", "x.bpk", "--json", "-"))
    assert sum(part["bytes"] for part in inspected["parts"]) == (folder / "x.bpk").stat().st_size
    np.save(folder / "x.npy", np.zeros((2, 2, 6, 6), np.float32))
    installed("run", "x.bpk", "--input", "x.npy", "--output", "y.npy")
    assert np.load(folder / "y.npy").shape == (2, 3)
    (folder / "hidden.py").rename(folder / "nets.py")
    digests = {
        json.loads(installed("eval", source, "--data", data, "--json", "-"))["predictions_sha256"]
        for source in ("run", "x.bpk")
    }
    assert len(digests) == 1
    for artifact, run in (("x.bpk", "run"), ("p.bpk", "ptq")):
        verified = json.loads(installed("verify", artifact, "--against", run, "--json", "-"))
        assert verified["exact"] and ("native" in verified["stages"]) == native
    bench = json.loads(installed("bench", "x.bpk", "--seconds", "0.1", "--json", "-"))
    assert len(bench["runs"][0]["peers"]) == 2
    installed("report", "x.bpk", "--against", "run", "-o", "x.html", "--vs", "", "--seconds", "0.05")
    assert (folder / "x.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert "usage" in _module_help(installed)


def _module_help(installed: Installed) -> str:
    command = [installed.python, "-m", "bitpress.benchmarks.demo", "--help"]
    return subprocess.check_output(command, cwd=installed.folder, env=_clean(), text=True)


def test_the_bare_face_of_a_checkout_is_named(installed: Installed) -> None:
    """`python -m bitpress` in a checkout finds its face before the installed package."""
    command = [installed.python, "-m", "bitpress", "doctor"]
    out = subprocess.run(command, cwd=ROOT, env=_clean(), capture_output=True, text=True, check=False)
    assert out.returncode == 5 and "hides the installed package" in out.stderr and "Traceback" not in out.stderr
