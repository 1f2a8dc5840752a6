"""Values of the Triton kernels, by triton's interpreter: every pair of widths and kind of grid at shapes by risk.

Sums are compared with int64, stored values with core/quant.py on top of them, exactly. Planted faults show that the
comparison would see one. What the interpreter cannot see (assembly, alignment, spills) is for test_aot.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("runs in a process of its own, where TRITON_INTERPRET=1: make test-gpu", allow_module_level=True)
pytest.importorskip("triton", reason="triton is not installed: pip install 'bitpress[gpu]'")

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from bitpress.core import quant
from bitpress.core.encoding import parse
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.kernels import gpu
from bitpress.kernels.gpu import bitserial, call, conv, fields, gemm, gemv
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.tiles import Tile

from ..kernels import oracle
from ..kernels.oracle import Window
from .cases import KINDS, PAIRS, Case, assert_same, convolution, name, product
from .law import STORED, check_epilogue, geometry, stored

pytestmark = [pytest.mark.triton_interpret, pytest.mark.usefixtures("poisoned")]

SMALL = Tile(pixels=16, rows=32, blocks=1, warps=4, stages=2)
DEEP = replace(SMALL, blocks=2)
# rows of x, rows of w, K: one of each; below, at and past tiles, runs, blocks and turns; no multiple of 4.
SHAPES = ((1, 1, 1), (1, 33, 128), (17, 31, 127), (5, 16, 129), (16, 32, 256), (3, 65, 257), (33, 5, 31), (2, 40, 640))
VECTORS = ((1, 1, 4), (1, 17, 128), (2, 16, 132), (1, 33, 252), (3, 40, 1028))
SAME = Window((3, 3), padding=(1, 1, 1, 1))
# x, rows, geometry: channels below, at and past a run and a block; strides, uneven padding, dilation, only border.
CONVOLUTIONS = (
    ((1, 4, 5, 16), 33, SAME),
    ((2, 5, 4, 3), 7, Window((3, 3), (2, 2), (1, 1, 1, 1))),
    ((1, 6, 7, 33), 32, Window((3, 3), (2, 1), (1, 0, 2, 1))),
    ((2, 3, 3, 130), 5, Window((1, 1), (2, 2))),
    ((1, 7, 5, 64), 16, Window((2, 3), (1, 1), (0, 2, 1, 2), (2, 2))),
    ((1, 1, 1, 129), 9, SAME),
    ((3, 2, 2, 8), 40, Window((5, 5), padding=(2, 2, 2, 2))),
)


# Every kind with swapped operands, and one of each pair of widths in plain order: neither depends on the other.
BOTH_ORDERS = [*((kind, "sm90") for kind in KINDS), *((kind, "gfx942") for kind in PAIRS)]


def sums(family: ModuleType, case: Case, *window: object, tile: Tile = SMALL) -> np.ndarray:
    """What the family makes of it, without an epilogue, int64."""
    layer = call.load(case.weights, device="cpu")
    return family.launch(stored(case), layer, *window, tile=tile).numpy().astype(np.int64)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(("kind", "target"), BOTH_ORDERS, indirect=["target"], ids=name)
def test_matrix_products_are_exact(kind: tuple[str, str, bool]) -> None:
    for i, (m, n, k) in enumerate(SHAPES):
        case = product(kind, m, n, k)
        assert_same(case.sums, sums(gemm, case, tile=DEEP if i % 2 else SMALL))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("kind", [PAIRS[1], PAIRS[4], ("o8", "u8", False)], ids=name)
def test_programs_that_share_a_tile_add_up(kind: tuple[str, str, bool]) -> None:
    """Parts of K of several turns, of one, and none at all; an epilogue behind the last of them only."""
    for (m, n, k), splits in (((5, 33, 900), 2), ((3, 16, 640), 5), ((2, 7, 129), 4)):
        case = product(kind, m, n, k)
        assert_same(case.sums, sums(gemm, case, tile=replace(SMALL, splits=splits)))
    shared = replace(SMALL, rows=64, splits=3)
    check_epilogue(
        product(kind, 5, 41, 300), STORED["i4 fields"], STORED["u8"],
        lambda x, layer, **k: gemm.launch(x, layer, tile=shared, **k),
    )  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=name)
def test_matrix_vector_products_are_exact(kind: tuple[str, str, bool]) -> None:
    for m, n, k in VECTORS:
        case = product(kind, m, n, k)
        assert_same(case.sums, sums(gemv, case, tile=Tile(1, 16, 4, 4, 2)))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize(("kind", "target"), BOTH_ORDERS, indirect=["target"], ids=name)
def test_convolutions_are_exact(kind: tuple[str, str, bool]) -> None:
    for shape, n, g in CONVOLUTIONS:
        case = convolution(kind, shape, n, g)
        assert_same(case.sums, sums(conv, case, geometry(g)))


@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_the_yardstick_itself_agrees_with_loops(kind: tuple[str, str, bool]) -> None:
    """cases.py sums tap by tap; the oracle of all kernels goes pixel by pixel."""
    for shape, n, g in CONVOLUTIONS[:5]:
        case = convolution(kind, shape, n, g)
        w = case.w.reshape(n, *g.kernel, shape[-1])
        assert_same(oracle.convolve(case.x.transpose(0, 3, 1, 2), w, g).transpose(0, 2, 3, 1), case.sums)


@pytest.mark.parametrize(
    ("weight", "act", "depth"),
    [("i8", "u8", 65_793), ("o8", "u8", 33_025), ("o4", "i8", 139_810), ("i2", "u8", 131_071)],
)
def test_the_deepest_sums_that_fit_are_exact(weight: str, act: str, depth: int) -> None:
    """All extremes: sums of levels or of operands come close to int32's ends."""
    w = np.full((2, 1, depth), parse(weight).lo, np.int64)
    w[1] = parse(weight).hi
    x = np.full((1, depth), parse(act).hi, np.int64)
    form = Storage(parse(act))
    layer = call.load(gpu.arrange(w, parse(weight), form), device="cpu")
    out = gemm.launch(torch.from_numpy(form.store(x)), layer, tile=replace(SMALL, rows=16, blocks=8))
    assert_same(x @ w[:, 0].T, out.numpy().astype(np.int64))


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("out", STORED, ids=str)
@pytest.mark.parametrize(
    ("kind", "target"), [*((kind, "sm90") for kind in PAIRS), (PAIRS[1], "gfx942")], indirect=["target"], ids=name
)
def test_stored_levels_follow_the_law(kind: tuple[str, str, bool], out: str) -> None:
    rows = 200 if STORED[out].run > 32 or out.startswith("i2") else 41
    case = product(kind, 19, rows, 100)
    residual = {"u8": STORED["u8"], "i8": STORED["i3"], "u4": "f32", "u2 fields": STORED["u8"]}.get(out)
    tile = replace(SMALL, rows=64)
    check_epilogue(
        case,
        STORED[out],
        residual,
        lambda x, layer, **k: gemm.launch(x, layer, tile=call.fit(tile, layer.epilogue.out), **k),
    )


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("residual", [None, "f32", STORED["u8"]], ids=["none", "f32", "u8"])
def test_float_streams_follow_the_law_bit_by_bit(residual: call.Out | None) -> None:
    case = product(("o4", "u8", False), 9, 37, 300)
    check_epilogue(case, "f32", residual, lambda x, layer, **k: gemm.launch(x, layer, tile=SMALL, **k))


