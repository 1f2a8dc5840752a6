"""The meaning of every op against loops, its shape rule against the shapes that come out, its MACs against a count."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from bitpress.core import quant
from bitpress.core.graph import STAGES, Node
from bitpress.core.ops import OPS, levels_dtype_ok

RNG = np.random.default_rng(11)
CONVS: tuple[dict[str, Any], ...] = (
    {"stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1},
    {"stride": (2, 1), "padding": (1, 1, 1, 1), "dilation": (1, 1), "groups": 1},
    {"stride": (2, 2), "padding": (0, 1, 2, 0), "dilation": (1, 1), "groups": 2},
    {"stride": (1, 2), "padding": (2, 2, 2, 2), "dilation": (2, 1), "groups": 4},
)


def levels(*shape: int, lo: int = -7, hi: int = 8) -> np.ndarray:
    return RNG.integers(lo, hi, shape).astype(np.int32)


def node(op: str, attrs: dict[str, Any] | None = None, *, dtype: str = "i32", shape: tuple[int, ...] = ()) -> Node:
    return Node(op, "n", (), shape, dtype, attrs or {})


def padded_at(x: np.ndarray, y: int, z: int) -> Any:
    """[N, C] at a pixel, 0 outside."""
    inside = 0 <= y < x.shape[2] and 0 <= z < x.shape[3]
    return x[:, :, y, z] if inside else np.zeros(x.shape[:2], x.dtype)


def convolve(x: np.ndarray, w: np.ndarray, attrs: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Convolution by loops, int64, and the multiplications of one image, those with padding counted."""
    (sh, sw), (t, left, b, r), (dh, dw) = attrs["stride"], attrs["padding"], attrs["dilation"]
    rows, per_group, kh, kw = w.shape
    oh = (x.shape[2] + t + b - dh * (kh - 1) - 1) // sh + 1
    ow = (x.shape[3] + left + r - dw * (kw - 1) - 1) // sw + 1
    out, macs = np.zeros((len(x), rows, oh, ow), np.int64), 0
    for o, y, z in np.ndindex(rows, oh, ow):
        first = o // (rows // attrs["groups"]) * per_group
        for ky, kx in np.ndindex(kh, kw):
            pixel = padded_at(x, y * sh - t + ky * dh, z * sw - left + kx * dw)
            out[:, o, y, z] += (pixel[:, first : first + per_group].astype(np.int64) * w[o, :, ky, kx]).sum(axis=1)
            macs += per_group
    return out, macs


@pytest.mark.parametrize("attrs", CONVS)
def test_convolution(attrs: dict[str, Any]) -> None:
    x, w = levels(2, 4, 7, 6), levels(8, 4 // attrs["groups"], 3, 2)
    want, macs = convolve(x, w, attrs)
    got = OPS["conv2d_int"].meaning(node("conv2d_int", attrs), {"weight": w}, x)
    assert got.dtype == np.int32 and np.array_equal(got, want)
    for op in ("conv2d_int", "conv2d", "conv2d_q"):
        assert OPS[op].shape(attrs, {"weight": w}, [x.shape[1:]]) == want.shape[1:]
        assert OPS[op].macs(node(op, attrs, shape=want.shape[1:]), x.shape[1:], {"weight": w}) == macs
    bias = RNG.normal(size=8).astype(np.float32)
    as_float = OPS["conv2d"].meaning(node("conv2d", attrs), {"weight": w, "bias": bias}, x.astype(np.float32))
    assert as_float.dtype == np.float32
    assert np.array_equal(as_float, (want + bias.reshape(1, -1, 1, 1)).astype(np.float32))


def test_linear() -> None:
    x, w, bias = levels(3, 10), levels(4, 10), RNG.normal(size=4).astype(np.float32)
    want = np.array([[sum(int(a) * int(b) for a, b in zip(row, col, strict=True)) for col in w] for row in x])
    assert np.array_equal(OPS["linear_int"].meaning(node("linear_int"), {"weight": w}, x), want)
    got = OPS["linear"].meaning(node("linear"), {"weight": w, "bias": bias}, x.astype(np.float32))
    assert np.array_equal(got, (want + bias).astype(np.float32))
    assert OPS["linear_int"].shape({}, {"weight": w}, [(10,)]) == (4,)
    assert OPS["linear_int"].macs(node("linear_int"), (10,), {"weight": w}) == 40


@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (1, 0, 1, 1)])
def test_pools(padding: tuple[int, int, int, int]) -> None:
    attrs = {"kernel": (3, 2), "stride": (2, 2), "padding": padding}
    x = levels(2, 3, 7, 6, lo=-9, hi=-1)  # negative, so that padding would win a maximum if it could
    t, left, *_ = padding
    shape = OPS["sum_pool2d"].shape(attrs, {}, [x.shape[1:]])
    sums, tops = np.zeros((2, *shape), np.int32), np.full((2, *shape), -99, np.int32)
    for y, z, ky, kx in np.ndindex(*shape[1:], 3, 2):
        at = (y * 2 - t + ky, z * 2 - left + kx)
        sums[:, :, y, z] += padded_at(x, *at)
        if 0 <= at[0] < 7 and 0 <= at[1] < 6:
            tops[:, :, y, z] = np.maximum(tops[:, :, y, z], padded_at(x, *at))
    assert np.array_equal(OPS["sum_pool2d"].meaning(node("sum_pool2d", attrs), {}, x), sums)
    assert np.array_equal(OPS["max_pool2d"].meaning(node("max_pool2d", attrs), {}, x), tops)
    mean = OPS["avg_pool2d"].meaning(node("avg_pool2d", attrs), {}, x.astype(np.float32))
    assert np.array_equal(mean, (sums / 6).astype(np.float32))
    assert OPS["max_pool2d"].shape(attrs, {}, [x.shape[1:]]) == shape


