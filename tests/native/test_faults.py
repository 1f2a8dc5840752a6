"""Writing that fails or is killed half way: the file that was there before stays whole, and nothing is left that hurts.

A full disk is played by a limit on the size of files, which the system enforces in the same place (EFBIG for ENOSPC).
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bitpress.compiler import artifact

from .conftest import Sample, Tree, run

pytestmark = pytest.mark.native
NETS = Path(__file__).parents[1] / "cli" / "nets.py"
OLD = b"what was there before"
# Verbs that write a file, with {out} for it.
COMPILE = ("compile", f"{NETS}:chain", "--quantize", "w4a4", "--calibrate", f"{NETS}:blobs", "-o", "{out}")
VERBS = {"compile": COMPILE, "run": ("run", "{bpk}", "--input", "{x}", "--output", "{out}")}
SLOW_FIRST = (pytest.param("compile", marks=pytest.mark.slow), "run")


def limit() -> None:
    """At most 512 bytes of any file, told by an error and not by a signal."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))


@pytest.fixture
def places(programs: dict[str, Sample], tmp_path: Path) -> dict[str, Path]:
    """An artifact, images for it, and a folder with an old file in the way of the new one."""
    sample = programs["everything"]
    np.save(tmp_path / "x.npy", np.resize(sample.x, (200, *sample.x.shape[1:])))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "y").write_bytes(OLD)
    return {"bpk": sample.file, "x": tmp_path / "x.npy", "out": tmp_path / "out" / "y"}


def verb(name: str, places: dict[str, Path]) -> list[str]:
    return [part.format(**places) for part in VERBS[name]]


@pytest.mark.parametrize("name", SLOW_FIRST)
def test_a_full_disk_leaves_the_old_file(name: str, places: dict[str, Path]) -> None:
    command = [sys.executable, "-P", "-B", "-m", "bitpress", *verb(name, places)]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=120)
    said = [line for line in done.stderr.splitlines() if "cannot write" in line]
    assert done.returncode == 2 and len(said) == 1 and str(places["out"]) in said[0], done
    assert [p.name for p in places["out"].parent.iterdir()] == ["y"] and places["out"].read_bytes() == OLD


@pytest.mark.parametrize("name", SLOW_FIRST)
def test_killed_before_the_new_file_is_whole(name: str, places: dict[str, Path]) -> None:
    """Dead between the last byte and the rename; afterwards the same command goes through, whatever was left."""
    code = (
        "import os, signal, sys; os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL); "
        "from bitpress.cli.command import cli; cli(sys.argv[1:])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *verb(name, places)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done
    assert places["out"].read_bytes() == OLD
    run([sys.executable, "-P", "-m", "bitpress", *verb(name, places)])
    assert places["out"].read_bytes() != OLD


def test_the_tool_on_a_full_disk(tree: Tree, places: dict[str, Path]) -> None:
    command = [tree.tool, places["bpk"], "--input", places["x"], "--output", places["out"]]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "cannot write" in done.stderr and done.stderr.count("\n") == 1
    assert [p.name for p in places["out"].parent.iterdir()] == ["y"] and places["out"].read_bytes() == OLD


def test_the_tool_killed_at_any_time(tree: Tree, places: dict[str, Path]) -> None:
    """The old file or the new one, never a part; the moments are spread over what a whole run takes."""
    command = [tree.tool, places["bpk"], "--input", places["x"], "--output", places["out"]]
    begin = time.perf_counter()
    run(command)
    took, new = time.perf_counter() - begin, places["out"].read_bytes()
    for part in range(20):
        places["out"].write_bytes(OLD)
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(took * part / 16)
        child.kill()
        child.wait()
        assert places["out"].read_bytes() in (OLD, new)
    run(command)
    assert places["out"].read_bytes() == new


@pytest.mark.parametrize("name", ["straight", "everything", "deep"])
def test_loading_needs_no_right_to_write(name: str, tree: Tree, programs: dict[str, Sample], tmp_path: Path) -> None:
    """A read-only file in a read-only folder, and nothing is opened for writing."""
    folder = tmp_path / "locked"
    folder.mkdir()
    artifact.write(programs[name].program, folder / "x.bpk")
    (folder / "x.bpk").chmod(0o444)
    folder.chmod(0o555)
    before = (folder / "x.bpk").stat()
    run([tree.tool, folder / "x.bpk"])
    after = (folder / "x.bpk").stat()
    assert [p.name for p in folder.iterdir()] == ["x.bpk"]
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    folder.chmod(0o755)
