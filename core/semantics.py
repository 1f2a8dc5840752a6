"""Exact integer execution in torch of the graph that `core.integer` derives: what `eval RUN` runs.

Levels travel as floats, which hold them exactly; a convolution is float32 only while no partial sum, in any order,
can leave the integers that float32 holds, else float64. The requantisation law is done operation by operation.
Knows neither the compiler nor native code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .encoding import parse
from .errors import UsageError
from .graph import Graph, Node, verify
from .ops import removed
from .quant import act_bounds
from .torch_ops import TORCH_OPS, conv2d, padded

EXACT = 2**24  # float32 holds every integer up to here
BATCH = 250  # images at once, at most
BATCH_VALUES = 1 << 25  # numbers of the largest value at once, at most


class Semantics:
    """An integer graph, ready to run.

    `threads`: torch threads while it runs; results do not depend on them.
    """

    def __init__(self, graph: Graph, threads: int = 1) -> None:
        verify(graph, "integer")
        self.graph, self.threads = graph, threads
        self._consts = {node.name: _constants(node, graph) for node in graph.nodes}
        order = {name: i for i, node in enumerate(graph.nodes) for name in node.inputs}
        self._last: dict[int, list[str]] = {}
        for name, at in order.items():
            if name not in graph.outputs:
                self._last.setdefault(at, []).append(name)

    def run(self, x: np.ndarray) -> np.ndarray:
        """Normalised images float32 [N, C, H, W] -> float32 [N, outputs], in the order C, H, W."""
        name = self.graph.outputs[0]
        outputs = int(np.prod(self.graph.value(name).shape))
        largest = max(int(np.prod(node.shape)) for node in (*self.graph.inputs, *self.graph.nodes))
        batch = max(1, min(BATCH, BATCH_VALUES // largest))
        parts = [self._batch(x[i : i + batch], keep=False)[name] for i in range(0, len(x), batch)]
        return np.concatenate([p.numpy().reshape(-1, outputs) for p in parts] or [np.empty((0, outputs), np.float32)])

    def values(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Every value by name: levels and accumulators int32, what is held in floats float32."""
        dtypes = {n.name: np.float32 if n.dtype == "f32" else np.int32 for n in (*self.graph.inputs, *self.graph.nodes)}
        return {name: value.numpy().astype(dtypes[name]) for name, value in self._batch(x, keep=True).items()}

    def _batch(self, x: np.ndarray, *, keep: bool) -> dict[str, Tensor]:
        (source,) = self.graph.inputs
        if x.dtype != np.float32 or x.shape[1:] != source.shape:
            raise UsageError(f"input is {x.dtype} {list(x.shape)}, the network takes float32 [N, {source.shape}]")
        values = {source.name: torch.from_numpy(np.ascontiguousarray(x))}
        with torch.inference_mode(), _exact(self.threads):
            for at, node in enumerate(self.graph.nodes):
                values[node.name] = _OPS[node.op](node, self._consts[node.name], *(values[i] for i in node.inputs))
                for name in () if keep else self._last.get(at, ()):
                    del values[name]
        return values


@contextmanager
def _exact(threads: int) -> Iterator[None]:
    """Nothing that trades exactness for speed: no TF32, no bf16, no Winograd (NNPACK's)."""
    conv = torch.backends.mkldnn.conv  # type: ignore[attr-defined]
    before = torch.get_num_threads(), torch.get_float32_matmul_precision(), conv.fp32_precision
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("highest")
    conv.fp32_precision = "ieee"
    try:
        with torch.backends.nnpack.flags(enabled=False):
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_float32_matmul_precision(before[1])
        conv.fp32_precision = before[2]


Consts = Mapping[str, Tensor]


def _constants(node: Node, graph: Graph) -> dict[str, Tensor]:
    out = {}
    for role, name in node.consts.items():
        values = graph.consts[name]
        if role == "table":
            out[role] = torch.from_numpy(values)
        elif role == "weight":
            out[role] = torch.from_numpy(values.astype(np.float32 if _fits_float32(node, graph) else np.float64))
        else:
            out[role] = torch.from_numpy(values.astype(np.float32).reshape(-1, *(1,) * (len(node.shape) - 1)))
    return out


def _fits_float32(node: Node, graph: Graph) -> bool:
    """Whether sum of |w| times the largest activation level stays within what float32 counts exactly, in every row."""
    weight = graph.consts[node.consts["weight"]].astype(np.int64)
    rows = np.abs(weight).reshape(len(weight), -1).sum(axis=1)
    return int(rows.max()) * act_bounds(parse(graph.value(node.inputs[0]).dtype))[1] <= EXACT


def _conv2d_int(node: Node, consts: Consts, x: Tensor) -> Tensor:
    return conv2d(node, x.to(consts["weight"].dtype), consts["weight"])


def _linear_int(_node: Node, consts: Consts, x: Tensor) -> Tensor:
    return F.linear(x.to(consts["weight"].dtype), consts["weight"])


def _sum_pool2d(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    """Levels times window stay far below 2^24 for windows up to 65,793 pixels; above that, float64."""
    kernel = tuple(node.attrs["kernel"])
    wide = x if kernel[0] * kernel[1] * 255 <= EXACT else x.double()
    return F.avg_pool2d(padded(wide, node), kernel, tuple(node.attrs["stride"]), divisor_override=1)


def _product(_node: Node, _consts: Consts, x: Tensor, gate: Tensor) -> Tensor:
    return x.float() * gate.float()  # of two levels: far below 2^24


def _lookup(node: Node, consts: Consts, x: Tensor) -> Tensor:
    table = consts["table"]
    out = table[x.long() & (len(table) - 1)]
    out[:, removed(node)] = 0
    return out


def _affine(node: Node, consts: Consts, acc: Tensor, *rest: Tensor) -> Tensor:
    """The law up to rounding: every operation on its own, in float32; an int32 in float64 rounds to nearest even."""
    t = acc.float() * consts["m"]
    t += consts["b"]
    if rest:
        t += rest[0] * torch.tensor(node.attrs["m_r"], dtype=torch.float32)
    return t


def _requantize(node: Node, consts: Consts, acc: Tensor, *rest: Tensor) -> Tensor:
    return _affine(node, consts, acc, *rest).round_().clamp_(node.attrs["lo"], node.attrs["hi"])


def _affine_clamped(node: Node, consts: Consts, acc: Tensor, *rest: Tensor) -> Tensor:
    t = _affine(node, consts, acc, *rest)
    lo, hi = node.attrs.get("lo"), node.attrs.get("hi")
    return t if lo is None and hi is None else t.clamp_(lo, hi)


def _quantize(node: Node, _consts: Consts, x: Tensor) -> Tensor:
    t = x * torch.tensor(node.attrs["m"], dtype=torch.float32)
    return (t + 0.0).round_().clamp_(node.attrs["lo"], node.attrs["hi"])


_OPS: Mapping[str, Callable[..., Tensor]] = {
    "quantize": _quantize,
    "conv2d_int": _conv2d_int,
    "linear_int": _linear_int,
    "sum_pool2d": _sum_pool2d,
    "product": _product,
    "lookup": _lookup,
    "requantize": _requantize,
    "affine": _affine_clamped,
    **{op: TORCH_OPS[op] for op in ("max_pool2d", "flatten", "slice", "pad", "concat")},
}
