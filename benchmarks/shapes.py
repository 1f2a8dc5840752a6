"""Shapes of `bench gemm`: M x K x N, or the layers of a network; each as a program of one layer. Times nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import prod
from types import ModuleType
from typing import Any

import numpy as np

from ..compiler.execute import execute
from ..compiler.program import Buffer, Epilogue, Program, Step
from ..core.encoding import BIPOLAR, Encoding, twos, unsigned
from ..core.errors import UsageError
from ..core.latency import LayerShape, layer_shape
from ..core.ops import window_out
from ..core.quant import act_bounds
from ..kernels.kernel import Problem, tiles
from ..kernels.packed import pack

LARGEST_SIDE = 0xFFFF  # of the file format
MOST_VALUES = 1 << 26  # of weights, of windows, of outputs: the reference holds 8 bytes for each
MOST_MACS = 1 << 36
FORCED = "BITPRESS_FORCE_KERNEL"
CONV = 1  # number of the timed step in a program of `program`


@dataclass(frozen=True, slots=True)
class Shape:
    """One layer as a product of M = `rows` by K = `depth` of one group by N = `pixels`.

    `layers`: those of networks that have this shape ("resnet20:conv1"); none where M x K x N was asked for, which is a
    1x1 convolution of K channels over a line of N pixels.
    """

    in_shape: tuple[int, int, int]
    rows: int
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)  # top, left, bottom, right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    layers: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """K: length of one dot product."""
        return self.in_shape[0] // self.groups * prod(self.kernel)

    @property
    def out_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the output."""
        _, h, w = self.in_shape
        top, left, bottom, right = self.padding
        return (
            self.rows,
            window_out(h, self.kernel[0], self.stride[0], top + bottom, self.dilation[0]),
            window_out(w, self.kernel[1], self.stride[1], left + right, self.dilation[1]),
        )

    @property
    def pixels(self) -> int:
        """N: output pixels."""
        return prod(self.out_shape[1:])

    @property
    def macs(self) -> int:
        """Multiply-accumulates, without padding that a kernel adds."""
        return self.rows * self.depth * self.pixels

    @property
    def op(self) -> str:
        """Name of the step that computes it."""
        return "depthwise_conv2d" if 1 < self.groups == self.in_shape[0] == self.rows else "conv2d"

    @property
    def plain(self) -> bool:
        """Whether it is a matrix product: 1x1 windows without stride, border and groups."""
        return replace(self, layers=()) == Shape(self.in_shape, self.rows)

    def __str__(self) -> str:
        return f"{self.rows}x{self.depth}x{self.pixels}"

    def problem(self, w: Encoding, a: Encoding) -> Problem:
        """What a kernel is chosen for."""
        near = tiles(self.out_shape[1:], self.kernel, self.stride, self.dilation) if self.op == "conv2d" else 0
        return Problem(self.op, w, a, self.rows, self.depth, self.pixels, self.groups, near)


def shapes(texts: Sequence[str]) -> tuple[Shape, ...]:
    """The shapes that `--shapes` names, each once, in their order; layers of networks come by tracing.

    UsageError: neither M x K x N nor a network, or too large.
    """
    found: dict[Shape, list[str]] = {}
    for text in texts:
        for shape in (_product(text),) if re.fullmatch(r"\d+x\d+x\d+", text) else _network(text):
            found.setdefault(replace(shape, layers=()), []).extend(shape.layers)
    if not found:
        raise UsageError("--shapes is empty: M x K x N such as 64x576x64, or networks such as resnet20, by comma")
    for shape in found:
        _check_size(shape)
    return tuple(replace(shape, layers=tuple(layers)) for shape, layers in found.items())


def _product(text: str) -> Shape:
    rows, depth, pixels = (int(part) for part in text.split("x"))
    if not all(1 <= side <= LARGEST_SIDE for side in (rows, depth, pixels)):
        raise UsageError(f"--shapes {text}: sides are 1 to {LARGEST_SIDE}")
    return Shape((depth, 1, pixels), rows)


def _network(spec: str) -> list[Shape]:
    """One Shape for every conv and linear layer of a network with random weights."""
    from ..core.bops import layer_nodes
    from ..core.network import network

    try:
        graph = network(spec, floats=True).graph
    except UsageError as error:
        raise UsageError(f"--shapes {spec!r} is no M x K x N such as 64x576x64, and as a network: {error}") from error
    return [of_layer(layer_shape(graph, node), f"{spec}:{node.name}") for node in layer_nodes(graph)]


def of_layer(shape: LayerShape, *layers: str) -> Shape:
    """The shape of layers of networks."""
    return Shape(**{field.name: getattr(shape, field.name) for field in fields(shape)}, layers=layers)


def _check_size(shape: Shape) -> None:
    values = max(shape.rows * shape.depth, shape.in_shape[0] * prod(shape.kernel) * shape.pixels,
                 shape.rows * shape.pixels)  # fmt: skip
    if values > MOST_VALUES or shape.macs > MOST_MACS:
        raise UsageError(
            f"--shapes {shape}: {values:,} values and {shape.macs:,} multiply-accumulates; at most {MOST_VALUES:,} and "
            f"{MOST_MACS:,} are timed"
        )