@pytest.mark.parametrize("out", ["u8", "i4 fields", "u2 fields"])
@pytest.mark.parametrize("kind", PAIRS, ids=name)
def test_other_families_end_in_the_same_epilogue(kind: tuple[str, str, bool], out: str) -> None:
    residual = STORED["u8"]
    check_epilogue(product(kind, 2, 41, 132), STORED[out], residual, gemv.launch)
    case = convolution(kind, (2, 4, 5, 40), 41, SAME)
    check_epilogue(case, STORED[out], residual, lambda x, layer, **k: conv.launch(x, layer, geometry(SAME), **k))


def test_ties_go_to_even_and_sums_round_to_float_first() -> None:
    """0.5, 1.5, 2.5 and their like; and sums above 2^24, whose conversion rounds before the product does."""
    ties = np.arange(-9, 10)
    w = np.ones((1, 1, 1), np.int64)
    act = Storage(parse("i8"))
    layer = call.load(
        gpu.arrange(w, parse("i8"), act),
        device="cpu",
        out=STORED["i8"],
        m=np.float32([0.5]),
        b=np.float32([0]),
        lo=-127,
        hi=127,
    )
    got = gemm.launch(torch.from_numpy(act.store(ties[:, None])), layer, tile=SMALL)[:, 0].tolist()
    assert got == [int(v) for v in np.rint(ties / 2)]
    case = product(("i8", "i8", False), 16, 32, 2000)
    case = replace(case, w=np.full_like(case.w, 127), x=np.where(case.x < 0, -127, 127))
    case = replace(case, weights=gpu.arrange(case.w, parse("i8"), case.act), sums=case.x @ case.w[:, 0].T)
    check_epilogue(case, "f32", None, lambda x, layer, **k: gemm.launch(x, layer, tile=SMALL, **k))


