"""Artifacts of one step with what each must give, for builds that Python cannot load: other processors, emulation.

The cases are those of tests/kernels/test_conformance.py, and so is the oracle; tests/native/conform.c runs them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitpress.compiler import artifact
from bitpress.compiler.program import Program

from ..kernels import test_conformance as suite
from ..kernels.oracle import Window

Case = tuple[str, Program, np.ndarray, np.ndarray]  # name, program, images, what must come out


def one_step(name: str, weight: str, act: str, given: suite.Case, g: Window, op: str) -> Case:
    x, w, sums = given
    program = suite.one_step(x.shape[1:], act, w, weight, g, op=op)
    return name, program, x.astype(np.float32), sums.astype(np.int32).astype(np.float32)


def cases() -> Iterator[Case]:
    """The cases of tests/kernels/test_conformance.py: encodings, shapes by risk, depthwise ones."""
    around = (1, 1, 1, 1)
    for weight in suite.WEIGHTS:
        for act in suite.ACTS:
            g = suite.SAME
            yield one_step(f"{weight}x{act}", weight, act, suite.case(weight, act, 5, (3, 2), 5, g), g, "conv2d")
            g = Window((3, 3), padding=around, groups=5)
            given = suite.case(weight, act, 5, (3, 2), 5, g)
            yield one_step(f"{weight}x{act}.depthwise", weight, act, given, g, "depthwise_conv2d")
    for storage, lo, hi in suite.STORED:
        yield f"o2.{storage}.stored", *suite.every_sum("o2", storage, lo, hi)
    for weight, act in suite.PAIRS:
        for number, (c, side, rows, g) in enumerate(suite.GEOMETRIES):
            given = suite.case(weight, act, c, side, rows, g, batch=2)
            yield one_step(f"{weight}x{act}.shape{number}", weight, act, given, g, "conv2d")
        for c, side in ((17, (5, 6)), (20, (3, 21)), (33, (4, 9))):
            g = Window((3, 3), padding=around, groups=c)
            given = suite.case(weight, act, c, side, c, g, batch=2)
            yield one_step(f"{weight}x{act}.depthwise{c}", weight, act, given, g, "depthwise_conv2d")


@dataclass(frozen=True, slots=True)
class Golden:
    """A folder of artifacts and images, the list that conform reads, and the SHA-256 of each one's outputs."""

    folder: Path
    digests: dict[str, str]

    def fitting(self, kernel: str) -> Path:
        """An artifact that every row of its op computes."""
        return self.folder / ("o2xu2.depthwise.bpk" if kernel.startswith("depthwise") else "o2xu2.bpk")

    def check(self, label: str, conform: Callable[[Path], object]) -> None:
        """`conform` is given the list and must leave outputs whose SHA-256 are those expected, all of them."""
        for old in self.folder.glob("*.y"):
            old.unlink()
        conform(self.folder / "list")
        found = {name: hashlib.sha256((self.folder / f"{name}.y").read_bytes()).hexdigest() for name in self.digests}
        wrong = [name for name, digest in self.digests.items() if found[name] != digest]
        assert not wrong, f"{label}: {len(wrong)} of {len(found)} differ, first {wrong[:5]}"
        assert len(found) > 500


def write(folder: Path) -> Golden:
    """All cases as files."""
    digests, lines = {}, []
    for name, program, x, want in cases():
        artifact.write(program, folder / f"{name}.bpk")
        x.tofile(folder / f"{name}.x")
        digests[name] = hashlib.sha256(want.tobytes()).hexdigest()
        lines.append(f"{folder / name}.bpk {folder / name}.x {len(x)} {folder / name}.y")
    (folder / "list").write_text("\n".join(lines) + "\n")
    return Golden(folder, digests)
