"""OPS: one row per op: its shape rule, its numpy meaning, how channels pass through it, how many MACs it costs.

The numpy meaning is the definition; torch semantics, reference rows and C++ are compared with it. Arrays carry the
batch: [N, C, H, W] or [N, F]. Integer values travel as int32 arrays of levels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import quant
from .curves import CURVES
from .encoding import parse
from .graph import Node

Consts = Mapping[str, np.ndarray]
Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Op:
    """One op. `channels` says what a channel of the output is:

    mix: a new channel (conv, linear); same: the input's channel; join: the same channel of every input (add, mul);
    concat: inputs' channels one after another; gather: some input channel or a zero (slice, pad); spread: flatten.
    """

    name: str
    shape: Callable[[Mapping[str, Any], Consts, list[Shape]], Shape]
    meaning: Callable[..., np.ndarray]
    channels: str
    macs: Callable[[Node, Shape, Consts], int] = lambda _node, _in_shape, _consts: 0


def window_out(size: int, kernel: int, stride: int, pad: int, dilation: int = 1) -> int:
    """Output length of a sliding window; `pad` is the sum of both sides."""
    return (size + pad - dilation * (kernel - 1) - 1) // stride + 1


def windows(x: np.ndarray, attrs: Mapping[str, Any], fill: float = 0) -> np.ndarray:
    """View [N, C, OH, OW, kh, kw] of the padded input under attrs kernel, stride, padding (t, l, b, r), dilation."""
    top, left, bottom, right = attrs.get("padding", (0, 0, 0, 0))
    (kh, kw), (sh, sw) = attrs["kernel"], attrs["stride"]
    dh, dw = attrs.get("dilation", (1, 1))
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(2, 3))
    return view[:, :, ::sh, ::sw, ::dh, ::dw]


def can_scale(gate: Shape, whole: Shape) -> bool:
    """Whether a value of shape `gate` can multiply one of shape `whole`: the same shape, or one pixel a channel."""
    return gate == whole or (len(whole) == 3 and gate == (whole[0], 1, 1))


def _conv_shape(attrs: Mapping[str, Any], consts: Consts, ins: list[Shape]) -> Shape:
    o, _, kh, kw = consts["weight"].shape
    _, h, w = ins[0]
    t, left, b, r = attrs["padding"]
    (sh, sw), (dh, dw) = attrs["stride"], attrs["dilation"]
    return o, window_out(h, kh, sh, t + b, dh), window_out(w, kw, sw, left + r, dw)


def _pool_shape(attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    c, h, w = ins[0]
    t, left, b, r = attrs["padding"]
    (kh, kw), (sh, sw) = attrs["kernel"], attrs["stride"]
    return c, window_out(h, kh, sh, t + b), window_out(w, kw, sw, left + r)


def conv_products(node: Node, weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Convolution as im2col + float64 GEMM [N, O, OH, OW]: exact for integers below 2**53."""
    groups = node.attrs["groups"]
    o, i, kh, kw = weight.shape
    view = windows(x, {**node.attrs, "kernel": (kh, kw)})
    n, _, oh, ow = view.shape[:4]
    parts = []
    for g in range(groups):
        cols = view[:, g * i : (g + 1) * i].transpose(0, 2, 3, 1, 4, 5).reshape(n * oh * ow, i * kh * kw)
        rows = weight[g * (o // groups) : (g + 1) * (o // groups)].reshape(o // groups, -1)
        parts.append(cols.astype(np.float64) @ rows.T.astype(np.float64))
    return np.concatenate(parts, axis=1).reshape(n, oh, ow, o).transpose(0, 3, 1, 2)


def _bias(out: np.ndarray, consts: Consts) -> np.ndarray:
    if "bias" not in consts:
        return out
    return out + consts["bias"].reshape(1, -1, *(1,) * (out.ndim - 2))


def _conv2d(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:
    return _bias(conv_products(node, consts["weight"], x), consts).astype(np.float32)


def _conv2d_int(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:
    return conv_products(node, consts["weight"], x).astype(np.int32)


def _linear(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:  # noqa: ARG001
    return _bias(x.astype(np.float64) @ consts["weight"].T.astype(np.float64), consts).astype(np.float32)


def _linear_int(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:  # noqa: ARG001
    return (x.astype(np.float64) @ consts["weight"].T.astype(np.float64)).astype(np.int32)


def _batch_norm(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:
    shape = (1, -1, *(1,) * (x.ndim - 2))
    scale = consts["weight"].astype(np.float64) / np.sqrt(consts["var"].astype(np.float64) + node.attrs["eps"])
    shift = consts["bias"] - consts["mean"] * scale
    return (x * scale.reshape(shape) + shift.reshape(shape)).astype(np.float32)


def _clip(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return np.clip(x, node.attrs["lo"], node.attrs["hi"]).astype(x.dtype)


def _max_pool2d(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    fill = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    return windows(x, node.attrs, fill).max(axis=(4, 5))


def _avg_pool2d(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return windows(x, node.attrs).mean(axis=(4, 5), dtype=np.float64).astype(np.float32)


def _global_avg_pool(_node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return x.mean(axis=(2, 3), keepdims=True, dtype=np.float64).astype(np.float32)


def _sum_pool2d(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return windows(x, node.attrs).sum(axis=(4, 5), dtype=np.int64).astype(np.int32)


def _curve(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return CURVES[node.op](x).astype(np.float32)


def _lookup(node: Node, consts: Consts, x: np.ndarray) -> np.ndarray:
    out = looked_up(consts["table"], x, node.dtype)
    out[:, removed(node)] = 0
    return out


def removed(node: Node) -> list[int]:
    """Channels that a plan gave up and that are still there, as in the integer stage: a table of theirs holds 0."""
    kept = node.attrs.get("kept", ())
    return sorted({*range(node.shape[0])}.difference(kept)) if 0 < len(kept) < node.shape[0] else []


def looked_up(table: np.ndarray, levels: np.ndarray, dtype: str) -> np.ndarray:
    """Entries float32 [2^bits] of levels, a level's lowest bits being its code, in u and in i; int32 but for "f32"."""
    return table[levels & (len(table) - 1)].astype(np.float32 if dtype == "f32" else np.int32)


def _product(_node: Node, _consts: Consts, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
    return x.astype(np.int32) * gate.astype(np.int32)


def _slice_shape(attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    return tuple(len(range(*slice(*s).indices(d))) for s, d in zip(attrs["slices"], ins[0], strict=True))


def _slice(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return x[(slice(None), *(slice(a, b, s) for a, b, s in node.attrs["slices"]))]


def _pad_shape(attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    return tuple(d + before + after for d, (before, after) in zip(ins[0], attrs["pads"], strict=True))


def _concat_shape(_attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    return (sum(s[0] for s in ins), *ins[0][1:])


def _pad(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return np.pad(x, ((0, 0), *node.attrs["pads"]))


def _gather_shape(attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    t, left, b, r = attrs["padding"]
    sizes = zip(ins[0][1:], attrs["stride"], (t + b, left + r), strict=False)
    return (len(attrs["channels"]), *(window_out(d, 1, s, p) for d, s, p in sizes))


def _gather(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    channels = np.asarray(node.attrs["channels"])
    picked = x[:, np.maximum(channels, 0)]
    picked[:, channels < 0] = 0
    return picked if x.ndim == 2 else windows(picked, {**node.attrs, "kernel": (1, 1)})[..., 0, 0]


def _epilogue_args(node: Node, consts: Consts, acc: np.ndarray, rest: tuple[np.ndarray, ...]) -> dict[str, Any]:
    shape = (1, -1, *(1,) * (acc.ndim - 2))
    return {
        "m": consts["m"].reshape(shape),
        "b": consts["b"].reshape(shape),
        "residual": rest[0] if rest else None,
        "m_r": np.float32(node.attrs.get("m_r", 0.0)),
    }


def _requantize(node: Node, consts: Consts, acc: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    return quant.requantize(acc, lo=node.attrs["lo"], hi=node.attrs["hi"], **_epilogue_args(node, consts, acc, rest))


def _affine(node: Node, consts: Consts, acc: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    t = quant.affine(acc, **_epilogue_args(node, consts, acc, rest))
    lo, hi = node.attrs.get("lo"), node.attrs.get("hi")
    return t if lo is None and hi is None else np.clip(t, lo, hi).astype(np.float32)


def _quantize(node: Node, _consts: Consts, x: np.ndarray) -> np.ndarray:
    return quant.requantize(x, np.float32(node.attrs["m"]), np.float32(0), lo=node.attrs["lo"], hi=node.attrs["hi"])


def _epilogue(node: Node, consts: Consts, acc: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    return (_affine if node.dtype == "f32" else _requantize)(node, consts, acc, *rest)


def _fused(producer: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    def meaning(node: Node, consts: Consts, x: np.ndarray, *rest: np.ndarray) -> np.ndarray:
        return _epilogue(node, consts, producer(node, consts, x), *rest)

    return meaning


def _first(_attrs: Mapping[str, Any], _consts: Consts, ins: list[Shape]) -> Shape:
    return ins[0]


def _unknown(node: Node, *_rest: object) -> np.ndarray:
    raise NotImplementedError(f"{node.name}: op {node.attrs.get('target')!r} has no meaning here")


def _conv_macs(node: Node, _in_shape: Shape, consts: Consts) -> int:
    _, i, kh, kw = consts["weight"].shape
    o, oh, ow = node.shape
    return o * oh * ow * i * kh * kw


def _linear_macs(_node: Node, _in_shape: Shape, consts: Consts) -> int:
    return int(consts["weight"].size)


def _linear_shape(_attrs: Mapping[str, Any], consts: Consts, _ins: list[Shape]) -> Shape:
    return (consts["weight"].shape[0],)


_ROWS = (
    Op("conv2d", _conv_shape, _conv2d, "mix", _conv_macs),
    Op("linear", _linear_shape, _linear, "mix", _linear_macs),
    Op("batch_norm", _first, _batch_norm, "same"),
    Op("relu", _first, lambda _n, _c, x: np.maximum(x, x.dtype.type(0)), "same"),
    Op("clip", _first, _clip, "same"),
    Op("add", _first, lambda _n, _c, x, y: x + y, "join"),
    Op("mul", _first, lambda _n, _c, x, gate: x * gate, "join"),  # the second operand may be one pixel
    *(Op(name, _first, _curve, "same") for name in CURVES),
    Op("max_pool2d", _pool_shape, _max_pool2d, "same"),
    Op("avg_pool2d", _pool_shape, _avg_pool2d, "same"),
    Op("global_avg_pool", lambda _a, _c, i: (i[0][0], 1, 1), _global_avg_pool, "same"),
    Op("flatten", lambda _a, _c, i: (int(np.prod(i[0])),), lambda _n, _c, x: x.reshape(len(x), -1), "spread"),
    Op("slice", _slice_shape, _slice, "gather"),
    Op("pad", _pad_shape, _pad, "gather"),
    Op("concat", _concat_shape, lambda _n, _c, *xs: np.concatenate(xs, axis=1), "concat"),
    Op("unknown", _first, _unknown, "mix"),
    # integer stage
    Op("quantize", _first, _quantize, "same"),
    Op("conv2d_int", _conv_shape, _conv2d_int, "mix", _conv_macs),
    Op("linear_int", _linear_shape, _linear_int, "mix", _linear_macs),
    Op("sum_pool2d", _pool_shape, _sum_pool2d, "same"),
    Op("product", _first, _product, "join"),
    Op("lookup", _first, _lookup, "same"),
    Op("requantize", _first, _requantize, "join"),
    Op("affine", _first, _affine, "join"),
    # pruned stage: channels picked by number, -1 being a zero; what slice and pad become
    Op("gather", _gather_shape, _gather, "gather"),
    # fused stage: producer and epilogue in one
    Op("conv2d_q", _conv_shape, _fused(_conv2d_int), "mix", _conv_macs),
    Op("linear_q", _linear_shape, _fused(_linear_int), "mix", _linear_macs),
    Op("sum_pool2d_q", _pool_shape, _fused(_sum_pool2d), "same"),
    Op("product_q", _first, lambda n, c, x, gate: _epilogue(n, c, _product(n, c, x, gate)), "join"),
)
OPS: Mapping[str, Op] = {op.name: op for op in _ROWS}


def levels_dtype_ok(node: Node) -> bool:
    """Whether `node.dtype` names an activation encoding (levels), not f32 or i32."""
    return node.dtype not in ("f32", "i32") and parse(node.dtype).has_zero