def test_a_packed_result_is_the_next_layers_input() -> None:
    """Two layers in a row, the fields of the first read by the second without a look at them."""
    first, second = product(("o2", "u8", False), 6, 70, 90), product(("o2", "u2", True), 6, 20, 70)
    between = packed(parse("u2"), 70)
    m, b = np.full(70, 1e-3, np.float32), np.ones(70, np.float32)
    layer = call.load(first.weights, device="cpu", out=between, m=m, b=b, lo=0, hi=3)
    hidden = quant.requantize(first.sums.astype(np.int32), m, b, lo=0, hi=3)
    out = gemm.launch(gemm.launch(stored(first), layer), call.load(second.weights, device="cpu"))
    assert_same(hidden @ second.w[:, 0].T, out.numpy().astype(np.int64))


def test_the_face_takes_the_family_that_suits(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for family in (gemm, gemv, conv):
        inner = family.launch
        label = family.__name__.rpartition(".")[2]
        monkeypatch.setattr(family, "launch", lambda *a, _l=label, _f=inner, **k: (taken.append(_l), _f(*a, **k))[1])
    for m, k in ((1, 64), (1, 63), (5, 64)):
        case = product(("i4", "u8", False), m, 10, k)
        assert_same(case.sums, gpu.linear(stored(case), gpu.load(case.weights, device="cpu")).numpy().astype(np.int64))
    for g in (Window(), SAME):
        case = convolution(("i4", "u8", False), (1, 3, 3, 16), 6, g)
        out = gpu.conv2d(stored(case), gpu.load(case.weights, device="cpu"), geometry(g))
        assert_same(case.sums, out.numpy().astype(np.int64))
    assert taken == ["gemv", "gemm", "gemm", "gemm", "conv"]


@pytest.mark.parametrize("kind", [PAIRS[2], PAIRS[3], ("o8", "u8", False)], ids=name)
def test_the_operators_two_sides_agree(kind: tuple[str, str, bool]) -> None:
    """`bitpress::layer` on the CPU is numpy, on a GPU the families."""
    from bitpress.kernels.gpu import op
    from bitpress.kernels.gpu.window import Window as Geometry

    for case, g in (
        (product(kind, 5, 20, 96), Geometry()),
        (convolution(kind, (1, 4, 3, 16), 20, SAME), geometry(SAME)),
    ):
        out, kept = packed(parse("u4"), 20), torch.ones(case.sums.shape, dtype=torch.int8)
        m = torch.full((20,), float(9 / np.abs(case.sums).max()))
        spec = op.spell(case.weights.form, out, STORED["u8"])
        tensors = (torch.from_numpy(case.weights.fields), torch.from_numpy(case.weights.correction), m, torch.ones(20))
        given = (stored(case), kept, *tensors, spec, op.numbers(g), 0.01, 0.0, 15.0)
        assert_same(op.layer(*given).numpy(), op.by_triton(*given).numpy())


def test_an_empty_batch_gives_an_empty_result() -> None:
    case = product(("i4", "u4", True), 2, 6, 64)
    layer = call.load(case.weights, device="cpu")
    assert gpu.linear(stored(case)[:0], layer).shape == (0, 6) and gemv.launch(stored(case)[:0], layer).shape == (0, 6)
    case = convolution(("i4", "u8", False), (1, 3, 3, 16), 6, SAME)
    out = conv.launch(stored(case)[:0], call.load(case.weights, device="cpu"), geometry(SAME))
    assert out.shape == (0, 3, 3, 6)


# --- faults that the comparison must see ---

CUT = "here[:, None] if SWAP else here[None, :], other=0)\n            acc"
FAULTS = {
    "weights' fields in the wrong order": ("gemm", "multiply(ws[s],", "multiply(ws[PARTS - 1 - s],"),
    "activations' slices in the wrong order": ("gemm", "tl.load(xp + s * RUN)", "tl.load(xp + (PARTS - 1 - s) * RUN)"),
    "the tail of K dropped": ("gemm", "tl.cdiv(stride, STEP)", "stride // STEP"),
    "a part of K read from its beginning": ("gemm", "xp += first * (STEP", "xp += 0 * (STEP"),
    "a result written before the last part": ("gemm", "!= SPLITS - 1", "!= 0"),
    "K not cut at its end": ("gemm", CUT, "None)\n            acc"),
    "the last rows of x read from the wrong place": ("gemm", "tl.minimum(pixels, M - 1)", "tl.minimum(pixels, 0)"),
    "a convolution's fields in the wrong order": ("conv", "multiply(ws[s],", "multiply(ws[PARTS - 1 - s],"),
    "the last taps dropped": ("conv", "range(0, TURNS)", "range(0, TURNS - 1)"),
    "padding that is no level 0": ("conv", "fill + j", "x + j"),
    "a dot product's last word dropped": ("gemv", "* PARTS - s * WORDS, other=0", "* PARTS - s * WORDS - 1, other=0"),
}


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_seen(fault: str, planted: Callable[[str, str, str], ModuleType]) -> None:
    family, old, new = FAULTS[fault]
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ, first at"):
        run_all(planted(family, old, new), family)


@pytest.mark.parametrize("family", ["gemm", "gemv", "conv"])
def test_nothing_is_seen_where_nothing_is_planted(family: str, planted: Callable[[str, str, str], ModuleType]) -> None:
    run_all(planted(family, "from __future__", "from __future__ "), family)


def test_a_fault_in_the_geometry_is_seen(planted: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and columns of taps exchanged."""
    monkeypatch.setattr(conv, "moved", planted("taps", "dy = tap // KW * DH", "dy = tap % KW * DH").moved)
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ"):
        run_all(conv, "conv")


def run_all(module: ModuleType, family: str) -> None:
    """One kind of each pair at a few shapes, as the tests above do."""
    for kind in PAIRS:
        if family == "conv":
            for shape, n, g in (CONVOLUTIONS[0], CONVOLUTIONS[2]):
                case = convolution(kind, shape, n, g)
                assert_same(case.sums, sums(module, case, module.Window(g.kernel, g.stride, g.padding, g.dilation)))
        else:
            tile = DEEP if family == "gemm" else Tile(1, 16, 4, 4, 2)
            for m, n, k in SHAPES[3:6] if family == "gemm" else VECTORS[2:4]:
                case = product(kind, m, n, k)
                assert_same(case.sums, sums(module, case, tile=tile))
            if family == "gemm":
                case = product(kind, 2, 7, 640)
                assert_same(case.sums, sums(module, case, tile=replace(SMALL, splits=2)))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("finish", "((t + ROUND) - ROUND)", "(t)"),
        ("finish", "acc >> SHIFT", "acc >> (SHIFT - 1)"),
        ("finish", "tl.arange(0, PARTS) * BITS", "(PARTS - 1 - tl.arange(0, PARTS)) * BITS"),
        ("finish", "tl.where(known, level, 0)", "level"),
    ],
    ids=["no rounding", "sums doubled", "packed in the wrong order", "codes past the last channel"],
)
def test_a_fault_in_the_epilogue_is_seen(
    file: str, old: str, new: str, planted: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "finish", planted(file, old, new).finish)
    case = product(("i4", "u8", False), 5, 41, 100)
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ"):
        check_epilogue(
            case,
            STORED["i4 fields"],
            None,
            lambda x, layer, **k: gemm.launch(x, layer, tile=replace(SMALL, rows=64), **k),
        )


# --- what a caller hears ---


def layer_and_input() -> tuple[call.Layer, torch.Tensor, Case]:
    case = product(("i4", "u8", False), 3, 6, 64)
    return call.load(case.weights, device="cpu"), stored(case), case


def test_a_wrong_dtype_shape_or_stride_is_one_sentence() -> None:
    layer, x, _ = layer_and_input()
    for family in (gemm, gemv):
        with pytest.raises(UsageError, match=r"x is uint8 \[3, 64\], the layer takes int8 \[3, 64\]"):
            family.launch(x.view(torch.uint8), layer)
        with pytest.raises(UsageError, match=r"x is float32"):
            family.launch(x.float(), layer)
        with pytest.raises(
            UsageError, match=r"x is int8 \[3, 60\], the layer takes int8 \[3, 64\]: .*64 channels as u8"
        ):
            family.launch(x[:, :60].contiguous(), layer)
        with pytest.raises(UsageError, match=r"not dense, its strides are \[128, 1\]"):
            family.launch(torch.zeros(3, 128, dtype=torch.int8)[:, :64], layer)
    with pytest.raises(UsageError, match=r"x has 2 dimensions .* this layer has 1 taps"):
        conv.launch(x, layer, conv.Window())
    with pytest.raises(UsageError, match="whole 32-bit words; use gemm"):
        case = product(("i4", "u8", False), 1, 6, 63)
        gemv.launch(stored(case), call.load(case.weights, device="cpu"))
    case = convolution(("i4", "u8", False), (1, 3, 3, 16), 6, SAME)
    layer = call.load(case.weights, device="cpu")
    with pytest.raises(UsageError, match="9 taps: it is a convolution"):
        gemm.launch(stored(case), layer)
    with pytest.raises(UsageError, match=r"window \(5, 5\) 25 taps; .* has 9 taps"):
        conv.launch(stored(case), layer, conv.Window((5, 5)))
    with pytest.raises(UsageError, match=r"images of 2 x 2 .* smaller than \(3, 3\)"):
        conv.launch(stored(case)[:, :2, :2].contiguous(), layer, conv.Window((3, 3)))


def test_a_tensor_on_another_device_is_one_sentence() -> None:
    layer, x, _ = layer_and_input()
    with pytest.raises(UsageError, match="x is on meta, the layer on cpu: move one of them"):
        gemm.launch(x.to("meta"), layer)


def test_a_residual_is_given_where_the_layer_has_one() -> None:
    layer, x, case = layer_and_input()
    kept = torch.zeros(3, 6, dtype=torch.int8)
    with pytest.raises(UsageError, match="loaded with residual None, and x comes with one"):
        gemm.launch(x, layer, residual=kept)
    ones = np.ones(6, np.float32)
    layer = call.load(case.weights, device="cpu", out="f32", m=ones, b=ones, residual="f32")
    with pytest.raises(UsageError, match="loaded with residual f32, and x comes without one"):
        gemm.launch(x, layer)
    with pytest.raises(UsageError, match=r"residual is int8 \[3, 6\], the layer takes float32 \[3, 6\]"):
        gemm.launch(x, layer, residual=kept)


SIX = {"m": np.ones(6, np.float32), "b": np.ones(6, np.float32)}


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"out": "f32"}, r"m is none, .* takes float32 \[6\]"),
        ({**SIX, "out": "f32", "m": np.ones(5, np.float32)}, r"m is float32 \[5\]"),
        (SIX, "sums have no epilogue"),
        ({**SIX, "out": "f16"}, "output 'f16' is unknown"),
        ({**SIX, "out": STORED["i3"], "lo": -9, "hi": 3}, r"not levels of .* i3"),
        ({**SIX, "out": STORED["u8"], "lo": 0, "hi": 3.5}, r"bounds 0 \.\. 3\.5 are not levels"),
        ({"residual": "f32"}, "needs an epilogue"),
        ({**SIX, "out": "f32", "residual": STORED["u4 fields"]}, "not u4 fields"),
    ],
)
def test_constants_that_do_not_fit_are_refused(constants: dict[str, object], says: str) -> None:
    _, _, case = layer_and_input()
    with pytest.raises(UsageError, match=says):
        call.load(case.weights, device="cpu", **constants)


def test_tensors_too_large_for_int32_indices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, _ = layer_and_input()
    monkeypatch.setattr(call, "MAX_INDEX", 100)
    with pytest.raises(UnsupportedError, match="at most 100 elements; split the batch"):
        gemm.launch(x, layer)


# --- the small steps by themselves ---


@triton.jit
def take_bytes(b, o, BITS: tl.constexpr, SIGNED: tl.constexpr, HALF: tl.constexpr, ASM: tl.constexpr):
    q = fields.operands(tl.load(b + tl.arange(0, 256)), BITS, SIGNED, HALF, ASM)
    for s in tl.static_range(8 // BITS):
        tl.store(o + s * 256 + tl.arange(0, 256), q[s])


@triton.jit
def take_words(b, o, BITS: tl.constexpr, SIGNED: tl.constexpr, HALF: tl.constexpr):
    w = tl.load(b + tl.arange(0, 64))
    for s in tl.static_range(8 // BITS):
        tl.store(o + s * 64 + tl.arange(0, 64), fields.words(w, s, BITS, SIGNED, HALF))


@triton.jit
def take_dots(a, b, c, o, ASM: tl.constexpr):
    i = tl.arange(0, 64)
    tl.store(o + i, fields.dot4(tl.load(a + i), tl.load(b + i), tl.load(c + i), ASM))


@triton.jit
def take_ones(a, o, ASM: tl.constexpr):
    i = tl.arange(0, 64)
    tl.store(o + i, bitserial.popcount(tl.load(a + i), ASM))


def lop3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    """Bit by bit the entry of `table` at 4 * a + 2 * b + c."""
    out = np.zeros_like(a)
    for entry in range(8):
        if table >> entry & 1:
            out |= (a if entry & 4 else ~a) & (b if entry & 2 else ~b) & (c if entry & 1 else ~c)
    return out


def dp4a(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """c + the products of signed bytes."""
    sides = [np.ascontiguousarray(v).view(np.int8).reshape(*v.shape, 4).astype(np.int64) for v in (a, b)]
    return ((sides[0] * sides[1]).sum(-1) + c.view(np.int32)).astype(np.int32).view(np.uint32)


# What PTX (and of the last AMD's manual) says of the instructions that the kernels use, on uint32.
PTX: dict[str, Callable[..., np.ndarray]] = {
    "shl.b32": lambda a, n: a << np.uint32(n),
    "shr.u32": lambda a, n: a >> np.uint32(n),
    "and.b32": lambda a, b: a & b,
    "lop3.b32": lop3,
    "dp4a.s32.s32": dp4a,
    "popc.b32": lambda a: np.bitwise_count(a).astype(np.uint32),
    "v_bcnt_u32_b32": lambda a, n: np.bitwise_count(a).astype(np.uint32) + np.uint32(n),
}


def emulate(
    asm: str, constraints: str, args: list[tl.tensor], dtype: object, is_pure: bool, pack: int, **_: object
) -> object:
    """Assembly on whole tensors: `pack` elements share a 32-bit register, outputs are numbered before inputs."""
    types = dtype if isinstance(dtype, tuple) else (dtype,)
    assert is_pure and constraints.replace("v", "r") == ",".join(["=r"] * len(types) + ["r"] * len(args))
    assert all(pack * t.primitive_bitwidth == 32 for t in (*types, *(arg.dtype for arg in args)))
    names = {f"${len(types) + i}": arg.handle.data.reshape(-1).view(np.uint32) for i, arg in enumerate(args)}
    for line in filter(None, (part.strip(" {}") for part in asm.split(";"))):
        if line == ".reg .b32 t":
            continue
        op, _, rest = line.partition(" ")
        to, *sources = (word.strip() for word in rest.split(","))
        values = [names[word] if word in names else int(word, 0) for word in sources]
        values = [np.full_like(values[0], v) if op == "lop3.b32" and i in (1, 2) else v for i, v in enumerate(values)]
        names[to] = PTX[op](*values)
    made = [
        tl.tensor(
            interpreter.TensorHandle(names[f"${i}"].view(f"i{32 // pack // 8}").reshape(args[0].shape), t), args[0].type
        )
        for i, t in enumerate(types)
    ]
    return tuple(made) if isinstance(dtype, tuple) else made[0]


@pytest.fixture(params=[False, True], ids=["plain", "assembly"])
def assembly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both spellings; the interpreter has no assembly, so instructions are executed by what PTX says of them."""
    monkeypatch.setattr(tl, "inline_asm_elementwise", emulate)
    return request.param


@pytest.mark.parametrize(("bits", "half"), [(8, 0), (4, 0), (4, 8), (2, 0), (2, 32)])
@pytest.mark.parametrize("signed", [True, False])
def test_every_byte_is_taken_apart_right_by_itself_and_in_a_word(
    bits: int, half: int, signed: bool, assembly: bool
) -> None:
    if half and not signed:
        return  # only weights have odd grids, and they are signed
    given = np.arange(256, dtype=np.uint8)
    want = np.stack([given >> (bits * s) & (2**bits - 1) for s in range(8 // bits)]).astype(np.int64)
    if signed:
        want = np.where(want >= 2 ** (bits - 1), want - 2**bits, want) * 2 ** (8 - bits) + half
    source = torch.from_numpy(given.view(np.int8).copy())
    singly, together = (torch.zeros((8 // bits, 256), dtype=torch.int8) for _ in range(2))
    take_bytes[(1,)](source, singly, bits, signed, half, assembly)
    take_words[(1,)](source.view(torch.int32), together.view(torch.int32), bits, signed, half)
    assert_same(want.astype(np.int8), singly.numpy())
    assert_same(want.astype(np.int8), together.numpy())


def test_four_products_of_signed_bytes(assembly: bool) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(-128, 128, (64, 4)).astype(np.int8) for _ in range(2))
    a[:2], b[:2] = -128, [[-128], [127]]
    c, out = rng.integers(-(2**20), 2**20, 64).astype(np.int32), torch.zeros(64, dtype=torch.int32)
    words = [torch.from_numpy(v).view(torch.int32).reshape(64) for v in (a, b)]
    take_dots[(1,)](*words, torch.from_numpy(c), out, assembly)
    assert_same((a.astype(np.int64) * b).sum(1) + c, out.numpy().astype(np.int64))


@pytest.mark.parametrize("asm", ["", "nvidia", "amd"])
def test_ones_of_every_word_are_counted(asm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tl, "inline_asm_elementwise", emulate)
    words = np.random.default_rng(5).integers(-(2**31), 2**31, 64).astype(np.int32)
    words[:4] = 0, -1, -(2**31), 2**31 - 1
    out = torch.full((64,), -1, dtype=torch.int32)
    take_ones[(1,)](torch.from_numpy(words), out, asm)
    assert_same(np.bitwise_count(words.view(np.uint32)).astype(np.int32), out.numpy())
