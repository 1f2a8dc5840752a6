"""Every native row that this host can run, against the oracle: encodings, shapes by risk, extremes, empty batches."""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

from bitpress.compiler import artifact
from bitpress.compiler.lower import problem_of
from bitpress.compiler.program import Buffer, Epilogue, Program, Step
from bitpress.core.encoding import ENCODINGS, FIELD_BITS, parse
from bitpress.core.quant import act_bounds
from bitpress.kernels import registry
from bitpress.kernels.kernel import Problem
from bitpress.kernels.packed import pack

from . import oracle
from .oracle import Window

_native = pytest.importorskip("bitpress._native", reason="the native module is not built")
pytestmark = pytest.mark.native

WEIGHTS = tuple(e.name for e in ENCODINGS if e.bits in FIELD_BITS)
ACTS = tuple(e.name for e in ENCODINGS if e.name[0] in "ui")
TABLE = {row["name"]: row for row in _native.kernels()}
USABLE = [name for name, row in TABLE.items() if row["usable"]]
CONVOLUTIONS = [name for name in USABLE if TABLE[name]["op"] == "conv2d"]
DEPTHWISE = [name for name in USABLE if TABLE[name]["op"] == "depthwise_conv2d"]
SAME = Window((3, 3), padding=(1, 1, 1, 1))

Case = tuple[np.ndarray, np.ndarray, np.ndarray]  # levels x, levels w, exact sums


