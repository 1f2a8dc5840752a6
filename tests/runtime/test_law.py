"""The numeric law in the runtimes: ties and the order of operations, in numpy and in C++ on every ISA of this machine.

Each case is one that a fused multiply-add, another order or another rounding would answer differently.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.execute import execute
from bitpress.compiler.program import Buffer, Epilogue, Program, Step
from bitpress.core.encoding import parse
from bitpress.kernels.packed import pack

Run = Callable[[Program, np.ndarray], np.ndarray]
TIES = np.float32([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5, 125.5, -126.5])
EVEN = np.float32([-2, -2, 0, 0, 2, 2, 4, 126, -126])
CHANNELS = (1, 8, 37)  # tails and whole vectors
BIG = 2.0**24 + 2.0**13  # 4097 * 4097 - 1


def native(program: Program, x: np.ndarray) -> np.ndarray:
    from bitpress import _native

    data = artifact.encode(program)
    results = []
    for isa in _native.cpu_isas():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("BITPRESS_FORCE_ISA", isa)
            results.append(_native.Session(data, threads=1).run(x))
    for result in results:
        assert np.array_equal(result, results[0])
    return results[0]


@pytest.fixture(params=[execute, pytest.param(native, marks=pytest.mark.native)], ids=["numpy", "native"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


def floats(channels: int, m: float, b: float) -> Epilogue:
    return bounded(channels, m, b, -np.inf, np.inf)


def bounded(channels: int, m: float, b: float, lo: float, hi: float, m_r: float = 0.0) -> Epilogue:
    return Epilogue(np.full(channels, m, np.float32), np.full(channels, b, np.float32), lo, hi, m_r)


def program(steps: tuple[Step, ...], stored: tuple[tuple[str, str], ...], channels: int, width: int) -> Program:
    """Steps over buffers: 0 the image, then those of `stored` (name, storage), all [channels, 1, width]."""
    buffers, end = [Buffer("image", (channels, 1, width), "f32", 0, 4 * channels * width)], 0
    for name, storage in stored:
        size = channels * width * (4 if storage == "f32" else 1)
        buffers.append(Buffer(name, (channels, 1, width), storage, end, size))
        end += -(-size // 64) * 64
    scale = np.ones(channels, np.float32)
    return Program(steps, tuple(buffers), 0, len(stored), end, 0 * scale, scale)


@pytest.mark.parametrize("channels", CHANNELS)
def test_ties_go_to_even(run: Run, channels: int) -> None:
    steps = (
        Step("quantize", "q", (0,), 1, epilogue=bounded(channels, 1, 0, -127, 127)),
        Step("requantize", "out", (1,), 2, epilogue=floats(channels, 1, 0)),
    )
    x = np.tile(TIES, (2, channels, 1, 1))
    got = run(program(steps, (("q", "i8"), ("out", "f32")), channels, len(TIES)), x)
    assert np.array_equal(got, np.tile(EVEN, (2, channels)).reshape(2, -1))


def convolution(channels: int, weight: int, epilogue: Epilogue, *, residual: bool) -> Program:
    """Levels of the image, u8, times `weight` in every channel of its own, then `epilogue`, read back as floats.

    The residual is the image as i8 levels: x - 255 of a second quantisation.
    """
    w = pack(np.full((channels, 1), weight), parse("i8"))
    steps = (
        Step("quantize", "q", (0,), 1, epilogue=bounded(channels, 1, 0, 0, 255)),
        Step("quantize", "r", (0,), 2, epilogue=bounded(channels, -0.5, 0, -127, 127)),
        Step(
            "depthwise_conv2d", "conv", (1, 2) if residual else (1,), 3,
            groups=channels, weight=w, epilogue=epilogue, layer="conv",
        ),
        Step("requantize", "out", (3,), 4, epilogue=floats(channels, 1, 0)),
    )  # fmt: skip
    return program(steps, (("q", "u8"), ("r", "i8"), ("conv", "i4"), ("out", "f32")), channels, 3)


@pytest.mark.parametrize("channels", CHANNELS)
def test_product_is_rounded_before_the_sum(run: Run, channels: int) -> None:
    x = np.full((1, channels, 1, 3), 241, np.float32)  # 241 * 17 = 4097
    net = convolution(channels, 17, bounded(channels, 4097, -BIG, -7, 7), residual=False)
    assert not run(net, x).any()  # fused: 1


@pytest.mark.parametrize("channels", CHANNELS)
def test_residual_product_is_rounded_before_the_sum(run: Run, channels: int) -> None:
    x = np.full((1, channels, 1, 3), -254, np.float32)  # levels 0, residual 127
    m_r = 2.0**24 - 1
    b = -float(np.float32(127) * np.float32(m_r))
    assert b + 127 * m_r == 1
    net = convolution(channels, 17, bounded(channels, 1, b, -7, 7, m_r), residual=True)
    assert not run(net, x).any()  # fused: 1


@pytest.mark.parametrize("channels", CHANNELS)
def test_bias_comes_before_the_residual(run: Run, channels: int) -> None:
    x = np.full((1, channels, 1, 3), 128, np.float32)  # 128 * 32 * 4096 = 2**24; the residual is -64
    net = convolution(channels, 32, bounded(channels, 4096, 1, -7, 7, 2.0**18), residual=True)
    assert not run(net, x).any()  # the residual first: 1
