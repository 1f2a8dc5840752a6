"""Hand-made Programs that touch every op, small enough to read. Used by the tests of the format and of the runtime."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from bitpress.compiler.execute import execute
from bitpress.compiler.program import Buffer, Epilogue, Program, Step
from bitpress.core.encoding import parse
from bitpress.core.ops import window_out
from bitpress.core.quant import act_bounds
from bitpress.kernels.packed import PackedTensor, pack


class Maker:
    """Builds a Program step by step; buffers follow one another in the arena, none is reused."""

    def __init__(self, shape: tuple[int, int, int] = (3, 8, 8), seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.buffers = [Buffer("image", shape, "f32", 0, 4 * int(np.prod(shape)))]
        self.steps: list[Step] = []
        self.end = 0

    def buffer(self, name: str, shape: tuple[int, int, int], storage: str) -> int:
        """Number of a new buffer."""
        size = int(np.prod(shape)) * (4 if storage == "f32" else 1)
        self.buffers.append(Buffer(name, shape, storage, self.end, size))
        self.end += -(-size // 64) * 64
        return len(self.buffers) - 1

    def shape(self, number: int) -> tuple[int, int, int]:
        """Shape of a buffer."""
        return self.buffers[number].shape

    def epilogue(self, rows: int, storage: str, spread: float, *, m_r: float = 0.0) -> Epilogue:
        """Random m, b such that accumulators of about `spread` fill the levels of `storage`."""
        lo, hi = (-np.inf, np.inf) if storage == "f32" else act_bounds(parse(storage))
        top = 1.0 if storage == "f32" else hi
        m = self.rng.uniform(0.3, 1.0, rows) * top / spread
        b = self.rng.uniform(-0.2, 0.6, rows) * top
        return Epilogue(m.astype(np.float32), b.astype(np.float32), float(lo), float(hi), float(np.float32(m_r)))

    def quantize(self, storage: str = "i8") -> int:
        """Input image -> levels."""
        c, h, w = self.shape(0)
        out = self.buffer("image.q", (c, h, w), storage)
        lo, hi = act_bounds(parse(storage))
        epilogue = Epilogue(np.full(c, hi / 2.5, np.float32), np.zeros(c, np.float32), lo, hi)
        self.steps.append(Step("quantize", "image.q", (0,), out, epilogue=epilogue))
        return out

    def weights(self, rows: int, depth: int, encoding: str) -> PackedTensor:
        """Random weights."""
        e = parse(encoding)
        return pack(e.levels()[self.rng.integers(0, 2**e.bits, (rows, depth))], e)

    def conv(
        self,
        name: str,
        data: int,
        out: int | tuple[int, str],
        weight: str = "i4",
        *,
        kernel: tuple[int, int] = (3, 3),
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (1, 1, 1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        residual: int | None = None,
        out_channels: list[int] | None = None,
        depthwise: bool = False,
    ) -> int:
        """Convolution into buffer `out`, or into a new one of (channels, storage)."""
        c, h, w = self.shape(data)
        if isinstance(out, tuple):
            sides = (
                window_out(h, kernel[0], stride[0], padding[0] + padding[2], dilation[0]),
                window_out(w, kernel[1], stride[1], padding[1] + padding[3], dilation[1]),
            )
            out = self.buffer(f"{name}.out", (out[0], *sides), out[1])
        rows = len(out_channels) if out_channels is not None else self.shape(out)[0]
        depth = kernel[0] * kernel[1] * (1 if depthwise else c // groups)
        packed = self.weights(rows, depth, weight)
        storage = self.buffers[out].storage
        top = act_bounds(parse(self.buffers[data].storage))[1]
        spread = np.sqrt(depth) * top * parse(weight).max_abs / 3
        self.steps.append(
            Step(
                "depthwise_conv2d" if depthwise else "conv2d",
                name,
                (data,) if residual is None else (data, residual),
                out,
                kernel=kernel,
                stride=stride,
                padding=padding,
                dilation=dilation,
                groups=c if depthwise else groups,
                weight=packed,
                epilogue=self.epilogue(rows, storage, spread, m_r=0.0 if residual is None else 0.37),
                out_channels=None if out_channels is None else np.array(out_channels, np.int32),
                layer=name.split("#")[0],
                hint="i8dot_avx2",
            )
        )
        return out

    def requantize(self, name: str, data: int, storage: str, residual: int | None = None) -> int:
        """Stored value -> other levels, with a residual perhaps."""
        c = self.shape(data)[0]
        out = self.buffer(name, self.shape(data), storage)
        source = self.buffers[data].storage
        spread = 40.0 if source == "f32" else act_bounds(parse(source))[1]
        epilogue = self.epilogue(c, storage, spread, m_r=0.0 if residual is None else 0.61)
        inputs = (data,) if residual is None else (data, residual)
        self.steps.append(Step("requantize", name, inputs, out, epilogue=epilogue))
        return out

    def pool(
        self,
        op: str,
        name: str,
        data: int,
        storage: str,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> int:
        """Max or sum pool."""
        c, h, w = self.shape(data)
        sides = (
            window_out(h, kernel[0], stride[0], padding[0] + padding[2]),
            window_out(w, kernel[1], stride[1], padding[1] + padding[3]),
        )
        out = self.buffer(name, (c, *sides), storage)
        epilogue = None
        if op == "sum_pool2d":
            top = act_bounds(parse(self.buffers[data].storage))[1]
            epilogue = self.epilogue(c, storage, top * kernel[0] * kernel[1])
        self.steps.append(
            Step(op, name, (data,), out, kernel=kernel, stride=stride, padding=padding, epilogue=epilogue)
        )
        return out

    def lookup(self, name: str, data: int, storage: str) -> int:
        """Stored levels through a random table."""
        out = self.buffer(name, self.shape(data), storage)
        codes = 2 ** parse(self.buffers[data].storage).bits
        if storage == "f32":
            table = self.rng.normal(size=codes)
        else:
            lo, hi = act_bounds(parse(storage))
            table = self.rng.integers(lo, hi + 1, codes)
        self.steps.append(Step("lookup", name, (data,), out, table=table.astype(np.float32)))
        return out

    def product(self, name: str, data: int, factor: int, storage: str) -> int:
        """Levels times levels."""
        c, h, w = self.shape(data)
        out = self.buffer(name, (c, h, w), storage)
        top = [act_bounds(parse(self.buffers[n].storage))[1] for n in (data, factor)]
        epilogue = self.epilogue(c, storage, top[0] * top[1] / 2)
        self.steps.append(Step("product", name, (data, factor), out, epilogue=epilogue))
        return out

    def gather(
        self,
        name: str,
        data: int,
        channels: list[int],
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    ) -> int:
        """Chosen channels, strided."""
        _, h, w = self.shape(data)
        sides = (
            window_out(h, 1, stride[0], padding[0] + padding[2]),
            window_out(w, 1, stride[1], padding[1] + padding[3]),
        )
        out = self.buffer(name, (len(channels), *sides), self.buffers[data].storage)
        numbers = np.array(channels, np.int32)
        self.steps.append(Step("gather", name, (data,), out, stride=stride, padding=padding, channels=numbers))
        return out

    def program(self, output: int, **facts: object) -> Program:
        """The finished Program."""
        c = self.shape(0)[0]
        out = Program(
            steps=tuple(self.steps),
            buffers=tuple(self.buffers),
            input=0,
            output=output,
            arena_bytes=self.end,
            mean=np.linspace(0.4, 0.5, c).astype(np.float32),
            std=np.linspace(0.2, 0.3, c).astype(np.float32),
            labels=tuple(f"class {i}" for i in range(int(np.prod(self.shape(output))))),
            meta={"model": "sample", "layers": [s.name for s in self.steps]},
        )
        return replace(out, **facts)


def straight(weight: str = "i8", act: str = "u8", *, channels: int = 12) -> Program:
    """quantize, one convolution, global sum pool, linear layer."""
    m = Maker()
    x = m.quantize()
    x = m.conv("conv", x, (channels, act), weight)
    x = m.pool("sum_pool2d", "pool", x, act, (8, 8), (1, 1))
    return m.program(m.conv("fc", x, (10, "f32"), "i8", kernel=(1, 1), padding=(0, 0, 0, 0)))


def everything(seed: int = 0) -> Program:
    """Every op, segments with output channels, residuals of both kinds, odd sizes, strides, padding, dilation."""
    m = Maker((3, 9, 11), seed)
    x = m.quantize("i8")
    x = m.conv("stem", x, (16, "u4"), "o8")
    wide = m.buffer("mixed", (20, 9, 11), "u4")
    m.conv("mixed#0", x, wide, "o2", out_channels=[0, 3, 4, 7, 9, 19])
    m.conv("mixed#1", x, wide, "o4", out_channels=[1, 2, 5, 6, 8, 10, 11])
    m.conv("mixed#2", x, wide, "o8", out_channels=[12, 13, 14, 15, 16, 17, 18])
    stream = m.requantize("stream", wide, "i8")
    y = m.conv("block", wide, (20, "u4"), "i4", kernel=(3, 1), padding=(2, 0, 2, 0), dilation=(2, 1))
    y = m.conv("block2", y, (20, "f32"), "i2", residual=stream)
    y = m.requantize("join", y, "u8", residual=wide)
    y = m.conv("dw", y, (20, "u3"), "i8", stride=(2, 2), depthwise=True)
    y = m.pool("max_pool2d", "max", y, "u3", (3, 3), (2, 2), (1, 1, 1, 1))
    short = m.gather("short", wide, [*range(0, 20, 2), *[-1] * 4, 3, 1, 1, 19], (3, 4))
    y = m.conv("grouped", y, (18, "u4"), "i4", groups=2, residual=short)
    y = m.pool("sum_pool2d", "pool", y, "u8", (3, 3), (1, 1))
    m.conv("tail", m.requantize("ahead", 1, "i8"), (5, "u4"), "o4", stride=(3, 2))
    m.buffer("spare", (10, 1, 1), "f32")
    golden = m.rng.normal(size=(1, 3, 9, 11)).astype(np.float32)
    program = m.program(m.conv("fc", y, (10, "f32"), "i8", kernel=(1, 1), padding=(0, 0, 0, 0)))
    return replace(program, golden_input=golden, golden_output=execute(program, golden))


def gates(seed: int = 0) -> Program:
    """Tables from and to levels of every kind, and to floats; products with a pixel and with a whole value."""
    m = Maker((3, 5, 7), seed)
    x = m.conv("stem", m.quantize("i8"), (19, "i8"), "i8")
    a, b = m.lookup("up", x, "u8"), m.lookup("down", x, "i5")
    narrow = m.lookup("narrow", m.requantize("few", x, "u3"), "i8")
    gate = m.lookup("gate", m.pool("sum_pool2d", "means", a, "i6", (5, 7), (1, 1)), "u8")
    x = m.product("scaled", a, gate, "u8")
    x = m.product("signed", narrow, x, "i8")
    x = m.product("crossed", x, b, "i4")
    m.product("floats", a, narrow, "f32")
    x = m.conv("c", x, (8, "i7"), "i4", stride=(5, 7), padding=(0, 0, 0, 0), kernel=(5, 7))
    golden = m.rng.normal(size=(1, 3, 5, 7)).astype(np.float32)
    program = m.program(m.lookup("last", x, "f32"))
    return replace(program, golden_input=golden, golden_output=execute(program, golden))


def deep() -> Program:
    """One dot product of 33124 elements."""
    m = Maker((1, 182, 182))
    return m.program(m.conv("deep", m.quantize("u8"), (1, "f32"), "o8", kernel=(182, 182), padding=(0, 0, 0, 0)))