def test_global_average() -> None:
    x = RNG.normal(size=(2, 3, 5, 4)).astype(np.float32)
    got = OPS["global_avg_pool"].meaning(node("global_avg_pool"), {}, x)
    want = [[math.fsum(plane.ravel().tolist()) / 20 for plane in image] for image in x]
    assert np.allclose(got[:, :, 0, 0], want, rtol=np.finfo(np.float32).eps, atol=0)
    assert OPS["global_avg_pool"].shape({}, {}, [(3, 5, 4)]) == (3, 1, 1)


def test_what_moves_values_moves_them_unchanged() -> None:
    x, y = levels(2, 4, 6, 5), levels(2, 3, 6, 5)
    cut = {"slices": ((1, None, None), (None, None, 2), (0, 4, 3))}
    assert np.array_equal(OPS["slice"].meaning(node("slice", cut), {}, x), x[:, 1:, ::2, 0:4:3])
    assert OPS["slice"].shape(cut, {}, [x.shape[1:]]) == (3, 3, 2)
    pads = {"pads": ((2, 1), (0, 0), (1, 0))}
    wide = OPS["pad"].meaning(node("pad", pads), {}, x)
    assert OPS["pad"].shape(pads, {}, [x.shape[1:]]) == wide.shape[1:] == (7, 6, 6)
    assert np.array_equal(wide[:, 2:6, :, 1:], x) and wide.sum() == x.sum()
    both = OPS["concat"].meaning(node("concat"), {}, x, y)
    assert np.array_equal(both[:, 4:], y) and OPS["concat"].shape({}, {}, [(4, 6, 5), (3, 6, 5)]) == (7, 6, 5)
    assert np.array_equal(OPS["flatten"].meaning(node("flatten"), {}, x), x.reshape(2, -1))
    assert OPS["flatten"].shape({}, {}, [(4, 6, 5)]) == (120,)


def test_gather() -> None:
    x = levels(2, 4, 6, 5)
    attrs = {"channels": (2, -1, 2, 0), "stride": (2, 1), "padding": (1, 0, 0, 1)}
    got = OPS["gather"].meaning(node("gather", attrs), {}, x)
    assert got.shape[1:] == OPS["gather"].shape(attrs, {}, [x.shape[1:]])
    for row, channel in enumerate(attrs["channels"]):
        for y, z in np.ndindex(got.shape[2:]):
            want = padded_at(x, y * 2 - 1, z)[:, channel] if channel >= 0 else np.zeros(2)
            assert np.array_equal(got[:, row, y, z], want)
    flat = levels(2, 5)
    assert OPS["gather"].meaning(node("gather", attrs), {}, flat)[:, 0].tolist() == flat[:, 2].tolist()


