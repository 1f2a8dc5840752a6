"""The float ops of `core.ops` in torch: one row per op of the float stage, for the super-net and for calibration.

Plain functions of tensors, differentiable; quantisers, gates and batch statistics are their callers' business. Float
sums may come in another order than in numpy, so nothing exact is derived from these values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from .errors import UnsupportedError
from .graph import Node

Consts = Mapping[str, Tensor]  # role -> tensor ("weight", "bias", "mean", "var")
TorchOp = Callable[..., Tensor]  # (node, consts, *inputs with batch) -> value


def padded(x: Tensor, node: Node, value: float = 0.0) -> Tensor:
    """`x` with the border of attrs padding (top, left, bottom, right) filled with `value`."""
    top, left, bottom, right = node.attrs.get("padding", (0, 0, 0, 0))
    if not any((top, left, bottom, right)):
        return x
    return F.pad(x, (left, right, top, bottom), value=value)


def _border(x: Tensor, node: Node, value: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Input, and the padding that the op itself can add: symmetric, and for a pool at most half of its kernel."""
    top, left, bottom, right = node.attrs.get("padding", (0, 0, 0, 0))
    height, width = node.attrs.get("kernel", (2 * top, 2 * left))
    if (top, left) == (bottom, right) and 2 * top <= height and 2 * left <= width:
        return x, (top, left)
    return padded(x, node, value), (0, 0)


def conv2d(node: Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolution under the attrs of `node` with any weight; asymmetric padding too."""
    x, pad = _border(x, node)
    stride, dilation = tuple(node.attrs["stride"]), tuple(node.attrs["dilation"])
    return F.conv2d(x, weight, bias, stride, pad, dilation, node.attrs["groups"])


def _batch_norm(node: Node, consts: Consts, x: Tensor) -> Tensor:
    return F.batch_norm(
        x, consts["mean"], consts["var"], consts["weight"], consts["bias"], training=False, eps=node.attrs["eps"]
    )


def _max_pool2d(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    x, pad = _border(x, node, float("-inf"))
    return F.max_pool2d(x, tuple(node.attrs["kernel"]), tuple(node.attrs["stride"]), pad)


def _avg_pool2d(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    x, pad = _border(x, node)
    return F.avg_pool2d(x, tuple(node.attrs["kernel"]), tuple(node.attrs["stride"]), pad)


def _slice(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    return x[(slice(None), *(slice(*row) for row in node.attrs["slices"]))]


def _pad(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    amounts = [n for before, after in reversed(node.attrs["pads"]) for n in (before, after)]
    return F.pad(x, amounts)


def _unknown(node: Node, *_rest: object) -> Tensor:
    raise UnsupportedError(f"{node.name}: op {node.attrs.get('target')!r} is not supported")


TORCH_OPS: Mapping[str, TorchOp] = {
    "conv2d": lambda node, c, x: conv2d(node, x, c["weight"], c.get("bias")),
    "linear": lambda _node, c, x: F.linear(x, c["weight"], c.get("bias")),
    "batch_norm": _batch_norm,
    "relu": lambda _node, _c, x: F.relu(x),
    "clip": lambda node, _c, x: torch.clamp(x, node.attrs["lo"], node.attrs["hi"]),
    "add": lambda _node, _c, x, y: x + y,
    "mul": lambda _node, _c, x, gate: x * gate,
    "hard_sigmoid": lambda _node, _c, x: F.hardsigmoid(x),
    "hard_swish": lambda _node, _c, x: F.hardswish(x),
    "sigmoid": lambda _node, _c, x: torch.sigmoid(x),
    "silu": lambda _node, _c, x: F.silu(x),
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": lambda _node, _c, x: x.mean(dim=(2, 3), keepdim=True),
    "flatten": lambda _node, _c, x: torch.flatten(x, 1),
    "slice": _slice,
    "pad": _pad,
    "concat": lambda _node, _c, *xs: torch.cat(xs, dim=1),
    "unknown": _unknown,
}
