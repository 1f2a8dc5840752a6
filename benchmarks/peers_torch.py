"""A float Graph as a torch function, for timing eager torch. Import only where torch is installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import UnsupportedError
from ..core.graph import Graph, Node

Consts = Mapping[str, Tensor]


def function(graph: Graph) -> Callable[[np.ndarray], np.ndarray]:
    """float32 [N, C, H, W] -> float32 [N, outputs] by torch's own kernels; UnsupportedError names an unknown op."""
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in graph.consts.items()}
    steps = []
    for node in graph.nodes:
        if node.op not in _OPS:
            raise UnsupportedError(f"{node.name}: op {node.attrs.get('target', node.op)!r} has no torch form here")
        steps.append((node, _OPS[node.op], {role: tensors[name] for role, name in node.consts.items()}))
    last = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
    done = {i: [n for n, at in last.items() if at == i and n not in graph.outputs] for i in range(len(steps))}

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            values = {graph.inputs[0].name: torch.from_numpy(x)}
            for i, (node, op, consts) in enumerate(steps):
                values[node.name] = op(node, consts, *(values[n] for n in node.inputs))
                for name in done[i]:
                    del values[name]  # memory is used again while it is in the cache
            return values[graph.outputs[0]].numpy()

    return run


def _padded(node: Node, x: Tensor, fill: float = 0.0) -> tuple[Tensor, tuple[int, int]]:
    """Input, and the padding that the op itself can add; what is not symmetric is added here."""
    top, left, bottom, right = node.attrs.get("padding", (0, 0, 0, 0))
    if (top, left) == (bottom, right):
        return x, (top, left)
    return F.pad(x, (left, right, top, bottom), value=fill), (0, 0)


def _conv2d(node: Node, consts: Consts, x: Tensor) -> Tensor:
    x, padding = _padded(node, x)
    a = node.attrs
    return F.conv2d(x, consts["weight"], consts.get("bias"), a["stride"], padding, a["dilation"], a["groups"])


def _batch_norm(node: Node, consts: Consts, x: Tensor) -> Tensor:
    c = consts
    return F.batch_norm(x, c["mean"], c["var"], c["weight"], c["bias"], eps=node.attrs["eps"])


def _max_pool2d(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    x, padding = _padded(node, x, -torch.inf)
    return F.max_pool2d(x, node.attrs["kernel"], node.attrs["stride"], padding)


def _avg_pool2d(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    x, padding = _padded(node, x)
    return F.avg_pool2d(x, node.attrs["kernel"], node.attrs["stride"], padding)


def _slice(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    return x[(slice(None), *(slice(*row) for row in node.attrs["slices"]))]


def _pad(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    return F.pad(x, [amount for pair in reversed(node.attrs["pads"]) for amount in pair])


_OPS: Mapping[str, Callable[..., Tensor]] = {
    "conv2d": _conv2d,
    "linear": lambda _n, c, x: F.linear(x, c["weight"], c.get("bias")),
    "batch_norm": _batch_norm,
    "relu": lambda _n, _c, x: F.relu(x),
    "clip": lambda n, _c, x: torch.clamp(x, n.attrs["lo"], n.attrs["hi"]),
    "add": lambda _n, _c, x, y: x + y,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "global_avg_pool": lambda _n, _c, x: F.adaptive_avg_pool2d(x, 1),
    "flatten": lambda _n, _c, x: torch.flatten(x, 1),
    "slice": _slice,
    "pad": _pad,
    "concat": lambda _n, _c, *xs: torch.cat(xs, 1),
}
