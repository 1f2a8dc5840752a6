"""Values of depthwise convolutions and pools, and of results that several layers share, by triton's interpreter.

Windows are spelled out in int64 (cases.py); epilogues as in test_interpret.py.
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

from bitpress.core import quant
from bitpress.core.encoding import parse
from bitpress.core.errors import UnsupportedError, UsageError
from bitpress.kernels import gpu
from bitpress.kernels.gpu import call, conv, depthwise, pool
from bitpress.kernels.gpu.layout import Storage, packed
from bitpress.kernels.gpu.tiles import Tile

from ..kernels import oracle
from ..kernels.oracle import Window
from . import cases
from .cases import KINDS, Case, assert_same, convolution, levels, name, product, seen
from .law import STORED, check_epilogue, geometry, stored

pytestmark = [pytest.mark.triton_interpret, pytest.mark.usefixtures("poisoned")]

SMALL = Tile(pixels=16, rows=32, blocks=1, warps=4, stages=1)
SAME = Window((3, 3), padding=(1, 1, 1, 1))
BYTES = tuple(kind for kind in KINDS if not kind[2])
TRIO = (("i8", "u8", False), ("o4", "i8", False), ("o2", "u8", False))
# x, geometry: channels below, at and past a run, a tile and a block; strides, uneven padding, dilation, only border.
IMAGES = (
    ((1, 4, 5, 16), SAME),
    ((2, 5, 4, 3), Window((3, 3), (2, 2), (1, 1, 1, 1))),
    ((1, 5, 4, 130), Window((2, 3), (2, 1), (0, 2, 1, 1), (2, 2))),
    ((1, 1, 1, 65), SAME),
    ((2, 2, 3, 33), Window((5, 5), padding=(2, 2, 2, 2))),
    ((1, 3, 3, 70), Window((1, 1), (2, 2))),
)


def sums(module: ModuleType, case: Case, g: Window) -> np.ndarray:
    """What the kernel makes of it, without an epilogue, int64."""
    layer = call.load(case.weights, device="cpu")
    return module.launch(stored(case), layer, geometry(g), tile=SMALL).numpy().astype(np.int64)


@pytest.mark.parametrize("kind", BYTES, ids=name)
def test_depthwise_convolutions_are_exact(kind: tuple[str, str, bool]) -> None:
    for shape, g in IMAGES if kind in TRIO else IMAGES[2:3]:
        case = cases.depthwise(kind, shape, g)
        assert_same(case.sums, sums(depthwise, case, g))


def test_the_yardstick_itself_agrees_with_loops() -> None:
    for shape, g in IMAGES:
        case = cases.depthwise(TRIO[1], shape, g)
        w = case.w.reshape(shape[-1], *g.kernel, 1)
        own = replace(g, groups=shape[-1])
        assert_same(oracle.convolve(case.x.transpose(0, 3, 1, 2), w, own).transpose(0, 2, 3, 1), case.sums)


@pytest.mark.parametrize("out", ["u8", "u4 fields", "f32"])
def test_depthwise_convolutions_end_in_the_same_epilogue(out: str) -> None:
    case = cases.depthwise(TRIO[2], (1, 4, 5, 41), SAME)
    check_epilogue(
        case,
        STORED.get(out, "f32"),
        STORED["u8"],
        lambda x, layer, **k: depthwise.launch(x, layer, geometry(SAME), **k),
    )


# --- pools ---

SOURCES = ("u8", "i8", "u4", "i4 fields", "u2 fields", "i2 fields")


def image(source: str, shape: tuple[int, ...]) -> tuple[Storage, np.ndarray, torch.Tensor]:
    """How it is stored, levels, and what is stored."""
    form = STORED[source]
    form = packed(form.encoding, shape[-1]) if form.packed else form
    x = levels(np.random.default_rng(5), form.encoding.name, shape)
    return form, x, torch.from_numpy(form.store(x))


@pytest.mark.parametrize("source", SOURCES)
def test_max_pools_take_the_largest_level_and_never_padding(source: str) -> None:
    for shape, g in IMAGES[1:4]:
        form, x, _ = image(source, shape)
        if form.signed:
            x = np.maximum(-np.abs(x), form.encoding.lo)  # below the 0 that padding must not be
        given = torch.from_numpy(form.store(x))
        got = pool.launch_max(given, form, shape[-1], geometry(g), tile=SMALL)
        want = np.max(seen(x, g, outside=-1000), axis=0)
        assert_same(want, form.load(got.numpy(), shape[-1]).astype(np.int64))
        if form.packed:
            codes = form.encoding.encode(want.reshape(-1, shape[-1]))
            assert_same(cases.spelled(codes, form.bits, form.run), got.numpy().view(np.uint8).reshape(len(codes), -1))


def test_max_pools_of_floats() -> None:
    x = np.random.default_rng(1).normal(-3, 1, (2, 5, 4, 33)).astype(np.float32)
    got = gpu.max_pool(torch.from_numpy(x), "f32", 33, geometry(SAME)).numpy()
    assert_same(np.max(seen(x, SAME, outside=-1000), axis=0), got)


@pytest.mark.parametrize("source", SOURCES)
def test_sums_of_windows_and_images_are_exact(source: str) -> None:
    for shape, g in IMAGES[1:4]:
        form, x, given = image(source, shape)
        sums = pool.load(form, shape[-1], device="cpu")
        got = pool.launch_average(given, sums, geometry(g), tile=SMALL).numpy()
        assert_same(sum(seen(x, g)), got.astype(np.int64))
        whole = pool.launch_global(given, sums, tile=SMALL).numpy()
        assert_same(x.sum((1, 2), keepdims=True), whole.astype(np.int64))


def test_images_of_more_pixels_than_a_tile() -> None:
    form, x, given = image("u8", (2, 7, 9, 40))
    whole = gpu.global_average_pool(given, gpu.load_pool(form, 40, device="cpu")).numpy()
    assert_same(x.sum((1, 2), keepdims=True), whole.astype(np.int64))


@pytest.mark.parametrize("whole", [False, True], ids=["window", "image"])
@pytest.mark.parametrize(("out", "residual"), [("u8", "u8"), ("i4 fields", None), ("f32", "f32")])
def test_averages_follow_the_law(out: str, residual: str | None, whole: bool) -> None:
    g = Window((4, 5)) if whole else Window((2, 2), (2, 2), (0, 1, 0, 0))
    form, x, given = image("i8", (2, 4, 5, 41))
    case = Case(np.ones((41, 1, 1)), x, form, gpu.arrange(np.ones((41, 1, 1), int), parse("i8"), form), sum(seen(x, g)))

    def run(_x: torch.Tensor, layer: call.Layer, **given_: object) -> torch.Tensor:
        made = pool.Pool(form, 41, layer.epilogue)
        if whole:
            return gpu.global_average_pool(given, made, **given_)
        return gpu.average_pool(given, made, geometry(g), **given_)

    check_epilogue(case, STORED.get(out, "f32"), STORED.get(residual, residual), run)


def test_a_window_of_one_pixel_requantises_and_from_floats_quantises() -> None:
    rng = np.random.default_rng(8)
    m, b = rng.uniform(0.1, 1, 37).astype(np.float32), rng.normal(0, 3, 37).astype(np.float32)
    to = Storage(parse("u4"))
    for source, x in (("f32", rng.normal(0, 20, (2, 3, 2, 37)).astype(np.float32)), (STORED["u8"], None)):
        if x is None:
            x = levels(rng, "u8", (2, 3, 2, 37))
        given = torch.from_numpy(x if source == "f32" else source.store(x))
        made = gpu.load_pool(source, 37, device="cpu", out=to, m=m, b=b, lo=0, hi=15)
        got = gpu.average_pool(given, made, conv.Window())
        levels_ = x if source == "f32" else x.astype(np.int32)
        assert_same(quant.requantize(levels_, m, b, lo=0, hi=15), to.load(got.numpy(), 37))


# --- several layers write one result ---


def shared(
    run: Callable[[call.Layer, int, torch.Tensor], object], layers: list[tuple[gpu.Weights, np.ndarray]]
) -> np.ndarray:
    """int32 [..., 60] that every layer wrote its columns of; the rest stays 5."""
    out = torch.full((2, 3, 4, 60), 5, dtype=torch.int32)
    for i, (weights, columns) in enumerate(layers):
        run(call.load(weights, device="cpu", columns=columns, width=60), i, out)
    return out.numpy().astype(np.int64)


@pytest.mark.usefixtures("target")
@pytest.mark.parametrize("g", [Window(), SAME], ids=["product", "convolution"])
def test_filters_of_several_widths_write_one_result(g: Window) -> None:
    places = np.random.default_rng(0).permutation(60)
    cut = (places[:7], np.sort(places[7:40]), places[40:59])
    kinds = (("i8", "u8", False), ("o4", "u8", False), ("o2", "u8", False))
    made = [convolution(kind, (2, 3, 4, 20), len(at), g) for kind, at in zip(kinds, cut, strict=True)]
    got = shared(
        lambda layer, i, out: gpu.conv2d(stored(made[i]), layer, geometry(g), into=out),
        [(case.weights, at) for case, at in zip(made, cut, strict=True)],
    )
    want = np.full((2, 3, 4, 60), 5, np.int64)
    for case, at in zip(made, cut, strict=True):
        want[..., at] = case.sums
    assert_same(want, got)


def test_depthwise_filters_of_several_widths_read_what_they_write() -> None:
    places = np.random.default_rng(0).permutation(60)
    cut = (places[:35], places[35:59])
    rng, act = np.random.default_rng(4), Storage(parse("u8"))
    x = levels(rng, "u8", (2, 3, 4, 60))
    want, made = np.full(x.shape, 5, np.int64), []
    for encoding, at in zip(("i8", "o2"), cut, strict=True):
        w = levels(rng, encoding, (len(at), 9, 1))
        want[..., at] = sum(there[..., at] * w[:, tap, 0] for tap, there in enumerate(seen(x, SAME)))
        made.append((gpu.arrange(w, parse(encoding), act, depthwise=True), at))
    given = torch.from_numpy(act.store(x))
    got = shared(lambda layer, _i, out: gpu.depthwise2d(given, layer, geometry(SAME), into=out), made)
    assert_same(want, got)


def test_a_shared_result_has_a_residual_and_a_vector_family() -> None:
    """One row of x; bytes; the residual is read where the result is written."""
    case = product(("o4", "u8", False), 1, 9, 64)
    at, to = np.arange(9) * 2 + 1, STORED["u8"]
    kept = levels(np.random.default_rng(2), "u8", (1, 20))
    m, b = np.full(9, 1e-3, np.float32), np.full(9, 3, np.float32)
    layer = gpu.load(
        case.weights, device="cpu", out=to, m=m, b=b, lo=0, hi=255, residual=to, m_r=0.5, columns=at, width=20
    )
    out = torch.full((1, 20), 9, dtype=torch.int8)
    gpu.linear(stored(case), layer, residual=torch.from_numpy(to.store(kept)), into=out)
    want = np.full((1, 20), 9 + 128)
    sums = case.sums.astype(np.int32)
    want[:, at] = quant.requantize(sums, m, b, lo=0, hi=255, residual=kept[:, at], m_r=np.float32(0.5))
    assert_same(want, to.load(out.numpy(), 20).astype(np.int64))


# --- faults that the comparison must see ---

FAULTS = {
    "fields of another channel": ("depthwise", "up = 32 - W_BITS - rows", "up = rows"),
    "an odd grid without its half": ("depthwise", "<< HALF) | HALF", "<< HALF)"),
    "the last tap dropped": ("depthwise", "range(0, TAPS)", "range(0, TAPS - 1)"),
    "padding that is no level 0": ("depthwise", "other=-ZERO", "other=0"),
    "padding that wins": ("pool", "other=LEAST - ZERO", "other=0"),
    "padding that wins among fields": ("pool", "if LEAST != 0:", "if LEAST > 0:"),
    "a field of the wrong channel": ("pool", "channel // RUN % PARTS * BITS", "channel % PARTS * BITS"),
    "the last pixel of an image dropped": ("pool", "first + part < AREA)", "first + part < AREA - 1)"),
}


def run_all(module: ModuleType, family: str) -> None:
    if family == "depthwise":
        for kind in TRIO:
            for shape, g in IMAGES[1:3]:
                case = cases.depthwise(kind, shape, g)
                assert_same(case.sums, sums(module, case, g))
        return
    for source in ("u8", "i8", "i2 fields"):
        form, x, _ = image(source, (1, 3, 4, 70))
        x = np.maximum(-np.abs(x), form.encoding.lo) if form.signed else x
        given = torch.from_numpy(form.store(x))
        window = module.Window((3, 3), padding=(1, 1, 1, 1))
        got = module.launch_max(given, form, 70, window, tile=SMALL).numpy()
        assert_same(np.max(seen(x, SAME, outside=-1000), axis=0), form.load(got, 70).astype(np.int64))
        whole = module.launch_global(given, module.load(form, 70, device="cpu"), tile=SMALL).numpy()
        assert_same(x.sum((1, 2), keepdims=True), whole.astype(np.int64))


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_planted_fault_is_seen(fault: str, planted: Callable[[str, str, str], ModuleType]) -> None:
    family, old, new = FAULTS[fault]
    with pytest.raises(AssertionError, match=r"\d+ of \d+ differ, first at"):
        run_all(planted(family, old, new), family)


@pytest.mark.parametrize("family", ["depthwise", "pool"])
def test_nothing_is_seen_where_nothing_is_planted(family: str, planted: Callable[[str, str, str], ModuleType]) -> None:
    run_all(planted(family, "from __future__", "from __future__ "), family)


# --- what a caller hears ---


def test_a_depthwise_layer_goes_its_own_way() -> None:
    flat, whole = cases.depthwise(TRIO[0], (1, 3, 3, 16), SAME), convolution(TRIO[0], (1, 3, 3, 16), 16, SAME)
    for case, launch in ((flat, gpu.conv2d), (whole, gpu.depthwise2d)):
        with pytest.raises(UsageError, match="depthwise layers go through depthwise2d, all others through"):
            launch(stored(case), call.load(case.weights, device="cpu"), geometry(SAME))
    with pytest.raises(UsageError, match=r"x has 4 dimensions and the window \(5, 5\) 25 taps; .* has 9 taps"):
        gpu.depthwise2d(stored(flat), call.load(flat.weights, device="cpu"), conv.Window((5, 5)))
    with pytest.raises(UnsupportedError, match="no depthwise kernel for w4a4; it has w8a8, w4a8, w2a8"):
        gpu.arrange(np.ones((16, 9, 1), int), parse("i4"), packed(parse("u4"), 16), depthwise=True)
    with pytest.raises(UsageError, match=r"a depthwise layer has weights \[rows, taps, 1\], not \[4, 9, 2\]"):
        gpu.arrange(np.ones((4, 9, 2), int), parse("i4"), Storage(parse("u8")), depthwise=True)


def test_pools_that_have_no_meaning_are_refused() -> None:
    u8, x = STORED["u8"], torch.zeros(1, 4, 4, 8, dtype=torch.int8)
    one = np.ones(8, np.float32)
    with pytest.raises(UsageError, match=r"padding \(2, 0, 0, 0\) of a max pool is not smaller than its kernel"):
        gpu.max_pool(x, u8, 8, conv.Window((2, 2), padding=(2, 0, 0, 0)))
    with pytest.raises(UsageError, match=r"x is int8 \[1, 4, 4, 8\], the layer takes int8 \[1, 4, 4, 9\]"):
        gpu.max_pool(x, u8, 9, conv.Window())
    with pytest.raises(UsageError, match="x has 3 dimensions; a pool takes"):
        gpu.max_pool(x[0], u8, 8, conv.Window())
    with pytest.raises(UsageError, match="a pool reads a Storage or 'f32', not 'i32'"):
        gpu.load_pool("i32", 8, device="cpu")
    with pytest.raises(UsageError, match="a pool of float32 has an epilogue"):
        gpu.load_pool("f32", 8, device="cpu")
    floats = gpu.load_pool("f32", 8, device="cpu", out="f32", m=one, b=one)
    with pytest.raises(UsageError, match="an average of 16 pixels reads levels, not float32"):
        gpu.global_average_pool(x.float(), floats)
    with pytest.raises(UnsupportedError, match="sums of 9000000 levels of u8 could leave int32"):
        wide = torch.zeros(1, 3000, 3000, 1, dtype=torch.int8)
        gpu.global_average_pool(wide, gpu.load_pool(u8, 1, device="cpu"))


def test_columns_and_their_result_belong_together() -> None:
    case = product(TRIO[0], 3, 4, 64)
    for columns, width in (([0, 1, 2], 9), ([0, 1, 2, 2], 9), ([0, 1, 2, 9], 9), ([0, 1, 2, -1], 9), ([0, 1, 2, 3], 0)):
        with pytest.raises(UsageError, match=f"columns are not 4 different channels of the {width}"):
            call.load(case.weights, device="cpu", columns=np.array(columns), width=width)
    one = np.ones(4, np.float32)
    with pytest.raises(UsageError, match="columns of u4 fields in runs of 32 share bytes"):
        call.load(case.weights, device="cpu", out=STORED["u4 fields"], m=one, b=one, lo=0, hi=15,
                  columns=np.arange(4), width=9)  # fmt: skip
    some = call.load(case.weights, device="cpu", columns=np.arange(4), width=9)
    with pytest.raises(UsageError, match="loaded to write some of 9 channels, and is called without `into`"):
        gpu.linear(stored(case), some)
    with pytest.raises(UsageError, match="loaded to write its whole result, and is called with `into`"):
        gpu.linear(stored(case), call.load(case.weights, device="cpu"), into=torch.zeros(3, 4, dtype=torch.int32))
    with pytest.raises(UsageError, match=r"into is int32 \[3, 4\], the layer takes int32 \[3, 9\]"):
        gpu.linear(stored(case), some, into=torch.zeros(3, 4, dtype=torch.int32))


def test_an_empty_batch_gives_an_empty_result() -> None:
    case = cases.depthwise(TRIO[0], (1, 3, 3, 16), SAME)
    layer = call.load(case.weights, device="cpu")
    x, sums_of = stored(case)[:0], gpu.load_pool(case.act, 16, device="cpu")
    made = (
        gpu.depthwise2d(x, layer, geometry(SAME)), gpu.max_pool(x, case.act, 16, geometry(SAME)),
        gpu.average_pool(x, sums_of, geometry(SAME)), gpu.global_average_pool(x, sums_of),
    )  # fmt: skip
    assert [tuple(y.shape) for y in made] == [(0, 3, 3, 16)] * 3 + [(0, 1, 1, 16)]