def one_step(
    x_shape: tuple[int, int, int], act: str, w: np.ndarray, weight: str, g: Window, op: str = "conv2d"
) -> Program:
    """quantize (the identity on levels), then the step under test with m = 1, b = 0 into floats."""
    rows = w.shape[0]
    sides = g.out(*x_shape[1:])
    size = int(np.prod(x_shape))
    lo, hi = act_bounds(parse(act))
    made = rows * sides[0] * sides[1] * 4
    ones, zeros = np.ones(max(rows, x_shape[0]), np.float32), np.zeros(max(rows, x_shape[0]), np.float32)
    c = x_shape[0]
    start = -(-size // 64) * 64
    buffers = (
        Buffer("image", x_shape, "f32", 0, 4 * size),
        Buffer("levels", x_shape, act, 0, size),
        Buffer("sums", (rows, *sides), "f32", start, made),
    )
    steps = (
        Step("quantize", "levels", (0,), 1, epilogue=Epilogue(ones[:c], zeros[:c], lo, hi)),
        Step(
            op,
            "sums",
            (1,),
            2,
            kernel=g.kernel,
            stride=g.stride,
            padding=g.padding,
            dilation=g.dilation,
            groups=g.groups,
            weight=pack(w.reshape(rows, -1), parse(weight)),
            epilogue=Epilogue(ones[:rows], zeros[:rows], -np.inf, np.inf),
        ),
    )
    stats = np.full(c, 0.5, np.float32)
    return Program(steps, buffers, 0, 2, start + -(-made // 64) * 64, stats, stats)


def seed_of(*what: object) -> int:
    """The same numbers for every row, so that the oracle's are computed once."""
    return zlib.crc32(repr(what).encode())


@lru_cache(maxsize=512)
def case(weight: str, act: str, c: int, side: tuple[int, int], rows: int, g: Window, batch: int = 1) -> Case:
    """Random levels, the extremes among them."""
    rng = np.random.default_rng(seed_of(weight, act, c, side, rows, g))
    lo, hi = act_bounds(parse(act))
    x = rng.integers(lo, hi + 1, (batch, c, *side))
    x.flat[:2] = lo, hi
    levels = parse(weight).levels()
    w = levels[rng.integers(0, len(levels), (rows, *g.kernel, c // g.groups))].astype(np.int64)
    w[0] = levels.max()
    w[-1] = levels.min()
    return x, w, oracle.convolve(x, w, g)


def has_bits(kernel: str, w: int, a: int) -> bool:
    """Whether the list says so."""
    (w_from, w_to), (a_from, a_to) = TABLE[kernel]["w_bits"], TABLE[kernel]["a_bits"]
    return bool(w_from <= w <= w_to and a_from <= a <= a_to)


def session_of(program: Program, kernel: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """A session whose last step runs on `kernel`; None where the row has other bits, its sums could overflow, or it is
    for other windows: the reasons allowed."""
    step = program.steps[-1]
    assert step.weight is not None
    act = parse(program.buffers[1].storage)
    reason = next(v.why for v in registry.explain(problem_of(step, program.buffers)) if v.kernel.name == kernel)
    if not has_bits(kernel, step.weight.encoding.bits, act.bits):
        assert reason.startswith("has "), reason
        return None
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
    session = _native.Session(artifact.encode(program))
    used = session.steps()[-1]["kernel"]
    if used != kernel:
        allowed = {"winograd": ("int16", "int32", "windows of 3 x 3"), "depthwise": ("signed bytes",)}.get(
            kernel.split("_")[0].rstrip("816"), ("int16",)
        )
        assert any(word in reason for word in allowed), f"{kernel} was not used ({used}): {reason}"
        return None
    return session


def check(
    kernel: str, weight: str, act: str, given: Case, g: Window, monkeypatch: pytest.MonkeyPatch, op: str = "conv2d"
) -> None:
    """One row on one case, every sum compared."""
    x, w, sums = given
    session = session_of(one_step(x.shape[1:], act, w, weight, g, op=op), kernel, monkeypatch)
    if session is None:
        return
    got = session.run(x.astype(np.float32)).reshape(sums.shape)  # type: ignore[attr-defined]
    want = sums.astype(np.int32).astype(np.float32)
    bad = np.argwhere(got != want)
    assert not len(bad), (
        f"{kernel} {weight} x {act} {x.shape} {w.shape} {g}: {len(bad)} of {want.size} differ, first at "
        f"{bad[0].tolist()}: {got[tuple(bad[0])]} instead of {want[tuple(bad[0])]}"
    )


@pytest.mark.parametrize("kernel", CONVOLUTIONS)
def test_every_pair_of_encodings(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for weight in WEIGHTS:
        for act in ACTS:
            check(kernel, weight, act, case(weight, act, 5, (3, 2), 5, SAME), SAME, monkeypatch)


@pytest.mark.parametrize("kernel", DEPTHWISE)
def test_every_pair_of_encodings_depthwise(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = Window((3, 3), padding=(1, 1, 1, 1), groups=5)
    for weight in WEIGHTS:
        for act in ACTS:
            check(kernel, weight, act, case(weight, act, 5, (3, 2), 5, g), g, monkeypatch, "depthwise_conv2d")


PAIRS = (("i8", "u8"), ("o8", "i8"), ("u8", "u8"), ("o2", "i2"), ("b1", "u1"), ("i4", "u4"), ("t2", "i4"), ("o2", "u2"))
GEOMETRIES = (
    (1, (1, 1), 1, Window()),
    (63, (1, 1), 15, Window()),
    (64, (1, 2), 16, Window()),
    (65, (1, 3), 17, Window()),
    (3, (7, 9), 33, Window((3, 3), padding=(1, 1, 1, 1))),  # a first layer
    (4, (1, 13), 65, Window((1, 3), padding=(0, 1, 0, 1))),
    (4, (1, 14), 31, Window((1, 3), padding=(0, 1, 0, 1))),
    (4, (1, 15), 32, Window((1, 3), padding=(0, 1, 0, 1))),
    (2, (1, 29), 49, Window((1, 2))),
    (5, (6, 7), 8, Window((3, 2), (2, 3), (2, 0, 1, 3), (2, 1))),
    (5, (9, 8), 9, Window((2, 3), (1, 1), (0, 2, 2, 0), (1, 3))),
    (6, (5, 5), 9, Window((3, 3), (1, 2), (1, 1, 1, 1), groups=3)),
    (8, (4, 3), 4, Window((4, 3))),  # a linear layer after flatten
    (9, (5, 5), 7, Window((5, 5), padding=(2, 2, 2, 2))),
    (7, (6, 6), 3, Window((1, 1), (2, 2))),
    (4, (5, 10), 129, Window((3, 3), (2, 2), (1, 1, 1, 1))),  # three blocks of look-ups
    (64, (3, 3), 63, Window((3, 3), (2, 2), (0, 1, 0, 1))),
    (7, (11, 9), 33, Window((3, 3), padding=(1, 1, 1, 1))),  # short rows, whose tiles make a line
    (129, (2, 9), 5, Window()),
)


@pytest.mark.parametrize("kernel", CONVOLUTIONS)
@pytest.mark.parametrize(("weight", "act"), PAIRS)
def test_shapes_by_risk(kernel: str, weight: str, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for c, side, rows, g in GEOMETRIES:
        check(kernel, weight, act, case(weight, act, c, side, rows, g, batch=2), g, monkeypatch)


@pytest.mark.parametrize("kernel", DEPTHWISE)
@pytest.mark.parametrize(("weight", "act"), PAIRS)
def test_depthwise_shapes(kernel: str, weight: str, act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for c, side, g in (
        (1, (1, 1), Window()),
        (17, (5, 6), Window((3, 3), (2, 2), (1, 1, 0, 1), groups=17)),
        (20, (3, 21), Window((3, 3), padding=(1, 1, 1, 1), groups=20)),  # neighbouring pixels share columns
        (65, (3, 11), Window((3, 3), padding=(1, 1, 1, 1), groups=65)),
        (130, (6, 7), Window((3, 3), (2, 2), (1, 1, 1, 1), groups=130)),
        (100, (4, 5), Window((3, 3), (1, 2), groups=100)),
        (32, (5, 12), Window((3, 3), padding=(1, 1, 1, 1), groups=32)),  # two pixels of 32 channels at once
        (5, (4, 9), Window((2, 3), padding=(0, 0, 1, 0), groups=5)),
        (33, (4, 9), Window((2, 3), (1, 1), (0, 0, 1, 2), (2, 2), groups=33)),
    ):
        check(kernel, weight, act, case(weight, act, c, side, c, g, batch=2), g, monkeypatch, "depthwise_conv2d")


@pytest.mark.parametrize("kernel", CONVOLUTIONS)
@pytest.mark.parametrize(
    ("weight", "act"),
    [
        ("o8", "u8"),
        ("o8", "i8"),
        ("i8", "u8"),
        ("i8", "i8"),
        ("u8", "u8"),
        ("o4", "u8"),
        ("i8", "u4"),
        ("o2", "u2"),
        ("u2", "u2"),
        ("i2", "i2"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1), (8, 8)])
def test_extremes_at_the_largest_depth(
    kernel: str, weight: str, act: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K as deep as int32 allows (or 100,000), every product of the same sign and as large as it can be."""
    w_top, w_low = parse(weight).hi, parse(weight).lo
    a_low, a_top = act_bounds(parse(act))
    area = shape[0] * shape[1]
    deepest = min((2**31 - 1) // (max(w_top, -w_low) * a_top), 100_000)
    c = deepest // area
    w = np.stack([np.full((*shape, c), w_top), np.full((*shape, c), w_low)]).astype(np.int64)
    x = np.full((2, c, *shape), a_top, np.int64)
    x[1] = a_low
    sums = np.stack([(w.reshape(2, -1) * level).sum(axis=1) for level in (a_top, a_low)]).reshape(2, 2, 1, 1)
    check(kernel, weight, act, (x, w, sums), Window(shape), monkeypatch)


@pytest.mark.parametrize("kernel", [*CONVOLUTIONS, *DEPTHWISE])
def test_ties_and_bounds_of_the_epilogue(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of odd sums, half to even; clamped; 21 channels, so that every vector has a tail."""
    depthwise = kernel in DEPTHWISE
    g = Window((3, 3), padding=(1, 1, 1, 1), groups=21 if depthwise else 1)
    op = "depthwise_conv2d" if depthwise else "conv2d"
    act = "i3" if has_bits(kernel, 2, 3) else "u2"
    x, w, sums = case("i2", act, 21, (3, 5), 21, g)
    m, b = np.resize(np.float32([0.5, -0.5, 0.25]), 21), np.resize(np.float32([0.0, 1.0, 0.5, -2.5]), 21)
    plain = one_step(x.shape[1:], act, w, "i2", g, op=op)
    base = plain.arena_bytes
    levels = Buffer("stored", (21, 3, 5), "i4", base, 21 * 15)
    out = Buffer("out", (21, 3, 5), "f32", base + 320, 4 * 21 * 15)
    ones = np.ones(21, np.float32)
    program = replace(
        plain,
        buffers=(*plain.buffers[:2], levels, out),
        steps=(
            plain.steps[0],
            replace(plain.steps[1], name="stored", output=2, epilogue=Epilogue(m, b, -6.0, 7.0)),
            Step("requantize", "out", (2,), 3, epilogue=Epilogue(ones, 0 * ones, -np.inf, np.inf)),
        ),
        output=3,
        arena_bytes=base + 320 + 4 * 320,
    )
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
    got = _native.Session(artifact.encode(program)).run(x.astype(np.float32)).reshape(sums.shape)
    np.testing.assert_array_equal(got, oracle.store(sums, m, b, -6, 7))


SLICED = [name for name in CONVOLUTIONS if name.startswith("bitsliced_")]
STORED = (
    ("u1", 0, 1), ("u2", 0, 3), ("u3", 0, 5), ("u4", 0, 15), ("i2", -1, 1), ("i3", -3, 3), ("i4", -7, 7), ("u8", 3, 9),
)  # fmt: skip


def every_sum(weight: str, storage: str, lo: int, hi: int) -> tuple[Program, np.ndarray, np.ndarray]:
    """A program, its images, and what it gives. Pixel p sums to p times a weight, and multipliers make levels step at
    every sum, tie, fall, never change."""
    depth, top = 9, 15
    pixels = depth * top + 1
    x = np.clip(np.arange(pixels)[None] - top * np.arange(depth)[:, None], 0, top)[None, :, None, :]
    m = np.float32([0.5, 0.25, -0.5, -0.1, 1 / 3, 0, 1e-9, 7, -7, 0.1, 0.03, -0.03, 1e30, 0.5, 0.5, -0.5])
    b = np.float32([0.5, -2.5, 1, 3, -1e-3, 2.5, 0, 0.5, 3.5, 1.5, 0, 6, 0, 1e9, -1e9, 0])
    levels = parse(weight).levels().astype(np.int64)
    each = np.repeat(levels, len(m))
    m, b, rows = np.tile(m, len(levels)), np.tile(b, len(levels)), len(each)
    plain = one_step(x.shape[1:], "u4", np.tile(each[:, None, None, None], (1, 1, 1, depth)), weight, Window())
    base, size = plain.arena_bytes, -(-rows * pixels // 64) * 64
    ones = np.ones(rows, np.float32)
    program = replace(
        plain,
        buffers=(
            *plain.buffers[:2],
            Buffer("stored", (rows, 1, pixels), storage, base, rows * pixels),
            Buffer("out", (rows, 1, pixels), "f32", base + size, 4 * rows * pixels),
        ),
        steps=(
            plain.steps[0],
            replace(plain.steps[1], name="stored", output=2, epilogue=Epilogue(m, b, lo, hi)),
            Step("requantize", "out", (2,), 3, epilogue=Epilogue(ones, 0 * ones, -np.inf, np.inf)),
        ),
        output=3,
        arena_bytes=base + 5 * size,
    )
    want = oracle.store((each[:, None] * np.arange(pixels))[None, :, None], m, b, lo, hi)
    return program, x.astype(np.float32), want.astype(np.float32)


@pytest.mark.parametrize("kernel", SLICED)
@pytest.mark.parametrize("weight", ["i2", "o2"])
@pytest.mark.parametrize(("storage", "lo", "hi"), STORED)
def test_thresholds_at_every_sum(
    kernel: str, weight: str, storage: str, lo: int, hi: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, x, want = every_sum(weight, storage, lo, hi)
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
    session = _native.Session(artifact.encode(program))
    assert session.steps()[1]["kernel"] == kernel
    np.testing.assert_array_equal(session.run(x).reshape(want.shape), want)


WHOLE = [name for name in CONVOLUTIONS if not name.startswith(("bitsliced_", "winograd", "lut_"))]


@pytest.mark.parametrize("kernel", WHOLE)
@pytest.mark.parametrize(("storage", "lo", "hi"), [("u2", 0, 3), ("i4", -7, 7), ("u8", 3, 9), ("i8", -100, 127)])
def test_whole_vectors_are_stored_within_their_bounds(
    kernel: str, storage: str, lo: int, hi: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values of no int32 too, on both sides: what an instruction makes of those is no law of ours."""
    program, x, want = every_sum("i2", storage, lo, hi)
    monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
    session = _native.Session(artifact.encode(program))
    assert session.steps()[1]["kernel"] == kernel
    np.testing.assert_array_equal(session.run(x).reshape(want.shape), want)


REQUANTIZE = [name for name in USABLE if TABLE[name]["op"] == "requantize"]


@pytest.mark.parametrize("kernel", REQUANTIZE)
@pytest.mark.parametrize("act", ["i8", "u8", "u4"])
@pytest.mark.parametrize(("storage", "lo", "hi"), STORED)
def test_requantize_every_byte(
    kernel: str, act: str, storage: str, lo: int, hi: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each level of the input, by multipliers that tie, jump, fall, never change; one for all channels, or one each;
    counts that fill vectors and that do not."""
    first, last = act_bounds(parse(act))
    x = np.arange(first, last + 1)[None, None, :]
    for m, b in ((0.5, 0.0), (0.25, -2.5), (1 / 3, 1e-3), (0.03, 0.5), (7, 0.5), (-0.5, 1), (0, 2.5), (1, 1e9)):
        for channels, each in ((1, False), (5, False), (5, True)):
            stretch = np.float32(np.arange(1, channels + 1) if each else np.ones(channels))
            ms, bs = stretch * np.float32(m), np.full(channels, b, np.float32)
            size, apart, ones = channels * x.shape[-1], 256 * channels, np.ones(channels, np.float32)
            shape = (channels, 1, x.shape[-1])
            buffers = (
                Buffer("image", shape, "f32", 0, 4 * size),
                Buffer("levels", shape, act, 0, size),
                Buffer("stored", shape, storage, 4 * apart, size),
                Buffer("out", shape, "f32", 5 * apart, 4 * size),
            )
            steps = (
                Step("quantize", "levels", (0,), 1, epilogue=Epilogue(ones, 0 * ones, first, last)),
                Step("requantize", "stored", (1,), 2, epilogue=Epilogue(ms, bs, lo, hi)),
                Step("requantize", "out", (2,), 3, epilogue=Epilogue(ones, 0 * ones, -np.inf, np.inf)),
            )
            program = Program(steps, buffers, 0, 3, 9 * apart, ones / 2, ones / 2)
            images = np.repeat(x, channels, 0)[None].astype(np.int64)
            monkeypatch.setenv("BITPRESS_FORCE_KERNEL", kernel)
            session = _native.Session(artifact.encode(program))
            assert session.steps()[1]["kernel"] == kernel
            np.testing.assert_array_equal(
                session.run(images.astype(np.float32)).reshape(images.shape), oracle.store(images, ms, bs, lo, hi)
            )


@pytest.mark.parametrize("channels", [5, 37])
@pytest.mark.parametrize("order", [0, 1])
def test_two_gathers_share_a_buffer(channels: int, order: int) -> None:
    """Each writes its channels alone, whichever comes first; some are zeros."""
    x = np.random.default_rng(channels).integers(0, 16, (2, channels, 4, 3))
    chosen = np.random.default_rng(1).permutation(channels).astype(np.int32)
    first, second = np.sort(chosen[: channels // 2]), np.sort(chosen[channels // 2 :])
    size, apart, ones = 12 * channels, 512, np.ones(channels, np.float32)
    buffers = tuple(
        Buffer(name, (channels, 4, 3), storage, at * apart, size * (4 if storage == "f32" else 1))
        for name, storage, at in (("image", "f32", 0), ("levels", "u4", 0), ("stored", "u4", 4), ("out", "f32", 5))
    )
    absent = np.where(second % 3 == 0, -1, second).astype(np.int32)
    gathers = [
        Step("gather", "some", (1,), 2, channels=first, out_channels=first),
        Step("gather", "others", (1,), 2, channels=absent, out_channels=second),
    ]
    steps = (
        Step("quantize", "levels", (0,), 1, epilogue=Epilogue(ones, 0 * ones, 0, 15)),
        *(gathers if order else gathers[::-1]),
        Step("requantize", "out", (2,), 3, epilogue=Epilogue(ones, 0 * ones, -np.inf, np.inf)),
    )
    program = Program(steps, buffers, 0, 3, 9 * apart, ones / 2, ones / 2)
    want = np.zeros_like(x)
    want[:, first] = x[:, first]
    want[:, second] = np.where((absent < 0)[:, None, None], 0, x[:, absent])
    got = _native.Session(artifact.encode(program)).run(x.astype(np.float32)).reshape(x.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("storage", ["u4", "f32"])
@pytest.mark.parametrize("lengths", [(1, 2, 3, 4, 5, 7), (8, 9, 15), (16, 17, 31, 32), (33, 48, 50, 65)])
@pytest.mark.parametrize(
    ("stride", "padding"),
    [
        ((1, 1), (0, 0, 0, 0)),
        ((2, 2), (0, 0, 0, 0)),
        ((1, 2), (1, 1, 0, 2)),
        ((3, 2), (2, 9, 1, 4)),
        ((2, 3), (6, 2, 9, 0)),
    ],
)
def test_gather(
    stride: tuple[int, int], padding: tuple[int, int, int, int], lengths: tuple[int, ...], storage: str
) -> None:
    """Runs of every length, in turns from somewhere and of zeros; rows and columns that lie outside."""
    c, h, w = 70, 5, 4
    x = np.random.default_rng(3).integers(0, 16, (2, c, h, w))
    channels = np.concatenate([[*range(1, 1 + n), *[-1] * n, 0] for n in lengths]).astype(np.int32)
    top, left, bottom, right = padding
    outside = np.pad(
        np.where((channels < 0)[:, None, None], 0, x[:, channels]), ((0, 0),) * 2 + ((top, bottom), (left, right))
    )
    want = outside[:, :, :: stride[0], :: stride[1]]
    wide, each = 4 * 256 * -(-x[0].size // 256), 4 if storage == "f32" else 1
    made = 256 * -(-each * want[0].size // 256)
    buffers = (
        Buffer("image", (c, h, w), "f32", 0, 4 * x[0].size),
        Buffer("in", (c, h, w), storage, 0, each * x[0].size),
        Buffer("gathered", want.shape[1:], storage, wide, each * want[0].size),
        Buffer("out", want.shape[1:], "f32", wide + made, 4 * want[0].size),
    )
    ends = (0.0, 15.0) if storage == "u4" else (-np.inf, np.inf)
    plain = [
        Epilogue(np.ones(n, np.float32), np.zeros(n, np.float32), lo, hi)
        for n, lo, hi in ((c, *ends), (len(channels), -np.inf, np.inf))
    ]
    steps = (
        Step("quantize", "in", (0,), 1, epilogue=plain[0]),
        Step("gather", "gathered", (1,), 2, stride=stride, padding=padding, channels=channels),
        Step("requantize", "out", (2,), 3, epilogue=plain[1]),
    )
    stats = np.full(c, 0.5, np.float32)
    program = Program(steps, buffers, 0, 3, wide + made + 4 * want[0].size, stats, stats)
    got = _native.Session(artifact.encode(program)).run(x.astype(np.float32)).reshape(want.shape)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kernel", [*CONVOLUTIONS, *DEPTHWISE])
def test_empty_batch(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    g = SAME if kernel in CONVOLUTIONS else Window((3, 3), padding=(1, 1, 1, 1), groups=5)
    op = "conv2d" if kernel in CONVOLUTIONS else "depthwise_conv2d"
    weight, act = ("i8", "u8") if has_bits(kernel, 8, 8) else ("i2", "u2")
    x, w, _ = case(weight, act, 5, (3, 2), 5, g)
    session = session_of(one_step(x.shape[1:], act, w, weight, g, op=op), kernel, monkeypatch)
    if session is not None:
        assert session.run(np.empty((0, 5, 3, 2), np.float32)).shape == (0, 30)  # type: ignore[attr-defined]


def test_python_and_native_read_the_same_list() -> None:
    """kernels.def through the compiler and through Python's eyes."""
    native = [row for row in registry.ROWS if row.isa != "reference"]
    assert [row.name for row in native] == list(TABLE)
    for row in native:
        table = TABLE[row.name]
        assert (table["op"], table["isa"]) == (row.op, row.isa)
        assert (row.w_bits.start, row.w_bits.stop - 1) == table["w_bits"]
        assert (row.a_bits.start, row.a_bits.stop - 1) == table["a_bits"]


def test_int16_sums_are_refused_exactly_where_they_could_overflow() -> None:
    for weight in WEIGHTS:
        for act in ACTS:
            e, a = parse(weight), parse(act)
            lo, hi = act_bounds(a)
            v = np.arange(e.lo, e.hi + 1)
            if e.lo >= 0 and e.hi > 127:
                v = v - 128
            elif e.hi > 127:
                v = (v[::2] - 1) // 2
            safe = 2 * int(np.abs(v).max()) * (hi - lo) <= 32767  # a step of two products
            for verdict in registry.explain(Problem("conv2d", e, a, 16, 64, 16)):
                if verdict.kernel.name == "i8dot16_avx2" and verdict.kernel.name in USABLE:
                    assert (verdict.cost is not None) == safe, (weight, act, verdict)


@pytest.mark.parametrize(
    ("weight", "act", "most"),
    [("i8", "u8", 64), ("o8", "u8", 127), ("i8", "i8", 64), ("i8", "u4", 128), ("u8", "u8", 0)],
)
def test_int16_sums_of_weights_at_hand(weight: str, act: str, most: int) -> None:
    """8-bit weights may be narrower than their encoding; `most`: the largest level that is refused for nothing."""
    for kernel in ("i8dot16_avx2", "i8dot16_avx512"):
        if kernel not in USABLE:
            continue

        def fits(largest: int, kernel: str = kernel) -> bool:
            problem = Problem("conv2d", parse(weight), parse(act), 16, 64, 16, largest=largest)
            return any(v.kernel.name == kernel and v.cost is not None for v in registry.explain(problem))

        assert not most or fits(most)
        assert most == 128 or not fits(most + 2)


@pytest.mark.parametrize("kernel", [name for name in USABLE if name.startswith("i8dot16")])
@pytest.mark.parametrize(("weight", "top"), [("i8", 64), ("o8", 127), ("i8", 20), ("i8", 3), ("i4", 7)])
def test_sums_at_the_ends_of_int16(kernel: str, weight: str, top: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights at one end, in turns, or drawn, against activations at theirs: every rest is as late as it may be."""
    rng = np.random.default_rng(5)
    e = parse(weight)
    levels = e.levels()[np.abs(e.levels()) <= top].astype(np.int64)
    for c, g in ((5, SAME), (67, Window((1, 1))), (256, Window((1, 1)))):
        w = rng.choice(levels, (19, *g.kernel, c))
        w[:2], w[2:4] = levels.max(), levels.min()
        w[4, ..., ::2], w[4, ..., 1::2] = levels.max(), levels.min()
        w[5] = 0 if 0 in levels else 1
        w[5, ..., ::4] = w[5, ..., 1::4] = levels.max()
        x = np.full((2, c, 4, 5), 255)
        x[1] = rng.integers(0, 256, x[1].shape)
        assert session_of(one_step(x.shape[1:], "u8", w, weight, g), kernel, monkeypatch) is not None
        check(kernel, weight, "u8", (x, w, oracle.convolve(x, w, g)), g, monkeypatch)