def encodings(bits: tuple[int, int]) -> tuple[Encoding, Encoding]:
    """Weights and activations at `bits`: two's complement (1 bit: bipolar) and unsigned.

    >>> [str(e) for e in encodings((2, 8))]
    ['i2', 'u8']
    """
    return (BIPOLAR if bits[0] == 1 else twos(bits[0])), unsigned(bits[1])


@dataclass(frozen=True, slots=True)
class Case:
    """A shape at some bits with random data: the program, its input, and what the numpy reference makes of it."""

    program: Program
    x: np.ndarray
    want: np.ndarray

    @property
    def step(self) -> Step:
        """The layer, which alone is timed."""
        return self.program.steps[CONV]


def check_depth(shape: Shape, w: Encoding, a: Encoding) -> None:
    """UsageError where the sum of so many products may overflow int32."""
    if shape.depth > w.max_depth(a):
        raise UsageError(
            f"--shapes {shape}: a sum of {shape.depth} products of {w} x {a} may overflow int32, "
            f"at most {w.max_depth(a)} are possible"
        )


def case(shape: Shape, w: Encoding, a: Encoding, *, seed: int = 0, nonzero: float | None = None) -> Case:
    """`program` with what the reference makes of its image."""
    made, x = program(shape, w, a, seed=seed, nonzero=nonzero)
    return Case(made, x, execute(made, x))


def program(
    shape: Shape, w: Encoding, a: Encoding, *, seed: int = 0, nonzero: float | None = None
) -> tuple[Program, np.ndarray]:
    """A program of one layer that quantises an image to `a`, and one image that fills all levels.

    `nonzero`: share of weights that are not 0, on grids that have a 0; None: levels are drawn evenly.
    """
    rng = np.random.default_rng(seed)
    levels = w.levels()[rng.integers(0, 2**w.bits, (shape.rows, shape.depth))]
    if nonzero is not None and w.has_zero:
        others = w.levels()[w.levels() != 0]
        levels = others[rng.integers(0, len(others), levels.shape)] * (rng.random(levels.shape) < nonzero)
    weight, (lo, hi) = pack(levels, w), act_bounds(a)
    x = rng.integers(lo, hi + 1, (1, *shape.in_shape)).astype(np.float32)
    made = _program(shape, a, Step(
        shape.op, "layer", (1,), 2, shape.kernel, shape.stride, shape.padding, shape.dilation, shape.groups,
        weight=weight, epilogue=_epilogue(shape, w, a, rng), layer="layer",
    ))  # fmt: skip
    return made, x


def session(native: ModuleType, data: bytes, kernel: str, threads: int) -> Any:
    """A native session of the file `data` that binds `kernel` wherever it fits."""
    before = os.environ.get(FORCED)
    os.environ[FORCED] = kernel
    try:
        return native.Session(data, threads=threads)
    finally:
        if before is None:
            del os.environ[FORCED]
        else:
            os.environ[FORCED] = before


def _epilogue(shape: Shape, w: Encoding, a: Encoding, rng: np.random.Generator) -> Epilogue:
    """Constants, different for each row, under which the output fills the levels of `a`."""
    lo, hi = act_bounds(a)
    spread = float(w.levels().std()) * a.hi * shape.depth**0.5  # of the sums, roughly
    m = rng.uniform(0.2, 0.4, shape.rows) * hi / spread
    b = rng.uniform(0.3, 0.7, shape.rows) * hi
    return Epilogue(m.astype(np.float32), b.astype(np.float32), lo, hi)


def _program(shape: Shape, a: Encoding, step: Step) -> Program:
    """`step` between a quantisation of the image and a step that makes floats of its output."""
    sizes = prod(shape.in_shape), prod(shape.out_shape)
    places = np.cumsum([0, *(-(-size // 64) * 64 for size in (*sizes, 4 * sizes[1]))]).tolist()
    buffers = (
        Buffer("image", shape.in_shape, "f32", 0, 4 * sizes[0]),
        Buffer("levels", shape.in_shape, a.name, places[0], sizes[0]),
        Buffer("out", shape.out_shape, a.name, places[1], sizes[1]),
        Buffer("result", shape.out_shape, "f32", places[2], 4 * sizes[1]),
    )
    steps = (
        Step("quantize", "levels", (0,), 1, epilogue=_identity(shape.in_shape[0], *act_bounds(a))),
        step,
        Step("requantize", "result", (2,), 3, epilogue=_identity(shape.rows, -np.inf, np.inf)),
    )
    channels = shape.in_shape[0]
    return Program(steps, buffers, 0, 3, places[3], np.zeros(channels, np.float32), np.ones(channels, np.float32))


def _identity(channels: int, lo: float, hi: float) -> Epilogue:
    return Epilogue(np.ones(channels, np.float32), np.zeros(channels, np.float32), lo, hi)
