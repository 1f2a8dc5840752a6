"""Every row that multiplies, on the convolutions of ResNet-20 and ResNet-18 as GEMMs M x K x N, at four bit pairs.

Time is that of the one step, by the session's own clock; quantising the image is not counted. Output is compared with
the numpy reference before anything is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest

from bitpress.benchmarks.shapes import CONV, Case, Shape, case, encodings
from bitpress.compiler import artifact
from bitpress.core.encoding import parse_bits
from bitpress.kernels.registry import ROWS

# name: M output channels, K, N pixels; 3x3 convolutions, so K / 9 input channels
SHAPES = {
    "r20s1": (16, 144, 1024), "r20s2": (32, 288, 256), "r20s3": (64, 576, 64),
    "r18s1": (64, 576, 3136), "r18s2": (128, 1152, 784), "r18s3": (256, 2304, 196), "r18s4": (512, 4608, 49),
}  # fmt: skip
PAIRS = ("w2a2", "w4a4", "w8a8", "w2a8")
KERNELS = tuple(row for row in ROWS if row.op == "conv2d" and row.isa != "reference")
SECONDS = 0.1  # a case, after the first call; slow rows get one more call


@dataclass
class StepClock:
    """Seconds that the step under test has taken so far."""

    now: float = 0.0

    def __call__(self) -> float:
        """As time.perf_counter, for that step alone."""
        return self.now


CLOCK = StepClock()


@cache
def made(shape: str, pair: str) -> tuple[bytes, Case]:
    """A convolution that keeps the size, as a program, and the case that it comes from."""
    rows, depth, pixels = SHAPES[shape]
    side = round(pixels**0.5)
    found = case(Shape((depth // 9, side, side), rows, (3, 3), padding=(1, 1, 1, 1)), *encodings(parse_bits(pair)))
    return artifact.encode(found.program), found


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("row", KERNELS, ids=lambda row: row.name)
@pytest.mark.benchmark(timer=CLOCK, group="gemm")
def test_gemm(benchmark: Any, monkeypatch: pytest.MonkeyPatch, row: Any, shape: str, pair: str) -> None:
    """One row on one shape."""
    from bitpress import _native

    if row.isa not in _native.cpu_isas():
        pytest.skip(f"this host has no {row.isa}")
    w, a = parse_bits(pair)
    if w not in row.w_bits or a not in row.a_bits:
        pytest.skip(f"{row.name} has no {pair}")
    monkeypatch.setenv("BITPRESS_FORCE_ISA", row.isa)
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", row.name)
    data, one = made(shape, pair)
    session = _native.Session(data, threads=1)
    steps = session.steps()
    if steps[CONV]["kernel"] != row.name:
        pytest.skip(f"{row.name} does not fit {pair}; bound: {steps[1]['kernel']}")
    np.testing.assert_array_equal(session.run(one.x), one.want)

    def timed() -> None:
        CLOCK.now += float(session.profile(one.x)[CONV]) * 1e-3

    first = float(session.profile(one.x)[CONV]) * 1e-3
    benchmark.pedantic(timed, rounds=int(np.clip(SECONDS / max(first, 1e-7), 2, 50)), iterations=1, warmup_rounds=1)
    rows, depth, pixels = SHAPES[shape]
    seconds = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "kernel": row.name, "isa": row.isa, "bits": pair, "macs": rows * depth * pixels,
        "bops": rows * depth * pixels * w * a, "bytes": rows * -(-depth * w // 8),
        "gmacs_per_second": rows * depth * pixels / seconds / 1e9,
    }  # fmt: skip
