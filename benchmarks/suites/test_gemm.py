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

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.compiler.program import Buffer, Epilogue, Program, Step
from bitpress.core.encoding import parse_bits, twos, unsigned
from bitpress.core.quant import act_bounds
from bitpress.kernels.packed import pack
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
def case(shape: str, pair: str) -> tuple[bytes, np.ndarray, np.ndarray]:
    """Artifact of one image quantised and one convolution, an input, and what the reference makes of it."""
    rows, depth, pixels = SHAPES[shape]
    w, a = parse_bits(pair)
    c, side = depth // 9, round(pixels**0.5)
    rng = np.random.default_rng(0)
    levels = unsigned(a).name
    buffers = (
        Buffer("image", (c, side, side), "f32", 0, 4 * c * pixels),
        Buffer("levels", (c, side, side), levels, 0, c * pixels),
        Buffer("out", (rows, side, side), levels, _aligned(c * pixels), rows * pixels),
        Buffer("result", (rows, side, side), "f32", _aligned(c * pixels) + _aligned(rows * pixels), 4 * rows * pixels),
    )
    lo, hi = act_bounds(unsigned(a))
    ones, zeros = np.ones, np.zeros
    weight = pack(twos(w).levels()[rng.integers(0, 2**w, (rows, depth))], twos(w))
    m = np.full(rows, 4 / (depth**0.5 * 2**w), np.float32)
    steps = (
        Step("quantize", "levels", (0,), 1, epilogue=Epilogue(ones(c, np.float32), zeros(c, np.float32), lo, hi)),
        Step("conv2d", "conv", (1,), 2, kernel=(3, 3), padding=(1, 1, 1, 1), weight=weight, layer="conv",
             epilogue=Epilogue(m, zeros(rows, np.float32), lo, hi)),
        Step("requantize", "result", (2,), 3,
             epilogue=Epilogue(ones(rows, np.float32), zeros(rows, np.float32), -np.inf, np.inf)),
    )  # fmt: skip
    end = buffers[3].offset + _aligned(buffers[3].bytes)
    program = Program(steps, buffers, 0, 3, end, zeros(c, np.float32), ones(c, np.float32))
    x = rng.uniform(lo, hi, (1, c, side, side)).astype(np.float32)
    return artifact.encode(program), x, execute(program, x)


def _aligned(size: int) -> int:
    return -(-size // 64) * 64


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
    data, x, want = case(shape, pair)
    session = _native.Session(data, threads=1)
    steps = session.steps()
    if steps[1]["kernel"] != row.name:
        pytest.skip(f"{row.name} does not fit {pair}; bound: {steps[1]['kernel']}")
    np.testing.assert_array_equal(session.run(x), want)

    def one() -> None:
        CLOCK.now += float(session.profile(x)[1]) * 1e-3

    first = float(session.profile(x)[1]) * 1e-3
    benchmark.pedantic(one, rounds=int(np.clip(SECONDS / max(first, 1e-7), 2, 50)), iterations=1, warmup_rounds=1)
    rows, depth, pixels = SHAPES[shape]
    seconds = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "kernel": row.name, "isa": row.isa, "bits": pair, "macs": rows * depth * pixels,
        "bops": rows * depth * pixels * w * a, "bytes": rows * -(-depth * w // 8),
        "gmacs_per_second": rows * depth * pixels / seconds / 1e9,
    }  # fmt: skip