def test_batch_norm_and_activations() -> None:
    x = RNG.normal(size=(2, 3, 4, 4)).astype(np.float32)
    consts = {k: RNG.uniform(0.5, 2, 3).astype(np.float32) for k in ("weight", "bias", "mean", "var")}
    got = OPS["batch_norm"].meaning(node("batch_norm", {"eps": 1e-3}), consts, x)
    gamma, beta, mean, var = (consts[k].astype(np.float64).reshape(1, 3, 1, 1) for k in consts)
    want = (x - mean) / np.sqrt(var + 1e-3) * gamma + beta
    assert np.abs(got - want).max() <= 8 * np.finfo(np.float32).eps * np.abs(want).max()
    assert np.array_equal(OPS["relu"].meaning(node("relu"), {}, x), np.where(x > 0, x, np.float32(0)))
    clip = OPS["clip"].meaning(node("clip", {"lo": -0.5, "hi": 0.25}), {}, x)
    assert clip.dtype == np.float32 and clip.min() == -0.5 and clip.max() == 0.25
    assert np.array_equal(OPS["add"].meaning(node("add"), {}, x, clip), x + clip)


def test_epilogues_are_the_law() -> None:
    acc, r = levels(2, 3, 4, 4, lo=-900, hi=900), levels(2, 3, 4, 4)
    consts = {"m": RNG.uniform(0.001, 0.1, 3).astype(np.float32), "b": RNG.normal(size=3).astype(np.float32)}
    channels = {k: v.reshape(1, 3, 1, 1) for k, v in consts.items()}
    attrs = {"lo": 0, "hi": 15, "m_r": 0.37}
    want = quant.requantize(acc, **channels, lo=0, hi=15, residual=r, m_r=np.float32(0.37))
    assert np.array_equal(OPS["requantize"].meaning(node("requantize", attrs, dtype="u4"), consts, acc, r), want)
    floats = quant.affine(acc, **channels, residual=r, m_r=np.float32(0.37))
    plain = node("affine", {"m_r": 0.37}, dtype="f32")
    assert np.array_equal(OPS["affine"].meaning(plain, consts, acc, r), floats)
    bounded = node("affine", {"m_r": 0.37, "lo": 0.0}, dtype="f32")
    assert np.array_equal(OPS["affine"].meaning(bounded, consts, acc, r), np.maximum(floats, 0))
    image = RNG.normal(size=(2, 3, 4, 4)).astype(np.float32)
    q = node("quantize", {"m": 40.5, "lo": -127, "hi": 127}, dtype="i8")
    assert np.array_equal(
        OPS["quantize"].meaning(q, {}, image), np.clip(np.rint(image * np.float32(40.5)), -127, 127).astype(np.int32)
    )


@pytest.mark.parametrize(("fused", "producer"), [("conv2d_q", "conv2d_int"), ("sum_pool2d_q", "sum_pool2d")])
@pytest.mark.parametrize("dtype", ["u4", "f32"])
def test_fused_ops_are_producer_then_epilogue(fused: str, producer: str, dtype: str) -> None:
    x, w = levels(2, 3, 6, 6), levels(3, 3, 2, 2)
    consts = {"weight": w, "m": np.float32([0.1, 0.2, 0.3]), "b": np.float32([1, -1, 0])}
    attrs = {**CONVS[0], "kernel": (2, 2), "lo": 0, "hi": 15}
    acc = OPS[producer].meaning(node(producer, attrs), consts, x)
    r = levels(*acc.shape)
    epilogue = OPS["affine" if dtype == "f32" else "requantize"].meaning
    want = epilogue(node("", {**attrs, "m_r": 0.5}, dtype=dtype), consts, acc, r)
    got = OPS[fused].meaning(node(fused, {**attrs, "m_r": 0.5}, dtype=dtype), consts, x, r)
    assert got.dtype == want.dtype and np.array_equal(got, want)


def test_every_stage_has_rows_for_its_ops() -> None:
    assert set().union(*STAGES.values()) == set(OPS)
    with pytest.raises(NotImplementedError, match=r"n: op 'aten\.cumsum' has no meaning here"):
        OPS["unknown"].meaning(node("unknown", {"target": "aten.cumsum"}), {}, np.zeros(1))


def test_levels_need_a_zero() -> None:
    assert levels_dtype_ok(node("quantize", dtype="i8")) and levels_dtype_ok(node("quantize", dtype="u2"))
    assert not any(levels_dtype_ok(node("quantize", dtype=d)) for d in ("f32", "i32", "o2", "b1"))
